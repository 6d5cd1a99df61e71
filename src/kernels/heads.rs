//! Queries, keys and values, each head's by itself, as attention reads them: the product that makes them puts them there.

use std::ops::Range;

use super::cpu::{Cpu, Work};
use super::kind::Kind;
use super::layer::{Activation, Layer, Then};
use super::linear::{BLOCK_ROWS, block_rows, few, linear};
use super::product::{Isa, PANEL, Tile};
use super::share::share;
use super::walk::{Sink, Source, walk};
use super::weights::{Number, Weights};

/// The heads of a batch in the numbers of the weights; a buffer for one batch after another.
///
/// `[query, key or value][head][token][depth]`: what one head reads of a text lies together, so that it comes fast from
/// whatever cache it is in. A row is filled up to whole pairs in bf16.
pub(crate) struct Heads {
    pub(super) numbers: Numbers,
    /// A
    pub(super) heads: usize,
    /// D
    pub(super) depth: usize,
    /// T
    pub(super) tokens: usize,
}

pub(super) enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Heads {
    /// An empty buffer for `heads` heads that share `width`.
    ///
    /// # Panics
    /// If they cannot share it evenly.
    pub(crate) fn new(heads: usize, width: usize, number: Number) -> Self {
        assert!(heads > 0 && width > 0 && width.is_multiple_of(heads), "{heads} heads share {width}");
        let numbers = match number {
            Number::F32 => Numbers::F32(Vec::new()),
            Number::Bf16 => Numbers::Bf16(Vec::new()),
        };
        Self { numbers, heads, depth: width / heads, tokens: 0 }
    }

    /// Fills the buffer with x·W + bias. x: `[T, in]`; weights: in → 3H, all heads of the query, of the key, of the value.
    pub(crate) fn project(&mut self, cpu: Cpu, x: &[f32], weights: &Weights, bias: &[f32]) {
        let columns = 3 * self.heads * self.depth;
        assert_eq!((weights.outputs(), bias.len()), (columns, columns), "query, key and value of every head");
        self.tokens = x.len() / weights.inputs();
        assert_eq!(x.len(), self.tokens * weights.inputs(), "the input is whole rows of {}", weights.inputs());
        let project =
            Project { layer: Layer { weights, bias, then: Then::Activate(Activation::None) }, depth: self.depth };
        assert_eq!(weights.number(), self.number(), "heads are kept in the numbers of the weights");
        match &mut self.numbers {
            Numbers::F32(numbers) => project.run(cpu, x, numbers),
            Numbers::Bf16(numbers) => project.run(cpu, x, numbers),
        }
    }

    fn number(&self) -> Number {
        match self.numbers {
            Numbers::F32(_) => Number::F32,
            Numbers::Bf16(_) => Number::Bf16,
        }
    }
}

/// A layer whose columns are those of heads.
#[derive(Clone, Copy)]
struct Project<'a> {
    layer: Layer<'a>,
    depth: usize,
}

impl Project<'_> {
    fn run<K: Kind>(self, cpu: Cpu, x: &[f32], numbers: &mut Vec<K>) {
        let (inputs, outputs) = (self.layer.weights.inputs(), self.layer.weights.outputs());
        let (rows, stride) = (x.len() / inputs, K::stride(self.depth));
        if stride != self.depth {
            // What fills rows up has to be zero wherever they lie in this batch.
            numbers.clear();
        }
        numbers.resize(rows * outputs / self.depth * stride, K::default());
        if rows == 0 {
            return;
        }
        let plain = few(rows).then(|| {
            let mut plain = vec![0.0; rows * outputs];
            linear(cpu, x, self.layer.weights, self.layer.bias, Activation::None, &mut plain);
            plain
        });
        let block = if plain.is_some() { rows } else { block_rows(rows, BLOCK_ROWS) };
        let parts = x.chunks(block * inputs);
        let mut blocks: Vec<_> =
            parts.map(|x| Block { project: self, x, plain: plain.as_deref(), out: Vec::new() }).collect();
        for matrix in numbers.chunks_exact_mut(rows * stride) {
            for (block, rows) in blocks.iter_mut().zip(matrix.chunks_mut(block * stride)) {
                block.out.push(rows);
            }
        }
        share(blocks.into_iter(), |block, scratch: &mut Vec<u16>| cpu.run(ProjectBlock { block, scratch }));
    }
}

/// Some rows.
struct Block<'a, K> {
    project: Project<'a>,
    x: &'a [f32],
    /// The product, where it is there already.
    plain: Option<&'a [f32]>,
    /// The rows of every head of the query, the key and the value.
    out: Vec<&'a mut [K]>,
}

struct ProjectBlock<'a, 'b, K> {
    block: Block<'a, K>,
    scratch: &'b mut Vec<u16>,
}

impl<K: Kind> Work for ProjectBlock<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { block: Block { project: Project { layer, depth }, x, plain, mut out }, scratch } = self;
        if let Some(plain) = plain {
            for (at, row) in plain.chunks_exact(layer.weights.outputs()).enumerate() {
                for (numbers, out) in row.chunks_exact(depth).zip(&mut out) {
                    K::store(isa, numbers, &mut out[at * K::stride(depth)..][..depth]);
                }
            }
            return;
        }
        let source = Source::of(isa, x, layer.weights, scratch);
        let rows = x.len() / layer.weights.inputs();
        let sink = Spread { outputs: layer.weights.outputs(), depth, out: &mut out };
        walk(isa, source, rows, &layer, 0..layer.weights.panel_count(), sink);
    }
}

/// Puts columns of tiles where their heads are.
struct Spread<'a, 'b, K> {
    outputs: usize,
    depth: usize,
    out: &'b mut [&'a mut [K]],
}

impl<K: Kind> Sink for Spread<'_, '_, K> {
    #[inline(always)]
    fn take<I: Isa>(&mut self, isa: I, tile: &mut Tile, panel: usize, rows: Range<usize>) {
        let (first, stride) = (panel * PANEL, K::stride(self.depth));
        let end = self.outputs.min(first + PANEL);
        let mut column = first;
        while column < end {
            // A panel may hold the end of one head and the beginning of the next.
            let (matrix, offset) = (column / self.depth, column % self.depth);
            let width = (self.depth - offset).min(end - column);
            let out = self.out[matrix].chunks_exact_mut(stride).skip(rows.start);
            for (sums, row) in tile.0[..rows.len()].iter().zip(out) {
                K::store(isa, &sums[column - first..][..width], &mut row[offset..offset + width]);
            }
            column += width;
        }
    }
}
