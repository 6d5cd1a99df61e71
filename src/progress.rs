//! Progress and cancellation as values. The library never prints: it reports [`Progress`] to whoever listens.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::{Error, Result};

/// One thing that happened in a step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A stage began; `total` is known for some stages.
    Started {
        /// Which stage.
        stage: Stage,
        /// Units of work ahead.
        total: Option<u64>,
    },
    /// `done` units of the stage are finished, counted from its start.
    Advanced {
        /// Which stage.
        stage: Stage,
        /// Units finished so far.
        done: u64,
    },
    /// The stage ended.
    Finished {
        /// Which stage.
        stage: Stage,
    },
    /// Something that a person may want to know, in a sentence.
    Note(String),
}

/// The stages that report progress, with their unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Fetching model files, in bytes.
    Pull,
    /// Reading and chunking sources, in files.
    Ingest,
    /// Embedding chunks, in chunks.
    Backfill,
    /// Drawing the sample that an index is trained on, in rows scanned.
    Train,
    /// Building an index, in steps of the build.
    Build,
    /// Computing ground truth, in rows scanned.
    GroundTruth,
    /// Measuring query settings, in settings tried.
    Tune,
}

impl Stage {
    /// The stage as a word for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Ingest => "ingest",
            Self::Backfill => "embed",
            Self::Train => "train",
            Self::Build => "build",
            Self::GroundTruth => "ground truth",
            Self::Tune => "tune",
        }
    }
}

/// A listener for [`Progress`], cheap to clone. The default listens to nothing.
#[derive(Clone, Default)]
pub struct Listener(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl Listener {
    /// Calls `listen` for each event, on whatever thread reports it.
    pub fn new(listen: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listen)))
    }

    /// Reports an event.
    pub fn report(&self, progress: Progress) {
        if let Some(listen) = &self.0 {
            listen(progress);
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Listener(on)" } else { "Listener(off)" })
    }
}

/// A request to stop, shared by clones. Steps look at it between units of work, finish what is in hand, and return.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Cancel {
    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once stopping was asked for.
    pub async fn cancelled(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }

    /// [`Error::Cancelled`] once stopping was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
