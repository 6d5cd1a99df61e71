//! Building an index generation under a name.
//!
//! Guarantees: a build that cannot work (too few rows, an index that covers nothing) is an error, not an empty index; a
//! cancelled one leaves nothing that a search could find. Must not know: recall, thresholds, pointers.

use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{FixedSizeListArray, PrimitiveArray};
use arrow_schema::{DataType, Field};
use async_trait::async_trait;
use futures::TryStreamExt;
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_index::progress::IndexBuildProgress;
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::kmeans::{KMeansParams, train_kmeans};
use lance_index::vector::pq::PQBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use lance_linalg::distance::DistanceType;
use serde::{Deserialize, Serialize};

use super::embeddings::{Embeddings, Snapshot};
use super::schema::VECTOR;
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::progress::{Cancel, Listener, Progress, Stage};

/// How often a running build looks whether it was cancelled.
const CANCEL_POLL: std::time::Duration = std::time::Duration::from_millis(200);

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
        /// Bits of one dimension.
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
}

impl Embeddings {
    /// Builds the index under the generation's name on the newest version. `seed` decides the sample and the start of the
    /// partition training; the code books of product quantisation are trained by Lance on a sample of its own.
    ///
    /// # Errors
    /// [`Error::CannotBuild`] where the index would be empty or nonsensical, [`Error::Cancelled`].
    pub(crate) async fn build_index(
        &self,
        generation: &GenerationId,
        spec: &IndexSpec,
        seed: u64,
        listener: &Listener,
        cancel: &Cancel,
    ) -> Result<Snapshot> {
        self.refresh().await?;
        let snapshot = self.snapshot().await?;
        let rows = self.count_at(&snapshot).await?;
        check_spec(spec, rows, self.dimension)?;
        let params = self.index_params(spec, &snapshot, rows, seed, cancel).await?;
        let mut dataset = snapshot.0.as_ref().clone();
        let columns = [VECTOR];
        let build = dataset
            .create_index_builder(&columns, IndexType::Vector, &params)
            .name(generation.as_str().to_owned())
            .progress(Arc::new(BuildProgress(listener.clone())));
        tokio::select! {
            built = build.into_future() => { built.map_err(|e| self.table.error("build an index on", e))?; }
            () = cancelled(cancel) => return Err(Error::Cancelled),
        }
        self.table.adopt(dataset);
        let snapshot = self.snapshot().await?;
        let coverage = self.coverage(&snapshot, generation).await?;
        if coverage.is_none_or(|coverage| coverage.indexed < rows) {
            return Err(Error::CannotBuild {
                kind: spec.label().to_owned(),
                reason: format!("the finished index does not cover all {rows} rows"),
            });
        }
        Ok(snapshot)
    }

    async fn index_params(
        &self,
        spec: &IndexSpec,
        snapshot: &Snapshot,
        rows: u64,
        seed: u64,
        cancel: &Cancel,
    ) -> Result<VectorIndexParams> {
        let params = match *spec {
            IndexSpec::IvfPq { partitions, sub_vectors, bits, sample_rate, max_iterations } => {
                let centroids = self.train_centroids(snapshot, rows, partitions, sample_rate, max_iterations, seed);
                let mut ivf = IvfBuildParams::new(partitions);
                ivf.centroids = Some(centroids.await?);
                ivf.sample_rate = sample_rate;
                let mut pq = PQBuildParams::new(sub_vectors, bits);
                (pq.sample_rate, pq.max_iters) = (sample_rate, max_iterations);
                VectorIndexParams::with_ivf_pq_params(DistanceType::Cosine, ivf, pq)
            }
            IndexSpec::Hnsw { partitions, edges, ef_construction } => {
                let ivf = IvfBuildParams::new(partitions);
                let hnsw = HnswBuildParams::default().num_edges(edges).ef_construction(ef_construction);
                VectorIndexParams::with_ivf_hnsw_sq_params(DistanceType::Cosine, ivf, hnsw, SQBuildParams::default())
            }
            IndexSpec::IvfFlat { .. }
            | IndexSpec::IvfRq { .. }
            | IndexSpec::HnswPq { .. }
            | IndexSpec::HnswFlat { .. } => {
                let reason = "this kind cannot be built yet".to_owned();
                return Err(Error::CannotBuild { kind: spec.label().to_owned(), reason });
            }
        };
        cancel.check()?;
        Ok(params)
    }

