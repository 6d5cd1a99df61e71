//! An embedded, crash-safe embedding bank: documents in, a validated vector index out, no server.
mod backfill;
mod clock;
pub mod embed;
mod engine;
mod error;
mod exact;
mod id;
mod index;
mod ingest;
pub mod progress;
mod sample;
pub mod schedule;
mod search;
mod status;
mod store;

pub use error::{Error, Result};
