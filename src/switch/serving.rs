//! A handle that follows the pointer: several embedders of one bank at hand, and each search by the one that serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::pointer::{self, ServingState};
use crate::backfill::BackfillReport;
use crate::engine::{Bank, Pending, owned_paths};
use crate::error::{Error, Result};
use crate::schedule::{SyncOptions, SyncReport};
use crate::search::{SearchOptions, SearchResult};
use crate::store::{Store, StoreOptions};

/// Handles on one bank, each with another embedder. A search reads the pointer once and is embedded, searched and named by the
/// one that it leads to, so no answer mixes two.
#[derive(Clone)]
pub struct Serving {
    banks: Arc<[Bank]>,
}

/// What a sync did, and what it did for the embedder that is to serve next.
#[derive(Clone, Debug, Serialize)]
pub struct ServingSyncReport {
    /// Through the embedder that serves.
    pub sync: SyncReport,
    /// The vectors of the one that a switch is under way to.
    pub next: Option<BackfillReport>,
}

impl Bank {
    /// Which embedder answers this bank's searches; `None` if it was never switched, and any will do.
    ///
    /// # Errors
    /// Those of the store.
    pub fn serving(&self) -> Pending<'_, Option<ServingState>> {
        Box::pin(async move { Ok(pointer::read(&self.store).await?.map(|standing| standing.state)) })
    }

    /// The same of a bank that is not open: it says what to open it with.
    ///
    /// # Errors
    /// As [`Bank::open`].
    pub fn serving_of(root: impl AsRef<Path>) -> Pending<'static, Option<ServingState>> {
        let root = root.as_ref().to_owned();
        Box::pin(async move {
            let store = Store::open(&root, StoreOptions::default(), crate::clock::Clock::system()).await?;
            Ok(pointer::read(&store).await?.map(|standing| standing.state))
        })
    }
}

impl Serving {
    /// Handles on one bank. The first one answers as long as the bank was never switched.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] without a handle, or for handles on different banks.
    pub fn new(banks: Vec<Bank>) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::InvalidSetting { setting: "bank", reason: reason.to_owned() });
        let Some(first) = banks.first() else { return refuse("give at least one handle") };
        if banks.iter().any(|bank| bank.root() != first.root()) {
            return refuse("the handles are of different banks");
        }
        Ok(Self { banks: banks.into() })
    }

    /// The handle whose embedder serves at this moment.
    ///
    /// # Errors
    /// [`Error::NotAtHand`] if none of them has it.
    pub fn bank(&self) -> Pending<'_, &Bank> {
        Box::pin(async move { Ok(self.now().await?.0) })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// As [`Bank::search`], and [`Error::NotAtHand`].
    pub fn search<'a>(&'a self, query: &'a str, options: &'a SearchOptions) -> Pending<'a, SearchResult> {
        Box::pin(async move { self.now().await?.0.search(query, options).await })
    }

    /// [`Bank::sync`] through the embedder that serves; while a switch is under way the next one is filled too, if it is at
    /// hand.
    ///
    /// # Errors
    /// As [`Bank::sync`], and [`Error::NotAtHand`].
    pub fn sync<P: AsRef<Path>>(&self, sources: &[P], options: SyncOptions) -> Pending<'_, ServingSyncReport> {
        self.sync_paths(owned_paths(sources), options)
    }

    fn sync_paths(&self, sources: Vec<PathBuf>, options: SyncOptions) -> Pending<'_, ServingSyncReport> {
        Box::pin(async move {
            let (bank, state) = self.now().await?;
            let next = state.and_then(|state| state.next);
            let next = self.banks.iter().find(|bank| next.as_ref().is_some_and(|next| next.id == bank.embedder_id));
            let backfill = options.backfill;
            let sync = bank.sync(&sources, options).await?;
            let next = match next.filter(|_| !sync.cancelled) {
                Some(next) => Some(next.backfill(backfill).await?),
                None => None,
            };
            Ok(ServingSyncReport { sync, next })
        })
    }

    async fn now(&self) -> Result<(&Bank, Option<ServingState>)> {
        let refuse = || Error::InvalidSetting { setting: "bank", reason: "there is no handle".to_owned() };
        let first = self.banks.first().ok_or_else(refuse)?;
        let Some(state) = first.serving().await? else { return Ok((first, None)) };
        let serving = self.banks.iter().find(|bank| bank.embedder_id == state.active.id);
        let serving = serving.ok_or_else(|| Error::NotAtHand {
            embedder: state.active.id.to_string(),
            name: state.active.name.clone(),
        })?;
        Ok((serving, Some(state)))
    }
}
