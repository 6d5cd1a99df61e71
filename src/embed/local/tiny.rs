//! A made-up model for tests: eight tokens, two layers, weights from a fixed stream of numbers; its published files; and
//! the same encoder once more in plain f64 loops, as the oracle.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::catalog::{KnownModel, Pin, Pins};
use crate::embed::{EmbedderIdentity, Pooling};
use crate::id::hex;

/// A word-piece tokenizer of eight tokens, with truncation and padding fixed at 5 as published files have them.
pub(super) const TOKENIZER: &str = r####"{
  "version": "1.0",
  "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
  "padding": {"strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[PAD]"},
  "added_tokens": [
    {"id": 2, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 3, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
  "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
    "lowercase": true},
  "pre_tokenizer": {"type": "BertPreTokenizer"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
      {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
      "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
  "decoder": null,
  "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "bee": 4, "##s": 5, "hive": 6, "water": 7}}
}"####;

pub(super) const CONFIG: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 8, "num_hidden_layers": 2,
  "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 8, "max_position_embeddings": 16, "type_vocab_size": 2}"#;

const WIDTH: usize = 8;
const HEADS: usize = 2;
const INNER: usize = 12;
const LAYERS: usize = 2;

/// Without pins; nothing is installed.
fn model(pins: Option<Pins>) -> &'static KnownModel {
    Box::leak(Box::new(KnownModel {
        name: "tiny",
        repo: "example/tiny",
        wheel: None,
        pins,
        dimension: WIDTH,
        max_tokens: 8,
        pooling: Pooling::Mean,
        query_prefix: "",
        passage_prefix: "water ",
    }))
}

/// What the model is; its checksums match nothing.
pub(super) fn identity() -> EmbedderIdentity {
    EmbedderIdentity { dimension: WIDTH, ..super::fuzzing::small("tiny") }
}

/// Writes the model's files under `model_dir` and returns it with their checksums.
pub(super) fn install(model_dir: &Path) -> &'static KnownModel {
    let weights = safetensors(&tensors());
    let [config, tokenizer, weights] = [CONFIG.as_bytes(), TOKENIZER.as_bytes(), &weights]
        .map(|content| Pin { sha256: hex(&Sha256::digest(content)).leak(), bytes: content.len() as u64 });
    write(model_dir);
    model(Some(Pins { weights, tokenizer, config }))
}

/// The same, but for the catalog its files are not known.
pub(super) fn install_unpinned(model_dir: &Path) -> &'static KnownModel {
    write(model_dir);
    model(None)
}

fn write(model_dir: &Path) {
    let dir = model_dir.join("tiny");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
    std::fs::write(dir.join("tokenizer.json"), TOKENIZER).unwrap();
    std::fs::write(dir.join("model.safetensors"), safetensors(&tensors())).unwrap();
}

/// Shape and numbers of each tensor, by published name.
pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The model's weights, as published: PyTorch's layout.
pub(super) fn tensors() -> Tensors {
    let mut names = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![8, WIDTH]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![16, WIDTH]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, WIDTH]),
    ];
    let mut part = |name: String, shape: Vec<usize>| {
        names.push((format!("{name}.bias"), vec![shape[0]]));
        names.push((format!("{name}.weight"), shape));
    };
    part("embeddings.LayerNorm".into(), vec![WIDTH]);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for square in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            part(name(square), vec![WIDTH, WIDTH]);
        }
        part(name("attention.output.LayerNorm"), vec![WIDTH]);
        part(name("intermediate.dense"), vec![INNER, WIDTH]);
        part(name("output.dense"), vec![WIDTH, INNER]);
        part(name("output.LayerNorm"), vec![WIDTH]);
    }
    let mut state = 7_u64;
    let mut number = || {
        // Knuth's MMIX generator; the upper bits are good enough for weights in -1..1.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    names
        .into_iter()
        .map(|(name, shape)| {
            let numbers = (0..shape.iter().product()).map(|_| number()).collect();
            (name, (shape, numbers))
        })
        .collect()
}

/// A safetensors file of 32-bit floats: header length, JSON header, data.
pub(super) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, (shape, numbers)) in tensors {
        let start = data.len();
        data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()
}

/// The oracle: one text at a time, in f64, straight from the definition of BERT with mean pooling.
pub(super) fn reference(tensors: &Tensors, ids: &[u32]) -> Vec<f64> {
    let get = |name: &str| -> Vec<f64> { tensors[name].1.iter().map(|&x| f64::from(x)).collect() };
    let table = |name: &str, row: usize| get(name)[row * WIDTH..(row + 1) * WIDTH].to_vec();
    let dense = |name: &str, x: &[f64]| -> Vec<f64> {
        let weight = get(&format!("{name}.weight"));
        let product = weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
        product.zip(get(&format!("{name}.bias"))).map(|(y, b)| y + b).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (gamma, beta) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let unit = x.iter().map(|x| (x - mean) / (variance + 1e-12).sqrt());
        unit.zip(gamma).zip(beta).map(|((x, g), b)| x * g + b).collect()
    };

    let mut states: Vec<Vec<f64>> = ids
        .iter()
        .enumerate()
        .map(|(position, &id)| {
            let word = table("embeddings.word_embeddings.weight", id as usize);
            let place = table("embeddings.position_embeddings.weight", position);
            let of_type = table("embeddings.token_type_embeddings.weight", 0);
            norm("embeddings.LayerNorm", &add(&add(&word, &place), &of_type))
        })
        .collect();
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let [q, k, v] = ["query", "key", "value"]
            .map(|part| states.iter().map(|x| dense(&name(&format!("attention.self.{part}")), x)).collect::<Vec<_>>());
        let per_head = WIDTH / HEADS;
        for (i, state) in states.iter_mut().enumerate() {
            let mut mixed = vec![0.0; WIDTH];
            for head in 0..HEADS {
                let numbers = head * per_head..(head + 1) * per_head;
                let dot = |j: usize| numbers.clone().map(|d| q[i][d] * k[j][d]).sum::<f64>();
                let weights: Vec<f64> = (0..ids.len()).map(|j| (dot(j) / (per_head as f64).sqrt()).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in numbers.clone() {
                    mixed[d] = (0..ids.len()).map(|j| weights[j] / total * v[j][d]).sum();
                }
            }
            let attended = dense(&name("attention.output.dense"), &mixed);
            *state = norm(&name("attention.output.LayerNorm"), &add(&attended, state));
            let inner: Vec<f64> = dense(&name("intermediate.dense"), state).iter().map(|&x| gelu(x)).collect();
            *state = norm(&name("output.LayerNorm"), &add(&dense(&name("output.dense"), &inner), state));
        }
    }
    let mean = (0..WIDTH).map(|d| states.iter().map(|state| state[d]).sum::<f64>() / states.len() as f64);
    let mean: Vec<f64> = mean.collect();
    let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
    mean.iter().map(|x| x / length).collect()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `x Φ(x)`, with the error function from its Maclaurin series, which is exact enough for the |x| < 6 met here.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    x * 0.5 * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
}
