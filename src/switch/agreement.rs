//! How far two embedders of one bank agree: both are asked the same questions, and their first chunks are compared.
//!
//! The questions are what people asked, where the bank keeps that, else texts of chunks, drawn over the whole bank; a chunk
//! never counts as the answer to its own text. Must not know: which of the two is right. That takes judgements (see [`crate::evaluate`]).

use std::collections::HashSet;

use futures::TryStreamExt;
use serde::Serialize;

use crate::engine::Bank;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::sample::SeededSample;
use crate::search::{Grouping, SearchOptions};

/// Chunks of each answer that are compared: what a page of results shows.
const FIRST: usize = 10;

/// Questions that people asked below which texts of chunks say more.
const ENOUGH: usize = 20;

/// Of the draw; any would do, but two measurements of one bank should ask the same.
const SEED: u64 = 7;

/// What two embedders answered to the same questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Questions asked of both.
    pub questions: usize,
    /// Where they came from.
    pub source: String,
    /// Chunks of each answer that were compared.
    pub k: usize,
    /// Mean share of these that both named, whatever the order.
    pub overlap: f64,
    /// The smallest share.
    pub worst: f64,
    /// Share of the questions to which both named the same chunk first.
    pub same_first: f64,
}

/// Asks both; `None` if there is nothing to ask, or one of them has no index.
pub(super) async fn measure(one: &Bank, other: &Bank, wanted: u64) -> Result<Option<Agreement>> {
    let (mut overlaps, mut same_first) = (Vec::new(), 0);
    let asked = asked(one, wanted).await?;
    let (source, questions) = match asked.len() {
        enough if enough >= ENOUGH => ("the query log", asked),
        _ => ("texts of chunks, themselves excluded", chunks(one, wanted).await?),
    };
    for Question { text, of } in questions {
        let answers = match (answer(one, of.as_ref(), &text).await, answer(other, of.as_ref(), &text).await) {
            (Err(Error::NoActiveGeneration { .. }), _) | (_, Err(Error::NoActiveGeneration { .. })) => return Ok(None),
            (a, b) => (a?, b?),
        };
        same_first += usize::from(answers.0.first() == answers.1.first());
        overlaps.push(shared(&answers.0, &answers.1));
    }
    if overlaps.is_empty() {
        return Ok(None);
    }
    let count = overlaps.len();
    Ok(Some(Agreement {
        questions: count,
        source: source.to_owned(),
        k: FIRST,
        overlap: overlaps.iter().sum::<f64>() / count as f64,
        worst: overlaps.iter().copied().fold(1.0, f64::min),
        same_first: same_first as f64 / count as f64,
    }))
}

/// Share of the longer answer that is in both.
fn shared(a: &[ChunkId], b: &[ChunkId]) -> f64 {
    let in_b: HashSet<_> = b.iter().collect();
    let both = a.iter().filter(|id| in_b.contains(id)).count();
    // Two that found nothing agree.
    if a.is_empty() && b.is_empty() { 1.0 } else { both as f64 / a.len().max(b.len()) as f64 }
}

/// What both are asked.
struct Question {
    text: String,
    /// The chunk whose text it is; never an answer.
    of: Option<ChunkId>,
}

async fn answer(bank: &Bank, of: Option<&ChunkId>, text: &str) -> Result<Vec<ChunkId>> {
    let options = SearchOptions { k: FIRST + 1, grouping: Grouping::Chunks, ..SearchOptions::default() };
    let found = bank.search(text, &options).await?;
    let others = found.hits.into_iter().map(|hit| hit.id).filter(|id| Some(id) != of);
    Ok(others.take(FIRST).collect())
}

/// The newest questions that people asked, where that is kept.
async fn asked(bank: &Bank, wanted: u64) -> Result<Vec<Question>> {
    let log = bank.store.query_log(&bank.embedder_id, bank.embeddings.dimension()).read().await?;
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let newest = log.into_iter().rev().take(wanted);
    Ok(newest.map(|asked| Question { text: asked.query, of: None }).collect())
}

/// Texts of chunks, drawn over the whole bank in one pass.
async fn chunks(bank: &Bank, wanted: u64) -> Result<Vec<Question>> {
    let mut drawn = Vec::new();
    if wanted == 0 {
        return Ok(drawn);
    }
    bank.store.refresh().await?;
    let mut sample = SeededSample::new(bank.store.documents.count().await?, wanted, SEED);
    let mut batches = bank.store.documents.rows().await?;
    while let Some(rows) = batches.try_next().await? {
        let taken = rows.into_iter().filter(|_| sample.take_next());
        let taken = taken.filter(|row| !row.content.trim().is_empty());
        drawn.extend(taken.map(|row| Question { text: row.content, of: Some(row.id) }));
    }
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_of_the_longer_answer() {
        let ids = |names: &[&str]| names.iter().map(|name| ChunkId::from_stored(*name)).collect::<Vec<_>>();
        assert_eq!(shared(&ids(&["a", "b"]), &ids(&["b", "a"])), 1.0);
        assert_eq!(shared(&ids(&["a", "b", "c", "d"]), &ids(&["a"])), 0.25);
        assert_eq!(shared(&ids(&["a"]), &ids(&["b"])), 0.0);
        assert_eq!(shared(&[], &[]), 1.0);
    }
}
