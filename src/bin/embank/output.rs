//! Results on stdout: JSON values or lines and tables for people.
//!
//! Guarantees: a reader that closes the pipe ends the command quietly, as [`StdoutClosed`]. Must not know: what is printed.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

/// The reader of stdout is gone.
#[derive(Debug)]
pub struct StdoutClosed;

impl std::fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Where results go, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a value as one line of JSON.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        // As it is: it is for programs, and JSON escapes what would steer a terminal, but for what few terminals follow.
        self.write(&format!("{}\n", to_json(value)?))
    }

    /// Prints a line.
    pub fn line(&self, line: &str) -> anyhow::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Prints text and makes sure that it is out; what would have a terminal do something is shown as `�`.
    pub fn text(&self, text: &str) -> anyhow::Result<()> {
        self.write(&printable(text))
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        match written {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            written => written.context("cannot write to stdout"),
        }
    }
}

/// Text as a terminal may have it. Names and texts of documents are in it, which may hold what moves the cursor, renames the
/// window or turns the direction of writing.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harms = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(harms) { text.replace(harms, "\u{fffd}").into() } else { text.into() }
}

/// A value as one line of JSON.
pub fn to_json(value: &impl Serialize) -> anyhow::Result<String> {
    serde_json::to_string(value).context("cannot write as JSON")
}

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows under headings, columns two spaces apart.
pub fn table<const N: usize>(columns: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let headings = columns.map(|(heading, _)| heading.to_owned());
    let mut widths = [0; N];
    // A cell is one line, whatever is in it.
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| cell.replace(['\n', '\t'], " "))).collect();
    for row in std::iter::once(&headings).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(&rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(widths).zip(columns) {
            // Writing to a String cannot fail.
            let _ = match align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time span as people read it: `0.8 s`, `75 s`, `12 min`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_shown_and_not_done() {
        assert_eq!(printable("bees\n\tand 蜂 🐝"), "bees\n\tand 蜂 🐝");
        assert_eq!(printable("\x1b]0;x\x07\x1b[2J\r\u{9b}1m\u{202e}dm."), "�]0;x��[2J��1m�dm.");
        let text = table([("name", Align::Left)], &[["a\nerror: b".to_owned()]]);
        assert_eq!(text, "name\na error: b\n");
    }

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let rows = [["water".to_owned(), "7".to_owned()], ["ü".to_owned(), "1,024".to_owned()]];
        let text = table([("name", Align::Left), ("rows", Align::Right)], &rows);
        assert_eq!(text, "name    rows\nwater      7\nü      1,024\n");
    }
}
