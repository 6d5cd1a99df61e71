//! What the fuzz targets of `fuzz/` run: one function for each way in for bytes that nobody vouches for.
//!
//! Each takes any bytes, does with them what the library would, and panics where what comes out breaks a promise. The
//! promises stand beside the code that makes them. Compiled for fuzzing and for tests alone; no part of the public surface.

pub use crate::embed::fuzzing::{answer, image, model_config, safetensors, tokenizer};
pub use crate::ingest::fuzzing::{chunk, html, markdown, records, text};
pub use crate::search::fuzzing::filter;

use std::path::{Path, PathBuf};

/// A file or a folder for the length of a value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A file with these bytes.
    pub(crate) fn file(bytes: &[u8]) -> Self {
        let path = Self::place();
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    /// An empty folder.
    pub(crate) fn folder() -> Self {
        let path = Self::place();
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn place() -> PathBuf {
        let thread = format!("{:?}", std::thread::current().id());
        std::env::temp_dir().join(format!("embank-fuzz-{}-{thread}", std::process::id()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0).or_else(|_| std::fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Target = fn(&[u8]);

    /// Every kept input: the seeds, and what once failed.
    #[test]
    fn the_kept_inputs_of_every_fuzz_target_break_no_promise() {
        let targets: [(&str, Target); 11] = [
            ("answer", answer),
            ("chunk", chunk),
            ("filter", filter),
            ("html", html),
            ("image", image),
            ("markdown", markdown),
            ("model_config", model_config),
            ("records", records),
            ("safetensors", safetensors),
            ("text", text),
            ("tokenizer", tokenizer),
        ];
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, run) in targets {
            let inputs: Vec<_> = std::fs::read_dir(corpus.join(name)).unwrap().map(|e| e.unwrap().path()).collect();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            for input in inputs {
                let bytes = std::fs::read(&input).unwrap();
                let outcome = std::panic::catch_unwind(|| run(&bytes));
                assert!(outcome.is_ok(), "{} breaks a promise", input.display());
            }
        }
    }
}
