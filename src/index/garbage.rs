//! Removing generations that nothing needs any more.

use super::Indexing;
use super::generation::GenerationState;
use crate::error::Result;
use crate::id::GenerationId;

/// Retired generations that stay for a rollback.
const KEEP_RETIRED: usize = 1;

impl Indexing {
    /// Removes failed generations and all but the newest retired ones; the active one and those that are ready stay.
    /// Returns what was removed. The caller holds the maintenance lease.
    pub(crate) async fn remove_unneeded(&self) -> Result<Vec<GenerationId>> {
        self.fail_interrupted().await?;
        let (mut removed, mut kept) = (Vec::new(), 0);
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
                self.store.fault_point("garbage: index dropped").await?;
                self.store.generations.remove(&generation.id).await?;
                self.store.fault_point("garbage: generation forgotten").await?;
                removed.push(generation.id);
            }
        }
        self.store.acknowledge().await?;
        Ok(removed)
    }
}
