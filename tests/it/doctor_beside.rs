//! The doctor beside a writer, step by step: what others are in the middle of is no finding.
//!
//! A writer's life is recorded: the bank's files between every two of its commits. Then it is played back under the doctor:
//! a look begins at each recorded moment, and between any two tables that it opens the writer goes on by so many commits.
//! Nothing depends on timing. The oracle is that the writer is correct: the doctor must find nothing, and where chunks only
//! come, it must find nothing at the first look already, which the order in which tables are opened is for. Where chunks go,
//! no order can do that; the further looks are for those.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use embank::{
    BackfillOptions, Bank, BankOptions, Clock, DoctorOptions, DoctorReport, Faults, HousekeepingOptions, IndexKind,
    StoreOptions,
};
use futures::StreamExt;
use serde_json::json;

use crate::harness::{Place, build, sentence};
use crate::power_loss::files_below;

/// A file by its name below the bank, and a link that keeps it as it was.
type Files = BTreeMap<PathBuf, PathBuf>;

/// What the bank was between two commits of the writer's.
#[derive(Default)]
struct Record {
    moments: Vec<Files>,
    /// The change that came after each moment.
    next: Vec<String>,
    kept: BTreeMap<(PathBuf, u64), PathBuf>,
    after_commit: bool,
}

impl Record {
    /// Is told of each change before it is made.
    fn note(&mut self, bank: &Path, keep: &Path, change: &str) {
        // Between two commits nothing that is read changes but by deleting.
        if self.after_commit && change.ends_with("latest_version_hint.json") {
            return;
        }
        if self.after_commit || change.starts_with("delete") {
            self.moments.push(BTreeMap::new());
            self.next.push(change.to_owned());
            for file in files_below(bank) {
                let Ok(inode) = std::fs::metadata(&file).map(|data| data.ino()) else { continue };
                let name = file.strip_prefix(bank).unwrap().to_owned();
                let link = keep.join(self.kept.len().to_string());
                let link = self.kept.entry((name.clone(), inode)).or_insert_with(|| {
                    std::fs::hard_link(&file, &link).unwrap();
                    link
                });
                self.moments.last_mut().unwrap().insert(name, link.clone());
            }
            self.after_commit = false;
        }
        self.after_commit |= change.ends_with(".manifest");
    }
}

/// A writer's life, recorded.
struct Film {
    _keep: tempfile::TempDir,
    record: Record,
    clock: Clock,
}

/// Records what `life` does to a bank.
async fn film(place: &Place, life: impl AsyncFnOnce(&Bank, &Place)) -> Film {
    let keep = tempfile::tempdir().unwrap();
    let record = Arc::new(Mutex::new(Record::default()));
    let faults = {
        let (record, bank, keep) = (record.clone(), place.bank_dir(), keep.path().to_owned());
        Faults::counted().watched(move |_, change| record.lock().unwrap().note(&bank, &keep, change))
    };
    let options = BankOptions { store: StoreOptions { faults, ..place.options().store }, ..place.options() };
    let bank = Bank::open_or_create(place.bank_dir(), Arc::new(place.fake.clone()), options).await.unwrap();
    life(&bank, place).await;
    record.lock().unwrap().after_commit = true;
    record.lock().unwrap().note(&place.bank_dir(), keep.path(), "the end");
    drop(bank);
    Film { _keep: keep, record: std::mem::take(&mut record.lock().unwrap()), clock: place.clock.clone() }
}

/// Makes a bank's directory what it was at a moment.
fn show(bank: &Path, files: &Files) {
    let mut there = BTreeMap::new();
    for file in files_below(bank) {
        let name = file.strip_prefix(bank).unwrap().to_owned();
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        if files.get(&name).is_some_and(|kept| inode(kept) == inode(&file)) {
            there.insert(name, ());
        } else {
            std::fs::remove_file(file).unwrap();
        }
    }
    for (name, kept) in files.iter().filter(|(name, _)| !there.contains_key(*name)) {
        std::fs::create_dir_all(bank.join(name).parent().unwrap()).unwrap();
        std::fs::hard_link(kept, bank.join(name)).unwrap();
    }
}

impl Film {
    fn len(&self) -> usize {
        self.record.moments.len()
    }

    /// Lets the doctor look, beginning at a moment, while the film goes on by `stride` moments at each table that is opened.
    /// Returns the report, the number of looks, and the moment at which the first of them had opened its last table.
    async fn look(self: Arc<Self>, from: usize, stride: usize) -> (DoctorReport, usize, usize) {
        let dir = tempfile::tempdir().unwrap();
        let bank = dir.path().join("bank");
        show(&bank, &self.record.moments[from]);
        let at = Arc::new(Mutex::new((from, 0, from)));
        let faults = {
            let (film, bank, at) = (self.clone(), bank.clone(), at.clone());
            Faults::counted().watched(move |_, change| {
                let mut at = at.lock().unwrap();
                match change {
                    "point look: begins" => at.1 += 1,
                    "point look: table opened" => {
                        at.2 = if at.1 == 1 { at.0 } else { at.2 };
                        at.0 = (at.0 + stride).min(film.len() - 1);
                        if stride > 0 {
                            show(&bank, &film.record.moments[at.0]);
                        }
                    }
                    other => panic!("a look that changes something: {other}"),
                }
            })
        };
        let store = StoreOptions { faults, ..StoreOptions::default() };
        let options = BankOptions { store, clock: self.clock.clone(), ..BankOptions::default() };
        let report = Bank::examine(&bank, options, DoctorOptions::default()).await.unwrap();
        let (_, looks, opened) = *at.lock().unwrap();
        (report, looks, opened)
    }

