//! Requests and tokens per minute, as token buckets: a request waits here until it may be sent.
//!
//! In any minute at most the limit and one burst of it pass. A burst is a twentieth of the limit, three seconds' worth, so
//! that a run does not begin with a minute's requests at once; for tokens it is at least one request's.

use std::num::NonZeroU32;
use std::sync::Arc;

use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::timer::{BucketClock, Moment, Timer};

/// Bursts in a limit.
const BURSTS: u32 = 20;

/// What a provider allows per minute; not limited where absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimits {
    /// Requests per minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens per minute, by the estimate before sending.
    pub tokens_per_minute: Option<NonZeroU32>,
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, BucketClock, NoOpMiddleware<Moment>>;

/// One provider's buckets.
pub(super) struct Pacer {
    requests: Option<Bucket>,
    tokens: Option<(Bucket, NonZeroU32)>,
    timer: Arc<dyn Timer>,
}

impl Pacer {
    /// `request_tokens`: the most tokens that one request is cut to.
    pub(super) fn new(limits: &RateLimits, request_tokens: u32, timer: &Arc<dyn Timer>) -> Self {
        let bucket = |per_minute: NonZeroU32, burst: NonZeroU32| {
            let quota = Quota::per_minute(per_minute).allow_burst(burst);
            RateLimiter::direct_with_clock(quota, BucketClock(timer.clone()))
        };
        let share = |limit: NonZeroU32| NonZeroU32::new(limit.get() / BURSTS).unwrap_or(NonZeroU32::MIN);
        let tokens = limits.tokens_per_minute.map(|limit| {
            let one_request = NonZeroU32::new(request_tokens).unwrap_or(NonZeroU32::MIN);
            let burst = share(limit).max(one_request);
            (bucket(limit, burst), burst)
        });
        let requests = limits.requests_per_minute.map(|limit| bucket(limit, share(limit)));
        Self { requests, tokens, timer: timer.clone() }
    }

    /// Waits until a request of so many tokens may be sent.
    pub(super) async fn admit(&self, tokens: u32) {
        if let Some((bucket, burst)) = &self.tokens {
            // A single text may be longer than a batch is cut to; it waits for a full bucket.
            let tokens = NonZeroU32::new(tokens).unwrap_or(NonZeroU32::MIN).min(*burst);
            self.take(bucket, tokens).await;
        }
        if let Some(bucket) = &self.requests {
            self.take(bucket, NonZeroU32::MIN).await;
        }
    }

    async fn take(&self, bucket: &Bucket, count: NonZeroU32) {
        while let Ok(Err(too_early)) = bucket.check_n(count) {
            self.timer.sleep(too_early.wait_time_from(Moment(self.timer.elapsed()))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::timer::tests::Skipping;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// The moments at which requests of these tokens pass, one after the other.
    async fn passed(limits: RateLimits, tokens: &[u32]) -> Vec<Duration> {
        let timer: Arc<dyn Timer> = Arc::new(Skipping::default());
        let pacer = Pacer::new(&limits, 1000, &timer);
        let mut moments = Vec::new();
        for &tokens in tokens {
            pacer.admit(tokens).await;
            moments.push(timer.elapsed());
        }
        moments
    }

    #[tokio::test]
    async fn no_minute_sees_more_requests_than_the_limit_and_a_burst() {
        let limits = RateLimits { requests_per_minute: NonZeroU32::new(100), ..RateLimits::default() };
        let moments = passed(limits, &[1; 1000]).await;
        for (i, start) in moments.iter().enumerate() {
            let inside = moments.iter().skip(i).take_while(|at| **at < *start + MINUTE).count();
            assert!(inside <= 105, "{inside} requests in the minute from {start:?}");
        }
        // 5 at once, then 100 a minute.
        let expected = Duration::from_secs_f64(995.0 * 0.6);
        assert_eq!(moments.last().unwrap().as_secs(), expected.as_secs(), "and not fewer");
    }

    #[tokio::test]
    async fn no_minute_sees_more_tokens_than_the_limit_and_a_burst() {
        let limits = RateLimits { tokens_per_minute: NonZeroU32::new(10_000), ..RateLimits::default() };
        let tokens: Vec<u32> = (0..500).map(|i| 1 + i * 37 % 1000).collect();
        let moments = passed(limits, &tokens).await;
        for (i, start) in moments.iter().enumerate() {
            let inside = moments.iter().zip(&tokens).skip(i).take_while(|(at, _)| **at < *start + MINUTE);
            let sum: u32 = inside.map(|(_, tokens)| tokens).sum();
            assert!(sum <= 11_000, "{sum} tokens in the minute from {start:?}");
        }
        let total: u32 = tokens.iter().sum();
        let least = f64::from(total - 1000) / 10_000.0 * 60.0;
        assert!((moments.last().unwrap().as_secs_f64() - least).abs() < 1.0, "and not fewer");
    }

    #[tokio::test]
    async fn a_request_larger_than_the_bucket_waits_for_a_full_one_and_passes() {
        let limits = RateLimits { tokens_per_minute: NonZeroU32::new(600), ..RateLimits::default() };
        assert_eq!(passed(limits, &[50_000, 50_000]).await[1], Duration::from_secs(100));
    }
}
