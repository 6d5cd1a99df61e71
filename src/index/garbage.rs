//! Removing generations that nothing needs any more.

use super::Indexing;
use super::generation::GenerationState;
use crate::error::Result;
use crate::id::GenerationId;
use crate::store::MaintenanceLease;

/// Retired generations that stay for a rollback.
const KEEP_RETIRED: usize = 1;

impl Indexing {
    /// Removes failed generations and all but the newest retired ones; the active one and those that are ready stay.
    /// Returns what was removed.
    ///
    /// # Errors
    /// [`Error::LeaseLost`](crate::error::Error::LeaseLost); what was removed by then was nobody's any more.
    pub(crate) async fn remove_unneeded(&self, lease: &MaintenanceLease) -> Result<Vec<GenerationId>> {
        self.fail_interrupted(lease).await?;
        let mut removed = Vec::new();
        let pointer = self.pointer().await?;
        let generations = self.list().await?;
        let in_state = |state| generations.iter().filter(move |generation| generation.state == state);
        // Newest first.
        let retired =
            in_state(GenerationState::Retired).rev().skip(KEEP_RETIRED).map(|generation| generation.id.clone());
        let given_up: Vec<_> = pointer.iter().flat_map(|pointer| pointer.removing.clone()).chain(retired).collect();
        // What can still be returned to is not removed. From here on nobody can return to it, however slowly the rest goes.
        if let Some(pointer) = pointer.as_ref().filter(|pointer| pointer.removing != given_up) {
            self.move_pointer(Some(pointer), &pointer.without(&given_up), Some(lease)).await?;
            self.store.fault_point("garbage: generations given up").await?;
        } else {
            lease.check().await?;
        }
        let failed = in_state(GenerationState::Failed).map(|generation| generation.id.clone());
        for id in failed.filter(|id| !given_up.contains(id)).chain(given_up.iter().cloned()) {
            // The index first: a record without an index would offer a rollback to nothing.
            self.embeddings.drop_index(&id).await?;
            self.store.fault_point("garbage: index dropped").await?;
            self.store.generations.remove(&id).await?;
            self.store.fault_point("garbage: generation forgotten").await?;
            removed.push(id);
        }
        let pointer = self.pointer().await?;
        if let Some(pointer) = pointer.filter(|pointer| !pointer.removing.is_empty()) {
            self.move_pointer(Some(&pointer), &pointer.without(&[]), Some(lease)).await?;
        }
        self.store.acknowledge().await?;
        Ok(removed)
    }
}
