//! A repair that dies at any change of the disk, and is made again: the same bank as after one that is not interrupted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use embank::{Bank, Clock};
use embank::{
    BankContents, BankOptions, ContentHash, DoctorOptions, DoctorReport, FaultEffect, Faults, GenerationState,
    IndexKind, Repair, StoreOptions, Timestamp,
};
use futures::StreamExt;

use crate::doctor::{Patient, found};
use crate::harness::{Place, build};
use crate::power_loss::{files_below, tables};

/// A small bank that everything has happened to which a repair mends.
async fn broken() -> Patient {
    let place = Place::with_records(30);
    let bank = place.filled().await;
    for kind in [IndexKind::Flat, IndexKind::Hnsw] {
        build(&bank, kind).await.unwrap();
    }
    let embedder = bank.status().await.unwrap().embedder.to_string();
    let generations = bank.generations().await.unwrap();
    drop(bank);
    let patient = Patient { place, embedder };
    let (vectors, cache) = (patient.embeddings(), patient.cache());
    patient.repeat("documents", "doc_id = 'r7'").await;
    patient.set("documents", "doc_id = 'r8'", "content", "'another text'").await;
    let nobody = "00112233445566778899aabbccddeeff";
    for table in ["status", vectors.as_str()] {
        let id = patient.text(table, "id", 3).await;
        let rows = patient.reworded(table, &format!("id = '{id}'"), "id", nobody).await;
        patient.append(table, rows).await;
    }
    let id = patient.text("status", "id", 5).await;
    patient.set("status", &format!("id = '{id}'"), "status", "'odd'").await;
    patient.repeat(&vectors, "doc_id = 'r9'").await;
    let rows = patient.changed(&vectors, "doc_id = 'r10'", |_| f32::NAN).await;
    patient.replace(&vectors, "doc_id = 'r10'", rows).await;
    let row = format!("content_hash = '{}'", patient.text(&cache, "content_hash", 11).await);
    let rows = patient.changed(&cache, &row, |_| f32::NAN).await;
    patient.replace(&cache, &row, rows).await;
    let [flat, graph] = [0, 1].map(|n| generations[n].id.to_string());
    patient.set("generations", &format!("id = '{flat}'"), "state", "'failed'").await;
    patient.drop_index(&graph).await;
    patient.set("meta", "key = 'lease/maintenance'", "value", "'nonsense'").await;
    // A folder of an index and a file that belong to nothing, the latter long ago.
    let folder = patient.folder(&vectors);
    let stray = folder.join("_indices/00112233-4455-6677-8899-aabbccddeeff");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("index.idx"), "half an index").unwrap();
    let left = folder.join("data/left.lance");
    std::fs::write(&left, "half a file").unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    std::fs::File::options().append(true).open(left).unwrap().set_modified(long_ago).unwrap();
    // The newest version of one table, and rows of another.
    let manifest = crate::power_loss::newest(&patient.folder("runs"), "_versions").unwrap();
    std::fs::write(manifest, "").unwrap();
    patient
}

/// A copy of links: nothing is changed in place.
fn link(from: &Path, to: &Path) {
    for table in tables(from) {
        for file in files_below(&table) {
            let to = to.join(file.strip_prefix(from).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::hard_link(file, to).unwrap();
        }
    }
    std::fs::copy(from.join("embank.json"), to.join("embank.json")).unwrap();
}

async fn repair(bank: &Path, clock: &Clock, faults: Faults) -> embank::Result<DoctorReport> {
    let store = StoreOptions { faults, durability: embank::Durability::ProcessCrash, ..StoreOptions::default() };
    let options = BankOptions { store, clock: clock.clone(), ..BankOptions::default() };
    Bank::examine(bank, options, DoctorOptions { repair: Repair::WhatIsSafe }).await
}

#[derive(Debug, PartialEq)]
struct State {
    contents: BankContents,
    cache: Vec<(ContentHash, Vec<f32>)>,
    generations: Vec<(String, GenerationState)>,
    /// Checks that still find something, and what.
    left: Vec<(&'static str, Vec<String>)>,
    leftovers: bool,
}

async fn state(bank: &Path, place: &Place, clock: &Clock) -> State {
    let options = BankOptions { clock: clock.clone(), ..place.options() };
    let report = Bank::examine(bank, options.clone(), DoctorOptions::default()).await.unwrap();
    let opened = Bank::open(bank, Arc::new(place.fake.clone()), options).await.unwrap();
    State {
        contents: opened.contents().await.unwrap(),
        cache: opened.cached_vectors().await.unwrap(),
        generations: opened
            .generations()
            .await
            .unwrap()
            .into_iter()
            .map(|one| (one.id.to_string(), one.state))
            .collect(),
        left: found(&report).into_iter().map(|check| (check.name, check.examples.clone())).collect(),
        leftovers: files_below(bank).iter().any(|file| {
            file.ends_with("left.lance") || file.ends_with("index.idx") && file.to_string_lossy().contains("00112233")
        }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_dies_at_any_change_is_made_up_for_by_another() {
    let patient = Arc::new(broken().await);
    let began = Timestamp(1_780_000_000_000_000).plus(Duration::from_secs(3600));
    let calm = tempfile::tempdir().unwrap();
    link(&patient.place.bank_dir(), calm.path());
    let (clock, faults) = (Clock::manual(began), Faults::counted());
    let report = repair(calm.path(), &clock, faults.clone()).await.unwrap();
    assert!(report.repairs.len() >= 10, "{:#?}", report.repairs);
    let want = Arc::new(state(calm.path(), &patient.place, &clock).await);
    let left: Vec<_> = want.left.iter().map(|(name, _)| *name).collect();
    assert_eq!((left.as_slice(), want.leftovers), (["set-aside", "document-hashes"].as_slice(), false));
    let changes = faults.changes();
    let kinds = |kind: &str| changes.iter().filter(|change| change.starts_with(kind)).count();
    println!("N = {} changes, {} of them looks", changes.len(), kinds("point look"));
    for point in
        ["mend: before a version is set aside", "repair: before a leftover goes", "repair: before a folder goes"]
    {
        assert_eq!(kinds(&format!("point {point}")), 1, "{point}");
    }
    let cases = (1..=changes.len() as u64).filter(|at| !changes[*at as usize - 1].starts_with("point look"));
    let cases = cases.map(|at| {
        let (patient, want, change) = (patient.clone(), want.clone(), changes[at as usize - 1].clone());
        let case = async move {
            let dir = tempfile::tempdir().unwrap();
            link(&patient.place.bank_dir(), dir.path());
            let clock = Clock::manual(began);
            let died = repair(dir.path(), &clock, Faults::at(at, FaultEffect::Die)).await;
            // What fails to be looked at may also be a finding.
            assert!(died.is_err() || died.is_ok_and(|report| !report.healthy), "{change}: nothing failed");
            clock.advance(Duration::from_secs(600));
            repair(dir.path(), &clock, Faults::default()).await.unwrap();
            let found = state(dir.path(), &patient.place, &clock).await;
            assert!(
                found == *want,
                "after {at}, {change}:\n{:?}\n{:?}",
                (&found.left, &found.generations),
                (&want.left, &want.generations)
            );
        };
        tokio::spawn(case)
    });
    let ended: Vec<_> = futures::stream::iter(cases).buffer_unordered(3).collect().await;
    let failed = ended.iter().filter(|result| result.is_err()).count();
    assert_eq!(failed, 0, "{failed} of {} crashes are not made up for", ended.len());
}
