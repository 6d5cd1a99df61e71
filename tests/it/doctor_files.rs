//! The doctor and the files of a bank: versions that cannot be read, files that a version lacks, files of no version, and
//! what was set aside in mending. Looking mends nothing; a repair mends as opening does, and says what it did.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use embank::{DoctorReport, Repair, SearchOptions};
use lance::dataset::{CommitBuilder, InsertBuilder, WriteMode, WriteParams};

use crate::doctor::{Patient, found, names, patient, undamaged};
use crate::harness::sentence;
use crate::power_loss::{Harm, files_below, newest};

const TABLES: [&str; 7] = ["documents", "status", "generations", "meta", "runs", "embeddings", "emb_cache"];

/// The folder of a table of the patient's, by the beginning of its name.
fn table(patient: &Patient, name: &str) -> PathBuf {
    let tables = crate::power_loss::tables(&patient.place.bank_dir()).into_iter();
    let found = tables.filter(|path| crate::power_loss::table_name(path).starts_with(name)).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{name}");
    found[0].clone()
}

/// The file of the newest version's newest fragment: its rows, or the list of those deleted from it.
async fn file_of(patient: &Patient, name: &str, folder: &str) -> PathBuf {
    let path = table(patient, name);
    let dataset = lance::Dataset::open(path.to_str().unwrap()).await.unwrap();
    let fragments = dataset.fragments();
    let fragment = fragments.iter().rfind(|one| folder == "data" || one.deletion_file.is_some());
    let fragment = fragment.unwrap_or_else(|| panic!("{name} has no {folder}"));
    if folder == "data" {
        return path.join("data").join(&fragment.files[0].path);
    }
    let list = fragment.deletion_file.as_ref().unwrap();
    let start = format!("{}-{}-{}.", fragment.id, list.read_version, list.id);
    let is_it = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with(&start);
    files_below(&path.join("_deletions")).into_iter().find(is_it).unwrap()
}

/// Every file of a bank with its length and time.
fn listing(bank: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let look = |path: PathBuf| {
        let data = std::fs::metadata(&path).unwrap();
        (path, data.len(), data.modified().unwrap())
    };
    let mut files: Vec<_> = files_below(bank).into_iter().map(look).collect();
    files.sort();
    files
}

/// Looks, which must find what `checks` say and change nothing; repairs, which must say what it did and leave nothing but
/// what was set aside; and completes the bank by a sync.
async fn is_named_and_mended(patient: &Patient, checks: &[&str], case: &str) -> DoctorReport {
    // Claims of before run out: a version that is gone back to may have some.
    patient.place.clock.advance(Duration::from_secs(600));
    let before = listing(&patient.place.bank_dir());
    let seen = patient.examine(Repair::Nothing).await;
    assert_eq!(names(&seen), checks, "{case}: {:#?}", found(&seen));
    assert!(!seen.healthy && seen.repairs.is_empty(), "{case}");
    assert!(listing(&patient.place.bank_dir()) == before, "{case}: looking changed something");
    let mended = patient.examine(Repair::WhatIsSafe).await;
    let left: Vec<_> = mended.findings().filter(|check| check.left > 0 && check.name != "set-aside").collect();
    // Lost documents are read again; a repair does not know where they are.
    let is_empty = patient.bank().await.contents().await.unwrap().documents.is_empty();
    let is_said = left.len() == 1 && left[0].name == "tables" && left[0].mend.contains("embank sync PATH");
    assert!(if is_empty { is_said } else { left.is_empty() && mended.healthy }, "{case}: {:#?}", found(&mended));
    assert!(!mended.repairs.is_empty(), "{case}");
    let bank = patient.sync().await;
    assert!(bank.mends().is_empty(), "{case}: the repair left {:?} to whoever opens the bank", bank.mends());
    assert!(bank.contents().await.unwrap() == undamaged().await, "{case}: other contents");
    let hits = bank.search(&sentence(7), &SearchOptions::default()).await.unwrap().hits;
    assert_eq!(hits[0].doc_id.as_str(), "r7", "{case}");
    drop(bank);
    let after = patient.examine(Repair::Nothing).await;
    assert!(names(&after).iter().all(|name| *name == "set-aside"), "{case}: {:#?}", found(&after));
    mended
}

#[tokio::test]
async fn a_newest_version_that_cannot_be_read_is_named_and_set_aside_by_a_repair() {
    let harms = [Harm::Empty, Harm::CutShort, Harm::Zeroed];
    for (number, name) in TABLES.into_iter().enumerate() {
        // Every way for the states, one for each of the others.
        let ways = if name == "status" { 0..3 } else { number % 3..number % 3 + 1 };
        for harm in &harms[ways] {
            let patient = patient().await;
            let manifest = newest(&table(&patient, name), "_versions").unwrap();
            harm.befall(&manifest);
            let case = format!("{harm:?} manifest of {name}");
            let report = is_named_and_mended(&patient, &["manifests"], &case).await;
            let is_said = report.repairs.iter().any(|done| done.contains(name) && done.contains("it was set aside"));
            assert!(is_said, "{case}: {:?}", report.repairs);
        }
    }
}

