//! Tiles with AVX2 and FMA: blocks of 6 × 16 sums in 12 of the 16 registers.

// Loads through raw pointers: the bounds are asserted once for each tile instead of at each of its steps.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_load_ps, _mm256_load_si256, _mm256_loadu_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::super::weights::to_bf16;
use super::{Isa, Left, Line, Out, Row, TILE_ROWS};

/// AVX2 with FMA; bf16 is widened to f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

/// Rows of a block.
const ROWS: usize = 6;

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

/// Calls `$block` for each block of up to [`ROWS`] rows and each half of the columns, with the block's rows as a constant.
macro_rules! for_blocks {
    ($left:expr, $block:ident($start:expr, $panel:expr, $out:expr)) => {
        // 7 rows are better cut as 4 + 3 than as 6 + 1.
        let most = $left.rows.div_ceil($left.rows.div_ceil(ROWS));
        for first in (0..$left.rows).step_by(most) {
            for half in 0..2 {
                match most.min($left.rows - first) {
                    1 => $block::<1>($start, $left, first, $panel, half, $out),
                    2 => $block::<2>($start, $left, first, $panel, half, $out),
                    3 => $block::<3>($start, $left, first, $panel, half, $out),
                    4 => $block::<4>($start, $left, first, $panel, half, $out),
                    5 => $block::<5>($start, $left, first, $panel, half, $out),
                    _ => $block::<ROWS>($start, $left, first, $panel, half, $out),
                }
            }
        }
    };
}

impl Isa for Avx2 {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn tile_f32(self, start: &Row, left: Left<'_, f32>, panel: &[Line<f32, 16>], mut out: Out<'_>) {
        let panel = panel.as_chunks().0;
        left.check(TILE_ROWS, panel.len());
        out.check(left.rows);
        // SAFETY: `self` is the proof of the features; `check` found `left.rows` rows of `panel.len()` inside the data, and
        // the blocks cover exactly those.
        unsafe {
            for_blocks!(left, block_f32(start, panel, &mut out));
        }
    }

    #[inline(always)]
    fn tile_bf16(self, start: &Row, left: Left<'_, u16>, panel: &[Line<u16, 32>], mut out: Out<'_>) {
        let panel = panel.as_chunks().0;
        left.check(TILE_ROWS, 2 * panel.len());
        out.check(left.rows);
        // SAFETY: as in `tile_f32`, with two numbers a row of the panel.
        unsafe {
            for_blocks!(left, block_bf16(start, panel, &mut out));
        }
    }

    #[inline(always)]
    fn round(self, from: &[f32], to: &mut [u16]) {
        assert_eq!(from.len(), to.len(), "as many out as in");
        for (to, &from) in to.iter_mut().zip(from) {
            *to = to_bf16(from);
        }
    }
}

/// # Safety
/// `left` has the rows `first .. first + R`, each of `panel.len()` numbers, inside its data, and so has `out`.
#[target_feature(enable = "avx2,fma")]
unsafe fn block_f32<const R: usize>(
    start: &Row,
    left: Left<'_, f32>,
    first: usize,
    panel: &[[Line<f32, 16>; 2]],
    half: usize,
    out: &mut Out<'_>,
) {
    let mut sums = [load(start, half); R];
    // SAFETY: r < R, so each row begins inside the data (the caller's promise).
    let rows: [*const f32; R] = std::array::from_fn(|r| unsafe { left.data.as_ptr().add((first + r) * left.stride) });
    for (k, lines) in panel.iter().enumerate() {
        let line = lines[half].0.as_ptr();
        // SAFETY: a line is 64 aligned bytes.
        let right = unsafe { [_mm256_load_ps(line), _mm256_load_ps(line.add(8))] };
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: k < panel.len(), the length of each row.
            let x = _mm256_set1_ps(unsafe { *row.add(k) });
            sums[0] = _mm256_fmadd_ps(x, right[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(x, right[1], sums[1]);
        }
    }
    // SAFETY: `out` has those rows (the caller's promise).
    unsafe { store(&sums, first, half, out) };
}

/// # Safety
/// `left` has the rows `first .. first + R`, each of `2 × panel.len()` numbers, inside its data, and so has `out`.
#[target_feature(enable = "avx2,fma")]
unsafe fn block_bf16<const R: usize>(
    start: &Row,
    left: Left<'_, u16>,
    first: usize,
    panel: &[[Line<u16, 32>; 2]],
    half: usize,
    out: &mut Out<'_>,
) {
    let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    let mut sums = [load(start, half); R];
    // SAFETY: r < R, so each row begins inside the data (the caller's promise).
    let rows: [*const u16; R] = std::array::from_fn(|r| unsafe { left.data.as_ptr().add((first + r) * left.stride) });
    for (k, lines) in panel.iter().enumerate() {
        // A pair is one number of 32 bits: its lower half is the first row, its upper half the second.
        let widen = |pairs| {
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(_mm256_and_si256(pairs, upper))]
        };
        let line = lines[half].0.as_ptr();
        // SAFETY: a line is 64 aligned bytes, 16 pairs.
        let right = unsafe { [widen(_mm256_load_si256(line.cast())), widen(_mm256_load_si256(line.add(16).cast()))] };
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: k < panel.len(), and each row has two numbers for each; a pair is 32 bits at any address.
            let [first, second] = widen(_mm256_set1_epi32(unsafe { row.add(2 * k).cast::<i32>().read_unaligned() }));
            for (sum, right) in sums.iter_mut().zip(&right) {
                *sum = _mm256_fmadd_ps(second, right[1], _mm256_fmadd_ps(first, right[0], *sum));
            }
        }
    }
    // SAFETY: `out` has those rows (the caller's promise).
    unsafe { store(&sums, first, half, out) };
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(row: &Row, half: usize) -> [__m256; 2] {
    let row = &row[16 * half..16 * half + 16];
    // SAFETY: half a row is 16 floats.
    unsafe { [_mm256_loadu_ps(row.as_ptr()), _mm256_loadu_ps(row.as_ptr().add(8))] }
}

/// # Safety
/// `out` has the rows `first .. first + R`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const R: usize>(sums: &[[__m256; 2]; R], first: usize, half: usize, out: &mut Out<'_>) {
    assert!(half < 2, "a row has two halves");
    for (r, [low, high]) in sums.iter().enumerate() {
        // SAFETY: r < R, and a row of `out` is 32 floats inside its data (the caller's promise); each half is 16.
        unsafe {
            let row = out.data.as_mut_ptr().add((first + r) * out.stride + 16 * half);
            _mm256_storeu_ps(row, *low);
            _mm256_storeu_ps(row.add(8), *high);
        }
    }
}
