//! The gate: what is compared with the threshold, what an index is asked, and moving along its curve afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::{
    BackfillOptions, Bank, BuildOptions, Error, GenerationState, IndexKind, QueryLogging, SearchOptions,
    ValidateOptions, Validated,
};

use crate::harness::{DIMENSION, Place, build, sentence};

const ROWS: usize = 1200;

async fn validated(bank: &Bank, kind: IndexKind, options: ValidateOptions) -> embank::Result<Validated> {
    let build = BuildOptions { kind, seed: Some(7), ..BuildOptions::default() };
    bank.build_validated(build, options).await
}

#[tokio::test]
async fn the_report_says_what_was_asked_and_how_sure_the_recall_is() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    build(&bank, IndexKind::Hnsw).await.unwrap();
    let report = bank.status().await.unwrap().active.unwrap().recall.unwrap();
    assert_eq!(report.trials, report.queries as u64 * 10);
    assert!(report.effective_trials <= report.trials as f64);
    assert!(report.bound >= 0.95 && report.bound < report.recall, "{report:?}");
    assert_eq!(report.basis, "a sample");
    // Three categories of 400 rows each.
    assert_eq!(report.slices.len(), 3);
    for slice in &report.slices {
        assert!(slice.gated && slice.rows == 400 && slice.bound >= 0.95 && slice.bound < slice.recall, "{slice:?}");
    }
    assert!(report.tried.iter().any(|tried| tried.suffices), "{:?}", report.tried);
}

#[tokio::test]
async fn a_recall_that_is_high_enough_and_not_proven_is_refused() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    // 2,560 neighbours found out of 2,560 prove 0.99883.
    let options = ValidateOptions { min_recall: 0.9989, ..ValidateOptions::default() };
    let refused = validated(&bank, IndexKind::Hnsw, options).await.unwrap_err();
    let Error::RecallTooLow { recall, bound, required, .. } = &refused else { panic!("{refused}") };
    assert!(recall > bound && bound < required, "{refused}");
    let all = bank.generations().await.unwrap();
    assert_eq!(all[0].state, GenerationState::Failed);
    assert!(bank.status().await.unwrap().active.is_none());
}

#[tokio::test]
async fn a_perfect_index_of_thirty_rows_passes_because_every_row_was_asked() {
    let place = Place::with_records(30);
    let bank = place.filled().await;
    let options = ValidateOptions { min_recall: 0.999, ..ValidateOptions::default() };
    let passed = validated(&bank, IndexKind::Hnsw, options).await.unwrap();
    let report = passed.report().clone();
    assert_eq!((report.queries, report.recall, report.bound), (30, 1.0, 1.0));
    assert_eq!(report.basis, "every row there is");
    assert!(report.slices.iter().all(|slice| !slice.gated), "ten rows each are too few to sample");
    bank.activate(passed).await.unwrap();
}

#[tokio::test]
async fn questions_that_were_asked_are_what_an_index_is_validated_with() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let logs = || {
        let entries = std::fs::read_dir(place.bank_dir()).unwrap();
        entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("queries__")).count()
    };
    bank.search("frost and rain", &SearchOptions::default()).await.unwrap();
    assert_eq!(logs(), 0, "nothing is kept that nobody asked to keep");
    let options = SearchOptions { k: 1, query_log: QueryLogging::On, ..SearchOptions::default() };
    for number in 0..130 {
        bank.search(&sentence(number * 7 + 100_000), &options).await.unwrap();
    }
    assert_eq!(logs(), 1);
    let passed = validated(&bank, IndexKind::Hnsw, ValidateOptions::default()).await.unwrap();
    let report = passed.report();
    assert_eq!(report.query_source, "the log of 130 questions that were asked");
    assert_eq!((report.tuning_queries, report.queries), (43, 87));
    let id = passed.id().clone();
    bank.activate(passed).await.unwrap();
    // What is asked later is not part of what was measured.
    place.clock.advance(std::time::Duration::from_secs(5));
    bank.search("a question of later", &options).await.unwrap();
    let again = bank.verify(&id).await.unwrap();
    assert!(again.agrees && again.notes.is_empty(), "{again:?}");
    // A log is no stranger in the bank.
    let doctor = bank.doctor(Default::default()).await.unwrap();
    let strangers = doctor.checks.iter().find(|check| check.name.contains("unknown")).map(|check| check.found);
    assert_eq!(strangers, Some(0));
}

