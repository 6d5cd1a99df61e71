//! A look at the vector indexes of an embeddings table from outside: which there are, whether their files are, and whether
//! they hold the rows that they are taken to cover. Changes nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lance::Dataset;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::metrics::NoOpMetricsCollector;
use lance_table::format::IndexMetadata;

use super::examine::{Inspection, VectorTable};
use super::schema::VECTOR;
use super::table::StoredTable;
use crate::error::{Error, Result};
use crate::id::EmbedderId;

/// One index by name, all its segments together.
#[derive(Clone, Debug)]
pub(crate) struct IndexLook {
    /// The name: a generation's id, if it is one of ours.
    pub(crate) name: String,
    /// Files that the table names and that are not there, or have another length.
    pub(crate) missing: Vec<String>,
    /// Rows of the fragments that the index is taken to cover: a search does not look at them otherwise.
    pub(crate) covered: u64,
    /// Rows that the index holds; `None` where it cannot be opened.
    pub(crate) held: Option<u64>,
}

impl Inspection {
    /// The indexes of an embedder's vectors.
    pub(crate) async fn indexes(&self, embedder: &EmbedderId) -> Result<Vec<IndexLook>> {
        let Some(table) = self.tables.get(&VectorTable::Embeddings.name(embedder)) else { return Ok(Vec::new()) };
        let dataset = table.dataset().await?;
        let all = dataset.load_indices().await.map_err(|e| table.error("read the indexes of", e))?;
        let names: BTreeSet<_> = all.iter().map(|index| index.name.clone()).collect();
        let mut looks = Vec::new();
        for name in names {
            let segments: Vec<_> = all.iter().filter(|index| index.name == name).collect();
            looks.push(self.look_at(table, &dataset, name, &segments).await?);
        }
        Ok(looks)
    }

    async fn look_at(
        &self,
        table: &StoredTable,
        dataset: &Dataset,
        name: String,
        segments: &[&IndexMetadata],
    ) -> Result<IndexLook> {
        let mut missing = Vec::new();
        for segment in segments {
            let folder = self.index_folder(table).join(segment.uuid.to_string());
            if !folder.is_dir() {
                missing.push(segment.uuid.to_string());
            }
            for file in segment.files.iter().flatten() {
                let length = std::fs::metadata(folder.join(&file.path)).map(|data| data.len());
                if length.is_err() || length.is_ok_and(|length| length != file.size_bytes) {
                    missing.push(format!("{}/{}", segment.uuid, file.path));
                }
            }
        }
        let mut covered = 0;
        for fragment in dataset.get_fragments() {
            let number = u32::try_from(fragment.id()).unwrap_or(u32::MAX);
            if segments.iter().any(|s| s.fragment_bitmap.as_ref().is_some_and(|bitmap| bitmap.contains(number))) {
                covered += fragment.count_rows(None).await.map_err(|e| table.error("count", e))? as u64;
            }
        }
        let mut held = missing.is_empty().then_some(0);
        for segment in segments {
            let Some(sum) = held else { break };
            let opened = dataset.open_vector_index(VECTOR, &segment.uuid, &NoOpMetricsCollector).await;
            held = opened.ok().map(|index| sum + index.num_rows());
        }
        Ok(IndexLook { name, missing, covered, held })
    }

    /// Folders of indexes that no version of the table refers to: what a build left that was killed.
    pub(crate) async fn leftover_indexes(&self, embedder: &EmbedderId) -> Result<Vec<PathBuf>> {
        let Some(table) = self.tables.get(&VectorTable::Embeddings.name(embedder)) else { return Ok(Vec::new()) };
        let folder = self.index_folder(table);
        let mut unclaimed = BTreeSet::new();
        match std::fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    let entry = entry.map_err(Error::io("read", &folder))?;
                    unclaimed.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", folder)(error)),
        }
        let unclaimed = table.unnamed_indexes(&*table.dataset().await?, unclaimed).await?;
        Ok(unclaimed.into_iter().map(|name| folder.join(name)).collect())
    }

    fn index_folder(&self, table: &StoredTable) -> PathBuf {
        self.root().join(format!("{}.lance", table.name())).join("_indices")
    }
}
