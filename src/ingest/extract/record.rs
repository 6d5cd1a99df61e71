//! A record of a JSONL or CSV file as a document.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::super::skip::SkipReason;
use super::super::walk::FoundFile;
use super::{DocumentHeader, DocumentSink, Markup};
use crate::error::Result;

/// What a record states, whatever format it was in.
pub(super) struct Record {
    /// Its own id, if it has one.
    pub(super) id: Option<String>,
    pub(super) text: String,
    pub(super) category: Option<String>,
    pub(super) attributes: Map<String, Value>,
}

/// The records of one file on their way to the sink.
pub(super) struct Records<'a> {
    file: &'a FoundFile,
    sink: &'a mut dyn DocumentSink,
    /// Hashes of the ids so far. The only thing that grows with the file, by 16 bytes a record.
    ids: HashSet<u128>,
    /// Whether the sink has heard of anything.
    silent: bool,
}

impl<'a> Records<'a> {
    pub(super) fn new(file: &'a FoundFile, sink: &'a mut dyn DocumentSink) -> Self {
        Self { file, sink, ids: HashSet::new(), silent: true }
    }

    /// Hands over what stands at `line`: a document, or the reason why it is none.
    pub(super) fn hand_over(&mut self, line: u64, record: Result<Record, SkipReason>) -> Result<()> {
        let document = record.and_then(|record| self.document(line, record));
        match document {
            Err(reason) => self.skip(Some(line), reason),
            Ok((header, text)) => {
                self.silent = false;
                self.sink.begin(header)?;
                self.sink.segment(Markup::Plain, &text)?;
                self.sink.end()
            }
        }
    }

    /// Reports something about the file or one of its lines.
    pub(super) fn skip(&mut self, line: Option<u64>, reason: SkipReason) -> Result<()> {
        self.silent = false;
        self.sink.skip(self.file.skipped(line, reason))
    }

    /// The file is at its end: one without any record is reported.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.silent { self.skip(None, SkipReason::Empty) } else { Ok(()) }
    }

    fn document(&mut self, line: u64, record: Record) -> Result<(DocumentHeader, String), SkipReason> {
        let Record { id, text, category, attributes } = record;
        if text.trim().is_empty() {
            return Err(SkipReason::Empty);
        }
        let id = id.unwrap_or_else(|| format!("#{line}"));
        if !self.ids.insert(half_hash(&id)) {
            return Err(SkipReason::DuplicateId(id));
        }
        let header = DocumentHeader { record_id: Some(id), category, title: None, attributes, line: Some(line) };
        Ok((header, text))
    }
}

/// The first half of the id's blake3: two of a million ids agree in it once in 10^27 files.
fn half_hash(id: &str) -> u128 {
    let hash = blake3::hash(id.as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |half| u128::from_le_bytes(*half))
}
