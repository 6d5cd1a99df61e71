//! Keeping a bank fresh: one bounded step a tick — ingest, backfill, rebuild if the policy says so, activate, keep house.
//!
//! Guarantees: a tick can be killed anywhere and the next one continues; an index that fails its gate leaves the old one
//! active and does not fail the tick's other work. Must not know: what the stages do inside.

mod policy;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub use policy::{ActiveStatistics, IndexAction, IndexStatistics, RebuildPolicy};

use crate::backfill::{BackfillOptions, BackfillReport};
use crate::engine::{Bank, Pending, owned_paths};
use crate::error::{Error, Result};
use crate::housekeeping::{HousekeepingOptions, HousekeepingReport};
use crate::id::GenerationId;
use crate::index::{BuildOptions, RecallReport, ValidateOptions};
use crate::ingest::{IngestOptions, IngestReport};

/// How to bring a bank up to date.
#[derive(Clone, Debug, Default)]
pub struct SyncOptions {
    /// How to ingest.
    pub ingest: IngestOptions,
    /// What to embed.
    pub backfill: BackfillOptions,
    /// When to build an index.
    pub policy: RebuildPolicy,
    /// What to build.
    pub build: BuildOptions,
    /// How to validate it.
    pub validate: ValidateOptions,
    /// How to keep house afterwards.
    pub housekeeping: HousekeepingOptions,
}

/// What a tick did.
#[derive(Clone, Debug, Serialize)]
pub struct SyncReport {
    /// Reading and chunking.
    pub ingest: IngestReport,
    /// Embedding.
    pub backfill: BackfillReport,
    /// The index.
    pub index: IndexOutcome,
    /// Compaction and clean-up, where they were due.
    pub housekeeping: Option<HousekeepingReport>,
    /// Whether it stopped because it was asked to.
    pub cancelled: bool,
}

/// What became of the index.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum IndexOutcome {
    /// There is nothing to index.
    Nothing,
    /// The active generation serves on.
    Kept {
        /// Why no new one was needed.
        reason: String,
    },
    /// A new generation is active.
    Activated {
        /// It.
        generation: GenerationId,
        /// Its kind.
        kind: String,
        /// Rows it covers.
        rows: u64,
        /// Seconds the build took, validation included.
        seconds: f64,
        /// What was measured.
        recall: Box<RecallReport>,
        /// Why it was built.
        reason: String,
    },
    /// A new generation was refused by the gate; the old one serves on.
    Refused {
        /// What the gate said.
        reason: String,
    },
    /// Somebody else is in maintenance; the old one serves on.
    Busy,
    /// It was cancelled before its turn.
    Cancelled,
}

impl Bank {
    /// The main job: ingest, embed what is missing, and renew the index if the policy says so.
    ///
    /// # Errors
    /// Those of the stages. A refused index is not an error but an [`IndexOutcome::Refused`].
    pub fn sync<P: AsRef<Path>>(&self, sources: &[P], options: SyncOptions) -> Pending<'_, SyncReport> {
        self.sync_paths(owned_paths(sources), options)
    }

    fn sync_paths(&self, sources: Vec<PathBuf>, options: SyncOptions) -> Pending<'_, SyncReport> {
        Box::pin(async move {
            let ingest = self.ingest_paths(sources, options.ingest).await?;
            let backfill = self.backfill(options.backfill).await?;
            let index = if ingest.cancelled || backfill.cancelled {
                IndexOutcome::Cancelled
            } else {
                self.renew_index(options.policy, options.build, options.validate).await?
            };
            let cancelled = matches!(index, IndexOutcome::Cancelled);
            let is_idle = ingest.is_idle() && backfill.is_idle() && !matches!(index, IndexOutcome::Activated { .. });
            // What changed nothing leaves nothing to tidy: a sync with nothing to do costs no look at the tables.
            let housekeeping =
                if is_idle || cancelled { None } else { self.keep_house_if_due(options.housekeeping).await? };
            Ok(SyncReport { ingest, backfill, index, housekeeping, cancelled })
        })
    }

    /// Builds, validates and activates a new generation if the policy asks for one.
    ///
    /// # Errors
    /// Those of the index stage, but for a refusal, a busy bank, and a cancellation, which are outcomes.
    pub fn renew_index(
        &self,
        policy: RebuildPolicy,
        build: BuildOptions,
        validate: ValidateOptions,
    ) -> Pending<'_, IndexOutcome> {
        Box::pin(self.renew_index_inner(policy, build, validate))
    }

    async fn renew_index_inner(
        &self,
        policy: RebuildPolicy,
        build: BuildOptions,
        validate: ValidateOptions,
    ) -> Result<IndexOutcome> {
        let reason = match policy.decide(&self.index_statistics().await?, build.kind) {
            IndexAction::Nothing => return Ok(IndexOutcome::Nothing),
            IndexAction::Keep { reason } => return Ok(IndexOutcome::Kept { reason }),
            IndexAction::Build { reason } => reason,
        };
        let began = std::time::Instant::now();
        let finished = async {
            let validated = self.build_validated(build, validate).await?;
            let (kind, rows) = (validated.kind().to_owned(), validated.rows());
            let recall = Box::new(validated.report().clone());
            let activation = self.activate(validated).await?;
            Ok((activation.active, kind, rows, recall))
        };
        match finished.await {
            Ok((generation, kind, rows, recall)) => {
                let seconds = began.elapsed().as_secs_f64();
                Ok(IndexOutcome::Activated { generation, kind, rows, seconds, recall, reason })
            }
            Err(error @ Error::RecallTooLow { .. }) => Ok(IndexOutcome::Refused { reason: error.to_string() }),
            Err(Error::Busy { .. } | Error::LeaseLost { .. }) => Ok(IndexOutcome::Busy),
            Err(Error::Cancelled) => Ok(IndexOutcome::Cancelled),
            Err(error) => Err(error),
        }
    }
}
