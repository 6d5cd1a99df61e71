//! Index generations on the vector column of an embeddings table: build under a name, search exactly that one, drop.
//!
//! Guarantees: a search is pinned to one generation by its segments, whatever else exists on the column; rows that are newer
//! than the index are searched flat with it; a build that cannot work (too few rows, an index that covers nothing) is an
//! error, not an empty index. Must not know: recall, thresholds, pointers.

use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{FixedSizeListArray, Float32Array, PrimitiveArray};
use arrow_schema::{DataType, Field};
use async_trait::async_trait;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::scanner::Scanner;
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
use super::filter::Filter;
use super::rows::Rows;
use super::schema::VECTOR;
use crate::error::{Error, Result};
use crate::id::{ChunkId, GenerationId};
use crate::progress::{Cancel, Listener, Progress, Stage};

/// How often a running build looks whether it was cancelled.
const CANCEL_POLL: std::time::Duration = std::time::Duration::from_millis(200);

/// An index to build, with every parameter decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum IndexSpec {
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
    /// A navigable small-world graph over scalar-quantised vectors.
    Hnsw {
        /// Inverted lists, each with a graph of its own; 1 for one graph.
        partitions: usize,
        /// Edges of a node.
        edges: usize,
        /// Candidates kept while building.
        ef_construction: usize,
    },
}

/// How to search an index; validated together with it and stored with its generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuerySettings {
    /// Inverted lists to look into.
    pub nprobes: Option<usize>,
    /// Candidates of the graph search.
    pub ef: Option<usize>,
    /// Candidates per result that are ranked again by their exact distance. Always set for quantised kinds: their own
    /// distances are on another scale.
    pub refine_factor: Option<u32>,
}

/// A search of one generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexQuery<'a> {
    pub(crate) generation: &'a GenerationId,
    pub(crate) vector: &'a [f32],
    /// Neighbours at most.
    pub(crate) k: usize,
    pub(crate) settings: &'a QuerySettings,
    /// Applied before `k` is counted.
    pub(crate) filter: Option<&'a Filter>,
}

/// One neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Neighbour {
    pub(crate) row_id: u64,
    /// 1 − cosine: 0 for the same direction, 2 for the opposite.
    pub(crate) distance: f32,
}

