//! The pointer that search follows: which generation is active, and which were before it. One value in `meta`, changed by
//! compare-and-set alone.

use serde::{Deserialize, Serialize};

use super::Indexing;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::{EmbedderId, GenerationId};
use crate::store::MaintenanceLease;

/// What the keys of pointers begin with; the embedder follows.
pub(super) const KEY: &str = "active/";

/// Earlier generations that the pointer remembers, for rollback.
const HISTORY: usize = 16;

/// Moves that the pointer remembers, for people: at about 150 bytes each, they are written anew with every move.
const MOVES: usize = 32;

/// One move of the pointer that search follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointerMove {
    /// When, RFC 3339.
    pub at: String,
    /// What was done.
    pub change: PointerChange,
    /// The generation that search followed from then on.
    pub active: GenerationId,
    /// The one that it followed before.
    pub previous: Option<GenerationId>,
}

/// Why a pointer was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointerChange {
    /// A generation was activated.
    Activated,
    /// The one before was returned to.
    RolledBack,
}

impl PointerChange {
    /// The change as words.
    pub fn label(self) -> &'static str {
        match self {
            Self::Activated => "activated",
            Self::RolledBack => "rolled back",
        }
    }
}

/// The pointer's value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    pub(crate) active: Option<GenerationId>,
    /// Newest first, without the active one.
    pub(crate) previous: Vec<GenerationId>,
    /// Earlier ones that are being removed: nothing can lead back to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) removing: Vec<GenerationId>,
    /// The last moves, oldest first; what was given up since is still named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) moves: Vec<PointerMove>,
}

impl Pointer {
    /// The pointer after `next` became active.
    pub(super) fn moved_to(&self, next: &GenerationId, now: Timestamp) -> Self {
        let mut previous = self.previous.clone();
        previous.splice(0..0, self.active.clone());
        previous.retain(|id| id != next);
        previous.truncate(HISTORY);
        let moves = self.moves_with(PointerChange::Activated, next, now);
        Self { active: Some(next.clone()), previous, removing: self.removing.clone(), moves }
    }

    /// The pointer after these were given up.
    pub(super) fn without(&self, given_up: &[GenerationId]) -> Self {
        let previous = self.previous.iter().filter(|id| !given_up.contains(id)).cloned().collect();
        Self { previous, removing: given_up.to_vec(), ..self.clone() }
    }

    /// The pointer after a rollback, and where it leads; `None` if there is nothing to return to.
    pub(super) fn rolled_back(&self, now: Timestamp) -> Option<(Self, GenerationId)> {
        let (target, rest) = self.previous.split_first()?;
        let moves = self.moves_with(PointerChange::RolledBack, target, now);
        let active = Some(target.clone());
        Some((Self { active, previous: rest.to_vec(), removing: self.removing.clone(), moves }, target.clone()))
    }

    /// Whether it led to this generation once.
    pub(super) fn was_at(&self, id: &GenerationId) -> bool {
        self.previous.contains(id) || self.moves.iter().any(|one| one.active == *id)
    }

    /// The generations that somebody may still want to return to: the one that a rollback leads to, and the one that search
    /// followed last, where that was rolled back.
    pub(super) fn in_reach(&self) -> impl Iterator<Item = &GenerationId> {
        let last = self.moves.last().and_then(|last| last.previous.as_ref());
        self.previous.first().into_iter().chain(last)
    }

    fn moves_with(&self, change: PointerChange, active: &GenerationId, now: Timestamp) -> Vec<PointerMove> {
        let latest =
            PointerMove { at: now.to_rfc3339(), change, active: active.clone(), previous: self.active.clone() };
        let kept = self.moves.iter().skip((self.moves.len() + 1).saturating_sub(MOVES));
        kept.cloned().chain([latest]).collect()
    }
}

/// Where an embedder's pointer stands in `meta`.
pub(super) fn key(embedder: &EmbedderId) -> String {
    format!("{KEY}{embedder}")
}

impl Indexing {
    fn pointer_key(&self) -> String {
        key(&self.embedder_id)
    }

    /// The pointer as of the newest commit of any process.
    pub(super) async fn pointer(&self) -> Result<Option<Pointer>> {
        let Some(value) = self.store.meta.get(&self.pointer_key()).await? else { return Ok(None) };
        let parsed = serde_json::from_str(&value);
        parsed.map(Some).map_err(|e| Error::MalformedRow {
            table: "meta".into(),
            column: self.pointer_key(),
            reason: e.to_string(),
        })
    }

