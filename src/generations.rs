//! The bank's index generations: build, validate, activate, go back; and the numbers that a policy decides by.
//!
//! Each step is that of [`crate::index`], seen through the handle. Must not know: texts, files, embedders.

use crate::engine::{Bank, Pending};
use crate::error::Result;
use crate::id::GenerationId;
use crate::index::{
    Activation, BuildOptions, Built, Generation, LiveRecall, OptimiseReport, PointerMove, ValidateOptions, Validated,
    VerifyReport,
};
use crate::schedule::{ActiveStatistics, IndexStatistics};
use crate::store::Coverage;

impl Bank {
    /// Builds the next index generation. It serves nothing before it is validated and activated.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy), [`Error::CannotBuild`](crate::Error::CannotBuild),
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn build_index(&self, options: BuildOptions) -> Pending<'_, Built> {
        Box::pin(async move { self.indexing().build(options).await })
    }

    /// Measures the recall of a built generation and lets it pass, or not.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`](crate::Error::RecallTooLow): the active generation stays what it was.
    pub fn validate(&self, built: Built, options: ValidateOptions) -> Pending<'_, Validated> {
        Box::pin(async move { self.indexing().validate(built, &options).await })
    }

    /// Builds and validates; with [`IndexKind::Auto`](crate::IndexKind::Auto) another kind is tried where one is refused.
    ///
    /// # Errors
    /// As [`Bank::build_index`] and [`Bank::validate`].
    pub fn build_validated(&self, build: BuildOptions, validate: ValidateOptions) -> Pending<'_, Validated> {
        Box::pin(async move { self.indexing().build_validated(build, &validate).await })
    }

    /// Chooses other query settings for a generation that passed validation, on the vectors there are now and with new
    /// queries; `options.min_recall` must be reached, and is what is aimed at. Search uses them from then on.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`](crate::Error::RecallTooLow) where no setting suffices: it is searched as before;
    /// [`Error::WrongState`](crate::Error::WrongState),
    /// [`Error::Busy`](crate::Error::Busy).
    pub fn tune<'a>(&'a self, id: &'a GenerationId, options: ValidateOptions) -> Pending<'a, Generation> {
        Box::pin(async move { self.indexing().retune(id, &options).await })
    }

    /// Measures the recall of a generation again, from what its record says, and compares. Changes nothing.
    ///
    /// # Errors
    /// [`Error::WrongState`](crate::Error::WrongState) for a generation that did not pass or whose index is gone.
    pub fn verify<'a>(&'a self, id: &'a GenerationId) -> Pending<'a, VerifyReport> {
        Box::pin(async move { self.indexing().verify(id).await })
    }

    /// Moves the pointer that search follows to a validated generation.
    ///
    /// # Errors
    /// [`Error::PointerMoved`](crate::Error::PointerMoved) if another process was faster.
    pub fn activate(&self, validated: Validated) -> Pending<'_, Activation> {
        Box::pin(async move { self.indexing().activate(validated).await })
    }

    /// Leaves a validated generation ready, for [`Bank::activate_generation`] later.
    ///
    /// # Errors
    /// Those of the store.
    pub fn set_aside(&self, validated: Validated) -> Pending<'_, GenerationId> {
        Box::pin(async move { self.indexing().set_aside(validated).await })
    }

    /// Moves the pointer to a generation that passed validation earlier.
    ///
    /// # Errors
    /// [`Error::WrongState`](crate::Error::WrongState) for one that never passed.
    pub fn activate_generation<'a>(&'a self, id: &'a GenerationId) -> Pending<'a, Activation> {
        Box::pin(async move { self.indexing().activate_stored(id).await })
    }

    /// Returns to the generation that was active before.
    ///
    /// # Errors
    /// [`Error::WrongState`](crate::Error::WrongState) if there is none.
    pub fn rollback(&self) -> Pending<'_, Activation> {
        Box::pin(async move { self.indexing().rollback().await })
    }

    /// All generations of this embedder, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub fn generations(&self) -> Pending<'_, Vec<Generation>> {
        Box::pin(async move { self.indexing().list().await })
    }

    /// The moves of the pointer that search follows, oldest first; the last 32 are remembered.
    ///
    /// # Errors
    /// Those of the store.
    pub fn index_history(&self) -> Pending<'_, Vec<PointerMove>> {
        Box::pin(async move { self.indexing().history().await })
    }

    /// Folds the rows that are newer than the active index into it, incrementally: the generation stays, and so does what it
    /// was trained with.
    ///
    /// # Errors
    /// [`Error::NoActiveGeneration`](crate::Error::NoActiveGeneration), [`Error::Busy`](crate::Error::Busy),
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn optimise_index(&self) -> Pending<'_, OptimiseReport> {
        Box::pin(async move { self.indexing().optimise().await })
    }

    /// Measures the recall of the active index over the present rows and keeps the result with the generation; `None` where
    /// there is no index.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn measure_live_recall(&self, k: usize) -> Pending<'_, Option<LiveRecall>> {
        Box::pin(async move { self.indexing().measure_live(k).await })
    }

    /// The same where anything has changed since it was measured last.
    pub(crate) async fn measure_live_if_changed(&self, k: usize) -> Result<Option<LiveRecall>> {
        let indexing = self.indexing();
        if indexing.is_changed_since_measured().await? { indexing.measure_live(k).await } else { Ok(None) }
    }

    /// What was measured last of the active index.
    pub(crate) async fn live_recall(&self) -> Result<Option<LiveRecall>> {
        Ok(self.indexing().active().await?.and_then(|active| active.live.last().cloned()))
    }

    /// What the policy of [`crate::schedule`] decides by.
    pub(crate) async fn index_statistics(&self) -> Result<IndexStatistics> {
        self.statistics_with(self.indexing().active().await?).await
    }

    /// What the policy would decide by if this generation were the active one.
    pub(crate) async fn statistics_with(&self, active: Option<Generation>) -> Result<IndexStatistics> {
        self.embeddings.refresh().await?;
        let rows = self.embeddings.count().await?;
        let Some(active) = active else {
            return Ok(IndexStatistics { rows, active: None, lost: None });
        };
        if !self.indexing().has_its_index(&active).await? {
            return Ok(IndexStatistics { rows, active: None, lost: Some(active.id) });
        }
        let coverage = self.coverage_of(&active).await?;
        let statistics = ActiveStatistics {
            rows_at_build: active.rows,
            rows_folded: active.rows_folded,
            newer: coverage.map_or(0, |found| found.newer),
            deltas: coverage.map_or(0, |found| found.segments.saturating_sub(1)),
            kind: active.index_kind(),
            live: active.live.last().cloned(),
        };
        Ok(IndexStatistics { rows, active: Some(statistics), lost: None })
    }

    /// What the index of a generation covers of the version that was last seen; `None` for a flat one.
    pub(crate) async fn coverage_of(&self, generation: &Generation) -> Result<Option<Coverage>> {
        if generation.spec.is_none() {
            return Ok(None);
        }
        let snapshot = self.embeddings.snapshot().await?;
        self.embeddings.coverage(&snapshot, &generation.id).await
    }
}
