//! An embedded, crash-safe embedding bank: documents in, a validated vector index out, no server.
//!
//! Point a [`Bank`] at a folder of text. It cuts the documents into chunks ([`ingest`](Bank::ingest)), embeds what is missing
//! with a model that runs in the process ([`backfill`](Bank::backfill)), builds an index under a new id, proves its recall
//! against exact search, and only then moves the pointer that search follows. Kill it at any moment and run it again: it
//! continues, loses nothing and repeats nothing.
//!
//! ```
//! # fn main() -> embank::Result<()> { tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use std::sync::Arc;
//! use embank::embed::FakeEmbedder;
//! use embank::{Bank, BankOptions, SearchOptions, SyncOptions};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # std::fs::write(dir.path().join("rain.md"), "# Rain barrels\n\nEmpty the barrel before the first hard frost.").unwrap();
//! # std::fs::write(dir.path().join("bees.md"), "# Bees\n\nLeave the hive closed in winter.").unwrap();
//! # let (bank_dir, notes) = (dir.path().join("bank"), dir.path());
//! // The fake embedder needs no model; `LocalEmbedder` runs a real one.
//! let bank = Bank::open_or_create(&bank_dir, Arc::new(FakeEmbedder::new(64)), BankOptions::default()).await?;
//! bank.sync(&[notes], SyncOptions::default()).await?;
//! let found = bank.search("when to empty the rain barrel", &SearchOptions::default()).await?;
//! assert_eq!(found.hits[0].doc_path, "rain.md");
//! # Ok(()) }) }
//! ```
//!
//! In reading order: [`Bank`] is the engine; [`embed`] turns text into vectors; the options and reports of the stages follow;
//! [`schedule`] keeps a bank fresh; [`evaluate`] measures retrieval against judgements.

#![deny(missing_docs, unsafe_code)]
// The library never panics on input and never prints; a proof-carrying exception is an `#[expect]` with its reason.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unimplemented,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::dbg_macro
)]
#![cfg_attr(
    any(test, fuzzing),
    allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod backfill;
mod clock;
mod contents;
mod doctor;
pub mod embed;
mod engine;
mod error;
pub mod evaluate;
mod exact;
mod failure;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod generations;
mod housekeeping;
mod id;
mod index;
mod ingest;
mod inspect;
mod kernels;
mod ledger;
mod memory;
pub mod progress;
mod promise;
mod questions;
mod regular_file;
mod resident;
mod sample;
pub mod schedule;
mod search;
mod status;
mod store;
mod switch;

pub use backfill::{BackfillOptions, BackfillReport, ChunkFailure, ReconcileReport, RetryErrors};
pub use clock::{Clock, Timestamp};
pub use contents::{BankContents, BankDigest, TableDigest};
pub use doctor::{CheckReport, DoctorOptions, DoctorReport, Repair, Severity};
pub use engine::{Bank, BankOptions, Pending};
pub use error::{BoxError, Error, Result};
pub use failure::FailureKind;
pub use housekeeping::{HousekeepingFailure, HousekeepingOptions, HousekeepingReport, HousekeepingStep};
pub use id::{ChunkId, ContentHash, DocId, EmbedderId, GenerationId};
pub use index::{
    Activation, BuildOptions, Built, FLAT_BELOW, Generation, GenerationState, HNSW_UP_TO, IndexKind, LiveRecall,
    Optimisation, OptimiseReport, PointerChange, PointerMove, RQ_UP_TO, RecallReport, SliceReport, SpecOverrides,
    TriedSettings, ValidateOptions, Validated, VerifyReport,
};
pub use ingest::{ChunkOptions, IngestOptions, IngestReport, Prune, RecordFields, SkipReason, Skipped};
pub use inspect::{BankStatus, EmbedderStatus, Failures};
pub use schedule::{
    CronSchedule, IndexOutcome, OnDrift, RebuildPolicy, Remeasure, RenewOptions, ScheduleOptions, Scheduler,
    SyncOptions, SyncReport, TickOutcome, TickReport,
};
pub use search::{Grouping, Hit, QueryLogging, SearchFilter, SearchOptions, SearchResult};
pub use status::{ChunkEvent, ChunkState, MAX_ATTEMPTS, retry_at, transition};
pub use store::{
    DocumentRow, Durability, FailedChunks, FailureGroup, IndexSpec, Mend, MendKind, QuerySettings, RetryReport, RunRow,
    StatusCounts, StatusRow, StoreOptions, TableSize,
};
#[doc(hidden)]
pub use store::{FaultEffect, Faults};
pub use switch::{
    Agreement, ServedEmbedder, Serving, ServingMove, ServingState, ServingSyncReport, SwitchOptions, SwitchOutcome,
    SwitchReport,
};
