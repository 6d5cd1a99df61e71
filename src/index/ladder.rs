//! The settings that are worth measuring, as ladders: on each, recall and cost rise with every rung.
//!
//! Pure. A ladder holds one refine factor; its rungs look into more and more lists, or keep more and more candidates of a
//! graph. A rung of one ladder and the same rung of a later one differ in the refine factor alone.

use crate::store::{IndexSpec, QuerySettings};

/// Settings fixed by hand; what is absent is tuned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FixedSettings {
    pub(super) nprobes: Option<usize>,
    pub(super) ef: Option<usize>,
    pub(super) refine_factor: Option<u32>,
}

/// What of an index decides how it can be searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    partitions: usize,
    is_graph: bool,
    /// Whether distances are those of codes, so that candidates must be ranked again by their vectors.
    is_quantised: bool,
}

/// The ladders of an index that is asked for `k` neighbours, those with cheap candidates first.
pub(super) fn ladders(spec: &IndexSpec, fixed: &FixedSettings, k: usize) -> Vec<Vec<QuerySettings>> {
    let shape = Shape::of(spec);
    let refines = match fixed.refine_factor {
        Some(factor) => vec![Some(factor)],
        None if shape.is_quantised => [1, 2, 5, 10, 20, 50].map(Some).to_vec(),
        None => vec![None],
    };
    refines.into_iter().map(|refine| ladder(&shape, fixed, k, refine)).collect()
}

fn ladder(shape: &Shape, fixed: &FixedSettings, k: usize, refine: Option<u32>) -> Vec<QuerySettings> {
    let candidates = k * refine.unwrap_or(1) as usize;
    // A graph search keeps at least the candidates that are ranked again; say so.
    let settings = |nprobes, ef: Option<usize>| QuerySettings {
        nprobes: Some(nprobes),
        ef: ef.map(|ef| ef.max(candidates)),
        refine_factor: refine,
    };
    let efs = fixed.ef.map_or_else(|| vec![32, 64, 128, 256, 512], |ef| vec![ef]);
    let probes = fixed.nprobes.map_or_else(|| list_counts(shape.partitions), |n| vec![n]);
    match (shape.is_graph, efs.last()) {
        (false, _) | (_, None) => probes.into_iter().map(|n| settings(n, None)).collect(),
        // One graph has candidates to vary; many graphs have lists, each searched as a small graph is.
        (true, Some(_)) if shape.partitions == 1 => efs.into_iter().map(|ef| settings(1, Some(ef))).collect(),
        (true, Some(_)) => probes.into_iter().map(|n| settings(n, Some(fixed.ef.unwrap_or(128)))).collect(),
    }
}

/// List counts from 1 to all, by twos.
fn list_counts(partitions: usize) -> Vec<usize> {
    let mut steps: Vec<_> =
        std::iter::successors(Some(1usize), |n| n.checked_mul(2)).take_while(|n| *n < partitions).collect();
    steps.push(partitions.max(1));
    steps
}

impl Shape {
    fn of(spec: &IndexSpec) -> Self {
        let (is_graph, is_quantised) = match spec {
            IndexSpec::IvfFlat { .. } => (false, false),
            IndexSpec::IvfPq { .. } | IndexSpec::IvfRq { .. } => (false, true),
            IndexSpec::Hnsw { .. } | IndexSpec::HnswPq { .. } => (true, true),
            IndexSpec::HnswFlat { .. } => (true, false),
        };
        Self { partitions: spec.partitions(), is_graph, is_quantised }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: IndexSpec =
        IndexSpec::IvfPq { partitions: 100, sub_vectors: 8, bits: 8, sample_rate: 256, max_iterations: 50 };
    const GRAPH: IndexSpec = IndexSpec::Hnsw { partitions: 1, edges: 20, ef_construction: 150 };

    #[test]
    fn what_is_fixed_by_hand_is_the_only_rung() {
        let fixed = FixedSettings { nprobes: Some(1), ef: None, refine_factor: Some(1) };
        let want = QuerySettings { nprobes: Some(1), ef: None, refine_factor: Some(1) };
        assert_eq!(ladders(&LISTS, &fixed, 11), [vec![want]]);
        let efs = ladders(&GRAPH, &FixedSettings { refine_factor: Some(10), ..fixed }, 11);
        assert_eq!(efs[0].iter().map(|s| s.ef).collect::<Vec<_>>(), [110, 110, 128, 256, 512].map(Some));
        assert_eq!(list_counts(100), [1, 2, 4, 8, 16, 32, 64, 100]);
        assert_eq!(list_counts(1), [1]);
    }

    #[test]
    fn whole_vectors_are_not_ranked_again() {
        let graph = IndexSpec::HnswFlat { partitions: 1, edges: 20, ef_construction: 150 };
        for spec in [IndexSpec::IvfFlat { partitions: 9 }, graph] {
            let all = ladders(&spec, &FixedSettings::default(), 11);
            assert_eq!(all.len(), 1);
            assert!(all[0].iter().all(|settings| settings.refine_factor.is_none()));
        }
    }

    #[test]
    fn rungs_of_all_ladders_correspond() {
        for spec in [LISTS, GRAPH] {
            let all = ladders(&spec, &FixedSettings::default(), 11);
            assert_eq!(all.len(), 6);
            for (lower, higher) in all.iter().zip(all.iter().skip(1)) {
                assert_eq!(lower.len(), higher.len());
                for (a, b) in lower.iter().zip(higher) {
                    assert!(a.nprobes == b.nprobes && a.refine_factor < b.refine_factor && a.ef <= b.ef);
                }
            }
        }
    }
}
