//! Results on stdout: JSON values or lines and tables for people.
//!
//! Guarantees: a reader that closes the pipe ends the command quietly, as [`StdoutClosed`]. Must not know: what is printed.

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
        self.line(&to_json(value)?)
    }

    /// Prints a line.
    pub fn line(&self, line: &str) -> anyhow::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Prints text as it is and makes sure that it is out.
    pub fn text(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        match written {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            written => written.context("cannot write to stdout"),
        }
    }
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
    for row in std::iter::once(&headings).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
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
    fn columns_line_up_whatever_is_in_them() {
        let rows = [["water".to_owned(), "7".to_owned()], ["ü".to_owned(), "1,024".to_owned()]];
        let text = table([("name", Align::Left), ("rows", Align::Right)], &rows);
        assert_eq!(text, "name    rows\nwater      7\nü      1,024\n");
    }
}
