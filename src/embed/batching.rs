//! How the texts that wait for a model become batches: cut under a token budget, in an order that is fast for the model and
//! fair to those who wait.
//!
//! Guarantees: every text that was added comes exactly once; a request is never passed over more than once by those that
//! came later. Pure. Must not know: models, tokenizers, threads.

use std::cmp::Reverse;
use std::collections::VecDeque;

/// A request of at most this share of the budget is urgent: somebody waits for a question's vector, beside a backfill.
const URGENT_SHARE: usize = 8;

/// The texts that wait, of all requests.
///
/// Urgent requests share batches of their own, which take turns with full ones: a question waits for one full batch at
/// most, a backfill for one short batch between two of its own. A full batch is filled from the oldest request first, so
/// that answers leave one after another and the next request is there by then; what room it leaves the next one fills.
#[derive(Debug)]
pub(crate) struct Waiting {
    budget: usize,
    urgent: VecDeque<Request>,
    others: VecDeque<Request>,
    /// Whether the last batch was an urgent one, so that it is the others' turn.
    urgent_had_its_turn: bool,
}

/// Where a text of a batch belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The request, by the number it was added under.
    pub(crate) request: u64,
    /// The text's index in it.
    pub(crate) text: usize,
}

#[derive(Debug)]
struct Request {
    number: u64,
    /// Index and length of each text, longest last.
    texts: Vec<(usize, usize)>,
}

impl Waiting {
    /// Nothing waits. A batch has at most `budget` tokens; a text that is longer has a batch of its own.
    pub(crate) fn new(budget: usize) -> Self {
        Self { budget, urgent: VecDeque::new(), others: VecDeque::new(), urgent_had_its_turn: false }
    }

    /// From now on a batch has at most so many tokens.
    pub(crate) fn set_budget(&mut self, budget: usize) {
        self.budget = budget;
    }

    /// Adds a request: the lengths of its texts, in tokens. `number` is one that no waiting request has.
    pub(crate) fn add(&mut self, number: u64, lengths: impl Iterator<Item = usize>) {
        let mut texts: Vec<(usize, usize)> = lengths.enumerate().collect();
        if texts.is_empty() {
            return;
        }
        let tokens = texts.iter().fold(0_usize, |sum, &(_, length)| sum.saturating_add(length));
        // Equal lengths leave in input order, so the same texts are always cut the same way.
        texts.sort_by_key(|&(index, length)| (length, Reverse(index)));
        let queue = if tokens <= self.budget / URGENT_SHARE { &mut self.urgent } else { &mut self.others };
        queue.push_back(Request { number, texts });
    }

    /// Forgets a request, whatever of it still waits.
    pub(crate) fn remove(&mut self, number: u64) {
        self.urgent.retain(|request| request.number != number);
        self.others.retain(|request| request.number != number);
    }

    /// The next batch, longest text first; empty if nothing waits.
    ///
    /// Texts of equal length stand side by side, which stock tensor operations answer in one product.
    pub(crate) fn next_batch(&mut self) -> Vec<Place> {
        let urgent = !self.urgent.is_empty() && (self.others.is_empty() || !self.urgent_had_its_turn);
        self.urgent_had_its_turn = urgent;
        let mut batch = take(if urgent { &mut self.urgent } else { &mut self.others }, self.budget);
        batch.sort_by_key(|&(_, length)| Reverse(length));
        batch.into_iter().map(|(place, _)| place).collect()
    }
}

