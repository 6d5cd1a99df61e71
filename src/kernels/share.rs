//! Sharing out work among the threads of the rayon pool.
//!
//! Each thread takes the next item when it is done with one, so that threads that are slower (two on one core, a busy machine)
//! do not keep the others waiting for long; and each has one scratch for a whole call, which is given back at its end.

use std::sync::{Mutex, PoisonError};

/// Does `work` for each of `items`, on all threads.
pub(super) fn share<T, S>(items: impl ExactSizeIterator<Item = T> + Send, work: impl Fn(T, &mut S) + Sync)
where
    T: Send,
    S: Default,
{
    let hands = items.len().min(rayon::current_num_threads());
    let queue = Mutex::new(items);
    let toil = || {
        let mut scratch = S::default();
        // A poisoned queue is one whose other thread panicked at its item: that panic is on its way to the caller.
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(item) = next() {
            work(item, &mut scratch);
        }
    };
    if hands < 2 {
        // Not worth waking the pool.
        return toil();
    }
    rayon::scope(|scope| {
        for _ in 1..hands {
            scope.spawn(|_| toil());
        }
        toil();
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::share;

    #[test]
    fn every_item_is_done_once() {
        for count in [0, 1, 2, 1000] {
            let mut done = vec![0; count];
            let calls = AtomicUsize::new(0);
            share(done.iter_mut(), |item, seen: &mut usize| {
                *item += 1;
                *seen += 1;
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), count);
            assert!(done.iter().all(|&times| times == 1));
        }
    }
}
