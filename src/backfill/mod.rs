//! Embedding what is missing: claim → cache → embed → commit in order → ready, batch by batch, until nothing is due.
//!
//! Three stages work at once over bounded channels: the reader claims and reads the next batch, the caller keeps the embedder
//! busy, the writer commits. Guarantees: the commits of a batch are ordered cache, embeddings, status, so a crash between
//! any two only repeats work and never calls the embedder again for a text whose vector reached the cache; a bad text costs
//! itself alone; memory is a few batches, and 4 bytes for each text and chunk that is stored already. Must not know: files,
//! indexes, searches.

mod batch;
mod bisection;
mod embedding;
mod estimate;
mod reader;
mod reconcile;
mod settled;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::embed::Embedder;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentHash, EmbedderId};
use crate::memory::{MemoryLimit, RowShape, in_mib};
use crate::progress::{Cancel, Listener, Progress, Stage};
use crate::store::{Claimant, EmbeddingCache, Embeddings, FailedChunks, Position, RetryReport, Store, WorkerId};
use batch::Size;
use embedding::Caller;
use reader::{Knowledge, Reader};
pub use reconcile::ReconcileReport;
use writer::{Writer, Written};

/// How long a claim holds where nobody says otherwise: several times what the largest batch takes.
const LEASE: Duration = Duration::from_secs(300);

/// Claims below this would run out between two looks at them, or while a commit waits for the disk.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// Batches that are claimed and read, and wait for the embedder: one, so that it need not wait for them.
const BATCHES_AHEAD: usize = 1;

/// Answers that wait for the writer. With those on their way they bound what a kill repeats.
const ANSWERS_WAITING: usize = 2;

/// What to embed.
#[derive(Clone, Copy, Debug)]
pub struct BackfillOptions {
    /// Chunks to embed at most; all that are due where absent.
    pub limit: Option<u64>,
    /// What to do with chunks that failed before.
    pub errors: RetryErrors,
    /// How long claimed chunks are kept from other workers unless the claim is renewed, which happens every third of it.
    /// Default 300 s, at least 1 s. It is waited for only where a worker is stopped, or ran on another machine: one that is
    /// known to have ended loses its claims at once.
    pub lease: Duration,
}

impl Default for BackfillOptions {
    fn default() -> Self {
        Self { limit: None, errors: RetryErrors::default(), lease: LEASE }
    }
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
    /// Chunks that failed: due again after a pause, or parked until somebody asks for them ([`Bank::retry`](crate::Bank::retry)).
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
    /// Bytes of memory that the process was expected to take at most; 0 where nothing was to do. As with all of it, pages of
    /// the program file are counted.
    pub expected_peak_bytes: u64,
    /// Seconds.
    pub seconds: f64,
}

impl BackfillReport {
    /// Takes the numbers of a later run of the same job in.
    pub(crate) fn add(&mut self, later: Self) {
        self.ready += later.ready;
        self.embedded += later.embedded;
        self.reused += later.reused;
        self.failed += later.failed;
        self.truncated += later.truncated;
        self.tokens += later.tokens;
        self.failures.extend(later.failures);
        self.failures.truncate(FAILURES_NAMED);
        self.reconciled.added += later.reconciled.added;
        self.reconciled.orphans += later.reconciled.orphans;
        self.reconciled.lost += later.reconciled.lost;
        self.reconciled.undocumented += later.reconciled.undocumented;
        self.reconciled.recached += later.reconciled.recached;
        self.cancelled |= later.cancelled;
        self.expected_peak_bytes = self.expected_peak_bytes.max(later.expected_peak_bytes);
        self.seconds += later.seconds;
    }

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

/// The stage, ready to run; clones are the same stage.
#[derive(Clone)]
pub(crate) struct Backfill {
    pub(crate) store: Store,
    pub(crate) embedder: Arc<dyn Embedder>,
    pub(crate) embedder_id: EmbedderId,
    pub(crate) embeddings: Embeddings,
    pub(crate) cache: EmbeddingCache,
    pub(crate) memory: MemoryLimit,
    pub(crate) row: RowShape,
    pub(crate) listener: Listener,
    pub(crate) cancel: Cancel,
}

/// What the stages of one run share.
struct Shared {
    claimant: Claimant,
    batch: Size,
    call: Size,
    /// Set once the embedder cannot work at all: what is claimed from then on would be given back at once.
    is_failing: AtomicBool,
    /// Texts that were taken to be in the cache soon, and will not be.
    forgotten: Mutex<Vec<String>>,
}

impl Shared {
    fn fail(&self) {
        self.is_failing.store(true, Ordering::Relaxed);
    }

    fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    fn forget<'a>(&self, texts: impl Iterator<Item = &'a ContentHash>) {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        forgotten.extend(texts.map(ToString::to_string));
    }

