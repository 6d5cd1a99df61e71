//! The recall report of a generation as one page of HTML: figures, the curve of recall and latency as inline SVG, what was
//! tried. Asks nothing of the network, has no script, and follows the reader's light or dark colours.

use std::fmt::Write as _;

use embank::{Generation, RecallReport, TriedSettings};
use indicatif::HumanCount;

use super::report;
use crate::output::seconds;

/// The drawing's size and the place of the curve in it, in units of the view box.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 52.0;

/// Labels of an axis, more or less.
const LABELS: f64 = 5.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--page:#fcfcfb;--ink:#1d1d1b;--soft:#5c5c58;--line:#deded9;--mark:#2a5fb8;--bad:#b3402a}\
@media(prefers-color-scheme:dark){:root{--page:#161615;--ink:#eeeeea;--soft:#a3a39d;--line:#3a3a37;--mark:#7fb0ff;--bad:#ff9179}}\
body{margin:2rem auto;max-width:48rem;padding:0 1rem;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.4rem 0}.soft{color:var(--soft)}.bad{color:var(--bad)}\
.wide{overflow-x:auto}svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--line);white-space:nowrap}\
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}th{color:var(--soft);font-weight:500}\
tr.serves td{font-weight:600}";

/// The page.
pub fn page(generation: &Generation) -> String {
    let title = format!("Index {}: recall and latency", generation.id);
    let mut body = format!("<h1>{}</h1>\n<p class=soft>{}</p>\n", escaped(&title), escaped(&origin(generation)));
    if let Some(error) = &generation.error {
        let _ = writeln!(body, "<p class=bad>{}</p>", escaped(error));
    }
    match &generation.recall {
        None => body.push_str("<p>Its recall was not measured.</p>\n"),
        Some(measured) => {
            body.push_str(&verdict(measured));
            if !measured.tried.is_empty() {
                body.push_str(&curve(generation, measured));
                body.push_str(&tried_table(generation, measured));
            }
            body.push_str(&slices(measured));
            body.push_str(&method(generation, measured));
        }
    }
    format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n<meta name=viewport content=\"width=device-width\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escaped(&title)
    )
}

fn origin(generation: &Generation) -> String {
    format!(
        "{} ({}), {} rows, built {} in {}",
        generation.kind,
        generation.state.label(),
        HumanCount(generation.rows),
        generation.created_at,
        seconds(generation.build_seconds)
    )
}

fn verdict(measured: &RecallReport) -> String {
    let mut text = format!(
        "<p>Recall@{} <strong>{:.4}</strong> over {} queries proves at least <strong>{:.4}</strong>; {:.4} is required. \
         A query takes {:.2} ms, one in twenty {:.2} ms or more.</p>\n",
        measured.k,
        measured.recall,
        measured.queries,
        measured.bound,
        measured.required,
        measured.p50_ms,
        measured.p95_ms
    );
    if measured.bound < measured.required {
        text.push_str("<p class=bad>That is not enough: the generation was refused.</p>\n");
    }
    text
}

/// A range of values and where they lie on paper.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }

    /// Round values, about [`LABELS`] of them.
    fn labels(&self) -> impl Iterator<Item = f64> + '_ {
        let wanted = (self.to - self.from) / LABELS;
        let power = 10_f64.powf(wanted.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= wanted);
        let step = step.unwrap_or(wanted);
        let first = (self.from / step).ceil();
        (0..).map(move |number| (first + f64::from(number)) * step).take_while(|value| *value <= self.to * (1.0 + 1e-9))
    }
}

