//! Tables, rows and index folders that are deleted behind the engine's back: named, and filled again from what is left.
//!
//! The oracle is that of `power_loss`: an uninterrupted bank over the same documents.

use embank::{BackfillOptions, HousekeepingOptions, IndexOutcome, MendKind, SearchOptions};

use crate::harness::{Place, sentence};
use crate::power_loss::{RECORDS, Stage, copy_of, must_recover, place, sync, table_name, tables, uninterrupted};

const CHUNKS: u64 = RECORDS as u64 + 1;

async fn activated() -> Place {
    let place = place();
    Stage::Activated.reach(&place).await;
    place
}

#[tokio::test]
async fn a_lost_table_is_named_and_filled_again_without_embedding_anything() {
    let place = activated().await;
    let want = uninterrupted(&place.docs()).await;
    for table in tables(&place.bank_dir()) {
        let harmed = copy_of(&place);
        std::fs::remove_dir_all(harmed.path().join(table.strip_prefix(place.path()).unwrap())).unwrap();
        let bank = harmed.bank().await;
        let mends = bank.mends();
        assert!(
            matches!(&mends[..], [mend] if mend.table == table_name(&table) && mend.kind == MendKind::TableLost),
            "{table:?}: {mends:?}"
        );
        assert_eq!(sync(&bank, &harmed).await.backfill.embedded, 0, "{table:?}");
        let bank = must_recover(&harmed, &want, &table_name(&table)).await;
        assert_eq!(bank.status().await.unwrap().cached, RECORDS as u64, "{table:?}: each text once");
    }
}

#[tokio::test]
async fn an_emptied_table_is_filled_again_without_embedding_anything() {
    let place = activated().await;
    let want = uninterrupted(&place.docs()).await;
    for table in tables(&place.bank_dir()) {
        let harmed = copy_of(&place);
        let connection = lancedb::connect(harmed.bank_dir().to_str().unwrap()).execute().await.unwrap();
        connection.open_table(table_name(&table)).execute().await.unwrap().delete("true").await.unwrap();
        let bank = harmed.bank().await;
        let report = sync(&bank, &harmed).await;
        let mended = report.backfill.reconciled;
        match table_name(&table).split("__").next().unwrap() {
            "documents" => assert_eq!(report.ingest.chunks_added, CHUNKS),
            "status" => assert_eq!(mended.added, CHUNKS),
            "embeddings" => assert_eq!(mended.lost, CHUNKS),
            "emb_cache" => assert_eq!(mended.recached, RECORDS as u64),
            "meta" | "generations" => assert!(matches!(report.index, IndexOutcome::Activated { .. })),
            // Nothing is left of what earlier runs did.
            "runs" => {}
            other => panic!("{other} is a table that nobody thought of"),
        }
        assert_eq!(report.backfill.embedded, 0, "{table:?}");
        let bank = must_recover(&harmed, &want, &table_name(&table)).await;
        assert_eq!(bank.status().await.unwrap().cached, RECORDS as u64, "{table:?}: each text once");
    }
}

#[tokio::test]
async fn a_lost_documents_table_does_not_take_the_vectors_with_it() {
    let place = activated().await;
    std::fs::remove_dir_all(place.bank_dir().join("documents.lance")).unwrap();
    let bank = place.bank().await;
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((report.reconciled.undocumented, report.reconciled.orphans), (CHUNKS, 0));
    assert_eq!(bank.contents().await.unwrap().embeddings.len() as u64, CHUNKS);
    must_recover(&place, &uninterrupted(&place.docs()).await, "documents").await;
}

#[tokio::test]
async fn a_lost_index_is_searched_around_and_built_again() {
    let place = activated().await;
    let indexes = tables(&place.bank_dir()).into_iter().find_map(|table| table.join("_indices").read_dir().ok());
    let index = indexes.unwrap().next().unwrap().unwrap().path();
    let harmed = copy_of(&place);

    // Under an open bank.
    let bank = place.bank().await;
    let want = bank.search(&sentence(60), &SearchOptions::default()).await.unwrap();
    std::fs::remove_dir_all(&index).unwrap();
    let found = bank.search(&sentence(60), &SearchOptions::default()).await.unwrap();
    assert_eq!(found.hits[0], want.hits[0]);
    let IndexOutcome::Activated { reason, .. } = sync(&bank, &place).await.index else { panic!("not built again") };
    assert!(reason.ends_with("is lost"), "{reason}");

    // Before it is opened.
    std::fs::remove_dir_all(harmed.path().join(index.strip_prefix(place.path()).unwrap())).unwrap();
    let bank = harmed.bank().await;
    let mends = bank.mends();
    assert!(matches!(&mends[..], [mend] if matches!(mend.kind, MendKind::IndexLost { .. })), "{mends:?}");
    let found = bank.search(&sentence(60), &SearchOptions::default()).await.unwrap();
    assert_eq!(found.hits[0], want.hits[0]);
    must_recover(&harmed, &uninterrupted(&harmed.docs()).await, "index").await;
}

#[tokio::test]
async fn a_table_that_is_deleted_under_an_open_bank_is_an_error_and_no_panic() {
    let place = activated().await;
    let want = uninterrupted(&place.docs()).await;
    for table in tables(&place.bank_dir()) {
        let harmed = copy_of(&place);
        let bank = harmed.bank().await;
        harmed.write("new.txt", "something new");
        std::fs::remove_dir_all(harmed.path().join(table.strip_prefix(place.path()).unwrap())).unwrap();
        // Each may succeed or fail, as it needs the table or not.
        let _ = bank.status().await;
        let _ = bank.search("something", &SearchOptions::default()).await;
        let _ = bank.ingest(&[harmed.docs()], Default::default()).await;
        let _ = bank.backfill(BackfillOptions::default()).await;
        let _ = bank.keep_house(HousekeepingOptions::default()).await;
        drop(bank);
        harmed.remove("new.txt");
        must_recover(&harmed, &want, &table_name(&table)).await;
    }
}
