//! `runs`: what each step did, when, and how it ended. Append only.

use std::sync::Arc;

use arrow_array::{RecordBatch, StringArray, TimestampMicrosecondArray};

use super::rows::Rows;
use super::schema;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::Result;

/// One run of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRow {
    /// A UUID (v7: sorts by time).
    pub id: String,
    /// `ingest`, `backfill`, `index`, `schedule`.
    pub kind: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// `done` or `failed`; of a scheduled step also `idle`, `refused`, `busy` or `cancelled`.
    pub outcome: String,
    /// Its report, JSON.
    pub report: String,
}

/// The typed table.
#[derive(Clone, Debug)]
pub(crate) struct Runs(pub(super) StoredTable);

impl Runs {
    pub(crate) async fn append(&self, row: &RunRow) -> Result<()> {
        let text = |text: &str| -> arrow_array::ArrayRef { Arc::new(StringArray::from_iter_values([text])) };
        let moment =
            |at: Timestamp| -> arrow_array::ArrayRef { Arc::new(TimestampMicrosecondArray::from_iter_values([at.0])) };
        let columns = vec![
            text(&row.id),
            text(&row.kind),
            moment(row.started_at),
            moment(row.ended_at),
            text(&row.outcome),
            text(&row.report),
        ];
        let batch = RecordBatch::try_new(schema::runs(), columns).map_err(|e| self.0.error("encode rows of", e))?;
        self.0.append(batch).await
    }

    /// All runs, oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<RunRow>> {
        self.0.refresh().await?;
        let mut found = Vec::new();
        let columns = ["id", "kind", "started_at", "ended_at", "outcome", "report"];
        for batch in self.0.scan_all(Scan::columns(&columns)).await? {
            let rows = Rows::new(self.0.name(), &batch);
            let [id, kind] = [rows.texts("id")?, rows.texts("kind")?];
            let [outcome, report] = [rows.texts("outcome")?, rows.texts("report")?];
            let [started_at, ended_at] = [rows.moments("started_at")?, rows.moments("ended_at")?];
            found.extend((0..batch.num_rows()).map(|row| RunRow {
                id: id.value(row).to_owned(),
                kind: kind.value(row).to_owned(),
                started_at: Timestamp(started_at.value(row)),
                ended_at: Timestamp(ended_at.value(row)),
                outcome: outcome.value(row).to_owned(),
                report: report.value(row).to_owned(),
            }));
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }
}
