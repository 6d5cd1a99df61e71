//! The folders that vector indexes lie in: how large they are, which of them no version of the table names, and the removal
//! of those.
//!
//! Guarantees: a folder goes only if no version that can still be read names it, so no reader loses what it reads from. The
//! callers hold the maintenance lease. Must not know: states of generations, pointers.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures::TryStreamExt;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_table::format::IndexMetadata;

use super::embeddings::Embeddings;
use super::table::StoredTable;
use crate::error::Result;
use crate::id::GenerationId;

impl Embeddings {
    /// Bytes of the files of each index of the newest version, by generation.
    pub(crate) async fn index_sizes(&self) -> Result<HashMap<GenerationId, u64>> {
        let dataset = self.table.dataset().await?;
        let mut bytes = HashMap::new();
        for index in self.table.indexes(&dataset).await?.iter() {
            let files = index.files.iter().flatten().map(|file| file.size_bytes).sum::<u64>();
            *bytes.entry(GenerationId::from_stored(index.name.as_str())).or_default() += files;
        }
        Ok(bytes)
    }

    /// Removes folders of indexes that no version names and nobody has written to for so long. What a killed build left is known
    /// by its generation and need not wait ([`drop_index`](Self::drop_index)); this is for whatever else left something.
    pub(crate) async fn remove_unnamed_indexes(&self, untouched: Duration) -> Result<()> {
        self.refresh().await?;
        let dataset = self.table.dataset().await?;
        let untouched = chrono::TimeDelta::from_std(untouched).unwrap_or(chrono::TimeDelta::MAX);
        let until = chrono::Utc::now().checked_sub_signed(untouched);
        let Some(until) = until else { return Ok(()) };
        let folders = self.table.index_folders(&dataset).await?;
        for folder in self.table.unnamed_indexes(&dataset, folders).await? {
            let store = dataset.object_store(None).await.map_err(|e| self.table.error("list the indexes of", e))?;
            let path = dataset.indices_dir().join(folder.as_str());
            let files: Vec<_> = store
                .read_dir_all(&path, None)
                .try_collect()
                .await
                .map_err(|e| self.table.error("list the indexes of", e))?;
            if files.iter().all(|file| file.last_modified < until) {
                self.table.remove_index_folder(&dataset, &folder).await?;
            }
        }
        Ok(())
    }
}

impl StoredTable {
    /// Those of the folders that no version names any more, the oldest that can still be read included: a reader may be at
    /// any of them.
    pub(super) async fn unnamed_indexes(
        &self,
        newest: &Dataset,
        mut folders: BTreeSet<String>,
    ) -> Result<BTreeSet<String>> {
        let strike = |folders: &mut BTreeSet<String>, indexes: &[IndexMetadata]| {
            indexes.iter().for_each(|index| _ = folders.remove(&index.uuid.to_string()));
        };
        strike(&mut folders, &self.indexes(newest).await?);
        if folders.is_empty() {
            return Ok(folders);
        }
        // Rarely so far: each version is a file to read.
        let failed = |e| self.error("list versions of", e);
        for version in newest.version_refs().await.map_err(failed)? {
            // One that was cleaned up in between names nothing any more.
            if let Ok(older) = newest.checkout_version(version.version).await {
                strike(&mut folders, &self.indexes(&older).await?);
            }
        }
        Ok(folders)
    }

    /// Names of the folders that lie where indexes do.
    async fn index_folders(&self, dataset: &Dataset) -> Result<BTreeSet<String>> {
        let failed = |e| self.error("list the indexes of", e);
        let store = dataset.object_store(None).await.map_err(failed)?;
        Ok(store.read_dir(dataset.indices_dir()).await.map_err(failed)?.into_iter().collect())
    }

    async fn remove_index_folder(&self, dataset: &Dataset, folder: &str) -> Result<()> {
        let failed = |e| self.error("remove what is left of an index of", e);
        let store = dataset.object_store(None).await.map_err(failed)?;
        tracing::debug!(table = self.name(), folder, "no version names this index folder; it is removed");
        store.remove_dir_all(dataset.indices_dir().join(folder)).await.map_err(failed)
    }

