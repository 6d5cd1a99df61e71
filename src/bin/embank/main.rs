//! The `embank` command: arguments → settings → command → exit code.
//!
//! The only place that reads the environment, prints and draws bars. It knows the library by its public API alone.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod interrupt;
mod memory;
mod output;
mod progress;
mod remote;
mod session;
mod settings;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::Cli;
use output::{StdoutClosed, printable};
use progress::Display;
use session::Session;
use settings::{Environment, Settings};

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// All was done.
    Done,
    /// It was stopped, or left something out that it must not leave out.
    Incomplete,
    /// A gate said no.
    Refused,
    /// Another process maintains the bank.
    Busy,
}

const ERROR: u8 = 1;
const REFUSED: u8 = 2;
const BUSY: u8 = 3;
/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version come as errors too, but belong on stdout. Nobody is left to tell if printing fails.
            let _ = answer.print();
            return if answer.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Incomplete) => ExitCode::from(ERROR),
        Ok(Exit::Refused) => ExitCode::from(REFUSED),
        Ok(Exit::Busy) => ExitCode::from(BUSY),
        // The reader has seen enough (`embank documents | head`).
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(code_of(&error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let settings = Settings::resolve(&cli.global, Environment::read())?;
    let display = Display::new(settings.quiet);
    let filter = EnvFilter::try_new(&settings.log).map_err(|e| embank::Error::InvalidSetting {
        setting: "EMBANK_LOG",
        reason: format!("{e}; write a level such as `info` or `embank=debug`"),
    })?;
    let bars = display.clone();
    let coloured = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(coloured).with_writer(move || bars.log_writer()).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let session = Session::new(settings, display);
    let result = runtime.block_on(commands::run(&session, cli.command));
    session.display().clear();
    if let Some(resident_mb) = memory::peak_resident_mb() {
        tracing::info!(resident_mb, "memory at its peak");
    }
    // A thread that still works must not delay the exit: whatever it does can be repeated. Left alone rather than shut down,
    // because Lance takes a read that a shutdown cancels for one that panicked, and says so on stderr.
    std::mem::forget(runtime);
    result
}

fn tell(error: &anyhow::Error) {
    let mut stderr = io::stderr().lock();
    // Without a stderr there is nobody to tell.
    let _ = match error.downcast_ref() {
        Some(embank::Error::Cancelled) => writeln!(stderr, "{}", interrupt::STOPPED),
        _ => writeln!(stderr, "error: {}", printable(&format!("{error:#}"))),
    };
    if let Some(hint) = hint(error) {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// What helps, where the error itself does not say it.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let is = |kind| error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == kind));
    if is(io::ErrorKind::StorageFull) {
        return Some("the disk is full; what was acknowledged is kept, run the same command again once there is room");
    }
    match error.downcast_ref()? {
        embank::Error::RecallTooLow { .. } => {
            Some("what was active before still answers; `embank index show` prints what was measured")
        }
        embank::Error::PointerMoved { .. } => Some("`embank index list` shows what is active now"),
        _ => None,
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    use embank::Error;
    match error.downcast_ref() {
        Some(Error::RecallTooLow { .. }) => REFUSED,
        Some(Error::Busy { .. } | Error::LeaseLost { .. }) => BUSY,
        Some(
            Error::InvalidSetting { .. }
            | Error::InvalidFilter { .. }
            | Error::InvalidQuery { .. }
            | Error::UnknownEmbedder { .. },
        ) => USAGE,
        _ => ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_survive_added_context() {
        let busy = embank::Error::Busy { purpose: "building".into(), until: "soon".into() };
        assert_eq!(code_of(&anyhow::Error::from(busy).context("while syncing")), BUSY);
        let unknown = embank::Error::UnknownEmbedder { name: "x".into(), known: "y".into() };
        assert_eq!(code_of(&unknown.into()), USAGE);
        assert_eq!(code_of(&anyhow::anyhow!("anything else")), ERROR);
    }
}
