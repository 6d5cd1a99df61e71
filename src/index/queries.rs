//! Held-out validation queries with their true neighbours.
//!
//! Two disjoint sets, one to tune with and one for the verdict, made of stored vectors moved a little off their place; the
//! vector that a query was made of never counts as its answer. Both sets and the ground truth come from one seed and one
//! snapshot, so a report can be recomputed.

use futures::TryStreamExt;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Indexing;
use crate::error::Result;
use crate::exact::ExactSearch;
use crate::id::GenerationId;
use crate::progress::{Progress, Stage};
use crate::sample::SeededSample;
use crate::store::{IndexQuery, QuerySettings, Snapshot};

/// Queries that tuning measures with.
const TUNING: u64 = 96;
/// Queries that the verdict is based on: a true recall of 0.95 is then measured to about ± 0.01 (2,000 neighbours).
const VERDICT: u64 = 200;

/// Length of the step off the stored vector, relative to its norm. At 0.3 the query has cosine 0.96 to where it came from:
/// it stays among the data, and its neighbours are not simply those of the original.
const STEP: f32 = 0.3;

/// One query with its true neighbours.
#[derive(Clone, Debug)]
pub(super) struct ValidationQuery {
    /// The row it was made of; never an answer.
    pub(super) origin: u64,
    pub(super) vector: Vec<f32>,
    /// Row ids of the k true neighbours.
    pub(super) neighbours: Vec<u64>,
    /// Distance of the k-th of them; whatever is not farther is as good an answer.
    pub(super) radius: f32,
}

impl ValidationQuery {
    /// The query for one more neighbour than counts: its origin is among them.
    pub(super) fn asked_of<'a>(&'a self, generation: &'a GenerationId, settings: &'a QuerySettings) -> IndexQuery<'a> {
        IndexQuery { generation, vector: &self.vector, k: self.neighbours.len() + 1, settings, filter: None }
    }
}

/// The two sets.
#[derive(Clone, Debug, Default)]
pub(super) struct ValidationQueries {
    pub(super) tuning: Vec<ValidationQuery>,
    pub(super) verdict: Vec<ValidationQuery>,
}

impl Indexing {
    /// Draws the queries and finds their `k` true neighbours in one pass over the snapshot.
    pub(super) async fn validation_queries(
        &self,
        snapshot: &Snapshot,
        rows: u64,
        k: usize,
        seed: u64,
    ) -> Result<ValidationQueries> {
        let dimension = self.embeddings.dimension();
        let (origins, vectors) = self.draw(snapshot, rows, seed).await?;
        // One more than k: the origin is among them and does not count.
        let mut search = ExactSearch::new(&vectors.concat(), dimension, k + 1);
        self.listener.report(Progress::Started { stage: Stage::GroundTruth, total: Some(rows) });
        let mut done = 0;
        let mut batches = self.embeddings.vectors(snapshot, None).await?;
        while let Some(batch) = batches.try_next().await? {
            self.cancel.check()?;
            search = tokio::task::spawn_blocking(move || {
                search.feed(&batch.row_ids, &batch.vectors);
                (search, batch.row_ids.len() as u64)
            })
            .await
            .map(|(search, fed)| {
                done += fed;
                search
            })
            .map_err(|e| crate::Error::Io {
                action: "search",
                path: self.store.root().into(),
                source: e.into(),
            })?;
            self.listener.report(Progress::Advanced { stage: Stage::GroundTruth, done });
        }
        self.listener.report(Progress::Finished { stage: Stage::GroundTruth });
        let mut all = origins.into_iter().zip(vectors).zip(search.finish()).map(|((origin, vector), mut found)| {
            found.retain(|neighbour| neighbour.row_id != origin);
            found.truncate(k);
            ValidationQuery {
                origin,
                vector,
                radius: found.last().map_or(0.0, |last| last.distance),
                neighbours: found.iter().map(|neighbour| neighbour.row_id).collect(),
            }
        });
        // Drawn in a random order, so the first ones are as good a sample as the others.
        let share = usize::try_from(TUNING.min(rows / 2)).unwrap_or(0);
        Ok(ValidationQueries { tuning: all.by_ref().take(share).collect(), verdict: all.collect() })
    }

    /// Row ids and moved vectors, in a random order.
    async fn draw(&self, snapshot: &Snapshot, rows: u64, seed: u64) -> Result<(Vec<u64>, Vec<Vec<f32>>)> {
        let mut sample = SeededSample::new(rows, TUNING + VERDICT, seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(1));
        let mut drawn = Vec::new();
        let mut batches = self.embeddings.vectors(snapshot, None).await?;
        while let Some(batch) = batches.try_next().await? {
            let rows = batch.row_ids.iter().zip(batch.vectors.chunks_exact(self.embeddings.dimension()));
            for (row_id, vector) in rows {
                if sample.take_next() {
                    drawn.push((*row_id, moved(vector, &mut rng)));
                }
            }
        }
        // Fisher–Yates.
        for last in (1..drawn.len()).rev() {
            drawn.swap(last, rng.random_range(0..=last));
        }
        Ok(drawn.into_iter().unzip())
    }
}

/// The vector with a step of fixed length in a random direction.
fn moved(vector: &[f32], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    // The sum of three uniform numbers is near enough to normal for a direction without a preferred axis.
    let step: Vec<f32> =
        vector.iter().map(|_| rng.random::<f32>() + rng.random::<f32>() + rng.random::<f32>() - 1.5).collect();
    let scale = STEP * norm(vector) / norm(&step).max(f32::MIN_POSITIVE);
    vector.iter().zip(step).map(|(x, s)| x + s * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_vector_has_the_documented_cosine() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let vector: Vec<f32> = (0..384).map(|_| rng.random::<f32>() - 0.5).collect();
        let query = moved(&vector, &mut rng);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let cosine = dot(&vector, &query) / (dot(&vector, &vector) * dot(&query, &query)).sqrt();
        assert!((cosine - 0.958).abs() < 0.02, "{cosine}");
    }
}
