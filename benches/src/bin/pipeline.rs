//! Whole-pipeline harness: packets per CPU second of `taphouse replay`, from capture file to Parquet.

use benches::harness::{HarnessError, Measurement, Plan, markdown, measure};
use benches::stages;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use traffic::{Config, Generator, Sizes, pcap};

/// Measures taphouse replay from capture file to Parquet, over a generated capture or one of yours.
#[derive(Parser)]
struct Options {
    /// The binary to measure; several are run in turn and compared [default: taphouse beside this program]
    #[arg(long, value_name = "PATH")]
    taphouse: Vec<PathBuf>,
    /// A capture to replay instead of a generated one
    #[arg(long, value_name = "CAPTURE")]
    file: Option<PathBuf>,
    /// Packets to generate
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// Background flows to generate
    #[arg(long, default_value_t = 20_000)]
    flows: u64,
    /// Seed of the generated capture
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of generated frames, instead of IMIX
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(60..=9014))]
    frame_bytes: Option<u16>,
    /// Runs of each binary
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Worker threads
    #[arg(long, default_value_t = 1)]
    workers: u16,
    /// Further config keys to set, as taphouse takes them
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Instead of the binary, measure what each stage adds: the pipeline in this process, cut off after each of them
    #[arg(long, conflicts_with_all = ["taphouse", "workers", "set"])]
    stages: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// A sentence for each binary, then a Markdown table.
    Table,
    /// One JSON array, every run included.
    Json,
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
    let scratch = tempfile::tempdir().map_err(|e| format!("cannot make a folder for temporary files: {e}"))?;
    let (capture, packets) = match &options.file {
        Some(file) => (file.clone(), None),
        None => {
            let file = scratch.path().join("generated.pcap");
            let written = generate(options, &file).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
            (file, Some(written))
        }
    };
    // The capture should come from memory: what a disk does is no part of the figure.
    std::fs::File::open(&capture)
        .and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()))
        .map_err(|e| format!("cannot read {}: {e}", capture.display()))?;
    if options.stages {
        let shares = stages::measure(&capture, packets, usize::from(options.runs), scratch.path(), &|line| {
            eprintln!("{line}");
        });
        let shares = shares.map_err(|error| error.to_string())?;
        let text = match options.output {
            Output::Table => stages::markdown(&shares),
            Output::Json => serde_json::to_string_pretty(&shares).map_err(|e| format!("cannot print JSON: {e}"))?,
        };
        println!("{text}");
        return Ok(());
    }
    let mut settings = vec![format!("pipeline.workers={}", options.workers)];
    settings.extend(options.set.iter().cloned());
    let plan = Plan {
        binaries: binaries(options)?,
        capture,
        packets,
        runs: usize::from(options.runs),
        settings,
        scratch: scratch.path().to_owned(),
    };
    let measurements = measure(&plan, |line| eprintln!("{line}")).map_err(|error: HarnessError| error.to_string())?;
    print(options.output, &measurements)
}

/// Writes the capture and returns how many packets it holds.
fn generate(options: &Options, file: &std::path::Path) -> std::io::Result<u64> {
    let mut generator = Generator::new(Config {
        packets: options.packets,
        flows: options.flows,
        seed: options.seed,
        sizes: options.frame_bytes.map_or(Sizes::Imix, Sizes::Fixed),
        truth: false,
        ..Config::default()
    });
    pcap::write_pcap_file(file, &mut generator, true)?;
    Ok(generator.truth().packets)
}

fn binaries(options: &Options) -> Result<Vec<PathBuf>, String> {
    if !options.taphouse.is_empty() {
        return Ok(options.taphouse.clone());
    }
    let own = std::env::current_exe().map_err(|e| format!("cannot tell where this program is: {e}"))?;
    let sibling = own.with_file_name(format!("taphouse{}", std::env::consts::EXE_SUFFIX));
    if sibling.is_file() {
        return Ok(vec![sibling]);
    }
    Err(format!(
        "there is no {}: build it with the same profile (cargo build --profile dist -p taphouse) or name one with --taphouse",
        sibling.display()
    ))
}

fn print(output: Output, measurements: &[Measurement]) -> Result<(), String> {
    match output {
        Output::Json => {
            let json = serde_json::to_string_pretty(measurements).map_err(|e| format!("cannot print JSON: {e}"))?;
            println!("{json}");
        }
        Output::Table => {
            for m in measurements {
                let rate = m.packets_per_cpu_s;
                println!(
                    "{}: {:.2} million packets per CPU second ({:.2} to {:.2} over {} runs), {:.0} ns a packet, {} flows",
                    m.binary,
                    rate.median / 1e6,
                    rate.min / 1e6,
                    rate.max / 1e6,
                    m.runs.len(),
                    m.ns_per_packet,
                    m.flows
                );
            }
            println!("\n{}", markdown(measurements));
        }
    }
    Ok(())
}
