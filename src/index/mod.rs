//! The life of an index: build under a new id → validate recall against exact search → activate by moving the pointer.
//!
//! Guarantees: only what was validated can be activated (the types [`Built`] → [`Validated`] → activation leave no other
//! way); the pointer moves by compare-and-set; search is served with exactly the settings that were validated; a build that
//! was interrupted is cleaned up by the next one. Must not know: files, texts, embedders (queries are vectors).

mod activate;
pub(crate) mod audit;
mod build;
mod confidence;
mod estimate;
mod garbage;
mod generation;
mod ladder;
mod live;
mod optimise;
mod pointer;
mod queries;
mod recall;
mod report;
mod retune;
mod rules;
mod slices;
mod sources;
mod tune;
mod validate;
mod verify;

pub use activate::Activation;
pub use build::{BuildOptions, Built};
pub(crate) use garbage::FailedOnes;
pub use generation::{Generation, GenerationState};
pub use live::LiveRecall;
pub use optimise::{Optimisation, OptimiseReport};
pub use pointer::{PointerChange, PointerMove};
pub use report::{RecallReport, SliceReport, TriedSettings};
use rules::second_choice;
pub use rules::{FLAT_BELOW, HNSW_UP_TO, IndexKind, RQ_UP_TO, SpecOverrides};
pub(crate) use sources::AskAnew;
pub use validate::{ValidateOptions, Validated};
pub use verify::VerifyReport;

use crate::error::{Error, Result};
use crate::id::{EmbedderId, GenerationId};
use crate::memory::MemoryLimit;
use crate::progress::{Cancel, Listener, Progress};
use crate::store::{Embeddings, Store};
use generation::Record;

/// The stage, ready to run.
#[derive(Clone)]
pub(crate) struct Indexing {
    pub(crate) store: Store,
    pub(crate) embedder_id: EmbedderId,
    pub(crate) embeddings: Embeddings,
    pub(crate) memory: MemoryLimit,
    pub(crate) listener: Listener,
    pub(crate) cancel: Cancel,
    /// Where the embedder tells questions from passages.
    pub(crate) ask_anew: Option<AskAnew>,
}

impl Indexing {
    /// The embedder's generations, oldest first, with their present state.
    pub(crate) async fn list(&self) -> Result<Vec<Generation>> {
        let pointer = self.pointer().await?.unwrap_or_default();
        let rows = self.store.generations.list(Some(&self.embedder_id)).await?;
        rows.iter().map(|row| Generation::from_row(row, &pointer)).collect()
    }

    /// One generation.
    pub(crate) async fn get(&self, id: &GenerationId) -> Result<Generation> {
        let found = self.list().await?.into_iter().find(|generation| generation.id == *id);
        found.ok_or_else(|| Error::UnknownGeneration { id: id.to_string() })
    }

    /// The active generation, if there is one.
    pub(crate) async fn active(&self) -> Result<Option<Generation>> {
        Ok(self.list().await?.into_iter().find(|generation| generation.state == GenerationState::Active))
    }

    /// Builds and validates. Where the kind is left to us and one is refused, another one gets its turn.
    pub(crate) async fn build_validated(&self, build: BuildOptions, validate: &ValidateOptions) -> Result<Validated> {
        let mut kind = build.kind;
        loop {
            let built = self.build(BuildOptions { kind, ..build }).await?;
            let second = match build.kind {
                IndexKind::Auto => second_choice(built.kind(), self.embeddings.dimension()),
                _ => None,
            };
            match (self.validate(built, validate).await, second) {
                (Err(refused @ Error::RecallTooLow { .. }), Some(second)) => {
                    self.listener.report(Progress::Note(format!("{refused}; trying {}", second.label())));
                    kind = second;
                }
                (finished, _) => return finished,
            }
        }
    }

    /// Writes the row of a new generation.
    async fn begin(&self, id: &GenerationId, record: &Record) -> Result<()> {
        self.store.generations.add(&record.to_row(id, &self.embedder_id, self.store.clock().now())).await?;
        tracing::debug!(%id, state = record.state.label(), "generation");
        Ok(())
    }

    /// Moves a generation on to `next`. Returns whether it was still where the record says; if not, whoever has taken over
    /// the maintenance has decided about it.
    async fn advance(&self, id: &GenerationId, record: &mut Record, next: GenerationState) -> Result<bool> {
        let from = record.state;
        record.advance(id, next)?;
        let row = record.to_row(id, &self.embedder_id, self.store.clock().now());
        let is_advanced = self.store.generations.advance(&row, from.label()).await?;
        tracing::debug!(%id, state = next.label(), is_advanced, "generation");
        Ok(is_advanced)
    }

    /// Changes the record of a generation, whatever others write into it meanwhile; `false` if there is none any more.
    async fn amend(&self, id: &GenerationId, change: impl Fn(&mut Record)) -> Result<bool> {
        loop {
            let rows = self.store.generations.list(Some(&self.embedder_id)).await?;
            let Some(row) = rows.into_iter().find(|row| row.id == *id) else { return Ok(false) };
            let mut record = Record::from_row(&row)?;
            change(&mut record);
            let amended = record.to_row(id, &self.embedder_id, self.store.clock().now());
            if self.store.generations.replace(&amended, &row.record).await? {
                return Ok(true);
            }
        }
    }
}
