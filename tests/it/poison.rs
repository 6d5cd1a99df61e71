//! Texts that cannot be embedded: they are found in few calls and cost nothing but themselves, and an embedder that cannot work
//! is not taken for thousands of them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::progress::Cancel;
use embank::{
    BackfillOptions, Bank, BankOptions, ChunkId, ChunkState, Error, FailedChunks, FailureKind, StatusRow, retry_at,
};

use crate::harness::{DIMENSION, Place, sentence};

type Result<T, E = Error> = std::result::Result<T, E>;

/// What an embedder does to a call before it answers: fail it, or change its answers.
type Act = dyn Fn(&[String], Vec<Embedded>) -> Result<Vec<Embedded>> + Send + Sync;

/// An act that needs nothing from its surroundings.
type BrokenWay = fn(&[String], Vec<Embedded>) -> Result<Vec<Embedded>>;

/// The fake, with a script; it keeps every text that it was given, call by call.
#[derive(Clone)]
pub struct Scripted {
    fake: FakeEmbedder,
    per_call: Option<usize>,
    act: Arc<Act>,
    calls: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Scripted {
    fn new(
        place: &Place,
        act: impl Fn(&[String], Vec<Embedded>) -> Result<Vec<Embedded>> + Send + Sync + 'static,
    ) -> Self {
        Self { fake: place.fake.clone(), per_call: None, act: Arc::new(act), calls: Arc::default() }
    }

    /// Fails calls with any of the texts for which `error` says so, with that error.
    pub fn failing(place: &Place, error: impl Fn(&str) -> Option<Error> + Send + Sync + 'static) -> Self {
        Self::new(place, move |texts, answers| match texts.iter().find_map(|text| error(text)) {
            Some(error) => Err(error),
            None => Ok(answers),
        })
    }

    /// With calls of so many texts at most.
    pub fn of(self, texts: usize) -> Self {
        Self { per_call: Some(texts), ..self }
    }

    pub fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().unwrap().clone()
    }

    async fn bank(&self, place: &Place) -> Bank {
        self.bank_with(place, place.options()).await
    }

    async fn bank_with(&self, place: &Place, options: BankOptions) -> Bank {
        let bank = Bank::open_or_create(place.bank_dir(), Arc::new(self.clone()), options).await.unwrap();
        bank.ingest(&[place.docs()], Default::default()).await.unwrap();
        bank
    }
}

#[async_trait::async_trait]
impl Embedder for Scripted {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    fn texts_per_call(&self) -> usize {
        self.per_call.unwrap_or(self.fake.texts_per_call())
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        self.calls.lock().unwrap().push(texts.to_vec());
        let answers = self.fake.embed(kind, texts).await?;
        (self.act)(texts, answers)
    }
}

pub fn refused() -> Error {
    Error::TextRefused { embedder: "scripted".into(), reason: "it is poison".into(), source: None }
}

fn failed() -> Error {
    Error::EmbedderFailed { embedder: "scripted".into(), reason: "it has a bad day".into(), source: None }
}

/// The number in a generated text's first words, `note 17: …`; none in any other text.
pub fn number(text: &str) -> Option<usize> {
    text.strip_prefix("note ")?.split_once(':')?.0.parse().ok()
}

async fn backfill(bank: &Bank) -> Result<embank::BackfillReport> {
    bank.backfill(BackfillOptions::default()).await
}

async fn counts(bank: &Bank) -> embank::StatusCounts {
    bank.status().await.unwrap().status[0].counts
}

/// Failed rows by the number in their text.
async fn failed_rows(bank: &Bank) -> HashMap<usize, StatusRow> {
    let texts: HashMap<ChunkId, usize> = bank
        .contents()
        .await
        .unwrap()
        .documents
        .into_iter()
        .filter_map(|row| Some((row.id.clone(), number(&row.content)?)))
        .collect();
    bank.errors(usize::MAX).await.unwrap().into_iter().map(|row| (texts[&row.id], row)).collect()
}

