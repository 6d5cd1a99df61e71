//! Searching the index generations on the vector column of an embeddings table: exactly the one that is named.
//!
//! Guarantees: a search is pinned to one generation by its segments, whatever else exists on the column, and its plan is
//! looked at before it runs (`index_plan`); rows that are newer than the index are searched flat with it. Must not know: recall, thresholds, pointers.

use arrow_array::{Float32Array, RecordBatch};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::scanner::Scanner;
use lance::index::DatasetIndexExt;
use lance_linalg::distance::DistanceType;
use lance_table::format::IndexMetadata;
use serde::{Deserialize, Serialize};

use super::embeddings::{Embeddings, Snapshot};
use super::filter::Filter;
use super::index_plan::{self, check_plan, segments_to_search};
use super::rows::Rows;
use super::schema::VECTOR;
use crate::error::{Error, Result};
use crate::id::{ChunkId, GenerationId};

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
    /// Parts of the index: the one that was built, and one for each time that newer rows were folded in.
    pub(crate) segments: u64,
}

impl Embeddings {
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
        Ok(Some(Coverage { indexed, newer, segments: segments.len() as u64 }))
    }

    /// Whether there is an index of that name with all of its files.
    pub(crate) async fn has_index(&self, generation: &GenerationId) -> Result<bool> {
        let failed = |e| self.table.error("read the indexes of", e);
        let dataset = self.table.dataset().await?;
        let segments = dataset.load_indices_by_name(generation.as_str()).await.map_err(failed)?;
        let store = dataset.object_store(None).await.map_err(failed)?;
        for segment in &segments {
            let folder = dataset.indices_dir().join(segment.uuid.to_string());
            for file in segment.files.iter().flatten() {
                match store.size(&folder.clone().join(file.path.as_str())).await {
                    Ok(bytes) if bytes >= file.size_bytes => {}
                    Ok(_) | Err(lance::Error::NotFound { .. }) => return Ok(false),
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(!segments.is_empty())
    }

    /// The nearest rows by the generation's index, rows newer than it included, nearest first.
    pub(crate) async fn search_index(&self, snapshot: &Snapshot, query: &IndexQuery<'_>) -> Result<Vec<Neighbour>> {
        let (scanner, segments) = self.pinned_scanner(snapshot, query).await?;
        let wanted = segments_to_search(&self.table, &snapshot.0, query.generation, &segments).await?;
        let plan = scanner.create_plan().await.map_err(|e| self.table.error("plan a search of", e))?;
        check_plan(plan.as_ref(), query.generation, &wanted)?;
        self.neighbours(&index_plan::run(&self.table, plan).await?, query.k)
    }

    fn neighbours(&self, batches: &[RecordBatch], k: usize) -> Result<Vec<Neighbour>> {
        let mut neighbours = Vec::with_capacity(k);
        for batch in batches {
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
        let batches: Vec<_> = scanner.try_into_stream().await.map_err(failed)?.try_collect().await.map_err(failed)?;
        self.neighbours(&batches, k)
    }

    /// The plan of a pinned search, for checking that it uses the index and nothing else.
    pub(crate) async fn explain_search(&self, snapshot: &Snapshot, query: &IndexQuery<'_>) -> Result<String> {
        let (scanner, _) = self.pinned_scanner(snapshot, query).await?;
        scanner.explain_plan(true).await.map_err(|e| self.table.error("plan a search of", e))
    }

    /// Loads the generation's index into the cache.
    pub(crate) async fn prewarm(&self, snapshot: &Snapshot, generation: &GenerationId) -> Result<()> {
        snapshot.0.prewarm_index(generation.as_str()).await.map_err(|e| self.table.error("prewarm an index of", e))
    }

    /// The scanner, and the generation's segments.
    async fn pinned_scanner(
        &self,
        snapshot: &Snapshot,
        query: &IndexQuery<'_>,
    ) -> Result<(Scanner, Vec<IndexMetadata>)> {
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
        Ok((scanner, segments))
    }

    /// Chunk ids of neighbours, in their order; rows that were deleted meanwhile are left out.
    pub(crate) async fn chunk_ids(&self, snapshot: &Snapshot, neighbours: &[Neighbour]) -> Result<Vec<(ChunkId, f32)>> {
        let row_ids: Vec<_> = neighbours.iter().map(|n| n.row_id).collect();
        let ids = self.take_ids(snapshot, &row_ids).await?;
        Ok(neighbours.iter().filter_map(|n| Some((ids.get(&n.row_id)?.clone(), n.distance))).collect())
    }
}

fn has_newer_rows(dataset: &Dataset, segments: &[IndexMetadata]) -> bool {
    let covered = |number: u32| {
        segments.iter().any(|segment| segment.fragment_bitmap.as_ref().is_some_and(|bitmap| bitmap.contains(number)))
    };
    dataset.fragments().iter().any(|fragment| !covered(u32::try_from(fragment.id).unwrap_or(u32::MAX)))
}
