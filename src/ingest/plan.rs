//! What has to change: walks the roots, compares with what is known, extracts and chunks what is new, and hands changes over
//! in bounded pieces. Runs on a thread of its own; reads files, writes nothing.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc::Sender;

use super::chunk::Chunker;
use super::extract::{DocumentSink, RecordFields, extract};
use super::format::Format;
use super::known::{Known, KnownDocument, source_name};
use super::sink::{Count, FileDocument, FileSink, hash_file};
use super::skip::{SkipReason, Skipped};
use super::walk::{FoundFile, walk};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::failure::Panicked;
use crate::id::{ChunkId, DocId};
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
            let read = &mut FileSink::new(self, file, source.clone(), None);
            let panicked = guarded_extract(file, &source, &fields, read)?;
            panicked.into_iter().for_each(|skipped| self.skipped(skipped));
            return Ok(());
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
        // An image is one chunk, however large.
        let is_counted = file.len > HELD_BYTES && file.format != Format::Image;
        let total = if is_counted { Some(self.count_chunks(file, &source, &fields)?) } else { None };
        if total == Some(None) {
            // It was skipped while counting; extracting it now would only skip it again.
            return self.drop_known(known);
        }
        let file_document = FileDocument { hash, known, total: total.flatten() };
        let mut sink = FileSink::new(self, file, source.clone(), Some(file_document));
        let panicked = guarded_extract(file, &source, &fields, &mut sink)?;
        let left = sink.file.take();
        panicked.into_iter().for_each(|skipped| self.skipped(skipped));
        // Nothing was begun: the file is empty or unreadable now, and what was known of it is out of date.
        self.drop_known(left.and_then(|document| document.known))
    }

    /// Chunks of a large file, `None` if it was skipped.
    fn count_chunks(&mut self, file: &FoundFile, source: &str, fields: &RecordFields) -> Result<Option<usize>> {
        let mut count = Count::new(&self.chunker);
        if let Some(skipped) = guarded_extract(file, source, fields, &mut count)? {
            self.skipped(skipped);
            return Ok(None);
        }
        match count.finish() {
            Ok(total) => Ok(Some(total)),
            Err(skipped) => {
                skipped.into_iter().for_each(|s| self.skipped(s));
                Ok(None)
            }
        }
    }

    fn drop_known(&mut self, known: Option<KnownDocument>) -> Result<()> {
        if let Some(known) = known {
            self.seen.removed += 1;
            self.remove(known.ids)?;
        }
        Ok(())
    }

    pub(super) fn unchanged(&mut self, known: Option<&KnownDocument>) {
        self.seen.unchanged += 1;
        self.seen.chunks_kept += known.map_or(0, |known| known.ids.len() as u64);
    }

    pub(super) fn skipped(&mut self, skipped: Skipped) {
        if matches!(skipped.reason, SkipReason::Unreadable(_) | SkipReason::Panicked(_)) {
            self.known.spare(&source_name(Path::new(&skipped.path), &self.bank));
        }
        self.seen.skipped_count += 1;
        if self.seen.skipped.len() < SKIPS_NAMED {
            self.seen.skipped.push(skipped);
        }
    }

    pub(super) fn remove(&mut self, ids: HashSet<ChunkId>) -> Result<()> {
        self.seen.chunks_removed += ids.len() as u64;
        self.pending.removed.extend(ids);
        if self.pending.removed.len() >= ROWS_PER_CHANGE { self.hand_over() } else { Ok(()) }
    }

    pub(super) fn write(&mut self, row: DocumentRow) -> Result<()> {
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

/// Extracts a file. Parsers index what they read: a panic in one of them costs the file, not the run.
fn guarded_extract(
    file: &FoundFile,
    source: &str,
    fields: &RecordFields,
    sink: &mut impl DocumentSink,
) -> Result<Option<Skipped>> {
    // A document that a panic left half done is dropped with its sink; rows are handed over in whole.
    match catch_unwind(AssertUnwindSafe(|| extract(file, source, fields, sink))) {
        Ok(extracted) => extracted.map(|()| None),
        Err(payload) => Ok(Some(Skipped {
            path: file.path.display().to_string(),
            line: None,
            reason: SkipReason::Panicked(Panicked::new(&*payload).to_string()),
        })),
    }
}
