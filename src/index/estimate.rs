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

/// Quarters of the vectors' bytes that building a graph of codes holds. Five were measured over 110,000 × 384, nine over
/// 50,000 × 384 and fewer; thirteen over 171,565 × 384, where lists were built after it in the same process.
const GRAPH_QUARTERS: u64 = 13;

/// The same for a graph of whole vectors: fifteen were measured over 110,000 × 384.
const WHOLE_GRAPH_QUARTERS: u64 = 17;

/// Bytes of one edge while the graph is built.
const EDGE_BYTES: u64 = 24;

/// The same for inverted lists, beside the sample.
const LIST_QUARTERS: u64 = 4;

/// Copies of the training sample: our own, and that of k-means.
const SAMPLE_COPIES: u64 = 2;

/// Vectors for each list that training looks at, at least: Faiss warns below that.
const LEAST_SAMPLE_RATE: usize = 39;

/// Bytes of the vectors themselves.
fn raw(rows: u64, dimension: usize) -> u64 {
    rows.saturating_mul(dimension as u64).saturating_mul(size_of::<f32>() as u64)
}

/// Bytes that building and validating takes beside the program; `None` for flat.
fn build_bytes(spec: Option<&IndexSpec>, rows: u64, dimension: usize, sample_rate: usize) -> u64 {
    let Some(spec) = spec else { return FLAT_BYTES };
    let vectors = raw(rows, dimension);
    let building = match spec {
        IndexSpec::IvfFlat { .. } | IndexSpec::IvfPq { .. } | IndexSpec::IvfRq { .. } => {
            (vectors / 4).saturating_mul(LIST_QUARTERS)
        }
        IndexSpec::Hnsw { edges, .. } | IndexSpec::HnswPq { edges, .. } => {
            (vectors / 4).saturating_mul(GRAPH_QUARTERS).saturating_add(graph_bytes(rows, *edges))
        }
        IndexSpec::HnswFlat { edges, .. } => {
            (vectors / 4).saturating_mul(WHOLE_GRAPH_QUARTERS).saturating_add(graph_bytes(rows, *edges))
        }
    };
    building.saturating_add(sample_bytes(spec, rows, dimension, sample_rate)).saturating_add(WORK_BYTES)
}

fn graph_bytes(rows: u64, edges: usize) -> u64 {
    rows.saturating_mul(edges as u64).saturating_mul(EDGE_BYTES)
}

/// Bytes of the larger of two samples that are held one after the other: of the lists, and of the code words.
fn sample_bytes(spec: &IndexSpec, rows: u64, dimension: usize, sample_rate: usize) -> u64 {
    let centres = spec.codewords().unwrap_or(0).max(spec.partitions() as u64);
    let sampled = centres.saturating_mul(sample_rate as u64).min(rows);
    raw(sampled, dimension).saturating_mul(SAMPLE_COPIES)
}

/// What of a build was settled beforehand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fitting {
    /// Vectors for each list and code word that training looks at: fewer than the rules say where they would not fit.
    pub(super) sample_rate: usize,
    /// Bytes at the peak to expect.
    pub(super) peak: u64,
}

/// The largest sample that fits beside the build.
///
/// # Errors
/// [`Error::CannotBuild`] where not even the smallest does, with what would fit.
pub(super) fn fit(memory: MemoryLimit, spec: Option<&IndexSpec>, rows: u64, dimension: usize) -> Result<Fitting> {
    let wanted = spec.map_or(0, IndexSpec::sample_rate);
    let peak_at = |rate| memory.peak_with(build_bytes(spec, rows, dimension, rate));
    let mut sample_rate = wanted;
    while memory.passed_by(peak_at(sample_rate)).is_some() && sample_rate > LEAST_SAMPLE_RATE {
        sample_rate = (sample_rate / 2).max(LEAST_SAMPLE_RATE);
    }
    let peak = check_memory(memory, spec, rows, dimension, sample_rate)?;
    Ok(Fitting { sample_rate, peak })
}

/// The peak to expect of a build, or the refusal with what would fit instead.
fn check_memory(
    memory: MemoryLimit,
    spec: Option<&IndexSpec>,
    rows: u64,
    dimension: usize,
    sample_rate: usize,
) -> Result<u64> {
    let peak = memory.peak_with(build_bytes(spec, rows, dimension, sample_rate));
    let Some(limit) = memory.passed_by(peak) else { return Ok(peak) };
    let other = |kind: IndexKind| {
        let spec = spec_for(kind, rows, dimension, &SpecOverrides::default());
        let peak = memory.peak_with(build_bytes(spec.as_ref(), rows, dimension, LEAST_SAMPLE_RATE));
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
        fit(memory, spec.as_ref(), rows, 384).map(|fitting| fitting.peak)
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

    #[test]
    fn a_sample_that_does_not_fit_is_made_smaller_before_a_build_is_refused() {
        let rate_within = |limit_mib: u64| {
            let memory = MemoryLimit::new(Some(limit_mib * MIB), 0).unwrap();
            let spec = spec_for(IndexKind::IvfFlat, 1_000_000, 384, &SpecOverrides::default());
            fit(memory, spec.as_ref(), 1_000_000, 384)
                .map(|fitting| (fitting.sample_rate, fitting.peak <= limit_mib * MIB))
        };
        let [wide, narrow] = [4096, 2048].map(|limit| rate_within(limit).unwrap());
        assert_eq!(wide, (256, true));
        assert!((39..256).contains(&narrow.0) && narrow.1, "{narrow:?}");
        assert!(rate_within(1024).is_err());
    }
}
