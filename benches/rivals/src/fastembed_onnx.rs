//! fastembed-rs over ONNX Runtime, on the same fused graph that the ONNX Runtime contender runs.
//!
//! fastembed pads to the longest of the batch and does not sort; the caller here sorts by length, as its users can.

use std::path::Path;

use anyhow::{Context, Result};
use fastembed::{InitOptionsUserDefined, Pooling, TextEmbedding, TokenizerFiles, UserDefinedEmbeddingModel};

use crate::Contender;

const MAX_TOKENS: usize = 256;
const THREADS: usize = 2;

pub(crate) struct FastEmbed(TextEmbedding);

impl FastEmbed {
    pub(crate) fn load(folder: &Path, onnx: &Path) -> Result<Self> {
        let tokenizer = TokenizerFiles {
            tokenizer_file: std::fs::read(folder.join("tokenizer.json"))?,
            config_file: std::fs::read(folder.join("config.json"))?,
            special_tokens_map_file: b"{}".to_vec(),
            tokenizer_config_file: br#"{"model_max_length": 256, "pad_token": "[PAD]"}"#.to_vec(),
        };
        let graph = std::fs::read(onnx).with_context(|| format!("reading {}", onnx.display()))?;
        let model = UserDefinedEmbeddingModel::new(graph, tokenizer).with_pooling(Pooling::Mean);
        let options = InitOptionsUserDefined::default().with_max_length(MAX_TOKENS).with_intra_threads(THREADS);
        Ok(Self(TextEmbedding::try_new_from_user_defined(model, options)?))
    }
}

impl Contender for FastEmbed {
    fn embed(&mut self, texts: &[String], batch: usize) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| texts[text].len());
        let sorted: Vec<&str> = order.iter().map(|&text| texts[text].as_str()).collect();
        let mut vectors = vec![Vec::new(); texts.len()];
        for (text, vector) in order.into_iter().zip(self.0.embed(&sorted, Some(batch))?) {
            vectors[text] = vector;
        }
        Ok(vectors)
    }
}
