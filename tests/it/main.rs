//! Scenarios against the public API and the real binary. One test binary: each further one links the storage engine again.

mod backfill;
mod bad_input;
mod cli;
mod concurrency;
mod crash_points;
mod doctor;
mod embed_local;
mod evaluation;
mod examples;
mod harness;
mod housekeeping;
mod images;
mod index_lifecycle;
mod ingest;
mod kill;
mod layering;
mod lifecycle;
mod memory;
mod parity;
mod poison;
mod remote;
mod remote_bank;
mod remote_server;
mod resources;
mod search;
