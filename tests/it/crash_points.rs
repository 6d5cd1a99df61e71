//! A crash at every change that a bank makes to its disk; then running the same job again gives what an uninterrupted run
//! gives.
//!
//! The job has three parts, as three nights would have: fill a new bank and build a graph; take over an edit, a removal, a
//! move and a new document, and build a flat generation; build inverted lists and collect the garbage of the first part.
//! Each part is run once to count its changes, then once for every one of them with a fault at that change, on a copy of
//! what the parts before it left. Between fault and repetition the bank is opened without faults and checked: what was
//! acknowledged is there, and every invariant that holds at all times holds now.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::{
    BackfillOptions, Bank, BankContents, BankOptions, BuildOptions, ChunkState, Clock, ContentHash, Durability,
    FaultEffect, Faults, Generation, GenerationState, HousekeepingOptions, IndexKind, IngestOptions, SearchOptions,
    StoreOptions, Timestamp, ValidateOptions,
};

use crate::harness::sentence;

/// The parts of the job; each builds another kind of index.
const PARTS: [IndexKind; 3] = [IndexKind::Hnsw, IndexKind::Flat, IndexKind::IvfPq];

/// Records of the first part: enough to train inverted lists with codes of four bits.
const RECORDS: usize = 20;

const DIMENSION: usize = 16;

/// Some moment in 2026.
const BEGAN: Timestamp = Timestamp(1_780_000_000_000_000);

/// Longer than any lease: a fault that leaves the process alive leaves its leases running.
const LEASES_RUN_OUT: Duration = Duration::from_secs(3600);

/// The fake embedder, with a note of each text that it was given.
#[derive(Clone)]
struct Noting {
    fake: FakeEmbedder,
    texts: Arc<Mutex<Vec<ContentHash>>>,
}

impl Noting {
    fn new() -> Self {
        Self { fake: FakeEmbedder::new(DIMENSION), texts: Arc::default() }
    }

    fn texts(&self) -> Vec<ContentHash> {
        self.texts.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Embedder for Noting {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    /// Few, so that one batch has several calls and several commits to the cache.
    fn texts_per_call(&self) -> usize {
        8
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        self.texts.lock().unwrap().extend(texts.iter().map(|text| ContentHash::of(text)));
        self.fake.embed(kind, texts).await
    }
}

/// A folder with documents and a bank, as they are when a part begins.
struct Place {
    path: PathBuf,
    /// Removes it in the end; a child process leaves that to its parent.
    _dir: Option<tempfile::TempDir>,
}

impl Place {
    /// Where `part` begins, with a copy of `bank`.
    fn at(part: usize, bank: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { path: dir.path().to_owned(), _dir: Some(dir) };
        write_documents(&place.docs(), part);
        if let Some(bank) = bank {
            copy_folder(bank, &place.bank());
        }
        place
    }

    fn docs(&self) -> PathBuf {
        self.path.join("docs")
    }

    fn bank(&self) -> PathBuf {
        self.path.join("bank")
    }
}

/// The documents of a part: records, files, two equal texts. From the second part on one is edited, one is gone, one has
/// another category, one is new.
fn write_documents(docs: &Path, part: usize) {
    let mut records: Vec<_> = (0..RECORDS)
        .map(|n| serde_json::json!({ "id": format!("r{n}"), "text": sentence(n), "category": "water" }))
        .collect();
    let mut copy = sentence(1);
    if part > 0 {
        records[2]["text"] = sentence(102).into();
        records.remove(5);
        records[7]["category"] = "soil".into();
        records.push(serde_json::json!({ "id": "new", "text": sentence(103), "category": "bees" }));
        copy = sentence(104);
    }
    let lines: Vec<_> = records.iter().map(ToString::to_string).collect();
    std::fs::create_dir_all(docs.join("bees")).unwrap();
    std::fs::write(docs.join("records.jsonl"), lines.join("\n")).unwrap();
    std::fs::write(docs.join("copy.txt"), copy).unwrap();
    std::fs::write(docs.join("bees/one.md"), "# Bees\n\nA hive.\n\n# Frames\n\nTen of them.").unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            // Quicker than a copy, and as good: what is written once is only ever replaced or removed.
            std::fs::hard_link(entry.path(), target).unwrap();
        }
    }
}

