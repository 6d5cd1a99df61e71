//! `embank index …`: building, inspecting and switching generations.

use anyhow::bail;
use embank::{Activation, Bank, BuildOptions, Error, Generation, GenerationId, SpecOverrides, ValidateOptions};
use indicatif::{HumanBytes, HumanCount};

use super::{measure, report};
use crate::Exit;
use crate::args::{BuildArgs, IndexCommand};
use crate::output::{Align, seconds, table};
use crate::session::Session;

pub async fn run(session: &Session, command: IndexCommand) -> anyhow::Result<Exit> {
    match command {
        IndexCommand::Build(args) => build(session, args).await,
        IndexCommand::List => list(session).await,
        IndexCommand::Show(args) => measure::show(session, args).await,
        IndexCommand::Tune(args) => measure::tune(session, args).await,
        IndexCommand::Verify { generation } => measure::verify(session, generation).await,
        IndexCommand::Activate { generation } => {
            let bank = session.open().await?;
            let id = find(bank.generations().await?, &generation)?.id;
            tell(session, &bank.activate_generation(&id).await?)
        }
        IndexCommand::Rollback => tell(session, &session.open().await?.rollback().await?),
        IndexCommand::History => history(session).await,
        IndexCommand::Optimise => optimise(session).await,
        IndexCommand::Gc => collect_garbage(session).await,
    }
}

async fn build(session: &Session, args: BuildArgs) -> anyhow::Result<Exit> {
    session.stop_gently();
    let bank = session.open().await?;
    let gate = session.settings().validation(args.min_recall);
    let gate = ValidateOptions { target_recall: args.target_recall, ..gate };
    let options = measure::options(gate, args.k, &args.settings);
    let validated = match bank.build_validated(build_options(session, &args), options).await {
        Ok(validated) => validated,
        Err(error) => {
            if let Error::RecallTooLow { id, .. } = &error
                && session.output().is_json()
            {
                let refused = generation(&bank, &GenerationId::from_stored(id.as_str())).await?;
                session.output().json(&serde_json::json!({ "outcome": "refused", "generation": refused }))?;
            }
            if let Error::RecallTooLow { id, .. } = &error {
                let refused = generation(&bank, &GenerationId::from_stored(id.as_str())).await?;
                measure::write_page(args.report.as_deref(), &refused)?;
            }
            return Err(error.into());
        }
    };
    let id = validated.id().clone();
    let activation = if args.no_activate {
        bank.set_aside(validated).await?;
        None
    } else {
        Some(bank.activate(validated).await?)
    };
    session.display().clear();
    let done = generation(&bank, &id).await?;
    measure::write_page(args.report.as_deref(), &done)?;
    if session.output().is_json() {
        let outcome = if activation.is_some() { "activated" } else { "validated" };
        let previous = activation.and_then(|activation| activation.previous);
        let value = serde_json::json!({ "outcome": outcome, "generation": done, "previous": previous });
        session.output().json(&value)?;
        return Ok(Exit::Done);
    }
    let taken = seconds(done.build_seconds);
    session.output().line(&format!("{id}: {}, built in {taken}", report::generation(&done)))?;
    match activation {
        None => {
            session.output().line(&format!("validated, not active; `embank index activate {id}` switches to it"))?
        }
        Some(activation) => session.output().line(&activation_line(&activation))?,
    }
    Ok(Exit::Done)
}

fn build_options(session: &Session, args: &BuildArgs) -> BuildOptions {
    BuildOptions {
        kind: session.settings().kind(args.kind),
        overrides: SpecOverrides {
            partitions: args.spec.partitions,
            sub_vectors: args.spec.sub_vectors,
            bits: args.spec.bits,
            edges: args.spec.edges,
            ef_construction: args.spec.ef_construction,
        },
        seed: args.seed,
    }
}

async fn list(session: &Session) -> anyhow::Result<Exit> {
    let generations = session.open().await?.generations().await?;
    if session.output().is_json() {
        session.output().json(&serde_json::json!({ "generations": generations }))?;
        return Ok(Exit::Done);
    }
    if generations.is_empty() {
        session.output().line("no generations; `embank index build` makes one")?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = generations.iter().map(list_row).collect();
    let columns = [
        ("generation", Align::Left),
        ("state", Align::Left),
        ("kind", Align::Left),
        ("rows", Align::Right),
        ("size", Align::Right),
        ("recall", Align::Right),
        ("p95 ms", Align::Right),
        ("built in", Align::Right),
        ("created", Align::Left),
    ];
    session.output().text(&table(columns, &rows))?;
    Ok(Exit::Done)
}

fn list_row(generation: &Generation) -> [String; 9] {
    let measured = generation.recall.as_ref();
    [
        generation.id.to_string(),
        generation.state.label().to_owned(),
        generation.kind.clone(),
        HumanCount(generation.rows).to_string(),
        generation.index_bytes.map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string()),
        measured.map_or_else(|| "-".to_owned(), |measured| format!("{:.4}", measured.recall)),
        measured.map_or_else(|| "-".to_owned(), |measured| format!("{:.1}", measured.p95_ms)),
        seconds(generation.build_seconds),
        generation.created_at.clone(),
    ]
}

