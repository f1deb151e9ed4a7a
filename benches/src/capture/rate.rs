//! What a packet costs the worker, stage by stage, against a loop that only receives and releases.
//!
//! One socket, one set of rings, one worker thread; the stages take turns of a second or so, again and again, so that a
//! slow moment of the machine hits all of them. Each turn begins and ends with empty rings, and its ledger must add up to
//! what was sent.

use super::generator::{Generator, Pace, Sent};
use super::network::{self, TAP};
use super::pipeline::{StageHandler, tell};
use super::{CaptureBenchError, cpu};
use crate::harness::Spread;
use ::capture::{
    AfPacketOptions, InterfaceOptions, Mode, NicWatch, Polled, Source, TapSource, Undelivered, Waiting, XdpOptions,
    worker,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::TapId;

/// What to measure.
#[derive(Clone, Debug)]
pub struct RatePlan {
    /// Stages, in this order; ratios are to the first.
    pub stages: Vec<Stage>,
    /// Rounds; each gives every stage a turn.
    pub rounds: usize,
    /// Length of a turn.
    pub turn: Duration,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Flows.
    pub flows: u32,
    /// How fast to send.
    pub pace: Pace,
    /// What the worker does while nothing comes.
    pub waiting: Waiting,
    /// Where the kernel takes packets from the interface.
    pub receive: Receive,
    /// How the interface is opened.
    pub mode: Mode,
    /// Packet memory in bytes.
    pub ring_bytes: u32,
    /// Core of the worker.
    pub worker_core: usize,
    /// Core of the sender.
    pub sender_core: usize,
}

/// How much of the pipeline runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Receive and release.
    Bare,
    /// And decode.
    Decode,
    /// And flow table, sketches, detector feed, record ring, writer.
    Flows,
    /// And the history for slices: all that the server does.
    Full,
}

impl Stage {
    /// All of them, from the least to the most.
    pub const ALL: [Stage; 4] = [Stage::Bare, Stage::Decode, Stage::Flows, Stage::Full];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Bare => "bare",
            Stage::Decode => "decode",
            Stage::Flows => "flows",
            Stage::Full => "full",
        }
    }
}

/// Where the kernel's receive loop (NAPI: the XDP program, and the copy into packet memory) runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Receive {
    /// In soft interrupts where they are raised: on a veth, on top of the sender. The kernel's work is then not in the
    /// worker's time.
    Sender,
    /// In a kernel thread on the worker's core, as with a card whose interrupts go there. Its time is known by itself, and
    /// is added to the worker's: what receiving costs in all.
    Worker,
}

/// One turn of one stage.
#[derive(Clone, Debug, Serialize)]
pub struct Turn {
    /// Which.
    pub stage: Stage,
    /// Frames sent.
    pub sent: u64,
    /// Packets the handler got.
    pub packets: u64,
    /// From the first frame sent to the last one received.
    pub elapsed_s: f64,
    /// Of the worker's thread.
    pub worker_cpu_s: f64,
    /// Of the threads behind it: writer, segment encoder, detectors, slices.
    pub behind_cpu_s: f64,
    /// Of the kernel's receive thread, with [`Receive::Worker`].
    pub kernel_cpu_s: Option<f64>,
    /// Of the sender's thread; with [`Receive::Sender`] the kernel's receive work is in here.
    pub sender_cpu_s: f64,
    /// Batches the worker got, and times it slept.
    pub batches: u64,
    /// Times the worker slept.
    pub sleeps: u64,
    /// Packets lost, by cause; those without any are left out.
    pub lost: BTreeMap<&'static str, u64>,
    /// Frames sent that are in no count. Other than 0, something is wrong.
    pub unaccounted: i64,
    /// Receive soft interrupts, by core.
    pub receive_interrupts: Vec<u64>,
}

/// What is divided by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Time of the worker's thread alone.
    Worker,
    /// Of worker and everything behind it.
    Pipeline,
    /// Of the kernel's receive thread, too.
    All,
}

