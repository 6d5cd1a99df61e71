//! What a look at a bank from outside must know of generations and pointers, and what a repair may do to them: give a
//! generation up, and move a pointer off one. It never makes a generation pass.

use super::generation::{GenerationState, Record};
use super::pointer;
pub(crate) use super::pointer::Pointer;
use crate::error::Result;
use crate::id::{EmbedderId, GenerationId};
use crate::store::{GenerationRow, Store};

/// A generation as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredGeneration {
    pub(crate) id: GenerationId,
    pub(crate) state: GenerationState,
    /// Whether an index belongs to it; none to a flat one.
    pub(crate) has_index: bool,
    /// The row calls the generation what its record calls it.
    pub(crate) agrees: bool,
}

/// Reads a row.
///
/// # Errors
/// [`Error::MalformedRow`](crate::Error::MalformedRow) if its record does not parse.
pub(crate) fn read_generation(row: &GenerationRow) -> Result<StoredGeneration> {
    let record = Record::from_row(row)?;
    Ok(StoredGeneration {
        id: row.id.clone(),
        state: record.state,
        has_index: record.spec.is_some(),
        agrees: row.state == record.state.label() && row.kind == record.kind(),
    })
}

/// The embedder whose pointer stands under a key of `meta`; `None` for another key.
pub(crate) fn pointer_owner(key: &str) -> Option<EmbedderId> {
    key.strip_prefix(pointer::KEY).map(EmbedderId::from_stored)
}

/// Reads a pointer; `None` if it is none.
pub(crate) fn read_pointer(value: &str) -> Option<Pointer> {
    serde_json::from_str(value).ok()
}

/// Marks a generation failed, whatever it was: what it needs is gone. One that was moved on meanwhile stays as it is.
pub(crate) async fn give_up(store: &Store, id: &GenerationId, reason: &str) -> Result<()> {
    let rows = store.generations.list(None).await?;
    for row in rows.iter().filter(|row| row.id == *id) {
        let mut record = Record::from_row(row)?;
        (record.state, record.error) = (GenerationState::Failed, Some(reason.to_owned()));
        let stated = record.to_row(id, &row.embedder_id, store.clock().now());
        store.generations.advance(&stated, &row.state).await?;
    }
    Ok(())
}

/// Writes the row anew from its record, unless it was moved on meanwhile.
pub(crate) async fn restate(store: &Store, id: &GenerationId) -> Result<()> {
    let rows = store.generations.list(None).await?;
    for row in rows.iter().filter(|row| row.id == *id) {
        let record = Record::from_row(row)?;
        let stated = record.to_row(id, &row.embedder_id, store.clock().now());
        store.generations.advance(&stated, &row.state).await?;
    }
    Ok(())
}

/// Moves an embedder's pointer if it still has the value `from`. Returns whether it was moved.
pub(crate) async fn point(store: &Store, embedder: &EmbedderId, from: &str, to: &Pointer) -> Result<bool> {
    let value = serde_json::json!(to).to_string();
    store.acknowledge().await?;
    let now = store.clock().now();
    store.meta.compare_and_set(&pointer::key(embedder), Some(from), &value, now).await
}
