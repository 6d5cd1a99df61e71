//! `embank sync`: the main job, once or again and again.

use embank::{
    BackfillOptions, BackfillReport, Bank, BuildOptions, IndexOutcome, ServingState, SyncOptions, SyncReport,
};
use indicatif::HumanCount;

use super::report;
use crate::Exit;
use crate::args::{IngestFlags, StepFlags, SyncArgs};
use crate::interrupt::STOPPED;
use crate::output::seconds;
use crate::session::Session;

/// Chunks that one step of `--every` embeds at most: minutes of work, after which the index is looked at.
const CHUNKS_PER_STEP: u64 = 50_000;

pub async fn run(session: &Session, args: SyncArgs) -> anyhow::Result<Exit> {
    session.stop_gently();
    if let Some(pulled) = session.pull_if_missing().await? {
        session.display().say(&report::pull(&pulled));
    }
    let mut bank = session.open_or_create().await?;
    let Some(pause) = args.every else {
        return Ok(tick(session, &bank, &args, args.step.limit).await?.exit);
    };
    let limit = args.step.limit.unwrap_or(CHUNKS_PER_STEP);
    // What is wrong at once is wrong with the command; what goes wrong later may pass.
    let mut last = tick(session, &bank, &args, Some(limit)).await?;
    loop {
        if last.stopped {
            return Ok(last.exit);
        }
        if !last.more {
            session.display().say(&format!("next step in {}; Ctrl-C ends", seconds(pause.as_secs_f64())));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = session.interrupt().asked() => return Ok(Exit::Done),
            }
        }
        bank = followed(session, bank).await?;
        last = match tick(session, &bank, &args, Some(limit)).await {
            Ok(tick) => tick,
            Err(error) if error.is::<embank::Error>() && !session.interrupt().cancel().is_cancelled() => {
                session.display().clear();
                session.display().say(&format!("error: {error:#}"));
                Tick { exit: Exit::Done, stopped: false, more: false }
            }
            Err(error) => return Err(error),
        };
    }
}

/// The bank through the embedder that serves it by now, unless somebody named one.
async fn followed(session: &Session, bank: Bank) -> anyhow::Result<Bank> {
    let has_moved = |state: ServingState| state.active.id != bank.embedder().identity().id();
    if session.settings().embedder_is_named || !bank.serving().await?.is_some_and(has_moved) {
        return Ok(bank);
    }
    Ok(session.open().await?)
}

/// Fills the table of the embedder that a switch is under way to.
async fn fill_next(session: &Session, bank: &Bank, options: BackfillOptions) -> anyhow::Result<Option<BackfillReport>> {
    let Some(next) = bank.serving().await?.and_then(|state| state.next) else { return Ok(None) };
    if next.id == bank.embedder().identity().id() {
        return Ok(None);
    }
    let (name, precision) = session.as_served(&next);
    Ok(Some(session.open_as(&name, precision).await?.backfill(options).await?))
}

/// How one step ended.
struct Tick {
    exit: Exit,
    stopped: bool,
    /// Whether the limit was reached, so that there may be more to embed.
    more: bool,
}

async fn tick(session: &Session, bank: &Bank, args: &SyncArgs, limit: Option<u64>) -> anyhow::Result<Tick> {
    let options = options(session, &args.step, &args.ingest, limit);
    let backfill = options.backfill;
    let report = bank.sync(&args.paths, options).await?;
    let next = if report.cancelled { None } else { fill_next(session, bank, backfill).await? };
    session.display().clear();
    if session.output().is_json() {
        let mut value = serde_json::to_value(&report)?;
        if let (Some(fields), Some(next)) = (value.as_object_mut(), &next) {
            fields.insert("next".to_owned(), serde_json::to_value(next)?);
        }
        session.output().json(&value)?;
    } else {
        session.output().text(&report::ingest(&report.ingest))?;
        session.output().text(&report::backfill(&report.backfill))?;
        session.output().line(&format!("index   {}", index_line(bank, &report.index).await?))?;
        if let Some(next) = &next {
            session.output().text(&format!("next    {}", report::backfill(next)))?;
        }
    }
    for warning in &report.warnings {
        session.display().say(&format!("warning: {warning}"));
    }
    for failure in report.housekeeping.iter().flat_map(|report| &report.failures) {
        let what = failure.step.label();
        session
            .display()
            .say(&format!("{what} of {} failed: {}; the next run tries again", failure.of, failure.reason));
    }
    if report.cancelled {
        session.display().say(STOPPED);
    }
    let worked = report.backfill.ready + report.backfill.failed;
    Ok(Tick { exit: exit(&report, args), stopped: report.cancelled, more: limit.is_some_and(|limit| worked >= limit) })
}

/// What a step does, with what the flags say.
pub fn options(session: &Session, step: &StepFlags, ingest: &IngestFlags, limit: Option<u64>) -> SyncOptions {
    let (settings, defaults) = (session.settings(), BackfillOptions::default());
    SyncOptions {
        ingest: settings.ingest(ingest),
        backfill: BackfillOptions { limit, lease: step.lease.unwrap_or(defaults.lease), ..defaults },
        build: BuildOptions { kind: settings.kind(step.kind), ..BuildOptions::default() },
        validate: settings.validation(step.min_recall),
        policy: settings.policy(),
        housekeeping: settings.housekeeping(),
        ..SyncOptions::default()
    }
}

fn exit(report: &SyncReport, args: &SyncArgs) -> Exit {
    let skipped = args.ingest.strict && report.ingest.skipped_count > 0;
    match report.index {
        _ if report.cancelled => Exit::Incomplete,
        IndexOutcome::Refused { .. } => Exit::Refused,
        _ if skipped => Exit::Incomplete,
        _ => Exit::Done,
    }
}

/// What became of the index.
pub async fn index_line(bank: &Bank, outcome: &IndexOutcome) -> anyhow::Result<String> {
    Ok(match outcome {
        IndexOutcome::Nothing => "nothing to index".to_owned(),
        IndexOutcome::Kept { reason, .. } => format!("kept: {reason}"),
        IndexOutcome::Optimised { generation, rows, deltas, seconds: taken, live, reason } => format!(
            "{} rows folded into {generation} in {}, because {reason}; {deltas} parts beside the first{}",
            HumanCount(*rows),
            seconds(*taken),
            live.as_ref().map(|live| format!(", {}", report::live(live))).unwrap_or_default(),
        ),
        IndexOutcome::NotOptimised { reason } => format!("left as it is: {reason}"),
        IndexOutcome::Activated { generation, kind, rows, seconds: taken, recall, reason } => {
            let stored = bank.generations().await?.into_iter().find(|one| one.id == *generation);
            let settings = stored.and_then(|one| report::settings(&one.settings));
            format!(
                "{generation} is active: {kind}, {} rows, {}{}, built in {}, because {reason}",
                HumanCount(*rows),
                report::recall(recall),
                settings.map(|settings| format!(", searched with {settings}")).unwrap_or_default(),
                seconds(*taken),
            )
        }
        IndexOutcome::Refused { reason } => format!("refused: {reason}"),
        IndexOutcome::Busy => "left as it is: another process maintains the bank".to_owned(),
        IndexOutcome::Cancelled => "left as it is".to_owned(),
        _ => "left as it is".to_owned(),
    })
}
