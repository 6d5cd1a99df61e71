//! The report: one row a check.

use std::collections::BTreeMap;

use serde::Serialize;

use super::checks::{ALL, Severity};
use super::look::Look;

/// Findings that a row names.
const EXAMPLES: usize = 5;

/// What was found, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// Whether nothing is wrong, or nothing any more: what is left are notes.
    pub healthy: bool,
    /// Every check, whether it found anything or not.
    pub checks: Vec<CheckReport>,
    /// What a repair did, in sentences.
    pub repairs: Vec<String>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Its name.
    pub name: &'static str,
    /// How bad a finding is.
    pub severity: Severity,
    /// What holds in a healthy bank.
    pub holds: &'static str,
    /// How many things were found to be wrong.
    pub found: u64,
    /// How many still are after the repair; as `found` where there was none.
    pub left: u64,
    /// The first few of those that are left, or of those that were found.
    pub examples: Vec<String>,
    /// How it is mended.
    pub mend: &'static str,
    /// What it could not look at, and why.
    pub not_examined: Option<String>,
}

impl DoctorReport {
    pub(super) fn new(found: &Look, left: &Look, repairs: Vec<String>) -> Self {
        let (before, after) = (by_check(found), by_check(left));
        let checks: Vec<_> = ALL
            .iter()
            .map(|check| {
                let [before, after] = [&before, &after].map(|some| some.get(check.name).cloned().unwrap_or_default());
                let named = if after.is_empty() { &before } else { &after };
                CheckReport {
                    name: check.name,
                    severity: check.severity,
                    holds: check.holds,
                    found: before.len().max(after.len()) as u64,
                    left: after.len() as u64,
                    examples: named.iter().take(EXAMPLES).map(|what| (*what).to_owned()).collect(),
                    mend: check.mend,
                    not_examined: left.not_examined.get(check.name).cloned(),
                }
            })
            .collect();
        let healthy = checks.iter().all(|check| check.left == 0 || check.severity == Severity::Note);
        Self { healthy, checks, repairs }
    }

    /// The checks that found something.
    pub fn findings(&self) -> impl Iterator<Item = &CheckReport> {
        self.checks.iter().filter(|check| check.found > 0)
    }
}

fn by_check(look: &Look) -> BTreeMap<&'static str, Vec<&str>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    look.findings.iter().for_each(|finding| found.entry(finding.check.name).or_default().push(finding.what.as_str()));
    found
}