#[tokio::test]
async fn seven_poisonous_texts_among_ten_thousand_are_found_in_few_calls_and_cost_nothing_but_themselves() {
    const TEXTS: usize = 10_000;
    // The first and the last, two neighbours, one on a boundary, two anywhere.
    const POISON: [usize; 7] = [0, 128, 3_333, 3_334, 5_000, 7_777, 9_999];
    let place = Place::with_records(TEXTS);
    let scripted = Scripted::failing(&place, |text| number(text).filter(|n| POISON.contains(n)).map(|_| refused()));
    let bank = scripted.bank(&place).await;
    let report = backfill(&bank).await.unwrap();
    assert_eq!((report.ready, report.failed), (9_993, 7));
    let rows = failed_rows(&bank).await;
    assert_eq!(rows.keys().copied().collect::<HashSet<_>>(), HashSet::from(POISON));
    for row in rows.values() {
        assert_eq!(row.error.as_deref(), Some("embedder scripted refuses a text: it is poison"));
    }

    // Calls that no other call's failure led to: those with a text that was not seen before.
    let calls = scripted.calls();
    let mut seen = HashSet::new();
    let (mut first_calls, mut largest) = (0, 0);
    for call in calls.iter().filter(|call| call.iter().any(|text| number(text).is_some())) {
        if call.iter().any(|text| seen.insert(text.clone())) {
            first_calls += 1;
            largest = largest.max(call.len());
        }
    }
    assert!(first_calls < 100, "{first_calls} calls for {TEXTS} texts");
    let per_poison = 2 * (largest.next_power_of_two().ilog2() as usize + 1);
    let bound = first_calls + POISON.len() * per_poison;
    println!("{} calls: {first_calls} without poison, at most {largest} texts, bound {bound}", calls.len());
    assert!(calls.len() <= bound, "{} calls, {bound} allowed", calls.len());
    // A failing call's texts are sent again, level by level.
    let sent: usize = calls.iter().map(Vec::len).sum();
    let sent_bound = TEXTS + POISON.len() * (2 * largest + 1);
    assert!(sent <= sent_bound, "{sent} texts sent, {sent_bound} allowed");
}

#[tokio::test]
async fn a_text_that_was_answered_is_not_sent_again() {
    let place = Place::with_records(500);
    let scripted = Scripted::failing(&place, |text| number(text).filter(|n| n % 50 == 7).map(|_| failed()));
    let bank = scripted.bank(&place).await;
    assert_eq!(backfill(&bank).await.unwrap().failed, 10);
    let mut answered = HashSet::new();
    for call in scripted.calls() {
        assert!(call.iter().all(|text| number(text).is_none() || !answered.contains(text)), "sent again");
        if !call.iter().any(|text| number(text).is_some_and(|n| n % 50 == 7)) {
            answered.extend(call);
        }
    }
    assert_eq!(answered.iter().filter(|text| number(text).is_some()).count(), 490);
}

#[tokio::test]
async fn what_half_a_bisection_found_out_is_kept_when_the_other_half_never_comes() {
    let place = Place::with_records(64);
    let cancel = Cancel::default();
    let scripted = {
        let cancel = cancel.clone();
        Scripted::new(&place, move |texts, answers| {
            // Stopped in the middle of the search for text 40: its left neighbours were answered.
            if texts.len() == 16 && texts.iter().any(|text| number(text) == Some(40)) {
                cancel.cancel();
            }
            if texts.iter().any(|text| number(text) == Some(40)) { Err(failed()) } else { Ok(answers) }
        })
    };
    let bank = scripted.bank_with(&place, BankOptions { cancel, ..place.options() }).await;
    let first = backfill(&bank).await.unwrap();
    assert!(first.cancelled && first.ready == 32 && first.failed == 0, "{first:?}");
    assert_eq!(bank.status().await.unwrap().cached, 32);
    let second = backfill(&place.bank().await).await.unwrap();
    assert_eq!((second.ready, second.embedded), (32, 32));
}

#[tokio::test]
async fn an_embedder_that_fails_for_every_text_is_found_out_in_a_few_calls_and_no_row_is_marked() {
    let broken_ways: [BrokenWay; 5] = [
        |_, _| Err(failed()),
        |_, _| Err(refused()),
        |_, _| panic!("the device is lost"),
        |_, _| Ok(Vec::new()),
        |_, mut answers| {
            answers.iter_mut().for_each(|answer| answer.vector.fill(f32::NAN));
            Ok(answers)
        },
    ];
    for (way, broken) in broken_ways.into_iter().enumerate() {
        let place = Place::with_records(2000);
        let scripted = Scripted::new(&place, broken);
        let bank = scripted.bank(&place).await;
        let error = backfill(&bank).await.unwrap_err();
        assert!(matches!(error, Error::EmbedderDown { .. }), "{way}: {error}");
        assert_eq!(error.failure_kind(), FailureKind::Fatal);
        // Two calls are on their way at once, and each is followed by one for a plain text.
        assert!(scripted.calls().len() <= 4, "{way}: {} calls", scripted.calls().len());
        assert_eq!((counts(&bank).await.new, counts(&bank).await.total()), (2000, 2000), "{way}");
        // As soon as it works, nothing is in the way.
        assert_eq!(backfill(&place.bank().await).await.unwrap().ready, 2000, "{way}");
    }
}

