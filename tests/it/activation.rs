//! Moving the pointer: races, ways back, what a crash leaves between the verdict and the flip, and what is removed when. The
//! oracle is what the generation answered before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use embank::embed::{Embedded, Embedder, EmbedderIdentity, TextKind, TokenCounter};
use embank::{
    Bank, BankOptions, BuildOptions, Error, Faults, GenerationId, GenerationState, Grouping, HousekeepingOptions,
    IndexKind, IndexOutcome, PointerChange, SearchOptions, SearchResult, StoreOptions, SyncOptions, ValidateOptions,
};

use crate::harness::{Place, build, sentence};

/// Longer than `keep_versions`, and than any lease.
const LONG: Duration = Duration::from_secs(3700);

/// A handle with its own connection, as another process would have.
async fn another(place: &Place) -> Bank {
    Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), place.options()).await.unwrap()
}

/// Runs something on another handle while this thread waits, wherever it stands.
fn meanwhile<F: Future<Output = ()> + Send>(work: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let waited_for = scope.spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(work()));
        waited_for.join().unwrap();
    });
}

async fn state_of(bank: &Bank, id: &GenerationId) -> Option<GenerationState> {
    bank.generations().await.unwrap().into_iter().find(|one| one.id == *id).map(|one| one.state)
}

fn top(k: usize) -> SearchOptions {
    SearchOptions { k, grouping: Grouping::Chunks, ..SearchOptions::default() }
}

/// Ids and scores to the last bit, of several questions.
async fn answers(bank: &Bank) -> Vec<(GenerationId, Vec<(String, u32)>)> {
    let mut all = Vec::new();
    for number in 0..12 {
        let SearchResult { hits, generation, .. } = bank.search(&sentence(number * 29), &top(10)).await.unwrap();
        all.push((generation, hits.iter().map(|hit| (hit.id.to_string(), hit.score.to_bits())).collect()));
    }
    all
}

#[tokio::test]
async fn a_lost_race_is_reported_and_leaves_what_the_winner_did() {
    let place = Place::with_records(60);
    let bank = place.filled().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(build(&bank, IndexKind::Flat).await.unwrap().active);
    }
    // At the last moment before the loser's pointer would move, another process moves it.
    for (number, loser) in ["activate", "roll back"].into_iter().enumerate() {
        let winners = ids[number].clone();
        let (root, fake, options) = (place.bank_dir(), place.fake.clone(), place.options());
        let is_first = AtomicBool::new(true);
        let moved = winners.clone();
        let faults = Faults::counted().watched(move |_, change| {
            if change == "point activate: before the pointer moves" && is_first.swap(false, Ordering::SeqCst) {
                meanwhile(|| async {
                    let winner = Bank::open(&root, Arc::new(fake.clone()), options.clone()).await.unwrap();
                    winner.activate_generation(&moved).await.unwrap();
                });
            }
        });
        let options = place.options();
        let store = StoreOptions { faults, ..options.store };
        let options = BankOptions { store, ..options };
        let bank = Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), options).await.unwrap();
        let before = bank.status().await.unwrap().active.unwrap().id;
        let lost = if loser == "activate" { bank.activate_generation(&ids[1]).await } else { bank.rollback().await };
        let Err(Error::PointerMoved { expected, found }) = &lost else { panic!("{loser}: {lost:?}") };
        assert_eq!((expected, found), (&before.to_string(), &winners.to_string()));
        assert_eq!(bank.search("frost", &top(3)).await.unwrap().generation, winners);
        let last = bank.index_history().await.unwrap().pop().unwrap();
        assert_eq!((last.change, last.active, last.previous), (PointerChange::Activated, winners, Some(before)));
    }
}

#[tokio::test]
async fn rolling_back_answers_as_before_to_the_bit_and_every_move_is_on_record() {
    let place = Place::with_records(1200);
    let bank = place.filled().await;
    let mut before = Vec::new();
    for kind in [IndexKind::Hnsw, IndexKind::IvfPq, IndexKind::Flat] {
        let active = build(&bank, kind).await.unwrap().active;
        before.push((active, answers(&bank).await));
    }
    for (active, answered) in before[..2].iter().rev() {
        assert_eq!(another(&place).await.rollback().await.unwrap().active, *active);
        assert_eq!(answers(&bank).await, *answered, "a handle that was open all the time");
        assert_eq!(answers(&another(&place).await).await, *answered, "a new one");
    }
    let [one, two, three] = [0, 1, 2].map(|n| before[n].0.clone());
    let told = bank.index_history().await.unwrap();
    let told: Vec<_> = told.into_iter().map(|one| (one.change.label(), one.active, one.previous)).collect();
    assert_eq!(
        told,
        [
            ("activated", one.clone(), None),
            ("activated", two.clone(), Some(one.clone())),
            ("activated", three.clone(), Some(two.clone())),
            ("rolled back", two.clone(), Some(three)),
            ("rolled back", one, Some(two)),
        ]
    );
}

#[tokio::test]
async fn of_rolled_back_generations_the_last_one_stays_and_the_others_go() {
    let place = Place::with_records(60);
    let bank = place.filled().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(build(&bank, IndexKind::Flat).await.unwrap().active);
    }
    for _ in 0..2 {
        bank.rollback().await.unwrap();
    }
    // 1 is active, 2 was before the last rollback, 0 is where the next one leads; 3 is out of reach.
    assert_eq!(state_of(&bank, &ids[3]).await, Some(GenerationState::Retired));
    assert_eq!(bank.keep_house(HousekeepingOptions::default()).await.unwrap().removed, [ids[3].clone()]);
    // Rolled back on purpose: no sync takes it up again as if a crash had come between.
    place.clock.advance(LONG);
    let report = bank.sync(&[place.docs()], SyncOptions::default()).await.unwrap();
    assert!(matches!(report.index, IndexOutcome::Kept { .. }), "{:?}", report.index);
    assert_eq!(bank.activate_generation(&ids[2]).await.unwrap().previous, Some(ids[1].clone()));
}

