//! Putting the status table in step with what it speaks of.
//!
//! The documents are the truth about what should be embedded, the embeddings about what is. A crash of an ingest, or a table
//! that was lost, leaves status rows missing, left over, or claiming too much; each is mended here, and only looked for when
//! a cheap sign says so.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use serde::Serialize;

use super::Backfill;
use crate::error::Result;
use crate::id::ChunkId;
use crate::status::ChunkState;
use crate::store::{StatusCounts, Survey};

/// Rows in one commit of a repair.
const ROWS_PER_COMMIT: usize = 8192;

/// What was out of step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReconcileReport {
    /// Chunks that had no status under this embedder.
    pub added: u64,
    /// Status rows and vectors of chunks that are gone.
    pub orphans: u64,
    /// Chunks that were called ready and had no vector.
    pub lost: u64,
    /// Chunks with a status or a vector while there is not one document: the documents are lost. Nothing is removed then;
    /// the next ingest brings them back.
    pub undocumented: u64,
    /// Vectors that the cache had lost, and got back from the embeddings.
    pub recached: u64,
}

/// What is known of vectors and ready chunks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vectors {
    /// Nothing speaks for it that they differ.
    Uncompared,
    /// They are not of the same chunks.
    Differ,
}

impl Backfill {
    /// Mends what is out of step, and says where the chunks stand after that.
    pub(super) async fn reconcile_and_survey(&self) -> Result<(ReconcileReport, Survey)> {
        self.store.refresh().await?;
        self.embeddings.refresh().await?;
        let mut report = ReconcileReport::default();
        let now = self.store.clock().now();
        let survey = self.store.status.survey(&self.embedder_id, now).await?;
        let vectors = self.follow_documents(&survey.counts, &mut report).await?;
        self.find_lost_vectors(survey.counts.ready, vectors, &mut report).await?;
        self.refill_cache(&mut report).await?;
        if report == ReconcileReport::default() {
            return Ok((report, survey));
        }
        Ok((report, self.store.status.survey(&self.embedder_id, now).await?))
    }

    /// Has the next run compare states, vectors and documents even if the documents do not change.
    pub(super) async fn doubt(&self) -> Result<()> {
        self.store.meta.put(&self.reconciled_key(), "", self.store.clock().now()).await
    }

    /// The key in `meta` of the documents' version that the states were last compared with.
    pub(super) fn reconciled_key(&self) -> String {
        format!("reconciled/{}", self.embedder_id)
    }

    /// Gives every chunk a status and removes those of chunks that are gone; skipped while the documents have not changed
    /// since the last time, there are as many states as chunks, and no more vectors than are called ready: one too many may
    /// be that of a removed chunk, by a worker that ended just then.
    async fn follow_documents(&self, counts: &StatusCounts, report: &mut ReconcileReport) -> Result<Vectors> {
        let key = self.reconciled_key();
        let version = self.store.documents_version().await?;
        let same_version = self.store.meta.get(&key).await?.as_deref() == Some(version.as_str());
        if same_version
            && self.store.documents.count().await? == counts.total()
            && self.embeddings.count().await? <= counts.ready
        {
            return Ok(Vectors::Uncompared);
        }
        // The documents after the states: an ingest that runs now writes them the other way round, so that a state without a
        // document really has none.
        let states = self.store.status.digest(&self.embedder_id).await?;
        let vectors = self.embeddings.digest().await?;
        self.store.documents_refresh().await?;
        let version = self.store.documents_version().await?;
        if self.store.documents.digest().await? != states.all || vectors != states.ready {
            self.mend(report).await?;
        }
        if report.undocumented > 0 {
            // To be compared again.
            return Ok(Vectors::Uncompared);
        }
        self.store.meta.put(&key, &version, self.store.clock().now()).await?;
        Ok(if vectors == states.ready { Vectors::Uncompared } else { Vectors::Differ })
    }

