//! Slices: the most frequent categories, each searched with the filter on it and held against exact search among its own
//! rows. An index may answer well on the whole and badly under a filter, where the neighbours lie farther away.

use super::Indexing;
use super::queries::{Drawn, ValidationQuery, generator, shuffle};
use super::sources::moved_all;
use crate::error::Result;
use crate::store::{Filter, Snapshot};

/// Categories that are looked at.
const SLICES: usize = 3;

/// Queries that tuning asks of each: enough to see a filter that ruins what is fine without it.
const TUNING: usize = 16;

/// Queries that the verdict on each is based on: 1,920 trials at k = 10, of which a share of 0.9598 proves 0.95 and 0.9944
/// proves 0.99 at the confidence of one look. With a third of them an index that is good enough would miss 0.99 by chance too
/// often; but where recall is well above the threshold a third proves it, and a filtered query costs several others.
const VERDICT: usize = 192;

/// Queries of the first look; the others are only asked if it does not prove enough.
pub(super) const FIRST_LOOK: usize = 64;

/// Confidence of each of the two looks: together they err in at most five of a hundred cases (Bonferroni).
pub(super) const LOOK_CONFIDENCE: f64 = 0.975;

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

/// A slice before its true neighbours are known.
#[derive(Clone, Debug)]
pub(super) struct DrawnSlice {
    pub(super) category: String,
    pub(super) rows: u64,
    pub(super) drawn: Vec<Drawn>,
}

impl DrawnSlice {
    /// The slice with its queries answered.
    pub(super) fn answered(self, mut queries: Vec<ValidationQuery>) -> Slice {
        let is_gated = queries.len() == TUNING + VERDICT;
        let verdict = queries.split_off(if is_gated { TUNING } else { 0 });
        let filter = Filter::Eq("category", self.category.clone());
        Slice { category: self.category, rows: self.rows, is_gated, filter, tuning: queries, verdict }
    }
}

impl Indexing {
    /// Draws the slices of a snapshot of `rows`; none where all rows are of one category.
    pub(super) async fn draw_slices(
        &self,
        snapshot: &Snapshot,
        rows: u64,
        k: usize,
        seed: u64,
    ) -> Result<Vec<DrawnSlice>> {
        let mut slices = Vec::new();
        for sample in self.embeddings.frequent_categories(snapshot, SLICES, TUNING + VERDICT, seed).await? {
            // All rows are no slice, and where there are not k others every search finds what there is.
            if sample.rows == rows || sample.rows <= k as u64 {
                continue;
            }
            let stored = self.embeddings.vectors_of(snapshot, &sample.row_ids).await?;
            let vectors = stored.vectors.chunks_exact(self.embeddings.dimension()).map(<[f32]>::to_vec);
            let stored: Vec<_> = stored.row_ids.iter().copied().zip(vectors).collect();
            let mut rng = generator(seed);
            let mut drawn = moved_all(&stored, &mut rng);
            shuffle(&mut drawn, &mut rng);
            slices.push(DrawnSlice { category: sample.category, rows: sample.rows, drawn });
        }
        Ok(slices)
    }
}
