//! Transformer blocks that norm before they attend, as CLIP's two towers and DINOv2 have them.
//!
//! In shapes: T tokens of all images or texts of a batch, one after another without padding; H the width of a state, F the
//! width inside the feed-forward part. Must not know: images, texts, files.

use crate::kernels::{Activation, Cpu, Heads, Norm, Reach, Weights, attention, layer_norm, linear, linear_add};

/// A stack of blocks.
pub(super) struct Blocks {
    pub(super) layers: Vec<Block>,
    pub(super) heads: usize,
    pub(super) activation: Activation,
    /// What a token sees of its own image or text.
    pub(super) reach: Reach,
}

/// One transformer layer.
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    /// `[H, 3H]`: query, key and value side by side.
    pub(super) qkv: Dense,
    /// `[H, H]`
    pub(super) attention_output: Branch,
    pub(super) feed_forward_norm: Norm,
    /// `[H, F]`
    pub(super) up: Dense,
    /// `[F, H]`
    pub(super) down: Branch,
}

/// `x W + b`
pub(super) struct Dense {
    pub(super) weights: Weights,
    pub(super) bias: Vec<f32>,
}

/// What is added to the state: `scale ⊙ (x W + b)`.
pub(super) struct Branch {
    pub(super) dense: Dense,
    /// `[H]`: DINOv2's LayerScale. `None`: 1.
    pub(super) scale: Option<Vec<f32>>,
}

impl Blocks {
    /// `[T, H]` → `[T, H]`; `lengths`: tokens of each image or text.
    pub(super) fn forward(&self, cpu: Cpu, state: Vec<f32>, lengths: &[usize]) -> Vec<f32> {
        let Some(first_block) = self.layers.first() else { return state };
        let widest = self.layers.iter().map(|block| block.up.weights.outputs()).max().unwrap_or(0);
        let tokens: usize = lengths.iter().sum();
        // Two states take turns.
        let mut state = state;
        let mut other = vec![0.0; state.len()];
        let mut normed = vec![0.0; state.len()];
        let mut inner_state = vec![0.0; tokens * widest];
        let weights = &first_block.qkv.weights;
        let mut qkv = Heads::new(self.heads, weights.inputs(), weights.number());
        for block in &self.layers {
            layer_norm(cpu, &state, &block.attention_norm, &mut normed);
            qkv.project(cpu, &normed, &block.qkv.weights, &block.qkv.bias);
            attention(cpu, &qkv, lengths, self.reach, &mut normed);
            block.attention_output.add(cpu, &normed, &state, &mut other);

            layer_norm(cpu, &other, &block.feed_forward_norm, &mut normed);
            let inner = tokens * block.up.weights.outputs();
            block.up.forward(cpu, &normed, self.activation, first(&mut inner_state, inner));
            block.down.add(cpu, first(&mut inner_state, inner), &other, &mut state);
        }
        state
    }
}

/// The first `length` numbers of a buffer that was made large enough.
fn first(buffer: &mut [f32], length: usize) -> &mut [f32] {
    buffer.get_mut(..length).unwrap_or_default()
}

impl Dense {
    /// `[T, in]` → `[T, out]`
    pub(super) fn forward(&self, cpu: Cpu, x: &[f32], activation: Activation, out: &mut [f32]) {
        linear(cpu, x, &self.weights, &self.bias, activation, out);
    }
}

impl Branch {
    /// `state` and this branch of it, summed.
    fn add(&self, cpu: Cpu, inner: &[f32], state: &[f32], out: &mut [f32]) {
        linear_add(cpu, inner, &self.dense.weights, &self.dense.bias, self.scale.as_deref(), state, out);
    }
}
