//! What building an index takes, from its rows, its dimensions and its kind; and the refusal of one that cannot fit.
//!
//! The constants were measured (`docs/reliability.md`): the largest resident size of `embank index build`, tuning and
//! validation included. Must not know: tables, pointers.

use super::rules::{IndexKind, SpecOverrides, spec_for};
use crate::error::{Error, Result};
use crate::memory::{MemoryLimit, in_mib};
use crate::store::IndexSpec;

/// Candidates, queries, ground truth, and what the storage engine buffers, whatever the size.
const WORK_BYTES: u64 = 64 << 20;

/// An exact search keeps one block of vectors and the queries.
const FLAT_BYTES: u64 = 16 << 20;

/// Quarters of the vectors' bytes that building a graph holds. Nine were measured over 50,000 × 384 and fewer; thirteen over
/// 171,565 × 384, where lists were built after it in the same process.
const HNSW_QUARTERS: u64 = 13;

/// Bytes of one edge while the graph is built.
const GRAPH_BYTES: u64 = 24;

/// The same for inverted lists, beside the sample.
const IVF_PQ_QUARTERS: u64 = 4;

/// Vectors for each list that training samples (Faiss's number too).
const SAMPLE_RATE: u64 = 256;

/// Copies of the training sample: our own, and that of k-means.
const SAMPLE_COPIES: u64 = 2;

/// Bytes of the vectors themselves.
fn raw(rows: u64, dimension: usize) -> u64 {
    rows.saturating_mul(dimension as u64).saturating_mul(size_of::<f32>() as u64)
}

/// Bytes that building and validating takes beside the program; `None` for flat.
pub(super) fn build_bytes(spec: Option<&IndexSpec>, rows: u64, dimension: usize) -> u64 {
    let vectors = raw(rows, dimension);
    match spec {
        None => FLAT_BYTES,
        Some(IndexSpec::Hnsw { edges, .. } | IndexSpec::HnswPq { edges, .. } | IndexSpec::HnswFlat { edges, .. }) => {
            let graph = rows.saturating_mul(*edges as u64).saturating_mul(GRAPH_BYTES);
            (vectors / 4).saturating_mul(HNSW_QUARTERS).saturating_add(graph).saturating_add(WORK_BYTES)
        }
        Some(spec @ (IndexSpec::IvfFlat { .. } | IndexSpec::IvfPq { .. } | IndexSpec::IvfRq { .. })) => {
            let sampled = (spec.partitions() as u64).saturating_mul(SAMPLE_RATE).min(rows);
            let sample = raw(sampled, dimension).saturating_mul(SAMPLE_COPIES);
            (vectors / 4).saturating_mul(IVF_PQ_QUARTERS).saturating_add(sample).saturating_add(WORK_BYTES)
        }
    }
}

/// The peak to expect of a build.
///
/// # Errors
/// [`Error::CannotBuild`] where it is above the memory limit, with what would fit.
pub(super) fn check_memory(memory: MemoryLimit, spec: Option<&IndexSpec>, rows: u64, dimension: usize) -> Result<u64> {
    let peak = memory.peak_with(build_bytes(spec, rows, dimension));
    let Some(limit) = memory.passed_by(peak) else { return Ok(peak) };
    let other = |kind: IndexKind| {
        let spec = spec_for(kind, rows, dimension, &SpecOverrides::default());
        let peak = memory.peak_with(build_bytes(spec.as_ref(), rows, dimension));
        (memory.passed_by(peak).is_none()).then(|| format!("{} ({})", kind.label(), in_mib(peak)))
    };
    let fitting: Vec<_> = [IndexKind::IvfPq, IndexKind::Flat].into_iter().filter_map(other).collect();
    let instead = if fitting.is_empty() { String::new() } else { format!(", or build {}", fitting.join(" or ")) };
    Err(Error::CannotBuild {
        kind: spec.map_or("flat", IndexSpec::label).to_owned(),
        reason: format!(
            "{rows} vectors of {dimension} dimensions would take about {}, the memory limit is {}; raise it{instead}",
            in_mib(peak),
            in_mib(limit)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn checked(limit_mib: u64, kind: IndexKind, rows: u64) -> Result<u64> {
        let memory = MemoryLimit::new(Some(limit_mib * MIB), 0)?;
        let spec = spec_for(kind, rows, 384, &SpecOverrides::default());
        check_memory(memory, spec.as_ref(), rows, 384)
    }

    #[test]
    fn a_refusal_names_the_estimate_the_limit_and_what_would_fit() {
        let refused = checked(1024, IndexKind::Hnsw, 1_000_000).unwrap_err().to_string();
        assert!(
            refused.starts_with("cannot build a hnsw index: 1000000 vectors of 384 dimensions would take about "),
            "{refused}"
        );
        assert!(refused.contains("the memory limit is 1024 MiB; raise it, or build flat (160 MiB)"), "{refused}");
        let refused = checked(4096, IndexKind::Hnsw, 1_000_000).unwrap_err().to_string();
        assert!(refused.contains("or build ivf-pq ("), "{refused}");
    }

    #[test]
    fn estimates_grow_with_rows_and_what_fits_is_let_through() {
        for kind in [IndexKind::Flat, IndexKind::IvfPq, IndexKind::Hnsw] {
            let peaks: Vec<_> = [10_000, 100_000, 1_000_000].map(|rows| checked(1 << 20, kind, rows).unwrap()).into();
            assert!(peaks.is_sorted(), "{peaks:?}");
        }
    }
}
