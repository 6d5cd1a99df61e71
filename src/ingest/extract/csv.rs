//! CSV and TSV files: one document a row, named by the columns of the header row.
//!
//! The file is framed into records here and each one is parsed by the `csv` crate: a quote that is never closed would
//! otherwise take the rest of the file into its field, and the memory with it.

use std::collections::HashSet;
use std::io;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Number, Value};

use super::super::skip::SkipReason;
use super::super::walk::FoundFile;
use super::lines::{Length, Lines, MAX_RECORD_BYTES, Place};
use super::record::{Record, Records};
use super::{DocumentSink, RecordFields, unreadable};
use crate::error::Result;

/// Hands the rows of `file` to `sink`. Blank lines are no rows; a bad row is a row of the report.
pub(super) fn extract(
    file: &FoundFile,
    delimiter: u8,
    fields: &RecordFields,
    sink: &mut dyn DocumentSink,
) -> Result<()> {
    let lines = match Lines::open(&file.path) {
        Ok(lines) => lines,
        Err(reason) => return sink.skip(file.skipped(None, reason)),
    };
    let mut records = Records::new(file, sink);
    let mut rows = Rows { lines, delimiter };
    match read_all(&mut rows, fields, &mut records) {
        Ok(()) => records.finish(),
        Err(Stop::Sink(error)) => Err(error),
        Err(Stop::File(reason)) => records.skip(None, reason),
    }
}

/// Why reading ends early.
enum Stop {
    Sink(crate::error::Error),
    File(SkipReason),
}

impl From<crate::error::Error> for Stop {
    fn from(error: crate::error::Error) -> Self {
        Self::Sink(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::File(unreadable(&error))
    }
}

fn read_all(rows: &mut Rows, fields: &RecordFields, records: &mut Records) -> Result<(), Stop> {
    let mut columns = None;
    while let Some(row) = rows.next()? {
        let Some(columns) = &columns else {
            let (header, doubts) = Columns::new(&row, fields).map_err(Stop::File)?;
            for doubt in doubts {
                records.skip(Some(row.start.line), SkipReason::BadRecord(doubt))?;
            }
            columns = Some(header);
            continue;
        };
        let record = match columns.check(&row) {
            Ok(()) => columns.record(&row),
            Err(reason) => {
                if let Some(second_line) = row.second_line {
                    // Most likely a stray quote in the first line: the others are rows of their own.
                    rows.lines.go_to(second_line)?;
                }
                Err(reason)
            }
        };
        records.hand_over(row.start.line, record)?;
    }
    Ok(())
}

/// A framed record.
struct Row {
    /// Where it starts.
    start: Place,
    /// Where its second line starts, if it has one.
    second_line: Option<Place>,
    bytes: Vec<u8>,
    cells: ByteRecord,
    fault: Option<SkipReason>,
}

/// Cuts a file into records: a line, and the lines after it for as long as a quote is open.
struct Rows {
    lines: Lines,
    delimiter: u8,
}

impl Rows {
    /// The next row that is not blank.
    fn next(&mut self) -> io::Result<Option<Row>> {
        loop {
            let Some(mut row) = self.frame()? else { return Ok(None) };
            let mut parser = ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .delimiter(self.delimiter)
                .buffer_capacity(row.bytes.len().max(1))
                .from_reader(row.bytes.as_slice());
            let some = parser.read_byte_record(&mut row.cells)?;
            if some && parser.read_byte_record(&mut ByteRecord::new())? {
                let reason = "a carriage return without line feed in it; write it in quotes".to_owned();
                row.fault.get_or_insert(SkipReason::BadRecord(reason));
            }
            if some || row.fault.is_some() {
                return Ok(Some(row));
            }
        }
    }

    fn frame(&mut self) -> io::Result<Option<Row>> {
        let start = self.lines.place();
        let mut row = Row { start, second_line: None, bytes: Vec::new(), cells: ByteRecord::new(), fault: None };
        let mut quotes = Quotes::FieldStart;
        loop {
            let scanned = row.bytes.len();
            match self.lines.read(&mut row.bytes, MAX_RECORD_BYTES.saturating_sub(scanned))? {
                None if scanned == 0 => return Ok(None),
                None => row.fault = Some(SkipReason::BadRecord("a quote is never closed".into())),
                Some(Length::TooLong) => {
                    row.fault = Some(SkipReason::TooLong { limit_bytes: MAX_RECORD_BYTES as u64 });
                }
                Some(Length::Whole) => {
                    let line = row.bytes.get(scanned..).unwrap_or_default();
                    quotes = line.iter().fold(quotes, |quotes, &byte| quotes.after(byte, self.delimiter));
                    if quotes == Quotes::Open {
                        row.second_line.get_or_insert(self.lines.place());
                        continue;
                    }
                }
            }
            return Ok(Some(row));
        }
    }
}

/// Where in a record a byte stands, by the rules of the `csv` crate: a quote opens only at the start of a field, and a
/// doubled one within quotes is a character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    FieldStart,
    Unquoted,
    Open,
    MaybeClosed,
}

