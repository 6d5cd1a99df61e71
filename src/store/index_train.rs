//! Training what an index of lists is made with: the centres of its lists, from a seeded sample of bounded size.
//!
//! Guarantees: the same seed draws the same sample and starts k-means in the same place; the sample is read in one streamed
//! pass and is no larger than asked for. Must not know: generations, memory limits.

use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{FixedSizeListArray, PrimitiveArray};
use arrow_schema::{DataType, Field};
use futures::TryStreamExt;
use lance_index::vector::kmeans::{KMeansParams, train_kmeans};
use lance_linalg::distance::DistanceType;

use super::embeddings::{Embeddings, Snapshot};
use super::index_build::{IndexJob, cancelled};
use super::index_spec::IndexSpec;
use crate::error::{Error, Result};
use crate::progress::{Progress, Stage};
use crate::sample::SeededSample;

/// k-means iterations at most where nothing else is said; Lance's number.
const MAX_ITERATIONS: usize = 50;

/// What training has found.
#[derive(Clone, Debug)]
pub(crate) struct Trained {
    /// One centre a list.
    pub(super) centroids: Arc<FixedSizeListArray>,
    /// Vectors that it looked at.
    pub(crate) sample_rows: u64,
}

impl Embeddings {
    /// Trains the centres of the lists on a sample of a snapshot.
    ///
    /// # Errors
    /// [`Error::CannotBuild`] where no such index can be built of these rows; [`Error::Cancelled`], at once, although k-means
    /// then goes on to its end in the background.
    pub(crate) async fn train_index(&self, snapshot: &Snapshot, job: &IndexJob<'_>) -> Result<Trained> {
        let rows = self.count_at(snapshot).await?;
        job.spec.check(rows, self.dimension)?;
        job.listener.report(Progress::Started { stage: Stage::Train, total: Some(rows) });
        let partitions = job.spec.partitions();
        let wanted = (partitions.saturating_mul(job.sample_rate) as u64).min(rows);
        let sample = self.sample(snapshot, rows, wanted, job).await?;
        let training = self.k_means(sample, partitions, job);
        let centroids = tokio::select! {
            trained = training => trained?,
            () = cancelled(job.cancel) => return Err(Error::Cancelled),
        };
        job.listener.report(Progress::Finished { stage: Stage::Train });
        Ok(Trained { centroids, sample_rows: wanted })
    }

    /// Unit vectors of `wanted` rows, one after another.
    async fn sample(&self, snapshot: &Snapshot, rows: u64, wanted: u64, job: &IndexJob<'_>) -> Result<Vec<f32>> {
        let mut picker = SeededSample::new(rows, wanted, job.seed);
        let mut sample = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0).saturating_mul(self.dimension));
        let mut batches = self.vectors(snapshot, None).await?;
        let mut seen = 0;
        while let Some(batch) = batches.try_next().await? {
            job.cancel.check()?;
            for vector in batch.vectors.chunks_exact(self.dimension) {
                if picker.take_next() {
                    sample.extend(normalised(vector));
                }
            }
            seen += batch.row_ids.len() as u64;
            job.listener.report(Progress::Advanced { stage: Stage::Train, done: seen });
        }
        Ok(sample)
    }

    async fn k_means(
        &self,
        sample: Vec<f32>,
        partitions: usize,
        job: &IndexJob<'_>,
    ) -> Result<Arc<FixedSizeListArray>> {
        let (dimension, table, rate) = (self.dimension, self.table.clone(), job.sample_rate);
        let max_iterations = match *job.spec {
            IndexSpec::IvfPq { max_iterations, .. } => max_iterations,
            _ => MAX_ITERATIONS,
        };
        let params = KMeansParams {
            max_iters: u32::try_from(max_iterations).unwrap_or(u32::MAX),
            // Cosine on unit vectors orders as L2 does, and means of unit vectors are what Lance itself would train.
            distance_type: DistanceType::L2,
            seed: Some(job.seed),
            ..KMeansParams::default()
        };
        let training = tokio::task::spawn_blocking(move || {
            let sample = PrimitiveArray::<Float32Type>::from(sample);
            let trained = train_kmeans::<Float32Type>(&sample, params, dimension, partitions, rate);
            let centroids = trained.map_err(|e| table.error("train partitions of", e))?.centroids;
            let item = Arc::new(Field::new("item", DataType::Float32, true));
            let width = i32::try_from(dimension).unwrap_or(i32::MAX);
            let list = FixedSizeListArray::try_new(item, width, centroids, None);
            list.map(Arc::new).map_err(|e| table.error("train partitions of", e))
        });
        training.await.map_err(|e| self.table.error("train partitions of", e))?
    }
}

fn normalised(vector: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if norm > 0.0 { norm.recip() } else { 1.0 };
    vector.iter().map(move |x| x * scale)
}
