//! Looking at a bank from outside: every invariant of the design, checked on what lies in the directory.
//!
//! Guarantees: a look changes nothing and loads no model; what another process is in the middle of is not reported, because
//! a finding counts only if it is still there once the tables have stopped changing, or in every one of several looks; a
//! repair removes nothing that cannot be made again, holds the maintenance lease, and is followed by another look. Memory is
//! 48 bytes a chunk, and 32 for each of its states, vectors and cached vectors of one embedder.

mod cache;
mod checks;
mod documents;
mod facts;
mod files;
mod findings;
mod generations;
mod leftovers;
mod look;
mod repair;
mod report;
mod states;
mod vectors;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use checks::Severity;
pub use report::{CheckReport, DoctorReport};

use crate::clock::Clock;
use crate::engine::{Bank, BankOptions, Pending};
use crate::error::Result;
use crate::progress::Cancel;
use crate::store::{Inspection, Store, StoreOptions, examinable};
use findings::Cure;
use look::Look;

/// Looks at a bank that others are writing to before what all of them saw counts.
const LOOKS: usize = 4;

/// Between two such looks: longer than the commits of one batch lie apart.
const PAUSE: Duration = Duration::from_millis(300);

/// Repairs in one run: what one of them uncovers (vectors that are missing once the files that held them are given up) is
/// the next one's.
const ROUNDS: usize = 3;

/// What to do with what is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: only say it.
    #[default]
    Nothing,
    /// Mend what can be mended without asking anybody and without losing anything that cannot be made again.
    WhatIsSafe,
}

/// How to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct DoctorOptions {
    /// What to do with what is found. Default: nothing.
    pub repair: Repair,
}

impl Bank {
    /// Checks every invariant of the bank, for every embedder that it has tables of, and repairs what it may.
    ///
    /// # Errors
    /// [`Error::Busy`](crate::Error::Busy) if something is to be repaired while another process is in maintenance. What is
    /// wrong with the bank is never an error, but a row of the report.
    pub fn doctor(&self, options: DoctorOptions) -> Pending<'_, DoctorReport> {
        let doctor = Doctor {
            root: self.root().to_owned(),
            clock: self.store.clock().clone(),
            store_options: StoreOptions { durability: self.store.durability(), ..StoreOptions::default() },
            cancel: Cancel::default(),
        };
        Box::pin(async move { doctor.run(options).await })
    }

    /// The same for a bank that is not open, and perhaps cannot be opened. No embedder is needed.
    ///
    /// # Errors
    /// [`Error::NoBank`](crate::Error::NoBank), [`Error::NotABank`](crate::Error::NotABank) for a directory without a bank's
    /// tables, [`Error::NewerFormat`](crate::Error::NewerFormat); the directory is then untouched. As [`Bank::doctor`].
    pub fn examine(
        root: impl AsRef<Path>,
        bank: BankOptions,
        options: DoctorOptions,
    ) -> Pending<'static, DoctorReport> {
        let doctor = Doctor {
            root: root.as_ref().to_owned(),
            clock: bank.clock,
            store_options: bank.store,
            cancel: bank.cancel,
        };
        Box::pin(async move { doctor.run(options).await })
    }
}

/// One run.
struct Doctor {
    root: PathBuf,
    clock: Clock,
    store_options: StoreOptions,
    cancel: Cancel,
}

impl Doctor {
    async fn run(self, options: DoctorOptions) -> Result<DoctorReport> {
        examinable(&self.root)?;
        let found = self.look(Held::ByOthers).await?;
        if options.repair == Repair::Nothing || found.is_beyond_repair() || !found.can_be_opened() {
            return Ok(DoctorReport::new(&found, &found, Vec::new()));
        }
        // Opened anew even beside an open bank, whose tables may be the ones that are gone.
        let store = Store::open(&self.root, self.store_options.clone(), self.clock.clone()).await?;
        let lease = store.maintenance_lease("repairing").await?;
        let mut done: Vec<_> = store.mend_tables().await?.iter().map(ToString::to_string).collect();
        if found.cures().any(|cure| matches!(cure, Cure::MakeTables)) {
            done.push("made missing tables".to_owned());
        }
        let mut left = self.look(Held::ByUs).await?;
        for _ in 0..ROUNDS {
            if left.is_beyond_repair() {
                break;
            }
            self.cancel.check()?;
            done.extend(repair::repair(&store, &left).await?);
            left = self.look(Held::ByUs).await?;
        }
        lease.release().await?;
        Ok(DoctorReport::new(&found, &left, done))
    }

    /// Looks until nobody has written meanwhile, or until what is seen was seen in several looks.
    async fn look(&self, lease: Held) -> Result<Look> {
        let mut look = self.look_once(lease).await?;
        for _ in 1..LOOKS {
            if look.findings.is_empty() || !look.inspection.is_outdated().await? {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            let before = look;
            look = self.look_once(lease).await?;
            look.keep_what_was_seen_in(&before);
        }
        Ok(look)
    }

    async fn look_once(&self, lease: Held) -> Result<Look> {
        let inspection = Inspection::open(&self.root, self.store_options.clone()).await?;
        let look = Look::new(inspection, self.clock.now(), lease);
        look.through_everything(&self.cancel).await
    }
}

/// Who holds the maintenance lease during a look: then a build that is not finished is either somebody's, or nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Perhaps another process: read off the bank.
    ByOthers,
    /// This one.
    ByUs,
}
