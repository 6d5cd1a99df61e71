//! One look at everything: the checks in turn, and what they have found.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Held;
use super::checks::{self, Check};
use super::findings::{Cure, Finding};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::EmbedderId;
use crate::progress::Cancel;
use crate::promise;
use crate::store::{CORE, Fact, Inspection, LEASE_KEY, VectorTable, is_held};

/// The tables as they were opened, and what is wrong with them.
pub(super) struct Look {
    pub(super) inspection: Inspection,
    pub(super) now: Timestamp,
    pub(super) findings: Vec<Finding>,
    /// Checks that could not look at everything, and why.
    pub(super) not_examined: BTreeMap<&'static str, String>,
    /// Tables whose files are all there: only their rows are looked at.
    pub(super) whole: BTreeSet<String>,
    pub(super) facts: Vec<Fact>,
    lease: Held,
}

impl Look {
    pub(super) fn new(inspection: Inspection, now: Timestamp, lease: Held) -> Self {
        Self {
            inspection,
            now,
            findings: Vec::new(),
            not_examined: BTreeMap::new(),
            whole: BTreeSet::new(),
            facts: Vec::new(),
            lease,
        }
    }

    /// Runs every check.
    pub(super) async fn through_everything(mut self, cancel: &Cancel) -> Result<Self> {
        self.files().await?;
        if self.whole.contains("meta") {
            let facts = self.inspection.facts("meta").await;
            self.facts = self.survive(facts)?;
        }
        self.meta();
        let ledger = self.ledger().await;
        self.survive(ledger)?;
        let chunks = self.documents().await;
        let chunks = self.survive(chunks)?;
        let states = self.states(chunks.as_ref()).await;
        let states = self.survive(states)?;
        let mut embedders = self.inspection.embedders();
        embedders.extend(states.keys().map(EmbedderId::from_stored));
        for embedder in &embedders {
            cancel.check()?;
            tracing::debug!(%embedder, "looking at vectors");
            let promised = self.dimension(embedder).await?;
            let of_embedder = states.get(embedder.as_str()).map(Vec::as_slice).unwrap_or_default();
            let vectors = self.vectors(embedder, chunks.as_ref(), of_embedder, promised).await;
            self.survive(vectors)?;
            let cached = self.cache(embedder, promised).await;
            self.survive(cached)?;
        }
        let generations = self.generations(&embedders).await;
        self.survive(generations)?;
        self.leftovers().await?;
        Ok(self)
    }

    /// Makes a finding of a table that turns out not to be readable in the middle.
    fn survive<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error @ (Error::Store { .. } | Error::MalformedRow { .. })) => {
                self.find(&checks::TABLE_FILES, in_words(&error), Vec::new());
                Ok(T::default())
            }
            other => other,
        }
    }

    /// What would mend the findings.
    pub(super) fn cures(&self) -> impl Iterator<Item = &Cure> {
        self.findings.iter().flat_map(|finding| &finding.cures)
    }

    /// Whether the bank can be opened for a repair.
    pub(super) fn can_be_opened(&self) -> bool {
        let is_core = |(name, _): &(String, Error)| CORE.contains(&name.as_str());
        self.findings.iter().all(|finding| finding.check != &checks::MARKER)
            && !self.inspection.unreadable.iter().any(is_core)
    }

    /// Whether nothing is found that a repair could mend.
    pub(super) fn is_beyond_repair(&self) -> bool {
        self.cures().next().is_none()
    }

    /// Drops findings that an earlier look did not have: somebody was in the middle of something.
    pub(super) fn keep_what_was_seen_in(&mut self, before: &Self) {
        let seen: HashSet<_> = before.findings.iter().map(|finding| (finding.check.name, &finding.what)).collect();
        self.findings.retain(|finding| seen.contains(&(finding.check.name, &finding.what)));
    }

    pub(super) fn find(&mut self, check: &'static Check, what: impl Into<String>, cures: Vec<Cure>) {
        self.findings.push(Finding { check, what: what.into(), cures });
    }

    /// Has the report say that a check has not seen all.
    pub(super) fn could_not_examine(&mut self, check: &'static Check, why: impl Into<String>) {
        self.not_examined.entry(check.name).or_insert_with(|| why.into());
    }

    /// Whether the rows of a table can be looked at; the checks that would have are told where they cannot.
    pub(super) fn is_whole(&mut self, table: &str, checks: &[&'static Check]) -> bool {
        let is_whole = self.whole.contains(table);
        if !is_whole {
            for check in checks {
                self.could_not_examine(check, format!("{table} is missing or damaged"));
            }
        }
        is_whole
    }

    /// Whether another process is building, compacting or collecting garbage: then what is unfinished is its business.
    pub(super) fn is_maintained_by_others(&self) -> bool {
        let held = |fact: &Fact| fact.key == LEASE_KEY && is_held(&fact.value, self.now) == Some(true);
        self.lease == Held::ByOthers && self.facts.iter().any(held)
    }

    /// Holds the widths of an embedder's tables to what it promises; returns what is known of the norm.
    async fn dimension(&mut self, embedder: &EmbedderId) -> Result<Promise> {
        let key = |fact: &&Fact| promise::owner(&fact.key).as_ref() == Some(embedder);
        let identity = self.facts.iter().find(key).and_then(|fact| promise::read(embedder, &fact.value));
        let mut wanted = identity.as_ref().map(|identity| (identity.dimension, "it promises"));
        for table in [VectorTable::Embeddings, VectorTable::Cache] {
            let Some(found) = self.inspection.dimension(table, embedder).await? else { continue };
            let (dimension, whose) = *wanted.get_or_insert((found, "its embeddings have"));
            if found != dimension {
                let what = format!("{}: {found} numbers, {whose} {dimension}", table.name(embedder));
                self.find(&checks::VECTOR_DIMENSION, what, Vec::new());
            }
        }
        Ok(identity.map_or(Promise::Unknown, |one| if one.normalised { Promise::UnitNorm } else { Promise::Nothing }))
    }
}

/// What is known of the norm of an embedder's vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// It is 1.
    UnitNorm,
    /// It is anything.
    Nothing,
    /// The bank is older than the record of it: told from the vectors themselves.
    Unknown,
}

/// An error with its causes, in one line.
pub(super) fn in_words(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        words.push_str(": ");
        words.push_str(&next.to_string());
        cause = next.source();
    }
    words
}
