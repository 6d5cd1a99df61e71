//! Linear layers with what follows them: bias, activation, residual, normalisation.
//!
//! Work is cut into blocks of rows, or, when a batch is too small for that (one query), into groups of panels, so that every
//! thread has a share.

use std::ops::Range;

use super::cpu::{Cpu, Work};
use super::layer::{Activation, Finish, Layer, Then};
use super::norm::{Norm, NormRows, norm_row};
use super::product::{Isa, PANEL, TILE_ROWS};
use super::share::share;
use super::walk::{Source, walk};
use super::weights::Weights;

/// Most rows of a block: their numbers (96 × 384 floats are 147 KB) stay in the second-level cache beside a panel.
pub(super) const BLOCK_ROWS: usize = 8 * TILE_ROWS;

/// out = act(x·W + bias). x: `[T, in]` → out: `[T, out]`.
pub(crate) fn linear(cpu: Cpu, x: &[f32], weights: &Weights, bias: &[f32], act: Activation, out: &mut [f32]) {
    apply(cpu, Layer { weights, bias, then: Then::Activate(act) }, x, None, out);
}

/// out = norm(x·W + bias + residual): the attention output of a post-norm block. x: `[T, in]`; residual, out: `[T, H]`.
pub(crate) fn linear_add_norm(
    cpu: Cpu,
    x: &[f32],
    weights: &Weights,
    bias: &[f32],
    residual: &[f32],
    norm: &Norm,
    out: &mut [f32],
) {
    assert_eq!(norm.width(), weights.outputs(), "a norm as wide as the output");
    apply(cpu, Layer { weights, bias, then: Then::Add { scale: None, to: residual } }, x, Some(norm), out);
}

/// out = x + scale ⊙ (inner·W + bias): both ends of a pre-norm block. inner: `[T, in]`; x, out: `[T, H]`; `scale`: `[H]`, a
/// LayerScale.
pub(crate) fn linear_add(
    cpu: Cpu,
    inner: &[f32],
    weights: &Weights,
    bias: &[f32],
    scale: Option<&[f32]>,
    x: &[f32],
    out: &mut [f32],
) {
    apply(cpu, Layer { weights, bias, then: Then::Add { scale, to: x } }, inner, None, out);
}

/// Whether a batch is too small to share out its rows, and panels are shared out instead.
pub(super) fn few(rows: usize) -> bool {
    let threads = rayon::current_num_threads();
    threads > 1 && rows < 2 * TILE_ROWS * threads
}

/// Rows of a block of at most `most`, so that blocks are alike and their number is a multiple of the threads.
pub(super) fn block_rows(rows: usize, most: usize) -> usize {
    let blocks = rows.div_ceil(most).next_multiple_of(rayon::current_num_threads());
    rows.div_ceil(blocks).max(1)
}

fn apply(cpu: Cpu, layer: Layer<'_>, x: &[f32], norm: Option<&Norm>, out: &mut [f32]) {
    let rows = layer.check(x, out);
    let (inputs, outputs) = (layer.weights.inputs(), layer.weights.outputs());
    if out.is_empty() {
        return;
    }
    if few(rows) {
        return apply_by_panels(cpu, layer, x, norm, out);
    }
    let block = block_rows(rows, BLOCK_ROWS);
    let blocks = out.chunks_mut(block * outputs).zip(x.chunks(block * inputs)).enumerate();
    share(blocks, |(at, (out, x)), scratch: &mut Vec<u16>| {
        let layer = layer.part(at * block * outputs..at * block * outputs + out.len());
        cpu.run(RowBlock { layer, x, norm, out, scratch });
    });
}

/// Shares out panels: each item is some columns of every row.
fn apply_by_panels(cpu: Cpu, layer: Layer<'_>, x: &[f32], norm: Option<&Norm>, out: &mut [f32]) {
    let panels = layer.weights.panel_count();
    let group = panels.div_ceil(2 * rayon::current_num_threads());
    let mut blocks: Vec<_> = (0..panels)
        .step_by(group)
        .map(|first| PanelBlock { layer, x, panels: first..(first + group).min(panels), out: Vec::new() })
        .collect();
    for row in out.chunks_exact_mut(layer.weights.outputs()) {
        for (block, columns) in blocks.iter_mut().zip(row.chunks_mut(group * PANEL)) {
            block.out.push(columns);
        }
    }
    share(blocks.into_iter(), |block, _: &mut ()| cpu.run(block));
    if let Some(norm) = norm {
        cpu.run(NormRows { rows: out, norm });
    }
}

/// Some rows, all of their columns.
struct RowBlock<'a> {
    layer: Layer<'a>,
    x: &'a [f32],
    norm: Option<&'a Norm>,
    out: &'a mut [f32],
    scratch: &'a mut Vec<u16>,
}

impl Work for RowBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { layer, x, norm, out, scratch } = self;
        let mut rows: Vec<_> = out.chunks_exact_mut(layer.weights.outputs()).collect();
        let source = Source::of(isa, x, layer.weights, scratch);
        let sink = Finish { layer, start: 0, out: &mut rows };
        walk(isa, source, x.len() / layer.weights.inputs(), &layer, 0..layer.weights.panel_count(), sink);
        if let Some(norm) = norm {
            for row in rows {
                norm_row(isa, row, norm);
            }
        }
    }
}

/// Some panels of all rows.
struct PanelBlock<'a> {
    layer: Layer<'a>,
    x: &'a [f32],
    panels: Range<usize>,
    /// The columns of those panels, row by row.
    out: Vec<&'a mut [f32]>,
}

impl Work for PanelBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { layer, x, panels, mut out } = self;
        let mut scratch = Vec::new();
        let source = Source::of(isa, x, layer.weights, &mut scratch);
        let (rows, start) = (out.len(), panels.start * PANEL);
        walk(isa, source, rows, &layer, panels, Finish { layer, start, out: &mut out });
    }
}
