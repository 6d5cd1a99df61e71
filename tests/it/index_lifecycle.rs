//! Generations: built under a new id, gated on measured recall, flipped, rolled back. The oracle is exact search.

use embank::{
    BackfillOptions, Bank, BuildOptions, Error, GenerationState, Grouping, IndexKind, IngestOptions, SearchOptions,
    SpecOverrides, ValidateOptions,
};

use crate::harness::{Place, build, sentence};

/// Enough rows to train 256 codewords, with neighbours that differ.
const ROWS: usize = 1200;

fn top(k: usize) -> SearchOptions {
    SearchOptions { k, grouping: Grouping::Chunks, ..SearchOptions::default() }
}

async fn answers(bank: &Bank, k: usize) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for number in 0..20 {
        let found = bank.search(&sentence(number * 31), &top(k)).await.unwrap();
        all.push(found.hits.into_iter().map(|hit| hit.id.to_string()).collect());
    }
    all
}

fn overlap(a: &[Vec<String>], b: &[Vec<String>]) -> f64 {
    let shared = a.iter().zip(b).map(|(a, b)| a.iter().filter(|id| b.contains(id)).count()).sum::<usize>();
    shared as f64 / a.iter().map(Vec::len).sum::<usize>() as f64
}

#[tokio::test]
async fn both_kinds_answer_as_exact_search_does() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let flat = build(&bank, IndexKind::Flat).await.unwrap();
    let exact = answers(&bank, 10).await;
    for kind in [IndexKind::Hnsw, IndexKind::IvfPq] {
        let activation = build(&bank, kind).await.unwrap();
        assert_ne!(activation.active, flat.active);
        let found = answers(&bank, 10).await;
        let shared = overlap(&exact, &found);
        assert!(shared >= 0.9, "{kind:?}: {shared}");
        let active = bank.status().await.unwrap().active.unwrap();
        let recall = active.recall.unwrap();
        assert!(recall.recall >= 0.95 && recall.queries >= 100 && recall.tuning_queries > 0, "{recall:?}");
        assert!(active.settings.refine_factor.is_some(), "quantised kinds are always refined");
    }
}

#[tokio::test]
async fn a_build_that_ruins_recall_is_refused_and_the_old_generation_still_answers() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let good = build(&bank, IndexKind::Hnsw).await.unwrap();
    let before = answers(&bank, 5).await;

    let overrides = SpecOverrides { sub_vectors: Some(2), bits: Some(4), partitions: Some(40), ..Default::default() };
    let options = BuildOptions { kind: IndexKind::IvfPq, overrides, seed: Some(7) };
    let built = bank.build_index(options).await.unwrap();
    let bad = built.id().clone();
    let poor = ValidateOptions { nprobes: Some(1), refine_factor: Some(1), ..ValidateOptions::default() };
    let refused = bank.validate(built, poor).await.unwrap_err();
    assert!(matches!(&refused, Error::RecallTooLow { recall, required, .. } if recall < required), "{refused}");

    assert_eq!(bank.status().await.unwrap().active.unwrap().id, good.active);
    assert_eq!(answers(&bank, 5).await, before);
    let record = bank.generations().await.unwrap().into_iter().find(|g| g.id == bad).unwrap();
    assert_eq!(record.state, GenerationState::Failed);
    assert!(record.recall.unwrap().recall < 0.95 && record.error.is_some());
    // It can not be activated by hand either.
    let forced = bank.activate_generation(&bad).await;
    assert!(matches!(forced, Err(Error::WrongState { .. })), "{forced:?}");
}

#[tokio::test]
async fn auto_finds_an_index_that_passes_over_many_equal_texts() {
    // Five texts a thousand times each, beside a thousand different ones: what graphs are bad at.
    let place = Place::empty();
    let text = |n: usize| if n % 6 == 5 { sentence(n) } else { sentence(n % 6) };
    let records: Vec<_> = (0..6000).map(|n| format!("{{\"id\": {n}, \"text\": \"{}\"}}", text(n))).collect();
    place.write("records.jsonl", &records.join("\n"));
    let bank = place.filled().await;
    let validated = bank.build_validated(BuildOptions::default(), ValidateOptions::default()).await.unwrap();
    assert!(validated.report().recall >= 0.95);
    bank.activate(validated).await.unwrap();
    assert_ne!(bank.status().await.unwrap().active.unwrap().kind, "flat");
}

