//! The flags of `embank index …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{KindArg, fraction, positive};

#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Build a new generation, measure its recall, and activate it if that suffices
    Build(BuildArgs),
    /// List the generations
    List,
    /// Show one generation with all that was measured
    Show(ShowArgs),
    /// Choose other query settings for an index that is there, by measuring; nothing is built
    Tune(TuneArgs),
    /// Measure the recall of a generation again, from what its record says; exit with 2 if it does not agree
    Verify {
        /// Its id, or the beginning of it [default: the active one]
        generation: Option<String>,
    },
    /// Activate a generation that passed validation before
    Activate {
        /// Its id, or the beginning of it
        generation: String,
    },
    /// Return to the generation that was active before
    Rollback,
    /// Show when search was moved from which generation to which
    History,
    /// Fold rows that are newer than the active index into it, without training it again, and measure its recall
    #[command(alias = "optimize")]
    Optimise,
    /// Remove failed and long retired generations, and old versions of the tables
    Gc,
}

#[derive(Args, Debug)]
pub struct BuildArgs {
    /// Which index [default: auto]
    #[arg(long, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// The recall@k that it must reach, 0 to 1 [default: 0.95]
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub min_recall: Option<f64>,
    /// The recall@k that tuning aims at, where that is more than it must reach
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub target_recall: Option<f64>,
    /// Neighbours that recall is measured on [default: 10]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub k: Option<usize>,
    /// Write the report as a page with the curve of recall and latency
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Seed of training and of the validation queries [default: drawn and recorded]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Build and validate only; `index activate` switches later
    #[arg(long)]
    pub no_activate: bool,
    #[command(flatten)]
    pub spec: SpecFlags,
    #[command(flatten)]
    pub settings: SettingsFlags,
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Its id, or the beginning of it [default: the newest]
    pub generation: Option<String>,
    /// Write the report as a page with the curve of recall and latency
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct TuneArgs {
    /// Its id, or the beginning of it [default: the active one]
    pub generation: Option<String>,
    /// The recall@k to reach, 0 to 1 [default: min-recall of embank.toml, else 0.95]
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub target_recall: Option<f64>,
    /// Neighbours that recall is measured on [default: 10]
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub k: Option<usize>,
    /// Seed of the queries [default: drawn and recorded]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write the report as a page with the curve of recall and latency
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingsFlags,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Index parameters (default: by the number of rows)")]
pub struct SpecFlags {
    /// Inverted lists
    #[arg(long, value_name = "N", value_parser = positive)]
    pub partitions: Option<usize>,
    /// Sub-vectors of product quantisation; divides the dimension
    #[arg(long, value_name = "N", value_parser = positive)]
    pub sub_vectors: Option<usize>,
    /// Bits of a product quantisation code, 4 or 8; of a dimension with ivf-rq, 1 to 9
    #[arg(long, value_name = "N", value_parser = positive)]
    pub bits: Option<usize>,
    /// Edges of a graph node
    #[arg(long, value_name = "N", value_parser = positive)]
    pub edges: Option<usize>,
    /// Candidates while building the graph
    #[arg(long, value_name = "N", value_parser = positive)]
    pub ef_construction: Option<usize>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Query settings (default: tuned by measuring)")]
pub struct SettingsFlags {
    /// Inverted lists to look into
    #[arg(long, value_name = "N", value_parser = positive)]
    pub nprobes: Option<usize>,
    /// Candidates of the graph search
    #[arg(long, value_name = "N", value_parser = positive)]
    pub ef: Option<usize>,
    /// Candidates per result that are ranked again by their exact distance
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub refine: Option<u32>,
}
