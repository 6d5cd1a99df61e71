//! `meta`: small facts that change by compare-and-set: the active pointer and its history, the maintenance lease, what has
//! been reconciled.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{RecordBatch, StringArray, TimestampMicrosecondArray};
use lance::Dataset;

use super::attempts::Attempts;
use super::filter::Filter;
use super::rows::Rows;
use super::schema;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::Result;

/// The typed table.
#[derive(Clone, Debug)]
pub(crate) struct Meta(pub(super) StoredTable);

/// A condition on another key's value.
#[derive(Clone, Copy)]
pub(crate) struct Guard<'a> {
    pub(crate) key: &'a str,
    pub(crate) holds: &'a (dyn Fn(&str) -> bool + Send + Sync),
}

/// What came of a guarded compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guarded {
    /// The value was set.
    Set,
    /// The value was not the expected one.
    Changed,
    /// The guard refused.
    Refused,
}

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
        let row = self.encode(&[(key, value)], now)?;
        let changed = match expected {
            None => self.0.insert_missing(&["key"], row).await?,
            Some(expected) => {
                let unchanged = Filter::Eq("value", expected.to_owned());
                self.0.update_where(&["key"], &unchanged, row).await?
            }
        };
        Ok(changed == 1)
    }

    /// Sets the value if it still is `expected`, and only while the guard holds. Both rows are written in
    /// one commit: whoever changes either of them at the same time makes this one look again, so the guard still holds at
    /// the moment of the commit.
    pub(crate) async fn compare_and_set_guarded(
        &self,
        key: &str,
        expected: &str,
        value: &str,
        guard: Guard<'_>,
        now: Timestamp,
    ) -> Result<Guarded> {
        let mut attempts = Attempts::at(&self.0, "update");
        loop {
            attempts.next().await?;
            self.0.refresh().await?;
            let dataset = self.0.dataset().await?;
            let rows = self.placed(&dataset, &[key, guard.key]).await?;
            let Some((guard_value, guard_address)) = rows.get(guard.key).filter(|(value, _)| (guard.holds)(value))
            else {
                return Ok(Guarded::Refused);
            };
            let Some((_, address)) = rows.get(key).filter(|(value, _)| value == expected) else {
                return Ok(Guarded::Changed);
            };
            let written = self.encode(&[(key, value), (guard.key, guard_value)], now)?;
            if self.0.replace_rows(&dataset, &[*address, *guard_address], written).await?.is_some() {
                return Ok(Guarded::Set);
            }
        }
    }

    /// Values of these keys in one version, with the addresses of their rows.
    async fn placed(&self, dataset: &Arc<Dataset>, keys: &[&str]) -> Result<HashMap<String, (String, u64)>> {
        let wanted = Filter::In("key", keys.iter().map(|key| (*key).to_owned()).collect());
        let scan = Scan { addresses: true, ..Scan::columns(&["key", "value"]).filter(wanted) };
        let mut found = HashMap::new();
        for batch in self.0.scan_version_all(dataset, scan).await? {
            let rows = Rows::new(self.0.name(), &batch);
            let (keys, values, addresses) = (rows.texts("key")?, rows.texts("value")?, rows.addresses()?);
            let placed = |row| (keys.value(row).to_owned(), (values.value(row).to_owned(), addresses.value(row)));
            found.extend((0..batch.num_rows()).map(placed));
        }
        Ok(found)
    }

    /// Sets the value whatever it was; for facts that only grow truer (what has been reconciled), never for pointers.
    pub(crate) async fn put(&self, key: &str, value: &str, now: Timestamp) -> Result<()> {
        self.0.refresh().await?;
        self.0.upsert(&["key"], self.encode(&[(key, value)], now)?).await
    }

    fn encode(&self, rows: &[(&str, &str)], now: Timestamp) -> Result<RecordBatch> {
        let columns: Vec<arrow_array::ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| key))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, value)| value))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|_| now.0))),
        ];
        RecordBatch::try_new(schema::meta(), columns).map_err(|e| self.0.error("encode rows of", e))
    }
}
