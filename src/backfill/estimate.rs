//! What a backfill would give its embedder: the due texts that no cache has, each once. Nothing is embedded.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;

use super::Backfill;
use crate::clock::Timestamp;
use crate::embed::{Estimate, TextKind};
use crate::error::Result;
use crate::id::{ChunkId, ContentHash};
use crate::status::ChunkState;
use crate::store::{Passage, PassageReader, StatusRow, WorkerId};

/// Chunks looked at together; their texts are in memory at once.
const AT_ONCE: usize = 4096;

impl Backfill {
    /// Adds up what is due. States are brought in step with the documents first, as a backfill does, so that a new embedder
    /// sees all of them.
    pub(crate) async fn estimate(&self) -> Result<Estimate> {
        self.reconcile_and_survey().await?;
        let now = self.store.clock().now();
        let (mut estimate, mut seen, mut due) = (Estimate::default(), HashSet::new(), Vec::new());
        let mut reader = PassageReader::new(self.store.documents.clone());
        let mut rows = self.store.status.rows(&self.embedder_id).await?;
        while let Some(batch) = rows.try_next().await? {
            due.extend(batch.into_iter().filter(|row| is_due(row, now)).map(|row| row.id));
            while due.len() >= AT_ONCE {
                let some: Vec<ChunkId> = due.drain(..AT_ONCE).collect();
                self.add(reader.read(&some).await?, &mut seen, &mut estimate).await?;
            }
        }
        self.add(reader.read(&due).await?, &mut seen, &mut estimate).await?;
        Ok(estimate)
    }

    async fn add(
        &self,
        passages: HashMap<ChunkId, Passage>,
        seen: &mut HashSet<ContentHash>,
        estimate: &mut Estimate,
    ) -> Result<()> {
        let hashes: Vec<_> = passages.values().map(|passage| passage.content_hash).collect();
        self.cache.refresh().await?;
        let cached = self.cache.get(&hashes).await?;
        let texts = passages.into_values().filter(|passage| !cached.contains_key(&passage.content_hash));
        let texts: Vec<String> =
            texts.filter(|passage| seen.insert(passage.content_hash)).map(|passage| passage.content).collect();
        estimate.add(self.embedder.estimate(TextKind::Passage, &texts)?);
        Ok(())
    }
}

/// As a claim sees it.
fn is_due(row: &StatusRow, now: Timestamp) -> bool {
    match row.state {
        ChunkState::New => true,
        ChunkState::Ready => false,
        ChunkState::InProgress => {
            let owner = row.lease_owner.as_deref().and_then(WorkerId::parse);
            row.lease_until.is_none_or(|until| until <= now) || owner.is_some_and(|worker| worker.has_ended())
        }
        ChunkState::Error => row.next_attempt_at.is_some_and(|at| at <= now),
    }
}
