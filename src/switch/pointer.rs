//! Which embedder answers a bank's searches: one value in `meta`, changed by compare-and-set alone. A bank that was never
//! switched has none, and is answered by whatever embedder it is opened with.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::embed::Precision;
use crate::engine::Bank;
use crate::error::{Error, Result};
use crate::id::EmbedderId;
use crate::store::Store;

/// Where the value stands in `meta`.
pub(crate) const KEY: &str = "serving";

/// Moves that are remembered, for people.
const MOVES: usize = 16;

/// An embedder, and how to open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedEmbedder {
    /// Everything that changes its vectors.
    pub id: EmbedderId,
    /// What it is opened by: `all-minilm-l6-v2`, `fake:384`.
    pub name: String,
    /// The number format that it is opened with.
    pub precision: Precision,
}

/// Which embedder answers, which did, and which is to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServingState {
    /// It answers.
    pub active: ServedEmbedder,
    /// It answered before; a switch back returns to it.
    pub previous: Option<ServedEmbedder>,
    /// A switch to it is under way: it is filled by every sync, and does not answer yet.
    pub next: Option<ServedEmbedder>,
    /// The last 16 moves, oldest first.
    pub moves: Vec<ServingMove>,
}

/// One move of the pointer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServingMove {
    /// When, RFC 3339.
    pub at: String,
    /// The embedder that answered from then on.
    pub to: EmbedderId,
    /// The one that answered before.
    pub from: EmbedderId,
    /// The mean overlap of their answers that was measured before.
    pub overlap: Option<f64>,
}

/// The state with the words that it stands in `meta` in, which a compare-and-set expects.
pub(super) struct Standing {
    pub(super) state: ServingState,
    value: String,
}

impl ServedEmbedder {
    /// The embedder of a handle, opened by `name`.
    pub(super) fn of(bank: &Bank, name: Option<&str>) -> Self {
        let identity = bank.embedder().identity();
        let name = name.unwrap_or(&identity.name).to_owned();
        Self { id: bank.embedder_id.clone(), name, precision: identity.precision }
    }
}

impl ServingState {
    pub(super) fn of(active: ServedEmbedder) -> Self {
        Self { active, previous: None, next: None, moves: Vec::new() }
    }

    pub(super) fn announcing(&self, next: ServedEmbedder) -> Self {
        Self { next: Some(next), ..self.clone() }
    }

    /// The state once the next one serves; the same where there is none.
    pub(super) fn switched(&self, overlap: Option<f64>, now: Timestamp) -> Self {
        let Some(next) = self.next.clone() else { return self.clone() };
        let latest = ServingMove { at: now.to_rfc3339(), to: next.id.clone(), from: self.active.id.clone(), overlap };
        let kept = self.moves.iter().skip((self.moves.len() + 1).saturating_sub(MOVES));
        let moves = kept.cloned().chain([latest]).collect();
        Self { active: next, previous: Some(self.active.clone()), next: None, moves }
    }

    pub(super) fn check_serves(&self, bank: &Bank) -> Result<()> {
        if self.active.id == bank.embedder_id { Ok(()) } else { Err(not_serving(bank, Some(&self.active))) }
    }
}

pub(super) fn not_serving(bank: &Bank, instead: Option<&ServedEmbedder>) -> Error {
    let serving = instead.map_or_else(|| "none".to_owned(), |embedder| embedder.id.to_string());
    Error::NotServing { embedder: bank.embedder_id.to_string(), serving }
}

/// The state as of the newest commit of any process; `None` in a bank that was never switched.
pub(super) async fn read(store: &Store) -> Result<Option<Standing>> {
    let Some(value) = store.meta.get(KEY).await? else { return Ok(None) };
    match serde_json::from_str(&value) {
        Ok(state) => Ok(Some(Standing { state, value })),
        Err(e) => Err(Error::MalformedRow { table: "meta".into(), column: KEY.to_owned(), reason: e.to_string() }),
    }
}

/// Whether a value that stands there says something.
pub(crate) fn is_readable(value: &str) -> bool {
    serde_json::from_str::<ServingState>(value).is_ok()
}

/// Replaces the state, durably, if it still is what it was.
///
/// # Errors
/// [`Error::NotServing`] if it is not; nothing was changed then.
pub(super) async fn write(store: &Store, from: Option<&Standing>, to: &ServingState) -> Result<()> {
    // What the pointer will name is on the medium before the pointer is, and the pointer before we say so.
    store.acknowledge().await?;
    store.fault_point("switch: before the pointer moves").await?;
    let value = serde_json::json!(to).to_string();
    let expected = from.map(|standing| standing.value.as_str());
    if !store.meta.compare_and_set(KEY, expected, &value, store.clock().now()).await? {
        let found = read(store).await?;
        let serving = found.map_or_else(|| "none".to_owned(), |found| found.state.active.id.to_string());
        let embedder = to.next.as_ref().unwrap_or(&to.active).id.to_string();
        return Err(Error::NotServing { embedder, serving });
    }
    tracing::debug!(active = %to.active.id, "serving pointer moved");
    store.acknowledge().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedder(name: &str) -> ServedEmbedder {
        ServedEmbedder { id: EmbedderId::from_stored(name), name: name.to_owned(), precision: Precision::F32 }
    }

    #[test]
    fn a_switch_and_a_switch_back_return_to_where_it_was_and_both_are_remembered() {
        let state = ServingState::of(embedder("a")).announcing(embedder("b"));
        assert_eq!((&state.active, &state.next), (&embedder("a"), &Some(embedder("b"))), "it does not serve yet");
        let switched = state.switched(Some(0.5), Timestamp(0));
        assert_eq!(
            (&switched.active, &switched.previous, &switched.next),
            (&embedder("b"), &Some(embedder("a")), &None)
        );
        let back = switched.announcing(embedder("a")).switched(None, Timestamp(1_000_000));
        assert_eq!((back.active, back.previous), (embedder("a"), Some(embedder("b"))));
        let told: Vec<_> = back.moves.iter().map(|one| (one.from.as_str(), one.to.as_str(), one.overlap)).collect();
        assert_eq!(told, [("a", "b", Some(0.5)), ("b", "a", None)]);
    }
}