#[tokio::test]
async fn an_embedder_that_breaks_down_during_a_bisection_is_found_out_there() {
    let place = Place::with_records(2000);
    let is_down = Arc::new(AtomicBool::new(false));
    let scripted = {
        let is_down = is_down.clone();
        Scripted::new(&place, move |texts, answers| {
            if texts.iter().any(|text| number(text) == Some(90)) && texts.len() < 64 {
                is_down.store(true, Ordering::SeqCst);
            }
            let is_poison = texts.iter().any(|text| number(text) == Some(90));
            if is_poison || is_down.load(Ordering::SeqCst) { Err(failed()) } else { Ok(answers) }
        })
    };
    let bank = scripted.bank(&place).await;
    let error = backfill(&bank).await.unwrap_err();
    assert!(matches!(error, Error::EmbedderDown { .. }), "{error}");
    assert!(scripted.calls().len() < 60, "{} calls", scripted.calls().len());
    // A few were taken to be at fault before the embedder was doubted again; they are due again by themselves.
    let counts = counts(&bank).await;
    assert!(counts.error < 16 && counts.ready + counts.new + counts.error == 2000, "{counts:?}");
    place.clock.advance(Duration::from_secs(16));
    is_down.store(false, Ordering::SeqCst);
    let healthy = place.bank().await;
    backfill(&healthy).await.unwrap();
    assert_eq!(healthy.status().await.unwrap().status[0].counts.ready, 2000);
}

#[tokio::test]
async fn a_bank_of_nothing_but_poison_is_the_texts_fault_and_not_the_embedders() {
    let place = Place::with_records(40);
    let scripted = Scripted::failing(&place, |text| number(text).map(|_| refused()));
    let bank = scripted.bank(&place).await;
    let report = backfill(&bank).await.unwrap();
    assert_eq!((report.ready, report.failed), (0, 40));
    // A whole binary tree, and a plain text now and then.
    assert!(scripted.calls().len() <= 2 * 40 + 40 / 8, "{} calls", scripted.calls().len());
}

#[tokio::test]
async fn a_panic_of_the_embedder_costs_the_text_that_causes_it_and_its_message_is_kept() {
    let place = Place::with_records(300);
    let scripted = Scripted::new(&place, |texts, answers| {
        for text in texts {
            assert!(number(text) != Some(123), "no vector for {}", number(text).unwrap());
        }
        Ok(answers)
    });
    let bank = scripted.bank(&place).await;
    let report = backfill(&bank).await.unwrap();
    assert_eq!((report.ready, report.failed), (299, 1));
    let row = &failed_rows(&bank).await[&123];
    let message = row.error.as_deref().unwrap();
    assert!(message.contains("panicked") && message.contains("no vector for 123"), "{message}");
    assert_eq!((row.error_kind, row.attempts), (Some(FailureKind::Transient), 1));
}

/// Panics on a thread of its own, as a model does that is called through `spawn_blocking`, and hands the panic on.
#[derive(Clone)]
struct OnAThread(FakeEmbedder);

#[async_trait::async_trait]
impl Embedder for OnAThread {
    fn identity(&self) -> &EmbedderIdentity {
        self.0.identity()
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        self.0.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        let poison = texts.iter().any(|text| number(text) == Some(5));
        let thread = tokio::task::spawn_blocking(move || assert!(!poison, "text five"));
        if let Err(ended) = thread.await {
            std::panic::resume_unwind(ended.into_panic());
        }
        self.0.embed(kind, texts).await
    }
}

