//! Chunks that could not be embedded: listed, grouped by their cause, and put back in the queue.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;

use super::chunk_status::{ALL, ChunkStatus, KEY, StatusRow, decode, encode, in_state, of};
use super::filter::Filter;
use super::table::Scan;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::failure::FailureKind;
use crate::id::{ChunkId, EmbedderId};
use crate::status::{ChunkEvent, ChunkState, transition};

/// Causes that are told apart; more than anybody reads.
const CAUSES: usize = 100;

/// Chunks that are named for a cause.
const EXAMPLES: usize = 3;

/// Which failed chunks; all of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedChunks {
    /// Those whose failure is of this kind.
    pub kind: Option<FailureKind>,
    /// Of these, where any are named.
    pub ids: Vec<ChunkId>,
}

/// What was put back in the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RetryReport {
    /// Failed chunks that are due now as if they were new.
    pub queued: u64,
    /// Of the ids that were named, those of no such chunk.
    pub not_failed: Vec<ChunkId>,
}

/// Failures with one cause.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureGroup {
    /// Their kind.
    pub kind: FailureKind,
    /// The message of one of them; messages that differ in numbers alone are one cause.
    pub message: String,
    /// How many chunks.
    pub count: u64,
    /// Those of them that are not tried again until somebody asks for it.
    pub parked: u64,
    /// When the next one of the others is due.
    pub next_attempt_at: Option<Timestamp>,
    /// Some of the chunks.
    pub examples: Vec<ChunkId>,
}

impl ChunkStatus {
    /// The embedder's failed rows, at most `limit`.
    pub(crate) async fn errors(&self, embedder: &EmbedderId, limit: usize) -> Result<Vec<StatusRow>> {
        self.read(failed(embedder), Some(limit)).await
    }

    /// The embedder's failures by cause, the most frequent first. Beyond the first hundred, causes are counted together.
    pub(crate) async fn failure_groups(&self, embedder: &EmbedderId) -> Result<Vec<FailureGroup>> {
        let mut groups: HashMap<(FailureKind, String), FailureGroup> = HashMap::new();
        let mut batches = self.0.scan(Scan::columns(&ALL).filter(failed(embedder))).await?;
        while let Some(batch) = batches.try_next().await? {
            for row in decode(self.0.name(), &batch)? {
                add(&mut groups, row);
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.message.cmp(&b.message)));
        Ok(groups)
    }

    /// Makes failed chunks due at once, as if they were new.
    pub(crate) async fn retry(
        &self,
        embedder: &EmbedderId,
        which: &FailedChunks,
        now: Timestamp,
    ) -> Result<RetryReport> {
        self.0.refresh().await?;
        let mut filter = vec![of(embedder), in_state(ChunkState::Error)];
        filter.extend(which.kind.map(|kind| Filter::Eq("error_kind", kind.as_str().to_owned())));
        if which.ids.is_empty() {
            let (queued, _) = self.retry_where(Filter::All(filter), now).await?;
            return Ok(RetryReport { queued, not_failed: Vec::new() });
        }
        let (mut queued, mut found) = (0, HashSet::new());
        for ids in which.ids.chunks(super::IDS_PER_STATEMENT) {
            let these = Filter::In("id", super::id_texts(ids));
            let filter = filter.iter().cloned().chain([these]).collect();
            let (some, ids) = self.retry_where(Filter::All(filter), now).await?;
            queued += some;
            found.extend(ids);
        }
        let not_failed = which.ids.iter().filter(|id| !found.contains(*id)).cloned().collect();
        Ok(RetryReport { queued, not_failed })
    }

    /// How many rows were changed, and which met the filter.
    async fn retry_where(&self, filter: Filter, now: Timestamp) -> Result<(u64, Vec<ChunkId>)> {
        let again = |row: StatusRow| StatusRow {
            state: transition(row.state, ChunkEvent::Retry).unwrap_or(row.state),
            attempts: 0,
            next_attempt_at: None,
            error_kind: None,
            error: None,
            updated_at: now,
            ..row
        };
        let rows: Vec<_> = self.read(filter.clone(), None).await?.into_iter().map(again).collect();
        if rows.is_empty() {
            return Ok((0, Vec::new()));
        }
        // Only those that still are what was read: another worker may have claimed some.
        let changed = self.0.update_where(&KEY, &filter, encode(&rows, &self.0)?).await?;
        Ok((changed, rows.into_iter().map(|row| row.id).collect()))
    }
}

