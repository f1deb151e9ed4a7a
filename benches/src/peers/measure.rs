//! All tools over all captures, in turn.

use super::captures::Capture;
use super::counts::Counted;
use super::tools::{Kind, Tool};
use super::usage::{self, Job, Usage};
use super::{PeersError, file};
use crate::capture::cpu;
use crate::harness::Spread;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who.
    pub tools: Vec<Tool>,
    /// Over what.
    pub captures: Vec<Capture>,
    /// Rounds; in each, every tool reads every capture once, so that a slow minute of the machine hits all alike.
    pub rounds: usize,
    /// The core everything is pinned to.
    pub core: Option<usize>,
    /// Seconds of wall time that one run may take.
    pub seconds_max: u32,
    /// Where the tools write; emptied after every run.
    pub scratch: PathBuf,
    /// The program that measures one run: see [`usage::measure`].
    pub runner: PathBuf,
}

/// All that was measured, and where.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Processor and kernel.
    pub machine: String,
    /// Processes that wanted to run, before and after.
    pub load_average: [f64; 2],
    /// The core all was pinned to.
    pub core: Option<usize>,
    /// Rounds.
    pub rounds: usize,
    /// One for each capture, in order.
    pub captures: Vec<CaptureResult>,
}

/// All tools over one capture.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureResult {
    /// Which.
    pub capture: Capture,
    /// One for each tool, in order.
    pub tools: Vec<ToolResult>,
}

/// One tool over one capture.
#[derive(Clone, Debug, Serialize)]
pub struct ToolResult {
    /// Which.
    pub kind: Kind,
    /// For tables.
    pub name: String,
    /// Every run, in order.
    pub runs: Vec<Usage>,
    /// What it counted, the same in every run.
    pub counted: Counted,
    /// Why its figures do not count, or what is odd about them.
    pub failure: Option<String>,
}

impl CaptureResult {
    /// Packets per CPU second of a run.
    fn rate(&self, run: &Usage) -> f64 {
        self.capture.truth.packets as f64 / run.cpu_s().max(1e-9)
    }

    /// Packets per CPU second over the runs; `None` for a tool that failed.
    pub fn packets_per_cpu_s(&self, tool: &ToolResult) -> Option<Spread> {
        match tool.failure {
            None => Spread::of(tool.runs.iter().map(|run| self.rate(run))),
            Some(_) => None,
        }
    }

    /// How many times the packets per CPU second of `tool` the first tool of ours has, round by round; `None` where either
    /// is missing or failed, or `tool` is it.
    pub fn ours_to(&self, tool: &ToolResult) -> Option<Spread> {
        let ours = self.tools.iter().find(|t| t.kind == Kind::Taphouse)?;
        if std::ptr::eq(ours, tool) || ours.failure.is_some() || tool.failure.is_some() {
            return None;
        }
        Spread::of(ours.runs.iter().zip(&tool.runs).map(|(ours, theirs)| self.rate(ours) / self.rate(theirs)))
    }
}

/// Carries out a plan; `progress` hears a line before each run.
///
/// # Errors
/// Files cannot be written, or the measuring itself fails. A tool that fails is left out of further rounds, and its result
/// says why.
pub fn compare(plan: &Plan, progress: &dyn Fn(&str)) -> Result<Comparison, PeersError> {
    let load_before = cpu::load_average();
    let empty = |tool: &Tool| ToolResult {
        kind: tool.kind,
        name: tool.name.clone(),
        runs: Vec::with_capacity(plan.rounds),
        counted: Counted::default(),
        failure: None,
    };
    let mut captures: Vec<CaptureResult> = plan
        .captures
        .iter()
        .map(|capture| CaptureResult { capture: capture.clone(), tools: plan.tools.iter().map(empty).collect() })
        .collect();
    for round in 0..plan.rounds {
        for of_capture in &mut captures {
            of_capture.capture.warm()?;
            for n in 0..plan.tools.len() {
                // Every round begins with another: whoever comes first may have an advantage.
                let at = (n + round) % plan.tools.len();
                let (tool, result) = (&plan.tools[at], &mut of_capture.tools[at]);
                if result.failure.is_some() {
                    continue;
                }
                progress(&format!(
                    "round {} of {}, {}: {}",
                    round + 1,
                    plan.rounds,
                    of_capture.capture.name,
                    tool.name
                ));
                run(plan, &of_capture.capture, tool, result)?;
            }
        }
    }
    Ok(Comparison {
        machine: cpu::machine(),
        load_average: [load_before, cpu::load_average()],
        core: plan.core,
        rounds: plan.rounds,
        captures,
    })
}

/// One run, in a folder of its own, removed afterwards.
fn run(plan: &Plan, capture: &Capture, tool: &Tool, result: &mut ToolResult) -> Result<(), PeersError> {
    let folder = plan.scratch.join("run");
    if folder.exists() {
        file("empty", &folder, fs::remove_dir_all(&folder))?;
    }
    file("make", &folder, fs::create_dir_all(&folder))?;
    let job = Job {
        tool: tool.name.clone(),
        command: tool.prepare(capture, &folder)?,
        folder: folder.clone(),
        core: plan.core,
        seconds_max: plan.seconds_max,
    };
    let used = usage::measure(&plan.runner, &job)?;
    let failure = used.failure().map(|failure| format!("{failure}: {}", last_words(&folder)));
    let counted = match failure {
        Some(failure) => Err(failure),
        None => tool.counted(&folder).map_err(|message| format!("its counts are not known: {message}")),
    };
    result.runs.push(used);
    match counted {
        Ok(counted) => {
            let is_first = result.runs.len() == 1;
            result.failure = odd(counted, result.counted, is_first, capture.truth.packets);
            result.counted = counted;
        }
        Err(failure) => result.failure = Some(failure),
    }
    file("remove", &folder, fs::remove_dir_all(&folder))
}

/// A tool that left packets out was not measured over this capture; one that counts otherwise the second time, neither.
fn odd(counted: Counted, before: Counted, is_first: bool, packets: u64) -> Option<String> {
    match counted.packets {
        Some(got) if got != packets => Some(format!("counted {got} packets, not {packets}")),
        _ if !is_first && counted != before => {
            Some(format!("counted {:?} flows in one run and {:?} in another", before.flows, counted.flows))
        }
        _ => None,
    }
}

/// The last that it said.
fn last_words(folder: &Path) -> String {
    let read = |name| fs::read(folder.join(name)).unwrap_or_default();
    let said = [read("stdout"), read("stderr")].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tool_leaves_out_is_told() {
        let counted = |packets, flows| Counted { packets: Some(packets), flows: Some(flows) };
        assert_eq!(odd(counted(10, 3), Counted::default(), true, 10), None);
        assert_eq!(odd(counted(10, 3), counted(10, 3), false, 10), None);
        assert!(odd(counted(9, 3), Counted::default(), true, 10).unwrap().contains("9 packets, not 10"));
        assert!(odd(counted(10, 4), counted(10, 3), false, 10).is_some());
        assert_eq!(odd(Counted::default(), Counted::default(), false, 10), None);
    }
}
