//! What kind of index, with every parameter decided; and which of them can be built at all.
//!
//! Must not know: how parameters are chosen, recall.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Vectors for each list and each code word that training looks at where nothing else is said; Faiss's number too.
const SAMPLE_RATE: usize = 256;

/// An index to build, with every parameter decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum IndexSpec {
    /// Inverted lists over whole vectors.
    IvfFlat {
        /// Inverted lists.
        partitions: usize,
    },
    /// Inverted lists over product-quantised vectors.
    IvfPq {
        /// Inverted lists.
        partitions: usize,
        /// Sub-vectors; divides the dimension.
        sub_vectors: usize,
        /// Bits of one sub-vector's code: 4 or 8.
        bits: usize,
        /// Vectors per partition and per codeword that training samples.
        sample_rate: usize,
        /// k-means iterations at most.
        max_iterations: usize,
    },
    /// Inverted lists over vectors of a few bits a dimension, rotated at random.
    IvfRq {
        /// Inverted lists.
        partitions: usize,
        /// Bits of one dimension: 1 to 9.
        bits: usize,
    },
    /// A navigable small-world graph over scalar-quantised vectors.
    Hnsw {
        /// Inverted lists, each with a graph of its own; 1 for one graph.
        partitions: usize,
        /// Edges of a node.
        edges: usize,
        /// Candidates kept while building.
        ef_construction: usize,
    },
    /// A navigable small-world graph over product-quantised vectors.
    HnswPq {
        /// Inverted lists, each with a graph of its own; 1 for one graph.
        partitions: usize,
        /// Edges of a node.
        edges: usize,
        /// Candidates kept while building.
        ef_construction: usize,
        /// Sub-vectors; divides the dimension.
        sub_vectors: usize,
        /// Bits of one sub-vector's code: 4 or 8.
        bits: usize,
    },
    /// A navigable small-world graph over whole vectors.
    HnswFlat {
        /// Inverted lists, each with a graph of its own; 1 for one graph.
        partitions: usize,
        /// Edges of a node.
        edges: usize,
        /// Candidates kept while building.
        ef_construction: usize,
    },
}

impl IndexSpec {
    /// The kind as a word.
    pub fn label(&self) -> &'static str {
        match self {
            Self::IvfFlat { .. } => "ivf-flat",
            Self::IvfPq { .. } => "ivf-pq",
            Self::IvfRq { .. } => "ivf-rq",
            Self::Hnsw { .. } => "hnsw",
            Self::HnswPq { .. } => "hnsw-pq",
            Self::HnswFlat { .. } => "hnsw-flat",
        }
    }

    /// Inverted lists, or graphs of a kind that has one for each.
    pub(crate) fn partitions(&self) -> usize {
        match *self {
            Self::IvfFlat { partitions }
            | Self::IvfPq { partitions, .. }
            | Self::IvfRq { partitions, .. }
            | Self::Hnsw { partitions, .. }
            | Self::HnswPq { partitions, .. }
            | Self::HnswFlat { partitions, .. } => partitions,
        }
    }

    /// Vectors for each list and each code word that training looks at.
    pub(crate) fn sample_rate(&self) -> usize {
        match *self {
            Self::IvfPq { sample_rate, .. } => sample_rate,
            _ => SAMPLE_RATE,
        }
    }

    /// Code words of one sub-vector, for kinds with product quantisation.
    pub(crate) fn codewords(&self) -> Option<u64> {
        match *self {
            Self::IvfPq { bits, .. } | Self::HnswPq { bits, .. } => 1u64.checked_shl(u32::try_from(bits).ok()?),
            _ => None,
        }
    }

    /// Refuses what Lance would turn into an empty index, nonsense or a late failure.
    ///
    /// # Errors
    /// [`Error::CannotBuild`] with what would do.
    pub(crate) fn check(&self, rows: u64, dimension: usize) -> Result<()> {
        let checked = match *self {
            Self::IvfFlat { .. } => Ok(()),
            Self::IvfPq { sub_vectors, bits, .. } => check_codes(rows, dimension, sub_vectors, bits),
            Self::IvfRq { bits, .. } => check_rotated(dimension, bits),
            Self::Hnsw { edges, ef_construction, .. } | Self::HnswFlat { edges, ef_construction, .. } => {
                check_graph(edges, ef_construction)
            }
            Self::HnswPq { edges, ef_construction, sub_vectors, bits, .. } => {
                check_graph(edges, ef_construction).and_then(|()| check_codes(rows, dimension, sub_vectors, bits))
            }
        };
        checked.and_then(|()| check_partitions(self.partitions(), rows)).map_err(|reason| self.refused(reason))
    }

    /// This index cannot be built, for this reason.
    pub(super) fn refused(&self, reason: String) -> Error {
        Error::CannotBuild { kind: self.label().to_owned(), reason }
    }
}

