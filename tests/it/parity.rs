//! The real binary on each of the processor's paths, against torch: small random models in folders as sentence-transformers
//! saves them, with the vectors that torch gives them (see `scripts/reference_models.py`).
//!
//! The path is chosen from outside, by the variable that the kernels read; one that this machine lacks falls back to its
//! best one, which has to agree just as well.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::embed_local::{cosine, floats};

const MODELS: [&str; 5] = ["bert-mean", "bert-cls-prefix", "bert-raw", "xlmr-mean", "xlmr-cls-long"];
const PATHS: [&str; 4] = ["portable", "avx2", "avx512", "avx512-bf16"];
/// Precision and the lowest cosine to torch in 32 bits. 8 bits of mantissa over random weights, which magnify errors where
/// trained ones do not: 0.99957 was measured, on every path the same.
const BOUNDS: [(&str, f64); 2] = [("f32", 0.99999), ("bf16", 0.9995)];

#[derive(serde::Deserialize)]
struct Reference {
    texts: Vec<String>,
    query: Answers,
    passage: Answers,
}

#[derive(serde::Deserialize)]
struct Answers {
    tokens: Vec<u32>,
    truncated: Vec<bool>,
    /// Base64 of little-endian 32-bit floats.
    vectors: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Line {
    text: String,
    vector: Vec<f32>,
    tokens: u32,
    truncated: bool,
}

/// A copy of the model's folder in `into`: using a model leaves its checksums in it.
fn folder(model: &str, into: &Path) -> PathBuf {
    let published: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/data/models", model].iter().collect();
    let copy = into.join(model);
    for folder in ["", "1_Pooling"] {
        std::fs::create_dir_all(copy.join(folder)).unwrap();
        for entry in std::fs::read_dir(published.join(folder)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.join(folder).join(entry.file_name())).unwrap();
            }
        }
    }
    copy
}

fn embank(folder: &Path, path: &str, precision: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
    for variable in ["EMBANK_BANK", "EMBANK_EMBEDDER", "EMBANK_PRECISION", "EMBANK_DEVICE"] {
        command.env_remove(variable);
    }
    command.current_dir(folder).env("EMBANK_CPU", path).args(["--device", "cpu", "--precision", precision]);
    let output = command.args(["--embedder", "path:."]).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{folder:?} {path} {precision} {args:?}: {said}");
    output
}

fn compare(folder: &Path, path: &str, precision: &str, bound: f64) {
    let reference: Reference = serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
    for (kind, expected) in [("--query", &reference.query), ("", &reference.passage)] {
        let flags = ["embed", kind].into_iter().filter(|flag| !flag.is_empty());
        let args: Vec<&str> = flags.chain(reference.texts.iter().map(String::as_str)).collect();
        let output = embank(folder, path, precision, &args);
        let lines: Vec<Line> =
            serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(lines.len(), reference.texts.len());
        for (i, line) in lines.iter().enumerate() {
            assert_eq!(
                (&line.text, line.tokens, line.truncated),
                (&reference.texts[i], expected.tokens[i], expected.truncated[i]),
                "{folder:?}, text {i}"
            );
            let cosine = cosine(&line.vector, &floats(&expected.vectors[i]));
            assert!(cosine >= bound, "{folder:?} {precision} {path} {kind}: cosine {cosine} for text {i}");
        }
    }
}

#[test]
fn every_model_agrees_with_torch_in_both_precisions_on_every_path() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let folder = folder(model, dir.path());
        for path in PATHS {
            for (precision, bound) in BOUNDS {
                compare(&folder, path, precision, bound);
            }
        }
    }
}

#[test]
fn the_variable_chooses_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder("bert-mean", dir.path());
    std::fs::write(folder.join("texts.jsonl"), "{\"text\": \"frost\"}\n").unwrap();
    // The one path that every machine has.
    let args = ["--json", "model", "bench", "path:.", "--texts", "texts.jsonl", "--rounds", "1"];
    let measured: Value = serde_json::from_slice(&embank(&folder, "portable", "f32", &args).stdout).unwrap();
    assert_eq!(measured["cpu"], "portable");
}

#[test]
fn what_a_folder_asks_for_and_this_release_does_not_do_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder("bert-mean", dir.path());
    let modules = std::fs::read_to_string(folder.join("modules.json")).unwrap();
    std::fs::write(folder.join("modules.json"), modules.replace("models.Normalize", "models.Dense")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_embank"))
        .current_dir(&folder)
        .args(["--embedder", "path:.", "embed", "frost"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    assert!(said.contains("module Dense is not supported, only Transformer, Pooling, Normalize"), "{said}");
}
