//! Claims: due chunks are found by a position that moves over the status table, and are taken, renewed and ended by the
//! address of their rows. What a claim costs depends on its own size, not on the table's.
//!
//! Guarantees: of racing claims for one chunk exactly one wins; a worker whose lease was taken over can no longer mark what
//! it lost. Both follow from rows never changing in place: an address that still holds a row holds the row that was read
//! or written there, and a commit that would replace a row that is gone does not happen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lance::Dataset;
use lance_table::format::Fragment;

use super::attempts::Attempts;
use super::chunk_status::{ALL, ChunkStatus, Outcome, StatusRow, decode, encode, finished, in_state, of};
use super::commit::split_address;
use super::filter::Filter;
use super::rows::Rows;
use super::table::Scan;
use super::worker::WorkerId;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::EmbedderId;
use crate::status::{ChunkEvent, ChunkState, transition};

/// Rows of one look for due chunks: a few milliseconds' reading, and more than most claims take.
const ROWS_PER_LOOK: usize = 32_768;

/// Who claims, for which embedder, and for how long at a time.
#[derive(Clone, Debug)]
pub(crate) struct Claimant {
    pub(crate) embedder: EmbedderId,
    pub(crate) worker: WorkerId,
    pub(crate) lease: Duration,
}

/// Chunks that were claimed in one commit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    pub(crate) rows: Vec<StatusRow>,
    /// Where each of them lay when this was last written.
    addresses: Vec<u64>,
}

impl Claim {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// How far a search for due chunks has got: which fragments have nothing more to claim.
///
/// New rows come in new fragments, so a fragment that was read to its end stays without new chunks. Failures that become
/// due and leases that run out later are left to the next search.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    /// Owners of running leases whose process had ended when the search began: nobody has to wait for those to run out.
    dead_owners: Vec<String>,
    searched: HashSet<u64>,
}

impl Position {
    /// The start of the table.
    pub(crate) fn start(dead_owners: Vec<String>) -> Self {
        Self { dead_owners, searched: HashSet::new() }
    }
}

/// Due rows, and what was searched for them.
#[derive(Default)]
struct Found {
    rows: Vec<StatusRow>,
    addresses: Vec<u64>,
    searched: Vec<u64>,
}

impl ChunkStatus {
    /// Claims the next due chunks after `position`, at most `limit`, for a lease from now; none once there is nothing more
    /// after it.
    pub(crate) async fn claim(
        &self,
        claimant: &Claimant,
        position: &mut Position,
        now: Timestamp,
        limit: usize,
    ) -> Result<Claim> {
        let mut attempts = Attempts::at(&self.0, "claim rows of");
        loop {
            attempts.next().await?;
            // What others have claimed meanwhile need not be fought for.
            self.0.refresh().await?;
            let dataset = self.0.dataset().await?;
            let Found { mut rows, addresses, searched } =
                self.find_due(&dataset, claimant, position, now, limit).await?;
            if rows.is_empty() {
                position.searched.extend(searched);
                return Ok(Claim::default());
            }
            for row in &mut rows {
                row.state = transition(row.state, ChunkEvent::Claim).unwrap_or(row.state);
                row.lease_owner = Some(claimant.worker.to_string());
                row.lease_until = Some(now.plus(claimant.lease));
                row.updated_at = now;
            }
            if let Some(placed) = self.0.replace_rows(&dataset, &addresses, encode(&rows, &self.0)?).await? {
                position.searched.extend(searched);
                // Ours: not to be looked at again.
                position.searched.extend(placed.iter().map(|address| split_address(*address).0));
                return Ok(Claim { rows, addresses: placed });
            }
        }
    }

    /// Extends the lease on what is still held of a claim; what is not is dropped from it.
    pub(crate) async fn renew(&self, claimant: &Claimant, claim: &mut Claim, now: Timestamp) -> Result<()> {
        let mut attempts = Attempts::at(&self.0, "renew claims of");
        loop {
            attempts.next().await?;
            let (dataset, held) = self.held(claimant, claim).await?;
            if held.is_empty() {
                tell_lost(claim.len(), 0);
                *claim = Claim::default();
                return Ok(());
            }
            let until = Some(now.plus(claimant.lease));
            let rows: Vec<_> =
                held.rows.into_iter().map(|row| StatusRow { lease_until: until, updated_at: now, ..row }).collect();
            if let Some(addresses) = self.0.replace_rows(&dataset, &held.addresses, encode(&rows, &self.0)?).await? {
                tell_lost(claim.len(), rows.len());
                *claim = Claim { rows, addresses };
                return Ok(());
            }
        }
    }

    /// Ends a claim: marks what is still held of it. Returns how many chunks that were.
    pub(crate) async fn finish(
        &self,
        claimant: &Claimant,
        claim: &Claim,
        outcome: impl Fn(&StatusRow) -> Outcome,
        now: Timestamp,
    ) -> Result<u64> {
        let mut attempts = Attempts::at(&self.0, "end claims of");
        loop {
            attempts.next().await?;
            let (dataset, held) = self.held(claimant, claim).await?;
            if held.is_empty() {
                return Ok(0);
            }
            let count = held.len() as u64;
            let rows: Vec<_> = held.rows.into_iter().filter_map(|row| finished(outcome(&row), row, now)).collect();
            if self.0.replace_rows(&dataset, &held.addresses, encode(&rows, &self.0)?).await?.is_some() {
                return Ok(count);
            }
        }
    }

