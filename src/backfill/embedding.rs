//! One claimed batch: look up the cache, embed what is missing, commit in order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::BoxFuture;

use super::{Backfill, BackfillReport, ChunkFailure, FAILURES_NAMED, LEASE, Vectors};
use crate::embed::{Embedded, TextKind, check_vector};
use crate::error::{Error, Result};
use crate::id::ContentHash;
use crate::store::{EmbeddingRow, Outcome, Passage, StatusRow, WorkerId};

/// Texts given to the embedder between two looks at the lease.
const TEXTS_PER_CALL: usize = 512;

/// Why one text could not be embedded.
#[derive(Clone, Debug)]
struct TextFailure {
    kind: &'static str,
    message: String,
}

impl Backfill {
    pub(super) async fn embed_claimed(
        &self,
        claimed: Vec<StatusRow>,
        worker: &WorkerId,
        report: &mut BackfillReport,
    ) -> Result<()> {
        let ids: Vec<_> = claimed.iter().map(|row| row.id.clone()).collect();
        // After the claim: an ingest writes documents before states, so what is claimed is visible now, or gone.
        self.store.documents_refresh().await?;
        let passages = self.store.documents.passages(&ids).await?;
        let orphans: Vec<_> = ids.iter().filter(|id| !passages.contains_key(id)).cloned().collect();
        // Their document was deleted after the claim.
        self.store.status.delete(&orphans).await?;

        let mut vectors = self.cached(&passages).await?;
        let failures = self.embed_missing(&passages, &claimed, worker, &mut vectors, report).await?;

        let now = self.store.clock().now();
        let rows: Vec<_> = passages.values().filter_map(|passage| row(passage, &vectors)).collect();
        self.embeddings.refresh().await?;
        self.embeddings.insert(&rows, now).await?;
        tracing::debug!(rows = rows.len(), "vectors stored");
        // Status last: a crash before this line only repeats work.
        let outcomes = claimed.into_iter().filter_map(|row| {
            let passage = passages.get(&row.id)?;
            Some((row, outcome(passage, &vectors, &failures, report)))
        });
        let outcomes: Vec<_> = outcomes.collect();
        let finished = self.store.status.finish(outcomes, worker, now).await?;
        self.store.acknowledge().await?;
        tracing::debug!(finished, "batch committed");
        Ok(())
    }

    async fn cached(&self, passages: &HashMap<crate::id::ChunkId, Passage>) -> Result<Vectors> {
        let hashes: HashSet<_> = passages.values().map(|passage| passage.content_hash).collect();
        let hashes: Vec<_> = hashes.into_iter().collect();
        self.cache.refresh().await?;
        self.cache.get(&hashes).await
    }

    /// Embeds each text that is not in `vectors` once, and adds it there and to the cache.
    async fn embed_missing(
        &self,
        passages: &HashMap<crate::id::ChunkId, Passage>,
        claimed: &[StatusRow],
        worker: &WorkerId,
        vectors: &mut Vectors,
        report: &mut BackfillReport,
    ) -> Result<HashMap<ContentHash, TextFailure>> {
        let clock = self.store.clock();
        let mut seen = HashSet::new();
        // In the order of the claim, which is the order of ingest: reproducible batches.
        let missing: Vec<_> = claimed
            .iter()
            .filter_map(|row| passages.get(&row.id))
            .filter(|passage| !vectors.contains_key(&passage.content_hash) && seen.insert(passage.content_hash))
            .collect();
        report.reused += (passages.len() - missing.len()) as u64;
        let mut failures = HashMap::new();
        let mut renewed_at = clock.now();
        for some in missing.chunks(TEXTS_PER_CALL) {
            if clock.now().since(renewed_at) > LEASE / 3 {
                renewed_at = clock.now();
                self.store.status.renew(claimed, worker, renewed_at, LEASE).await?;
            }
            let texts: Vec<_> = some.iter().map(|passage| passage.content.clone()).collect();
            report.embedded += texts.len() as u64;
            let answers = self.embed_each(&texts).await?;
            let mut fresh = Vec::with_capacity(some.len());
            for (passage, answer) in some.iter().zip(answers) {
                match answer {
                    Ok(embedded) => {
                        report.tokens += u64::from(embedded.tokens);
                        report.truncated += u64::from(embedded.truncated);
                        fresh.push((passage.content_hash, Arc::<[f32]>::from(embedded.vector)));
                    }
                    Err(failure) => {
                        failures.insert(passage.content_hash, failure);
                    }
                }
            }
            // The cache first: from here on no crash makes the embedder see these texts again.
            self.cache.append(&fresh, clock.now()).await?;
            tracing::debug!(texts = fresh.len(), "cached");
            vectors.extend(fresh);
        }
        Ok(failures)
    }

    /// One answer for each text. A batch that fails as a whole, or is answered with a wrong count, is halved until the text
    /// at fault stands alone.
    fn embed_each<'a>(&'a self, texts: &'a [String]) -> BoxFuture<'a, Result<Vec<Result<Embedded, TextFailure>>>> {
        Box::pin(async move {
            let failure = match self.embedder.embed(TextKind::Passage, texts).await {
                Ok(answers) if answers.len() == texts.len() => {
                    return Ok(answers.into_iter().map(|answer| self.checked(answer)).collect());
                }
                Ok(answers) => TextFailure {
                    kind: "count",
                    message: format!("the embedder gave {} answers for {} texts", answers.len(), texts.len()),
                },
                // Not a matter of a text: no other text would fare better.
                Err(
                    error @ (Error::ModelMissing { .. } | Error::ChecksumMismatch { .. } | Error::ModelFormat { .. }),
                ) => {
                    return Err(error);
                }
                Err(error) => TextFailure { kind: "embedder", message: error_chain(&error) },
            };
            if texts.len() <= 1 {
                return Ok(texts.iter().map(|_| Err(failure.clone())).collect());
            }
            let (left, right) = texts.split_at(texts.len() / 2);
            let mut answers = self.embed_each(left).await?;
            answers.extend(self.embed_each(right).await?);
            Ok(answers)
        })
    }

    fn checked(&self, answer: Embedded) -> Result<Embedded, TextFailure> {
        match check_vector(&answer.vector, self.embedder.identity()) {
            Ok(()) => Ok(answer),
            Err(defect) => Err(TextFailure { kind: "vector", message: defect.to_string() }),
        }
    }
}

fn row(passage: &Passage, vectors: &Vectors) -> Option<EmbeddingRow> {
    Some(EmbeddingRow {
        id: passage.id.clone(),
        content_hash: passage.content_hash,
        doc_id: passage.doc_id.clone(),
        doc_path: passage.doc_path.clone(),
        category: passage.category.clone(),
        vector: vectors.get(&passage.content_hash)?.clone(),
    })
}

fn outcome(
    passage: &Passage,
    vectors: &Vectors,
    failures: &HashMap<ContentHash, TextFailure>,
    report: &mut BackfillReport,
) -> Outcome {
    if vectors.contains_key(&passage.content_hash) {
        report.ready += 1;
        return Outcome::Stored;
    }
    let Some(failure) = failures.get(&passage.content_hash) else { return Outcome::Released };
    report.failed += 1;
    if report.failures.len() < FAILURES_NAMED {
        report.failures.push(ChunkFailure {
            id: passage.id.clone(),
            doc_path: passage.doc_path.clone(),
            reason: failure.message.clone(),
        });
    }
    Outcome::Failed { kind: failure.kind, message: failure.message.clone() }
}

/// An error with its causes, for the status table.
fn error_chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
