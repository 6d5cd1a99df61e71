//! The [`Bank`]: one directory, one embedder, and the stages that work on them.
//!
//! A bank is a cheap handle. It owns no threads and no state but its tables, so any number of handles and processes may work
//! on one directory at once.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;

use crate::backfill::{Backfill, BackfillOptions, BackfillReport};
use crate::clock::{Clock, Timestamp};
use crate::embed::{Embedder, Estimate};
use crate::error::{Error, Result};
use crate::id::EmbedderId;
use crate::index::{Generation, Indexing};
use crate::ingest::{Ingest, IngestOptions, IngestReport};
use crate::ledger::BankLedger;
use crate::memory::{MemoryLimit, RowShape};
use crate::progress::{Cancel, Listener};
use crate::search::{ActiveIndex, Search, SearchOptions, SearchResult};
use crate::store::{EmbeddingCache, Embeddings, Mend, RunRow, Store, StoreOptions};

/// What a method of [`Bank`] returns: a future, to be awaited.
///
/// Boxed in a plain function, because the body of an `async fn` is compiled in every program that awaits it, and the bodies
/// here reach down to the query engine.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// How to open a bank.
#[derive(Clone, Debug, Default)]
pub struct BankOptions {
    /// Durability and caches.
    pub store: StoreOptions,
    /// Bytes of memory that the process should not pass, all of it counted. Bounds batches and caches, and refuses an index
    /// that cannot be built within it. Default: none; a backfill then takes about 250 MB and the embedder, an index what
    /// its kind needs.
    pub memory_limit: Option<u64>,
    /// Where the present moment comes from. Default: the machine.
    pub clock: Clock,
    /// Who is told about progress. Default: nobody.
    pub listener: Listener,
    /// Stops running steps. Default: never asked for.
    pub cancel: Cancel,
}

/// Generations that may be removed under one search before it gives up: each takes a build, so one is rare already.
const REMOVED_MEANWHILE: usize = 8;

