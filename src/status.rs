//! The life of one chunk under one embedder: a state machine with a single transition function.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::failure::FailureKind;
use crate::id::ChunkId;

/// Where a chunk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChunkState {
    /// Waits for its first embedding.
    New,
    /// Claimed by a worker under a lease.
    InProgress,
    /// Its vector is stored.
    Ready,
    /// The last attempt failed; it is due again at a stated time, or never.
    Error,
}

/// What happens to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkEvent {
    /// A worker takes it; an expired lease counts as nobody's.
    Claim,
    /// Its vector was stored by the worker that holds the lease.
    Store,
    /// The worker that holds the lease could not embed it.
    Fail,
    /// The worker that holds the lease gives it back unattempted.
    Release,
    /// Somebody asks for a failed one to be tried again, as if it never had been.
    Retry,
}

/// Attempts after which an [`ChunkState::Error`] is final until somebody asks for a retry. Five attempts with the pauses of
/// [`retry_at`] span about an hour: longer than a restart of a remote service, shorter than a night.
pub const MAX_ATTEMPTS: u32 = 5;

/// The state after `event`, or `None` where the event is not allowed.
///
/// | from \ event | Claim | Store | Fail | Release | Retry |
/// |---|---|---|---|---|---|
/// | New | InProgress | – | – | – | – |
/// | InProgress | InProgress (lease expired) | Ready | Error | New | – |
/// | Ready | – | – | – | – | – |
/// | Error | InProgress (when due) | – | – | – | New |
pub fn transition(from: ChunkState, event: ChunkEvent) -> Option<ChunkState> {
    use ChunkEvent as On;
    use ChunkState as In;
    match (from, event) {
        (In::New | In::Error | In::InProgress, On::Claim) => Some(In::InProgress),
        (In::InProgress, On::Store) => Some(In::Ready),
        (In::InProgress, On::Fail) => Some(In::Error),
        (In::InProgress, On::Release) | (In::Error, On::Retry) => Some(In::New),
        _ => None,
    }
}

/// When a chunk that failed for the `attempts`-th time in this way is due again; `None` for never.
///
/// A transient failure is due again after at most 15 s, 1, 4, 16 minutes, then never; any other never. Each pause lies
/// between half of that and all of it ("equal jitter", M. Brooker, *Exponential backoff and jitter*, 2015), at a place that
/// follows from the chunk and the attempt: chunks that failed together do not all come back together, and a test knows when.
pub fn retry_at(now: Timestamp, kind: FailureKind, attempts: u32, id: &ChunkId) -> Option<Timestamp> {
    let longest = retry_delay(attempts).filter(|_| kind == FailureKind::Transient)?;
    Some(now.plus(longest.mul_f64(0.5 + 0.5 * jitter(id, attempts))))
}

/// The longest pause after the `attempts`-th failure: 15 s, growing fourfold; `None` once [`MAX_ATTEMPTS`] are used up.
fn retry_delay(attempts: u32) -> Option<Duration> {
    (attempts < MAX_ATTEMPTS).then(|| Duration::from_secs(15 * 4u64.pow(attempts.saturating_sub(1))))
}

/// A number from 0 to 1 that looks like chance and is the same each time.
fn jitter(id: &ChunkId, attempts: u32) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_str().as_bytes());
    hasher.update(&attempts.to_le_bytes());
    let bits = hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_transition_table_is_as_documented() {
        use ChunkEvent::*;
        use ChunkState::*;
        let allowed = [
            (New, Claim, InProgress),
            (InProgress, Claim, InProgress),
            (Error, Claim, InProgress),
            (InProgress, Store, Ready),
            (InProgress, Fail, Error),
            (InProgress, Release, New),
            (Error, Retry, New),
        ];
        for from in [New, InProgress, Ready, Error] {
            for event in [Claim, Store, Fail, Release, Retry] {
                let want = allowed.iter().find(|row| (row.0, row.1) == (from, event)).map(|row| row.2);
                assert_eq!(transition(from, event), want, "{from:?} on {event:?}");
            }
        }
    }

    fn chunk(number: usize) -> ChunkId {
        ChunkId::from_stored(format!("{number:032x}"))
    }

    /// Seconds until each attempt after a failure of this kind.
    fn delays(kind: FailureKind, id: &ChunkId) -> Vec<Option<f64>> {
        let now = Timestamp(7_000_000);
        let delay = |n| retry_at(now, kind, n, id).map(|at| at.since(now).as_secs_f64());
        (1..=6).map(delay).collect()
    }

    #[test]
    fn retries_slow_down_and_end() {
        for number in 0..100 {
            let delays = delays(FailureKind::Transient, &chunk(number));
            for (delay, longest) in delays.iter().zip([15.0, 60.0, 240.0, 960.0]) {
                assert!(delay.is_some_and(|delay| (longest / 2.0..=longest).contains(&delay)), "{delays:?}");
            }
            assert_eq!(delays[4..], [None, None]);
        }
    }

    #[test]
    fn what_is_not_transient_is_never_due() {
        for kind in [FailureKind::Permanent, FailureKind::Fatal] {
            assert_eq!(delays(kind, &chunk(1)), [None; 6]);
        }
    }

    #[test]
    fn chunks_that_fail_together_come_back_apart_and_each_at_a_known_moment() {
        let first: Vec<_> = (0..1000).map(|n| delays(FailureKind::Transient, &chunk(n))[0].unwrap()).collect();
        let again: Vec<_> = (0..1000).map(|n| delays(FailureKind::Transient, &chunk(n))[0].unwrap()).collect();
        assert_eq!(first, again);
        // Ten equal parts of the 7.5 s: each would get 100 of 1,000 by chance, give or take 3 x 9.5.
        for part in 0..10 {
            let from = 7.5 + 0.75 * f64::from(part);
            let count = first.iter().filter(|delay| (from..from + 0.75).contains(*delay)).count();
            assert!((70..=130).contains(&count), "{count} of 1000 in part {part}");
        }
    }
}
