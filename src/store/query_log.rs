//! Questions that were asked, for whoever wants an index validated with them: `queries__<embedder>.jsonl` in the bank, one
//! line a question with its vector.
//!
//! Guarantees: at most twice [`KEPT`] lines, the oldest go first; a line is written whole, by one call, so that processes may
//! log at once; a line that cannot be read is skipped. A file beside the tables and not one of them: a commit a question
//! would cost more than the question. It is kept by whoever asks for it alone, and leaves the bank with nobody.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Store;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::EmbedderId;

/// What its file name begins with.
pub(crate) const FILE_PREFIX: &str = "queries__";

/// Questions that are kept at least once so many were asked: enough for both query sets, twice.
const KEPT: usize = 1000;

/// Characters of a question that are kept.
const LONGEST: usize = 1000;

#[derive(Serialize, Deserialize)]
struct Line {
    at: i64,
    query: String,
    vector: Vec<f32>,
}

/// A question with what it was searched as.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoggedQuery {
    pub(crate) at: Timestamp,
    pub(crate) query: String,
    pub(crate) vector: Vec<f32>,
}

/// One embedder's log.
#[derive(Clone, Debug)]
pub(crate) struct QueryLog {
    path: PathBuf,
    dimension: usize,
}

impl Store {
    /// The log of one embedder's questions; there need not be one.
    pub(crate) fn query_log(&self, embedder: &EmbedderId, dimension: usize) -> QueryLog {
        QueryLog { path: self.root().join(format!("{FILE_PREFIX}{embedder}.jsonl")), dimension }
    }
}

impl QueryLog {
    /// Adds a question.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) async fn append(&self, query: &str, vector: &[f32], at: Timestamp) -> Result<()> {
        let query = query.chars().take(LONGEST).collect();
        let line = serde_json::json!(Line { at: at.0, query, vector: vector.to_vec() }).to_string() + "\n";
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || append(&path, line.as_bytes()));
        written.await.map_err(std::io::Error::from).and_then(|written| written).map_err(Error::io("write", &self.path))
    }

    /// The questions, each text once with its newest vector, the oldest first.
    ///
    /// # Errors
    /// [`Error::Io`] where there is a log that cannot be read.
    pub(crate) async fn read(&self) -> Result<Vec<LoggedQuery>> {
        let (path, dimension) = (self.path.clone(), self.dimension);
        let read = tokio::task::spawn_blocking(move || read(&path, dimension));
        read.await.map_err(std::io::Error::from).and_then(|read| read).map_err(Error::io("read", &self.path))
    }
}

fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(line)?;
    // By the length of this line: what is kept need not be exact.
    if file.metadata()?.len() > (2 * KEPT * line.len()) as u64 {
        trim(path)?;
    }
    Ok(())
}

/// Leaves the newest lines. What another process adds meanwhile may be lost, which costs a question of a sample.
fn trim(path: &Path) -> std::io::Result<()> {
    let text = std::fs::read(path)?;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let kept = lines.get(lines.len().saturating_sub(KEPT)..).unwrap_or_default().concat();
    let draft = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&draft, kept)?;
    std::fs::rename(&draft, path)
}

fn read(path: &Path, dimension: usize) -> std::io::Result<Vec<LoggedQuery>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut seen = HashSet::new();
    let mut found: Vec<_> = text
        .split(|byte| *byte == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .filter(|line| is_a_query(&line.vector, dimension) && seen.insert(line.query.clone()))
        .map(|line| LoggedQuery { at: Timestamp(line.at), query: line.query, vector: line.vector })
        .collect();
    found.reverse();
    Ok(found)
}

fn is_a_query(vector: &[f32], dimension: usize) -> bool {
    vector.len() == dimension && vector.iter().all(|x| x.is_finite()) && vector.iter().any(|x| *x != 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path) -> QueryLog {
        QueryLog { path: dir.join("queries__x.jsonl"), dimension: 2 }
    }

    #[tokio::test]
    async fn a_question_asked_twice_counts_once_and_what_is_no_question_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        assert_eq!(log.read().await.unwrap(), []);
        for (at, query, vector) in [(1, "a", [1.0, 0.0]), (2, "b", [0.0, 1.0]), (3, "a", [1.0, 1.0])] {
            log.append(query, &vector, Timestamp(at)).await.unwrap();
        }
        log.append("zero", &[0.0, 0.0], Timestamp(4)).await.unwrap();
        log.append("long", &[1.0, 0.0, 0.0], Timestamp(5)).await.unwrap();
        std::fs::OpenOptions::new().append(true).open(&log.path).unwrap().write_all(b"{\"at\": 6, \"qu").unwrap();
        let found = log.read().await.unwrap();
        let moments: Vec<_> = found.iter().map(|one| one.at.0).collect();
        assert_eq!(moments, [2, 3]);
        assert_eq!(found[1].vector, [1.0, 1.0]);
    }

    #[tokio::test]
    async fn the_oldest_questions_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path());
        for at in 0..(3 * KEPT as i64) {
            let line = serde_json::json!({"at": at, "query": format!("{at:06}"), "vector": [1.0, 0.5]}).to_string();
            append(&log.path, (line + "\n").as_bytes()).unwrap();
        }
        let found = log.read().await.unwrap();
        assert!((KEPT..=2 * KEPT + 2).contains(&found.len()), "{}", found.len());
        assert_eq!(found.last().unwrap().at.0, 3 * KEPT as i64 - 1);
        assert!(found.is_sorted_by_key(|one| one.at.0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }
}
