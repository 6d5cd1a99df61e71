//! A bank in which nothing is due says so in one row of `meta`, so that the next run need not read the status table.
//!
//! The row names the versions of the tables that were read. Whoever writes to them, be it another process or an older
//! program, makes it void without knowing of it.

use serde::{Deserialize, Serialize};

use super::Backfill;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::store::Survey;

/// What was true at these versions.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settled {
    status: String,
    documents: String,
    /// Ready chunks; with fewer vectors than these, some were lost, and with more, some have no chunk.
    ready: u64,
    /// Rows of the cache; with fewer, it lost some.
    pub(super) cached: u64,
    /// When a failed chunk is due again, in microseconds.
    next_due: Option<i64>,
}

impl Backfill {
    /// Whether nothing is due, and nothing out of step, by what an earlier run left.
    pub(super) async fn is_settled(&self, now: Timestamp) -> Result<bool> {
        let Some(settled) = self.settled().await? else { return Ok(false) };
        if settled.next_due.is_some_and(|at| at <= now.0) || self.store.status.version().await? != settled.status {
            return Ok(false);
        }
        self.store.documents_refresh().await?;
        self.embeddings.refresh().await?;
        self.cache.refresh().await?;
        Ok(self.store.documents_version().await? == settled.documents
            && self.embeddings.count().await? == settled.ready
            && self.cache.count().await? >= settled.cached)
    }

    /// Leaves the row, if the survey allows it and it says anything new.
    pub(super) async fn settle(&self, survey: &Survey, now: Timestamp) -> Result<()> {
        if survey.due + survey.counts.new + survey.counts.in_progress > 0 {
            return Ok(());
        }
        // Of documents that came or went since they were compared with the states, nothing is known.
        let Some(documents) = self.store.meta.get(&self.reconciled_key()).await? else { return Ok(()) };
        let settled = Settled {
            status: survey.version.clone(),
            documents,
            ready: survey.counts.ready,
            cached: self.cache.count().await?,
            next_due: survey.next_due.map(|at| at.0),
        };
        if self.settled().await?.as_ref() == Some(&settled) {
            return Ok(());
        }
        self.store.meta.put(&self.settled_key(), &serde_json::json!(settled).to_string(), now).await
    }

    pub(super) async fn settled(&self) -> Result<Option<Settled>> {
        let stored = self.store.meta.get(&self.settled_key()).await?;
        // One of another version of this program is none.
        Ok(stored.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn settled_key(&self) -> String {
        format!("settled/{}", self.embedder_id)
    }
}
