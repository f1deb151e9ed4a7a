//! What is lost at which rate, for several tools on one veth, one after the other.
//!
//! Each tool has one core and the sender the other. Lost is what was sent and not worked on, by the tool's own count; what
//! the sending end dropped because the receiving end had no room is part of it.

use super::generator::{Generator, Pace, Sent};
use super::network::{self, SENDER};
use super::tools::{Tool, ToolKind};
use super::{CaptureBenchError, cpu};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct LossPlan {
    /// Tools, in this order; what is not installed is left out.
    pub tools: Vec<ToolKind>,
    /// Offered rates.
    pub rates: Vec<Pace>,
    /// How long each rate is kept up.
    pub length: Duration,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Flows.
    pub flows: u32,
    /// The binary; `None` for the one beside this program.
    pub taphouse: Option<PathBuf>,
    /// Core of the tool.
    pub tool_core: usize,
    /// Core of the sender.
    pub sender_core: usize,
}

/// A tool at a rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// What was asked for, in packets a second; `None` for as fast as it goes.
    pub wanted_pps: Option<f64>,
    /// What was sent, in packets a second.
    pub offered_pps: f64,
    /// Frames sent.
    pub sent: u64,
    /// Packets the tool worked on.
    pub received: u64,
    /// Packets the tool says it lost.
    pub own_lost: u64,
    /// Frames that the sending end had no room for at the receiving end (`tx_dropped`).
    pub sender_dropped: u64,
    /// Processor seconds of the tool.
    pub tool_cpu_s: f64,
    /// Seconds of sending.
    pub elapsed_s: f64,
}

impl Point {
    /// Frames that were sent and not worked on.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// As a share of what was sent, 0 to 1.
    pub fn loss(&self) -> f64 {
        self.lost() as f64 / self.sent.max(1) as f64
    }
}

/// A tool over all rates.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// Which.
    pub tool: ToolKind,
    /// In the order of the plan.
    pub points: Vec<Point>,
}

/// Everything measured.
#[derive(Clone, Debug, Serialize)]
pub struct LossResult {
    /// Processor and kernel.
    pub machine: String,
    /// Before and after.
    pub load_average: [f64; 2],
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Flows.
    pub flows: u32,
    /// Seconds at each rate.
    pub seconds: f64,
    /// One for each tool.
    pub curves: Vec<Curve>,
    /// Tools that are not here, with how to get them.
    pub missing: Vec<String>,
}

/// A rate in million packets a second, or `max`.
///
/// # Errors
/// Anything else.
pub fn parse_rate(text: &str) -> Result<Pace, CaptureBenchError> {
    if text == "max" {
        return Ok(Pace::Full);
    }
    match text.parse::<f64>() {
        Ok(rate) if (0.0001..=1000.0).contains(&rate) => Ok(Pace::PacketsPerSecond(rate * 1e6)),
        _ => Err(CaptureBenchError::Option {
            option: "a rate",
            value: text.to_owned(),
            expected: "0.0001 to 1000 (million packets a second), or max".to_owned(),
        }),
    }
}

/// Carries out a plan, in the namespace made by [`network::make`]. `progress` hears a line a point.
///
/// # Errors
/// The first thing that does not work.
pub fn measure(plan: &LossPlan, scratch: &Path, progress: impl Fn(&str)) -> Result<LossResult, CaptureBenchError> {
    let load_before = cpu::load_average();
    let taphouse = taphouse(plan)?;
    network::receive_without_xdp()?;
    let generator = Generator::new(plan.frame_bytes, plan.flows, plan.sender_core)?;
    let (mut curves, mut missing) = (Vec::new(), Vec::new());
    for (number, tool) in plan.tools.iter().enumerate() {
        if let Some(why) = tool.missing() {
            progress(why);
            missing.push(why.to_owned());
            continue;
        }
        let running = Tool::start(*tool, &taphouse, &scratch.join(number.to_string()), plan.tool_core)?;
        let mut points = Vec::new();
        for pace in &plan.rates {
            let point = at_rate(&running, &generator, *pace, plan.length)?;
            progress(&format!(
                "{}: {:.2} Mpps offered, {:.2} % lost",
                tool.name(),
                point.offered_pps / 1e6,
                100.0 * point.loss()
            ));
            points.push(point);
        }
        running.stop();
        curves.push(Curve { tool: *tool, points });
    }
    Ok(LossResult {
        machine: cpu::machine(),
        load_average: [load_before, cpu::load_average()],
        frame_bytes: plan.frame_bytes,
        flows: plan.flows,
        seconds: plan.length.as_secs_f64(),
        curves,
        missing,
    })
}