impl Turn {
    /// Processor time in seconds.
    pub fn cpu_s(&self, share: Share) -> f64 {
        match share {
            Share::Worker => self.worker_cpu_s,
            Share::Pipeline => self.worker_cpu_s + self.behind_cpu_s,
            Share::All => self.worker_cpu_s + self.behind_cpu_s + self.kernel_cpu_s.unwrap_or(0.0),
        }
    }

    /// Packets a processor second.
    pub fn packets_per_cpu_s(&self, share: Share) -> f64 {
        self.packets as f64 / self.cpu_s(share).max(1e-9)
    }
}

/// All turns, and where they took place.
#[derive(Clone, Debug, Serialize)]
pub struct RateResult {
    /// Processor and kernel.
    pub machine: String,
    /// Before and after.
    pub load_average: [f64; 2],
    /// How the interface was read.
    pub mode: &'static str,
    /// What packet memory is made of.
    pub pages: String,
    /// Where the kernel's receive loop ran.
    pub receive: Receive,
    /// Flows sent.
    pub flows: u32,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Rounds of turns.
    pub rounds: Vec<Vec<Turn>>,
}

/// A handler with the threads that came up with it.
struct Runner {
    stage: Stage,
    handler: StageHandler,
    behind: BTreeSet<u32>,
}

impl Runner {
    fn new(stage: Stage, folder: &Path) -> Result<Runner, CaptureBenchError> {
        let before = cpu::own_threads();
        let folder = folder.join(stage.name());
        let handler = match stage {
            Stage::Bare => StageHandler::bare(),
            Stage::Decode => StageHandler::decode(),
            Stage::Flows => StageHandler::flows(&folder)?,
            Stage::Full => StageHandler::full(&folder)?,
        };
        let behind = cpu::own_threads().difference(&before).copied().collect();
        Ok(Runner { stage, handler, behind })
    }
}

/// The interface, and what is asked of it.
struct Bench<'a> {
    plan: &'a RatePlan,
    source: TapSource,
    nic: Option<NicWatch>,
    generator: Generator,
    /// The kernel's receive thread.
    kernel: Option<u32>,
}

/// Carries out a plan, in the namespace made by [`network::make`]; data goes to `scratch`. `progress` hears a line a round.
///
/// # Errors
/// The first thing that does not work.
pub fn measure(
    plan: &RatePlan,
    scratch: &Path,
    progress: impl Fn(&str) + Send + Sync,
) -> Result<RateResult, CaptureBenchError> {
    let load_before = cpu::load_average();
    // Before the worker is pinned: their threads go where there is room.
    let runners = plan.stages.iter().map(|stage| Runner::new(*stage, scratch));
    let mut runners = runners.collect::<Result<Vec<Runner>, _>>()?;
    let mut open = ::capture::open_interface(TAP, TapId(0), 1, &interface_options(plan))?;
    let kernel = match plan.receive {
        Receive::Sender => None,
        Receive::Worker => Some(network::receive_thread(plan.worker_core)?),
    };
    if open.mode == Mode::AfPacket {
        network::receive_without_xdp()?;
    }
    let queues = open.queues.drain(..).map(|(_, queue)| (0, queue)).collect();
    let pages = open.ports.first().map(|port| port.pages.clone()).unwrap_or_default();
    let mut bench = Bench {
        plan,
        source: TapSource::new(TAP, queues, plan.waiting),
        nic: open.nic.take(),
        generator: Generator::new(plan.frame_bytes, plan.flows, plan.sender_core)?,
        kernel,
    };
    let work = || -> Result<Vec<Vec<Turn>>, CaptureBenchError> {
        worker::pin(plan.worker_core)?;
        // Tables and caches fill before anything counts.
        for runner in &mut runners {
            bench.turn(runner, plan.turn / 4)?;
        }
        let round = |number: usize| {
            progress(&format!("round {} of {}", number + 1, plan.rounds));
            bench.round(&mut runners, number)
        };
        (0..plan.rounds).map(round).collect()
    };
    let rounds = on_thread("worker", work)?;
    for runner in runners {
        runner.handler.finish()?;
    }
    Ok(RateResult {
        machine: cpu::machine(),
        load_average: [load_before, cpu::load_average()],
        mode: open.mode.name(),
        pages,
        receive: plan.receive,
        flows: plan.flows,
        frame_bytes: plan.frame_bytes,
        rounds,
    })
}

