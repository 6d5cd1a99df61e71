//! A machine that stops hard: files that were never synced come back empty, cut short, zeroed, or not at all.
//!
//! The oracle is an uninterrupted bank over the same documents: whatever was damaged, a bank must open, name what it met,
//! and be brought by one `sync` to the same documents, states and vectors, bit for bit.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use embank::{
    BackfillOptions, Bank, BankContents, BankOptions, BuildOptions, ChunkState, Durability, HousekeepingOptions,
    IndexKind, IndexOutcome, MendKind, SearchOptions, StoreOptions, SyncOptions, ValidateOptions,
};
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

use crate::harness::{Place, build, sentence};

pub const RECORDS: usize = 150;

/// Longer than any claim holds.
const LEASES_RUN_OUT: Duration = Duration::from_secs(600);

/// A bank in the middle of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Ingested,
    HalfEmbedded,
    Built,
    Activated,
    Tidied,
}

impl Stage {
    const ALL: [Self; 5] = [Self::Ingested, Self::HalfEmbedded, Self::Built, Self::Activated, Self::Tidied];

    pub async fn reach(self, place: &Place) {
        let bank = place.bank().await;
        bank.ingest(&[place.docs()], Default::default()).await.unwrap();
        if self == Self::Ingested {
            return;
        }
        bank.backfill(BackfillOptions { limit: Some(100), ..Default::default() }).await.unwrap();
        if self == Self::HalfEmbedded {
            return;
        }
        bank.backfill(BackfillOptions::default()).await.unwrap();
        if self == Self::Built {
            let options = BuildOptions { kind: IndexKind::Hnsw, seed: Some(7), ..Default::default() };
            let built = bank.build_index(options).await.unwrap();
            let validated = bank.validate(built, ValidateOptions::default()).await.unwrap();
            bank.set_aside(validated).await.unwrap();
            return;
        }
        build(&bank, IndexKind::Hnsw).await.unwrap();
        if self == Self::Activated {
            return;
        }
        // Rows that go leave lists of deleted ones behind.
        place.write("records.jsonl", &records(20));
        sync(&bank, place).await;
        bank.keep_house(HousekeepingOptions::default()).await.unwrap();
    }
}

/// The records from `first` on, without those before.
fn records(first: usize) -> String {
    let line = |n: usize| serde_json::json!({"id": format!("r{n}"), "text": sentence(n)}).to_string() + "\n";
    (first..RECORDS).map(line).collect()
}

pub fn place() -> Place {
    let place = Place::empty();
    place.write("records.jsonl", &records(0));
    // An equal text: fewer vectors in the cache than in the bank.
    place.write("copy.txt", &sentence(50));
    place
}

pub async fn sync(bank: &Bank, place: &Place) -> embank::SyncReport {
    let build = BuildOptions { kind: IndexKind::Hnsw, seed: Some(7), ..Default::default() };
    bank.sync(&[place.docs()], SyncOptions { build, ..Default::default() }).await.unwrap()
}

/// What a bank over the same documents holds that nothing ever happened to.
pub async fn uninterrupted(documents: &Path) -> BankContents {
    let calm = Place::empty();
    copy(documents, &calm.docs());
    calm.filled().await.contents().await.unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy(&from, &to) } else { std::fs::copy(from, to).map(|_| ()).unwrap() }
    }
}

/// What a hard stop makes of a file.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    Empty,
    CutShort,
    Zeroed,
    Gone,
}

impl Harm {
    const ALL: [Self; 4] = [Self::Empty, Self::CutShort, Self::Zeroed, Self::Gone];

    pub fn befall(self, file: &Path) {
        let length = std::fs::metadata(file).unwrap().len();
        // A new file under the same name, as others may be links to the old one.
        let old = std::fs::read(file).unwrap();
        std::fs::remove_file(file).unwrap();
        match self {
            Self::Empty => std::fs::write(file, []).unwrap(),
            Self::CutShort => std::fs::write(file, &old[..length as usize / 2]).unwrap(),
            Self::Zeroed => std::fs::write(file, vec![0; old.len()]).unwrap(),
            Self::Gone => {}
        }
    }
}

/// The folders of a table and what lies in them.
const FOLDERS: [&str; 5] = ["_versions", "data", "_deletions", "_indices", "_transactions"];

