//! What a model has done so far, counted while it works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a local model has computed since its embedder was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelUsage {
    /// How often it was loaded.
    pub loads: u64,
    /// Batches that it was given.
    pub batches: u64,
    /// Texts in them.
    pub texts: u64,
    /// Tokens in them, special tokens and prefixes included.
    pub tokens: u64,
    /// How long it computed. What is missing to the time that passed, it waited.
    pub computing: Duration,
}

/// The counters behind a [`ModelUsage`]; written by the model thread, read by anyone.
#[derive(Debug, Default)]
pub(super) struct Usage {
    loads: AtomicU64,
    batches: AtomicU64,
    texts: AtomicU64,
    tokens: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Usage {
    pub(super) fn loaded(&self) {
        self.loads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn computed(&self, texts: usize, tokens: usize, taken: Duration) {
        // 2^64 nanoseconds are 584 years.
        let nanoseconds = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        for (counter, more) in [
            (&self.batches, 1),
            (&self.texts, texts as u64),
            (&self.tokens, tokens as u64),
            (&self.nanoseconds, nanoseconds),
        ] {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(super) fn so_far(&self) -> ModelUsage {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ModelUsage {
            loads: read(&self.loads),
            batches: read(&self.batches),
            texts: read(&self.texts),
            tokens: read(&self.tokens),
            computing: Duration::from_nanos(read(&self.nanoseconds)),
        }
    }
}
