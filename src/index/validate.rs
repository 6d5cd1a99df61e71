//! The gate: measure recall@k on held-out queries against exact search, and let only what is sure to reach the threshold
//! pass.
//!
//! What is compared is the lower bound of the recall (`confidence`), over all verdict queries and within each frequent
//! category (`slices`). A flat generation is exact by itself; a few of its answers are held against the storage engine's
//! own scan, which shares no code with it.

use std::time::Instant;

use super::Indexing;
use super::build::Built;
use super::generation::GenerationState;
use super::ladder::FixedSettings;
use super::queries::{ValidationQueries, ValidationQuery};
use super::recall::{Measured, recall_of};
use super::report::{RecallReport, SliceReport};
use super::slices::{FIRST_LOOK, Slice};
use super::tune::Tuned;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::store::{IndexSpec, MaintenanceLease, QuerySettings, Snapshot};

/// How to validate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidateOptions {
    /// Neighbours. Default 10.
    pub k: usize,
    /// Recall@k that is required: with 95 % confidence the true one must not be below it. Default 0.95. With the 256 verdict
    /// queries at k = 10, 0.998 is the most that a sample can prove.
    pub min_recall: f64,
    /// Recall@k that tuning aims at, where that is more than `min_recall`.
    pub target_recall: Option<f64>,
    /// Seed of the queries. Default: that of the build; where an index is tuned again, a new one.
    pub seed: Option<u64>,
    /// Lists to probe, fixed by hand instead of tuned.
    pub nprobes: Option<usize>,
    /// Graph candidates, fixed by hand instead of tuned.
    pub ef: Option<usize>,
    /// Candidates per result to rank again, fixed by hand instead of tuned.
    pub refine_factor: Option<u32>,
}

impl Default for ValidateOptions {
    fn default() -> Self {
        Self { k: 10, min_recall: 0.95, target_recall: None, seed: None, nprobes: None, ef: None, refine_factor: None }
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

/// What is measured: a generation on a version of the table, with the queries of a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) id: &'a GenerationId,
    pub(super) spec: Option<&'a IndexSpec>,
    pub(super) snapshot: &'a Snapshot,
    pub(super) rows: u64,
    pub(super) seed: u64,
    /// When it is measured: of a log of questions, those that were asked until then count.
    pub(super) at: Timestamp,
}

impl Indexing {
    /// Tunes the query settings, measures recall, and lets the generation pass or marks it failed.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`] with the measured recall; the generation then stands as failed and its index is removed.
    /// [`Error::LeaseLost`].
    pub(crate) async fn validate(&self, built: Built, options: &ValidateOptions) -> Result<Validated> {
        let Built { id, mut record, snapshot, lease, .. } = built;
        options.check()?;
        let (spec, seed) = (record.spec, options.seed.unwrap_or(record.seed));
        let (rows, at) = (record.rows, self.store.clock().now().whole_second());
        let subject = Subject { id: &id, spec: spec.as_ref(), snapshot: &snapshot, rows, seed, at };
        let report = match self.tune_and_measure(&subject, options).await {
            Ok((settings, report)) => {
                record.settings = settings;
                report
            }
            Err(error) => {
                self.fail(&id, &mut record, error.to_string()).await?;
                return Err(error);
            }
        };
        record.recall = Some(report.clone());
        if let Some(error) = refusal(&id, &report) {
            self.fail(&id, &mut record, error.to_string()).await?;
            lease.release().await?;
            return Err(error);
        }
        tracing::debug!(%id, recall = report.recall, bound = report.bound, "validated");
        self.advance_or_drop(&id, &mut record, GenerationState::Ready, &lease).await?;
        self.store.fault_point("validate: passed").await?;
        Ok(Validated { id, kind: record.kind(), rows: record.rows, report, snapshot, lease })
    }

    /// Chooses the settings with one set of queries and measures the recall with the other.
    pub(super) async fn tune_and_measure(
        &self,
        subject: &Subject<'_>,
        options: &ValidateOptions,
    ) -> Result<(QuerySettings, RecallReport)> {
        let began = Instant::now();
        let Subject { id, snapshot, .. } = *subject;
        let queries = self.queries_for(subject, options.k).await?;
        let truth_seconds = began.elapsed().as_secs_f64();
        let tuned = match subject.spec {
            None => Tuned::default(),
            Some(spec) => {
                self.embeddings.prewarm(snapshot, id).await?;
                let fixed =
                    FixedSettings { nprobes: options.nprobes, ef: options.ef, refine_factor: options.refine_factor };
                self.tune(id, snapshot, spec, &queries, options.target(), &fixed).await?
            }
        };
        let tuning_seconds = began.elapsed().as_secs_f64() - truth_seconds;
        let measured = self.measure_verdict(subject, &queries, &tuned.settings, options.k, options.min_recall).await?;
        let report = RecallReport {
            target: options.target(),
            tuning_queries: if subject.spec.is_some() { queries.tuning.len() } else { 0 },
            tried: tuned.tried,
            seconds: began.elapsed().as_secs_f64(),
            truth_seconds,
            tuning_seconds,
            ..measured
        };
        Ok((tuned.settings, report))
    }

