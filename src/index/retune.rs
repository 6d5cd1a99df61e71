//! Choosing other query settings for an index that is there already: along its curve of recall and latency, without a
//! rebuild.

use super::Indexing;
use super::generation::{Generation, GenerationState, Record};
use super::validate::{Subject, ValidateOptions, refusal};
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::store::GenerationRow;

impl Indexing {
    /// Tunes a generation that passed validation, on the vectors there are now and with new queries; the settings that it
    /// is searched with from then on, and the report, are written in one step.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`] where no setting is sure to reach `min_recall`; [`Error::WrongState`] for a generation that
    /// did not pass or has no index; [`Error::Busy`]; [`Error::LeaseLost`]. It is then searched as before.
    pub(crate) async fn retune(&self, id: &GenerationId, options: &ValidateOptions) -> Result<Generation> {
        options.check()?;
        let lease = self.store.maintenance_lease("tuning an index").await?;
        let retuned = self.retune_under_lease(id, options).await;
        let (row, before) = match retuned {
            Ok(retuned) => retuned,
            Err(error) => {
                lease.release().await?;
                return Err(error);
            }
        };
        lease.check().await?;
        if !self.store.generations.replace(&row, &before).await? {
            return Err(lease.lost());
        }
        self.store.acknowledge().await?;
        lease.release().await?;
        self.get(id).await
    }

    /// The row to write, and the record that it replaces.
    async fn retune_under_lease(
        &self,
        id: &GenerationId,
        options: &ValidateOptions,
    ) -> Result<(GenerationRow, String)> {
        let rows = self.store.generations.list(Some(&self.embedder_id)).await?;
        let row = rows.into_iter().find(|row| row.id == *id);
        let row = row.ok_or_else(|| Error::UnknownGeneration { id: id.to_string() })?;
        let mut record = Record::from_row(&row)?;
        self.check_can_be_measured(&self.get(id).await?).await?;
        let wrong = |reason: &str| Error::WrongState {
            id: id.to_string(),
            state: record.kind().to_owned(),
            reason: reason.to_owned(),
        };
        let spec = record.spec.ok_or_else(|| wrong("it is searched exactly; there is nothing to tune"))?;
        self.embeddings.refresh().await?;
        let snapshot = self.embeddings.snapshot().await?;
        let subject = Subject {
            id,
            spec: Some(&spec),
            snapshot: &snapshot,
            rows: self.embeddings.count_at(&snapshot).await?,
            // Others than those that the build was judged by: settings are not to be fitted to one sample.
            seed: options.seed.unwrap_or_else(super::build::drawn_seed),
            at: self.store.clock().now().whole_second(),
        };
        let (settings, report) = self.tune_and_measure(&subject, options).await?;
        if let Some(refused) = refusal(id, &report) {
            return Err(refused);
        }
        (record.settings, record.recall) = (settings, Some(report));
        Ok((record.to_row(id, &self.embedder_id, self.store.clock().now()), row.record))
    }

    /// Refuses a generation that never passed, or whose index is gone.
    pub(super) async fn check_can_be_measured(&self, generation: &Generation) -> Result<()> {
        let wrong = |reason: &str| Error::WrongState {
            id: generation.id.to_string(),
            state: generation.state.label().to_owned(),
            reason: reason.to_owned(),
        };
        match generation.state {
            GenerationState::Ready | GenerationState::Active | GenerationState::Retired => {}
            _ => return Err(wrong("only a generation that passed validation has an index to measure")),
        }
        self.embeddings.refresh().await?;
        if !self.has_its_index(generation).await? {
            return Err(wrong("its index is gone; build a new one"));
        }
        Ok(())
    }
}
