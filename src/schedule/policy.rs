//! When to build a new index: a pure function of what is indexed and what is not.

use crate::index::FLAT_BELOW;

/// What the decision is made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexStatistics {
    /// Vectors there are.
    pub rows: u64,
    /// The active generation, if there is one.
    pub active: Option<ActiveStatistics>,
}

/// The active generation, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveStatistics {
    /// Rows when it was built.
    pub rows_at_build: u64,
    /// Rows that are newer; they are searched flat.
    pub newer: u64,
    /// Whether it is a flat generation, which covers everything at once.
    pub is_flat: bool,
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
    /// Decides. `outgrows_flat`: whether a flat generation is to be replaced once the bank is large enough for an index.
    pub fn decide(&self, statistics: &IndexStatistics, outgrows_flat: bool) -> IndexAction {
        let IndexStatistics { rows, active } = *statistics;
        if rows == 0 {
            return IndexAction::Nothing;
        }
        let Some(active) = active else {
            return IndexAction::Build { reason: "there is no index yet".to_owned() };
        };
        if active.is_flat {
            return if outgrows_flat && rows >= FLAT_BELOW {
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

    fn decide(rows: u64, active: Option<(u64, u64, bool)>) -> &'static str {
        let active = active.map(|(rows_at_build, newer, is_flat)| ActiveStatistics { rows_at_build, newer, is_flat });
        match RebuildPolicy::default().decide(&IndexStatistics { rows, active }, true) {
            IndexAction::Nothing => "nothing",
            IndexAction::Keep { .. } => "keep",
            IndexAction::Build { .. } => "build",
        }
    }

    #[test]
    fn builds_when_there_is_none_when_flat_is_outgrown_and_when_too_much_changed() {
        assert_eq!(decide(0, None), "nothing");
        assert_eq!(decide(10, None), "build");
        assert_eq!(decide(FLAT_BELOW - 1, Some((10, 0, true))), "keep");
        assert_eq!(decide(FLAT_BELOW, Some((10, 0, true))), "build");
        assert_eq!(decide(10_000, Some((10_000, 0, false))), "keep");
        assert_eq!(decide(12_000, Some((10_000, 2_000, false))), "keep");
        assert_eq!(decide(13_000, Some((10_000, 3_000, false))), "build");
        assert_eq!(decide(7_000, Some((10_000, 0, false))), "build");
        assert_eq!(decide(1_000_000, Some((949_000, 51_000, false))), "build");
    }
}
