//! Folders in both forms that sentence-transformers has written, and in the forms that are refused.

use super::super::{catalog, tiny};
use super::*;

const MODULES: &str = r#"[
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;
const POOLING: &str = r#"{"word_embedding_dimension": 8, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false,
    "pooling_mode_max_tokens": false}"#;

/// A folder as sentence-transformers 2 wrote it.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "config.json", tiny::CONFIG);
    write(&dir, "tokenizer.json", tiny::TOKENIZER);
    std::fs::write(dir.path().join("model.safetensors"), tiny::safetensors(&tiny::tensors())).unwrap();
    write(&dir, "modules.json", MODULES);
    write(&dir, "1_Pooling/config.json", POOLING);
    write(&dir, "sentence_bert_config.json", r#"{"max_seq_length": 12, "do_lower_case": true}"#);
    dir
}

fn write(dir: &tempfile::TempDir, file: &str, content: &str) {
    let path = dir.path().join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn open(dir: &tempfile::TempDir) -> Result<ModelFolder> {
    ModelFolder::open(dir.path(), None, None)
}

/// The refusal, as file and reason.
fn refusal(dir: &tempfile::TempDir) -> (String, String) {
    match open(dir) {
        Err(Error::ModelFormat { path, reason, .. }) => {
            (path.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned(), reason)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_of_the_old_form_says_all_that_there_is_to_know() {
    let dir = folder();
    let found = open(&dir).unwrap();
    assert_eq!((found.pooling, found.normalised, found.max_tokens), (Pooling::Cls, true, 12));
    assert_eq!((found.query_prefix.as_str(), found.passage_prefix.as_str()), ("", ""));
    assert!(found.lower_case);
    assert_eq!(found.dir, dir.path());
}

#[test]
fn a_folder_of_the_new_form_says_the_same_in_other_files() {
    let dir = folder();
    let module = |path, kind| format!(r#"{{"path": "{path}", "type": "sentence_transformers.base.modules.x.{kind}"}}"#);
    let modules = [module("", "Transformer"), module("1_Pooling", "Pooling")].join(",");
    write(&dir, "modules.json", &format!("[{modules}]"));
    write(
        &dir,
        "1_Pooling/config.json",
        r#"{"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": true}"#,
    );
    write(&dir, "sentence_bert_config.json", r#"{"transformer_task": "feature-extraction"}"#);
    write(&dir, "tokenizer_config.json", r#"{"model_max_length": 9}"#);
    let prompts = r#"{"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": null}"#;
    write(&dir, "config_sentence_transformers.json", prompts);
    let found = open(&dir).unwrap();
    assert_eq!((found.pooling, found.normalised, found.max_tokens), (Pooling::Mean, false, 9));
    assert_eq!((found.query_prefix.as_str(), found.passage_prefix.as_str()), ("q: ", "d: "));
    assert!(!found.lower_case);
}

#[test]
fn the_window_never_goes_beyond_the_positions() {
    let dir = folder();
    write(&dir, "sentence_bert_config.json", r#"{"max_seq_length": 4096}"#);
    assert_eq!(open(&dir).unwrap().max_tokens, 16);
    write(&dir, "sentence_bert_config.json", "{}");
    write(&dir, "tokenizer_config.json", r#"{"model_max_length": 1000000000000000019884624838656}"#);
    assert_eq!(open(&dir).unwrap().max_tokens, 16);
}

#[test]
fn a_default_prompt_stands_in_for_one_that_is_missing() {
    let dir = folder();
    let prompts = r#"{"prompts": {"passage": "p: ", "any": "a: "}, "default_prompt_name": "any"}"#;
    write(&dir, "config_sentence_transformers.json", prompts);
    let found = open(&dir).unwrap();
    assert_eq!((found.query_prefix.as_str(), found.passage_prefix.as_str()), ("a: ", "p: "));
}

#[test]
fn other_modules_are_refused_by_name() {
    let dir = folder();
    let dense = r#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#;
    write(&dir, "modules.json", dense);
    let (file, reason) = refusal(&dir);
    assert_eq!(file, "modules.json");
    assert_eq!(reason, "module Dense is not supported, only Transformer, Pooling, Normalize");
    write(&dir, "modules.json", r#"[{"path": "", "type": "a.Transformer"}, {"path": "", "type": "a.Normalize"}]"#);
    assert_eq!(refusal(&dir).1, "modules Transformer, Normalize are not in the order Transformer, Pooling, Normalize");
    write(&dir, "modules.json", &MODULES.replace("1_Pooling", "../1_Pooling"));
    assert_eq!(refusal(&dir).1, "module path ../1_Pooling leaves the folder");
}

#[test]
fn other_poolings_are_refused_by_name() {
    let dir = folder();
    let reason_of = |config: &str| {
        write(&dir, "1_Pooling/config.json", config);
        let (file, reason) = refusal(&dir);
        assert_eq!(file, "1_Pooling/config.json");
        reason
    };
    let max = reason_of(r#"{"pooling_mode_max_tokens": true}"#);
    assert_eq!(max, "pooling max_tokens is not supported, only mean and cls");
    let two = reason_of(r#"{"pooling_mode": ["cls", "mean"]}"#);
    assert_eq!(two, "pooling cls and mean is not supported, only mean and cls");
    assert_eq!(reason_of("{}"), "it names no pooling");
    let prompt = reason_of(r#"{"pooling_mode": "mean", "include_prompt": false}"#);
    assert_eq!(prompt, "include_prompt is false: pooling without the prompt is not supported");
    let width = reason_of(r#"{"pooling_mode": "mean", "embedding_dimension": 9}"#);
    assert_eq!(width, "it pools 9 dimensions, the transformer has 8");
}

#[test]
fn pooling_is_not_guessed_for_a_folder_without_modules() {
    let dir = folder();
    std::fs::remove_file(dir.path().join("modules.json")).unwrap();
    let (file, reason) = refusal(&dir);
    assert_eq!(file, "modules.json");
    assert_eq!(reason, "it does not say how tokens become a vector; name the pooling, mean or cls");
    let named = ModelFolder::open(dir.path(), Some(Pooling::Mean), None).unwrap();
    assert_eq!((named.pooling, named.normalised), (Pooling::Mean, true));
    let known = catalog::find("e5-small-v2").unwrap();
    let catalogued = ModelFolder::open(dir.path(), None, Some(known)).unwrap();
    assert_eq!((catalogued.pooling, catalogued.query_prefix.as_str()), (Pooling::Mean, "query: "));
}

#[test]
fn weights_in_other_forms_are_refused_with_what_helps() {
    let dir = folder();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(refusal(&dir), ("model.safetensors".to_owned(), "it is missing".to_owned()));
    write(&dir, "pytorch_model.bin", "");
    let (file, reason) = refusal(&dir);
    assert!(file == "pytorch_model.bin" && reason.contains("save the model again as safetensors"), "{reason}");
    write(&dir, "model.safetensors.index.json", "{}");
    let (file, reason) = refusal(&dir);
    assert!(file == "model.safetensors.index.json" && reason.contains("several files"), "{reason}");
}

#[test]
fn no_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = ModelFolder::open(&dir.path().join("none"), None, None).unwrap_err();
    assert!(error.to_string().contains("there is no such folder"), "{error}");
}

#[test]
fn a_damaged_file_is_named() {
    let dir = folder();
    write(&dir, "sentence_bert_config.json", "[");
    assert_eq!(refusal(&dir).0, "sentence_bert_config.json");
}
