//! A bank that is changed again and again by a little stays small and whole.

use std::time::Duration;

use embank::{
    BackfillOptions, Bank, Error, HousekeepingOptions, HousekeepingStep, IngestOptions, SyncOptions, TableSize,
};
use futures::TryStreamExt;

use crate::harness::{Place, sentence};

/// Small fragments from which on a table is compacted.
const WORTH_COMPACTING: u64 = 32;

fn at_once() -> HousekeepingOptions {
    HousekeepingOptions { keep_versions: Duration::ZERO }
}

async fn sizes(bank: &Bank) -> Vec<TableSize> {
    bank.status().await.unwrap().tables
}

#[tokio::test]
async fn a_hundred_small_syncs_leave_as_many_rows_as_one_and_hardly_more_pieces() {
    let place = Place::empty();
    let bank = place.bank().await;
    let options = SyncOptions { housekeeping: at_once(), ..SyncOptions::default() };
    let (mut compacted, mut cleaned) = (0, 0);
    for round in 0..100 {
        place.write(&format!("{}.txt", round % 70), &sentence(round));
        let report = bank.sync(&[place.docs()], options.clone()).await.unwrap();
        if let Some(kept) = &report.housekeeping {
            assert_eq!(kept.failures, []);
            compacted += kept.compacted.len();
            cleaned += kept.versions_removed;
        }
    }
    for table in sizes(&bank).await {
        // What one sync adds after the last look is not yet tidied.
        assert!(table.fragments <= WORTH_COMPACTING + 2, "{table:?}");
        assert!(table.versions <= 12, "{table:?}");
    }
    assert!(compacted >= 4 && cleaned > 300, "{compacted} compactions, {cleaned} versions removed");

    let calm = Place::empty();
    (30..100).for_each(|round| calm.write(&format!("{}.txt", round % 70), &sentence(round)));
    let want = calm.filled().await.contents().await.unwrap();
    let got = bank.contents().await.unwrap();
    assert_eq!((got.documents, got.status, got.embeddings), (want.documents, want.status, want.embeddings));
}

#[tokio::test]
async fn housekeeping_leaves_a_running_build_alone() {
    let place = Place::with_documents(40);
    let bank = place.filled().await;
    let built = bank.build_index(Default::default()).await.unwrap();
    let before = sizes(&bank).await;
    assert!(matches!(bank.keep_house(at_once()).await, Err(Error::Busy { .. })));
    place.write("more.txt", "one more");
    let options = SyncOptions { housekeeping: at_once(), ..SyncOptions::default() };
    assert_eq!(bank.sync(&[place.docs()], options).await.unwrap().housekeeping, None);
    let kept = |sizes: &[TableSize]| sizes.iter().map(|table| table.versions).collect::<Vec<_>>();
    let after = sizes(&bank).await;
    assert!(kept(&before).iter().zip(kept(&after)).all(|(before, after)| *before <= after), "{before:?} {after:?}");
    let validated = bank.validate(built, Default::default()).await.unwrap();
    bank.activate(validated).await.unwrap();
    assert_eq!(bank.keep_house(at_once()).await.unwrap().failures, []);
}

#[tokio::test]
async fn a_table_that_cannot_be_compacted_is_named_and_the_others_are_tidied() {
    let place = Place::empty();
    let bank = place.bank().await;
    for round in 0..40 {
        place.write(&format!("{round}.txt"), &sentence(round));
        bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
        bank.backfill(BackfillOptions::default()).await.unwrap();
    }
    let broken = std::fs::read_dir(place.bank_dir().join("documents.lance/data")).unwrap().next().unwrap().unwrap();
    std::fs::write(broken.path(), "not what was written").unwrap();
    let report = bank.keep_house(at_once()).await.unwrap();
    let failed: Vec<_> = report.failures.iter().map(|failure| (failure.step, failure.of.as_str())).collect();
    assert_eq!(failed, [(HousekeepingStep::Compaction, "documents")], "{report:?}");
    for table in ["status", "runs"] {
        assert!(report.compacted.iter().any(|compacted| compacted == table), "{report:?}");
    }
    assert!(report.versions_removed > 100, "{report:?}");
}

#[tokio::test]
async fn whoever_reads_an_old_version_finishes_while_the_bank_is_tidied() {
    let place = Place::empty();
    let bank = place.bank().await;
    for round in 0..40 {
        place.write(&format!("{round}.txt"), &sentence(round));
        bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    }
    let reading = bank.documents().await.unwrap();
    let other = place.bank().await;
    let report = other.keep_house(HousekeepingOptions::default()).await.unwrap();
    assert!(report.compacted.contains(&"documents".to_owned()), "{report:?}");
    assert_eq!((report.versions_removed, report.failures.len()), (0, 0), "an hour has not passed");
    let rows: Vec<_> = reading.try_collect().await.unwrap();
    assert_eq!(rows.into_iter().flatten().count(), 40);
}
