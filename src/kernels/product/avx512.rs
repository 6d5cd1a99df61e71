//! Tiles with AVX-512: 12 × 32 sums in 24 registers, with and without the instruction for pairs of bf16.

// Loads through raw pointers: the bounds are asserted once for each tile instead of at each of its steps.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _mm256_storeu_si256, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512, _mm512_loadu_ps,
    _mm512_maskz_loadu_ps, _mm512_permutex2var_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_store_ps, _mm512_storeu_ps,
};
use std::mem::transmute;

use super::super::weights::to_bf16;
use super::{Isa, Left, Line, Out, PANEL, Row, TILE_ROWS};

/// AVX-512 (F, BW, DQ, VL) with AVX2 and FMA; bf16 is widened to f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

/// The same with `vdpbf16ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        found.then_some(Self(()))
    }
}

impl Avx512Bf16 {
    pub(crate) fn detect() -> Option<Self> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512bf16")).map(Self)
    }
}

/// Calls `$tile` for the number of rows of `$left`, which its `check` has found to be 1 to 12.
macro_rules! for_rows {
    ($left:expr, $tile:ident($($argument:expr),*)) => {
        match $left.rows {
            1 => $tile::<1>($($argument),*),
            2 => $tile::<2>($($argument),*),
            3 => $tile::<3>($($argument),*),
            4 => $tile::<4>($($argument),*),
            5 => $tile::<5>($($argument),*),
            6 => $tile::<6>($($argument),*),
            7 => $tile::<7>($($argument),*),
            8 => $tile::<8>($($argument),*),
            9 => $tile::<9>($($argument),*),
            10 => $tile::<10>($($argument),*),
            11 => $tile::<11>($($argument),*),
            _ => $tile::<TILE_ROWS>($($argument),*),
        }
    };
}

impl Isa for Avx512 {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn tile_f32(self, start: &Row, left: Left<'_, f32>, panel: &[Line<f32, 16>], out: Out<'_>) {
        let panel = panel.as_chunks().0;
        left.check(TILE_ROWS, panel.len());
        out.check(left.rows);
        // SAFETY: `self` is the proof of the features; the checks found `left.rows` rows inside both slices, and `for_rows` takes
        // as many.
        unsafe { for_rows!(left, tile_f32(start, left, panel, out)) }
    }

    #[inline(always)]
    fn tile_bf16(self, start: &Row, left: Left<'_, u16>, panel: &[Line<u16, 32>], out: Out<'_>) {
        let panel = panel.as_chunks().0;
        left.check(TILE_ROWS, 2 * panel.len());
        out.check(left.rows);
        // SAFETY: as in `tile_f32`, with two numbers a row of the panel.
        unsafe { for_rows!(left, tile_widened(start, left, panel, out)) }
    }

    #[inline(always)]
    fn transpose(self, left: Left<'_, f32>, panel: &mut [Line<f32, 16>]) {
        let panel = panel.as_chunks_mut().0;
        left.check(PANEL, panel.len());
        // SAFETY: `self` is the proof of the features; `check` found `left.rows` rows of `panel.len()` inside the data.
        unsafe { transpose(left.data.as_ptr(), left.stride, left.rows, panel) }
    }

    #[inline(always)]
    fn transpose_pairs(self, left: Left<'_, u16>, panel: &mut [Line<u16, 32>]) {
        let panel = panel.as_chunks_mut().0;
        left.check(PANEL, 2 * panel.len());
        assert!(left.stride.is_multiple_of(2), "rows are whole pairs");
        // SAFETY: `self` is the proof of the features; `check` found `left.rows` rows of `panel.len()` pairs inside the data, at
        // every `stride / 2` pairs. A pair is 32 bits, which are moved and not computed with.
        unsafe { transpose(left.data.as_ptr().cast(), left.stride / 2, left.rows, panel) }
    }

    #[inline(always)]
    fn round(self, from: &[f32], to: &mut [u16]) {
        assert_eq!(from.len(), to.len(), "as many out as in");
        for (to, &from) in to.iter_mut().zip(from) {
            *to = to_bf16(from);
        }
    }
}

