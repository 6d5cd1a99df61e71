//! Attention of each text to itself: no padding, no masks, tasks of some rows and some heads of a text.

use super::cpu::Cpu;
use super::head::{Attend, Part, Scratch};
use super::heads::{Heads, Numbers};
use super::kind::Kind;
use super::product::TILE_ROWS;
use super::share::share;

/// What a token may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Every token of its text.
    All,
    /// Itself and those before it: CLIP's text tower.
    Causal,
}

/// Most rows of a text that one task takes: enough that packing the keys anew for each part is little beside the products.
const PART_ROWS: usize = 22 * TILE_ROWS;

/// Tasks for each thread, if they are large enough: the last one to be done keeps the others waiting for its length at most.
const TASKS: usize = 8;

/// Pairs of tokens, times the width, that are worth a task: about 10 µs.
const TASK_PRODUCTS: usize = 1 << 19;

/// softmax(q kᵀ / √D) v, for each text and head. `lengths`: tokens of each text (their sum is T) → out: `[T, H]`.
///
/// In bf16 queries, keys, values and shares are rounded, sums and the exponential function are f32.
pub(crate) fn attention(cpu: Cpu, qkv: &Heads, lengths: &[usize], reach: Reach, out: &mut [f32]) {
    let tokens: usize = lengths.iter().sum();
    assert_eq!(qkv.tokens, tokens, "queries, keys and values of every token");
    assert_eq!(out.len(), tokens * qkv.heads * qkv.depth, "a row out for each token");
    match &qkv.numbers {
        Numbers::F32(numbers) => attend(cpu, qkv, numbers, lengths, reach, out),
        Numbers::Bf16(numbers) => attend(cpu, qkv, numbers, lengths, reach, out),
    }
}

fn attend<K: Kind>(cpu: Cpu, qkv: &Heads, numbers: &[K], lengths: &[usize], reach: Reach, out: &mut [f32]) {
    let &Heads { heads, depth, tokens, .. } = qkv;
    let width = heads * depth;
    let all: usize = lengths.iter().map(|length| length * length).sum();
    let least = (all / (TASKS * rayon::current_num_threads())).max(TASK_PRODUCTS / width).max(1);
    let mut tasks = Vec::with_capacity(lengths.len());
    let (mut start, mut out) = (0, out);
    for &length in lengths {
        let text = start..start + length;
        start = text.end;
        let part = length.div_ceil(length.div_ceil(PART_ROWS).max(1)).max(1);
        for first in (0..length).step_by(part) {
            let rows = first..(first + part).min(length);
            let (part, others) = out.split_at_mut(rows.len() * width);
            out = others;
            let group = heads.div_ceil((rows.len() * length / least).clamp(1, heads));
            let begin = tasks.len();
            tasks.extend((0..heads).step_by(group).map(|first| Part {
                numbers,
                tokens,
                depth,
                all_heads: heads,
                text: text.clone(),
                heads: first..(first + group).min(heads),
                rows: rows.clone(),
                reach,
                out: Vec::with_capacity(rows.len()),
            }));
            for row in part.chunks_exact_mut(width) {
                for (task, columns) in tasks[begin..].iter_mut().zip(row.chunks_mut(group * depth)) {
                    task.out.push(columns);
                }
            }
        }
    }
    share(tasks.into_iter(), |part, scratch: &mut Scratch<K>| cpu.run(Attend { part, scratch }));
}
