//! What to do about an index: a pure function of what is indexed, what is not, and what was measured last.

use crate::id::GenerationId;
use crate::index::{FLAT_BELOW, IndexKind, LiveRecall};

/// What the decision is made by.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexStatistics {
    /// Vectors there are.
    pub rows: u64,
    /// The active generation, if there is one and its index is whole.
    pub active: Option<ActiveStatistics>,
    /// The active generation, if its index is lost.
    pub lost: Option<GenerationId>,
}

/// The active generation, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveStatistics {
    /// Rows that it was trained and built over.
    pub rows_at_build: u64,
    /// Rows that were folded in since.
    pub rows_folded: u64,
    /// Rows that are newer than all of that; they are searched flat.
    pub newer: u64,
    /// Parts of the index beside the one that was built: one for each time that rows were folded in.
    pub deltas: u64,
    /// Its kind; a flat one covers everything at once. Never [`IndexKind::Auto`].
    pub kind: IndexKind,
    /// What was measured of it last since it serves, if anything was.
    pub live: Option<LiveRecall>,
}

/// When to fold newer rows into the index, and when to build a new one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RebuildPolicy {
    /// Share of all rows that is newer than the index, above which they are folded in. Default 0.1: a tenth of a bank costs
    /// as much in a flat pass as all of it in the index, from some tens of thousands of rows on.
    pub unindexed_share: f64,
    /// Newer rows above which they are folded in whatever their share. Default 50,000: a flat pass over them takes tens of
    /// milliseconds.
    pub unindexed_rows: u64,
    /// Deltas above which a new index is built. Default 5. Each is searched beside the others, so that a query costs more
    /// with every one. They could be merged, which is cheaper than a build but for graphs; but six deltas of a tenth each are
    /// a bank that has grown by three quarters on a model of its youth, and a merged index passes no gate.
    pub max_deltas: u64,
    /// How many times the rows that it was trained on there may be before a new index is built. Default 2: the square root of
    /// rows, which decides the number of lists, has moved by two fifths by then.
    pub growth: f64,
    /// Share of the rows that were indexed and are gone, above which a new index is built. Default 0.2: a fifth of what a
    /// query finds is thrown away.
    pub removed_share: f64,
    /// Whether a new index is built when the recall that was measured last is below what the gate demanded of the index.
    /// Default: it is. The warning comes in any case.
    pub on_drift: OnDrift,
}

/// What a measured loss of recall leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDrift {
    /// A new index.
    #[default]
    Rebuild,
    /// Nothing but the warning.
    Warn,
}

