//! The [`Bank`]: one directory, one embedder, and the stages that work on them.
//!
//! A bank is a cheap handle. It owns no threads and no state but its tables, so any number of handles and processes may work
//! on one directory at once.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::BoxStream;
use serde::Serialize;

use crate::backfill::{Backfill, BackfillOptions, BackfillReport};
use crate::clock::Clock;
use crate::embed::Embedder;
use crate::error::{Error, Result};
use crate::id::{EmbedderId, GenerationId};
use crate::index::{Activation, BuildOptions, Built, GarbageReport, Generation, Indexing, ValidateOptions, Validated};
use crate::ingest::{Ingest, IngestOptions, IngestReport};
use crate::progress::{Cancel, Listener};
use crate::search::{ActiveIndex, Search, SearchOptions, SearchResult};
use crate::store::{
    DocumentRow, EmbeddingCache, Embeddings, RunRow, StatusCounts, StatusRow, Store, StoreOptions, TableSize,
};

/// A future whose body is compiled once, in this library, instead of in every program that awaits it.
pub(crate) type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// How to open a bank.
#[derive(Clone, Debug, Default)]
pub struct BankOptions {
    /// Durability and caches.
    pub store: StoreOptions,
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
    cache: EmbeddingCache,
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
    /// Every table.
    pub tables: Vec<TableSize>,
    /// Bytes of the whole bank.
    pub bytes: u64,
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
    /// [`Error::NoBank`], [`Error::NotABank`] and [`Error::NewerFormat`] leave the directory untouched.
    pub async fn open(root: impl AsRef<Path>, embedder: Arc<dyn Embedder>, options: BankOptions) -> Result<Self> {
        let root = root.as_ref().to_owned();
        boxed(async move {
            let store = Store::open(&root, options.store, options.clock.clone()).await?;
            Self::with_store(store, embedder, options).await
        })
        .await
    }

    /// Opens the bank in `root`, or makes one there if the directory is empty or missing.
    ///
    /// # Errors
    /// As [`Bank::open`], but for [`Error::NoBank`].
    pub async fn open_or_create(
        root: impl AsRef<Path>,
        embedder: Arc<dyn Embedder>,
        options: BankOptions,
    ) -> Result<Self> {
        let root = root.as_ref().to_owned();
        boxed(async move {
            let store = Store::open_or_create(&root, options.store, options.clock.clone()).await?;
            Self::with_store(store, embedder, options).await
        })
        .await
    }