impl Quotes {
    fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::FieldStart | Self::MaybeClosed, b'"') => Self::Open,
            (Self::Open, b'"') => Self::MaybeClosed,
            (Self::Open, _) => Self::Open,
            (_, byte) if byte == delimiter || byte == b'\n' => Self::FieldStart,
            _ => Self::Unquoted,
        }
    }
}

/// The header row: what each column is.
struct Columns {
    /// `None` for a column whose name an earlier one has.
    names: Vec<Option<String>>,
    text: usize,
    id: Option<usize>,
    category: Option<usize>,
}

impl Columns {
    /// Reads the header row; the second part says what is odd about it.
    fn new(row: &Row, fields: &RecordFields) -> Result<(Self, Vec<String>), SkipReason> {
        if let Some(fault) = &row.fault {
            return Err(fault.clone());
        }
        row.check_utf8()?;
        let (mut names, mut seen, mut doubts) = (Vec::new(), HashSet::new(), Vec::new());
        for (number, cell) in row.texts().enumerate() {
            let name = if cell.trim().is_empty() { format!("column {}", number + 1) } else { cell.trim().to_owned() };
            if seen.insert(name.clone()) {
                names.push(Some(name));
            } else {
                doubts.push(format!("column `{}` is there twice; the first one is used", shown(&name)));
                names.push(None);
            }
        }
        if doubts.len() > LISTED {
            let more = doubts.len() - LISTED;
            doubts.truncate(LISTED);
            doubts.push(format!("{more} more columns are there twice"));
        }
        let position = |field: &str| names.iter().position(|name| name.as_deref() == Some(field));
        let Some(text) = position(&fields.text) else {
            return Err(SkipReason::BadRecord(format!("no column `{}`; there are: {}", fields.text, listed(&names))));
        };
        let (id, category) = (position(&fields.id), position(&fields.category));
        Ok((Self { names, text, id, category }, doubts))
    }

    /// Whether the row was framed rightly: its quotes are closed and it has as many fields as the header.
    fn check(&self, row: &Row) -> Result<(), SkipReason> {
        if let Some(fault) = &row.fault {
            return Err(fault.clone());
        }
        let (got, want) = (row.cells.len(), self.names.len());
        if got != want {
            return Err(SkipReason::BadRecord(format!("{got} fields where the header has {want}")));
        }
        Ok(())
    }

    fn record(&self, row: &Row) -> Result<Record, SkipReason> {
        row.check_utf8()?;
        let mut record = Record { id: None, text: String::new(), category: None, attributes: Map::new() };
        for (at, (cell, name)) in row.texts().zip(&self.names).enumerate() {
            if at == self.text {
                record.text = cell.to_owned();
            } else if cell.trim().is_empty() {
                // An empty cell states nothing.
            } else if Some(at) == self.id {
                record.id = Some(cell.to_owned());
            } else if Some(at) == self.category {
                record.category = Some(cell.trim().to_owned());
            } else if let Some(name) = name {
                record.attributes.insert(name.clone(), typed(cell));
            }
        }
        Ok(record)
    }
}

impl Row {
    fn check_utf8(&self) -> Result<(), SkipReason> {
        match std::str::from_utf8(&self.bytes) {
            Ok(_) => Ok(()),
            Err(error) => Err(SkipReason::NotUtf8 { offset: self.start.offset + error.valid_up_to() as u64 }),
        }
    }

    /// The cells, once [`Row::check_utf8`] has passed: fields end at ASCII bytes, so that each is UTF-8 too.
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().map(|cell| std::str::from_utf8(cell).unwrap_or_default())
    }
}

/// A cell as an integer, a float or a boolean if that is written exactly so; else as the string it is: `007` and `1.50`
/// are names and prices, and would not come back as they were.
fn typed(cell: &str) -> Value {
    if let Some(integer) = cell.parse::<i64>().ok().filter(|integer| integer.to_string() == cell) {
        return integer.into();
    }
    if let Some(float) = cell.parse().ok().and_then(Number::from_f64).filter(|float| float.to_string() == cell) {
        return Value::Number(float);
    }
    match cell {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => Value::String(cell.to_owned()),
    }
}

/// Columns that a reason lists, and characters of a name that it shows: a file that is no table may have thousands.
const LISTED: usize = 12;
const SHOWN: usize = 40;

fn listed(names: &[Option<String>]) -> String {
    let known: Vec<_> = names.iter().flatten().take(LISTED).map(|name| shown(name)).collect();
    let more = names.iter().flatten().count() - known.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    known.join(", ") + &more
}

fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(SHOWN).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
}
