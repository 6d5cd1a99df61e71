//! The remote embedder under a bank: 20,000 rows through a provider that misbehaves, crashes in between, and caps.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embank::embed::remote::{Price, RemoteEmbedder, RemoteOptions, SpendCaps};
use embank::{BackfillOptions, Bank, BankContents, ChunkState, Error, RetryErrors};

use crate::harness::Place;
use crate::remote::{MORNING, options};
use crate::remote_server::{Act, Seen, Server, SkippingTimer, unit_vector_of};

const D: usize = 16;
const ROWS: usize = 20_000;
/// Texts of one request, and requests at once: a call of the embedder has their product.
const BATCH: usize = 32;
const CONCURRENT: usize = 4;
/// Calls that a backfill has under way.
const CALLS: usize = 2;

const DAY: Duration = Duration::from_secs(86_400);

fn remote(server: &Server, caps: SpendCaps, timer: SkippingTimer) -> RemoteOptions {
    let mut options = options(server);
    options.batch.texts = NonZeroUsize::new(BATCH).unwrap();
    options.providers[0].max_concurrent = NonZeroUsize::new(CONCURRENT).unwrap();
    options.providers[0].price = Some(Price { per_million_tokens: 0.02 });
    options.caps = caps;
    options.timer = Arc::new(timer);
    options
}

async fn open(place: &Place, options: RemoteOptions) -> Bank {
    let embedder = RemoteEmbedder::open(options).unwrap();
    Bank::open_or_create(place.bank_dir(), Arc::new(embedder), place.options()).await.unwrap()
}

