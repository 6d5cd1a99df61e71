//! Which keys a growing table holds, known without asking it again: what was read once is kept in 4 bytes a key, and only
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

/// Lists that keys are spread over by their first bits: few enough to cost nothing (96 KiB) while they are empty, so many
/// that a list of a million keys in all has 244, which are shifted in less time than a hash set needs to find a place.
const LISTS: usize = 1 << 12;

/// Fragments that were looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct SeenFragments(HashSet<u64>);

impl SeenFragments {
    /// Those of a version that were not looked at before, in storage order; from now on they count as seen.
    pub(super) fn take_unseen(&mut self, dataset: &Dataset) -> Vec<Fragment> {
        dataset.fragments().iter().filter(|fragment| self.0.insert(fragment.id)).cloned().collect()
    }
}

/// A set of texts by 44 bits of them: 12 say in which list, 32 stand there, in order. Two texts that share those are told
/// apart by nobody: what follows from a key that is there must be looked up, only what follows from one that is not there
/// is certain. A text shares its bits with one of a million others by a chance of one to seventeen million.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeySet {
    /// None until the first key comes.
    lists: Vec<Vec<u32>>,
}

impl KeySet {
    pub(crate) fn contains(&self, text: &str) -> bool {
        let (list, key) = place_of(text);
        self.lists.get(list).is_some_and(|list| list.binary_search(&key).is_ok())
    }

    pub(crate) fn insert(&mut self, text: &str) {
        if self.lists.is_empty() {
            self.lists.resize_with(LISTS, Vec::new);
        }
        let (list, key) = place_of(text);
        let Some(list) = self.lists.get_mut(list) else { return };
        if let Err(at) = list.binary_search(&key) {
            if list.len() == list.capacity() {
                // By an eighth: doubling would leave half of the memory unused, and copying costs little beside the search.
                list.reserve_exact(list.len() / 8 + 8);
            }
            list.insert(at, key);
        }
    }

    pub(crate) fn remove(&mut self, text: &str) {
        let (list, key) = place_of(text);
        let Some(list) = self.lists.get_mut(list) else { return };
        if let Ok(at) = list.binary_search(&key) {
            list.remove(at);
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

    /// Knows nothing of the keys of this version, and will know those that come after it.
    pub(super) fn since(column: &'static str, dataset: &Dataset) -> Self {
        let mut known = Self::of(column);
        known.seen.take_unseen(dataset);
        known
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

/// The list of a text, and what stands there for it.
fn place_of(text: &str) -> (usize, u32) {
    let key = key_of(text);
    // The first 12 bits, and the 32 after them.
    ((key >> 52) as usize, (key >> 20 & u64::from(u32::MAX)) as u32)
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
                // Some in one list, others in lists of their own.
                let spread = if number < 100 { number << 20 } else { number.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
                let text = format!("{spread:016x}{number:016x}");
                if insert {
                    keys.insert(&text);
                    plain.insert(number);
                } else {
                    keys.remove(&text);
                    plain.remove(&number);
                }
                prop_assert_eq!(keys.contains(&text), plain.contains(&number));
            }
        }
    }

    #[test]
    fn a_million_keys_take_4_bytes_each_and_an_eighth() {
        let mut keys = KeySet::default();
        for number in 0..1_000_000_u64 {
            keys.insert(blake3::hash(&number.to_le_bytes()).to_hex().as_str());
        }
        let bytes = keys.lists.iter().map(|list| list.capacity() * size_of::<u32>()).sum::<usize>();
        assert!(bytes <= 4_700_000, "{bytes}");
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
