//! From a folder to rows: which files there are, what text is in them, how it is cut, and what of it is new.
//!
//! Guarantees: running it again with nothing changed writes nothing; a bad file or a bad row costs itself alone and is named
//! in the report; memory does not grow with a file; what is removed is removed from the documents last, so a crash in
//! between only repeats work. Must not know: vectors' values, indexes, other stages.

mod chunk;
mod cut;
mod extract;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod known;
mod plan;
mod sink;
mod skip;
mod walk;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures::TryStreamExt;
use serde::Serialize;
use tokio::sync::mpsc;

pub use chunk::ChunkOptions;
pub use extract::RecordFields;
pub use plan::Prune;
pub use skip::{SkipReason, Skipped};

use crate::embed::TokenCounter;
use crate::error::{Error, Result};
use crate::id::EmbedderId;
use crate::memory::{MemoryLimit, RowShape, in_mib};
use crate::progress::{Cancel, Listener};
use crate::store::Store;
use chunk::Chunker;
use known::{Known, is_within, source_name};
use plan::{Change, Planner, Seen};

/// Rows in one commit: large enough that the join on the key is not felt, small enough to hold.
const ROWS_PER_COMMIT: usize = 8192;

/// Pieces of change that wait between reading and writing.
const CHANGES_WAITING: usize = 4;

/// What to ingest, and how.
#[derive(Clone, Debug, Default)]
pub struct IngestOptions {
    /// How documents are cut.
    pub chunks: ChunkOptions,
    /// Which fields of JSONL and CSV records mean what.
    pub fields: RecordFields,
    /// Whether documents whose file is gone are removed. Default: they are.
    pub prune: Prune,
}

/// What an ingest found and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IngestReport {
    /// Files that were looked at.
    pub files: u64,
    /// Documents that are new.
    pub added: u64,
    /// Documents whose text, place or cutting rules changed.
    pub changed: u64,
    /// Documents that are as they were.
    pub unchanged: u64,
    /// Documents that are gone.
    pub removed: u64,
    /// Chunks that have to be embedded.
    pub chunks_added: u64,
    /// Chunks that stay, with their vectors.
    pub chunks_kept: u64,
    /// Chunks that are gone.
    pub chunks_removed: u64,
    /// Files and records that were left out.
    pub skipped_count: u64,
    /// The first thousand of them, with the reason.
    pub skipped: Vec<Skipped>,
    /// Whether it stopped because it was asked to; running it again continues.
    pub cancelled: bool,
    /// Bytes of memory that the process was expected to take at most, beside what it holds of the chunks that it adds.
    pub expected_peak_bytes: u64,
    /// Seconds.
    pub seconds: f64,
}

impl IngestReport {
    /// Whether nothing had to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.added + self.changed + self.removed + self.chunks_added + self.chunks_removed == 0
    }
}

/// The stage, ready to run.
pub(crate) struct Ingest {
    pub(crate) store: Store,
    pub(crate) embedder_id: EmbedderId,
    pub(crate) counter: Arc<dyn TokenCounter>,
    pub(crate) memory: MemoryLimit,
    pub(crate) row: RowShape,
    pub(crate) listener: Listener,
    pub(crate) cancel: Cancel,
}

impl Ingest {
    /// Brings the documents in step with what lies at `roots`: folders or single files.
    pub(crate) async fn run(&self, roots: &[PathBuf], options: IngestOptions) -> Result<IngestReport> {
        let began = self.store.clock().now();
        let roots = canonical(roots)?;
        self.store.refresh().await?;
        let (rows_per_commit, expected_peak_bytes) = self.commit_size().await?;
        let (sender, mut receiver) = mpsc::channel::<Change>(CHANGES_WAITING);
        let planner = Planner {
            bank: self.store.root().to_owned(),
            chunker: Chunker::new(self.counter.clone(), options.chunks)?,
            fields: options.fields,
            prune: options.prune,
            known: self.known(&roots).await?,
            now: began,
            changes: sender,
            listener: self.listener.clone(),
            cancel: self.cancel.clone(),
            planned: HashSet::new(),
            seen: Seen::default(),
            pending: Change::default(),
        };
        // Reading and chunking have a thread of their own; this task writes what comes.
        let planning = tokio::task::spawn_blocking(move || planner.run(&roots));
        let mut batch = Change::default();
        while let Some(change) = receiver.recv().await {
            batch.rows.extend(change.rows);
            batch.added.extend(change.added);
            batch.refiled.extend(change.refiled);
            batch.removed.extend(change.removed);
            if batch.rows.len() + batch.removed.len() >= rows_per_commit {
                self.commit(std::mem::take(&mut batch)).await?;
            }
        }
        let seen = planning.await.map_err(|e| Error::io("read", self.store.root())(std::io::Error::other(e)))??;
        self.commit(batch).await?;
        let seconds = self.store.clock().now().since(began).as_secs_f64();
        Ok(IngestReport { expected_peak_bytes, ..report(seen, seconds) })
    }

