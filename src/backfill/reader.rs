//! The first stage: claims ahead, reads what was claimed, and tells which texts need the embedder.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::embedding::Texts;
use super::writer::Claimed;
use super::{Backfill, Shared};
use crate::error::Result;
use crate::id::ContentHash;
use crate::store::{KnownKeys, PassageReader, Position};

/// Claims until there is nothing more after the position, or the limit is reached, or stopping was asked for.
pub(super) struct Reader {
    pub(super) backfill: Backfill,
    pub(super) shared: Arc<Shared>,
    pub(super) claims: mpsc::Sender<Claimed>,
    pub(super) texts: mpsc::Sender<Texts>,
}

/// What the reader knows from one round to the next.
pub(super) struct Knowledge {
    passages: PassageReader,
    /// Texts that are in the cache, or will be once what was handed on is embedded.
    cached: KnownKeys,
}

impl Knowledge {
    pub(super) fn new(backfill: &Backfill) -> Self {
        Self { passages: PassageReader::new(backfill.store.documents.clone()), cached: backfill.cache.known() }
    }
}

impl Reader {
    /// Returns how many chunks were claimed, and what it knows now.
    pub(super) async fn run(
        self,
        mut knowledge: Knowledge,
        mut position: Position,
        limit: u64,
    ) -> Result<(u64, Knowledge)> {
        let mut left = limit;
        for number in 0.. {
            // A stage that has ended has failed; its own error says why.
            let is_failing = self.shared.is_failing() || self.claims.is_closed();
            if left == 0 || is_failing || self.backfill.cancel.is_cancelled() {
                break;
            }
            let rows = self.shared.batch.get().min(usize::try_from(left).unwrap_or(usize::MAX));
            let (store, now) = (&self.backfill.store, self.backfill.store.clock().now());
            let claim = store.status.claim(&self.shared.claimant, &mut position, now, rows).await?;
            if claim.is_empty() {
                break;
            }
            left = left.saturating_sub(claim.len() as u64);
            tracing::debug!(rows = claim.len(), "claimed");
            store.fault_point("backfill: claimed").await?;
            let ids: Vec<_> = claim.rows.iter().map(|row| row.id.clone()).collect();
            // After the claim: an ingest writes documents before states, so what is claimed is visible now, or gone.
            let mut passages = knowledge.passages.read(&ids).await?;
            self.backfill.cache.catch_up(&mut knowledge.cached).await?;
            for forgotten in self.shared.take_forgotten() {
                knowledge.cached.remove(&forgotten);
            }
            // In the order of the claim, which is the order of ingest: reproducible batches.
            let (mut texts, mut looked_up) = (Vec::new(), HashSet::new());
            let mut seen: HashSet<ContentHash> = HashSet::new();
            for id in &ids {
                let Some(passage) = passages.get_mut(id) else { continue };
                // The text is not needed any more but for the embedder.
                let content = std::mem::take(&mut passage.content);
                if !seen.insert(passage.content_hash) {
                    continue;
                }
                let key = passage.content_hash.to_string();
                if knowledge.cached.contains(&key) {
                    looked_up.insert(passage.content_hash);
                } else {
                    knowledge.cached.insert(&key);
                    texts.push((passage.content_hash, content));
                }
            }
            let looked_up: Vec<_> = looked_up.into_iter().collect();
            let claimed = Claimed { number, claim, claimed_at: now, passages, looked_up, texts: texts.len() };
            if self.claims.send(claimed).await.is_err() || self.texts.send(Texts { number, texts }).await.is_err() {
                break;
            }
        }
        Ok((limit.saturating_sub(left), knowledge))
    }
}

/// A claimed batch's passages by chunk, without their texts.
pub(super) type Passages = HashMap<crate::id::ChunkId, crate::store::Passage>;
