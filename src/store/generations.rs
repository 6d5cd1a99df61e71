//! `generations`: one row a build. The record is JSON made by `index`; the store knows only what it sorts and finds by.

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};

use super::filter::Filter;
use super::rows::Rows;
use super::schema;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::{EmbedderId, GenerationId};

/// One generation as stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GenerationRow {
    pub(crate) id: GenerationId,
    pub(crate) sequence: u64,
    pub(crate) embedder_id: EmbedderId,
    pub(crate) kind: String,
    pub(crate) state: String,
    /// JSON: parameters, measurements, reports.
    pub(crate) record: String,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

/// The typed table.
#[derive(Clone, Debug)]
pub(crate) struct Generations(pub(super) StoredTable);

impl Generations {
    /// Adds the row of a new generation.
    pub(crate) async fn add(&self, row: &GenerationRow) -> Result<()> {
        self.0.insert_missing(&["id"], self.encode(row)?).await.map(|_| ())
    }

    /// Replaces the row with the same id if its state still is `from`; returns whether it was. Somebody who took over the
    /// maintenance may have moved it on, or removed it.
    pub(crate) async fn advance(&self, row: &GenerationRow, from: &str) -> Result<bool> {
        self.0.refresh().await?;
        let unchanged = Filter::Eq("state", from.to_owned());
        Ok(self.0.update_where(&["id"], &unchanged, self.encode(row)?).await? == 1)
    }

    /// Replaces the row with the same id if its record still is `from`; returns whether it was.
    pub(crate) async fn replace(&self, row: &GenerationRow, from: &str) -> Result<bool> {
        self.0.refresh().await?;
        let unchanged = Filter::Eq("record", from.to_owned());
        Ok(self.0.update_where(&["id"], &unchanged, self.encode(row)?).await? == 1)
    }

    /// All generations of one embedder, or of all, oldest first.
    pub(crate) async fn list(&self, embedder: Option<&EmbedderId>) -> Result<Vec<GenerationRow>> {
        self.0.refresh().await?;
        self.list_seen(embedder).await
    }

    /// The same in the version that was last seen.
    pub(super) async fn list_seen(&self, embedder: Option<&EmbedderId>) -> Result<Vec<GenerationRow>> {
        let columns = ["id", "sequence", "embedder_id", "kind", "state", "record", "created_at", "updated_at"];
        let filter = embedder.map(|embedder| Filter::Eq("embedder_id", embedder.as_str().to_owned()));
        let mut found = Vec::new();
        for batch in self.0.scan_all(Scan { filter, ..Scan::columns(&columns) }).await? {
            let rows = Rows::new(self.0.name(), &batch);
            let [id, embedder_id, kind] = [rows.texts("id")?, rows.texts("embedder_id")?, rows.texts("kind")?];
            let [state, record] = [rows.texts("state")?, rows.texts("record")?];
            let sequence = rows.longs("sequence")?;
            let [created_at, updated_at] = [rows.moments("created_at")?, rows.moments("updated_at")?];
            found.extend((0..batch.num_rows()).map(|row| GenerationRow {
                id: GenerationId::from_stored(id.value(row)),
                sequence: u64::try_from(sequence.value(row)).unwrap_or(0),
                embedder_id: EmbedderId::from_stored(embedder_id.value(row)),
                kind: kind.value(row).to_owned(),
                state: state.value(row).to_owned(),
                record: record.value(row).to_owned(),
                created_at: Timestamp(created_at.value(row)),
                updated_at: Timestamp(updated_at.value(row)),
            }));
        }
        found.sort_by_key(|row| (row.sequence, row.created_at));
        Ok(found)
    }

    /// Forgets a generation.
    pub(crate) async fn remove(&self, id: &GenerationId) -> Result<()> {
        self.0.delete(&Filter::Eq("id", id.as_str().to_owned())).await
    }

    fn encode(&self, row: &GenerationRow) -> Result<RecordBatch> {
        let text = |text: &str| -> arrow_array::ArrayRef { Arc::new(StringArray::from_iter_values([text])) };
        let columns: Vec<arrow_array::ArrayRef> = vec![
            text(row.id.as_str()),
            Arc::new(Int64Array::from_iter_values([i64::try_from(row.sequence).unwrap_or(i64::MAX)])),
            text(row.embedder_id.as_str()),
            text(&row.kind),
            text(&row.state),
            text(&row.record),
            Arc::new(TimestampMicrosecondArray::from_iter_values([row.created_at.0])),
            Arc::new(TimestampMicrosecondArray::from_iter_values([row.updated_at.0])),
        ];
        RecordBatch::try_new(schema::generations(), columns).map_err(|e| self.0.error("encode rows of", e))
    }
}
