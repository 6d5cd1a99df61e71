//! The feed-forward part of a post-norm block, block of rows by block of rows, so that the wide inner state never exists as a
//! whole.

use std::ops::Range;

use super::cpu::{Cpu, Work};
use super::layer::{Activation, Finish, Layer, Then, activate, put};
use super::linear::{block_rows, few, linear, linear_add_norm};
use super::norm::{Norm, norm_row};
use super::product::{Isa, PANEL, TILE_ROWS, Tile};
use super::share::share;
use super::walk::{Sink, Source, paired, walk};
use super::weights::{Number, Weights};

/// Most rows of a block: 48 × 1,536 floats are 295 KB, which stays in the second-level cache even where two threads share it.
const BLOCK_ROWS: usize = 4 * TILE_ROWS;

/// out = norm(down(act(up(x))) + x). x, out: `[T, H]`; up: H → F, down: F → H.
#[expect(
    clippy::too_many_arguments,
    reason = "two layers, a norm and a matrix; an options struct would only rename them"
)]
pub(crate) fn feed_forward_add_norm(
    cpu: Cpu,
    x: &[f32],
    up: &Weights,
    up_bias: &[f32],
    act: Activation,
    down: &Weights,
    down_bias: &[f32],
    norm: &Norm,
    out: &mut [f32],
) {
    let width = up.inputs();
    let rows = x.len() / width;
    assert_eq!(x.len(), rows * width, "the input is whole rows of {width}");
    assert_eq!(out.len(), x.len(), "as many out as in");
    assert_eq!((down.inputs(), down.outputs()), (up.outputs(), width), "down undoes the shape of up");
    assert_eq!(up.number(), down.number(), "both layers are kept alike");
    assert_eq!((up_bias.len(), down_bias.len()), (up.outputs(), width), "a bias for each output");
    assert_eq!(norm.width(), width, "a norm as wide as the output");
    if out.is_empty() {
        return;
    }
    if few(rows) {
        let mut inner = vec![0.0; rows * up.outputs()];
        linear(cpu, x, up, up_bias, act, &mut inner);
        return linear_add_norm(cpu, &inner, down, down_bias, x, norm, out);
    }
    let up = Layer { weights: up, bias: up_bias, then: Then::Activate(act) };
    let down = Layer { weights: down, bias: down_bias, then: Then::Add { scale: None, to: x } };
    let block = block_rows(rows, BLOCK_ROWS) * width;
    share(out.chunks_mut(block).zip(x.chunks(block)).enumerate(), |(at, (out, x)), scratch: &mut Scratch| {
        let down = down.part(at * block..at * block + out.len());
        cpu.run(FeedForward { x, up, act, down, norm, out, scratch });
    });
}

/// What a block of rows needs besides its input and output.
#[derive(Default)]
struct Scratch {
    x: Vec<u16>,
    inner: Inner,
}

/// The inner state of a block of rows, in the numbers of the weights that it is multiplied with next: one of the two is empty.
#[derive(Default)]
struct Inner {
    f32: Vec<f32>,
    /// Rows of an even width, see [`paired`].
    bf16: Vec<u16>,
}

struct FeedForward<'a> {
    x: &'a [f32],
    up: Layer<'a>,
    act: Activation,
    down: Layer<'a>,
    norm: &'a Norm,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Work for FeedForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, up, act, down, norm, out, scratch } = self;
        let Scratch { x: rounded, inner } = scratch;
        let mut rows: Vec<_> = out.chunks_exact_mut(down.weights.outputs()).collect();
        let (count, inner_width, number) = (rows.len(), up.weights.outputs(), up.weights.number());
        match number {
            Number::F32 => inner.f32.resize(count * inner_width, 0.0),
            Number::Bf16 => inner.bf16.resize(count * paired(inner_width), 0),
        }
        let source = Source::of(isa, x, up.weights, rounded);
        walk(isa, source, count, &up, 0..up.weights.panel_count(), Activate { up, act, inner });
        let source = match number {
            Number::F32 => Source::F32(&inner.f32),
            Number::Bf16 => Source::Bf16(&inner.bf16),
        };
        let sink = Finish { layer: down, start: 0, out: &mut rows };
        walk(isa, source, count, &down, 0..down.weights.panel_count(), sink);
        for row in rows {
            norm_row(isa, row, norm);
        }
    }
}

/// Finishes tiles of the first layer into the inner state.
struct Activate<'a, 'b> {
    up: Layer<'a>,
    act: Activation,
    inner: &'b mut Inner,
}

impl Sink for Activate<'_, '_> {
    #[inline(always)]
    fn take<I: Isa>(&mut self, isa: I, tile: &mut Tile, panel: usize, rows: Range<usize>) {
        let inner_width = self.up.weights.outputs();
        let first = panel * PANEL;
        let width = PANEL.min(inner_width - first);
        let tile = &mut tile.0[..rows.len()];
        activate(isa, self.act, tile);
        match self.up.weights.number() {
            Number::F32 => {
                for (sums, row) in tile.iter().zip(self.inner.f32.chunks_exact_mut(inner_width).skip(rows.start)) {
                    put(sums, &mut row[first..first + width]);
                }
            }
            Number::Bf16 => {
                let stride = paired(inner_width);
                for (sums, row) in tile.iter().zip(self.inner.bf16.chunks_exact_mut(stride).skip(rows.start)) {
                    isa.round(&sums[..width], &mut row[first..first + width]);
                }
            }
        }
    }
}
