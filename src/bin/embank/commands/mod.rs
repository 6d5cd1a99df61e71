//! The commands, one file each or one for a small group: call the library, print its report.

mod bench;
mod doctor;
mod embed;
mod eval;
mod failures;
mod index;
mod inspect;
mod measure;
mod model;
mod recall_page;
mod recall_plot;
mod report;
mod schedule;
mod search;
mod stages;
mod switch;
mod sync;

use clap::CommandFactory;

use crate::Exit;
use crate::args::{Cli, Command};
use crate::session::Session;

/// Runs one command.
pub async fn run(session: &Session, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Sync(args) => sync::run(session, args).await,
        Command::Schedule(args) => schedule::run(session, args).await,
        Command::Rebuild(args) => schedule::rebuild(session, args).await,
        Command::Ingest(args) => stages::ingest(session, args).await,
        Command::Backfill(args) => stages::backfill(session, args).await,
        Command::Index(command) => index::run(session, command).await,
        Command::Search(args) => search::run(session, args).await,
        Command::Embed(args) => embed::run(session, args).await,
        Command::Status => inspect::status(session).await,
        Command::Documents => inspect::documents(session).await,
        Command::Digest => inspect::digest(session).await,
        Command::Errors(args) => failures::errors(session, args).await,
        Command::Retry(args) => failures::retry(session, args).await,
        Command::Doctor(args) => doctor::run(session, args).await,
        Command::Runs(args) => inspect::runs(session, args).await,
        Command::Model(command) => model::run(session, command).await,
        Command::Eval(args) => eval::run(session, args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "embank", &mut script);
            session.output().text(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}