async fn history(session: &Session) -> anyhow::Result<Exit> {
    let moves = session.open().await?.index_history().await?;
    if session.output().is_json() {
        session.output().json(&serde_json::json!({ "history": moves }))?;
        return Ok(Exit::Done);
    }
    if moves.is_empty() {
        session.output().line("no generation was ever activated; `embank index build` makes one")?;
        return Ok(Exit::Done);
    }
    let columns = [("when", Align::Left), ("what", Align::Left), ("active", Align::Left), ("before", Align::Left)];
    let before = |id: Option<&GenerationId>| id.map_or_else(|| "-".to_owned(), ToString::to_string);
    let rows: Vec<_> = moves
        .iter()
        .map(|one| {
            let what = one.change.label().to_owned();
            [one.at.clone(), what, one.active.to_string(), before(one.previous.as_ref())]
        })
        .collect();
    session.output().text(&table(columns, &rows))?;
    Ok(Exit::Done)
}

async fn optimise(session: &Session) -> anyhow::Result<Exit> {
    session.stop_gently();
    let bank = session.open().await?;
    let report = bank.optimise_index().await?;
    let k = session.settings().validation(None).k;
    let live = if report.done.is_some() { bank.measure_live_recall(k).await? } else { None };
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&serde_json::json!({
            "generation": report.generation,
            "done": report.done,
            "live": live,
        }))?;
        return Ok(Exit::Done);
    }
    let id = &report.generation;
    match &report.done {
        None => session.output().line(&format!("{id} covers every row"))?,
        Some(done) => {
            let (rows, taken) = (HumanCount(done.rows), seconds(done.seconds));
            session.output().line(&format!("{rows} rows folded into {id} in {taken}"))?;
        }
    }
    if let Some(live) = &live {
        session.output().line(&report::live(live))?;
    }
    Ok(Exit::Done)
}

async fn collect_garbage(session: &Session) -> anyhow::Result<Exit> {
    let report = session.open().await?.keep_house(session.settings().housekeeping()).await?;
    let exit = if report.failures.is_empty() { Exit::Done } else { Exit::Incomplete };
    if session.output().is_json() {
        session.output().json(&report)?;
        return Ok(exit);
    }
    for id in &report.removed {
        session.output().line(&format!("removed {id}"))?;
    }
    for table in &report.compacted {
        session.output().line(&format!("compacted {table}"))?;
    }
    let (removed, bytes) = (report.removed.len(), HumanBytes(report.index_bytes));
    let (versions, freed) = (report.versions_removed, HumanBytes(report.bytes_freed));
    session.output().line(&format!(
        "{removed} generations with indexes of {bytes} and {versions} old versions of tables removed, {freed} freed"
    ))?;
    for failure in &report.failures {
        session.display().say(&format!("failed: {} of {}: {}", failure.step.label(), failure.of, failure.reason));
    }
    Ok(exit)
}

fn tell(session: &Session, activation: &Activation) -> anyhow::Result<Exit> {
    if session.output().is_json() {
        session.output().json(activation)?;
    } else {
        session.output().line(&activation_line(activation))?;
    }
    Ok(Exit::Done)
}

fn activation_line(activation: &Activation) -> String {
    match &activation.previous {
        Some(previous) => format!("{} is active; before it was {previous}", activation.active),
        None => format!("{} is active", activation.active),
    }
}

pub(super) async fn generation(bank: &Bank, id: &GenerationId) -> anyhow::Result<Generation> {
    let found = bank.generations().await?.into_iter().find(|generation| generation.id == *id);
    Ok(found.ok_or_else(|| Error::UnknownGeneration { id: id.to_string() })?)
}

/// The generation of this id, or the only one whose id begins so.
pub(super) fn find(generations: Vec<Generation>, wanted: &str) -> anyhow::Result<Generation> {
    let mut found: Vec<_> = generations.into_iter().filter(|one| one.id.as_str().starts_with(wanted)).collect();
    if let Some(exact) = found.iter().position(|one| one.id.as_str() == wanted) {
        return Ok(found.swap_remove(exact));
    }
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), more) => bail!("{} generations begin with {wanted}; write more of the id", more + 1),
        (None, _) => Err(Error::UnknownGeneration { id: wanted.to_owned() }.into()),
    }
}
