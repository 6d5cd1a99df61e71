//! What has to change: walks the roots, compares with what is known, extracts and chunks what is new, and hands changes over
//! in bounded pieces. Runs on a thread of its own; reads files, writes nothing.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::Sender;

use super::chunk::{Chunk, Chunker, DocumentChunks};
use super::extract::{DocumentHeader, DocumentSink, Markup, RecordFields, extract};
use super::known::{Known, KnownDocument, source_name};
use super::skip::{SkipReason, Skipped};
use super::walk::{FoundFile, walk};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentHash, DocId};
use crate::progress::{Cancel, Listener, Progress, Stage};
use crate::store::DocumentRow;

/// Rows handed over at once.
const ROWS_PER_CHANGE: usize = 1024;

/// Files above this are read twice, once to count their chunks and once to hand them over, so that they are never held.
const HELD_BYTES: u64 = 4 << 20;

/// Skipped things that a report names; the rest is counted.
const SKIPS_NAMED: usize = 1000;

/// A piece of what has to be written. Pieces of one document come in order and carry its removals last.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Rows to write.
    pub(super) rows: Vec<DocumentRow>,
    /// Those of them that are not stored yet.
    pub(super) added: Vec<ChunkId>,
    /// Those of them that are stored, and whose columns that searches filter on have changed.
    pub(super) refiled: Vec<ChunkId>,
    /// Chunks to remove.
    pub(super) removed: Vec<ChunkId>,
}

/// What was seen; the numbers of the report.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) files: u64,
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) unchanged: u64,
    pub(super) removed: u64,
    pub(super) chunks_added: u64,
    pub(super) chunks_kept: u64,
    pub(super) chunks_removed: u64,
    pub(super) skipped_count: u64,
    pub(super) skipped: Vec<Skipped>,
    pub(super) cancelled: bool,
}

/// Whether documents whose file is gone are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prune {
    /// They are.
    #[default]
    Vanished,
    /// They stay.
    Nothing,
}

/// The planning of one ingest.
pub(super) struct Planner {
    pub(super) bank: PathBuf,
    pub(super) chunker: Chunker,
    pub(super) fields: RecordFields,
    pub(super) prune: Prune,
    pub(super) known: Known,
    pub(super) now: Timestamp,
    pub(super) changes: Sender<Change>,
    pub(super) listener: Listener,
    pub(super) cancel: Cancel,
    pub(super) planned: HashSet<String>,
    pub(super) seen: Seen,
    pub(super) pending: Change,
}

impl Planner {
    /// Plans all roots; returns what was seen once the last change is handed over.
    pub(super) fn run(mut self, roots: &[PathBuf]) -> Result<Seen> {
        self.listener.report(Progress::Started { stage: Stage::Ingest, total: None });
        for root in roots {
            for found in walk(root)? {
                if self.cancel.is_cancelled() {
                    self.seen.cancelled = true;
                    break;
                }
                match found {
                    Ok(file) => self.plan_file(&file)?,
                    Err(skipped) => self.skipped(skipped),
                }
                self.listener.report(Progress::Advanced { stage: Stage::Ingest, done: self.seen.files });
            }
        }
        // After an interrupted walk nothing can be said about what was not reached.
        if self.prune == Prune::Vanished && !self.seen.cancelled {
            for document in std::mem::take(&mut self.known).vanished() {
                self.seen.removed += 1;
                self.remove(document.ids)?;
            }
        }
        self.hand_over()?;
        self.listener.report(Progress::Finished { stage: Stage::Ingest });
        Ok(self.seen)
    }

