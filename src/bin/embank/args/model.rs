//! The flags of `embank model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{KindArg, fraction, positive};

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Fetch a model's files and check them
    Pull {
        /// The model's name
        name: String,
        /// Take the files from a folder; nothing else is asked
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// List the known models and whether they are here
    List,
    /// Check a model: its files, its vectors against those on record, and the contract that every embedder keeps
    Verify {
        /// The model's name or folder [default: the embedder]
        name: Option<String>,
    },
    /// Have another embedder answer this bank's searches: fill its table beside the one that serves, build and validate its
    /// index, compare the answers of both, and then switch. Without a name: show what serves, and what is under way
    Switch {
        /// The embedder, named as for `--embedder`
        name: Option<String>,
        #[command(flatten)]
        flags: SwitchFlags,
    },
    /// Return to the embedder that served before, in the same way
    Rollback(SwitchFlags),
    /// Measure how fast a model is on this machine, and how long the bank's backlog would take
    Bench(BenchArgs),
}

#[derive(Args, Debug)]
pub struct SwitchFlags {
    /// The index to build if one is due [default: auto]
    #[arg(long, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// The recall@10 that it must reach, 0 to 1 [default: 0.95]
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub min_recall: Option<f64>,
    /// Questions that both embedders are asked; 0 for none
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub questions: u64,
    /// The mean share of the first 10 chunks that both must name, 0 to 1 [default: any will do]
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub min_overlap: Option<f64>,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// The model's name or folder [default: the embedder]
    pub name: Option<String>,
    /// Texts to measure with, a JSON object with a field `text` a line [default: chunks of the bank; without a bank a built-in
    /// mix of 8 to 250 words]
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// How often all texts are embedded; the median counts
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive)]
    pub rounds: usize,
    /// Threads that compute [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,
    /// Most tokens computed at once [default: 1024 on the processor, 16384 on a graphics processor]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch_tokens: Option<usize>,
    /// Write the vectors there, one after another, as little-endian 32-bit floats
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
}