/// What a generation's index covers in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) indexed: u64,
    pub(crate) newer: u64,
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

    /// What the generation's index covers; `None` if there is no index of that name.
    pub(crate) async fn coverage(&self, snapshot: &Snapshot, generation: &GenerationId) -> Result<Option<Coverage>> {
        let failed = |e| self.table.error("read the indexes of", e);
        let segments = snapshot.0.load_indices_by_name(generation.as_str()).await.map_err(failed)?;
        if segments.is_empty() {
            return Ok(None);
        }
        let (mut indexed, mut newer) = (0, 0);
        for fragment in snapshot.0.get_fragments() {
            let number = u32::try_from(fragment.id()).unwrap_or(u32::MAX);
            let covered =
                segments.iter().any(|s| s.fragment_bitmap.as_ref().is_some_and(|bitmap| bitmap.contains(number)));
            let rows = fragment.count_rows(None).await.map_err(failed)? as u64;
            *(if covered { &mut indexed } else { &mut newer }) += rows;
        }
        Ok(Some(Coverage { indexed, newer }))
    }

    /// The nearest rows by the generation's index, rows newer than it included, nearest first.
    pub(crate) async fn search_index(&self, snapshot: &Snapshot, query: &IndexQuery<'_>) -> Result<Vec<Neighbour>> {
        let scanner = self.pinned_scanner(snapshot, query).await?;
        self.neighbours(scanner, query.k).await
    }

    async fn neighbours(&self, scanner: Scanner, k: usize) -> Result<Vec<Neighbour>> {
        let failed = |e| self.table.error("search", e);
        let batches: Vec<_> = scanner.try_into_stream().await.map_err(failed)?.try_collect().await.map_err(failed)?;
        let mut neighbours = Vec::with_capacity(k);
        for batch in &batches {
            let rows = Rows::new(self.table.name(), batch);
            let (row_ids, distances) = (rows.row_ids()?, rows.floats("_distance")?);
            let pairs = row_ids.values().iter().zip(distances.values());
            neighbours.extend(pairs.map(|(&row_id, &distance)| Neighbour { row_id, distance }));
        }
        neighbours.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.row_id.cmp(&b.row_id)));
        neighbours.truncate(k);
        Ok(neighbours)
    }

    /// The `k` nearest rows by the storage engine's own scan of every vector; slow, and an oracle for our exact search.
    pub(crate) async fn scan_nearest(&self, snapshot: &Snapshot, query: &[f32], k: usize) -> Result<Vec<Neighbour>> {
        let failed = |e| self.table.error("search", e);
        let mut scanner = snapshot.0.scan();
        scanner.nearest(VECTOR, &Float32Array::from(query.to_vec()), k).map_err(failed)?;
        scanner.distance_metric(DistanceType::Cosine).use_index(false);
        scanner.project(&["_distance"]).map_err(failed)?;
        scanner.with_row_id();
        self.neighbours(scanner, k).await
    }

    /// The plan of a pinned search, for checking that it uses the index and nothing else.
    pub(crate) async fn explain_search(&self, snapshot: &Snapshot, query: &IndexQuery<'_>) -> Result<String> {
        let scanner = self.pinned_scanner(snapshot, query).await?;
        scanner.explain_plan(true).await.map_err(|e| self.table.error("plan a search of", e))
    }

    /// Loads the generation's index into the cache.
    pub(crate) async fn prewarm(&self, snapshot: &Snapshot, generation: &GenerationId) -> Result<()> {
        snapshot.0.prewarm_index(generation.as_str()).await.map_err(|e| self.table.error("prewarm an index of", e))
    }

    /// Removes the generation's index; nothing happens if there is none.
    pub(crate) async fn drop_index(&self, generation: &GenerationId) -> Result<()> {
        self.refresh().await?;
        let mut dataset = self.snapshot().await?.0.as_ref().clone();
        let failed = |e| self.table.error("drop an index of", e);
        if dataset.load_indices_by_name(generation.as_str()).await.map_err(failed)?.is_empty() {
            return Ok(());
        }
        dataset.drop_index(generation.as_str()).await.map_err(failed)?;
        self.table.adopt(dataset);
        Ok(())
    }

    async fn pinned_scanner(&self, snapshot: &Snapshot, query: &IndexQuery<'_>) -> Result<Scanner> {
        let failed = |e| self.table.error("search", e);
        let IndexQuery { generation, vector, k, settings, filter } = *query;
        let segments = snapshot.0.load_indices_by_name(generation.as_str()).await.map_err(failed)?;
        if segments.is_empty() {
            return Err(Error::UnknownGeneration { id: generation.to_string() });
        }
        let mut scanner = snapshot.0.scan();
        scanner.nearest(VECTOR, &Float32Array::from(vector.to_vec()), k).map_err(failed)?;
        scanner.distance_metric(DistanceType::Cosine);
        scanner.with_index_segments(segments.iter().map(|segment| segment.uuid).collect()).map_err(failed)?;
        if has_newer_rows(&snapshot.0, &segments) {
            // Fragments outside the segments are then searched flat; without this they would be left out.
            scanner.with_fragments(snapshot.0.fragments().to_vec());
        }
        if let Some(nprobes) = settings.nprobes {
            scanner.nprobes(nprobes);
        }
        if let Some(ef) = settings.ef {
            // The graph is asked for all candidates that are ranked again, and cannot keep fewer than it is asked for.
            scanner.ef(ef.max(k * settings.refine_factor.unwrap_or(1) as usize));
        }
        if let Some(factor) = settings.refine_factor {
            scanner.refine(factor);
        }
        if let Some(filter) = filter {
            scanner.filter(&filter.to_sql()).map_err(failed)?;
            scanner.prefilter(true);
        }
        scanner.project(&["_distance"]).map_err(failed)?;
        scanner.with_row_id();
        Ok(scanner)
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

    /// Chunk ids of neighbours, in their order; rows that were deleted meanwhile are left out.
    pub(crate) async fn chunk_ids(&self, snapshot: &Snapshot, neighbours: &[Neighbour]) -> Result<Vec<(ChunkId, f32)>> {
        let row_ids: Vec<_> = neighbours.iter().map(|n| n.row_id).collect();
        let ids = self.take_ids(snapshot, &row_ids).await?;
        Ok(neighbours.iter().filter_map(|n| Some((ids.get(&n.row_id)?.clone(), n.distance))).collect())
    }
}

impl IndexSpec {
    /// The kind as a word.
    pub fn label(&self) -> &'static str {
        match self {
            Self::IvfPq { .. } => "ivf-pq",
            Self::Hnsw { .. } => "hnsw",
        }
    }
}

fn has_newer_rows(dataset: &Dataset, segments: &[lance_table::format::IndexMetadata]) -> bool {
    let covered = |number: u32| {
        segments.iter().any(|segment| segment.fragment_bitmap.as_ref().is_some_and(|bitmap| bitmap.contains(number)))
    };
    dataset.fragments().iter().any(|fragment| !covered(u32::try_from(fragment.id).unwrap_or(u32::MAX)))
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
