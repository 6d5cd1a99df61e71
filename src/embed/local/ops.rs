//! The operations that stock burn lacks, as an extension of its CPU backend: each fuses what would else be several passes
//! over memory, and computes over texts of different lengths without padding.
//!
//! Guarantees: an operation writes to the tensor `into` that it is given, in place where that has no other owner, so that
//! a model's layers share a handful of buffers. The arithmetic itself is in [`kernels`]. Must not know: files, tokenizers.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::encoder::{Layer, Output, Scale};
use crate::embed::Pooling;
use crate::kernels::{self, Activation, Cpu, Heads, Normalise, Pool, Reach, Table, Weights};

/// A tensor in the processor's memory.
type FlexTensor = FloatTensor<Flex>;

/// A linear layer, ready for the product.
pub(super) struct Dense {
    pub(super) weights: Weights,
    pub(super) bias: Vec<f32>,
}

/// A transformer layer, ready for the kernels.
pub(super) type PackedLayer = Layer<Dense, kernels::Norm>;

/// What turns token ids into states.
pub(super) struct Tables {
    /// `[V, H]`
    pub(super) words: Table,
    /// `[P, H]`, with the row of token type 0 already added: a text alone has no other type.
    pub(super) positions: Table,
    /// Row of `positions` of a text's first token.
    pub(super) first_position: usize,
    pub(super) norm: kernels::Norm,
}

/// The steps of a post-norm encoder over the tokens of all texts, one text after another: T rows.
#[backend_extension(Flex)]
trait EncoderOps: Backend {
    /// Word and position, summed and normed → `[T, H]`
    fn embed_tokens(cpu: Cpu, tables: &Tables, texts: &[&[u32]], into: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Query, key and value, put into `heads`, and attention of every text to itself alone. `[T, H]` → `[T, H]`
    fn attend(
        cpu: Cpu,
        state: FloatTensor<Self>,
        lengths: &[usize],
        layer: &PackedLayer,
        heads: &mut Heads,
        into: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// The attention's output layer, added to the state it started from and normed → `[T, H]`
    fn attention_output(
        cpu: Cpu,
        attended: FloatTensor<Self>,
        state: FloatTensor<Self>,
        layer: &PackedLayer,
        into: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Up, gelu, down, added and normed; the `[T, F]` between is never whole in memory. `[T, H]` → `[T, H]`
    fn feed_forward(
        cpu: Cpu,
        state: FloatTensor<Self>,
        layer: &PackedLayer,
        into: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// One row per text. state: `[T, H]` → `[B, H]`
    fn pool(
        cpu: Cpu,
        state: FloatTensor<Self>,
        lengths: &[usize],
        output: Output,
        into: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

impl EncoderOps for Flex {
    fn embed_tokens(cpu: Cpu, tables: &Tables, texts: &[&[u32]], into: FlexTensor) -> FlexTensor {
        let Tables { words, positions, first_position, norm } = tables;
        write(into, |out| kernels::embed_tokens(cpu, words, positions, *first_position, texts, norm, out))
    }

    fn attend(
        cpu: Cpu,
        state: FlexTensor,
        lengths: &[usize],
        layer: &PackedLayer,
        heads: &mut Heads,
        into: FlexTensor,
    ) -> FlexTensor {
        let Dense { weights, bias } = &layer.qkv;
        heads.project(cpu, read(&state), weights, bias);
        write(into, |out| kernels::attention(cpu, heads, lengths, Reach::All, out))
    }

    fn attention_output(
        cpu: Cpu,
        attended: FlexTensor,
        state: FlexTensor,
        layer: &PackedLayer,
        into: FlexTensor,
    ) -> FlexTensor {
        let (Dense { weights, bias }, norm) = (&layer.attention_output, &layer.attention_norm);
        write(into, |out| kernels::linear_add_norm(cpu, read(&attended), weights, bias, read(&state), norm, out))
    }

    fn feed_forward(cpu: Cpu, state: FlexTensor, layer: &PackedLayer, into: FlexTensor) -> FlexTensor {
        let Layer { up, down, output_norm: norm, .. } = layer;
        let gelu = Activation::Gelu;
        write(into, |out| {
            let state = read(&state);
            kernels::feed_forward_add_norm(
                cpu,
                state,
                &up.weights,
                &up.bias,
                gelu,
                &down.weights,
                &down.bias,
                norm,
                out,
            );
        })
    }

    fn pool(cpu: Cpu, state: FlexTensor, lengths: &[usize], output: Output, into: FlexTensor) -> FlexTensor {
        let pool = match output.pooling {
            Pooling::Mean => Pool::Mean,
            Pooling::Cls | Pooling::None => Pool::First,
        };
        let normalise = match output.scale {
            Scale::Unit => Normalise::Unit,
            Scale::Raw => Normalise::Raw,
        };
        write(into, |out| kernels::pool_normalise(cpu, read(&state), lengths, pool, normalise, out))
    }
}

#[expect(clippy::expect_used, reason = "the tensors of this module are made by it: rows of f32, one after another")]
fn read(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous f32")
}

fn write(mut into: FlexTensor, fill: impl FnOnce(&mut [f32])) -> FlexTensor {
    // A copy where it has another owner; the encoder sees to it that it has none.
    fill(into.storage_mut());
    into
}

// The same over tensors.

pub(super) fn embed_tokens(cpu: Cpu, tables: &Tables, texts: &[&[u32]], into: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as EncoderOps>::embed_tokens(cpu, tables, texts, into.into_dispatch()))
}

pub(super) fn attend(
    cpu: Cpu,
    state: &Tensor<2>,
    lengths: &[usize],
    layer: &PackedLayer,
    heads: &mut Heads,
    into: Tensor<2>,
) -> Tensor<2> {
    let (state, into) = (state.clone().into_dispatch(), into.into_dispatch());
    Tensor::from_dispatch(<Dispatch as EncoderOps>::attend(cpu, state, lengths, layer, heads, into))
}

pub(super) fn attention_output(
    cpu: Cpu,
    attended: &Tensor<2>,
    state: &Tensor<2>,
    layer: &PackedLayer,
    into: Tensor<2>,
) -> Tensor<2> {
    let (attended, state) = (attended.clone().into_dispatch(), state.clone().into_dispatch());
    let into = into.into_dispatch();
    Tensor::from_dispatch(<Dispatch as EncoderOps>::attention_output(cpu, attended, state, layer, into))
}

pub(super) fn feed_forward(cpu: Cpu, state: &Tensor<2>, layer: &PackedLayer, into: Tensor<2>) -> Tensor<2> {
    let state = state.clone().into_dispatch();
    Tensor::from_dispatch(<Dispatch as EncoderOps>::feed_forward(cpu, state, layer, into.into_dispatch()))
}

pub(super) fn pool(cpu: Cpu, state: &Tensor<2>, lengths: &[usize], output: Output, into: Tensor<2>) -> Tensor<2> {
    let state = state.clone().into_dispatch();
    Tensor::from_dispatch(<Dispatch as EncoderOps>::pool(cpu, state, lengths, output, into.into_dispatch()))
}