    /// Looks from every moment at every pace; returns how many looks each took, by moment, pace and the last moment seen.
    async fn play(self: &Arc<Self>, strides: &[usize]) -> Vec<(usize, usize, usize, usize)> {
        let cases = (0..self.len()).flat_map(|from| strides.iter().map(move |stride| (from, *stride)));
        let playing = cases.map(|(from, stride)| {
            let look = tokio::spawn(self.clone().look(from, stride));
            async move { (from, stride, look.await.unwrap()) }
        });
        let seen: Vec<_> = futures::stream::iter(playing).buffer_unordered(16).collect().await;
        let mut wrong = Vec::new();
        for (from, stride, (report, ..)) in &seen {
            for check in report.findings() {
                let (before, name) = (&self.record.next[*from], check.name);
                wrong.push(format!("from moment {from} (before {before}) by {stride}: {name}: {:?}", check.examples));
            }
        }
        assert!(wrong.is_empty(), "{} of {} looks:\n{}", wrong.len(), seen.len(), wrong.join("\n"));
        seen.into_iter().map(|(from, stride, (_, looks, opened))| (from, stride, looks, opened)).collect()
    }
}

fn line(id: usize, text: usize, category: &str) -> String {
    json!({ "id": format!("r{id}"), "text": sentence(text), "category": category }).to_string()
}

/// Chunks come and nothing goes.
async fn growing(bank: &Bank, place: &Place) {
    for batch in 1..3 {
        let lines: Vec<_> = (0..batch * 15).map(|n| line(n, n, "bees")).collect();
        place.write("records.jsonl", &lines.join("\n"));
        bank.ingest(&[place.docs()], Default::default()).await.unwrap();
        bank.backfill(BackfillOptions { limit: Some(7), ..Default::default() }).await.unwrap();
    }
    bank.backfill(BackfillOptions::default()).await.unwrap();
}

/// A document comes, and an index is built.
async fn building(bank: &Bank, place: &Place) {
    place.write("late.txt", "A late note.");
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    build(bank, IndexKind::Hnsw).await.unwrap();
}

/// Chunks go, change and move; a generation goes.
async fn changing(bank: &Bank, place: &Place) {
    let text = |n: usize| if n % 3 == 1 { n + 100 } else { n };
    let lines: Vec<_> = (4..30).map(|n| line(n, text(n), ["bees", "soil"][n % 5 / 3])).collect();
    place.write("records.jsonl", &lines.join("\n"));
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let report = bank.keep_house(HousekeepingOptions::default()).await.unwrap();
    assert_eq!(report.failures, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_writer_that_only_adds_one_look_finds_nothing() {
    let place = Place::empty();
    // A bank that is just being made has not all of its tables yet.
    drop(place.bank().await);
    let film = Arc::new(film(&place, growing).await);
    assert!(film.len() > 20, "{} moments", film.len());
    let looks = film.play(&[0, 1, 3]).await;
    println!("{} looks at {} moments", looks.len(), film.len());
    let again: Vec<_> = looks.iter().filter(|(_, _, looks, _)| *looks != 1).collect();
    assert!(again.is_empty(), "a second look was needed: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_build_one_look_finds_nothing_but_where_the_build_begins() {
    let place = Place::empty();
    growing(&place.bank().await, &place).await;
    let film = Arc::new(film(&place, building).await);
    let looks = film.play(&[0, 1, 2, 3]).await;
    println!("{} looks at {} moments", looks.len(), film.len());
    // Whether a build has the maintenance lease is read with the first table, and a build may begin just after that.
    let recorded = film.record.next.iter().position(|change| change == "point build: generation recorded").unwrap();
    let lease = recorded - 1;
    let is_known = |from: usize, opened: usize| from >= lease || opened < lease;
    let again: Vec<_> =
        looks.iter().filter(|(from, _, looks, opened)| *looks != 1 && is_known(*from, *opened)).collect();
    assert!(again.is_empty(), "a second look was needed: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_writer_that_removes_and_builds_the_looks_together_find_nothing() {
    let place = Place::empty();
    let bank = place.bank().await;
    growing(&bank, &place).await;
    for kind in [IndexKind::Hnsw, IndexKind::Flat, IndexKind::Flat] {
        build(&bank, kind).await.unwrap();
    }
    drop(bank);
    let film = Arc::new(film(&place, changing).await);
    assert!(film.record.next.iter().any(|change| change == "point garbage: index dropped"), "no index was removed");
    let looks = film.play(&[0, 1, 4]).await;
    println!("{} looks at {} moments", looks.len(), film.len());
    let again = looks.iter().filter(|(_, _, looks, _)| *looks > 1).count();
    assert!(again > 0, "no look was in doubt: nothing was tried");
}
