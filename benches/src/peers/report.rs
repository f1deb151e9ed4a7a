//! A comparison as Markdown.

use super::measure::{CaptureResult, Comparison, ToolResult};
use super::tools::Kind;
use std::fmt::Write;

/// A table a capture, then what is missing and how to get it.
pub fn markdown(comparison: &Comparison, missing: &[Kind]) -> String {
    let mut out = String::new();
    for result in &comparison.captures {
        table(result, &mut out);
    }
    remarks(comparison, missing, &mut out).expect("writing to a String cannot fail");
    out
}

fn table(result: &CaptureResult, out: &mut String) {
    let truth = result.capture.truth;
    let rows = || -> Result<String, std::fmt::Error> {
        let mut rows = String::new();
        writeln!(
            rows,
            "### {}: {} packets of {:.0} bytes on average, {} flows\n\n\
             | tool | M packets per CPU s | min | max | ns a packet | Taphouse does | peak memory MB | flows |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|",
            result.capture.name,
            truth.packets,
            result.capture.frame_bytes_mean(),
            truth.flows
        )?;
        for tool in &result.tools {
            row(result, tool, &mut rows)?;
        }
        rows.push('\n');
        Ok(rows)
    };
    out.push_str(&rows().expect("writing to a String cannot fail"));
}

fn row(result: &CaptureResult, tool: &ToolResult, out: &mut String) -> std::fmt::Result {
    let Some(rate) = result.packets_per_cpu_s(tool) else {
        return writeln!(out, "| {} | failed | - | - | - | - | - | - |", tool.name);
    };
    let ours = result.ours_to(tool).map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} times", ratio.median));
    let memory = tool.runs.iter().map(|run| run.memory_peak_bytes).max().unwrap_or(0);
    writeln!(
        out,
        "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {ours} | {:.0} | {} |",
        tool.name,
        rate.median / 1e6,
        rate.min / 1e6,
        rate.max / 1e6,
        1e9 / rate.median.max(1e-9),
        memory as f64 / 1e6,
        flows(tool, result.capture.truth.flows)
    )
}

/// Flows, and how far off they are.
fn flows(tool: &ToolResult, truth: u64) -> String {
    match tool.counted.flows {
        None => "-".to_owned(),
        Some(flows) if flows == truth => flows.to_string(),
        Some(flows) => format!("{flows} ({:+})", i128::from(flows) - i128::from(truth)),
    }
}

fn remarks(comparison: &Comparison, missing: &[Kind], out: &mut String) -> std::fmt::Result {
    let pinned = comparison.core.map_or_else(|| "not pinned".to_owned(), |core| format!("pinned to core {core}"));
    writeln!(
        out,
        "Median of {} interleaved rounds, user and system time of the whole process tree, captures in the page cache, {pinned}. \
         {}; load average {:.1} before, {:.1} after.",
        comparison.rounds, comparison.machine, comparison.load_average[0], comparison.load_average[1]
    )?;
    let results = comparison.captures.iter().flat_map(|result| result.tools.iter().map(move |tool| (result, tool)));
    for (result, tool) in results {
        if let Some(failure) = &tool.failure {
            writeln!(out, "\n{} failed over {}: {failure}.", tool.name, result.capture.name)?;
        }
    }
    if !missing.is_empty() {
        writeln!(out, "\nNot measured, since not found here:\n")?;
        for kind in missing {
            writeln!(out, "- {}: {}", kind.name(), kind.install())?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::captures::{Capture, CaptureTruth};
    use super::super::counts::Counted;
    use super::super::usage::Usage;
    use super::*;

    /// Ours at 10, softflowd at 1 million packets per CPU second and some flows short, argus failed.
    pub(in super::super) fn comparison() -> Comparison {
        let run = |cpu_s: f64| Usage {
            user_s: cpu_s / 2.0,
            system_s: cpu_s / 2.0,
            elapsed_s: cpu_s,
            memory_peak_bytes: 31_000_000,
            exit_code: Some(0),
        };
        let tool = |kind: Kind, cpu_s: f64, flows: u64| ToolResult {
            kind,
            name: kind.name().to_owned(),
            runs: vec![run(cpu_s), run(cpu_s * 2.0), run(cpu_s)],
            counted: Counted { packets: Some(1_000_000), flows: Some(flows) },
            failure: None,
        };
        let failed = ToolResult { failure: Some("exit code 1: <no> luck".to_owned()), ..tool(Kind::Argus, 1.0, 0) };
        let capture = |name| CaptureResult {
            capture: Capture {
                name,
                path: "x.pcap".into(),
                truth: CaptureTruth { packets: 1_000_000, flows: 700, frame_bytes: 358_000_000 },
            },
            tools: vec![tool(Kind::Taphouse, 0.1, 700), tool(Kind::Softflowd, 1.0, 690), failed.clone()],
        };
        Comparison {
            machine: "a machine".to_owned(),
            load_average: [0.0, 1.0],
            core: Some(1),
            rounds: 3,
            captures: vec![capture("IMIX 7:4:1"), capture("60 bytes")],
        }
    }

    #[test]
    fn rates_ratios_and_counts_are_told() {
        let text = markdown(&comparison(), &[Kind::Yaf]);
        assert!(text.contains("### IMIX 7:4:1: 1000000 packets of 358 bytes on average, 700 flows"), "{text}");
        assert!(text.contains("| taphouse | 10.00 | 5.00 | 10.00 | 100 | - | 31 | 700 |"), "{text}");
        assert!(text.contains("| softflowd | 1.00 | 0.50 | 1.00 | 1000 | 10.0 times | 31 | 690 (-10) |"), "{text}");
        assert!(
            text.contains("| argus | failed |") && text.contains("argus failed over 60 bytes: exit code 1"),
            "{text}"
        );
        assert!(
            text.contains("- yaf: ") && text.contains("libfixbuf-dev") && text.contains("pinned to core 1"),
            "{text}"
        );
    }
}
