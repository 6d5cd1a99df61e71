//! What a model keeps: packed weights of linear layers and tables of rows, as f32 or bf16.
//!
//! Guarantees that bf16 is rounded to nearest even, in the same way on every machine, and that weights are aligned to 64 bytes.

use super::product::{Line, PANEL};

/// How weights, and what they are multiplied with, are kept. Sums are f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    /// 32 bits, as published.
    F32,
    /// The upper 16 bits of an f32, rounded to nearest even: 8 bits of precision, half the memory.
    Bf16,
}

/// Weights of a linear layer `[in, out]`, packed once for the product; the only copy that is kept.
///
/// Columns are grouped into panels of [`PANEL`], the last one filled up with zeros. A panel holds its rows one after another;
/// in bf16 two rows are interleaved, because the instruction for it sums products of pairs.
pub(crate) struct Weights {
    inputs: usize,
    outputs: usize,
    panels: Panels,
}

/// Panels of f32: `[panel][in][PANEL]`; of bf16: `[panel][in / 2][PANEL][2]`, an odd last row paired with zeros.
pub(super) enum Panels {
    F32(Vec<Line<f32, 16>>),
    Bf16(Vec<Line<u16, 32>>),
}

impl Weights {
    /// Packs published matrices, each `[out_i, in]` row-major, stacked along out (query, key, value → one).
    ///
    /// # Panics
    /// If a part is not a whole number of rows of `inputs`, or `inputs` is 0.
    pub(crate) fn pack(parts: &[&[f32]], inputs: usize, number: Number) -> Self {
        assert!(inputs > 0, "a linear layer has inputs");
        assert!(parts.iter().all(|part| part.len().is_multiple_of(inputs)), "weights are whole rows of {inputs}");
        let columns: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks_exact(inputs)).collect();
        let groups = columns.chunks(PANEL);
        let panels = match number {
            Number::F32 => {
                let mut lines = Vec::with_capacity(groups.len() * inputs * 2);
                for group in groups {
                    for k in 0..inputs {
                        let row: [f32; PANEL] = std::array::from_fn(|j| group.get(j).map_or(0.0, |column| column[k]));
                        lines.extend(row.as_chunks().0.iter().map(|half| Line(*half)));
                    }
                }
                Panels::F32(lines)
            }
            Number::Bf16 => {
                let mut lines = Vec::with_capacity(groups.len() * inputs.div_ceil(2) * 2);
                for group in groups {
                    for k in (0..inputs).step_by(2) {
                        let pair: [u16; 2 * PANEL] = std::array::from_fn(|at| {
                            let column = group.get(at / 2).and_then(|column| column.get(k + at % 2));
                            column.map_or(0, |&x| to_bf16(x))
                        });
                        lines.extend(pair.as_chunks().0.iter().map(|half| Line(*half)));
                    }
                }
                Panels::Bf16(lines)
            }
        };
        Self { inputs, outputs: columns.len(), panels }
    }

    /// Width of what goes in.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Width of what comes out.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Memory held, in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        64 * match &self.panels {
            Panels::F32(lines) => lines.len(),
            Panels::Bf16(lines) => lines.len(),
        }
    }

    /// How the weights are kept.
    pub(crate) fn number(&self) -> Number {
        match self.panels {
            Panels::F32(_) => Number::F32,
            Panels::Bf16(_) => Number::Bf16,
        }
    }

    pub(super) fn panels(&self) -> &Panels {
        &self.panels
    }

    /// Panels of [`PANEL`] columns, the last one possibly filled up.
    pub(super) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }
}

/// A table of rows looked up by token id.
pub(crate) struct Table {
    width: usize,
    rows: Rows,
}

