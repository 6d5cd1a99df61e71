//! The command line: every command and flag with its help text.
//!
//! Guarantees: what is parsed is well formed by itself (numbers in range, durations read). Must not know: the environment,
//! files, defaults that a settings file may change; those are decided in `settings`.

mod index;
mod model;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use index::{BuildArgs, IndexCommand, SettingsFlags, ShowArgs, TuneArgs};
pub use model::{BenchArgs, ModelCommand, SwitchFlags};
pub use values::{DeviceArg, DriftArg, DurabilityArg, FailureArg, KindArg, PrecisionArg, SizeArg, SpanArg};
use values::{duration, fraction, positive};

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   error, stopped before the end, or the doctor leaves a finding
  2   a gate said no: an index is not sure to reach the required recall; what answered before still does
  3   busy: another process maintains the bank
  64  usage: an unknown flag, setting, filter, query or embedder

Environment:
  EMBANK_BANK, EMBANK_EMBEDDER, EMBANK_MODEL_DIR, EMBANK_PRECISION, EMBANK_DEVICE,
  EMBANK_DURABILITY and EMBANK_MEMORY_LIMIT set what the flags of these names set; EMBANK_LOG sets what is logged to stderr,
  default `warn`. Flags beat the environment, which beats embank.toml in the working directory, or
  else in the bank.";

/// An embedded, crash-safe embedding bank: documents in, a validated vector index out, no server.
#[derive(Debug, Parser)]
#[command(name = "embank", version, max_term_width = 110, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The bank's directory [env: EMBANK_BANK] [default: .embank]
    #[arg(long, global = true, value_name = "DIR")]
    pub bank: Option<PathBuf>,
    /// The embedder: a model's name, `path:DIR` for a folder with a model's files, `openai:MODEL` for a remote one, or `fake:D`
    /// for trials with D dimensions [env: EMBANK_EMBEDDER] [default: all-minilm-l6-v2]
    #[arg(long, global = true, value_name = "NAME")]
    pub embedder: Option<String>,
    /// The folder of all models [env: EMBANK_MODEL_DIR] [default: embank/models in the user's cache directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub model_dir: Option<PathBuf>,
    /// Number format of a local model's weights; vectors of different formats are never mixed [env: EMBANK_PRECISION]
    /// [default: f32]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub precision: Option<PrecisionArg>,
    /// What computes a local model: `auto`, `cpu`, `gpu` or `gpu:N` [env: EMBANK_DEVICE] [default: auto]
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<DeviceArg>,
    /// What an acknowledged write survives [env: EMBANK_DURABILITY] [default: power-loss]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub durability: Option<DurabilityArg>,
    /// Memory that the process should not pass, as `512M` or `2G`: bounds batches and caches, and refuses an index that does
    /// not fit [env: EMBANK_MEMORY_LIMIT] [default: none]
    #[arg(long, global = true, value_name = "SIZE")]
    pub memory_limit: Option<SizeArg>,
    /// Show no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Print results as JSON, one value a line
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the bank up to date: ingest, embed, and renew the index if needed
    Sync(SyncArgs),
    /// Do so on a schedule, in the foreground, until Ctrl-C or SIGTERM
    Schedule(ScheduleArgs),
    /// Renew the index: fold newer rows in, or build, validate and activate a new one
    Rebuild(RebuildArgs),
    /// Read documents and cut them into chunks
    Ingest(IngestArgs),
    /// Embed the chunks that have no vector yet
    Backfill(BackfillArgs),
    /// Build, inspect and switch index generations
    #[command(subcommand)]
    Index(IndexCommand),
    /// Answer a question
    Search(SearchArgs),
    /// Print vectors of texts as JSON lines; needs no bank
    Embed(EmbedArgs),
    /// Show tables, counts, the active index, and disk use
    Status,
    /// Print every chunk as a JSON line
    Documents,
    /// Print a digest of documents, states and vectors: equal for banks with equal contents
    Digest,
    /// Show what could not be embedded, by cause
    Errors(ErrorsArgs),
    /// Queue chunks that could not be embedded again
    Retry(RetryArgs),
    /// Check every invariant of the bank; exit with 1 if anything is wrong. Needs no model
    Doctor(DoctorArgs),
    /// List what earlier runs did
    Runs(RunsArgs),
    /// Fetch, list, check and measure models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Measure retrieval against relevance judgements
    Eval(EvalArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub struct SyncArgs {
    /// Folders or files
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Repeat after each pause until Ctrl-C, e.g. `90s`, `30m`, `1h`, `1d`
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub every: Option<Duration>,
    #[command(flatten)]
    pub step: StepFlags,
    // Last: the heading of flattened flags holds for all that follow.
    #[command(flatten)]
    pub ingest: IngestFlags,
}

/// What one step embeds and builds.
#[derive(Args, Debug, Default)]
pub struct StepFlags {
    /// The index to build when one is due [default: auto]
    #[arg(long, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// The recall@10 that a new index must reach, 0 to 1 [default: 0.95]
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub min_recall: Option<f64>,
    /// Embed at most so many chunks in one step [default: all; 50000 with --every, whose next step then follows at once]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// After this time others take over what a worker has claimed that stopped without a sign [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub lease: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct ScheduleArgs {
    /// When: minute, hour, day of month, month and day of week, e.g. `0 3 * * *`
    #[arg(long, value_name = "EXPRESSION")]
    pub cron: String,
    /// The time zone of the expression, e.g. Europe/Berlin [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub timezone: Option<String>,
    /// Folders or files to ingest; without any, only what is in the bank is seen to
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub sync: Vec<PathBuf>,
    /// Put each run off by a random time of at most so much, e.g. `5m`
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub jitter: Option<Duration>,
    #[command(flatten)]
    pub step: StepFlags,
    #[command(flatten)]
    pub ingest: IngestFlags,
}

#[derive(Args, Debug)]
pub struct RebuildArgs {
    /// Only if the policy says so ([rebuild] in embank.toml); measures the index again where anything has changed
    #[arg(long)]
    pub if_needed: bool,
    /// The index to build [default: auto]
    #[arg(long, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// The recall@10 that a new index must reach, 0 to 1 [default: 0.95]
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub min_recall: Option<f64>,
}

#[derive(Args, Debug)]
pub struct IngestArgs {
    /// Folders or files
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    #[command(flatten)]
    pub ingest: IngestFlags,
}

/// How documents are read and cut. A run with other values cuts them anew.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Ingest options")]
pub struct IngestFlags {
    /// Most tokens of a chunk, at least 16 [default: the model's window]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_tokens: Option<usize>,
    /// Most tokens that a chunk repeats of the one before [default: 32]
    #[arg(long, value_name = "N")]
    pub overlap: Option<usize>,
    /// Keep documents whose file is gone
    #[arg(long, overrides_with = "prune")]
    pub no_prune: bool,
    /// Remove documents whose file is gone (the default; undoes `prune = false` of embank.toml)
    #[arg(long, overrides_with = "no_prune")]
    pub prune: bool,
    /// Field of a JSONL or CSV record that is its id [default: id]
    #[arg(long, value_name = "NAME")]
    pub id_field: Option<String>,
    /// Field of a JSONL or CSV record that is its text [default: text]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Field of a JSONL or CSV record that is its category [default: category]
    #[arg(long, value_name = "NAME")]
    pub category_field: Option<String>,
    /// Exit with 1 if anything was skipped
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args, Debug)]
pub struct BackfillArgs {
    /// Embed at most so many chunks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// After this time others take over what a worker has claimed that stopped without a sign [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub lease: Option<Duration>,
    /// Try failed chunks again now, whenever they are due
    #[arg(long)]
    pub retry_errors: bool,
    /// Only say how many texts and tokens there are to embed, and what that would cost
    #[arg(long, conflicts_with_all = ["limit", "lease", "retry_errors"])]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct SearchArgs {
    /// The question
    pub query: String,
    /// Hits at most
    #[arg(short, long = "k", value_name = "N", default_value_t = 10)]
    pub k: usize,
    /// A condition on the hits, `column=value` or `column^=prefix`, with category, doc_id or doc_path; may be repeated
    #[arg(long, value_name = "COND")]
    pub filter: Vec<String>,
    /// Let a document appear with several chunks
    #[arg(long)]
    pub chunks: bool,
    /// Keep the question in the bank, so that indexes are validated with what is asked
    #[arg(long)]
    pub query_log: bool,
}

