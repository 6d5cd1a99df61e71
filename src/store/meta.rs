//! `meta`: small facts that change by compare-and-set: the active pointer and its history, the maintenance lease, what has
//! been reconciled.

use std::sync::Arc;

use arrow_array::{RecordBatch, StringArray, TimestampMicrosecondArray};

use super::filter::Filter;
use super::rows::Rows;
use super::schema;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::Result;

/// The typed table.
#[derive(Clone, Debug)]
pub(crate) struct Meta(pub(super) StoredTable);

impl Meta {
    /// The value as of the newest commit of any process.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<String>> {
        self.0.refresh().await?;
        let scan = Scan::columns(&["value"]).filter(Filter::Eq("key", key.to_owned()));
        for batch in self.0.scan_all(scan).await? {
            let values = Rows::new(self.0.name(), &batch).texts("value")?;
            if batch.num_rows() > 0 {
                return Ok(Some(values.value(0).to_owned()));
            }
        }
        Ok(None)
    }

    /// Sets the value if it still is `expected` (`None`: if there is none). Returns whether it was set.
    pub(crate) async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        value: &str,
        now: Timestamp,
    ) -> Result<bool> {
        self.0.refresh().await?;
        let row = self.encode(key, value, now)?;
        let changed = match expected {
            None => self.0.insert_missing(&["key"], row).await?,
            Some(expected) => {
                let unchanged = Filter::Eq("value", expected.to_owned());
                self.0.update_where(&["key"], &unchanged, row).await?
            }
        };
        Ok(changed == 1)
    }

    /// Sets the value whatever it was; for facts that only grow truer (what has been reconciled), never for pointers.
    pub(crate) async fn put(&self, key: &str, value: &str, now: Timestamp) -> Result<()> {
        self.0.refresh().await?;
        self.0.upsert(&["key"], self.encode(key, value, now)?).await
    }

    fn encode(&self, key: &str, value: &str, now: Timestamp) -> Result<RecordBatch> {
        let columns: Vec<arrow_array::ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values([key])),
            Arc::new(StringArray::from_iter_values([value])),
            Arc::new(TimestampMicrosecondArray::from_iter_values([now.0])),
        ];
        RecordBatch::try_new(schema::meta(), columns).map_err(|e| self.0.error("encode rows of", e))
    }
}
