//! all-MiniLM-L6-v2 in burn against the reference implementation, on the published files.
//!
//! The model must be on this machine: in the folder that `EMBANK_MODEL_DIR` names, else in the user's cache directory,
//! where `embank model pull all-minilm-l6-v2` puts it. The expected vectors were made by sentence-transformers on torch,
//! see `scripts/reference_vectors.py`.

use std::path::PathBuf;

use base64::Engine as _;
use embank::embed::{Embedder, LocalEmbedder, LocalOptions, Precision, TextKind, check_conformance};

#[derive(serde::Deserialize)]
struct Reference {
    model: String,
    texts: Vec<String>,
    /// Special tokens included, after truncation.
    tokens: Vec<u32>,
    truncated: Vec<bool>,
    /// Base64 of little-endian 32-bit floats.
    vectors: Vec<String>,
}

fn reference() -> Reference {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/minilm_reference.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn embedder(model: &str) -> LocalEmbedder {
    in_precision(model, Precision::F32)
}

fn in_precision(model: &str, precision: Precision) -> LocalEmbedder {
    let model_dir = std::env::var_os("EMBANK_MODEL_DIR")
        .map_or_else(|| dirs::cache_dir().unwrap().join("embank/models"), PathBuf::from);
    let mut options = LocalOptions::new(model, model_dir);
    options.precision = precision;
    LocalEmbedder::open(options).unwrap()
}

#[tokio::test]
async fn vectors_tokens_and_cuts_are_those_of_the_reference_implementation() {
    let reference = reference();
    assert_eq!(reference.texts.len(), 100);
    let answers = embedder(&reference.model).embed(TextKind::Passage, &reference.texts).await.unwrap();
    assert_eq!(answers.len(), 100);
    for (i, answer) in answers.iter().enumerate() {
        let text = &reference.texts[i];
        let cosine = cosine(&answer.vector, &floats(&reference.vectors[i]));
        assert!(cosine >= 0.99999, "cosine {cosine} for text {i}: {text}");
        assert_eq!(
            (answer.tokens, answer.truncated),
            (reference.tokens[i], reference.truncated[i]),
            "text {i}: {text}"
        );
    }
}

#[tokio::test]
async fn vectors_in_bf16_are_those_of_the_reference_to_a_cosine_of_0_9999() {
    let reference = reference();
    let embedder = in_precision(&reference.model, Precision::Bf16);
    let answers = embedder.embed(TextKind::Passage, &reference.texts).await.unwrap();
    for (answer, (text, vector)) in answers.iter().zip(reference.texts.iter().zip(&reference.vectors)) {
        let cosine = cosine(&answer.vector, &floats(vector));
        assert!(cosine >= 0.9999, "cosine {cosine} for {text}");
    }
    assert_ne!(embedder.identity().id(), in_precision(&reference.model, Precision::F32).identity().id());
}

#[tokio::test]
async fn the_token_counter_counts_what_the_reference_tokenizer_counts() {
    let reference = reference();
    let counter = embedder(&reference.model).token_counter().unwrap();
    assert_eq!(counter.max_text_tokens(), 254);
    for ((text, &tokens), &truncated) in reference.texts.iter().zip(&reference.tokens).zip(&reference.truncated) {
        // [CLS] and [SEP] are not of the text.
        let counted = counter.count_tokens(text) + 2;
        assert!(if truncated { counted > 256 } else { counted == tokens as usize }, "{counted} for {tokens}: {text}");
    }
}

#[tokio::test]
async fn the_local_embedder_conforms() {
    assert_eq!(check_conformance(&embedder("all-minilm-l6-v2")).await, Ok(()));
}

/// Of two vectors of any length.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Little-endian 32-bit floats out of base64.
pub fn floats(base64: &str) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}
