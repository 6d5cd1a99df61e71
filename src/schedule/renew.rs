//! Seeing to the index: what the policy decides is done, and what comes of it is an outcome, not an error.

use serde::Serialize;

use super::policy::{IndexAction, RebuildPolicy};
use crate::engine::{Bank, Pending};
use crate::error::{Error, Result};
use crate::id::GenerationId;
use crate::index::{BuildOptions, LiveRecall, OptimiseReport, RecallReport, ValidateOptions};

/// What to do about the index, and how.
#[derive(Clone, Debug, Default)]
pub struct RenewOptions {
    /// When to fold rows into the index, and when to build one.
    pub policy: RebuildPolicy,
    /// What to build.
    pub build: BuildOptions,
    /// How to validate it; its `k` is also that of live recall.
    pub validate: ValidateOptions,
    /// When the active index is measured again.
    pub remeasure: Remeasure,
}

/// When the recall of the active index is measured again. It costs two passes over the vectors and some hundred queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remeasure {
    /// After rows were folded in.
    #[default]
    AfterFolding,
    /// Also where anything has changed since it was measured last. What a schedule does.
    WhereChanged,
}

/// What became of the index.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum IndexOutcome {
    /// There is nothing to index.
    Nothing,
    /// The active generation serves on.
    Kept {
        /// Why no new one was needed.
        reason: String,
        /// What was measured last of the recall over the present rows, if anything was.
        live: Option<LiveRecall>,
    },
    /// The active generation serves on, and newer rows were folded into its index.
    Optimised {
        /// It.
        generation: GenerationId,
        /// Rows that were folded in.
        rows: u64,
        /// Parts of the index beside the one that was built.
        deltas: u64,
        /// Seconds that it took, measuring excluded.
        seconds: f64,
        /// What was measured afterwards.
        live: Option<LiveRecall>,
        /// Why it was done.
        reason: String,
    },
    /// Newer rows could not be folded in; the active generation serves on, and they are searched flat.
    NotOptimised {
        /// What went wrong.
        reason: String,
    },
    /// A new generation is active.
    Activated {
        /// It.
        generation: GenerationId,
        /// Its kind.
        kind: String,
        /// Rows it covers.
        rows: u64,
        /// Seconds the build took, validation included.
        seconds: f64,
        /// What was measured.
        recall: Box<RecallReport>,
        /// Why it was built.
        reason: String,
    },
    /// A new generation was refused by the gate; the old one serves on.
    Refused {
        /// What the gate said.
        reason: String,
    },
    /// Somebody else is in maintenance; the old one serves on.
    Busy,
    /// It was cancelled before its turn.
    Cancelled,
}

impl IndexOutcome {
    /// Whether nothing was written.
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Nothing | Self::Kept { .. } | Self::Busy | Self::Cancelled)
    }

    /// What somebody should look at, in a sentence.
    pub fn warning(&self) -> Option<String> {
        match self {
            Self::Kept { live: Some(live), .. } | Self::Optimised { live: Some(live), .. } if live.is_low() => {
                Some(format!("recall@{} has fallen to {:.4}, below {:.4}", live.k, live.recall, live.required))
            }
            Self::NotOptimised { reason } => Some(format!("newer rows could not be folded into the index: {reason}")),
            _ => None,
        }
    }
}

impl Bank {
    /// Folds newer rows into the active index, or builds, validates and activates a new generation, if the policy asks for it.
    ///
    /// # Errors
    /// Those of the index stage, but for a refusal, a busy bank, and a cancellation, which are outcomes; and for rows that
    /// could not be folded in, which is one too.
    pub fn renew_index(&self, options: RenewOptions) -> Pending<'_, IndexOutcome> {
        Box::pin(async move { self.recorded("index", self.renew(options), IndexOutcome::is_idle).await })
    }

    /// Builds, validates and activates a new generation whatever the policy says.
    ///
    /// # Errors
    /// As [`Bank::renew_index`].
    pub fn rebuild_index(&self, options: RenewOptions) -> Pending<'_, IndexOutcome> {
        let reason = "it was asked for".to_owned();
        Box::pin(async move { self.recorded("index", self.rebuild(options, reason), IndexOutcome::is_idle).await })
    }

    async fn renew(&self, options: RenewOptions) -> Result<IndexOutcome> {
        let wanted = options.build.kind;
        let mut action = options.policy.decide(&self.index_statistics().await?, wanted);
        // What is built or optimised is measured anyway.
        if matches!(action, IndexAction::Keep { .. }) && options.remeasure == Remeasure::WhereChanged {
            match self.measure_live_if_changed(options.validate.k).await {
                Ok(_) => action = options.policy.decide(&self.index_statistics().await?, wanted),
                Err(Error::Cancelled) => return Ok(IndexOutcome::Cancelled),
                Err(error) => return Err(error),
            }
        }
        match action {
            IndexAction::Nothing => Ok(IndexOutcome::Nothing),
            IndexAction::Keep { reason } => Ok(IndexOutcome::Kept { reason, live: self.live_recall().await? }),
            IndexAction::Optimise { reason } => self.fold(options, reason).await,
            IndexAction::Build { reason } => match self.take_up_left_ready(&options, &reason).await? {
                Some(outcome) => Ok(outcome),
                None => self.rebuild(options, reason).await,
            },
        }
    }

    /// Folds newer rows in and measures what that made of the recall. A failure is an outcome: the old index serves on.
    async fn fold(&self, options: RenewOptions, reason: String) -> Result<IndexOutcome> {
        let folded = async {
            let report = self.optimise_index().await?;
            let live = self.measure_live_recall(options.validate.k).await?;
            Ok::<_, Error>((report, live))
        };
        match folded.await {
            Ok((OptimiseReport { generation, done: Some(done) }, live)) => Ok(IndexOutcome::Optimised {
                generation,
                rows: done.rows,
                deltas: done.deltas,
                seconds: done.seconds,
                live,
                reason,
            }),
            // Another process was faster.
            Ok((_, live)) => Ok(IndexOutcome::Kept { reason, live }),
            Err(Error::Busy { .. } | Error::LeaseLost { .. }) => Ok(IndexOutcome::Busy),
            Err(Error::Cancelled) => Ok(IndexOutcome::Cancelled),
            Err(error) => {
                tracing::warn!(%error, "newer rows could not be folded into the index");
                Ok(IndexOutcome::NotOptimised { reason: error.chain() })
            }
        }
    }

    async fn rebuild(&self, options: RenewOptions, reason: String) -> Result<IndexOutcome> {
        let RenewOptions { build, validate, .. } = options;
        let began = std::time::Instant::now();
        let finished = async {
            let validated = self.build_validated(build, validate).await?;
            let (kind, rows) = (validated.kind().to_owned(), validated.rows());
            let recall = Box::new(validated.report().clone());
            let activation = self.activate(validated).await?;
            Ok((activation.active, kind, rows, recall))
        };
        match finished.await {
            Ok((generation, kind, rows, recall)) => {
                let seconds = began.elapsed().as_secs_f64();
                Ok(IndexOutcome::Activated { generation, kind, rows, seconds, recall, reason })
            }
            Err(error @ Error::RecallTooLow { .. }) => Ok(IndexOutcome::Refused { reason: error.to_string() }),
            Err(Error::Busy { .. } | Error::LeaseLost { .. }) => Ok(IndexOutcome::Busy),
            Err(Error::Cancelled) => Ok(IndexOutcome::Cancelled),
            Err(error) => Err(error),
        }
    }
}
