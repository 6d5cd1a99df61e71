//! Resizing and cropping in one go, to the very pixels that Pillow gives.
//!
//! Pillow resizes pictures of 8 bits in two passes, along the rows and then along the columns, each with weights in fixed
//! point and a result rounded to 8 bits. Image models were trained on such pixels; other resizers differ by up to a dozen
//! levels at edges. Only pixels of the crop are computed, so the work is bounded by crop and picture, not by how long the
//! resized picture would be. Must not know: files, models.

use std::ops::Range;

use super::picture::Picture;

/// Fractional bits of a weight: 32, less 8 for the pixel, less 2 so that a sum with negative weights does not overflow.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// The shape of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Filter {
    /// A tent, 1 pixel to each side.
    Bilinear,
    /// Keys' cubic with a = -1/2, 2 pixels to each side.
    Bicubic,
}

/// The part of one side of a resized picture that is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Side {
    /// Length of the whole side after resizing.
    pub(super) resized: usize,
    /// First pixel that is kept.
    pub(super) first: usize,
    /// Pixels that are kept.
    pub(super) kept: usize,
}

/// `picture` resized to `across.resized` x `down.resized`, and cropped.
pub(super) fn resize(picture: &Picture, across: Side, down: Side, filter: Filter) -> Picture {
    let columns = taps(picture.width, across, filter);
    let rows = taps(picture.height, down, filter);
    // The rows of the picture that the crop's rows are made of.
    let first = rows.iter().map(|row| row.from).min().unwrap_or(0);
    let end = rows.iter().map(|row| row.from + row.weights.len()).max().unwrap_or(0);

    let mut narrowed = Vec::with_capacity((end - first) * across.kept * 3);
    for row in picture.rgb.chunks_exact(picture.width * 3).take(end).skip(first) {
        let (pixels, _) = row.as_chunks::<3>();
        narrowed.extend(columns.iter().flat_map(|column| {
            let under = pixels.iter().skip(column.from);
            let sums = under.zip(&column.weights).fold([HALF; 3], |mut sums, (pixel, weight)| {
                sums.iter_mut().zip(pixel).for_each(|(sum, &x)| *sum += i32::from(x) * weight);
                sums
            });
            sums.map(rounded)
        }));
    }

    let stride = across.kept * 3;
    let mut rgb = Vec::with_capacity(down.kept * stride);
    let mut sums = vec![HALF; stride];
    for row in &rows {
        sums.fill(HALF);
        let under = narrowed.chunks_exact(stride).skip(row.from - first);
        for (line, weight) in under.zip(&row.weights) {
            sums.iter_mut().zip(line).for_each(|(sum, &x)| *sum += i32::from(x) * weight);
        }
        rgb.extend(sums.iter().copied().map(rounded));
    }
    Picture { width: across.kept, height: down.kept, rgb }
}

const HALF: i32 = 1 << (WEIGHT_BITS - 1);

fn rounded(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The pixels that one new pixel is made of.
struct Taps {
    from: usize,
    /// Their sum is 1, in fixed point.
    weights: Vec<i32>,
}

fn taps(length: usize, side: Side, filter: Filter) -> Vec<Taps> {
    let scale = length as f64 / side.resized as f64;
    // Shrinking widens the filter, so that every pixel has its part in the result; enlarging does not narrow it.
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    let kept: Range<usize> = side.first..side.first + side.kept;
    kept.map(|at| {
        let centre = (at as f64 + 0.5) * scale;
        // Casting cuts off and stops at 0.
        let from = (centre - reach + 0.5) as usize;
        let end = ((centre + reach + 0.5) as usize).min(length);
        let weight = |x: usize| filter.at((x as f64 - centre + 0.5) / stretch);
        let total: f64 = (from..end).map(weight).sum();
        let fixed = |x| (weight(x) / total * f64::from(1 << WEIGHT_BITS)).round() as i32;
        Taps { from, weights: (from..end).map(fixed).collect() }
    })
    .collect()
}

impl Filter {
    fn reach(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic => cubic(x, -0.5),
        }
    }
}

/// Keys' cubic convolution kernel; R. G. Keys, IEEE TASSP 29 (1981), p. 1153. `x` is not negative.
pub(super) fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
