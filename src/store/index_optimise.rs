//! Folding rows that are newer than an index into it, without training it again.
//!
//! Guarantees: only the index of the named generation is touched; its name stays, and a search that runs keeps the version
//! that it reads, with the segments of then; folding that adds no segment is an error. Must not know: recall, pointers,
//! when folding in pays.

use std::sync::Arc;

use lance::index::DatasetIndexExt;
use lance_index::optimize::OptimizeOptions;

use super::embeddings::{Embeddings, Snapshot};
use super::index_build::{BuildProgress, cancelled};
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::progress::{Cancel, Listener};

impl Embeddings {
    /// Folds every row that is newer than the generation's index into it: they become one more segment, coded by the model
    /// that the index was trained with. The caller holds the maintenance lease.
    ///
    /// # Errors
    /// [`Error::UnknownGeneration`] without such an index, [`Error::Cancelled`]; the index is then as it was.
    pub(crate) async fn optimise_index(
        &self,
        generation: &GenerationId,
        listener: &Listener,
        cancel: &Cancel,
    ) -> Result<Snapshot> {
        self.refresh().await?;
        let snapshot = self.snapshot().await?;
        let unknown = || Error::UnknownGeneration { id: generation.to_string() };
        let before = self.coverage(&snapshot, generation).await?.ok_or_else(unknown)?;
        if before.newer == 0 {
            return Ok(snapshot);
        }
        let mut dataset = snapshot.0.as_ref().clone();
        // Appended rather than merged: a merge writes every earlier code again, and builds a graph from its beginning.
        let options = OptimizeOptions::append()
            .index_names(vec![generation.to_string()])
            .progress(Arc::new(BuildProgress(listener.clone())));
        tokio::select! {
            done = dataset.optimize_indices(&options) => {
                done.map_err(|e| self.table.error("fold newer rows into an index of", e))?;
            }
            () = cancelled(cancel) => return Err(Error::Cancelled),
        }
        self.table.adopt(dataset);
        let snapshot = self.snapshot().await?;
        let after = self.coverage(&snapshot, generation).await?.ok_or_else(unknown)?;
        if after.segments <= before.segments {
            return Err(self.table.error("fold newer rows into an index of", "no segment was added"));
        }
        Ok(snapshot)
    }
}
