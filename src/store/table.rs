//! One Lance table: append, insert what is missing, conditional update, delete, scan. Typed rows are made of this in the
//! sibling modules.
//!
//! Guarantees: every write is one commit; a conflict with another writer is retried by re-evaluating the whole operation,
//! so a condition never speaks of an older version. Must not know what the columns mean.

use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::{DeleteBuilder, MergeInsertBuilder, WhenMatched, WhenNotMatched, WriteMode, WriteParams};
use lance_file::version::LanceFileVersion;
use lance_table::format::Fragment;

use super::attempts::Attempts;
use super::filter::Filter;
use crate::error::{Error, Result};

/// A handle on one table; cheap to clone, clones share the version that they see.
#[derive(Clone, Debug)]
pub(crate) struct StoredTable {
    name: Arc<str>,
    table: lancedb::Table,
}

/// What a scan reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    /// Columns, in this order; empty for none (row ids alone).
    pub(crate) columns: Vec<&'static str>,
    pub(crate) filter: Option<Filter>,
    pub(crate) limit: Option<usize>,
    /// Adds the stable row id as the column `_rowid`.
    pub(crate) row_ids: bool,
    /// Adds the row's address as the column `_rowaddr`: where it lies until it is changed or compacted.
    pub(crate) addresses: bool,
    /// Reads these fragments alone, in this order; all of them where absent.
    pub(crate) fragments: Option<Vec<Fragment>>,
    /// Rows in one batch at most; Lance's own default (8,192) where absent.
    pub(crate) batch_rows: Option<usize>,
}

impl Scan {
    pub(crate) fn columns(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), ..Self::default() }
    }

    pub(crate) fn filter(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    pub(crate) fn batch_rows(self, rows: usize) -> Self {
        Self { batch_rows: Some(rows), ..self }
    }
}

impl StoredTable {
    pub(super) fn new(name: &str, table: lancedb::Table) -> Self {
        Self { name: name.into(), table }
    }

