//! Building an index generation under a name.
//!
//! Guarantees: a build that cannot work (too few rows, an index that covers or holds too little) is an error, not an empty
//! index; one that is cancelled leaves nothing that a search could find, and its files have a name that tells whose they are
//! (`index_drop`). Must not know: recall, thresholds, pointers.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use lance::index::vector::VectorIndexParams;
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::IndexType;
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::progress::IndexBuildProgress;
use lance_index::vector::bq::rotation::random_fast_rotation_signs;
use lance_index::vector::bq::storage::{RabitQuantizationMetadata, RabitQueryEstimator};
use lance_index::vector::bq::{RQBuildParams, RQRotationType};
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::pq::PQBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use lance_linalg::distance::DistanceType;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::embeddings::{Embeddings, Snapshot};
use super::index_drop::segment_id;
use super::index_spec::IndexSpec;
use super::index_train::Trained;
use super::schema::VECTOR;
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::progress::{Cancel, Listener, Progress, Stage};

/// How often a running build looks whether it was cancelled.
const CANCEL_POLL: Duration = Duration::from_millis(200);

/// One build: what, under which name, and who is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexJob<'a> {
    pub(crate) generation: &'a GenerationId,
    pub(crate) spec: &'a IndexSpec,
    /// Vectors for each list and each code word that training looks at.
    pub(crate) sample_rate: usize,
    /// Decides the sample, the start of k-means and the rotation of `ivf-rq`. The code books of product quantisation are
    /// trained by Lance, on a sample of its own.
    pub(crate) seed: u64,
    pub(crate) listener: &'a Listener,
    pub(crate) cancel: &'a Cancel,
}

impl Embeddings {
    /// Builds the index under the generation's name on the newest version.
    ///
    /// # Errors
    /// [`Error::CannotBuild`] where the index would be empty or nonsensical, [`Error::Cancelled`].
    pub(crate) async fn build_index(&self, job: &IndexJob<'_>, trained: Trained) -> Result<Snapshot> {
        job.cancel.check()?;
        self.refresh().await?;
        let snapshot = self.snapshot().await?;
        let rows = self.count_at(&snapshot).await?;
        job.spec.check(rows, self.dimension)?;
        let params = index_params(job, trained, self.dimension);
        let mut dataset = snapshot.0.as_ref().clone();
        let columns = [VECTOR];
        let build = dataset
            .create_index_builder(&columns, IndexType::Vector, &params)
            .name(job.generation.as_str().to_owned())
            .index_uuid(segment_id(job.generation))
            .progress(Arc::new(BuildProgress(job.listener.clone())));
        tokio::select! {
            // Looked at first, each time that the build makes a step.
            biased;
            () = cancelled(job.cancel) => return Err(Error::Cancelled),
            built = build.into_future() => { built.map_err(|e| self.table.error("build an index on", e))?; }
        }
        self.table.adopt(dataset);
        let snapshot = self.snapshot().await?;
        self.check_whole(&snapshot, job, rows).await?;
        Ok(snapshot)
    }

    /// Refuses an index that covers fewer rows than there are, or holds fewer than it covers.
    async fn check_whole(&self, snapshot: &Snapshot, job: &IndexJob<'_>, rows: u64) -> Result<()> {
        let coverage = self.coverage(snapshot, job.generation).await?;
        let covered = coverage.map_or(0, |coverage| coverage.indexed);
        let failed = |e| self.table.error("read the indexes of", e);
        let mut held = 0;
        for segment in snapshot.0.load_indices_by_name(job.generation.as_str()).await.map_err(failed)? {
            let index = snapshot.0.open_vector_index(VECTOR, &segment.uuid, &NoOpMetricsCollector).await;
            held += index.map_err(failed)?.num_rows();
        }
        if covered < rows || held < rows {
            return Err(job
                .spec
                .refused(format!("the finished index covers {covered} of {rows} rows and holds {held}")));
        }
        Ok(())
    }