/// Every file below a folder with its length and time of change.
fn listing(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.map(Result::unwrap) {
        let data = entry.metadata().unwrap();
        if data.is_dir() {
            files.extend(listing(&entry.path()));
        } else {
            files.push((entry.path(), data.len(), data.modified().unwrap()));
        }
    }
    files.sort();
    files
}

async fn open(place: &Place, embedder: &Noting, clock: Clock, faults: Faults) -> embank::Result<Bank> {
    let store = StoreOptions { durability: Durability::ProcessCrash, faults, ..StoreOptions::default() };
    let options = BankOptions { store, clock, ..BankOptions::default() };
    Bank::open_or_create(place.bank(), Arc::new(embedder.clone()), options).await
}

/// How far a part got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Acknowledged {
    #[default]
    Nothing,
    Ingest,
    Backfill,
    Activation,
    Everything,
}

/// The part's job, as a user would run it again after a crash. `acknowledged` says how far it got.
async fn run_part(
    place: &Place,
    part: usize,
    embedder: &Noting,
    clock: Clock,
    faults: Faults,
    acknowledged: &mut Acknowledged,
) -> embank::Result<Bank> {
    let bank = open(place, embedder, clock, faults).await?;
    bank.ingest(&[place.docs()], IngestOptions::default()).await?;
    *acknowledged = Acknowledged::Ingest;
    bank.backfill(BackfillOptions::default()).await?;
    *acknowledged = Acknowledged::Backfill;
    let kind = PARTS[part];
    if active(&bank).await?.is_none_or(|active| active.kind != kind.label()) {
        let build = BuildOptions { kind, seed: Some(7), ..BuildOptions::default() };
        // Tuning is not what is tested here; each further setting costs a pass over the queries.
        let validate = ValidateOptions { k: 3, ef: Some(32), refine_factor: Some(20), ..ValidateOptions::default() };
        let built = bank.build_index(build).await?;
        let validated = bank.validate(built, validate).await?;
        bank.activate(validated).await?;
    }
    *acknowledged = Acknowledged::Activation;
    bank.keep_house(HousekeepingOptions::default()).await?;
    *acknowledged = Acknowledged::Everything;
    Ok(bank)
}

async fn active(bank: &Bank) -> embank::Result<Option<Generation>> {
    Ok(bank.generations().await?.into_iter().find(|generation| generation.state == GenerationState::Active))
}

/// What is compared: everything but ids of generations and moments.
#[derive(Debug, PartialEq)]
struct State {
    contents: BankContents,
    cache: Vec<(ContentHash, Vec<f32>)>,
    /// Kind, state, rows. What is active and what was is read off the pointer.
    generations: Vec<(String, GenerationState, u64)>,
}

async fn state(bank: &Bank) -> State {
    let generations = bank.generations().await.unwrap();
    State {
        contents: bank.contents().await.unwrap(),
        cache: bank.cached_vectors().await.unwrap(),
        generations: generations.into_iter().map(|g| (g.kind, g.state, g.rows)).collect(),
    }
}

/// What the uninterrupted run of a part found and left.
struct Calm {
    /// The bank when the part began; none for the first.
    before: Option<PathBuf>,
    changes: Vec<String>,
    state: State,
    /// Texts that the part has embedded.
    embedded: HashSet<ContentHash>,
    place: Place,
}

/// Runs the whole job without a fault.
async fn calm_runs() -> Vec<Calm> {
    let mut calm: Vec<Calm> = Vec::new();
    for part in 0..PARTS.len() {
        let before = calm.last().map(|last| last.place.bank());
        let place = Place::at(part, before.as_deref());
        let (embedder, faults) = (Noting::new(), Faults::counted());
        let clock = Clock::manual(BEGAN);
        run_part(&place, part, &embedder, clock.clone(), faults.clone(), &mut Acknowledged::Nothing).await.unwrap();
        let bank = open(&place, &embedder, clock, Faults::default()).await.unwrap();
        let (state, texts) = (state(&bank).await, embedder.texts());
        let embedded: HashSet<_> = texts.iter().copied().collect();
        assert_eq!(embedded.len(), texts.len(), "without a fault no text is embedded twice");
        calm.push(Calm { before, changes: faults.changes(), state, embedded, place });
    }
    calm
}

