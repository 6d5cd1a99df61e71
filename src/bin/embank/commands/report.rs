//! Reports of the stages as a few lines for people.

use std::fmt::Write as _;

use embank::embed::{Estimate, PullReport};
use embank::{BackfillReport, Generation, IngestReport, LiveRecall, QuerySettings, RecallReport};
use indicatif::{HumanBytes, HumanCount};

use crate::output::seconds;

/// Skipped files that are named; the JSON report names up to a thousand.
const SKIPPED_NAMED: usize = 20;

/// What a backfill would take.
pub fn estimate(estimate: &Estimate) -> String {
    let (texts, tokens) = (HumanCount(estimate.texts), HumanCount(estimate.tokens));
    match estimate.cost {
        cost if cost > 0.0 => {
            format!("{texts} texts to embed, about {tokens} tokens, about {cost:.4} in the price's currency")
        }
        _ => format!("{texts} texts to embed, about {tokens} tokens, at no cost that is known"),
    }
}

/// What an ingest found.
pub fn ingest(report: &IngestReport) -> String {
    let count = |number: u64| HumanCount(number).to_string();
    let mut text = format!(
        "ingest  {} files in {}: {} documents added, {} changed, {} unchanged, {} removed, {} skipped\n",
        count(report.files),
        seconds(report.seconds),
        count(report.added),
        count(report.changed),
        count(report.unchanged),
        count(report.removed),
        count(report.skipped_count),
    );
    let (added, kept, removed) = (report.chunks_added, report.chunks_kept, report.chunks_removed);
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "        chunks: {} to embed, {} kept, {} removed", count(added), count(kept), count(removed));
    for skipped in report.skipped.iter().take(SKIPPED_NAMED) {
        let _ = writeln!(text, "        skipped {skipped}");
    }
    let unnamed = report.skipped_count.saturating_sub(report.skipped.len().min(SKIPPED_NAMED) as u64);
    if unnamed > 0 {
        let _ = writeln!(text, "        and {} more were skipped", count(unnamed));
    }
    text
}

/// What a backfill did.
pub fn backfill(report: &BackfillReport) -> String {
    let count = |number: u64| HumanCount(number).to_string();
    let mut text = String::new();
    if report.ready + report.failed == 0 {
        text.push_str("embed   nothing to do\n");
    } else {
        let per_second = report.ready as f64 / report.seconds.max(0.001);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "embed   {} chunks in {} ({per_second:.0}/s): {} embedded, {} reused, {} truncated, {} failed",
            count(report.ready),
            seconds(report.seconds),
            count(report.embedded),
            count(report.reused),
            count(report.truncated),
            count(report.failed),
        );
    }
    let mended = &report.reconciled;
    if mended.added + mended.orphans + mended.lost > 0 {
        let _ = writeln!(
            text,
            "        out of step and mended: {} without a status, {} left over, {} without a vector",
            count(mended.added),
            count(mended.orphans),
            count(mended.lost),
        );
    }
    if mended.recached > 0 {
        let _ = writeln!(text, "        the cache had lost {} vectors, and has them again", count(mended.recached));
    }
    if mended.undocumented > 0 {
        let chunks = count(mended.undocumented);
        let _ = writeln!(text, "        the documents of {chunks} chunks are lost; `embank sync` brings them back");
    }
    for failure in &report.failures {
        let _ = writeln!(text, "        failed {} ({}): {}", failure.doc_path, failure.id, failure.reason);
    }
    let unnamed = report.failed.saturating_sub(report.failures.len() as u64);
    if unnamed > 0 {
        let _ = writeln!(text, "        and {} more failed; `embank errors` lists them", count(unnamed));
    }
    text
}

/// What a pull did.
pub fn pull(report: &PullReport) -> String {
    match report.source {
        Some(source) => format!(
            "model   {} pulled: {} from {source}, now in {}",
            report.model,
            HumanBytes(report.fetched_bytes),
            report.dir.display()
        ),
        None => format!("model   {} is complete in {}", report.model, report.dir.display()),
    }
}

/// Kind and size of a generation, and what was measured.
pub fn generation(generation: &Generation) -> String {
    let mut text = format!("{}, {} rows", generation.kind, HumanCount(generation.rows));
    if let Some(measured) = &generation.recall {
        let _ = write!(text, ", {}", recall(measured));
    }
    if let Some(settings) = settings(&generation.settings) {
        let _ = write!(text, ", searched with {settings}");
    }
    text
}

/// What validation measured.
pub fn recall(report: &RecallReport) -> String {
    format!(
        "recall@{} {:.4} on {} queries proves {:.4} ({:.2} required), p95 {:.1} ms",
        report.k, report.recall, report.queries, report.bound, report.required, report.p95_ms
    )
}

/// What was measured of the active index over the present rows.
pub fn live(live: &LiveRecall) -> String {
    let low = if live.is_low() { ", too low" } else { "" };
    format!(
        "live recall@{} {:.4} on {} queries over {} rows ({:.2} required{low})",
        live.k,
        live.recall,
        live.queries,
        HumanCount(live.rows),
        live.required
    )
}

/// Query settings, where there are any.
pub fn settings(settings: &QuerySettings) -> Option<String> {
    let named = [
        ("nprobes", settings.nprobes.map(|n| n.to_string())),
        ("ef", settings.ef.map(|n| n.to_string())),
        ("refine", settings.refine_factor.map(|n| n.to_string())),
    ];
    let set: Vec<_> = named.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?))).collect();
    (!set.is_empty()).then(|| set.join(", "))
}
