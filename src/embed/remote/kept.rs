//! Answers that were paid for in calls that failed, or were dropped: the next call for the same texts takes them instead of
//! paying again.
//!
//! While a caller halves a failed call to find the text at fault, the answers of the halves are kept as well: if a later half
//! fails for good, the caller forgets what the earlier ones gave it. A run without failures keeps nothing. Bounded: the oldest
//! go first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::embed::{Embedded, TextKind};

/// Bytes of vectors that are kept at most.
const BYTES: usize = 32 << 20;

/// A text by content and purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TextKey([u8; 32]);

impl TextKey {
    pub(super) fn new(kind: TextKind, text: &str) -> Self {
        let context = match kind {
            TextKind::Query => "embank remote query",
            TextKind::Passage => "embank remote passage",
        };
        Self(blake3::derive_key(context, text.as_bytes()))
    }
}

/// The answers.
#[derive(Debug)]
pub(super) struct Kept {
    most: usize,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    /// `None`: a call for it failed, and it has no answer yet.
    by_text: HashMap<TextKey, Option<Embedded>>,
    oldest_first: VecDeque<TextKey>,
}

impl Kept {
    pub(super) fn new(dimension: usize) -> Self {
        Self { most: BYTES / (4 * dimension.max(1)), answers: Mutex::default() }
    }

    /// Takes note of a call that failed, with the answers that it had.
    pub(super) fn failed(&self, answered: impl IntoIterator<Item = (TextKey, Option<Embedded>)>) {
        let mut kept = self.lock();
        for (key, answer) in answered {
            let Answers { by_text, oldest_first } = &mut *kept;
            let place = by_text.entry(key).or_insert_with(|| {
                oldest_first.push_back(key);
                None
            });
            *place = answer.or(place.take());
        }
        while kept.oldest_first.len() > self.most {
            if let Some(oldest) = kept.oldest_first.pop_front() {
                kept.by_text.remove(&oldest);
            }
        }
    }

    /// Takes note of answers that reached the caller: kept for texts of calls that failed, else not.
    pub(super) fn delivered<'a>(&self, answers: impl IntoIterator<Item = (TextKey, &'a Embedded)>) {
        let mut kept = self.lock();
        if kept.by_text.is_empty() {
            return;
        }
        for (key, answer) in answers {
            if let Some(place) = kept.by_text.get_mut(&key) {
                *place = Some(answer.clone());
            }
        }
    }

    /// The answers to these texts, as far as they are here.
    pub(super) fn get(&self, keys: &[TextKey]) -> Vec<Option<Embedded>> {
        let kept = self.lock();
        keys.iter().map(|key| kept.by_text.get(key).cloned().flatten()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(value: f32) -> Embedded {
        Embedded { vector: vec![value], tokens: 1, truncated: false }
    }

    #[test]
    fn answers_of_failed_calls_are_kept_and_the_oldest_make_room() {
        let kept = Kept { most: 3, answers: Mutex::default() };
        let keys: Vec<_> = (0..5).map(|n| TextKey::new(TextKind::Passage, &n.to_string())).collect();
        kept.delivered([(keys[0], &answer(9.0))]);
        assert_eq!(kept.get(&keys[..1]), [None], "its call did not fail");
        kept.failed(keys.iter().enumerate().map(|(n, key)| (*key, (n != 3).then(|| answer(n as f32)))));
        let found = |kept: &Kept| kept.get(&keys).iter().map(Option::is_some).collect::<Vec<_>>();
        assert_eq!(found(&kept), [false, false, true, false, true]);
        kept.delivered([(keys[3], &answer(3.0))]);
        kept.failed([(keys[2], None)]);
        assert_eq!(found(&kept), [false, false, true, true, true], "what is there stays");
        assert_eq!(kept.get(&keys[3..4]), [Some(answer(3.0))]);
    }

    #[test]
    fn a_question_is_another_text_than_a_passage() {
        assert_ne!(TextKey::new(TextKind::Passage, "a"), TextKey::new(TextKind::Query, "a"));
    }
}
