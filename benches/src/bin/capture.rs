//! Live capture under load, on a veth pair in a network namespace of its own. Needs root.

use benches::capture::generator::Pace;
use benches::capture::loss::{self, LossPlan};
use benches::capture::rate::{self, RatePlan, Receive, Stage};
use benches::capture::tools::ToolKind;
use benches::capture::{CaptureBenchError, network, plot};
use capture::{Mode, Waiting};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Measures live capture on a veth pair of its own: what a packet costs, and what is lost at which rate. Needs root.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What a packet costs the worker, stage by stage, against a loop that only receives and releases
    Rate(RateArgs),
    /// What is lost at which rate: Taphouse through AF_XDP and AF_PACKET, Suricata, softflowd
    Loss(LossArgs),
}

#[derive(Args)]
struct Traffic {
    /// Flows in the traffic
    #[arg(long, default_value_t = 1000)]
    flows: u32,
    /// Bytes of a frame
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(60..=1514))]
    frame_bytes: u16,
    /// Core of what is measured
    #[arg(long, default_value_t = 0)]
    worker_core: usize,
    /// Core of the sender
    #[arg(long, default_value_t = 1)]
    sender_core: usize,
}

#[derive(Args)]
struct RateArgs {
    #[command(flatten)]
    traffic: Traffic,
    /// Stages to measure; ratios are to the first
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["bare", "decode", "flows", "full"])]
    stages: Vec<StageArg>,
    /// Rounds; each gives every stage a turn
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Milliseconds of a turn
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=600_000))]
    turn_ms: u32,
    /// Packets per second, instead of as fast as it goes
    #[arg(long, value_name = "PPS")]
    pps: Option<f64>,
    /// What the worker does while nothing comes
    #[arg(long, value_enum, default_value_t = WaitingArg::Sleep)]
    waiting: WaitingArg,
    /// Where the kernel takes packets from the interface
    #[arg(long, value_enum, default_value_t = ReceiveArg::Sender)]
    receive: ReceiveArg,
    /// How the interface is read
    #[arg(long, value_enum, default_value_t = ModeArg::Copy)]
    mode: ModeArg,
    /// Packet memory, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=2048))]
    ring_mib: u32,
    /// Print every turn as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct LossArgs {
    #[command(flatten)]
    traffic: Traffic,
    /// Offered rates in million packets per second; `max` for as fast as it goes
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.2,0.5,1,1.5,2,3,max")]
    rates: Vec<String>,
    /// Seconds at each rate
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// What to measure; tools that are not installed are left out
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["af-xdp", "af-packet", "suricata", "softflowd"])]
    tools: Vec<ToolArg>,
    /// The taphouse binary [default: taphouse beside this program]
    #[arg(long, value_name = "PATH")]
    taphouse: Option<PathBuf>,
    /// Where the plot goes
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum StageArg {
    Bare,
    Decode,
    Flows,
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
enum WaitingArg {
    Sleep,
    Adaptive,
    Spin,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReceiveArg {
    /// In soft interrupts on the sender's core: the worker's time is its own
    Sender,
    /// In a kernel thread on the worker's core: what receiving costs in all
    Worker,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    Copy,
    Generic,
    AfPacket,
}

#[derive(Clone, Copy, ValueEnum)]
enum ToolArg {
    AfXdp,
    AfPacket,
    Suricata,
    Softflowd,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), CaptureBenchError> {
    network::enter()?;
    network::make()?;
    let scratch = tempfile::tempdir().map_err(|source| CaptureBenchError::File {
        what: "make a folder for temporary files in",
        path: std::env::temp_dir(),
        source,
    })?;
    match &options.command {
        Command::Rate(args) => run_rate(args, scratch.path()),
        Command::Loss(args) => run_loss(args, scratch.path()),
    }
}

fn run_rate(args: &RateArgs, scratch: &Path) -> Result<(), CaptureBenchError> {
    let stage = |arg: &StageArg| match arg {
        StageArg::Bare => Stage::Bare,
        StageArg::Decode => Stage::Decode,
        StageArg::Flows => Stage::Flows,
        StageArg::Full => Stage::Full,
    };
    let plan = RatePlan {
        stages: args.stages.iter().map(stage).collect(),
        rounds: usize::from(args.rounds),
        turn: Duration::from_millis(u64::from(args.turn_ms)),
        frame_bytes: usize::from(args.traffic.frame_bytes),
        flows: args.traffic.flows,
        pace: args.pps.map_or(Pace::Full, Pace::PacketsPerSecond),
        waiting: match args.waiting {
            WaitingArg::Sleep => Waiting::Sleep,
            WaitingArg::Adaptive => Waiting::Adaptive(Duration::from_micros(50)),
            WaitingArg::Spin => Waiting::Spin,
        },
        receive: match args.receive {
            ReceiveArg::Sender => Receive::Sender,
            ReceiveArg::Worker => Receive::Worker,
        },
        mode: match args.mode {
            ModeArg::Copy => Mode::Copy,
            ModeArg::Generic => Mode::Generic,
            ModeArg::AfPacket => Mode::AfPacket,
        },
        ring_bytes: args.ring_mib << 20,
        worker_core: args.traffic.worker_core,
        sender_core: args.traffic.sender_core,
    };
    let result = rate::measure(&plan, scratch, |line| eprintln!("{line}"))?;
    if args.json {
        print_json(&result);
    } else {
        println!("{}\n{}", result.markdown(), result.remarks());
    }
    Ok(())
}

fn run_loss(args: &LossArgs, scratch: &Path) -> Result<(), CaptureBenchError> {
    let tool = |arg: &ToolArg| match arg {
        ToolArg::AfXdp => ToolKind::AfXdp,
        ToolArg::AfPacket => ToolKind::AfPacket,
        ToolArg::Suricata => ToolKind::Suricata,
        ToolArg::Softflowd => ToolKind::Softflowd,
    };
    let plan = LossPlan {
        tools: args.tools.iter().map(tool).collect(),
        rates: args.rates.iter().map(|text| loss::parse_rate(text)).collect::<Result<_, _>>()?,
        length: Duration::from_secs_f64(args.seconds.clamp(0.1, 600.0)),
        frame_bytes: usize::from(args.traffic.frame_bytes),
        flows: args.traffic.flows,
        taphouse: args.taphouse.clone(),
        tool_core: args.traffic.worker_core,
        sender_core: args.traffic.sender_core,
    };
    let result = loss::measure(&plan, scratch, |line| eprintln!("{line}"))?;
    if let Some(path) = &args.svg {
        let written = std::fs::write(path, plot::svg(&result));
        written.map_err(|source| CaptureBenchError::File { what: "write", path: path.clone(), source })?;
    }
    if args.json {
        print_json(&result);
    } else {
        println!("{}\n{}", result.markdown(), result.remarks());
    }
    Ok(())
}

fn print_json(result: &impl serde::Serialize) {
    println!("{}", serde_json::to_string_pretty(result).expect("numbers and text are always JSON"));
}