/// Every row is there, ready, with the vector that the server computes for its text.
fn assert_whole(contents: &BankContents, rows: usize) {
    assert_eq!(contents.documents.len(), rows);
    assert!(contents.status.iter().all(|(_, state, _)| *state == ChunkState::Ready));
    assert_eq!((contents.status.len(), contents.embeddings.len()), (rows, rows));
    let texts: HashMap<_, _> = contents.documents.iter().map(|row| (&row.id, &row.content)).collect();
    for (id, _, vector) in &contents.embeddings {
        let expected = unit_vector_of(texts[id], D);
        assert!(vector.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{id} has another vector");
    }
}

/// splitmix64: which misfortune a request meets.
fn dice(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 10 % throttled, 5 % failing, and now and then everything else that a provider does.
fn misfortune(seen: &Seen) -> Act {
    let busy = |status| Act::Status(status, Vec::new(), "busy".into());
    match (seen.number, dice(seen.number) % 100) {
        // Few: these wait for real time-outs.
        (50 | 300 | 550, _) => Act::Hang,
        (100 | 400, _) => Act::Drip,
        (_, 0..5) => Act::Status(429, vec![("Retry-After", "2".into())], String::new()),
        (_, 5..10) => Act::Status(429, Vec::new(), String::new()),
        (_, 10..13) => busy(503),
        (_, 13..15) => busy(500),
        (_, 15) => Act::CutJson,
        (_, 16) => Act::CutConnection,
        (_, 17) => Act::WrongCount,
        (_, 18) => Act::Body("<html>gateway</html>".into()),
        (_, 19..21) => Act::NotANumber(|text| text.len() % 16 == 3),
        (_, 21..23) => Act::WrongDimension(|text| text.len() % 16 == 5),
        (_, 23..40) => Act::Shuffle,
        _ => Act::Answer,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_rows_pass_a_bad_provider_with_none_lost_and_none_paid_twice() {
    let place = Place::with_records(ROWS);
    let server = Server::start(D, misfortune);
    let mut options = remote(&server, SpendCaps::default(), SkippingTimer::at(MORNING));
    options.request_timeout = Duration::from_secs(2);
    options.retry.attempts = NonZeroU32::new(8).unwrap();
    let bank = open(&place, options).await;
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let first = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert!(first.failed > 0 && first.ready + first.failed == ROWS as u64, "{first:?}");
    for _ in 0..5 {
        // Texts with a bad vector are due again after a pause; of 20,000 one may meet with misfortune twice, and is parked.
        place.clock.advance(Duration::from_secs(7200));
        bank.backfill(BackfillOptions { errors: RetryErrors::Now, ..Default::default() }).await.unwrap();
    }
    assert_whole(&bank.contents().await.unwrap(), ROWS);
    let books = server.books();
    // The plain sentence that tells a bad text from a bad provider is none of the bank's.
    let answered: Vec<_> = books.answered.iter().filter(|(text, _)| text.starts_with("note ")).collect();
    assert_eq!(answered.len(), ROWS);
    let twice: Vec<_> = answered.into_iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{} texts with a good answer were paid for again, {:?}", twice.len(), twice.first());
    assert!(!books.botched.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_cap_stops_the_run_without_failing_a_row_and_the_next_day_goes_on() {
    let rows = 2000;
    let place = Place::with_records(rows);
    let server = Server::honest(D);
    let timer = SkippingTimer::at(MORNING);
    let caps = SpendCaps { day_cost: Some(0.000_4), ..SpendCaps::default() };
    // What 0.0004 buys at 0.02 for a million tokens.
    let tokens_a_day = 20_000;
    let bank = open(&place, remote(&server, caps, timer.clone())).await;
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();

    let estimate = bank.backfill_estimate().await.unwrap();
    assert_eq!((estimate.texts, server.requests()), (rows as u64, 0), "an estimate sends nothing");
    let (mut days, mut billed) = (0, 0);
    loop {
        let result = bank.backfill(BackfillOptions::default()).await;
        days += 1;
        let today = server.books().tokens - billed;
        billed += today;
        assert!(today <= tokens_a_day, "{today} tokens on day {days}");
        match result {
            Ok(_) => break,
            Err(Error::SpendCapReached { scope: "day", .. }) => timer.advance(DAY),
            Err(other) => panic!("{other}"),
        }
        assert!(bank.errors(1).await.unwrap().is_empty(), "no row is to blame");
        assert!(today > tokens_a_day / 2, "the cap is made use of");
        // The claims of the stopped run are given back, or run out.
        place.clock.advance(Duration::from_secs(600));
    }
    assert!(days >= 2, "{days} days");
    assert_whole(&bank.contents().await.unwrap(), rows);
    assert!(server.books().answered.values().all(|times| *times == 1), "stopping lost nothing that was paid for");
    assert_eq!(bank.backfill_estimate().await.unwrap().texts, 0);
}

const BANK: &str = "EMBANK_TEST_REMOTE_BANK";
const URL: &str = "EMBANK_TEST_REMOTE_URL";
const CAP: &str = "EMBANK_TEST_REMOTE_CAP";

/// The process that `kills_lose_nothing…` starts and kills; by itself it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of another test, which starts it"]
async fn a_child_that_embeds() {
    let (Ok(bank), Ok(url), Ok(cap)) = (std::env::var(BANK), std::env::var(URL), std::env::var(CAP)) else { return };
    let mut options = RemoteOptions::new("test-model", D, url);
    options.batch.texts = NonZeroUsize::new(BATCH).unwrap();
    options.providers[0].max_concurrent = NonZeroUsize::new(CONCURRENT).unwrap();
    options.caps = SpendCaps { run_tokens: Some(cap.parse().unwrap()), ..SpendCaps::default() };
    options.run = Some("the run".into());
    let embedder = Arc::new(RemoteEmbedder::open(options).unwrap());
    let bank = Bank::open(bank, embedder, Place::empty().options()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
}

fn child(place: &Place, server: &Server, cap: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["remote_bank::a_child_that_embeds", "--exact", "--ignored"])
        .env(BANK, place.bank_dir())
        .env(URL, server.base_url())
        .env(CAP, cap.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_pay_twice_only_what_was_under_way_and_stay_below_the_cap() {
    const KILLS: usize = 6;
    let place = Place::with_records(ROWS);
    // The server holds its answer and tells when the request with a given number comes: the moment of the next kill.
    let (tell, told) = std::sync::mpsc::channel();
    let (next_kill, tell) = (Arc::new(AtomicU64::new(u64::MAX)), Mutex::new(tell));
    let server = {
        let next_kill = next_kill.clone();
        Server::start(D, move |seen| {
            if seen.number == next_kill.load(Ordering::SeqCst) {
                tell.lock().unwrap().send(()).unwrap();
                return Act::Hang;
            }
            Act::Answer
        })
    };
    let bank = open(&place, remote(&server, SpendCaps::default(), SkippingTimer::at(MORNING))).await;
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let estimate = bank.backfill_estimate().await.unwrap();
    drop(bank);
    // Room for what kills leave set aside.
    let cap = estimate.tokens * 2;

    for kill in 0..KILLS {
        next_kill.store(server.requests() + 20 + 13 * kill as u64, Ordering::SeqCst);
        let mut running = child(&place, &server, cap);
        told.recv().unwrap();
        running.kill().unwrap();
        running.wait().unwrap();
    }
    next_kill.store(u64::MAX, Ordering::SeqCst);
    // A cap that binds, on top of what the kills left set aside: it stops the run, and is not passed.
    let tight = server.books().tokens + 20_000;
    assert!(!child(&place, &server, tight).wait().unwrap().success());
    assert!(server.books().tokens <= tight, "{} of {tight} tokens", server.books().tokens);
    assert!(server.books().answered.len() < ROWS, "the cap left something undone");
    assert!(child(&place, &server, cap).wait().unwrap().success());

    let bank = open(&place, remote(&server, SpendCaps::default(), SkippingTimer::at(MORNING))).await;
    assert_whole(&bank.contents().await.unwrap(), ROWS);
    let books = server.books();
    assert_eq!(books.answered.len(), ROWS);
    let again: usize = books.answered.values().map(|times| *times as usize - 1).sum();
    assert!(again <= KILLS * CALLS * CONCURRENT * BATCH, "{again} texts were paid for again");
    assert!(books.tokens <= cap, "{} of {cap} tokens", books.tokens);

    // The ledger has seen all of it, and nothing more than kills can leave: each at most its calls, at a token a byte.
    let spending = RemoteEmbedder::open(RemoteOptions {
        run: Some("the run".into()),
        ..remote(&server, SpendCaps { run_tokens: Some(cap), ..SpendCaps::default() }, SkippingTimer::at(MORNING))
    })
    .unwrap();
    let spending_bank = Bank::open(place.bank_dir(), Arc::new(spending.clone()), place.options()).await.unwrap();
    let counted = spending.spending().await.unwrap().run.tokens;
    drop(spending_bank);
    let left_over = (KILLS * CALLS * CONCURRENT * BATCH * 128) as u64;
    assert!((books.tokens..=books.tokens + left_over).contains(&counted), "{counted} counted, {} billed", books.tokens);
}