/// As the server's defaults have it.
fn interface_options(plan: &RatePlan) -> InterfaceOptions {
    const FRAME_BYTES: u32 = 2048;
    const BLOCK_BYTES: u32 = 1 << 20;
    InterfaceOptions {
        mode: Some(plan.mode),
        force: false,
        promiscuous: true,
        hardware_timestamps: true,
        filter: None,
        multi_buffer: None,
        xdp: XdpOptions {
            frames: 1 << (plan.ring_bytes / FRAME_BYTES).max(64).ilog2(),
            frame_bytes: FRAME_BYTES,
            ..XdpOptions::default()
        },
        packet: AfPacketOptions {
            block_bytes: BLOCK_BYTES,
            blocks: (plan.ring_bytes / BLOCK_BYTES).max(2),
            ..AfPacketOptions::default()
        },
    }
}

/// Runs `work` on a thread of that name, to its end.
fn on_thread<T: Send>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, CaptureBenchError> + Send,
) -> Result<T, CaptureBenchError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
        let thread =
            thread.map_err(|source| CaptureBenchError::File { what: "start the thread", path: name.into(), source })?;
        thread.join().map_err(|_| CaptureBenchError::Panicked { thread: name })?
    })
}

impl Bench<'_> {
    /// A turn for each, every round beginning with another: whoever comes first may have an advantage.
    fn round(&mut self, runners: &mut [Runner], number: usize) -> Result<Vec<Turn>, CaptureBenchError> {
        let count = runners.len();
        let mut turns = (0..count)
            .map(|n| self.turn(&mut runners[(n + number) % count], self.plan.turn))
            .collect::<Result<Vec<_>, _>>()?;
        turns.rotate_right(number % count);
        Ok(turns)
    }

    fn turn(&mut self, runner: &mut Runner, length: Duration) -> Result<Turn, CaptureBenchError> {
        let before = self.source.counts();
        let interrupts = cpu::receive_interrupts();
        let (behind, kernel) = (cpu::of_own_threads(&runner.behind), self.kernel.map(cpu::of_process));
        let (start, worker) = (Instant::now(), cpu::of_this_thread());
        let (sent, polls) = self.drive(runner, length)?;
        let worker = cpu::of_this_thread() - worker;
        let (behind, kernel_after) = (cpu::of_own_threads(&runner.behind) - behind, self.kernel.map(cpu::of_process));
        self.settle(runner)?;

        let counts = self.source.counts() - before;
        let lost = Undelivered::ALL.into_iter().map(|cause| (cause.name(), counts.undelivered(cause)));
        let after = cpu::receive_interrupts();
        Ok(Turn {
            stage: runner.stage,
            sent: sent.frames,
            packets: counts.delivered,
            elapsed_s: sent.elapsed.max(polls.last.saturating_duration_since(start)).as_secs_f64(),
            worker_cpu_s: worker.as_secs_f64(),
            behind_cpu_s: behind.as_secs_f64(),
            kernel_cpu_s: kernel.zip(kernel_after).map(|(before, after)| (after - before).as_secs_f64()),
            sender_cpu_s: sent.cpu.as_secs_f64(),
            batches: polls.batches,
            sleeps: polls.sleeps,
            lost: lost.filter(|(_, packets)| *packets > 0).collect(),
            unaccounted: sent.frames as i64 - counts.offered as i64,
            receive_interrupts: after.iter().zip(&interrupts).map(|(after, before)| after - before).collect(),
        })
    }

    /// Sends for so long, and receives until nothing comes any more.
    fn drive(&mut self, runner: &mut Runner, length: Duration) -> Result<(Sent, Polls), CaptureBenchError> {
        let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (generator, source, pace) = (&self.generator, &mut self.source, self.plan.pace);
        std::thread::scope(|scope| {
            let send = || {
                let sent = generator.run(pace, &stop);
                over.store(true, Ordering::Release);
                sent
            };
            // A thread without a name has its parent's, and profiles of the worker are wanted.
            let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let cannot = |source| CaptureBenchError::File { what: "start a thread for", path: TAP.into(), source };
            let sender = named("sender").spawn_scoped(scope, send).map_err(cannot)?;
            let ring = || {
                std::thread::sleep(length);
                stop.store(true, Ordering::Relaxed);
            };
            // Should this one not start, the sender is told to stop, or the scope would wait for it forever.
            let alarm = named("alarm").spawn_scoped(scope, ring);
            if let Err(source) = alarm {
                stop.store(true, Ordering::Relaxed);
                return Err(cannot(source));
            }
            let polls = receive(source, &mut runner.handler, &over);
            stop.store(true, Ordering::Relaxed);
            let sent = sender.join().map_err(|_| CaptureBenchError::Panicked { thread: "sender" })??;
            Ok((sent, polls?))
        })
    }

    /// Has what the card lost counted: the thread that may ask is ours here, and the queue takes it over after a wait.
    fn settle(&mut self, runner: &mut Runner) -> Result<(), CaptureBenchError> {
        if let Some(nic) = &mut self.nic {
            nic.read();
        }
        while self.source.poll(runner.handler.handler())? != Polled::Idle {}
        Ok(())
    }
}

