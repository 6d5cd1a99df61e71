//! Changing the embedder under load, with documents coming in, and with crashes. The oracle is what each embedder's generation
//! answers when nothing else goes on, and a bank that was filled by that embedder alone.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use embank::embed::{FakeEmbedder, Fault};
use embank::progress::Cancel;
use embank::{
    Bank, BankOptions, Error, FaultEffect, Faults, Grouping, IndexKind, QueryLogging, SearchOptions, Serving,
    StoreOptions, SwitchOptions, SwitchOutcome, SyncOptions,
};
use serde_json::Value;

use crate::harness::{DIMENSION, Place, build, sentence};

/// Of the second embedder.
const OTHER: usize = 48;

async fn opened(place: &Place, fake: &FakeEmbedder, options: BankOptions) -> Bank {
    Bank::open(place.bank_dir(), Arc::new(fake.clone()), options).await.unwrap()
}

fn id(bank: &Bank) -> String {
    bank.embedder().identity().id().to_string()
}

/// A bank that its first embedder serves.
async fn served(records: usize) -> (Place, Bank) {
    let place = Place::with_records(records);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    (place, bank)
}

async fn serves(bank: &Bank) -> Option<String> {
    bank.serving().await.unwrap().map(|state| state.active.id.to_string())
}

#[tokio::test]
async fn a_switch_fills_indexes_compares_and_moves_one_pointer_and_the_way_back_is_the_same() {
    let (place, bank) = served(80).await;
    let fake = FakeEmbedder::new(OTHER);
    let other = opened(&place, &fake, place.options()).await;
    let serving = Serving::new(vec![bank.clone(), other.clone()]).unwrap();
    let before = serving.search("frost barrel", &Default::default()).await.unwrap();
    assert_eq!((before.embedder.as_str(), serves(&bank).await), ("fake:32", None));

    let report = bank.switch_to(&other, SwitchOptions::default()).await.unwrap();
    assert_eq!((report.outcome, report.backfill.ready), (SwitchOutcome::Switched, 80));
    let agreement = report.agreement.unwrap();
    assert_eq!(agreement.questions, 64);
    assert!(
        agreement.overlap > 0.2 && agreement.overlap < 1.0 && agreement.worst <= agreement.overlap,
        "{agreement:?}"
    );
    let after = serving.search("frost barrel", &Default::default()).await.unwrap();
    assert_eq!(after, other.search("frost barrel", &Default::default()).await.unwrap());
    assert_eq!((after.embedder.as_str(), serves(&bank).await), ("fake:48", Some(id(&other))));
    let kept = bank.runs().await.unwrap().into_iter().find(|run| run.kind == "switch").unwrap();
    let kept: Value = serde_json::from_str(&kept.report).unwrap();
    assert_eq!(kept["agreement"]["overlap"], agreement.overlap);
    let again = serving.bank().await.unwrap().switch_to(&other, SwitchOptions::default()).await.unwrap();
    assert_eq!(again.outcome, SwitchOutcome::Unchanged);

    let texts = place.fake.texts_embedded();
    let quiet = SwitchOptions { questions: 0, ..SwitchOptions::default() };
    let back = other.switch_to(&bank, quiet).await.unwrap();
    assert_eq!((back.outcome, back.backfill.ready), (SwitchOutcome::Switched, 0));
    assert_eq!(place.fake.texts_embedded(), texts, "it has all it needs");
    assert_eq!(serving.search("frost barrel", &Default::default()).await.unwrap(), before);
    let moves = bank.serving().await.unwrap().unwrap().moves;
    let moves: Vec<_> = moves.iter().map(|one| (one.from.to_string(), one.to.to_string())).collect();
    assert_eq!(moves, [(id(&bank), id(&other)), (id(&other), id(&bank))]);
}

