//! Keeping a bank fresh: one bounded step a tick — ingest, backfill, see to the index if the policy says so, keep house — and
//! the schedule that ticks.
//!
//! Guarantees: a tick can be killed anywhere and the next one continues; an index that fails its gate leaves the old one
//! active and does not fail the tick's other work. Must not know: what the stages do inside.

mod cron;
mod policy;
mod renew;
mod resume;
mod scheduler;
mod sync;

pub use cron::CronSchedule;
pub use policy::{ActiveStatistics, IndexAction, IndexStatistics, OnDrift, RebuildPolicy};
pub use renew::{IndexOutcome, Remeasure, RenewOptions};
pub use scheduler::{ScheduleOptions, Scheduler, TickOutcome, TickReport};
pub use sync::{SyncOptions, SyncReport};
