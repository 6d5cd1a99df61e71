//! `embank model switch` and `model rollback`: which embedder answers the bank's searches.

use std::path::Path;

use embank::embed::Precision;
use embank::{Agreement, Bank, Error, ServedEmbedder, ServingState, SwitchOptions, SwitchOutcome, SwitchReport};

use super::{report, sync};
use crate::Exit;
use crate::args::SwitchFlags;
use crate::output::{Align, seconds, table};
use crate::session::Session;

/// What the names of embedders begin with that are folders.
const FOLDER_SCHEMES: [&str; 2] = ["path:", "clip:"];

/// Switches to the embedder of this name.
pub async fn to(session: &Session, name: &str, flags: SwitchFlags) -> anyhow::Result<Exit> {
    let precision = session.settings().precision.into();
    run(session, (lasting(name)?, precision), flags).await
}

/// Returns to the embedder before.
pub async fn back(session: &Session, flags: SwitchFlags) -> anyhow::Result<Exit> {
    let state = Bank::serving_of(&session.settings().bank).await?;
    let Some(previous) = state.and_then(|state| state.previous) else {
        let reason = "no other embedder served this bank before".to_owned();
        return Err(Error::InvalidSetting { setting: "model rollback", reason }.into());
    };
    run(session, (previous.name, previous.precision), flags).await
}

async fn run(session: &Session, to: (String, Precision), flags: SwitchFlags) -> anyhow::Result<Exit> {
    session.stop_gently();
    // Whatever the settings name: what serves is what is switched from.
    let state = Bank::serving_of(&session.settings().bank).await?;
    let from = match &state {
        Some(state) => (state.active.name.clone(), state.active.precision),
        None => (lasting(&session.settings().embedder)?, session.settings().precision.into()),
    };
    let old = session.open_as(&from.0, from.1).await?;
    let new = session.open_as(&to.0, to.1).await?;
    let options = SwitchOptions {
        from_name: Some(from.0),
        to_name: Some(to.0.clone()),
        build: embank::BuildOptions { kind: session.settings().kind(flags.kind), ..Default::default() },
        validate: session.settings().validation(flags.min_recall),
        policy: session.settings().policy(),
        questions: flags.questions,
        min_overlap: flags.min_overlap.unwrap_or(0.0),
        ..SwitchOptions::default()
    };
    let report = old.switch_to(&new, options).await?;
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&report)?;
    } else {
        session.output().text(&told(&new, &report).await?)?;
    }
    let is_overruled = session.settings().embedder_is_named && session.settings().embedder != to.0;
    if is_overruled && report.outcome == SwitchOutcome::Switched {
        session.display().say(&format!(
            "note: the settings name {}, which commands go on to open; take it out of embank.toml, the environment or the \
             command line to follow the bank",
            session.settings().embedder
        ));
    }
    Ok(match report.outcome {
        SwitchOutcome::Refused { .. } => Exit::Refused,
        SwitchOutcome::Busy => Exit::Busy,
        SwitchOutcome::Cancelled => Exit::Incomplete,
        _ => Exit::Done,
    })
}

async fn told(new: &Bank, report: &SwitchReport) -> anyhow::Result<String> {
    let mut text = String::new();
    if report.outcome != SwitchOutcome::Unchanged {
        text.push_str(&report::backfill(&report.backfill));
    }
    if let Some(index) = &report.index {
        text.push_str(&format!("index   {}\n", sync::index_line(new, index).await?));
    }
    if let Some(agreement) = &report.agreement {
        text.push_str(&format!("both    {}\n", agreement_line(agreement)));
    }
    let (from, to) = (&report.from, &report.to);
    text.push_str(&match &report.outcome {
        SwitchOutcome::Switched => format!(
            "serving {to} in place of {from}, after {}; `embank model rollback` returns\n",
            seconds(report.seconds)
        ),
        SwitchOutcome::Unchanged => format!("serving {to} already\n"),
        SwitchOutcome::Refused { reason } => format!("serving {from} still: {reason}\n"),
        SwitchOutcome::Busy => format!("serving {from} still: another process maintains the bank\n"),
        _ => format!("serving {from} still; the same command continues\n"),
    });
    Ok(text)
}

fn agreement_line(agreement: &Agreement) -> String {
    let Agreement { questions, source, k, overlap, worst, same_first } = agreement;
    format!(
        "{questions} questions ({source}): {overlap:.4} of the first {k} chunks are the same, {worst:.4} at least; the same \
         first chunk for {same_first:.4}"
    )
}

/// Shows what serves.
pub async fn show(session: &Session) -> anyhow::Result<Exit> {
    let state = Bank::serving_of(&session.settings().bank).await?;
    if session.output().is_json() {
        session.output().json(&serde_json::json!({ "serving": state }))?;
        return Ok(Exit::Done);
    }
    match state {
        None => {
            session.output().line("this bank was never switched; each command answers with the embedder it is given")?
        }
        Some(state) => session.output().text(&shown(&state))?,
    }
    Ok(Exit::Done)
}

fn shown(state: &ServingState) -> String {
    let row = |role: &str, embedder: &ServedEmbedder| {
        [role.to_owned(), embedder.id.to_string(), embedder.name.clone(), embedder.precision.to_string()]
    };
    let others = [("before", &state.previous), ("under way", &state.next)];
    let others = others.into_iter().filter_map(|(role, embedder)| Some(row(role, embedder.as_ref()?)));
    let rows: Vec<_> = std::iter::once(row("serving", &state.active)).chain(others).collect();
    let columns =
        [("", Align::Left), ("embedder", Align::Left), ("opened by", Align::Left), ("precision", Align::Left)];
    let moves = state.moves.iter().map(|one| {
        let overlap = one.overlap.map(|overlap| format!(", {overlap:.4} of the answers the same")).unwrap_or_default();
        format!("{} from {} to {}{overlap}\n", one.at, one.from, one.to)
    });
    table(columns, &rows) + &moves.collect::<String>()
}

/// A name that means the same wherever a later command is run.
fn lasting(name: &str) -> anyhow::Result<String> {
    let scheme = FOLDER_SCHEMES.into_iter().find(|scheme| name.starts_with(scheme)).unwrap_or_default();
    let folder = Path::new(name.strip_prefix(scheme).unwrap_or(name));
    if scheme.is_empty() && !folder.is_dir() {
        return Ok(name.to_owned());
    }
    let scheme = if scheme.is_empty() { "path:" } else { scheme };
    let absolute = std::path::absolute(folder)?;
    Ok(format!("{scheme}{}", absolute.display()))
}
