//! The loss curves as a picture.

use super::loss::{Curve, LossResult};
use super::tools::ToolKind;
use crate::svg::{Head, begin, end, escape, put};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// The plot within the picture: left, right, top, bottom.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 736.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 352.0;
/// Steps of a decade that get a line.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];

/// Rates to places: logarithmic, over all points and a little more.
struct Axis {
    least: f64,
    most: f64,
}

impl Axis {
    fn of(result: &LossResult) -> Axis {
        let rates = || result.curves.iter().flat_map(|c| &c.points).map(|p| p.offered_pps).filter(|r| *r > 0.0);
        let (least, most) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
        match least <= most {
            true => Axis { least: least * 0.85, most: most * 1.2 },
            false => Axis { least: 1e5, most: 1e7 },
        }
    }

    fn x(&self, rate: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (rate / self.least).ln() / (self.most / self.least).ln()
    }

    /// 1, 2 and 5 of each decade.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let decades = (self.least.log10().floor() as i32)..=(self.most.log10().ceil() as i32);
        let ticks = decades.flat_map(|decade| STEPS.map(|step| step * 10_f64.powi(decade)));
        ticks.filter(|rate| (self.least..=self.most).contains(rate))
    }
}

fn y(loss: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * loss.clamp(0.0, 1.0)
}

/// Colour and dash of a curve: told apart without colour, too.
fn look(tool: ToolKind) -> (&'static str, &'static str) {
    match tool {
        ToolKind::AfXdp => ("#0b6e4f", "none"),
        ToolKind::AfPacket => ("#1f6feb", "9 4"),
        ToolKind::Suricata => ("#c2410c", "3 3"),
        ToolKind::Softflowd => ("#7c3aed", "11 3 2 3"),
    }
}

/// Loss over offered rate, a curve a tool, as SVG.
pub fn svg(result: &LossResult) -> String {
    let head = Head {
        width: WIDTH,
        height: HEIGHT,
        title: "Packets lost against packets offered",
        heading: &format!("Packets lost against packets offered, {}-byte frames", result.frame_bytes),
        left: LEFT,
    };
    let mut out = begin(&head);
    let axis = Axis::of(result);
    grid(&axis, &mut out);
    for (number, curve) in result.curves.iter().enumerate() {
        draw(curve, &axis, &mut out);
        legend(curve, number, &mut out);
    }
    let caption = format!(
        "{} flows, {} s at each rate, one core for the tool, one for the sender. {}.",
        result.flows, result.seconds, result.machine
    );
    end(&mut out, &head, &caption);
    out
}

fn grid(axis: &Axis, out: &mut String) {
    for percent in [0, 20, 40, 60, 80, 100] {
        let y = y(f64::from(percent) / 100.0);
        put(
            out,
            format_args!(
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>\n",
                LEFT - 8.0,
                y + 4.5
            ),
        );
    }
    for rate in axis.ticks() {
        let x = axis.x(rate);
        put(
            out,
            format_args!(
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                BOTTOM + 19.0,
                rate / 1e6
            ),
        );
    }
    put(
        out,
        format_args!(
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">million packets a second offered (logarithmic)</text>\n",
            f64::midpoint(LEFT, RIGHT),
            BOTTOM + 42.0
        ),
    );
}

fn draw(curve: &Curve, axis: &Axis, out: &mut String) {
    let (colour, dash) = look(curve.tool);
    let mut places: Vec<(f64, f64)> = curve.points.iter().map(|p| (axis.x(p.offered_pps), y(p.loss()))).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let line: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let line = line.join(" ");
    put(
        out,
        format_args!("<polyline class=\"curve\" points=\"{line}\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/>\n"),
    );
    for (x, y) in places {
        put(out, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\" fill=\"{colour}\"/>\n"));
    }
}

/// In a row above the plot.
fn legend(curve: &Curve, number: usize, out: &mut String) {
    let (colour, dash) = look(curve.tool);
    let x = LEFT + number as f64 * 172.0;
    put(
        out,
        format_args!(
            "<path class=\"curve\" d=\"M{x} 46h30\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/>\
             <circle cx=\"{}\" cy=\"46\" r=\"3.4\" fill=\"{colour}\"/><text x=\"{}\" y=\"50.5\">{}</text>\n",
            x + 15.0,
            x + 37.0,
            escape(curve.tool.name())
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::super::loss::Point;
    use super::*;

    fn result() -> LossResult {
        let point = |offered: f64, received: u64| Point {
            wanted_pps: Some(offered),
            offered_pps: offered,
            sent: 1000,
            received,
            own_lost: 0,
            sender_dropped: 0,
            tool_cpu_s: 1.0,
            elapsed_s: 1.0,
        };
        let curve = |tool| Curve { tool, points: vec![point(1e5, 1000), point(3e6, 400)] };
        LossResult {
            machine: "a <machine> & more".to_owned(),
            load_average: [0.0, 0.0],
            frame_bytes: 60,
            flows: 1000,
            seconds: 3.0,
            curves: vec![curve(ToolKind::AfXdp), curve(ToolKind::Suricata)],
            missing: Vec::new(),
        }
    }

    #[test]
    fn every_point_is_within_the_axes_and_every_tool_in_the_legend() {
        let result = result();
        let axis = Axis::of(&result);
        for point in result.curves.iter().flat_map(|c| &c.points) {
            assert!((LEFT..=RIGHT).contains(&axis.x(point.offered_pps)));
            assert!((TOP..=BOTTOM).contains(&y(point.loss())));
        }
        assert_eq!(axis.ticks().map(|t| t / 1e5).collect::<Vec<_>>(), [1.0, 2.0, 5.0, 10.0, 20.0]);
        let svg = svg(&result);
        assert!(svg.contains("Taphouse, AF_XDP</text>") && svg.contains("Suricata</text>"));
        assert!(svg.contains("a &lt;machine&gt; &amp; more"));
        assert_eq!(svg.matches("<polyline").count(), 2);
    }

    #[test]
    fn nothing_measured_is_still_a_picture() {
        let nothing = LossResult { curves: Vec::new(), ..result() };
        assert!(svg(&nothing).ends_with("</svg>\n"));
    }
}
