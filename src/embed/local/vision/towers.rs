//! The two kinds of towers: pictures to vectors, texts to vectors of the same space.
//!
//! In shapes: B images or texts, P patches of an image, T tokens of the whole batch, H the width of a state, D of a vector.
//! Must not know: files, decoding, tokenizers.

use super::blocks::{Blocks, Dense};
use crate::kernels::{Activation, Cpu, Norm, Normalise, Pool, Weights, layer_norm, linear, pool_normalise};

/// From patches to one vector an image.
pub(super) struct ImageTower {
    /// `[3 · patch², H]`
    pub(super) patches: Dense,
    /// `[H]`: the first token of every image, its position added.
    pub(super) class: Vec<f32>,
    /// `[P, H]`: the positions of the patches.
    pub(super) positions: Vec<f32>,
    /// CLIP norms before its blocks.
    pub(super) norm_before: Option<Norm>,
    pub(super) blocks: Blocks,
    pub(super) norm_after: Norm,
    /// `[H, D]`; `None`: D is H.
    pub(super) projection: Option<Weights>,
}

/// From token ids to one vector a text.
pub(super) struct TextTower {
    /// `[V, H]`
    pub(super) words: Vec<f32>,
    /// `[window, H]`
    pub(super) positions: Vec<f32>,
    pub(super) blocks: Blocks,
    pub(super) norm_after: Norm,
    /// `[H, D]`
    pub(super) projection: Weights,
}

impl ImageTower {
    /// Patches of one image, P.
    pub(super) fn patches(&self) -> usize {
        self.positions.len() / self.class.len().max(1)
    }

    /// `[B · P, 3 · patch²]` → B rows of D numbers, of unit norm.
    pub(super) fn embed(&self, cpu: Cpu, patches: &[f32]) -> Vec<Vec<f32>> {
        let width = self.class.len();
        let count = patches.len() / self.patches.weights.inputs();
        let images = count / self.patches();
        let mut embedded = vec![0.0; count * width];
        self.patches.forward(cpu, patches, Activation::None, &mut embedded);

        let lengths = vec![self.patches() + 1; images];
        let mut state = Vec::with_capacity((count + images) * width);
        for image in embedded.chunks_exact(self.positions.len()) {
            state.extend_from_slice(&self.class);
            state.extend(image.iter().zip(&self.positions).map(|(patch, position)| patch + position));
        }
        drop(embedded);
        if let Some(norm) = &self.norm_before {
            let mut normed = vec![0.0; state.len()];
            layer_norm(cpu, &state, norm, &mut normed);
            state = normed;
        }
        let state = self.blocks.forward(cpu, state, &lengths);
        vectors(cpu, &state, &lengths, Pool::First, &self.norm_after, self.projection.as_ref())
    }
}

impl TextTower {
    /// Rows of the table of words, V.
    pub(super) fn vocabulary(&self) -> usize {
        self.words.len() / self.blocks_width()
    }

    /// One row of D numbers of unit norm a text. A text's vector is read off its last token, so that has to be the one that
    /// ends texts. Ids are below [`vocabulary`](Self::vocabulary), lengths within the window.
    pub(super) fn embed(&self, cpu: Cpu, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let width = self.blocks_width();
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let mut state = Vec::with_capacity(lengths.iter().sum::<usize>() * width);
        for text in texts {
            for (&id, position) in text.iter().zip(self.positions.chunks_exact(width)) {
                let word = self.words.chunks_exact(width).nth(id as usize).unwrap_or_default();
                state.extend(word.iter().zip(position).map(|(word, position)| word + position));
            }
        }
        let state = self.blocks.forward(cpu, state, &lengths);
        vectors(cpu, &state, &lengths, Pool::Last, &self.norm_after, Some(&self.projection))
    }

    /// H
    fn blocks_width(&self) -> usize {
        self.projection.inputs()
    }
}

/// One token of each image or text, normed, projected and brought to unit length.
fn vectors(
    cpu: Cpu,
    state: &[f32],
    lengths: &[usize],
    pool: Pool,
    norm: &Norm,
    projection: Option<&Weights>,
) -> Vec<Vec<f32>> {
    let width = norm.gamma.len();
    // Only these rows are normed: the others are not looked at.
    let mut pooled = vec![0.0; lengths.len() * width];
    pool_normalise(cpu, state, lengths, pool, Normalise::Raw, &mut pooled);
    let mut vectors = vec![0.0; pooled.len()];
    layer_norm(cpu, &pooled, norm, &mut vectors);
    if let Some(projection) = projection {
        let mut projected = vec![0.0; lengths.len() * projection.outputs()];
        // Published projections have no bias.
        linear(cpu, &vectors, projection, &vec![0.0; projection.outputs()], Activation::None, &mut projected);
        vectors = projected;
    }
    let mut unit = vec![0.0; vectors.len()];
    pool_normalise(cpu, &vectors, &vec![1; lengths.len()], Pool::First, Normalise::Unit, &mut unit);
    unit.chunks_exact((unit.len() / lengths.len().max(1)).max(1)).map(<[f32]>::to_vec).collect()
}
