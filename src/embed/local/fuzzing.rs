//! What the fuzz targets do with the files of a model, and what has to be true of what is read off them.

use std::path::Path;

use super::config::BertConfig;
use super::folder::ModelFolder;
use super::safetensors::Safetensors;
use super::tokenize::Tokens;
use super::vision;
use crate::embed::{EmbedderIdentity, Pooling, Precision, TokenCounter};
use crate::fuzzing::Scratch;

pub use vision::fuzzing::image;

/// The numbers of a small encoder, for folders whose other files are under test.
const CONFIG: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 8, "num_hidden_layers": 2,
  "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 8, "max_position_embeddings": 16, "type_vocab_size": 2}"#;

/// The files that say what a model's folder does.
const FOLDER_FILES: [&str; 5] = [
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
];

/// A model's small JSON files. The first byte says which; those of a folder come one a line.
pub fn model_config(data: &[u8]) {
    let Some((&kind, json)) = data.split_first() else { return };
    match kind % 3 {
        0 => bert(json),
        1 => vision::fuzzing::config(json),
        _ => folder(json),
    }
}

fn bert(json: &[u8]) {
    let Ok(config) = BertConfig::parse(Path::new("config.json"), json) else { return };
    assert_eq!(config.hidden_size % config.num_attention_heads, 0);
    assert!(config.max_tokens() > 0 && config.max_tokens() <= 1 << 20);
    assert!(config.hidden_size.checked_mul(config.vocab_size).is_some_and(|numbers| numbers > 0));
    assert!((config.layer_norm_eps as f32).is_finite());
}

fn folder(files: &[u8]) {
    let folder = Scratch::folder();
    std::fs::create_dir_all(folder.path().join("1_Pooling")).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::write(folder.path().join(file), "").unwrap();
    }
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    for (name, content) in FOLDER_FILES.iter().zip(files.split(|&byte| byte == b'\n')) {
        if !content.is_empty() {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
    }
    let Ok(found) = ModelFolder::open(folder.path(), Some(Pooling::Mean), None) else { return };
    assert!(
        found.dir.canonicalize().unwrap().starts_with(folder.path().canonicalize().unwrap()),
        "outside of the folder"
    );
    assert!(found.max_tokens <= 16, "more tokens than there are positions");
}

/// A safetensors file: what its header promises is there, is read whole, and nothing else is.
pub fn safetensors(data: &[u8]) {
    let file = Scratch::file(data);
    let Ok(mut tensors) = Safetensors::open(file.path()) else { return };
    for (name, shape) in tensors.shapes() {
        assert!(tensors.contains(&name));
        if tensors.check(&name, &shape).is_ok() {
            let numbers = tensors.read(&name, &shape).expect("what was checked can be read");
            assert_eq!(numbers.len(), shape.iter().product::<usize>());
            assert!(numbers.len() * 2 <= data.len(), "numbers that the file does not hold");
        }
    }
}

/// A `tokenizer.json`, and texts that it is given if it can be read at all.
pub fn tokenizer(data: &[u8]) {
    let identity = small("fuzzed");
    let Ok(tokens) = Tokens::parse(Path::new("tokenizer.json"), data, &identity) else { return };
    let texts =
        ["", "bees in the hive", "Ünïcödé 蜂蜜 🐝 \u{0} \u{fffd}", "a-very-long-word-without-an-end 12,5 ¶ --- '"];
    for text in texts {
        let _ = tokens.count_tokens(text);
    }
    let Ok(encoded) = tokens.encode(texts.map(String::from).to_vec()) else { return };
    assert_eq!(encoded.len(), texts.len());
    for text in encoded {
        assert!(text.ids.len() <= identity.max_tokens, "beyond the window");
    }
}

/// What a small model is, for tests too; its checksums match nothing.
pub(super) fn small(name: &str) -> EmbedderIdentity {
    EmbedderIdentity {
        name: name.into(),
        dimension: 8,
        normalised: true,
        pooling: Pooling::Mean,
        precision: Precision::F32,
        max_tokens: 8,
        query_prefix: String::new(),
        passage_prefix: "water ".into(),
        weights: String::new(),
        tokenizer: String::new(),
    }
}