enum Rows {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Table {
    /// `rows` is row-major, a whole number of rows of `width`.
    ///
    /// # Panics
    /// If it is not, or `width` is 0.
    pub(crate) fn new(rows: Vec<f32>, width: usize, number: Number) -> Self {
        assert!(width > 0 && rows.len().is_multiple_of(width), "a table is whole rows of {width}");
        let rows = match number {
            // Without a copy: in many models this is the largest matrix.
            Number::F32 => Rows::F32(rows),
            Number::Bf16 => Rows::Bf16(rows.iter().map(|&x| to_bf16(x)).collect()),
        };
        Self { width, rows }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.len() / self.width
    }

    /// Width of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Memory held, in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        match &self.rows {
            Rows::F32(rows) => size_of_val(rows.as_slice()),
            Rows::Bf16(rows) => size_of_val(rows.as_slice()),
        }
    }

    fn len(&self) -> usize {
        match &self.rows {
            Rows::F32(rows) => rows.len(),
            Rows::Bf16(rows) => rows.len(),
        }
    }

    /// Adds a row to `sum`.
    #[inline(always)]
    pub(super) fn add_row(&self, row: usize, sum: &mut [f32]) {
        let at = row * self.width..(row + 1) * self.width;
        match &self.rows {
            Rows::F32(rows) => {
                for (sum, x) in sum.iter_mut().zip(&rows[at]) {
                    *sum += x;
                }
            }
            Rows::Bf16(rows) => {
                for (sum, &x) in sum.iter_mut().zip(&rows[at]) {
                    *sum += from_bf16(x);
                }
            }
        }
    }
}

/// Rounds to nearest even. A NaN stays one; a number too small to be normal becomes zero of its sign, as the instruction of
/// x86 has it, so that every machine makes the same vectors.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN is kept quiet, with its sign; the carry of rounding could otherwise turn it into a number.
    let nan = (bits >> 16) | 0x40;
    let zero = (bits >> 16) & 0x8000;
    let finite = if magnitude < 0x0080_0000 { zero } else { rounded };
    (if magnitude > 0x7f80_0000 { nan } else { finite }) as u16
}

/// Exact.
#[inline(always)]
pub(super) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bf16_is_the_nearest_and_even_on_ties(bits in any::<u32>()) {
            let x = f32::from_bits(bits);
            prop_assume!(x.is_normal() && x.abs() < 3.3e38);
            let got = to_bf16(x);
            let error = |candidate: u16| (f64::from(from_bf16(candidate)) - f64::from(x)).abs();
            let (below, above) = (error(got.wrapping_sub(1)), error(got.wrapping_add(1)));
            prop_assert!(error(got) <= below && error(got) <= above);
            if error(got) == below || error(got) == above {
                prop_assert_eq!(got & 1, 0);
            }
        }
    }

    #[test]
    fn bf16_keeps_nan_infinity_and_signed_zero() {
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
        assert!(from_bf16(to_bf16(f32::from_bits(0x7f80_0001))).is_nan());
        assert!(from_bf16(to_bf16(f32::from_bits(0xffff_ffff))).is_nan());
        assert_eq!(from_bf16(to_bf16(f32::INFINITY)), f32::INFINITY);
        assert_eq!(to_bf16(f32::MAX), to_bf16(f32::INFINITY));
        assert_eq!(to_bf16(-0.0), 0x8000);
        assert_eq!(to_bf16(-1e-39), 0x8000);
    }

    #[test]
    fn weights_are_the_only_copy_and_count_their_bytes() {
        let matrix = vec![1.0; 40 * 6];
        let (full, half) =
            (Weights::pack(&[&matrix, &matrix], 6, Number::F32), Weights::pack(&[&matrix], 6, Number::Bf16));
        assert_eq!((full.inputs(), full.outputs(), full.number()), (6, 80, Number::F32));
        assert_eq!(full.bytes(), 3 * 6 * 32 * 4);
        assert_eq!(half.bytes(), 2 * 6 * 32 * 2);
        assert_eq!(Table::new(matrix, 6, Number::Bf16).bytes(), 40 * 6 * 2);
    }
}
