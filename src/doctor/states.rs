//! The states: each chunk once under each embedder, with the fields that belong to its state.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checks;
use super::documents::{Chunks, key};
use super::findings::Cure;
use super::look::Look;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::{ChunkId, EmbedderId};
use crate::status::ChunkState;
use crate::store::{RawState, is_stale, state_of};

/// No lease is taken for longer than this at a time; one that ends later was not written by us, and would keep its chunk from
/// everybody.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

/// One row of `status`; 32 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// The chunk, as [`key`] has it.
    pub(super) id: u128,
    address: u64,
    pub(super) ready: bool,
    /// Whether the id can be told from `id`: that of every chunk that was made here.
    pub(super) is_named: bool,
}

impl Look {
    /// Checks the states; returns those of chunks that there are, by embedder.
    pub(super) async fn states(&mut self, chunks: Option<&Chunks>) -> Result<BTreeMap<String, Vec<State>>> {
        let mut states: BTreeMap<String, Vec<State>> = BTreeMap::new();
        let others = [
            &checks::STATUS_KEYS,
            &checks::STATUS_ORPHANS,
            &checks::STATUS_FIELDS,
            &checks::STALE_LEASES,
            &checks::READY_WITHOUT_VECTOR,
        ];
        if !self.is_whole("status", &others) {
            return Ok(states);
        }
        let now = self.now;
        let mut found = Vec::new();
        self.inspection
            .states(|row| {
                let what = |reason: &str| format!("{} under {}{reason}", row.id, row.embedder);
                let dropped = || Cure::DropRow { table: "status".into(), address: row.address };
                if chunks.is_some_and(|chunks| !chunks.has(row.id)) {
                    found.push((&checks::STATUS_ORPHANS, what(""), dropped()));
                    return;
                }
                let state = state_of(row.word);
                let lease = row.lease_until.filter(|_| state == Some(ChunkState::InProgress));
                if let Some(reason) = what_is_wrong(&row, state, now) {
                    let cure = Cure::Requeue(EmbedderId::from_stored(row.embedder), ChunkId::from_stored(row.id));
                    found.push((&checks::STATUS_FIELDS, what(&format!(": {reason}")), cure));
                } else if lease.is_some() && is_stale(row.lease_owner, lease, now) {
                    found.push((&checks::STALE_LEASES, what(""), Cure::ReleaseStale));
                }
                let id = key(row.id);
                let state = State {
                    id,
                    address: row.address,
                    ready: state == Some(ChunkState::Ready),
                    is_named: format!("{id:032x}") == row.id,
                };
                match states.get_mut(row.embedder) {
                    Some(of_embedder) => of_embedder.push(state),
                    None => _ = states.insert(row.embedder.to_owned(), vec![state]),
                }
            })
            .await?;
        for (check, what, cure) in found {
            self.find(check, what, vec![cure]);
        }
        for (embedder, states) in &mut states {
            states.sort_unstable_by_key(|state| (state.id, !state.ready, state.address));
            for pair in states.windows(2) {
                let [kept, other] = pair else { continue };
                if kept.id == other.id {
                    let cure = Cure::DropRow { table: "status".into(), address: other.address };
                    let what = format!("{:032x} under {embedder} stands twice", other.id);
                    self.find(&checks::STATUS_KEYS, what, vec![cure]);
                }
            }
            states.dedup_by_key(|state| state.id);
        }
        Ok(states)
    }
}

/// What of a row the state machine does not write.
fn what_is_wrong(row: &RawState<'_>, state: Option<ChunkState>, now: Timestamp) -> Option<&'static str> {
    let Some(state) = state else { return Some("its status is no state") };
    let is_claimed = state == ChunkState::InProgress;
    if row.attempts < 0 {
        return Some("less than no attempts");
    }
    if is_claimed != row.lease_owner.is_some() || is_claimed != row.lease_until.is_some() {
        return Some(if is_claimed { "claimed by nobody" } else { "a lease without a claim" });
    }
    if row.lease_until.is_some_and(|until| until > now.plus(LONGEST_LEASE)) {
        return Some("its lease ends in more than a day");
    }
    match state {
        ChunkState::Ready if row.embedded_at.is_none() => Some("ready, but never embedded"),
        ChunkState::Error if row.error.is_none() => Some("failed without a reason"),
        _ => None,
    }
}