impl Default for RebuildPolicy {
    fn default() -> Self {
        Self {
            unindexed_share: 0.1,
            unindexed_rows: 50_000,
            max_deltas: 5,
            growth: 2.0,
            removed_share: 0.2,
            on_drift: OnDrift::default(),
        }
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
    /// Newer rows are to be folded into the active generation's index.
    Optimise {
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
    ///
    /// A build is looked at before an optimisation: what is to be replaced is not worth folding rows into.
    pub fn decide(&self, statistics: &IndexStatistics, wanted: IndexKind) -> IndexAction {
        let rows = statistics.rows;
        if rows == 0 {
            return IndexAction::Nothing;
        }
        if let Some(lost) = &statistics.lost {
            return IndexAction::Build { reason: format!("the index of generation {lost} is lost") };
        }
        let Some(active) = &statistics.active else {
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
        if let Some(reason) = self.worn_out(rows, active) {
            return IndexAction::Build { reason };
        }
        let newer = active.newer;
        let share = newer as f64 / rows as f64;
        if share > self.unindexed_share || newer > self.unindexed_rows {
            return IndexAction::Optimise { reason: format!("{newer} of {rows} rows are newer than the index") };
        }
        IndexAction::Keep { reason: format!("{newer} of {rows} rows are newer than the index") }
    }

    /// Why an index is beyond folding rows into it, if it is.
    fn worn_out(&self, rows: u64, active: &ActiveStatistics) -> Option<String> {
        let drifted = active.live.as_ref().filter(|live| self.on_drift == OnDrift::Rebuild && live.is_low());
        if let Some(live) = drifted {
            return Some(format!("recall@{} has fallen to {:.4}, below {:.4}", live.k, live.recall, live.required));
        }
        let trained = active.rows_at_build;
        if rows as f64 >= self.growth * trained as f64 {
            return Some(format!("{rows} rows have outgrown the {trained} that the index was trained on"));
        }
        if active.deltas > self.max_deltas {
            return Some(format!("the index has {} parts beside the one that was built", active.deltas));
        }
        let held = trained + active.rows_folded;
        let removed = held.saturating_sub(rows.saturating_sub(active.newer));
        if removed as f64 > self.removed_share * held as f64 {
            return Some(format!("{removed} of {held} rows of the index are gone"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use IndexKind::{Auto, Flat, Hnsw};

    fn statistics(rows: u64, active: Option<ActiveStatistics>) -> IndexStatistics {
        IndexStatistics { rows, active, lost: None }
    }

    fn hnsw(rows_at_build: u64, newer: u64) -> ActiveStatistics {
        ActiveStatistics { rows_at_build, newer, rows_folded: 0, deltas: 0, kind: Hnsw, live: None }
    }

    fn measured(recall: f64) -> Option<LiveRecall> {
        Some(LiveRecall { recall, required: 0.95, ..LiveRecall::for_tests() })
    }

    fn decided(policy: RebuildPolicy, statistics: &IndexStatistics, wanted: IndexKind) -> &'static str {
        match policy.decide(statistics, wanted) {
            IndexAction::Nothing => "nothing",
            IndexAction::Keep { .. } => "keep",
            IndexAction::Optimise { .. } => "optimise",
            IndexAction::Build { .. } => "build",
        }
    }

    fn decide(rows: u64, active: Option<ActiveStatistics>) -> &'static str {
        decided(RebuildPolicy::default(), &statistics(rows, active), Auto)
    }

    #[test]
    fn builds_when_there_is_none_and_when_flat_is_outgrown() {
        let flat = |rows_at_build| Some(ActiveStatistics { kind: Flat, ..hnsw(rows_at_build, 0) });
        assert_eq!(decide(0, None), "nothing");
        assert_eq!(decide(10, None), "build");
        assert_eq!(decide(FLAT_BELOW - 1, flat(10)), "keep");
        assert_eq!(decide(FLAT_BELOW, flat(10)), "build");
        let lost = IndexStatistics { lost: Some(GenerationId::new(1, 0)), ..statistics(10, None) };
        assert_eq!(decided(RebuildPolicy::default(), &lost, Auto), "build");
    }

    #[test]
    fn each_threshold_decides_at_its_own_edge() {
        let with = |change: fn(&mut ActiveStatistics)| {
            let mut active = hnsw(10_000, 0);
            change(&mut active);
            Some(active)
        };
        for (rows, active, want, what) in [
            (10_000, with(|_| ()), "keep", "nothing changed"),
            (11_111, with(|a| a.newer = 1_111), "keep", "a tenth is newer, not more"),
            (11_113, with(|a| a.newer = 1_113), "optimise", "more than a tenth is newer"),
            (19_999, with(|a| a.newer = 9_999), "optimise", "not quite twice as many"),
            (20_000, with(|a| a.newer = 10_000), "build", "twice as many"),
            (20_000, with(|a| (a.newer, a.rows_folded) = (0, 10_000)), "build", "twice as many, all folded in"),
            (15_000, with(|a| (a.rows_folded, a.deltas) = (5_000, 5)), "keep", "five deltas"),
            (15_000, with(|a| (a.rows_folded, a.deltas) = (5_000, 6)), "build", "six deltas"),
            (8_000, with(|_| ()), "keep", "a fifth is gone, not more"),
            (7_999, with(|_| ()), "build", "more than a fifth is gone"),
            (9_599, with(|a| a.rows_folded = 2_000), "build", "more than a fifth is gone, folded ones counted"),
            (10_000, with(|a| a.live = measured(0.95)), "keep", "what the gate demanded"),
            (10_000, with(|a| a.live = measured(0.9499)), "build", "below the gate"),
            (19_000, with(|a| (a.newer, a.live) = (9_000, measured(0.5))), "build", "drift goes before folding in"),
        ] {
            assert_eq!(decide(rows, active), want, "{what}");
        }
        assert_eq!(decide(1_000_000, Some(hnsw(950_000, 50_000))), "keep");
        assert_eq!(decide(1_000_001, Some(hnsw(950_000, 50_001))), "optimise");
    }

    #[test]
    fn every_threshold_is_the_policys_own() {
        let policy = RebuildPolicy {
            unindexed_share: 0.5,
            unindexed_rows: 100_000,
            max_deltas: 9,
            growth: 4.0,
            removed_share: 0.9,
            on_drift: OnDrift::Warn,
        };
        let lenient = |rows, active| decided(policy, &statistics(rows, Some(active)), Auto);
        assert_eq!(lenient(19_000, hnsw(10_000, 9_000)), "keep");
        assert_eq!(lenient(200_000, hnsw(140_000, 60_000)), "keep");
        assert_eq!(lenient(30_000, ActiveStatistics { rows_folded: 20_000, deltas: 9, ..hnsw(10_000, 0) }), "keep");
        assert_eq!(lenient(1_001, hnsw(10_000, 0)), "keep");
        assert_eq!(lenient(10_000, ActiveStatistics { live: measured(0.1), ..hnsw(10_000, 0) }), "keep");
    }

    #[test]
    fn a_kind_that_is_asked_for_replaces_another_one_and_stays() {
        let wanted = |rows, kind, wanted| {
            let active = ActiveStatistics { kind, ..hnsw(rows, 0) };
            decided(RebuildPolicy::default(), &statistics(rows, Some(active)), wanted)
        };
        assert_eq!(wanted(1_000, Flat, Hnsw), "build");
        assert_eq!(wanted(1_000, Hnsw, Flat), "build");
        assert_eq!(wanted(1_000, Hnsw, Hnsw), "keep");
        assert_eq!(wanted(100_000, Flat, Flat), "keep");
    }

    #[test]
    fn the_reason_names_the_numbers() {
        let active = ActiveStatistics { live: measured(0.9), ..hnsw(10_000, 0) };
        let IndexAction::Build { reason } = RebuildPolicy::default().decide(&statistics(10_000, Some(active)), Auto)
        else {
            panic!("kept")
        };
        assert_eq!(reason, "recall@10 has fallen to 0.9000, below 0.9500");
    }
}