    /// Rows of the largest commit that fits the memory, and the peak to expect with it.
    async fn commit_size(&self) -> Result<(usize, u64)> {
        let (stored, caches) = (self.store.documents.count().await?, self.store.metadata_cache_bytes());
        let rows = self.memory.commit_rows(ROWS_PER_COMMIT, self.row, stored, caches);
        let peak = self.memory.ingest_peak(rows, self.row, stored, caches);
        tracing::info!(rows, peak = in_mib(peak), "largest commit, and the memory to expect");
        Ok((rows, peak))
    }

    async fn known(&self, roots: &[PathBuf]) -> Result<Known> {
        let names: Vec<_> = roots.iter().map(|root| source_name(root, self.store.root())).collect();
        let mut known = Known::default();
        let mut keys = self.store.documents.keys().await?;
        while let Some(some) = keys.try_next().await? {
            let within = |source: &str| names.iter().any(|root| is_within(source, root));
            some.into_iter().filter(|key| within(&key.source)).for_each(|key| known.add(key));
        }
        Ok(known)
    }

    /// Writes a batch. Each line may be the last one before a crash: what is written again is the same, and a document
    /// counts as unchanged only once all of its rows are there.
    async fn commit(&self, batch: Change) -> Result<()> {
        if batch.rows.is_empty() && batch.removed.is_empty() {
            return Ok(());
        }
        let now = self.store.clock().now();
        // Vectors carry the columns that searches filter on: made anew, from the cache, before the documents say so. States
        // before vectors, so that nothing is called ready whose vector is gone.
        self.store.status.delete(&batch.refiled).await?;
        self.store.fault_point("ingest: states of what moved removed").await?;
        self.store.delete_embeddings(&batch.refiled).await?;
        self.store.fault_point("ingest: vectors of what moved removed").await?;
        self.store.documents.upsert(&batch.rows).await?;
        tracing::debug!(rows = batch.rows.len(), "documents stored");
        self.store.fault_point("ingest: documents stored").await?;
        let pending: Vec<_> = batch.added.into_iter().chain(batch.refiled).collect();
        self.store.status.insert_new(&self.embedder_id, &pending, now).await?;
        tracing::debug!(rows = pending.len(), "marked new");
        self.store.fault_point("ingest: marked new").await?;
        // Documents last: while they are there, the next run removes the rest.
        self.store.status.delete(&batch.removed).await?;
        self.store.fault_point("ingest: states removed").await?;
        self.store.delete_embeddings(&batch.removed).await?;
        self.store.fault_point("ingest: vectors removed").await?;
        self.store.documents.delete(&batch.removed).await?;
        self.store.fault_point("ingest: documents removed").await?;
        self.store.acknowledge().await
    }
}

fn canonical(roots: &[PathBuf]) -> Result<Vec<PathBuf>> {
    roots.iter().map(|root| root.canonicalize().map_err(Error::io("read", root))).collect()
}

fn report(seen: Seen, seconds: f64) -> IngestReport {
    IngestReport {
        files: seen.files,
        added: seen.added,
        changed: seen.changed,
        unchanged: seen.unchanged,
        removed: seen.removed,
        chunks_added: seen.chunks_added,
        chunks_kept: seen.chunks_kept,
        chunks_removed: seen.chunks_removed,
        skipped_count: seen.skipped_count,
        skipped: seen.skipped,
        cancelled: seen.cancelled,
        expected_peak_bytes: 0,
        seconds,
    }
}
