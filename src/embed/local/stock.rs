//! The encoder in burn's own operations, for the devices that have no kernels of ours: graphics processors.
//!
//! Guarantees: the same vectors as [`fused`](super::fused), to rounding; norms and pooling in 32 bits where the weights are
//! of 16. Must not know: files, tokenizers.

use burn::tensor::activation::gelu;
use burn::tensor::module::{attention, layer_norm, linear};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::buckets::{Sheet, sheets};
use super::encoder::{Layer, Output, Scale};
use crate::embed::Pooling;

/// Below this a norm counts as zero when dividing by it; as torch's `normalize` has it.
const MIN_NORM: f32 = 1e-12;

/// The weights as tensors on one device.
pub(super) struct Stock {
    pub(super) device: Device,
    /// `[V, H]`
    pub(super) words: Tensor<2>,
    /// `[P, H]`, with the row of token type 0 already added: a text alone has no other type.
    pub(super) positions: Tensor<2>,
    /// Row of `positions` of a text's first token.
    pub(super) first_position: usize,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer<Dense, Norm>>,
    /// A
    pub(super) heads: usize,
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

/// The texts of a sheet, R rows of L tokens each; what is not a token of a text is padding.
struct Padded {
    rows: usize,
    length: usize,
    /// Tokens of each row; a row without a text has one, so that its attention is of something.
    lengths: Vec<usize>,
}

impl Stock {
    /// One row per text. `[B, H]`
    ///
    /// Texts are laid in rectangles of few shapes (see [`buckets`](super::buckets)), since here each new shape costs more
    /// than padding does.
    pub(super) fn embed(&self, texts: &[&[u32]], output: Output) -> Tensor<2> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let sheets = sheets(&lengths);
        cat(sheets.iter().map(|sheet| self.embed_sheet(sheet, texts, output)).collect())
    }

    fn embed_sheet(&self, sheet: &Sheet, texts: &[&[u32]], output: Output) -> Tensor<2> {
        let texts = texts.get(sheet.texts.clone()).unwrap_or_default();
        let mut lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        lengths.resize(sheet.rows, 1);
        let padded = Padded { rows: sheet.rows, length: sheet.length, lengths };
        let mask = self.mask(&padded);
        let state = self.layers.iter().fold(self.embed_tokens(texts, &padded), |state, layer| {
            let attended = self.attend(layer.qkv.forward(state.clone()), &padded, mask.clone());
            let state = layer.attention_norm.forward(layer.attention_output.forward(attended) + state);
            // The erf form, as BERT has it.
            let inner = gelu(layer.up.forward(state.clone()));
            layer.output_norm.forward(layer.down.forward(inner) + state)
        });
        let vectors = self.pool(state.cast(DType::F32), &padded, output.pooling).narrow(0, 0, texts.len());
        match output.scale {
            Scale::Unit => normalise(vectors),
            Scale::Raw => vectors,
        }
    }

    /// Word, position and token type, summed and normed → `[R L, H]`
    fn embed_tokens(&self, texts: &[&[u32]], padded: &Padded) -> Tensor<2> {
        // Ids and positions are below 2^20 (see `BertConfig`). What stands in for padding does not matter.
        let mut ids = Vec::with_capacity(padded.rows * padded.length);
        for text in texts {
            ids.extend(text.iter().map(|&id| id as i32));
            ids.resize(ids.len() + padded.length - text.len(), 0);
        }
        ids.resize(padded.rows * padded.length, 0);
        let first = self.first_position;
        let of_row =
            |&tokens: &usize| (0..padded.length).map(move |at| (if at < tokens { first + at } else { first }) as i32);
        let positions = padded.lengths.iter().flat_map(of_row).collect();
        let rows = |table: &Tensor<2>, at: Vec<i32>| {
            let count = at.len();
            table.clone().select(0, Tensor::<1, Int>::from_data(TensorData::new(at, [count]), &self.device))
        };
        self.norm.forward(rows(&self.words, ids) + rows(&self.positions, positions))
    }

    /// True where a token must not be looked at. `[R, A, L, L]`; `None` where nothing is padding.
    fn mask(&self, padded: &Padded) -> Option<Tensor<4, Bool>> {
        let Padded { rows, length, lengths } = padded;
        if lengths.iter().all(|tokens| tokens == length) {
            return None;
        }
        let is_padding: Vec<bool> =
            lengths.iter().flat_map(|tokens| (0..*length).map(move |at| at >= *tokens)).collect();
        let mask = Tensor::<4, Bool>::from_data(TensorData::new(is_padding, [*rows, 1, 1, *length]), &self.device);
        Some(mask.expand([*rows, self.heads, *length, *length]))
    }

    /// Attention of every text to itself alone. qkv: `[R L, 3H]` → `[R L, H]`
    fn attend(&self, qkv: Tensor<2>, padded: &Padded, mask: Option<Tensor<4, Bool>>) -> Tensor<2> {
        let (Padded { rows, length, .. }, heads) = (padded, self.heads);
        let [_, three_widths] = qkv.dims();
        let head_width = three_widths / (3 * heads);
        // [R, 3A, L, D]
        let heads_first = qkv.reshape([*rows, *length, 3 * heads, head_width]).swap_dims(1, 2);
        let [query, key, value] = [0, heads, 2 * heads].map(|first| heads_first.clone().narrow(1, first, heads));
        // Scores are scaled by 1 / sqrt(D), its default.
        let mixed = attention(query, key, value, mask, None, AttentionModuleOptions::default());
        mixed.swap_dims(1, 2).reshape([rows * length, heads * head_width])
    }

    /// One row per row of the sheet. state: `[R L, H]` → `[R, H]`
    fn pool(&self, state: Tensor<2>, padded: &Padded, pooling: Pooling) -> Tensor<2> {
        let Padded { rows, length, lengths } = padded;
        let [_, width] = state.dims();
        let states = state.reshape([*rows, *length, width]);
        let pooled = match pooling {
            Pooling::Mean => {
                let share =
                    |&tokens: &usize| (0..*length).map(move |at| if at < tokens { 1.0 / tokens as f32 } else { 0.0 });
                let shares: Vec<f32> = lengths.iter().flat_map(share).collect();
                let shares = TensorData::new(shares, [*rows, *length, 1]);
                (states * Tensor::<3>::from_data(shares, (&self.device, DType::F32))).sum_dim(1)
            }
            Pooling::Cls | Pooling::None => states.narrow(1, 0, 1),
        };
        pooled.reshape([*rows, width])
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
