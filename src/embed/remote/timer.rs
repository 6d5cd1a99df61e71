//! Time for the remote embedder: what the moment is and how to wait, as one value, so that a test moves time instead of
//! sleeping.

use std::ops::Add;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use governor::clock::{Clock, Reference};
use governor::nanos::Nanos;

use crate::clock::Timestamp;

/// Where pauses and moments come from.
pub trait Timer: Send + Sync {
    /// Time since some fixed moment; never runs backwards. Rate limits, back-off and circuits go by it.
    fn elapsed(&self) -> Duration;

    /// The wall clock, UTC: the day of a spend cap, and `Retry-After` dates.
    fn now(&self) -> Timestamp;

    /// Ready once `pause` has passed.
    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's time. Sleeping needs a tokio runtime with time enabled.
#[derive(Clone, Copy, Debug)]
pub struct SystemTimer(Instant);

impl Default for SystemTimer {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Timer for SystemTimer {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn now(&self) -> Timestamp {
        crate::clock::Clock::system().now()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(pause))
    }
}

/// A timer as the clock of a token bucket.
#[derive(Clone)]
pub(super) struct BucketClock(pub(super) Arc<dyn Timer>);

/// A moment of a [`BucketClock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) Duration);

impl Clock for BucketClock {
    type Instant = Moment;

    fn now(&self) -> Moment {
        Moment(self.0.elapsed())
    }
}

impl Add<Nanos> for Moment {
    type Output = Self;

    fn add(self, later: Nanos) -> Self {
        Self(self.0.saturating_add(later.into()))
    }
}

impl Reference for Moment {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.into()).unwrap_or(self.0))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A timer whose sleeps take no time and move it.
    #[derive(Default)]
    pub(in super::super) struct Skipping(Arc<Mutex<Duration>>);

    impl Timer for Skipping {
        fn elapsed(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn now(&self) -> Timestamp {
            Timestamp(1_780_000_000_000_000).plus(self.elapsed())
        }

        fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()> {
            let at = self.0.clone();
            Box::pin(async move {
                *at.lock().unwrap() += pause;
                tokio::task::yield_now().await;
            })
        }
    }
}
