//! One part of a text in attention: heads packed for products a few at a time, then scores, their softmax, and values.

use std::ops::Range;

use super::attention::Reach;
use super::cpu::Work;
use super::layer::put;
use super::math::exp2;
use super::norm::fold;
use super::product::{Isa, Left, Line, Out, PANEL, Row, TILE_ROWS, Tile};
use super::walk::tile_rows;

/// Most bytes of keys and values that are packed at once: they stay in the second-level cache. Rows of the input are long, so
/// heads are packed several at a time, in the order in which they lie there.
const PACKED_BYTES: usize = 256 << 10;

/// Sums begin at nothing.
const ZERO: Row = [0.0; PANEL];

/// Some rows of a text, all of their heads.
pub(super) struct Part<'a> {
    /// The whole text: `[length, 3 · width]`.
    pub(super) qkv: &'a [f32],
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) rows: Range<usize>,
    pub(super) reach: Reach,
    /// `[rows.len(), width]`.
    pub(super) out: &'a mut [f32],
}

/// Some heads, packed for products.
#[derive(Default)]
pub(super) struct Scratch {
    /// Queries of the part, `[head][row][depth]`.
    queries: Vec<f32>,
    /// Keys, `[head][panel of tokens][depth][PANEL]`.
    keys: Vec<Line<f32, 16>>,
    /// Values, `[head][panel of depth][token][PANEL]`. Columns beyond the depth hold whatever was there; they are not stored.
    values: Vec<Line<f32, 16>>,
    /// Scores of the rows of a tile, `[row][tokens, filled up to whole panels]`.
    scores: Vec<f32>,
}

/// A part with the scratch of the thread that does it.
pub(super) struct Attend<'a> {
    pub(super) part: Part<'a>,
    pub(super) scratch: &'a mut Scratch,
}

impl Work for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { mut part, scratch } = self;
        let depth = part.width / part.heads;
        // Causal rows see nothing behind the last of them.
        let seen = match part.reach {
            Reach::All => part.qkv.len() / (3 * part.width),
            Reach::Causal => part.rows.end,
        };
        let (key_lines, value_lines) = (seen.div_ceil(PANEL) * depth * 2, depth.div_ceil(PANEL) * seen * 2);
        let group = (PACKED_BYTES / (64 * (key_lines + value_lines))).clamp(1, part.heads);
        scratch.queries.resize(group * part.rows.len() * depth, 0.0);
        scratch.keys.resize(group * key_lines, Line([0.0; 16]));
        scratch.values.resize(group * value_lines, Line([0.0; 16]));
        scratch.scores.resize(TILE_ROWS * seen.next_multiple_of(PANEL), 0.0);
        for first in (0..part.heads).step_by(group) {
            let heads = first..(first + group).min(part.heads);
            pack(isa, &part, seen, heads.clone(), scratch);
            for (at, head) in heads.enumerate() {
                attend(isa, &mut part, seen, head, at, scratch);
            }
        }
    }
}

/// Packs some heads of all tokens that are seen.
#[inline(always)]
fn pack<I: Isa>(isa: I, part: &Part<'_>, seen: usize, heads: Range<usize>, scratch: &mut Scratch) {
    let (stride, depth) = (3 * part.width, part.width / part.heads);
    let (key_lines, value_lines) = (seen.div_ceil(PANEL) * depth * 2, depth.div_ceil(PANEL) * seen * 2);
    for first in (0..seen).step_by(PANEL) {
        let tokens = first..(first + PANEL).min(seen);
        for (at, head) in heads.clone().enumerate() {
            let [q, k, v] = [0, 1, 2].map(|which| which * part.width + head * depth);
            let keys = &mut scratch.keys[at * key_lines + first / PANEL * depth * 2..][..depth * 2];
            let left = Left { data: &part.qkv[first * stride + k..], stride, rows: tokens.len() };
            isa.transpose(left, keys);
            let values = &mut scratch.values[at * value_lines..][..value_lines];
            let queries = &mut scratch.queries[at * part.rows.len() * depth..][..part.rows.len() * depth];
            for token in tokens.clone() {
                let row = &part.qkv[token * stride..][..stride];
                pack_value(&row[v..v + depth], token, seen, values);
                if part.rows.contains(&token) {
                    copy(&row[q..q + depth], &mut queries[(token - part.rows.start) * depth..][..depth]);
                }
            }
        }
    }
}

