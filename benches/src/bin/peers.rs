//! Taphouse beside the flow tools found on this machine: packets per CPU second, peak memory, flows.

use benches::peers::captures::{self, Traffic};
use benches::peers::measure::{Comparison, Plan, compare};
use benches::peers::tools::{Kind, Search, Tool};
use benches::peers::{PeersError, markdown, svg, usage};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs Taphouse and every other flow tool found here over the same captures, and prints what a packet costs each.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    #[command(flatten)]
    compare: Compare,
}

#[derive(Args)]
struct Compare {
    /// Our binary; several are measured side by side, ratios are to the first [default: taphouse beside this program]
    #[arg(long, value_name = "PATH")]
    taphouse: Vec<PathBuf>,
    /// Further config keys for taphouse, as it takes them
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only these tools
    #[arg(long, value_name = "TOOL", value_delimiter = ',', value_parser = kind)]
    only: Vec<Kind>,
    /// Not these tools
    #[arg(long, value_name = "TOOL", value_delimiter = ',', value_parser = kind)]
    skip: Vec<Kind>,
    /// The Python that may have nfstream
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Packets of each capture
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    packets: u64,
    /// Flows of each capture
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    flows: u64,
    /// Seed of the captures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Pin everything to this core
    #[arg(long)]
    core: Option<usize>,
    /// Seconds a run may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    seconds_max: u32,
    /// Where captures are kept for the next time (1.4 GB) and tools write [default: taphouse-peers in the folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// Also write the picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also write every run as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Hidden {
    /// Runs one command and prints what it used: how this program measures, in a process of its own
    #[command(hide = true)]
    MeasureOne {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        core: Option<usize>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn kind(text: &str) -> Result<Kind, String> {
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == text);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn main() -> ExitCode {
    let Options { hidden, compare } = Options::parse();
    let done = match hidden {
        Some(Hidden::MeasureOne { folder, core, command }) => measure_one(&command, &folder, core),
        None => run(&compare),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn measure_one(command: &[OsString], folder: &Path, core: Option<usize>) -> Result<(), String> {
    let used = usage::run_here(command, folder, core)?;
    println!("{}", serde_json::to_string(&used).map_err(|e| e.to_string())?);
    Ok(())
}

fn run(options: &Compare) -> Result<(), String> {
    let runner = std::env::current_exe().map_err(|e| format!("cannot tell where this program is: {e}"))?;
    let progress = |line: &str| eprintln!("{line}");
    let (tools, missing) = tools(options, &runner);
    for kind in &missing {
        progress(&format!("not found: {} ({})", kind.name(), kind.install()));
    }
    let compared = || -> Result<Comparison, PeersError> {
        if tools.is_empty() {
            return Err(PeersError::Nothing { message: "look at --only, --skip and what is not found".to_owned() });
        }
        let scratch = options.scratch.clone().unwrap_or_else(|| std::env::temp_dir().join("taphouse-peers"));
        let traffic = Traffic { packets: options.packets, flows: options.flows, seed: options.seed };
        let captures = captures::make(&scratch, traffic, &progress)?;
        let plan = Plan {
            tools,
            captures,
            rounds: usize::from(options.rounds),
            core: options.core,
            seconds_max: options.seconds_max,
            scratch: std::fs::canonicalize(&scratch).map_err(|source| PeersError::File {
                what: "find",
                path: scratch,
                source,
            })?,
            runner,
        };
        compare(&plan, &progress)
    };
    let comparison = compared().map_err(|error| error.to_string())?;
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
    };
    if let Some(path) = &options.svg {
        write(path, &svg(&comparison))?;
    }
    if let Some(path) = &options.json {
        write(path, &serde_json::to_string_pretty(&comparison).map_err(|e| format!("cannot print JSON: {e}"))?)?;
    }
    print!("{}", markdown(&comparison, &missing));
    Ok(())
}

/// What is there of what is wanted, and what is not.
fn tools(options: &Compare, runner: &Path) -> (Vec<Tool>, Vec<Kind>) {
    let own = || vec![runner.with_file_name("taphouse")];
    let search = Search {
        taphouse: if options.taphouse.is_empty() { own() } else { options.taphouse.clone() },
        settings: options.set.clone(),
        python: options.python.clone(),
        folders: Search::default_folders(),
    };
    let is_wanted =
        |kind: &Kind| (options.only.is_empty() || options.only.contains(kind)) && !options.skip.contains(kind);
    let (mut tools, mut missing) = (Vec::new(), Vec::new());
    for kind in Kind::ALL.into_iter().filter(is_wanted) {
        let found = search.find(kind);
        if found.is_empty() {
            missing.push(kind);
        }
        tools.extend(found);
    }
    (tools, missing)
}
