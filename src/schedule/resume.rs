//! Making up for an activation that a crash prevented: a generation that passed its gate is not built again.
//!
//! Must not know: how a generation is built or measured.

use super::policy::IndexAction;
use super::renew::{IndexOutcome, RenewOptions};
use crate::engine::Bank;
use crate::error::{Error, Result};

impl Bank {
    /// Activates a generation that passed and that nobody came to activate, if it would do: the policy would not build another
    /// one in its place, and it met what is asked of a new one. `None` if there is none.
    pub(super) async fn take_up_left_ready(
        &self,
        options: &RenewOptions,
        reason: &str,
    ) -> Result<Option<IndexOutcome>> {
        let RenewOptions { policy, build, validate, .. } = options;
        let began = std::time::Instant::now();
        let Some(left) = self.indexing().left_ready().await? else { return Ok(None) };
        let Some(recall) = left.recall.clone() else { return Ok(None) };
        let is_good = recall.k == validate.k
            && recall.required >= validate.min_recall
            && recall.target >= validate.target_recall.unwrap_or(0.0);
        let (id, kind, rows) = (left.id.clone(), left.kind.clone(), left.rows);
        let statistics = self.statistics_with(Some(left)).await?;
        if !is_good || matches!(policy.decide(&statistics, build.kind), IndexAction::Build { .. }) {
            return Ok(None);
        }
        match self.indexing().activate_left_ready(&id).await {
            Ok(true) => Ok(Some(IndexOutcome::Activated {
                generation: id,
                kind,
                rows,
                seconds: began.elapsed().as_secs_f64(),
                recall: Box::new(recall),
                reason: format!("{reason}; it had passed before a crash"),
            })),
            Ok(false) => Ok(None),
            Err(Error::Busy { .. } | Error::LeaseLost { .. }) => Ok(Some(IndexOutcome::Busy)),
            Err(error) => Err(error),
        }
    }
}
