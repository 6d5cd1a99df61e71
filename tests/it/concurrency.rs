//! Several workers on one bank: both make progress, no row twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::{BackfillOptions, Bank, BankOptions, ChunkState, Error, Faults, IndexKind, IngestOptions, StoreOptions};

use crate::harness::{Place, build, sentence};

/// A handle with its own connection, as another process would have.
async fn another(place: &Place) -> Bank {
    Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), place.options()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn four_workers_make_every_row_ready_exactly_once() {
    let place = Place::with_records(3000);
    let bank = place.bank().await;
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    let mut workers = Vec::new();
    for _ in 0..4 {
        let worker = another(&place).await;
        workers.push(tokio::spawn(async move { worker.backfill(BackfillOptions::default()).await }));
    }
    let mut ready = 0;
    for worker in workers {
        ready += worker.await.unwrap().unwrap().ready;
    }
    // A worker that found everything claimed has gone home early; what is left over is nobody's.
    ready += bank.backfill(BackfillOptions::default()).await.unwrap().ready;
    let contents = bank.contents().await.unwrap();
    assert_eq!((ready, contents.embeddings.len(), contents.status.len()), (3000, 3000, 3000));
    assert!(contents.status.iter().all(|row| row.1 == ChunkState::Ready));
    let mut ids: Vec<_> = contents.embeddings.iter().map(|row| &row.0).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3000, "no vector twice");
    assert_eq!(place.fake.texts_embedded(), 3000, "no text embedded twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_ingests_of_one_folder_store_each_document_once() {
    let place = Place::with_documents(60);
    let first = place.bank().await;
    let second = another(&place).await;
    let docs = place.docs();
    let (one, two) = (docs.clone(), docs.join("water"));
    let (a, b) = tokio::join!(
        tokio::spawn(async move { first.ingest(&[one], IngestOptions::default()).await }),
        tokio::spawn(async move { second.ingest(&[two], IngestOptions::default()).await }),
    );
    a.unwrap().unwrap();
    b.unwrap().unwrap();
    let bank = another(&place).await;
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let contents = bank.contents().await.unwrap();
    let mut ids: Vec<_> = contents.documents.iter().map(|row| &row.id).collect();
    ids.dedup();
    assert_eq!((ids.len(), contents.documents.len(), contents.embeddings.len()), (60, 60, 60));
}

#[tokio::test]
async fn maintenance_excludes_maintenance_until_it_is_given_back() {
    let place = Place::with_documents(30);
    let bank = place.filled().await;
    let built = bank.build_index(Default::default()).await.unwrap();
    let refused = another(&place).await.build_index(Default::default()).await;
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    let validated = bank.validate(built, Default::default()).await.unwrap();
    bank.activate(validated).await.unwrap();
    build(&another(&place).await, IndexKind::Flat).await.unwrap();
}

#[tokio::test]
async fn a_generation_whose_builder_died_is_failed_and_removed_by_the_next_build() {
    let place = Place::with_documents(30);
    let bank = place.filled().await;
    let built = bank.build_index(Default::default()).await.unwrap();
    let lost = built.id().clone();
    // As if the process had ended here: the lease runs out, the generation is not finished.
    std::mem::forget(built);
    place.clock.advance(std::time::Duration::from_secs(61));
    build(&bank, IndexKind::Flat).await.unwrap();
    let generations = bank.generations().await.unwrap();
    let lost = generations.iter().find(|generation| generation.id == lost).unwrap();
    assert_eq!(lost.state, embank::GenerationState::Failed);
    assert_eq!(lost.error.as_deref(), Some("interrupted while validating"));
}

