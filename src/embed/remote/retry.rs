//! When to try again: exponential back-off with full jitter, and what `Retry-After` asks for. Pure but for the seeded dice.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::DateTime;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::clock::Timestamp;

/// How failed requests are repeated.
#[derive(Clone, Copy, Debug)]
pub struct RetryOptions {
    /// Times one request is sent to one provider before it counts as failed; 429 answers are not counted. Default 5.
    pub attempts: NonZeroU32,
    /// The longest first pause; each further one is up to twice as long. Default 0.5 s.
    pub first_pause: Duration,
    /// The longest pause of all. Default 30 s.
    pub longest_pause: Duration,
    /// What one request waits in all, for back-off, `Retry-After` and open circuits. Default 10 min: longer than providers'
    /// windows of a minute, short enough that a run which cannot go on says so.
    pub total_wait: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(5).unwrap_or(NonZeroU32::MIN),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            total_wait: Duration::from_secs(600),
        }
    }
}

/// Draws pauses.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    dice: Mutex<ChaCha8Rng>,
}

impl Backoff {
    pub(super) fn new(options: &RetryOptions, seed: u64) -> Self {
        let dice = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        Self { first: options.first_pause, longest: options.longest_pause, dice }
    }

    /// The pause after the `failures`-th failure in a row: uniform between 0 and the exponential bound. Full jitter spreads
    /// callers that failed together best (Brooker, "Exponential Backoff And Jitter", AWS 2015).
    pub(super) fn pause(&self, failures: u32) -> Duration {
        self.up_to(self.first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(self.longest))
    }

    /// What a provider asked for, and a little more, so that those who were told the same do not come back together.
    pub(super) fn after(&self, asked: Duration) -> Duration {
        asked.saturating_add(self.up_to(self.first))
    }

    fn up_to(&self, bound: Duration) -> Duration {
        let share = self.dice.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>();
        bound.mul_f64(share)
    }
}

/// Reads a `Retry-After` header: seconds, or an HTTP date (RFC 9110, 10.2.3). `None` if it is neither.
pub(super) fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    // Whole seconds by the RFC; some providers send fractions.
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let at = Timestamp(DateTime::parse_from_rfc2822(value).ok()?.timestamp_micros());
    Some(at.since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // 1994-11-06T08:49:37Z, by `date -d`.
        let now = Timestamp(784_111_777_000_000);
        let read = |value| parse_retry_after(value, now);
        assert_eq!(read("20"), Some(Duration::from_secs(20)));
        assert_eq!(read(" 0.25 "), Some(Duration::from_millis(250)));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO), "it is over");
        assert_eq!(read("-3"), Some(Duration::ZERO));
        for bad in ["", "soon", "NaN", "inf", "1e300"] {
            assert!(read(bad).is_none_or(|d| d.is_zero()), "{bad}");
        }
    }

    #[test]
    fn pauses_are_spread_over_the_whole_of_a_doubling_bound() {
        let options = RetryOptions::default();
        let backoff = Backoff::new(&options, 7);
        for (failures, bound_ms) in [(1, 500), (2, 1000), (3, 2000), (7, 30_000), (200, 30_000)] {
            let drawn: Vec<f64> = (0..2000).map(|_| backoff.pause(failures).as_secs_f64() * 1e3).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            assert!(drawn.iter().all(|ms| *ms <= f64::from(bound_ms)), "{failures}");
            assert!((mean / f64::from(bound_ms) - 0.5).abs() < 0.03, "{failures}: mean {mean}");
        }
    }
}
