//! A bank on a schedule: months in seconds, by a clock that tests move.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::progress::Cancel;
use embank::{
    Bank, BankOptions, BuildOptions, Clock, CronSchedule, IndexKind, IndexOutcome, ScheduleOptions, Scheduler,
    TickOutcome, TickReport,
};
use tokio::sync::Notify;

use crate::harness::{Place, sentence};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// From the harness's moment to 2026-10-10T00:00:00Z; clocks in Berlin change on the 25th.
const UNTIL_OCTOBER: Duration = Duration::from_secs(11_590_400);

fn nightly() -> CronSchedule {
    CronSchedule::parse("30 2 * * *", Some("Europe/Berlin")).unwrap()
}

fn options(place: &Place) -> ScheduleOptions {
    ScheduleOptions { sources: vec![place.docs()], ..ScheduleOptions::new(nightly()) }
}

#[tokio::test]
async fn a_month_of_nights_has_one_step_each_whatever_clocks_do_and_one_for_those_that_were_slept_through() {
    let place = Place::with_documents(12);
    place.clock.advance(UNTIL_OCTOBER);
    let cancel = Cancel::default();
    let bank_options = BankOptions { cancel: cancel.clone(), ..place.options() };
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(place.fake.clone()), bank_options).await.unwrap();
    let mut scheduler = Scheduler::new(bank.clone(), options(&place)).await.unwrap();
    assert!(scheduler.tick_if_due().await.unwrap().is_none(), "the first run is the next one that is due");

    let mut ticks: Vec<TickReport> = Vec::new();
    place.clock.advance(DAY);
    scheduler
        .run(|tick| {
            ticks.push(tick.clone());
            match ticks.len() {
                5 => place.write("new.txt", &sentence(900)),
                27 => cancel.cancel(),
                _ => {}
            }
            // The machine sleeps for three nights once.
            place.clock.advance(if ticks.len() == 9 { 4 * DAY } else { DAY });
        })
        .await
        .unwrap();

    let dues: Vec<_> = ticks.iter().map(|tick| tick.due.as_str()).collect();
    let days = (10..=18).chain(19..=19).chain(23..=39).map(|day| {
        // 02:30 in Berlin is 00:30 UTC in summer and 01:30 in winter; on the 25th it comes twice, and counts once.
        let hour = if day <= 25 { 0 } else { 1 };
        let (month, day) = if day <= 31 { (10, day) } else { (11, day - 31) };
        format!("2026-{month}-{day:02}T{hour:02}:30:00Z")
    });
    assert_eq!(dues, days.collect::<Vec<_>>());
    let coalesced: Vec<_> = ticks.iter().map(|tick| tick.coalesced).collect();
    assert_eq!((coalesced[9], coalesced.iter().sum::<u64>()), (3, 3), "{coalesced:?}");
    let done: Vec<_> = (0..27).filter(|n| ticks[*n].outcome == TickOutcome::Done).collect();
    assert_eq!(done, [0, 5], "only the nights that found something to do");
    assert!(ticks.iter().all(|tick| matches!(tick.outcome, TickOutcome::Done | TickOutcome::Idle)));

    let runs = bank.runs().await.unwrap();
    let outcomes: Vec<_> = runs.iter().filter(|run| run.kind == "schedule").map(|run| run.outcome.as_str()).collect();
    assert_eq!(outcomes, ticks.iter().map(|tick| tick.outcome.label()).collect::<Vec<_>>());
    let tables = bank.status().await.unwrap().tables;
    assert!(tables.iter().all(|table| table.fragments < 40), "a schedule tidies after itself: {tables:?}");

    // Another process that takes the schedule over a week later has one step to make up for, and then waits.
    place.clock.advance(6 * DAY);
    cancel_free(&place, 7).await;
}

/// A schedule of a new handle: what it makes up for.
async fn cancel_free(place: &Place, missed: u64) {
    let mut scheduler = Scheduler::new(place.bank().await, options(place)).await.unwrap();
    let tick = scheduler.tick_if_due().await.unwrap().unwrap();
    assert_eq!((tick.coalesced + 1, tick.outcome), (missed, TickOutcome::Idle));
    assert!(scheduler.tick_if_due().await.unwrap().is_none());
}

#[tokio::test]
async fn jitter_puts_a_run_off_by_no_more_than_it_says_and_as_the_seed_says() {
    let place = Place::with_documents(1);
    let bank = place.bank().await;
    let due = async |jitter: Duration, seed: u64| {
        let options = ScheduleOptions { jitter, seed: Some(seed), ..options(&place) };
        Scheduler::new(bank.clone(), options).await.unwrap().next_due().unwrap()
    };
    let sharp = due(Duration::ZERO, 1).await;
    let mut seen = Vec::new();
    for seed in 0..20 {
        let off = due(DAY, seed).await;
        assert_eq!(off, due(DAY, seed).await);
        assert!(off >= sharp && off.since(sharp) <= DAY);
        seen.push(off);
    }
    seen.dedup();
    assert!(seen.len() > 15, "{seen:?}");
}

/// An embedder that stops in its first call until it is told to go on.
struct Halting {
    fake: FakeEmbedder,
    entered: Arc<Notify>,
    go_on: Arc<Notify>,
}