/// A fake that tells questions from passages, and counts questions.
#[derive(Clone)]
struct TwoFaced {
    fake: FakeEmbedder,
    identity: EmbedderIdentity,
    questions: Arc<AtomicU64>,
}

#[async_trait::async_trait]
impl Embedder for TwoFaced {
    fn identity(&self) -> &EmbedderIdentity {
        &self.identity
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if kind == TextKind::Query {
            self.questions.fetch_add(texts.len() as u64, Ordering::SeqCst);
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn an_embedder_that_tells_questions_from_passages_is_given_passages_as_questions() {
    let place = Place::with_records(ROWS);
    let fake = FakeEmbedder::new(DIMENSION);
    let identity = EmbedderIdentity { query_prefix: "query: ".into(), ..fake.identity().clone() };
    let embedder = TwoFaced { fake, identity, questions: Arc::default() };
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(embedder.clone()), place.options()).await.unwrap();
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let passed = validated(&bank, IndexKind::Hnsw, ValidateOptions::default()).await.unwrap();
    let report = passed.report();
    assert_eq!(report.query_source, "stored passages embedded as questions, themselves excluded");
    assert_eq!(embedder.questions.load(Ordering::SeqCst), (report.queries + report.tuning_queries) as u64);
    let id = bank.set_aside(passed).await.unwrap();
    assert!(bank.verify(&id).await.unwrap().agrees);
}

#[tokio::test]
async fn tuning_again_moves_along_the_curve_of_the_same_index() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    let poor = ValidateOptions { min_recall: 0.2, nprobes: Some(2), refine_factor: Some(2), ..Default::default() };
    let passed = validated(&bank, IndexKind::IvfPq, poor).await.unwrap();
    let id = bank.activate(passed).await.unwrap().active;
    let before = bank.status().await.unwrap().active.unwrap();
    let tuned = bank.tune(&id, ValidateOptions { min_recall: 0.9, seed: Some(5), ..Default::default() }).await.unwrap();
    let (was, is) = (before.recall.clone().unwrap(), tuned.recall.clone().unwrap());
    assert!(is.bound >= 0.9 && is.recall > was.recall, "{was:?} {is:?}");
    assert_ne!(tuned.settings, before.settings);
    assert_ne!(is.seed, was.seed, "settings are not fitted to the queries of before");
    assert_eq!(bank.generations().await.unwrap().len(), 1, "nothing was built");
    assert_eq!(bank.status().await.unwrap().active.unwrap(), tuned);
    // And what cannot be reached changes nothing.
    let refused = bank.tune(&id, ValidateOptions { min_recall: 0.9999, ..Default::default() }).await;
    assert!(matches!(refused, Err(Error::RecallTooLow { .. })), "{refused:?}");
    assert_eq!(bank.status().await.unwrap().active.unwrap(), tuned);
    let flat = build(&bank, IndexKind::Flat).await.unwrap().active;
    let refused = bank.tune(&flat, ValidateOptions::default()).await;
    assert!(matches!(refused, Err(Error::WrongState { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_record_is_borne_out_when_it_is_measured_again() {
    let place = Place::with_records(ROWS);
    let bank = place.filled().await;
    for kind in [IndexKind::IvfPq, IndexKind::Flat] {
        let id = build(&bank, kind).await.unwrap().active;
        let again = bank.verify(&id).await.unwrap();
        assert!(again.agrees && again.is_same_version && again.notes.is_empty(), "{again:?}");
        // JSON may have taken the last digit.
        let differs = |a: f64, b: f64| (a - b).abs() > 1e-12;
        assert!(!differs(again.measured.recall, again.recorded.recall), "{again:?}");
        assert!(!differs(again.measured.bound, again.recorded.bound), "{again:?}");
        assert_eq!(again.measured.slices.len(), again.recorded.slices.len());
    }
    // The version that was measured is gone: Lance names its manifest by the distance from the highest number.
    let ivf = bank.generations().await.unwrap().into_iter().find(|g| g.kind == "ivf-pq").unwrap();
    place.write("late.txt", "note late: turbine gearbox oil");
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let version = ivf.recall.unwrap().dataset_version;
    let table = format!("embeddings__{}.lance", bank.status().await.unwrap().embedder);
    let manifest = format!("{:020}.manifest", u64::MAX - version);
    std::fs::remove_file(place.bank_dir().join(table).join("_versions").join(manifest)).unwrap();
    let again = bank.verify(&ivf.id).await.unwrap();
    assert!(!again.is_same_version && again.agrees && again.notes.len() == 1, "{again:?}");
}