    /// How tables are created: stable row ids, so that compaction leaves the indexes valid; no clean-up behind our back.
    pub(super) fn write_params() -> WriteParams {
        WriteParams {
            enable_stable_row_ids: true,
            skip_auto_cleanup: true,
            data_storage_version: Some(LanceFileVersion::Stable),
            ..WriteParams::default()
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes other processes' commits visible.
    pub(crate) async fn refresh(&self) -> Result<()> {
        match self.table.dataset() {
            Some(dataset) => dataset.reload().await.map_err(|e| self.error("refresh", e)),
            None => Ok(()),
        }
    }

    /// The version that this handle sees.
    pub(crate) async fn dataset(&self) -> Result<Arc<Dataset>> {
        let dataset = self.table.dataset().ok_or_else(|| self.error("open", "it is not a local table"))?;
        dataset.get().await.map_err(|e| self.error("open", e))
    }

    /// Takes over a version that a write outside this module has committed.
    pub(super) fn adopt(&self, dataset: Dataset) {
        if let Some(current) = self.table.dataset() {
            current.update(dataset);
        }
    }

    /// Adds rows without looking for their keys.
    pub(crate) async fn append(&self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let params = WriteParams { mode: WriteMode::Append, ..Self::write_params() };
        let dataset = self.dataset().await?;
        let written = lance::dataset::InsertBuilder::new(dataset)
            .with_params(&params)
            .execute(vec![batch])
            .await
            .map_err(|e| self.error("append to", e))?;
        self.adopt(written);
        Ok(())
    }

    /// Adds the rows whose key is not there yet; returns how many that were.
    pub(crate) async fn insert_missing(&self, key: &[&str], batch: RecordBatch) -> Result<u64> {
        let merged = self.merge(key, WhenMatched::DoNothing, WhenNotMatched::InsertAll, batch).await?;
        Ok(merged.0)
    }

    /// Adds the rows, replacing those with the same key.
    pub(crate) async fn upsert(&self, key: &[&str], batch: RecordBatch) -> Result<()> {
        self.merge(key, WhenMatched::UpdateAll, WhenNotMatched::InsertAll, batch).await.map(|_| ())
    }

    /// Replaces the rows with the same key where the present row still meets `condition`; returns how many did.
    ///
    /// This is the compare-and-set of the store: a racing writer makes the condition be looked at again.
    pub(crate) async fn update_where(&self, key: &[&str], condition: &Filter, batch: RecordBatch) -> Result<u64> {
        let condition = WhenMatched::UpdateIf(condition.to_merge_sql());
        let merged = self.merge(key, condition, WhenNotMatched::DoNothing, batch).await?;
        Ok(merged.1)
    }

    /// Removes the rows that meet the filter.
    pub(crate) async fn delete(&self, filter: &Filter) -> Result<()> {
        let mut attempts = Attempts::at(self, "delete from");
        loop {
            attempts.next().await?;
            // Lance's own retries are silent.
            let delete = DeleteBuilder::new(self.dataset().await?, filter.to_sql()).conflict_retries(0);
            match delete.execute().await {
                Ok(deleted) => {
                    self.adopt(deleted.new_dataset.as_ref().clone());
                    return Ok(());
                }
                Err(error) if is_conflict(&error) => self.refresh().await?,
                Err(error) => return Err(self.error("delete from", error)),
            }
        }
    }

    /// Rows that meet the filter.
    pub(crate) async fn count(&self, filter: Option<&Filter>) -> Result<u64> {
        let dataset = self.dataset().await?;
        let rows = dataset.count_rows(filter.map(Filter::to_sql)).await.map_err(|e| self.error("count", e))?;
        Ok(rows as u64)
    }

    /// Streams rows in storage order.
    pub(crate) async fn scan(&self, scan: Scan) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let dataset = self.dataset().await?;
        self.scan_version(&dataset, scan).await
    }

    /// Streams rows of one version in storage order.
    pub(crate) async fn scan_version(
        &self,
        dataset: &Arc<Dataset>,
        scan: Scan,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let mut scanner = dataset.scan();
        let failed = |e| self.error("scan", e);
        if scan.columns.is_empty() {
            scanner.empty_project().map_err(failed)?;
        } else {
            scanner.project(&scan.columns).map_err(failed)?;
        }
        if let Some(filter) = &scan.filter {
            scanner.filter(&filter.to_sql()).map_err(failed)?;
        }
        if let Some(limit) = scan.limit {
            scanner.limit(i64::try_from(limit).ok(), None).map_err(failed)?;
        }
        if let Some(rows) = scan.batch_rows {
            scanner.batch_size(rows);
        }
        if scan.row_ids {
            scanner.with_row_id();
        }
        if scan.addresses {
            scanner.with_row_address();
        }
        if let Some(fragments) = scan.fragments {
            scanner.with_fragments(fragments);
        }
        let stream = scanner.try_into_stream().await.map_err(failed)?;
        let table = self.clone();
        Ok(stream.map_err(move |e| table.error("scan", e)).boxed())
    }

    /// All rows of a scan that is known to be small.
    pub(crate) async fn scan_all(&self, scan: Scan) -> Result<Vec<RecordBatch>> {
        self.scan(scan).await?.try_collect().await
    }

    /// All rows of a scan of one version that is known to be small.
    pub(super) async fn scan_version_all(&self, dataset: &Arc<Dataset>, scan: Scan) -> Result<Vec<RecordBatch>> {
        self.scan_version(dataset, scan).await?.try_collect().await
    }

    async fn merge(
        &self,
        key: &[&str],
        matched: WhenMatched,
        not_matched: WhenNotMatched,
        batch: RecordBatch,
    ) -> Result<(u64, u64)> {
        if batch.num_rows() == 0 {
            return Ok((0, 0));
        }
        let failed = |e| self.error("merge into", e);
        let keys: Vec<_> = key.iter().map(|k| (*k).to_owned()).collect();
        let mut attempts = Attempts::at(self, "merge into");
        loop {
            attempts.next().await?;
            let mut builder = MergeInsertBuilder::try_new(self.dataset().await?, keys.clone()).map_err(failed)?;
            builder
                .when_matched(matched.clone())
                .when_not_matched(not_matched.clone())
                // Lance's own retries are silent.
                .conflict_retries(0)
                // The join through a scalar index does not see rows that a racing writer inserted.
                .use_index(false)
                .skip_auto_cleanup(true);
            let job = builder.try_build().map_err(failed)?;
            match job.execute_batches(vec![batch.clone()]).await {
                Ok((dataset, stats)) => {
                    self.adopt(dataset.as_ref().clone());
                    return Ok((stats.num_inserted_rows, stats.num_updated_rows));
                }
                Err(error) if is_conflict(&error) => self.refresh().await?,
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(super) fn error(&self, action: &'static str, source: impl Into<crate::error::BoxError>) -> Error {
        Error::Store { action, table: self.name.to_string(), source: source.into() }
    }
}

/// Whether another writer was faster, and the whole operation may succeed if it is done again.
fn is_conflict(error: &lance::Error) -> bool {
    matches!(error, lance::Error::RetryableCommitConflict { .. } | lance::Error::TooMuchWriteContention { .. })
}

/// Names a version: its number and the moment it was made, because a table that was lost and made again counts anew.
pub(super) fn version_name(dataset: &Dataset) -> String {
    format!("{}@{}", dataset.version_id(), dataset.version().timestamp.timestamp_micros())
}
