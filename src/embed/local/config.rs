//! The numbers of a BERT encoder, read from the published `config.json`.
//!
//! What leaves here can be built: every size is positive, the heads divide the width. Must not know: tensors.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// The shape of a BERT encoder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct BertConfig {
    pub(super) model_type: String,
    pub(super) hidden_act: String,
    /// Width of a token's state, H.
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// Width inside the feed-forward part, F.
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) type_vocab_size: usize,
    /// Added to the variance in layer norms; 1e-12 in BERT as published.
    #[serde(default = "bert_eps")]
    pub(super) layer_norm_eps: f64,
    #[serde(default = "absolute")]
    pub(super) position_embedding_type: String,
}

fn bert_eps() -> f64 {
    1e-12
}

fn absolute() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    /// Reads and checks a `config.json`; `path` is only for what is said about it.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(json).map_err(|e| Error::ModelFormat {
            path: path.to_owned(),
            reason: "not the configuration of a BERT model".into(),
            source: Some(e.into()),
        })?;
        match config.defect() {
            None => Ok(config),
            Some(reason) => Err(Error::ModelFormat { path: path.to_owned(), reason, source: None }),
        }
    }

    fn defect(&self) -> Option<String> {
        for (field, found, supported) in [
            ("model_type", &self.model_type, "bert"),
            ("hidden_act", &self.hidden_act, "gelu"),
            ("position_embedding_type", &self.position_embedding_type, "absolute"),
        ] {
            if found != supported {
                return Some(format!("{field} is {found}, this release runs {supported}"));
            }
        }
        for (field, size) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            // No size of a published encoder comes near a million; beyond it, products of sizes could overflow.
            if size == 0 || size > 1 << 20 {
                return Some(format!("{field} is {size}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            return Some(format!("hidden_size {width} cannot be divided among {heads} attention heads"));
        }
        if !(0.0..1.0).contains(&self.layer_norm_eps) {
            return Some(format!("layer_norm_eps is {}", self.layer_norm_eps));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINILM: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "use_cache": true}"#;

    fn refusal(json: &str) -> String {
        BertConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_is_published() {
        let config = BertConfig::parse(Path::new("config.json"), MINILM.as_bytes()).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers, config.num_attention_heads), (384, 6, 12));
        assert_eq!(config.layer_norm_eps, 1e-12);
    }

    #[test]
    fn refuses_what_it_cannot_run_and_says_why() {
        let other_model = MINILM.replace("\"bert\"", "\"gpt2\"");
        assert_eq!(refusal(&other_model), "config.json: model_type is gpt2, this release runs bert");
        let other_act = MINILM.replace("\"gelu\"", "\"gelu_new\"");
        assert_eq!(refusal(&other_act), "config.json: hidden_act is gelu_new, this release runs gelu");
        let heads = MINILM.replace("12,", "7,");
        assert_eq!(refusal(&heads), "config.json: hidden_size 384 cannot be divided among 7 attention heads");
        assert_eq!(refusal(&MINILM.replace("384", "0")), "config.json: hidden_size is 0");
    }

    #[test]
    fn refuses_a_corrupt_config() {
        let truncated = MINILM.get(..100).unwrap();
        assert_eq!(refusal(truncated), "config.json: not the configuration of a BERT model");
        assert_eq!(refusal("{}"), "config.json: not the configuration of a BERT model");
    }
}
