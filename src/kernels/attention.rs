//! Attention of each text to itself: no padding, no masks, one task for each text or part of a long one.

use super::cpu::Cpu;
use super::head::{Attend, Part, Scratch};
use super::product::TILE_ROWS;
use super::share::share;

/// What a token may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Every token of its text.
    All,
    /// Itself and those before it: CLIP's text tower.
    Causal,
}

/// Most rows of a text that one task takes: enough that packing the keys anew for each part is little beside the products.
const PART_ROWS: usize = 22 * TILE_ROWS;

/// softmax(q kᵀ / √D) v, for each text and head. qkv: `[T, 3H]`, a row holding all heads of q, then of k, then of v; `lengths`:
/// tokens of each text (their sum is T) → out: `[T, H]`.
pub(crate) fn attention(cpu: Cpu, qkv: &[f32], lengths: &[usize], heads: usize, reach: Reach, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let tokens: usize = lengths.iter().sum();
    assert_eq!(qkv.len(), 3 * out.len(), "a row of queries, keys and values for each row out");
    assert!(heads > 0 && tokens > 0 && out.len().is_multiple_of(tokens * heads), "heads share the width of a row");
    let width = out.len() / tokens;
    let mut parts = Vec::with_capacity(lengths.len());
    let (mut qkv, mut out) = (qkv, out);
    for &length in lengths {
        let (text, texts) = qkv.split_at(length * 3 * width);
        qkv = texts;
        let part = length.div_ceil(length.div_ceil(PART_ROWS).max(1)).max(1);
        for first in (0..length).step_by(part) {
            let rows = first..(first + part).min(length);
            let (part, others) = out.split_at_mut(rows.len() * width);
            out = others;
            parts.push(Part { qkv: text, width, heads, rows, reach, out: part });
        }
    }
    share(parts.into_iter(), |part, scratch: &mut Scratch| cpu.run(Attend { part, scratch }));
}
