//! Folding the rows that are newer than the active index into it, and the record that is kept of it.
//!
//! Guarantees: it happens under the maintenance lease; which generation is active does not change, nor what it is searched
//! with. A crash leaves the index as it was or with the rows in it; the record may then miss one entry, which costs nothing:
//! what is covered is read off the index itself. Must not know: when this pays.

use serde::{Deserialize, Serialize};

use super::Indexing;
use super::generation::keep_last;
use crate::error::{Error, Result};
use crate::id::GenerationId;

/// Foldings that a record remembers. The policy allows five before a build.
const REMEMBERED: usize = 32;

/// One time that newer rows were folded into an index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimisation {
    /// When, RFC 3339.
    pub at: String,
    /// Rows that were folded in.
    pub rows: u64,
    /// Parts of the index beside the one that was built, this one included.
    pub deltas: u64,
    /// Version of the embeddings table that has it.
    pub dataset_version: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// What folding newer rows into the active index did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptimiseReport {
    /// The active generation.
    pub generation: GenerationId,
    /// What was done; `None` where no row was newer, and for a flat generation.
    pub done: Option<Optimisation>,
}

impl Indexing {
    /// Folds the rows that are newer than the active index into it.
    ///
    /// # Errors
    /// [`Error::NoActiveGeneration`], [`Error::Busy`], [`Error::Cancelled`].
    pub(crate) async fn optimise(&self) -> Result<OptimiseReport> {
        let lease = self.store.maintenance_lease("folding rows into the index").await?;
        let Some(active) = self.active().await? else {
            lease.release().await?;
            return Err(Error::NoActiveGeneration { embedder: self.embedder_id.to_string() });
        };
        let done = if active.spec.is_none() { None } else { self.fold(&active.id).await? };
        lease.release().await?;
        Ok(OptimiseReport { generation: active.id, done })
    }

    async fn fold(&self, id: &GenerationId) -> Result<Option<Optimisation>> {
        self.embeddings.refresh().await?;
        let newer_in =
            async |snapshot| Ok(self.embeddings.coverage(snapshot, id).await?.map_or(0, |found| found.newer));
        let rows = newer_in(&self.embeddings.snapshot().await?).await?;
        if rows == 0 {
            return Ok(None);
        }
        let began = self.store.clock().now();
        self.store.fault_point("optimise: begun").await?;
        let snapshot = self.embeddings.optimise_index(id, &self.listener, &self.cancel).await?;
        self.store.fault_point("optimise: rows folded in").await?;
        let coverage = self.embeddings.coverage(&snapshot, id).await?;
        let ended = self.store.clock().now();
        let done = Optimisation {
            at: ended.to_rfc3339(),
            rows,
            deltas: coverage.map_or(0, |found| found.segments.saturating_sub(1)),
            dataset_version: snapshot.version(),
            seconds: ended.since(began).as_secs_f64(),
        };
        self.amend(id, |record| {
            record.rows_folded += rows;
            keep_last(&mut record.optimisations, done.clone(), REMEMBERED);
        })
        .await?;
        self.store.fault_point("optimise: recorded").await?;
        self.store.acknowledge().await?;
        tracing::info!(%id, rows, deltas = done.deltas, "newer rows folded into the index");
        Ok(Some(done))
    }
}
