//! Measuring the recall of a generation once more, from what its record says: the same queries of the same seed on the same
//! version of the table, while that version is still there.

use serde::Serialize;

use super::Indexing;
use super::report::RecallReport;
use super::validate::Subject;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::GenerationId;

/// The largest difference between two measurements that should be the same: sums in another order may turn a tie.
const EQUAL: f64 = 0.001;

/// What a second measurement came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerifyReport {
    /// The generation.
    pub id: GenerationId,
    /// What its record says.
    pub recorded: RecallReport,
    /// What was measured now. Nothing was tuned, so nothing was tried.
    pub measured: RecallReport,
    /// Whether it was measured on the version of the table that the record names.
    pub is_same_version: bool,
    /// On the same version: the recalls are equal, to 0.001. On a newer one: the recall is not below what the record proves.
    pub agrees: bool,
    /// What a reader should know of the comparison.
    pub notes: Vec<String>,
}

impl Indexing {
    /// Measures the recall again with the recorded settings and queries. Changes nothing.
    ///
    /// # Errors
    /// [`Error::WrongState`] for a generation that was never measured, did not pass, or whose index is gone.
    pub(crate) async fn verify(&self, id: &GenerationId) -> Result<VerifyReport> {
        let generation = self.get(id).await?;
        self.check_can_be_measured(&generation).await?;
        let recorded = generation.recall.clone().ok_or_else(|| Error::WrongState {
            id: id.to_string(),
            state: generation.state.label().to_owned(),
            reason: "its recall was never measured".to_owned(),
        })?;
        let mut notes = Vec::new();
        // Earlier releases recorded neither, and drew small query sets in another way.
        let is_of_this_release = recorded.dataset_version > 0;
        let (version, seed) = match is_of_this_release {
            true => (recorded.dataset_version, recorded.seed),
            false => (generation.dataset_version, generation.seed),
        };
        if !is_of_this_release {
            notes.push("an earlier release measured it, with fewer queries".to_owned());
        }
        let (snapshot, is_same_version) = match self.embeddings.at_version(version).await? {
            Some(snapshot) => (snapshot, true),
            None => {
                notes.push(format!("version {version} of the table is gone; the newest one was measured"));
                (self.embeddings.snapshot().await?, false)
            }
        };
        let rows = self.embeddings.count_at(&snapshot).await?;
        let now = self.store.clock().now();
        let at = Timestamp::from_rfc3339(&recorded.measured_at).unwrap_or(now);
        let subject = Subject { id, spec: generation.spec.as_ref(), snapshot: &snapshot, rows, seed, at };
        let queries = self.queries_for(&subject, recorded.k).await?;
        if generation.spec.is_some() {
            self.embeddings.prewarm(&snapshot, id).await?;
        }
        let measured =
            self.measure_verdict(&subject, &queries, &generation.settings, recorded.k, recorded.required).await?;
        if measured.query_source != recorded.query_source {
            notes.push(format!(
                "the queries are others: {}; they were {}",
                measured.query_source, recorded.query_source
            ));
        }
        let is_same = is_same_version && is_of_this_release && measured.query_source == recorded.query_source;
        let (required, target, measured_at) = (recorded.required, recorded.target, now.to_rfc3339());
        let measured = RecallReport { required, target, measured_at, ..measured };
        let agrees = agree(&recorded, &measured, is_same);
        Ok(VerifyReport { id: id.clone(), recorded, measured, is_same_version, agrees, notes })
    }
}

/// Whether the second measurement bears out the first.
fn agree(recorded: &RecallReport, measured: &RecallReport, is_same: bool) -> bool {
    let one = |before: f64, bound: f64, now: f64| if is_same { (before - now).abs() <= EQUAL } else { now >= bound };
    let bound = if recorded.bound > 0.0 { recorded.bound } else { recorded.required };
    let slices = recorded.slices.iter().filter(|slice| slice.gated).all(|slice| {
        let again = measured.slices.iter().find(|again| again.category == slice.category);
        // A category that is no longer among the frequent ones says nothing.
        again.is_none_or(|again| one(slice.recall, slice.bound, again.recall))
    });
    slices && one(recorded.recall, bound, measured.recall)
}

#[cfg(test)]
mod tests {
    use super::super::report::SliceReport;
    use super::*;

    fn report(recall: f64, bound: f64) -> RecallReport {
        RecallReport { recall, bound, ..RecallReport::default() }
    }

    #[test]
    fn the_same_queries_must_give_the_same_and_others_no_less_than_was_proven() {
        let recorded = report(0.98, 0.97);
        assert!(agree(&recorded, &report(0.9805, 0.0), true));
        assert!(!agree(&recorded, &report(0.975, 0.0), true));
        assert!(agree(&recorded, &report(0.975, 0.0), false));
        assert!(!agree(&recorded, &report(0.965, 0.0), false));
        let slice =
            |recall, gated| SliceReport { category: "bees".into(), recall, bound: 0.96, gated, ..Default::default() };
        let with = |slice| RecallReport { slices: vec![slice], ..report(0.98, 0.97) };
        assert!(!agree(&with(slice(0.98, true)), &with(slice(0.95, true)), false));
        assert!(agree(&with(slice(0.98, false)), &with(slice(0.95, true)), false));
    }
}
