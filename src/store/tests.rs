//! Leases and compare-and-set, at the level where they are made.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Durability, MaintenanceLease, Outcome, Store, StoreOptions, WorkerId};
use crate::clock::{Clock, Timestamp};
use crate::error::Error;
use crate::id::{ChunkId, EmbedderId};
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

#[tokio::test]
async fn an_expired_claim_is_taken_over_and_its_late_owner_can_mark_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(5), clock.now()).await.unwrap();
    let (first, second) = (WorkerId::new(), WorkerId::new());
    let claimed = store.status.claim(&embedder(), &first, clock.now(), LEASE, 10).await.unwrap();
    assert_eq!(claimed.len(), 5);
    let too_early = store.status.claim(&embedder(), &second, clock.now(), LEASE, 10).await.unwrap();
    assert!(too_early.is_empty(), "a running lease is respected");

    clock.advance(LEASE + Duration::from_secs(1));
    let taken = store.status.claim(&embedder(), &second, clock.now(), LEASE, 10).await.unwrap();
    assert_eq!(taken.len(), 5);
    let late = |outcome: Outcome| claimed.iter().map(|row| (row.clone(), outcome.clone())).collect::<Vec<_>>();
    assert_eq!(store.status.finish(late(Outcome::Stored), &first, clock.now()).await.unwrap(), 0);
    assert_eq!(store.status.renew(&claimed, &first, clock.now(), LEASE).await.unwrap(), 0);
    let mine = taken.into_iter().map(|row| (row, Outcome::Stored)).collect();
    assert_eq!(store.status.finish(mine, &second, clock.now()).await.unwrap(), 5);
    assert_eq!(store.status.counts().await.unwrap()[&embedder()].ready, 5);
}

#[tokio::test]
async fn a_renewed_claim_does_not_run_out() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(3), clock.now()).await.unwrap();
    let (first, second) = (WorkerId::new(), WorkerId::new());
    let claimed = store.status.claim(&embedder(), &first, clock.now(), LEASE, 10).await.unwrap();
    clock.advance(LEASE / 2);
    assert_eq!(store.status.renew(&claimed, &first, clock.now(), LEASE).await.unwrap(), 3);
    clock.advance(LEASE / 2 + Duration::from_secs(1));
    assert!(store.status.claim(&embedder(), &second, clock.now(), LEASE, 10).await.unwrap().is_empty());
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
        let now = clock.now();
        racers.push(tokio::spawn(async move {
            store.status.claim(&embedder(), &WorkerId::new(), now, LEASE, 300).await.unwrap()
        }));
    }
    let mut won = Vec::new();
    for racer in racers {
        won.extend(racer.await.unwrap().into_iter().map(|row| row.id));
    }
    let claimed = won.len();
    won.sort();
    won.dedup();
    assert_eq!(won.len(), claimed, "no chunk was won twice");
    assert!(claimed >= 300, "the first one got all it asked for");
}

#[tokio::test]
async fn a_failed_chunk_counts_its_attempts_and_ends_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = store(dir.path(), &clock).await;
    store.status.insert_new(&embedder(), &ids(1), clock.now()).await.unwrap();
    for attempt in 1..=crate::status::MAX_ATTEMPTS {
        let worker = WorkerId::new();
        let claimed = store.status.claim(&embedder(), &worker, clock.now(), LEASE, 1).await.unwrap();
        assert_eq!(claimed.len(), 1, "attempt {attempt}");
        let failed = Outcome::Failed { kind: "vector", message: "it is zero".into() };
        let outcomes = claimed.into_iter().map(|row| (row, failed.clone())).collect();
        store.status.finish(outcomes, &worker, clock.now()).await.unwrap();
        clock.advance(Duration::from_secs(3600));
    }
    assert_eq!(store.status.count_due(&embedder(), clock.now()).await.unwrap(), 0);
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