    /// The queries that the subject is to be judged by.
    pub(super) async fn queries_for(&self, subject: &Subject<'_>, k: usize) -> Result<ValidationQueries> {
        let Subject { snapshot, rows, seed, at, .. } = *subject;
        match subject.spec {
            Some(_) => self.validation_queries(snapshot, rows, k, seed, at).await,
            None => self.checking_queries(snapshot, rows, k, seed, at).await,
        }
    }

    /// Measures the recall with these settings on the verdict queries.
    pub(super) async fn measure_verdict(
        &self,
        subject: &Subject<'_>,
        queries: &ValidationQueries,
        settings: &QuerySettings,
        k: usize,
        required: f64,
    ) -> Result<RecallReport> {
        let Subject { id, snapshot, seed, at, .. } = *subject;
        let report = RecallReport {
            k,
            required,
            query_source: queries.source.clone(),
            seed,
            dataset_version: snapshot.version(),
            measured_at: at.to_rfc3339(),
            ..RecallReport::default()
        };
        let Some(spec) = subject.spec else {
            let measured = self.measure_flat(snapshot, &queries.verdict).await?;
            let report = report.measured(&measured, neighbours(&queries.verdict), false);
            let (ground_truth, basis) = ("the storage engine's own scan", "exact by itself; some answers are checked");
            return Ok(RecallReport { ground_truth: ground_truth.into(), basis: basis.into(), ..report });
        };
        self.check_plan(id, spec, snapshot, settings, &queries.verdict).await?;
        let measured = self.measure(id, snapshot, &queries.verdict, settings, None).await?;
        let mut slices = Vec::with_capacity(queries.slices.len());
        for slice in &queries.slices {
            slices.push(self.measure_slice(subject, slice, settings, required, k).await?);
        }
        let basis = if queries.is_sample { "a sample" } else { "every row there is" };
        let report = report.measured(&measured, neighbours(&queries.verdict), queries.is_sample);
        Ok(RecallReport { ground_truth: "exact search".into(), basis: basis.into(), slices, ..report })
    }

    /// Measures the recall within a category: with a few queries, and with all of them if these do not prove `required`.
    async fn measure_slice(
        &self,
        subject: &Subject<'_>,
        slice: &Slice,
        settings: &QuerySettings,
        required: f64,
        k: usize,
    ) -> Result<SliceReport> {
        let Subject { id, snapshot, .. } = *subject;
        let (first, rest) = slice.verdict.split_at(slice.verdict.len().min(FIRST_LOOK));
        let report = |measured: &Measured| SliceReport::new(slice, k, measured);
        let measured = self.measure(id, snapshot, first, settings, Some(&slice.filter)).await?;
        if rest.is_empty() || report(&measured).bound >= required {
            return Ok(report(&measured));
        }
        let more = self.measure(id, snapshot, rest, settings, Some(&slice.filter)).await?;
        Ok(report(&measured.and(more)))
    }

    /// A flat generation is searched by our exact search; here it is held against the storage engine's own scan.
    async fn measure_flat(&self, snapshot: &Snapshot, queries: &[ValidationQuery]) -> Result<Measured> {
        let mut measured = Measured::default();
        for query in queries {
            let began = Instant::now();
            let scanned = self.embeddings.scan_nearest(snapshot, &query.vector, query.asked()).await?;
            measured.milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            measured.recalls.push(recall_of(query, &scanned));
        }
        Ok(measured)
    }

    /// Refuses a generation whose queries would not use its index: a mismatch silently becomes a scan of everything.
    async fn check_plan(
        &self,
        id: &GenerationId,
        spec: &IndexSpec,
        snapshot: &Snapshot,
        settings: &QuerySettings,
        queries: &[ValidationQuery],
    ) -> Result<()> {
        let Some(query) = queries.first() else { return Ok(()) };
        let plan = self.embeddings.explain_search(snapshot, &query.asked_of(id, settings, None)).await?;
        if plan.contains("ANN") {
            return Ok(());
        }
        tracing::warn!(%plan, "a search of the generation does not use its index");
        let reason = "a search of the finished index would not use it".to_owned();
        Err(Error::CannotBuild { kind: spec.label().to_owned(), reason })
    }
}

impl ValidateOptions {
    /// What tuning aims at.
    pub(super) fn target(&self) -> f64 {
        self.target_recall.unwrap_or(0.0).max(self.min_recall)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::InvalidSetting { setting: "k", reason: "it must be at least 1".into() });
        }
        for (setting, share) in [("min-recall", Some(self.min_recall)), ("target-recall", self.target_recall)] {
            if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                let reason = format!("{} is not between 0 and 1", share.unwrap_or_default());
                return Err(Error::InvalidSetting { setting, reason });
            }
        }
        Ok(())
    }
}

/// True neighbours of each query: k, or all others where there are fewer.
fn neighbours(queries: &[ValidationQuery]) -> usize {
    queries.first().map_or(0, |query| query.neighbours.len())
}

/// What the gate says, if it says no.
pub(super) fn refusal(id: &GenerationId, report: &RecallReport) -> Option<Error> {
    let short = report.shortfall()?;
    Some(Error::RecallTooLow {
        id: id.to_string(),
        k: report.k,
        of: short.of,
        recall: short.recall,
        bound: short.bound,
        required: report.required,
    })
}
