//! Where validation queries come from: what people asked, where the bank keeps a log of it; else stored passages, embedded
//! anew as questions, where the embedder tells the two apart; else stored vectors, moved a little off their place.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Indexing;
use super::queries::{Drawn, Sizes, generator, shuffle};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::ChunkId;
use crate::progress::Progress;
use crate::sample::SeededSample;
use crate::store::Snapshot;

/// Different questions from which on the log is used: two thirds of them, for the verdict, are 850 trials at k = 10, which
/// prove 0.95 from a measured 0.9628 on.
const LEAST_LOGGED: usize = 128;

/// Length of the step off the stored vector, relative to its norm. At 0.3 the query has cosine 0.96 to where it came from:
/// it stays among the data, and its neighbours are not simply those of the original.
const STEP: f32 = 0.3;

/// Embeds stored chunks anew, as questions: what belongs to an embedder that tells questions from passages. Chunks without
/// an answer are left out.
pub(crate) type AskAnew =
    Arc<dyn Fn(Vec<ChunkId>) -> BoxFuture<'static, Result<HashMap<ChunkId, Vec<f32>>>> + Send + Sync>;

/// The vectors of both sets.
#[derive(Clone, Debug)]
pub(super) struct DrawnSets {
    pub(super) tuning: Vec<Drawn>,
    pub(super) verdict: Vec<Drawn>,
    pub(super) source: String,
    pub(super) is_sample: bool,
}

impl Indexing {
    /// Draws both sets from the best source there is.
    ///
    /// Of a log, what was asked until then: so that what was drawn once can be drawn again.
    pub(super) async fn draw(
        &self,
        snapshot: &Snapshot,
        rows: u64,
        seed: u64,
        until: Timestamp,
        sizes: Sizes,
    ) -> Result<DrawnSets> {
        if let Some(asked) = self.draw_logged(seed, until, sizes).await? {
            return Ok(asked);
        }
        self.draw_rows(snapshot, rows, seed, sizes).await
    }

    /// Draws both sets from the rows of a snapshot, whatever people ask.
    pub(super) async fn draw_rows(&self, snapshot: &Snapshot, rows: u64, seed: u64, sizes: Sizes) -> Result<DrawnSets> {
        let mut rng = generator(seed);
        let wanted = sizes.all() as u64;
        let mut sample = SeededSample::new(rows, wanted, seed);
        let positions: Vec<u64> = (0..rows).filter(|_| sample.take_next()).collect();
        let stored = self.embeddings.vectors_at(snapshot, &positions).await?;
        let vectors = stored.vectors.chunks_exact(self.embeddings.dimension());
        let stored: Vec<_> = stored.row_ids.iter().copied().zip(vectors.map(<[f32]>::to_vec)).collect();
        let origins: Vec<_> = stored.iter().map(|(row, _)| *row).collect();
        let (mut drawn, source) = match self.ask_anew(snapshot, &origins).await? {
            Some(asked) => (asked, "stored passages embedded as questions, themselves excluded"),
            None => (moved_all(&stored, &mut rng), "stored vectors moved to cosine 0.96, themselves excluded"),
        };
        // In a random order, so that the first ones are as good a sample as the others.
        shuffle(&mut drawn, &mut rng);
        if rows > wanted {
            let verdict = drawn.split_off(sizes.tuning.min(drawn.len()));
            return Ok(DrawnSets { tuning: drawn, verdict, source: source.to_owned(), is_sample: true });
        }
        // Too few rows to part them: each is asked for the verdict, and moved in another direction to tune with.
        let mut tuning = moved_all(&stored, &mut rng);
        shuffle(&mut tuning, &mut rng);
        tuning.truncate(sizes.tuning);
        Ok(DrawnSets { tuning, verdict: drawn, source: source.to_owned(), is_sample: false })
    }

    /// Questions of the log, or none if there are too few.
    async fn draw_logged(&self, seed: u64, until: Timestamp, sizes: Sizes) -> Result<Option<DrawnSets>> {
        let mut logged = self.store.query_log(&self.embedder_id, self.embeddings.dimension()).read().await?;
        logged.retain(|query| query.at <= until);
        if logged.len() < LEAST_LOGGED {
            return Ok(None);
        }
        let source = format!("the log of {} questions that were asked", logged.len());
        let mut drawn: Vec<_> = logged.into_iter().map(|query| Drawn { origin: None, vector: query.vector }).collect();
        shuffle(&mut drawn, &mut generator(seed));
        drawn.truncate(sizes.all());
        let verdict = drawn.split_off(drawn.len() * sizes.tuning / sizes.all().max(1));
        Ok(Some(DrawnSets { tuning: drawn, verdict, source, is_sample: true }))
    }

    /// The passages of these rows as questions; `None` where the embedder does not tell them apart, or fails.
    async fn ask_anew(&self, snapshot: &Snapshot, origins: &[u64]) -> Result<Option<Vec<Drawn>>> {
        let Some(ask) = &self.ask_anew else { return Ok(None) };
        let ids = self.embeddings.take_ids(snapshot, origins).await?;
        let answers = match ask(ids.values().cloned().collect()).await {
            Ok(answers) => answers,
            Err(error) => {
                let note = format!("passages could not be embedded as questions ({error}); moved vectors are used");
                self.listener.report(Progress::Note(note));
                return Ok(None);
            }
        };
        let asked = origins.iter().filter_map(|row| {
            let vector = answers.get(ids.get(row)?)?.clone();
            Some(Drawn { origin: Some(*row), vector })
        });
        let asked: Vec<_> = asked.collect();
        // Some documents may be gone already; most of them cannot be.
        Ok((asked.len() * 2 > origins.len()).then_some(asked))
    }
}

/// Each vector with a step of fixed length in a random direction.
pub(super) fn moved_all(stored: &[(u64, Vec<f32>)], rng: &mut ChaCha8Rng) -> Vec<Drawn> {
    stored.iter().map(|(row, vector)| Drawn { origin: Some(*row), vector: moved(vector, rng) }).collect()
}

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
    use rand::SeedableRng;

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