fn curve(generation: &Generation, measured: &RecallReport) -> String {
    let lowest = measured.tried.iter().map(|tried| tried.recall).fold(measured.required, f64::min);
    let slowest = measured.tried.iter().map(|tried| tried.p95_ms).fold(0.001, f64::max);
    let across = Axis { from: 0.0, to: slowest * 1.05, start: LEFT, end: WIDTH - RIGHT };
    let upwards = Axis { from: lowest - (1.0 - lowest).max(0.01) * 0.05, to: 1.0, start: HEIGHT - BOTTOM, end: TOP };
    let mut svg = format!(
        "<h2>Recall over latency</h2>\n<div class=wide><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role='img' \
         aria-label=\"Recall of each setting that was tried over the 95th percentile of its milliseconds\">\n"
    );
    let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
    for recall in upwards.labels() {
        let y = upwards.at(recall);
        let _ = writeln!(
            svg,
            "<line x1='{left}' x2='{right}' y1='{y:.1}' y2='{y:.1}' stroke=\"var(--line)\"/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end' fill=\"var(--soft)\">{recall:.3}</text>",
            left - 8.0,
            y + 4.0
        );
    }
    for milliseconds in across.labels() {
        let x = across.at(milliseconds);
        let _ = writeln!(
            svg,
            "<text x='{x:.1}' y='{:.1}' text-anchor='middle' fill=\"var(--soft)\">{milliseconds:.1}</text>",
            bottom + 20.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x='{:.1}' y='{:.1}' text-anchor='middle' fill=\"var(--soft)\">milliseconds a query (95th percentile)</text>",
        f64::midpoint(left, right),
        bottom + 42.0
    );
    let y = upwards.at(measured.required);
    let _ = writeln!(
        svg,
        "<line x1='{left}' x2='{right}' y1='{y:.1}' y2='{y:.1}' stroke=\"var(--bad)\" stroke-dasharray=\"5 4\"/>\
         <text x='{right}' y='{:.1}' text-anchor='end' fill=\"var(--bad)\">required {:.3}</text>",
        y + 16.0,
        measured.required
    );
    let place = |tried: &TriedSettings| (across.at(tried.p95_ms), upwards.at(tried.recall));
    let line: Vec<_> = front(&measured.tried).into_iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ =
        writeln!(svg, "<polyline points=\"{}\" fill='none' stroke=\"var(--mark)\" stroke-width='2' />", line.join(" "));
    for tried in &measured.tried {
        let (x, y) = place(tried);
        let serves = tried.settings == generation.settings;
        let (radius, fill) = if serves { (7, "var(--mark)") } else { (4, "var(--page)") };
        let name = escaped(&report::settings(&tried.settings).unwrap_or_else(|| "defaults".to_owned()));
        let _ = writeln!(
            svg,
            "<circle cx='{x:.1}' cy='{y:.1}' r='{radius}' fill=\"{fill}\" stroke=\"var(--mark)\" stroke-width='2'>\
             <title>{name}: recall {:.4}, p95 {:.2} ms, {} queries</title></circle>",
            tried.recall, tried.p95_ms, tried.queries
        );
        if serves {
            // Towards the middle, so that it stays on the drawing.
            let (anchor, x) = if x > WIDTH / 2.0 { ("end", x - 12.0) } else { ("start", x + 12.0) };
            let _ = writeln!(
                svg,
                "<text x='{x:.1}' y='{:.1}' text-anchor='{anchor}' fill=\"var(--ink)\" stroke=\"var(--page)\" \
                 stroke-width='4' paint-order='stroke'>{name}</text>",
                y + 20.0
            );
        }
    }
    svg.push_str(
        "</svg></div>\n<p class=soft>Filled: what search uses. The line joins settings that no other beats.</p>\n",
    );
    svg
}

/// Settings of which none is both quicker and better, the quickest first.
fn front(tried: &[TriedSettings]) -> Vec<&TriedSettings> {
    let mut sorted: Vec<_> = tried.iter().collect();
    sorted.sort_by(|a, b| a.p95_ms.total_cmp(&b.p95_ms).then(b.recall.total_cmp(&a.recall)));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|tried| {
        let rises = tried.recall > best;
        best = best.max(tried.recall);
        rises
    });
    sorted
}

fn tried_table(generation: &Generation, measured: &RecallReport) -> String {
    let mut text = String::from(
        "<h2>What was tried</h2>\n<div class=wide><table>\n<tr><th>settings<th>queries<th>recall<th>p50 ms<th>p95 ms<th></tr>\n",
    );
    for tried in &measured.tried {
        let (class, note) = match (tried.settings == generation.settings, tried.suffices) {
            (true, _) => (" class=serves", "serves"),
            (false, true) => ("", "suffices"),
            (false, false) => ("", ""),
        };
        let name = report::settings(&tried.settings).unwrap_or_else(|| "defaults".to_owned());
        let _ = writeln!(
            text,
            "<tr{class}><td>{}<td>{}<td>{:.4}<td>{:.2}<td>{:.2}<td>{note}</tr>",
            escaped(&name),
            tried.queries,
            tried.recall,
            tried.p50_ms,
            tried.p95_ms
        );
    }
    text + "</table></div>\n"
}

