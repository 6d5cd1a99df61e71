//! The remote embedder against a scripted provider: each way in which a provider misbehaves, and what becomes of the texts.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use embank::embed::remote::{
    ApiKey, Price, ProviderOptions, RateLimits, RemoteEmbedder, RemoteOptions, RequestDimension, SpendCaps,
    SpendLedger, Timer,
};
use embank::embed::{Embedded, Embedder, TextKind, check_conformance};
use embank::{Error, FailureKind, Timestamp};

use crate::remote_server::{Act, Seen, Server, SkippingTimer, unit_vector_of};

const D: usize = 16;

/// Ten past midnight, UTC, on a day in 2026.
pub const MORNING: Timestamp = Timestamp(20_600 * 86_400_000_000 + 600_000_000);

/// Options of a patient client: time is skipped, 8 texts a request, at most 3 requests at once.
pub fn options(server: &Server) -> RemoteOptions {
    let mut options = RemoteOptions::new("test-model", D, server.base_url());
    options.timer = Arc::new(SkippingTimer::at(MORNING));
    options.seed = Some(7);
    options.batch.texts = NonZeroUsize::new(8).unwrap();
    // Real time, which only the tests of time-outs wait for.
    options.request_timeout = Duration::from_secs(20);
    options.providers[0].max_concurrent = NonZeroUsize::new(3).unwrap();
    options
}

fn open(server: &Server) -> RemoteEmbedder {
    RemoteEmbedder::open(options(server)).unwrap()
}

fn is_fatal(error: &Error) -> bool {
    error.failure_kind() == FailureKind::Fatal
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("text number {n}")).collect()
}

async fn embed(embedder: &RemoteEmbedder, texts: &[String]) -> embank::Result<Vec<Embedded>> {
    embedder.embed(TextKind::Passage, texts).await
}

/// Each text has its own vector, as the server computes it, scaled to unit norm.
fn assert_right(texts: &[String], answers: &[Embedded]) {
    assert_eq!(answers.len(), texts.len());
    for (text, answer) in texts.iter().zip(answers) {
        let expected = unit_vector_of(text, D);
        let far = answer.vector.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-6);
        assert!(!far && answer.vector.len() == D, "{text} has another vector");
    }
}

