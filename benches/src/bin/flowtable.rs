//! The flow table by itself: scale, churn, a flood of spoofed flows, an aimed attack.

use benches::capture::cpu;
use benches::table::aim::{self, AimPlan, AimResult};
use benches::table::attack::{self, AttackPlan, AttackResult};
use benches::table::churn::{self, ChurnPlan, ChurnResult};
use benches::table::scale::{self, ScalePlan, ScaleResult};
use clap::Parser;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures the flow table in this process: what a packet costs with how many flows, new flows a second, and what an attack
/// does to it. Without options, everything. Ends with an error if the table did something wrong, not if it was slow.
#[derive(Parser)]
struct Options {
    /// Packets over 10k to 10M concurrent flows (2.5 GB of memory)
    #[arg(long)]
    scale: bool,
    /// New flows all the time, expiring by timeouts
    #[arg(long)]
    churn: bool,
    /// A flood of spoofed flows while real flows go on
    #[arg(long)]
    attack: bool,
    /// Flows aimed at one bucket
    #[arg(long)]
    aim: bool,
    /// Most flows of the scale; tables of 10k, 100k, 1M, … up to it
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..=90_000_000))]
    flows: u64,
    /// Packets of a round of the scale
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    packets: u64,
    /// Rounds; medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// New flows a second of packet time
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    flows_per_s: u64,
    /// Spoofed flows of the flood
    #[arg(long, default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(1..=1_u64 << 40))]
    spoofed: u64,
    /// Flows the table under attack may hold
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(16..=90_000_000))]
    flows_max: u32,
    /// Real flows during the attack
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    real: u64,
    /// Also write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// All that was measured.
#[derive(Default, Serialize)]
struct Results {
    machine: String,
    scale: Vec<ScaleResult>,
    churn: Option<ChurnResult>,
    attack: Option<AttackResult>,
    aim: Option<AimResult>,
    wrong: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let progress = |line: &str| eprintln!("{line}");
    let is_all = !(options.scale || options.churn || options.attack || options.aim);
    let rounds = usize::from(options.rounds);
    let mut results = Results { machine: cpu::machine(), ..Results::default() };
    // The small ones first: what they leave behind in the allocator is least.
    if is_all || options.aim {
        progress("aim");
        let (result, wrong) = aim::measure(&AimPlan { packets: 1_000_000, rounds }).map_err(|e| e.to_string())?;
        println!("### Aimed at one bucket\n\n{}", aim::markdown(&result));
        results.wrong.extend(wrong);
        results.aim = Some(result);
    }
    if is_all || options.attack {
        progress("attack");
        let plan = AttackPlan { spoofed: options.spoofed, real: options.real, flows_max: options.flows_max };
        let (result, wrong) = attack::measure(&plan).map_err(|e| e.to_string())?;
        println!("### Flood of spoofed flows\n\n{}", attack::markdown(&result));
        results.wrong.extend(wrong);
        results.attack = Some(result);
    }
    if is_all || options.churn {
        progress("churn");
        let plan = ChurnPlan { flows_per_s: options.flows_per_s, seconds: 10, idle_s: 4 };
        let (result, wrong) = churn::measure(&plan).map_err(|e| e.to_string())?;
        println!("### New flows all the time\n\n{}", churn::markdown(&result));
        results.wrong.extend(wrong);
        results.churn = Some(result);
    }
    if is_all || options.scale {
        let flows = std::iter::successors(Some(10_000), |flows| Some(flows * 10));
        let flows = flows.take_while(|flows| *flows <= options.flows).collect();
        let plan = ScalePlan { flows, packets: options.packets, rounds };
        let (result, wrong) = scale::measure(&plan, &progress).map_err(|e| e.to_string())?;
        println!("### Concurrent flows\n\n{}", scale::markdown(&result));
        results.wrong.extend(wrong);
        results.scale = result;
    }
    println!("CPU time of one thread, in batches of {} packets. {}.", benches::table::BATCH, results.machine);
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&results).map_err(|e| format!("cannot print JSON: {e}"))?;
        std::fs::write(path, json).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    if results.wrong.is_empty() { Ok(()) } else { Err(results.wrong.join("\nerror: ")) }
}
