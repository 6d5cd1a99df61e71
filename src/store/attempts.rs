//! Attempts of one commit against other writers: bounded in number, each further one later than the last by a random pause,
//! and each in the log.
//!
//! Without the pause four writers that commit at the same pace would meet again and again, and the one with the longest way
//! to its commit would always come last.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::table::StoredTable;
use crate::error::Result;

/// Attempts before the operation fails. Of n racing writers one commits in each round, so n attempts suffice where they
/// race for one commit each; twenty leaves room for a busy bank.
const MOST: u32 = 20;

/// The first pause at most: about what a commit takes. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(8);

/// Pauses grow up to this, so that twenty attempts take four seconds at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(256);

/// Counts the attempts of one operation on one table.
pub(super) struct Attempts<'a> {
    table: &'a StoredTable,
    operation: &'static str,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn at(table: &'a StoredTable, operation: &'static str) -> Self {
        Self { table, operation, made: 0 }
    }

    /// To be awaited before each attempt: returns at once before the first one, after a pause before all others.
    ///
    /// # Errors
    /// [`Error::Store`](crate::error::Error::Store) once all attempts are spent.
    pub(super) async fn next(&mut self) -> Result<()> {
        if self.made >= MOST {
            let reason =
                format!("in {MOST} attempts other processes were faster; run it again when fewer write to the bank");
            return Err(self.table.error(self.operation, reason));
        }
        self.made += 1;
        if let Some(retries) = self.made.checked_sub(2) {
            tracing::debug!(
                table = self.table.name(),
                operation = self.operation,
                attempt = self.made,
                "write conflict; trying again"
            );
            tokio::time::sleep(pause(retries)).await;
        }
        Ok(())
    }
}

/// A random share of what the attempt may wait.
fn pause(retries: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << retries.min(16)).min(LONGEST_PAUSE);
    // Keyed anew each time, from the operating system's randomness.
    let random = RandomState::new().hash_one(retries);
    longest.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded_and_not_all_equal() {
        let pauses: Vec<_> = (0..100).map(pause).collect();
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!(pauses.iter().take(1).all(|pause| *pause <= FIRST_PAUSE));
        assert!(pauses.windows(2).any(|two| two[0] != two[1]));
    }
}