#[tokio::test]
async fn both_are_asked_what_people_asked_where_that_is_kept() {
    let (place, bank) = served(80).await;
    let logged = SearchOptions { query_log: QueryLogging::On, ..SearchOptions::default() };
    for number in 0..30 {
        bank.search(&sentence(500 + number), &logged).await.unwrap();
    }
    let other = opened(&place, &FakeEmbedder::new(OTHER), place.options()).await;
    let options = SwitchOptions { questions: 25, ..SwitchOptions::default() };
    let agreement = bank.switch_to(&other, options).await.unwrap().agreement.unwrap();
    assert_eq!((agreement.source.as_str(), agreement.questions), ("the query log", 25));
    // The oracle: the newest 25, asked of each by hand.
    let top = SearchOptions { grouping: Grouping::Chunks, ..SearchOptions::default() };
    let (mut shared, mut same_first) = (0, 0);
    for number in 5..30 {
        let mut answers = Vec::new();
        for bank in [&bank, &other] {
            let found = bank.search(&sentence(500 + number), &top).await.unwrap();
            answers.push(found.hits.into_iter().map(|hit| hit.id).collect::<Vec<_>>());
        }
        shared += answers[0].iter().filter(|id| answers[1].contains(id)).count();
        same_first += usize::from(answers[0][0] == answers[1][0]);
    }
    let by_hand = (shared as f64 / 250.0, f64::from(same_first as u32) / 25.0);
    assert!((agreement.overlap - by_hand.0).abs() < 1e-9 && (agreement.same_first - by_hand.1).abs() < 1e-9);
}

#[tokio::test]
async fn a_sync_while_a_switch_is_under_way_fills_both_tables_and_the_first_embedder_serves() {
    let (place, bank) = served(40).await;
    let cancel = Cancel::default();
    cancel.cancel();
    let fake = FakeEmbedder::new(OTHER);
    let stopped = opened(&place, &fake, BankOptions { cancel, ..place.options() }).await;
    let report = bank.switch_to(&stopped, SwitchOptions::default()).await.unwrap();
    assert_eq!(report.outcome, SwitchOutcome::Cancelled);
    let state = bank.serving().await.unwrap().unwrap();
    assert_eq!((state.active.id.to_string(), state.next.unwrap().id.to_string()), (id(&bank), id(&stopped)));

    place.write("late.txt", "turbine gearbox oil");
    let other = opened(&place, &fake, place.options()).await;
    let serving = Serving::new(vec![bank.clone(), other.clone()]).unwrap();
    let report = serving.sync(&[place.docs()], SyncOptions::default()).await.unwrap();
    assert_eq!((report.sync.backfill.ready, report.next.unwrap().ready), (1, 41));
    let found = serving.search("turbine gearbox oil", &Default::default()).await.unwrap();
    assert_eq!((found.embedder.as_str(), found.hits[0].doc_path.as_str()), ("fake:32", "late.txt"));

    let quiet = SwitchOptions { questions: 0, ..SwitchOptions::default() };
    let report = bank.switch_to(&other, quiet).await.unwrap();
    assert_eq!((report.outcome, report.backfill.embedded), (SwitchOutcome::Switched, 0), "all of it was there");
    assert_eq!(fake.texts_embedded(), 41);
    let found = serving.search("turbine gearbox oil", &Default::default()).await.unwrap();
    assert_eq!((found.embedder.as_str(), found.hits[0].doc_path.as_str()), ("fake:48", "late.txt"));
}

#[tokio::test]
async fn a_switch_that_would_lose_a_document_misses_its_gate_or_disagrees_is_refused_and_goes_on_later() {
    let (place, bank) = served(60).await;
    let refused = async |options: SwitchOptions, fake: &FakeEmbedder| {
        let other = opened(&place, fake, place.options()).await;
        let report = bank.switch_to(&other, options).await.unwrap();
        assert_eq!(serves(&bank).await, Some(id(&bank)), "the first one serves on");
        match report.outcome {
            SwitchOutcome::Refused { reason } => reason,
            outcome => panic!("{outcome:?}"),
        }
    };
    let lost = sentence(7);
    let faulty = FakeEmbedder::with_faults(OTHER, move |text| text.contains(&lost).then_some(Fault::ZeroNorm));
    let reason = refused(SwitchOptions::default(), &faulty).await;
    assert!(reason.starts_with("1 chunks that fake-32"), "{reason}");
    let sound = FakeEmbedder::new(OTHER);
    let other = opened(&place, &sound, place.options()).await;
    other.retry(Default::default()).await.unwrap();
    let reason = refused(SwitchOptions { min_overlap: 1.0, ..SwitchOptions::default() }, &sound).await;
    assert!(reason.contains("below the required 1"), "{reason}");
    let report = bank.switch_to(&other, SwitchOptions::default()).await.unwrap();
    assert_eq!((report.outcome, report.backfill.ready), (SwitchOutcome::Switched, 0));
}