    fn take_forgotten(&self) -> Vec<String> {
        std::mem::take(&mut *self.forgotten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Backfill {
    /// Embeds until nothing is due, the limit is reached, or it is cancelled.
    pub(crate) fn run(&self, options: BackfillOptions) -> BoxFuture<'_, Result<BackfillReport>> {
        Box::pin(self.run_rounds(options))
    }

    async fn run_rounds(&self, options: BackfillOptions) -> Result<BackfillReport> {
        if options.lease < SHORTEST_LEASE {
            let reason = format!("{:?} is too short; give at least {SHORTEST_LEASE:?}", options.lease);
            return Err(Error::InvalidSetting { setting: "lease", reason });
        }
        let clock = self.store.clock();
        let began = clock.now();
        if options.errors == RetryErrors::WhenDue && self.is_settled(began).await? {
            tracing::trace!("nothing to do by the last run's word");
            return Ok(BackfillReport::default());
        }
        let (reconciled, mut survey) = self.reconcile_and_survey().await?;
        let report = BackfillReport { reconciled, ..BackfillReport::default() };
        if options.errors == RetryErrors::Now && self.retry(&FailedChunks::default()).await?.queued > 0 {
            survey = self.store.status.survey(&self.embedder_id, began).await?;
        }
        let mut left = options.limit.unwrap_or(u64::MAX);
        let total = survey.due.min(left);
        if total == 0 {
            self.settle(&survey, began).await?;
            return Ok(report);
        }
        self.listener.report(Progress::Started { stage: Stage::Backfill, total: Some(total) });
        let (batch, expected_peak_bytes) = self.batch_size().await?;
        let report = BackfillReport { expected_peak_bytes, ..report };
        let shared = Arc::new(Shared {
            claimant: Claimant { embedder: self.embedder_id.clone(), worker: WorkerId::new(), lease: options.lease },
            batch,
            call: Size::of_call(self.embedder.texts_per_call()),
            is_failing: AtomicBool::new(false),
            forgotten: Mutex::default(),
        });
        let mut knowledge = Knowledge::new(self);
        let mut written = Written::new(self, report).await?;
        // More rounds than one where something became due behind the position: a failure whose pause is over, documents of
        // an ingest that runs beside, a lease that ran out.
        while survey.due > 0 && left > 0 && !self.cancel.is_cancelled() {
            let position = Position::start(std::mem::take(&mut survey.dead_owners));
            let round = self.round(&shared, knowledge, written, position, left).await?;
            let claimed = round.0;
            (knowledge, written) = (round.1, round.2);
            left -= claimed.min(left);
            survey = self.store.status.survey(&self.embedder_id, clock.now()).await?;
            if claimed == 0 {
                // Others have just claimed it all.
                break;
            }
        }
        self.settle(&survey, clock.now()).await?;
        self.listener.report(Progress::Finished { stage: Stage::Backfill });
        let seconds = clock.now().since(began).as_secs_f64();
        Ok(BackfillReport { cancelled: self.cancel.is_cancelled() && survey.due > 0, seconds, ..written.report })
    }

    /// Batches that fit the memory, and the peak to expect with them.
    async fn batch_size(&self) -> Result<(Size, u64)> {
        let stored = self.store.documents.count().await?;
        let caches = self.store.metadata_cache_bytes();
        let at_most = self.memory.batch_rows(usize::MAX, self.row, stored, caches);
        let size = Size::of_batch(self.embeddings.dimension(), at_most);
        let peak = self.memory.backfill_peak(size.largest(), self.row, stored, caches);
        tracing::info!(rows = size.largest(), peak = in_mib(peak), "largest batch, and the memory to expect");
        Ok((size, peak))
    }

    /// Claims and embeds what is due after the position. Returns how many chunks were claimed.
    async fn round(
        &self,
        shared: &Arc<Shared>,
        knowledge: Knowledge,
        written: Written,
        position: Position,
        limit: u64,
    ) -> Result<(u64, Knowledge, Written)> {
        let (claims, claims_received) = mpsc::channel(BATCHES_AHEAD);
        let (texts, texts_received) = mpsc::channel(BATCHES_AHEAD);
        let (answers, answers_received) = mpsc::channel(ANSWERS_WAITING);
        let (backfill, shared) = (self.clone(), shared.clone());
        // Sets, because they end their task when this future is dropped.
        let (mut reading, mut calling, mut writing) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        calling
            .spawn(Caller { backfill: backfill.clone(), shared: shared.clone(), texts: texts_received, answers }.run());
        writing.spawn(
            Writer {
                backfill: backfill.clone(),
                shared: shared.clone(),
                claims: claims_received,
                answers: answers_received,
                written,
            }
            .run(),
        );
        reading.spawn(Reader { backfill, shared, claims, texts }.run(knowledge, position, limit));
        let read = self.joined(&mut reading).await;
        let called = self.joined(&mut calling).await;
        let written = self.joined(&mut writing).await;
        // The writer's error is the reason why the others stopped; the embedder's, why there is less to write.
        let written = written?;
        called?;
        let (claimed, knowledge) = read?;
        Ok((claimed, knowledge, written))
    }

    /// Puts failed chunks back in the queue.
    pub(crate) async fn retry(&self, which: &FailedChunks) -> Result<RetryReport> {
        self.store.status.retry(&self.embedder_id, which, self.store.clock().now()).await
    }

    async fn joined<T: 'static>(&self, tasks: &mut JoinSet<Result<T>>) -> Result<T> {
        let reason = match tasks.join_next().await {
            Some(Ok(result)) => return result,
            Some(Err(panicked)) => std::io::Error::other(panicked),
            None => std::io::Error::other("a stage ended without a result"),
        };
        Err(Error::io("embed into", self.store.root())(reason))
    }

    /// Compacts the tables that every batch adds to if there are very many fragments, unless somebody else is in
    /// maintenance.
    async fn compact_if_worthwhile(&self) -> Result<()> {
        if !self.store.status.is_scattered().await?
            && !self.embeddings.is_scattered().await?
            && !self.cache.is_scattered().await?
        {
            return Ok(());
        }
        match self.store.maintenance_lease("compacting").await {
            Ok(lease) => {
                self.store.status.compact_if_scattered().await?;
                self.embeddings.compact_if_scattered().await?;
                self.cache.compact_if_scattered().await?;
                lease.release().await
            }
            Err(Error::Busy { .. } | Error::LeaseLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
