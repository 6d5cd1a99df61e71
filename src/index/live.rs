//! Live recall: what the active index finds today, of what exact search finds over all rows there are.
//!
//! A generation was measured once, over the rows that it was built on. Rows that come later are searched flat at first, which
//! misses nothing; once they are folded in they are coded by a model that was trained without them, and what is asked near
//! them may be missed. So the same measurement is made again, over the present rows, the newest included, as search serves
//! them. Guarantees: it changes nothing but the generation's record. Must not know: what a loss leads to.

use serde::{Deserialize, Serialize};

use super::Indexing;
use super::confidence::{CONFIDENCE, prove};
use super::generation::{Generation, keep_last};
use super::queries::Sizes;
use crate::error::Result;
use crate::progress::Progress;
use crate::store::Snapshot;

/// Measurements that a record remembers: a month of nightly ones.
const REMEMBERED: usize = 32;

/// Recall of the active index over the rows of one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveRecall {
    /// When, RFC 3339.
    pub measured_at: String,
    /// Version of the embeddings table that it was measured over.
    pub dataset_version: u64,
    /// Rows there were.
    pub rows: u64,
    /// Rows of these that were newer than the index, and searched flat.
    pub newer: u64,
    /// Neighbours asked for.
    pub k: usize,
    /// Mean recall@k.
    pub recall: f64,
    /// What the true recall is not below, with 95 % confidence.
    pub bound: f64,
    /// What the gate demanded of the index when it was validated.
    pub required: f64,
    /// Queries asked.
    pub queries: usize,
    /// 95th percentile of a query's milliseconds.
    pub p95_ms: f64,
}

impl LiveRecall {
    /// Whether the index finds less than the gate demanded of it.
    ///
    /// The mean is compared, not its lower bound as at the gate: an index that just passed there has a bound beside the
    /// threshold, and would fall below it by chance at every other measurement. The mean of such an index does so at seven
    /// of a hundred (0.0085 above 0.95 at the gate; with some 2,000 neighbours each, the difference of two measurements has
    /// a standard error of 0.006), that of a better one hardly ever.
    pub fn is_low(&self) -> bool {
        self.recall < self.required
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            measured_at: String::new(),
            dataset_version: 0,
            rows: 0,
            newer: 0,
            k: 10,
            recall: 1.0,
            bound: 1.0,
            required: 0.95,
            queries: 0,
            p95_ms: 0.0,
        }
    }
}

impl Indexing {
    /// Measures the active generation over the present rows; `None` where there is nothing to measure. A loss is said to the
    /// listener and the log.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub(crate) async fn measure_live(&self, k: usize) -> Result<Option<LiveRecall>> {
        let Some(active) = self.active().await?.filter(|active| active.spec.is_some()) else { return Ok(None) };
        self.embeddings.refresh().await?;
        let snapshot = self.embeddings.snapshot().await?;
        let Some(live) = self.measure_over(&active, &snapshot, k).await? else { return Ok(None) };
        self.amend(&active.id, |record| keep_last(&mut record.live, live.clone(), REMEMBERED)).await?;
        self.store.acknowledge().await?;
        if live.is_low() {
            let (id, recall, required) = (&active.id, live.recall, live.required);
            tracing::warn!(%id, recall, required, "the index finds less than it must");
            self.listener.report(Progress::Note(format!(
                "warning: recall@{k} of {id} has fallen to {recall:.4}, below the required {required:.4}"
            )));
        }
        Ok(Some(live))
    }

    /// Whether the table has another version than at the last measurement.
    pub(crate) async fn is_changed_since_measured(&self) -> Result<bool> {
        let Some(active) = self.active().await?.filter(|active| active.spec.is_some()) else { return Ok(false) };
        self.embeddings.refresh().await?;
        let last = active.live.last().map_or(active.dataset_version, |live| live.dataset_version);
        Ok(self.embeddings.snapshot().await?.version() != last)
    }

    async fn measure_over(&self, active: &Generation, snapshot: &Snapshot, k: usize) -> Result<Option<LiveRecall>> {
        let Some(coverage) = self.embeddings.coverage(snapshot, &active.id).await? else { return Ok(None) };
        let rows = self.embeddings.count_at(snapshot).await?;
        // Another sample each time, and one that can be drawn again.
        let seed = active.seed.wrapping_add(snapshot.version());
        let drawn = self.draw_rows(snapshot, rows, seed, Sizes::FULL).await?;
        let queries = self.with_truth(snapshot, rows, [drawn.tuning, drawn.verdict].concat(), k).await?;
        if queries.is_empty() {
            return Ok(None);
        }
        let measured = self.measure(&active.id, snapshot, &queries, &active.settings, None).await?;
        let proven = prove(&measured.recalls, k, CONFIDENCE);
        Ok(Some(LiveRecall {
            measured_at: self.store.clock().now().to_rfc3339(),
            dataset_version: snapshot.version(),
            rows,
            newer: coverage.newer,
            k,
            recall: proven.mean,
            bound: proven.lower,
            required: active.recall.as_ref().map_or(0.0, |gate| gate.required),
            queries: queries.len(),
            p95_ms: measured.percentile_ms(95),
        }))
    }
}
