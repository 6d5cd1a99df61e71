//! Changing the embedder that answers a bank's searches, while it answers: the second one's table is filled beside the first,
//! indexed and validated, both are asked the same questions, and then one pointer moves.
//!
//! Guarantees: the first embedder answers until the pointer moves, and has all it needs to answer again; the pointer moves by
//! compare-and-set, to nothing that lacks a chunk which the first one has, or an index where there are vectors; a switch that
//! is killed anywhere goes on where it was, and embeds nothing again. Must not know: what the stages do inside.

mod agreement;
mod pointer;
mod serving;

use serde::Serialize;

pub use agreement::Agreement;
pub(crate) use pointer::{KEY as SERVING_KEY, is_readable};
pub use pointer::{ServedEmbedder, ServingMove, ServingState};
pub use serving::{Serving, ServingSyncReport};

use crate::backfill::{BackfillOptions, BackfillReport};
use crate::engine::{Bank, Pending};
use crate::error::{Error, Result};
use crate::id::EmbedderId;
use crate::index::{BuildOptions, ValidateOptions};
use crate::schedule::{IndexOutcome, RebuildPolicy, RenewOptions};

/// Rounds of embedding and indexing before a switch gives up on documents that come in faster than they are embedded.
const ROUNDS: usize = 8;

/// How to switch.
#[derive(Clone, Debug)]
pub struct SwitchOptions {
    /// What the embedder that serves now is opened by, if the bank has not got that on record. Default: its own name.
    pub from_name: Option<String>,
    /// What the new embedder is opened by, to be left in the bank. Default: its own name.
    pub to_name: Option<String>,
    /// How to embed what the new one lacks.
    pub backfill: BackfillOptions,
    /// When the new one's index is good enough as it is, if it has one.
    pub policy: RebuildPolicy,
    /// What to build.
    pub build: BuildOptions,
    /// How to validate it.
    pub validate: ValidateOptions,
    /// Questions that both are asked before the pointer moves. Default 64; none where 0.
    pub questions: u64,
    /// The mean overlap of their first ten chunks that is required, 0 to 1. Default 0: any will do, as models may well differ.
    pub min_overlap: f64,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self {
            from_name: None,
            to_name: None,
            backfill: BackfillOptions::default(),
            policy: RebuildPolicy::default(),
            build: BuildOptions::default(),
            validate: ValidateOptions::default(),
            questions: 64,
            min_overlap: 0.0,
        }
    }
}

/// What a switch did.
#[derive(Clone, Debug, Serialize)]
pub struct SwitchReport {
    /// The embedder that served when it began.
    pub from: EmbedderId,
    /// The one that was to serve.
    pub to: EmbedderId,
    /// How it ended.
    pub outcome: SwitchOutcome,
    /// What was embedded, all rounds together.
    pub backfill: BackfillReport,
    /// What became of the new embedder's index.
    pub index: Option<IndexOutcome>,
    /// What both answered to the same questions.
    pub agreement: Option<Agreement>,
    /// Seconds.
    pub seconds: f64,
}

/// How a switch ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SwitchOutcome {
    /// The new embedder serves.
    Switched,
    /// It served already.
    Unchanged,
    /// The old one serves on; a new switch continues.
    Refused {
        /// Why.
        reason: String,
    },
    /// Somebody else is in maintenance; the old one serves on, a new switch continues.
    Busy,
    /// It was stopped; the old one serves on, a new switch continues.
    Cancelled,
}

impl SwitchReport {
    fn is_idle(&self) -> bool {
        self.outcome == SwitchOutcome::Unchanged
    }
}

impl Bank {
    /// Makes the embedder of another handle on this bank the one that answers its searches, once it has every vector and an
    /// index that passed. This handle's embedder answers meanwhile. Going back is the same step the other way.
    ///
    /// # Errors
    /// [`Error::NotServing`] if this handle's embedder is not the one that serves, or another process moved the pointer
    /// meanwhile; [`Error::InvalidSetting`] for a handle on another bank; those of the stages. A refusal is not an error but
    /// an outcome.
    pub fn switch_to<'a>(&'a self, to: &'a Bank, options: SwitchOptions) -> Pending<'a, SwitchReport> {
        Box::pin(async move {
            let switch = Switch { from: self, to, options };
            self.recorded("switch", switch.run(), SwitchReport::is_idle).await
        })
    }
}

struct Switch<'a> {
    from: &'a Bank,
    to: &'a Bank,
    options: SwitchOptions,
}

