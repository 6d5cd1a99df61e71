//! `embank ingest` and `embank backfill`: single stages of a sync.

use embank::{BackfillOptions, RetryErrors};

use super::report;
use crate::Exit;
use crate::args::{BackfillArgs, IngestArgs};
use crate::interrupt::STOPPED;
use crate::session::Session;

pub async fn ingest(session: &Session, args: IngestArgs) -> anyhow::Result<Exit> {
    session.stop_gently();
    let bank = session.open_or_create().await?;
    let report = bank.ingest(&args.paths, session.settings().ingest(&args.ingest)).await?;
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&report)?;
    } else {
        session.output().text(&report::ingest(&report))?;
    }
    if report.cancelled {
        session.display().say(STOPPED);
        return Ok(Exit::Incomplete);
    }
    Ok(if args.ingest.strict && report.skipped_count > 0 { Exit::Incomplete } else { Exit::Done })
}

pub async fn backfill(session: &Session, args: BackfillArgs) -> anyhow::Result<Exit> {
    session.stop_gently();
    let bank = session.open().await?;
    if args.dry_run {
        let estimate = bank.backfill_estimate().await?;
        session.display().clear();
        if session.output().is_json() {
            session.output().json(&estimate)?;
        } else {
            session.output().line(&report::estimate(&estimate))?;
        }
        return Ok(Exit::Done);
    }
    let errors = if args.retry_errors { RetryErrors::Now } else { RetryErrors::WhenDue };
    let lease = args.lease.unwrap_or(BackfillOptions::default().lease);
    let report = bank.backfill(BackfillOptions { limit: args.limit, errors, lease }).await?;
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&report)?;
    } else {
        session.output().text(&report::backfill(&report))?;
    }
    if report.cancelled {
        session.display().say(STOPPED);
        return Ok(Exit::Incomplete);
    }
    Ok(Exit::Done)
}