fn failed(embedder: &EmbedderId) -> Filter {
    Filter::All(vec![of(embedder), in_state(ChunkState::Error)])
}

fn add(groups: &mut HashMap<(FailureKind, String), FailureGroup>, row: StatusRow) {
    let kind = row.error_kind.unwrap_or(FailureKind::Transient);
    let message = row.error.unwrap_or_default();
    let (mut key, mut message) = ((kind, without_numbers(&message)), message);
    if groups.len() >= CAUSES && !groups.contains_key(&key) {
        message = "other causes".to_owned();
        key.1.clone_from(&message);
    }
    let group = groups.entry(key).or_insert_with(|| FailureGroup {
        kind,
        message,
        count: 0,
        parked: 0,
        next_attempt_at: None,
        examples: Vec::new(),
    });
    group.count += 1;
    match row.next_attempt_at {
        None => group.parked += 1,
        Some(at) => group.next_attempt_at = Some(group.next_attempt_at.map_or(at, |next| next.min(at))),
    }
    if group.examples.len() < EXAMPLES {
        group.examples.push(row.id);
    }
}

/// The message with `#` for each number.
fn without_numbers(message: &str) -> String {
    let mut masked = String::with_capacity(message.len());
    for letter in message.chars() {
        if !letter.is_ascii_digit() {
            masked.push(letter);
        } else if !masked.ends_with('#') {
            masked.push('#');
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: u64, kind: FailureKind, message: &str, due: Option<i64>) -> StatusRow {
        StatusRow {
            id: ChunkId::from_stored(number.to_string()),
            embedder_id: EmbedderId::from_stored("e"),
            state: ChunkState::Error,
            attempts: 1,
            next_attempt_at: due.map(Timestamp),
            error_kind: Some(kind),
            error: Some(message.to_owned()),
            lease_owner: None,
            lease_until: None,
            embedding_version: 0,
            embedded_at: None,
            updated_at: Timestamp(0),
        }
    }

    fn grouped(rows: impl IntoIterator<Item = StatusRow>) -> HashMap<(FailureKind, String), FailureGroup> {
        let mut groups = HashMap::new();
        rows.into_iter().for_each(|row| add(&mut groups, row));
        groups
    }

    #[test]
    fn one_cause_has_its_count_its_next_attempt_and_a_few_examples() {
        use FailureKind::{Permanent, Transient};
        let groups = grouped([
            row(1, Transient, "not finite at position 3", Some(90)),
            row(2, Transient, "not finite at position 170", Some(70)),
            row(3, Transient, "not finite at position 4", None),
            row(4, Transient, "not finite at position 5", Some(80)),
            row(5, Permanent, "not finite at position 5", None),
            row(6, Permanent, "image a.png: it is gone", None),
        ]);
        assert_eq!(groups.len(), 3);
        let group = &groups[&(Transient, "not finite at position #".to_owned())];
        assert_eq!((group.count, group.parked, group.next_attempt_at), (4, 1, Some(Timestamp(70))));
        assert_eq!(group.message, "not finite at position 3");
        assert_eq!(group.examples.iter().map(ChunkId::as_str).collect::<Vec<_>>(), ["1", "2", "3"]);
    }

    #[test]
    fn a_bank_with_as_many_causes_as_chunks_is_counted_in_bounded_memory() {
        let letters = |n: u64| n.to_string().chars().map(|digit| char::from(b'a' + digit as u8 - b'0')).collect();
        let rows = (0..1000).map(|n| {
            let message: String = letters(n);
            row(n, FailureKind::Permanent, &message, None)
        });
        let groups = grouped(rows);
        assert_eq!(groups.len(), CAUSES + 1);
        assert_eq!(groups.values().map(|group| group.count).sum::<u64>(), 1000);
        assert_eq!(groups[&(FailureKind::Permanent, "other causes".to_owned())].count, 900);
    }
}