impl Switch<'_> {
    async fn run(self) -> Result<SwitchReport> {
        let Self { from, to, options } = &self;
        if from.root() != to.root() {
            let reason = format!("{} is another bank than {}", to.root().display(), from.root().display());
            return Err(Error::InvalidSetting { setting: "bank", reason });
        }
        let began = from.store.clock().now();
        let mut report = SwitchReport {
            from: from.embedder_id.clone(),
            to: to.embedder_id.clone(),
            outcome: SwitchOutcome::Unchanged,
            backfill: BackfillReport::default(),
            index: None,
            agreement: None,
            seconds: 0.0,
        };
        if self.announce().await? {
            report.outcome = match self.prepare(&mut report).await? {
                Some(ended) => ended,
                None => {
                    report.agreement = agreement::measure(from, to, options.questions).await?;
                    self.flip(report.agreement.as_ref()).await?
                }
            };
        }
        report.seconds = from.store.clock().now().since(began).as_secs_f64();
        Ok(report)
    }

    /// Leaves word that the new embedder is to be filled from now on. Returns whether there is anything to do.
    async fn announce(&self) -> Result<bool> {
        let Self { from, to, options } = self;
        let standing = pointer::read(&from.store).await?;
        let present = match &standing {
            Some(standing) => standing.state.clone(),
            None => ServingState::of(ServedEmbedder::of(from, options.from_name.as_deref())),
        };
        if present.active.id == to.embedder_id {
            return Ok(false);
        }
        present.check_serves(from)?;
        let next = ServedEmbedder::of(to, options.to_name.as_deref());
        if standing.is_none() || present.next.as_ref() != Some(&next) {
            // Somebody who began to switch to a third one is overruled, and told so by the compare-and-set of his flip.
            pointer::write(&from.store, standing.as_ref(), &present.announcing(next)).await?;
        }
        from.store.fault_point("switch: announced").await?;
        Ok(true)
    }

    /// Embeds and indexes, until nothing is missing. Returns how it ended if that is before the pointer could move.
    async fn prepare(&self, report: &mut SwitchReport) -> Result<Option<SwitchOutcome>> {
        let Self { to, options, .. } = self;
        for round in 0..ROUNDS {
            let filled = to.backfill(options.backfill).await?;
            let (is_new, is_cancelled) = (filled.ready > 0, filled.cancelled);
            report.backfill.add(filled);
            if is_cancelled {
                return Ok(Some(SwitchOutcome::Cancelled));
            }
            // The last look found nothing that had come in while the index was built.
            if round > 0 && !is_new {
                break;
            }
            to.store.fault_point("switch: filled").await?;
            let index = to.renew_index(self.renewal()).await?;
            let ended = match &index {
                IndexOutcome::Refused { reason } => Some(SwitchOutcome::Refused { reason: reason.clone() }),
                IndexOutcome::Busy => Some(SwitchOutcome::Busy),
                IndexOutcome::Cancelled => Some(SwitchOutcome::Cancelled),
                _ => None,
            };
            // What a later round kept was built by an earlier one.
            if !(report.index.is_some() && matches!(index, IndexOutcome::Kept { .. })) {
                report.index = Some(index);
            }
            if ended.is_some() {
                return Ok(ended);
            }
            to.store.fault_point("switch: indexed").await?;
        }
        let mut missing = self.missing().await?;
        if missing.is_some() {
            // A sync through the old embedder may have stored some since the last look.
            report.backfill.add(to.backfill(options.backfill).await?);
            missing = self.missing().await?;
        }
        Ok(missing.map(|missing| SwitchOutcome::Refused {
            reason: format!(
                "{missing} chunks that {} has a vector of have none under {}; `embank errors` and `embank retry` with \
                 --embedder say why and queue them again",
                self.from.embedder_id, to.embedder_id
            ),
        }))
    }

    fn renewal(&self) -> RenewOptions {
        let SwitchOptions { policy, build, validate, .. } = &self.options;
        RenewOptions { policy: *policy, build: *build, validate: *validate, ..RenewOptions::default() }
    }

    /// How many chunks would be found no more.
    async fn missing(&self) -> Result<Option<u64>> {
        self.from.store.refresh().await?;
        let counts = self.from.store.status.counts().await?;
        let ready = |bank: &Bank| counts.get(&bank.embedder_id).map_or(0, |counts| counts.ready);
        Ok(ready(self.from).checked_sub(ready(self.to)).filter(|missing| *missing > 0))
    }

    async fn flip(&self, agreement: Option<&Agreement>) -> Result<SwitchOutcome> {
        let Self { from, to, options } = self;
        let overlap = agreement.map(|agreement| agreement.overlap);
        if let Some(overlap) = overlap.filter(|overlap| *overlap < options.min_overlap) {
            let reason =
                format!("the two share {overlap:.4} of their answers, below the required {}", options.min_overlap);
            return Ok(SwitchOutcome::Refused { reason });
        }
        let standing = pointer::read(&from.store).await?.ok_or_else(|| pointer::not_serving(from, None))?;
        standing.state.check_serves(from)?;
        if standing.state.next.as_ref().is_none_or(|next| next.id != to.embedder_id) {
            return Err(pointer::not_serving(to, standing.state.next.as_ref()));
        }
        let now = from.store.clock().now();
        pointer::write(&from.store, Some(&standing), &standing.state.switched(overlap, now)).await?;
        from.store.fault_point("switch: pointer moved").await?;
        Ok(SwitchOutcome::Switched)
    }
}
