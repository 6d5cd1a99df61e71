//! From the rows of a text's tokens to its one vector.

use super::cpu::{Cpu, Work};
use super::norm::sum;
use super::product::Isa;
use super::share::share;

/// Which row stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// The mean over its tokens.
    Mean,
    /// Its first token: BERT's `[CLS]`, a vision model's class token.
    First,
    /// Its last token: CLIP's end of text.
    Last,
}

/// Whether vectors are brought to unit norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Normalise {
    /// Divided by their norm, or by 1e-12 if that is smaller, as torch's `normalize` has it.
    Unit,
    /// As they are.
    Raw,
}

/// One row per text. x: `[T, H]`, `lengths`: tokens of each text (their sum is T) → out: `[lengths.len(), H]`. A text without
/// tokens gives zeros.
pub(crate) fn pool_normalise(
    cpu: Cpu,
    x: &[f32],
    lengths: &[usize],
    pool: Pool,
    normalise: Normalise,
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    assert!(!lengths.is_empty() && out.len().is_multiple_of(lengths.len()), "one row for each text");
    let width = out.len() / lengths.len();
    assert_eq!(x.len(), lengths.iter().sum::<usize>() * width, "a row for each token");
    let mut rest = x;
    let mut tasks = Vec::with_capacity(lengths.len());
    for (&length, out) in lengths.iter().zip(out.chunks_exact_mut(width)) {
        let (rows, others) = rest.split_at(length * width);
        rest = others;
        tasks.push(PoolText { rows, pool, normalise, out });
    }
    share(tasks.into_iter(), |task, _: &mut ()| cpu.run(task));
}

struct PoolText<'a> {
    rows: &'a [f32],
    pool: Pool,
    normalise: Normalise,
    out: &'a mut [f32],
}

impl Work for PoolText<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Self { rows, pool, normalise, out } = self;
        let width = out.len();
        out.fill(0.0);
        if rows.is_empty() {
            return;
        }
        match pool {
            Pool::Mean => {
                for row in rows.chunks_exact(width) {
                    for (sum, x) in out.iter_mut().zip(row) {
                        *sum += x;
                    }
                }
                let share = 1.0 / (rows.len() / width) as f32;
                out.iter_mut().for_each(|x| *x *= share);
            }
            Pool::First => out.copy_from_slice(&rows[..width]),
            Pool::Last => out.copy_from_slice(&rows[rows.len() - width..]),
        }
        if normalise == Normalise::Unit {
            let norm = sum(out, |x| x * x).sqrt();
            // Not `max`, which would turn a NaN into 1e-12.
            let norm = if norm < 1e-12 { 1e-12 } else { norm };
            out.iter_mut().for_each(|x| *x /= norm);
        }
    }
}
