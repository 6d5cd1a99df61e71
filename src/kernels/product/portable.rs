//! Tiles in plain Rust, which the compiler turns into the vectors of the baseline: SSE2 on x86-64, NEON on 64-bit ARM.

use super::super::weights::{from_bf16, to_bf16};
use super::{Isa, Left, Line, Out, PANEL, Row, TILE_ROWS};

/// The instructions that the crate was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

/// Rows whose sums are kept in registers at once.
const ROWS: usize = 4;

/// Columns whose sums are kept in registers at once: with [`ROWS`], 8 of the 16 registers of SSE2, 16 of the 32 of NEON.
const COLUMNS: usize = if cfg!(target_arch = "aarch64") { 16 } else { 8 };

/// Whether the baseline can fuse; where it cannot, `mul_add` would call a function of the C library.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Isa for Portable {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        if FUSED { a.mul_add(b, c) } else { a * b + c }
    }

    fn tile_f32(self, start: &Row, left: Left<'_, f32>, panel: &[Line<f32, 16>], out: Out<'_>) {
        let rows = panel.as_chunks::<2>().0;
        left.check(TILE_ROWS, rows.len());
        blocks(left, out, |lines, column| {
            let mut sums = [std::array::from_fn(|j| start[column + j]); ROWS];
            for (k, row) in rows.iter().enumerate() {
                let right = &row[column / 16].0[column % 16..][..COLUMNS];
                for (sums, line) in sums.iter_mut().zip(lines) {
                    for (sum, &x) in sums.iter_mut().zip(right) {
                        *sum = self.mul_add(line[k], x, *sum);
                    }
                }
            }
            sums
        });
    }

    fn tile_bf16(self, start: &Row, left: Left<'_, u16>, panel: &[Line<u16, 32>], out: Out<'_>) {
        let rows = panel.as_chunks::<2>().0;
        left.check(TILE_ROWS, 2 * rows.len());
        blocks(left, out, |lines, column| {
            let mut sums = [std::array::from_fn(|j| start[column + j]); ROWS];
            for (k, row) in rows.iter().enumerate() {
                let right = row[column / 16].0[column % 16 * 2..][..2 * COLUMNS].as_chunks::<2>().0;
                for (sums, line) in sums.iter_mut().zip(lines) {
                    let [first, second] = [line[2 * k], line[2 * k + 1]].map(from_bf16);
                    for (sum, pair) in sums.iter_mut().zip(right) {
                        *sum = self.mul_add(first, from_bf16(pair[0]), *sum);
                        *sum = self.mul_add(second, from_bf16(pair[1]), *sum);
                    }
                }
            }
            sums
        });
    }

    fn round(self, from: &[f32], to: &mut [u16]) {
        assert_eq!(from.len(), to.len(), "as many out as in");
        for (to, &from) in to.iter_mut().zip(from) {
            *to = to_bf16(from);
        }
    }
}

/// Fills `out` block by block. A block that reaches beyond the rows repeats the last one, and is not stored there.
fn blocks<T>(left: Left<'_, T>, out: Out<'_>, sums: impl Fn([&[T]; ROWS], usize) -> [[f32; COLUMNS]; ROWS]) {
    for first in (0..left.rows).step_by(ROWS) {
        let lines = std::array::from_fn(|r| &left.data[(first + r).min(left.rows - 1) * left.stride..]);
        for column in (0..PANEL).step_by(COLUMNS) {
            for (row, sums) in (first..left.rows).zip(sums(lines, column)) {
                out.data[row * out.stride + column..][..COLUMNS].copy_from_slice(&sums);
            }
        }
    }
}