/// Built and validated, and then the process ended.
async fn left_ready(bank: &Bank, kind: IndexKind) -> GenerationId {
    let build = BuildOptions { kind, seed: Some(7), ..BuildOptions::default() };
    let validated = bank.build_validated(build, ValidateOptions::default()).await.unwrap();
    let id = validated.id().clone();
    std::mem::forget(validated);
    id
}

#[tokio::test]
async fn what_a_crash_left_ready_is_activated_by_the_next_sync_and_not_built_again() {
    let place = Place::with_records(60);
    let bank = place.filled().await;
    let left = left_ready(&bank, IndexKind::Flat).await;
    let report = bank.sync(&[place.docs()], SyncOptions::default()).await.unwrap();
    assert!(matches!(report.index, IndexOutcome::Busy), "perhaps it is still being activated: {:?}", report.index);
    place.clock.advance(LONG);
    let report = bank.sync(&[place.docs()], SyncOptions::default()).await.unwrap();
    let IndexOutcome::Activated { generation, recall, .. } = report.index else { panic!("{:?}", report.index) };
    assert_eq!((&generation, recall.recall), (&left, 1.0));
    assert_eq!(bank.generations().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_crash_left_ready_is_not_activated_where_more_is_asked_or_another_kind() {
    let place = Place::with_records(300);
    let bank = place.filled().await;
    let left = left_ready(&bank, IndexKind::Flat).await;
    place.clock.advance(LONG);
    let validate = ValidateOptions { min_recall: 0.96, ..ValidateOptions::default() };
    let report = bank.sync(&[place.docs()], SyncOptions { validate, ..SyncOptions::default() }).await.unwrap();
    let IndexOutcome::Activated { generation, .. } = report.index else { panic!("{:?}", report.index) };
    assert_ne!(generation, left);
    assert_eq!(report.housekeeping.unwrap().removed, [left], "it is overtaken");

    let left = left_ready(&bank, IndexKind::Flat).await;
    place.clock.advance(Duration::from_secs(61));
    assert_eq!(bank.keep_house(HousekeepingOptions::default()).await.unwrap().removed, []);
    // Nobody needs it: after the grace it goes too.
    place.clock.advance(LONG);
    let report = bank.sync(&[place.docs()], SyncOptions::default()).await.unwrap();
    assert!(matches!(report.index, IndexOutcome::Kept { .. }), "{:?}", report.index);
    assert_eq!(report.housekeeping.unwrap().removed, [left]);
}

#[tokio::test]
async fn what_was_set_aside_stays_until_somebody_activates_it() {
    let place = Place::with_records(60);
    let bank = place.filled().await;
    let validated = bank.build_validated(BuildOptions::default(), ValidateOptions::default()).await.unwrap();
    let kept = bank.set_aside(validated).await.unwrap();
    place.clock.advance(LONG);
    let report = bank.sync(&[place.docs()], SyncOptions::default()).await.unwrap();
    let IndexOutcome::Activated { generation, .. } = report.index else { panic!("{:?}", report.index) };
    assert_ne!(generation, kept);
    assert_eq!(bank.keep_house(HousekeepingOptions::default()).await.unwrap().removed, []);
    assert_eq!(bank.activate_generation(&kept).await.unwrap().previous, Some(generation));
}

/// The fake embedder, in whose answer to a question another process replaces and removes what is about to be searched.
struct Replaced {
    fake: embank::embed::FakeEmbedder,
    other: Bank,
    is_done: AtomicBool,
}

#[async_trait::async_trait]
impl Embedder for Replaced {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if !self.is_done.swap(true, Ordering::SeqCst) {
            for kind in [IndexKind::Hnsw, IndexKind::IvfPq] {
                build(&self.other, kind).await?;
            }
            let at_once = HousekeepingOptions { keep_versions: Duration::ZERO };
            assert_eq!(self.other.keep_house(at_once).await?.removed.len(), 1);
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::test]
async fn a_search_whose_generation_is_removed_under_it_is_answered_by_the_one_that_replaced_it() {
    let place = Place::with_records(600);
    let other = place.filled().await;
    let first = build(&other, IndexKind::Hnsw).await.unwrap().active;
    let replaced = Replaced { fake: place.fake.clone(), other, is_done: false.into() };
    let bank = Bank::open(place.bank_dir(), Arc::new(replaced), place.options()).await.unwrap();
    let found = bank.search("frost barrel", &top(5)).await.unwrap();
    let active = bank.status().await.unwrap().active.unwrap().id;
    assert_ne!(active, first);
    assert_eq!(found, another(&place).await.search("frost barrel", &top(5)).await.unwrap());
    assert_eq!((found.generation, found.hits.len()), (active, 5));
}

#[tokio::test]
async fn garbage_is_reported_with_the_size_of_its_indexes() {
    let place = Place::with_records(600);
    let bank = place.filled().await;
    for _ in 0..3 {
        build(&bank, IndexKind::Hnsw).await.unwrap();
    }
    let before = bank.generations().await.unwrap();
    let report = bank.keep_house(HousekeepingOptions::default()).await.unwrap();
    let gone = before.iter().find(|one| report.removed == [one.id.clone()]).unwrap();
    assert_eq!(Some(report.index_bytes), gone.index_bytes);
    assert!(report.index_bytes > 600 * 32, "a byte for each number at least");
}
