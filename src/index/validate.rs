//! The gate: measure recall@k on held-out queries against exact search, and let only what reaches the threshold pass.

use super::Indexing;
use super::build::Built;
use super::generation::{GenerationState, Record};
use super::queries::ValidationQuery;
use super::recall::{Measured, RecallReport, recall_of};
use super::tune::FixedSettings;
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::store::{MaintenanceLease, Snapshot};

/// Queries that a flat generation is checked with; each costs a scan of the table by the storage engine.
const FLAT_CHECKS: usize = 8;

/// How to validate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidateOptions {
    /// Neighbours. Default 10.
    pub k: usize,
    /// Mean recall@k that is required. Default 0.95.
    pub min_recall: f64,
    /// Lists to probe, fixed by hand instead of tuned.
    pub nprobes: Option<usize>,
    /// Graph candidates, fixed by hand instead of tuned.
    pub ef: Option<usize>,
    /// Candidates per result to rank again, fixed by hand instead of tuned.
    pub refine_factor: Option<u32>,
}

impl Default for ValidateOptions {
    fn default() -> Self {
        Self { k: 10, min_recall: 0.95, nprobes: None, ef: None, refine_factor: None }
    }
}

/// A generation whose recall was measured and suffices. The only thing that can be activated.
#[derive(Debug)]
#[must_use = "a validated generation serves nothing until it is activated"]
pub struct Validated {
    pub(super) id: GenerationId,
    pub(super) kind: &'static str,
    pub(super) rows: u64,
    pub(super) report: RecallReport,
    pub(super) snapshot: Snapshot,
    pub(super) lease: MaintenanceLease,
}

impl Validated {
    /// The generation.
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Rows it covers.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What was measured.
    pub fn report(&self) -> &RecallReport {
        &self.report
    }
}

impl Indexing {
    /// Tunes the query settings, measures recall, and lets the generation pass or marks it failed.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`] with the measured recall; the generation then stands as failed and its index is removed.
    /// [`Error::LeaseLost`].
    pub(crate) async fn validate(&self, built: Built, options: &ValidateOptions) -> Result<Validated> {
        let Built { id, mut record, snapshot, lease, .. } = built;
        check(options)?;
        let measured = self.measure_generation(&id, &mut record, &snapshot, options).await;
        let report = match measured {
            Ok(report) => report,
            Err(error) => {
                self.fail(&id, &mut record, error.to_string()).await?;
                return Err(error);
            }
        };
        record.recall = Some(report.clone());
        if report.recall < options.min_recall {
            let error = Error::RecallTooLow {
                id: id.to_string(),
                k: options.k,
                recall: report.recall,
                required: options.min_recall,
            };
            self.fail(&id, &mut record, error.to_string()).await?;
            lease.release().await?;
            return Err(error);
        }
        tracing::debug!(%id, recall = report.recall, "validated");
        self.advance_or_drop(&id, &mut record, GenerationState::Ready, &lease).await?;
        self.store.fault_point("validate: passed").await?;
        Ok(Validated { id, kind: record.kind(), rows: record.rows, report, snapshot, lease })
    }

    async fn measure_generation(
        &self,
        id: &GenerationId,
        record: &mut Record,
        snapshot: &Snapshot,
        options: &ValidateOptions,
    ) -> Result<RecallReport> {
        let queries = self.validation_queries(snapshot, record.rows, options.k, record.seed).await?;
        let (verdict, tried) = match record.spec {
            None => (self.measure_flat(snapshot, &queries.verdict).await?, Vec::new()),
            Some(spec) => {
                let fixed =
                    FixedSettings { nprobes: options.nprobes, ef: options.ef, refine_factor: options.refine_factor };
                self.embeddings.prewarm(snapshot, id).await?;
                let tuned = self.tune(id, snapshot, &spec, &queries.tuning, options.min_recall, &fixed).await?;
                record.settings = tuned.0;
                self.check_plan(id, snapshot, record, &queries.verdict).await?;
                (self.measure(id, snapshot, &queries.verdict, &record.settings).await?, tuned.1)
            }
        };
        Ok(RecallReport {
            k: options.k,
            recall: verdict.mean(),
            worst: verdict.worst(),
            required: options.min_recall,
            queries: verdict.recalls.len(),
            tuning_queries: if record.spec.is_some() { queries.tuning.len() } else { 0 },
            query_source: "stored vectors moved to cosine 0.96, themselves excluded".to_owned(),
            ground_truth: if record.spec.is_some() { "exact search" } else { "the storage engine's own scan" }
                .to_owned(),
            p50_ms: verdict.percentile_ms(50),
            p95_ms: verdict.percentile_ms(95),
            tried,
        })
    }

    /// A flat generation is searched by our exact search; here it is held against the storage engine's own scan.
    async fn measure_flat(&self, snapshot: &Snapshot, queries: &[ValidationQuery]) -> Result<Measured> {
        let mut measured = Measured::default();
        for query in queries.iter().take(FLAT_CHECKS) {
            let k = query.neighbours.len() + 1;
            let began = std::time::Instant::now();
            let scanned = self.embeddings.scan_nearest(snapshot, &query.vector, k).await?;
            measured.milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            measured.recalls.push(recall_of(query, &scanned));
        }
        Ok(measured)
    }

    /// Refuses a generation whose queries would not use its index: a mismatch silently becomes a scan of everything.
    async fn check_plan(
        &self,
        id: &GenerationId,
        snapshot: &Snapshot,
        record: &Record,
        queries: &[ValidationQuery],
    ) -> Result<()> {
        let Some(query) = queries.first() else { return Ok(()) };
        let plan = self.embeddings.explain_search(snapshot, &query.asked_of(id, &record.settings)).await?;
        if plan.contains("ANN") {
            return Ok(());
        }
        tracing::warn!(%plan, "a search of the generation does not use its index");
        let reason = "a search of the finished index would not use it".to_owned();
        Err(Error::CannotBuild { kind: record.kind().to_owned(), reason })
    }
}

fn check(options: &ValidateOptions) -> Result<()> {
    if options.k == 0 {
        return Err(Error::InvalidSetting { setting: "k", reason: "it must be at least 1".into() });
    }
    if !(0.0..=1.0).contains(&options.min_recall) {
        let reason = format!("{} is not between 0 and 1", options.min_recall);
        return Err(Error::InvalidSetting { setting: "min-recall", reason });
    }
    Ok(())
}
