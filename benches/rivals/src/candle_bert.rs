//! candle-transformers' BERT on the CPU in f32: batches of texts of like length, padded to the longest of the batch.
//!
//! Built with candle's default CPU path (its `gemm` crate on rayon threads, `RAYON_NUM_THREADS`), without MKL.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tokenizers::{Tokenizer, TruncationParams};

use crate::Contender;

/// The window that sentence-transformers gives all-MiniLM-L6-v2.
const MAX_TOKENS: usize = 256;

pub(crate) struct Candle {
    model: BertModel,
    tokenizer: Tokenizer,
}

impl Candle {
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let config: Config = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json"))?)?;
        let weights = std::fs::read(folder.join("model.safetensors")).context("reading model.safetensors")?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(anyhow::Error::msg)?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: MAX_TOKENS, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(anyhow::Error::msg)?;
        Ok(Self { model: BertModel::load(weights, &config)?, tokenizer })
    }

    /// ids: per text its token ids → one unit vector a text.
    fn forward(&self, ids: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let longest = ids.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let shape = (ids.len(), longest);
        let mut padded = vec![0u32; ids.len() * longest];
        let mut mask = vec![0f32; ids.len() * longest];
        for ((ids, padded), mask) in ids.iter().zip(padded.chunks_mut(longest)).zip(mask.chunks_mut(longest)) {
            padded[..ids.len()].copy_from_slice(ids);
            mask[..ids.len()].fill(1.0);
        }
        let padded = Tensor::from_vec(padded, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let hidden = self.model.forward(&padded, &padded.zeros_like()?, Some(&mask))?;
        // Mean over real tokens as a product [B, 1, S] × [B, S, H].
        let sums = mask.unsqueeze(1)?.matmul(&hidden)?.i((.., 0, ..))?;
        let norms = sums.sqr()?.sum_keepdim(1)?.sqrt()?;
        Ok(sums.broadcast_div(&norms)?.to_vec2()?)
    }
}

impl Contender for Candle {
    fn embed(&mut self, texts: &[String], batch: usize) -> Result<Vec<Vec<f32>>> {
        let encodings = self.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(anyhow::Error::msg)?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&text| encodings[text].len());
        let mut vectors = vec![Vec::new(); texts.len()];
        for batch in order.chunks(batch) {
            let ids: Vec<&[u32]> = batch.iter().map(|&text| encodings[text].get_ids()).collect();
            for (&text, vector) in batch.iter().zip(self.forward(&ids)?) {
                vectors[text] = vector;
            }
        }
        Ok(vectors)
    }
}
