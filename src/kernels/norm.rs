//! Layer normalisation.

use super::cpu::{Cpu, Work};
use super::product::Isa;
use super::share::share;

/// Scale, shift and eps of a layer normalisation.
pub(crate) struct Norm {
    /// Scale, `[H]`.
    pub(crate) gamma: Vec<f32>,
    /// Shift, `[H]`.
    pub(crate) beta: Vec<f32>,
    /// Added to the variance: 1e-12 in BERT, 1e-5 in XLM-RoBERTa, as the model's configuration says.
    pub(crate) eps: f32,
}

impl Norm {
    /// The width that it was made for.
    pub(super) fn width(&self) -> usize {
        assert_eq!(self.gamma.len(), self.beta.len(), "scale and shift have one width");
        self.gamma.len()
    }
}

/// Rows that one task normalises: 64 × 384 floats, some 10 µs of work.
const ROWS: usize = 64;

/// out = norm(x), row by row; x, out: `[T, H]`.
pub(crate) fn layer_norm(cpu: Cpu, x: &[f32], norm: &Norm, out: &mut [f32]) {
    let width = norm.width();
    assert_eq!(x.len(), out.len(), "as many out as in");
    if out.is_empty() {
        return;
    }
    assert!(width > 0 && x.len().is_multiple_of(width), "rows of the norm's width");
    share(out.chunks_mut(ROWS * width).zip(x.chunks(ROWS * width)), |(out, x), _: &mut ()| {
        out.copy_from_slice(x);
        cpu.run(NormRows { rows: out, norm });
    });
}

/// Normalises rows in place.
pub(super) struct NormRows<'a> {
    pub(super) rows: &'a mut [f32],
    pub(super) norm: &'a Norm,
}

impl Work for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for row in self.rows.chunks_exact_mut(self.norm.gamma.len()) {
            norm_row(isa, row, self.norm);
        }
    }
}

/// Normalises one row in place; the variance is taken about the mean, in a second pass, so that a large mean costs no digits.
#[inline(always)]
pub(super) fn norm_row<I: Isa>(isa: I, row: &mut [f32], norm: &Norm) {
    let count = row.len() as f32;
    let mean = sum(row, |x| x) / count;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / count;
    let scale = 1.0 / (variance + norm.eps).sqrt();
    for ((x, gamma), beta) in row.iter_mut().zip(&norm.gamma).zip(&norm.beta) {
        *x = isa.mul_add((*x - mean) * scale, *gamma, *beta);
    }
}

/// Σ f(x) in 64 partial sums, so that it can be vector code.
#[inline(always)]
pub(super) fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = row.as_chunks::<64>();
    let mut sums = [0.0; 64];
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += f(x);
        }
    }
    rest.iter().fold(fold(sums, |a, b| a + b), |sum, &x| sum + f(x))
}

/// Joins numbers by halves; `N` is a power of two.
#[inline(always)]
pub(super) fn fold<const N: usize>(mut numbers: [f32; N], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            numbers[i] = join(numbers[i], numbers[i + width]);
        }
        width /= 2;
    }
    numbers[0]
}
