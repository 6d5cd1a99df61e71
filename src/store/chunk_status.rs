//! `status`: where each chunk stands under each embedder. The only table that is updated in place, and so the narrowest.
//!
//! Rows and plain writes stand here; claims are in `claim`, what failed in `failures`, a pass over all of it in `survey`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::filter::Filter;
use super::rows::{Rows, count_at, moment_at, stored_int, text_at};
use super::schema;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::failure::FailureKind;
use crate::id::{ChunkId, EmbedderId};
use crate::status::{ChunkEvent, ChunkState, retry_at, transition};

pub(super) const KEY: [&str; 2] = ["id", "embedder_id"];

pub(super) const ALL: [&str; 12] = [
    "id",
    "embedder_id",
    "status",
    "attempts",
    "next_attempt_at",
    "error_kind",
    "error",
    "lease_owner",
    "lease_until",
    "embedding_version",
    "embedded_at",
    "updated_at",
];

/// One chunk under one embedder.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusRow {
    /// The chunk.
    pub id: ChunkId,
    /// The embedder.
    pub embedder_id: EmbedderId,
    /// Where it stands.
    pub state: ChunkState,
    /// Claims that ended in a failure so far.
    pub attempts: u32,
    /// When a failed chunk is due again; `None` for never.
    pub next_attempt_at: Option<Timestamp>,
    /// The failure's kind.
    pub error_kind: Option<FailureKind>,
    /// The failure as a sentence.
    pub error: Option<String>,
    /// Who has claimed it.
    pub lease_owner: Option<String>,
    /// Until when the claim holds.
    pub lease_until: Option<Timestamp>,
    /// How often a vector was stored for this chunk.
    pub embedding_version: u32,
    /// When the vector was stored.
    pub embedded_at: Option<Timestamp>,
    /// When this row was last written.
    pub updated_at: Timestamp,
}

impl StatusRow {
    fn new(id: ChunkId, embedder_id: EmbedderId, now: Timestamp) -> Self {
        Self {
            id,
            embedder_id,
            state: ChunkState::New,
            attempts: 0,
            next_attempt_at: None,
            error_kind: None,
            error: None,
            lease_owner: None,
            lease_until: None,
            embedding_version: 0,
            embedded_at: None,
            updated_at: now,
        }
    }
}

/// How a claimed chunk ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Its vector is stored.
    Stored,
    /// It could not be embedded.
    Failed { kind: FailureKind, message: String },
    /// It was not attempted.
    Released,
    /// Its document was removed meanwhile, and so it goes too.
    Gone,
}

/// Chunks of one embedder, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StatusCounts {
    /// Waiting for their first embedding.
    pub new: u64,
    /// Claimed.
    pub in_progress: u64,
    /// Stored.
    pub ready: u64,
    /// Failed.
    pub error: u64,
}

impl StatusCounts {
    /// Chunks in any state.
    pub fn total(&self) -> u64 {
        self.new + self.in_progress + self.ready + self.error
    }
}

/// The typed table.
#[derive(Clone, Debug)]
pub(crate) struct ChunkStatus(pub(super) StoredTable);

impl ChunkStatus {
    /// Adds `new` rows for chunks that have none.
    pub(crate) async fn insert_new(&self, embedder: &EmbedderId, ids: &[ChunkId], now: Timestamp) -> Result<u64> {
        if ids.is_empty() {
            return Ok(0);
        }
        let rows: Vec<_> = ids.iter().map(|id| StatusRow::new(id.clone(), embedder.clone(), now)).collect();
        self.0.insert_missing(&KEY, encode(&rows, &self.0)?).await
    }

    /// Puts chunks back to `new` whatever their state: their vector is gone or their filter columns changed.
    pub(crate) async fn reset(&self, embedder: &EmbedderId, ids: &[ChunkId], now: Timestamp) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = ids.iter().map(|id| StatusRow::new(id.clone(), embedder.clone(), now)).collect();
        self.0.upsert(&KEY, encode(&rows, &self.0)?).await
    }

    /// Removes the chunks under every embedder.
    pub(crate) async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        super::delete_by_ids(&self.0, ids).await
    }

    /// Chunks per embedder and state.
    pub(crate) async fn counts(&self) -> Result<HashMap<EmbedderId, StatusCounts>> {
        let mut counts: HashMap<EmbedderId, StatusCounts> = HashMap::new();
        let mut batches = self.0.scan(Scan::columns(&["embedder_id", "status"])).await?;
        while let Some(batch) = batches.try_next().await? {
            let rows = Rows::new(self.0.name(), &batch);
            let [embedder, status] = [rows.texts("embedder_id")?, rows.texts("status")?];
            for row in 0..batch.num_rows() {
                let key = EmbedderId::from_stored(embedder.value(row));
                let of_embedder = counts.entry(key).or_default();
                *of_embedder.of(parse(&rows, status.value(row))?) += 1;
            }
        }
        Ok(counts)
    }

    /// Ids of the embedder's rows, streamed; of one state where given.
    pub(crate) async fn ids(
        &self,
        embedder: &EmbedderId,
        state: Option<ChunkState>,
    ) -> Result<BoxStream<'static, Result<Vec<ChunkId>>>> {
        let parts = std::iter::once(of(embedder)).chain(state.map(in_state)).collect();
        super::stream_ids(&self.0, Some(Filter::All(parts))).await
    }

    /// All rows of an embedder, streamed in storage order.
    pub(crate) async fn rows(&self, embedder: &EmbedderId) -> Result<BoxStream<'static, Result<Vec<StatusRow>>>> {
        let name = self.0.name().to_owned();
        let batches = self.0.scan(Scan::columns(&ALL).filter(of(embedder))).await?;
        let decoded = batches.and_then(move |batch| {
            let rows = decode(&name, &batch);
            async move { rows }
        });
        Ok(decoded.boxed())
    }

    pub(super) async fn read(&self, filter: Filter, limit: Option<usize>) -> Result<Vec<StatusRow>> {
        let scan = Scan { limit, ..Scan::columns(&ALL).filter(filter) };
        let mut rows = Vec::new();
        for batch in self.0.scan_all(scan).await? {
            rows.extend(decode(self.0.name(), &batch)?);
        }
        Ok(rows)
    }
}