fn check_partitions(partitions: usize, rows: u64) -> Result<(), String> {
    match partitions as u64 {
        0 => Err("0 partitions; at least one is needed".to_owned()),
        many if many > rows => Err(format!("{partitions} partitions for {rows} rows; use at most as many as rows")),
        _ => Ok(()),
    }
}

/// Lance refuses fewer than four edges itself, because building in parallel then tears the graph apart.
fn check_graph(edges: usize, ef_construction: usize) -> Result<(), String> {
    if edges < 4 || ef_construction < edges {
        return Err(format!(
            "{edges} edges with ef_construction {ef_construction}: use 4 edges or more, and no fewer candidates than edges"
        ));
    }
    Ok(())
}

fn check_codes(rows: u64, dimension: usize, sub_vectors: usize, bits: usize) -> Result<(), String> {
    if sub_vectors == 0 || !dimension.is_multiple_of(sub_vectors) {
        return Err(format!("{sub_vectors} sub-vectors do not divide {dimension} dimensions"));
    }
    if bits != 4 && bits != 8 {
        return Err(format!("codes of {bits} bits are not supported; 4 and 8 are"));
    }
    if bits == 4 && !sub_vectors.is_multiple_of(2) {
        return Err(format!("codes of 4 bits are stored in pairs; {sub_vectors} sub-vectors are odd"));
    }
    let codewords = 1u64 << bits;
    if rows < codewords {
        return Err(format!("{rows} rows cannot train {codewords} codewords; use a flat index or 4 bits"));
    }
    Ok(())
}

/// One bit of a dimension is its sign; Lance keeps up to eight more, and packs eight signs into a byte.
fn check_rotated(dimension: usize, bits: usize) -> Result<(), String> {
    if !(1..=9).contains(&bits) {
        return Err(format!("{bits} bits of a dimension are not supported; 1 to 9 are"));
    }
    if dimension == 0 || !dimension.is_multiple_of(8) {
        return Err(format!("{dimension} dimensions are not a multiple of 8; use ivf-flat or ivf-pq"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_storage_engine_would_turn_into_nonsense_is_refused_with_the_reason() {
        let pq = |sub_vectors, bits| IndexSpec::IvfPq {
            partitions: 4,
            sub_vectors,
            bits,
            sample_rate: 256,
            max_iterations: 50,
        };
        let rq = |bits| IndexSpec::IvfRq { partitions: 4, bits };
        let graph = |edges, ef_construction| IndexSpec::HnswFlat { partitions: 1, edges, ef_construction };
        let graph_pq = IndexSpec::HnswPq { partitions: 1, edges: 20, ef_construction: 150, sub_vectors: 8, bits: 8 };
        for (spec, rows, dimension, reason) in [
            (pq(7, 8), 1000, 64, "7 sub-vectors do not divide 64"),
            (pq(8, 6), 1000, 64, "codes of 6 bits are not supported"),
            (pq(1, 4), 1000, 64, "1 sub-vectors are odd"),
            (pq(8, 8), 255, 64, "255 rows cannot train 256 codewords"),
            (graph_pq, 255, 64, "255 rows cannot train 256 codewords"),
            (rq(0), 1000, 64, "0 bits of a dimension"),
            (rq(10), 1000, 64, "10 bits of a dimension"),
            (rq(1), 1000, 60, "60 dimensions are not a multiple of 8"),
            (graph(3, 150), 1000, 64, "use 4 edges or more"),
            (graph(20, 19), 1000, 64, "no fewer candidates than edges"),
            (IndexSpec::IvfFlat { partitions: 0 }, 1000, 64, "at least one is needed"),
            (IndexSpec::IvfFlat { partitions: 11 }, 10, 64, "at most as many as rows"),
        ] {
            let refused = spec.check(rows, dimension).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
        for spec in [pq(8, 8), rq(1), rq(9), graph(20, 150), graph_pq, IndexSpec::IvfFlat { partitions: 4 }] {
            spec.check(1000, 64).unwrap();
        }
    }
}
