//! The circuit of one provider: after failures in a row nothing is sent for a while, then one request finds out whether it is
//! back.
//!
//! Closed (requests pass) → open (none passes) → half open (one passes, the probe) → closed or open again, for twice as long.
//! Moments come in as parameters.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// When a provider counts as down.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// Failures in a row that open the circuit. Default 10.
    pub failures: NonZeroU32,
    /// How long it stays open the first time; a failed probe doubles it. Default 15 s.
    pub pause: Duration,
    /// The longest that it stays open. Default 5 min.
    pub longest_pause: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            failures: NonZeroU32::new(10).unwrap_or(NonZeroU32::MIN),
            pause: Duration::from_secs(15),
            longest_pause: Duration::from_secs(300),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration, pause: Duration },
    HalfOpen { pause: Duration },
}

/// The circuit; shared by all requests to the provider.
#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    state: Mutex<State>,
    probed: Notify,
}

/// Whether a request may try [`Breaker::admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Circuit {
    Passable,
    OpenFor(Duration),
    /// A probe is under way; [`Breaker::probe_ended`] waits for it.
    Probing,
}

/// Leave to send one request. Dropped without a verdict, it gives a probe back.
#[derive(Debug)]
pub(super) struct Pass {
    breaker: Arc<Breaker>,
    is_probe: bool,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Arc<Self> {
        Arc::new(Self { options, state: Mutex::new(State::Closed { failures: 0 }), probed: Notify::new() })
    }

    pub(super) fn circuit(&self, now: Duration) -> Circuit {
        match *self.lock() {
            State::Open { until, .. } if until > now => Circuit::OpenFor(until - now),
            State::Closed { .. } | State::Open { .. } => Circuit::Passable,
            State::HalfOpen { .. } => Circuit::Probing,
        }
    }

    /// Ready once no probe is under way.
    pub(super) async fn probe_ended(&self) {
        // Before the look, so that an end in between is not missed.
        let ended = self.probed.notified();
        if matches!(*self.lock(), State::HalfOpen { .. }) {
            ended.await;
        }
    }

    /// Leave to send, if the circuit is closed, or this is the probe.
    pub(super) fn admit(self: &Arc<Self>, now: Duration) -> Option<Pass> {
        let mut state = self.lock();
        let is_probe = match *state {
            State::Closed { .. } => false,
            State::Open { until, pause } if until <= now => {
                *state = State::HalfOpen { pause };
                true
            }
            State::Open { .. } | State::HalfOpen { .. } => return None,
        };
        Some(Pass { breaker: self.clone(), is_probe })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// The provider answered as it should, or at least is there.
    pub(super) fn succeeded(self) {
        let mut state = self.breaker.lock();
        // A late answer to a request from before the circuit opened proves nothing about now; a probe does.
        if !matches!(*state, State::Open { .. }) {
            *state = State::Closed { failures: 0 };
        }
    }

    /// The provider failed.
    pub(super) fn failed(self, now: Duration) {
        let options = self.breaker.options;
        let mut state = self.breaker.lock();
        let opened = |pause: Duration| State::Open { until: now.saturating_add(pause), pause };
        *state = match *state {
            State::Closed { failures } if failures + 1 < options.failures.get() => {
                State::Closed { failures: failures + 1 }
            }
            State::Closed { .. } => opened(options.pause),
            State::HalfOpen { pause } => opened(pause.saturating_mul(2).min(options.longest_pause)),
            open @ State::Open { .. } => open,
        };
    }

    /// The provider refuses this caller: no use in asking again soon.
    pub(super) fn refused(self, now: Duration) {
        let pause = self.breaker.options.longest_pause;
        *self.breaker.lock() = State::Open { until: now.saturating_add(pause), pause };
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.is_probe {
            let mut state = self.breaker.lock();
            // Without a verdict.
            if let State::HalfOpen { pause } = *state {
                *state = State::Open { until: Duration::ZERO, pause };
            }
            drop(state);
            self.breaker.probed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Arc<Breaker> {
        let failures = NonZeroU32::new(3).unwrap();
        Breaker::new(BreakerOptions { failures, pause: 10 * SECOND, longest_pause: 30 * SECOND })
    }

    fn fail(breaker: &Arc<Breaker>, now: Duration) {
        breaker.admit(now).unwrap().failed(now);
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let breaker = breaker();
        for _ in 0..5 {
            fail(&breaker, SECOND);
            fail(&breaker, SECOND);
            breaker.admit(SECOND).unwrap().succeeded();
        }
        (0..3).for_each(|_| fail(&breaker, SECOND));
        assert!(breaker.admit(SECOND).is_none());
        assert_eq!(breaker.circuit(4 * SECOND), Circuit::OpenFor(7 * SECOND));
    }

    #[test]
    fn one_probe_passes_and_its_verdict_decides() {
        let breaker = breaker();
        (0..3).for_each(|_| fail(&breaker, SECOND));
        let probe = breaker.admit(11 * SECOND).unwrap();
        assert!(breaker.admit(11 * SECOND).is_none(), "one probe only");
        assert_eq!(breaker.circuit(11 * SECOND), Circuit::Probing);
        probe.failed(11 * SECOND);
        assert_eq!(breaker.circuit(11 * SECOND), Circuit::OpenFor(20 * SECOND), "twice as long");
        breaker.admit(31 * SECOND).unwrap().failed(31 * SECOND);
        assert_eq!(breaker.circuit(31 * SECOND), Circuit::OpenFor(30 * SECOND), "at most the longest");
        breaker.admit(61 * SECOND).unwrap().succeeded();
        assert_eq!(breaker.circuit(61 * SECOND), Circuit::Passable);
        fail(&breaker, 61 * SECOND);
        assert!(breaker.admit(61 * SECOND).is_some(), "counting starts anew");
    }

    #[tokio::test]
    async fn an_abandoned_probe_is_given_back_and_who_waits_for_it_is_told() {
        let breaker = breaker();
        breaker.probe_ended().await;
        (0..3).for_each(|_| fail(&breaker, SECOND));
        let probe = breaker.admit(11 * SECOND).unwrap();
        let ((), ()) = tokio::join!(breaker.probe_ended(), async { drop(probe) });
        assert!(breaker.admit(11 * SECOND).is_some());
    }

    #[test]
    fn a_late_answer_from_before_does_not_close_it() {
        let breaker = breaker();
        let late = breaker.admit(SECOND).unwrap();
        (0..3).for_each(|_| fail(&breaker, SECOND));
        late.succeeded();
        assert!(breaker.admit(SECOND).is_none());
    }

    #[test]
    fn a_refusal_opens_it_at_once() {
        let breaker = breaker();
        breaker.admit(SECOND).unwrap().refused(SECOND);
        assert_eq!(breaker.circuit(SECOND), Circuit::OpenFor(30 * SECOND));
    }
}
