//! How many requests run against one host at once, in the whole process: two embedders on one provider share the cap.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

/// The requests under way against one host.
#[derive(Debug, Default)]
pub(super) struct Host {
    running: Mutex<usize>,
    freed: Notify,
}

/// One request's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Host>);

impl Host {
    /// The process's host of that name, port included.
    pub(super) fn named(name: &str) -> Arc<Self> {
        static HOSTS: LazyLock<Mutex<HashMap<String, Weak<Host>>>> = LazyLock::new(Mutex::default);
        let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.retain(|_, host| host.strong_count() > 0);
        if let Some(host) = hosts.get(name).and_then(Weak::upgrade) {
            return host;
        }
        let host = Arc::new(Self::default());
        hosts.insert(name.to_owned(), Arc::downgrade(&host));
        host
    }

    /// Waits until fewer than `cap` requests run, whoever sent them, and takes a place.
    pub(super) async fn slot(self: &Arc<Self>, cap: NonZeroUsize) -> Slot {
        loop {
            // Before the look: a place that is freed between look and wait is then not missed.
            let freed = self.freed.notified();
            {
                let mut running = self.running();
                if *running < cap.get() {
                    *running += 1;
                    return Slot(self.clone());
                }
            }
            freed.await;
        }
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        // All of them: who waits for a smaller cap than another must not swallow the other's turn.
        self.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn two_callers_share_the_cap_of_a_host_and_leave_other_hosts_alone() {
        let cap = NonZeroUsize::new(3).unwrap();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..40).map(|_| {
            let (running, most) = (running.clone(), most.clone());
            tokio::spawn(async move {
                let _slot = Host::named("shared:1").slot(cap).await;
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                running.fetch_sub(1, Ordering::SeqCst);
            })
        });
        let keep = Host::named("shared:1");
        futures::future::join_all(tasks.collect::<Vec<_>>()).await;
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert!(!Arc::ptr_eq(&keep, &Host::named("other:1")));
        assert_eq!(*keep.running(), 0);
    }
}