/// What a worker loop did.
struct Polls {
    batches: u64,
    sleeps: u64,
    /// When the last packets came, where that was after the sender was done.
    last: Instant,
}

/// The server's worker loop, until the sender is done and nothing comes any more. A bare loop keeps no ledger.
fn receive(source: &mut TapSource, stage: &mut StageHandler, over: &AtomicBool) -> Result<Polls, CaptureBenchError> {
    let (counts, mut told) = (stage.counts(), source.counts());
    let handler = stage.handler();
    let mut polls = Polls { batches: 0, sleeps: 0, last: Instant::now() };
    loop {
        let was_over = over.load(Ordering::Acquire);
        let polled = source.poll(handler)?;
        if counts {
            tell(handler, source.counts(), &mut told);
        }
        match polled {
            Polled::Packets(_) => {
                polls.batches += 1;
                if was_over {
                    polls.last = Instant::now();
                }
            }
            Polled::Idle if was_over => return Ok(polls),
            Polled::Idle => {}
            Polled::End => return Ok(polls),
        }
    }
}

impl RateResult {
    /// Turns of one stage, one a round.
    fn turns(&self, at: usize) -> impl Iterator<Item = &Turn> {
        self.rounds.iter().filter_map(move |round| round.get(at))
    }

    /// Packets a processor second of a stage over those of the first, round by round: median and range.
    pub fn ratio(&self, at: usize, share: Share) -> Option<Spread> {
        let ratio = |round: &Vec<Turn>| {
            Some(round.get(at)?.packets_per_cpu_s(share) / round.first()?.packets_per_cpu_s(share).max(1e-9))
        };
        Spread::of(self.rounds.iter().filter_map(ratio))
    }