/// The newest file of one of the folders of a table.
pub fn newest(table: &Path, folder: &str) -> Option<PathBuf> {
    let files = files_below(&table.join(folder)).into_iter();
    let files = files.filter(|file| !file.ends_with("latest_version_hint.json"));
    // Manifests count downwards.
    if folder == "_versions" { files.min() } else { files.max_by_key(|file| modified(file)) }
}

fn modified(file: &Path) -> std::time::SystemTime {
    std::fs::metadata(file).unwrap().modified().unwrap()
}

pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let below = entries.flat_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path) } else { vec![path] }
    });
    below.collect()
}

pub fn tables(bank: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(bank).unwrap().map(|entry| entry.unwrap().path());
    let mut tables: Vec<_> = folders.filter(|path| path.extension().is_some_and(|e| e == "lance")).collect();
    tables.sort();
    tables
}

pub fn table_name(table: &Path) -> String {
    table.file_stem().unwrap().to_string_lossy().into_owned()
}

/// A copy of a place as it is now.
pub fn copy_of(place: &Place) -> Place {
    let copied = Place::empty();
    copy(place.path(), copied.path());
    // A lease of before the cut has run out: nobody knows that its holder is gone, who in truth is this process.
    copied.clock.advance(LEASES_RUN_OUT);
    copied
}

/// Opens what is left, completes it, and holds it against the oracle.
pub async fn must_recover(place: &Place, want: &BankContents, case: &str) -> Bank {
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(place.fake.clone()), place.options());
    let bank = bank.await.unwrap_or_else(|e| panic!("{case}: does not open: {e}"));
    sync(&bank, place).await;
    let got = bank.contents().await.unwrap();
    assert_eq!(got.documents.len(), want.documents.len(), "{case}");
    assert_eq!(got.status, want.status, "{case}, {:?}", bank.mends());
    assert_eq!(got.embeddings.len(), want.embeddings.len(), "{case}");
    assert!(got == *want, "{case}: other contents");
    let found = bank.search(&sentence(60), &SearchOptions::default()).await.unwrap();
    assert_eq!(found.hits[0].doc_id.as_str(), "r60", "{case}");
    assert_eq!(sync(&bank, place).await.index_is_kept(), Some(true), "{case}: a second run finds more to do");
    bank
}

trait IndexIsKept {
    fn index_is_kept(&self) -> Option<bool>;
}

impl IndexIsKept for embank::SyncReport {
    fn index_is_kept(&self) -> Option<bool> {
        let idle = self.backfill.ready == 0 && self.backfill.reconciled == Default::default();
        idle.then_some(matches!(self.index, IndexOutcome::Kept { .. }))
    }
}

#[tokio::test]
async fn whatever_the_newest_file_of_a_table_comes_to_the_bank_opens_and_is_completed() {
    let (mut cases, mut named) = (0, 0);
    for stage in [Stage::HalfEmbedded, Stage::Activated, Stage::Tidied] {
        let place = place();
        stage.reach(&place).await;
        let want = uninterrupted(&place.docs()).await;
        for table in tables(&place.bank_dir()) {
            for folder in FOLDERS {
                let Some(file) = newest(&table, folder) else { continue };
                let is_central = ["status", "embeddings"].iter().any(|t| table_name(&table).starts_with(t));
                // Transactions are not read again; harmed together with everything else they are in the test below.
                if folder == "_transactions" || stage != Stage::Activated && !is_central {
                    continue;
                }
                let harm = Harm::ALL[cases % 4];
                let case = format!("{stage:?}, {harm:?}: {}", file.strip_prefix(place.path()).unwrap().display());
                let harmed = copy_of(&place);
                harm.befall(&harmed.path().join(file.strip_prefix(place.path()).unwrap()));
                let bank = must_recover(&harmed, &want, &case).await;
                cases += 1;
                named += usize::from(!bank.mends().is_empty());
                // A manifest that is gone leaves no trace; old rows need not be in use.
                let is_silent = matches!(harm, Harm::Gone) || folder != "_versions";
                assert!(!bank.mends().is_empty() || is_silent, "{case}: not named");
            }
        }
    }
    assert!(cases > 20 && named > 10, "{named} of {cases} cases were met and named");
}