fn at_rate(tool: &Tool, generator: &Generator, pace: Pace, length: Duration) -> Result<Point, CaptureBenchError> {
    let (before, dropped, cpu) = (tool.settled()?, network::counter(SENDER, "tx_dropped")?, tool.cpu());
    let sent = send(generator, pace, length)?;
    let after = tool.settled()?;
    let seconds = sent.elapsed.as_secs_f64();
    Ok(Point {
        wanted_pps: match pace {
            Pace::Full => None,
            Pace::PacketsPerSecond(rate) => Some(rate),
        },
        offered_pps: sent.frames as f64 / seconds,
        sent: sent.frames,
        received: after.received - before.received,
        own_lost: after.own_lost.saturating_sub(before.own_lost),
        sender_dropped: network::counter(SENDER, "tx_dropped")? - dropped,
        tool_cpu_s: tool.cpu().saturating_sub(cpu).as_secs_f64(),
        elapsed_s: seconds,
    })
}

/// Sends for so long, on a thread that is pinned and ends with it.
fn send(generator: &Generator, pace: Pace, length: Duration) -> Result<Sent, CaptureBenchError> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| generator.run(pace, &stop));
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| CaptureBenchError::Panicked { thread: "sender" })?
    })
}

/// The binary that was named, or the one beside this program.
fn taphouse(plan: &LossPlan) -> Result<PathBuf, CaptureBenchError> {
    let own = std::env::current_exe().unwrap_or_default();
    let path = plan.taphouse.clone().unwrap_or_else(|| own.with_file_name("taphouse"));
    let is_needed = plan.tools.iter().any(|tool| matches!(tool, ToolKind::AfXdp | ToolKind::AfPacket));
    if is_needed && !path.is_file() {
        return Err(CaptureBenchError::Tool {
            tool: "taphouse",
            message: format!(
                "there is no {}: build it with the same profile (cargo build --release -p taphouse), or name one with \
                 --taphouse",
                path.display()
            ),
        });
    }
    Ok(path)
}

impl LossResult {
    /// A row a rate, a column a tool: percent lost.
    pub fn markdown(&self) -> String {
        let mut out = String::from("| Mpps asked for |");
        for curve in &self.curves {
            write!(out, " {}: Mpps offered | lost | CPU s |", curve.tool.name()).expect("a String takes all");
        }
        out.push_str("\n|---:|");
        out.push_str(&"---:|---:|---:|".repeat(self.curves.len()));
        out.push('\n');
        let rows = self.curves.iter().map(|curve| curve.points.len()).max().unwrap_or(0);
        for row in 0..rows {
            let wanted = self.curves.iter().find_map(|curve| curve.points.get(row)).and_then(|p| p.wanted_pps);
            let wanted = wanted.map_or_else(|| "max".to_owned(), |pps| format!("{}", pps / 1e6));
            write!(out, "| {wanted} |").expect("a String takes all");
            for curve in &self.curves {
                match curve.points.get(row) {
                    Some(p) => write!(
                        out,
                        " {:.2} | {} | {:.2} |",
                        p.offered_pps / 1e6,
                        percent(p.lost(), p.sent),
                        p.tool_cpu_s
                    ),
                    None => write!(out, " - | - | - |"),
                }
                .expect("a String takes all");
            }
            out.push('\n');
        }
        out
    }

    /// What is not in the table.
    pub fn remarks(&self) -> String {
        let mut out = String::new();
        for curve in &self.curves {
            let sum = |value: fn(&Point) -> u64| curve.points.iter().map(value).sum::<u64>();
            writeln!(
                out,
                "{}: {} sent, {} worked on, {} lost, of which it knows of {}; the sending end dropped {}",
                curve.tool.name(),
                sum(|p| p.sent),
                sum(|p| p.received),
                sum(Point::lost),
                sum(|p| p.own_lost),
                sum(|p| p.sender_dropped)
            )
            .expect("a String takes all");
        }
        for why in &self.missing {
            writeln!(out, "left out: {why}").expect("a String takes all");
        }
        writeln!(
            out,
            "frames of {} bytes in {} flows, {} s at each rate, one core for the tool and one for the sender; {}; load \
             average {:.1} before, {:.1} after",
            self.frame_bytes, self.flows, self.seconds, self.machine, self.load_average[0], self.load_average[1]
        )
        .expect("a String takes all");
        out
    }
}

/// `0` for none at all, so that it is told from very few.
fn percent(lost: u64, sent: u64) -> String {
    match lost {
        0 => "0".to_owned(),
        _ => format!("{:.2} %", 100.0 * lost as f64 / sent.max(1) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_or_max() {
        assert_eq!(parse_rate("max").unwrap(), Pace::Full);
        assert_eq!(parse_rate("0.5").unwrap(), Pace::PacketsPerSecond(500_000.0));
        for text in ["", "0", "-1", "fast", "NaN"] {
            let message = parse_rate(text).unwrap_err().to_string();
            assert!(message.contains("expected 0.0001 to 1000"), "{message}");
        }
    }

    #[test]
    fn very_few_is_not_none() {
        assert_eq!(percent(0, 10), "0");
        assert_eq!(percent(1, 1_000_000), "0.00 %");
        assert_eq!(percent(5, 10), "50.00 %");
    }
}
