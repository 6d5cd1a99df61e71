//! The numbers of a BERT or XLM-RoBERTa encoder, read from the published `config.json`.
//!
//! What leaves here can be built: every size is positive, the heads divide the width, the positions leave room for a text.
//! Must not know: tensors.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// The shape of an encoder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct BertConfig {
    #[serde(rename = "model_type")]
    pub(super) architecture: Architecture,
    pub(super) hidden_act: String,
    /// Width of a token's state, H.
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// Width inside the feed-forward part, F.
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    /// Rows of the position table; see [`first_position`](Self::first_position).
    pub(super) max_position_embeddings: usize,
    pub(super) type_vocab_size: usize,
    /// Added to the variance in layer norms; 1e-12 in BERT as published, 1e-5 in XLM-RoBERTa.
    #[serde(default = "bert_eps")]
    pub(super) layer_norm_eps: f64,
    #[serde(default = "absolute")]
    pub(super) position_embedding_type: String,
    pub(super) pad_token_id: Option<usize>,
    #[serde(default)]
    pub(super) is_decoder: bool,
}

#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

/// The families of encoders that run here. They differ in where positions start and in what the tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Architecture {
    Bert,
    XlmRoberta,
}

impl Architecture {
    const ALL: [Self; 2] = [Self::Bert, Self::XlmRoberta];

    /// As `model_type` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::XlmRoberta => "xlm-roberta",
        }
    }

    /// What stands before the tensors' names in a file that holds more than the encoder.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::XlmRoberta => "roberta.",
        }
    }
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
        let refuse = |reason, source| Error::ModelFormat { path: path.to_owned(), reason, source };
        let broken = |e: serde_json::Error| {
            refuse("not the configuration of a BERT or XLM-RoBERTa encoder".into(), Some(e.into()))
        };
        // First, since the numbers of another architecture have other names.
        let Kind { model_type } = serde_json::from_slice(json).map_err(broken)?;
        if Architecture::ALL.iter().all(|known| known.name() != model_type) {
            let known = Architecture::ALL.map(Architecture::name).join(" and ");
            return Err(refuse(format!("model_type is {model_type}, this release runs {known}"), None));
        }
        let config: Self = serde_json::from_slice(json).map_err(broken)?;
        match config.defect() {
            None => Ok(config),
            Some(reason) => Err(refuse(reason, None)),
        }
    }

    /// The row of the position table that a text's first token takes. XLM-RoBERTa counts from the one after the padding
    /// token's, whose own row stands for padding.
    pub(super) fn first_position(&self) -> usize {
        match self.architecture {
            Architecture::Bert => 0,
            // 1 is the default of the published architecture.
            Architecture::XlmRoberta => self.pad_token_id.unwrap_or(1).saturating_add(1),
        }
    }

    /// Most tokens of a text that have a position.
    pub(super) fn max_tokens(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }

    /// What changes vectors and shows neither in the weights nor in their shapes.
    pub(super) fn fingerprint(&self) -> String {
        let (name, heads, eps) = (self.architecture.name(), self.num_attention_heads, self.layer_norm_eps);
        match self.first_position() {
            0 => format!("{name} heads={heads} eps={eps:e}"),
            first => format!("{name} heads={heads} eps={eps:e} first-position={first}"),
        }
    }

    fn defect(&self) -> Option<String> {
        for (field, found, supported) in [
            ("hidden_act", &self.hidden_act, "gelu"),
            ("position_embedding_type", &self.position_embedding_type, "absolute"),
        ] {
            if found != supported {
                return Some(format!("{field} is {found}, this release runs {supported}"));
            }
        }
        if self.is_decoder {
            return Some("is_decoder is true, this release runs encoders".into());
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
        // The deepest published encoder has 48.
        if self.num_hidden_layers > 1 << 10 {
            return Some(format!("num_hidden_layers is {}", self.num_hidden_layers));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            return Some(format!("hidden_size {width} cannot be divided among {heads} attention heads"));
        }
        if !(0.0..1.0).contains(&self.layer_norm_eps) {
            return Some(format!("layer_norm_eps is {}", self.layer_norm_eps));
        }
        if self.max_tokens() == 0 {
            let (positions, first) = (self.max_position_embeddings, self.first_position());
            return Some(format!("max_position_embeddings is {positions}, and texts start at position {first}"));
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

    fn parse(json: &str) -> Result<BertConfig> {
        BertConfig::parse(Path::new("config.json"), json.as_bytes())
    }

    fn refusal(json: &str) -> String {
        parse(json).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_is_published() {
        let config = parse(MINILM).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers, config.num_attention_heads), (384, 6, 12));
        assert_eq!((config.layer_norm_eps, config.first_position(), config.max_tokens()), (1e-12, 0, 512));
    }

    #[test]
    fn positions_of_xlm_roberta_start_after_the_padding_token() {
        // The numbers of BGE-M3.
        let json = MINILM.replace("\"bert\"", "\"xlm-roberta\"").replace("512", "8194").replace("1e-12", "1e-05");
        let config = parse(&json).unwrap();
        assert_eq!((config.first_position(), config.max_tokens()), (2, 8192));
        assert_eq!(config.fingerprint(), "xlm-roberta heads=12 eps=1e-5 first-position=2");
        let other = parse(&json.replace("\"type_vocab_size\"", "\"pad_token_id\": 5, \"type_vocab_size\"")).unwrap();
        assert_eq!((other.first_position(), other.max_tokens()), (6, 8188));
        let none = json.replace("8194", "2");
        assert_eq!(refusal(&none), "config.json: max_position_embeddings is 2, and texts start at position 2");
    }

    #[test]
    fn refuses_what_it_cannot_run_and_says_why() {
        let other_model = MINILM.replace("\"bert\"", "\"gpt2\"");
        assert_eq!(refusal(&other_model), "config.json: model_type is gpt2, this release runs bert and xlm-roberta");
        let other_act = MINILM.replace("\"gelu\"", "\"gelu_new\"");
        assert_eq!(refusal(&other_act), "config.json: hidden_act is gelu_new, this release runs gelu");
        let heads = MINILM.replace("12,", "7,");
        assert_eq!(refusal(&heads), "config.json: hidden_size 384 cannot be divided among 7 attention heads");
        assert_eq!(refusal(&MINILM.replace("384", "0")), "config.json: hidden_size is 0");
        let decoder = MINILM.replace("\"use_cache\"", "\"is_decoder\"");
        assert_eq!(refusal(&decoder), "config.json: is_decoder is true, this release runs encoders");
    }

    #[test]
    fn refuses_a_corrupt_config() {
        let truncated = MINILM.get(..100).unwrap();
        let said = "config.json: not the configuration of a BERT or XLM-RoBERTa encoder";
        assert_eq!(refusal(truncated), said);
        assert_eq!(refusal("{}"), said);
    }

    #[test]
    fn the_fingerprint_tells_what_the_weights_do_not_show() {
        assert_eq!(parse(MINILM).unwrap().fingerprint(), "bert heads=12 eps=1e-12");
    }
}
