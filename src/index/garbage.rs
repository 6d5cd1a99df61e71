//! Removing generations that nothing needs any more.

use serde::Serialize;

use super::Indexing;
use super::generation::GenerationState;
use crate::error::Result;
use crate::id::GenerationId;

/// Retired generations that stay for a rollback.
const KEEP_RETIRED: usize = 1;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GarbageReport {
    /// Generations whose record and index are gone.
    pub removed: Vec<GenerationId>,
    /// Bytes freed by removing old table versions.
    pub bytes_freed: u64,
}

impl Indexing {
    /// Removes failed generations and all but the newest retired ones, compacts, and cleans up old versions. The active
    /// generation and those that are ready stay.
    pub(crate) async fn collect_garbage(&self) -> Result<GarbageReport> {
        let lease = self.store.maintenance_lease("collecting garbage").await?;
        self.fail_interrupted().await?;
        let mut report = GarbageReport::default();
        let mut kept = 0;
        // Newest first.
        for generation in self.list().await?.into_iter().rev() {
            let remove = match generation.state {
                GenerationState::Failed => true,
                GenerationState::Retired => {
                    kept += 1;
                    kept > KEEP_RETIRED
                }
                _ => false,
            };
            if remove {
                // The index first: a record without an index would offer a rollback to nothing.
                self.embeddings.drop_index(&generation.id).await?;
                self.store.generations.remove(&generation.id).await?;
                report.removed.push(generation.id);
            }
        }
        report.bytes_freed = self.store.tidy().await?;
        lease.release().await?;
        Ok(report)
    }
}