    fn plan_file(&mut self, file: &FoundFile) -> Result<()> {
        let source = source_name(&file.path, &self.bank);
        // Roots may overlap; the first one that reaches a file has it.
        if !self.planned.insert(source.clone()) {
            return Ok(());
        }
        self.seen.files += 1;
        if file.format.holds_records() {
            let fields = self.fields.clone();
            return extract(file, &fields, &mut FileSink::new(self, file, source, None));
        }
        let hash = match hash_file(file, &self.chunker.fingerprint()) {
            Ok(hash) => hash,
            Err(error) => {
                let reason = SkipReason::Unreadable(error.to_string());
                self.skipped(Skipped { path: file.path.display().to_string(), line: None, reason });
                return Ok(());
            }
        };
        let doc_id = DocId::from_stored(source.as_str());
        let known = self.known.take(&source, &doc_id);
        if known.as_ref().is_some_and(|known| known.is(&hash)) {
            self.unchanged(known.as_ref());
            return Ok(());
        }
        let fields = self.fields.clone();
        let total = if file.len > HELD_BYTES { Some(self.count_chunks(file, &fields)?) } else { None };
        if total == Some(None) {
            // It was skipped while counting; extracting it now would only skip it again.
            return self.drop_known(known);
        }
        let file_document = FileDocument { hash, known, total: total.flatten() };
        let mut sink = FileSink::new(self, file, source, Some(file_document));
        extract(file, &fields, &mut sink)?;
        let left = sink.file.take();
        // Nothing was begun: the file is empty or unreadable now, and what was known of it is out of date.
        self.drop_known(left.and_then(|document| document.known))
    }

    /// Chunks of a large file, `None` if it was skipped.
    fn count_chunks(&mut self, file: &FoundFile, fields: &RecordFields) -> Result<Option<usize>> {
        let mut count =
            Count { chunker: &self.chunker, chunks: None, buffer: Vec::new(), total: 0, skipped: Vec::new() };
        extract(file, fields, &mut count)?;
        let (ended, total, skipped) = (count.chunks.is_none(), count.total, std::mem::take(&mut count.skipped));
        if total == 0 || !ended {
            skipped.into_iter().for_each(|s| self.skipped(s));
            return Ok(None);
        }
        Ok(Some(total))
    }

    fn drop_known(&mut self, known: Option<KnownDocument>) -> Result<()> {
        if let Some(known) = known {
            self.seen.removed += 1;
            self.remove(known.ids)?;
        }
        Ok(())
    }

    fn unchanged(&mut self, known: Option<&KnownDocument>) {
        self.seen.unchanged += 1;
        self.seen.chunks_kept += known.map_or(0, |known| known.ids.len() as u64);
    }

    fn skipped(&mut self, skipped: Skipped) {
        if matches!(skipped.reason, SkipReason::Unreadable(_)) {
            self.known.spare(&source_name(Path::new(&skipped.path), &self.bank));
        }
        self.seen.skipped_count += 1;
        if self.seen.skipped.len() < SKIPS_NAMED {
            self.seen.skipped.push(skipped);
        }
    }

    fn remove(&mut self, ids: HashSet<ChunkId>) -> Result<()> {
        self.seen.chunks_removed += ids.len() as u64;
        self.pending.removed.extend(ids);
        if self.pending.removed.len() >= ROWS_PER_CHANGE { self.hand_over() } else { Ok(()) }
    }

    fn write(&mut self, row: DocumentRow) -> Result<()> {
        self.pending.rows.push(row);
        if self.pending.rows.len() >= ROWS_PER_CHANGE { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<()> {
        let change = std::mem::take(&mut self.pending);
        if change.rows.is_empty() && change.removed.is_empty() {
            return Ok(());
        }
        // The receiver is gone only if writing failed; its error is the one to report.
        self.changes.blocking_send(change).map_err(|_| Error::Cancelled)
    }
}

/// A document that is a whole file: its hash is known before it is extracted.
struct FileDocument {
    hash: String,
    known: Option<KnownDocument>,
    /// Its chunks, where it is too large to hold them until they are counted.
    total: Option<usize>,
}

/// The document that is being extracted.
struct Open {
    header: DocumentHeader,
    doc_id: DocId,
    category: String,
    /// The text of a record, until its hash is known.
    text: String,
    chunks: Option<DocumentChunks>,
    held: Vec<Chunk>,
    writer: Option<RowWriter>,
}

/// Writes the rows of one document.
struct RowWriter {
    hash: String,
    /// Stored chunks that were not met again yet.
    left: HashSet<ChunkId>,
    is_new: bool,
    refiled: bool,
    total: usize,
    index: usize,
    occurrences: HashMap<ContentHash, u32>,
}

/// Takes the documents of one file.
struct FileSink<'a> {
    planner: &'a mut Planner,
    path: &'a FoundFile,
    source: String,
    file: Option<FileDocument>,
    open: Option<Open>,
}

impl<'a> FileSink<'a> {
    fn new(planner: &'a mut Planner, path: &'a FoundFile, source: String, file: Option<FileDocument>) -> Self {
        Self { planner, path, source, file, open: None }
    }

