//! The walk over the tiles of a product: a panel of the weights meets all rows of a block before the next one is read.

use std::ops::Range;

use super::layer::{Layer, row};
use super::product::{Isa, Left, PANEL, TILE_ROWS, Tile};
use super::weights::{Panels, Weights};

/// What becomes of a tile. A trait and not a closure, because a closure cannot be told to be inlined, and what is not inlined
/// is compiled for the baseline.
pub(super) trait Sink {
    /// Takes the product of some rows of the block with one panel, bias added.
    fn take<I: Isa>(&mut self, isa: I, tile: &mut Tile, panel: usize, rows: Range<usize>);
}

/// Rows of a left side in the numbers that the weights are kept in.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    F32(&'a [f32]),
    /// Rows of an even number of inputs, see [`paired`].
    Bf16(&'a [u16]),
}

/// Width of a row in bf16: the inputs and, if they are odd, a zero.
pub(super) fn paired(inputs: usize) -> usize {
    inputs.next_multiple_of(2)
}

impl<'a> Source<'a> {
    /// x as it is, or rounded into `scratch`.
    #[inline(always)]
    pub(super) fn of<I: Isa>(isa: I, x: &'a [f32], weights: &Weights, scratch: &'a mut Vec<u16>) -> Self {
        if matches!(weights.panels(), Panels::F32(_)) {
            return Self::F32(x);
        }
        let (inputs, width) = (weights.inputs(), paired(weights.inputs()));
        scratch.clear();
        scratch.resize(x.len() / inputs * width, 0);
        for (from, to) in x.chunks_exact(inputs).zip(scratch.chunks_exact_mut(width)) {
            isa.round(from, &mut to[..inputs]);
        }
        Self::Bf16(scratch)
    }
}

/// Multiplies `rows` rows with some panels of a layer, tile by tile, and hands each tile to `sink`.
#[inline(always)]
pub(super) fn walk<I: Isa>(
    isa: I,
    source: Source<'_>,
    rows: usize,
    layer: &Layer<'_>,
    panels: Range<usize>,
    mut sink: impl Sink,
) {
    let weights = layer.weights;
    let inputs = weights.inputs();
    let most = tile_rows(rows);
    let mut tile = Tile::ZERO;
    for panel in panels {
        let start = row(&layer.bias[panel * PANEL..]);
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            match (source, weights.panels()) {
                (Source::F32(x), Panels::F32(lines)) => {
                    let left = Left { data: &x[first * inputs..], stride: inputs, rows: count };
                    isa.tile_f32(&start, left, &lines[panel * 2 * inputs..][..2 * inputs], tile.out());
                }
                (Source::Bf16(x), Panels::Bf16(lines)) => {
                    let width = paired(inputs);
                    let left = Left { data: &x[first * width..], stride: width, rows: count };
                    isa.tile_bf16(&start, left, &lines[panel * width..][..width], tile.out());
                }
                _ => debug_assert!(false, "a source is made for its weights"),
            }
            sink.take(isa, &mut tile, panel, first..first + count);
        }
    }
}

/// Rows of a tile, so that tiles are alike: 13 rows are better cut as 7 + 6 than as 12 + 1. At least 1.
#[inline(always)]
pub(super) fn tile_rows(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TILE_ROWS).max(1)).max(1)
}