/// What holds at every moment, whatever happened; checked on a bank that was just opened after a crash.
async fn check_invariants(bank: &Bank, calm: &Calm, acknowledged: Acknowledged, kind: IndexKind) {
    let found = state(bank).await;
    let unique = |ids: Vec<String>| {
        let set: HashSet<_> = ids.iter().cloned().collect();
        assert_eq!(set.len(), ids.len(), "a row stands twice");
        set
    };
    let documents = unique(found.contents.documents.iter().map(|row| row.id.to_string()).collect());
    let states = unique(found.contents.status.iter().map(|row| row.0.to_string()).collect());
    let vectors = unique(found.contents.embeddings.iter().map(|row| row.0.to_string()).collect());
    let _ = unique(found.cache.iter().map(|row| row.0.to_string()).collect());
    assert!(states.is_subset(&documents), "a state of a chunk that is gone");
    assert!(vectors.is_subset(&documents), "a vector of a chunk that is gone");
    let cached: HashSet<_> = found.cache.iter().map(|row| row.0).collect();
    for (id, hash, _) in &found.contents.embeddings {
        assert!(cached.contains(hash), "the vector of {id} was stored before it was in the cache");
    }
    for (id, state, _) in &found.contents.status {
        let has_vector = vectors.contains(&id.to_string());
        assert!(*state != ChunkState::Ready || has_vector, "{id} is called ready and has no vector");
    }

    // What search follows passed its validation; and once something is active, something always is.
    let active = active(bank).await.unwrap();
    assert!(active.is_some() || calm.before.is_none(), "nothing is active any more");
    if let Some(active) = &active {
        let recall = active.recall.as_ref().expect("the active generation was never measured");
        assert!(recall.recall >= recall.required, "the active generation did not pass");
        let found = bank.search("rain barrel", &SearchOptions::default()).await.unwrap();
        assert_eq!(found.generation, active.id);
        assert!(!found.hits.is_empty(), "the active generation finds nothing");
    }

    // What was acknowledged is there.
    if acknowledged >= Acknowledged::Ingest {
        assert_eq!(found.contents.documents, calm.state.contents.documents, "an acknowledged ingest is not all there");
    }
    if acknowledged >= Acknowledged::Backfill {
        assert_eq!(found.contents, calm.state.contents, "an acknowledged backfill is not all there");
        assert_eq!(found.cache, calm.state.cache);
    }
    if acknowledged >= Acknowledged::Activation {
        let active = active.map(|active| active.kind);
        assert_eq!(active.as_deref(), Some(kind.label()), "an acknowledged activation is lost");
    }
}

/// Runs a part with a fault, looks at what it left, runs it again, and compares. `strike` runs it the first time.
async fn crash_and_run_again(part: usize, calm: &Calm, what: &str, strike: impl AsyncFnOnce(&Place) -> Struck) {
    let place = Place::at(part, calm.before.as_deref());
    let struck = strike(&place).await;
    let clock = Clock::manual(BEGAN);
    clock.advance(struck.later);

    let again = Noting::new();
    // A crash before the marker file leaves no bank; there is nothing to look at then.
    let mut cached_before = HashSet::new();
    if place.bank().join("embank.json").exists() {
        let bank = open(&place, &again, clock.clone(), Faults::default()).await.unwrap();
        check_invariants(&bank, calm, struck.acknowledged, PARTS[part]).await;
        cached_before = bank.cached_vectors().await.unwrap().into_iter().map(|row| row.0).collect();
    }

    let again = Noting::new();
    let mut acknowledged = Acknowledged::Nothing;
    let repeated = run_part(&place, part, &again, clock, Faults::default(), &mut acknowledged).await;
    let bank = repeated
        .unwrap_or_else(|error| panic!("{what}: the second run: {error} {:?}", std::error::Error::source(&error)));
    let embedded = again.texts();
    assert!(embedded.iter().all(|hash| !cached_before.contains(hash)), "a text in the cache was embedded again");
    let unique: HashSet<_> = embedded.iter().copied().collect();
    assert_eq!(unique.len(), embedded.len(), "the second run embedded a text twice");
    if let Some(first) = struck.embedded {
        let first: HashSet<_> = first.into_iter().collect();
        let all: HashSet<_> = first.union(&unique).copied().collect();
        assert_eq!(all, calm.embedded, "between them the runs embedded other texts than one run does");
    }

    let found = state(&bank).await;
    assert!(found == calm.state, "{what}: {}", difference(&found, &calm.state));
}

