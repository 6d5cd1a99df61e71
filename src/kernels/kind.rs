//! The two kinds of numbers that attention multiplies: f32, and bf16 in pairs.

use super::product::{Isa, Left, Line, Out, PANEL, Row};
use super::walk::paired;

/// Sums begin at nothing.
const ZERO: Row = [0.0; PANEL];

/// A kind of number with its products. Sums are f32 in both.
pub(super) trait Kind: Copy + Default + Send + Sync {
    /// A line of a packed panel.
    type Line: Copy;

    /// An empty line.
    const EMPTY: Self::Line;

    /// Numbers that a product takes together: two lines of a panel hold so many of its rows.
    const GROUP: usize;

    /// Whether shares are rounded before they are multiplied.
    const ROUNDED: bool;

    /// What a sum is kept as.
    fn store<I: Isa>(isa: I, from: &[f32], to: &mut [Self]);

    /// Numbers of a row that holds `depth` of them, filled up with zeros.
    fn stride(depth: usize) -> usize;

    /// out = left · panel; the panel has two lines for each [`GROUP`](Self::GROUP) of the depth.
    fn tile<I: Isa>(isa: I, left: Left<'_, Self>, panel: &[Self::Line], out: Out<'_>);

    /// panel = leftᵀ, for at most [`PANEL`] rows.
    fn transpose<I: Isa>(isa: I, left: Left<'_, Self>, panel: &mut [Self::Line]);

    /// One panel of some rows as they lie, from column `columns[0]` on; those from `columns[1]` on are zero.
    fn pack(rows: &[Self], stride: usize, columns: [usize; 2], panel: &mut [Self::Line]);

    /// Scores as they are multiplied with values: themselves, or rounded into `rounded`.
    fn shares<'a, I: Isa>(isa: I, scores: &'a [f32], rounded: &'a mut [Self]) -> &'a [Self];
}

impl Kind for f32 {
    type Line = Line<f32, 16>;

    const EMPTY: Self::Line = Line([0.0; 16]);

    const GROUP: usize = 1;

    const ROUNDED: bool = false;

    #[inline(always)]
    fn store<I: Isa>(_: I, from: &[f32], to: &mut [Self]) {
        // Whole panels at a size known when compiling.
        match (<&Row>::try_from(from), <&mut Row>::try_from(&mut *to)) {
            (Ok(from), Ok(to)) => *to = *from,
            _ => to.copy_from_slice(from),
        }
    }

    #[inline(always)]
    fn stride(depth: usize) -> usize {
        depth
    }

    #[inline(always)]
    fn tile<I: Isa>(isa: I, left: Left<'_, Self>, panel: &[Self::Line], out: Out<'_>) {
        isa.tile_f32(&ZERO, left, panel, out);
    }

    #[inline(always)]
    fn transpose<I: Isa>(isa: I, left: Left<'_, Self>, panel: &mut [Self::Line]) {
        isa.transpose(left, panel);
    }

    #[inline(always)]
    fn pack(rows: &[Self], stride: usize, [first, depth]: [usize; 2], panel: &mut [Self::Line]) {
        for (row, lines) in rows.chunks_exact(stride).zip(panel.as_chunks_mut::<2>().0) {
            let columns = columns(&row[first..depth]);
            for (line, half) in lines.iter_mut().zip(columns.as_chunks().0) {
                line.0 = *half;
            }
        }
    }

    #[inline(always)]
    fn shares<'a, I: Isa>(_: I, scores: &'a [f32], _: &'a mut [Self]) -> &'a [Self] {
        scores
    }
}

/// bf16, by its bits.
impl Kind for u16 {
    type Line = Line<u16, 32>;

    const EMPTY: Self::Line = Line([0; 32]);

    const GROUP: usize = 2;

    const ROUNDED: bool = true;

    #[inline(always)]
    fn store<I: Isa>(isa: I, from: &[f32], to: &mut [Self]) {
        match (<&Row>::try_from(from), <&mut [u16; PANEL]>::try_from(&mut *to)) {
            (Ok(from), Ok(to)) => isa.round(from, to),
            _ => isa.round(from, to),
        }
    }

    #[inline(always)]
    fn stride(depth: usize) -> usize {
        paired(depth)
    }

    #[inline(always)]
    fn tile<I: Isa>(isa: I, left: Left<'_, Self>, panel: &[Self::Line], out: Out<'_>) {
        isa.tile_bf16(&ZERO, left, panel, out);
    }

    #[inline(always)]
    fn transpose<I: Isa>(isa: I, left: Left<'_, Self>, panel: &mut [Self::Line]) {
        isa.transpose_pairs(left, panel);
    }

    #[inline(always)]
    fn pack(rows: &[Self], stride: usize, [first, depth]: [usize; 2], panel: &mut [Self::Line]) {
        for (pair, lines) in rows.chunks(2 * stride).zip(panel.as_chunks_mut::<2>().0) {
            let upper = columns(&pair[first..depth]);
            // An odd last row is paired with zeros.
            let lower = pair.get(stride + first..stride + depth).map_or([0; PANEL], columns);
            let halves = upper.as_chunks::<16>().0.iter().zip(lower.as_chunks::<16>().0);
            for (line, (upper, lower)) in lines.iter_mut().zip(halves) {
                for (to, (&upper, &lower)) in line.0.as_chunks_mut::<2>().0.iter_mut().zip(upper.iter().zip(lower)) {
                    *to = [upper, lower];
                }
            }
        }
    }

    #[inline(always)]
    fn shares<'a, I: Isa>(isa: I, scores: &'a [f32], rounded: &'a mut [Self]) -> &'a [Self] {
        let rounded = &mut rounded[..scores.len()];
        let whole = scores.as_chunks::<PANEL>().0.iter().zip(rounded.as_chunks_mut::<PANEL>().0);
        for (from, to) in whole {
            isa.round(from, to);
        }
        rounded
    }
}

/// The first [`PANEL`] of some numbers, filled up with zeros.
#[inline(always)]
fn columns<T: Copy + Default>(numbers: &[T]) -> [T; PANEL] {
    if let Some(whole) = numbers.first_chunk() {
        return *whole;
    }
    let mut columns = [T::default(); PANEL];
    for (to, from) in columns.iter_mut().zip(numbers) {
        *to = *from;
    }
    columns
}
