//! A published `tokenizer.json` by itself, as a counter: for remote models, whose window and prefixes are known elsewhere.

use std::path::Path;

use super::tokenizer::{GuardedTokenizer, MAX_BYTES};
use crate::embed::TokenCounter;
use crate::error::{Error, Result};
use crate::regular_file;

/// Counts tokens as a model's published tokenizer does.
#[derive(Clone, Debug)]
pub struct TokenizerFile(GuardedTokenizer);

impl TokenizerFile {
    /// Reads a `tokenizer.json`; its own truncation and padding are ignored.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ModelFormat`] for what is not a tokenizer that this release can read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json = regular_file::read(path, MAX_BYTES).map_err(Error::io("read", path))?;
        let refuse = |source| Error::ModelFormat {
            path: path.to_owned(),
            reason: "not a tokenizer that this release can read".into(),
            source: Some(source),
        };
        GuardedTokenizer::parse(&json).map(Self).map_err(refuse)
    }
}

impl TokenCounter for TokenizerFile {
    fn count_tokens(&self, text: &str) -> usize {
        self.0.count(text)
    }

    /// Without bound: a window belongs to a model, not to its tokenizer.
    fn max_text_tokens(&self) -> usize {
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::*;

    #[test]
    fn it_counts_whole_texts_without_marks_and_refuses_what_it_cannot_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, tiny::TOKENIZER).unwrap();
        let counter = TokenizerFile::open(&path).unwrap();
        assert_eq!((counter.count_tokens("bees in the hive"), counter.count_tokens(&"hive ".repeat(300))), (5, 300));
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(TokenizerFile::open(&path), Err(Error::ModelFormat { .. })));
        assert!(matches!(TokenizerFile::open(dir.path()), Err(Error::Io { .. })));
    }
}
