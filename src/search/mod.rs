//! Answering questions: pointer → generation → nearest chunks → documents.
//!
//! Guarantees: one search is answered from exactly one generation of one embedder, plus the rows newer than it; it is
//! searched with the settings that were validated. Must not know: how indexes are built, how documents are read.

mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod snippet;

use std::sync::Arc;

use futures::TryStreamExt;
use serde::Serialize;

pub use filter::SearchFilter;

use crate::embed::{Embedder, TextKind};
use crate::error::{Error, Result};
use crate::exact::ExactSearch;
use crate::id::{ChunkId, DocId, GenerationId};
use crate::store::{DocumentRow, Embeddings, Filter, IndexQuery, Neighbour, QuerySettings, Snapshot, Store};

/// Longest snippet, in characters.
const SNIPPET_CHARS: usize = 240;

/// How to search.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// Hits at most. Default 10.
    pub k: usize,
    /// Conditions on the hits; all of them must hold.
    pub filter: SearchFilter,
    /// Whether a document may appear with several chunks. Default: each with its best chunk.
    pub grouping: Grouping,
    /// Whether the question is kept in the bank. Default: not.
    pub query_log: QueryLogging,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self {
            k: 10,
            filter: SearchFilter::default(),
            grouping: Grouping::default(),
            query_log: QueryLogging::default(),
        }
    }
}

/// Whether questions in words are kept, with their vectors, in a file of the bank: so that indexes are validated with what
/// people ask. The newest thousand at least, twice that at most; nothing is sent anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueryLogging {
    /// Nothing is kept.
    #[default]
    Off,
    /// Text, vector and moment are kept.
    On,
}

/// What one hit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grouping {
    /// A document, by its best chunk.
    #[default]
    Documents,
    /// A chunk.
    Chunks,
}

