//! What the fuzz targets do with documents, and what has to be true of what is made of them: extraction keeps its order of
//! calls, counts what it leaves out and loses no text; chunks fit, come in the order of the text and lose none of it.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use super::chunk::{Chunk, ChunkOptions, Chunker};
use super::extract::{DocumentHeader, DocumentSink, Markup, RecordFields, extract};
use super::format::{Format, HEAD_BYTES};
use super::skip::{SkipReason, Skipped};
use super::walk::FoundFile;
use crate::embed::TokenCounter;
use crate::error::Result;
use crate::fuzzing::Scratch;

/// How tokens are counted.
#[derive(Clone, Copy)]
enum Counter {
    /// A word between white space is one.
    Words,
    /// As WordPiece: four letters of a word, each mark and each ideograph.
    Pieces,
    /// As byte-level BPE: four bytes, white space included.
    Bytes,
}

impl TokenCounter for Counter {
    fn count_tokens(&self, text: &str) -> usize {
        match self {
            Self::Words => text.split_whitespace().count(),
            Self::Bytes => text.len().div_ceil(4),
            Self::Pieces => {
                let marks = text.chars().filter(|c| !c.is_alphanumeric() && !c.is_whitespace()).count();
                let words = text.split(|c: char| !c.is_alphanumeric()).map(|word| {
                    let ideographs = word.chars().filter(|c| *c > '\u{3000}').count();
                    ideographs + (word.chars().count() - ideographs).div_ceil(4)
                });
                words.sum::<usize>() + marks
            }
        }
    }

    fn max_text_tokens(&self) -> usize {
        512
    }
}

/// Three bytes of settings, and a text, which is taken several times over if the settings say so.
pub fn chunk(data: &[u8]) {
    let Some((&[flags, size, overlap], text)) = data.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    let times = if flags & 0x80 == 0 { 1 } else { (40 << 10) / text.len().max(1024) };
    let text = text.repeat(times.max(1));
    let counter = [Counter::Words, Counter::Pieces, Counter::Bytes][usize::from(flags & 3) % 3];
    let markup = if flags & 4 == 0 { Markup::Plain } else { Markup::Markdown };
    let title = (flags & 8 != 0).then_some("Bee care › a title");
    let max_tokens = 16 + usize::from(size);
    let overlap_tokens = if flags & 16 == 0 { 0 } else { usize::from(overlap) };
    let options = ChunkOptions { max_tokens: Some(max_tokens), overlap_tokens };
    let chunker = Chunker::new(Arc::new(counter), options).unwrap();
    let mut chunks = Vec::new();
    chunker.start(title).push(markup, &text, &mut chunks);

    for Chunk { heading, content } in &chunks {
        assert!(counter.count_tokens(content) <= max_tokens, "a chunk is longer than allowed: {content:?}");
        assert!(counter.count_tokens(heading) <= max_tokens / 4, "a heading takes more than its share: {heading:?}");
        assert!(!content.trim().is_empty(), "a chunk is blank");
    }
    if overlap_tokens == 0 {
        check_tiling(&text, markup, &chunks);
    }
}

/// Without overlap, chunks are the text: one after the other, with nothing between them but white space and headings.
fn check_tiling(text: &str, markup: Markup, chunks: &[Chunk]) {
    let headings = if markup == Markup::Markdown { super::chunk::heading_ranges(text) } else { Vec::new() };
    let mut at = 0;
    for chunk in chunks {
        let body = chunk.content.strip_prefix(&chunk.heading).unwrap().trim_start();
        loop {
            at = text.len() - text[at..].trim_start().len();
            if text[at..].starts_with(body) {
                at += body.len();
                break;
            }
            let heading = headings.iter().find(|range| range.contains(&at));
            at = heading.unwrap_or_else(|| panic!("text is lost at byte {at}, before {body:?}, of {text:?}")).end;
        }
    }
    for range in headings {
        if range.start <= at || text[at..range.start].trim().is_empty() {
            at = at.max(range.end);
        }
    }
    assert_eq!(text[at..].trim(), "", "the end of the text is lost");
}

/// Keeps everything, and insists on the order of calls.
#[derive(Default)]
struct Kept {
    open: Option<(DocumentHeader, String)>,
    documents: Vec<(DocumentHeader, String)>,
    skipped: Vec<(Option<u64>, SkipReason)>,
}

impl DocumentSink for Kept {
    fn begin(&mut self, header: DocumentHeader) -> Result<()> {
        assert!(self.open.is_none(), "two documents at once");
        // Stored as JSON, so it has to come back from there.
        let stated = Value::Object(header.attributes.clone());
        let stored: Value = serde_json::from_str(&stated.to_string()).expect("attributes can be stored");
        assert!(is_same(&stored, &stated), "attributes come back as they were: {stored} for {stated}");
        self.open = Some((header, String::new()));
        Ok(())
    }

    fn segment(&mut self, _: Markup, text: &str) -> Result<()> {
        self.open.as_mut().expect("a segment outside of a document").1.push_str(text);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let (header, text) = self.open.take().expect("an end without a beginning");
        assert!(!text.trim().is_empty(), "a blank document");
        self.documents.push((header, text));
        Ok(())
    }

