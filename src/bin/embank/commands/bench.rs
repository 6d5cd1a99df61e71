//! `embank model bench`: how fast a model is here, what it weighs, and how long the bank's backlog would take.

mod texts;

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use embank::embed::{Embedded, Embedder, LocalEmbedder, ModelShape, TextKind};
use embank::{Bank, Error, StatusCounts};
use futures::{StreamExt, TryStreamExt};
use indicatif::HumanCount;
use serde::Serialize;

use super::model::local_only;
use crate::Exit;
use crate::args::BenchArgs;
use crate::memory;
use crate::output::seconds;
use crate::session::Session;

/// Texts that are asked for together, and how many such requests are on their way: as a backfill does, so that the next
/// texts are tokenized while these are computed.
const TEXTS_PER_REQUEST: usize = 512;
const REQUESTS_AHEAD: usize = 3;

/// What was measured. Megabytes are of 2^20 bytes.
#[derive(Serialize)]
struct Measured {
    model: String,
    precision: embank::embed::Precision,
    device: String,
    /// The instructions that the processor has for it.
    cpu: &'static str,
    threads: usize,
    /// Where the texts came from.
    source: &'static str,
    texts: usize,
    /// Special tokens and prefixes included.
    tokens: u64,
    truncated: usize,
    rounds: usize,
    load_seconds: f64,
    /// Of the median round.
    seconds: f64,
    texts_per_second: f64,
    tokens_per_second: f64,
    /// 10^9 useful floating point operations a second; see `ModelShape::operations`.
    gflops: f64,
    /// Share of the median round in which the model did not compute.
    idle_share: f64,
    rss_before_load_mb: Option<f64>,
    rss_loaded_mb: Option<f64>,
    /// After the last round.
    rss_mb: Option<f64>,
    rss_peak_mb: Option<f64>,
    rss_after_unload_mb: Option<f64>,
    /// What the bank still has to embed, and how long that takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<Backlog>,
}

#[derive(Serialize)]
struct Backlog {
    chunks: u64,
    seconds: f64,
}

/// One pass over all texts.
struct Round {
    seconds: f64,
    computing: Duration,
}

pub async fn run(session: &Session, args: BenchArgs) -> anyhow::Result<Exit> {
    let threads = set_threads(args.threads)?;
    let name = args.name.as_deref().unwrap_or(&session.settings().embedder).to_owned();
    // Refuses what is no local model, and says what there is.
    local_only(session, &name)?;
    let mut options = session.local_options(&name);
    options.batch_tokens = args.batch_tokens;
    let local = LocalEmbedder::open(options)?;
    // Through the embedder of the settings, so that measuring another model leaves no tables of it. Without a bank there
    // is no backlog.
    let bank = match session.open().await {
        Ok(bank) => Some(bank),
        Err(Error::NoBank { .. }) => None,
        Err(e) => return Err(e.into()),
    };
    let (source, texts) = texts::choose(args.texts.as_deref(), bank.as_ref()).await?;
    let due = match &bank {
        Some(bank) => Some(due(bank, &local).await?),
        None => None,
    };
    drop(bank);

    let rss_before_load_mb = memory::resident_mb();
    let started = Instant::now();
    local.load().await?;
    let load_seconds = started.elapsed().as_secs_f64();
    let rss_loaded_mb = memory::resident_mb();
    let shape = local.shape()?;
    let mut totals = Totals::default();
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        // The texts of all rounds are the same, so one round's vectors are enough.
        let dump = args.dump.as_deref().filter(|_| number == args.rounds);
        let (round, counted) = round(&local, &texts, shape, dump).await?;
        session.display().say(&format!("round {number} of {}: {}", args.rounds, seconds(round.seconds)));
        totals = counted;
        rounds.push(round);
    }
    let (rss_mb, rss_peak_mb) = (memory::resident_mb(), memory::peak_resident_mb());
    local.unload().await?;
    let rss_after_unload_mb = memory::resident_mb();

    rounds.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let median = rounds.get(rounds.len() / 2).context("no round was run")?;
    let texts_per_second = texts.len() as f64 / median.seconds;
    let measured = Measured {
        model: name,
        precision: local.identity().precision,
        device: session.settings().device.to_string(),
        cpu: embank::embed::cpu_instructions(),
        threads,
        source,
        texts: texts.len(),
        tokens: totals.tokens,
        truncated: totals.truncated,
        rounds: args.rounds,
        load_seconds,
        seconds: median.seconds,
        texts_per_second,
        tokens_per_second: totals.tokens as f64 / median.seconds,
        gflops: totals.operations as f64 / median.seconds / 1e9,
        idle_share: 1.0 - median.computing.as_secs_f64() / median.seconds,
        rss_before_load_mb,
        rss_loaded_mb,
        rss_mb,
        rss_peak_mb,
        rss_after_unload_mb,
        backlog: due.map(|chunks| Backlog { chunks, seconds: chunks as f64 / texts_per_second }),
    };
    session.display().clear();
    if session.output().is_json() {
        session.output().json(&measured)?;
    } else {
        session.output().text(&for_people(&measured))?;
    }
    Ok(Exit::Done)
}

