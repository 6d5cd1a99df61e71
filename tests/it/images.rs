//! Images as documents: what a bank holds of them, and a question in words that finds them.
//!
//! The model and the images are small and made up; the expected scores of hits come from vectors that transformers on torch
//! made, see `scripts/reference_vision.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use embank::embed::{
    ClipEmbedder, Embedder, FakeEmbedder, ImageSource, LocalImageEmbedder, Precision, TextKind, check_conformance,
};
use embank::{BackfillOptions, Bank, IndexKind, IngestOptions, SearchOptions, SkipReason};

use crate::harness::{Place, build};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vision")
}

/// What torch made of the images and of the texts, by file name and by text.
fn reference() -> (BTreeMap<String, Vec<f64>>, BTreeMap<String, Vec<f64>>) {
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data().join("reference.json")).unwrap()).unwrap();
    let floats = |entry: &serde_json::Value| -> Vec<f64> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(entry["vector"].as_str().unwrap()).unwrap();
        bytes.as_chunks().0.iter().map(|&four| f64::from(f32::from_le_bytes(four))).collect()
    };
    let clip = &reference["clip"];
    let images = clip["images"].as_object().unwrap().iter().map(|(name, entry)| (name.clone(), floats(entry)));
    let texts = clip["texts"].as_array().unwrap();
    let texts = texts.iter().map(|entry| (entry["text"].as_str().unwrap().to_owned(), floats(entry)));
    (images.collect(), texts.collect())
}

/// A place whose documents are the nine test images, in a folder of their own.
fn place_with_images() -> Place {
    let place = Place::empty();
    std::fs::create_dir(place.docs().join("pictures")).unwrap();
    for entry in std::fs::read_dir(data().join("images")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, place.docs().join("pictures").join(path.file_name().unwrap())).unwrap();
    }
    place
}

/// The small CLIP model, out of a copy: its checksums are put beside it.
fn model(place: &Place) -> LocalImageEmbedder {
    let folder = place.path().join("clip");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(data().join("clip")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    LocalImageEmbedder::open(folder, Precision::F32).unwrap()
}

async fn bank(place: &Place) -> Bank {
    let clip = ClipEmbedder::new(model(place), place.path()).unwrap();
    Bank::open_or_create(place.bank_dir(), Arc::new(clip), place.options()).await.unwrap()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn a_question_in_words_finds_images_with_the_scores_of_the_reference_implementation() {
    let place = place_with_images();
    let bank = bank(&place).await;
    let ingested = bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    assert_eq!((ingested.added, ingested.chunks_added, ingested.skipped_count), (9, 9, 0), "{ingested:?}");
    let filled = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((filled.ready, filled.failed), (9, 0), "{filled:?}");
    build(&bank, IndexKind::Flat).await.unwrap();

    let (images, texts) = reference();
    for (text, question) in texts.iter().filter(|(text, _)| !text.trim().is_empty()) {
        let options = SearchOptions { k: 9, ..SearchOptions::default() };
        let found = bank.search(text, &options).await.unwrap();
        assert_eq!(found.hits.len(), 9);
        assert!(found.hits.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for hit in &found.hits {
            let name = hit.doc_path.strip_prefix("pictures/").unwrap();
            let expected = cosine(question, &images[name]);
            // JPEG decoders round their own way: the vectors are 0.008 apart (a cosine of 0.99997), so scores may be too.
            assert!((f64::from(hit.score) - expected).abs() < 0.01, "{text}: {name} {} {expected}", hit.score);
        }
    }
}

#[tokio::test]
async fn images_carry_size_hash_and_date_and_are_not_embedded_again_while_they_stay_the_same() {
    let place = place_with_images();
    let bank = bank(&place).await;
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    build(&bank, IndexKind::Flat).await.unwrap();
    let found = bank.search("turned", &SearchOptions { k: 9, ..SearchOptions::default() }).await.unwrap();
    let turned = found.hits.iter().find(|hit| hit.doc_path == "pictures/turned.jpg").unwrap();
    assert_eq!(turned.category, "pictures");
    let attributes = serde_json::to_value(&turned.attributes).unwrap();
    assert_eq!((&attributes["width"], &attributes["height"]), (&64.into(), &100.into()));
    assert_eq!((&attributes["format"], &attributes["exif_date"]), (&"jpeg".into(), &"2023-07-14T18:30:05".into()));

    let again = bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    assert_eq!((again.unchanged, again.chunks_added, again.chunks_removed), (9, 0, 0), "{again:?}");
    std::fs::copy(data().join("images/wide.png"), place.docs().join("pictures/turned.jpg")).unwrap();
    let changed = bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    assert_eq!((changed.changed, changed.chunks_added, changed.chunks_removed), (1, 1, 1), "{changed:?}");
}

#[tokio::test]
async fn an_image_that_is_damaged_gone_or_changed_costs_itself_alone() {
    let place = place_with_images();
    let pictures = place.docs().join("pictures");
    let wide = std::fs::read(pictures.join("wide.png")).unwrap();
    std::fs::write(pictures.join("damaged.png"), &wide[..wide.len() / 2]).unwrap();
    let bank = bank(&place).await;
    let ingested = bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    assert_eq!((ingested.added, ingested.skipped_count), (9, 1), "{ingested:?}");
    assert_eq!(ingested.skipped[0].reason, SkipReason::BadImage("it is a damaged png file".into()));

    std::fs::remove_file(pictures.join("narrow.png")).unwrap();
    std::fs::write(pictures.join("grey_small.png"), wide).unwrap();
    let filled = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((filled.ready, filled.failed), (7, 2), "{filled:?}");
    for (name, reason) in [("narrow.png", "it cannot be read"), ("grey_small.png", "it has changed since")] {
        let failure = filled.failures.iter().find(|failure| failure.doc_path.ends_with(name)).unwrap();
        assert!(failure.reason.contains(reason), "{failure:?}");
    }
}

#[tokio::test]
async fn for_a_text_embedder_an_image_is_its_name_and_what_its_file_says() {
    let place = place_with_images();
    let bank = place.bank_with(FakeEmbedder::new(32)).await;
    bank.ingest(&[place.docs()], IngestOptions::default()).await.unwrap();
    bank.backfill(BackfillOptions::default()).await.unwrap();
    build(&bank, IndexKind::Flat).await.unwrap();
    let found =
        bank.search("lossless.webp, 64 x 70", &SearchOptions { k: 9, ..SearchOptions::default() }).await.unwrap();
    assert!(found.hits.iter().any(|hit| hit.snippet.starts_with("lossless.webp, 64 x 70")), "{found:?}");
}

#[tokio::test]
async fn clip_passes_the_conformance_suite_and_its_images_and_texts_share_a_space() {
    let place = place_with_images();
    let clip = ClipEmbedder::new(model(&place), place.path()).unwrap();
    check_conformance(&clip).await.unwrap();

    let (images, texts) = reference();
    let path = data().join("images/photo.jpg");
    let image = model(&place).embed_images(&[ImageSource::Path(&path)]).unwrap().remove(0).unwrap();
    let text = clip.embed(TextKind::Query, &["a red bicycle".to_owned()]).await.unwrap().remove(0).vector;
    let found: f64 = image.iter().zip(&text).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    assert!((found - cosine(&images["photo.jpg"], &texts["a red bicycle"])).abs() < 1e-3);
}