/// Texts under the budget, of the oldest request first, each request's longest first: the largest batch comes first, so
/// memory peaks at once.
fn take(requests: &mut VecDeque<Request>, budget: usize) -> Vec<(Place, usize)> {
    let mut batch = Vec::new();
    let mut used = 0_usize;
    while let Some(request) = requests.front_mut() {
        match request.texts.last() {
            None => drop(requests.pop_front()),
            Some(&(_, length)) if !batch.is_empty() && used.saturating_add(length) > budget => break,
            Some(&(text, length)) => {
                batch.push((Place { request: request.number, text }, length));
                used = used.saturating_add(length);
                request.texts.pop();
            }
        }
    }
    // One that is used up must not count as one that waits.
    while requests.front().is_some_and(|request| request.texts.is_empty()) {
        requests.pop_front();
    }
    batch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(budget: usize, requests: &[&[usize]]) -> Waiting {
        let mut waiting = Waiting::new(budget);
        for (number, lengths) in (0..).zip(requests) {
            waiting.add(number, lengths.iter().copied());
        }
        waiting
    }

    fn batches(mut waiting: Waiting) -> Vec<Vec<(u64, usize)>> {
        let next = || Some(waiting.next_batch()).filter(|batch| !batch.is_empty());
        let pair = |place: Place| (place.request, place.text);
        std::iter::from_fn(next).map(|batch| batch.into_iter().map(pair).collect()).collect()
    }

    #[test]
    fn a_request_is_cut_longest_first_and_a_text_longer_than_the_budget_is_alone() {
        let found = batches(waiting(10, &[&[2, 9, 4, 12, 4, 1]]));
        assert_eq!(found, [vec![(0, 3)], vec![(0, 1)], vec![(0, 2), (0, 4), (0, 0)], vec![(0, 5)]]);
    }

    #[test]
    fn nothing_gives_no_batch() {
        assert_eq!(batches(waiting(8, &[])), Vec::<Vec<_>>::new());
        assert_eq!(batches(waiting(8, &[&[]])), Vec::<Vec<_>>::new());
    }

    #[test]
    fn the_room_that_one_request_leaves_is_filled_by_the_next() {
        let found = batches(waiting(16, &[&[8, 8, 8], &[3, 5, 9]]));
        assert_eq!(found, [vec![(0, 0), (0, 1)], vec![(0, 2)], vec![(1, 2), (1, 1)], vec![(1, 0)]]);
        let found = batches(waiting(16, &[&[8, 8, 4], &[3, 5, 9]]));
        assert_eq!(found, [vec![(0, 0), (0, 1)], vec![(1, 2), (0, 2)], vec![(1, 1), (1, 0)]]);
    }

    #[test]
    fn questions_beside_a_backfill_share_a_batch_and_take_turns_with_it() {
        let mut waiting = waiting(16, &[&[16, 16, 16], &[2], &[1]]);
        let next = |waiting: &mut Waiting| waiting.next_batch().iter().map(|p| p.request).collect::<Vec<_>>();
        assert_eq!(next(&mut waiting), [1, 2]);
        waiting.add(3, [1].into_iter());
        assert_eq!(next(&mut waiting), [0]);
        assert_eq!(next(&mut waiting), [3]);
        assert_eq!(next(&mut waiting), [0]);
    }

    #[test]
    fn a_request_that_was_removed_is_not_computed() {
        let mut waiting = waiting(10, &[&[5, 5, 5], &[6, 1]]);
        waiting.remove(0);
        assert_eq!(batches(waiting), [vec![(1, 0), (1, 1)]]);
    }

    fn requests() -> impl Strategy<Value = Vec<Vec<usize>>> {
        prop::collection::vec(prop::collection::vec(0_usize..300, 0..60), 0..6)
    }

    fn cut(lengths: &[Vec<usize>], budget: usize) -> Vec<Vec<(u64, usize)>> {
        batches(waiting(budget, &lengths.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    proptest! {
        #[test]
        fn every_text_is_in_exactly_one_batch(lengths in requests(), budget in 0_usize..2_000) {
            let mut seen = cut(&lengths, budget).concat();
            seen.sort_unstable();
            let each = (0..).zip(&lengths).flat_map(|(request, texts)| (0..texts.len()).map(move |text| (request, text)));
            prop_assert_eq!(seen, each.collect::<Vec<_>>());
        }

        #[test]
        fn no_batch_is_empty_or_over_the_budget_or_out_of_order(lengths in requests(), budget in 0_usize..2_000) {
            for batch in cut(&lengths, budget) {
                let of_batch: Vec<usize> = batch.iter().map(|&(request, text)| lengths[request as usize][text]).collect();
                prop_assert!(!batch.is_empty());
                prop_assert!(of_batch.iter().sum::<usize>() <= budget || batch.len() == 1, "{:?}", of_batch);
                prop_assert!(of_batch.is_sorted_by(|a, b| a >= b));
            }
        }

        #[test]
        fn requests_of_one_kind_end_in_the_order_in_which_they_came(lengths in requests(), budget in 0_usize..2_000) {
            let found = cut(&lengths, budget);
            let is_urgent = |request: u64| lengths[request as usize].iter().sum::<usize>() <= budget / URGENT_SHARE;
            for kind in [true, false] {
                let last = |request: u64| found.iter().rposition(|batch| batch.iter().any(|&(of, _)| of == request));
                let of_kind = (0..lengths.len() as u64).filter(|&request| is_urgent(request) == kind);
                let ends: Vec<usize> = of_kind.filter_map(last).collect();
                prop_assert!(ends.is_sorted());
            }
        }
    }
}