/// What the first run came to.
struct Struck {
    acknowledged: Acknowledged,
    /// Texts that it embedded, where that is known.
    embedded: Option<Vec<ContentHash>>,
    /// How much later the second run is.
    later: Duration,
}

fn difference(found: &State, want: &State) -> String {
    let mut text = String::new();
    let mut note = |name: &str, found: String, want: String| {
        if found != want {
            text.push_str(&format!("\n{name}\n  found {found}\n  want  {want}"));
        }
    };
    note("documents", format!("{:?}", found.contents.documents), format!("{:?}", want.contents.documents));
    note("status", format!("{:?}", found.contents.status), format!("{:?}", want.contents.status));
    note("embeddings", format!("{:?}", found.contents.embeddings), format!("{:?}", want.contents.embeddings));
    note("cache", format!("{:?}", found.cache), format!("{:?}", want.cache));
    note("generations", format!("{:?}", found.generations), format!("{:?}", want.generations));
    text
}

/// A run inside this process whose disk fails at the change number `at`.
async fn strike_here(place: &Place, part: usize, at: u64, effect: FaultEffect) -> Struck {
    let embedder = Noting::new();
    let seen: Arc<Mutex<Option<Vec<_>>>> = Arc::default();
    let (note, bank) = (seen.clone(), place.bank());
    let faults = Faults::at(at, effect).watched(move |number, _| {
        if number == at && effect == FaultEffect::Die {
            *note.lock().unwrap() = Some(listing(&bank));
        }
    });
    let mut acknowledged = Acknowledged::Nothing;
    let result = run_part(place, part, &embedder, Clock::manual(BEGAN), faults, &mut acknowledged).await;
    if let Some(then) = seen.lock().unwrap().take() {
        assert!(listing(&place.bank()) == then, "something reached the disk after it had died");
        assert!(result.is_err() || acknowledged == Acknowledged::Everything);
    }
    Struck { acknowledged, embedded: Some(embedder.texts()), later: LEASES_RUN_OUT }
}

/// Runs the cases on all processors and reports all that fail.
async fn all_of<F>(cases: Vec<(String, F)>)
where
    F: Future<Output = ()> + Send + 'static,
{
    use futures::StreamExt;
    let count = cases.len();
    let running = cases.into_iter().map(|(what, case)| async move { (what, tokio::spawn(case).await) });
    let ended: Vec<_> = futures::stream::iter(running).buffer_unordered(3).collect().await;
    let mut failed: Vec<_> = ended.into_iter().filter(|(_, result)| result.is_err()).map(|(what, _)| what).collect();
    failed.sort();
    assert!(failed.is_empty(), "{} of {count} crashes are not made up for:\n{}", failed.len(), failed.join("\n"));
}

fn name_of(part: usize, at: u64, changes: &[String]) -> String {
    let change = changes.get(at as usize - 1).map_or("nothing", String::as_str);
    format!("part {part}, change {at:3}: {change}")
}