impl Isa for Avx512Bf16 {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn tile_f32(self, start: &Row, left: Left<'_, f32>, panel: &[Line<f32, 16>], out: Out<'_>) {
        self.0.tile_f32(start, left, panel, out);
    }

    #[inline(always)]
    fn tile_bf16(self, start: &Row, left: Left<'_, u16>, panel: &[Line<u16, 32>], out: Out<'_>) {
        let panel = panel.as_chunks().0;
        left.check(TILE_ROWS, 2 * panel.len());
        out.check(left.rows);
        // SAFETY: `self` is the proof of the features; `check` found `left.rows` rows of `2 × panel.len()` inside the data,
        // and `for_rows` takes as many.
        unsafe { for_rows!(left, tile_pairs(start, left, panel, out)) }
    }

    #[inline(always)]
    fn transpose(self, left: Left<'_, f32>, panel: &mut [Line<f32, 16>]) {
        self.0.transpose(left, panel);
    }

    #[inline(always)]
    fn transpose_pairs(self, left: Left<'_, u16>, panel: &mut [Line<u16, 32>]) {
        self.0.transpose_pairs(left, panel);
    }

    #[inline(always)]
    fn round(self, from: &[f32], to: &mut [u16]) {
        assert_eq!(from.len(), to.len(), "as many out as in");
        let (from, from_rest) = from.as_chunks();
        let (to, to_rest) = to.as_chunks_mut();
        for (from, to) in from.iter().zip(to) {
            // SAFETY: `self` is the proof of the features.
            unsafe { round(from, to) };
        }
        for (from, to) in from_rest.iter().zip(to_rest) {
            *to = to_bf16(*from);
        }
    }
}

/// # Safety
/// `left` has R rows of `panel.len()` numbers inside its data, `out` R rows.
#[target_feature(enable = "avx512f")]
unsafe fn tile_f32<const R: usize>(start: &Row, left: Left<'_, f32>, panel: &[[Line<f32, 16>; 2]], out: Out<'_>) {
    let mut sums = [load(start); R];
    // SAFETY: r < R, so each row begins inside the data (the caller's promise).
    let rows: [*const f32; R] = std::array::from_fn(|r| unsafe { left.data.as_ptr().add(r * left.stride) });
    for (k, [low, high]) in panel.iter().enumerate() {
        // SAFETY: a line is 64 aligned bytes; k < panel.len(), the length of each row.
        let right = unsafe { [_mm512_load_ps(low.0.as_ptr()), _mm512_load_ps(high.0.as_ptr())] };
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: as above.
            let x = _mm512_set1_ps(unsafe { *row.add(k) });
            sums[0] = _mm512_fmadd_ps(x, right[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(x, right[1], sums[1]);
        }
    }
    // SAFETY: `out` has R rows (the caller's promise).
    unsafe { store(&sums, out) };
}

/// # Safety
/// `left` has R rows of `2 × panel.len()` numbers inside its data, `out` R rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_pairs<const R: usize>(start: &Row, left: Left<'_, u16>, panel: &[[Line<u16, 32>; 2]], out: Out<'_>) {
    let mut sums = [load(start); R];
    // SAFETY: r < R, so each row begins inside the data (the caller's promise).
    let rows: [*const u16; R] = std::array::from_fn(|r| unsafe { left.data.as_ptr().add(r * left.stride) });
    for (k, [low, high]) in panel.iter().enumerate() {
        // SAFETY: a line is 64 aligned bytes, read as the 32 numbers that it is.
        let right = unsafe {
            [low, high].map(|line| transmute::<__m512i, __m512bh>(_mm512_load_si512(line.0.as_ptr().cast())))
        };
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: k < panel.len(), and each row has two numbers for each; a pair is 32 bits at any address.
            let pair = unsafe { row.add(2 * k).cast::<i32>().read_unaligned() };
            // SAFETY: both are 512 bits without a meaning of their own.
            let x = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair)) };
            sums[0] = _mm512_dpbf16_ps(sums[0], x, right[0]);
            sums[1] = _mm512_dpbf16_ps(sums[1], x, right[1]);
        }
    }
    // SAFETY: `out` has R rows (the caller's promise).
    unsafe { store(&sums, out) };
}

