//! How texts become batches for a model: sorted by length, cut under a token budget, answers put back in input order.
//!
//! Pure. Sorting puts texts of equal length side by side, which the local encoder answers in one matrix product, and
//! keeps a batch's work even. Must not know: models, tokenizers.

/// Cuts texts of the given lengths, in tokens, into batches of indices into `lengths`.
///
/// Longest first, so that the largest batch comes first and memory peaks at once. The lengths of a batch sum to at most
/// `budget`; a text longer than the budget has a batch of its own. Every index comes exactly once.
pub(crate) fn cut_batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<(usize, usize)> = lengths.iter().copied().enumerate().collect();
    // Stable: equal lengths stay in input order, so the same texts are always cut the same way.
    longest_first.sort_by_key(|&(_, length)| std::cmp::Reverse(length));

    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut used = 0_usize;
    for (index, length) in longest_first {
        if !batch.is_empty() && used.saturating_add(length) > budget {
            batches.push(std::mem::take(&mut batch));
            used = 0;
        }
        batch.push(index);
        used = used.saturating_add(length);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Puts `answers`, which came in the order of `batches`, back into the order of the texts.
pub(crate) fn restore_order<T>(batches: &[Vec<usize>], answers: Vec<T>) -> Vec<T> {
    let mut placed: Vec<(usize, T)> = batches.iter().flatten().copied().zip(answers).collect();
    placed.sort_by_key(|&(index, _)| index);
    placed.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_longer_than_the_budget_is_alone() {
        assert_eq!(cut_batches(&[1, 9, 2], 3), [vec![1], vec![2, 0]]);
    }

    #[test]
    fn nothing_gives_no_batch() {
        assert_eq!(cut_batches(&[], 8), Vec::<Vec<usize>>::new());
    }

    proptest! {
        #[test]
        fn every_text_is_in_exactly_one_batch(lengths in prop::collection::vec(0_usize..300, 0..200), budget in 0_usize..2_000) {
            let mut seen: Vec<usize> = cut_batches(&lengths, budget).concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn no_batch_is_empty_or_over_the_budget(lengths in prop::collection::vec(0_usize..300, 0..200), budget in 0_usize..2_000) {
            for batch in cut_batches(&lengths, budget) {
                let tokens: usize = batch.iter().map(|&i| lengths[i]).sum();
                prop_assert!(!batch.is_empty());
                prop_assert!(tokens <= budget || batch.len() == 1, "{} tokens in {} texts", tokens, batch.len());
            }
        }

        #[test]
        fn no_batch_could_have_taken_the_next_text(lengths in prop::collection::vec(0_usize..300, 0..200), budget in 0_usize..2_000) {
            let batches = cut_batches(&lengths, budget);
            for pair in batches.windows(2) {
                let tokens: usize = pair[0].iter().map(|&i| lengths[i]).sum();
                prop_assert!(tokens + lengths[pair[1][0]] > budget);
            }
        }

        #[test]
        fn lengths_never_grow_along_the_batches(lengths in prop::collection::vec(0_usize..300, 0..200), budget in 0_usize..2_000) {
            let order: Vec<usize> = cut_batches(&lengths, budget).concat();
            prop_assert!(order.windows(2).all(|pair| lengths[pair[0]] >= lengths[pair[1]]));
        }

        #[test]
        fn restoring_undoes_the_cutting(lengths in prop::collection::vec(0_usize..300, 0..200), budget in 0_usize..2_000) {
            let batches = cut_batches(&lengths, budget);
            let answers: Vec<String> = batches.iter().flatten().map(|i| format!("answer {i}")).collect();
            let expected: Vec<String> = (0..lengths.len()).map(|i| format!("answer {i}")).collect();
            prop_assert_eq!(restore_order(&batches, answers), expected);
        }
    }
}
