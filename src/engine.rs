//! The [`Bank`]: one directory, one embedder, and the stages that work on them.
//!
//! A bank is a cheap handle. It owns no threads and no state but its tables, so any number of handles and processes may work
//! on one directory at once.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::BoxStream;
use serde::Serialize;

use crate::backfill::{Backfill, BackfillOptions, BackfillReport};
use crate::clock::Clock;
use crate::embed::{Embedder, Estimate};
use crate::error::{Error, Result};
use crate::id::{ChunkId, EmbedderId, GenerationId};
use crate::index::{Activation, BuildOptions, Built, Generation, Indexing, ValidateOptions, Validated};
use crate::ingest::{Ingest, IngestOptions, IngestReport};
use crate::ledger::BankLedger;
use crate::memory::{MemoryLimit, RowShape};
use crate::progress::{Cancel, Listener};
use crate::search::{ActiveIndex, Search, SearchOptions, SearchResult};
use crate::store::{
    DocumentRow, EmbeddingCache, Embeddings, FailedChunks, FailureGroup, Mend, RetryReport, RunRow, StatusCounts,
    StatusRow, Store, StoreOptions, TableSize,
};

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

/// The state of a bank, for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct BankStatus {
    /// The bank's directory.
    pub bank: PathBuf,
    /// The embedder that this handle looks through.
    pub embedder: EmbedderId,
    /// Chunks in the bank.
    pub chunks: u64,
    /// Chunks of every embedder, by state.
    pub status: Vec<EmbedderStatus>,
    /// Rows of this embedder's cache.
    pub cached: u64,
    /// What search follows.
    pub active: Option<Generation>,
    /// Vectors that are newer than the active index; they are searched flat.
    pub newer_than_index: u64,
    /// What this handle found damaged, and mended; see [`Bank::mends`].
    pub mended: Vec<Mend>,
    /// Files that were ever set aside in mending, below the bank's directory. They can be deleted.
    pub set_aside: Vec<PathBuf>,
    /// Every table.
    pub tables: Vec<TableSize>,
    /// Bytes of the whole bank.
    pub bytes: u64,
}

/// What could not be embedded, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failures {
    /// By cause, the most frequent first.
    pub causes: Vec<FailureGroup>,
    /// The documents of the chunks that are named as examples.
    pub doc_paths: HashMap<ChunkId, String>,
}

/// One embedder's chunks.
#[derive(Clone, Debug, Serialize)]
pub struct EmbedderStatus {
    /// The embedder.
    pub embedder: EmbedderId,
    /// Its chunks by state.
    #[serde(flatten)]
    pub counts: StatusCounts,
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