#[tokio::test]
async fn of_two_switches_the_one_that_was_begun_first_is_told_that_it_was_overruled() {
    let (place, bank) = served(40).await;
    let third = opened(&place, &FakeEmbedder::new(16), place.options()).await;
    let (root, options) = (place.bank_dir(), place.options());
    let faults = Faults::counted().watched(move |_, change| {
        if change == "point switch: filled" {
            let (root, options) = (root.clone(), options.clone());
            // Another process, while this one stands still.
            let other = std::thread::spawn(move || {
                tokio::runtime::Runtime::new().unwrap().block_on(async {
                    let cancel = Cancel::default();
                    cancel.cancel();
                    let from =
                        Bank::open(&root, Arc::new(FakeEmbedder::new(DIMENSION)), options.clone()).await.unwrap();
                    let to = Arc::new(FakeEmbedder::new(OTHER));
                    let to = Bank::open(&root, to, BankOptions { cancel, ..options }).await.unwrap();
                    from.switch_to(&to, SwitchOptions::default()).await.unwrap();
                });
            });
            other.join().unwrap();
        }
    });
    let options = place.options();
    let options = BankOptions { store: StoreOptions { faults, ..options.store }, ..options };
    let overruled = opened(&place, &FakeEmbedder::new(16), options).await;
    let lost = bank.switch_to(&overruled, SwitchOptions::default()).await;
    assert!(matches!(lost, Err(Error::NotServing { .. })), "{lost:?}");
    let state = bank.serving().await.unwrap().unwrap();
    assert_eq!((state.active.id.to_string(), state.next.unwrap().name), (id(&bank), "fake:48".to_owned()));
    assert!(
        matches!(third.switch_to(&bank, SwitchOptions::default()).await, Ok(report) if report.outcome == SwitchOutcome::Unchanged)
    );
}

/// All changes that a switch makes to the disk, or one with a fault.
async fn switch_with(place: &Place, fake: &FakeEmbedder, faults: Faults) -> embank::Result<SwitchOutcome> {
    let options = place.options();
    let options = BankOptions { store: StoreOptions { faults, ..options.store }, ..options };
    let bank = Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), options.clone()).await?;
    let other = Bank::open(place.bank_dir(), Arc::new(fake.clone()), options).await?;
    let quiet = SwitchOptions { questions: 0, ..SwitchOptions::default() };
    Ok(bank.switch_to(&other, quiet).await?.outcome)
}

