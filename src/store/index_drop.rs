//! Removing a generation's index, and the files of one that was never finished.
//!
//! Guarantees: what some version of the table refers to is taken out of the newest version alone, because a reader may still
//! be at an older one; its files go with the old versions. What no version refers to is removed at once. So a build that was
//! cancelled or killed leaves no files behind. Must not know: states, pointers.

use lance::index::DatasetIndexExt;
use uuid::Uuid;

use super::embeddings::Embeddings;
use crate::error::Result;
use crate::id::GenerationId;

/// The folder of a generation's index below `_indices`, which follows from its id: so it is found again although nothing was
/// committed. What is added to an index later has other folders.
pub(super) fn segment_id(generation: &GenerationId) -> Uuid {
    let hash = blake3::derive_key("embank index generation", generation.as_str().as_bytes());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(hash).for_each(|(byte, hashed)| *byte = hashed);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

impl Embeddings {
    /// Removes the generation's index; nothing happens if there is none.
    pub(crate) async fn drop_index(&self, generation: &GenerationId) -> Result<()> {
        self.refresh().await?;
        let mut dataset = self.snapshot().await?.0.as_ref().clone();
        let failed = |e| self.table.error("drop an index of", e);
        if dataset.load_indices_by_name(generation.as_str()).await.map_err(failed)?.is_empty() {
            return self.remove_unfinished(generation).await;
        }
        dataset.drop_index(generation.as_str()).await.map_err(failed)?;
        self.table.adopt(dataset);
        Ok(())
    }

    /// Removes the files of an index that no version of the table refers to.
    async fn remove_unfinished(&self, generation: &GenerationId) -> Result<()> {
        let dataset = self.snapshot().await?.0;
        let failed = |e| self.table.error("remove an unfinished index of", e);
        let store = dataset.object_store(None).await.map_err(failed)?;
        let uuid = segment_id(generation);
        let folder = dataset.indices_dir().join(uuid.to_string());
        let is_empty = store.read_dir(folder.clone()).await.is_ok_and(|files| files.is_empty());
        let versions = if is_empty { Vec::new() } else { dataset.versions().await.map_err(failed)? };
        for version in versions {
            // One that was cleaned up in between refers to nothing any more.
            if let Ok(older) = dataset.checkout_version(version.version).await
                && older.load_indices().await.map_err(failed)?.iter().any(|index| index.uuid == uuid)
            {
                return Ok(());
            }
        }
        match store.remove_dir_all(folder).await {
            Err(lance::Error::NotFound { .. }) => Ok(()),
            removed => removed.map_err(failed),
        }
    }
}