    async fn with_store(store: Store, embedder: Arc<dyn Embedder>, options: BankOptions) -> Result<Self> {
        let identity = embedder.identity();
        let (embedder_id, dimension) = (identity.id(), identity.dimension);
        Ok(Self {
            embeddings: store.embeddings(&embedder_id, dimension).await?,
            cache: store.cache(&embedder_id, dimension).await?,
            store,
            embedder,
            embedder_id,
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

    /// Brings the documents in step with what lies at `sources`, folders or files.
    ///
    /// # Errors
    /// [`Error::Io`] if a source does not exist. A bad file is a row of the report.
    pub async fn ingest<P: AsRef<Path>>(&self, sources: &[P], options: IngestOptions) -> Result<IngestReport> {
        let sources: Vec<PathBuf> = sources.iter().map(|source| source.as_ref().to_owned()).collect();
        boxed(async move {
            let ingest = Ingest {
                store: self.store.clone(),
                embedder_id: self.embedder_id.clone(),
                counter: self.embedder.token_counter()?,
                listener: self.listener.clone(),
                cancel: self.cancel.clone(),
            };
            self.recorded("ingest", ingest.run(&sources, options)).await
        })
        .await
    }

    /// Embeds what is missing.
    ///
    /// # Errors
    /// Those of the store, and of an embedder that cannot work at all. A text that cannot be embedded is a row of the report.
    pub async fn backfill(&self, options: BackfillOptions) -> Result<BackfillReport> {
        boxed(async move {
            let backfill = Backfill {
                store: self.store.clone(),
                embedder: self.embedder.clone(),
                embedder_id: self.embedder_id.clone(),
                embeddings: self.embeddings.clone(),
                cache: self.cache.clone(),
                listener: self.listener.clone(),
                cancel: self.cancel.clone(),
            };
            self.recorded("backfill", backfill.run(options)).await
        })
        .await
    }

    /// Builds the next index generation. It serves nothing before it is validated and activated.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::CannotBuild`], [`Error::Cancelled`].
    pub async fn build_index(&self, options: BuildOptions) -> Result<Built> {
        boxed(async move { self.indexing().build(options).await }).await
    }

    /// Measures the recall of a built generation and lets it pass, or not.
    ///
    /// # Errors
    /// [`Error::RecallTooLow`]: the active generation stays what it was.
    pub async fn validate(&self, built: Built, options: ValidateOptions) -> Result<Validated> {
        boxed(async move { self.indexing().validate(built, &options).await }).await
    }

    /// Moves the pointer that search follows to a validated generation.
    ///
    /// # Errors
    /// [`Error::PointerMoved`] if another process was faster.
    pub async fn activate(&self, validated: Validated) -> Result<Activation> {
        boxed(async move { self.indexing().activate(validated).await }).await
    }

    /// Moves the pointer to a generation that passed validation earlier.
    ///
    /// # Errors
    /// [`Error::WrongState`] for one that never passed.
    pub async fn activate_generation(&self, id: &GenerationId) -> Result<Activation> {
        boxed(async move { self.indexing().activate_stored(id).await }).await
    }

    /// Returns to the generation that was active before.
    ///
    /// # Errors
    /// [`Error::WrongState`] if there is none.
    pub async fn rollback(&self) -> Result<Activation> {
        boxed(async move { self.indexing().rollback().await }).await
    }

    /// All generations of this embedder, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn generations(&self) -> Result<Vec<Generation>> {
        boxed(async move { self.indexing().list().await }).await
    }

    /// Removes failed and long retired generations, and old versions of the tables.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub async fn collect_garbage(&self) -> Result<GarbageReport> {
        boxed(async move { self.indexing().collect_garbage().await }).await
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`Error::InvalidQuery`] before anything is read; [`Error::NoActiveGeneration`].
    pub async fn search(&self, query: &str, options: &SearchOptions) -> Result<SearchResult> {
        boxed(async move {
            crate::search::check(query, options)?;
            self.searching().await?.text(query, options).await
        })
        .await
    }

    /// Finds the nearest chunks to a vector of this embedder.
    ///
    /// # Errors
    /// As [`Bank::search`].
    pub async fn search_vector(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResult> {
        boxed(async move { self.searching().await?.vector(query, options).await }).await
    }

    /// Counts, sizes, and what is active.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn status(&self) -> Result<BankStatus> {
        boxed(async move {
            self.store.refresh().await?;
            self.embeddings.refresh().await?;
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
                bytes: tables.iter().map(|table| table.bytes).sum(),
                tables,
            })
        })
        .await
    }

    /// Failed chunks, at most `limit`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn errors(&self, limit: usize) -> Result<Vec<StatusRow>> {
        boxed(async move { self.store.status.errors(&self.embedder_id, limit).await }).await
    }

    /// All chunks in storage order, streamed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn documents(&self) -> Result<BoxStream<'static, Result<Vec<DocumentRow>>>> {
        boxed(async move {
            self.store.refresh().await?;
            self.store.documents.rows().await
        })
        .await
    }

    /// What earlier runs did, oldest first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn runs(&self) -> Result<Vec<RunRow>> {
        boxed(async move { self.store.runs.list().await }).await
    }

    /// What the policy of [`crate::schedule`] decides by.
    pub(crate) async fn index_statistics(&self) -> Result<crate::schedule::IndexStatistics> {
        self.embeddings.refresh().await?;
        let active = self.indexing().active().await?;
        Ok(crate::schedule::IndexStatistics {
            rows: self.embeddings.count().await?,
            active: match &active {
                None => None,
                Some(generation) => Some(crate::schedule::ActiveStatistics {
                    rows_at_build: generation.rows,
                    newer: self.newer_than(active.as_ref()).await?,
                    is_flat: generation.spec.is_none(),
                }),
            },
        })
    }

    async fn newer_than(&self, active: Option<&Generation>) -> Result<u64> {
        let Some(generation) = active.filter(|generation| generation.spec.is_some()) else { return Ok(0) };
        let snapshot = self.embeddings.snapshot().await?;
        Ok(self.embeddings.coverage(&snapshot, &generation.id).await?.map_or(0, |coverage| coverage.newer))
    }

    async fn searching(&self) -> Result<Search> {
        let active = self.indexing().active().await?.ok_or_else(|| Error::NoActiveGeneration {
            embedder: self.embedder.identity().name.clone(),
        })?;
        self.store.documents_refresh().await?;
        Ok(Search {
            store: self.store.clone(),
            embedder: self.embedder.clone(),
            embeddings: self.embeddings.clone(),
            index: ActiveIndex {
                is_flat: active.spec.is_none(),
                generation: active.id,
                settings: active.settings,
            },
        })
    }

    fn indexing(&self) -> Indexing {
        Indexing {
            store: self.store.clone(),
            embedder_id: self.embedder_id.clone(),
            embeddings: self.embeddings.clone(),
            listener: self.listener.clone(),
            cancel: self.cancel.clone(),
        }
    }

    /// Runs a step and leaves a row about it, if it did anything.
    async fn recorded<T: Serialize + Default + PartialEq>(
        &self,
        kind: &str,
        step: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started_at = self.store.clock().now();
        let result = step.await;
        let (outcome, report) = match &result {
            // A run that found nothing to do leaves no trace: repeating it changes nothing.
            Ok(report) if *report == T::default() => return result,
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
        self.store.runs.append(&row).await?;
        result
    }
}

pub(crate) fn boxed<'a, T>(future: impl Future<Output = Result<T>> + Send + 'a) -> Pending<'a, T> {
    Box::pin(future)
}
