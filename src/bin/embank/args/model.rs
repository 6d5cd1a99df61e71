//! The flags of `embank model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::positive;

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
    /// Measure how fast a model is on this machine, and how long the bank's backlog would take
    Bench(BenchArgs),
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
