//! Ingest: what a changed folder changes in the bank, and nothing else.

use std::collections::BTreeMap;

use embank::{BackfillOptions, IngestOptions, IngestReport, Prune, SkipReason};

use crate::harness::{Place, footprint, sentence};

async fn ingest(place: &Place) -> IngestReport {
    place.bank().await.ingest(&[place.docs()], IngestOptions::default()).await.unwrap()
}

/// Document path → chunk ids.
async fn chunks(place: &Place) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in place.bank().await.contents().await.unwrap().documents {
        found.entry(row.doc_path).or_default().push(row.id.to_string());
    }
    found
}

/// Paragraphs long enough that each becomes a chunk of its own.
fn paragraphs(numbers: &[usize]) -> String {
    let paragraph = |n: &usize| (0..20).map(|line| sentence(n * 1000 + line)).collect::<Vec<_>>().join(" ");
    numbers.iter().map(paragraph).collect::<Vec<_>>().join("\n\n")
}

#[tokio::test]
async fn a_second_run_over_unchanged_files_writes_nothing() {
    let place = Place::with_documents(30);
    place.write("more.jsonl", "{\"id\": \"a\", \"text\": \"one\", \"n\": 1}\n{\"text\": \"two\"}\n");
    place.write("more.csv", "id,text\nc1,three\nc2,four\n");
    let first = ingest(&place).await;
    assert_eq!((first.added, first.files, first.skipped_count), (34, 32, 0));
    let bank = place.bank().await;
    let before = footprint(&bank).await;
    let second = ingest(&place).await;
    assert_eq!((second.added, second.changed, second.unchanged, second.removed), (0, 0, 34, 0));
    assert_eq!(before, footprint(&place.bank().await).await);
}

