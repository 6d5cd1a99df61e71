//! The encoder on this machine's processor: the fused operations of [`ops`], one after another.
//!
//! Guarantees: the weights are held once, packed for the products; a batch needs four buffers, whatever the number of layers,
//! and takes those of the batch before. Must not know: files, tokenizers.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

use super::encoder::Output;
use super::ops::{self, PackedLayer, Tables};
use crate::kernels::Cpu;

/// The weights, ready for the kernels.
pub(super) struct Fused {
    pub(super) cpu: Cpu,
    pub(super) tables: Tables,
    pub(super) layers: Vec<PackedLayer>,
    /// A
    pub(super) heads: usize,
    pub(super) buffers: Buffers,
}

/// Memory of earlier batches. Fresh memory would cost a page fault every 4 KB: 2,000 for a batch of 1,024 tokens.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<f32>>>);

impl Buffers {
    /// A matrix of whatever numbers.
    fn take(&self, [rows, columns]: [usize; 2]) -> Tensor<2> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = spare.iter().enumerate().max_by_key(|(_, buffer)| buffer.capacity()).map(|(at, _)| at);
        let mut numbers = most.map(|at| spare.swap_remove(at)).unwrap_or_default();
        numbers.resize(rows * columns, 0.0);
        Tensor::from_data(TensorData::new(numbers, [rows, columns]), &Device::flex())
    }

    fn give_back(&self, tensors: [Tensor<2>; 4]) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.extend(tensors.into_iter().filter_map(|tensor| tensor.try_into_vec_as().ok()));
        // Two threads may have computed at once.
        spare.truncate(4);
    }
}

impl Fused {
    /// One row per text. `[B, H]`
    pub(super) fn embed(&self, texts: &[&[u32]], output: Output) -> Tensor<2> {
        let Self { cpu, tables, layers, heads, buffers } = self;
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let (tokens, width) = (lengths.iter().sum(), tables.words.width());

        // Each step writes to a buffer that no later one reads; none is shared while it is written to. The widest first: it
        // takes the largest of those that were given back.
        let mut qkv = buffers.take([tokens, 3 * width]);
        let [mut state, mut attended, mut middle] = [0; 3].map(|_| buffers.take([tokens, width]));
        state = ops::embed_tokens(*cpu, tables, texts, state);
        for layer in layers {
            qkv = ops::project(*cpu, &state, layer, qkv);
            attended = ops::attend(*cpu, &qkv, &lengths, *heads, attended);
            middle = ops::attention_output(*cpu, &attended, &state, layer, middle);
            state = ops::feed_forward(*cpu, &middle, layer, state);
        }
        let pooled = Tensor::zeros([texts.len(), width], &Device::flex());
        let pooled = ops::pool(*cpu, &state, &lengths, output, pooled);
        buffers.give_back([qkv, state, attended, middle]);
        pooled
    }
}
