//! How much memory the process may take, what each step is expected to take, and how large its pieces may be so that it fits.
//!
//! Pure arithmetic on constants that were measured: resident memory as the kernel counts it, pages of the program file
//! included, on Linux with glibc. `docs/reliability.md` states how close the expectations come. Must not know: tables,
//! embedders, allocators.

use crate::error::{Error, Result};

const MIB: u64 = 1 << 20;

/// An open bank with nothing to do: 105 to 115 MiB are pages of the program file, which the system takes back when it needs
/// them, the rest is what the storage engine and the runtime hold.
const PROGRAM: u64 = 144 * MIB;

/// The least that a limit must leave beside the program and the embedder: the smallest batches, and caches that still help.
const LEAST_ROOM: u64 = 24 * MIB;

/// Keys of the chunks and texts that are stored: 4 bytes and an eighth for each of two tables, which grow by an eighth.
const KEY_BYTES: u64 = 9;

/// Times that the vectors of one batch are in memory at once: three batches in the stages, and the encoder's copies.
const VECTOR_COPIES: u64 = 5;

/// What a row of a batch takes beside vector and text, over all stages: ids, paths, states.
const ROW_BYTES: u64 = 4096;

/// Bytes of a text for each token of the window, as chunks are cut: about four characters, of which English needs one byte.
const TOKEN_BYTES: u64 = 4;

/// Bytes for each stored chunk that an ingest holds to tell what is unchanged, and joins with what it adds: 45 MiB between
/// 66,770 and 200,332 chunks.
const KNOWN_BYTES: u64 = 350;

/// Copies of a text while documents are written.
const TEXT_COPIES: u64 = 3;

/// Bytes that become resident for each byte of a batch that is in use: what is freed in one thread's heap serves no other.
const ALLOCATED: u64 = 2;

/// Rows of the smallest batch that is worth its commits.
const FEWEST_ROWS: u64 = 64;

/// A bound on the process's resident memory, or none; and what the embedder takes of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemoryLimit {
    limit: Option<u64>,
    embedder: u64,
}

/// What a row weighs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowShape {
    pub(crate) dimension: usize,
    /// Tokens of the longest text.
    pub(crate) max_tokens: usize,
}

impl MemoryLimit {
    /// `embedder`: bytes that the embedder takes beside the program, once its model is loaded.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] where not even the smallest batches fit.
    pub(crate) fn new(limit: Option<u64>, embedder: u64) -> Result<Self> {
        let least = PROGRAM + embedder + LEAST_ROOM;
        match limit {
            Some(limit) if limit < least => Err(Error::InvalidSetting {
                setting: "memory-limit",
                reason: format!(
                    "{} is too little: the program takes {} and the embedder {}; give at least {}",
                    in_mib(limit),
                    in_mib(PROGRAM),
                    in_mib(embedder),
                    in_mib(least)
                ),
            }),
            limit => Ok(Self { limit, embedder }),
        }
    }

    /// What is left for work.
    fn room(self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(PROGRAM + self.embedder))
    }

    /// The size of a cache that may take one part in `share` of the room at most.
    pub(crate) fn cache_bytes(self, wanted: usize, share: u64) -> usize {
        self.room().map_or(wanted, |room| wanted.min(usize::try_from(room / share).unwrap_or(usize::MAX)))
    }

    /// Rows of the largest batch of a backfill over a bank of `stored` chunks; `caches` are bytes.
    pub(crate) fn batch_rows(self, wanted: usize, row: RowShape, stored: u64, caches: usize) -> usize {
        self.rows_in(wanted, row.in_batch(), KEY_BYTES * stored + caches as u64)
    }

    /// Rows of the largest commit of an ingest into a bank of `stored` chunks.
    pub(crate) fn commit_rows(self, wanted: usize, row: RowShape, stored: u64, caches: usize) -> usize {
        self.rows_in(wanted, row.in_commit(), KNOWN_BYTES * stored + caches as u64)
    }

    /// An eighth of the room stays free: what is expected is not what comes.
    fn rows_in(self, wanted: usize, row: u64, fixed: u64) -> usize {
        let Some(room) = self.room() else { return wanted };
        let most = ((room - room / 8).saturating_sub(fixed) / (ALLOCATED * row)).max(FEWEST_ROWS);
        wanted.min(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// The peak of a backfill in batches of at most `rows`.
    pub(crate) fn backfill_peak(self, rows: usize, row: RowShape, stored: u64, caches: usize) -> u64 {
        PROGRAM + self.embedder + ALLOCATED * rows as u64 * row.in_batch() + KEY_BYTES * stored + caches as u64
    }

    /// The peak of an ingest in commits of at most `rows`, beside what its own new chunks add.
    pub(crate) fn ingest_peak(self, rows: usize, row: RowShape, stored: u64, caches: usize) -> u64 {
        PROGRAM + ALLOCATED * rows as u64 * row.in_commit() + KNOWN_BYTES * stored + caches as u64
    }

    /// The peak of a step that holds `bytes` beside the program, and beside the embedder, which may still be loaded.
    pub(crate) fn peak_with(self, bytes: u64) -> u64 {
        (PROGRAM + self.embedder).saturating_add(bytes)
    }

    /// The limit, where this peak is above it.
    pub(crate) fn passed_by(self, peak: u64) -> Option<u64> {
        self.limit.filter(|limit| peak > *limit)
    }
}

impl RowShape {
    fn text(self) -> u64 {
        TOKEN_BYTES * self.max_tokens as u64
    }

    fn in_batch(self) -> u64 {
        VECTOR_COPIES * size_of::<f32>() as u64 * self.dimension as u64 + self.text() + ROW_BYTES
    }

    fn in_commit(self) -> u64 {
        TEXT_COPIES * self.text() + ROW_BYTES
    }
}

/// For people.
pub(crate) fn in_mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MIB))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROW: RowShape = RowShape { dimension: 384, max_tokens: 256 };

    proptest! {
        #[test]
        fn what_is_expected_fits_what_is_allowed(
            mib in 0_u64..4_000, embedder_mib in 0_u64..1_000, dimension in 1_usize..4_096, stored in 0_u64..3_000_000,
        ) {
            let Ok(limit) = MemoryLimit::new(Some(mib * MIB), embedder_mib * MIB) else {
                prop_assert!(mib < embedder_mib + (PROGRAM + LEAST_ROOM) / MIB);
                return Ok(());
            };
            let (row, caches) = (RowShape { dimension, ..ROW }, limit.cache_bytes(8 << 20, 8));
            let rows = limit.batch_rows(4096, row, stored, caches);
            let peak = limit.backfill_peak(rows, row, stored, caches);
            // With the smallest batches it may be passed: a bank can be too large for a limit, and is then embedded all the same.
            prop_assert!(peak <= mib * MIB || rows as u64 == FEWEST_ROWS, "{rows} rows, {}", in_mib(peak));
        }
    }

    #[test]
    fn without_a_limit_everything_is_as_wanted() {
        let none = MemoryLimit::new(None, 1 << 40).unwrap();
        assert_eq!(none.batch_rows(4096, ROW, 1 << 40, 0), 4096);
        assert_eq!(none.cache_bytes(5, 2), 5);
        assert_eq!(none.passed_by(u64::MAX), None);
    }

    #[test]
    fn a_limit_below_the_program_itself_names_what_would_do() {
        let refused = MemoryLimit::new(Some(100 * MIB), 60 * MIB).unwrap_err().to_string();
        assert_eq!(
            refused,
            "memory-limit: 100 MiB is too little: the program takes 144 MiB and the embedder 60 MiB; give at least 228 MiB"
        );
    }
}
