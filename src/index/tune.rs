//! Choosing nprobes, ef and refine factor by measuring: the cheapest setting, by 95th percentile, whose recall on the tuning
//! queries reaches the target with a margin.

use super::Indexing;
use super::queries::ValidationQuery;
use super::recall::{Measured, TriedSettings, recall_of};
use crate::error::Result;
use crate::id::GenerationId;
use crate::progress::{Progress, Stage};
use crate::store::{IndexSpec, QuerySettings, Snapshot};

/// Recall above the target that tuning asks for, so that the verdict on other queries does not fail by chance: about one
/// standard error of 96 queries × 10 neighbours at 0.95.
const MARGIN: f64 = 0.007;

/// Settings fixed by hand; what is absent is tuned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FixedSettings {
    pub(super) nprobes: Option<usize>,
    pub(super) ef: Option<usize>,
    pub(super) refine_factor: Option<u32>,
}

impl Indexing {
    /// Measures the candidates and returns the chosen one with all that was measured. Without one that reaches `target` it
    /// is the one with the highest recall.
    pub(super) async fn tune(
        &self,
        generation: &GenerationId,
        snapshot: &Snapshot,
        spec: &IndexSpec,
        queries: &[ValidationQuery],
        target: f64,
        fixed: &FixedSettings,
    ) -> Result<(QuerySettings, Vec<TriedSettings>)> {
        let asked = queries.first().map_or(1, |query| query.neighbours.len() + 1);
        let candidates = candidates(spec, fixed, asked);
        self.listener.report(Progress::Started { stage: Stage::Tune, total: Some(candidates.len() as u64) });
        let mut tried: Vec<TriedSettings> = Vec::with_capacity(candidates.len());
        for (done, settings) in candidates.into_iter().enumerate() {
            self.cancel.check()?;
            let measured = self.measure(generation, snapshot, queries, &settings).await?;
            tried.push(TriedSettings { settings, recall: measured.mean(), p95_ms: measured.percentile_ms(95) });
            self.listener.report(Progress::Advanced { stage: Stage::Tune, done: done as u64 + 1 });
        }
        self.listener.report(Progress::Finished { stage: Stage::Tune });
        let settings = choose(&tried, target).unwrap_or_default();
        Ok((settings, tried))
    }

    /// Runs each query once, after one that is not counted.
    pub(super) async fn measure(
        &self,
        generation: &GenerationId,
        snapshot: &Snapshot,
        queries: &[ValidationQuery],
        settings: &QuerySettings,
    ) -> Result<Measured> {
        let mut measured = Measured::default();
        if let Some(first) = queries.first() {
            self.embeddings.search_index(snapshot, &first.asked_of(generation, settings)).await?;
        }
        for query in queries {
            let began = std::time::Instant::now();
            let found = self.embeddings.search_index(snapshot, &query.asked_of(generation, settings)).await?;
            measured.milliseconds.push(began.elapsed().as_secs_f64() * 1e3);
            measured.recalls.push(recall_of(query, &found));
        }
        Ok(measured)
    }
}

/// Settings worth measuring for an index that is asked for `k` neighbours, cheap ones first.
fn candidates(spec: &IndexSpec, fixed: &FixedSettings, k: usize) -> Vec<QuerySettings> {
    let refines = fixed.refine_factor.map_or_else(|| vec![1, 2, 5, 10, 20], |r| vec![r]);
    let probes = list_counts(spec.partitions());
    let efs = match spec {
        IndexSpec::IvfFlat { .. } | IndexSpec::IvfPq { .. } | IndexSpec::IvfRq { .. } => vec![None],
        IndexSpec::Hnsw { .. } | IndexSpec::HnswPq { .. } | IndexSpec::HnswFlat { .. } => {
            vec![Some(32), Some(64), Some(128), Some(256)]
        }
    };
    let probes = fixed.nprobes.map_or(probes, |n| vec![n]);
    let efs = fixed.ef.map_or(efs, |ef| vec![Some(ef)]);
    let mut all: Vec<QuerySettings> = Vec::new();
    for &refine in &refines {
        for &nprobes in &probes {
            for &ef in &efs {
                // A graph search keeps at least the candidates that are ranked again; say so, and try it once.
                let ef = ef.map(|ef| ef.max(k * refine as usize));
                let settings = QuerySettings { nprobes: Some(nprobes), ef, refine_factor: Some(refine) };
                if !all.contains(&settings) {
                    all.push(settings);
                }
            }
        }
    }
    all
}

/// A spread of list counts from 1 to all: by fours, so that a thousand lists make six steps.
fn list_counts(partitions: usize) -> Vec<usize> {
    let mut steps: Vec<_> =
        std::iter::successors(Some(1usize), |n| n.checked_mul(4)).take_while(|n| *n < partitions).collect();
    steps.push(partitions);
    steps
}

fn choose(tried: &[TriedSettings], target: f64) -> Option<QuerySettings> {
    let enough = tried.iter().filter(|t| t.recall >= (target + MARGIN).min(1.0));
    let cheapest = enough.min_by(|a, b| a.p95_ms.total_cmp(&b.p95_ms));
    let best = || tried.iter().max_by(|a, b| a.recall.total_cmp(&b.recall).then(b.p95_ms.total_cmp(&a.p95_ms)));
    cheapest.or_else(best).map(|chosen| chosen.settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(nprobes: usize, recall: f64, p95_ms: f64) -> TriedSettings {
        TriedSettings { settings: QuerySettings { nprobes: Some(nprobes), ..QuerySettings::default() }, recall, p95_ms }
    }

    #[test]
    fn chooses_the_cheapest_that_is_good_enough_else_the_best() {
        let all = [tried(1, 0.90, 1.0), tried(4, 0.96, 2.0), tried(16, 0.99, 3.0), tried(64, 0.99, 9.0)];
        let nprobes = |target| choose(&all, target).and_then(|s| s.nprobes);
        assert_eq!(nprobes(0.95), Some(4));
        assert_eq!(nprobes(0.98), Some(16));
        assert_eq!(nprobes(0.999), Some(16));
        assert_eq!(choose(&[], 0.5), None);
    }

    #[test]
    fn what_is_fixed_by_hand_is_the_only_candidate() {
        let spec = IndexSpec::IvfPq { partitions: 100, sub_vectors: 8, bits: 8, sample_rate: 256, max_iterations: 50 };
        let fixed = FixedSettings { nprobes: Some(1), ef: None, refine_factor: Some(1) };
        let want = QuerySettings { nprobes: Some(1), ef: None, refine_factor: Some(1) };
        assert_eq!(candidates(&spec, &fixed, 11), [want]);
        let graph = IndexSpec::Hnsw { partitions: 1, edges: 20, ef_construction: 150 };
        let efs = candidates(&graph, &FixedSettings { refine_factor: Some(10), ..fixed }, 11);
        assert_eq!(efs.iter().map(|s| s.ef).collect::<Vec<_>>(), [Some(110), Some(128), Some(256)]);
        assert_eq!(list_counts(100), [1, 4, 16, 64, 100]);
        assert_eq!(list_counts(1), [1]);
    }
}