#[tokio::test]
async fn a_changed_file_keeps_the_chunks_whose_content_is_unchanged() {
    let place = Place::empty();
    let overlap_free = IngestOptions {
        chunks: embank::ChunkOptions { max_tokens: Some(200), overlap_tokens: 0 },
        ..IngestOptions::default()
    };
    place.write("a.txt", &paragraphs(&[1, 2, 3]));
    let bank = place.bank().await;
    bank.ingest(&[place.docs()], overlap_free.clone()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    let before = chunks(&place).await["a.txt"].clone();
    let embedded = place.fake.texts_embedded();

    place.write("a.txt", &paragraphs(&[1, 9, 3]));
    let report = bank.ingest(&[place.docs()], overlap_free).await.unwrap();
    assert_eq!((report.changed, report.chunks_kept, report.chunks_added, report.chunks_removed), (1, 2, 1, 1));
    let after = chunks(&place).await["a.txt"].clone();
    assert_eq!(before.iter().filter(|id| after.contains(id)).count(), 2);
    bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!(place.fake.texts_embedded() - embedded, 1, "only the new paragraph is embedded");
    let contents = bank.contents().await.unwrap();
    assert_eq!(contents.embeddings.len(), 3);
    assert_eq!(contents.documents.iter().map(|d| d.total_chunks).collect::<Vec<_>>(), [3, 3, 3]);
}

#[tokio::test]
async fn a_vanished_file_is_removed_everywhere_unless_told_otherwise() {
    let place = Place::with_documents(6);
    let bank = place.filled().await;
    place.remove("water/00000.txt");
    let kept =
        bank.ingest(&[place.docs()], IngestOptions { prune: Prune::Nothing, ..Default::default() }).await.unwrap();
    assert_eq!((kept.removed, bank.contents().await.unwrap().documents.len()), (0, 6));
    let report = ingest(&place).await;
    assert_eq!((report.removed, report.chunks_removed, report.unchanged), (1, 1, 5));
    let contents = bank.contents().await.unwrap();
    assert_eq!((contents.documents.len(), contents.status.len(), contents.embeddings.len()), (5, 5, 5));
}

#[tokio::test]
async fn ingesting_one_folder_leaves_the_documents_of_another_alone() {
    let place = Place::with_documents(6);
    let bank = place.bank().await;
    bank.ingest(&[place.docs().join("water")], IngestOptions::default()).await.unwrap();
    let report = bank.ingest(&[place.docs().join("soil")], IngestOptions::default()).await.unwrap();
    assert_eq!((report.added, report.removed), (2, 0));
    assert_eq!(bank.contents().await.unwrap().documents.len(), 4);
}

#[tokio::test]
async fn overlapping_roots_hold_each_document_once() {
    let place = Place::with_documents(6);
    let bank = place.bank().await;
    let roots = [place.docs(), place.docs().join("water")];
    bank.ingest(&roots, IngestOptions::default()).await.unwrap();
    bank.ingest(&[place.docs().join("water")], IngestOptions::default()).await.unwrap();
    let mut sources: Vec<_> = bank.contents().await.unwrap().documents.into_iter().map(|d| d.source).collect();
    sources.sort();
    sources.dedup();
    assert_eq!((sources.len(), bank.contents().await.unwrap().documents.len()), (6, 6));
}

#[tokio::test]
async fn a_moved_category_is_filed_anew_without_being_embedded_again() {
    let place = Place::empty();
    place.write("a.md", "---\ncategory: water\n---\n\n# Rain\n\nEmpty the barrel.");
    let bank = place.filled().await;
    let embedded = place.fake.texts_embedded();
    place.write("a.md", "---\ncategory: storage\n---\n\n# Rain\n\nEmpty the barrel.");
    ingest(&place).await;
    let report = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((report.ready, report.reused, place.fake.texts_embedded()), (1, 1, embedded));
    crate::harness::build(&bank, embank::IndexKind::Flat).await.unwrap();
    let options = embank::SearchOptions {
        filter: embank::SearchFilter::default().category("storage"),
        ..embank::SearchOptions::default()
    };
    assert_eq!(bank.search("rain barrel", &options).await.unwrap().hits.len(), 1);
}

#[tokio::test]
async fn front_matter_headings_and_folders_are_kept_with_the_chunk() {
    let place = Place::empty();
    place.write(
        "first-aid/burns.md",
        "---\ntitle: Burns\nyear: 2021\ntags: [skin, heat]\n---\n\n# Burns\n\n## Cooling\n\nHold it under cool water.",
    );
    ingest(&place).await;
    let rows = place.bank().await.contents().await.unwrap().documents;
    let row = &rows[0];
    assert_eq!((row.category.as_str(), row.category_text.as_str()), ("first-aid", "first aid"));
    assert_eq!(row.heading, "Burns › Cooling");
    assert!(row.content.starts_with("Burns › Cooling\n\n") && row.content.contains("cool water"), "{}", row.content);
    assert_eq!(row.attributes["year"], 2021);
    assert_eq!(row.attributes["tags"], serde_json::json!(["skin", "heat"]));
    assert_eq!(row.content_hash.to_string(), blake3_hex(&row.content));
}

#[tokio::test]
async fn bad_files_and_bad_rows_cost_themselves_alone() {
    let place = Place::with_documents(3);
    std::fs::write(place.docs().join("photo.bin"), [0u8, 1, 2]).unwrap();
    std::fs::write(place.docs().join("latin1.txt"), b"caf\xe9").unwrap();
    place.write("empty.txt", "");
    place.write("blank.md", " \n\n\t");
    place.write("rows.jsonl", "{\"id\": \"ok\", \"text\": \"fine\"}\nnot json\n{\"id\": \"x\"}\n");
    #[cfg(unix)]
    std::os::unix::fs::symlink(place.docs(), place.docs().join("loop")).unwrap();
    let report = ingest(&place).await;
    assert_eq!(report.added, 4, "{:?}", report.skipped);
    let reasons: Vec<_> =
        report.skipped.iter().map(|s| (s.path.rsplit('/').next().unwrap(), s.line, &s.reason)).collect();
    let has = |file: &str, line: Option<u64>, want: fn(&SkipReason) -> bool| {
        assert!(reasons.iter().any(|(f, l, r)| *f == file && *l == line && want(r)), "{file} {line:?} in {reasons:?}");
    };
    has("photo.bin", None, |r| matches!(r, SkipReason::Binary));
    has("latin1.txt", None, |r| matches!(r, SkipReason::NotUtf8 { offset: 3 }));
    has("empty.txt", None, |r| matches!(r, SkipReason::Empty));
    has("blank.md", None, |r| matches!(r, SkipReason::Empty));
    has("rows.jsonl", Some(2), |r| matches!(r, SkipReason::BadRecord(_)));
    has("rows.jsonl", Some(3), |r| matches!(r, SkipReason::BadRecord(_)));
    #[cfg(unix)]
    has("loop", None, |r| matches!(r, SkipReason::SymlinkNotFollowed));
}

#[tokio::test]
async fn a_large_file_is_cut_whole_and_recognised_again() {
    let place = Place::empty();
    // Above the size that is held in memory, so it is read twice and written as it is read.
    let text: Vec<_> = (0..90_000).map(sentence).collect();
    place.write("large.txt", &text.join("\n"));
    assert!(std::fs::metadata(place.docs().join("large.txt")).unwrap().len() > 4 << 20);
    let first = ingest(&place).await;
    let rows = place.bank().await.contents().await.unwrap().documents;
    assert_eq!((first.added, first.chunks_added), (1, rows.len() as u64));
    assert!(rows.iter().all(|row| row.total_chunks == rows.len()));
    let second = ingest(&place).await;
    assert_eq!((second.unchanged, second.chunks_added), (1, 0));
}

fn blake3_hex(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
