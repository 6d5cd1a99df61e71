//! Some rows and heads of a text in attention: keys and values packed for products, then scores, their softmax, and values.

use std::ops::Range;

use super::attention::Reach;
use super::cpu::Work;
use super::kind::Kind;
use super::layer::put;
use super::math::exp2;
use super::norm::fold;
use super::product::{Isa, Left, Out, PANEL, TILE_ROWS, Tile};
use super::walk::tile_rows;

/// Some rows of a text, some of their heads.
pub(super) struct Part<'a, K> {
    /// `[query, key or value][head][token][depth]`, of the whole batch; see [`Heads`](super::heads::Heads).
    pub(super) numbers: &'a [K],
    /// Of the whole batch.
    pub(super) tokens: usize,
    pub(super) depth: usize,
    pub(super) all_heads: usize,
    /// Its tokens in the batch.
    pub(super) text: Range<usize>,
    pub(super) heads: Range<usize>,
    /// Rows of the text.
    pub(super) rows: Range<usize>,
    pub(super) reach: Reach,
    /// For each of the rows the columns of the heads.
    pub(super) out: Vec<&'a mut [f32]>,
}

/// One head, packed for products, and the rows of a tile.
pub(super) struct Scratch<K: Kind> {
    /// `[panel of tokens][depth][PANEL]`, in bf16 `[panel of tokens][depth / 2][PANEL][2]`.
    keys: Vec<K::Line>,
    /// `[panel of depth][token][PANEL]`, in bf16 `[panel of depth][token / 2][PANEL][2]`.
    values: Vec<K::Line>,
    /// `[row][tokens, filled up to whole panels]`.
    scores: Vec<f32>,
    /// Scores after their softmax, rounded; empty in f32.
    rounded: Vec<K>,
}

impl<K: Kind> Default for Scratch<K> {
    fn default() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), scores: Vec::new(), rounded: Vec::new() }
    }
}

/// A part with the scratch of the thread that does it.
pub(super) struct Attend<'a, 'b, K: Kind> {
    pub(super) part: Part<'a, K>,
    pub(super) scratch: &'b mut Scratch<K>,
}

impl<K: Kind> Work for Attend<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { mut part, scratch } = self;
        for head in part.heads.clone() {
            attend(isa, &mut part, head, scratch);
        }
    }
}

impl<'a, K: Kind> Part<'a, K> {
    /// A head's rows of the text; `which`: 0 its query, 1 its key, 2 its value.
    #[inline(always)]
    fn matrix(&self, which: usize, head: usize) -> &'a [K] {
        let (stride, matrix) = (K::stride(self.depth), which * self.all_heads + head);
        &self.numbers[(matrix * self.tokens + self.text.start) * stride..][..self.text.len() * stride]
    }
}

/// One head: packed, then tile by tile.
#[inline(always)]
fn attend<I: Isa, K: Kind>(isa: I, part: &mut Part<'_, K>, head: usize, scratch: &mut Scratch<K>) {
    let (depth, inner) = (part.depth, K::stride(part.depth));
    // Causal rows see nothing behind the last of them.
    let seen = if part.reach == Reach::Causal { part.rows.end } else { part.text.len() };
    let [queries, keys, values] = [0, 1, 2].map(|which| part.matrix(which, head));
    let (key_lines, value_lines) = (2 * (inner / K::GROUP), 2 * seen.div_ceil(K::GROUP));
    scratch.keys.resize(seen.div_ceil(PANEL) * key_lines, K::EMPTY);
    scratch.values.resize(depth.div_ceil(PANEL) * value_lines, K::EMPTY);
    for (keys, panel) in keys[..seen * inner].chunks(PANEL * inner).zip(scratch.keys.chunks_exact_mut(key_lines)) {
        K::transpose(isa, Left { data: keys, stride: inner, rows: keys.len() / inner }, panel);
    }
    for (at, panel) in scratch.values.chunks_exact_mut(value_lines).enumerate() {
        K::pack(&values[..seen * inner], inner, [at * PANEL, depth], panel);
    }
    let most = tile_rows(part.rows.len());
    for first in (0..part.rows.len()).step_by(most) {
        let rows = first..(first + most).min(part.rows.len());
        // The last token that row 0 of the tile sees is this one; each further row sees one more.
        let place = part.rows.start + first;
        let seen = if part.reach == Reach::Causal { place + rows.len() } else { seen };
        let left = Left { data: &queries[place * inner..], stride: inner, rows: rows.len() };
        let column = (head - part.heads.start) * depth;
        let tile = RowsOfHead { left, place, seen, depth, reach: part.reach };
        tile.attend(isa, scratch, &mut part.out[rows], column);
    }
}

