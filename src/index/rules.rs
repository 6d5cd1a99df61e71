//! Which index, with which parameters: pure functions of the number of rows and dimensions.

use crate::store::IndexSpec;

/// What to build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexKind {
    /// By the number of rows: flat below [`FLAT_BELOW`], then IVF_RQ up to [`RQ_UP_TO`] where the dimension is a multiple of 8,
    /// then HNSW up to [`HNSW_UP_TO`], then IVF_PQ. Where one does not reach the recall that is required, another one gets its
    /// turn: after IVF_RQ lists of whole vectors, after a graph IVF_RQ, or IVF_PQ where the dimension forbids it.
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

/// Rows up to which `auto` takes lists of rotated vectors: at 110,000 × 384 they are built in an eighth of the time of a graph
/// and answer as fast, even where a question looks into every list (`docs/benchmarks/index.md`). That grows with the rows, and
/// a graph's search hardly does; where the two part is an estimate.
pub const RQ_UP_TO: u64 = 250_000;

/// Rows up to which `auto` takes one HNSW graph: at a million rows of 384 bytes the graph still fits the default cache.
pub const HNSW_UP_TO: u64 = 1_000_000;

/// Parameters set by hand; what is absent follows the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecOverrides {
    /// Inverted lists.
    pub partitions: Option<usize>,
    /// Sub-vectors of product quantisation.
    pub sub_vectors: Option<usize>,
    /// Bits of a product quantisation code, or of a dimension with `ivf-rq`.
    pub bits: Option<usize>,
    /// Edges of a graph node.
    pub edges: Option<usize>,
    /// Candidates while building the graph.
    pub ef_construction: Option<usize>,
}

/// Lists at most: k-means grows with lists × rows, and 4,096 lists is where Lance stops too.
const MOST_LISTS: usize = 4096;

/// Vectors that a list should have at least; fewer train its centre badly (Faiss warns below that).
const FEWEST_IN_A_LIST: usize = 39;

/// Bits that `ivf-rq` keeps of a dimension; Lance's default. Measured beside others in `docs/benchmarks/index.md`.
const ROTATED_BITS: usize = 5;

/// Edges of a graph's node, and candidates while it is built: Lance's defaults. Measured recall@10 0.934 bare and 0.995 with
/// refine 5 on 117,000 × 384.
const EDGES: usize = 20;
const EF_CONSTRUCTION: usize = 150;

/// The index to build for `rows` × `dimension`; `None` for flat.
pub(super) fn spec_for(kind: IndexKind, rows: u64, dimension: usize, set: &SpecOverrides) -> Option<IndexSpec> {
    let partitions = lists(rows, set);
    // One graph: a question then looks at one entry point, and no neighbour lies behind the border of a list.
    let graphs = set.partitions.unwrap_or(1);
    let (edges, ef_construction) = (set.edges.unwrap_or(EDGES), set.ef_construction.unwrap_or(EF_CONSTRUCTION));
    let bits = set.bits.unwrap_or(if rows >= 256 { 8 } else { 4 });
    let sub_vectors = set.sub_vectors.unwrap_or_else(|| sub_vectors(dimension, bits));
    Some(match kind {
        IndexKind::Flat => return None,
        IndexKind::Auto => return spec_for(kind_for(rows, dimension), rows, dimension, set),
        IndexKind::IvfFlat => IndexSpec::IvfFlat { partitions },
        // Faiss samples 256 points per centroid.
        IndexKind::IvfPq => IndexSpec::IvfPq { partitions, sub_vectors, bits, sample_rate: 256, max_iterations: 50 },
        IndexKind::IvfRq => IndexSpec::IvfRq { partitions, bits: set.bits.unwrap_or(ROTATED_BITS) },
        IndexKind::Hnsw => IndexSpec::Hnsw { partitions: graphs, edges, ef_construction },
        IndexKind::HnswPq => IndexSpec::HnswPq { partitions: graphs, edges, ef_construction, sub_vectors, bits },
        IndexKind::HnswFlat => IndexSpec::HnswFlat { partitions: graphs, edges, ef_construction },
    })
}

/// What `auto` builds.
fn kind_for(rows: u64, dimension: usize) -> IndexKind {
    match rows {
        few if few < FLAT_BELOW => IndexKind::Flat,
        some if some <= RQ_UP_TO && can_rotate(dimension) => IndexKind::IvfRq,
        more if more <= HNSW_UP_TO => IndexKind::Hnsw,
        _ => IndexKind::IvfPq,
    }
}

/// What `auto` builds where `refused` has too low a recall. Many nearly equal texts make a graph fall apart, and do not trouble
/// lists; lists of whole vectors answer exactly if all of them are looked into.
pub(super) fn second_choice(refused: &str, dimension: usize) -> Option<IndexKind> {
    match refused {
        "ivf-rq" => Some(IndexKind::IvfFlat),
        "hnsw" if can_rotate(dimension) => Some(IndexKind::IvfRq),
        "hnsw" => Some(IndexKind::IvfPq),
        _ => None,
    }
}

