//! A linear layer with what follows it, tile by tile, while the tile is in the first-level cache.

use std::ops::Range;

use super::math::{gelu, quick_gelu};
use super::product::{Isa, PANEL, Row, Tile};
use super::walk::Sink;
use super::weights::Weights;

/// What follows a linear layer, number by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Nothing.
    None,
    /// x · Φ(x), the form with the error function.
    Gelu,
    /// x · sigmoid(1.702 x).
    QuickGelu,
}

/// Weights with what follows them.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) weights: &'a Weights,
    pub(super) bias: &'a [f32],
    pub(super) then: Then<'a>,
}

/// What is done to a product after its bias.
#[derive(Clone, Copy)]
pub(super) enum Then<'a> {
    Activate(Activation),
    /// scale ⊙ product + to; `to` has the shape of the product.
    Add {
        scale: Option<&'a [f32]>,
        to: &'a [f32],
    },
}

impl Layer<'_> {
    /// Asserts that everything has the shape that the weights ask for; gives the number of rows.
    pub(super) fn check(&self, x: &[f32], out: &[f32]) -> usize {
        let (inputs, outputs) = (self.weights.inputs(), self.weights.outputs());
        let rows = x.len() / inputs;
        assert_eq!(x.len(), rows * inputs, "the input is whole rows of {inputs}");
        assert_eq!(out.len(), rows * outputs, "a row of {outputs} out for each row in");
        assert_eq!(self.bias.len(), outputs, "a bias for each output");
        if let Then::Add { scale, to } = self.then {
            assert!(scale.is_none_or(|scale| scale.len() == outputs), "a scale for each output");
            assert_eq!(to.len(), out.len(), "a number to add to each");
        }
        rows
    }

    /// The same for a part of the rows; `part` counts numbers of the output.
    pub(super) fn part(self, part: Range<usize>) -> Self {
        let then = match self.then {
            Then::Add { scale, to } => Then::Add { scale, to: &to[part] },
            activate => activate,
        };
        Self { then, ..self }
    }
}

/// Finishes tiles into `out`: for each row of the block a slice that begins at column `start`.
pub(super) struct Finish<'a, 'b> {
    pub(super) layer: Layer<'a>,
    pub(super) start: usize,
    pub(super) out: &'b mut [&'a mut [f32]],
}

impl Sink for Finish<'_, '_> {
    #[inline(always)]
    fn take<I: Isa>(&mut self, isa: I, tile: &mut Tile, panel: usize, rows: Range<usize>) {
        let outputs = self.layer.weights.outputs();
        let first = panel * PANEL;
        let width = PANEL.min(outputs - first);
        let tile = &mut tile.0[..rows.len()];
        match self.layer.then {
            Then::Activate(act) => activate(isa, act, tile),
            Then::Add { scale, to } => {
                let scale = scale.map_or([1.0; PANEL], |scale| row(&scale[first..]));
                for (sums, at) in tile.iter_mut().zip(rows.clone()) {
                    let to = row(&to[at * outputs + first..][..width]);
                    for ((sum, scale), to) in sums.iter_mut().zip(&scale).zip(&to) {
                        *sum = isa.mul_add(*sum, *scale, *to);
                    }
                }
            }
        }
        for (sums, out) in tile.iter().zip(&mut self.out[rows]) {
            put(sums, &mut out[first - self.start..][..width]);
        }
    }
}

/// Applies an activation to rows of a tile.
#[inline(always)]
pub(super) fn activate<I: Isa>(isa: I, act: Activation, tile: &mut [Row]) {
    match act {
        Activation::None => {}
        Activation::Gelu => tile.as_flattened_mut().iter_mut().for_each(|x| *x = gelu(isa, *x)),
        Activation::QuickGelu => tile.as_flattened_mut().iter_mut().for_each(|x| *x = quick_gelu(isa, *x)),
    }
}

/// The first [`PANEL`] of some numbers, filled up with zeros. Whole ones are copied at a size known when compiling.
#[inline(always)]
pub(super) fn row(numbers: &[f32]) -> Row {
    if let Some(whole) = numbers.first_chunk() {
        return *whole;
    }
    let mut row = [0.0; PANEL];
    row[..numbers.len()].copy_from_slice(numbers);
    row
}

/// Stores as much of a row as `to` holds.
#[inline(always)]
pub(super) fn put(row: &Row, to: &mut [f32]) {
    match to.first_chunk_mut() {
        Some(whole) => *whole = *row,
        None => to.copy_from_slice(&row[..to.len()]),
    }
}