/// Some queries of a head, at most [`TILE_ROWS`].
struct RowsOfHead<'a, K> {
    left: Left<'a, K>,
    /// Place of the first of them in the text.
    place: usize,
    /// Tokens that any of them sees.
    seen: usize,
    depth: usize,
    reach: Reach,
}

impl<K: Kind> RowsOfHead<'_, K> {
    #[inline(always)]
    fn attend<I: Isa>(self, isa: I, scratch: &mut Scratch<K>, out: &mut [&mut [f32]], column: usize) {
        let Self { left, place, seen, depth, reach } = self;
        let Scratch { keys, values, scores, rounded } = scratch;
        let (rows, stride) = (left.rows, seen.next_multiple_of(PANEL));
        scores.resize(TILE_ROWS * stride, 0.0);
        rounded.resize(if K::ROUNDED { TILE_ROWS * stride } else { 0 }, K::default());
        let key_lines = 2 * (left.stride / K::GROUP);
        for (panel, keys) in keys.chunks_exact(key_lines).take(stride / PANEL).enumerate() {
            K::tile(isa, left, keys, Out { data: &mut scores[panel * PANEL..], stride });
        }
        // Row by row in two rounds, so that the rows' chains of operations do not wait for one another.
        let scale = std::f32::consts::LOG2_E / (depth as f32).sqrt();
        let (mut tops, mut shares) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
        for (r, (row, top)) in scores.chunks_exact_mut(stride).zip(&mut tops).take(rows).enumerate() {
            hide(row, if reach == Reach::Causal { place + r + 1 } else { seen });
            *top = highest(row);
        }
        for ((row, top), share) in scores.chunks_exact_mut(stride).zip(tops).zip(&mut shares).take(rows) {
            *share = 1.0 / exponentials(isa, row, scale, top);
        }
        let data = K::shares(isa, &scores[..rows * stride], rounded);
        let mut tile = Tile::ZERO;
        let value_lines = values.len() / depth.div_ceil(PANEL);
        for (panel, values) in values.chunks_exact(value_lines).enumerate() {
            K::tile(isa, Left { data, stride, rows }, &values[..2 * seen.div_ceil(K::GROUP)], tile.out());
            let first = panel * PANEL;
            let columns = PANEL.min(depth - first);
            for ((out, sums), share) in out.iter_mut().zip(&mut tile.0).zip(shares) {
                sums.iter_mut().for_each(|sum| *sum *= share);
                put(sums, &mut out[column + first..][..columns]);
            }
        }
    }
}

/// Scores of tokens that a row does not see are −∞. Done in whole panels: a narrow store before a wide load would stall it.
#[inline(always)]
fn hide(row: &mut [f32], seen: usize) {
    for (at, panel) in row.as_chunks_mut::<PANEL>().0.iter_mut().enumerate().skip(seen / PANEL) {
        let left = seen.saturating_sub(at * PANEL) as u32;
        for (lane, x) in (0u32..).zip(panel) {
            *x = if lane < left { *x } else { f32::NEG_INFINITY };
        }
    }
}

/// The highest of some scores, in whole panels.
#[inline(always)]
fn highest(row: &[f32]) -> f32 {
    let highest = |a: f32, b: f32| if a > b { a } else { b };
    let mut maxima = [f32::NEG_INFINITY; PANEL];
    for panel in row.as_chunks::<PANEL>().0 {
        for (maximum, &x) in maxima.iter_mut().zip(panel) {
            *maximum = highest(x, *maximum);
        }
    }
    fold(maxima, highest)
}

/// scores ← 2^(scale · (score − top)), 0 for a score of −∞; gives their sum, which is 1 or more unless something is not a
/// number: the share of the highest is exactly 1, so that it is rounded alike on every path. Scores are whole panels.
#[inline(always)]
fn exponentials<I: Isa>(isa: I, scores: &mut [f32], scale: f32, top: f32) -> f32 {
    let mut sums = [0.0; PANEL];
    for panel in scores.as_chunks_mut::<PANEL>().0 {
        for (sum, x) in sums.iter_mut().zip(panel) {
            *x = exp2(isa, (*x - top) * scale);
            *sum += *x;
        }
    }
    fold(sums, |a, b| a + b)
}
