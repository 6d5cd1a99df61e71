//! Seeded sampling from a stream of known length, without holding it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Decides row by row whether a row is in the sample: exactly `wanted` of `total` rows, each subset equally likely, in
/// stream order (Knuth's algorithm S, TAOCP 3.4.2). ChaCha8 gives the same choices on every platform and release.
#[derive(Debug)]
pub(crate) struct SeededSample {
    rng: ChaCha8Rng,
    rows_left: u64,
    wanted_left: u64,
}

impl SeededSample {
    /// A sample of `wanted` of the next `total` rows; of all of them if there are fewer.
    pub(crate) fn new(total: u64, wanted: u64, seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), rows_left: total, wanted_left: wanted.min(total) }
    }

    /// Whether the next row is in the sample.
    pub(crate) fn take_next(&mut self) -> bool {
        if self.wanted_left == 0 || self.rows_left == 0 {
            return false;
        }
        let taken = self.rng.random_range(0..self.rows_left) < self.wanted_left;
        self.rows_left -= 1;
        self.wanted_left -= u64::from(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_exactly_as_many_as_wanted_and_the_same_ones_for_a_seed() {
        let pick = |total, wanted, seed| {
            let mut sample = SeededSample::new(total, wanted, seed);
            (0..total).filter(|_| sample.take_next()).collect::<Vec<_>>()
        };
        for (total, wanted) in [(10, 3), (10, 10), (10, 20), (1000, 1), (5, 0), (0, 5)] {
            assert_eq!(pick(total, wanted, 7).len() as u64, wanted.min(total));
        }
        assert_eq!(pick(1000, 50, 7), pick(1000, 50, 7));
        assert_ne!(pick(1000, 50, 7), pick(1000, 50, 8));
    }
}
