//! Two commits that Lance has no call for: rows replaced at known addresses, and rows added that were proven absent.
//!
//! Both do what a merge does without its join, whose cost grows with the table. Guarantees: either the whole commit happens
//! or nothing of it; if another writer touched the same rows, or may have added the same keys, since the version that was
//! read, nothing happens and the caller looks again. Must not know what the columns mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use lance::Dataset;
use lance::dataset::scanner::RowAddrTreeMap;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance::dataset::write::merge_insert::inserted_rows::{KeyExistenceFilterBuilder, KeyValue};
use lance::dataset::{CommitBuilder, InsertBuilder, WriteMode, WriteParams};
use lance_table::format::Fragment;

use super::table::StoredTable;
use crate::error::Result;

/// Rows that are written but belong to no version yet.
#[derive(Clone, Debug)]
pub(super) struct Uncommitted(Vec<Fragment>);

/// The fragment of a row's address, and its place there.
pub(super) fn split_address(address: u64) -> (u64, u32) {
    // The halves of the address, by Lance's definition.
    (address >> 32, (address & u64::from(u32::MAX)) as u32)
}

impl StoredTable {
    /// Removes the rows at `addresses` of the version `from` and adds `rows`, in one commit. Returns where the new rows lie,
    /// in their order; `None`, and nothing is changed, if somebody touched one of the old ones since.
    ///
    /// A row never changes in place, so an address that still holds a row holds the row that was read there.
    pub(super) async fn replace_rows(
        &self,
        from: &Arc<Dataset>,
        addresses: &[u64],
        rows: RecordBatch,
    ) -> Result<Option<Vec<u64>>> {
        let mut removed: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (fragment, offset) in addresses.iter().copied().map(split_address) {
            removed.entry(fragment).or_default().push(offset);
        }
        let (mut updated_fragments, mut removed_fragment_ids) = (Vec::new(), Vec::new());
        for (id, offsets) in removed {
            let fragment = usize::try_from(id).ok().and_then(|id| from.get_fragment(id));
            let Some(fragment) = fragment else { return Ok(None) };
            match fragment.extend_deletions(offsets).await.map_err(|e| self.error("update", e))? {
                Some(rest) => updated_fragments.push(rest.metadata().clone()),
                None => removed_fragment_ids.push(id),
            }
        }
        let Uncommitted(new_fragments) = self.write(from, rows).await?;
        let files: Vec<_> = new_fragments.iter().filter_map(file_of).collect();
        let operation = Operation::Update {
            removed_fragment_ids,
            updated_fragments,
            new_fragments,
            fields_modified: Vec::new(),
            compacted_sstables: Vec::new(),
            fields_for_preserving_frag_bitmap: Vec::new(),
            update_mode: Some(UpdateMode::RewriteRows),
            inserted_rows_filter: None,
            updated_fragment_offsets: None,
        };
        // With the rows named, a writer of other rows of the same fragments is no conflict.
        let touched = RowAddrTreeMap::from_iter(addresses);
        let Some(dataset) = self.commit(from, operation, Some(touched)).await? else { return Ok(None) };
        let written = |fragment: &&Fragment| file_of(fragment).is_some_and(|file| files.contains(&file));
        let addresses = dataset.fragments().iter().filter(written).flat_map(|fragment| {
            let rows = fragment.physical_rows.unwrap_or(0) as u64;
            (0..rows).map(|row| fragment.id << 32 | row)
        });
        Ok(Some(addresses.collect()))
    }

    /// Writes rows to disk for a later commit; no version holds them yet.
    pub(super) async fn write(&self, from: &Arc<Dataset>, rows: RecordBatch) -> Result<Uncommitted> {
        if rows.num_rows() == 0 {
            return Ok(Uncommitted(Vec::new()));
        }
        let params = WriteParams { mode: WriteMode::Append, ..Self::write_params() };
        let written = InsertBuilder::new(from.clone()).with_params(&params).execute_uncommitted(vec![rows]).await;
        match written.map_err(|e| self.error("append to", e))?.operation {
            Operation::Append { fragments } => Ok(Uncommitted(fragments)),
            other => Err(self.error("append to", format!("lance planned `{other}` for an append"))),
        }
    }

    /// Adds rows whose keys are known not to be in the version `from`. Returns `false`, and nothing is added, if somebody may
    /// have added one of them since.
    pub(super) async fn insert_absent(
        &self,
        from: &Arc<Dataset>,
        rows: Uncommitted,
        key: &str,
        keys: &[&str],
    ) -> Result<bool> {
        let field = from.schema().field(key).ok_or_else(|| self.error("append to", format!("it has no `{key}`")))?;
        // What a merge that inserts leaves too: it makes concurrent inserts conflict, in either order, instead of both
        // succeeding. Of more than a few hundred keys the filter meets every other one: then any concurrent insert conflicts.
        let mut filter = KeyExistenceFilterBuilder::new(vec![field.id]);
        for key in keys {
            filter.insert(KeyValue::String((*key).to_owned())).map_err(|e| self.error("append to", e))?;
        }
        let operation = Operation::Update {
            removed_fragment_ids: Vec::new(),
            updated_fragments: Vec::new(),
            new_fragments: rows.0,
            fields_modified: Vec::new(),
            compacted_sstables: Vec::new(),
            fields_for_preserving_frag_bitmap: Vec::new(),
            // IMPORTANT: not `RewriteRows`. Lance takes the fragments of a rewrite that removes nothing for rows that moved
            // within an index, and would call them covered by it.
            update_mode: None,
            inserted_rows_filter: Some(filter.build()),
            updated_fragment_offsets: None,
        };
        Ok(self.commit(from, operation, None).await?.is_some())
    }

    /// Takes fragments off the books, whose rows are lost. Whoever added to the table meanwhile is no conflict.
    pub(super) async fn drop_fragments(&self, from: &Arc<Dataset>, fragments: Vec<u64>) -> Result<()> {
        let operation = Operation::Delete {
            updated_fragments: Vec::new(),
            deleted_fragment_ids: fragments,
            predicate: "lost".to_owned(),
        };
        match self.commit(from, operation, None).await? {
            Some(_) => Ok(()),
            None => Err(self.error("mend", "somebody else writes to the same rows; try again")),
        }
    }

    pub(super) async fn commit(
        &self,
        from: &Arc<Dataset>,
        operation: Operation,
        touched: Option<RowAddrTreeMap>,
    ) -> Result<Option<Dataset>> {
        let mut commit = CommitBuilder::new(from.clone()).with_skip_auto_cleanup(true);
        if let Some(touched) = touched {
            commit = commit.with_affected_rows(touched);
        }
        match commit.execute(Transaction::new(from.version_id(), operation, None)).await {
            Ok(dataset) => {
                self.adopt(dataset.clone());
                Ok(Some(dataset))
            }
            Err(lance::Error::RetryableCommitConflict { .. }) => Ok(None),
            Err(error) => Err(self.error("update", error)),
        }
    }
}

fn file_of(fragment: &Fragment) -> Option<String> {
    fragment.files.first().map(|file| file.path.clone())
}
