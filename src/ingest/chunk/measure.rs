//! Counts the tokens of parts of a text by looking up those of its words, so that each word is counted once however often
//! the splitter asks.
//!
//! The sum over words is the count of the text for tokenizers that split at white space first (BERT, XLM-R), and near it
//! for others; chunks are therefore counted once more as a whole.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::embed::TokenCounter;

/// Words that are remembered, from all documents: about 4 MB. Then all are forgotten.
const MAX_KNOWN: usize = 1 << 16;
/// Longer ones, such as addresses, hardly come again.
const MAX_KNOWN_BYTES: usize = 48;

/// Tokens of words that were met before.
#[derive(Default)]
pub(super) struct KnownWords(Mutex<HashMap<Box<str>, usize>>);

impl KnownWords {
    /// Counts the words of a text.
    pub(super) fn measure<'a>(&self, text: &'a str, counter: &dyn TokenCounter) -> WordTokens<'a> {
        // Taken out while counting, so that other threads need not wait; they count for themselves meanwhile.
        let mut known = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut total = 0;
        let mut words = Vec::with_capacity(text.len() / 6);
        for word in text.split_whitespace() {
            let start = word.as_ptr().addr() - text.as_ptr().addr();
            words.push(Word { range: start..start + word.len(), before: total });
            total += match known.get(word) {
                Some(tokens) => *tokens,
                None => {
                    let tokens = counter.count_tokens(word);
                    if word.len() <= MAX_KNOWN_BYTES {
                        known.insert(word.into(), tokens);
                    }
                    tokens
                }
            };
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
        }
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.len() < known.len() {
            *shared = known;
        }
        WordTokens { text, words, total }
    }
}

/// The tokens of the words of a text.
pub(super) struct WordTokens<'a> {
    text: &'a str,
    words: Vec<Word>,
    total: usize,
}

struct Word {
    range: Range<usize>,
    /// Tokens of all words before this one.
    before: usize,
}

impl WordTokens<'_> {
    /// Tokens of a part of the text. Words that are cut by its ends are counted as far as they are in it.
    pub(super) fn tokens(&self, part: Range<usize>, counter: &dyn TokenCounter) -> usize {
        let first = self.words.partition_point(|word| word.range.end <= part.start);
        let end = self.words.partition_point(|word| word.range.start < part.end);
        let Some(last) = end.checked_sub(1).filter(|last| first <= *last) else { return 0 };
        let is_cut = |at: usize| {
            self.words.get(at).is_some_and(|word| word.range.start < part.start || word.range.end > part.end)
        };
        let count = |at: usize| {
            let word = self.words.get(at).map_or(0..0, |word| word.range.clone());
            let inside = word.start.max(part.start)..word.end.min(part.end);
            counter.count_tokens(self.text.get(inside).unwrap_or_default())
        };
        let whole = first + usize::from(is_cut(first))..end - usize::from(last > first && is_cut(last));
        let cut_first = if is_cut(first) { count(first) } else { 0 };
        let cut_last = if last > first && is_cut(last) { count(last) } else { 0 };
        cut_first + self.before(whole.end) - self.before(whole.start) + cut_last
    }

    fn before(&self, at: usize) -> usize {
        self.words.get(at).map_or(self.total, |word| word.before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A token is three letters of a word, or what is left of it.
    struct Threes;

    impl TokenCounter for Threes {
        fn count_tokens(&self, text: &str) -> usize {
            text.split_whitespace().map(|word| word.chars().count().div_ceil(3)).sum()
        }
        fn max_text_tokens(&self) -> usize {
            64
        }
    }

    proptest! {
        #[test]
        fn a_part_has_as_many_tokens_as_when_counted_directly(text in "[abé \n]{0,80}", a in 0usize..80, b in 0usize..80) {
            let known = KnownWords::default();
            let words = known.measure(&text, &Threes);
            let (a, b) = (text.floor_char_boundary(a.min(b)), text.floor_char_boundary(a.max(b)));
            prop_assert_eq!(words.tokens(a..b, &Threes), Threes.count_tokens(&text[a..b]));
        }
    }
}