/// The fake embedder, in whose first call another handle adds documents to the bank.
struct Meanwhile {
    fake: FakeEmbedder,
    other: Bank,
    docs: std::path::PathBuf,
    added: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl Embedder for Meanwhile {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if !self.added.swap(true, std::sync::atomic::Ordering::SeqCst) {
            for number in 0..10 {
                std::fs::write(self.docs.join(format!("late-{number}.txt")), sentence(1000 + number)).unwrap();
            }
            self.other.ingest(&[&self.docs], IngestOptions::default()).await.unwrap();
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn a_running_backfill_takes_up_new_documents_and_never_takes_them_for_deleted_ones() {
    let place = Place::with_documents(40);
    let other = place.bank().await;
    other.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    let meanwhile = Meanwhile { fake: place.fake.clone(), other, docs: place.docs(), added: false.into() };
    let worker = Bank::open(place.bank_dir(), Arc::new(meanwhile), place.options()).await.unwrap();
    assert_eq!(worker.backfill(BackfillOptions::default()).await.unwrap().ready, 50);
    let contents = worker.contents().await.unwrap();
    assert_eq!((contents.documents.len(), contents.status.len(), contents.embeddings.len()), (50, 50, 50));
    assert!(contents.status.iter().all(|row| row.1 == ChunkState::Ready));
}

/// The fake embedder at which every small call takes 20 seconds, and in whose calls another worker looks for work. A batch
/// takes longer than a lease; the few calls that end while the writer is in one commit do not.
struct Slow {
    fake: FakeEmbedder,
    clock: embank::Clock,
    other: Bank,
    others: Arc<std::sync::atomic::AtomicU64>,
}

#[async_trait::async_trait]
impl Embedder for Slow {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    fn texts_per_call(&self) -> usize {
        64
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        self.clock.advance(std::time::Duration::from_secs(20));
        let limit = BackfillOptions { limit: Some(50), ..BackfillOptions::default() };
        let report = self.other.backfill(limit).await?;
        self.others.fetch_add(report.ready, std::sync::atomic::Ordering::SeqCst);
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn batches_that_wait_for_a_slow_embedder_keep_their_leases() {
    let place = Place::with_records(6000);
    let other = place.bank().await;
    other.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    let others = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let slow = Slow { fake: place.fake.clone(), clock: place.clock.clone(), other, others: others.clone() };
    let worker = Bank::open(place.bank_dir(), Arc::new(slow), place.options()).await.unwrap();
    let mine = worker.backfill(BackfillOptions::default()).await.unwrap().ready;
    let theirs = others.load(std::sync::atomic::Ordering::SeqCst);
    // Whoever lost a lease would have counted its chunks too.
    assert_eq!(mine + theirs, 6000, "{mine} and {theirs}");
    assert!(theirs > 0);
    assert_eq!(place.fake.texts_embedded(), 6000, "no text embedded twice");
    let contents = worker.contents().await.unwrap();
    assert_eq!((contents.embeddings.len(), contents.status.len()), (6000, 6000));
}

/// The fake embedder that answers first when two batches are claimed, and in one of whose calls, after the writer's second
/// commit, another worker takes all that it may.
struct Behind {
    fake: FakeEmbedder,
    faults: Faults,
    other: Bank,
    has_looked: AtomicBool,
}

impl Behind {
    fn seen(&self, point: &str) -> usize {
        self.faults.changes().iter().filter(|change| *change == point).count()
    }
}

#[async_trait::async_trait]
impl Embedder for Behind {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    fn texts_per_call(&self) -> usize {
        64
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        for _ in 0..60_000 {
            if self.seen("point backfill: claimed") > 1 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        if self.seen("point backfill: cached") > 1 && !self.has_looked.swap(true, SeqCst) {
            self.other.backfill(BackfillOptions::default()).await?;
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn a_batch_that_waits_behind_a_long_commit_keeps_its_lease() {
    let place = Place::with_records(6000);
    let other = place.bank().await;
    other.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    // The first commit to the cache takes 250 of the lease's 300 seconds, and the second one another 60.
    let (clock, commits) = (place.clock.clone(), AtomicUsize::new(0));
    let faults = Faults::counted().watched(move |_, change| {
        if change.starts_with("put emb_cache__") && change.ends_with(".manifest") {
            let seconds = [250, 60].get(commits.fetch_add(1, SeqCst)).copied().unwrap_or(0);
            clock.advance(std::time::Duration::from_secs(seconds));
        }
    });
    let behind = Behind { fake: place.fake.clone(), faults: faults.clone(), other, has_looked: AtomicBool::new(false) };
    let behind = Arc::new(behind);
    let options = BankOptions { store: StoreOptions { faults, ..place.options().store }, ..place.options() };
    let worker = Bank::open(place.bank_dir(), behind.clone(), options).await.unwrap();
    worker.backfill(BackfillOptions::default()).await.unwrap();
    assert!(behind.has_looked.load(SeqCst) && behind.seen("point backfill: claimed") > 1);
    assert_eq!(place.fake.texts_embedded(), 6000, "a batch was taken over and embedded twice");
    let counts = worker.status().await.unwrap().status[0].counts;
    assert_eq!((counts.ready, counts.total()), (6000, 6000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_beside_an_ingest_that_edits_and_removes_leave_one_vector_for_each_chunk() {
    let place = Place::with_records(4000);
    let bank = place.bank().await;
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    let mut workers = Vec::new();
    for _ in 0..2 {
        let worker = another(&place).await;
        workers.push(tokio::spawn(async move { worker.backfill(BackfillOptions::default()).await }));
    }
    // A third of the records goes, a third gets other texts, a third stays.
    let lines: Vec<_> = (0..4000)
        .filter(|n| n % 3 > 0)
        .map(|n| serde_json::json!({"id": format!("r{n}"), "text": sentence(n + 10_000 * (n % 3 - 1))}).to_string())
        .collect();
    place.write("records.jsonl", &lines.join("\n"));
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let contents = bank.contents().await.unwrap();
    let calm = Place::empty();
    calm.write("records.jsonl", &lines.join("\n"));
    let want = calm.filled().await.contents().await.unwrap();
    assert_eq!(contents.embeddings, want.embeddings);
    assert_eq!(contents.status, want.status);
}