    fn skip(&mut self, skipped: Skipped) -> Result<()> {
        self.open = None;
        let reason = skipped.reason.to_string();
        assert!(!reason.is_empty() && reason.len() < 4096, "a reason for people: {reason:?}");
        self.skipped.push((skipped.line, skipped.reason));
        Ok(())
    }
}

/// Equal, but for the last digits of numbers with a fraction, which the parser of JSON rounds.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((ka, a), (kb, b))| ka == kb && is_same(a, b))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= a.abs() * 1e-14
        }
        _ => a == b,
    }
}

/// What extraction hands over for a file with these bytes.
fn extracted(format: Format, bytes: &[u8]) -> Kept {
    let file = Scratch::file(bytes);
    let found = FoundFile {
        path: file.path().to_owned(),
        rel_path: "file".into(),
        folder: None,
        len: bytes.len() as u64,
        format,
    };
    let mut kept = Kept::default();
    extract(&found, "file", &RecordFields::default(), &mut kept).unwrap();
    assert!(kept.open.is_none(), "a document was neither ended nor left out");
    let is_binary = bytes.iter().take(HEAD_BYTES).any(|&byte| byte == 0);
    if is_binary {
        assert!(kept.documents.is_empty() && kept.skipped == [(None, SkipReason::Binary)], "{:?}", kept.skipped);
    }
    assert!(!kept.documents.is_empty() || !kept.skipped.is_empty(), "a file without a document has a reason");
    kept
}

/// The text of a file, and why it has none.
fn only_document(kept: &Kept) -> Option<&(DocumentHeader, String)> {
    assert!(kept.documents.len() <= 1, "a file is one document");
    kept.documents.first()
}

/// A plain text file.
pub fn text(data: &[u8]) {
    let kept = extracted(Format::Text, data);
    let expected = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    match (only_document(&kept), std::str::from_utf8(expected)) {
        (Some((_, text)), Ok(expected)) => {
            assert_eq!(text.trim(), expected.replace("\r\n", "\n").trim(), "the text is the file's");
        }
        (Some(_), Err(_)) => panic!("a file that is not UTF-8 became a document"),
        (None, Ok(expected)) => {
            let is_binary = kept.skipped.iter().any(|(_, reason)| *reason == SkipReason::Binary);
            assert!(is_binary || expected.trim().is_empty(), "a text was left out: {:?}", kept.skipped);
        }
        (None, Err(_)) => {}
    }
}

/// A Markdown file, whose text ends as the file does, whatever its front matter says.
pub fn markdown(data: &[u8]) {
    let kept = extracted(Format::Markdown, data);
    let Some((header, text)) = only_document(&kept) else { return };
    let expected = std::str::from_utf8(data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data)).unwrap();
    assert!(expected.replace("\r\n", "\n").trim_end().ends_with(text.trim()), "the text is the end of the file");
    if header.attributes.is_empty() && header.title.is_none() && header.category.is_none() {
        return;
    }
    assert!(expected.starts_with("---") || expected.starts_with("+++"), "attributes out of nothing");
}

/// An HTML file.
pub fn html(data: &[u8]) {
    let kept = extracted(Format::Html, data);
    let Some((header, text)) = only_document(&kept) else { return };
    assert!(std::str::from_utf8(data).is_ok());
    assert!(text.len() <= 32 * data.len() + (2 << 20), "{} bytes of {}", text.len(), data.len());
    assert!(header.title.as_ref().is_none_or(|title| !title.trim().is_empty()));
}

/// A table or a list of records: the first byte says which.
pub fn records(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    let format = [Format::Jsonl, Format::Csv, Format::Tsv][usize::from(kind) % 3];
    let kept = extracted(format, bytes);
    let mut ids = HashSet::new();
    let mut line_before = 0;
    for (header, text) in &kept.documents {
        let (id, line) = (header.record_id.as_deref().unwrap(), header.line.unwrap());
        assert!(ids.insert(id.to_owned()), "two records with the id {id}");
        assert!(line > line_before, "records come in the order of the file");
        assert!(!text.trim().is_empty());
        line_before = line;
    }
    let is_whole = kept.skipped.iter().all(|(line, _)| line.is_some());
    let Ok(content) = std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)) else { return };
    match format {
        Format::Jsonl if is_whole => {
            let lines = content.split('\n').filter(|line| !line.trim_ascii().is_empty());
            assert_eq!(
                lines.count(),
                kept.documents.len() + kept.skipped.len(),
                "each line is a record or has a reason"
            );
        }
        Format::Csv | Format::Tsv if kept.skipped.is_empty() && !content.contains('\r') => {
            let delimiter = if format == Format::Csv { b',' } else { b'\t' };
            assert_eq!(
                texts(&kept),
                texts_by_another_way(content, delimiter),
                "the records are those of the csv crate"
            );
        }
        _ => {}
    }
}

fn texts(kept: &Kept) -> Vec<&str> {
    kept.documents.iter().map(|(_, text)| text.as_str()).collect()
}

/// The text column as the `csv` crate reads it off the file as a whole.
fn texts_by_another_way(content: &str, delimiter: u8) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(content.as_bytes());
    let text = reader.headers().unwrap().iter().position(|name| name.trim() == "text").unwrap();
    reader.records().map(|record| record.unwrap()[text].to_owned()).collect()
}
