//! Compaction, clean-up of old versions, and sizes.
//!
//! Compaction must not run while an index is being built on the same table (it would lose the build), so the callers hold the
//! maintenance lease. Clean-up spares what a running reader or writer may still need: nothing younger than an hour goes.

use std::path::Path;

use lance::dataset::optimize::{CompactionOptions, compact_files};
use serde::Serialize;

use super::embeddings::{EmbeddingCache, Embeddings};
use super::table::StoredTable;
use super::{ChunkStatus, Store};
use crate::error::{Error, Result};

/// Versions younger than this stay: longer than any query or build is expected to read one version.
const KEEP_VERSIONS_FOR: chrono::TimeDelta = chrono::TimeDelta::hours(1);

/// Fragments of a table above which it is worth compacting: small commits slow each other once there are a few dozen.
const FRAGMENTS_WORTH_COMPACTING: usize = 32;

/// A table's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// The table.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// Its versions that can still be read.
    pub versions: u64,
    /// Bytes of its folder.
    pub bytes: u64,
}

impl StoredTable {
    /// Merges small fragments if there are many. The caller holds the maintenance lease.
    async fn compact_if_worthwhile(&self) -> Result<bool> {
        self.refresh().await?;
        let mut dataset = self.dataset().await?.as_ref().clone();
        if dataset.count_fragments() < FRAGMENTS_WORTH_COMPACTING {
            return Ok(false);
        }
        let options = CompactionOptions::default();
        compact_files(&mut dataset, options, None).await.map_err(|e| self.error("compact", e))?;
        self.adopt(dataset);
        Ok(true)
    }

    /// Removes versions that nobody can be reading any more; returns the bytes freed.
    async fn clean_up(&self) -> Result<u64> {
        let dataset = self.dataset().await?;
        let removed = dataset.cleanup_old_versions(KEEP_VERSIONS_FOR, Some(false), Some(false)).await;
        Ok(removed.map_err(|e| self.error("clean up", e))?.bytes_removed)
    }
}

impl ChunkStatus {
    pub(crate) async fn compact_if_worthwhile(&self) -> Result<bool> {
        self.0.compact_if_worthwhile().await
    }
}

impl Embeddings {
    pub(crate) async fn compact_if_worthwhile(&self) -> Result<bool> {
        self.table.compact_if_worthwhile().await
    }
}

impl EmbeddingCache {
    pub(crate) async fn compact_if_worthwhile(&self) -> Result<bool> {
        self.table.compact_if_worthwhile().await
    }
}

impl Store {
    /// Compacts every table where that pays and removes old versions; returns the bytes freed. The caller holds the
    /// maintenance lease.
    pub(crate) async fn tidy(&self) -> Result<u64> {
        let mut freed = 0;
        for name in self.table_names().await? {
            let table = super::open_table(&self.connection, &name).await?;
            table.compact_if_worthwhile().await?;
            freed += table.clean_up().await?;
        }
        Ok(freed)
    }

    /// Rows, versions and bytes of every table.
    pub(crate) async fn sizes(&self) -> Result<Vec<TableSize>> {
        let mut sizes = Vec::new();
        for name in self.table_names().await? {
            let table = super::open_table(&self.connection, &name).await?;
            let dataset = table.dataset().await?;
            let versions = dataset.count_versions().await.map_err(|e| table.error("list versions of", e))?;
            let bytes = folder_bytes(&self.root().join(format!("{name}.lance")))?;
            sizes.push(TableSize { rows: table.count(None).await?, table: name, versions, bytes });
        }
        Ok(sizes)
    }
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        match entry.metadata() {
            Ok(data) if data.is_dir() => bytes += folder_bytes(&entry.path())?,
            Ok(data) => bytes += data.len(),
            // Another process has just removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", entry.path())(error)),
        }
    }
    Ok(bytes)
}
