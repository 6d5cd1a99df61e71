//! `embank model pull`, `model list` and `model verify`.

use anyhow::anyhow;
use embank::embed::{Embedder, EmbedderIdentity, Pooling, check_conformance, list_models};
use embank::{EmbedderId, Error};
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::json;

use super::{bench, report, switch};
use crate::Exit;
use crate::args::ModelCommand;
use crate::output::{Align, seconds, table};
use crate::session::{NamedEmbedder, Session};

pub async fn run(session: &Session, command: ModelCommand) -> anyhow::Result<Exit> {
    match command {
        ModelCommand::Pull { name, from } => pull(session, &name, from).await,
        ModelCommand::List => list(session),
        ModelCommand::Verify { name } => verify(session, name.as_deref()).await,
        ModelCommand::Switch { name: Some(name), flags } => switch::to(session, &name, flags).await,
        ModelCommand::Switch { name: None, .. } => switch::show(session).await,
        ModelCommand::Rollback(flags) => switch::back(session, flags).await,
        ModelCommand::Bench(args) => bench::run(session, args).await,
    }
}

async fn pull(session: &Session, name: &str, from: Option<std::path::PathBuf>) -> anyhow::Result<Exit> {
    session.stop_gently();
    let pulled = session.pull(name, from).await?;
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&json!({
            "model": pulled.model,
            "dir": pulled.dir,
            "source": pulled.source.map(|source| source.to_string()),
            "fetched": pulled.fetched,
            "fetched_bytes": pulled.fetched_bytes,
        }))?;
    } else {
        session.output().line(&report::pull(&pulled))?;
    }
    Ok(Exit::Done)
}

fn list(session: &Session) -> anyhow::Result<Exit> {
    let settings = session.settings();
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for model in list_models(&settings.model_dir) {
        let here = model.bytes.map_or_else(|| "no".to_owned(), |bytes| HumanBytes(bytes).to_string());
        let pinned = if model.pinned { "yes" } else { "no" };
        rows.push([
            model.name.to_owned(),
            model.dimension.to_string(),
            model.max_tokens.to_string(),
            pooling(model.pooling).to_owned(),
            pinned.to_owned(),
            here,
        ]);
        values.push(json!({
            "name": model.name,
            "repo": model.repo,
            "dimension": model.dimension,
            "max_tokens": model.max_tokens,
            "pooling": model.pooling,
            "pinned": model.pinned,
            "installed": model.bytes.is_some(),
            "bytes": model.bytes,
            "dir": model.dir,
        }));
    }
    if session.output().is_json() {
        let precision = embank::embed::Precision::from(settings.precision);
        session.output().json(&json!({
            "models": values,
            "precision": precision,
            "device": settings.device.to_string(),
            "cpu": embank::embed::cpu_instructions(),
        }))?;
        return Ok(Exit::Done);
    }
    let columns = [
        ("model", Align::Left),
        ("dimensions", Align::Right),
        ("max tokens", Align::Right),
        ("pooling", Align::Left),
        ("pinned", Align::Left),
        ("here", Align::Right),
    ];
    session.output().text(&table(columns, &rows))?;
    session.output().line(&format!(
        "computed in {} on device {}; this processor: {}",
        embank::embed::Precision::from(settings.precision),
        settings.device,
        embank::embed::cpu_instructions(),
    ))?;
    Ok(Exit::Done)
}

fn pooling(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Mean => "mean",
        Pooling::Cls => "first token",
        Pooling::None => "none",
    }
}

/// What was found right.
#[derive(Serialize)]
struct Verified<'a> {
    model: &'a str,
    embedder: EmbedderId,
    identity: &'a EmbedderIdentity,
    pinned: bool,
    load_seconds: f64,
    conforms: bool,
}

async fn verify(session: &Session, name: Option<&str>) -> anyhow::Result<Exit> {
    let name = name.unwrap_or(&session.settings().embedder);
    let local = local_only(session, name)?;
    // Checksums, the tensors, and the vectors on record.
    let started = std::time::Instant::now();
    local.load().await?;
    let load_seconds = started.elapsed().as_secs_f64();
    check_conformance(&local)
        .await
        .map_err(|broken| anyhow!("{name} does not keep the contract of embedders: {broken}"))?;
    let identity = local.identity();
    let (embedder, pinned) = (identity.id(), local.is_pinned());
    if session.output().is_json() {
        let verified = Verified { model: name, embedder, identity, pinned, load_seconds, conforms: true };
        session.output().json(&verified)?;
        return Ok(Exit::Done);
    }
    let files = if pinned { "the published ones" } else { "those that came first" };
    session.output().text(&format!(
        "{name} is sound\n\
         files      {files}\n\
         self-test  passed; loaded in {}\n\
         contract   kept\n\
         embedder   {embedder}: {} dimensions, {} tokens, {}, {}\n",
        seconds(load_seconds),
        identity.dimension,
        identity.max_tokens,
        pooling(identity.pooling),
        identity.precision,
    ))?;
    Ok(Exit::Done)
}

/// The local model of this name.
pub fn local_only(session: &Session, name: &str) -> Result<embank::embed::LocalEmbedder, Error> {
    match session.named_embedder(name)? {
        NamedEmbedder::Local(local) => Ok(local),
        _ => Err(Error::InvalidSetting {
            setting: "embedder",
            reason: format!("{name} is not a local model; name one of `embank model list`, or a folder"),
        }),
    }
}
