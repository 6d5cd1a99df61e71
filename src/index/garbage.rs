//! Removing generations that nothing needs any more.
//!
//! What stays: the active generation; the one that a rollback leads to; the one that search followed last, where that was
//! rolled back; what was set aside; what passed and waits for its activation. What goes: all other retired ones, those whose
//! activation a crash prevented once they are overtaken or older than the grace, and the failed ones: at once where somebody
//! asks for it, else once they are overtaken and older than the grace, so that their reasons can be read. The files of a
//! failed one went when it failed.
//!
//! **How no running search loses what it reads.** A search reads the pointer, then takes a snapshot of the table. If its
//! generation is removed in between, it finds no index of that name, reads the pointer again and follows it. Once it has its
//! snapshot it keeps the index: dropping an index takes it out of the newest version alone, and its files stay as long as a
//! version names them that was the newest within `keep_versions`, an hour by default and longer than any search.

use std::time::Duration;

use super::Indexing;
use super::generation::{Generation, GenerationState};
use super::pointer::Pointer;
use crate::error::Result;
use crate::id::GenerationId;
use crate::store::MaintenanceLease;

/// Which failed generations go with the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailedOnes {
    /// All of them.
    All,
    /// Those that were begun longer ago than the grace and that a newer one has overtaken.
    Overtaken,
}

impl Indexing {
    /// Whether something is to be removed, or was left by a crash. Perhaps nobody crashed, and somebody is at work on it.
    pub(crate) async fn has_garbage(&self, grace: Duration) -> Result<bool> {
        let (pointer, generations, overdue) = self.all(grace).await?;
        let pointer = pointer.unwrap_or_default();
        Ok(!pointer.removing.is_empty()
            || generations.iter().any(|one| one.state.is_unfinished())
            || !unneeded(&generations, &pointer, &overdue).is_empty()
            || !failed(&generations, FailedOnes::Overtaken, &overdue).is_empty())
    }

    /// Removes what nothing needs any more. Returns what was removed.
    ///
    /// # Errors
    /// [`Error::LeaseLost`](crate::error::Error::LeaseLost); what was removed by then was nobody's any more.
    pub(crate) async fn remove_unneeded(
        &self,
        lease: &MaintenanceLease,
        failed_ones: FailedOnes,
        grace: Duration,
    ) -> Result<Vec<GenerationId>> {
        self.fail_interrupted(lease).await?;
        let mut removed = Vec::new();
        let (pointer, generations, overdue) = self.all(grace).await?;
        let mut given_up: Vec<_> = pointer.iter().flat_map(|pointer| pointer.removing.clone()).collect();
        if let Some(pointer) = &pointer {
            given_up.extend(unneeded(&generations, pointer, &overdue));
            // What can still be activated is not removed. From here on nobody can activate it, however slowly the rest goes.
            if pointer.removing != given_up {
                self.move_pointer(Some(pointer), &pointer.without(&given_up), Some(lease)).await?;
                self.store.fault_point("garbage: generations given up").await?;
            } else {
                lease.check().await?;
            }
        } else {
            lease.check().await?;
        }
        let mut failed = failed(&generations, failed_ones, &overdue);
        failed.retain(|id| !given_up.contains(id));
        for id in failed.into_iter().chain(given_up) {
            // The index first: a record without an index would offer a rollback to nothing.
            self.embeddings.drop_index(&id).await?;
            self.store.fault_point("garbage: index dropped").await?;
            self.store.generations.remove(&id).await?;
            self.store.fault_point("garbage: generation forgotten").await?;
            tracing::debug!(%id, "removed");
            removed.push(id);
        }
        let pointer = self.pointer().await?;
        if let Some(pointer) = pointer.filter(|pointer| !pointer.removing.is_empty()) {
            self.move_pointer(Some(&pointer), &pointer.without(&[]), Some(lease)).await?;
        }
        // A killed compaction of an index, or a stranger's build, has no generation that says whose it was.
        self.embeddings.remove_unnamed_indexes(grace).await?;
        self.store.acknowledge().await?;
        Ok(removed)
    }

    /// The pointer, all generations, oldest first, and those that were begun longer ago than the grace.
    async fn all(&self, grace: Duration) -> Result<(Option<Pointer>, Vec<Generation>, Vec<GenerationId>)> {
        let pointer = self.pointer().await?;
        let standing = pointer.clone().unwrap_or_default();
        let now = self.store.clock().now();
        let (mut generations, mut overdue) = (Vec::new(), Vec::new());
        for row in self.store.generations.list(Some(&self.embedder_id)).await? {
            if now.since(row.created_at) > grace {
                overdue.push(row.id.clone());
            }
            generations.push(Generation::from_row(&row, &standing)?);
        }
        Ok((pointer, generations, overdue))
    }
}

/// Of the generations, oldest first, those that failed and go.
fn failed(generations: &[Generation], which: FailedOnes, overdue: &[GenerationId]) -> Vec<GenerationId> {
    let newest_served = newest_served(generations);
    let goes = |position: usize, id: &GenerationId| match which {
        FailedOnes::All => true,
        FailedOnes::Overtaken => newest_served.is_some_and(|newest| position < newest) && overdue.contains(id),
    };
    let failed = generations.iter().enumerate().filter(|(_, one)| one.state == GenerationState::Failed);
    failed.filter(|(position, one)| goes(*position, &one.id)).map(|(_, one)| one.id.clone()).collect()
}

fn newest_served(generations: &[Generation]) -> Option<usize> {
    let was_served = |one: &Generation| matches!(one.state, GenerationState::Active | GenerationState::Retired);
    generations.iter().rposition(was_served)
}

/// Generations, oldest first, that passed and need not be kept.
fn unneeded(generations: &[Generation], pointer: &Pointer, overdue: &[GenerationId]) -> Vec<GenerationId> {
    let newest_served = newest_served(generations);
    let goes = |(position, one): (usize, &Generation)| match one.state {
        GenerationState::Retired => !pointer.in_reach().any(|id| *id == one.id),
        GenerationState::Ready if !one.set_aside => {
            newest_served.is_some_and(|newest| position < newest) || overdue.contains(&one.id)
        }
        _ => false,
    };
    // Newest first.
    let unneeded = generations.iter().enumerate().rev().filter(|(position, one)| goes((*position, one)));
    unneeded.map(|(_, one)| one.id.clone()).collect()
}
