//! A comparison as a picture: packets per CPU second, two bars a tool.

use super::measure::{CaptureResult, Comparison, ToolResult};
use super::tools::Kind;
use crate::svg::{Head, begin, end, escape, put};

const WIDTH: f64 = 760.0;
/// The plot within the picture.
const LEFT: f64 = 132.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 70.0;
/// Of a tool, and of a bar in it.
const ROW: f64 = 42.0;
const BAR: f64 = 15.0;
/// Below the last tool: numbers of the axis, its name, the caption in two lines.
const FOOT: f64 = 92.0;
/// Colours of our bars and those of others, a shade a capture.
const OURS: [&str; 2] = ["#0b6e4f", "#5fb391"];
const THEIRS: [&str; 2] = ["#57606a", "#b1bac4"];
/// Lines of the grid, at most.
const TICKS_MAX: f64 = 8.0;

/// Packets per CPU second over each capture, a row a tool, the fastest first.
pub fn svg(comparison: &Comparison) -> String {
    let rows = rows(comparison);
    let most = rows.iter().flat_map(|row| &row.rates).flatten().fold(0.0_f64, |most, rate| most.max(*rate));
    let scale = Scale { most: if most > 0.0 { most } else { 1e6 } };
    let bottom = TOP + ROW * rows.len().max(1) as f64;
    let head = Head {
        width: WIDTH,
        height: bottom + FOOT,
        title: "Packets per CPU second of flow tools",
        heading: "Packets per CPU second, from capture file to flow records",
        left: 24.0,
    };
    let mut out = begin(&head);
    grid(&scale, bottom, &mut out);
    for (number, row) in rows.iter().enumerate() {
        draw(row, TOP + ROW * number as f64, &scale, &mut out);
    }
    legend(comparison, &mut out);
    let pinned = comparison.core.map_or_else(String::new, |core| format!(", pinned to core {core}"));
    let traffic = comparison.captures.first().map(|c| c.capture.truth);
    let traffic = traffic.map_or_else(String::new, |t| format!("{} packets in {} flows, ", t.packets, t.flows));
    let what = format!("{traffic}median of {} interleaved rounds{pinned}; tcpdump reads only.", comparison.rounds);
    put(
        &mut out,
        format_args!(
            "<text class=\"small\" x=\"{}\" y=\"{}\">{}</text>\n",
            head.left,
            head.height - 31.0,
            escape(&what)
        ),
    );
    end(&mut out, &head, &comparison.machine);
    out
}

/// A tool and its rates, one for each capture; `None` where it failed.
struct Row {
    kind: Kind,
    name: String,
    rates: Vec<Option<f64>>,
}

fn rows(comparison: &Comparison) -> Vec<Row> {
    let Some(first) = comparison.captures.first() else { return Vec::new() };
    let rate = |result: &CaptureResult, tool: &ToolResult| result.packets_per_cpu_s(tool).map(|spread| spread.median);
    let row = |(at, tool): (usize, &ToolResult)| Row {
        kind: tool.kind,
        name: tool.name.clone(),
        rates: comparison.captures.iter().map(|result| result.tools.get(at).and_then(|t| rate(result, t))).collect(),
    };
    let mut rows: Vec<Row> = first.tools.iter().enumerate().map(row).collect();
    let best = |row: &Row| row.rates.first().copied().flatten().unwrap_or(0.0);
    rows.sort_by(|a, b| best(b).total_cmp(&best(a)));
    rows
}

/// Rates to places.
struct Scale {
    most: f64,
}

impl Scale {
    fn x(&self, rate: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * rate / self.most
    }

    /// Steps of 1, 2 or 5 of a decade.
    fn step(&self) -> f64 {
        let least = self.most / TICKS_MAX;
        let decade = 10_f64.powf(least.log10().floor());
        [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|step| *step >= least).unwrap_or(self.most)
    }
}