/// # Safety
/// `left` has R rows of `2 × panel.len()` numbers inside its data, `out` R rows.
#[target_feature(enable = "avx512f")]
unsafe fn tile_widened<const R: usize>(start: &Row, left: Left<'_, u16>, panel: &[[Line<u16, 32>; 2]], out: Out<'_>) {
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    let mut sums = [load(start); R];
    // SAFETY: r < R, so each row begins inside the data (the caller's promise).
    let rows: [*const u16; R] = std::array::from_fn(|r| unsafe { left.data.as_ptr().add(r * left.stride) });
    for (k, lines) in panel.iter().enumerate() {
        // A pair is one number of 32 bits: its lower half is the first row, its upper half the second.
        let widen = |pairs| {
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(_mm512_and_si512(pairs, upper))]
        };
        // SAFETY: a line is 64 aligned bytes.
        let right = lines.each_ref().map(|line| widen(unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }));
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: k < panel.len(), and each row has two numbers for each; a pair is 32 bits at any address.
            let [first, second] = widen(_mm512_set1_epi32(unsafe { row.add(2 * k).cast::<i32>().read_unaligned() }));
            for (sum, right) in sums.iter_mut().zip(&right) {
                *sum = _mm512_fmadd_ps(second, right[1], _mm512_fmadd_ps(first, right[0], *sum));
            }
        }
    }
    // SAFETY: `out` has R rows (the caller's promise).
    unsafe { store(&sums, out) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &Row) -> [__m512; 2] {
    // SAFETY: a row is 32 floats.
    unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(16))] }
}

/// # Safety
/// `out` has R rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const R: usize>(sums: &[[__m512; 2]; R], out: Out<'_>) {
    for (r, [low, high]) in sums.iter().enumerate() {
        // SAFETY: r < R, and a row of `out` is 32 floats inside its data (the caller's promise).
        unsafe {
            let row = out.data.as_mut_ptr().add(r * out.stride);
            _mm512_storeu_ps(row, *low);
            _mm512_storeu_ps(row.add(16), *high);
        }
    }
}

/// Of numbers or pairs of 32 bits, at any address.
///
/// # Safety
/// From `data` on, at every `stride`, lie `rows` rows of `panel.len()`.
#[target_feature(enable = "avx512f")]
unsafe fn transpose<T, const N: usize>(data: *const f32, stride: usize, rows: usize, panel: &mut [[Line<T, N>; 2]]) {
    const { assert!(size_of::<Line<T, N>>() == 64 && align_of::<Line<T, N>>() == 64, "a line is one of the cache") };
    // Zipping rows i and i + 8 of 16 into rows 2i and 2i + 1, four times, transposes them.
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for half in 0..rows.div_ceil(16) {
        for (at, panel) in panel.chunks_mut(16).enumerate() {
            let mask = u16::MAX >> (16 - panel.len());
            let mut block: [__m512; 16] = std::array::from_fn(|r| {
                let row = 16 * half + r;
                if row >= rows {
                    return _mm512_setzero_ps();
                }
                // SAFETY: the row lies in the data (the caller's promise), and the mask keeps to those of its numbers that the
                // panel has.
                unsafe { _mm512_maskz_loadu_ps(mask, data.add(row * stride + 16 * at)) }
            });
            for _ in 0..4 {
                block = std::array::from_fn(|r| {
                    _mm512_permutex2var_ps(block[r / 2], if r % 2 == 0 { low } else { high }, block[r / 2 + 8])
                });
            }
            for (row, lines) in block.iter().zip(panel) {
                // SAFETY: a line is 64 aligned bytes, of numbers of which all bits are valid: f32 or u16.
                unsafe { _mm512_store_ps((&raw mut lines[half]).cast(), *row) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512vl")]
fn round(from: &[f32; 16], to: &mut [u16; 16]) {
    // SAFETY: 16 numbers are read and 16 written; both are 256 or 512 bits without a meaning of their own.
    unsafe {
        let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr()));
        _mm256_storeu_si256(to.as_mut_ptr().cast(), transmute::<__m256bh, __m256i>(rounded));
    }
}