    async fn indexes(&self, dataset: &Dataset) -> Result<std::sync::Arc<Vec<IndexMetadata>>> {
        dataset.load_indices().await.map_err(|e| self.error("read the indexes of", e))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use uuid::Uuid;

    use super::super::index_drop::segment_id;
    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::id::{ChunkId, ContentHash, DocId, EmbedderId};
    use crate::progress::{Cancel, Listener};
    use crate::store::{
        Durability, EmbeddingRow, IndexJob, IndexQuery, IndexSpec, QuerySettings, Snapshot, Store, StoreOptions,
    };

    const DIMENSION: usize = 4;

    /// A table with one vector a row, and the folder of its indexes.
    async fn filled(root: &Path) -> (Embeddings, PathBuf) {
        let options = StoreOptions { durability: Durability::ProcessCrash, ..StoreOptions::default() };
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = Store::open_or_create(root, options, clock).await.unwrap();
        let embedder = EmbedderId::from_stored("fake-00000000");
        let embeddings = store.embeddings(&embedder, DIMENSION).await.unwrap();
        let rows: Vec<_> = (0..40u8)
            .map(|n| EmbeddingRow {
                id: ChunkId::from_stored(format!("{n:032x}")),
                content_hash: ContentHash::of(&n.to_string()),
                doc_id: DocId::from_stored("d"),
                doc_path: "d".into(),
                category: String::new(),
                vector: Arc::new([1.0, f32::from(n), f32::from(n % 7), 0.5]),
            })
            .collect();
        embeddings.insert(&rows, &mut embeddings.known(), Timestamp(0)).await.unwrap();
        (embeddings, root.join(format!("embeddings__{embedder}.lance/_indices")))
    }

    fn folders(indices: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(indices) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn build(embeddings: &Embeddings, generation: &GenerationId) -> Snapshot {
        let spec = IndexSpec::Hnsw { partitions: 1, edges: 8, ef_construction: 32 };
        let (listener, cancel) = (Listener::default(), Cancel::default());
        let (sample_rate, seed) = (spec.sample_rate(), 7);
        let job = IndexJob { generation, spec: &spec, sample_rate, seed, listener: &listener, cancel: &cancel };
        let trained = embeddings.train_index(&embeddings.snapshot().await.unwrap(), &job).await.unwrap();
        embeddings.build_index(&job, trained).await.unwrap()
    }

    #[tokio::test]
    async fn a_search_finishes_on_an_index_that_was_dropped_and_cleaned_up_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let (embeddings, indices) = filled(dir.path()).await;
        let generation = GenerationId::new(1, 1);
        let reading = build(&embeddings, &generation).await;
        let built = reading.0.version().timestamp;
        embeddings.drop_index(&generation).await.unwrap();
        let dropped = embeddings.snapshot().await.unwrap().0.version().timestamp;
        assert!(built < dropped);

        // The version with the index is old, but until a moment ago it was the newest.
        embeddings.table.clean_up(built + (dropped - built) / 2).await.unwrap();
        assert_eq!(folders(&indices), [segment_id(&generation).to_string()]);
        let settings = QuerySettings { nprobes: Some(1), ef: Some(32), refine_factor: Some(5) };
        let vector = [1.0, 3.0, 3.0, 0.5];
        let query = IndexQuery { generation: &generation, vector: &vector, k: 3, settings: &settings, filter: None };
        assert_eq!(embeddings.search_index(&reading, &query).await.unwrap().len(), 3);

        embeddings.table.clean_up(dropped + chrono::TimeDelta::seconds(1)).await.unwrap();
        assert_eq!(folders(&indices), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_a_killed_build_left_goes_and_what_any_version_names_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (embeddings, indices) = filled(dir.path()).await;
        let (dropped, killed) = (GenerationId::new(1, 1), GenerationId::new(2, 2));
        build(&embeddings, &dropped).await;
        embeddings.drop_index(&dropped).await.unwrap();
        let half = indices.join(segment_id(&killed).to_string());
        std::fs::create_dir_all(&half).unwrap();
        std::fs::write(half.join("auxiliary.idx"), "half").unwrap();
        let stranger = indices.join(Uuid::nil().to_string());
        std::fs::create_dir_all(&stranger).unwrap();
        std::fs::write(stranger.join("index.idx"), "half").unwrap();

        embeddings.drop_index(&killed).await.unwrap();
        embeddings.drop_index(&dropped).await.unwrap();
        embeddings.remove_unnamed_indexes(Duration::from_secs(3600)).await.unwrap();
        let mut left = folders(&indices);
        left.sort();
        let mut want = [Uuid::nil().to_string(), segment_id(&dropped).to_string()];
        want.sort();
        assert_eq!(left, want, "of another one that is perhaps still being written; of an older version");
        embeddings.remove_unnamed_indexes(Duration::ZERO).await.unwrap();
        assert_eq!(folders(&indices), [segment_id(&dropped).to_string()]);
    }

    #[tokio::test]
    async fn the_size_of_an_index_is_that_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let (embeddings, indices) = filled(dir.path()).await;
        let generation = GenerationId::new(1, 1);
        build(&embeddings, &generation).await;
        let folder = indices.join(segment_id(&generation).to_string());
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        let bytes = embeddings.index_sizes().await.unwrap();
        assert_eq!(bytes, HashMap::from([(generation, files.sum::<u64>())]));
    }
}
