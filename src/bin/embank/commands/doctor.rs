//! `embank doctor`: what is wrong with a bank, and its repair.

use embank::{Bank, CheckReport, DoctorOptions, DoctorReport, Repair, Severity};
use indicatif::HumanCount;

use crate::Exit;
use crate::args::DoctorArgs;
use crate::output::{Align, table};
use crate::session::Session;

/// Examples in a line of the table; JSON has more.
const EXAMPLES: usize = 2;

pub async fn run(session: &Session, args: DoctorArgs) -> anyhow::Result<Exit> {
    let repair = if args.repair { Repair::WhatIsSafe } else { Repair::Nothing };
    session.stop_gently();
    // No embedder is made: the model need not be on this machine.
    let report = Bank::examine(&session.settings().bank, session.bank_options(), DoctorOptions { repair }).await?;
    if session.output().is_json() {
        session.output().json(&report)?;
    } else {
        session.output().text(&text(&report))?;
    }
    Ok(if report.healthy { Exit::Done } else { Exit::Incomplete })
}

fn text(report: &DoctorReport) -> String {
    let rows: Vec<_> =
        report.checks.iter().map(|check| [check.name.to_owned(), verdict(check), detail(check)]).collect();
    let mut text = table([("check", Align::Left), ("result", Align::Left), ("", Align::Left)], &rows);
    for done in &report.repairs {
        text.push_str(&format!("repaired: {done}\n"));
    }
    for check in report.findings().filter(|check| check.left > 0) {
        text.push_str(&format!("{}: {}\n", check.name, check.mend));
    }
    text.push_str(if report.healthy { "the bank is healthy\n" } else { "something is wrong with the bank\n" });
    text
}

fn verdict(check: &CheckReport) -> String {
    let count = HumanCount(check.left);
    match (check.found, check.left, check.severity) {
        (0, _, _) if check.not_examined.is_some() => "not examined".to_owned(),
        (0, _, _) => "ok".to_owned(),
        (found, 0, _) => format!("repaired {}", HumanCount(found)),
        (_, _, Severity::Note) => format!("note: {count}"),
        (_, _, Severity::Warning) => format!("warning: {count}"),
        (_, _, Severity::Error) => format!("ERROR: {count}"),
    }
}

fn detail(check: &CheckReport) -> String {
    if let Some(why) = check.not_examined.as_ref().filter(|_| check.found == 0) {
        return why.clone();
    }
    let more = if check.found > EXAMPLES as u64 { ", …" } else { "" };
    let examples: Vec<_> = check.examples.iter().take(EXAMPLES).map(String::as_str).collect();
    format!("{}{more}", examples.join(", "))
}
