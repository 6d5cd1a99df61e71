//! Slices: the most frequent categories, each searched with the filter on it and held against exact search among its own
//! rows. An index may answer well on the whole and badly under a filter, where the neighbours lie farther away.

use super::Indexing;
use super::queries::{ValidationQuery, generator, shuffle};
use super::sources::moved_all;
use crate::error::Result;
use crate::store::{Filter, Snapshot};

/// Categories that are looked at.
const SLICES: usize = 3;

/// Queries that tuning asks of each.
const TUNING: usize = 32;

/// Queries that the verdict on each is based on: 1,920 trials at k = 10, of which a share of 0.9583 proves 0.95 and 0.9938
/// proves 0.99. With half as many an index that is good enough would miss 0.99 by chance in one of three.
const VERDICT: usize = 192;

/// One category with its queries: stored vectors of it, moved.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) category: String,
    pub(super) rows: u64,
    /// Whether the gate looks at it. A smaller one is measured and reported: its rows are too few to be sampled twice, and
    /// too few to hold a whole index up.
    pub(super) is_gated: bool,
    pub(super) filter: Filter,
    pub(super) tuning: Vec<ValidationQuery>,
    pub(super) verdict: Vec<ValidationQuery>,
}

impl Indexing {
    /// The slices of a snapshot of `rows`; none where all rows are of one category.
    pub(super) async fn slices(&self, snapshot: &Snapshot, rows: u64, k: usize, seed: u64) -> Result<Vec<Slice>> {
        let mut slices = Vec::new();
        let wanted = TUNING + VERDICT;
        for sample in self.embeddings.frequent_categories(snapshot, SLICES, wanted, seed).await? {
            // All rows are no slice, and where there are not k others every search finds what there is.
            if sample.rows == rows || sample.rows <= k as u64 {
                continue;
            }
            let filter = Filter::Eq("category", sample.category.clone());
            let stored = self.embeddings.vectors_of(snapshot, &sample.row_ids).await?;
            let vectors = stored.vectors.chunks_exact(self.embeddings.dimension()).map(<[f32]>::to_vec);
            let stored: Vec<_> = stored.row_ids.iter().copied().zip(vectors).collect();
            let mut rng = generator(seed);
            let mut drawn = moved_all(&stored, &mut rng);
            shuffle(&mut drawn, &mut rng);
            let mut all = self.with_truth(snapshot, Some(&filter), sample.rows, drawn, k).await?;
            let is_gated = all.len() == wanted;
            let verdict = all.split_off(if is_gated { TUNING } else { 0 });
            slices.push(Slice { category: sample.category, rows: sample.rows, is_gated, filter, tuning: all, verdict });
        }
        Ok(slices)
    }
}
