//! Runs `taphouse replay` over a capture, again and again, and says what a packet cost.

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thiserror::Error;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The binaries to compare, in this order within each round.
    pub binaries: Vec<PathBuf>,
    /// The capture.
    pub capture: PathBuf,
    /// Packets it holds, where known: every run must report as many.
    pub packets: Option<u64>,
    /// Rounds; each runs every binary once, so that a slow minute of the machine hits all alike.
    pub runs: usize,
    /// Overrides of config keys, `KEY=VALUE`, handed on as `--set`.
    pub settings: Vec<String>,
    /// Where data folders are made, one a run.
    pub scratch: PathBuf,
}

/// What a measurement can fail at.
#[derive(Debug, Error)]
pub enum HarnessError {
    /// A binary could not be started.
    #[error(
        "cannot run {binary}: {source}; build it (cargo build --profile dist -p taphouse) or name it with --taphouse"
    )]
    Start {
        /// The binary.
        binary: String,
        /// Why.
        source: io::Error,
    },
    /// A run ended with an error.
    #[error("{binary} replay ended with {status}: {message}")]
    Failed {
        /// The binary.
        binary: String,
        /// Its exit status.
        status: String,
        /// The last line it wrote to standard error.
        message: String,
    },
    /// The summary is not the JSON that replay promises.
    #[error("{binary} replay --output json printed something else than its summary: {source}")]
    Summary {
        /// The binary.
        binary: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A run was fast, but wrong.
    #[error("{binary} reports {got} {what}, not {expected}")]
    Wrong {
        /// The binary.
        binary: String,
        /// What was counted.
        what: &'static str,
        /// As reported.
        got: u64,
        /// As it should be.
        expected: u64,
    },
    /// A folder for a run could not be made or removed.
    #[error("cannot prepare the data folder {folder}: {source}")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        source: io::Error,
    },
    /// A plan without anything to do.
    #[error("nothing to measure: runs and binaries must both be at least 1")]
    Empty,
}

/// The fields of a replay's summary that are read here; others are ignored.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Summary {
    packets: u64,
    flows: u64,
    elapsed_s: f64,
    cpu_s: f64,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// Packets replayed.
    pub packets: u64,
    /// Flows found.
    pub flows: u64,
    /// Seconds from first to last packet, as reported.
    pub elapsed_s: f64,
    /// CPU seconds of the process, as reported.
    pub cpu_s: f64,
    /// CPU seconds of the process from start to exit as the kernel counts them, in steps of 10 ms: what keeps
    /// `cpu_s` honest. `None` where the kernel does not say.
    pub process_cpu_s: Option<f64>,
}

/// What one binary did.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The binary.
    pub binary: String,
    /// Flows found, the same in every run.
    pub flows: u64,
    /// Packets, the same in every run.
    pub packets: u64,
    /// Packets per CPU second over the runs.
    pub packets_per_cpu_s: Spread,
    /// CPU nanoseconds a packet, by the median.
    pub ns_per_packet: f64,
    /// Seconds of wall time over the runs.
    pub elapsed_s: Spread,
    /// Every run, in order.
    pub runs: Vec<Run>,
}

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value; `None` for none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Spread { median, min, max })
    }
}

