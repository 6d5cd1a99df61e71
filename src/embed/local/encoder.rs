//! A BERT encoder in burn, padding-free: the tokens of all texts of a batch stand in one matrix `[T, H]`, one text after
//! another, and nothing is ever padded or masked.
//!
//! In shapes: T tokens in the batch, B texts, L tokens in one text, H the width of a state, F the width inside the
//! feed-forward part, A heads of D numbers each (H = A · D), V token ids, P positions. Must not know: files, tokenizers.

use std::ops::Range;

use burn::tensor::activation::gelu;
use burn::tensor::module::{attention, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::embed::Pooling;
use crate::error::BoxError;

/// Below this a norm counts as zero when dividing by it; as torch's `normalize` has it.
const MIN_NORM: f32 = 1e-12;

/// The encoder's weights on one device.
pub(super) struct Encoder {
    pub(super) device: Device,
    /// `[V, H]`
    pub(super) words: Tensor<2>,
    /// `[P, H]`, with the row of token type 0 already added: a text alone has no other type.
    pub(super) positions: Tensor<2>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
    /// A
    pub(super) heads: usize,
    pub(super) pooling: Pooling,
}

/// One transformer layer.
pub(super) struct Layer {
    /// `[H, 3H]`: query, key and value side by side, each head by head.
    pub(super) qkv: Dense,
    /// `[H, H]`
    pub(super) attention_output: Dense,
    pub(super) attention_norm: Norm,
    /// `[H, F]`
    pub(super) up: Dense,
    /// `[F, H]`
    pub(super) down: Dense,
    pub(super) output_norm: Norm,
}

/// `x W + b`; `W: [in, out]`, which is PyTorch's weight transposed; `b: [out]`.
pub(super) struct Dense {
    pub(super) weight: Tensor<2>,
    pub(super) bias: Tensor<1>,
}

/// Layer norm over the last axis; both `[H]`.
pub(super) struct Norm {
    pub(super) gamma: Tensor<1>,
    pub(super) beta: Tensor<1>,
    pub(super) eps: f64,
}

/// What is wrong with the token ids of a batch.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokensDefect {
    #[error("a text has {tokens} tokens, the model takes 1 to {max}")]
    Length { tokens: usize, max: usize },
    #[error("token id {id} is beyond the model's {vocabulary} tokens")]
    Id { id: u32, vocabulary: usize },
}

/// Neighbouring texts of one length: their attention is one batched product.
struct Group {
    /// Rows of the token matrix.
    rows: Range<usize>,
    texts: usize,
    length: usize,
}