    /// Drops from a claim what is not held any more: taken over, or removed with its document.
    pub(crate) async fn forget_lost(&self, claimant: &Claimant, claim: &mut Claim) -> Result<()> {
        let held = self.held(claimant, claim).await?.1;
        tell_lost(claim.len(), held.len());
        *claim = held;
        Ok(())
    }

    /// Reads due rows after the position, in storage order.
    async fn find_due(
        &self,
        dataset: &Arc<Dataset>,
        claimant: &Claimant,
        position: &Position,
        now: Timestamp,
        limit: usize,
    ) -> Result<Found> {
        let due = due(&claimant.embedder, now, &position.dead_owners);
        let mut found = Found::default();
        let left = dataset.fragments().iter().filter(|fragment| !position.searched.contains(&fragment.id));
        let mut left: VecDeque<Fragment> = left.cloned().collect();
        while found.rows.len() < limit && !left.is_empty() {
            let mut rows = 0;
            let mut some: Vec<Fragment> = Vec::new();
            while rows < ROWS_PER_LOOK
                && let Some(fragment) = left.pop_front()
            {
                rows += fragment.num_rows().unwrap_or(ROWS_PER_LOOK);
                some.push(fragment);
            }
            let ids: Vec<_> = some.iter().map(|fragment| fragment.id).collect();
            let wanted = limit - found.rows.len();
            let scan = Scan { fragments: Some(some), limit: Some(wanted), addresses: true, ..Scan::columns(&ALL) };
            for batch in self.0.scan_version_all(dataset, scan.filter(due.clone())).await? {
                found.addresses.extend_from_slice(Rows::new(self.0.name(), &batch).addresses()?.values());
                found.rows.extend(decode(self.0.name(), &batch)?);
            }
            // The last one may have more where the limit cut it.
            let cut = (found.rows.len() >= limit).then(|| found.addresses.last().map(|last| split_address(*last).0));
            found.searched.extend(ids.into_iter().take_while(|id| cut.flatten() != Some(*id)));
        }
        Ok(found)
    }

    /// What the worker still holds of a claim, in the newest version, and where it lies there.
    async fn held(&self, claimant: &Claimant, claim: &Claim) -> Result<(Arc<Dataset>, Claim)> {
        self.0.refresh().await?;
        let dataset = self.0.dataset().await?;
        let mut deleted = HashMap::new();
        for (id, _) in claim.addresses.iter().copied().map(split_address) {
            if deleted.contains_key(&id) {
                continue;
            }
            let Some(fragment) = usize::try_from(id).ok().and_then(|id| dataset.get_fragment(id)) else {
                // All of it was taken over or removed, or a compaction has moved it.
                let held = self.relocate(&dataset, claimant, claim).await?;
                return Ok((dataset, held));
            };
            deleted.insert(id, fragment.get_deletion_vector().await.map_err(|e| self.0.error("read", e))?);
        }
        let is_held = |address: u64| {
            let (id, offset) = split_address(address);
            deleted.get(&id).is_some_and(|gone| gone.as_ref().is_none_or(|gone| !gone.contains(offset)))
        };
        let pairs = claim.rows.iter().zip(&claim.addresses).filter(|(_, address)| is_held(**address));
        let (rows, addresses) = pairs.map(|(row, address)| (row.clone(), *address)).unzip();
        Ok((dataset, Claim { rows, addresses }))
    }

    /// Finds the rows of a claim by their owner.
    async fn relocate(&self, dataset: &Arc<Dataset>, claimant: &Claimant, claim: &Claim) -> Result<Claim> {
        let ours = Filter::All(vec![
            of(&claimant.embedder),
            in_state(ChunkState::InProgress),
            Filter::Eq("lease_owner", claimant.worker.to_string()),
        ]);
        let mut places = HashMap::new();
        let scan = Scan { addresses: true, ..Scan::columns(&["id"]).filter(ours) };
        for batch in self.0.scan_version_all(dataset, scan).await? {
            let rows = Rows::new(self.0.name(), &batch);
            let (ids, addresses) = (rows.texts("id")?, rows.addresses()?);
            places.extend((0..batch.num_rows()).map(|row| (ids.value(row).to_owned(), addresses.value(row))));
        }
        let found = claim.rows.iter().filter_map(|row| Some((row.clone(), *places.get(row.id.as_str())?)));
        let (rows, addresses) = found.unzip();
        Ok(Claim { rows, addresses })
    }
}

fn tell_lost(claimed: usize, held: usize) {
    if held < claimed {
        tracing::debug!(rows = claimed - held, "claims were lost meanwhile");
    }
}

/// New, failed and due again, or claimed by somebody who let the lease run out or whose process is gone.
fn due(embedder: &EmbedderId, now: Timestamp, dead_owners: &[String]) -> Filter {
    let abandoned =
        Filter::Any(vec![Filter::NotAfter("lease_until", now), Filter::In("lease_owner", dead_owners.to_vec())]);
    Filter::All(vec![
        of(embedder),
        Filter::Any(vec![
            in_state(ChunkState::New),
            Filter::All(vec![in_state(ChunkState::Error), Filter::NotAfter("next_attempt_at", now)]),
            Filter::All(vec![in_state(ChunkState::InProgress), abandoned]),
        ]),
    ])
}
