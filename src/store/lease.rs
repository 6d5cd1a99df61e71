//! The maintenance lease: building, compacting, dropping and cleaning up exclude each other across processes.
//!
//! Guarantees: one holder at a time; a holder that stops renewing loses it after [`LEASE`], a holder whose process is known
//! to have ended loses it at once; it is given back when the guard is dropped. A holder that comes too late, because it was
//! stopped beyond its lease, is told so ([`check`](MaintenanceLease::check)), and what it decides in `meta` does not happen
//! ([`compare_and_set`](MaintenanceLease::compare_and_set)).
//!
//! **How a late holder does no harm.** Between a check and a deed there is always a moment in which a process can be stopped.
//! So what is to be removed is read first, the lease checked after that, and what was read is named by ids that are never
//! used twice: whoever took over since works under other ids.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::meta::{Guard, Guarded, Meta};
use super::worker::WorkerId;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, Result};

/// Where the lease stands in `meta`.
pub(crate) const KEY: &str = "lease/maintenance";

/// Where the lease of scheduled steps stands. One of its own: the stages of a step take that of maintenance themselves.
pub(crate) const SCHEDULE_KEY: &str = "lease/schedule";

/// How long the lease holds without renewal: long enough for a stalled disk, short enough to wait for.
const LEASE: Duration = Duration::from_secs(60);
/// Three renewals fit into one lease, so that two may fail.
const RENEWAL: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    owner: String,
    until: i64,
    purpose: String,
}

impl Holder {
    fn is_gone(&self, now: Timestamp) -> bool {
        self.until <= now.0 || WorkerId::parse(&self.owner).is_some_and(|worker| worker.has_ended())
    }
}

/// The lease, held until dropped.
#[derive(Debug)]
pub(crate) struct MaintenanceLease {
    key: &'static str,
    meta: Meta,
    clock: Clock,
    owner: String,
    purpose: String,
    renewal: tokio::task::JoinHandle<()>,
}

impl MaintenanceLease {
    /// Takes the lease for `purpose`, a verb for people: `building an index`.
    ///
    /// # Errors
    /// [`Error::Busy`] while another worker holds it.
    pub(crate) async fn acquire(meta: &Meta, clock: &Clock, purpose: &str) -> Result<Self> {
        Self::acquire_at(KEY, meta, clock, purpose).await
    }

    /// Takes the lease that stands under `key`.
    ///
    /// # Errors
    /// [`Error::Busy`] while another worker holds it.
    pub(crate) async fn acquire_at(key: &'static str, meta: &Meta, clock: &Clock, purpose: &str) -> Result<Self> {
        let owner = WorkerId::new().to_string();
        let now = clock.now();
        let current = meta.get(key).await?;
        if let Some(holder) = current.as_deref().and_then(parse)
            && !holder.is_gone(now)
        {
            return Err(busy(&holder));
        }
        let mine = hold(&owner, now, purpose);
        if !meta.compare_and_set(key, current.as_deref(), &mine, now).await? {
            let winner = meta.get(key).await?.as_deref().and_then(parse);
            let unknown = Holder { owner: String::new(), until: now.0, purpose: "another process".into() };
            return Err(busy(&winner.unwrap_or(unknown)));
        }
        let renewal = tokio::spawn(renew(key, meta.clone(), clock.clone(), owner.clone(), purpose.to_owned()));
        Ok(Self { key, meta: meta.clone(), clock: clock.clone(), owner, purpose: purpose.to_owned(), renewal })
    }

    /// Fails if somebody else has taken the lease over.
    ///
    /// # Errors
    /// [`Error::LeaseLost`].
    pub(crate) async fn check(&self) -> Result<()> {
        match self.meta.get(self.key).await? {
            Some(current) if self.is_ours(&current) => Ok(()),
            _ => Err(self.lost()),
        }
    }

    /// Sets a value of `meta` if it still is `expected` and the lease is still held, in one commit. Returns whether it was
    /// `expected`.
    ///
    /// # Errors
    /// [`Error::LeaseLost`]; nothing was changed then.
    pub(crate) async fn compare_and_set(&self, key: &str, expected: &str, value: &str) -> Result<bool> {
        let holds = |current: &str| self.is_ours(current);
        let guard = Guard { key: self.key, holds: &holds };
        match self.meta.compare_and_set_guarded(key, expected, value, guard, self.clock.now()).await? {
            Guarded::Set => Ok(true),
            Guarded::Changed => Ok(false),
            Guarded::Refused => Err(self.lost()),
        }
    }

    /// What a step says that finds out by other signs that somebody else has taken over.
    pub(crate) fn lost(&self) -> Error {
        Error::LeaseLost { purpose: self.purpose.clone() }
    }

    /// Whether it ran out does not matter as long as nobody took it: taking it changes the value.
    fn is_ours(&self, current: &str) -> bool {
        parse(current).is_some_and(|holder| holder.owner == self.owner && holder.until > 0)
    }

    /// Gives the lease back and waits until that is written.
    pub(crate) async fn release(self) -> Result<()> {
        self.renewal.abort();
        give_back(self.key, &self.meta, &self.clock, &self.owner).await
    }
}

impl Drop for MaintenanceLease {
    fn drop(&mut self) {
        self.renewal.abort();
        // After an error, or a cancelled future: nobody waits for this, and if it fails the lease runs out by itself.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let key = self.key;
            let (meta, clock, owner) = (self.meta.clone(), self.clock.clone(), self.owner.clone());
            runtime.spawn(async move { give_back(key, &meta, &clock, &owner).await });
        }
    }
}

async fn renew(key: &'static str, meta: Meta, clock: Clock, owner: String, purpose: String) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let Ok(Some(current)) = meta.get(key).await else { continue };
        if parse(&current).is_none_or(|holder| holder.owner != owner) {
            tracing::warn!(key, "the lease was taken over");
            return;
        }
        let now = clock.now();
        if let Err(error) = meta.compare_and_set(key, Some(&current), &hold(&owner, now, &purpose), now).await {
            tracing::warn!(key, %error, "the lease could not be renewed");
        }
    }
}

async fn give_back(key: &'static str, meta: &Meta, clock: &Clock, owner: &str) -> Result<()> {
    if let Some(current) = meta.get(key).await?
        && parse(&current).is_some_and(|holder| holder.owner == owner && holder.until > 0)
    {
        let free = Holder { owner: owner.to_owned(), until: 0, purpose: String::new() };
        meta.compare_and_set(key, Some(&current), &render(&free), clock.now()).await?;
    }
    Ok(())
}

fn hold(owner: &str, now: Timestamp, purpose: &str) -> String {
    render(&Holder { owner: owner.to_owned(), until: now.plus(LEASE).0, purpose: purpose.to_owned() })
}

fn render(holder: &Holder) -> String {
    serde_json::json!(holder).to_string()
}

/// Whether a stored value says that somebody holds the lease; `None` for a value that says nothing.
pub(crate) fn is_held(value: &str, now: Timestamp) -> Option<bool> {
    parse(value).map(|holder| !holder.is_gone(now))
}

fn parse(value: &str) -> Option<Holder> {
    serde_json::from_str(value).ok()
}

fn busy(holder: &Holder) -> Error {
    Error::Busy { purpose: holder.purpose.clone(), until: Timestamp(holder.until).to_rfc3339() }
}
