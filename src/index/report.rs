//! The report that is kept with a generation: what was measured, on what, and how sure it is.

use serde::{Deserialize, Serialize};

use super::confidence::{CONFIDENCE, Proven, prove};
use super::recall::Measured;
use super::slices::{LOOK_CONFIDENCE, Slice};
use crate::store::QuerySettings;

/// What validation measured. Fields that an earlier release did not write are 0, empty or false.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecallReport {
    /// Neighbours asked for.
    pub k: usize,
    /// Mean recall@k over the verdict queries.
    pub recall: f64,
    /// What the true recall is not below, with 95 % confidence; the gate compares this with `required`. The recall itself
    /// where nothing was sampled (see `basis`).
    #[serde(default)]
    pub bound: f64,
    /// The worst query's.
    pub worst: f64,
    /// What was required.
    pub required: f64,
    /// What tuning aimed at.
    #[serde(default)]
    pub target: f64,
    /// Verdict queries.
    pub queries: usize,
    /// Neighbours that were found or missed: queries × k, or less where there are not k others.
    #[serde(default)]
    pub trials: u64,
    /// As many independent trials would vary as these did: neighbours of one query are found or missed together.
    #[serde(default)]
    pub effective_trials: f64,
    /// Standard deviation of the recall between queries.
    #[serde(default)]
    pub spread: f64,
    /// What the queries are of all that could be asked: a sample, or all of it.
    #[serde(default)]
    pub basis: String,
    /// Queries that tuning used; none of them is a verdict query.
    pub tuning_queries: usize,
    /// Where the queries came from.
    pub query_source: String,
    /// What the truth was computed with.
    pub ground_truth: String,
    /// Median milliseconds of a verdict query, on the machine that validated.
    pub p50_ms: f64,
    /// 95th percentile of them.
    pub p95_ms: f64,
    /// The most frequent categories, each searched with the filter on it.
    #[serde(default)]
    pub slices: Vec<SliceReport>,
    /// Settings that tuning measured, in the order tried.
    pub tried: Vec<TriedSettings>,
    /// Seed of the queries.
    #[serde(default)]
    pub seed: u64,
    /// Version of the embeddings table that was searched; 0 for that of the build.
    #[serde(default)]
    pub dataset_version: u64,
    /// When it was measured, RFC 3339.
    #[serde(default)]
    pub measured_at: String,
    /// Seconds that queries, truth, tuning and verdict took together.
    #[serde(default)]
    pub seconds: f64,
    /// Of these, drawing the queries and finding their true neighbours.
    #[serde(default)]
    pub truth_seconds: f64,
    /// Of these, tuning.
    #[serde(default)]
    pub tuning_seconds: f64,
}

/// Recall under the filter on one category.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceReport {
    /// The category.
    pub category: String,
    /// Its rows.
    pub rows: u64,
    /// Verdict queries that were asked of it.
    pub queries: usize,
    /// Mean recall@k of these.
    pub recall: f64,
    /// What the true recall is not below: with 97.5 % confidence, as there may be two looks.
    pub bound: f64,
    /// Whether the gate looks at it: it has enough rows for the queries to be a sample of them.
    pub gated: bool,
    /// 95th percentile of its queries' milliseconds.
    pub p95_ms: f64,
}

/// One setting that tuning measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TriedSettings {
    /// The setting.
    pub settings: QuerySettings,
    /// Mean recall@k over the tuning queries.
    pub recall: f64,
    /// 95th percentile of a query's milliseconds.
    pub p95_ms: f64,
    /// Median of them.
    #[serde(default)]
    pub p50_ms: f64,
    /// Queries that it was measured with.
    #[serde(default)]
    pub queries: usize,
    /// Whether it was found to suffice with all tuning queries, filtered ones included.
    #[serde(default)]
    pub suffices: bool,
}

/// What one of the gate's conditions came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shortfall {
    /// Which queries: `all queries`, or those of a category.
    pub(super) of: String,
    pub(super) recall: f64,
    pub(super) bound: f64,
}

