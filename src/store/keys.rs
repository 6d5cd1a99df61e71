//! Which keys a growing table holds, known without asking it again: what was read once is kept in 8 bytes a key, and only
//! fragments that were not seen before are read.
//!
//! Fragments are never changed but for rows that go, and their numbers are never used twice; so a key that is not here is
//! not in the version that was caught up with, while one that is here may be gone by now.

use std::collections::HashSet;
use std::sync::Arc;

use futures::TryStreamExt;
use lance::Dataset;
use lance_table::format::Fragment;

use super::rows::Rows;
use super::table::{Scan, StoredTable};
use crate::error::Result;

/// Keys that are kept in a hash set before they are sorted into the rest: enough that sorting is rare, few enough that
/// the hash set's slack does not count.
const RECENT: usize = 1 << 16;

/// Fragments that were looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct SeenFragments(HashSet<u64>);

impl SeenFragments {
    /// Those of a version that were not looked at before, in storage order; from now on they count as seen.
    pub(super) fn take_unseen(&mut self, dataset: &Dataset) -> Vec<Fragment> {
        dataset.fragments().iter().filter(|fragment| self.0.insert(fragment.id)).cloned().collect()
    }
}

/// A set of texts by 64 bits of them. Two texts that share those are told apart by nobody: what follows from a key that
/// is there must be looked up, only what follows from one that is not there is certain.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeySet {
    sorted: Vec<u64>,
    recent: HashSet<u64>,
}

impl KeySet {
    pub(crate) fn contains(&self, text: &str) -> bool {
        let key = key_of(text);
        self.recent.contains(&key) || self.sorted.binary_search(&key).is_ok()
    }

    pub(crate) fn insert(&mut self, text: &str) {
        self.recent.insert(key_of(text));
        if self.recent.len() >= RECENT {
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.sorted.extend(self.recent.drain());
        self.sorted.sort_unstable();
        self.sorted.dedup();
    }

    pub(crate) fn remove(&mut self, text: &str) {
        let key = key_of(text);
        self.recent.remove(&key);
        if let Ok(at) = self.sorted.binary_search(&key) {
            self.sorted.remove(at);
        }
    }
}

/// The keys of one table's column.
#[derive(Clone, Debug)]
pub(crate) struct KnownKeys {
    column: &'static str,
    seen: SeenFragments,
    keys: KeySet,
}

impl KnownKeys {
    pub(super) fn of(column: &'static str) -> Self {
        Self { column, seen: SeenFragments::default(), keys: KeySet::default() }
    }

    /// Whether the text may be in the version that was last caught up with.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.keys.contains(text)
    }

    /// Adds a key that will be there before anybody asks.
    pub(crate) fn insert(&mut self, text: &str) {
        self.keys.insert(text);
    }

    /// Forgets a key that turned out not to be there.
    pub(crate) fn remove(&mut self, text: &str) {
        self.keys.remove(text);
    }

    /// Reads what this version has more than those seen before. Returns whether there was anything.
    pub(super) async fn catch_up(&mut self, table: &StoredTable, dataset: &Arc<Dataset>) -> Result<bool> {
        let unseen = self.seen.take_unseen(dataset);
        if unseen.is_empty() {
            return Ok(false);
        }
        let scan = Scan { fragments: Some(unseen), ..Scan::columns(&[self.column]) };
        let mut batches = table.scan_version(dataset, scan).await?;
        while let Some(batch) = batches.try_next().await? {
            let texts = Rows::new(table.name(), &batch).texts(self.column)?;
            (0..batch.num_rows()).for_each(|row| self.keys.insert(texts.value(row)));
        }
        Ok(true)
    }
}

/// The first 16 hex digits, of which ids and content hashes consist; a hash of anything else.
fn key_of(text: &str) -> u64 {
    let digits = text.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    digits.unwrap_or_else(|| {
        blake3::hash(text.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_set_answers_as_a_plain_set_does(steps in prop::collection::vec((0_u64..200, any::<bool>()), 0..400)) {
            let (mut keys, mut plain) = (KeySet::default(), HashSet::new());
            for (number, insert) in steps {
                // Spread over the sorted part too.
                let text = format!("{:016x}{number:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                if insert {
                    keys.insert(&text);
                    plain.insert(number);
                } else {
                    keys.remove(&text);
                    plain.remove(&number);
                }
                if keys.recent.len() > 16 {
                    keys.settle();
                }
                prop_assert_eq!(keys.contains(&text), plain.contains(&number));
            }
        }
    }

    #[test]
    fn texts_that_are_no_hex_digits_have_keys_of_their_own() {
        let mut keys = KeySet::default();
        keys.insert("chunk ü 1");
        assert!(keys.contains("chunk ü 1"));
        assert!(!keys.contains("chunk ü 2"));
        assert!(!keys.contains("0000000000000000ffff"));
    }
}