    /// Starts writing a document that is known to have changed.
    fn writer(&mut self, open: &Open, hash: String, known: Option<KnownDocument>, total: usize) -> RowWriter {
        let doc_path = self.doc_path(open);
        let refiled = known.as_ref().is_some_and(|k| k.doc_path != doc_path || k.category != open.category);
        let is_new = known.is_none();
        let left = known.map(|k| k.ids).unwrap_or_default();
        *(if is_new { &mut self.planner.seen.added } else { &mut self.planner.seen.changed }) += 1;
        RowWriter { hash, left, is_new, refiled, total, index: 0, occurrences: HashMap::new() }
    }

    fn doc_path(&self, open: &Open) -> String {
        match &open.header.record_id {
            Some(id) => format!("{}#{}", self.path.rel_path, id.trim_start_matches('#')),
            None => self.path.rel_path.clone(),
        }
    }

    fn write(&mut self, open: &Open, writer: &mut RowWriter, chunks: &mut Vec<Chunk>) -> Result<()> {
        for chunk in chunks.drain(..) {
            let content_hash = ContentHash::of(&chunk.content);
            let occurrence = writer.occurrences.entry(content_hash).or_insert(0);
            let id = ChunkId::derive(&self.source, &open.doc_id, &content_hash, *occurrence);
            *occurrence += 1;
            if writer.left.remove(&id) {
                self.planner.seen.chunks_kept += 1;
                if writer.refiled {
                    self.planner.pending.refiled.push(id.clone());
                }
            } else {
                self.planner.seen.chunks_added += 1;
                self.planner.pending.added.push(id.clone());
            }
            let row = DocumentRow {
                id,
                source: self.source.clone(),
                source_hash: writer.hash.clone(),
                doc_id: open.doc_id.clone(),
                doc_path: self.doc_path(open),
                category_text: open.category.replace(['-', '_'], " "),
                category: open.category.clone(),
                heading: chunk.heading,
                content: chunk.content,
                chunk_index: writer.index,
                total_chunks: writer.total,
                content_hash,
                attributes: open.header.attributes.clone(),
                ingested_at: self.planner.now,
            };
            writer.index += 1;
            self.planner.write(row)?;
        }
        Ok(())
    }
}

impl DocumentSink for FileSink<'_> {
    fn begin(&mut self, header: DocumentHeader) -> Result<()> {
        let doc_id = header.record_id.clone().unwrap_or_else(|| self.source.clone());
        let category = header.category.clone().or_else(|| self.path.folder.clone()).unwrap_or_default();
        let chunks = self.planner.chunker.start(header.title.as_deref());
        let mut open = Open {
            doc_id: DocId::from_stored(doc_id),
            category,
            text: String::new(),
            chunks: Some(chunks),
            held: Vec::new(),
            writer: None,
            header,
        };
        // A file too large to hold is written as it is read; its chunks were counted before.
        if let Some(total) = self.file.as_ref().and_then(|file| file.total)
            && let Some(file) = self.file.take()
        {
            open.writer = Some(self.writer(&open, file.hash, file.known, total));
        }
        self.open = Some(open);
        Ok(())
    }