    /// A table, and what to know to read it.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| stage | Mpps received | packets lost | ns a packet, worker | and threads behind | and kernel | \
             M packets per CPU s of the worker | ratio to the first: worker | all |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        let stages = self.rounds.first().map_or(0, Vec::len);
        for at in 0..stages {
            self.row(at, &mut out);
        }
        out
    }

    fn row(&self, at: usize, out: &mut String) {
        let median = |value: &dyn Fn(&Turn) -> f64| Spread::of(self.turns(at).map(value)).map_or(0.0, |s| s.median);
        let ns = |share| median(&|t| t.cpu_s(share) * 1e9 / t.packets.max(1) as f64);
        let lost = median(&|t| 100.0 * (t.sent.saturating_sub(t.packets)) as f64 / t.sent.max(1) as f64);
        let ratio = |share| {
            let spread = self.ratio(at, share).unwrap_or(Spread { median: 0.0, min: 0.0, max: 0.0 });
            format!("{:.2} ({:.2}-{:.2})", spread.median, spread.min, spread.max)
        };
        let is_split = self.receive == Receive::Worker;
        let kernel = if is_split { format!("{:.0}", ns(Share::All)) } else { "-".to_owned() };
        writeln!(
            out,
            "| {} | {:.2} | {lost:.1} % | {:.0} | {:.0} | {kernel} | {:.2} | {} | {} |",
            self.turns(at).next().map_or("", |turn| turn.stage.name()),
            median(&|t| t.packets as f64 / t.elapsed_s.max(1e-9)) / 1e6,
            ns(Share::Worker),
            ns(Share::Pipeline),
            median(&|t| t.packets_per_cpu_s(Share::Worker)) / 1e6,
            ratio(Share::Worker),
            ratio(if is_split { Share::All } else { Share::Pipeline }),
        )
        .expect("writing to a String cannot fail");
    }

    /// Where packets were lost, batch sizes, and where the kernel worked.
    pub fn remarks(&self) -> String {
        let mut out = String::new();
        let stages = self.rounds.first().map_or(0, Vec::len);
        for at in 0..stages {
            let mut lost: BTreeMap<&str, u64> = BTreeMap::new();
            self.turns(at).flat_map(|t| &t.lost).for_each(|(cause, n)| *lost.entry(cause).or_default() += n);
            let sum = |value: &dyn Fn(&Turn) -> u64| self.turns(at).map(value).sum::<u64>();
            let (packets, sent) = (sum(&|t| t.packets), sum(&|t| t.sent));
            let causes: Vec<String> = lost.iter().map(|(cause, n)| format!("{cause} {n}")).collect();
            let causes = if causes.is_empty() { "none".to_owned() } else { causes.join(", ") };
            let unaccounted: i64 = self.turns(at).map(|t| t.unaccounted).sum();
            writeln!(
                out,
                "{}: {sent} sent, {packets} received in batches of {:.0}; lost: {causes}; unaccounted for: {unaccounted}",
                self.turns(at).next().map_or("", |turn| turn.stage.name()),
                packets as f64 / sum(&|t| t.batches).max(1) as f64,
            )
            .expect("writing to a String cannot fail");
        }
        let cores = self.rounds.iter().flatten().map(|t| t.receive_interrupts.len()).max().unwrap_or(0);
        let of = |core: usize| self.rounds.iter().flatten().filter_map(|t| t.receive_interrupts.get(core)).sum::<u64>();
        let by_core: Vec<String> = (0..cores).map(|core| format!("{} on core {core}", of(core))).collect();
        let sender = self.rounds.iter().flatten().map(|t| t.sender_cpu_s * 1e9 / t.sent.max(1) as f64);
        writeln!(
            out,
            "receive soft interrupts: {}; the sender's thread used {:.0} ns a frame",
            by_core.join(", "),
            Spread::of(sender).map_or(0.0, |spread| spread.median)
        )
        .expect("writing to a String cannot fail");
        writeln!(
            out,
            "frames of {} bytes in {} flows, {} mode, {} pages; {}; load average {:.1} before, {:.1} after",
            self.frame_bytes,
            self.flows,
            self.mode,
            self.pages,
            self.machine,
            self.load_average[0],
            self.load_average[1]
        )
        .expect("writing to a String cannot fail");
        out
    }
}