/// Carries out a plan; `progress` hears a line before each run.
///
/// # Errors
/// The first run that fails, or whose packets or flows differ from what they must be.
pub fn measure(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Vec<Measurement>, HarnessError> {
    if plan.runs == 0 {
        return Err(HarnessError::Empty);
    }
    let mut runs: Vec<Vec<Run>> = vec![Vec::with_capacity(plan.runs); plan.binaries.len()];
    for round in 1..=plan.runs {
        for (binary, runs) in plan.binaries.iter().zip(&mut runs) {
            progress(&format!("run {round} of {}: {}", plan.runs, binary.display()));
            let run = replay(plan, binary)?;
            let expected_packets = plan.packets.or(runs.first().map(|first: &Run| first.packets));
            let expected_flows = runs.first().map(|first| first.flows);
            let counts = [("packets", run.packets, expected_packets), ("flows", run.flows, expected_flows)];
            for (what, got, expected) in counts {
                if let Some(expected) = expected.filter(|expected| *expected != got) {
                    return Err(HarnessError::Wrong { binary: binary.display().to_string(), what, got, expected });
                }
            }
            runs.push(run);
        }
    }
    plan.binaries.iter().zip(runs).map(|(binary, runs)| summarize(binary, runs)).collect()
}

fn summarize(binary: &Path, runs: Vec<Run>) -> Result<Measurement, HarnessError> {
    let rates = runs.iter().map(|run| run.packets as f64 / run.cpu_s.max(1e-9));
    let packets_per_cpu_s = Spread::of(rates).ok_or(HarnessError::Empty)?;
    let elapsed_s = Spread::of(runs.iter().map(|run| run.elapsed_s)).ok_or(HarnessError::Empty)?;
    Ok(Measurement {
        binary: binary.display().to_string(),
        flows: runs[0].flows,
        packets: runs[0].packets,
        packets_per_cpu_s,
        ns_per_packet: 1e9 / packets_per_cpu_s.median.max(1e-9),
        elapsed_s,
        runs,
    })
}

/// One replay into a data folder of its own, removed afterwards.
fn replay(plan: &Plan, binary: &Path) -> Result<Run, HarnessError> {
    let name = || binary.display().to_string();
    let folder = plan.scratch.join("data");
    let prepare = |result: io::Result<()>| {
        result.map_err(|source| HarnessError::Folder { folder: folder.display().to_string(), source })
    };
    prepare(fs::create_dir(&folder))?;
    let before = children_cpu_s();
    let output = Command::new(binary)
        .args(arguments(plan, &folder))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| HarnessError::Start { binary: name(), source })?;
    let process_cpu_s = before.zip(children_cpu_s()).map(|(before, after)| after - before);
    prepare(fs::remove_dir_all(&folder))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let message = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned();
        return Err(HarnessError::Failed { binary: name(), status: output.status.to_string(), message });
    }
    let Summary { packets, flows, elapsed_s, cpu_s } =
        serde_json::from_slice(&output.stdout).map_err(|source| HarnessError::Summary { binary: name(), source })?;
    Ok(Run { packets, flows, elapsed_s, cpu_s, process_cpu_s })
}

fn arguments(plan: &Plan, folder: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        vec!["replay".into(), plan.capture.clone().into(), "--data-dir".into(), folder.into()];
    arguments.extend(["--output".into(), "json".into()]);
    for setting in &plan.settings {
        arguments.extend(["--set".into(), setting.into()]);
    }
    arguments
}

/// CPU seconds of all children waited for: cutime and cstime of proc_pid_stat(5), in ticks of 10 ms (USER_HZ).
fn children_cpu_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let after_name = stat.rsplit_once(')')?.1; // the name may hold spaces; field 3 follows it
    let mut fields = after_name.split_ascii_whitespace().skip(13);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// The measurements as a Markdown table, a line a binary.
pub fn markdown(measurements: &[Measurement]) -> String {
    let mut out = String::from(
        "| binary | packets | flows | M packets per CPU s: median | min | max | ns a packet | elapsed s | process CPU s |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for m in measurements {
        let rate = m.packets_per_cpu_s;
        let process = Spread::of(m.runs.iter().filter_map(|run| run.process_cpu_s));
        let process = process.map_or_else(|| "-".to_owned(), |spread| format!("{:.2}", spread.median));
        writeln!(
            out,
            "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {process} |",
            m.binary,
            m.packets,
            m.flows,
            rate.median / 1e6,
            rate.min / 1e6,
            rate.max / 1e6,
            m.ns_per_packet,
            m.elapsed_s.median,
        )
        .expect("writing to a String cannot fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_have_median_and_range() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn cpu_time_of_children_can_be_read() {
        assert!(children_cpu_s().is_some_and(|seconds| seconds >= 0.0));
    }
}
