//! `embank status`, `documents`, `digest` and `runs`: what is in a bank.

use embank::embed::Precision;
use embank::{BankStatus, DocumentRow, RunRow};
use futures::TryStreamExt;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use serde_json::{Value, json};

use super::report;
use crate::Exit;
use crate::args::RunsArgs;
use crate::output::{Align, seconds, table, to_json};
use crate::session::Session;

pub async fn status(session: &Session) -> anyhow::Result<Exit> {
    let status = session.open().await?.status().await?;
    if session.output().is_json() {
        session.output().json(&Status { status: &status, precision: precision(session), device: device(session) })?;
    } else {
        let computed = format!("{} on device {}", precision(session), device(session));
        session.output().text(&status_text(&status, &computed))?;
    }
    Ok(Exit::Done)
}

/// The bank's status, and what the settings say of local models.
#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    status: &'a BankStatus,
    precision: Precision,
    device: String,
}

fn precision(session: &Session) -> Precision {
    session.settings().precision.into()
}

fn device(session: &Session) -> String {
    session.settings().device.to_string()
}

fn status_text(status: &BankStatus, computed: &str) -> String {
    let count = |number: u64| HumanCount(number).to_string();
    let index = match &status.active {
        None => "none active".to_owned(),
        Some(active) => format!("{}: {}", active.id, report::generation(active)),
    };
    let mut lines = vec![
        format!("bank      {} ({})", status.bank.display(), HumanBytes(status.bytes)),
        format!("embedder  {} (local models: {computed})", status.embedder),
        format!("chunks    {}", count(status.chunks)),
        format!("index     {index}"),
    ];
    if status.newer_than_index > 0 {
        lines.push(format!("          {} rows are newer and searched flat", count(status.newer_than_index)));
    }
    if status.index_deltas > 0 {
        lines.push(format!(
            "          {} parts beside the first hold rows that were folded in",
            count(status.index_deltas)
        ));
    }
    if let Some(live) = status.active.as_ref().and_then(|active| active.live.last()) {
        lines.push(format!("          {}, {}", report::live(live), live.measured_at));
    }
    lines.push(format!("cache     {} vectors", count(status.cached)));
    lines.extend(status.mended.iter().map(|mend| format!("mended    {mend}")));
    if !status.set_aside.is_empty() {
        let files = count(status.set_aside.len() as u64);
        lines.push(format!("set aside {files} files of versions that could not be used, in set-aside/"));
    }
    let embedders: Vec<_> = status
        .status
        .iter()
        .map(|one| {
            let counts = one.counts;
            let numbers = [counts.ready, counts.new, counts.in_progress, counts.error].map(count);
            let [ready, new, in_progress, error] = numbers;
            [one.embedder.to_string(), ready, new, in_progress, error]
        })
        .collect();
    let embedder_columns = [
        ("embedder", Align::Left),
        ("ready", Align::Right),
        ("new", Align::Right),
        ("in progress", Align::Right),
        ("error", Align::Right),
    ];
    let tables: Vec<_> = status
        .tables
        .iter()
        .map(|one| [one.table.clone(), count(one.rows), count(one.versions), HumanBytes(one.bytes).to_string()])
        .collect();
    let table_columns =
        [("table", Align::Left), ("rows", Align::Right), ("versions", Align::Right), ("size", Align::Right)];
    format!("{}\n\n{}\n{}", lines.join("\n"), table(embedder_columns, &embedders), table(table_columns, &tables))
}

/// One chunk as it is printed.
#[derive(Serialize)]
struct Document<'a> {
    id: &'a str,
    doc_id: &'a str,
    doc_path: &'a str,
    category: &'a str,
    heading: &'a str,
    chunk_index: usize,
    text: &'a str,
    content_hash: String,
    attributes: &'a serde_json::Map<String, Value>,
}

pub async fn documents(session: &Session) -> anyhow::Result<Exit> {
    let mut blocks = session.open().await?.documents().await?;
    while let Some(block) = blocks.try_next().await? {
        let mut lines = String::new();
        for row in &block {
            lines.push_str(&to_json(&document(row))?);
            lines.push('\n');
        }
        session.output().text(&lines)?;
    }
    Ok(Exit::Done)
}

fn document(row: &DocumentRow) -> Document<'_> {
    Document {
        id: row.id.as_str(),
        doc_id: row.doc_id.as_str(),
        doc_path: &row.doc_path,
        category: &row.category,
        heading: &row.heading,
        chunk_index: row.chunk_index,
        text: &row.content,
        content_hash: row.content_hash.to_string(),
        attributes: &row.attributes,
    }
}

pub async fn digest(session: &Session) -> anyhow::Result<Exit> {
    let digest = session.open().await?.digest().await?;
    if session.output().is_json() {
        session.output().json(&digest)?;
        return Ok(Exit::Done);
    }
    for (name, table) in
        [("documents", &digest.documents), ("status", &digest.status), ("embeddings", &digest.embeddings)]
    {
        session.output().line(&format!("{} {:>9} rows  {name}", table.digest, table.rows))?;
    }
    Ok(Exit::Done)
}

pub async fn runs(session: &Session, args: RunsArgs) -> anyhow::Result<Exit> {
    let mut runs = session.open().await?.runs().await?;
    if let Some(limit) = args.limit {
        runs.drain(..runs.len().saturating_sub(limit));
    }
    if session.output().is_json() {
        let runs: Vec<_> = runs.iter().map(run_value).collect();
        session.output().json(&json!({ "runs": runs }))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = runs
        .iter()
        .map(|run| {
            let taken = seconds(run.ended_at.since(run.started_at).as_secs_f64());
            [run.started_at.to_rfc3339(), run.kind.clone(), run.outcome.clone(), taken, summary(&run.report)]
        })
        .collect();
    let columns = [
        ("started", Align::Left),
        ("step", Align::Left),
        ("outcome", Align::Left),
        ("took", Align::Right),
        ("report", Align::Left),
    ];
    session.output().text(&table(columns, &rows))?;
    Ok(Exit::Done)
}

fn run_value(run: &RunRow) -> Value {
    // A report that is not JSON is shown as the text that it is.
    let report = serde_json::from_str(&run.report).unwrap_or_else(|_| Value::String(run.report.clone()));
    json!({
        "id": run.id,
        "kind": run.kind,
        "started_at": run.started_at.to_rfc3339(),
        "ended_at": run.ended_at.to_rfc3339(),
        "outcome": run.outcome,
        "report": report,
    })
}

/// The counts of a stored report that are not zero, or its error.
fn summary(report: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(report) else { return report.to_owned() };
    let said = |(name, value): (&String, &Value)| match value {
        Value::Number(number) if number.as_u64().is_some_and(|number| number > 0) => {
            Some(format!("{} {number}", name.replace('_', " ")))
        }
        Value::String(text) if name == "error" => Some(text.clone()),
        Value::Bool(true) if name == "cancelled" => Some(name.clone()),
        _ => None,
    };
    fields.iter().filter_map(said).collect::<Vec<_>>().join(", ")
}