    /// Compares chunk by chunk: after a crash, for a new embedder, with a lost table, or beside another worker.
    async fn mend(&self, report: &mut ReconcileReport) -> Result<()> {
        let now = self.store.clock().now();
        // Chunks with a vector, a status, or both; the flag says whether there is a status.
        let mut known: HashMap<ChunkId, bool> = HashMap::new();
        let mut stored = self.embeddings.ids().await?;
        while let Some(some) = stored.try_next().await? {
            known.extend(some.into_iter().map(|id| (id, false)));
        }
        let mut ids = self.store.status.ids(&self.embedder_id, None).await?;
        while let Some(some) = ids.try_next().await? {
            known.extend(some.into_iter().map(|id| (id, true)));
        }
        // After the states, as above.
        self.store.documents_refresh().await?;
        if self.store.documents.count().await? == 0 {
            // Who removes documents removes these first. So the table is lost, and all of this is what is left.
            report.undocumented = known.len() as u64;
            tracing::warn!(
                chunks = report.undocumented,
                "the documents are lost; `embank sync` with their folders brings them back"
            );
            return Ok(());
        }
        // In the order of the documents, so that claims follow it.
        let mut missing = Vec::new();
        let mut documents = self.store.documents.ids().await?;
        while let Some(some) = documents.try_next().await? {
            missing.extend(some.into_iter().filter(|id| known.remove(id) != Some(true)));
        }
        for some in missing.chunks(ROWS_PER_COMMIT) {
            report.added += self.store.status.insert_new(&self.embedder_id, some, now).await?;
        }
        // What is left in `known` has no document.
        let orphans: Vec<_> = known.into_keys().collect();
        self.store.status.delete(&orphans).await?;
        self.store.fault_point("reconcile: orphaned states removed").await?;
        self.embeddings.delete(&orphans).await?;
        report.orphans += orphans.len() as u64;
        Ok(())
    }

    /// Puts chunks that are called ready but have no vector back to `new`; looked for only where there are fewer vectors
    /// than ready chunks, or others.
    async fn find_lost_vectors(&self, ready: u64, vectors: Vectors, report: &mut ReconcileReport) -> Result<()> {
        if vectors == Vectors::Uncompared && self.embeddings.count().await? >= ready {
            return Ok(());
        }
        let mut lost: HashSet<ChunkId> = HashSet::new();
        let mut ids = self.store.status.ids(&self.embedder_id, Some(ChunkState::Ready)).await?;
        while let Some(some) = ids.try_next().await? {
            lost.extend(some);
        }
        let mut stored = self.embeddings.ids().await?;
        while let Some(some) = stored.try_next().await? {
            some.iter().for_each(|id| {
                lost.remove(id);
            });
        }
        let lost: Vec<_> = lost.into_iter().collect();
        if !lost.is_empty() {
            tracing::warn!(chunks = lost.len(), "vectors are lost; they are taken from the cache, or embedded again");
        }
        let now = self.store.clock().now();
        for some in lost.chunks(ROWS_PER_COMMIT) {
            self.store.status.reset(&self.embedder_id, some, now).await?;
        }
        report.lost += lost.len() as u64;
        Ok(())
    }

    /// Gives the cache back what it lost and the embeddings have; looked for only where it has fewer rows than it had.
    async fn refill_cache(&self, report: &mut ReconcileReport) -> Result<()> {
        self.cache.refresh().await?;
        let cached = self.cache.count().await?;
        let had = match self.settled().await? {
            Some(settled) => settled.cached,
            // Equal texts share a vector, so fewer rows than chunks need not mean anything, but may.
            None => self.embeddings.count().await?,
        };
        if cached >= had {
            return Ok(());
        }
        let mut others = self.cache.added_from_now_on().await?;
        let mut known = self.cache.known();
        self.cache.catch_up(&mut known).await?;
        let now = self.store.clock().now();
        let mut stored = self.embeddings.rows().await?;
        while let Some(rows) = stored.try_next().await? {
            let mut missing = Vec::new();
            for (_, hash, vector) in rows {
                let key = hash.to_string();
                if !known.contains(&key) {
                    known.insert(&key);
                    missing.push((hash, vector.into()));
                }
            }
            report.recached += self.cache.insert(&missing, &mut others, now).await? as u64;
        }
        if report.recached > 0 {
            tracing::warn!(vectors = report.recached, "the cache had lost vectors; it has them again");
        }
        Ok(())
    }
}