#[tokio::test]
async fn a_switch_that_a_crash_ended_anywhere_goes_on_and_embeds_nothing_again() {
    let records = 30;
    let (template, _) = served(records).await;
    let place = template.copy();
    let counted = Faults::counted();
    switch_with(&place, &FakeEmbedder::new(OTHER), counted.clone()).await.unwrap();
    let changes = counted.changes();
    let named: Vec<_> = changes.iter().filter(|change| change.starts_with("point switch")).collect();
    assert_eq!(
        named.iter().map(|name| name.as_str()).collect::<HashSet<_>>().len(),
        5,
        "announced, filled, indexed, before the pointer moves, pointer moved: {named:?}"
    );
    let calm = opened(&place, &FakeEmbedder::new(OTHER), place.options()).await.contents().await.unwrap();
    // Every named point, and every eleventh of the others.
    let strikes = (1..=changes.len()).filter(|at| at % 11 == 0 || changes[at - 1].starts_with("point switch"));
    for at in strikes {
        let what = &changes[at - 1];
        let place = template.copy();
        let bank = place.bank().await;
        let fake = FakeEmbedder::new(OTHER);
        let crashed = switch_with(&place, &fake, Faults::at(at as u64, FaultEffect::Die)).await;
        place.clock.advance(Duration::from_secs(3600));
        let other = opened(&place, &fake, place.options()).await;
        let cached = other.cached_vectors().await.unwrap().len() as u64;
        let serving = serves(&bank).await;
        let moved = serving == Some(id(&other));
        assert!(crashed.is_err() || moved, "{what}");
        let by = if moved { &other } else { &bank };
        assert_eq!(by.search("frost", &Default::default()).await.unwrap().hits.len(), 10, "{what}");

        let asked = fake.texts_embedded();
        let finished = switch_with(&place, &fake, Faults::default()).await.unwrap();
        let want = if moved { SwitchOutcome::Unchanged } else { SwitchOutcome::Switched };
        assert_eq!((finished, serves(&bank).await), (want, Some(id(&other))), "{what}");
        assert_eq!(
            fake.texts_embedded() - asked,
            records as u64 - cached,
            "{what}: what was cached is not embedded again"
        );
        assert_eq!(other.contents().await.unwrap().embeddings, calm.embeddings, "{what}");
        assert_eq!(other.generations().await.unwrap().iter().filter(|one| one.error.is_none()).count(), 1, "{what}");
    }
}

struct Cli<'a>(&'a Place);

impl Cli<'_> {
    /// Exit code, standard output and standard error.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
        command.current_dir(self.0.path()).args(["--bank", "bank"]).args(args);
        for variable in ["EMBANK_BANK", "EMBANK_EMBEDDER", "EMBANK_PRECISION"] {
            command.env_remove(variable);
        }
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.run(&[&["--json"], args].concat());
        assert_eq!(code, Some(0), "{args:?}: {err}");
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
    }
}

#[test]
fn commands_follow_the_bank_unless_an_embedder_is_named_and_say_so_where_it_does_not_serve() {
    let place = Place::with_documents(30);
    let cli = Cli(&place);
    cli.json(&["--embedder", "fake:32", "sync", "docs"]);
    let switched = cli.json(&["--embedder", "fake:32", "model", "switch", "fake:48"]);
    assert_eq!((&switched["outcome"]["outcome"], &switched["backfill"]["ready"]), (&"switched".into(), &30.into()));
    assert_eq!(cli.json(&["search", "frost"])["embedder"], "fake:48");
    let (code, out, err) = cli.run(&["--embedder", "fake:32", "search", "frost"]);
    assert!(
        code == Some(0) && !out.is_empty() && err.contains("answered by fake:32; this bank is served by fake-48-"),
        "{err}"
    );
    place.write("late.txt", "turbine gearbox oil");
    assert_eq!(cli.json(&["sync", "docs"])["backfill"]["ready"], 1);

    let state = cli.json(&["model", "switch"])["serving"].clone();
    assert_eq!((&state["active"]["name"], &state["previous"]["name"]), (&"fake:48".into(), &"fake:32".into()));
    let back = cli.json(&["model", "rollback"]);
    assert_eq!((&back["outcome"]["outcome"], &back["backfill"]["ready"]), (&"switched".into(), &1.into()));
    let found = cli.json(&["search", "turbine gearbox"]);
    assert_eq!((&found["embedder"], &found["hits"][0]["doc_path"]), (&"fake:32".into(), &"late.txt".into()));

    let (code, _, _) = cli.run(&["model", "switch", "fake:16", "--min-overlap", "1"]);
    assert_eq!(code, Some(2));
    place.write("later.txt", "sourdough crumb");
    let both = cli.json(&["sync", "docs"]);
    assert_eq!((&both["backfill"]["ready"], &both["next"]["ready"]), (&1.into(), &1.into()), "a switch is under way");
}
