//! Housekeeping: generations that nobody needs go, small fragments are merged, old versions are cleaned up.
//!
//! Guarantees: all of it happens under the one maintenance lease, so never beside a running build; the steps fail by
//! themselves, table by table, and a failure is a row of the report; no version goes that was the newest
//! within [`HousekeepingOptions::keep_versions`]. Must not know: what the tables mean.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::engine::{Bank, Pending};
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::index::FailedOnes;
use crate::store::MaintenanceLease;

/// The key in `meta` of the moment of the last clean-up, microseconds since the epoch.
const CLEANED_AT: &str = "housekeeping/cleaned-at";

/// How to keep house.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HousekeepingOptions {
    /// How long a version of a table stays after it was replaced, so that whoever reads it can finish. Default an hour: longer
    /// than any query, claim or export is expected to take. A shorter one takes less room in a bank that is changed every
    /// few seconds. Clean-up that is not asked for happens no more often than this either. A generation that passed its gate
    /// and was never activated waits as long.
    pub keep_versions: Duration,
}

impl Default for HousekeepingOptions {
    fn default() -> Self {
        Self { keep_versions: Duration::from_secs(3600) }
    }
}

/// What came before housekeeping that is done where it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing was written.
    Idle,
    /// Something was.
    Changed,
}

/// What housekeeping did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HousekeepingReport {
    /// Generations whose record and index are gone.
    pub removed: Vec<GenerationId>,
    /// Bytes of the indexes of these. They are free once no version names them that was the newest within `keep_versions`.
    pub index_bytes: u64,
    /// Tables whose small fragments were merged.
    pub compacted: Vec<String>,
    /// Old versions that were removed, over all tables.
    pub versions_removed: u64,
    /// Bytes that this freed.
    pub bytes_freed: u64,
    /// What did not work; the next occasion tries again.
    pub failures: Vec<HousekeepingFailure>,
}

/// A step that failed; the others went on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HousekeepingFailure {
    /// Which.
    pub step: HousekeepingStep,
    /// The table, or the embedder's generations.
    pub of: String,
    /// Why.
    pub reason: String,
}

/// A step of housekeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HousekeepingStep {
    /// Removing generations.
    Generations,
    /// Merging small fragments.
    Compaction,
    /// Removing old versions.
    CleanUp,
}

impl HousekeepingStep {
    /// The step as words.
    pub fn label(self) -> &'static str {
        match self {
            Self::Generations => "removing generations",
            Self::Compaction => "compaction",
            Self::CleanUp => "clean-up of old versions",
        }
    }
}

impl HousekeepingReport {
    fn note<T>(&mut self, step: HousekeepingStep, of: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                tracing::warn!(step = step.label(), of, %error, "housekeeping failed");
                self.failures.push(HousekeepingFailure { step, of: of.to_owned(), reason: error.chain() });
                None
            }
        }
    }
}

impl Bank {
    /// Removes failed and long retired generations, merges small fragments, and cleans up old versions of the tables.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::LeaseLost`]. What fails for one table is a row of the report.
    pub fn keep_house(&self, options: HousekeepingOptions) -> Pending<'_, HousekeepingReport> {
        Box::pin(async move {
            let lease = self.store.maintenance_lease("keeping house").await?;
            let mut report = HousekeepingReport::default();
            self.remove_generations(FailedOnes::All, options, &lease, &mut report).await;
            self.compact(&lease, &mut report).await?;
            self.clean_up(options, &lease, &mut report).await?;
            lease.release().await?;
            Ok(report)
        })
    }

    /// Does what is due: generations go that nothing needs, or that a crash left. After a step that changed something also
    /// compaction where a table is in many pieces, and clean-up if the last one is long enough ago. `None` if nothing is due,
    /// or somebody else is in maintenance.
    pub(crate) async fn keep_house_if_due(
        &self,
        options: HousekeepingOptions,
        after: Step,
    ) -> Result<Option<HousekeepingReport>> {
        let must_remove = self.indexing().has_garbage(options.keep_versions).await?;
        // What changed nothing leaves no pieces: a sync with nothing to do costs no look at the tables.
        let has_changed = after == Step::Changed;
        let must_compact = has_changed && self.store.is_in_pieces().await?;
        let must_clean_up = has_changed && self.is_clean_up_due(options).await?;
        if !must_remove && !must_compact && !must_clean_up {
            return Ok(None);
        }
        let lease = match self.store.maintenance_lease("keeping house").await {
            Ok(lease) => lease,
            Err(Error::Busy { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut report = HousekeepingReport::default();
        let done = async {
            if must_remove {
                self.remove_generations(FailedOnes::Overtaken, options, &lease, &mut report).await;
            }
            if must_compact {
                self.compact(&lease, &mut report).await?;
            }
            if must_clean_up {
                self.clean_up(options, &lease, &mut report).await?;
            }
            Ok(())
        };
        match done.await {
            Ok(()) => {}
            Err(Error::LeaseLost { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        lease.release().await?;
        Ok(Some(report))
    }

    async fn remove_generations(
        &self,
        failed: FailedOnes,
        options: HousekeepingOptions,
        lease: &MaintenanceLease,
        report: &mut HousekeepingReport,
    ) {
        let removed = async {
            self.embeddings.refresh().await?;
            let bytes = self.embeddings.index_sizes().await?;
            let removed = self.indexing().remove_unneeded(lease, failed, options.keep_versions).await?;
            let freed = removed.iter().filter_map(|id| bytes.get(id)).sum();
            Ok((removed, freed))
        };
        let removed = report.note(HousekeepingStep::Generations, self.embedder_id.as_str(), removed.await);
        (report.removed, report.index_bytes) = removed.unwrap_or_default();
    }

    async fn compact(&self, lease: &MaintenanceLease, report: &mut HousekeepingReport) -> Result<()> {
        for table in self.store.table_names().await? {
            // A compaction beside somebody else's build would cost that build.
            lease.check().await?;
            let compacted = self.store.compact(&table).await;
            if report.note(HousekeepingStep::Compaction, &table, compacted) == Some(true) {
                report.compacted.push(table);
            }
        }
        Ok(())
    }

    async fn clean_up(
        &self,
        options: HousekeepingOptions,
        lease: &MaintenanceLease,
        report: &mut HousekeepingReport,
    ) -> Result<()> {
        // What the present versions hold is on the medium before the old ones go.
        self.store.acknowledge().await?;
        for table in self.store.table_names().await? {
            lease.check().await?;
            let cleaned = self.store.clean_up(&table, options.keep_versions).await;
            if let Some(removed) = report.note(HousekeepingStep::CleanUp, &table, cleaned) {
                report.versions_removed += removed.versions;
                report.bytes_freed += removed.bytes;
            }
        }
        let now = self.store.clock().now();
        self.store.meta.put(CLEANED_AT, &now.0.to_string(), now).await
    }

    async fn is_clean_up_due(&self, options: HousekeepingOptions) -> Result<bool> {
        let last = self.store.meta.get(CLEANED_AT).await?.and_then(|moment| moment.parse().ok()).map(Timestamp);
        Ok(last.is_none_or(|last| self.store.clock().now().since(last) >= options.keep_versions))
    }
}
