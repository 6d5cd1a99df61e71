//! all-MiniLM-L6-v2 in burn against the reference implementation, on the published files.
//!
//! The model must be on this machine: in the folder that `EMBANK_MODEL_DIR` names, else in the user's cache directory,
//! where `embank model pull all-minilm-l6-v2` puts it. The expected vectors were made by sentence-transformers on torch,
//! see `scripts/reference_vectors.py`.

use std::path::PathBuf;

use embank::embed::{Embedder, LocalEmbedder, LocalOptions, TextKind, check_conformance};

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
    let model_dir = std::env::var_os("EMBANK_MODEL_DIR")
        .map_or_else(|| dirs::cache_dir().unwrap().join("embank/models"), PathBuf::from);
    LocalEmbedder::open(LocalOptions::new(model, model_dir)).unwrap()
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

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn floats(base64: &str) -> Vec<f32> {
    let sextet = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {c}"),
    };
    let (mut bytes, mut bits, mut width) = (Vec::new(), 0_u32, 0);
    for c in base64.bytes().filter(|&c| c != b'=') {
        bits = (bits << 6) | u32::from(sextet(c));
        width += 6;
        if width >= 8 {
            width -= 8;
            bytes.push((bits >> width) as u8);
        }
    }
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}