#[tokio::test]
async fn rollback_returns_the_earlier_answers_to_the_bit() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let first = build(&bank, IndexKind::Hnsw).await.unwrap();
    let before = bank.search(&sentence(5), &top(10)).await.unwrap();
    build(&bank, IndexKind::Flat).await.unwrap();
    let back = bank.rollback().await.unwrap();
    assert_eq!(back.active, first.active);
    assert_eq!(bank.search(&sentence(5), &top(10)).await.unwrap(), before);
    let nothing_left = bank.rollback().await;
    assert!(matches!(nothing_left, Err(Error::WrongState { .. })), "{nothing_left:?}");
}

#[tokio::test]
async fn two_generations_on_one_column_answer_each_for_itself_and_newer_rows_are_found() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let old = build(&bank, IndexKind::Hnsw).await.unwrap();
    // Newer than the index: found all the same, by every kind.
    place.write("late.txt", "note late: turbine gearbox oil");
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!(bank.status().await.unwrap().newer_than_index, 1);
    let new = build(&bank, IndexKind::IvfPq).await.unwrap();
    assert_eq!(bank.status().await.unwrap().newer_than_index, 0);
    for generation in [&new.active, &old.active] {
        bank.activate_generation(generation).await.unwrap();
        let found = bank.search("turbine gearbox oil", &top(1)).await.unwrap();
        assert_eq!((&found.generation, found.hits[0].doc_path.as_str()), (generation, "late.txt"));
    }
}

#[tokio::test]
async fn deleted_documents_are_not_answers_of_an_older_index() {
    let place = Place::with_records(ROWS);
    place.write("gone.txt", "note gone: turbine gearbox oil");
    let bank = place.filled().await;
    build(&bank, IndexKind::Hnsw).await.unwrap();
    place.remove("gone.txt");
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    let found = bank.search("turbine gearbox oil", &top(10)).await.unwrap();
    assert_eq!(found.hits.len(), 10);
    assert!(found.hits.iter().all(|hit| hit.doc_path != "gone.txt"));
}

#[tokio::test]
async fn garbage_collection_keeps_what_serves_and_one_to_return_to() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(build(&bank, IndexKind::Hnsw).await.unwrap().active);
    }
    let report = bank.keep_house(Default::default()).await.unwrap();
    let mut removed = report.removed;
    removed.sort();
    assert_eq!(removed, ids[..2]);
    assert_eq!(bank.rollback().await.unwrap().active, ids[2]);
    assert_eq!(bank.search("frost", &top(3)).await.unwrap().hits.len(), 3);
}

#[tokio::test]
async fn an_index_that_cannot_be_trained_is_refused_with_the_reason() {
    let place = Place::with_documents(9);
    let bank = place.filled().await;
    let overrides = SpecOverrides { bits: Some(8), ..Default::default() };
    let refused = bank.build_index(BuildOptions { kind: IndexKind::IvfPq, overrides, seed: None }).await;
    assert!(matches!(&refused, Err(Error::CannotBuild { .. })), "{refused:?}");
    let empty = Place::empty();
    let refused = empty.bank().await.build_index(Default::default()).await;
    assert!(matches!(&refused, Err(Error::CannotBuild { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_same_seed_draws_the_same_queries_and_measures_the_same_recall() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let mut recalls = Vec::new();
    for _ in 0..2 {
        let built = bank.build_index(BuildOptions { kind: IndexKind::Flat, seed: Some(3), ..Default::default() }).await;
        let validated = bank.validate(built.unwrap(), ValidateOptions::default()).await.unwrap();
        recalls.push((validated.report().recall, validated.report().queries));
        bank.set_aside(validated).await.unwrap();
    }
    assert_eq!(recalls[0], recalls[1]);
    assert_eq!(recalls[0].0, 1.0, "our exact search and the storage engine's scan agree");
}