#[async_trait::async_trait]
impl Embedder for Halting {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        self.entered.notify_one();
        self.go_on.notified().await;
        self.go_on.notify_one();
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn of_two_schedules_one_does_a_step_at_a_time_and_the_other_says_that_it_is_busy() {
    let place = Place::with_documents(5);
    let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let halting = Halting { fake: place.fake.clone(), entered: entered.clone(), go_on: go_on.clone() };
    let first = Bank::open_or_create(place.bank_dir(), Arc::new(halting), place.options()).await.unwrap();
    let second = place.bank().await;
    let mut schedules = Vec::new();
    for bank in [&first, &second] {
        schedules.push(Scheduler::new(bank.clone(), options(&place)).await.unwrap());
    }
    place.clock.advance(DAY);
    let (mut other, mut one) = (schedules.pop().unwrap(), schedules.pop().unwrap());
    let running = tokio::spawn(async move { one.tick_if_due().await.unwrap().unwrap() });
    entered.notified().await;
    let busy = other.tick_if_due().await.unwrap().unwrap();
    assert_eq!((busy.outcome, busy.step.is_none()), (TickOutcome::Busy, true));
    assert!(busy.error.as_ref().is_some_and(|said| said.contains("a scheduled step")), "{busy:?}");
    go_on.notify_one();
    assert_eq!(running.await.unwrap().outcome, TickOutcome::Done);
    let kinds: Vec<_> = second.runs().await.unwrap().into_iter().filter(|run| run.kind == "schedule").collect();
    assert_eq!(kinds.iter().map(|run| run.outcome.as_str()).collect::<Vec<_>>(), ["busy", "done"]);

    // Somebody at the index alone does not keep a step from ingesting and embedding.
    let built = second.build_index(BuildOptions::default()).await.unwrap();
    place.clock.advance(DAY);
    place.write("late.txt", "one more");
    let late = other.tick_if_due().await.unwrap().unwrap();
    let step = late.step.unwrap();
    assert_eq!((late.outcome, step.ingest.added, step.backfill.ready), (TickOutcome::Done, 1, 1), "{:?}", step.index);
    drop(built);
}

#[tokio::test]
async fn a_step_that_fails_is_on_record_and_the_next_one_does_its_work() {
    let place = Place::with_documents(3);
    let gone = place.path().join("gone");
    let options = ScheduleOptions { sources: vec![place.docs(), gone.clone()], ..options(&place) };
    let bank = place.bank().await;
    let mut scheduler = Scheduler::new(bank.clone(), options).await.unwrap();
    place.clock.advance(DAY);
    let failed = scheduler.tick_if_due().await.unwrap().unwrap();
    assert_eq!(failed.outcome, TickOutcome::Failed);
    assert!(failed.error.unwrap().contains("gone"));
    std::fs::create_dir(&gone).unwrap();
    place.clock.advance(DAY);
    let done = scheduler.tick_if_due().await.unwrap().unwrap();
    assert_eq!(done.outcome, TickOutcome::Done);
    assert!(matches!(done.step.unwrap().index, IndexOutcome::Activated { .. }));
    assert_eq!(bank.runs().await.unwrap().iter().filter(|run| run.outcome == "failed").count(), 2, "step and ingest");
}

#[cfg(unix)]
#[test]
fn a_schedule_that_is_told_to_end_ends_with_0() {
    let place = Place::with_documents(2);
    for signal in ["-TERM", "-INT"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_embank"))
            .args(["--bank", place.bank_dir().to_str().unwrap(), "--embedder", "fake:32", "schedule"])
            .args(["--cron", "0 0 1 1 *", "--timezone", "UTC", "--sync", place.docs().to_str().unwrap()])
            .current_dir(place.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = said.next().unwrap().unwrap();
        assert!(first.contains("next step at") && first.contains("01-01 00:00:00+00:00"), "{first}");
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn rebuild_if_needed_says_by_its_exit_code_what_came_of_it() {
    // More rows than queries: what is measured is a sample, and no sample proves a recall of 1.
    let place = Place::with_records(420);
    let run = |args: &[&str]| {
        let bank = place.bank_dir();
        let output = Command::new(env!("CARGO_BIN_EXE_embank"))
            .args(["--bank", bank.to_str().unwrap(), "--embedder", "fake:32", "--json"])
            .args(args)
            .current_dir(place.path())
            .output()
            .unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code().unwrap(), said["outcome"].as_str().unwrap_or_default().to_owned())
    };
    let said = |code: i32, outcome: &str| (code, outcome.to_owned());
    assert_eq!(run(&["ingest", place.docs().to_str().unwrap()]).0, 0);
    assert_eq!(run(&["rebuild", "--if-needed"]), said(0, "nothing"));
    assert_eq!(run(&["backfill"]).0, 0);
    assert_eq!(run(&["rebuild", "--if-needed", "--kind", "ivf-flat"]), said(0, "activated"));
    assert_eq!(run(&["rebuild", "--if-needed", "--kind", "ivf-flat"]), said(0, "kept"));
    assert_eq!(run(&["rebuild", "--kind", "ivf-flat", "--min-recall", "1"]), said(2, "refused"));
    let options = BankOptions { clock: Clock::system(), ..place.options() };
    let bank = Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), options).await.unwrap();
    let built = bank.build_index(BuildOptions { kind: IndexKind::Flat, ..BuildOptions::default() }).await.unwrap();
    assert_eq!(run(&["rebuild"]), said(3, "busy"));
    drop(built);
    assert_eq!(run(&["schedule", "--cron", "0 3 * *"]).0, 64);
    assert_eq!(run(&["schedule", "--cron", "0 3 * * *", "--timezone", "Nowhere"]).0, 64);
}
