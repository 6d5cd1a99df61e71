//! A published `tokenizer.json`, behind a guard.
//!
//! Guarantees: the file's own truncation and padding are ignored; a file that the `tokenizers` crate panics over, when it is
//! read or when a text is given to it, is an error of that file or of that text. Must not know: windows, prefixes, tensors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::{Encoding, Tokenizer};

use crate::error::BoxError;

/// The largest file that is read: eight times that of the largest vocabulary in use (a quarter of a million words, 17 MB).
pub(super) const MAX_BYTES: u64 = 128 << 20;

/// A tokenizer that takes no other text along when it fails.
#[derive(Clone, Debug)]
pub(super) struct GuardedTokenizer(Tokenizer);

/// Whether the special tokens that frame a text are added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Added,
    LeftOut,
}

/// The tokenizer broke down.
#[derive(Debug, thiserror::Error)]
#[error("it breaks down over what it was given; the file is damaged, or asks for what this release does not do")]
struct BrokeDown;

impl GuardedTokenizer {
    /// Reads the content of a `tokenizer.json`.
    pub(super) fn parse(json: &[u8]) -> Result<Self, BoxError> {
        guarded(|| {
            let mut tokenizer = Tokenizer::from_bytes(json)?;
            // all-MiniLM-L6-v2's file fixes both at 128 tokens, half of what the model was trained with.
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None)?;
            Ok(Self(tokenizer))
        })
    }

    /// The tokens of one text.
    pub(super) fn encode(&self, text: &str, special: Special) -> Result<Encoding, BoxError> {
        guarded(|| self.0.encode_fast(text, special == Special::Added))
    }

    /// The tokens of texts, one answer each, in order, without special tokens. Uses all cores.
    pub(super) fn encode_all(&self, texts: Vec<String>) -> Result<Vec<Encoding>, BoxError> {
        guarded(|| self.0.encode_batch_fast(texts, false))
    }

    /// How many tokens a text has, without special tokens.
    pub(super) fn count(&self, text: &str) -> usize {
        // The fallback is an upper bound: no token is shorter than a byte.
        self.encode(text, Special::LeftOut).map_or(text.len(), |encoding| encoding.len())
    }
}

/// What a panic leaves half done is dropped with the closure; a tokenizer changes nothing of its own but a cache.
fn guarded<T>(work: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(BrokeDown.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzzer: the character map of a published SentencePiece model, damaged.
    #[test]
    fn a_file_that_the_parser_panics_over_is_an_error_of_that_file() {
        let json = |map: &str| {
            format!(
                r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "pre_tokenizer": null,
                "normalizer": {{"type": "Precompiled", "precompiled_charsmap": "{map}"}}, "post_processor": null,
                "decoder": null, "model": {{"type": "WordLevel", "unk_token": "a", "vocab": {{"a": 0}}}}}}"#
            )
        };
        let mut panics = 0;
        // A length, and a table of that length with an index that leads out of it.
        for map in ["BAAAAP////8=", "EAAAAAABAgMEBQYHCAkKCwwNDg9hAGJjAA=="] {
            let outcome =
                GuardedTokenizer::parse(json(map).as_bytes()).and_then(|t| t.encode("water", Special::LeftOut));
            panics += usize::from(outcome.is_err());
        }
        assert!(panics > 0, "neither is damaged enough to show that the guard works");
    }
}
