//! `embank schedule` and `embank rebuild`: the index kept fresh by our own clock, or by somebody else's.

use std::time::Duration;

use embank::{
    BuildOptions, CronSchedule, IndexOutcome, Remeasure, RenewOptions, ScheduleOptions, Scheduler, TickOutcome,
    TickReport,
};
use indicatif::HumanCount;

use super::{report, sync};
use crate::Exit;
use crate::args::{RebuildArgs, ScheduleArgs};
use crate::output::seconds;
use crate::session::Session;

pub async fn run(session: &Session, args: ScheduleArgs) -> anyhow::Result<Exit> {
    // Before anything is fetched or opened: an expression that cannot be read is a mistake of the command line.
    let cron = CronSchedule::parse(&args.cron, args.timezone.as_deref())?;
    session.stop_gently();
    if let Some(pulled) = session.pull_if_missing().await? {
        session.display().say(&report::pull(&pulled));
    }
    let bank = if args.sync.is_empty() { session.open().await? } else { session.open_or_create().await? };
    let options = ScheduleOptions {
        sync: sync::options(session, &args.step, &args.ingest, args.step.limit),
        sources: args.sync,
        jitter: args.jitter.unwrap_or(Duration::ZERO),
        ..ScheduleOptions::new(cron.clone())
    };
    let mut scheduler = Scheduler::new(bank, options).await?;
    if let Some(next) = scheduler.next_due() {
        session.display().say(&format!("{cron}: next step at {}; Ctrl-C ends", cron.local(next)));
    }
    let mut failed = None;
    let ran = scheduler.run(|tick| {
        session.display().clear();
        if let Err(error) = show(session, tick) {
            failed.get_or_insert(error);
            session.interrupt().cancel().cancel();
        }
    });
    ran.await?;
    failed.map_or(Ok(Exit::Done), Err)
}

fn show(session: &Session, tick: &TickReport) -> anyhow::Result<()> {
    if session.output().is_json() {
        return session.output().json(tick);
    }
    session.output().line(&line(tick))?;
    let warnings = tick.step.iter().flat_map(|step| &step.warnings);
    warnings.for_each(|warning| session.display().say(&format!("warning: {warning}")));
    Ok(())
}

/// A step in one line, for a journal.
fn line(tick: &TickReport) -> String {
    let mut said = vec![format!("{} {}", tick.began, tick.outcome.label())];
    if let Some(step) = &tick.step {
        let changed = step.ingest.added + step.ingest.changed + step.ingest.removed;
        if changed > 0 {
            said.push(format!("{} documents changed", HumanCount(changed)));
        }
        if step.backfill.ready > 0 {
            said.push(format!("{} chunks embedded", HumanCount(step.backfill.ready)));
        }
        match &step.index {
            IndexOutcome::Activated { generation, reason, .. } => {
                said.push(format!("{generation} is active: {reason}"))
            }
            IndexOutcome::Optimised { rows, .. } => said.push(format!("{} rows folded in", HumanCount(*rows))),
            IndexOutcome::Refused { reason } => said.push(reason.clone()),
            _ => {}
        }
        if tick.outcome == TickOutcome::Done {
            said.push(seconds(step.ingest.seconds + step.backfill.seconds));
        }
    }
    if tick.coalesced > 0 {
        said.push(format!("{} missed runs made up for", tick.coalesced));
    }
    said.extend(tick.error.clone());
    said.join(", ")
}

pub async fn rebuild(session: &Session, args: RebuildArgs) -> anyhow::Result<Exit> {
    session.stop_gently();
    let bank = session.open().await?;
    let settings = session.settings();
    let options = RenewOptions {
        policy: settings.policy(),
        build: BuildOptions { kind: settings.kind(args.kind), ..BuildOptions::default() },
        validate: settings.validation(args.min_recall),
        remeasure: Remeasure::WhereChanged,
    };
    let outcome = if args.if_needed { bank.renew_index(options).await? } else { bank.rebuild_index(options).await? };
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&outcome)?;
    } else {
        session.output().line(&format!("index   {}", sync::index_line(&bank, &outcome).await?))?;
    }
    if let Some(warning) = outcome.warning() {
        session.display().say(&format!("warning: {warning}"));
    }
    Ok(match outcome {
        IndexOutcome::Refused { .. } => Exit::Refused,
        IndexOutcome::Busy => Exit::Busy,
        IndexOutcome::Cancelled | IndexOutcome::NotOptimised { .. } => Exit::Incomplete,
        _ => Exit::Done,
    })
}