#[tokio::test]
async fn a_bank_recovers_when_the_newest_files_of_all_tables_are_harmed_together() {
    for (number, stage) in Stage::ALL.into_iter().enumerate() {
        let place = place();
        stage.reach(&place).await;
        let want = uninterrupted(&place.docs()).await;
        for folders in [&FOLDERS[..1], &FOLDERS[..]] {
            let harmed = copy_of(&place);
            for (table, folder) in tables(&harmed.bank_dir()).iter().flat_map(|t| folders.iter().map(move |f| (t, f))) {
                if let Some(file) = newest(table, folder) {
                    Harm::ALL[number % 4].befall(&file);
                }
            }
            must_recover(&harmed, &want, &format!("{stage:?}, {folders:?}")).await;
        }
    }
}

#[tokio::test]
async fn an_unreadable_version_is_set_aside_under_its_name_and_kept() {
    let place = place();
    Stage::Activated.reach(&place).await;
    let file = newest(&place.bank_dir().join("status.lance"), "_versions").unwrap();
    std::fs::write(&file, "not a manifest").unwrap();
    let bank = place.bank().await;
    let mends = bank.mends();
    assert!(
        matches!(&mends[..], [mend] if mend.table == "status" && matches!(mend.kind, MendKind::VersionUnreadable { .. })),
        "{mends:?}"
    );
    let status = bank.status().await.unwrap();
    assert_eq!(status.mended, mends);
    let kept = place.bank_dir().join(&status.set_aside[0]);
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "not a manifest");
    assert_eq!(place.bank().await.mends(), [], "it is met once");
}

#[tokio::test]
async fn rows_that_were_acknowledged_are_not_gone_back_behind() {
    let place = place();
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(place.fake.clone()), durable(&place)).await.unwrap();
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    for limit in [50, 50] {
        bank.backfill(BackfillOptions { limit: Some(limit), ..Default::default() }).await.unwrap();
    }
    drop(bank);
    // The older half: no hard stop does this, a failing disk may.
    let table = tables(&place.bank_dir()).into_iter().find(|path| path.to_string_lossy().contains("embeddings__"));
    let file = files_below(&table.unwrap().join("data")).into_iter().min_by_key(|file| modified(file)).unwrap();
    Harm::Empty.befall(&file);
    let bank = place.bank().await;
    let mends = bank.mends();
    assert!(matches!(&mends[..], [mend] if matches!(mend.kind, MendKind::RowsLost { rows: 50, .. })), "{mends:?}");
    assert_eq!(bank.contents().await.unwrap().embeddings.len(), 50, "the newer half stays");
    let cached = bank.status().await.unwrap().cached;
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!(
        (report.reconciled.lost, report.embedded),
        (50, RECORDS as u64 - cached),
        "the cache has the older half"
    );
    must_recover(&place, &uninterrupted(&place.docs()).await, "half of the vectors lost").await;
}

fn durable(place: &Place) -> BankOptions {
    let store = StoreOptions { durability: Durability::PowerLoss, ..StoreOptions::default() };
    BankOptions { store, ..place.options() }
}

/// Follows the engine's own log, and takes a picture of the bank's directory at every commit: as it would be if the
/// machine stopped there, with everything harmed that was written since the last sync.
#[derive(Clone)]
struct PowerCuts(Arc<Mutex<Recording>>);

struct Recording {
    place: PathBuf,
    synced: HashSet<PathBuf>,
    lines: Vec<String>,
    cuts: Vec<(String, u64, Place)>,
    /// Ready chunks that were acknowledged.
    acknowledged: u64,
}

impl PowerCuts {
    fn of(place: &Place) -> Self {
        // The marker is synced by itself, before there is any table.
        let (place, synced) = (place.path().to_owned(), HashSet::from([PathBuf::from("bank/embank.json")]));
        Self(Arc::new(Mutex::new(Recording { place, synced, lines: Vec::new(), cuts: Vec::new(), acknowledged: 0 })))
    }
}

