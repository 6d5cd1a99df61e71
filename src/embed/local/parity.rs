//! Every architecture, precision and set of instructions against torch: small random models as transformers and
//! sentence-transformers save them, with the vectors that torch gives them (see `scripts/reference_models.py`).

use std::path::{Path, PathBuf};

use base64::Engine as _;
use burn::tensor::Device;

use super::encoder::Processor;
use super::model_source::ModelSource;
use crate::embed::Precision;
use crate::kernels::Cpu;

const MODELS: [&str; 5] = ["bert-mean", "bert-cls-prefix", "bert-raw", "xlmr-mean", "xlmr-cls-long"];

#[derive(serde::Deserialize)]
struct Reference {
    texts: Vec<String>,
    query: Answers,
    passage: Answers,
}

#[derive(serde::Deserialize)]
struct Answers {
    tokens: Vec<usize>,
    truncated: Vec<bool>,
    /// Base64 of little-endian 32-bit floats.
    vectors: Vec<String>,
}

/// A copy of the model's folder: using a model leaves its checksums in it.
fn folder(model: &str, into: &Path) -> PathBuf {
    let published: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/data/models", model].iter().collect();
    let copy = into.join(model);
    for folder in ["", "1_Pooling"] {
        std::fs::create_dir_all(copy.join(folder)).unwrap();
        for entry in std::fs::read_dir(published.join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    copy
}

/// The lowest cosine over all texts and both kinds; lengths, for vectors that keep theirs, to the same accuracy.
fn lowest_cosine(model: &str, precision: Precision, processor: &Processor) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(model, dir.path());
    let reference: Reference = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
    let source = ModelSource::find(folder.to_str().unwrap(), dir.path(), None).unwrap();
    let identity = source.identity(precision);
    let (tokens, encoder) = (source.tokens().unwrap(), source.load(precision, processor).unwrap());
    let mut lowest: f64 = 1.0;
    for (prefix, expected) in
        [(&identity.query_prefix, &reference.query), (&identity.passage_prefix, &reference.passage)]
    {
        let texts = tokens.encode(reference.texts.iter().map(|text| [prefix, text.as_str()].concat()).collect());
        let texts = texts.unwrap();
        assert_eq!(texts.iter().map(|text| text.ids.len()).collect::<Vec<_>>(), expected.tokens, "{model}");
        assert_eq!(texts.iter().map(|text| text.truncated).collect::<Vec<_>>(), expected.truncated, "{model}");
        let ids: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
        let vectors = encoder.embed(&ids).unwrap();
        assert_eq!(vectors.len(), expected.vectors.len());
        for (found, expected) in vectors.iter().zip(&expected.vectors) {
            let (found, expected) = (wide(found), wide(&floats(expected)));
            let ratio = (dot(&found, &found) / dot(&expected, &expected)).sqrt();
            assert!((ratio - 1.0).abs() < 0.01, "{model}: length {ratio} of the expected one");
            lowest = lowest.min(dot(&found, &expected) / (dot(&found, &found) * dot(&expected, &expected)).sqrt());
        }
    }
    lowest
}

#[test]
fn in_32_bits_every_model_agrees_with_torch_however_it_is_computed() {
    // Stock operations are those of graphics processors; they run on any device.
    let stock = Processor::Device(Device::flex());
    for processor in Cpu::available().into_iter().map(Processor::Cpu).chain([stock]) {
        for model in MODELS {
            let cosine = lowest_cosine(model, Precision::F32, &processor);
            assert!(cosine >= 0.99999, "{model} on {processor:?}: cosine {cosine}");
        }
    }
}

#[test]
fn in_bf16_every_model_stays_close_to_torch_in_32_bits() {
    for cpu in Cpu::available() {
        for model in MODELS {
            let cosine = lowest_cosine(model, Precision::Bf16, &Processor::Cpu(cpu));
            // 0.99957 was measured, on every path the same; random weights magnify errors where trained ones do not.
            assert!(cosine >= 0.9995, "{model} on {}: cosine {cosine}", cpu.name());
        }
    }
}

fn floats(base64: &str) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