fn grid(scale: &Scale, bottom: f64, out: &mut String) {
    let step = scale.step();
    for n in 0..=(scale.most / step) as u32 {
        let rate = f64::from(n) * step;
        let x = scale.x(rate);
        // Rounded to what the step can tell, so that 0.30000000000000004 is 0.3.
        let label = (rate / 1e6 * 1e6).round() / 1e6;
        put(
            out,
            format_args!(
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                bottom + 18.0
            ),
        );
    }
    put(
        out,
        format_args!(
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{RIGHT}\" fill=\"none\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">million packets per CPU second</text>\n",
            f64::midpoint(LEFT, RIGHT),
            bottom + 38.0
        ),
    );
}

fn colours(kind: Kind) -> [&'static str; 2] {
    if kind == Kind::Taphouse { OURS } else { THEIRS }
}

fn draw(row: &Row, top: f64, scale: &Scale, out: &mut String) {
    let weight = if row.kind == Kind::Taphouse { " font-weight=\"600\"" } else { "" };
    put(
        out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\"{weight}>{}</text>\n",
            LEFT - 10.0,
            top + ROW / 2.0 + 4.5,
            escape(&shortened(&row.name))
        ),
    );
    let gap = (ROW - BAR * row.rates.len() as f64) / 2.0;
    for (number, rate) in row.rates.iter().enumerate() {
        let y = top + gap + BAR * number as f64;
        let (rate, label) = match rate {
            Some(rate) => (*rate, format!("{:.2}", rate / 1e6)),
            None => (0.0, "failed".to_owned()),
        };
        let x = scale.x(rate);
        put(
            out,
            format_args!(
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>\n",
                x - LEFT,
                BAR - 1.5,
                colours(row.kind)[number.min(1)],
                x + 5.0,
                y + BAR - 4.0
            ),
        );
    }
}

/// What fits beside a bar: the end of a path tells more than its beginning.
fn shortened(name: &str) -> String {
    const CHARS_MAX: usize = 15;
    let count = name.chars().count();
    if count <= CHARS_MAX {
        return name.to_owned();
    }
    let tail: String = name.chars().skip(count - CHARS_MAX + 1).collect();
    format!("…{tail}")
}

/// Above the plot: which shade is which capture.
fn legend(comparison: &Comparison, out: &mut String) {
    for (number, result) in comparison.captures.iter().enumerate() {
        let x = LEFT + number as f64 * 262.0;
        let shade = number.min(1);
        let text = format!("{} ({:.0} bytes a frame)", result.capture.name, result.capture.frame_bytes_mean());
        put(
            out,
            format_args!(
                "<rect x=\"{x}\" y=\"42\" width=\"12\" height=\"12\" fill=\"{}\"/>\
                 <rect x=\"{}\" y=\"42\" width=\"12\" height=\"12\" fill=\"{}\"/>\
                 <text x=\"{}\" y=\"52.5\">{}</text>\n",
                OURS[shade],
                x + 14.0,
                THEIRS[shade],
                x + 32.0,
                escape(&text)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::comparison;
    use super::*;

    #[test]
    fn every_tool_has_a_bar_for_each_capture_within_the_plot() {
        let comparison = comparison();
        let rows = rows(&comparison);
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["taphouse", "softflowd", "argus"], "the fastest first");
        let svg = svg(&comparison);
        assert_eq!(svg.matches(&format!("fill=\"{}\"", OURS[0])).count(), 2, "bar and legend");
        assert!(svg.contains(">10.00</text>") && svg.contains(">failed</text>") && svg.ends_with("</svg>\n"));
        let scale = Scale { most: 10e6 };
        assert!((scale.x(0.0) - LEFT).abs() < 1e-9 && (scale.x(10e6) - RIGHT).abs() < 1e-9);
        assert!((scale.step() - 2e6).abs() < 1.0);
    }

    #[test]
    fn nothing_measured_is_still_a_picture() {
        let nothing = Comparison { captures: Vec::new(), ..comparison() };
        assert!(svg(&nothing).ends_with("</svg>\n"));
    }

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(shortened("softflowd"), "softflowd");
        assert_eq!(shortened("/a/very/long/path/to/taphouse").chars().count(), 15);
        assert!(shortened("/a/very/long/path/to/taphouse").ends_with("path/to/taphouse".get(2..).unwrap()));
    }
}
