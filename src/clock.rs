//! Time as a parameter: leases, back-off and timestamps read a [`Clock`], so that tests move time instead of sleeping.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::watch;

/// Longest time that is slept at once: a machine that was suspended, or whose clock was set, is noticed after that.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// A moment: microseconds since the Unix epoch, UTC. What the tables store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The moment `later` after this one, saturating.
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(later.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` until this one; zero if `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 with seconds, for people and JSON.
    pub fn to_rfc3339(self) -> String {
        DateTime::<Utc>::from_timestamp_micros(self.0)
            .map_or_else(|| self.0.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
    }

    /// The beginning of its second: what [`Timestamp::to_rfc3339`] keeps of it.
    pub(crate) fn whole_second(self) -> Self {
        Self(self.0 - self.0.rem_euclid(1_000_000))
    }

    /// Reads what [`Timestamp::to_rfc3339`] wrote: the second's beginning; `None` for anything else.
    pub(crate) fn from_rfc3339(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|time| Self(time.timestamp_micros()))
    }
}

/// Where the present moment comes from.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<watch::Sender<i64>>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    pub fn manual(start: Timestamp) -> Self {
        Self(Some(Arc::new(watch::Sender::new(start.0))))
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => Timestamp(Utc::now().timestamp_micros()),
            Some(at) => Timestamp(*at.borrow()),
        }
    }

    /// Moves a manual clock; the machine's clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Some(at) = &self.0 {
            at.send_modify(|now| *now = Timestamp(*now).plus(by).0);
        }
    }

    /// Returns once that moment has come; a manual clock must be moved there by somebody else.
    pub(crate) async fn sleep_until(&self, moment: Timestamp) {
        if let Some(at) = &self.0 {
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = at.subscribe().wait_for(|now| *now >= moment.0).await;
            return;
        }
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}