/// Puts a token's value into its row of the panels.
#[inline(always)]
fn pack_value(value: &[f32], token: usize, seen: usize, values: &mut [Line<f32, 16>]) {
    let (whole, rest) = value.as_chunks();
    for (at, part) in whole.iter().enumerate() {
        values[(at / 2 * seen + token) * 2 + at % 2].0 = *part;
    }
    if !rest.is_empty() {
        let at = whole.len();
        values[(at / 2 * seen + token) * 2 + at % 2].0[..rest.len()].copy_from_slice(rest);
    }
}

/// A copy in pieces of a size known when compiling: rows are short, and a call of the C library costs more than they do.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (from, to) in from.iter().zip(to) {
        *to = *from;
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = *from;
    }
}

/// One head, which is packed at place `at`: the rows of the part, tile by tile.
#[inline(always)]
fn attend<I: Isa>(isa: I, part: &mut Part<'_>, seen: usize, head: usize, at: usize, scratch: &mut Scratch) {
    let depth = part.width / part.heads;
    let (key_lines, value_lines) = (seen.div_ceil(PANEL) * depth * 2, depth.div_ceil(PANEL) * seen * 2);
    let queries = &scratch.queries[at * part.rows.len() * depth..][..part.rows.len() * depth];
    let keys = &scratch.keys[at * key_lines..][..key_lines];
    let values = &scratch.values[at * value_lines..][..value_lines];
    let scores = &mut scratch.scores;
    let scale = std::f32::consts::LOG2_E / (depth as f32).sqrt();
    let most = tile_rows(part.rows.len());
    let mut tile = Tile::ZERO;
    for first in (0..part.rows.len()).step_by(most) {
        let rows = most.min(part.rows.len() - first);
        // The last token that row 0 of the tile sees is this one; each further row sees one more.
        let place = part.rows.start + first;
        let seen = if part.reach == Reach::Causal { place + rows } else { seen };
        let stride = seen.next_multiple_of(PANEL);
        let left = Left { data: &queries[first * depth..], stride: depth, rows };
        for (panel, keys) in keys.chunks_exact(depth * 2).take(stride / PANEL).enumerate() {
            isa.tile_f32(&ZERO, left, keys, Out { data: &mut scores[panel * PANEL..], stride });
        }
        let mut shares = [0.0; TILE_ROWS];
        for (r, (row, share)) in scores.chunks_exact_mut(stride).zip(&mut shares).take(rows).enumerate() {
            let seen = if part.reach == Reach::Causal { place + r + 1 } else { seen };
            row[seen..].fill(f32::NEG_INFINITY);
            *share = 1.0 / exponentials(isa, row, scale);
        }
        let left = Left { data: scores, stride, rows };
        for (panel, values) in values.chunks_exact(value_lines / depth.div_ceil(PANEL)).enumerate() {
            isa.tile_f32(&ZERO, left, &values[..seen * 2], tile.out());
            let column = panel * PANEL;
            let columns = PANEL.min(depth - column);
            let out = part.out.chunks_exact_mut(part.width).skip(first);
            for ((out, sums), share) in out.zip(&mut tile.0).zip(shares).take(rows) {
                sums.iter_mut().for_each(|sum| *sum *= share);
                put(sums, &mut out[head * depth + column..][..columns]);
            }
        }
    }
}

/// scores ← 2^(scale · (score − maximum)), 0 for a score of −∞; gives their sum, which is about 1 or more unless something is
/// not a number. Scores are whole panels.
#[inline(always)]
fn exponentials<I: Isa>(isa: I, scores: &mut [f32], scale: f32) -> f32 {
    let panels = scores.as_chunks_mut::<PANEL>().0;
    let highest = |a: f32, b: f32| if a > b { a } else { b };
    let mut maxima = [f32::NEG_INFINITY; PANEL];
    for panel in panels.iter() {
        for (maximum, &x) in maxima.iter_mut().zip(panel) {
            *maximum = highest(x, *maximum);
        }
    }
    // Its rounding is a factor that all have in common, and goes away with their sum.
    let shift = -scale * fold(maxima, highest);
    let mut sums = [0.0; PANEL];
    for panel in panels {
        for (sum, x) in sums.iter_mut().zip(panel) {
            *x = exp2(isa, isa.mul_add(*x, scale, shift));
            *sum += *x;
        }
    }
    fold(sums, |a, b| a + b)
}
