//! Products of rows with rows, for exact search.

use super::cpu::{Cpu, Work};
use super::norm::fold;
use super::product::Isa;
use super::share::share;

/// Rows of `a` that one task takes.
const ROWS: usize = 64;

/// Rows of `a` and of `b` whose products are summed at once: 4 × 4 sums of 16 partial sums fill half of the registers of AVX-512.
const BLOCK: usize = 4;

/// Partial sums of a product.
const LANES: usize = 16;

/// out[i, j] = a[i] · b[j]. a: `[m, k]`, b: `[n, k]` → out: `[m, n]`.
pub(crate) fn products(cpu: Cpu, a: &[f32], b: &[f32], k: usize, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    assert!(k > 0 && a.len().is_multiple_of(k) && b.len().is_multiple_of(k), "whole rows of {k}");
    let columns = b.len() / k;
    assert_eq!(out.len(), a.len() / k * columns, "a product for each pair of rows");
    share(out.chunks_mut(ROWS * columns).zip(a.chunks(ROWS * k)), |(out, a), _: &mut ()| {
        cpu.run(Dots { a, b, k, columns, out });
    });
}

struct Dots<'a> {
    a: &'a [f32],
    b: &'a [f32],
    k: usize,
    columns: usize,
    out: &'a mut [f32],
}

impl Work for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { a, b, k, columns, out } = self;
        for (out, a) in out.chunks_mut(BLOCK * columns).zip(a.chunks(BLOCK * k)) {
            for (block, b) in b.chunks(BLOCK * k).enumerate() {
                // A block beyond the rows repeats the last one, which is not stored.
                let row = |rows: &'_ [f32], r: usize| (r.min(rows.len() / k - 1)) * k;
                let sums = dots(
                    isa,
                    std::array::from_fn(|r| &a[row(a, r)..][..k]),
                    std::array::from_fn(|r| &b[row(b, r)..][..k]),
                );
                for (out, sums) in out.chunks_exact_mut(columns).zip(&sums) {
                    for (out, sum) in out[block * BLOCK..].iter_mut().zip(sums) {
                        *out = *sum;
                    }
                }
            }
        }
    }
}

/// The products of each of `a` with each of `b`.
#[inline(always)]
fn dots<I: Isa>(isa: I, a: [&[f32]; BLOCK], b: [&[f32]; BLOCK]) -> [[f32; BLOCK]; BLOCK] {
    let (a_blocks, b_blocks) = (a.map(|row| row.as_chunks::<LANES>().0), b.map(|row| row.as_chunks::<LANES>().0));
    let count = a_blocks[0].len();
    let mut sums = [[[0.0f32; LANES]; BLOCK]; BLOCK];
    for at in 0..count {
        for (sums, a) in sums.iter_mut().zip(&a_blocks) {
            for (sums, b) in sums.iter_mut().zip(&b_blocks) {
                for lane in 0..LANES {
                    sums[lane] = isa.mul_add(a[at][lane], b[at][lane], sums[lane]);
                }
            }
        }
    }
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            let whole = fold(sums[i][j], |a, b| a + b);
            a[i][count * LANES..].iter().zip(&b[j][count * LANES..]).fold(whole, |sum, (x, y)| isa.mul_add(*x, *y, sum))
        })
    })
}