    /// Moves the pointer from `from` to `to`, durably; with a lease, only while that is held.
    ///
    /// # Errors
    /// [`Error::PointerMoved`] if it is not `from` any more, [`Error::LeaseLost`]; nothing was changed then.
    pub(super) async fn move_pointer(
        &self,
        from: Option<&Pointer>,
        to: &Pointer,
        lease: Option<&MaintenanceLease>,
    ) -> Result<()> {
        let (key, value) = (self.pointer_key(), serde_json::json!(to).to_string());
        let expected = from.map(|from| serde_json::json!(from).to_string());
        // What the pointer will name is on the medium before the pointer is, and the pointer before we say so.
        self.store.acknowledge().await?;
        self.store.fault_point("activate: before the pointer moves").await?;
        let (meta, now) = (&self.store.meta, self.store.clock().now());
        let is_moved = match (lease, expected) {
            (None, expected) => meta.compare_and_set(&key, expected.as_deref(), &value, now).await?,
            (Some(lease), Some(expected)) => lease.compare_and_set(&key, &expected, &value).await?,
            (Some(lease), None) => {
                // There is no pointer yet: first one that leads nowhere, so that there is a row to be replaced.
                let nowhere = serde_json::json!(Pointer::default()).to_string();
                meta.compare_and_set(&key, None, &nowhere, now).await?
                    && lease.compare_and_set(&key, &nowhere, &value).await?
            }
        };
        if !is_moved {
            let name = |pointer: Option<Pointer>| {
                pointer.and_then(|p| p.active).map_or_else(|| "none".to_owned(), |id| id.to_string())
            };
            return Err(Error::PointerMoved { expected: name(from.cloned()), found: name(self.pointer().await?) });
        }
        tracing::debug!(?to, "pointer moved");
        self.store.fault_point("activate: pointer moved").await?;
        self.store.acknowledge().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> GenerationId {
        GenerationId::new(n, 0)
    }

    /// The pointer after these became active, one after another.
    fn after(generations: &[u64]) -> Pointer {
        let mut moments = 0..;
        generations.iter().fold(Pointer::default(), |pointer, n| pointer.moved_to(&id(*n), moment(moments.next())))
    }

    fn moment(n: Option<i64>) -> Timestamp {
        Timestamp(1_780_000_000_000_000 + n.unwrap() * 1_000_000)
    }

    const LATER: Timestamp = Timestamp(1_790_000_000_000_000);

    #[test]
    fn rollback_undoes_an_activation_and_ends_where_history_ends() {
        let (one, two) = (after(&[1]), after(&[1, 2]));
        assert_eq!((&two.active, &two.previous), (&Some(id(2)), &vec![id(1)]));
        let (back, target) = two.rolled_back(LATER).unwrap();
        assert_eq!((back.active, back.previous, target), (Some(id(1)), vec![], id(1)));
        assert_eq!(one.rolled_back(LATER), None);
    }

    #[test]
    fn activating_what_was_active_once_leaves_no_double_entry() {
        let pointer = after(&[1, 2, 1]);
        assert_eq!((pointer.active, pointer.previous), (Some(id(1)), vec![id(2)]));
    }

    #[test]
    fn nothing_leads_back_to_what_is_being_removed_and_an_older_pointer_can_still_be_read() {
        let pointer = after(&[1, 2, 3]).without(&[id(1)]);
        assert_eq!((&pointer.previous, &pointer.removing), (&vec![id(2)], &vec![id(1)]));
        assert_eq!(pointer.rolled_back(LATER).unwrap().0.rolled_back(LATER), None);
        let stored = serde_json::json!({"active": id(1), "previous": []});
        let read = serde_json::from_value::<Pointer>(stored.clone()).unwrap();
        assert_eq!(read, Pointer { active: Some(id(1)), ..Pointer::default() });
        // A compare-and-set expects the value to the letter.
        assert_eq!(serde_json::json!(read), stored);
    }

    #[test]
    fn moves_are_remembered_in_order_and_the_oldest_are_forgotten() {
        let moves = after(&[1, 2]).rolled_back(LATER).unwrap().0.moves;
        let told: Vec<_> = moves.iter().map(|m| (m.change, m.active.clone(), m.previous.clone())).collect();
        let activated = PointerChange::Activated;
        let rolled_back = (PointerChange::RolledBack, id(1), Some(id(2)));
        assert_eq!(told, [(activated, id(1), None), (activated, id(2), Some(id(1))), rolled_back]);
        assert_eq!(moves[2].at, LATER.to_rfc3339());
        let many = after(&(1..=40).collect::<Vec<_>>()).moves;
        assert_eq!((many.len(), &many[0].active, &many[31].active), (32, &id(9), &id(40)));
    }
}
