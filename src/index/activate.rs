//! Moving the pointer: forward to a validated generation, or back to an earlier one.

use serde::Serialize;

use super::Indexing;
use super::generation::{Generation, GenerationState};
use super::pointer::{Pointer, PointerMove};
use super::validate::Validated;
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::store::{MaintenanceLease, Snapshot};

/// A pointer that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Activation {
    /// What search follows now.
    pub active: GenerationId,
    /// What it followed before.
    pub previous: Option<GenerationId>,
}

impl Indexing {
    /// Makes a validated generation the active one. Its index is loaded before the pointer moves, so the first query after
    /// the flip is not a slow one.
    ///
    /// # Errors
    /// [`Error::PointerMoved`] if another process was faster; [`Error::LeaseLost`] if one has taken over the maintenance, and
    /// may have built a newer one. Nothing was changed then; the generation is ready.
    pub(crate) async fn activate(&self, validated: Validated) -> Result<Activation> {
        let Validated { id, snapshot, lease, .. } = validated;
        self.prewarm(&id, &snapshot).await?;
        let pointer = self.pointer().await?;
        let activation = self.point_at(&id, pointer, Some(&lease)).await?;
        lease.release().await?;
        Ok(activation)
    }

    /// The generation whose activation a crash prevented: it passed, is newer than any that was active, and was not set aside.
    /// Perhaps nobody crashed, and somebody is about to activate it.
    pub(crate) async fn left_ready(&self) -> Result<Option<Generation>> {
        let was_served = |one: &Generation| matches!(one.state, GenerationState::Active | GenerationState::Retired);
        let newest_first = self.list().await?.into_iter().rev();
        let mut newer = newest_first.take_while(|one| !was_served(one));
        Ok(newer.find(|one| one.state == GenerationState::Ready && !one.set_aside))
    }

    /// Makes up for an activation that a crash prevented. Returns whether there was one to make up for.
    ///
    /// # Errors
    /// [`Error::Busy`]: perhaps nobody crashed. [`Error::PointerMoved`], [`Error::LeaseLost`].
    pub(crate) async fn activate_left_ready(&self, id: &GenerationId) -> Result<bool> {
        let lease = self.store.maintenance_lease("activating an index").await?;
        // Before the generation is looked at; and under the lease, so that nobody else is about to activate it.
        let pointer = self.pointer().await?;
        let left = self.left_ready().await?.filter(|left| left.id == *id);
        if let Some(generation) = &left {
            self.check_index_exists(generation).await?;
            self.prewarm(id, &self.embeddings.snapshot().await?).await?;
            self.point_at(id, pointer, Some(&lease)).await?;
        }
        lease.release().await?;
        Ok(left.is_some())
    }

    /// Leaves a validated generation ready, on purpose, and gives the maintenance lease back.
    pub(crate) async fn set_aside(&self, validated: Validated) -> Result<GenerationId> {
        self.amend(&validated.id, |record| record.set_aside = true).await?;
        // Said to be ready: so it must be there after a power cut.
        self.store.acknowledge().await?;
        validated.lease.release().await?;
        Ok(validated.id)
    }

    /// Makes a generation the active one that passed validation before: one that is ready or retired. Its index is loaded first.
    ///
    /// # Errors
    /// [`Error::WrongState`] for one that never passed; [`Error::UnknownGeneration`].
    pub(crate) async fn activate_stored(&self, id: &GenerationId) -> Result<Activation> {
        // Before the generation is looked at: whoever removes it moves the pointer first, and then this one does not move.
        let pointer = self.pointer().await?;
        let generation = self.get(id).await?;
        match generation.state {
            GenerationState::Ready | GenerationState::Retired => {}
            GenerationState::Active => return Ok(Activation { active: id.clone(), previous: None }),
            state => {
                let reason = "only a generation that passed validation can be activated".to_owned();
                return Err(Error::WrongState { id: id.to_string(), state: state.label().to_owned(), reason });
            }
        }
        self.check_index_exists(&generation).await?;
        self.prewarm(id, &self.embeddings.snapshot().await?).await?;
        self.point_at(id, pointer, None).await
    }

    /// Returns to the generation that was active before. Its index is loaded first.
    ///
    /// # Errors
    /// [`Error::WrongState`] if there is none; [`Error::PointerMoved`] if another process was faster.
    pub(crate) async fn rollback(&self) -> Result<Activation> {
        let pointer = self.pointer().await?.unwrap_or_default();
        let Some((back, target)) = pointer.rolled_back(self.store.clock().now()) else {
            let id = pointer.active.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let reason = "no generation was active before it".to_owned();
            return Err(Error::WrongState { id, state: "active".to_owned(), reason });
        };
        let generation = self.get(&target).await?;
        self.check_index_exists(&generation).await?;
        self.prewarm(&target, &self.embeddings.snapshot().await?).await?;
        self.move_pointer(Some(&pointer), &back, None).await?;
        Ok(Activation { active: target, previous: pointer.active })
    }

    /// The moves of the pointer, oldest first, as far as they are remembered.
    pub(crate) async fn history(&self) -> Result<Vec<PointerMove>> {
        Ok(self.pointer().await?.unwrap_or_default().moves)
    }

    /// Loads a generation's index; there is nothing to load of a flat one. It warms this process and the system's file cache.
    async fn prewarm(&self, id: &GenerationId, snapshot: &Snapshot) -> Result<()> {
        match self.embeddings.coverage(snapshot, id).await? {
            Some(_) => self.embeddings.prewarm(snapshot, id).await,
            None => Ok(()),
        }
    }

    async fn point_at(
        &self,
        id: &GenerationId,
        pointer: Option<Pointer>,
        lease: Option<&MaintenanceLease>,
    ) -> Result<Activation> {
        let moved = pointer.clone().unwrap_or_default().moved_to(id, self.store.clock().now());
        self.move_pointer(pointer.as_ref(), &moved, lease).await?;
        Ok(Activation { active: id.clone(), previous: pointer.and_then(|p| p.active) })
    }

    /// Whether the generation needs no index, or has all of it.
    pub(crate) async fn has_its_index(&self, generation: &Generation) -> Result<bool> {
        Ok(generation.spec.is_none() || self.embeddings.has_index(&generation.id).await?)
    }

    async fn check_index_exists(&self, generation: &Generation) -> Result<()> {
        self.embeddings.refresh().await?;
        if !self.has_its_index(generation).await? {
            let (id, state) = (generation.id.to_string(), "without an index".to_owned());
            return Err(Error::WrongState { id, state, reason: "its index is gone; build a new one".to_owned() });
        }
        Ok(())
    }
}
