//! Pinning: several indexes on one column, and a search that looks into exactly the one that is named.

use arrow_array::Float32Array;
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_linalg::distance::DistanceType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::index_plan::{check_plan, segments_to_search};
use super::rows::Rows;
use super::schema::VECTOR;
use super::{
    Coverage, Durability, EmbeddingRow, Embeddings, IndexJob, IndexQuery, IndexSpec, Neighbour, QuerySettings,
    Snapshot, Store, StoreOptions,
};
use crate::clock::{Clock, Timestamp};
use crate::error::Error;
use crate::id::{ChunkId, ContentHash, DocId, EmbedderId, GenerationId};
use crate::progress::{Cancel, Listener};

const DIMENSION: usize = 16;
const ROWS: usize = 400;
const K: usize = 10;

/// One code of four bits for eight dimensions: so crude that two of them seldom agree.
const CRUDE: IndexSpec =
    IndexSpec::IvfPq { partitions: 1, sub_vectors: 2, bits: 4, sample_rate: 256, max_iterations: 10 };

/// Without looking at whole vectors: what answers is the index alone.
const BARE: QuerySettings = QuerySettings { nprobes: Some(1), ef: None, refine_factor: None };

fn generation(name: &str) -> GenerationId {
    GenerationId::from_stored(name)
}

async fn filled(root: &std::path::Path) -> Embeddings {
    let options = StoreOptions { durability: Durability::ProcessCrash, ..StoreOptions::default() };
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = Store::open_or_create(root, options, clock).await.unwrap();
    let embeddings = store.embeddings(&EmbedderId::from_stored("fake-00000000"), DIMENSION).await.unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let rows: Vec<_> = (0..ROWS).map(|number| row(number, unit(&mut rng))).collect();
    embeddings.insert(&rows, &mut embeddings.known(), Timestamp(0)).await.unwrap();
    embeddings
}

fn unit(rng: &mut ChaCha8Rng) -> Vec<f32> {
    let vector: Vec<f32> = (0..DIMENSION).map(|_| rng.random::<f32>() - 0.5).collect();
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

fn row(number: usize, vector: Vec<f32>) -> EmbeddingRow {
    EmbeddingRow {
        id: ChunkId::from_stored(format!("{number:032x}")),
        content_hash: ContentHash::of(&number.to_string()),
        doc_id: DocId::from_stored("d"),
        doc_path: "d".into(),
        category: String::new(),
        vector: vector.into(),
    }
}

async fn build(embeddings: &Embeddings, name: &str, spec: &IndexSpec, seed: u64) -> Snapshot {
    let (generation, listener, cancel) = (generation(name), Listener::default(), Cancel::default());
    let job = IndexJob { generation: &generation, spec, sample_rate: 256, seed, listener: &listener, cancel: &cancel };
    let trained = embeddings.train_index(&embeddings.snapshot().await.unwrap(), &job).await.unwrap();
    embeddings.build_index(&job, trained).await.unwrap()
}

async fn pinned(embeddings: &Embeddings, snapshot: &Snapshot, name: &str, vector: &[f32]) -> Vec<Neighbour> {
    let generation = generation(name);
    let query = IndexQuery { generation: &generation, vector, k: K, settings: &BARE, filter: None };
    embeddings.search_index(snapshot, &query).await.unwrap()
}

/// What Lance answers if nobody says which index.
async fn by_default(snapshot: &Snapshot, vector: &[f32]) -> Vec<Neighbour> {
    let mut scanner = snapshot.0.scan();
    scanner.nearest(VECTOR, &Float32Array::from(vector.to_vec()), K).unwrap();
    scanner.distance_metric(DistanceType::Cosine).nprobes(1);
    scanner.project(&["_distance"]).unwrap();
    scanner.with_row_id();
    let batch = scanner.try_into_batch().await.unwrap();
    let rows = Rows::new("embeddings", &batch);
    let (row_ids, distances) = (rows.row_ids().unwrap(), rows.floats("_distance").unwrap());
    let mut found: Vec<_> = row_ids
        .values()
        .iter()
        .zip(distances.values())
        .map(|(&row_id, &distance)| Neighbour { row_id, distance })
        .collect();
    found.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.row_id.cmp(&b.row_id)));
    found
}

/// Rows, because distances of crude codes differ in the last bits from run to run of the sum.
fn rows(found: &[Neighbour]) -> Vec<u64> {
    let mut rows: Vec<_> = found.iter().map(|neighbour| neighbour.row_id).collect();
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn each_of_two_generations_answers_for_itself_where_the_engine_would_always_ask_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let embeddings = filled(dir.path()).await;
    build(&embeddings, "g1", &CRUDE, 1).await;
    let snapshot =
        build(&embeddings, "g2", &IndexSpec::Hnsw { partitions: 1, edges: 16, ef_construction: 100 }, 2).await;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut differ, mut first, mut second) = (0, 0, 0);
    for _ in 0..20 {
        let query = unit(&mut rng);
        let [one, two] =
            [pinned(&embeddings, &snapshot, "g1", &query).await, pinned(&embeddings, &snapshot, "g2", &query).await];
        let default = by_default(&snapshot, &query).await;
        differ += usize::from(rows(&one) != rows(&two));
        first += usize::from(rows(&default) == rows(&one));
        second += usize::from(rows(&default) == rows(&two));
        // The better of the two is near exact search, so it is the right index that was asked.
        let exact = rows(&embeddings.scan_nearest(&snapshot, &query, K).await.unwrap());
        let shared = |found: &[Neighbour]| rows(found).iter().filter(|row| exact.contains(row)).count();
        assert!(shared(&two) >= 9 && shared(&two) >= shared(&one), "{} {}", shared(&one), shared(&two));
    }
    assert!(differ >= 18, "the two indexes hold different contents: {differ} of 20 answers differ");
    // Whichever Lance takes, it takes it for every question: a bank that points at the other one would be answered wrongly.
    assert!((first == 20) != (second == 20), "{first} {second}");
}

