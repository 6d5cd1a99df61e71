//! Every kind of index: built, answering as exact search does, with a record of what it took; and gone when it is cancelled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use embank::progress::{Cancel, Listener, Progress, Stage};
use embank::{
    Bank, BankOptions, BuildOptions, Error, FaultEffect, Faults, GenerationState, Grouping, IndexKind, SearchOptions,
    StoreOptions, ValidateOptions,
};

use crate::harness::{Place, build, sentence};

/// Enough to train 256 code words.
const ROWS: usize = 600;
const K: usize = 10;

const KINDS: [IndexKind; 6] =
    [IndexKind::IvfFlat, IndexKind::IvfPq, IndexKind::IvfRq, IndexKind::Hnsw, IndexKind::HnswPq, IndexKind::HnswFlat];

async fn answers(bank: &Bank) -> Vec<Vec<String>> {
    let options = SearchOptions { k: K, grouping: Grouping::Chunks, ..SearchOptions::default() };
    let mut all = Vec::new();
    for number in 0..20 {
        let found = bank.search(&sentence(number * 29), &options).await.unwrap();
        all.push(found.hits.into_iter().map(|hit| hit.id.to_string()).collect());
    }
    all
}

/// Whether this is when a build is to be cancelled.
type Moment = fn(&Progress) -> bool;

/// Folders of indexes on the disk, whether the table knows of them or not.
fn index_folders(place: &Place) -> Vec<PathBuf> {
    let tables = std::fs::read_dir(place.bank_dir()).unwrap().map(|entry| entry.unwrap().path());
    let vectors = tables.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("embeddings__"));
    let folders = vectors.filter_map(|table| std::fs::read_dir(table.join("_indices")).ok());
    folders.flatten().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn every_kind_is_built_answers_as_exact_search_does_and_leaves_its_record() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let exact = answers(&bank).await;
    // One setting for all, so that the time goes into building and not into tuning.
    let fixed = ValidateOptions { nprobes: Some(64), ef: Some(200), refine_factor: Some(5), ..Default::default() };
    for kind in KINDS {
        let built = bank.build_index(BuildOptions { kind, seed: Some(7), ..Default::default() }).await.unwrap();
        let validated = bank.validate(built, fixed).await.unwrap();
        bank.activate(validated).await.unwrap();
        let found = answers(&bank).await;
        let shared = |(a, b): (&Vec<String>, &Vec<String>)| a.iter().filter(|id| b.contains(id)).count();
        let recall = exact.iter().zip(&found).map(shared).sum::<usize>() as f64 / (20 * K) as f64;
        assert!(recall >= 0.95, "{kind:?}: {recall}");

        let active = bank.status().await.unwrap().active.unwrap();
        assert_eq!((active.kind.as_str(), active.rows), (kind.label(), ROWS as u64));
        assert!(active.index_bytes.unwrap() > 0 && active.sample_rows.unwrap() <= ROWS as u64, "{active:?}");
        assert!(active.dataset_version > 0 && active.built_with.contains("lance"), "{active:?}");
        // Whole vectors take what they take; codes take less.
        let whole = (ROWS * crate::harness::DIMENSION * 4) as u64;
        let is_whole = matches!(kind, IndexKind::IvfFlat | IndexKind::HnswFlat);
        assert!(!is_whole || active.index_bytes.unwrap() >= whole, "{active:?}");
        #[cfg(target_os = "linux")]
        assert!(active.peak_memory_bytes.unwrap() > 16 << 20, "{active:?}");
    }
}

#[tokio::test]
async fn a_build_that_is_cancelled_leaves_no_file_and_a_record_that_says_so() {
    let place = Place::with_records(ROWS);
    drop(place.filled().await);
    fn begins(event: &Progress, begun: Stage) -> bool {
        matches!(event, Progress::Started { stage, .. } if *stage == begun)
    }
    // In the last of these moments files are being written.
    let moments: [(Moment, IndexKind); 3] = [
        (|event| begins(event, Stage::Train), IndexKind::IvfPq),
        (|event| begins(event, Stage::Build), IndexKind::Hnsw),
        (|event| matches!(event, Progress::Note(note) if note.contains("merge partitions")), IndexKind::IvfRq),
    ];
    for (is_the_moment, kind) in moments {
        let cancel = Cancel::default();
        let asked = cancel.clone();
        let listener = Listener::new(move |event| {
            if is_the_moment(&event) {
                asked.cancel();
            }
        });
        let options = BankOptions { listener, cancel, ..place.options() };
        let bank = Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), options).await.unwrap();
        let stopped = bank.build_index(BuildOptions { kind, ..BuildOptions::default() }).await;
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        assert_eq!(index_folders(&place), Vec::<PathBuf>::new(), "{kind:?}");
        let record = bank.generations().await.unwrap().pop().unwrap();
        assert_eq!((record.state, record.error.as_deref()), (GenerationState::Failed, Some("cancelled")));
    }
    // What is finished is there, by the same look.
    let built = place.bank().await.build_index(BuildOptions { kind: IndexKind::IvfRq, ..Default::default() }).await;
    assert_eq!((built.is_ok(), index_folders(&place).len()), (true, 1));
}

/// A bank with vectors whose disk obeys `faults` from then on.
async fn with_faults(place: &Place, faults: Faults) -> Bank {
    let store = StoreOptions { faults, ..place.options().store };
    let options = BankOptions { store, ..place.options() };
    Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), options).await.unwrap()
}

#[tokio::test]
async fn a_build_that_dies_shows_where_it_was_and_the_next_one_removes_its_files() {
    let options = BuildOptions { kind: IndexKind::IvfRq, seed: Some(7), ..Default::default() };
    let place = Place::with_records(300);
    drop(place.filled().await);
    let counted = Faults::counted();
    drop(with_faults(&place, counted.clone()).await.build_index(options).await.unwrap());
    let changes = counted.changes();
    let change = |is: &dyn Fn(&str) -> bool| changes.iter().rposition(|change| is(change)).unwrap() as u64 + 1;
    let recorded = change(&|change| change.contains("build: generation recorded"));
    let last_file = change(&|change| change.contains("_indices/"));

    for (at, state, left) in [(recorded, GenerationState::Training, 0), (last_file, GenerationState::Building, 1)] {
        let place = Place::with_records(300);
        drop(place.filled().await);
        let dead = with_faults(&place, Faults::at(at, FaultEffect::Die)).await.build_index(options).await;
        assert!(dead.is_err());
        let bank = place.bank().await;
        assert_eq!(bank.generations().await.unwrap().pop().unwrap().state, state);
        assert_eq!(index_folders(&place).len(), left, "{state:?}");
        place.clock.advance(Duration::from_secs(61));
        let built = bank.build_index(options).await.unwrap();
        drop(built);
        let states: Vec<_> = bank.generations().await.unwrap().into_iter().map(|one| one.state).collect();
        assert_eq!(states, [GenerationState::Failed, GenerationState::Validating]);
        assert_eq!(index_folders(&place).len(), 1, "the new one's alone");
    }
}
