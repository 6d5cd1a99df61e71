//! Search under load: questions are answered all the time while the pointers move, each by one generation of one embedder. The
//! oracle is what each generation answers when nothing else goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use embank::embed::FakeEmbedder;
use embank::{
    Bank, BuildOptions, GenerationId, Grouping, HousekeepingOptions, IndexKind, SearchOptions, SearchResult, Serving,
    SwitchOptions, SwitchOutcome,
};

use crate::harness::{Place, build, sentence};

const CLIENTS: usize = 4;
const QUESTIONS: usize = 8;
/// Activations and rollbacks.
const MOVES: usize = 24;

/// Ids and scores to the last bit.
type Answer = Vec<(String, u32)>;

/// Embedder, generation, question.
type By = (String, GenerationId, usize);

/// Who answers what.
type Answers = HashMap<By, Answer>;

fn options() -> SearchOptions {
    SearchOptions { k: 10, grouping: Grouping::Chunks, ..SearchOptions::default() }
}

fn question(number: usize) -> String {
    sentence(number * 37 + 5)
}

fn answer(found: &SearchResult) -> Answer {
    found.hits.iter().map(|hit| (hit.id.to_string(), hit.score.to_bits())).collect()
}

/// What the active generation answers by itself.
async fn note(bank: &Bank, answers: &mut Answers) {
    for number in 0..QUESTIONS {
        let found = bank.search(&question(number), &options()).await.unwrap();
        let answered = answer(&found);
        answers.insert((found.embedder, found.generation, number), answered);
    }
}

/// What the clients share.
#[derive(Default)]
struct Load {
    is_over: AtomicBool,
    answered: [AtomicU64; CLIENTS],
}

impl Load {
    /// Until every client has had at least two more answers: the last of them was asked after this was called.
    async fn goes_on(&self) {
        let reached = self.answered.each_ref().map(|count| count.load(Ordering::SeqCst) + 2);
        while self.answered.iter().zip(reached).any(|(count, want)| count.load(Ordering::SeqCst) < want) {
            tokio::task::yield_now().await;
        }
    }
}

/// Asks until it is over; returns everything that was answered. An error is a panic.
async fn client<F>(number: usize, load: Arc<Load>, ask: impl Fn(String) -> F) -> HashMap<By, HashSet<Answer>>
where
    F: Future<Output = embank::Result<SearchResult>>,
{
    let mut answers: HashMap<By, HashSet<Answer>> = HashMap::new();
    let mut asked = number;
    while !load.is_over.load(Ordering::SeqCst) {
        asked = (asked + 1) % QUESTIONS;
        let found = ask(question(asked)).await.unwrap();
        let answered = answer(&found);
        answers.entry((found.embedder, found.generation, asked)).or_default().insert(answered);
        load.answered[number].fetch_add(1, Ordering::SeqCst);
    }
    answers
}

/// Every answer is the one that its generation gives by itself.
fn check(answers: &HashMap<By, HashSet<Answer>>, want: &Answers) {
    for (by, answered) in answers {
        assert_eq!(answered.iter().collect::<Vec<_>>(), want.get(by).into_iter().collect::<Vec<_>>(), "{by:?}");
    }
}

async fn another(place: &Place) -> Bank {
    Bank::open(place.bank_dir(), Arc::new(FakeEmbedder::new(crate::harness::DIMENSION)), place.options()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_answer_under_activations_rollbacks_and_garbage_collection_is_that_of_one_generation() {
    let place = Place::with_records(600);
    let bank = place.filled().await;
    let (mut want, mut generations) = (Answers::new(), Vec::new());
    for kind in [IndexKind::Flat, IndexKind::Hnsw, IndexKind::IvfPq] {
        generations.push(build(&bank, kind).await.unwrap().active);
        note(&bank, &mut want).await;
    }
    let load = Arc::new(Load::default());
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        // Two with connections of their own, as other processes have; two that share the one of who moves the pointer.
        let asked = if number % 2 == 0 { another(&place).await } else { bank.clone() };
        let ask = move |question: String| {
            let asked = asked.clone();
            async move { asked.search(&question, &options()).await }
        };
        clients.push(tokio::spawn(client(number, load.clone(), ask)));
    }
    let mut rollbacks = 0;
    for number in 0..MOVES {
        if number % 3 == 2 {
            bank.rollback().await.unwrap();
            rollbacks += 1;
        } else {
            bank.activate_generation(&generations[number % generations.len()]).await.unwrap();
        }
        load.goes_on().await;
    }
    // What is out of reach goes while they ask.
    bank.activate_generation(&generations[1]).await.unwrap();
    bank.activate_generation(&generations[2]).await.unwrap();
    bank.keep_house(HousekeepingOptions::default()).await.unwrap();
    load.goes_on().await;
    load.is_over.store(true, Ordering::SeqCst);
    let mut seen = HashSet::new();
    for client in clients {
        let answers = client.await.unwrap();
        check(&answers, &want);
        seen.extend(answers.into_keys().map(|(_, generation, _)| generation));
    }
    assert_eq!((rollbacks, seen), (8, generations.into_iter().collect()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_answer_under_a_model_switch_and_the_way_back_is_that_of_one_embedder() {
    let place = Place::with_records(500);
    let bank = place.filled().await;
    build(&bank, IndexKind::Hnsw).await.unwrap();
    let (load, mut want) = (Arc::new(Load::default()), Answers::new());
    note(&bank, &mut want).await;
    let other = async || {
        let other = Arc::new(FakeEmbedder::new(48));
        Bank::open(place.bank_dir(), other, place.options()).await.unwrap()
    };
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let serving = Serving::new(vec![another(&place).await, other().await]).unwrap();
        let ask = move |question: String| {
            let serving = serving.clone();
            async move { serving.search(&question, &options()).await }
        };
        clients.push(tokio::spawn(client(number, load.clone(), ask)));
    }
    load.goes_on().await;
    let to = other().await;
    let hnsw = BuildOptions { kind: IndexKind::Hnsw, ..BuildOptions::default() };
    let options = SwitchOptions { build: hnsw, questions: 20, ..SwitchOptions::default() };
    assert_eq!(bank.switch_to(&to, options.clone()).await.unwrap().outcome, SwitchOutcome::Switched);
    load.goes_on().await;
    assert_eq!(to.switch_to(&bank, options.clone()).await.unwrap().outcome, SwitchOutcome::Switched);
    load.goes_on().await;
    assert_eq!(bank.switch_to(&to, options).await.unwrap().outcome, SwitchOutcome::Switched);
    load.goes_on().await;
    load.is_over.store(true, Ordering::SeqCst);
    // Nothing was ingested meanwhile, so the new embedder answers by itself as it did under load.
    note(&to, &mut want).await;
    let mut seen = HashSet::new();
    for client in clients {
        let answers = client.await.unwrap();
        check(&answers, &want);
        seen.extend(answers.into_iter().map(|((embedder, ..), _)| embedder));
    }
    assert_eq!(seen, HashSet::from(["fake:32".to_owned(), "fake:48".to_owned()]));
}
