//! Looking at a bank through its handle: the state of its tables, what failed and why, what earlier runs did.
//!
//! Nothing here writes, but for the retry of failed chunks, which stands beside their listing. Must not know: how any stage
//! works.

use std::collections::HashMap;
use std::path::PathBuf;

use futures::stream::BoxStream;
use serde::Serialize;

use crate::engine::{Bank, Pending};
use crate::error::Result;
use crate::id::{ChunkId, EmbedderId};
use crate::index::Generation;
use crate::store::{
    DocumentRow, FailedChunks, FailureGroup, Mend, RetryReport, RunRow, StatusCounts, StatusRow, TableSize,
};

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
    /// Parts of the active index beside the one that was built: one for each time that newer rows were folded in.
    pub index_deltas: u64,
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
            let coverage = match &active {
                Some(active) => self.coverage_of(active).await?,
                None => None,
            };
            let tables = self.store.sizes().await?;
            Ok(BankStatus {
                bank: self.root().to_owned(),
                embedder: self.embedder_id.clone(),
                chunks: self.store.documents.count().await?,
                status: status.into_iter().map(|(embedder, counts)| EmbedderStatus { embedder, counts }).collect(),
                cached: self.cache.count().await?,
                newer_than_index: coverage.map_or(0, |found| found.newer),
                index_deltas: coverage.map_or(0, |found| found.segments.saturating_sub(1)),
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
}
