//! The last stage: commits what was embedded, batch by batch in the order of the claims, and keeps their leases running.
//!
//! Guarantees: the commits of a batch are ordered cache, embeddings, status; answers are in the cache before anything waits
//! for more of them, so a kill repeats at most the calls that are on their way.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::embedding::{Answer, TextFailure};
use super::reader::Passages;
use super::{Backfill, BackfillReport, ChunkFailure, FAILURES_NAMED, Shared};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::ContentHash;
use crate::progress::{Progress, Stage};
use crate::store::{Claim, EmbeddingRow, KnownKeys, Outcome, Passage, StatusRow};

/// Vectors of one commit to the cache at most, in numbers: 8 MiB. Only a fast embedder has more than one call answered by
/// the time the last commit is through.
const CACHED_AT_ONCE: usize = (8 << 20) / size_of::<f32>();

/// Leases are looked at so many times before they run out, while the embedder is silent.
const LOOKS_AT_A_LEASE: u32 = 10;

/// Vectors of a batch by content.
type Vectors = HashMap<ContentHash, Arc<[f32]>>;

/// A batch as the reader hands it on.
pub(super) struct Claimed {
    pub(super) number: u64,
    pub(super) claim: Claim,
    /// When its lease began.
    pub(super) claimed_at: Timestamp,
    pub(super) passages: Passages,
    /// Texts whose vector will be in the cache once the batches before this one are written.
    pub(super) looked_up: Vec<ContentHash>,
    /// How many texts the embedder will answer for.
    pub(super) texts: usize,
}

/// A batch that waits for its answers.
struct Open {
    batch: Claimed,
    awaited: usize,
    renewed_at: Timestamp,
    vectors: Vectors,
    failures: HashMap<ContentHash, TextFailure>,
}

/// What has been written so far, over all rounds of one run.
pub(super) struct Written {
    pub(super) report: BackfillReport,
    /// Chunks whose claims have ended.
    pub(super) done: u64,
    known: KnownKeys,
    /// Texts that came into the cache since this run began.
    cached: KnownKeys,
}

impl Written {
    pub(super) async fn new(backfill: &Backfill, report: BackfillReport) -> Result<Self> {
        let cached = backfill.cache.added_from_now_on().await?;
        Ok(Self { report, done: 0, known: backfill.embeddings.known(), cached })
    }
}

/// Writes what comes.
pub(super) struct Writer {
    pub(super) backfill: Backfill,
    pub(super) shared: Arc<Shared>,
    pub(super) claims: mpsc::Receiver<Claimed>,
    pub(super) answers: mpsc::Receiver<Answer>,
    pub(super) written: Written,
}

