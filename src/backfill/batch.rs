//! How many chunks one batch claims: enough that the commits do not matter, few enough that a kill repeats little.

use std::time::Duration;

/// The smallest batch: a kill of a slow model then repeats a few seconds of work.
const SMALLEST: usize = 64;
/// The first batch.
const FIRST: usize = 256;
/// The largest batch: 8,192 × 1,024 floats are 32 MiB, which bounds memory.
const LARGEST: usize = 8192;
/// What a batch should take. Four commits and a sync cost 0.1 to 0.3 s, so they stay below a tenth of it.
const TARGET: Duration = Duration::from_secs(4);

/// The size of the next batch, adapted to the embedder's speed by doubling and halving.
#[derive(Debug)]
pub(super) struct BatchSize(usize);

impl Default for BatchSize {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl BatchSize {
    pub(super) fn rows(&self) -> usize {
        self.0
    }

    /// Takes note of how long a batch took.
    pub(super) fn adapt(&mut self, took: Duration) {
        if took < TARGET / 2 {
            self.0 = (self.0 * 2).min(LARGEST);
        } else if took > TARGET * 2 {
            self.0 = (self.0 / 2).max(SMALLEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_for_a_fast_embedder_shrinks_for_a_slow_one_and_stays_in_bounds() {
        let mut size = BatchSize::default();
        (0..20).for_each(|_| size.adapt(Duration::from_millis(10)));
        assert_eq!(size.rows(), LARGEST);
        size.adapt(TARGET);
        assert_eq!(size.rows(), LARGEST);
        (0..20).for_each(|_| size.adapt(Duration::from_secs(60)));
        assert_eq!(size.rows(), SMALLEST);
    }
}
