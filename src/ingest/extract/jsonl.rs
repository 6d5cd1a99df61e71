//! JSONL files: one document a line.

use serde_json::{Map, Value};

use super::super::skip::SkipReason;
use super::super::walk::FoundFile;
use super::front_matter::scalar_text;
use super::lines::{Length, Lines, MAX_RECORD_BYTES};
use super::record::{Record, Records};
use super::{DocumentSink, RecordFields, unreadable};
use crate::error::Result;

/// Hands the records of `file` to `sink`. Blank lines are no records; every other line is one, or a row of the report.
pub(super) fn extract(file: &FoundFile, fields: &RecordFields, sink: &mut dyn DocumentSink) -> Result<()> {
    let mut lines = match Lines::open(&file.path) {
        Ok(lines) => lines,
        Err(reason) => return sink.skip(file.skipped(None, reason)),
    };
    let mut records = Records::new(file, sink);
    let mut line = Vec::new();
    loop {
        line.clear();
        let place = lines.place();
        let record = match lines.read(&mut line, MAX_RECORD_BYTES) {
            Ok(None) => return records.finish(),
            Ok(Some(Length::Whole)) if line.trim_ascii().is_empty() => continue,
            Ok(Some(Length::Whole)) => parse(&line, place.offset, fields),
            Ok(Some(Length::TooLong)) => Err(SkipReason::TooLong { limit_bytes: MAX_RECORD_BYTES as u64 }),
            Err(error) => return records.skip(None, unreadable(&error)),
        };
        records.hand_over(place.line, record)?;
    }
}

/// The record in a line that starts at byte `offset` of its file.
fn parse(line: &[u8], offset: u64, fields: &RecordFields) -> Result<Record, SkipReason> {
    let text = std::str::from_utf8(line)
        .map_err(|error| SkipReason::NotUtf8 { offset: offset + error.valid_up_to() as u64 })?;
    let value: Value = serde_json::from_str(text).map_err(|error| SkipReason::BadRecord(not_json(&error)))?;
    let Value::Object(mut object) = value else {
        return Err(SkipReason::BadRecord("not a JSON object".into()));
    };
    let text = take_text(&mut object, &fields.text)?;
    let id = take_id(&mut object, &fields.id)?;
    let category = object.get(&fields.category).and_then(scalar_text);
    // A category that is none, such as a list, stays an attribute.
    if category.is_some() || object.get(&fields.category).is_some_and(Value::is_null) {
        object.remove(&fields.category);
    }
    Ok(Record { id, text, category, attributes: object })
}

fn take_text(object: &mut Map<String, Value>, field: &str) -> Result<String, SkipReason> {
    match object.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(SkipReason::BadRecord(format!("field `{field}` is not a string"))),
        None => Err(SkipReason::BadRecord(format!("no field `{field}`"))),
    }
}

fn take_id(object: &mut Map<String, Value>, field: &str) -> Result<Option<String>, SkipReason> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) => Ok(if id.trim().is_empty() { None } else { Some(id) }),
        Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(Some(id.to_string())),
        Some(_) => Err(SkipReason::BadRecord(format!("field `{field}` is neither a string nor an integer"))),
    }
}

/// The parser's words with the column alone: its line is always 1, the report has the line in the file.
fn not_json(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or(&message);
    format!("not JSON: {what} at column {}", error.column())
}
