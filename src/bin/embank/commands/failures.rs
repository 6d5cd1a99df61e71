//! `embank errors` and `embank retry`: what could not be embedded, and another try.

use embank::{ChunkId, FailedChunks, FailureGroup, Failures, StatusRow, Timestamp};
use indicatif::HumanCount;
use serde_json::{Value, json};

use crate::Exit;
use crate::args::{ErrorsArgs, RetryArgs};
use crate::output::{Align, table};
use crate::session::Session;

const HINT: &str = "`embank retry` queues failed chunks again: all, or `--kind KIND`, or `--id ID`";

pub async fn errors(session: &Session, args: ErrorsArgs) -> anyhow::Result<Exit> {
    let bank = session.open().await?;
    if args.all || args.limit.is_some() {
        let errors = bank.errors(args.limit.unwrap_or(usize::MAX)).await?;
        return list(session, &errors);
    }
    let failures = bank.failures().await?;
    if session.output().is_json() {
        let causes: Vec<_> = failures.causes.iter().map(|cause| cause_value(&failures, cause)).collect();
        let failed: u64 = failures.causes.iter().map(|cause| cause.count).sum();
        session.output().json(&json!({ "failed": failed, "causes": causes }))?;
        return Ok(Exit::Done);
    }
    if failures.causes.is_empty() {
        session.output().line("no errors")?;
        return Ok(Exit::Done);
    }
    let causes: Vec<_> = failures.causes.iter().map(|cause| cause_text(&failures, cause)).collect();
    session.output().text(&format!("{}\n\n{HINT}\n", causes.join("\n")))?;
    Ok(Exit::Done)
}

/// A line about the cause, and one for each example.
fn cause_text(failures: &Failures, cause: &FailureGroup) -> String {
    let due = match cause.next_attempt_at {
        None => "not tried again by itself".to_owned(),
        Some(at) if cause.parked == 0 => format!("next try {}", at.to_rfc3339()),
        Some(at) => format!("next try {}, {} not by themselves", at.to_rfc3339(), HumanCount(cause.parked)),
    };
    let mut text = format!("{} x {} ({due}): {}", HumanCount(cause.count), cause.kind, cause.message);
    for id in &cause.examples {
        let path = failures.doc_paths.get(id).map_or("", String::as_str);
        text.push_str(&format!("\n    {id}  {path}"));
    }
    text
}

fn cause_value(failures: &Failures, cause: &FailureGroup) -> Value {
    let example = |id: &ChunkId| json!({ "id": id, "doc_path": failures.doc_paths.get(id) });
    json!({
        "kind": cause.kind,
        "error": cause.message,
        "count": cause.count,
        "parked": cause.parked,
        "next_attempt_at": cause.next_attempt_at.map(Timestamp::to_rfc3339),
        "examples": cause.examples.iter().map(example).collect::<Vec<_>>(),
    })
}

/// The chunks themselves.
fn list(session: &Session, errors: &[StatusRow]) -> anyhow::Result<Exit> {
    if session.output().is_json() {
        let errors: Vec<_> = errors.iter().map(error_value).collect();
        session.output().json(&json!({ "errors": errors }))?;
        return Ok(Exit::Done);
    }
    if errors.is_empty() {
        session.output().line("no errors")?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = errors
        .iter()
        .map(|row| {
            let due = row.next_attempt_at.map_or_else(|| "never".to_owned(), Timestamp::to_rfc3339);
            let error = row.error.clone().unwrap_or_default();
            [row.id.to_string(), row.attempts.to_string(), due, kind(row), error]
        })
        .collect();
    let columns = [
        ("chunk", Align::Left),
        ("attempts", Align::Right),
        ("due again", Align::Left),
        ("kind", Align::Left),
        ("error", Align::Left),
    ];
    session.output().text(&table(columns, &rows))?;
    session.output().line(HINT)?;
    Ok(Exit::Done)
}

fn error_value(row: &StatusRow) -> Value {
    json!({
        "id": row.id,
        "embedder": row.embedder_id,
        "attempts": row.attempts,
        "next_attempt_at": row.next_attempt_at.map(Timestamp::to_rfc3339),
        "kind": row.error_kind,
        "error": row.error,
        "updated_at": row.updated_at.to_rfc3339(),
    })
}

fn kind(row: &StatusRow) -> String {
    row.error_kind.map(|kind| kind.to_string()).unwrap_or_default()
}

pub async fn retry(session: &Session, args: RetryArgs) -> anyhow::Result<Exit> {
    let ids = args.id.into_iter().map(ChunkId::from_stored).collect();
    let report = session.open().await?.retry(FailedChunks { kind: args.kind.map(Into::into), ids }).await?;
    if session.output().is_json() {
        session.output().json(&report)?;
        return Ok(Exit::Done);
    }
    session
        .output()
        .line(&format!("{} chunks queued again; `embank backfill` embeds them", HumanCount(report.queued)))?;
    for id in &report.not_failed {
        session.output().line(&format!("{id} is no such failed chunk"))?;
    }
    Ok(Exit::Done)
}
