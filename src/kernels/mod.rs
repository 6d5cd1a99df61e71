//! The arithmetic of transformers on the CPU: products, normalisation, attention, pooling. Plain slices in, plain slices out.
//!
//! Owns the only `unsafe` of the crate: choosing a set of instructions that was found at run time (`cpu.rs`), the tiles of
//! matrix products on raw pointers (`product/`), and one call of the C library (`heap.rs`). Everything above those is safe
//! code, compiled once for each set of instructions. Guarantees that a shape that does not fit is a panic at the entry, never a stray read, and that a NaN that
//! comes in goes out. Must not know models, files, burn, or texts.
//!
//! Matrices are row-major `f32` unless a type says otherwise. T is the number of tokens of a batch, laid one after another
//! without padding; H the width; A the number of heads, each D = H / A wide.

// Every function asserts its shapes at the entry; indices inside follow from them, and a wrong one is still a panic.
#![allow(clippy::indexing_slicing)]

mod attention;
mod cpu;
mod dots;
mod embedding;
mod feed_forward;
mod head;
mod heads;
mod heap;
mod kind;
mod layer;
mod linear;
mod math;
mod norm;
mod pool;
mod product;
mod share;
mod walk;
mod weights;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use attention::{Reach, attention};
pub(crate) use cpu::Cpu;
pub(crate) use dots::products;
pub(crate) use embedding::embed_tokens;
pub(crate) use feed_forward::feed_forward_add_norm;
pub(crate) use heads::Heads;
pub(crate) use heap::return_free_memory;
pub(crate) use layer::Activation;
pub(crate) use linear::{linear, linear_add, linear_add_norm};
pub(crate) use norm::{Norm, layer_norm};
pub(crate) use pool::{Normalise, Pool, pool_normalise};
pub(crate) use weights::{Number, Table, Weights};
