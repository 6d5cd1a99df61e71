//! Compaction, clean-up of old versions, and sizes.
//!
//! Compaction must not run while an index is being built on the same table (it would lose the build), so the callers hold the
//! maintenance lease. Clean-up spares what a running reader or writer may still need: nothing younger than an hour goes.

use std::path::Path;

use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance_table::format::Fragment;
use serde::Serialize;

use super::embeddings::{EmbeddingCache, Embeddings};
use super::table::StoredTable;
use super::{ChunkStatus, Store};
use crate::error::{Error, Result};

/// Versions younger than this stay: longer than any query or build is expected to read one version.
const KEEP_VERSIONS_FOR: chrono::TimeDelta = chrono::TimeDelta::hours(1);

/// Rows of a fragment from which on it is left as it is: compacting again and again what grows by small commits would write
/// every row as often as there are commits. 65,536 vectors of 384 numbers are 100 MB.
const LARGE_FRAGMENT: usize = 65_536;

/// Small fragments of a table above which it is worth compacting in maintenance: a scan opens each of them.
const WORTH_COMPACTING: usize = 32;

/// Small fragments of a table above which it is worth compacting while chunks are embedded: a commit lists them all, and at
/// 512 that costs a few milliseconds. A fast embedder fills a million rows without it.
const SCATTERED: usize = 512;

/// Bytes and rows that a compaction reads ahead: enough for a disk, little beside what embedding takes. Lance's defaults
/// read ahead by gigabytes where rows hold vectors.
const READ_AHEAD_BYTES: u64 = 32 << 20;
const READ_AHEAD_ROWS: usize = 1024;

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
    /// Merges small fragments if there are at least so many. The caller holds the maintenance lease.
    async fn compact_from(&self, fragments: usize) -> Result<bool> {
        self.refresh().await?;
        if self.small_fragments().await? < fragments {
            return Ok(false);
        }
        let mut dataset = self.dataset().await?.as_ref().clone();
        let options = CompactionOptions {
            target_rows_per_fragment: LARGE_FRAGMENT,
            num_threads: Some(1),
            batch_size: Some(READ_AHEAD_ROWS),
            io_buffer_size: Some(READ_AHEAD_BYTES),
            ..CompactionOptions::default()
        };
        match compact_files(&mut dataset, options, None).await {
            Ok(_) => self.adopt(dataset),
            // Somebody wrote to the same fragments meanwhile; there will be another occasion.
            Err(lance::Error::RetryableCommitConflict { .. } | lance::Error::CommitConflict { .. }) => {
                return Ok(false);
            }
            Err(error) => return Err(self.error("compact", error)),
        }
        Ok(true)
    }

    /// Fragments that a compaction would merge, in the version that was last seen.
    async fn small_fragments(&self) -> Result<usize> {
        let dataset = self.dataset().await?;
        let is_small = |fragment: &&Fragment| fragment.num_rows().is_none_or(|rows| rows < LARGE_FRAGMENT);
        Ok(dataset.fragments().iter().filter(is_small).count())
    }

    async fn compact_if_worthwhile(&self) -> Result<bool> {
        self.compact_from(WORTH_COMPACTING).await
    }

    /// Removes versions that nobody can be reading any more; returns the bytes freed.
    async fn clean_up(&self) -> Result<u64> {
        let dataset = self.dataset().await?;
        let removed = dataset.cleanup_old_versions(KEEP_VERSIONS_FOR, Some(false), Some(false)).await;
        Ok(removed.map_err(|e| self.error("clean up", e))?.bytes_removed)
    }
}

impl ChunkStatus {
    /// Whether so many small fragments have come together that every commit feels it.
    pub(crate) async fn is_scattered(&self) -> Result<bool> {
        Ok(self.0.small_fragments().await? >= SCATTERED)
    }

    /// Compacts the table if [`is_scattered`](Self::is_scattered). The caller holds the maintenance lease.
    pub(crate) async fn compact_if_scattered(&self) -> Result<bool> {
        self.0.compact_from(SCATTERED).await
    }
}

impl Embeddings {
    /// Whether so many small fragments have come together that every commit feels it.
    pub(crate) async fn is_scattered(&self) -> Result<bool> {
        Ok(self.table.small_fragments().await? >= SCATTERED)
    }

    /// Compacts the table if [`is_scattered`](Self::is_scattered). The caller holds the maintenance lease.
    pub(crate) async fn compact_if_scattered(&self) -> Result<bool> {
        self.table.compact_from(SCATTERED).await
    }
}

impl EmbeddingCache {
    /// Whether so many small fragments have come together that every commit feels it.
    pub(crate) async fn is_scattered(&self) -> Result<bool> {
        Ok(self.table.small_fragments().await? >= SCATTERED)
    }

    /// Compacts the table if [`is_scattered`](Self::is_scattered). The caller holds the maintenance lease.
    pub(crate) async fn compact_if_scattered(&self) -> Result<bool> {
        self.table.compact_from(SCATTERED).await
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
