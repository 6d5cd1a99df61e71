//! What the status table says about one embedder, read in one pass: how many chunks stand where, what is due, and when the
//! next one will be.

use std::collections::HashMap;

use futures::TryStreamExt;

use super::chunk_status::{ChunkStatus, StatusCounts, of, parse};
use super::rows::{Rows, moment_at, text_at};
use super::table::Scan;
use super::worker::WorkerId;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::EmbedderId;
use crate::status::ChunkState;

/// The embedder's chunks at one version of the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// The version that was read; see [`version`](super::Documents::version).
    pub(crate) version: String,
    pub(crate) counts: StatusCounts,
    /// Chunks that could be claimed now.
    pub(crate) due: u64,
    /// When the next failed chunk is due, of those that are not yet.
    pub(crate) next_due: Option<Timestamp>,
    /// Owners of running leases whose process is known to have ended.
    pub(crate) dead_owners: Vec<String>,
}

/// A fingerprint of a set of ids that does not depend on their order: their number, and their sum as 128-bit numbers. Two
/// different sets of ids, which are blake3 hashes, share one with a chance of 2^-128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdDigest {
    count: u64,
    sum: u128,
}

impl IdDigest {
    pub(crate) fn add(&mut self, id: &str) {
        let half = |digits: Option<&str>| digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let number = match (half(id.get(..16)), half(id.get(16..))) {
            (Some(high), Some(low)) if id.len() == 32 => u128::from(high) << 64 | u128::from(low),
            // Not an id that was made here.
            _ => blake3::hash(id.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes)),
        };
        self.count += 1;
        self.sum = self.sum.wrapping_add(number);
    }
}

/// The ids under one embedder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StatusDigest {
    pub(crate) all: IdDigest,
    pub(crate) ready: IdDigest,
}

impl ChunkStatus {
    /// Reads where the embedder's chunks stand, in the newest version.
    pub(crate) async fn survey(&self, embedder: &EmbedderId, now: Timestamp) -> Result<Survey> {
        self.0.refresh().await?;
        let dataset = self.0.dataset().await?;
        let mut survey = Survey { version: super::table::version_name(&dataset), ..Survey::default() };
        let mut running: HashMap<String, u64> = HashMap::new();
        let columns = ["status", "next_attempt_at", "lease_owner", "lease_until"];
        let mut batches = self.0.scan_version(&dataset, Scan::columns(&columns).filter(of(embedder))).await?;
        while let Some(batch) = batches.try_next().await? {
            let rows = Rows::new(self.0.name(), &batch);
            let [status, owner] = [rows.texts("status")?, rows.texts("lease_owner")?];
            let [next_attempt_at, lease_until] = [rows.moments("next_attempt_at")?, rows.moments("lease_until")?];
            for row in 0..batch.num_rows() {
                let state = parse(&rows, status.value(row))?;
                *survey.counts.of(state) += 1;
                match state {
                    ChunkState::New => survey.due += 1,
                    ChunkState::Ready => {}
                    ChunkState::Error => match moment_at(next_attempt_at, row) {
                        Some(at) if at <= now => survey.due += 1,
                        Some(at) => survey.next_due = Some(survey.next_due.map_or(at, |next| next.min(at))),
                        None => {}
                    },
                    ChunkState::InProgress if moment_at(lease_until, row).is_some_and(|until| until <= now) => {
                        survey.due += 1;
                    }
                    ChunkState::InProgress => {
                        *running.entry(text_at(owner, row).unwrap_or_default()).or_default() += 1;
                    }
                }
            }
        }
        running.retain(|owner, _| WorkerId::parse(owner).is_some_and(|worker| worker.has_ended()));
        survey.due += running.values().sum::<u64>();
        survey.dead_owners = running.into_keys().collect();
        survey.dead_owners.sort_unstable();
        Ok(survey)
    }

    /// The version that was last seen; see [`version`](super::Documents::version).
    pub(crate) async fn version(&self) -> Result<String> {
        self.0.refresh().await?;
        Ok(super::table::version_name(&*self.0.dataset().await?))
    }

    /// Fingerprints of the embedder's ids.
    pub(crate) async fn digest(&self, embedder: &EmbedderId) -> Result<StatusDigest> {
        let mut digest = StatusDigest::default();
        let mut batches = self.0.scan(Scan::columns(&["id", "status"]).filter(of(embedder))).await?;
        while let Some(batch) = batches.try_next().await? {
            let rows = Rows::new(self.0.name(), &batch);
            let (ids, status) = (rows.texts("id")?, rows.texts("status")?);
            for row in 0..batch.num_rows() {
                digest.all.add(ids.value(row));
                if parse(&rows, status.value(row))? == ChunkState::Ready {
                    digest.ready.add(ids.value(row));
                }
            }
        }
        Ok(digest)
    }
}

impl StatusCounts {
    /// The count of one state.
    pub(super) fn of(&mut self, state: ChunkState) -> &mut u64 {
        match state {
            ChunkState::New => &mut self.new,
            ChunkState::InProgress => &mut self.in_progress,
            ChunkState::Ready => &mut self.ready,
            ChunkState::Error => &mut self.error,
        }
    }
}