#[tokio::test]
async fn a_panic_that_crosses_threads_is_caught_as_well() {
    let place = Place::with_records(60);
    let bank =
        Bank::open_or_create(place.bank_dir(), Arc::new(OnAThread(place.fake.clone())), place.options()).await.unwrap();
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let report = backfill(&bank).await.unwrap();
    assert_eq!((report.ready, report.failed), (59, 1));
    let row = &failed_rows(&bank).await[&5];
    assert!(row.error.as_deref().unwrap().contains("panicked: text five"), "{row:?}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_at_its_moment_and_what_would_come_again_is_parked() {
    let place = Place::with_records(20);
    let scripted = Scripted::failing(&place, |text| match number(text) {
        Some(3) => Some(failed()),
        Some(4) => Some(refused()),
        _ => None,
    });
    let bank = scripted.bank(&place).await;
    let now = place.clock.now();
    assert_eq!(backfill(&bank).await.unwrap().failed, 2);
    let rows = failed_rows(&bank).await;
    assert_eq!(rows[&3].error_kind, Some(FailureKind::Transient));
    assert_eq!(rows[&3].next_attempt_at, retry_at(now, FailureKind::Transient, 1, &rows[&3].id));
    assert_eq!((rows[&4].error_kind, rows[&4].next_attempt_at), (Some(FailureKind::Permanent), None));
    // A year later: the one is tried again, four times more, the other is not.
    let mut tried = Vec::new();
    for _ in 0..6 {
        place.clock.advance(Duration::from_secs(365 * 86_400));
        let before = scripted.calls().len();
        tried.push(backfill(&bank).await.unwrap().failed);
        assert!(scripted.calls()[before..].iter().flatten().all(|text| number(text) != Some(4)));
    }
    assert_eq!(tried, [1, 1, 1, 1, 0, 0]);
    let rows = failed_rows(&bank).await;
    assert_eq!((rows[&3].attempts, rows[&3].next_attempt_at, rows[&4].attempts), (5, None, 1));
}

#[tokio::test]
async fn a_vector_that_cannot_be_stored_is_parked_once_it_comes_again() {
    let ways: [fn(&mut Vec<f32>); 3] = [
        |vector| vector.truncate(DIMENSION - 1),
        |vector| vector.iter_mut().take(1).for_each(|x| *x = f32::NAN),
        |vector| vector.fill(0.0),
    ];
    for spoil in ways {
        let place = Place::with_records(20);
        let scripted = Scripted::new(&place, move |texts, mut answers| {
            let poisoned = texts.iter().zip(&mut answers).filter(|(text, _)| number(text) == Some(3));
            poisoned.for_each(|(_, answer)| spoil(&mut answer.vector));
            Ok(answers)
        });
        let bank = scripted.bank(&place).await;
        assert_eq!(backfill(&bank).await.unwrap().failed, 1);
        assert_eq!(failed_rows(&bank).await[&3].error_kind, Some(FailureKind::Transient));
        place.clock.advance(Duration::from_secs(16));
        assert_eq!(backfill(&bank).await.unwrap().failed, 1);
        let row = &failed_rows(&bank).await[&3];
        assert_eq!((row.error_kind, row.attempts, row.next_attempt_at), (Some(FailureKind::Permanent), 2, None));
    }
}

#[tokio::test]
async fn failures_are_told_by_cause_and_queued_again_by_kind_or_by_id() {
    let place = Place::with_records(30);
    let scripted = Scripted::failing(&place, |text| match number(text)? {
        3 | 4 => Some(failed()),
        n @ (5..=9) => {
            let reason = format!("row {n} is poison");
            Some(Error::TextRefused { embedder: "scripted".into(), reason, source: None })
        }
        _ => None,
    });
    let bank = scripted.bank(&place).await;
    backfill(&bank).await.unwrap();
    let failures = bank.failures().await.unwrap();
    let told: Vec<_> = failures.causes.iter().map(|cause| (cause.kind, cause.count, cause.parked)).collect();
    assert_eq!(told, [(FailureKind::Permanent, 5, 5), (FailureKind::Transient, 2, 0)]);
    assert!(failures.causes[0].message.contains("is poison"));
    assert_eq!(failures.causes[0].examples.len(), 3);
    assert!(
        failures
            .causes
            .iter()
            .flat_map(|cause| &cause.examples)
            .all(|id| { failures.doc_paths[id].starts_with("records.jsonl#r") })
    );

    let rows = failed_rows(&bank).await;
    let healthy = place.bank().await;
    let id_of = |n: usize| rows[&n].id.clone();
    // By id: one that failed, one that is ready, one that is none.
    let ready = bank.contents().await.unwrap().embeddings[0].0.clone();
    let nobody = ChunkId::from_stored("0");
    let ids = vec![id_of(5), ready.clone(), nobody.clone()];
    let queued = healthy.retry(FailedChunks { ids, ..Default::default() }).await.unwrap();
    assert_eq!((queued.queued, queued.not_failed), (1, vec![ready, nobody]));
    assert_eq!(backfill(&healthy).await.unwrap().ready, 1);
    // By kind.
    let kind = |kind| FailedChunks { kind: Some(kind), ..Default::default() };
    assert_eq!(healthy.retry(kind(FailureKind::Transient)).await.unwrap().queued, 2);
    let states = healthy.contents().await.unwrap().status;
    let of = |id: &ChunkId| states.iter().find(|row| row.0 == *id).unwrap().1;
    assert_eq!([of(&id_of(3)), of(&id_of(4)), of(&id_of(6))], [ChunkState::New, ChunkState::New, ChunkState::Error]);
    assert_eq!(backfill(&healthy).await.unwrap().ready, 2);
    // All that are left, twice.
    assert_eq!(healthy.retry(FailedChunks::default()).await.unwrap().queued, 4);
    assert_eq!(healthy.retry(FailedChunks::default()).await.unwrap().queued, 0);
    assert_eq!(backfill(&healthy).await.unwrap().ready, 4);
    assert!(healthy.failures().await.unwrap().causes.is_empty());
}

#[tokio::test]
async fn a_retry_counts_attempts_from_the_beginning() {
    let place = Place::with_records(5);
    let scripted = Scripted::failing(&place, |text| number(text).filter(|n| *n == 2).map(|_| failed()));
    let bank = scripted.bank(&place).await;
    for _ in 0..5 {
        backfill(&bank).await.unwrap();
        place.clock.advance(Duration::from_secs(3600));
    }
    assert_eq!((failed_rows(&bank).await[&2].attempts, failed_rows(&bank).await[&2].next_attempt_at), (5, None));
    bank.retry(FailedChunks::default()).await.unwrap();
    backfill(&bank).await.unwrap();
    let row = &failed_rows(&bank).await[&2];
    assert_eq!((row.attempts, row.next_attempt_at.is_some()), (1, true));
}

/// Counts as the fake does, and panics where it meets the word.
struct Fragile(Arc<dyn TokenCounter>);

impl TokenCounter for Fragile {
    fn count_tokens(&self, text: &str) -> usize {
        assert!(!text.contains("kryptonite"), "not this word");
        self.0.count_tokens(text)
    }

    fn max_text_tokens(&self) -> usize {
        self.0.max_text_tokens()
    }
}

struct FragileEmbedder(FakeEmbedder);

#[async_trait::async_trait]
impl Embedder for FragileEmbedder {
    fn identity(&self) -> &EmbedderIdentity {
        self.0.identity()
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        Ok(Arc::new(Fragile(self.0.token_counter()?)))
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        self.0.embed(kind, texts).await
    }
}

#[tokio::test]
async fn a_panic_while_a_file_is_read_or_cut_costs_that_file_alone() {
    let place = Place::with_documents(6);
    // Long enough that they have to be measured, and one of them to be read twice.
    let long = |word: &str, sentences: usize| {
        format!("{}{word} at the end.\n", (0..sentences).map(sentence).collect::<String>())
    };
    place.write("bad.txt", &long("kryptonite", 200));
    place.write("large.txt", &long("kryptonite", 100_000));
    place.write("bad.html", &format!("<p>{}</p>", long("kryptonite", 200)));
    place.write("good.txt", &long("granite", 200));
    let record = |text: &str| serde_json::json!({ "text": text }).to_string();
    place.write("bad.jsonl", &[record("first"), record(&long("kryptonite", 200)), record("last")].join("\n"));
    let embedder = Arc::new(FragileEmbedder(place.fake.clone()));
    let bank = Bank::open_or_create(place.bank_dir(), embedder, place.options()).await.unwrap();
    let report = bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let mut skipped: Vec<_> = report.skipped.iter().map(|s| s.path.rsplit('/').next().unwrap().to_owned()).collect();
    skipped.sort();
    assert_eq!(skipped, ["bad.html", "bad.jsonl", "bad.txt", "large.txt"]);
    assert!(report.skipped.iter().all(|s| s.reason.to_string().contains("panicked: not this word")), "{report:?}");
    let paths: HashSet<_> = bank.contents().await.unwrap().documents.into_iter().map(|row| row.doc_path).collect();
    assert!(paths.contains("good.txt") && paths.len() == 6 + 1 + 1, "{paths:?}");
    // Nothing of it is held against the bank, and what is whole is embedded.
    assert_eq!(backfill(&bank).await.unwrap().failed, 0);
    assert_eq!(bank.ingest(&[place.docs()], Default::default()).await.unwrap().removed, 0);
}