/// The generation that answers, pinned.
#[derive(Clone, Debug)]
pub(crate) struct ActiveIndex {
    pub(crate) generation: GenerationId,
    /// Whether there is an index; a flat generation has none.
    pub(crate) is_flat: bool,
    pub(crate) settings: QuerySettings,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SearchResult {
    /// Best first.
    pub hits: Vec<Hit>,
    /// The generation that answered.
    pub generation: GenerationId,
    /// The embedder that it belongs to.
    pub embedder: String,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hit {
    /// 1 for the best.
    pub rank: usize,
    /// Cosine of question and chunk: 1 is the same direction.
    pub score: f32,
    /// The chunk.
    pub id: ChunkId,
    /// Its document.
    pub doc_id: DocId,
    /// The document's path below the folder that was ingested.
    pub doc_path: String,
    /// Its category.
    pub category: String,
    /// `Title › Section`.
    pub heading: String,
    /// The part of the chunk that has most of the question's words.
    pub snippet: String,
    /// Position of the chunk in the document, from 0.
    pub chunk_index: usize,
    /// Chunks of the document.
    pub total_chunks: usize,
    /// The document's attributes.
    pub attributes: serde_json::Map<String, serde_json::Value>,
}

/// A search against one generation; makes its own snapshot, so a long search is not disturbed by writers.
pub(crate) struct Search {
    pub(crate) store: Store,
    pub(crate) embedder: Arc<dyn Embedder>,
    pub(crate) embeddings: Embeddings,
    pub(crate) index: ActiveIndex,
}

impl Search {
    /// Answers a question in words.
    pub(crate) async fn text(&self, query: &str, options: &SearchOptions) -> Result<SearchResult> {
        check(query, options)?;
        let answers = self.embedder.embed(TextKind::Query, &[query.to_owned()]).await?;
        let answer = answers.into_iter().next().ok_or_else(|| Error::EmbedderFailed {
            embedder: self.embedder.identity().name.clone(),
            reason: "it gave no answer for the query".to_owned(),
            source: None,
        })?;
        if options.query_log == QueryLogging::On {
            self.log(query, &answer.vector).await;
        }
        self.answer(query, &answer.vector, options).await
    }

    /// Keeps a question. One that cannot be kept is answered all the same.
    async fn log(&self, query: &str, vector: &[f32]) {
        let log = self.store.query_log(&self.embedder.identity().id(), self.embeddings.dimension());
        if let Err(error) = log.append(query, vector, self.store.clock().now()).await {
            tracing::warn!(%error, "the question was not kept");
        }
    }

    /// Answers a question that is a vector already.
    pub(crate) async fn vector(&self, query: &[f32], options: &SearchOptions) -> Result<SearchResult> {
        if query.len() != self.embeddings.dimension() {
            let (got, want) = (query.len(), self.embeddings.dimension());
            let reason = format!("the vector has {got} dimensions, the embedder has {want}");
            return Err(Error::InvalidQuery { reason });
        }
        if !query.iter().all(|x| x.is_finite()) || query.iter().all(|x| *x == 0.0) {
            let reason = "the vector must be finite and not zero".to_owned();
            return Err(Error::InvalidQuery { reason });
        }
        check("vector", options)?;
        self.answer("", query, options).await
    }

    async fn answer(&self, words: &str, query: &[f32], options: &SearchOptions) -> Result<SearchResult> {
        self.embeddings.refresh().await?;
        let snapshot = self.embeddings.snapshot().await?;
        let filter = options.filter.to_store_filter();
        let mut wanted = options.k;
        loop {
            let neighbours = self.nearest(&snapshot, query, wanted, filter.as_ref()).await?;
            let exhausted = neighbours.len() < wanted;
            let found = self.embeddings.chunk_ids(&snapshot, &neighbours).await?;
            let ids: Vec<_> = found.iter().map(|(id, _)| id.clone()).collect();
            let mut documents = self.store.documents.get(&ids).await?;
            // A chunk whose document is gone is about to be removed by an ingest: not an answer.
            let rows = found.into_iter().filter_map(|(id, distance)| Some((documents.remove(&id)?, distance)));
            let hits = hits(words, rows, options);
            // Several chunks of one document, or removed ones, leave too few: look further.
            if hits.len() >= options.k || exhausted {
                let embedder = self.embedder.identity().name.clone();
                return Ok(SearchResult { hits, generation: self.index.generation.clone(), embedder });
            }
            wanted = wanted.saturating_mul(4);
        }
    }

    async fn nearest(
        &self,
        snapshot: &Snapshot,
        query: &[f32],
        k: usize,
        filter: Option<&Filter>,
    ) -> Result<Vec<Neighbour>> {
        if !self.index.is_flat {
            let ActiveIndex { generation, settings, .. } = &self.index;
            let query = IndexQuery { generation, vector: query, k, settings, filter };
            return self.embeddings.search_index(snapshot, &query).await;
        }
        let mut exact = ExactSearch::new(query, self.embeddings.dimension(), k);
        let mut batches = self.embeddings.vectors(snapshot, filter.cloned()).await?;
        while let Some(batch) = batches.try_next().await? {
            exact.feed(&batch.row_ids, &batch.vectors);
        }
        let found = exact.finish().into_iter().flatten();
        Ok(found.map(|n| Neighbour { row_id: n.row_id, distance: n.distance }).collect())
    }
}

/// Refuses what cannot be answered, before anything is read.
pub(crate) fn check(query: &str, options: &SearchOptions) -> Result<()> {
    if query.trim().is_empty() {
        return Err(Error::InvalidQuery { reason: "it is empty".to_owned() });
    }
    if options.k == 0 {
        return Err(Error::InvalidQuery { reason: "k is 0; ask for at least one hit".to_owned() });
    }
    Ok(())
}

fn hits(words: &str, rows: impl Iterator<Item = (DocumentRow, f32)>, options: &SearchOptions) -> Vec<Hit> {
    let mut seen = std::collections::HashSet::new();
    rows.filter(|(row, _)| {
        options.grouping == Grouping::Chunks || seen.insert((row.source.clone(), row.doc_id.clone()))
    })
    .take(options.k)
    .enumerate()
    .map(|(position, (row, distance))| Hit {
        rank: position + 1,
        score: 1.0 - distance,
        snippet: snippet::snippet(&row.content, &row.heading, words, SNIPPET_CHARS),
        id: row.id,
        doc_id: row.doc_id,
        doc_path: row.doc_path,
        category: row.category,
        heading: row.heading,
        chunk_index: row.chunk_index,
        total_chunks: row.total_chunks,
        attributes: row.attributes,
    })
    .collect()
}
