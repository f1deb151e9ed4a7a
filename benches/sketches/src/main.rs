//! What sketches cost, keep and err.

#![forbid(unsafe_code)]

mod contest;
mod published;
mod readers;
mod stream;

use benches::capture::cpu;
use benches::harness::Spread;
use clap::Parser;
use contest::{Contestant, Data};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

/// Feeds one stream to every sketch in turn, ours and those of other crates, and prints updates a second, memory and error as
/// Markdown tables. Hashing is part of an update.
#[derive(Parser)]
struct Options {
    /// Million updates a round
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1000))]
    millions: u64,
    /// Distinct items, thousands
    #[arg(long, default_value_t = 1_200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    thousands: u64,
    /// Exponent of the Zipf stream
    #[arg(long, default_value_t = 1.0)]
    skew: f64,
    /// Rounds; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Only those with this in their group or name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Also write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What came of one sketch.
#[derive(Serialize)]
struct Row {
    group: &'static str,
    name: &'static str,
    /// Million updates a second of processor time.
    rate: Spread,
    memory_bytes: usize,
    errors: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let wanted = |contestant: &Contestant| match &options.only {
        Some(only) => contestant.group.contains(only.as_str()) || contestant.name.contains(only.as_str()),
        None => true,
    };
    let contestants: Vec<Contestant> =
        [contest::all(), published::all(), readers::all()].into_iter().flatten().filter(wanted).collect();
    if contestants.is_empty() {
        return Err(format!("no sketch has {:?} in its name", options.only.unwrap_or_default()).into());
    }
    eprintln!("making {} million items", options.millions);
    let data = Data::new(options.millions * 1_000_000, options.thousands * 1_000, options.skew);
    let mut rates: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    let mut last = BTreeMap::new();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (at, contestant) in contestants.iter().enumerate() {
            let outcome = (contestant.run)(&data);
            rates.entry(at).or_default().push(outcome.updates as f64 / outcome.cpu.as_secs_f64() / 1e6);
            last.insert(at, outcome);
        }
    }
    let row = |(at, contestant): (usize, &Contestant)| {
        let outcome = last.remove(&at)?;
        let rate = Spread::of(rates.remove(&at)?)?;
        let Contestant { group, name, .. } = *contestant;
        Some(Row { group, name, rate, memory_bytes: outcome.memory_bytes, errors: outcome.errors })
    };
    let rows: Vec<Row> = contestants.iter().enumerate().filter_map(row).collect();
    print(&rows, &data);
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

fn print(rows: &[Row], data: &Data) {
    println!("{} updates of {} items. {}.\n", data.items.len(), data.truth.len(), cpu::machine());
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = row.group;
            println!("\n### {group}\n\n| sketch | M updates/s | memory, KiB | error |\n|---|---:|---:|---|");
        }
        let Spread { median, min, max } = row.rate;
        println!("| {} | {median:.1} ({min:.1}-{max:.1}) | {} | {} |", row.name, row.memory_bytes / 1024, row.errors);
    }
}