    /// Bytes of the files of the generation's index; `None` if there is no index of that name.
    pub(crate) async fn index_bytes(&self, snapshot: &Snapshot, generation: &GenerationId) -> Result<Option<u64>> {
        let failed = |e| self.table.error("read the indexes of", e);
        let segments = snapshot.0.load_indices_by_name(generation.as_str()).await.map_err(failed)?;
        let files = segments.iter().flat_map(|segment| segment.files.iter().flatten());
        Ok((!segments.is_empty()).then(|| files.map(|file| file.size_bytes).sum()))
    }
}

fn index_params(job: &IndexJob<'_>, trained: Trained, dimension: usize) -> VectorIndexParams {
    let metric = DistanceType::Cosine;
    let mut ivf = IvfBuildParams::new(job.spec.partitions());
    ivf.centroids = Some(trained.centroids);
    ivf.sample_rate = job.sample_rate;
    let codes = |sub_vectors, bits, max_iterations| {
        let mut pq = PQBuildParams::new(sub_vectors, bits);
        (pq.sample_rate, pq.max_iters) = (job.sample_rate, max_iterations);
        pq
    };
    let graph = |edges, ef_construction| HnswBuildParams::default().num_edges(edges).ef_construction(ef_construction);
    match *job.spec {
        IndexSpec::IvfFlat { .. } => VectorIndexParams::with_ivf_flat_params(metric, ivf),
        IndexSpec::IvfPq { sub_vectors, bits, max_iterations, .. } => {
            VectorIndexParams::with_ivf_pq_params(metric, ivf, codes(sub_vectors, bits, max_iterations))
        }
        IndexSpec::IvfRq { bits, .. } => {
            VectorIndexParams::with_ivf_rq_params(metric, ivf, rotation(bits, dimension, job.seed))
        }
        IndexSpec::Hnsw { edges, ef_construction, .. } => {
            let graph = graph(edges, ef_construction);
            VectorIndexParams::with_ivf_hnsw_sq_params(metric, ivf, graph, SQBuildParams::default())
        }
        IndexSpec::HnswPq { edges, ef_construction, sub_vectors, bits, .. } => {
            let (graph, codes) = (graph(edges, ef_construction), codes(sub_vectors, bits, ivf.max_iters));
            VectorIndexParams::with_ivf_hnsw_pq_params(metric, ivf, graph, codes)
        }
        IndexSpec::HnswFlat { edges, ef_construction, .. } => {
            VectorIndexParams::ivf_hnsw(metric, ivf, graph(edges, ef_construction))
        }
    }
}

/// A rotation that follows from the seed; Lance would draw one.
fn rotation(bits: usize, dimension: usize, seed: u64) -> RQBuildParams {
    // As many signs as Lance wants, which it does not state otherwise.
    let mut signs = random_fast_rotation_signs(dimension);
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut signs);
    let num_bits = u8::try_from(bits).unwrap_or(u8::MAX);
    let rotation = RabitQuantizationMetadata {
        rotate_mat: None,
        rotate_mat_position: None,
        fast_rotation_signs: Some(signs),
        rotation_type: RQRotationType::Fast,
        code_dim: u32::try_from(dimension).unwrap_or(u32::MAX),
        num_bits,
        packed: false,
        query_estimator: RabitQueryEstimator::RawQuery,
    };
    RQBuildParams { rotation: Some(rotation), ..RQBuildParams::new(num_bits) }
}

/// Returns once stopping was asked for: seen at the next wake of whoever waits, and that is at the next tick at the latest.
pub(super) async fn cancelled(cancel: &Cancel) {
    let mut ticks = tokio::time::interval(CANCEL_POLL);
    std::future::poll_fn(|context| {
        if cancel.is_cancelled() {
            return Poll::Ready(());
        }
        while ticks.poll_tick(context).is_ready() {}
        Poll::Pending
    })
    .await
}

#[derive(Debug)]
pub(super) struct BuildProgress(pub(super) Listener);

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