/// The row after its claim has ended; `None` if it goes.
pub(super) fn finished(outcome: Outcome, row: StatusRow, now: Timestamp) -> Option<StatusRow> {
    let row = StatusRow { lease_owner: None, lease_until: None, updated_at: now, ..row };
    let state = |event| transition(row.state, event).unwrap_or(row.state);
    Some(match outcome {
        Outcome::Stored => StatusRow {
            state: state(ChunkEvent::Store),
            next_attempt_at: None,
            error_kind: None,
            error: None,
            embedding_version: row.embedding_version + 1,
            embedded_at: Some(now),
            ..row
        },
        Outcome::Failed { kind, message } => StatusRow {
            state: state(ChunkEvent::Fail),
            attempts: row.attempts + 1,
            next_attempt_at: retry_at(now, kind, row.attempts + 1, &row.id),
            error_kind: Some(kind),
            error: Some(message),
            ..row
        },
        Outcome::Released => StatusRow { state: state(ChunkEvent::Release), ..row },
        Outcome::Gone => return None,
    })
}

pub(super) fn of(embedder: &EmbedderId) -> Filter {
    Filter::Eq("embedder_id", embedder.as_str().to_owned())
}

pub(super) fn in_state(state: ChunkState) -> Filter {
    Filter::Eq("status", label(state).to_owned())
}

fn label(state: ChunkState) -> &'static str {
    match state {
        ChunkState::New => "new",
        ChunkState::InProgress => "in_progress",
        ChunkState::Ready => "ready",
        ChunkState::Error => "error",
    }
}

/// The state of a stored word; `None` for a word that is none.
pub(crate) fn state_of(word: &str) -> Option<ChunkState> {
    let all = [ChunkState::New, ChunkState::InProgress, ChunkState::Ready, ChunkState::Error];
    all.into_iter().find(|state| label(*state) == word)
}

pub(super) fn parse(rows: &Rows<'_>, text: &str) -> Result<ChunkState> {
    state_of(text).ok_or_else(|| rows.malformed("status", &format!("`{text}` is not a state")))
}

pub(super) fn encode(rows: &[StatusRow], table: &StoredTable) -> Result<RecordBatch> {
    fn moments(rows: &[StatusRow], moment: fn(&StatusRow) -> Option<Timestamp>) -> Arc<TimestampMicrosecondArray> {
        Arc::new(rows.iter().map(|row| moment(row).map(|at| at.0)).collect())
    }
    let columns: Vec<arrow_array::ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.id.as_str()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.embedder_id.as_str()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| label(r.state)))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| stored_int(r.attempts as usize)))),
        moments(rows, |r| r.next_attempt_at),
        Arc::new(rows.iter().map(|r| r.error_kind.map(FailureKind::as_str)).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.error.as_deref()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.lease_owner.as_deref()).collect::<StringArray>()),
        moments(rows, |r| r.lease_until),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| stored_int(r.embedding_version as usize)))),
        moments(rows, |r| r.embedded_at),
        moments(rows, |r| Some(r.updated_at)),
    ];
    RecordBatch::try_new(schema::status(), columns).map_err(|e| table.error("encode rows of", e))
}

pub(super) fn decode(table: &str, batch: &RecordBatch) -> Result<Vec<StatusRow>> {
    let rows = Rows::new(table, batch);
    let [id, embedder, status] = [rows.texts("id")?, rows.texts("embedder_id")?, rows.texts("status")?];
    let [error_kind, error, owner] = [rows.texts("error_kind")?, rows.texts("error")?, rows.texts("lease_owner")?];
    let [attempts, version] = [rows.ints("attempts")?, rows.ints("embedding_version")?];
    let [next_attempt_at, lease_until] = [rows.moments("next_attempt_at")?, rows.moments("lease_until")?];
    let [embedded_at, updated_at] = [rows.moments("embedded_at")?, rows.moments("updated_at")?];
    let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    (0..batch.num_rows())
        .map(|row| {
            Ok(StatusRow {
                id: ChunkId::from_stored(id.value(row)),
                embedder_id: EmbedderId::from_stored(embedder.value(row)),
                state: parse(&rows, status.value(row))?,
                attempts: small(count_at(attempts, row)),
                next_attempt_at: moment_at(next_attempt_at, row),
                // A word of another release: what was done about it is to be tried again.
                error_kind: text_at(error_kind, row)
                    .map(|word| FailureKind::parse(&word).unwrap_or(FailureKind::Transient)),
                error: text_at(error, row),
                lease_owner: text_at(owner, row),
                lease_until: moment_at(lease_until, row),
                embedding_version: small(count_at(version, row)),
                embedded_at: moment_at(embedded_at, row),
                updated_at: Timestamp(updated_at.value(row)),
            })
        })
        .collect()
}
