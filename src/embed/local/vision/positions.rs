//! Learned positions for another number of patches than they were learned for.
//!
//! The values are those of torch's `interpolate(mode="bicubic", align_corners=False)` without antialiasing, which is what
//! transformers does with DINOv2's positions. Must not know: images, files.

use super::resample::cubic;

/// Keys' parameter as torch has it; Pillow's, for pixels, is -1/2.
const A: f64 = -0.75;

/// A square table of positions, `[side · side, width]`, resampled to `[rows · columns, width]`.
pub(super) fn resampled(table: &[f32], width: usize, rows: usize, columns: usize) -> Vec<f32> {
    let side = (table.len() / width.max(1)).isqrt();
    if (rows, columns) == (side, side) {
        return table.to_vec();
    }
    let (across, down) = (taps(side, columns), taps(side, rows));
    let mut resampled = Vec::with_capacity(rows * columns * width);
    for row in &down {
        for column in &across {
            let mut sums = vec![0.0_f64; width];
            for (y, of_row) in row {
                for (x, of_column) in column {
                    let position = table.chunks_exact(width).nth(y * side + x).unwrap_or_default();
                    sums.iter_mut().zip(position).for_each(|(sum, p)| *sum += of_row * of_column * f64::from(*p));
                }
            }
            resampled.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    resampled
}

/// For each new place the four old ones that it is made of, with their weights. Beyond the edges the edge goes on.
fn taps(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    let scale = from as f64 / to as f64;
    let last = from.saturating_sub(1);
    (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale - 0.5;
            let (below, fraction) = (centre.floor(), centre - centre.floor());
            [-1.0, 0.0, 1.0, 2.0_f64].map(|step| {
                // Casting stops at 0.
                (((below + step) as usize).min(last), cubic((step - fraction).abs(), A))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_torch() {
        // torch.nn.functional.interpolate(torch.tensor([[[[1., 2., 4.], [8., 16., 32.], [3., 9., 27.]]]]), size=(2, 4),
        // mode="bicubic", align_corners=False)
        let table = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 3.0, 9.0, 27.0];
        let found = resampled(&table, 1, 2, 4);
        let expected = [2.571_06, 3.900_31, 7.548_15, 10.885_71, 3.898_05, 6.682_22, 18.314_53, 30.411_98];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
        assert_eq!(found.len(), 8);
    }

    #[test]
    fn the_size_that_they_were_learned_for_leaves_them_as_they_are() {
        let table: Vec<f32> = (0..18).map(|i| i as f32).collect();
        assert_eq!(resampled(&table, 2, 3, 3), table);
    }
}
