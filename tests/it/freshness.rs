//! Rows that come after an index was built: searched flat, folded in, measured; and an index that they wear out is replaced.
//! The oracle is exact search.

use std::path::Path;
use std::sync::{Arc, Mutex};

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::progress::{Listener, Progress};
use embank::{
    BackfillOptions, Bank, BankOptions, BuildOptions, CronSchedule, DoctorOptions, Error, FaultEffect, Faults,
    Grouping, HousekeepingOptions, IndexKind, IndexOutcome, ScheduleOptions, Scheduler, SearchOptions, SpecOverrides,
    StoreOptions, SyncOptions, SyncReport, ValidateOptions,
};

use crate::harness::{Place, sentence};

/// Enough rows to train 256 codewords.
const ROWS: usize = 600;

fn top(k: usize) -> SearchOptions {
    SearchOptions { k, grouping: Grouping::Chunks, ..SearchOptions::default() }
}

/// One setting instead of a tuning: every list, and candidates enough.
fn untuned() -> ValidateOptions {
    ValidateOptions { nprobes: Some(32), ef: Some(128), refine_factor: Some(8), ..ValidateOptions::default() }
}

async fn build(bank: &Bank, kind: IndexKind) -> embank::Result<embank::Activation> {
    let built = bank.build_index(BuildOptions { kind, seed: Some(7), ..BuildOptions::default() }).await?;
    bank.activate(bank.validate(built, untuned()).await?).await
}

/// Ids and the bits of the scores of ten searches.
async fn answers(bank: &Bank) -> Vec<Vec<(String, u32)>> {
    let mut all = Vec::new();
    for number in 0..10 {
        let found = bank.search(&sentence(number * 71), &top(10)).await.unwrap();
        all.push(found.hits.into_iter().map(|hit| (hit.id.to_string(), hit.score.to_bits())).collect());
    }
    all
}

fn overlap(a: &[Vec<(String, u32)>], b: &[Vec<(String, u32)>]) -> f64 {
    let has = |all: &[(String, u32)], id: &str| all.iter().any(|one| one.0 == id);
    let shared = a.iter().zip(b).map(|(a, b)| a.iter().filter(|one| has(b, &one.0)).count()).sum::<usize>();
    shared as f64 / a.iter().map(Vec::len).sum::<usize>() as f64
}

/// Records `from..to` as one file.
fn write_records(place: &Place, name: &str, numbers: std::ops::Range<usize>) {
    let line = |n: usize| serde_json::json!({ "id": format!("{name}{n}"), "text": sentence(n) }).to_string();
    place.write(&format!("{name}.jsonl"), &numbers.map(line).collect::<Vec<_>>().join("\n"));
}

async fn fill(bank: &Bank, place: &Place) {
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(Default::default()).await.unwrap();
}

#[tokio::test]
async fn newer_rows_are_folded_into_every_kind_of_index_under_the_same_name() {
    for kind in [IndexKind::Hnsw, IndexKind::IvfPq] {
        let place = Place::empty();
        write_records(&place, "old", 0..ROWS);
        let bank = place.filled().await;
        let built = build(&bank, kind).await.unwrap().active;
        write_records(&place, "new", ROWS..ROWS + 90);
        fill(&bank, &place).await;
        assert_eq!(bank.status().await.unwrap().newer_than_index, 90);

        let report = bank.optimise_index().await.unwrap();
        assert_eq!((&report.generation, report.done.as_ref().unwrap().rows), (&built, 90));
        let status = bank.status().await.unwrap();
        assert_eq!((status.newer_than_index, status.index_deltas), (0, 1), "{kind:?}");
        let active = status.active.unwrap();
        assert_eq!((active.id, active.rows, active.rows_folded), (built, ROWS as u64, 90));
        let found = answers(&bank).await;
        assert_eq!(bank.optimise_index().await.unwrap().done, None, "nothing is newer any more");

        build(&bank, IndexKind::Flat).await.unwrap();
        let shared = overlap(&answers(&bank).await, &found);
        assert!(shared >= 0.95, "{kind:?}: {shared}");
        assert_eq!(bank.optimise_index().await.unwrap().done, None, "a flat generation covers every row");
    }
}

