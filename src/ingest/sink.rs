//! From what a file says to rows: takes the documents of one file, recognises those that are unchanged, and writes the rows
//! of the others. Must not know: which files there are, how rows are stored.

use std::collections::{HashMap, HashSet};

use super::chunk::{Chunk, Chunker, DocumentChunks};
use super::extract::{DocumentHeader, DocumentSink, Markup};
use super::known::KnownDocument;
use super::plan::Planner;
use super::skip::{SkipReason, Skipped};
use super::walk::FoundFile;
use crate::error::Result;
use crate::id::{ChunkId, ContentHash, DocId};
use crate::regular_file;
use crate::store::DocumentRow;

/// A document that is a whole file: its hash is known before it is extracted.
pub(super) struct FileDocument {
    pub(super) hash: String,
    pub(super) known: Option<KnownDocument>,
    /// Its chunks, where it is too large to hold them until they are counted.
    pub(super) total: Option<usize>,
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
pub(super) struct FileSink<'a> {
    planner: &'a mut Planner,
    path: &'a FoundFile,
    source: String,
    pub(super) file: Option<FileDocument>,
    open: Option<Open>,
}

impl<'a> FileSink<'a> {
    pub(super) fn new(
        planner: &'a mut Planner,
        path: &'a FoundFile,
        source: String,
        file: Option<FileDocument>,
    ) -> Self {
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
pub(super) struct Count<'a> {
    chunker: &'a Chunker,
    chunks: Option<DocumentChunks>,
    buffer: Vec<Chunk>,
    total: usize,
    skipped: Vec<Skipped>,
}

impl<'a> Count<'a> {
    pub(super) fn new(chunker: &'a Chunker) -> Self {
        Self { chunker, chunks: None, buffer: Vec::new(), total: 0, skipped: Vec::new() }
    }

    /// The number of chunks; what was skipped if the document did not come to its end, or is empty.
    pub(super) fn finish(self) -> std::result::Result<usize, Vec<Skipped>> {
        let ended = self.chunks.is_none();
        if ended && self.total > 0 { Ok(self.total) } else { Err(self.skipped) }
    }
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
pub(super) fn hash_file(file: &FoundFile, rules: &str) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(regular_file::open(&file.path)?)?;
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
