//! Which index, with which parameters: pure functions of the number of rows and dimensions.

use crate::store::IndexSpec;

/// What to build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexKind {
    /// By the number of rows: flat below [`FLAT_BELOW`], then HNSW up to [`HNSW_UP_TO`], then IVF_PQ; and IVF_PQ where a graph
    /// does not reach the recall that is required.
    #[default]
    Auto,
    /// No index: every query looks at every vector.
    Flat,
    /// Inverted lists of whole vectors.
    IvfFlat,
    /// Inverted lists with product quantisation.
    IvfPq,
    /// Inverted lists with a few bits for each dimension.
    IvfRq,
    /// A graph with scalar quantisation.
    Hnsw,
    /// A graph with product quantisation.
    HnswPq,
    /// A graph of whole vectors.
    HnswFlat,
}

impl IndexKind {
    /// The kind as a word.
    pub fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Flat => "flat",
            Self::IvfFlat => "ivf-flat",
            Self::IvfPq => "ivf-pq",
            Self::IvfRq => "ivf-rq",
            Self::Hnsw => "hnsw",
            Self::HnswPq => "hnsw-pq",
            Self::HnswFlat => "hnsw-flat",
        }
    }
}

/// Rows below which `auto` stays flat: an exact pass over 5,000 × 384 floats takes about a millisecond, less than a planned
/// index query.
pub const FLAT_BELOW: u64 = 5_000;

/// Rows up to which `auto` takes one HNSW graph: at a million rows of 384 bytes the graph still fits the default cache.
pub const HNSW_UP_TO: u64 = 1_000_000;

/// Parameters set by hand; what is absent follows the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecOverrides {
    /// Inverted lists.
    pub partitions: Option<usize>,
    /// Sub-vectors of product quantisation.
    pub sub_vectors: Option<usize>,
    /// Bits of a product quantisation code.
    pub bits: Option<usize>,
    /// Edges of a graph node.
    pub edges: Option<usize>,
    /// Candidates while building the graph.
    pub ef_construction: Option<usize>,
}

/// The index to build for `rows` × `dimension`; `None` for flat.
pub(super) fn spec_for(kind: IndexKind, rows: u64, dimension: usize, set: &SpecOverrides) -> Option<IndexSpec> {
    match kind {
        IndexKind::Flat => None,
        IndexKind::Auto if rows < FLAT_BELOW => None,
        IndexKind::Auto if rows <= HNSW_UP_TO => Some(hnsw(set)),
        IndexKind::Hnsw => Some(hnsw(set)),
        IndexKind::IvfFlat => Some(IndexSpec::IvfFlat { partitions: lists(rows, set) }),
        IndexKind::IvfRq => Some(IndexSpec::IvfRq { partitions: lists(rows, set), bits: set.bits.unwrap_or(1) }),
        IndexKind::HnswPq => Some(hnsw_pq(rows, dimension, set)),
        IndexKind::HnswFlat => Some(hnsw_flat(set)),
        IndexKind::Auto | IndexKind::IvfPq => Some(ivf_pq(rows, dimension, set)),
    }
}

/// One graph. 20 edges and 150 candidates are Lance's defaults; measured recall@10 0.934 bare and 0.995 with refine 5 on
/// 117,000 × 384.
fn hnsw(set: &SpecOverrides) -> IndexSpec {
    IndexSpec::Hnsw {
        partitions: set.partitions.unwrap_or(1),
        edges: set.edges.unwrap_or(20),
        ef_construction: set.ef_construction.unwrap_or(150),
    }
}

/// √rows lists (the usual balance of list scan and centroid scan, as Faiss advises up to a million rows), one sub-vector for
/// eight dimensions (measured recall@10 0.93 to 0.976 unrefined), codes of 8 bits where 256 rows can train them.
///
/// Below 256 rows an odd number of dimensions has no such index: codes of 4 bits come in pairs.
fn ivf_pq(rows: u64, dimension: usize, set: &SpecOverrides) -> IndexSpec {
    IndexSpec::IvfPq {
        partitions: lists(rows, set),
        sub_vectors: sub_vectors(dimension, set),
        bits: code_bits(rows, set),
        // Faiss samples 256 points per centroid.
        sample_rate: 256,
        max_iterations: 50,
    }
}

/// √rows; a list of fewer than 39 vectors trains badly (Faiss warns below that).
fn lists(rows: u64, set: &SpecOverrides) -> usize {
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    set.partitions.unwrap_or_else(|| rows.isqrt().min(rows / 39).max(1))
}

fn sub_vectors(dimension: usize, set: &SpecOverrides) -> usize {
    set.sub_vectors.unwrap_or_else(|| largest_divisor_up_to(dimension, (dimension / 8).max(1)))
}

fn code_bits(rows: u64, set: &SpecOverrides) -> usize {
    set.bits.unwrap_or(if rows >= 256 { 8 } else { 4 })
}

fn hnsw_pq(rows: u64, dimension: usize, set: &SpecOverrides) -> IndexSpec {
    IndexSpec::HnswPq {
        partitions: set.partitions.unwrap_or(1),
        edges: set.edges.unwrap_or(20),
        ef_construction: set.ef_construction.unwrap_or(150),
        sub_vectors: sub_vectors(dimension, set),
        bits: code_bits(rows, set),
    }
}

fn hnsw_flat(set: &SpecOverrides) -> IndexSpec {
    IndexSpec::HnswFlat {
        partitions: set.partitions.unwrap_or(1),
        edges: set.edges.unwrap_or(20),
        ef_construction: set.ef_construction.unwrap_or(150),
    }
}

fn largest_divisor_up_to(dimension: usize, limit: usize) -> usize {
    (1..=limit).rev().find(|candidate| dimension.is_multiple_of(*candidate)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn auto_moves_from_flat_to_graph_to_lists() {
        let kind = |rows| spec_for(IndexKind::Auto, rows, 384, &SpecOverrides::default()).map(|s| s.label());
        assert_eq!(
            [kind(0), kind(4_999), kind(5_000), kind(1_000_000), kind(1_000_001)],
            [None, None, Some("hnsw"), Some("hnsw"), Some("ivf-pq")]
        );
    }

    proptest! {
        #[test]
        fn parameters_are_always_trainable(rows in 16u64..50_000_000, dimension in 1usize..3_000) {
            let Some(IndexSpec::IvfPq { partitions, sub_vectors, bits, .. }) =
                spec_for(IndexKind::IvfPq, rows, dimension, &SpecOverrides::default())
            else { panic!("asked for ivf-pq") };
            prop_assert!(partitions >= 1 && partitions as u64 <= rows);
            prop_assert!(dimension % sub_vectors == 0);
            prop_assert!(1u64 << bits <= rows.max(16));
        }
    }
}