#[derive(Args, Debug)]
pub struct EmbedArgs {
    /// Texts; `-` reads one a line from stdin
    #[arg(required = true, value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Embed as questions; some models embed these otherwise than passages
    #[arg(long)]
    pub query: bool,
}

#[derive(Args, Debug)]
pub struct ErrorsArgs {
    /// List the chunks instead of the causes
    #[arg(long)]
    pub all: bool,
    /// List at most so many chunks instead of the causes
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct RetryArgs {
    /// Only failures of this kind
    #[arg(long, value_name = "KIND")]
    pub kind: Option<FailureArg>,
    /// Only these chunks
    #[arg(long, value_name = "ID", num_args = 1..)]
    pub id: Vec<String>,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Mend what can be mended without losing anything that cannot be made again
    #[arg(long)]
    pub repair: bool,
}

#[derive(Args, Debug)]
pub struct RunsArgs {
    /// List only the newest N
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Questions, `qid<TAB>question` a line
    #[arg(long, value_name = "FILE")]
    pub queries: PathBuf,
    /// Judgements in TREC form, `qid 0 document grade` a line
    #[arg(long, value_name = "FILE")]
    pub qrels: PathBuf,
    /// Documents looked at per question
    #[arg(short, long = "k", value_name = "N", default_value = "10", value_parser = positive)]
    pub k: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_are_read_before_and_after_the_command() {
        for line in [["embank", "--json", "--bank", "b", "status"], ["embank", "status", "--json", "--bank", "b"]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.bank, Some("b".into()));
        }
    }

    #[test]
    fn the_last_of_prune_and_no_prune_counts() {
        let flags = |line: &[&str]| match Cli::try_parse_from(line).unwrap().command {
            Command::Ingest(args) => (args.ingest.prune, args.ingest.no_prune),
            other => panic!("{other:?}"),
        };
        assert_eq!(flags(&["embank", "ingest", "x", "--no-prune", "--prune"]), (true, false));
        assert_eq!(flags(&["embank", "ingest", "x", "--prune", "--no-prune"]), (false, true));
    }

    #[test]
    fn nonsense_is_refused_before_anything_runs() {
        for line in [
            &["embank", "sync"][..],
            &["embank", "sync", "x", "--min-recall", "1.5"],
            &["embank", "sync", "x", "--every", "soon"],
            &["embank", "backfill", "--limit", "0"],
            &["embank", "index", "build", "--kind", "magic"],
            &["embank", "retry", "--kind", "fatal"],
            &["embank", "retry", "--id"],
            &["embank", "errors", "--all", "--limit", "3"],
            &["embank", "search"],
            &["embank", "--durability", "none", "status"],
            &["embank", "--precision", "int1", "status"],
            &["embank", "--device", "tpu", "status"],
            &["embank", "--memory-limit", "lots", "status"],
            &["embank", "model", "bench", "--rounds", "0"],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
