//! The main curves of a run as pictures (SVG), readable on light and dark pages.

use crate::report::Report;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Size of a picture, and of the room around its curves.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Colours that can be told apart by most people.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A picture of some rows of a run.
struct Plot {
    file: &'static str,
    title: &'static str,
    /// Along the bottom: what the numbers in the rows' names count.
    along: &'static str,
    /// Up the side; logarithmic.
    unit: &'static str,
    points: &'static [&'static str],
    /// And in a run of another length.
    or_points: &'static [&'static str],
    curves: &'static [Curve],
}

/// A curve: its name, and its rows' name with `#` where the point stands.
struct Curve {
    name: &'static str,
    rows: &'static str,
    dashed: bool,
}

const fn curve(name: &'static str, rows: &'static str) -> Curve {
    Curve { name, rows, dashed: false }
}

const fn dashed(name: &'static str, rows: &'static str) -> Curve {
    Curve { name, rows, dashed: true }
}

const PLOTS: [Plot; 4] = [
    Plot {
        file: "first-token.svg",
        title: "Request sent to first token, on loopback",
        along: "percentile",
        unit: "µs",
        points: &["p50", "p99"],
        or_points: &[],
        curves: &[
            curve("direct", "direct_first_token_#"),
            curve("minimal proxy", "proxy_first_token_#"),
            curve("tunnel, durable hold", "belay_first_token_#"),
            curve("gateway, durable hold", "gateway_first_token_#"),
            curve("HTTP, durable hold", "http_first_token_#"),
        ],
    },
    Plot {
        file: "travel.svg",
        title: "A token's travel, 20 ms apart, on two cores",
        along: "streams at once",
        unit: "µs",
        points: &["1", "32", "256"],
        or_points: &[],
        curves: &[
            curve("direct", "direct_travel_#_p50"),
            curve("minimal proxy", "proxy_travel_#_p50"),
            curve("tunnel", "belay_travel_#_p50"),
            curve("gateway", "gateway_travel_#_p50"),
            dashed("tunnel, p99.9", "belay_travel_#_p999"),
            dashed("gateway, p99.9", "gateway_travel_#_p999"),
        ],
    },
    Plot {
        file: "lossy.svg",
        title: "A token's travel over a line of 20 ms that loses 0.5 %",
        along: "streams at once",
        unit: "µs",
        points: &["1", "32", "256"],
        or_points: &[],
        curves: &[
            curve("over TCP, p50", "lossy_tcp_travel_#_p50"),
            curve("over QUIC, p50", "lossy_quic_travel_#_p50"),
            dashed("over TCP, p99", "lossy_tcp_travel_#_p99"),
            dashed("over QUIC, p99", "lossy_quic_travel_#_p99"),
        ],
    },
    Plot {
        file: "books.svg",
        title: "A book that grows, without the disk",
        along: "entries",
        unit: "µs",
        points: &["1", "1000", "1000000"],
        or_points: &["1", "100", "100000"],
        curves: &[curve("hold", "hold_at_#"), curve("usage of a month", "usage_at_#")],
    },
];

/// Draws what a run has measured into a directory. Curves of which a point is missing are left out, and pictures
/// without curves. Returns the files.
pub(crate) fn draw(report: &Report, dir: &Path) -> anyhow::Result<Vec<String>> {
    fs::create_dir_all(dir)?;
    let mut drawn = vec![];
    for plot in &PLOTS {
        for points in [plot.points, plot.or_points] {
            let values = |curve: &Curve| -> Option<Vec<f64>> {
                points.iter().map(|point| report.value(&curve.rows.replace('#', point))).collect()
            };
            let curves: Vec<(&Curve, Vec<f64>)> =
                plot.curves.iter().filter_map(|curve| Some((curve, values(curve)?))).collect();
            if !points.is_empty() && !curves.is_empty() {
                fs::write(dir.join(plot.file), plot.svg(points, &curves))?;
                drawn.push(plot.file.to_owned());
                break;
            }
        }
    }
    Ok(drawn)
}

impl Plot {
    fn svg(&self, points: &[&str], curves: &[(&Curve, Vec<f64>)]) -> String {
        let all = || curves.iter().flat_map(|(_, values)| values.iter().copied());
        let low = all().fold(f64::INFINITY, f64::min).max(0.1).log10().floor();
        let high = all().fold(0.0, f64::max).max(1.0).log10().ceil().max(low + 1.0);
        let x = |number: usize| {
            let step = (WIDTH - LEFT - RIGHT) / (points.len() - 1) as f64;
            LEFT + step * number as f64
        };
        let y = |value: f64| {
            let part = (value.max(0.1).log10() - low) / (high - low);
            HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n\
             <style>text{{font:13px sans-serif;fill:#222}}.t{{font-weight:bold}}.g{{stroke:#ccc}}\
             @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.g{{stroke:#444}}}}</style>\n\
             <text class=\"t\" x=\"{LEFT}\" y=\"20\">{}</text>\n",
            self.title, self.title
        );
        let mut line = |text: String| {
            // A `String` takes everything.
            let _ = writeln!(out, "{text}");
        };
        for power in low as i32..=high as i32 {
            let (value, at) = (10_f64.powi(power), y(10_f64.powi(power)));
            let right = WIDTH - RIGHT;
            line(format!("<line class=\"g\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>"));
            let (end, below) = (LEFT - 8.0, at + 4.0);
            let (value, unit) = match self.unit {
                "µs" if value >= 1000.0 => (value / 1000.0, "ms"),
                unit => (value, unit),
            };
            line(format!("<text x=\"{end}\" y=\"{below:.1}\" text-anchor=\"end\">{value} {unit}</text>"));
        }
        for (number, point) in points.iter().enumerate() {
            let (at, below) = (x(number), HEIGHT - BOTTOM + 18.0);
            line(format!("<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{point}</text>"));
        }
        let (middle, foot) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0);
        line(format!("<text x=\"{middle:.1}\" y=\"{foot}\" text-anchor=\"middle\">{}</text>", self.along));
        for (number, (curve, values)) in curves.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let dash = if curve.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let points: Vec<String> =
                values.iter().enumerate().map(|(number, value)| format!("{:.1},{:.1}", x(number), y(*value))).collect();
            line(format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
                points.join(" ")
            ));
            for (number, value) in values.iter().enumerate() {
                let (cx, cy) = (x(number), y(*value));
                line(format!(
                    "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {value:.0} {}</title></circle>",
                    curve.name, self.unit
                ));
            }
            let (from, at) = (WIDTH - RIGHT + 14.0, TOP + 10.0 + 20.0 * number as f64);
            let (to, text, below) = (from + 22.0, from + 28.0, at + 4.0);
            line(format!(
                "<line x1=\"{from}\" y1=\"{at}\" x2=\"{to}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>"
            ));
            line(format!("<text x=\"{text}\" y=\"{below}\">{}</text>", curve.name));
        }
        out + "</svg>\n"
    }
}
