//! Backfill: each text once, in order, and a bad text alone is lost.

use std::sync::Arc;
use std::time::Duration;

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, Fault, TextKind, TokenCounter};
use embank::{BackfillOptions, Bank, ChunkState, RetryErrors};

use crate::harness::{DIMENSION, Place, sentence};

async fn ingest(place: &Place, bank: &Bank) {
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
}

#[tokio::test]
async fn equal_texts_are_embedded_once_and_every_chunk_gets_its_vector() {
    let place = Place::with_documents(10);
    place.write("copy-a.txt", &sentence(3));
    place.write("copy-b.txt", &sentence(3));
    let bank = place.bank().await;
    ingest(&place, &bank).await;
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((report.ready, report.embedded, report.reused), (12, 10, 2));
    assert_eq!(place.fake.texts_embedded(), 10);
    let contents = bank.contents().await.unwrap();
    assert_eq!(contents.embeddings.len(), 12);
    assert!(contents.status.iter().all(|row| row.1 == ChunkState::Ready));
}

#[tokio::test]
async fn nothing_to_do_changes_nothing() {
    let place = Place::with_documents(5);
    let bank = place.filled().await;
    let (before, calls) = (crate::harness::footprint(&bank).await, place.fake.texts_embedded());
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!(report, Default::default());
    assert_eq!(crate::harness::footprint(&bank).await, before);
    assert_eq!(place.fake.texts_embedded(), calls);
}

#[tokio::test]
async fn the_limit_is_kept_and_the_rest_follows() {
    let place = Place::with_documents(20);
    let bank = place.bank().await;
    ingest(&place, &bank).await;
    let first = bank.backfill(BackfillOptions { limit: Some(7), ..Default::default() }).await.unwrap();
    let rest = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((first.ready, rest.ready), (7, 13));
}

#[tokio::test]
async fn a_bad_answer_costs_only_its_own_row_whatever_is_wrong_with_it() {
    for fault in [Fault::WrongDimension, Fault::NotANumber, Fault::ZeroNorm, Fault::Missing, Fault::Fail] {
        let place = Place::with_documents(40);
        let faulty = FakeEmbedder::with_faults(DIMENSION, move |text| text.starts_with("note 17:").then_some(fault));
        let bank = place.bank_with(faulty).await;
        ingest(&place, &bank).await;
        let report = bank.backfill(BackfillOptions::default()).await.unwrap();
        assert_eq!((report.ready, report.failed), (39, 1), "{fault:?}");
        assert_eq!(report.failures[0].doc_path, "bees/00017.txt", "{fault:?}");
        let contents = bank.contents().await.unwrap();
        assert_eq!(contents.embeddings.len(), 39, "{fault:?}");
        assert_eq!(contents.status.iter().filter(|row| row.1 == ChunkState::Error).count(), 1, "{fault:?}");
        let errors = bank.errors(10).await.unwrap();
        assert!(errors[0].error.as_ref().is_some_and(|e| !e.is_empty()), "{fault:?}");
    }
}

#[tokio::test]
async fn a_failed_row_is_due_again_after_its_pause_and_at_once_on_request() {
    let place = Place::with_documents(3);
    let broken = FakeEmbedder::with_faults(DIMENSION, |text| text.starts_with("note 1:").then_some(Fault::ZeroNorm));
    let bank = place.bank_with(broken).await;
    ingest(&place, &bank).await;
    bank.backfill(BackfillOptions::default()).await.unwrap();

    let mended = place.bank().await;
    assert_eq!(mended.backfill(BackfillOptions::default()).await.unwrap().ready, 0, "the pause is not over");
    place.clock.advance(Duration::from_secs(16));
    assert_eq!(mended.backfill(BackfillOptions::default()).await.unwrap().ready, 1);

    place.write("water/00000.txt", "note 1: again");
    ingest(&place, &bank).await;
    assert_eq!(bank.backfill(BackfillOptions::default()).await.unwrap().failed, 1);
    let now = BackfillOptions { errors: RetryErrors::Now, ..Default::default() };
    assert_eq!(mended.backfill(now).await.unwrap().ready, 1);
}

/// Fails for good once its budget of texts is used up, as a process does that is killed in the middle of a batch.
struct Budget {
    fake: FakeEmbedder,
    left: std::sync::atomic::AtomicI64,
    cancel: embank::progress::Cancel,
}

#[async_trait::async_trait]
impl Embedder for Budget {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if self.left.fetch_sub(texts.len() as i64, std::sync::atomic::Ordering::SeqCst) < texts.len() as i64 {
            self.cancel.cancel();
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn a_cancelled_backfill_finishes_its_batch_and_the_next_one_continues_without_repeating() {
    let place = Place::with_records(1000);
    let cancel = embank::progress::Cancel::default();
    let budget = Budget { fake: place.fake.clone(), left: 100.into(), cancel: cancel.clone() };
    let options = embank::BankOptions { cancel, ..place.options() };
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(budget), options).await.unwrap();
    // Ingest is not cancelled yet.
    ingest(&place, &bank).await;
    let first = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert!(first.cancelled && first.ready > 0 && first.ready < 1000, "{first:?}");

