//! `embank index show|tune|verify`: what was measured of a generation, measured otherwise, and measured again.

use std::path::Path;

use anyhow::{Context, bail};
use embank::{Bank, Generation, RecallReport, ValidateOptions, VerifyReport};
use indicatif::{HumanBytes, HumanCount};

use super::index::{find, generation};
use super::{recall_page, recall_plot, report};
use crate::Exit;
use crate::args::{SettingsFlags, ShowArgs, TuneArgs};
use crate::output::{Align, seconds, table};
use crate::session::Session;

pub async fn show(session: &Session, args: ShowArgs) -> anyhow::Result<Exit> {
    let mut generations = session.open().await?.generations().await?;
    let generation = match args.generation {
        Some(wanted) => find(generations, &wanted)?,
        None => match generations.pop() {
            Some(newest) => newest,
            None => bail!("there are no generations; `embank index build` makes one"),
        },
    };
    write_page(args.report.as_deref(), &generation)?;
    if session.output().is_json() {
        session.output().json(&generation)?;
    } else {
        session.output().text(&shown(&generation))?;
    }
    Ok(Exit::Done)
}

pub async fn tune(session: &Session, args: TuneArgs) -> anyhow::Result<Exit> {
    session.stop_gently();
    let bank = session.open().await?;
    let before = named_or_active(&bank, args.generation.as_deref()).await?;
    let gate = ValidateOptions { seed: args.seed, ..session.settings().validation(args.target_recall) };
    let options = options(gate, args.k, &args.settings);
    let tuned = bank.tune(&before.id, options).await?;
    session.display().clear();
    write_page(args.report.as_deref(), &tuned)?;
    if session.output().is_json() {
        let value = serde_json::json!({ "generation": tuned, "before": before.settings });
        session.output().json(&value)?;
        return Ok(Exit::Done);
    }
    let settings = |one: &Generation| report::settings(&one.settings).unwrap_or_else(|| "defaults".to_owned());
    session.output().line(&format!("{}: {}", tuned.id, report::generation(&tuned)))?;
    session.output().line(&format!("before it was searched with {}", settings(&before)))?;
    Ok(Exit::Done)
}

pub async fn verify(session: &Session, wanted: Option<String>) -> anyhow::Result<Exit> {
    let bank = session.open().await?;
    let id = named_or_active(&bank, wanted.as_deref()).await?.id;
    let verified = bank.verify(&id).await?;
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&verified)?;
    } else {
        session.output().text(&compared(&verified))?;
    }
    Ok(if verified.agrees { Exit::Done } else { Exit::Refused })
}

/// How to validate, with what the flags say.
pub fn options(gate: ValidateOptions, k: Option<usize>, flags: &SettingsFlags) -> ValidateOptions {
    ValidateOptions {
        k: k.unwrap_or(gate.k),
        nprobes: flags.nprobes,
        ef: flags.ef,
        refine_factor: flags.refine,
        ..gate
    }
}

/// Writes the page where one is wanted.
pub fn write_page(path: Option<&Path>, generation: &Generation) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, recall_page::page(generation)).with_context(|| format!("cannot write {}", path.display()))
}

async fn named_or_active(bank: &Bank, wanted: Option<&str>) -> anyhow::Result<Generation> {
    if let Some(wanted) = wanted {
        return find(bank.generations().await?, wanted);
    }
    match bank.status().await?.active {
        Some(active) => generation(bank, &active.id).await,
        None => bail!("no generation is active; name one, or `embank index build` makes one"),
    }
}

fn shown(generation: &Generation) -> String {
    let mut lines = vec![
        format!("generation  {} ({})", generation.id, generation.state.label()),
        format!("index       {}", report::generation(generation)),
        format!("built       {} in {}, by {}", generation.created_at, taken(generation), generation.built_with),
        format!("from        table version {}, seed {}", generation.dataset_version, generation.seed),
    ];
    if let Some(spec) = &generation.spec {
        lines.push(format!("parameters  {}", serde_json::json!(spec)));
    }
    lines.extend(size(generation));
    if let Some(error) = &generation.error {
        lines.push(format!("failed      {error}"));
    }
    lines.extend(generation.optimisations.iter().map(|done| {
        format!("folded in   {} rows on {}, {} parts beside the first", HumanCount(done.rows), done.at, done.deltas)
    }));
    lines
        .extend(generation.live.iter().map(|live| format!("measured    {}, {}", report::live(live), live.measured_at)));
    let mut text = lines.join("\n") + "\n";
    if let Some(measured) = &generation.recall {
        text.push_str(&measurement(measured));
        text.push_str(&recall_plot::plot(measured, &generation.settings));
    }
    text
}

/// How long it took, and what of that was training.
fn taken(generation: &Generation) -> String {
    let all = seconds(generation.build_seconds);
    match generation.sample_rows {
        Some(rows) => {
            let training = seconds(generation.training_seconds);
            format!("{all} ({training} of it training on {} vectors)", HumanCount(rows))
        }
        None => all,
    }
}

/// Bytes on disk, and in memory while it was built.
fn size(generation: &Generation) -> Option<String> {
    let disk = generation.index_bytes.map(|bytes| format!("{} on disk", HumanBytes(bytes)));
    let memory = generation.peak_memory_bytes.map(|bytes| format!("{} in memory at the peak", HumanBytes(bytes)));
    let known: Vec<_> = [disk, memory].into_iter().flatten().collect();
    (!known.is_empty()).then(|| format!("size        {}", known.join(", ")))
}

fn measurement(measured: &RecallReport) -> String {
    let mut lines = vec![
        format!("queries     {}, compared with {}", measured.query_source, measured.ground_truth),
        format!(
            "worst       {:.4}, spread between queries {:.4}, median {:.1} ms",
            measured.worst, measured.spread, measured.p50_ms
        ),
    ];
    if measured.trials > 0 {
        lines.push(format!(
            "proven      {:.4} by {} trials worth {:.0} independent ones; {}",
            measured.bound,
            HumanCount(measured.trials),
            measured.effective_trials,
            measured.basis
        ));
        lines.push(format!("measured    {} in {}", measured.measured_at, seconds(measured.seconds)));
    }
    let slices: Vec<_> = measured
        .slices
        .iter()
        .map(|slice| {
            [
                slice.category.clone(),
                HumanCount(slice.rows).to_string(),
                slice.queries.to_string(),
                format!("{:.4}", slice.recall),
                format!("{:.4}", slice.bound),
                format!("{:.1}", slice.p95_ms),
                if slice.gated { "yes" } else { "no, too few rows" }.to_owned(),
            ]
        })
        .collect();
    let mut text = lines.join("\n") + "\n";
    if !slices.is_empty() {
        let columns = [
            ("category", Align::Left),
            ("rows", Align::Right),
            ("queries", Align::Right),
            ("recall", Align::Right),
            ("proven", Align::Right),
            ("p95 ms", Align::Right),
            ("gated", Align::Left),
        ];
        text.push('\n');
        text.push_str(&table(columns, &slices));
    }
    text
}

fn compared(verified: &VerifyReport) -> String {
    let line = |name: &str, one: &RecallReport| {
        format!("{name}  {}, {} ({})\n", report::recall(one), one.query_source, one.measured_at)
    };
    let mut text = line("recorded", &verified.recorded) + &line("measured", &verified.measured);
    for note in &verified.notes {
        text.push_str(&format!("note      {note}\n"));
    }
    text.push_str(if verified.agrees { "they agree\n" } else { "they do not agree\n" });
    text
}
