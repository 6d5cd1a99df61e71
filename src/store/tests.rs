//! Leases and compare-and-set, at the level where they are made.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Claim, Claimant, Durability, EmbeddingRow, Embeddings, MaintenanceLease, Outcome, Position, Store, StoreOptions,
    WorkerId,
};
use crate::clock::{Clock, Timestamp};
use crate::error::Error;
use crate::id::{ChunkId, ContentHash, DocId, EmbedderId};
use crate::status::ChunkState;

const LEASE: Duration = Duration::from_secs(60);

async fn store(root: &Path, clock: &Clock) -> Store {
    let options = StoreOptions { durability: Durability::ProcessCrash, ..StoreOptions::default() };
    Store::open_or_create(root, options, clock.clone()).await.unwrap()
}

fn embedder() -> EmbedderId {
    EmbedderId::from_stored("fake-00000000")
}

fn ids(count: usize) -> Vec<ChunkId> {
    (0..count).map(|n| ChunkId::from_stored(format!("{n:032x}"))).collect()
}

fn claimant() -> Claimant {
    Claimant { embedder: embedder(), worker: WorkerId::new(), lease: LEASE }
}

/// Claims from the start of the table.
async fn claim(store: &Store, claimant: &Claimant, limit: usize) -> Claim {
    let now = store.clock().now();
    store.status.claim(claimant, &mut Position::default(), now, limit).await.unwrap()
}

async fn finish(store: &Store, claimant: &Claimant, claim: &Claim, outcome: Outcome) -> u64 {
    store.status.finish(claimant, claim, |_| outcome.clone(), store.clock().now()).await.unwrap()
}

#[tokio::test]
async fn an_expired_claim_is_taken_over_and_its_late_owner_can_mark_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(5), clock.now()).await.unwrap();
    let (first, second) = (claimant(), claimant());
    let mut claimed = claim(&store, &first, 10).await;
    assert_eq!(claimed.len(), 5);
    assert!(claim(&store, &second, 10).await.is_empty(), "a running lease is respected");

    clock.advance(LEASE + Duration::from_secs(1));
    let taken = claim(&store, &second, 10).await;
    assert_eq!(taken.len(), 5);
    assert_eq!(finish(&store, &first, &claimed, Outcome::Stored).await, 0);
    store.status.renew(&first, &mut claimed, clock.now()).await.unwrap();
    assert!(claimed.is_empty());
    assert_eq!(finish(&store, &second, &taken, Outcome::Stored).await, 5);
    assert_eq!(store.status.counts().await.unwrap()[&embedder()].ready, 5);
}

#[tokio::test]
async fn a_renewed_claim_does_not_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(3), clock.now()).await.unwrap();
    let (first, second) = (claimant(), claimant());
    let mut claimed = claim(&store, &first, 10).await;
    clock.advance(LEASE / 2);
    store.status.renew(&first, &mut claimed, clock.now()).await.unwrap();
    assert_eq!(claimed.len(), 3);
    clock.advance(LEASE / 2 + Duration::from_secs(1));
    assert!(claim(&store, &second, 10).await.is_empty());
    assert_eq!(finish(&store, &first, &claimed, Outcome::Stored).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_racing_claims_each_chunk_has_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let first = store(dir.path(), &clock).await;
    first.status.insert_new(&embedder(), &ids(400), clock.now()).await.unwrap();
    let mut racers = Vec::new();
    for _ in 0..4 {
        // A connection of its own, as another process has.
        let store = store(dir.path(), &clock).await;
        racers.push(tokio::spawn(async move { claim(&store, &claimant(), 300).await }));
    }
    let mut won = Vec::new();
    for racer in racers {
        won.extend(racer.await.unwrap().rows.into_iter().map(|row| row.id));
    }
    assert_eq!(won.len(), 400, "the first one got all it asked for, the others the rest");
    won.sort();
    won.dedup();
    assert_eq!(won.len(), 400, "no chunk was won twice");
}

#[tokio::test]
async fn a_position_passes_every_chunk_once_whatever_else_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    let all = ids(50);
    for some in all[..40].chunks(8) {
        store.status.insert_new(&embedder(), some, clock.now()).await.unwrap();
    }
    let (worker, mut position, mut seen) = (claimant(), Position::default(), Vec::new());
    for step in 0.. {
        let claimed = store.status.claim(&worker, &mut position, clock.now(), 7).await.unwrap();
        if claimed.is_empty() {
            break;
        }
        seen.extend(claimed.rows.iter().map(|row| row.id.clone()));
        match step {
            // Released behind the position.
            0 => assert_eq!(finish(&store, &worker, &claimed, Outcome::Released).await, 7),
            1 => assert_eq!(store.status.insert_new(&embedder(), &all[40..], clock.now()).await.unwrap(), 10),
            _ => assert_eq!(finish(&store, &worker, &claimed, Outcome::Stored).await, claimed.len() as u64),
        }
    }
    // The seven that were released came again in a fragment that was new to the position.
    let released: Vec<_> = seen.drain(..7).collect();
    seen.sort();
    assert_eq!(seen, all);
    assert!(released.iter().all(|id| seen.contains(id)));
}

