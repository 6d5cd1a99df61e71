//! The schedule: waits until a run is due, does one step, and says what came of it.
//!
//! Guarantees: of all processes that keep a schedule on a bank one does a step at a time, the others' turn is an outcome, not an
//! error; moments that passed while a step took long, the machine slept or the process was down are made up for by one step, not
//! one each; a step that fails ends no schedule. Every step leaves a row in `runs`, whatever came of it. Must not know: signals,
//! what is printed.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::cron::CronSchedule;
use super::renew::{IndexOutcome, Remeasure};
use super::sync::{SyncOptions, SyncReport};
use crate::clock::Timestamp;
use crate::engine::{Bank, Pending};
use crate::error::{Error, Result};
use crate::housekeeping::Step;

/// Where `meta` holds the moment up to which due runs were seen to, microseconds since the epoch.
const HANDLED: &str = "schedule/handled";

/// Missed moments that are counted. A schedule of every minute has as many in a week.
const MOST_COUNTED: u64 = 10_080;

/// What to do when.
#[derive(Clone, Debug)]
pub struct ScheduleOptions {
    /// When.
    pub cron: CronSchedule,
    /// Folders and files to ingest. None: only what is in the bank is seen to.
    pub sources: Vec<PathBuf>,
    /// What a step does. Whatever it says of it, the index is measured again where anything has changed.
    pub sync: SyncOptions,
    /// The longest that a run is put off by chance, so that many banks do not start at the same second. Default: nothing.
    pub jitter: Duration,
    /// Seed of that chance; drawn where absent.
    pub seed: Option<u64>,
}

impl ScheduleOptions {
    /// A schedule that sees to what is in the bank, without jitter.
    pub fn new(cron: CronSchedule) -> Self {
        Self { cron, sources: Vec::new(), sync: SyncOptions::default(), jitter: Duration::ZERO, seed: None }
    }
}

/// A bank that is brought up to date on a schedule. Time is the bank's own [`Clock`](crate::Clock).
#[derive(Clone)]
pub struct Scheduler {
    bank: Bank,
    options: ScheduleOptions,
    seed: u64,
    /// Up to here every due moment was seen to.
    handled: Timestamp,
}

/// What came of one step.
#[derive(Clone, Debug, Serialize)]
pub struct TickReport {
    /// When it was due, RFC 3339.
    pub due: String,
    /// When it began, RFC 3339.
    pub began: String,
    /// Later moments that had passed by then, and were made up for by it.
    pub coalesced: u64,
    /// How it ended.
    pub outcome: TickOutcome,
    /// What it did; `None` if it was not its turn, or failed.
    pub step: Option<Box<SyncReport>>,
    /// Why it did not come to its turn, or failed.
    pub error: Option<String>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TickOutcome {
    /// Something was done.
    Done,
    /// There was nothing to do.
    Idle,
    /// A new index was refused by its gate; the old one serves on.
    Refused,
    /// Another process was at it, or held the maintenance that the index needed.
    Busy,
    /// It was asked to stop.
    Cancelled,
    /// It failed; the next one tries again.
    Failed,
}

impl TickOutcome {
    /// The outcome as a word; what `runs` holds.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Idle => "idle",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    fn of(report: &SyncReport) -> Self {
        match report.index {
            _ if report.cancelled => Self::Cancelled,
            IndexOutcome::Refused { .. } => Self::Refused,
            IndexOutcome::Busy => Self::Busy,
            _ if report.is_idle() => Self::Idle,
            _ => Self::Done,
        }
    }
}