/// Must come before anything computes: the threads are started once.
fn set_threads(threads: Option<usize>) -> anyhow::Result<usize> {
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot set the threads")?;
    }
    Ok(rayon::current_num_threads())
}

/// Chunks without a vector of this embedder.
async fn due(bank: &Bank, local: &LocalEmbedder) -> anyhow::Result<u64> {
    let status = bank.status().await?;
    let id = local.identity().id();
    let counts = status.status.iter().find(|one| one.embedder == id).map_or(StatusCounts::default(), |one| one.counts);
    Ok(status.chunks.saturating_sub(counts.ready))
}

/// What the texts amount to.
#[derive(Clone, Copy, Default)]
struct Totals {
    tokens: u64,
    truncated: usize,
    operations: u64,
}

impl Totals {
    fn add(&mut self, answers: &[Embedded], shape: ModelShape) {
        for answer in answers {
            self.tokens += u64::from(answer.tokens);
            self.truncated += usize::from(answer.truncated);
            self.operations += shape.operations(u64::from(answer.tokens));
        }
    }
}

async fn round(
    local: &LocalEmbedder,
    texts: &[String],
    shape: ModelShape,
    dump: Option<&Path>,
) -> anyhow::Result<(Round, Totals)> {
    let mut file = match dump {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
            Some(BufWriter::new(file))
        }
        None => None,
    };
    let mut totals = Totals::default();
    let computed_before = local.usage().computing;
    let started = Instant::now();
    let requests = texts.chunks(TEXTS_PER_REQUEST).map(|texts| local.embed(TextKind::Passage, texts));
    let mut answers = futures::stream::iter(requests).buffered(REQUESTS_AHEAD);
    while let Some(answers) = answers.try_next().await? {
        totals.add(&answers, shape);
        if let Some(file) = &mut file {
            for number in answers.iter().flat_map(|answer| &answer.vector) {
                file.write_all(&number.to_le_bytes()).context("cannot write the vectors")?;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    if let Some(mut file) = file {
        file.flush().context("cannot write the vectors")?;
    }
    Ok((Round { seconds, computing: local.usage().computing.saturating_sub(computed_before) }, totals))
}

fn for_people(measured: &Measured) -> String {
    let count = |number: f64| HumanCount(number.round() as u64).to_string();
    let megabytes = |mb: Option<f64>| mb.map_or_else(|| "unknown".to_owned(), |mb| format!("{mb:.0} MB"));
    let mut lines = vec![
        format!(
            "model     {} in {} on {} ({}, {} threads)",
            measured.model, measured.precision, measured.device, measured.cpu, measured.threads
        ),
        format!(
            "texts     {} from {}, {} tokens, {:.0} on average",
            count(measured.texts as f64),
            measured.source,
            count(measured.tokens as f64),
            measured.tokens as f64 / measured.texts as f64,
        ),
        format!(
            "rate      {} texts/s, {} tokens/s, {:.1} GFLOP/s (median of {} rounds)",
            count(measured.texts_per_second),
            count(measured.tokens_per_second),
            measured.gflops,
            measured.rounds,
        ),
        format!("load      {}", seconds(measured.load_seconds)),
        format!(
            "memory    {} before the load, {} with the model, {} while it worked, {} after it was let go",
            megabytes(measured.rss_before_load_mb),
            megabytes(measured.rss_loaded_mb),
            megabytes(measured.rss_peak_mb),
            megabytes(measured.rss_after_unload_mb),
        ),
    ];
    if let Some(backlog) = &measured.backlog {
        let chunks = HumanCount(backlog.chunks);
        lines.push(format!("backlog   {chunks} chunks of the bank would take {}", seconds(backlog.seconds)));
    }
    lines.join("\n") + "\n"
}