impl Writer {
    /// Writes until both other stages have ended.
    pub(super) async fn run(mut self) -> Result<Written> {
        let mut open: VecDeque<Open> = VecDeque::new();
        let mut looks = tokio::time::interval(self.shared.claimant.lease / LOOKS_AT_A_LEASE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut committed_at = Instant::now();
        let (mut is_reading, mut is_calling) = (true, true);
        while is_reading || is_calling {
            tokio::select! {
                // A batch is announced before its first answer, and must be known by then.
                biased;
                claimed = self.claims.recv(), if is_reading => match claimed {
                    Some(claimed) => Self::open(&mut open, claimed),
                    None => is_reading = false,
                },
                answer = self.answers.recv(), if is_calling => match answer {
                    Some(answer) => self.gather(&mut open, answer).await?,
                    None => is_calling = false,
                },
                _ = looks.tick() => {}
            }
            self.renew(&mut open).await?;
            while let Some(first) = open.pop_front_if(|batch| batch.awaited == 0) {
                let rows = first.batch.claim.len();
                self.commit(first).await?;
                self.shared.batch.adapt(rows, committed_at.elapsed());
                committed_at = Instant::now();
                self.backfill.compact_if_worthwhile().await?;
                // Those behind it have waited for all of that.
                self.renew(&mut open).await?;
            }
        }
        // Left over where the other stages failed: given back.
        for batch in open {
            self.commit(batch).await?;
        }
        Ok(self.written)
    }

    fn open(open: &mut VecDeque<Open>, batch: Claimed) {
        open.push_back(Open {
            awaited: batch.texts,
            renewed_at: batch.claimed_at,
            vectors: Vectors::with_capacity(batch.passages.len()),
            failures: HashMap::new(),
            batch,
        });
    }

    /// Takes an answer, and all that have come in the meantime, to the cache in one commit.
    async fn gather(&mut self, open: &mut VecDeque<Open>, answer: Answer) -> Result<()> {
        let most = CACHED_AT_ONCE / self.backfill.cache.dimension().max(1);
        let (mut fresh, mut next) = (Vec::new(), Some(answer));
        while let Some(Answer { number, answers }) = next.take() {
            while let Ok(claimed) = self.claims.try_recv() {
                Self::open(open, claimed);
            }
            let report = &mut self.written.report;
            if let Some(batch) = open.iter_mut().find(|batch| batch.batch.number == number) {
                for (hash, answer) in answers {
                    batch.awaited = batch.awaited.saturating_sub(1);
                    let Some(answer) = answer else { continue };
                    report.embedded += 1;
                    match answer {
                        Ok(embedded) => {
                            report.tokens += u64::from(embedded.tokens);
                            report.truncated += u64::from(embedded.truncated);
                            let vector = Arc::<[f32]>::from(embedded.vector);
                            fresh.push((hash, vector.clone()));
                            batch.vectors.insert(hash, vector);
                        }
                        Err(failure) => {
                            batch.failures.insert(hash, failure);
                        }
                    }
                }
            }
            if fresh.len() < most {
                next = self.answers.try_recv().ok();
            }
        }
        // The cache first: from here on no crash makes the embedder see these texts again.
        let now = self.backfill.store.clock().now();
        let added = self.backfill.cache.insert(&fresh, &mut self.written.cached, now).await?;
        tracing::debug!(texts = added, dropped = fresh.len() - added, "cached");
        self.backfill.store.fault_point("backfill: cached").await
    }

    /// Extends leases that have run for a third of their time: two more attempts fit into the rest.
    async fn renew(&self, open: &mut VecDeque<Open>) -> Result<()> {
        let (now, lease) = (self.backfill.store.clock().now(), self.shared.claimant.lease);
        for batch in open.iter_mut().filter(|batch| now.since(batch.renewed_at) > lease / 3) {
            self.backfill.store.status.renew(&self.shared.claimant, &mut batch.batch.claim, now).await?;
            batch.renewed_at = now;
            tracing::debug!(rows = batch.batch.claim.len(), "renewed");
        }
        Ok(())
    }

    async fn commit(&mut self, open: Open) -> Result<()> {
        let Open { batch: Claimed { mut claim, passages, looked_up, .. }, mut vectors, failures, .. } = open;
        let store = &self.backfill.store;
        let claimed = claim.len();
        let embedded = vectors.len() as u64;
        self.shared.forget(failures.keys());
        if !looked_up.is_empty() {
            self.backfill.cache.refresh().await?;
            vectors.extend(self.backfill.cache.get(&looked_up).await?);
            // Such a text failed in the batch that was to embed it; the next claim has it embedded.
            self.shared.forget(looked_up.iter().filter(|hash| !vectors.contains_key(hash)));
        }
        // What was taken over meanwhile is the new owner's to store; what was removed, or filed elsewhere, has no vector.
        store.status.forget_lost(&self.shared.claimant, &mut claim).await?;
        let now = store.clock().now();
        let rows: Vec<_> =
            claim.rows.iter().filter_map(|row| embedding_row(passages.get(&row.id)?, &vectors)).collect();
        self.backfill.embeddings.insert(&rows, &mut self.written.known, now).await?;
        tracing::debug!(rows = rows.len(), "vectors stored");
        store.fault_point("backfill: vectors stored").await?;
        // Status last: a crash before this line only repeats work.
        let outcome = |row: &StatusRow| outcome(row, passages.get(&row.id), &vectors, &failures);
        let finished = store.status.finish(&self.shared.claimant, &claim, outcome, now).await?;
        if finished < claim.len() as u64 {
            // Somebody removed or took over some of it since it was looked at above.
            self.backfill.doubt().await?;
        }
        store.fault_point("backfill: marked ready").await?;
        store.acknowledge().await?;
        tracing::debug!(finished, "batch committed");

        let Written { report, done, .. } = &mut self.written;
        report.ready += rows.len() as u64;
        report.reused += (rows.len() as u64).saturating_sub(embedded);
        for passage in claim.rows.iter().filter_map(|row| passages.get(&row.id)) {
            let Some(failure) = failures.get(&passage.content_hash) else { continue };
            report.failed += 1;
            if report.failures.len() < FAILURES_NAMED {
                report.failures.push(ChunkFailure {
                    id: passage.id.clone(),
                    doc_path: passage.doc_path.clone(),
                    reason: failure.message.clone(),
                });
            }
        }
        *done += claimed as u64;
        self.backfill.listener.report(Progress::Advanced { stage: Stage::Backfill, done: *done });
        Ok(())
    }
}

fn embedding_row(passage: &Passage, vectors: &Vectors) -> Option<EmbeddingRow> {
    Some(EmbeddingRow {
        id: passage.id.clone(),
        content_hash: passage.content_hash,
        doc_id: passage.doc_id.clone(),
        doc_path: passage.doc_path.clone(),
        category: passage.category.clone(),
        vector: vectors.get(&passage.content_hash)?.clone(),
    })
}

fn outcome(
    row: &StatusRow,
    passage: Option<&Passage>,
    vectors: &Vectors,
    failures: &HashMap<ContentHash, TextFailure>,
) -> Outcome {
    let Some(passage) = passage else { return Outcome::Gone };
    if vectors.contains_key(&passage.content_hash) {
        return Outcome::Stored;
    }
    match failures.get(&passage.content_hash) {
        Some(failure) => Outcome::Failed { kind: failure.cause.kind(row.attempts), message: failure.message.clone() },
        None => Outcome::Released,
    }
}