    /// k-means on a seeded sample of the vectors.
    async fn train_centroids(
        &self,
        snapshot: &Snapshot,
        rows: u64,
        partitions: usize,
        sample_rate: usize,
        max_iterations: usize,
        seed: u64,
    ) -> Result<Arc<FixedSizeListArray>> {
        let wanted = partitions.saturating_mul(sample_rate);
        let mut picker = crate::sample::SeededSample::new(rows, wanted as u64, seed);
        let mut sample = Vec::with_capacity(wanted.min(usize::try_from(rows).unwrap_or(wanted)) * self.dimension);
        let mut batches = self.vectors(snapshot, None).await?;
        while let Some(batch) = batches.try_next().await? {
            for vector in batch.vectors.chunks_exact(self.dimension) {
                if picker.take_next() {
                    sample.extend(normalised(vector));
                }
            }
        }
        let dimension = self.dimension;
        let table = self.table.clone();
        let training = tokio::task::spawn_blocking(move || {
            // Cosine on unit vectors orders as L2 does, and means of unit vectors are what Lance itself would train.
            let params = KMeansParams {
                max_iters: u32::try_from(max_iterations).unwrap_or(u32::MAX),
                distance_type: DistanceType::L2,
                seed: Some(seed),
                ..KMeansParams::default()
            };
            let sample = PrimitiveArray::<Float32Type>::from(sample);
            let trained = train_kmeans::<Float32Type>(&sample, params, dimension, partitions, sample_rate);
            let centroids = trained.map_err(|e| table.error("train partitions of", e))?.centroids;
            let item = Arc::new(Field::new("item", DataType::Float32, true));
            let width = i32::try_from(dimension).unwrap_or(i32::MAX);
            let list = FixedSizeListArray::try_new(item, width, centroids, None);
            list.map(Arc::new).map_err(|e| table.error("train partitions of", e))
        });
        training.await.map_err(|e| self.table.error("train partitions of", e))?
    }
}

/// Refuses what Lance would turn into an empty index or a late failure.
fn check_spec(spec: &IndexSpec, rows: u64, dimension: usize) -> Result<()> {
    let refuse = |reason: String| Err(Error::CannotBuild { kind: spec.label().to_owned(), reason });
    let partitions = match *spec {
        IndexSpec::IvfPq { partitions, sub_vectors, bits, .. } => {
            if sub_vectors == 0 || !dimension.is_multiple_of(sub_vectors) {
                return refuse(format!("{sub_vectors} sub-vectors do not divide {dimension} dimensions"));
            }
            if bits != 4 && bits != 8 {
                return refuse(format!("codes of {bits} bits are not supported; 4 and 8 are"));
            }
            if bits == 4 && !sub_vectors.is_multiple_of(2) {
                return refuse(format!("codes of 4 bits are stored in pairs; {sub_vectors} sub-vectors are odd"));
            }
            let codewords = 1u64 << bits;
            if rows < codewords {
                return refuse(format!("{rows} rows cannot train {codewords} codewords; use a flat index or 4 bits"));
            }
            partitions
        }
        IndexSpec::Hnsw { partitions, edges, ef_construction } => {
            if edges < 4 || ef_construction < edges {
                return refuse(format!(
                    "{edges} edges with ef_construction {ef_construction}: use 4 edges or more, and no fewer candidates than edges"
                ));
            }
            partitions
        }
        IndexSpec::IvfFlat { .. } | IndexSpec::IvfRq { .. } | IndexSpec::HnswPq { .. } | IndexSpec::HnswFlat { .. } => {
            return refuse("this kind cannot be built yet".to_owned());
        }
    };
    if partitions == 0 || partitions as u64 > rows {
        return refuse(format!("{partitions} partitions for {rows} rows"));
    }
    Ok(())
}

fn normalised(vector: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if norm > 0.0 { norm.recip() } else { 1.0 };
    vector.iter().map(move |x| x * scale)
}

async fn cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(CANCEL_POLL).await;
    }
}

#[derive(Debug)]
struct BuildProgress(Listener);

#[async_trait]
impl IndexBuildProgress for BuildProgress {
    async fn stage_start(&self, stage: &str, total: Option<u64>, _unit: &str) -> lance_core::Result<()> {
        self.0.report(Progress::Note(format!("index: {}", stage.replace('_', " "))));
        self.0.report(Progress::Started { stage: Stage::Build, total });
        Ok(())
    }

    async fn stage_progress(&self, _stage: &str, completed: u64) -> lance_core::Result<()> {
        self.0.report(Progress::Advanced { stage: Stage::Build, done: completed });
        Ok(())
    }

    async fn stage_complete(&self, _stage: &str) -> lance_core::Result<()> {
        self.0.report(Progress::Finished { stage: Stage::Build });
        Ok(())
    }
}
