//! `embank model pull` and `embank model list`.

use embank::embed::{Embedder, known_models};
use serde_json::json;

use super::report;
use crate::Exit;
use crate::args::ModelCommand;
use crate::output::{Align, table};
use crate::session::Session;

pub async fn run(session: &Session, command: ModelCommand) -> anyhow::Result<Exit> {
    match command {
        ModelCommand::Pull { name, from } => pull(session, &name, from).await,
        ModelCommand::List => list(session),
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
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for name in known_models() {
        let model = session.local(name)?;
        let identity = model.identity();
        let (dimension, max_tokens, installed) =
            (identity.dimension, identity.max_tokens, model.check_installed().is_ok());
        let dir = session.settings().model_dir.join(name);
        let here = if installed { dir.display().to_string() } else { "no".to_owned() };
        rows.push([name.to_owned(), dimension.to_string(), max_tokens.to_string(), here]);
        values.push(json!({
            "name": name,
            "dimension": dimension,
            "max_tokens": max_tokens,
            "installed": installed,
            "dir": dir,
        }));
    }
    if session.output().is_json() {
        session.output().json(&json!({ "models": values }))?;
    } else {
        let columns =
            [("model", Align::Left), ("dimensions", Align::Right), ("max tokens", Align::Right), ("here", Align::Left)];
        session.output().text(&table(columns, &rows))?;
    }
    Ok(Exit::Done)
}