#[tokio::test]
async fn what_can_be_returned_to_stays_searchable_after_compaction_and_folding_in() {
    let place = Place::empty();
    write_records(&place, "old", 0..ROWS);
    let bank = place.filled().await;
    let first = build(&bank, IndexKind::Hnsw).await.unwrap().active;
    // Many small pieces, some of them covered by the second index alone.
    write_records(&place, "late", ROWS..ROWS + 34);
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let one_by_one = async |count: usize| {
        for _ in 0..count {
            bank.backfill(BackfillOptions { limit: Some(1), ..BackfillOptions::default() }).await.unwrap();
        }
    };
    one_by_one(17).await;
    let second = build(&bank, IndexKind::IvfPq).await.unwrap().active;
    one_by_one(17).await;
    assert_eq!(bank.optimise_index().await.unwrap().done.unwrap().rows, 17);
    let report = bank.keep_house(HousekeepingOptions { keep_versions: std::time::Duration::ZERO }).await.unwrap();
    assert!(report.failures.is_empty() && report.compacted.iter().any(|table| table.starts_with("embeddings")));
    let folded = answers(&bank).await;
    assert_eq!(bank.status().await.unwrap().newer_than_index, 0);

    assert_eq!(bank.rollback().await.unwrap().active, first);
    let returned = answers(&bank).await;
    assert_eq!(
        bank.status().await.unwrap().newer_than_index,
        34,
        "what the first index does not cover is searched flat"
    );
    assert_eq!(bank.optimise_index().await.unwrap().done.unwrap().rows, 34);
    let refolded = answers(&bank).await;
    assert_eq!(bank.activate_generation(&second).await.unwrap().active, second);
    assert_eq!(answers(&bank).await, folded);

    build(&bank, IndexKind::Flat).await.unwrap();
    let exact = answers(&bank).await;
    for (name, found) in [("folded", &folded), ("returned", &returned), ("folded again", &refolded)] {
        let shared = overlap(&exact, found);
        assert!(shared >= 0.95, "{name}: {shared}");
    }
}

