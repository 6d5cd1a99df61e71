//! Compaction, clean-up of old versions, and sizes.
//!
//! Compaction must not run while an index is being built on the same table (it would lose the build), so the callers hold the
//! maintenance lease. Clean-up spares what a running reader or writer may still need: a version that was the newest one more
//! recently than the caller says.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lance::Dataset;
use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance_table::format::Fragment;
use serde::Serialize;

use super::embeddings::{EmbeddingCache, Embeddings};
use super::table::StoredTable;
use super::{ChunkStatus, Store};
use crate::error::{Error, Result};

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
    /// Pieces that its newest version consists of; a scan opens each.
    pub fragments: u64,
    /// Bytes of its folder.
    pub bytes: u64,
}

/// What a clean-up removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CleanedUp {
    pub(crate) versions: u64,
    pub(crate) bytes: u64,
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

    /// Removes versions that were followed by a newer one before `moment`, and with them the files that no other names.
    ///
    /// What counts is not when a version was made but how long it was the newest: a reader that began just before it was
    /// replaced reads it, however old it is. So the newest one of those made before the moment stays.
    pub(super) async fn clean_up(&self, moment: DateTime<Utc>) -> Result<CleanedUp> {
        self.refresh().await?;
        let dataset = self.dataset().await?;
        let Some(current_then) = self.newest_before(&dataset, moment).await? else { return Ok(CleanedUp::default()) };
        // Files of no version may be those of a commit that is under way: they stay until they are a week old.
        let policy = CleanupPolicy {
            before_version: Some(current_then),
            error_if_tagged_old_versions: false,
            ..CleanupPolicy::default()
        };
        let removed = dataset.cleanup_with_policy(policy).await.map_err(|e| self.error("clean up", e))?;
        Ok(CleanedUp { versions: removed.old_versions, bytes: removed.bytes_removed })
    }

    /// The newest version that was made before the moment, by bisection: each look reads a file.
    async fn newest_before(&self, dataset: &Dataset, moment: DateTime<Utc>) -> Result<Option<u64>> {
        let failed = |e| self.error("list versions of", e);
        let versions = dataset.version_refs().await.map_err(failed)?;
        let (mut older, mut newer) = (0, versions.len());
        while let Some(looked_at) = versions.get(older..newer).and_then(|rest| rest.get(rest.len() / 2)) {
            let middle = older + (newer - older) / 2;
            let made = dataset.checkout_version(looked_at.version).await.map_err(failed)?.version().timestamp;
            if made < moment { older = middle + 1 } else { newer = middle }
        }
        Ok(older.checked_sub(1).and_then(|at| versions.get(at)).map(|version| version.version))
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
    /// Whether a table consists of so many small fragments that merging them pays.
    pub(crate) async fn is_in_pieces(&self) -> Result<bool> {
        for name in self.table_names().await? {
            let table = super::open_table(&self.connection, &name).await?;
            if table.small_fragments().await? >= WORTH_COMPACTING {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Merges a table's small fragments where that pays; whether it did. The caller holds the maintenance lease.
    pub(crate) async fn compact(&self, name: &str) -> Result<bool> {
        super::open_table(&self.connection, name).await?.compact_from(WORTH_COMPACTING).await
    }

    /// Removes a table's versions that were replaced longer ago than `keep`. The caller holds the maintenance lease.
    pub(crate) async fn clean_up(&self, name: &str, keep: Duration) -> Result<CleanedUp> {
        let keep = chrono::TimeDelta::from_std(keep).unwrap_or(chrono::TimeDelta::MAX);
        let moment = Utc::now().checked_sub_signed(keep).unwrap_or(DateTime::<Utc>::MIN_UTC);
        // The files of old versions go at once: what replaced them must be on the medium by then.
        self.acknowledge().await?;
        super::open_table(&self.connection, name).await?.clean_up(moment).await
    }

    /// Rows, versions, fragments and bytes of every table.
    pub(crate) async fn sizes(&self) -> Result<Vec<TableSize>> {
        let mut sizes = Vec::new();
        for name in self.table_names().await? {
            let table = super::open_table(&self.connection, &name).await?;
            let dataset = table.dataset().await?;
            let versions = dataset.count_versions().await.map_err(|e| table.error("list versions of", e))?;
            let bytes = folder_bytes(&self.root().join(format!("{name}.lance")))?;
            let fragments = dataset.fragments().len() as u64;
            sizes.push(TableSize { rows: table.count(None).await?, table: name, versions, fragments, bytes });
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