#[tokio::test]
async fn a_search_that_would_not_use_the_index_is_an_error_that_names_the_generation() {
    let dir = tempfile::tempdir().unwrap();
    let embeddings = filled(dir.path()).await;
    let snapshot = embeddings.snapshot().await.unwrap();
    // An index that was never trained: Lance makes it without a word, and searches every vector with it.
    let mut dataset = snapshot.0.as_ref().clone();
    let params = VectorIndexParams::ivf_flat(1, DistanceType::Cosine);
    let columns = [VECTOR];
    let untrained = dataset.create_index_builder(&columns, IndexType::Vector, &params).name("g1".into()).train(false);
    untrained.await.unwrap();
    embeddings.table.adopt(dataset);
    let snapshot = embeddings.snapshot().await.unwrap();
    let generation = generation("g1");
    let vector = [1.0; DIMENSION];
    let query = IndexQuery { generation: &generation, vector: &vector, k: K, settings: &BARE, filter: None };
    let refused = embeddings.search_index(&snapshot, &query).await.unwrap_err();
    assert!(matches!(&refused, Error::IndexNotUsed { generation, .. } if generation == "g1"), "{refused}");
}

#[tokio::test]
async fn a_plan_without_the_generations_segments_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let embeddings = filled(dir.path()).await;
    build(&embeddings, "g1", &CRUDE, 1).await;
    let snapshot = build(&embeddings, "g2", &CRUDE, 2).await;
    let mut wanted = Vec::new();
    for name in ["g1", "g2"] {
        let segments = snapshot.0.load_indices_by_name(name).await.unwrap();
        let all = segments_to_search(&embeddings.table, &snapshot.0, &generation(name), &segments).await.unwrap();
        assert_eq!(all.len(), 1);
        wanted.push(all);
    }
    let mut scanner = snapshot.0.scan();
    scanner.nearest(VECTOR, &Float32Array::from(vec![1.0; DIMENSION]), K).unwrap();
    scanner.distance_metric(DistanceType::Cosine).with_index_segments(wanted[0].iter().copied().collect()).unwrap();
    let pinned = scanner.create_plan().await.unwrap();
    check_plan(pinned.as_ref(), &generation("g1"), &wanted[0]).unwrap();
    let other = check_plan(pinned.as_ref(), &generation("g2"), &wanted[1]).unwrap_err();
    assert!(other.to_string().contains("generation g2: another one would be"), "{other}");
    let flat = {
        scanner.use_index(false);
        scanner.create_plan().await.unwrap()
    };
    let brute = check_plan(flat.as_ref(), &generation("g1"), &wanted[0]).unwrap_err();
    assert!(brute.to_string().contains("every vector would be looked at instead"), "{brute}");
}

#[tokio::test]
async fn a_search_that_runs_keeps_its_version_while_newer_rows_are_folded_in() {
    const GRAPH: IndexSpec = IndexSpec::Hnsw { partitions: 1, edges: 8, ef_construction: 40 };
    let dir = tempfile::tempdir().unwrap();
    let embeddings = filled(dir.path()).await;
    build(&embeddings, "g1", &GRAPH, 1).await;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let newer: Vec<_> = (ROWS..ROWS + 60).map(|number| row(number, unit(&mut rng))).collect();
    embeddings.insert(&newer, &mut embeddings.known(), Timestamp(0)).await.unwrap();

    let generation = generation("g1");
    let old = embeddings.snapshot().await.unwrap();
    let settings = QuerySettings { nprobes: Some(1), ef: Some(200), refine_factor: Some(20) };
    let vector = newer[0].vector.clone();
    let query = IndexQuery { generation: &generation, vector: &vector, k: K, settings: &settings, filter: None };
    let before = embeddings.search_index(&old, &query).await.unwrap();
    let new = embeddings.optimise_index(&generation, &Listener::default(), &Cancel::default()).await.unwrap();
    let covers = async |snapshot| embeddings.coverage(snapshot, &generation).await.unwrap().unwrap();
    assert_eq!(covers(&old).await, Coverage { indexed: ROWS as u64, newer: 60, segments: 1 });
    assert_eq!(covers(&new).await, Coverage { indexed: ROWS as u64 + 60, newer: 0, segments: 2 });
    let (held, folded) = (segments(&old, &generation).await, segments(&new, &generation).await);
    assert!(folded.len() == 2 && held.iter().all(|segment| folded.contains(segment)), "{held:?} {folded:?}");
    assert_eq!(rows(&embeddings.search_index(&old, &query).await.unwrap()), rows(&before));
    assert_eq!(rows(&embeddings.search_index(&new, &query).await.unwrap()), rows(&before));
}

/// The parts of a generation's index.
async fn segments(snapshot: &Snapshot, generation: &GenerationId) -> Vec<String> {
    let segments = snapshot.0.load_indices_by_name(generation.as_str()).await.unwrap();
    segments.iter().map(|segment| segment.uuid.to_string()).collect()
}
