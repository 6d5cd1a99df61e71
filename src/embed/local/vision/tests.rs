//! The image models against transformers on torch, on every path of this processor.
//!
//! Models, images and expected values lie in `tests/data/vision`; `scripts/reference_vision.py` made them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use base64::Engine;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Reference {
    clip: OfModel,
    dinov2: OfModel,
}

#[derive(Deserialize)]
struct OfModel {
    images: BTreeMap<String, OfImage>,
    #[serde(default)]
    texts: Vec<OfText>,
}

#[derive(Deserialize)]
struct OfImage {
    crop: String,
    vector: String,
}

#[derive(Deserialize)]
struct OfText {
    text: String,
    ids: Vec<u32>,
    truncated: bool,
    vector: String,
}

impl OfImage {
    /// What Pillow leaves of the image.
    fn crop(&self, size: preprocess::Size) -> Picture {
        let rgb = bytes(&self.crop);
        assert_eq!(rgb.len(), size.width * size.height * 3);
        Picture { width: size.width, height: size.height, rgb }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vision")
}

fn reference() -> Reference {
    serde_json::from_slice(&std::fs::read(folder().join("reference.json")).unwrap()).unwrap()
}

fn image(name: &str) -> PathBuf {
    folder().join("images").join(name)
}

/// The model out of a copy of its folder: where it lies, its checksums are put beside it. The copy outlives the answer.
fn open(model: &str, precision: Precision, cpu: Cpu) -> LocalImageEmbedder {
    static COPIES: LazyLock<[(&str, tempfile::TempDir); 2]> =
        LazyLock::new(|| ["clip", "dinov2"].map(|model| (model, copy_of(model))));
    let (_, copy) = COPIES.iter().find(|(name, _)| *name == model).unwrap();
    LocalImageEmbedder::open_on(copy.path().to_owned(), precision, cpu).unwrap()
}

fn models() -> [(&'static str, OfModel); 2] {
    let Reference { clip, dinov2 } = reference();
    [("clip", clip), ("dinov2", dinov2)]
}

fn bytes(base64: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
}

fn floats(base64: &str) -> Vec<f32> {
    bytes(base64).as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Every path of this processor in both precisions, with the cosine to torch that each has to reach. Measured on these
/// models: 1 to nine digits, and 0.99998 with 16 bits.
fn every_path() -> impl Iterator<Item = (Precision, Cpu, f64)> {
    Cpu::available().into_iter().flat_map(|cpu| [(Precision::F32, cpu, 0.999_999), (Precision::Bf16, cpu, 0.999_95)])
}

#[test]
fn of_the_same_pixels_both_models_make_the_vectors_of_torch() {
    for (model, expected) in models() {
        for (precision, cpu, least) in every_path() {
            let embedder = open(model, precision, cpu);
            let towers = embedder.towers().unwrap();
            let mut patches = Vec::new();
            for image in expected.images.values() {
                let crop = image.crop(embedder.inner.preprocessor.crop_size());
                embedder.inner.preprocessor.append_patches(&crop, embedder.inner.config.image().patch, &mut patches);
            }
            let vectors = towers.image.embed(cpu, &patches);
            assert_eq!(vectors.len(), expected.images.len());
            for ((name, image), vector) in expected.images.iter().zip(&vectors) {
                let cosine = cosine(vector, &floats(&image.vector));
                assert!(cosine >= least, "{model} {name} {precision} {}: {cosine}", cpu.name());
            }
        }
    }
}

#[test]
fn texts_become_the_tokens_of_the_published_tokenizer_and_the_vectors_of_torch() {
    let texts = reference().clip.texts;
    let contents: Vec<String> = texts.iter().map(|text| text.text.clone()).collect();
    for (precision, cpu, least) in every_path() {
        let embedder = open("clip", precision, cpu);
        let tokenized = embedder.inner.tokens.as_ref().unwrap().encode(contents.clone()).unwrap();
        let answers = embedder.embed_texts(&contents).unwrap();
        assert_eq!(answers.len(), texts.len());
        for ((expected, tokens), answer) in texts.iter().zip(&tokenized).zip(&answers) {
            assert_eq!((&tokens.ids, answer.truncated), (&expected.ids, expected.truncated), "{}", expected.text);
            let cosine = cosine(&answer.vector, &floats(&expected.vector));
            assert!(cosine >= least, "{} {precision} {}: {cosine}", expected.text, cpu.name());
        }
    }
}

#[test]
fn what_is_left_of_a_picture_is_what_pillow_leaves_to_the_last_bit() {
    for (model, expected) in models() {
        let embedder = open(model, Precision::F32, Cpu::best());
        // All but JPEG, whose decoders may round their own way.
        for (name, expected) in expected.images.iter().filter(|(name, _)| !name.ends_with(".jpg")) {
            let crop = embedder.crop(ImageSource::Path(&image(name))).unwrap();
            assert!(crop == expected.crop(embedder.inner.preprocessor.crop_size()), "{model} {name}");
        }
    }
}

#[test]
fn what_is_left_of_a_jpeg_differs_from_what_pillow_leaves_by_a_few_levels() {
    // Decoders may round the cosine transform and the colours their own way, and where colours are stored at half the
    // resolution also enlarge them their own way. Measured: 2 levels and 0.03 in the mean, 3 and 0.36.
    let allowed = [("turned.jpg", 3, 0.1), ("photo.jpg", 5, 0.6)];
    for (model, expected) in models() {
        let embedder = open(model, Precision::F32, Cpu::best());
        for (name, most, mean) in allowed {
            let crop = embedder.crop(ImageSource::Path(&image(name))).unwrap();
            let expected = expected.images[name].crop(embedder.inner.preprocessor.crop_size());
            let differences = || crop.rgb.iter().zip(&expected.rgb).map(|(a, b)| a.abs_diff(*b));
            let found_mean = differences().map(f64::from).sum::<f64>() / crop.rgb.len() as f64;
            let found_most = differences().max().unwrap();
            assert!(found_most <= most && found_mean <= mean, "{model} {name}: {found_most}, mean {found_mean}");
        }
    }
}

#[test]
fn from_file_to_vector_both_models_agree_with_pillow_and_torch() {
    for (model, expected) in models() {
        let embedder = open(model, Precision::F32, Cpu::best());
        let paths: Vec<PathBuf> = expected.images.keys().map(|name| image(name)).collect();
        let sources: Vec<ImageSource<'_>> = paths.iter().map(|path| ImageSource::Path(path)).collect();
        for ((name, image), answer) in expected.images.iter().zip(embedder.embed_images(&sources).unwrap()) {
            let cosine = cosine(&answer.unwrap(), &floats(&image.vector));
            // 0.99997 was measured for photo.jpg, 0.999998 for the others and more.
            assert!(cosine >= 0.999_9, "{model} {name}: {cosine}");
        }
    }
}

#[test]
fn a_bad_image_costs_itself_alone() {
    let embedder = open("clip", Precision::F32, Cpu::best());
    let good = std::fs::read(image("wide.png")).unwrap();
    let cut = &good[..good.len() / 2];
    // A header that promises 60,000 x 60,000 pixels, which would be 10 GB.
    let mut bomb = std::fs::read(image("palette.gif")).unwrap();
    bomb[6..10].copy_from_slice(&[0x60, 0xea, 0x60, 0xea]);
    let nowhere = Path::new("no/such/image.png");
    let sources = [
        ImageSource::Bytes(&good),
        ImageSource::Bytes(cut),
        ImageSource::Bytes(b"%PDF-1.7"),
        ImageSource::Bytes(b""),
        ImageSource::Path(nowhere),
        ImageSource::Bytes(&bomb),
        ImageSource::Bytes(&good),
    ];
    let answers = embedder.embed_images(&sources).unwrap();
    assert!(matches!(
        &answers[1..6],
        [
            Err(ImageDefect::Damaged { format: ImageFormat::Png, .. }),
            Err(ImageDefect::UnknownFormat),
            Err(ImageDefect::UnknownFormat),
            Err(ImageDefect::Unreadable(_)),
            Err(ImageDefect::TooManyPixels { width: 60_000, height: 60_000, limit: MAX_IMAGE_PIXELS }),
        ]
    ));
    let alone = embedder.embed_images(&[ImageSource::Bytes(&good)]).unwrap();
    let alone = alone[0].as_ref().unwrap();
    for neighbour in [&answers[0], &answers[6]] {
        assert!(cosine(neighbour.as_ref().unwrap(), alone) > 0.999_999_9);
    }
}

#[test]
fn whatever_bytes_are_changed_or_missing_the_answer_is_a_picture_or_a_defect() {
    let mut state = 11_u64;
    let mut below = |end: usize| {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    };
    for entry in std::fs::read_dir(folder().join("images")).unwrap() {
        let whole = std::fs::read(entry.unwrap().path()).unwrap();
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + below(4) {
                // The start, where sizes are, more often than the rest.
                let end = if below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
                bytes[below(end)] = below(256) as u8;
            }
            if below(4) == 0 {
                bytes.truncate(below(bytes.len()));
            }
            if let Ok(picture) = picture::decode(&bytes) {
                assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
            }
            let _ = picture::facts(&bytes);
        }
    }
}

#[test]
fn a_file_tells_size_and_date_as_the_picture_is_looked_at() {
    let facts = |name: &str| picture::facts(&std::fs::read(image(name)).unwrap()).unwrap();
    let turned = facts("turned.jpg");
    // Stored lying on its side, as 100 x 64; the date of the shot, not of the last change.
    assert_eq!((turned.width, turned.height, turned.format), (64, 100, ImageFormat::Jpeg));
    assert_eq!(turned.taken.as_deref(), Some("2023-07-14T18:30:05"));
    let plain = facts("lossy.webp");
    assert_eq!((plain.width, plain.height, plain.format, plain.taken), (75, 58, ImageFormat::WebP, None));
    assert_eq!((facts("palette.gif").width, facts("narrow.png").height), (60, 110));
}

#[test]
fn a_model_without_texts_refuses_them_and_says_what_would_do() {
    let refused = open("dinov2", Precision::F32, Cpu::best()).embed_texts(&["bees".to_owned()]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "model dinov2-patch8-32 embeds images alone; texts need a model with a text tower, such as CLIP"
    );
}

/// A copy of a model's folder, to be damaged.
fn copy_of(model: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn refusal(folder: &Path) -> String {
    LocalImageEmbedder::open(folder, Precision::F32).unwrap_err().to_string()
}

#[test]
fn what_changes_a_vector_changes_the_identity() {
    let original = open("dinov2", Precision::F32, Cpu::best()).identity().id();
    assert_ne!(open("dinov2", Precision::Bf16, Cpu::best()).identity().id(), original);
    for (file, from, to) in [
        ("config.json", "\"layer_norm_eps\": 1e-06", "\"layer_norm_eps\": 1e-05"),
        ("config.json", "\"num_attention_heads\": 2", "\"num_attention_heads\": 4"),
        ("preprocessor_config.json", "0.485", "0.486"),
        ("preprocessor_config.json", "\"resample\": 3", "\"resample\": 2"),
        ("preprocessor_config.json", "\"shortest_edge\": 46", "\"shortest_edge\": 47"),
    ] {
        let copy = copy_of("dinov2");
        let path = copy.path().join(file);
        let content = std::fs::read_to_string(&path).unwrap();
        assert!(content.contains(from), "{from}");
        std::fs::write(&path, content.replace(from, to)).unwrap();
        let changed = LocalImageEmbedder::open(copy.path(), Precision::F32).unwrap();
        assert_ne!(changed.identity().id(), original, "{to}");
    }
    let copy = copy_of("dinov2");
    assert_eq!(LocalImageEmbedder::open(copy.path(), Precision::F32).unwrap().identity().id(), original);
}

#[test]
fn a_folder_that_is_no_model_is_refused_with_what_is_wrong() {
    let copy = copy_of("clip");
    std::fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    assert!(refusal(copy.path()).ends_with("tokenizer.json: it is missing"));

    let copy = copy_of("clip");
    let path = copy.path().join("preprocessor_config.json");
    let content = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, content.replace("\"crop_size\": 48", "\"crop_size\": 40")).unwrap();
    assert!(refusal(copy.path()).ends_with("it makes images of 40 x 40 pixels, config.json wants 48 in patches of 8"));

    let copy = copy_of("dinov2");
    let path = copy.path().join("config.json");
    let content = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, content.replace("\"mlp_ratio\": 3", "\"mlp_ratio\": 4")).unwrap();
    let embedder = LocalImageEmbedder::open(copy.path(), Precision::F32).unwrap();
    let reason = embedder.embed_images(&[ImageSource::Bytes(b"")]).unwrap_err().to_string();
    assert!(reason.ends_with("tensor encoder.layer.0.mlp.fc1.weight has shape 96 x 32, expected 128 x 32"), "{reason}");
}

#[test]
fn weights_that_were_replaced_after_opening_are_refused() {
    let copy = copy_of("dinov2");
    let embedder = LocalImageEmbedder::open(copy.path(), Precision::F32).unwrap();
    let path = copy.path().join("model.safetensors");
    let mut content = std::fs::read(&path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&path, content).unwrap();
    let refused = embedder.embed_images(&[ImageSource::Bytes(b"")]);
    assert!(matches!(refused, Err(Error::ChecksumMismatch { .. })), "{refused:?}");
}

#[test]
fn an_unloaded_model_is_loaded_again_when_it_is_needed() {
    let embedder = open("clip", Precision::F32, Cpu::best());
    let texts = ["a red bicycle".to_owned()];
    let before = embedder.embed_texts(&texts).unwrap();
    embedder.unload();
    assert!(embedder.inner.towers.lock().unwrap().is_none());
    assert_eq!(embedder.embed_texts(&texts).unwrap(), before);
}

/// Found by the fuzzer: 239 bytes that took seven gigabytes.
#[test]
fn a_gif_whose_frame_is_larger_than_its_picture_takes_no_more_memory_than_a_picture() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/image");
    let bytes = std::fs::read(corpus.join("frame-larger-than-the-picture.gif")).unwrap();
    // The frame states 41,128 x 41,376 pixels, the picture 60 x 47.
    match picture::decode(&bytes) {
        Err(ImageDefect::Damaged { source: Some(source), .. }) => {
            assert_eq!(source.to_string(), "Memory limit exceeded");
        }
        other => panic!("{:?}", other.map(|picture| (picture.width, picture.height))),
    }
}