impl RecallReport {
    /// What keeps the generation from passing: the first condition whose bound is below `required`.
    pub(super) fn shortfall(&self) -> Option<Shortfall> {
        if self.bound < self.required {
            return Some(Shortfall { of: "all queries".to_owned(), recall: self.recall, bound: self.bound });
        }
        let slice = self.slices.iter().find(|slice| slice.gated && slice.bound < self.required)?;
        let of = format!("queries within the category `{}`", slice.category);
        Some(Shortfall { of, recall: slice.recall, bound: slice.bound })
    }

    /// Takes over what a pass over the verdict queries measured, of which each has so many true neighbours.
    pub(super) fn measured(mut self, measured: &Measured, neighbours: usize, is_sample: bool) -> Self {
        let Proven { mean, lower, trials, effective, spread } = prove(&measured.recalls, neighbours, CONFIDENCE);
        self.recall = mean;
        // Who asked everything there is to ask has nothing to infer.
        self.bound = if is_sample { lower } else { mean };
        self.worst = measured.worst();
        self.queries = measured.recalls.len();
        // Whole numbers far below 2^53.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "queries × k, both counts")]
        let trials = trials as u64;
        (self.trials, self.effective_trials, self.spread) = (trials, effective, spread);
        (self.p50_ms, self.p95_ms) = (measured.percentile_ms(50), measured.percentile_ms(95));
        self
    }
}

impl SliceReport {
    pub(super) fn new(slice: &Slice, k: usize, measured: &Measured) -> Self {
        let proven = prove(&measured.recalls, k, LOOK_CONFIDENCE);
        Self {
            category: slice.category.clone(),
            rows: slice.rows,
            queries: measured.recalls.len(),
            recall: proven.mean,
            bound: proven.lower,
            gated: slice.is_gated,
            p95_ms: measured.percentile_ms(95),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_an_earlier_release_is_still_read() {
        let old = r#"{"k":10,"recall":0.97,"worst":0.6,"required":0.95,"queries":200,"tuning_queries":96,
            "query_source":"stored vectors","ground_truth":"exact search","p50_ms":1.0,"p95_ms":2.0,
            "tried":[{"settings":{"nprobes":4,"ef":null,"refine_factor":5},"recall":0.98,"p95_ms":2.0}]}"#;
        let report: RecallReport = serde_json::from_str(old).unwrap();
        assert_eq!((report.recall, report.bound, report.trials), (0.97, 0.0, 0));
        assert_eq!(report.tried[0].settings.nprobes, Some(4));
        let again: RecallReport = serde_json::from_str(&serde_json::json!(report).to_string()).unwrap();
        assert_eq!(again, report);
    }

    #[test]
    fn the_gate_looks_at_bounds_overall_and_of_gated_slices() {
        let slice = |bound, gated| SliceReport { category: "bees".into(), bound, gated, ..SliceReport::default() };
        let report = |bound, slices| RecallReport { recall: 0.99, bound, required: 0.95, slices, ..Default::default() };
        assert_eq!(report(0.95, vec![slice(0.95, true), slice(0.1, false)]).shortfall(), None);
        assert_eq!(report(0.949, vec![]).shortfall().unwrap().of, "all queries");
        let short = report(0.96, vec![slice(0.96, true), slice(0.94, true)]).shortfall().unwrap();
        assert_eq!((short.bound, short.of.as_str()), (0.94, "queries within the category `bees`"));
    }

    #[test]
    fn where_everything_was_asked_the_recall_is_the_bound() {
        let measured = Measured { recalls: vec![1.0; 30], milliseconds: vec![1.0; 30] };
        let report = |is_sample| RecallReport { k: 5, ..Default::default() }.measured(&measured, 5, is_sample);
        assert_eq!((report(false).bound, report(false).trials), (1.0, 150));
        assert!(report(true).bound < 0.99);
    }
}