    fn segment(&mut self, markup: Markup, text: &str) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if open.header.record_id.is_some() {
            // Not chunked before it is known to have changed.
            open.text.push_str(text);
        } else if let Some(chunks) = &mut open.chunks {
            chunks.push(markup, text, &mut open.held);
        }
        if let Some(mut writer) = open.writer.take() {
            let mut held = std::mem::take(&mut open.held);
            self.write(&open, &mut writer, &mut held)?;
            open.writer = Some(writer);
        }
        self.open = Some(open);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let mut held = std::mem::take(&mut open.held);
        let mut writer = match (open.writer.take(), self.file.take()) {
            (Some(writer), _) => writer,
            (None, Some(file)) => self.writer(&open, file.hash, file.known, held.len()),
            (None, None) => {
                let hash = hash_record(&open, self.path, &self.planner.chunker.fingerprint());
                let known = self.planner.known.take(&self.source, &open.doc_id);
                if known.as_ref().is_some_and(|known| known.is(&hash)) {
                    self.planner.unchanged(known.as_ref());
                    return Ok(());
                }
                if let Some(chunks) = &mut open.chunks {
                    chunks.push(Markup::Plain, &open.text, &mut held);
                }
                self.writer(&open, hash, known, held.len())
            }
        };
        self.write(&open, &mut writer, &mut held)?;
        if writer.index == 0 {
            // Nothing but white space: not a document.
            *(if writer.is_new { &mut self.planner.seen.added } else { &mut self.planner.seen.changed }) -= 1;
            self.planner.seen.removed += u64::from(!writer.is_new);
            let path = self.path.path.display().to_string();
            self.planner.skipped(Skipped { path, line: open.header.line, reason: SkipReason::Empty });
        }
        self.planner.remove(writer.left)
    }

    fn skip(&mut self, skipped: Skipped) -> Result<()> {
        self.open = None;
        if skipped.line.is_none() && self.path.format.holds_records() {
            // The table as a whole was not understood, as with a wrong field name: that says nothing about its records.
            self.planner.known.spare(&self.source);
        }
        self.planner.skipped(skipped);
        Ok(())
    }
}

/// Counts the chunks of a file.
struct Count<'a> {
    chunker: &'a Chunker,
    chunks: Option<DocumentChunks>,
    buffer: Vec<Chunk>,
    total: usize,
    skipped: Vec<Skipped>,
}

impl DocumentSink for Count<'_> {
    fn begin(&mut self, header: DocumentHeader) -> Result<()> {
        self.chunks = Some(self.chunker.start(header.title.as_deref()));
        Ok(())
    }

    fn segment(&mut self, markup: Markup, text: &str) -> Result<()> {
        if let Some(chunks) = &mut self.chunks {
            chunks.push(markup, text, &mut self.buffer);
            self.total += self.buffer.drain(..).len();
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.chunks = None;
        Ok(())
    }

    fn skip(&mut self, skipped: Skipped) -> Result<()> {
        self.skipped.push(skipped);
        Ok(())
    }
}

/// blake3 of the file's bytes, of where it lies below its root, and of the rules that cut it.
fn hash_file(file: &FoundFile, rules: &str) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(&file.path)?)?;
    Ok(finish_hash(hasher, &file.rel_path, rules))
}

/// The same for a record: of what is known about it and its text.
fn hash_record(open: &Open, file: &FoundFile, rules: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(serde_json::Value::Object(open.header.attributes.clone()).to_string().as_bytes());
    hasher.update(&[0]);
    hasher.update(open.category.as_bytes());
    hasher.update(&[0]);
    hasher.update(open.text.as_bytes());
    finish_hash(hasher, &file.rel_path, rules)
}

fn finish_hash(mut hasher: blake3::Hasher, rel_path: &str, rules: &str) -> String {
    for part in [rel_path, rules] {
        hasher.update(&[0]);
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
