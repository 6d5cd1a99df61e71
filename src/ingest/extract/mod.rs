//! From a file to documents: the text that is to be searched, and what is known about it.
//!
//! Guarantees: a file is read in pieces, so that memory does not grow with it (HTML and images, which have to be read whole,
//! are refused beyond a limit); bad input costs the row or the file that it is in, and is told to the sink. Must not know:
//! chunks.

mod csv;
mod front_matter;
mod html;
mod image;
mod jsonl;
mod lines;
mod record;
mod segments;
#[cfg(test)]
mod tests;
mod text;

use serde_json::{Map, Value};

use super::format::Format;
use super::skip::{SkipReason, Skipped};
use super::walk::FoundFile;
use crate::error::Result;

/// What is known about a document before its text is read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DocumentHeader {
    /// The id of a JSONL or CSV record: its own, or `#12` for one without that stands in line 12. `None`: the document is
    /// the file.
    pub(crate) record_id: Option<String>,
    /// From the front matter or the record; where it is `None`, the file's folder is the category.
    pub(crate) category: Option<String>,
    /// From the front matter or from HTML's `<title>`. A record has none: what is embedded is its text field alone.
    pub(crate) title: Option<String>,
    /// Everything else that is stated about the document, with its types.
    pub(crate) attributes: Map<String, Value>,
    /// The line that the record starts in, counted from 1; `None`: the document is the file.
    pub(crate) line: Option<u64>,
}

/// How a text is marked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Markup {
    /// Lines and blank lines.
    Plain,
    /// Markdown.
    Markdown,
    /// What stands for an image: one chunk, whatever its length.
    Image,
}

/// Who takes the documents of a file. The calls for one document are, in this order: `begin`, one or more `segment`, `end`.
///
/// Where a file turns out to be bad after its beginning was handed over, `skip` comes in place of `end`, and the document
/// that was begun must be discarded. Any other `skip` comes between documents. An error stops the extraction.
pub(crate) trait DocumentSink {
    /// A document starts.
    fn begin(&mut self, header: DocumentHeader) -> Result<()>;
    /// The next piece of its text, with `\n` as line end in all but records.
    fn segment(&mut self, markup: Markup, text: &str) -> Result<()>;
    /// The document is complete.
    fn end(&mut self) -> Result<()>;
    /// Something was left out.
    fn skip(&mut self, skipped: Skipped) -> Result<()>;
}

/// Which fields of a JSONL object, or columns of a CSV table, have a meaning; all others are attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFields {
    /// The record's own id: a string or an integer. Default `id`; a record without one is known by its line.
    pub id: String,
    /// The text to embed, alone. Default `text`; a record without one is skipped.
    pub text: String,
    /// The category: a string, number or boolean. Default `category`; without one, the file's folder is the category.
    pub category: String,
}

impl Default for RecordFields {
    fn default() -> Self {
        Self { id: "id".into(), text: "text".into(), category: "category".into() }
    }
}

/// Hands the documents of `file` to `sink`; `source` is the name that the bank knows the file by. What cannot be read is told
/// to the sink.
///
/// # Errors
/// Only those of the sink.
pub(crate) fn extract(
    file: &FoundFile,
    source: &str,
    fields: &RecordFields,
    sink: &mut dyn DocumentSink,
) -> Result<()> {
    match file.format {
        Format::Text => text::extract(file, Markup::Plain, sink),
        Format::Markdown => text::extract(file, Markup::Markdown, sink),
        Format::Html => html::extract(file, sink),
        Format::Jsonl => jsonl::extract(file, fields, sink),
        Format::Csv => csv::extract(file, b',', fields, sink),
        Format::Tsv => csv::extract(file, b'\t', fields, sink),
        Format::Image => image::extract(file, source, sink),
    }
}

impl FoundFile {
    /// The report's row for this file, or for one line of it.
    fn skipped(&self, line: Option<u64>, reason: SkipReason) -> Skipped {
        Skipped { path: self.path.display().to_string(), line, reason }
    }
}

fn unreadable(error: &std::io::Error) -> SkipReason {
    SkipReason::Unreadable(error.to_string())
}

/// The mark that some editors put at the start of UTF-8 files. It is no part of the text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
