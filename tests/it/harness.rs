//! Small banks to test with: a folder of generated documents, and a bank beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use embank::embed::FakeEmbedder;
use embank::{
    BackfillOptions, Bank, BankOptions, BuildOptions, Clock, IndexKind, StoreOptions, Timestamp, ValidateOptions,
};

/// Dimension of the fake embedder: large enough that distances differ, small enough to be quick.
pub const DIMENSION: usize = 32;

/// A folder with `docs/` and, once opened, `bank/`.
pub struct Place {
    dir: tempfile::TempDir,
    pub clock: Clock,
    pub fake: FakeEmbedder,
}

impl Place {
    pub fn empty() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    /// Where syncing the filesystem waits for nobody else's files, if there is such a place.
    pub fn in_memory() -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn at(dir: tempfile::TempDir) -> Self {
        std::fs::create_dir(dir.path().join("docs")).unwrap();
        // Some moment in 2026; it moves only when a test says so.
        let clock = Clock::manual(Timestamp(1_780_000_000_000_000));
        Self { dir, clock, fake: FakeEmbedder::new(DIMENSION) }
    }

    /// With `count` short documents in three categories, no two of them equal.
    pub fn with_documents(count: usize) -> Self {
        let place = Self::empty();
        for number in 0..count {
            let category = ["water", "soil", "bees"][number % 3];
            place.write(&format!("{category}/{number:05}.txt"), &sentence(number));
        }
        place
    }

    /// With one JSONL file of `count` records: far quicker to read than as many files.
    pub fn with_records(count: usize) -> Self {
        let place = Self::empty();
        let lines: Vec<_> = (0..count)
            .map(|n| serde_json::json!({"id": format!("r{n}"), "text": sentence(n), "category": (["water", "soil", "bees"][n % 3])}).to_string())
            .collect();
        place.write("records.jsonl", &lines.join("\n"));
        place
    }

    /// The same files in another place, at the moment when tests begin, with a fake of its own.
    pub fn copy(&self) -> Self {
        let copy = Self::at(tempfile::tempdir().unwrap());
        copy_folder(self.path(), copy.path());
        copy
    }

    pub fn docs(&self) -> PathBuf {
        self.dir.path().join("docs")
    }

    pub fn bank_dir(&self) -> PathBuf {
        self.dir.path().join("bank")
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.docs().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.docs().join(name)).unwrap();
    }

    pub fn options(&self) -> BankOptions {
        let store = StoreOptions { durability: embank::Durability::ProcessCrash, ..StoreOptions::default() };
        BankOptions { store, clock: self.clock.clone(), ..BankOptions::default() }
    }

    pub async fn bank(&self) -> Bank {
        self.bank_with(self.fake.clone()).await
    }

    pub async fn bank_with(&self, fake: FakeEmbedder) -> Bank {
        Bank::open_or_create(self.bank_dir(), Arc::new(fake), self.options()).await.unwrap()
    }

    /// Ingested and embedded, without an index.
    pub async fn filled(&self) -> Bank {
        let bank = self.bank().await;
        bank.ingest(&[self.docs()], Default::default()).await.unwrap();
        bank.backfill(BackfillOptions::default()).await.unwrap();
        bank
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() { copy_folder(&from, &to) } else { _ = std::fs::copy(from, to).unwrap() }
    }
}

/// A sentence that no other number has: words drawn from a small vocabulary, so that neighbours exist.
pub fn sentence(number: usize) -> String {
    const WORDS: [&str; 24] = [
        "barrel", "frost", "rain", "pump", "well", "filter", "compost", "worm", "lime", "mulch", "clay", "hive",
        "swarm", "queen", "mite", "honey", "smoke", "frame", "hose", "pond", "tank", "seed", "root", "bed",
    ];
    let mut state = number as u64;
    let mut draw = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        WORDS[((z ^ (z >> 31)) % 24) as usize]
    };
    let words: Vec<_> = (0..8).map(|_| draw()).collect();
    format!("note {number}: {}.", words.join(" "))
}

/// Builds, validates and activates.
pub async fn build(bank: &Bank, kind: IndexKind) -> embank::Result<embank::Activation> {
    let built = bank.build_index(BuildOptions { kind, seed: Some(7), ..BuildOptions::default() }).await?;
    let validated = bank.validate(built, ValidateOptions::default()).await?;
    bank.activate(validated).await
}

/// Versions and rows of every table: equal before and after a step that wrote nothing.
pub async fn footprint(bank: &Bank) -> Vec<(String, u64, u64)> {
    let status = bank.status().await.unwrap();
    status.tables.into_iter().map(|table| (table.table, table.versions, table.rows)).collect()
}
