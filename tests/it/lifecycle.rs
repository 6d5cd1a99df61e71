//! The life of a local model in a process of its own: loaded, held against its record, measured, let go.
//!
//! all-MiniLM-L6-v2 must be on this machine, as `embed_local` says; the other models are small random ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const MODEL: &str = "all-minilm-l6-v2";

/// What may remain of a model that was let go, in megabytes.
const REMAINS_MB: f64 = 30.0;

fn embank(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
    for variable in ["EMBANK_BANK", "EMBANK_EMBEDDER", "EMBANK_PRECISION", "EMBANK_DEVICE"] {
        command.env_remove(variable);
    }
    command.current_dir(dir).args(args).output().unwrap()
}

/// Standard output as JSON; the command must succeed.
fn json(dir: &Path, args: &[&str]) -> Value {
    let output = embank(dir, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Texts of all lengths up to the window, in a file.
fn texts(dir: &Path, count: usize) -> usize {
    let line = |i: usize| serde_json::json!({ "text": "frost on the pump ".repeat(1 + i % 60) }).to_string() + "\n";
    std::fs::write(dir.join("texts.jsonl"), (0..count).map(line).collect::<String>()).unwrap();
    count
}

#[test]
fn a_model_that_is_let_go_gives_its_memory_back() {
    for precision in ["f32", "bf16"] {
        let dir = tempfile::tempdir().unwrap();
        texts(dir.path(), 64);
        let args =
            ["--json", "--precision", precision, "model", "bench", MODEL, "--texts", "texts.jsonl", "--rounds", "1"];
        let measured = json(dir.path(), &args);
        let mb = |key: &str| measured[key].as_f64();
        let (Some(before), Some(after)) = (mb("rss_before_load_mb"), mb("rss_after_unload_mb")) else {
            // The process's memory is only known on Linux.
            return;
        };
        let loaded = mb("rss_loaded_mb").unwrap();
        assert!(loaded > before + 30.0, "{precision}: {before} MB before, {loaded} MB with the model");
        assert!(
            after < before + REMAINS_MB,
            "{precision}: {before} MB before, {loaded} MB with the model, {after} MB after"
        );
    }
}

#[test]
fn a_benchmark_counts_what_it_embeds_and_writes_the_vectors_that_embed_prints() {
    let dir = tempfile::tempdir().unwrap();
    let count = texts(dir.path(), 10);
    let args = ["--json", "model", "bench", MODEL, "--texts", "texts.jsonl", "--rounds", "2", "--threads", "1"];
    let measured = json(dir.path(), &[&args[..], &["--dump", "vectors.f32"]].concat());
    // [CLS] and [SEP], and four tokens for each time the words are said.
    let tokens: usize = (1..=count).map(|times| 4 * times + 2).sum();
    assert_eq!((&measured["texts"], &measured["tokens"]), (&count.into(), &tokens.into()));
    assert_eq!((&measured["threads"], &measured["rounds"]), (&1.into(), &2.into()));
    assert!(measured["backlog"].is_null(), "there is no bank");

    let dumped = std::fs::read(dir.path().join("vectors.f32")).unwrap();
    let numbers: Vec<f32> = dumped.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(numbers.len(), count * 384);
    let text = "frost on the pump ".repeat(3);
    let printed = embank(dir.path(), &["embed", &text]).stdout;
    let printed: Value = serde_json::from_slice(&printed).unwrap();
    for (dumped, printed) in numbers[2 * 384..3 * 384].iter().zip(printed["vector"].as_array().unwrap()) {
        assert!((f64::from(*dumped) - printed.as_f64().unwrap()).abs() < 1e-5);
    }
}

/// Where the small random models are; none of them has a record in this release.
fn random_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

/// A copy of one of them: what is learnt of a model is written beside it.
fn random_model(name: &str, dir: &Path) -> PathBuf {
    let to = dir.join(name);
    copy(&random_models().join(name), &to);
    to
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn the_first_load_records_what_the_model_answers_and_a_later_drift_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = random_model("bert-mean", dir.path());
    let name = format!("path:{}", model.display());
    let verified = json(dir.path(), &["--json", "model", "verify", &name]);
    assert_eq!((&verified["conforms"], &verified["pinned"]), (&true.into(), &false.into()));
    let record = std::fs::read_dir(&model).unwrap().map(|entry| entry.unwrap().path());
    let record = record.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("self-test-"));
    let record = record.unwrap();

    // As if another build had computed: one number of one vector is wrong.
    let mut content: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let text = content["texts"][1].as_str().unwrap().to_owned();
    let number = content["vectors"][1][0].as_f64().unwrap();
    content["vectors"][1][0] = (number + 0.1).into();
    std::fs::write(&record, content.to_string()).unwrap();
    let refused = embank(dir.path(), &["--embedder", &name, "embed", "water"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("has drifted") && said.contains(&text), "{said}");

    // Without the record there is nothing to hold it against.
    std::fs::remove_file(&record).unwrap();
    assert!(embank(dir.path(), &["--embedder", &name, "embed", "water"]).status.success());
}

#[test]
fn every_architecture_and_precision_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let folders = std::fs::read_dir(random_models()).unwrap().map(|entry| entry.unwrap());
    let names: Vec<String> = folders
        .filter(|entry| entry.path().join("config.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        let model = format!("path:{}", random_model(&name, dir.path()).display());
        for precision in ["f32", "bf16"] {
            let verified = json(dir.path(), &["--json", "--precision", precision, "model", "verify", &model]);
            assert_eq!(verified["conforms"], true, "{name} in {precision}");
        }
    }
}

#[test]
fn the_published_model_is_verified_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    for precision in ["f32", "bf16"] {
        let verified = json(dir.path(), &["--json", "--precision", precision, "model", "verify", MODEL]);
        assert_eq!((&verified["conforms"], &verified["pinned"]), (&true.into(), &true.into()));
        assert_eq!(verified["identity"]["precision"], precision);
    }
    let listed = json(dir.path(), &["--json", "model", "list"]);
    let model = listed["models"].as_array().unwrap().iter().find(|model| model["name"] == MODEL).unwrap();
    assert_eq!((&model["dimension"], &model["installed"], &model["pinned"]), (&384.into(), &true.into(), &true.into()));
    assert!(model["bytes"].as_u64().unwrap() > 90_000_000);
}

#[test]
fn what_is_not_there_is_refused_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, said) in [
        (&["--embedder", "fake:8", "model", "bench"][..], 64, "fake:8 is not a local model"),
        (&["model", "verify", "no-such-model"], 64, "unknown embedder no-such-model"),
        (&["--device", "gpu:99", "embed", "water"], 64, "device: "),
        (&["--precision", "f16", "--device", "cpu", "embed", "water"], 64, "precision: "),
    ] {
        let refused = embank(dir.path(), args);
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}