impl Encoder {
    /// One vector of unit norm per text, in order. Fastest where texts of equal length are neighbours.
    ///
    /// Fails on token ids or lengths that the model does not have, and where the device fails.
    pub(super) fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        self.check(texts)?;
        let groups = groups_of(texts);
        let state =
            self.layers.iter().fold(self.embed_tokens(texts), |state, layer| layer.forward(state, &groups, self.heads));
        let vectors = normalise(pool(state, &groups, self.pooling));
        let [_, width] = vectors.dims();
        let numbers: Vec<f32> = vectors.try_into_vec_as()?;
        Ok(numbers.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    fn check(&self, texts: &[&[u32]]) -> Result<(), TokensDefect> {
        let [vocabulary, _] = self.words.dims();
        let [max, _] = self.positions.dims();
        if let Some(text) = texts.iter().find(|text| text.is_empty() || text.len() > max) {
            return Err(TokensDefect::Length { tokens: text.len(), max });
        }
        match texts.iter().copied().flatten().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(TokensDefect::Id { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// Word, position and token type, summed and normed → `[T, H]`
    fn embed_tokens(&self, texts: &[&[u32]]) -> Tensor<2> {
        // Ids and positions are below 2^20 (see `BertConfig`).
        let ids = texts.iter().copied().flatten().map(|&id| id as i32).collect();
        let positions = texts.iter().flat_map(|text| 0..text.len() as i32).collect();
        let rows = |table: &Tensor<2>, at: Vec<i32>| {
            let count = at.len();
            table.clone().select(0, Tensor::<1, Int>::from_data(TensorData::new(at, [count]), &self.device))
        };
        self.norm.forward(rows(&self.words, ids) + rows(&self.positions, positions))
    }
}

impl Layer {
    /// `[T, H]` → `[T, H]`
    fn forward(&self, state: Tensor<2>, groups: &[Group], heads: usize) -> Tensor<2> {
        let attended = attend(self.qkv.forward(state.clone()), groups, heads);
        let state = self.attention_norm.forward(self.attention_output.forward(attended) + state);
        // The erf form, as BERT has it.
        let inner = gelu(self.up.forward(state.clone()));
        self.output_norm.forward(self.down.forward(inner) + state)
    }
}

impl Dense {
    /// `[T, in]` → `[T, out]`
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        linear(x, self.weight.clone(), Some(self.bias.clone()))
    }
}

impl Norm {
    /// `[T, H]` → `[T, H]`
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, self.gamma.clone(), Some(self.beta.clone()), self.eps)
    }
}

fn groups_of(texts: &[&[u32]]) -> Vec<Group> {
    let mut start = 0;
    texts
        .chunk_by(|a, b| a.len() == b.len())
        .map(|group| {
            let length = group.first().map_or(0, |text| text.len());
            let rows = start..start + group.len() * length;
            start = rows.end;
            Group { rows, texts: group.len(), length }
        })
        .collect()
}

/// Attention of every text to itself alone. qkv: `[T, 3H]` → `[T, H]`
fn attend(qkv: Tensor<2>, groups: &[Group], heads: usize) -> Tensor<2> {
    let [_, three_widths] = qkv.dims();
    let head_width = three_widths / (3 * heads);
    let attended = groups.iter().map(|group| {
        let Group { rows, texts, length } = group;
        let rows = qkv.clone().slice_dim(0, rows.clone());
        // [B, 3A, L, D]
        let heads_first = rows.reshape([*texts, *length, 3 * heads, head_width]).swap_dims(1, 2);
        let [query, key, value] = [0, heads, 2 * heads].map(|first| heads_first.clone().narrow(1, first, heads));
        // Scores are scaled by 1 / sqrt(D), its default.
        let mixed = attention(query, key, value, None, None, AttentionModuleOptions::default());
        mixed.swap_dims(1, 2).reshape([texts * length, heads * head_width])
    });
    cat(attended.collect())
}

/// One row per text. state: `[T, H]` → `[B, H]`
fn pool(state: Tensor<2>, groups: &[Group], pooling: Pooling) -> Tensor<2> {
    let [_, width] = state.dims();
    let pooled = groups.iter().map(|group| {
        let Group { rows, texts, length } = group;
        let states = state.clone().slice_dim(0, rows.clone()).reshape([*texts, *length, width]);
        let pooled = match pooling {
            Pooling::Mean => states.mean_dim(1),
            Pooling::Cls | Pooling::None => states.narrow(1, 0, 1),
        };
        pooled.reshape([*texts, width])
    });
    cat(pooled.collect())
}

/// Rows of unit norm. `[B, H]` → `[B, H]`
fn normalise(vectors: Tensor<2>) -> Tensor<2> {
    let norms = (vectors.clone() * vectors.clone()).sum_dim(1).sqrt().clamp_min(MIN_NORM);
    vectors / norms
}

/// Parts one below the other; there is at least one.
fn cat(parts: Vec<Tensor<2>>) -> Tensor<2> {
    match <[Tensor<2>; 1]>::try_from(parts) {
        // Without a copy.
        Ok([only]) => only,
        Err(parts) => Tensor::cat(parts, 0),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::config::BertConfig;
    use super::super::{tiny, weights};
    use super::*;

    fn encoder(pooling: Pooling) -> Encoder {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, tiny::safetensors(&tiny::tensors())).unwrap();
        let config = BertConfig::parse(Path::new("config.json"), tiny::CONFIG.as_bytes()).unwrap();
        weights::load(&path, &config, pooling, &Device::flex()).unwrap()
    }

    fn largest_difference(found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn every_text_of_a_mixed_batch_equals_plain_f64_loops_over_it_alone() {
        let texts: [&[u32]; 7] = [
            &[2, 7, 6, 4, 5, 4, 5, 3],
            &[2, 1, 1, 1, 1, 1, 1, 3],
            &[2, 4, 5, 6, 3],
            &[2, 6, 6, 6, 3],
            &[2, 7, 4, 0, 3],
            &[2, 3],
            &[5],
        ];
        let vectors = encoder(Pooling::Mean).embed(&texts).unwrap();
        assert_eq!(vectors.len(), texts.len());
        for (text, vector) in texts.iter().zip(&vectors) {
            let difference = largest_difference(vector, &tiny::reference(&tiny::tensors(), text));
            assert!(difference < 1e-5, "{text:?}: {difference}");
        }
    }

    #[test]
    fn texts_of_one_length_need_not_be_neighbours() {
        let encoder = encoder(Pooling::Mean);
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[2, 4, 3], &[2, 4, 5, 3], &[2, 6, 3]);
        let apart = encoder.embed(&[a, b, c]).unwrap();
        let expected = [a, b, c].map(|text| tiny::reference(&tiny::tensors(), text));
        for (found, expected) in apart.iter().zip(&expected) {
            assert!(largest_difference(found, expected) < 1e-5);
        }
    }

    #[test]
    fn cls_pooling_takes_the_first_token() {
        // Of a text of one token, the first token is the mean.
        let [mean, cls] = [Pooling::Mean, Pooling::Cls].map(|p| encoder(p).embed(&[&[6], &[6, 4]]).unwrap());
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(same(&mean[0], &cls[0]));
        assert!(!same(&mean[1], &cls[1]));
    }

    #[test]
    fn tokens_that_the_model_does_not_have_are_refused() {
        let encoder = encoder(Pooling::Mean);
        let refusal = |texts: &[&[u32]]| encoder.embed(texts).unwrap_err().to_string();
        assert_eq!(refusal(&[&[1], &[8]]), "token id 8 is beyond the model's 8 tokens");
        assert_eq!(refusal(&[&[1], &[]]), "a text has 0 tokens, the model takes 1 to 16");
        assert_eq!(refusal(&[&[1; 17]]), "a text has 17 tokens, the model takes 1 to 16");
    }

    #[test]
    fn no_text_gives_no_vector() {
        assert_eq!(encoder(Pooling::Mean).embed(&[]).unwrap(), Vec::<Vec<f32>>::new());
    }
}