#[tokio::test]
async fn files_that_the_newest_version_lacks_are_named_and_mended_as_opening_mends_them() {
    let harms = [Harm::Gone, Harm::Empty, Harm::CutShort, Harm::Zeroed];
    let mut cases = 0;
    for (number, name) in TABLES.into_iter().enumerate() {
        for (turn, folder) in ["data", "_deletions"].into_iter().enumerate() {
            let patient = patient().await;
            // What was deleted and written again leaves lists of deleted rows.
            let rows = crate::power_loss::table_name(&table(&patient, name));
            if folder == "_deletions" {
                let column = match name {
                    "status" | "documents" => "id",
                    "embeddings" | "emb_cache" => "content_hash",
                    _ => continue,
                };
                let row = format!("{column} = '{}'", patient.text(&rows, column, 3).await);
                let again = patient.rows(&rows, &row).await;
                patient.replace(&rows, &row, again).await;
            }
            let harm = harms[(number + turn) % 4];
            harm.befall(&file_of(&patient, name, folder).await);
            let case = format!("{harm:?} {folder} of {name}");
            let report = is_named_and_mended(&patient, &["table-files"], &case).await;
            assert!(report.repairs[0].contains(name), "{case}: {:?}", report.repairs);
            cases += 1;
        }
    }
    assert_eq!(cases, 11);
}

#[tokio::test]
async fn a_table_without_any_of_its_files_is_gone_back_behind() {
    let patient = patient().await;
    for file in files_below(&table(&patient, "embeddings").join("data")) {
        std::fs::remove_file(file).unwrap();
    }
    is_named_and_mended(&patient, &["table-files"], "no file of the vectors").await;
}

#[tokio::test]
async fn a_damaged_file_of_an_index_is_named_and_its_generation_given_up() {
    for harm in [Harm::Gone, Harm::Empty, Harm::CutShort, Harm::Zeroed] {
        let patient = patient().await;
        harm.befall(&newest(&table(&patient, "embeddings"), "_indices").unwrap());
        is_named_and_mended(&patient, &["index-files"], &format!("{harm:?} file of an index")).await;
    }
}

#[tokio::test]
async fn what_was_set_aside_is_named_until_it_is_deleted_and_is_no_fault() {
    let patient = patient().await;
    let manifest = newest(&table(&patient, "runs"), "_versions").unwrap();
    Harm::Empty.befall(&manifest);
    // Opening mends too; the doctor is told by what it left.
    assert_eq!(patient.bank().await.mends().len(), 1);
    let report = patient.finds(&["set-aside"]).await;
    let name = manifest.file_name().unwrap().to_str().unwrap();
    assert!(
        report.healthy && found(&report)[0].examples == [format!("set-aside/runs/{name}")],
        "{:#?}",
        found(&report)
    );
    assert!(patient.examine(Repair::WhatIsSafe).await.healthy);
    assert!(patient.place.bank_dir().join("set-aside/runs").join(name).exists(), "a repair leaves it to a person");
    std::fs::remove_dir_all(patient.place.bank_dir().join("set-aside")).unwrap();
    patient.finds(&[]).await;
    assert_eq!(patient.sync().await.contents().await.unwrap(), undamaged().await);
}

#[tokio::test]
async fn files_of_a_write_that_was_never_committed_are_named_and_removed_once_they_are_an_hour_old() {
    let patient = patient().await;
    let (folder, table) = (table(&patient, "embeddings"), patient.embeddings());
    let before = files_below(&folder);
    let rows = patient.rows(&table, "doc_id = 'r7'").await;
    let params = WriteParams { mode: WriteMode::Append, enable_stable_row_ids: true, ..WriteParams::default() };
    let dataset = Arc::new(lance::Dataset::open(folder.to_str().unwrap()).await.unwrap());
    let write = InsertBuilder::new(dataset.clone()).with_params(&params).execute_uncommitted(vec![rows]).await.unwrap();
    let left: Vec<_> = files_below(&folder).into_iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let bytes = std::fs::metadata(&left[0]).unwrap().len();
    // Just written: it may be about to be committed.
    let clock = &patient.place.clock;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    clock.advance(now - Duration::from_micros(clock.now().0 as u64));
    patient.finds(&[]).await;
    assert!(patient.examine(Repair::WhatIsSafe).await.repairs.is_empty() && left[0].exists());
    CommitBuilder::new(dataset).execute(write).await.unwrap();
    patient.finds(&["vector-keys"]).await;

    // Another one, and its writer is gone.
    let patient = crate::doctor::patient().await;
    let left = patient.folder(&table).join("data").join(left[0].file_name().unwrap());
    std::fs::write(&left, vec![0; bytes as usize]).unwrap();
    patient.place.clock.advance(now - Duration::from_micros(patient.place.clock.now().0 as u64));
    patient.place.clock.advance(Duration::from_secs(3600 + 60));
    let report = patient.finds(&["leftover-files"]).await;
    assert_eq!(found(&report)[0].examples, [format!("{table}: 1 files, {bytes} bytes")]);
    // As long as something of the table is set aside, it may be a part of that.
    let set_aside = patient.place.bank_dir().join("set-aside").join(&table);
    std::fs::create_dir_all(&set_aside).unwrap();
    std::fs::write(set_aside.join("a.manifest"), "").unwrap();
    assert!(patient.examine(Repair::WhatIsSafe).await.repairs.is_empty() && left.exists());
    std::fs::remove_dir_all(patient.place.bank_dir().join("set-aside")).unwrap();
    patient.is_mended_by_repair().await;
    assert!(!left.exists());
}
