//! What was left out of an ingest, and why: a row of the report, never an error of the run.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// One thing that was not ingested: a file, or one record of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The file or folder, absolute; bytes of its name that are not UTF-8 are shown as `�`.
    pub path: String,
    /// The line in the file, counted from 1, where only a part of the file is concerned.
    pub line: Option<u64>,
    /// Why.
    pub reason: SkipReason,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", OneLine(&self.path), OneLine(&self.reason.to_string())),
            None => write!(f, "{}: {}", OneLine(&self.path), OneLine(&self.reason.to_string())),
        }
    }
}

/// A text that a stranger chose, such as a file's name or an id, within a line for people: what would begin another line, or
/// have a terminal do something, is shown as `�`.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| f.write_char(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }))
    }
}

/// Why something was not ingested. Serialised as `{"kind": "not-utf8", "detail": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SkipReason {
    /// The file has a NUL byte in its first 8 KiB.
    #[error("binary file")]
    Binary,
    /// The bytes are not UTF-8.
    #[error("not UTF-8 at byte {offset}; convert it to UTF-8")]
    #[serde(rename = "not-utf8")]
    NotUtf8 {
        /// The first offending byte, counted from the start of the file.
        offset: u64,
    },
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// Reading or cutting it made this program panic: a fault of the program, worth a report with the file.
    #[error("this program failed on it: {0}; please report that")]
    Panicked(String),
    /// Links are not followed: they may leave the folder, or lead in a circle.
    #[error("symbolic link, not followed; name its target to ingest it")]
    SymlinkNotFollowed,
    /// A pipe, a socket or a device.
    #[error("not a regular file")]
    NotAFile,
    /// The name could not be told from another one once it is stored as text.
    #[error("the file name is not UTF-8")]
    #[serde(rename = "name-not-utf8")]
    NameNotUtf8,
    /// Nothing, or nothing but white space.
    #[error("no text in it")]
    Empty,
    /// Larger than what is read in one piece.
    #[error("longer than {limit_bytes} bytes")]
    TooLong {
        /// The most that is read in one piece.
        limit_bytes: u64,
    },
    /// HTML nested deeper than real pages are.
    #[error("nested deeper than {limit} elements")]
    TooDeep {
        /// The most that is followed.
        limit: u64,
    },
    /// HTML with a tag of more attributes than any page has.
    #[error("a tag with more than {limit} attributes")]
    TooManyAttributes {
        /// The most that are read.
        limit: u64,
    },
    /// A file that is named like an image and is none, or is damaged or too large.
    #[error("bad image: {0}")]
    BadImage(String),
    /// A JSONL line or CSV row that is not a record with text.
    #[error("bad record: {0}")]
    BadRecord(String),
    /// An earlier record of the file has the same id.
    #[error("an earlier record of this file has the id {0}")]
    DuplicateId(String),
    /// The front matter was not understood; the document was ingested as text, without attributes.
    #[error("front matter is not read as attributes: {0}")]
    BadFrontMatter(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_the_place_for_people_and_for_scripts() {
        let row = Skipped { path: "/d/a.jsonl".into(), line: Some(7), reason: SkipReason::NotUtf8 { offset: 90 } };
        assert_eq!(row.to_string(), "/d/a.jsonl:7: not UTF-8 at byte 90; convert it to UTF-8");
        assert_eq!(
            serde_json::to_value(&row).unwrap(),
            serde_json::json!({"path": "/d/a.jsonl", "line": 7, "reason": {"kind": "not-utf8", "detail": {"offset": 90}}})
        );
        let row = Skipped {
            path: "/d/a\n/d/b\x1b[2J".into(),
            line: Some(1),
            reason: SkipReason::DuplicateId("\r\u{9b}x".into()),
        };
        assert_eq!(row.to_string(), "/d/a�/d/b�[2J:1: an earlier record of this file has the id ��x");
        let row = Skipped { path: "/d/b".into(), line: None, reason: SkipReason::Empty };
        assert_eq!(row.to_string(), "/d/b: no text in it");
        assert_eq!(serde_json::to_value(&row.reason).unwrap(), serde_json::json!({"kind": "empty"}));
    }
}