/// All changes of all parts: part, number, what it is.
fn all_changes(calm: &[Calm]) -> Vec<(usize, u64, String)> {
    let of = |part: usize| (1..=calm[part].changes.len() as u64).map(move |at| (part, at));
    (0..calm.len()).flat_map(of).map(|(part, at)| (part, at, name_of(part, at, &calm[part].changes))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_change_is_made_up_for_by_running_again() {
    let calm = Arc::new(calm_runs().await);
    let counts: Vec<_> = calm.iter().map(|part| part.changes.len()).collect();
    println!("N = {} changes, in three parts: {counts:?}", counts.iter().sum::<usize>());
    let mut cases = Vec::new();
    for (part, at, what) in all_changes(&calm) {
        let (calm, name) = (calm.clone(), what.clone());
        cases.push((name, async move {
            let strike = async |place: &Place| strike_here(place, part, at, FaultEffect::Die).await;
            crash_and_run_again(part, &calm[part], &what, strike).await;
        }));
    }
    all_of(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_file_and_a_write_that_fails_once_are_made_up_for_too() {
    let calm = Arc::new(calm_runs().await);
    let mut cases = Vec::new();
    for (position, (part, at, what)) in all_changes(&calm).into_iter().enumerate() {
        // Coprime steps, so that over the parts every kind of file has its turn.
        let effect = match (position % 11, position % 13) {
            (5, _) => FaultEffect::Tear,
            (_, 6) => FaultEffect::FailOnce,
            _ => continue,
        };
        let (calm, name) = (calm.clone(), format!("{effect:?}, {what}"));
        cases.push((name, async move {
            let strike = async |place: &Place| strike_here(place, part, at, effect).await;
            crash_and_run_again(part, &calm[part], &what, strike).await;
        }));
    }
    all_of(cases).await;
}

/// The child's orders: the folder, the part, the change, the effect.
const ORDERS: &str = "EMBANK_TEST_CRASH";

#[tokio::test]
#[ignore = "a part of another test, which starts it"]
async fn a_child_that_aborts() {
    let orders = std::env::var(ORDERS).unwrap();
    let [path, part, at, effect] = orders.split('|').collect::<Vec<_>>().try_into().unwrap();
    let place = Place { path: path.into(), _dir: None };
    let effect = if effect == "tear" { FaultEffect::TearAndAbort } else { FaultEffect::Abort };
    let faults = Faults::at(at.parse().unwrap(), effect);
    let (embedder, clock) = (Noting::new(), Clock::manual(BEGAN));
    run_part(&place, part.parse().unwrap(), &embedder, clock, faults, &mut Acknowledged::Nothing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_at_a_change_is_made_up_for_at_once() {
    let calm = Arc::new(calm_runs().await);
    let mut cases = Vec::new();
    for (position, (part, at, what)) in all_changes(&calm).into_iter().enumerate().skip(3).step_by(11) {
        let (calm, name) = (calm.clone(), what.clone());
        cases.push((name, async move {
            let strike = async |place: &Place| {
                let effect = if position % 2 == 0 { "abort" } else { "tear" };
                let ended = Command::new(std::env::current_exe().unwrap())
                    .args(["crash_points::a_child_that_aborts", "--exact", "--ignored"])
                    .env(ORDERS, format!("{}|{part}|{at}|{effect}", place.path.display()))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .unwrap();
                assert!(ended.code().is_none(), "the child was to be ended by a signal: {ended}");
                // No later: leases of a process that is gone hold nobody up.
                Struck { acknowledged: Acknowledged::Nothing, embedded: None, later: Duration::ZERO }
            };
            crash_and_run_again(part, &calm[part], &what, strike).await;
        }));
    }
    all_of(cases).await;
}

#[tokio::test]
async fn every_file_and_every_named_point_is_among_the_counted_changes() {
    let calm = calm_runs().await;
    let changes: HashSet<&str> = calm.iter().flat_map(|part| &part.changes).map(String::as_str).collect();
    let bank = calm[0].place.bank().canonicalize().unwrap();
    let files: Vec<_> = listing(&bank).into_iter().map(|(path, ..)| path).collect();
    assert!(files.len() > 30);
    for path in files {
        let name = path.strip_prefix(&bank).unwrap().display().to_string();
        // The marker has points of its own. The note of versions is written right after the point `acknowledge`, and without
        // it nothing is lost: a bank that has none opens as well.
        let is_exempt = ["embank.json", "embank.acknowledged.json"].contains(&name.as_str());
        assert!(is_exempt || changes.contains(format!("put {name}").as_str()), "{name} was not counted");
    }
    for point in [
        "bank: folder made",
        "bank: marker drafted",
        "bank: marker written",
        "ingest: states of what moved removed",
        "ingest: vectors of what moved removed",
        "ingest: documents stored",
        "ingest: marked new",
        "ingest: states removed",
        "ingest: vectors removed",
        "ingest: documents removed",
        "backfill: claimed",
        "backfill: cached",
        "backfill: vectors stored",
        "backfill: marked ready",
        "build: generation recorded",
        "build: trained",
        "build: index built",
        "build: built",
        "validate: passed",
        "activate: before the pointer moves",
        "activate: pointer moved",
        "garbage: index dropped",
        "garbage: generation forgotten",
        "acknowledge",
    ] {
        assert!(changes.contains(format!("point {point}").as_str()), "the job never comes to `{point}`");
    }
}

/// A bank of so many small fragments that housekeeping compacts its tables, with an index over them.
async fn scattered() -> Place {
    let place = Place::at(0, None);
    let (embedder, clock) = (Noting::new(), Clock::manual(BEGAN));
    let bank = open(&place, &embedder, clock.clone(), Faults::default()).await.unwrap();
    for number in 0..33 {
        std::fs::write(place.docs().join(format!("{number}.txt")), sentence(200 + number)).unwrap();
        bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
        bank.backfill(BackfillOptions::default()).await.unwrap();
    }
    let build = BuildOptions { kind: IndexKind::Hnsw, seed: Some(7), ..BuildOptions::default() };
    let validate = ValidateOptions { k: 3, ef: Some(32), refine_factor: Some(20), ..ValidateOptions::default() };
    let built = bank.build_index(build).await.unwrap();
    let validated = bank.validate(built, validate).await.unwrap();
    bank.activate(validated).await.unwrap();
    place
}

/// Everything that housekeeping can do: all but the newest version of each table goes.
const ALL_OF_IT: HousekeepingOptions = HousekeepingOptions { keep_versions: Duration::ZERO };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_housekeeping_changes_nothing_that_is_read() {
    let template = Arc::new(scattered().await);
    let (embedder, clock) = (Noting::new(), Clock::manual(BEGAN));
    let before = open(&template, &embedder, clock.clone(), Faults::default()).await.unwrap();
    let options = SearchOptions { k: 5, ..SearchOptions::default() };
    let hits = before.search("rain barrel", &options).await.unwrap().hits;
    let want = Arc::new((state(&before).await, hits));

    let counted = Faults::counted();
    let place = Place::at(0, Some(&template.bank()));
    let bank = open(&place, &embedder, clock.clone(), counted.clone()).await.unwrap();
    let report = bank.keep_house(ALL_OF_IT).await.unwrap();
    assert_eq!(report.failures, []);
    assert!(report.compacted.len() >= 5 && report.versions_removed > 100, "{report:?}");
    let changes = counted.changes();
    println!("N = {} changes of housekeeping", changes.len());

    let mut cases = Vec::new();
    for at in 1..=changes.len() as u64 {
        // Removing old versions is hundreds of deletions that are all alike.
        if changes[at as usize - 1].starts_with("delete") && at % 47 != 0 {
            continue;
        }
        let (template, want) = (template.clone(), want.clone());
        cases.push((name_of(0, at, &changes), async move {
            let place = Place::at(0, Some(&template.bank()));
            let (embedder, clock) = (Noting::new(), Clock::manual(BEGAN));
            if let Ok(bank) = open(&place, &embedder, clock.clone(), Faults::at(at, FaultEffect::Die)).await {
                let _ = bank.keep_house(ALL_OF_IT).await;
            }
            clock.advance(LEASES_RUN_OUT);
            for attempt in ["after the crash", "after another run"] {
                let bank = open(&place, &embedder, clock.clone(), Faults::default()).await.unwrap();
                assert!(state(&bank).await == want.0, "other contents {attempt}");
                let options = SearchOptions { k: 5, ..SearchOptions::default() };
                assert_eq!(bank.search("rain barrel", &options).await.unwrap().hits, want.1, "{attempt}");
                assert_eq!(bank.keep_house(ALL_OF_IT).await.unwrap().failures, []);
            }
        }));
    }
    all_of(cases).await;
}
