//! A worker that comes too late: while its texts were being embedded, its lease ran out, or its chunks were edited or
//! removed. As a stopped process that is continued, but at a moment that the test chooses.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::{
    BackfillOptions, BackfillReport, Bank, BankOptions, ChunkState, Clock, Grouping, IndexKind, IngestOptions,
    SearchFilter, SearchOptions,
};
use futures::future::BoxFuture;

use crate::harness::{Place, build, sentence};

const CATEGORIES: [&str; 3] = ["water", "soil", "bees"];

/// What happens to the bank in the meantime.
type Meanwhile = Box<dyn Fn(Bank) -> BoxFuture<'static, ()> + Send + Sync>;

/// The fake embedder, during whose first call something happens.
struct Late {
    fake: FakeEmbedder,
    other: Bank,
    meanwhile: Meanwhile,
    happened: AtomicBool,
}

#[async_trait::async_trait]
impl Embedder for Late {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if !self.happened.swap(true, Ordering::SeqCst) {
            (self.meanwhile)(self.other.clone()).await;
        }
        self.fake.embed(kind, texts).await
    }
}

/// Fills the bank by a worker in whose first call `meanwhile` happens.
async fn fill_late(place: &Place, meanwhile: Meanwhile) -> (BackfillReport, Bank) {
    let other = place.bank().await;
    other.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    let late = Late { fake: place.fake.clone(), other: other.clone(), meanwhile, happened: false.into() };
    // Its time stands still, as that of a stopped process does: it renews nothing.
    let clock = Clock::manual(place.clock.now());
    let options = BankOptions { clock, ..place.options() };
    let worker = Bank::open(place.bank_dir(), Arc::new(late), options).await.unwrap();
    (worker.backfill(BackfillOptions::default()).await.unwrap(), other)
}

/// Chunks with a vector, each as often as it stands there.
async fn vectors(bank: &Bank) -> Vec<String> {
    bank.contents().await.unwrap().embeddings.iter().map(|row| row.0.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_that_lost_its_lease_stores_no_vector_a_second_time() {
    let place = Place::with_records(600);
    let clock = place.clock.clone();
    let taken_over = Box::new(move |other: Bank| -> BoxFuture<'static, ()> {
        let clock = clock.clone();
        Box::pin(async move {
            clock.advance(BackfillOptions::default().lease + Duration::from_secs(1));
            assert_eq!(other.backfill(BackfillOptions::default()).await.unwrap().ready, 600);
        })
    });
    let (report, bank) = fill_late(&place, taken_over).await;
    assert_eq!(report.ready, 0, "all of it was somebody else's by then");
    let contents = bank.contents().await.unwrap();
    assert_eq!((contents.embeddings.len(), contents.status.len()), (600, 600));
    assert!(contents.status.iter().all(|row| row.1 == ChunkState::Ready));
    assert_eq!(bank.status().await.unwrap().cached, 600, "each text stands in the cache once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_chunk_that_was_removed_while_its_text_was_embedded_has_no_vector() {
    let place = Place::with_documents(60);
    let docs = place.docs();
    let removed = Box::new(move |other: Bank| -> BoxFuture<'static, ()> {
        let docs = docs.clone();
        Box::pin(async move {
            std::fs::remove_dir_all(docs.join("water")).unwrap();
            other.ingest(&[docs], IngestOptions::default()).await.unwrap();
        })
    });
    let (report, bank) = fill_late(&place, removed).await;
    assert_eq!(report.ready, 40);
    assert_eq!(vectors(&bank).await.len(), 40);
    assert_eq!(bank.contents().await.unwrap().status.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_chunk_that_was_filed_elsewhere_while_its_text_was_embedded_is_found_where_it_is_now() {
    let place = Place::with_records(300);
    // Every record moves on to the next category, its text stays.
    let lines: Vec<_> = (0..300)
        .map(|n| {
            let category = CATEGORIES[(n + 1) % 3];
            serde_json::json!({"id": format!("r{n}"), "text": sentence(n), "category": category}).to_string()
        })
        .collect();
    let docs = place.docs();
    let moved = Box::new(move |other: Bank| -> BoxFuture<'static, ()> {
        let (docs, lines) = (docs.clone(), lines.join("\n"));
        Box::pin(async move {
            std::fs::write(docs.join("records.jsonl"), lines).unwrap();
            other.ingest(&[docs], IngestOptions::default()).await.unwrap();
        })
    });
    let (_, bank) = fill_late(&place, moved).await;
    bank.backfill(BackfillOptions::default()).await.unwrap();
    build(&bank, IndexKind::Flat).await.unwrap();
    for category in CATEGORIES {
        assert_eq!(found_in(&bank, category).await, stored_in(&bank, category).await, "{category}");
    }
}

/// Chunks that a search with this filter finds.
async fn found_in(bank: &Bank, category: &str) -> BTreeSet<String> {
    let filter = SearchFilter::default().category(category);
    let options = SearchOptions { k: 1000, filter, grouping: Grouping::Chunks, ..SearchOptions::default() };
    let found = bank.search("rain in the barrel", &options).await.unwrap();
    found.hits.into_iter().map(|hit| hit.id.to_string()).collect()
}

/// Chunks whose document says so.
async fn stored_in(bank: &Bank, category: &str) -> BTreeSet<String> {
    let documents = bank.contents().await.unwrap().documents;
    documents.into_iter().filter(|row| row.category == category).map(|row| row.id.to_string()).collect()
}