#[tokio::test]
async fn a_claim_whose_rows_were_moved_by_a_compaction_is_renewed_and_finished_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    for some in ids(100).chunks(2) {
        store.status.insert_new(&embedder(), some, clock.now()).await.unwrap();
    }
    let worker = claimant();
    let mut claimed = claim(&store, &worker, 20).await;
    assert!(store.compact("status").await.unwrap());
    store.status.renew(&worker, &mut claimed, clock.now()).await.unwrap();
    assert_eq!(claimed.len(), 20);
    for some in ids(200)[100..].chunks(2) {
        store.status.insert_new(&embedder(), some, clock.now()).await.unwrap();
    }
    assert!(store.compact("status").await.unwrap());
    assert_eq!(finish(&store, &worker, &claimed, Outcome::Stored).await, 20);
    let counts = store.status.counts().await.unwrap()[&embedder()];
    assert_eq!((counts.ready, counts.new, counts.in_progress), (20, 180, 0));
}

#[tokio::test]
async fn what_an_ingest_removes_from_under_a_claim_stays_removed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(6), clock.now()).await.unwrap();
    let worker = claimant();
    let claimed = claim(&store, &worker, 10).await;
    store.status.delete(&ids(2)).await.unwrap();
    // One of them comes back, as a document does that is written again.
    store.status.insert_new(&embedder(), &ids(1), clock.now()).await.unwrap();
    assert_eq!(finish(&store, &worker, &claimed, Outcome::Stored).await, 4);
    let counts = store.status.counts().await.unwrap()[&embedder()];
    assert_eq!((counts.ready, counts.new, counts.total()), (4, 1, 5));
}

#[tokio::test]
async fn a_chunk_whose_document_is_gone_goes_with_its_claim() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(3), clock.now()).await.unwrap();
    let worker = claimant();
    let claimed = claim(&store, &worker, 10).await;
    let gone = ids(1).remove(0);
    let outcome = |row: &super::StatusRow| if row.id == gone { Outcome::Gone } else { Outcome::Stored };
    store.status.finish(&worker, &claimed, outcome, clock.now()).await.unwrap();
    let counts = store.status.counts().await.unwrap()[&embedder()];
    assert_eq!((counts.ready, counts.total()), (2, 2));
}

fn rows(numbers: std::ops::Range<usize>) -> Vec<EmbeddingRow> {
    let row = |number: usize| EmbeddingRow {
        id: ChunkId::from_stored(format!("{number:032x}")),
        content_hash: ContentHash::of(&number.to_string()),
        doc_id: DocId::from_stored("d"),
        doc_path: "d".into(),
        category: String::new(),
        vector: vec![number as f32, 1.0].into(),
    };
    numbers.map(row).collect()
}

async fn stored_ids(embeddings: &Embeddings) -> Vec<String> {
    use futures::TryStreamExt;
    embeddings.refresh().await.unwrap();
    let ids: Vec<Vec<ChunkId>> = embeddings.ids().await.unwrap().try_collect().await.unwrap();
    let mut ids: Vec<_> = ids.concat().iter().map(|id| id.as_str().to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn a_vector_that_another_worker_stored_meanwhile_is_not_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let (one, two) = (store(dir.path(), &clock).await, store(dir.path(), &clock).await);
    let (mine, theirs) = (one.embeddings(&embedder(), 2).await.unwrap(), two.embeddings(&embedder(), 2).await.unwrap());
    let (mut my_known, mut their_known) = (mine.known(), theirs.known());
    let now = clock.now();
    assert_eq!(mine.insert(&rows(0..10), &mut my_known, now).await.unwrap(), 10);
    // The late owner of a claim that was taken over: it has seen nothing of it.
    assert_eq!(theirs.insert(&rows(5..15), &mut their_known, now).await.unwrap(), 5);
    assert_eq!(mine.insert(&rows(0..20), &mut my_known, now).await.unwrap(), 5);
    let want: Vec<_> = rows(0..20).iter().map(|row| row.id.as_str().to_owned()).collect();
    assert_eq!(stored_ids(&mine).await, want);
    // One that is gone is stored again, though it is still known.
    mine.delete(&ids(3)).await.unwrap();
    assert_eq!(theirs.insert(&rows(0..20), &mut their_known, now).await.unwrap(), 3);
    assert_eq!(stored_ids(&theirs).await, want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_racing_inserts_of_one_chunk_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let first = store(dir.path(), &clock).await;
    first.embeddings(&embedder(), 2).await.unwrap();
    let mut racers = Vec::new();
    for racer in 0..4 {
        let store = store(dir.path(), &clock).await;
        racers.push(tokio::spawn(async move {
            let embeddings = store.embeddings(&embedder(), 2).await.unwrap();
            let mut known = embeddings.known();
            // Overlapping halves.
            embeddings.insert(&rows(racer * 50..racer * 50 + 100), &mut known, store.clock().now()).await.unwrap()
        }));
    }
    let mut inserted = 0;
    for racer in racers {
        inserted += racer.await.unwrap();
    }
    let stored = stored_ids(&first.embeddings(&embedder(), 2).await.unwrap()).await;
    let want: Vec<_> = rows(0..250).iter().map(|row| row.id.as_str().to_owned()).collect();
    assert_eq!((inserted, stored), (250, want));
}

#[tokio::test]
async fn a_failed_chunk_counts_its_attempts_and_ends_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(1), clock.now()).await.unwrap();
    for attempt in 1..=crate::status::MAX_ATTEMPTS {
        let worker = claimant();
        let claimed = claim(&store, &worker, 1).await;
        assert_eq!(claimed.len(), 1, "attempt {attempt}");
        let failed = Outcome::Failed { kind: crate::failure::FailureKind::Transient, message: "it is zero".into() };
        finish(&store, &worker, &claimed, failed).await;
        clock.advance(Duration::from_secs(3600));
    }
    assert_eq!(store.status.survey(&embedder(), clock.now()).await.unwrap().due, 0);
    let row = &store.status.errors(&embedder(), 1).await.unwrap()[0];
    assert_eq!((row.state, row.attempts, row.next_attempt_at), (ChunkState::Error, 5, None));
}

