//! The encoder on this machine's processor: the fused operations of [`ops`], one after another.
//!
//! Guarantees: the weights are held once, packed for the products; a batch needs four buffers, whatever the number of layers,
//! and takes those of the batch before. Must not know: files, tokenizers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

use super::encoder::Output;
use super::ops::{self, PackedLayer, Tables};
use crate::kernels::{Cpu, Heads, Number};

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
pub(super) struct Buffers(Mutex<Spare>);

#[derive(Default)]
struct Spare {
    states: Vec<Vec<f32>>,
    heads: Option<Heads>,
}

impl Buffers {
    /// A matrix of whatever numbers.
    fn take(&self, [rows, columns]: [usize; 2]) -> Tensor<2> {
        let mut numbers = self.spare().states.pop().unwrap_or_default();
        numbers.resize(rows * columns, 0.0);
        Tensor::from_data(TensorData::new(numbers, [rows, columns]), &Device::flex())
    }

    fn take_heads(&self) -> Option<Heads> {
        self.spare().heads.take()
    }

    fn give_back(&self, tensors: [Tensor<2>; 3], heads: Heads) {
        let mut spare = self.spare();
        spare.states.extend(tensors.into_iter().filter_map(|tensor| tensor.try_into_vec_as().ok()));
        // Two threads may have computed at once.
        spare.states.truncate(3);
        spare.heads = Some(heads);
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fused {
    /// One row per text. `[B, H]`
    pub(super) fn embed(&self, texts: &[&[u32]], output: Output) -> Tensor<2> {
        let Self { cpu, tables, layers, heads, buffers } = self;
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let (tokens, width) = (lengths.iter().sum(), tables.words.width());

        // Each step writes to a buffer that no later one reads; none is shared while it is written to.
        let number = layers.first().map_or(Number::F32, |layer| layer.qkv.weights.number());
        let mut qkv = buffers.take_heads().unwrap_or_else(|| Heads::new(*heads, width, number));
        let [mut state, mut attended, mut middle] = [0; 3].map(|_| buffers.take([tokens, width]));
        state = ops::embed_tokens(*cpu, tables, texts, state);
        for layer in layers {
            attended = ops::attend(*cpu, &state, &lengths, layer, &mut qkv, attended);
            middle = ops::attention_output(*cpu, &attended, &state, layer, middle);
            state = ops::feed_forward(*cpu, &middle, layer, state);
        }
        let pooled = Tensor::zeros([texts.len(), width], &Device::flex());
        let pooled = ops::pool(*cpu, &state, &lengths, output, pooled);
        buffers.give_back([state, attended, middle], qkv);
        pooled
    }
}
