//! Embedding what is missing: claim → cache → embed → commit in order → ready, batch by batch, until nothing is due.
//!
//! Guarantees: the commits of a batch are ordered cache, embeddings, status, so a crash between any two only repeats work and
//! never calls the embedder again for a text whose vector reached the cache; a bad text costs itself alone; memory is one
//! batch. Must not know: files, indexes, searches.

mod batch;
mod embedding;
mod reconcile;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::embed::Embedder;
use crate::error::Result;
use crate::id::{ChunkId, ContentHash, EmbedderId};
use crate::progress::{Cancel, Listener, Progress, Stage};
use crate::store::{EmbeddingCache, Embeddings, Store, WorkerId};
use batch::BatchSize;
pub use reconcile::ReconcileReport;

/// How long a claim holds unless it is renewed: several times what the largest batch takes.
const LEASE: Duration = Duration::from_secs(300);

/// Batches between two compactions. A batch makes four small commits, and commits slow down once a table has a few hundred.
const BATCHES_PER_COMPACTION: u64 = 24;

/// What to embed.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackfillOptions {
    /// Chunks to embed at most; all that are due where absent.
    pub limit: Option<u64>,
    /// What to do with chunks that failed before.
    pub errors: RetryErrors,
}

/// What to do with chunks whose last attempt failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryErrors {
    /// Try again those whose pause is over.
    #[default]
    WhenDue,
    /// Try all of them again now.
    Now,
}

/// What a backfill did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BackfillReport {
    /// Chunks that became ready.
    pub ready: u64,
    /// Texts that the embedder was given.
    pub embedded: u64,
    /// Chunks whose vector came out of the cache, or from an equal text of the same batch.
    pub reused: u64,
    /// Chunks that failed; they are due again later.
    pub failed: u64,
    /// Texts that were longer than the model's window and were cut.
    pub truncated: u64,
    /// Tokens that the embedder was given.
    pub tokens: u64,
    /// The first few failures.
    pub failures: Vec<ChunkFailure>,
    /// What was found out of step, and mended, before the first batch.
    pub reconciled: ReconcileReport,
    /// Whether it stopped because it was asked to; running it again continues.
    pub cancelled: bool,
    /// Seconds.
    pub seconds: f64,
}

impl BackfillReport {
    /// Whether nothing had to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.ready + self.failed == 0 && self.reconciled == ReconcileReport::default()
    }
}

/// One chunk that could not be embedded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChunkFailure {
    /// The chunk.
    pub id: ChunkId,
    /// Its document's path.
    pub doc_path: String,
    /// Why.
    pub reason: String,
}

/// Failures that a report names; all of them stand in the status table.
const FAILURES_NAMED: usize = 20;

/// The stage, ready to run.
pub(crate) struct Backfill {
    pub(crate) store: Store,
    pub(crate) embedder: Arc<dyn Embedder>,
    pub(crate) embedder_id: EmbedderId,
    pub(crate) embeddings: Embeddings,
    pub(crate) cache: EmbeddingCache,
    pub(crate) listener: Listener,
    pub(crate) cancel: Cancel,
}

/// Vectors of a batch by content.
type Vectors = HashMap<ContentHash, Arc<[f32]>>;

impl Backfill {
    /// Embeds until nothing is due, the limit is reached, or it is cancelled.
    pub(crate) async fn run(&self, options: BackfillOptions) -> Result<BackfillReport> {
        let clock = self.store.clock();
        let began = clock.now();
        let worker = WorkerId::new();
        let mut report = BackfillReport { reconciled: self.reconcile().await?, ..BackfillReport::default() };
        if options.errors == RetryErrors::Now {
            self.store.status.retry_errors(&self.embedder_id, began).await?;
        }
        let due = self.store.status.count_due(&self.embedder_id, began).await?;
        let mut left = options.limit.unwrap_or(u64::MAX);
        let total = due.min(left);
        if total == 0 {
            return Ok(report);
        }
        self.listener.report(Progress::Started { stage: Stage::Backfill, total: Some(total) });
        let (mut size, mut done) = (BatchSize::default(), 0);
        for number in 1.. {
            if self.cancel.is_cancelled() {
                report.cancelled = true;
                break;
            }
            let began = std::time::Instant::now();
            let limit = size.rows().min(usize::try_from(left).unwrap_or(usize::MAX));
            let claimed = self.store.status.claim(&self.embedder_id, &worker, clock.now(), LEASE, limit).await?;
            if claimed.is_empty() {
                // Nothing due, or others have just claimed it all.
                break;
            }
            let rows = claimed.len() as u64;
            self.embed_claimed(claimed, &worker, &mut report).await?;
            size.adapt(began.elapsed());
            done += rows;
            left -= rows.min(left);
            self.listener.report(Progress::Advanced { stage: Stage::Backfill, done });
            if number % BATCHES_PER_COMPACTION == 0 {
                self.compact().await?;
            }
            if left == 0 {
                break;
            }
        }
        self.listener.report(Progress::Finished { stage: Stage::Backfill });
        report.seconds = clock.now().since(began).as_secs_f64();
        Ok(report)
    }

    /// Compacts the tables that every batch adds to, unless somebody else is in maintenance.
    async fn compact(&self) -> Result<()> {
        match self.store.maintenance_lease("compacting").await {
            Ok(lease) => {
                self.store.status.compact_if_worthwhile().await?;
                self.embeddings.compact_if_worthwhile().await?;
                self.cache.compact_if_worthwhile().await?;
                lease.release().await
            }
            Err(crate::Error::Busy { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