#[tokio::test]
async fn compare_and_set_moves_only_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    let set = async |expected, value| store.meta.compare_and_set("k", expected, value, clock.now()).await.unwrap();
    assert!(!set(Some("x"), "1").await, "there is none");
    assert!(set(None, "1").await);
    assert!(!set(None, "2").await, "there is one already");
    assert!(!set(Some("0"), "2").await);
    assert!(set(Some("1"), "it's 2").await);
    assert_eq!(store.meta.get("k").await.unwrap().as_deref(), Some("it's 2"));
    assert!(set(Some("it's 2"), "3").await);
}

#[tokio::test]
async fn the_maintenance_lease_is_free_after_release_and_after_it_ran_out() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = Arc::new(store(dir.path(), &clock).await);
    let acquire = async || MaintenanceLease::acquire(&store.meta, &clock, "testing").await;
    let held = acquire().await.unwrap();
    assert!(matches!(acquire().await, Err(Error::Busy { .. })));
    held.release().await.unwrap();
    let held = acquire().await.unwrap();
    // The holder is gone without giving it back.
    std::mem::forget(held);
    assert!(matches!(acquire().await, Err(Error::Busy { .. })));
    clock.advance(Duration::from_secs(61));
    acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn what_a_late_holder_of_the_maintenance_lease_decides_does_not_happen() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    let acquire = async || MaintenanceLease::acquire(&store.meta, &clock, "testing").await.unwrap();
    assert!(store.meta.compare_and_set("k", None, "0", clock.now()).await.unwrap());
    let first = acquire().await;
    assert!(first.compare_and_set("k", "0", "1").await.unwrap());
    assert!(!first.compare_and_set("k", "0", "2").await.unwrap(), "it is 1");
    clock.advance(Duration::from_secs(61));
    first.check().await.unwrap();
    assert!(first.compare_and_set("k", "1", "2").await.unwrap(), "nobody has taken it");

    let second = acquire().await;
    assert!(matches!(first.check().await, Err(Error::LeaseLost { .. })));
    assert!(matches!(first.compare_and_set("k", "2", "3").await, Err(Error::LeaseLost { .. })));
    first.release().await.unwrap();
    second.check().await.unwrap();
    assert!(second.compare_and_set("k", "2", "4").await.unwrap());
    assert_eq!(store.meta.get("k").await.unwrap().as_deref(), Some("4"));
    second.release().await.unwrap();
    acquire().await.release().await.unwrap();
}

#[tokio::test]
async fn a_text_that_another_worker_cached_meanwhile_is_not_cached_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let (one, two) = (store(dir.path(), &clock).await, store(dir.path(), &clock).await);
    let (mine, theirs) = (one.cache(&embedder(), 2).await.unwrap(), two.cache(&embedder(), 2).await.unwrap());
    let vectors = |numbers: std::ops::Range<usize>| -> Vec<(ContentHash, Arc<[f32]>)> {
        numbers.map(|n| (ContentHash::of(&n.to_string()), vec![n as f32, 1.0].into())).collect()
    };
    let (mut seen_by_me, mut seen_by_them) =
        (mine.added_from_now_on().await.unwrap(), theirs.added_from_now_on().await.unwrap());
    assert_eq!(mine.insert(&vectors(0..10), &mut seen_by_me, clock.now()).await.unwrap(), 10);
    assert_eq!(theirs.insert(&vectors(5..15), &mut seen_by_them, clock.now()).await.unwrap(), 5);
    assert_eq!(theirs.insert(&vectors(0..15), &mut seen_by_them, clock.now()).await.unwrap(), 0);
    mine.refresh().await.unwrap();
    assert_eq!(mine.count().await.unwrap(), 15);
    // What was there before is the caller's to know.
    let mut later = mine.added_from_now_on().await.unwrap();
    assert!(!later.contains(&ContentHash::of("3").to_string()));
    assert_eq!(mine.insert(&vectors(20..21), &mut later, clock.now()).await.unwrap(), 1);
}