impl Scheduler {
    /// A schedule that continues where the last one on this bank was: what came due since is due at once. The first one on a
    /// bank begins now.
    ///
    /// # Errors
    /// Those of the store.
    pub fn new(bank: Bank, mut options: ScheduleOptions) -> Pending<'static, Self> {
        Box::pin(async move {
            options.sync.remeasure = Remeasure::WhereChanged;
            let now = bank.store.clock().now();
            let stored = bank.store.meta.get(HANDLED).await?;
            let handled = stored.and_then(|stored| stored.parse().ok()).map_or(now, Timestamp);
            let seed = options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
            Ok(Self { bank, options, seed, handled: handled.min(now) })
        })
    }

    /// When the next step is due, jitter included; `None` if never again.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due().map(|due| self.put_off(due))
    }

    /// Does a step if one is due, and nothing otherwise. What goes wrong in a step is an outcome.
    ///
    /// # Errors
    /// None at present; those of the clock and the calendar are reserved.
    pub fn tick_if_due(&mut self) -> Pending<'_, Option<TickReport>> {
        Box::pin(async move {
            let now = self.bank.store.clock().now();
            match self.due() {
                Some(due) if self.put_off(due) <= now => Ok(Some(self.tick(due, now).await)),
                _ => Ok(None),
            }
        })
    }

    /// Keeps the schedule until the bank's [`Cancel`](crate::progress::Cancel) asks to stop: after the batch in hand if a step
    /// is under way. `on_tick` is told what came of each step.
    ///
    /// # Errors
    /// As [`tick_if_due`](Self::tick_if_due).
    pub fn run<'a>(&'a mut self, on_tick: impl FnMut(&TickReport) + Send + 'a) -> Pending<'a, ()> {
        self.run_boxed(Box::new(on_tick))
    }

    fn run_boxed<'a>(&'a mut self, mut on_tick: Box<dyn FnMut(&TickReport) + Send + 'a>) -> Pending<'a, ()> {
        Box::pin(async move {
            let (clock, cancel) = (self.bank.store.clock().clone(), self.bank.cancel().clone());
            while let Some(due) = self.next_due() {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => break,
                    () = clock.sleep_until(due) => {}
                }
                if let Some(report) = self.tick_if_due().await? {
                    on_tick(&report);
                }
            }
            Ok(())
        })
    }

    fn due(&self) -> Option<Timestamp> {
        self.options.cron.next_after(self.handled)
    }

    /// The moment at which a due run starts.
    fn put_off(&self, due: Timestamp) -> Timestamp {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.seed.to_le_bytes()).update(&due.0.to_le_bytes());
        let [a, b, c, d, ..] = *hash.finalize().as_bytes();
        let share = f64::from(u32::from_le_bytes([a, b, c, d])) / f64::from(u32::MAX);
        due.plus(self.options.jitter.mul_f64(share))
    }

    async fn tick(&mut self, due: Timestamp, began: Timestamp) -> TickReport {
        let coalesced = self.passed(due, began);
        // Whatever comes of it: what failed is tried again when it is due again.
        self.handled = began;
        let (outcome, step, error) = match self.step().await {
            Ok(report) => (TickOutcome::of(&report), Some(Box::new(report)), None),
            Err(error @ (Error::Busy { .. } | Error::LeaseLost { .. })) => {
                (TickOutcome::Busy, None, Some(error.chain()))
            }
            Err(Error::Cancelled) => (TickOutcome::Cancelled, None, None),
            Err(error) => (TickOutcome::Failed, None, Some(error.chain())),
        };
        let (due, began_at) = (due.to_rfc3339(), began.to_rfc3339());
        let report = TickReport { due, began: began_at, coalesced, outcome, step, error };
        if let Err(error) = self.note(began, &report).await {
            tracing::warn!(%error, "the scheduled step is not on record");
        }
        report
    }

    /// Due moments after the first one, up to now.
    fn passed(&self, due: Timestamp, now: Timestamp) -> u64 {
        let mut at = due;
        let mut count = 0;
        while let Some(next) = self.options.cron.next_after(at).filter(|next| *next <= now) {
            (at, count) = (next, count + 1);
            if count == MOST_COUNTED {
                break;
            }
        }
        count
    }

    /// One step, if no other process is at one.
    async fn step(&self) -> Result<SyncReport> {
        let lease = self.bank.store.schedule_lease("a scheduled step").await?;
        let done = self.step_under_lease().await;
        lease.release().await?;
        done
    }

    async fn step_under_lease(&self) -> Result<SyncReport> {
        let ScheduleOptions { sources, sync, .. } = &self.options;
        let mut report = self.bank.sync_paths(sources.clone(), sync.clone()).await?;
        if report.is_idle() && report.housekeeping.is_none() && !report.cancelled {
            // An idle step changes little, but a year of them much: leases and the rows of runs.
            report.housekeeping = self.bank.keep_house_if_due(sync.housekeeping, Step::Changed).await?;
        }
        Ok(report)
    }

    async fn note(&self, began: Timestamp, report: &TickReport) -> Result<()> {
        let (store, now) = (&self.bank.store, self.bank.store.clock().now());
        store.meta.put(HANDLED, &began.0.to_string(), now).await?;
        let text = serde_json::json!(report).to_string();
        self.bank.note_run("schedule", began, report.outcome.label(), text).await
    }
}
