//! The life of one chunk under one embedder: a state machine with a single transition function.

use std::time::Duration;

use crate::clock::Timestamp;

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
}

/// Attempts after which an [`ChunkState::Error`] is final until somebody asks for a retry. Five attempts with the pauses of
/// [`retry_at`] span about an hour: longer than a restart of a remote service, shorter than a night.
pub const MAX_ATTEMPTS: u32 = 5;

/// The state after `event`, or `None` where the event is not allowed.
///
/// | from \ event | Claim | Store | Fail | Release |
/// |---|---|---|---|---|
/// | New | InProgress | – | – | – |
/// | InProgress | InProgress (lease expired) | Ready | Error | New |
/// | Ready | – | – | – | – |
/// | Error | InProgress (when due) | – | – | – |
pub fn transition(from: ChunkState, event: ChunkEvent) -> Option<ChunkState> {
    use ChunkEvent as On;
    use ChunkState as In;
    match (from, event) {
        (In::New | In::Error | In::InProgress, On::Claim) => Some(In::InProgress),
        (In::InProgress, On::Store) => Some(In::Ready),
        (In::InProgress, On::Fail) => Some(In::Error),
        (In::InProgress, On::Release) => Some(In::New),
        _ => None,
    }
}

/// When a chunk that failed for the `attempts`-th time is due again: after 15 s, 1, 4, 16 minutes, then never.
pub fn retry_at(now: Timestamp, attempts: u32) -> Option<Timestamp> {
    retry_delay(attempts).map(|delay| now.plus(delay))
}

/// The pause after the `attempts`-th failure: 15 s, growing fourfold; `None` once [`MAX_ATTEMPTS`] are used up.
fn retry_delay(attempts: u32) -> Option<Duration> {
    (attempts < MAX_ATTEMPTS).then(|| Duration::from_secs(15 * 4u64.pow(attempts.saturating_sub(1))))
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
        ];
        for from in [New, InProgress, Ready, Error] {
            for event in [Claim, Store, Fail, Release] {
                let want = allowed.iter().find(|row| (row.0, row.1) == (from, event)).map(|row| row.2);
                assert_eq!(transition(from, event), want, "{from:?} on {event:?}");
            }
        }
    }

    #[test]
    fn retries_slow_down_and_end() {
        let now = Timestamp(0);
        let delays: Vec<_> = (1..=5).map(|n| retry_at(now, n).map(|at| at.since(now).as_secs())).collect();
        assert_eq!(delays, [Some(15), Some(60), Some(240), Some(960), None]);
    }
}