/// What a search is asked.
#[derive(Clone, Copy)]
enum Question<'a> {
    Words(&'a str),
    Vector(&'a [f32]),
}

/// An open bank, seen through one embedder.
#[derive(Clone)]
pub struct Bank {
    pub(crate) store: Store,
    embedder: Arc<dyn Embedder>,
    pub(crate) embedder_id: EmbedderId,
    pub(crate) embeddings: Embeddings,
    pub(crate) cache: EmbeddingCache,
    memory: MemoryLimit,
    listener: Listener,
    cancel: Cancel,
}

impl Bank {
    /// Opens the bank in `root`.
    ///
    /// # Errors
    /// [`Error::NoBank`], [`Error::NotABank`] and [`Error::NewerFormat`] leave the directory untouched;
    /// [`Error::InvalidSetting`] where the memory limit is below what the program itself takes.
    pub fn open(root: impl AsRef<Path>, embedder: Arc<dyn Embedder>, options: BankOptions) -> Pending<'static, Self> {
        Self::open_path(root.as_ref().to_owned(), embedder, options)
    }

    /// Opens the bank in `root`, or makes one there if the directory is empty or missing.
    ///
    /// # Errors
    /// As [`Bank::open`], but for [`Error::NoBank`].
    pub fn open_or_create(
        root: impl AsRef<Path>,
        embedder: Arc<dyn Embedder>,
        options: BankOptions,
    ) -> Pending<'static, Self> {
        Self::open_or_create_path(root.as_ref().to_owned(), embedder, options)
    }

    fn open_path(root: PathBuf, embedder: Arc<dyn Embedder>, options: BankOptions) -> Pending<'static, Self> {
        Box::pin(async move {
            let memory = MemoryLimit::new(options.memory_limit, embedder.resident_bytes())?;
            let store = Store::open(&root, options.store.clone().within(memory), options.clock.clone()).await?;
            Self::with_store(store, embedder, memory, options).await
        })
    }

    fn open_or_create_path(root: PathBuf, embedder: Arc<dyn Embedder>, options: BankOptions) -> Pending<'static, Self> {
        Box::pin(async move {
            let memory = MemoryLimit::new(options.memory_limit, embedder.resident_bytes())?;
            let store =
                Store::open_or_create(&root, options.store.clone().within(memory), options.clock.clone()).await?;
            Self::with_store(store, embedder, memory, options).await
        })
    }

    async fn with_store(
        store: Store,
        embedder: Arc<dyn Embedder>,
        memory: MemoryLimit,
        options: BankOptions,
    ) -> Result<Self> {
        embedder.attach_ledger(Arc::new(BankLedger::new(store.clone())));
        let identity = embedder.identity();
        let (embedder_id, dimension) = (identity.id(), identity.dimension);
        Ok(Self {
            embeddings: store.embeddings(&embedder_id, dimension).await?,
            cache: store.cache(&embedder_id, dimension).await?,
            store,
            embedder,
            embedder_id,
            memory,
            listener: options.listener,
            cancel: options.cancel,
        })
    }

    /// The bank's directory, absolute.
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// The embedder that this handle looks through.
    pub fn embedder(&self) -> &Arc<dyn Embedder> {
        &self.embedder
    }

    /// What was found damaged when this handle opened its tables, and what was done about it. A warning says the same.
    pub fn mends(&self) -> Vec<Mend> {
        self.store.mends()
    }

    /// Brings the documents in step with what lies at `sources`, folders or files.
    ///
    /// # Errors
    /// [`Error::Io`] if a source does not exist. A bad file is a row of the report.
    pub fn ingest<P: AsRef<Path>>(&self, sources: &[P], options: IngestOptions) -> Pending<'_, IngestReport> {
        self.ingest_paths(owned_paths(sources), options)
    }

    pub(crate) fn ingest_paths(&self, sources: Vec<PathBuf>, options: IngestOptions) -> Pending<'_, IngestReport> {
        Box::pin(async move {
            let ingest = Ingest {
                store: self.store.clone(),
                embedder_id: self.embedder_id.clone(),
                counter: self.embedder.token_counter()?,
                memory: self.memory,
                row: self.row_shape(),
                listener: self.listener.clone(),
                cancel: self.cancel.clone(),
            };
            self.recorded("ingest", ingest.run(&sources, options), IngestReport::is_idle).await
        })
    }

    /// Embeds what is missing.
    ///
    /// # Errors
    /// Those of the store, and of an embedder that cannot work at all. A text that cannot be embedded is a row of the report.
    pub fn backfill(&self, options: BackfillOptions) -> Pending<'_, BackfillReport> {
        Box::pin(async move {
            // Before its first vector, so that nobody finds one without knowing what it should be like.
            crate::promise::record(&self.store, &self.embedder_id, self.embedder.identity()).await?;
            let backfill = self.backfilling();
            self.recorded("backfill", backfill.run(options), BackfillReport::is_idle).await
        })
    }

    /// What a backfill would give the embedder now: texts that are due and in no cache, each once, their tokens and price.
    /// Nothing is sent.
    ///
    /// # Errors
    /// Those of the store; those of [`Embedder::estimate`].
    pub fn backfill_estimate(&self) -> Pending<'_, Estimate> {
        Box::pin(async move { self.backfilling().estimate().await })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`Error::InvalidQuery`] before anything is read; [`Error::NoActiveGeneration`].
    pub fn search<'a>(&'a self, query: &'a str, options: &'a SearchOptions) -> Pending<'a, SearchResult> {
        Box::pin(async move {
            crate::search::check(query, options)?;
            self.answer(Question::Words(query), options).await
        })
    }

    /// Finds the nearest chunks to a vector of this embedder.
    ///
    /// # Errors
    /// As [`Bank::search`].
    pub fn search_vector<'a>(&'a self, query: &'a [f32], options: &'a SearchOptions) -> Pending<'a, SearchResult> {
        Box::pin(self.answer(Question::Vector(query), options))
    }

    /// Follows the pointer until a search of where it leads went through: between a look at it and the search the generation
    /// may have been replaced and removed.
    async fn answer(&self, question: Question<'_>, options: &SearchOptions) -> Result<SearchResult> {
        let mut attempts_left = REMOVED_MEANWHILE;
        loop {
            let search = self.searching().await?;
            let answered = match question {
                Question::Words(words) => search.text(words, options).await,
                Question::Vector(vector) => search.vector(vector, options).await,
            };
            match answered {
                Err(Error::UnknownGeneration { id }) if attempts_left > 0 => {
                    tracing::debug!(id, "the generation was removed under a search, which follows the pointer again");
                    attempts_left -= 1;
                }
                answered => return answered,
            }
        }
    }

    async fn searching(&self) -> Result<Search> {
        let mut active = self.active_generation().await?;
        self.store.documents_refresh().await?;
        self.embeddings.refresh().await?;
        let mut is_lost = !self.indexing().has_its_index(&active).await?;
        if is_lost {
            // Or removed, because the pointer has moved on.
            let now_active = self.active_generation().await?;
            if now_active.id != active.id {
                active = now_active;
                self.embeddings.refresh().await?;
                is_lost = !self.indexing().has_its_index(&active).await?;
            }
        }
        if is_lost {
            tracing::warn!(
                generation = %active.id,
                "the active index is lost; all vectors are searched instead, and the next `embank sync` builds one"
            );
        }
        Ok(Search {
            store: self.store.clone(),
            embedder: self.embedder.clone(),
            embeddings: self.embeddings.clone(),
            index: ActiveIndex {
                is_flat: active.spec.is_none() || is_lost,
                generation: active.id,
                settings: active.settings,
            },
        })
    }

    async fn active_generation(&self) -> Result<Generation> {
        let active = self.indexing().active().await?;
        active.ok_or_else(|| Error::NoActiveGeneration { embedder: self.embedder.identity().name.clone() })
    }

    pub(crate) fn backfilling(&self) -> Backfill {
        Backfill {
            store: self.store.clone(),
            embedder: self.embedder.clone(),
            embedder_id: self.embedder_id.clone(),
            embeddings: self.embeddings.clone(),
            cache: self.cache.clone(),
            memory: self.memory,
            row: self.row_shape(),
            listener: self.listener.clone(),
            cancel: self.cancel.clone(),
        }
    }

    pub(crate) fn indexing(&self) -> Indexing {
        Indexing {
            store: self.store.clone(),
            embedder_id: self.embedder_id.clone(),
            embeddings: self.embeddings.clone(),
            memory: self.memory,
            listener: self.listener.clone(),
            cancel: self.cancel.clone(),
            ask_anew: crate::questions::ask_anew(&self.embedder, &self.store),
        }
    }

    /// The request to stop that this handle was opened with.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    fn row_shape(&self) -> RowShape {
        let identity = self.embedder.identity();
        RowShape { dimension: identity.dimension, max_tokens: identity.max_tokens }
    }

    /// Leaves a row about a run that has ended.
    pub(crate) async fn note_run(
        &self,
        kind: &str,
        started_at: Timestamp,
        outcome: &str,
        report: String,
    ) -> Result<()> {
        let row = RunRow {
            id: uuid::Uuid::now_v7().to_string(),
            kind: kind.to_owned(),
            started_at,
            ended_at: self.store.clock().now(),
            outcome: outcome.to_owned(),
            report,
        };
        self.store.runs.append(&row).await?;
        self.store.acknowledge().await
    }

    /// Runs a step and leaves a row about it, unless it was idle: repeating a step changes nothing.
    pub(crate) async fn recorded<T: Serialize>(
        &self,
        kind: &str,
        step: impl Future<Output = Result<T>>,
        is_idle: fn(&T) -> bool,
    ) -> Result<T> {
        let started_at = self.store.clock().now();
        let result = step.await;
        let (outcome, report) = match &result {
            Ok(report) if is_idle(report) => return result,
            Ok(report) => ("done", serde_json::json!(report).to_string()),
            Err(error) => ("failed", serde_json::json!({ "error": error.to_string() }).to_string()),
        };
        let noted = self.note_run(kind, started_at, outcome, report).await;
        // Where the step has failed the row may fail for the same reason, and the step's error says more.
        match (noted, &result) {
            (Err(error), Ok(_)) => return Err(error),
            (Err(error), Err(_)) => tracing::warn!(%error, "the failed run is not on record"),
            (Ok(()), _) => {}
        }
        result
    }
}

pub(crate) fn owned_paths<P: AsRef<Path>>(paths: &[P]) -> Vec<PathBuf> {
    paths.iter().map(|path| path.as_ref().to_owned()).collect()
}
