//! How fast flow records become segments, and how small.

use benches::capture::cpu;
use benches::flows::Flows;
use benches::harness::Spread;
use clap::{Parser, ValueEnum};
use flowtable::FlowRecord;
use serde::Serialize;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;
use storage::{FlowBatchBuilder, SegmentProfile, Store, StoreOptions};
use wire::Nanos;

/// Appends made-up flow records to a fresh store, log included, until all of them are in segments. Prints rows per CPU
/// second, what the parts take, and bytes a row.
#[derive(Parser)]
struct Options {
    /// Million rows a round
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    millions: u64,
    /// Rounds; medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Nanoseconds of packet time between the ends of two flows
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    gap: u64,
    /// Parquet encodings of the segments
    #[arg(long, value_enum, default_value = "tuned")]
    profile: Profile,
    /// Folder in which data folders are made; the system's for temporary files by default
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Also write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Profile {
    Tuned,
    Compatible,
}

/// Medians of the rounds, with their range.
#[derive(Serialize)]
struct Results {
    machine: String,
    rows: u64,
    columns_ns_per_row: Spread,
    rows_per_cpu_s: Spread,
    rows_per_s: Spread,
    encoder_rows_per_s: Spread,
    segment_bytes_per_row: f64,
    log_bytes_per_row: f64,
}

struct Round {
    columns_ns: f64,
    cpu_s: f64,
    elapsed_s: f64,
    encode_s: f64,
    segment_bytes: f64,
    log_bytes: f64,
}

/// Rows made before anything is timed, and appended again and again.
const DISTINCT: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let rows: Vec<FlowRecord> = Flows::new(42, DISTINCT, Nanos(options.gap)).collect();
    let profile = match options.profile {
        Profile::Tuned => SegmentProfile::Tuned,
        Profile::Compatible => SegmentProfile::Compatible,
    };
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        eprintln!("round {number} of {}", options.rounds);
        let dir = tempfile::tempdir_in(&parent)?;
        rounds.push(round(&rows, options.millions, dir.path(), profile)?);
    }
    let results = summary(&rounds, options.millions * DISTINCT).ok_or("no round was measured")?;
    print(&results);
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}

fn round(rows: &[FlowRecord], millions: u64, dir: &Path, profile: SegmentProfile) -> Result<Round, Box<dyn Error>> {
    let before = cpu::of_this_thread();
    let mut builder = FlowBatchBuilder::new(&["core".into()], 8_192);
    for run in rows.chunks(8_192) {
        builder.extend(run, &[]);
        builder.finish()?;
    }
    let columns_ns = (cpu::of_this_thread() - before).as_nanos() as f64 / rows.len() as f64;

    let mut store = Store::open(StoreOptions { profile, ..StoreOptions::new(dir, vec!["core".into()]) })?;
    let (since, before) = (Instant::now(), cpu::of_this_process());
    for _ in 0..millions {
        for run in rows.chunks(1_024) {
            store.append(run, &[])?;
        }
    }
    store.sync()?;
    store.flush()?;
    let (elapsed_s, cpu_s) = (since.elapsed().as_secs_f64(), (cpu::of_this_process() - before).as_secs_f64());
    let counts = store.counts();
    let count = (millions * DISTINCT) as f64;
    if counts.segment_rows as f64 != count {
        return Err(format!("{} rows are in segments, {count} were appended", counts.segment_rows).into());
    }
    Ok(Round {
        columns_ns,
        cpu_s,
        elapsed_s,
        encode_s: counts.encode_ns as f64 / 1e9,
        segment_bytes: counts.segment_bytes as f64 / count,
        log_bytes: counts.wal_bytes as f64 / count,
    })
}

fn summary(rounds: &[Round], rows: u64) -> Option<Results> {
    let of = |value: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(value));
    let count = rows as f64;
    Some(Results {
        machine: cpu::machine(),
        rows,
        columns_ns_per_row: of(&|r| r.columns_ns)?,
        rows_per_cpu_s: of(&|r| count / r.cpu_s)?,
        rows_per_s: of(&|r| count / r.elapsed_s)?,
        encoder_rows_per_s: of(&|r| count / r.encode_s)?,
        segment_bytes_per_row: of(&|r| r.segment_bytes)?.median,
        log_bytes_per_row: of(&|r| r.log_bytes)?.median,
    })
}

fn print(results: &Results) {
    let millions = |s: &Spread| format!("{:.2} ({:.2}-{:.2})", s.median / 1e6, s.min / 1e6, s.max / 1e6);
    let columns = results.columns_ns_per_row;
    println!("| of {:.1} M rows | median (extremes) |\n|---|---:|", results.rows as f64 / 1e6);
    println!("| columns only, ns a row | {:.0} ({:.0}-{:.0}) |", columns.median, columns.min, columns.max);
    println!("| M rows a CPU second, all threads | {} |", millions(&results.rows_per_cpu_s));
    println!("| M rows a second | {} |", millions(&results.rows_per_s));
    println!("| encoder, M rows a second | {} |", millions(&results.encoder_rows_per_s));
    println!("| bytes a row in segments | {:.1} |", results.segment_bytes_per_row);
    println!("| bytes a row in the log | {:.1} |", results.log_bytes_per_row);
    println!("\n{}.", results.machine);
}