/// Eight signs make a byte of an `ivf-rq` code.
fn can_rotate(dimension: usize) -> bool {
    dimension.is_multiple_of(8)
}

/// √rows: the usual balance between looking at the centres and looking into lists, as Faiss advises up to a million rows.
fn lists(rows: u64, set: &SpecOverrides) -> usize {
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    set.partitions.unwrap_or_else(|| rows.isqrt().min(rows / FEWEST_IN_A_LIST).clamp(1, MOST_LISTS))
}

/// One sub-vector for eight dimensions (measured recall@10 0.93 to 0.976 unrefined); codes of 4 bits come in pairs.
fn sub_vectors(dimension: usize, bits: usize) -> usize {
    let step = if bits == 4 { 2 } else { 1 };
    let limit = (dimension / 8).max(step);
    let divides = |candidate: &usize| dimension.is_multiple_of(*candidate) && candidate.is_multiple_of(step);
    (1..=limit).rev().find(divides).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn auto_moves_from_flat_to_lists_of_few_bits_to_a_graph_to_lists_of_codes() {
        let kind = |rows, dimension| {
            spec_for(IndexKind::Auto, rows, dimension, &SpecOverrides::default()).map_or("flat", |spec| spec.label())
        };
        let kinds =
            |dimension| [0, 4_999, 5_000, 250_000, 250_001, 1_000_000, 1_000_001].map(|rows| kind(rows, dimension));
        assert_eq!(kinds(384), ["flat", "flat", "ivf-rq", "ivf-rq", "hnsw", "hnsw", "ivf-pq"]);
        assert_eq!(kinds(100), ["flat", "flat", "hnsw", "hnsw", "hnsw", "hnsw", "ivf-pq"]);
    }

    #[test]
    fn what_auto_builds_after_a_refusal_is_another_kind_and_ends() {
        for dimension in [384, 100] {
            for rows in [100, 10_000, 500_000, 2_000_000] {
                let mut built = vec![
                    spec_for(IndexKind::Auto, rows, dimension, &SpecOverrides::default()).map_or("flat", |s| s.label()),
                ];
                while let Some(next) = second_choice(built.last().unwrap(), dimension) {
                    assert!(!built.contains(&next.label()), "{built:?}");
                    built.push(next.label());
                }
            }
        }
    }

    const KINDS: [IndexKind; 7] = [
        IndexKind::Flat,
        IndexKind::IvfFlat,
        IndexKind::IvfPq,
        IndexKind::IvfRq,
        IndexKind::Hnsw,
        IndexKind::HnswPq,
        IndexKind::HnswFlat,
    ];

    proptest! {
        /// The oracle is what the store lets through, which knows nothing of the rules.
        #[test]
        fn parameters_can_always_be_built(rows in 16u64..50_000_000, dimension in 1usize..3_000, small in 16u64..2_000) {
            for (kind, rows) in KINDS.iter().flat_map(|kind| [(*kind, rows), (*kind, small)]) {
                let Some(spec) = spec_for(kind, rows, dimension, &SpecOverrides::default()) else {
                    prop_assert_eq!(kind, IndexKind::Flat);
                    continue;
                };
                prop_assert_eq!(spec.label(), kind.label());
                let checked = spec.check(rows, dimension);
                // There is none: eight signs make a byte, and below 256 rows two codes do.
                let impossible = match kind {
                    IndexKind::IvfRq => !dimension.is_multiple_of(8),
                    IndexKind::IvfPq | IndexKind::HnswPq => rows < 256 && !dimension.is_multiple_of(2),
                    _ => false,
                };
                prop_assert_eq!(checked.is_err(), impossible, "{:?}: {:?}", spec, checked);
                prop_assert!(spec.partitions() <= 4096 && spec.partitions() as u64 * 39 <= rows.max(39));
            }
        }

        #[test]
        fn what_is_set_by_hand_is_taken(partitions in 1usize..99, edges in 4usize..64, more in 0usize..500, bits in 1usize..9) {
            let set = SpecOverrides {
                partitions: Some(partitions),
                sub_vectors: Some(12),
                bits: Some(bits),
                edges: Some(edges),
                ef_construction: Some(edges + more),
            };
            let spec = |kind| spec_for(kind, 10_000, 96, &set).unwrap();
            prop_assert!(KINDS.iter().skip(1).all(|kind| spec(*kind).partitions() == partitions));
            prop_assert_eq!(spec(IndexKind::IvfRq), IndexSpec::IvfRq { partitions, bits });
            let ef_construction = edges + more;
            let want = IndexSpec::HnswPq { partitions, edges, ef_construction, sub_vectors: 12, bits };
            prop_assert_eq!(spec(IndexKind::HnswPq), want);
            prop_assert_eq!(spec(IndexKind::Hnsw), IndexSpec::Hnsw { partitions, edges, ef_construction });
        }
    }
}