    /// Builds the next index generation. It serves nothing before it is validated and activated.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::CannotBuild`], [`Error::Cancelled`].
    pub fn build_index(&self, options: BuildOptions) -> Pending<'_, Built> {
        Box::pin(async move { self.indexing().build(options).await })
    }

    /// Measures the recall of a built generation and lets it pass, or not.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`]: the active generation stays what it was.
    pub fn validate(&self, built: Built, options: ValidateOptions) -> Pending<'_, Validated> {
        Box::pin(async move { self.indexing().validate(built, &options).await })
    }

    /// Builds and validates; with [`IndexKind::Auto`](crate::IndexKind::Auto) IVF_PQ is tried where HNSW is refused.
    ///
    /// # Errors
    /// As [`Bank::build_index`] and [`Bank::validate`].
    pub fn build_validated(&self, build: BuildOptions, validate: ValidateOptions) -> Pending<'_, Validated> {
        Box::pin(async move { self.indexing().build_validated(build, &validate).await })
    }

    /// Moves the pointer that search follows to a validated generation.
    ///
    /// # Errors
    /// [`Error::PointerMoved`] if another process was faster.
    pub fn activate(&self, validated: Validated) -> Pending<'_, Activation> {
        Box::pin(async move { self.indexing().activate(validated).await })
    }

    /// Leaves a validated generation ready, for [`Bank::activate_generation`] later.
    ///
    /// # Errors
    /// Those of the store.
    pub fn set_aside(&self, validated: Validated) -> Pending<'_, GenerationId> {
        Box::pin(async move { self.indexing().set_aside(validated).await })
    }

    /// Moves the pointer to a generation that passed validation earlier.
    ///
    /// # Errors
    /// [`Error::WrongState`] for one that never passed.
    pub fn activate_generation<'a>(&'a self, id: &'a GenerationId) -> Pending<'a, Activation> {
        Box::pin(async move { self.indexing().activate_stored(id).await })
    }

    /// Returns to the generation that was active before.
    ///
    /// # Errors
    /// [`Error::WrongState`] if there is none.
    pub fn rollback(&self) -> Pending<'_, Activation> {
        Box::pin(async move { self.indexing().rollback().await })
    }

    /// All generations of this embedder, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub fn generations(&self) -> Pending<'_, Vec<Generation>> {
        Box::pin(async move { self.indexing().list().await })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`Error::InvalidQuery`] before anything is read; [`Error::NoActiveGeneration`].
    pub fn search<'a>(&'a self, query: &'a str, options: &'a SearchOptions) -> Pending<'a, SearchResult> {
        Box::pin(async move {
            crate::search::check(query, options)?;
            self.searching().await?.text(query, options).await
        })
    }

    /// Finds the nearest chunks to a vector of this embedder.
    ///
    /// # Errors
    /// As [`Bank::search`].
    pub fn search_vector<'a>(&'a self, query: &'a [f32], options: &'a SearchOptions) -> Pending<'a, SearchResult> {
        Box::pin(async move { self.searching().await?.vector(query, options).await })
    }

    /// Counts, sizes, and what is active.
    ///
    /// # Errors
    /// Those of the store.
    pub fn status(&self) -> Pending<'_, BankStatus> {
        Box::pin(async move {
            self.store.refresh().await?;
            self.embeddings.refresh().await?;
            self.cache.refresh().await?;
            let active = self.indexing().active().await?;
            let mut status: Vec<_> = self.store.status.counts().await?.into_iter().collect();
            status.sort_by(|a, b| a.0.cmp(&b.0));
            let tables = self.store.sizes().await?;
            Ok(BankStatus {
                bank: self.root().to_owned(),
                embedder: self.embedder_id.clone(),
                chunks: self.store.documents.count().await?,
                status: status.into_iter().map(|(embedder, counts)| EmbedderStatus { embedder, counts }).collect(),
                cached: self.cache.count().await?,
                newer_than_index: self.newer_than(active.as_ref()).await?,
                active,
                mended: self.mends(),
                set_aside: self.store.set_aside()?,
                bytes: tables.iter().map(|table| table.bytes).sum(),
                tables,
            })
        })
    }

    /// Failed chunks, at most `limit`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn errors(&self, limit: usize) -> Pending<'_, Vec<StatusRow>> {
        Box::pin(async move { self.store.status.errors(&self.embedder_id, limit).await })
    }

    /// Failed chunks by cause, the most frequent first, with the documents of the examples.
    ///
    /// # Errors
    /// Those of the store.
    pub fn failures(&self) -> Pending<'_, Failures> {
        Box::pin(async move {
            self.store.refresh().await?;
            let causes = self.store.status.failure_groups(&self.embedder_id).await?;
            let ids: Vec<_> = causes.iter().flat_map(|cause| cause.examples.iter().cloned()).collect();
            let documents = self.store.documents.get(&ids).await?;
            let doc_paths = documents.into_iter().map(|(id, row)| (id, row.doc_path)).collect();
            Ok(Failures { causes, doc_paths })
        })
    }

    /// Makes failed chunks due at once, as if they had never been tried: the next backfill embeds them.
    ///
    /// # Errors
    /// Those of the store.
    pub fn retry(&self, which: FailedChunks) -> Pending<'_, RetryReport> {
        Box::pin(async move {
            let report = self.backfilling().retry(&which).await?;
            self.store.acknowledge().await?;
            Ok(report)
        })
    }

    /// All chunks in storage order, streamed.
    ///
    /// # Errors
    /// Those of the store.
    pub fn documents(&self) -> Pending<'_, BoxStream<'static, Result<Vec<DocumentRow>>>> {
        Box::pin(async move {
            self.store.refresh().await?;
            self.store.documents.rows().await
        })
    }

    /// What earlier runs did, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub fn runs(&self) -> Pending<'_, Vec<RunRow>> {
        Box::pin(async move { self.store.runs.list().await })
    }

    /// What the policy of [`crate::schedule`] decides by.
    pub(crate) async fn index_statistics(&self) -> Result<crate::schedule::IndexStatistics> {
        self.embeddings.refresh().await?;
        let active = self.indexing().active().await?;
        let lost = match &active {
            Some(generation) if !self.indexing().has_its_index(generation).await? => Some(generation.id.clone()),
            _ => None,
        };
        Ok(crate::schedule::IndexStatistics {
            rows: self.embeddings.count().await?,
            active: match &active {
                Some(generation) if lost.is_none() => Some(crate::schedule::ActiveStatistics {
                    rows_at_build: generation.rows,
                    newer: self.newer_than(active.as_ref()).await?,
                    kind: generation.index_kind(),
                }),
                _ => None,
            },
            lost,
        })
    }

    async fn newer_than(&self, active: Option<&Generation>) -> Result<u64> {
        let Some(generation) = active.filter(|generation| generation.spec.is_some()) else { return Ok(0) };
        let snapshot = self.embeddings.snapshot().await?;
        Ok(self.embeddings.coverage(&snapshot, &generation.id).await?.map_or(0, |coverage| coverage.newer))
    }

    async fn searching(&self) -> Result<Search> {
        let active = self
            .indexing()
            .active()
            .await?
            .ok_or_else(|| Error::NoActiveGeneration { embedder: self.embedder.identity().name.clone() })?;
        self.store.documents_refresh().await?;
        self.embeddings.refresh().await?;
        let is_lost = !self.indexing().has_its_index(&active).await?;
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

    fn backfilling(&self) -> Backfill {
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
        }
    }

    fn row_shape(&self) -> RowShape {
        let identity = self.embedder.identity();
        RowShape { dimension: identity.dimension, max_tokens: identity.max_tokens }
    }

    /// Runs a step and leaves a row about it, unless it was idle: repeating a step changes nothing.
    async fn recorded<T: Serialize>(
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
        let row = RunRow {
            id: uuid::Uuid::now_v7().to_string(),
            kind: kind.to_owned(),
            started_at,
            ended_at: self.store.clock().now(),
            outcome: outcome.to_owned(),
            report,
        };
        let recorded = async {
            self.store.runs.append(&row).await?;
            self.store.acknowledge().await
        };
        // Where the step has failed the row may fail for the same reason, and the step's error says more.
        match (recorded.await, &result) {
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
