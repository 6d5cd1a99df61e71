//! How many chunks one batch claims, and how many texts one call of the embedder gets: enough that commits and calls do not
//! matter, few enough that a kill repeats little and memory stays bounded.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Vectors of the largest batch.
const VECTOR_BYTES: usize = 6 << 20;

/// A number that is adapted to how long the work took, by doubling and halving; shared by clones of its owner's handle.
#[derive(Debug)]
pub(super) struct Size {
    value: AtomicUsize,
    smallest: usize,
    largest: usize,
    target: Duration,
}

impl Size {
    /// Chunks of one batch.
    ///
    /// At most 6 MiB of vectors (4,096 of 384 numbers), of which the stages and the encoder hold six at once, with as much
    /// again in claims and passages; at least 256. Twice as many took 50 MB more and were no faster, half as many were 13 %
    /// slower (300,000 rows of the fake embedder). A batch should take four seconds: its five commits and the sync cost 0.1
    /// to 0.2 s, most of it while the embedder works on the next. A memory limit may set a lower bound (`at_most`).
    pub(super) fn of_batch(dimension: usize, at_most: usize) -> Self {
        let largest = (VECTOR_BYTES / (dimension.max(1) * size_of::<f32>())).clamp(256, 4096).min(at_most).max(1);
        let smallest = largest.min(256);
        Self { value: AtomicUsize::new(largest.min(1024)), smallest, largest, target: Duration::from_secs(4) }
    }

    /// Texts of one call.
    ///
    /// Two calls are on their way at any time, and what they answer is in the cache as soon as the writer can: a kill repeats
    /// about those. So a call should take half a second, which a commit of 10 ms does not lengthen; a local model needs no
    /// more texts at once, since it never pads. The first call is small, because how fast the embedder is is not known yet, and
    /// a kill before it ends leaves nothing. 2,048 texts are plenty for the fastest, and the embedder may set a lower
    /// bound (`at_most`).
    pub(super) fn of_call(at_most: usize) -> Self {
        let largest = at_most.clamp(1, 2048);
        let smallest = largest.min(32);
        Self { value: AtomicUsize::new(smallest), smallest, largest, target: Duration::from_millis(500) }
    }

    pub(super) fn get(&self) -> usize {
        self.value.load(Ordering::Relaxed)
    }

    /// What it may grow to.
    pub(super) fn largest(&self) -> usize {
        self.largest
    }

    /// Takes note of how long work of this size took.
    pub(super) fn adapt(&self, size: usize, took: Duration) {
        let now = self.get();
        // What was less than half of what was asked for, at the end of a run, says nothing.
        let new = if took < self.target / 8 && size * 2 > now {
            now * 4
        } else if took < self.target / 2 && size * 2 > now {
            now * 2
        } else if took > self.target * 2 {
            now / 2
        } else {
            now
        };
        self.value.store(new.clamp(self.smallest, self.largest), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_for_a_fast_embedder_shrinks_for_a_slow_one_and_stays_in_bounds() {
        let size = Size::of_batch(384, usize::MAX);
        (0..20).for_each(|_| size.adapt(size.get(), Duration::from_millis(10)));
        assert_eq!(size.get(), 4096);
        size.adapt(4096, Duration::from_secs(4));
        assert_eq!(size.get(), 4096);
        (0..20).for_each(|_| size.adapt(size.get(), Duration::from_secs(60)));
        assert_eq!(size.get(), 256);
        size.adapt(3, Duration::from_millis(1));
        assert_eq!(size.get(), 256, "a remainder says nothing");
        let bounded = Size::of_batch(384, 100);
        (0..20).for_each(|_| bounded.adapt(bounded.get(), Duration::from_millis(10)));
        assert_eq!(bounded.get(), 100);
    }

    #[test]
    fn vectors_of_a_batch_fit_6_mib() {
        for dimension in [0, 1, 384, 768, 1024, 4096] {
            assert!(Size::of_batch(dimension, usize::MAX).largest * dimension * 4 <= VECTOR_BYTES, "{dimension}");
        }
    }
}