fn slices(measured: &RecallReport) -> String {
    if measured.slices.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<h2>Within the most frequent categories</h2>\n<div class=wide><table>\n\
         <tr><th>category<th>rows<th>queries<th>recall<th>proven<th>p95 ms<th></tr>\n",
    );
    for slice in &measured.slices {
        let note = if slice.gated { "" } else { "too few rows for the gate" };
        let _ = writeln!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{:.4}<td>{:.4}<td>{:.2}<td>{note}</tr>",
            escaped(&slice.category),
            HumanCount(slice.rows),
            slice.queries,
            slice.recall,
            slice.bound,
            slice.p95_ms
        );
    }
    text + "</table></div>\n"
}

fn method(generation: &Generation, measured: &RecallReport) -> String {
    let parameters =
        generation.spec.as_ref().map_or_else(|| "none".to_owned(), |spec| serde_json::json!(spec).to_string());
    let facts = [
        format!(
            "Queries: {}; {} to tune with, {} others for the verdict.",
            measured.query_source, measured.tuning_queries, measured.queries
        ),
        format!("Compared with {}; basis: {}.", measured.ground_truth, measured.basis),
        format!(
            "The proof is the one-sided 95 % bound of Clopper and Pearson on {} trials, which are worth {:.0} independent \
             ones because the neighbours of one query are found or missed together (spread between queries {:.4}, worst {:.4}).",
            HumanCount(measured.trials),
            measured.effective_trials,
            measured.spread,
            measured.worst
        ),
        format!(
            "Table version {}, seed {}, measured {} in {}.",
            measured.dataset_version,
            measured.seed,
            measured.measured_at,
            seconds(measured.seconds)
        ),
        format!("Index parameters: {parameters}."),
    ];
    let items: String = facts.iter().map(|fact| format!("<p class=soft>{}</p>\n", escaped(fact))).collect();
    format!("<h2>How it was measured</h2>\n{items}")
}

/// Text as HTML shows it, in content and in quoted attributes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use embank::{QuerySettings, SliceReport};

    use super::*;

    fn tried(refine: u32, recall: f64, p95_ms: f64) -> TriedSettings {
        let settings = QuerySettings { nprobes: Some(4), ef: None, refine_factor: Some(refine) };
        TriedSettings { settings, recall, p95_ms, ..TriedSettings::default() }
    }

    #[test]
    fn the_line_joins_what_nothing_beats() {
        let all = [tried(1, 0.90, 1.0), tried(2, 0.89, 1.5), tried(5, 0.98, 2.0), tried(10, 0.98, 3.0)];
        let recalls: Vec<_> = front(&all).iter().map(|tried| (tried.recall, tried.p95_ms)).collect();
        assert_eq!(recalls, [(0.90, 1.0), (0.98, 2.0)]);
    }

    #[test]
    fn names_of_categories_cannot_become_markup() {
        let slices = vec![SliceReport { category: "<script>\"&".into(), ..SliceReport::default() }];
        let text = super::slices(&RecallReport { slices, ..RecallReport::default() });
        assert!(text.contains("&lt;script&gt;&quot;&amp;") && !text.contains("<script"), "{text}");
    }

    #[test]
    fn points_stay_on_the_drawing() {
        let axis = Axis { from: 0.9, to: 1.0, start: HEIGHT - BOTTOM, end: TOP };
        assert_eq!((axis.at(0.9), axis.at(1.0)), (HEIGHT - BOTTOM, TOP));
        let labels = |from, to| {
            let axis = Axis { from, to, ..axis };
            axis.labels().map(|label| format!("{label:.3}")).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.9, 1.0), ["0.900", "0.920", "0.940", "0.960", "0.980", "1.000"]);
        assert_eq!(labels(0.564, 1.0), ["0.600", "0.700", "0.800", "0.900", "1.000"]);
        assert_eq!(labels(0.0, 19.7), ["0.000", "5.000", "10.000", "15.000"]);
    }
}
