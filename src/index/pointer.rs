//! The pointer that search follows: which generation is active, and which were before it. One value in `meta`, changed by
//! compare-and-set alone.

use serde::{Deserialize, Serialize};

use super::Indexing;
use crate::error::{Error, Result};
use crate::id::{EmbedderId, GenerationId};
use crate::store::MaintenanceLease;

/// What the keys of pointers begin with; the embedder follows.
pub(super) const KEY: &str = "active/";

/// Earlier generations that the pointer remembers, for rollback.
const HISTORY: usize = 16;

/// The pointer's value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pointer {
    pub(crate) active: Option<GenerationId>,
    /// Newest first, without the active one.
    pub(crate) previous: Vec<GenerationId>,
    /// Earlier ones that are being removed: nothing can lead back to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) removing: Vec<GenerationId>,
}

impl Pointer {
    /// The pointer after `next` became active.
    pub(super) fn moved_to(&self, next: &GenerationId) -> Self {
        let mut previous = self.previous.clone();
        previous.splice(0..0, self.active.clone());
        previous.retain(|id| id != next);
        previous.truncate(HISTORY);
        Self { active: Some(next.clone()), previous, removing: self.removing.clone() }
    }

    /// The pointer after these were given up.
    pub(super) fn without(&self, given_up: &[GenerationId]) -> Self {
        let previous = self.previous.iter().filter(|id| !given_up.contains(id)).cloned().collect();
        Self { active: self.active.clone(), previous, removing: given_up.to_vec() }
    }

    /// The pointer after a rollback, and where it leads; `None` if there is nothing to return to.
    pub(super) fn rolled_back(&self) -> Option<(Self, GenerationId)> {
        let (target, rest) = self.previous.split_first()?;
        let removing = self.removing.clone();
        Some((Self { active: Some(target.clone()), previous: rest.to_vec(), removing }, target.clone()))
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

    #[test]
    fn rollback_undoes_an_activation_and_ends_where_history_ends() {
        let one = Pointer::default().moved_to(&id(1));
        let two = one.moved_to(&id(2));
        assert_eq!(two, Pointer { active: Some(id(2)), previous: vec![id(1)], ..Pointer::default() });
        assert_eq!(two.rolled_back(), Some((Pointer { active: Some(id(1)), ..Pointer::default() }, id(1))));
        assert_eq!(one.rolled_back(), None);
    }

    #[test]
    fn activating_what_was_active_once_leaves_no_double_entry() {
        let pointer = Pointer::default().moved_to(&id(1)).moved_to(&id(2)).moved_to(&id(1));
        assert_eq!(pointer, Pointer { active: Some(id(1)), previous: vec![id(2)], ..Pointer::default() });
    }

    #[test]
    fn nothing_leads_back_to_what_is_being_removed_and_an_older_pointer_can_still_be_read() {
        let pointer = Pointer::default().moved_to(&id(1)).moved_to(&id(2)).moved_to(&id(3)).without(&[id(1)]);
        assert_eq!((&pointer.previous, &pointer.removing), (&vec![id(2)], &vec![id(1)]));
        assert_eq!(pointer.rolled_back().unwrap().0.rolled_back(), None);
        let stored = serde_json::json!({"active": id(1), "previous": []});
        assert_eq!(serde_json::from_value::<Pointer>(stored).unwrap(), Pointer::default().moved_to(&id(1)));
    }
}
