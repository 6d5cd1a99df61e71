//! When to build a new index: a pure function of what is indexed and what is not.

use crate::id::GenerationId;
use crate::index::{FLAT_BELOW, IndexKind};

/// What the decision is made by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexStatistics {
    /// Vectors there are.
    pub rows: u64,
    /// The active generation, if there is one and its index is whole.
    pub active: Option<ActiveStatistics>,
    /// The active generation, if its index is lost.
    pub lost: Option<GenerationId>,
}

/// The active generation, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveStatistics {
    /// Rows when it was built.
    pub rows_at_build: u64,
    /// Rows that are newer; they are searched flat.
    pub newer: u64,
    /// Its kind; a flat one covers everything at once. Never [`IndexKind::Auto`].
    pub kind: IndexKind,
}

/// When to build.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebuildPolicy {
    /// Share of newer or removed rows above which a new generation is built. Default 0.2: with a fifth searched flat the
    /// index still does most of the work.
    pub changed_share: f64,
    /// Newer rows above which one is built in any case. Default 50,000: a flat pass over them takes tens of milliseconds.
    pub newer_rows: u64,
}

impl Default for RebuildPolicy {
    fn default() -> Self {
        Self { changed_share: 0.2, newer_rows: 50_000 }
    }
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexAction {
    /// There is nothing to index.
    Nothing,
    /// The active generation will do.
    Keep {
        /// Why.
        reason: String,
    },
    /// A new generation is due.
    Build {
        /// Why.
        reason: String,
    },
}

impl RebuildPolicy {
    /// Decides, for somebody who wants indexes of this kind. With [`IndexKind::Auto`] any will do that fits the bank's size.
    pub fn decide(&self, statistics: &IndexStatistics, wanted: IndexKind) -> IndexAction {
        let IndexStatistics { rows, active, .. } = *statistics;
        if rows == 0 {
            return IndexAction::Nothing;
        }
        if let Some(lost) = &statistics.lost {
            return IndexAction::Build { reason: format!("the index of generation {lost} is lost") };
        }
        let Some(active) = active else {
            return IndexAction::Build { reason: "there is no index yet".to_owned() };
        };
        if wanted != IndexKind::Auto && wanted != active.kind {
            let reason = format!("{} was asked for, {} is active", wanted.label(), active.kind.label());
            return IndexAction::Build { reason };
        }
        if active.kind == IndexKind::Flat {
            return if wanted == IndexKind::Auto && rows >= FLAT_BELOW {
                IndexAction::Build { reason: format!("{rows} rows have outgrown flat search") }
            } else {
                IndexAction::Keep { reason: "flat search covers every row".to_owned() }
            };
        }
        let covered = rows.saturating_sub(active.newer);
        let removed = active.rows_at_build.saturating_sub(covered);
        let changed = active.newer + removed;
        let share = changed as f64 / rows.max(1) as f64;
        if active.newer > self.newer_rows || share > self.changed_share {
            let reason = format!("{} rows are newer than the index and {removed} of it are gone", active.newer);
            return IndexAction::Build { reason };
        }
        IndexAction::Keep { reason: format!("{changed} of {rows} rows changed since the index was built") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use IndexKind::{Auto, Flat, Hnsw};

    fn decide(rows: u64, active: Option<(u64, u64, IndexKind)>, wanted: IndexKind) -> &'static str {
        let active = active.map(|(rows_at_build, newer, kind)| ActiveStatistics { rows_at_build, newer, kind });
        match RebuildPolicy::default().decide(&IndexStatistics { rows, active, lost: None }, wanted) {
            IndexAction::Nothing => "nothing",
            IndexAction::Keep { .. } => "keep",
            IndexAction::Build { .. } => "build",
        }
    }

    #[test]
    fn builds_when_there_is_none_when_flat_is_outgrown_and_when_too_much_changed() {
        let auto = |rows, active| decide(rows, active, Auto);
        assert_eq!(auto(0, None), "nothing");
        assert_eq!(auto(10, None), "build");
        assert_eq!(auto(FLAT_BELOW - 1, Some((10, 0, Flat))), "keep");
        assert_eq!(auto(FLAT_BELOW, Some((10, 0, Flat))), "build");
        assert_eq!(auto(10_000, Some((10_000, 0, Hnsw))), "keep");
        assert_eq!(auto(12_000, Some((10_000, 2_000, Hnsw))), "keep");
        assert_eq!(auto(13_000, Some((10_000, 3_000, Hnsw))), "build");
        assert_eq!(auto(7_000, Some((10_000, 0, Hnsw))), "build");
        assert_eq!(auto(1_000_000, Some((949_000, 51_000, Hnsw))), "build");
    }

    #[test]
    fn a_kind_that_is_asked_for_replaces_another_one_and_stays() {
        assert_eq!(decide(1_000, Some((1_000, 0, Flat)), Hnsw), "build");
        assert_eq!(decide(1_000, Some((1_000, 0, Hnsw)), Flat), "build");
        assert_eq!(decide(1_000, Some((1_000, 0, Hnsw)), Hnsw), "keep");
        assert_eq!(decide(100_000, Some((10, 0, Flat)), Flat), "keep");
    }
}
