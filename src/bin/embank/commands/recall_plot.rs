//! Recall over latency of the settings that were tried, as a table and a small plot for the terminal.

use embank::{QuerySettings, RecallReport, TriedSettings};

use super::report;
use crate::output::{Align, table};

const WIDTH: usize = 56;
const HEIGHT: usize = 10;

/// Table and plot; nothing where nothing was tried.
pub fn plot(measured: &RecallReport, served: &QuerySettings) -> String {
    if measured.tried.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = measured.tried.iter().map(|tried| row(tried, served)).collect();
    let columns = [
        ("tried", Align::Left),
        ("queries", Align::Right),
        ("recall", Align::Right),
        ("p50 ms", Align::Right),
        ("p95 ms", Align::Right),
        ("", Align::Left),
    ];
    format!("\n{}\n{}", table(columns, &rows), curve(measured, served))
}

fn row(tried: &TriedSettings, served: &QuerySettings) -> [String; 6] {
    let note = match (tried.settings == *served, tried.suffices) {
        (true, _) => "serves",
        (false, true) => "suffices",
        (false, false) => "",
    };
    [
        report::settings(&tried.settings).unwrap_or_else(|| "defaults".to_owned()),
        tried.queries.to_string(),
        format!("{:.4}", tried.recall),
        format!("{:.2}", tried.p50_ms),
        format!("{:.2}", tried.p95_ms),
        note.to_owned(),
    ]
}

/// Recall upwards, milliseconds (95th percentile) to the right; `*` is what serves, `o` what was tried beside it.
fn curve(measured: &RecallReport, served: &QuerySettings) -> String {
    let lowest = measured.tried.iter().map(|tried| tried.recall).fold(measured.required, f64::min);
    let slowest = measured.tried.iter().map(|tried| tried.p95_ms).fold(f64::MIN_POSITIVE, f64::max);
    let range = (1.0 - lowest).max(0.001);
    let line_of = |recall: f64| step((1.0 - recall) / range, HEIGHT - 1);
    let mut grid = vec![vec![' '; WIDTH]; HEIGHT];
    if let Some(line) = grid.get_mut(line_of(measured.required)) {
        line.fill('.');
    }
    // What serves last, so that nothing hides it.
    let (others, chosen): (Vec<_>, Vec<_>) = measured.tried.iter().partition(|tried| tried.settings != *served);
    for (tried, mark) in others.iter().map(|tried| (tried, 'o')).chain(chosen.iter().map(|tried| (tried, '*'))) {
        let column = step(tried.p95_ms / slowest, WIDTH - 1);
        if let Some(cell) = grid.get_mut(line_of(tried.recall)).and_then(|line| line.get_mut(column)) {
            *cell = mark;
        }
    }
    let mut text = String::new();
    for (number, line) in grid.iter().enumerate() {
        let recall = 1.0 - range * number as f64 / (HEIGHT - 1) as f64;
        let line: String = line.iter().collect();
        text.push_str(format!("{recall:.3} |{line}").trim_end());
        text.push('\n');
    }
    let right = format!("{slowest:.1} ms (p95)");
    text.push_str(&format!("      +{}\n       0{right:>width$}\n", "-".repeat(WIDTH), width = WIDTH - 1));
    text.push_str("       * serves   o tried   ... required\n");
    text
}

/// A share of 0 to 1 as one of the steps from 0 to `last`.
fn step(share: f64, last: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share times a screen's width")]
    let step = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
    step.min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_shows_what_serves_above_the_line_that_is_required() {
        let tried = |refine, recall, p95_ms| TriedSettings {
            settings: QuerySettings { nprobes: None, ef: None, refine_factor: Some(refine) },
            recall,
            p95_ms,
            ..TriedSettings::default()
        };
        let tried = vec![tried(1, 0.8, 1.0), tried(5, 0.99, 2.0), tried(10, 1.0, 4.0)];
        let served = tried[1].settings;
        let measured = RecallReport { required: 0.95, tried, ..RecallReport::default() };
        let text = plot(&measured, &served);
        let line = |mark: &str| text.lines().position(|line| line.contains('|') && line.contains(mark)).unwrap();
        assert!(line("*") < line("...."), "{text}");
        assert_eq!(text.matches("serves").count(), 2, "{text}");
        assert!(text.lines().all(|line| line.chars().count() < 80), "{text}");
        assert_eq!(plot(&RecallReport::default(), &served), "");
    }
}