fn status(status: u16) -> Act {
    Act::Status(status, Vec::new(), format!(r#"{{"error":{{"message":"scripted {status}"}}}}"#))
}

/// The error with its causes.
fn chain(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

#[tokio::test]
async fn the_remote_embedder_conforms() {
    let server = Server::honest(D);
    let mut options = options(&server);
    options.max_tokens = 256;
    options.query_prefix = "query: ".into();
    assert_eq!(check_conformance(&RemoteEmbedder::open(options).unwrap()).await, Ok(()));
}

#[tokio::test]
async fn answers_come_in_order_in_either_encoding_however_the_provider_sorts_them() {
    for refuses_base64 in [false, true] {
        let server = Server::start(D, move |seen| {
            if refuses_base64 && seen.body["encoding_format"] == "base64" { status(400) } else { Act::Shuffle }
        });
        let embedder = open(&server);
        let texts = texts(50);
        assert_right(&texts, &embed(&embedder, &texts).await.unwrap());
        assert!(server.most_concurrent() <= 3);
        let books = server.books();
        assert!(books.answered.len() == 50 && books.answered.values().all(|times| *times == 1));
    }
}

#[tokio::test]
async fn a_request_says_model_dimensions_and_key_and_nothing_else_shows_the_key() {
    let server = Server::start(D, |seen| {
        if seen.number == 0 { Act::Status(400, vec![], "bad key sk-very-secret".into()) } else { Act::Answer }
    });
    let mut options = options(&server);
    options.request_dimension = RequestDimension::Send;
    options.providers[0].key = Some(ApiKey::new("sk-very-secret").unwrap());
    options.providers[0].model = Some("alias".into());
    assert!(!format!("{:?}", options.providers).contains("very-secret"));
    let embedder = RemoteEmbedder::open(options).unwrap();
    let texts = texts(3);
    embed(&embedder, &texts).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].headers["authorization"], "Bearer sk-very-secret");
    assert_eq!((&seen[0].body["model"], &seen[0].body["dimensions"]), (&"alias".into(), &D.into()));
    assert_eq!(
        (&seen[0].body["encoding_format"], &seen[1].body["encoding_format"]),
        (&"base64".into(), &"float".into())
    );

    let repeats = Server::start(D, |_| Act::Status(401, vec![], r#"{"error":"no such key: sk-very-secret"}"#.into()));
    let mut options = self::options(&repeats);
    options.providers[0].key = Some(ApiKey::new("sk-very-secret").unwrap());
    let refused = embed(&RemoteEmbedder::open(options).unwrap(), &texts).await.unwrap_err();
    assert!(chain(&refused).contains("no such key: [hidden key]"), "{}", chain(&refused));
}

#[tokio::test]
async fn a_throttled_request_waits_as_long_as_it_is_told_and_costs_no_attempt() {
    let date = "Wed, 27 May 2026 00:20:00 GMT";
    for (retry_after, at_least) in [("30", 30), (date, 600), ("", 1)] {
        let server = Server::start(D, move |seen| match seen.number {
            0..8 => Act::Status(429, vec![("Retry-After", retry_after.into())], "slow down".into()),
            _ => Act::Answer,
        });
        let mut options = options(&server);
        let timer = SkippingTimer::at(MORNING);
        options.timer = Arc::new(timer.clone());
        options.retry.attempts = NonZeroU32::MIN;
        options.retry.total_wait = Duration::from_secs(3600);
        let texts = texts(4);
        assert_right(&texts, &embed(&RemoteEmbedder::open(options).unwrap(), &texts).await.unwrap());
        assert_eq!(server.requests(), 9);
        let waited = timer.elapsed().as_secs();
        assert!((at_least..at_least * 8 + 700).contains(&waited), "{retry_after}: {waited} s");
    }
}

#[tokio::test]
async fn a_provider_that_throttles_for_ever_is_given_up_after_the_total_wait() {
    let server = Server::start(D, |_| Act::Status(429, vec![("Retry-After", "50".into())], String::new()));
    let mut options = options(&server);
    let timer = SkippingTimer::at(MORNING);
    options.timer = Arc::new(timer.clone());
    let error = embed(&RemoteEmbedder::open(options).unwrap(), &texts(1)).await.unwrap_err();
    assert!(matches!(error, Error::ProviderUnavailable { .. }) && is_fatal(&error), "{error}");
    assert!(timer.elapsed() <= Duration::from_secs(600));
    assert!((11..=13).contains(&server.requests()));
}

#[tokio::test]
async fn passing_failures_of_every_kind_are_repeated_and_no_answer_is_lost_or_swapped() {
    let kinds: [fn() -> Act; 11] = [
        || status(500),
        || status(503),
        || status(408),
        || status(429),
        || Act::CutJson,
        || Act::CutConnection,
        || Act::WrongCount,
        || Act::Body("<html>busy</html>".into()),
        || Act::Body(r#"{"error":{"message":"overloaded"}}"#.into()),
        || Act::Oversized(300_000),
        || Act::Body(r#"{"data":[{"index":5,"embedding":[0.5]}]}"#.into()),
    ];
    for (number, kind) in kinds.iter().enumerate() {
        let kind = *kind;
        // Two of three requests fail.
        let server = Server::start(D, move |seen| if seen.number % 3 < 2 { kind() } else { Act::Answer });
        let mut options = options(&server);
        options.retry.attempts = NonZeroU32::new(50).unwrap();
        options.breaker.failures = NonZeroU32::new(100).unwrap();
        let texts = texts(40);
        let answers = embed(&RemoteEmbedder::open(options).unwrap(), &texts).await.unwrap();
        assert_right(&texts, &answers);
        let books = server.books();
        assert!(books.answered.values().all(|times| *times == 1), "kind {number}: a good answer was paid for twice");
    }
}

#[tokio::test]
async fn a_provider_that_hangs_or_drips_is_left_after_the_time_out() {
    let server = Server::start(D, |seen| match seen.number {
        0 => Act::Hang,
        1 => Act::Drip,
        _ => Act::Answer,
    });
    let mut options = options(&server);
    options.request_timeout = Duration::from_millis(300);
    options.retry.attempts = NonZeroU32::new(50).unwrap();
    let texts = texts(3);
    assert_right(&texts, &embed(&RemoteEmbedder::open(options).unwrap(), &texts).await.unwrap());
    assert!(server.requests() >= 3);
}

#[tokio::test]
async fn a_bad_vector_costs_its_text_alone() {
    let is_picked: fn(&str) -> bool = |text| text.ends_with('3');
    for act in [Act::NotANumber(is_picked), Act::WrongDimension(is_picked)] {
        let server = Server::start(D, move |_| act.clone());
        let texts = texts(30);
        let answers = embed(&open(&server), &texts).await.unwrap();
        let (bad, good): (Vec<_>, Vec<_>) = texts.into_iter().zip(answers).partition(|(text, _)| is_picked(text));
        assert_eq!(bad.len(), 3);
        assert!(bad.iter().all(|(_, answer)| answer.vector.len() != D || answer.vector.iter().any(|x| x.is_nan())));
        let (texts, answers): (Vec<_>, Vec<_>) = good.into_iter().unzip();
        assert_right(&texts, &answers);
        assert_eq!(server.requests(), 4, "nothing was asked again");
    }
}

#[tokio::test]
async fn a_model_of_another_dimension_stops_at_the_first_answer() {
    let server = Server::honest(D + 1);
    let error = embed(&open(&server), &texts(100)).await.unwrap_err();
    assert!(error.to_string().contains("17 dimensions, 16 are promised") && is_fatal(&error), "{error}");
    assert!(server.requests() <= 3, "those that were under way already");
}

#[tokio::test]
async fn a_text_that_the_provider_rejects_fails_and_halving_pays_for_no_other_text_again() {
    let server = Server::start(D, |seen| {
        if seen.inputs.iter().any(|text| text == "text number 5") { status(400) } else { Act::Answer }
    });
    let embedder = open(&server);
    let texts = texts(64);
    // As a backfill does.
    async fn halve(embedder: &RemoteEmbedder, texts: &[String], failed: &mut Vec<String>) {
        match embed(embedder, texts).await {
            Ok(answers) => assert_right(texts, &answers),
            Err(error) => {
                assert!(
                    matches!(error, Error::TextRefused { .. }) && error.failure_kind() == FailureKind::Permanent,
                    "{error}"
                );
                assert!(chain(&error).contains("status 400: scripted 400"), "{}", chain(&error));
                if let [text] = texts {
                    return failed.push(text.clone());
                }
                let (left, right) = texts.split_at(texts.len() / 2);
                Box::pin(halve(embedder, left, failed)).await;
                Box::pin(halve(embedder, right, failed)).await;
            }
        }
    }
    let mut failed = Vec::new();
    halve(&embedder, &texts, &mut failed).await;
    assert_eq!(failed, ["text number 5"]);
    let books = server.books();
    assert_eq!(books.answered.len(), 63);
    assert!(books.answered.values().all(|times| *times == 1));
}

#[tokio::test]
async fn a_refusal_stops_at_once_names_its_reason_and_keeps_what_was_paid_for() {
    let quota = r#"{"error":{"message":"out of credit","code":"insufficient_quota"}}"#;
    for (code, body) in [(401, "{}"), (403, "{}"), (404, "{}"), (402, "{}"), (302, "{}"), (429, quota)] {
        let server =
            Server::start(
                D,
                move |seen| {
                    if seen.number < 2 { Act::Answer } else { Act::Status(code, vec![], body.into()) }
                },
            );
        let mut options = options(&server);
        options.providers[0].max_concurrent = NonZeroUsize::MIN;
        let embedder = RemoteEmbedder::open(options).unwrap();
        let texts = texts(64);
        let error = embed(&embedder, &texts).await.unwrap_err();
        assert!(matches!(error, Error::ProviderRefused { status, .. } if status == code), "{error}");
        assert!(is_fatal(&error));
        assert_eq!(server.requests(), 3);
        let kept = embedder.kept_answers(TextKind::Passage, &texts);
        let kept: Vec<_> = texts.iter().zip(kept).filter_map(|(text, answer)| Some((text.clone(), answer?))).collect();
        let (kept_texts, answers): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        assert_eq!(kept_texts.len(), 16, "two requests were answered");
        assert_right(&kept_texts, &answers);
    }
}

#[tokio::test]
async fn a_provider_that_rejects_everything_is_no_matter_of_the_texts() {
    let server = Server::start(D, |_| status(422));
    let embedder = open(&server);
    let mut errors = Vec::new();
    for text in texts(200) {
        errors.push(embed(&embedder, &[text]).await.unwrap_err());
        if is_fatal(errors.last().unwrap()) {
            break;
        }
    }
    assert!(matches!(errors.last(), Some(Error::ProviderRefused { status: 422, .. })));
    assert!(errors.len() < 70);
}

#[tokio::test]
async fn an_outage_opens_the_circuit_and_a_probe_closes_it() {
    let is_down = Arc::new(AtomicBool::new(true));
    let probes = Arc::new(AtomicU32::new(0));
    let server = {
        let (is_down, probes) = (is_down.clone(), probes.clone());
        Server::start(D, move |_| {
            if !is_down.load(Ordering::SeqCst) {
                return Act::Answer;
            }
            // After twelve failures it comes back.
            if probes.fetch_add(1, Ordering::SeqCst) == 11 {
                is_down.store(false, Ordering::SeqCst);
            }
            status(503)
        })
    };
    let mut options = options(&server);
    options.retry.attempts = NonZeroU32::new(50).unwrap();
    let timer = SkippingTimer::at(MORNING);
    options.timer = Arc::new(timer.clone());
    let texts = texts(16);
    assert_right(&texts, &embed(&RemoteEmbedder::open(options).unwrap(), &texts).await.unwrap());
    // The tenth failure opens it; until it is back it is asked once a pause, of 15 s and more.
    assert!((12..=16).contains(&(server.requests() - 2)), "{}", server.requests());
    assert!(timer.elapsed() >= Duration::from_secs(15));
}

#[tokio::test]
async fn an_outage_without_end_stops_and_what_follows_stops_too() {
    let server = Server::start(D, |_| status(503));
    let embedder = open(&server);
    for _ in 0..3 {
        let error = embed(&embedder, &texts(24)).await.unwrap_err();
        assert!(matches!(error, Error::ProviderUnavailable { .. }) && is_fatal(&error), "{error}");
    }
    let nobody = RemoteOptions {
        timer: Arc::new(SkippingTimer::at(MORNING)),
        ..RemoteOptions::new("m", D, "http://127.0.0.1:1/v1")
    };
    let error = embed(&RemoteEmbedder::open(nobody).unwrap(), &texts(1)).await.unwrap_err();
    assert!(chain(&error).contains("cannot be reached"), "{}", chain(&error));
}

#[tokio::test]
async fn the_next_provider_of_the_chain_is_asked_while_the_first_is_down_or_refuses() {
    for act in [status(503), status(401)] {
        let is_up = Arc::new(AtomicBool::new(false));
        let first = {
            let (is_up, act) = (is_up.clone(), act.clone());
            Server::start(D, move |_| if is_up.load(Ordering::SeqCst) { Act::Answer } else { act.clone() })
        };
        let second = Server::honest(D);
        let mut options = options(&first);
        let timer = SkippingTimer::at(MORNING);
        options.timer = Arc::new(timer.clone());
        options.providers.push(ProviderOptions::new(second.base_url()));
        let embedder = RemoteEmbedder::open(options).unwrap();
        let before = texts(40);
        assert_right(&before, &embed(&embedder, &before).await.unwrap());
        assert_eq!((first.books().answered.len(), second.books().answered.len()), (0, 40));
        // Once the circuit lets a probe through, the first one is asked again.
        is_up.store(true, Ordering::SeqCst);
        timer.advance(Duration::from_secs(3600));
        let after: Vec<String> = (0..40).map(|n| format!("later text {n}")).collect();
        assert_right(&after, &embed(&embedder, &after).await.unwrap());
        assert!(first.books().answered.len() >= 8, "the probe and those after it");
    }
}

#[tokio::test]
async fn limits_per_minute_hold_over_concurrent_calls() {
    let server = Server::honest(D);
    let mut options = options(&server);
    let timer = SkippingTimer::at(MORNING);
    options.timer = Arc::new(timer.clone());
    options.batch.texts = NonZeroUsize::MIN;
    options.providers[0].limits = RateLimits { requests_per_minute: NonZeroU32::new(60), ..RateLimits::default() };
    let embedder = RemoteEmbedder::open(options).unwrap();
    let texts = texts(240);
    let (left, right) = texts.split_at(120);
    let (left, right) = tokio::join!(embed(&embedder, left), embed(&embedder, right));
    assert_eq!(left.unwrap().len() + right.unwrap().len(), 240);
    // 3 at once, then one a second.
    assert!(timer.elapsed() >= Duration::from_secs(236));
}

/// A ledger in memory.
#[derive(Default)]
pub struct Memory(Mutex<Option<String>>);

#[async_trait]
impl SpendLedger for Memory {
    async fn read(&self) -> embank::Result<Option<String>> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn replace(&self, expected: Option<&str>, new: &str) -> embank::Result<bool> {
        let mut text = self.0.lock().unwrap();
        let is_same = text.as_deref() == expected;
        if is_same {
            *text = Some(new.to_owned());
        }
        Ok(is_same)
    }
}

#[tokio::test]
async fn the_cap_is_used_up_and_not_passed_and_the_ledger_says_what_was_billed() {
    for misbehave in
        [|_: &Seen| Act::Answer, |seen: &Seen| if seen.number.is_multiple_of(4) { Act::CutJson } else { Act::Answer }]
    {
        let server = Server::start(D, misbehave);
        let mut options = options(&server);
        options.caps = SpendCaps { day_tokens: Some(1000), day_cost: Some(1.0), ..SpendCaps::default() };
        options.providers[0].price = Some(Price { per_million_tokens: 0.5 });
        let embedder = RemoteEmbedder::open(options).unwrap();
        embedder.attach_ledger(Arc::new(Memory::default()));
        let texts = texts(1000);
        let error = embed(&embedder, &texts).await.unwrap_err();
        assert!(matches!(error, Error::SpendCapReached { scope: "day", .. }) && is_fatal(&error), "{error}");
        let (books, spending) = (server.books(), embedder.spending().await.unwrap());
        // What is left is less than a request might cost: 8 texts of at most 15 bytes and 8 tokens of headroom each.
        assert!(books.tokens <= 1000, "{} tokens were billed", books.tokens);
        assert!(spending.today.tokens >= books.tokens && spending.today.tokens > 1000 - 8 * 23);
        if books.botched.is_empty() {
            assert_eq!(spending.today.tokens, books.tokens, "the ledger is exact");
            assert_eq!(spending.today.picos, books.tokens * 500_000);
        }
        let kept = embedder.kept_answers(TextKind::Passage, &texts).into_iter().flatten().count();
        assert_eq!(kept, books.answered.len(), "all that was paid for is at hand");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_sends_no_more_and_its_answers_serve_the_next_one() {
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = Server::start(D, move |seen| {
        let _ = arrived.send(seen.number);
        // The first three are held until the caller is gone.
        if seen.number < 3 {
            released.lock().unwrap().recv().unwrap();
        }
        Act::Answer
    });
    let mut options = options(&server);
    options.caps = SpendCaps { run_tokens: Some(1_000_000), ..SpendCaps::default() };
    let embedder = RemoteEmbedder::open(options).unwrap();
    embedder.attach_ledger(Arc::new(Memory::default()));
    let texts = texts(800);
    let call = tokio::spawn({
        let (embedder, texts) = (embedder.clone(), texts.clone());
        async move { embed(&embedder, &texts).await }
    });
    for _ in 0..3 {
        arrivals.recv().await.unwrap();
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    (0..3).for_each(|_| release.send(()).unwrap());
    // The task of the call settles its account last.
    while embedder.spending().await.unwrap().run.tokens != server.books().tokens {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.requests(), 3);
    assert_right(&texts, &embed(&embedder, &texts).await.unwrap());
    let books = server.books();
    assert!(books.answered.len() == 800 && books.answered.values().all(|times| *times == 1), "nothing was paid twice");
}

#[tokio::test]
async fn an_estimate_sends_nothing_and_is_near_the_bill() {
    let server = Server::honest(D);
    let mut options = options(&server);
    options.providers[0].price = Some(Price { per_million_tokens: 0.02 });
    let embedder = RemoteEmbedder::open(options).unwrap();
    let texts = texts(100);
    let estimate = embedder.estimate(TextKind::Passage, &texts).unwrap();
    assert_eq!((server.requests(), estimate.texts), (0, 100));
    embed(&embedder, &texts).await.unwrap();
    let billed = server.books().tokens;
    assert!((billed..3 * billed).contains(&estimate.tokens), "{} for {billed}", estimate.tokens);
    assert!((estimate.cost - estimate.tokens as f64 * 0.02e-6).abs() < 1e-12);
}