#[tokio::test]
async fn sync_folds_in_a_little_and_builds_anew_when_the_bank_has_doubled() {
    let place = Place::empty();
    let bank = place.bank().await;
    let build = BuildOptions { kind: IndexKind::Hnsw, seed: Some(7), ..BuildOptions::default() };
    let options = SyncOptions { build, validate: untuned(), ..SyncOptions::default() };
    let mut outcomes = Vec::new();
    for rows in [300, 320, 400, 400, 650] {
        write_records(&place, "notes", 0..rows);
        let report = bank.sync(&[place.docs()], options.clone()).await.unwrap();
        assert_eq!(report.warnings, [""; 0]);
        outcomes.push(match report.index {
            IndexOutcome::Activated { rows, .. } => format!("built over {rows}"),
            IndexOutcome::Optimised { rows, deltas, live, .. } => {
                assert!(live.is_some_and(|live| live.rows == 400 && live.newer == 0 && !live.is_low()));
                format!("folded {rows} in, {deltas} deltas")
            }
            IndexOutcome::Kept { .. } => "kept".to_owned(),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(outcomes, ["built over 300", "kept", "folded 100 in, 1 deltas", "kept", "built over 650"]);
    let kinds: Vec<_> =
        bank.runs().await.unwrap().into_iter().map(|run| run.kind).filter(|kind| kind == "index").collect();
    assert_eq!(kinds.len(), 3, "what was done to the index is on record, what was not is not");
}

/// Two kinds of text whose vectors lie in different dimensions: an index that was trained on one kind knows nothing of the
/// other.
struct TwoWorlds {
    identity: EmbedderIdentity,
    half: FakeEmbedder,
}

impl TwoWorlds {
    fn new() -> Self {
        let half = FakeEmbedder::new(32);
        let identity = EmbedderIdentity { name: "two-worlds".into(), dimension: 64, ..half.identity().clone() };
        Self { identity, half }
    }
}

#[async_trait::async_trait]
impl Embedder for TwoWorlds {
    fn identity(&self) -> &EmbedderIdentity {
        &self.identity
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.half.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        let mut answers = self.half.embed(kind, texts).await?;
        for (answer, text) in answers.iter_mut().zip(texts) {
            // A little of everything in the other half, so that there is something to train there.
            let small: Vec<f32> = answer.vector.iter().rev().map(|x| x * 0.05).collect();
            let (mut vector, other) = if text.starts_with("foreign") {
                (small, answer.vector.clone())
            } else {
                (answer.vector.clone(), small)
            };
            vector.extend(other);
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            answer.vector = vector.into_iter().map(|x| x / norm).collect();
        }
        Ok(answers)
    }
}

/// Inverted lists, all of them probed, with three candidates a result: what the codes cannot tell apart is not found.
fn brittle() -> SyncOptions {
    let overrides = SpecOverrides { partitions: Some(4), sub_vectors: Some(16), bits: Some(8), ..Default::default() };
    SyncOptions {
        build: BuildOptions { kind: IndexKind::IvfPq, overrides, seed: Some(7) },
        validate: ValidateOptions { nprobes: Some(4), refine_factor: Some(3), ..ValidateOptions::default() },
        ..SyncOptions::default()
    }
}

fn write_foreign(place: &Place, count: usize) {
    let line = |n: usize| serde_json::json!({ "id": n, "text": format!("foreign {}", sentence(n)) }).to_string();
    place.write("foreign.jsonl", &(0..count).map(line).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn rows_of_another_kind_lower_live_recall_and_the_next_night_builds_anew() {
    let place = Place::empty();
    write_records(&place, "old", 0..ROWS);
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = said.clone();
    let listener = Listener::new(move |progress| {
        if let Progress::Note(note) = progress {
            heard.lock().unwrap().push(note);
        }
    });
    let options = BankOptions { listener, ..place.options() };
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(TwoWorlds::new()), options).await.unwrap();
    let cron = CronSchedule::parse("0 3 * * *", Some("UTC")).unwrap();
    let nightly = ScheduleOptions { sources: vec![place.docs()], sync: brittle(), ..ScheduleOptions::new(cron) };
    let mut scheduler = Scheduler::new(bank.clone(), nightly).await.unwrap();
    let mut night = async || -> SyncReport {
        place.clock.advance(std::time::Duration::from_secs(24 * 3600));
        let tick = scheduler.tick_if_due().await.unwrap().unwrap();
        assert_eq!(tick.error, None);
        *tick.step.unwrap()
    };

    let IndexOutcome::Activated { generation: first, recall, .. } = night().await.index else { panic!("not built") };
    assert!(recall.recall >= 0.95, "{recall:?}");
    assert!(
        matches!(night().await.index, IndexOutcome::Kept { live: None, .. }),
        "nothing changed, nothing is measured"
    );

    // Searched flat, they cost nothing.
    write_foreign(&place, 40);
    let IndexOutcome::Kept { live: Some(live), .. } = night().await.index else { panic!("not measured") };
    assert!(!live.is_low() && live.newer == 40, "{live:?}");
    assert!(matches!(night().await.index, IndexOutcome::Kept { live: Some(again), .. } if again == live));

    write_foreign(&place, 200);
    let report = night().await;
    let IndexOutcome::Optimised { generation, live: Some(live), .. } = &report.index else { panic!("{report:?}") };
    assert!(*generation == first && live.is_low() && live.newer == 0, "{live:?}");
    assert!(report.warnings[0].starts_with("recall@10 has fallen to 0."), "{:?}", report.warnings);
    let warned = |note: &String| note.contains(first.as_str()) && note.contains("below the required 0.9500");
    assert!(said.lock().unwrap().iter().any(warned), "{:?}", said.lock().unwrap());
    assert!(bank.status().await.unwrap().active.unwrap().live.last().is_some_and(embank::LiveRecall::is_low));

    let report = night().await;
    let IndexOutcome::Activated { generation, rows, reason, recall, .. } = report.index else { panic!("{report:?}") };
    assert!(generation != first && rows == (ROWS + 200) as u64, "{reason}");
    assert!(reason.starts_with("recall@10 has fallen to 0.") && recall.recall >= 0.95, "{reason}, {recall:?}");
    assert!(matches!(night().await.index, IndexOutcome::Kept { .. }));
}

async fn open(bank: &Path, place: &Place, faults: Faults) -> embank::Result<Bank> {
    let options = place.options();
    let store = StoreOptions { faults, ..options.store };
    Bank::open_or_create(bank, Arc::new(place.fake.clone()), BankOptions { store, ..options }).await
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => _ = std::fs::copy(entry.path(), target).unwrap(),
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_change_of_folding_in_leaves_a_bank_that_answers_and_can_fold_again() {
    let place = Place::in_memory();
    write_records(&place, "old", 0..40);
    let bank = place.filled().await;
    let generation = build(&bank, IndexKind::Hnsw).await.unwrap().active;
    write_records(&place, "new", 40..60);
    fill(&bank, &place).await;
    drop(bank);

    let copy = |name: &str| {
        let to = place.path().join(name);
        copy_folder(&place.bank_dir(), &to);
        to
    };
    let counted = Faults::counted();
    let dir = copy("counted");
    let bank = open(&dir, &place, counted.clone()).await.unwrap();
    let before = counted.changes().len();
    bank.optimise_index().await.unwrap();
    let want = answers(&bank).await;
    let changes = counted.changes();
    for point in ["optimise: begun", "optimise: rows folded in", "optimise: recorded"] {
        assert!(changes.iter().any(|change| change == &format!("point {point}")), "{changes:?}");
    }
    // What leases and records leave is the matter of other tests.
    let matters = |change: &str| change.contains("point optimise") || change.contains("embeddings__");
    for (at, change) in changes.iter().enumerate().skip(before).filter(|(_, change)| matters(change)) {
        let dir = copy(&format!("at{at}"));
        let bank = open(&dir, &place, Faults::at(at as u64 + 1, FaultEffect::Tear)).await.unwrap();
        // The last changes come after all that matters: the lease given back, a hint for the next reader.
        _ = bank.optimise_index().await;
        drop(bank);

        let bank = open(&dir, &place, Faults::default()).await.unwrap();
        assert_eq!(overlap(&want, &answers(&bank).await), 1.0, "after a crash at {change}");
        place.clock.advance(std::time::Duration::from_secs(3600));
        bank.optimise_index().await.unwrap_or_else(|error| panic!("{change}: {error}"));
        let status = bank.status().await.unwrap();
        assert_eq!((status.newer_than_index, status.index_deltas), (0, 1), "{change}");
        assert_eq!(status.active.unwrap().id, generation);
        assert_eq!(overlap(&want, &answers(&bank).await), 1.0, "{change}");
        let report = bank.doctor(DoctorOptions::default()).await.unwrap();
        // What was written of an index that was never committed lies about, as after a build that was killed.
        let wrong: Vec<_> = report.findings().filter(|check| check.name != "index-leftovers").collect();
        assert!(wrong.is_empty(), "{change}: {wrong:?}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[tokio::test]
async fn folding_in_needs_an_active_index_and_the_maintenance_of_the_bank() {
    let place = Place::with_documents(30);
    let bank = place.filled().await;
    assert!(matches!(bank.optimise_index().await, Err(Error::NoActiveGeneration { .. })));
    assert_eq!(bank.measure_live_recall(10).await.unwrap(), None);
    build(&bank, IndexKind::Hnsw).await.unwrap();
    place.write("late.txt", "one more");
    fill(&bank, &place).await;
    let built = bank.build_index(BuildOptions::default()).await.unwrap();
    assert!(matches!(bank.optimise_index().await, Err(Error::Busy { .. })));
    bank.set_aside(bank.validate(built, ValidateOptions::default()).await.unwrap()).await.unwrap();
    assert_eq!(bank.optimise_index().await.unwrap().done.unwrap().rows, 1);
}
