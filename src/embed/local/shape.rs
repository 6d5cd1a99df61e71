//! The size of a local model, as far as its speed depends on it.

use super::config::BertConfig;

/// The sizes of a transformer encoder that decide what a text costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelShape {
    /// Transformer layers.
    pub layers: u64,
    /// Numbers in a token's state.
    pub width: u64,
    /// Numbers inside the feed-forward part.
    pub inner: u64,
}

impl ModelShape {
    pub(super) fn of(config: &BertConfig) -> Self {
        Self {
            layers: config.num_hidden_layers as u64,
            width: config.hidden_size as u64,
            inner: config.intermediate_size as u64,
        }
    }

    /// Floating point operations that one text of `tokens` tokens takes: twice the multiplications of the layers' matrix
    /// products (query, key, value and output; up and down; scores and mixing), nothing else, no padding.
    pub fn operations(&self, tokens: u64) -> u64 {
        let Self { layers, width, inner } = *self;
        let per_token = 4 * width * width + 2 * width * inner + 2 * tokens * width;
        2 * layers * per_token * tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_matrices() {
        // all-MiniLM-L6-v2 at 128 tokens, counted matrix by matrix.
        let shape = ModelShape { layers: 6, width: 384, inner: 1536 };
        let (t, h, f) = (128, 384, 1536);
        let product = |rows: u64, inner: u64, columns: u64| 2 * rows * inner * columns;
        // Scores and mixing of twelve heads of 32 numbers each.
        let attention = 12 * (product(t, 32, t) + product(t, t, 32));
        let layer = product(t, h, 3 * h) + attention + product(t, h, h) + product(t, h, f) + product(t, f, h);
        assert_eq!(shape.operations(t), 6 * layer);
    }
}
