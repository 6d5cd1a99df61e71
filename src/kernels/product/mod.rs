//! Tiles of matrix products: the innermost loops, one implementation for each set of instructions.
//!
//! A tile is up to [`TILE_ROWS`] rows of the left side times one panel of [`PANEL`] columns of the right side, over all of their
//! common dimension: it stays in registers until it is whole. Every implementation asserts that what it reads and writes lies in
//! the slices that it was given.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{Avx512, Avx512Bf16};
pub(super) use portable::Portable;

/// Columns of a panel: two registers of 16.
pub(super) const PANEL: usize = 32;

/// Rows of a tile: 12 × 32 sums fill 24 of the 32 registers of AVX-512 and leave room for a row of the panel.
pub(super) const TILE_ROWS: usize = 12;

/// One line of cache: 16 f32 or 32 bf16. Lists of lines are aligned to it, whatever the allocator does.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line<T, const N: usize>(pub(super) [T; N]);

/// A row of a tile.
pub(super) type Row = [f32; PANEL];

/// Sums of a product.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile(pub(super) [Row; TILE_ROWS]);

impl Tile {
    pub(super) const ZERO: Self = Self([[0.0; PANEL]; TILE_ROWS]);

    pub(super) fn out(&mut self) -> Out<'_> {
        Out { data: self.0.as_flattened_mut(), stride: PANEL }
    }
}

/// Where sums go: row r to the [`PANEL`] numbers from `r × stride` on.
pub(super) struct Out<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) stride: usize,
}

impl Out<'_> {
    /// What every access relies on: `rows` rows that lie in the data.
    #[inline(always)]
    fn check(&self, rows: usize) {
        check(self.data.len(), rows, self.stride, PANEL);
    }
}

/// Rows of a left side: row r begins at `r × stride`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, T> {
    pub(super) data: &'a [T],
    pub(super) stride: usize,
    pub(super) rows: usize,
}

impl<T> Left<'_, T> {
    /// What every access relies on: between 1 and `most` rows of `depth` that lie in the data.
    #[inline(always)]
    fn check(&self, most: usize, depth: usize) {
        assert!((1..=most).contains(&self.rows), "there are 1 to {most} rows");
        check(self.data.len(), self.rows, self.stride, depth);
    }
}

/// Asserts that at least one row of `width` at every `stride` lies within `length`.
#[inline(always)]
fn check(length: usize, rows: usize, stride: usize, width: usize) {
    let end = rows.checked_sub(1).and_then(|last| last.checked_mul(stride)).and_then(|at| at.checked_add(width));
    assert!(end.is_some_and(|end| end <= length), "rows lie in their slice");
}

/// What a set of instructions does in its own way. A value of it is the proof that the processor has them.
pub(super) trait Isa: Copy + Send + Sync {
    /// a × b + c, in one rounding where the instructions have that.
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32;

    /// out = start + left · panel, each row from the same start. `panel`: `[depth][PANEL]`, two lines a row; depth is its
    /// length.
    fn tile_f32(self, start: &Row, left: Left<'_, f32>, panel: &[Line<f32, 16>], out: Out<'_>);

    /// The same in bf16 with sums in f32. `panel`: `[depth / 2][PANEL][2]`, two lines a pair of rows; depth is even.
    fn tile_bf16(self, start: &Row, left: Left<'_, u16>, panel: &[Line<u16, 32>], out: Out<'_>);

    /// panel = leftᵀ. `panel`: `[depth][PANEL]`, two lines a row; columns beyond the rows of `left`, at most [`PANEL`], are
    /// left as they are or become zero.
    #[inline(always)]
    fn transpose(self, left: Left<'_, f32>, panel: &mut [Line<f32, 16>]) {
        for (k, lines) in panel.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            for row in 0..left.rows {
                lines[row / 16].0[row % 16] = left.data[row * left.stride + k];
            }
        }
    }

    /// The same for pairs of bf16. `panel`: `[depth / 2][PANEL][2]`, two lines a pair; depth and stride are even.
    #[inline(always)]
    fn transpose_pairs(self, left: Left<'_, u16>, panel: &mut [Line<u16, 32>]) {
        for (k, lines) in panel.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            for row in 0..left.rows {
                let pair = &left.data[row * left.stride + 2 * k..][..2];
                lines[row / 16].0[row % 16 * 2..][..2].copy_from_slice(pair);
            }
        }
    }

    /// Rounds to bf16, see [`to_bf16`](super::weights::to_bf16). The slices have one length.
    fn round(self, from: &[f32], to: &mut [u16]);
}