    let second = place.bank().await.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!(first.ready + second.ready, 1000);
    assert_eq!(place.fake.texts_embedded(), 1000, "no text is embedded twice");
}

#[tokio::test]
async fn equal_texts_of_different_batches_are_embedded_once() {
    let place = Place::with_records(3000);
    // Ingested last, so claimed in another batch than the records whose texts they repeat.
    for number in [0, 1, 2999] {
        place.write(&format!("z/copy-{number}.txt"), &sentence(number));
    }
    let bank = place.bank().await;
    ingest(&place, &bank).await;
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((report.ready, report.embedded, report.reused), (3003, 3000, 3));
    let contents = bank.contents().await.unwrap();
    assert_eq!(contents.embeddings.len(), 3003);
    assert_eq!(bank.status().await.unwrap().cached, 3000);
}

#[tokio::test]
async fn a_bad_text_that_stands_in_two_batches_fails_in_both_and_holds_up_neither() {
    let place = Place::with_records(3000);
    place.write("z/copy.txt", &sentence(17));
    let faulty = FakeEmbedder::with_faults(DIMENSION, |text| text.starts_with("note 17:").then_some(Fault::ZeroNorm));
    let bank = place.bank_with(faulty).await;
    ingest(&place, &bank).await;
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((report.ready, report.failed), (2999, 2));
    let contents = bank.contents().await.unwrap();
    assert_eq!(contents.status.iter().filter(|row| row.1 == ChunkState::Error).count(), 2);
}

/// Cannot work at all after its first call.
struct Breaking {
    fake: FakeEmbedder,
    calls: std::sync::atomic::AtomicU64,
}

#[async_trait::async_trait]
impl Embedder for Breaking {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0 {
            return Err(embank::Error::ModelFormat { path: "model".into(), reason: "it is gone".into(), source: None });
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn an_embedder_that_breaks_down_ends_the_run_and_gives_its_claims_back() {
    let place = Place::with_records(5000);
    let breaking = Breaking { fake: place.fake.clone(), calls: 0.into() };
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(breaking), place.options()).await.unwrap();
    ingest(&place, &bank).await;
    let broken = bank.backfill(BackfillOptions::default()).await;
    assert!(matches!(broken, Err(embank::Error::ModelFormat { .. })), "{broken:?}");
    let counts = bank.status().await.unwrap().status[0].counts;
    assert_eq!((counts.in_progress, counts.error, counts.total()), (0, 0, 5000));
    // The lease of a process that runs on would be respected.
    let report = place.bank().await.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!(counts.ready + report.ready, 5000);
    assert_eq!(place.fake.texts_embedded(), 5000, "no text is embedded twice");
}

#[tokio::test]
async fn what_anybody_writes_ends_the_word_that_nothing_is_due() {
    let place = Place::with_documents(5);
    let bank = place.filled().await;
    assert_eq!(bank.backfill(BackfillOptions::default()).await.unwrap().ready, 0);
    // Another handle, as another process has.
    let other = place.bank().await;
    place.write("late.txt", &sentence(100));
    ingest(&place, &other).await;
    assert_eq!(bank.backfill(BackfillOptions::default()).await.unwrap().ready, 1);
    place.remove("late.txt");
    ingest(&place, &other).await;
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let contents = bank.contents().await.unwrap();
    assert_eq!((contents.documents.len(), contents.status.len(), contents.embeddings.len()), (5, 5, 5));
}

#[tokio::test]
async fn a_crash_between_vectors_and_status_never_reaches_the_embedder_again() {
    let place = Place::with_documents(12);
    let bank = place.filled().await;
    let want = bank.contents().await.unwrap();
    // What such a crash leaves: vectors and cache are there, the status is not. Lost vectors are the other way round.
    for lost in ["status.lance", "embeddings__fake-32-"] {
        let folder = std::fs::read_dir(place.bank_dir()).unwrap().map(|e| e.unwrap().path());
        let folder = folder.into_iter().find(|p| p.file_name().unwrap().to_string_lossy().starts_with(lost)).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        let calls = place.fake.texts_embedded();
        let reopened = place.bank().await;
        let report = reopened.backfill(BackfillOptions::default()).await.unwrap();
        assert_eq!((report.ready, report.embedded), (12, 0), "{lost}");
        assert_eq!(place.fake.texts_embedded(), calls, "{lost}");
        assert_eq!(reopened.contents().await.unwrap(), want, "{lost}");
    }
}

#[tokio::test]
async fn a_second_embedder_fills_beside_the_first() {
    let place = Place::with_documents(6);
    let first = place.filled().await;
    let second = place.bank_with(FakeEmbedder::new(16)).await;
    let report = second.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((report.ready, report.reconciled.added), (6, 6));
    assert_eq!(first.contents().await.unwrap().embeddings[0].2.len(), DIMENSION);
    assert_eq!(second.contents().await.unwrap().embeddings[0].2.len(), 16);
    assert_eq!(second.status().await.unwrap().status.len(), 2);
}