impl Recording {
    fn line(&mut self, line: &str) {
        let name = |file: &Path| file.strip_prefix(&self.place).unwrap().to_owned();
        self.lines.push(line.to_owned());
        if line.contains("synced") {
            self.synced.extend(files_below(&self.place).iter().map(|file| name(file)));
        }
        if let Some(count) = line.contains("batch committed").then(|| line.rsplit_once("finished=").unwrap().1) {
            self.acknowledged += count.trim().parse::<u64>().unwrap();
        }
        if !line.contains("DEBUG") {
            return;
        }
        let cut = Place::empty();
        for (number, file) in files_below(&self.place).into_iter().enumerate() {
            let to = cut.path().join(name(&file));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            // What has gone meanwhile was never finished.
            if std::fs::copy(&file, &to).is_ok()
                && !self.synced.contains(&name(&file))
                && file.starts_with(self.place.join("bank"))
            {
                Harm::ALL[(number + self.cuts.len()) % 4].befall(&to);
            }
        }
        self.cuts.push((line.trim().to_owned(), self.acknowledged, cut));
    }
}

impl std::io::Write for PowerCuts {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().line(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// While one subscriber alone was ever registered, `tracing` asks the thread that first reaches a callsite whether it is of
/// interest, and keeps the answer for all threads: a test beside these would switch the engine's log off for them. With a
/// second one it asks both.
static SECOND_SUBSCRIBER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// Runs a whole life with syncs, and returns what was recorded of it.
async fn recorded(place: &Place) -> PowerCuts {
    LazyLock::force(&SECOND_SUBSCRIBER);
    let cuts = PowerCuts::of(place);
    let writer = cuts.clone();
    let log = tracing_subscriber::fmt()
        .with_env_filter("embank=trace")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(log);
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(place.fake.clone()), durable(place)).await.unwrap();
    // A callsite that another test was registering at that moment knows of this subscriber from here on.
    tracing::callsite::rebuild_interest_cache();
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(BackfillOptions { limit: Some(120), ..Default::default() }).await.unwrap();
    sync(&bank, place).await;
    cuts
}

#[tokio::test]
async fn a_power_cut_at_any_commit_costs_nothing_that_was_acknowledged() {
    let place = Place::in_memory();
    place.write("records.jsonl", &records(0));
    place.write("copy.txt", &sentence(50));
    let cuts = recorded(&place).await;
    let want = uninterrupted(&place.docs()).await;
    let Recording { cuts, .. } = Arc::into_inner(cuts.0).unwrap().into_inner().unwrap();
    assert!(cuts.len() > 10, "{} moments", cuts.len());
    for (moment, acknowledged, cut) in cuts {
        let bank = Bank::open_or_create(cut.bank_dir(), Arc::new(cut.fake.clone()), cut.options()).await;
        let bank = bank.unwrap_or_else(|e| panic!("{moment}: does not open: {e}"));
        let contents = bank.contents().await.unwrap();
        let ready = contents.status.iter().filter(|row| row.1 == ChunkState::Ready).count() as u64;
        assert!(ready >= acknowledged, "{moment}: {ready} of {acknowledged} acknowledged chunks");
        assert!(contents.embeddings.len() as u64 >= acknowledged, "{moment}");
        drop(bank);
        cut.clock.advance(LEASES_RUN_OUT);
        must_recover(&cut, &want, &moment).await;
    }
}

#[tokio::test]
async fn what_is_called_done_was_synced_before_and_a_flip_before_and_after() {
    let place = Place::in_memory();
    place.write("records.jsonl", &records(0));
    let cuts = recorded(&place).await;
    let lines = cuts.0.lock().unwrap().lines.clone();
    let order_of = |words: &[&'static str]| -> Vec<&'static str> {
        let of_line = |line: &String| words.iter().copied().find(|word| line.contains(word));
        lines.iter().filter_map(of_line).collect()
    };
    let ingested = order_of(&["marked new", "synced", "claimed"]);
    // Once for the batch, once for the row that `runs` has of it.
    assert_eq!(ingested[..4], ["marked new", "synced", "synced", "claimed"]);
    let batches = order_of(&["vectors stored", "synced", "batch committed"]);
    let committed: Vec<_> = batches.windows(2).filter(|pair| pair[1] == "batch committed").collect();
    assert_eq!(committed.len(), 2);
    assert!(committed.iter().all(|pair| pair[0] == "synced"), "a batch is synced before it is called committed");
    let flip = order_of(&["validated", "synced", "pointer moved"]);
    let at = flip.iter().position(|word| *word == "pointer moved").unwrap();
    assert_eq!(flip[at - 2..=at + 1], ["validated", "synced", "pointer moved", "synced"]);
}
