//! Keeping a bank fresh: one bounded step a tick — ingest, backfill, see to the index if the policy says so, keep house — and
//! the schedule that ticks.
//!
//! Guarantees: a tick can be killed anywhere and the next one continues; an index that fails its gate leaves the old one
//! active and does not fail the tick's other work. Must not know: what the stages do inside.

mod policy;
mod renew;
mod resume;
mod sync;

pub use policy::{ActiveStatistics, IndexAction, IndexStatistics, OnDrift, RebuildPolicy};
pub use renew::{IndexOutcome, Remeasure, RenewOptions};
pub use sync::{SyncOptions, SyncReport};
