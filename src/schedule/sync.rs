//! One step: ingest, backfill, see to the index, keep house if due.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::policy::RebuildPolicy;
use super::renew::{IndexOutcome, Remeasure, RenewOptions};
use crate::backfill::{BackfillOptions, BackfillReport};
use crate::engine::{Bank, Pending, owned_paths};
use crate::error::Result;
use crate::housekeeping::{HousekeepingOptions, HousekeepingReport, Step};
use crate::index::{BuildOptions, ValidateOptions};
use crate::ingest::{IngestOptions, IngestReport};

/// How to bring a bank up to date.
#[derive(Clone, Debug, Default)]
pub struct SyncOptions {
    /// How to ingest.
    pub ingest: IngestOptions,
    /// What to embed.
    pub backfill: BackfillOptions,
    /// When to fold rows into the index, and when to build one.
    pub policy: RebuildPolicy,
    /// What to build.
    pub build: BuildOptions,
    /// How to validate it.
    pub validate: ValidateOptions,
    /// When the active index is measured again. Default: after rows were folded into it.
    pub remeasure: Remeasure,
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
    /// What somebody should look at, in sentences: a recall that has fallen, rows that could not be folded in.
    pub warnings: Vec<String>,
    /// Compaction and clean-up, where they were due.
    pub housekeeping: Option<HousekeepingReport>,
    /// Whether it stopped because it was asked to.
    pub cancelled: bool,
}

impl SyncReport {
    /// Whether it found nothing to do, tidying aside.
    pub fn is_idle(&self) -> bool {
        self.ingest.is_idle() && self.backfill.is_idle() && self.index.is_idle()
    }
}

impl Bank {
    /// The main job: ingest, embed what is missing, and see to the index if the policy says so. Without sources nothing is
    /// read, and nothing taken for vanished.
    ///
    /// # Errors
    /// Those of the stages. A refused index is not an error but an [`IndexOutcome::Refused`].
    pub fn sync<P: AsRef<Path>>(&self, sources: &[P], options: SyncOptions) -> Pending<'_, SyncReport> {
        Box::pin(self.sync_paths(owned_paths(sources), options))
    }

    pub(super) async fn sync_paths(&self, sources: Vec<PathBuf>, options: SyncOptions) -> Result<SyncReport> {
        let ingest = match sources.is_empty() {
            true => IngestReport::default(),
            false => self.ingest_paths(sources, options.ingest).await?,
        };
        let backfill = self.backfill(options.backfill).await?;
        let index = if ingest.cancelled || backfill.cancelled {
            IndexOutcome::Cancelled
        } else {
            let SyncOptions { policy, build, validate, remeasure, .. } = options;
            self.renew_index(RenewOptions { policy, build, validate, remeasure }).await?
        };
        let cancelled = matches!(index, IndexOutcome::Cancelled);
        let is_idle = ingest.is_idle() && backfill.is_idle() && index.is_idle();
        let step = if is_idle { Step::Idle } else { Step::Changed };
        let housekeeping = if cancelled { None } else { self.keep_house_if_due(options.housekeeping, step).await? };
        let warnings = index.warning().into_iter().collect();
        Ok(SyncReport { ingest, backfill, index, warnings, housekeeping, cancelled })
    }
}
