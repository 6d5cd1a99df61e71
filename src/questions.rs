//! Stored passages as questions: what validation asks an index where the embedder tells the two apart and nobody has kept
//! what people really ask.

use std::collections::HashMap;
use std::sync::Arc;

use crate::embed::{Embedder, TextKind, check_vector};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::index::AskAnew;
use crate::store::{Documents, Store};

/// Words of a passage that make a question: those of a long one.
const QUESTION_WORDS: usize = 24;

/// Questions in one call of the embedder.
const AT_ONCE: usize = 64;

/// How passages become questions; `None` where they are embedded alike, and for a remote embedder: what it is sent, and
/// what that costs, is the user's to decide.
pub(crate) fn ask_anew(embedder: &Arc<dyn Embedder>, store: &Store) -> Option<AskAnew> {
    let identity = embedder.identity();
    if identity.query_prefix == identity.passage_prefix || identity.weights.starts_with("remote:") {
        return None;
    }
    let (embedder, documents) = (embedder.clone(), store.documents.clone());
    Some(Arc::new(move |ids| {
        let (embedder, documents) = (embedder.clone(), documents.clone());
        Box::pin(async move { embed_beginnings(&*embedder, &documents, &ids).await })
    }))
}

async fn embed_beginnings(
    embedder: &dyn Embedder,
    documents: &Documents,
    ids: &[ChunkId],
) -> Result<HashMap<ChunkId, Vec<f32>>> {
    let passages = documents.passages(ids).await?;
    let (ids, texts): (Vec<_>, Vec<_>) =
        passages.into_iter().map(|(id, passage)| (id, beginning(&passage.content))).unzip();
    let mut found = HashMap::with_capacity(ids.len());
    let most = embedder.texts_per_call().clamp(1, AT_ONCE);
    for (ids, texts) in ids.chunks(most).zip(texts.chunks(most)) {
        let answers = embedder.embed(TextKind::Query, texts).await?;
        if answers.len() != texts.len() {
            let (embedder, got, want) = (embedder.identity().name.clone(), answers.len(), texts.len());
            let reason = format!("it gave {got} answers for {want} questions");
            return Err(Error::EmbedderFailed { embedder, reason, source: None });
        }
        let answered = ids.iter().cloned().zip(answers.into_iter().map(|answer| answer.vector));
        found.extend(answered.filter(|(_, vector)| check_vector(vector, embedder.identity()).is_ok()));
    }
    Ok(found)
}

fn beginning(passage: &str) -> String {
    passage.split_whitespace().take(QUESTION_WORDS).collect::<Vec<_>>().join(" ")
}
