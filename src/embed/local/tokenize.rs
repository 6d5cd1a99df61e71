//! Texts to token ids, with the model's own published tokenizer.
//!
//! Guarantees: at most the window's tokens, special tokens included; what was cut is marked; no padding. The published
//! file's own truncation and padding settings are ignored. Must not know: tensors.

use std::path::Path;

use super::tokenizer::{GuardedTokenizer, Special};
use crate::embed::{EmbedderIdentity, TokenCounter};
use crate::error::{Error, Result};

/// A model's tokenizer, ready to use; shared between threads.
pub(super) struct Tokens {
    embedder: String,
    tokenizer: GuardedTokenizer,
    /// Special tokens before and after a text: `[CLS]`, `[SEP]` in BERT.
    before: Vec<u32>,
    after: Vec<u32>,
    /// Tokens of prefix and text that fit between the special tokens.
    max_body_tokens: usize,
    passage_prefix_tokens: usize,
}

/// One text as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenizedText {
    /// Special tokens included; never empty, never more than the window.
    pub(super) ids: Vec<u32>,
    /// Whether tokens were cut off to fit the window.
    pub(super) truncated: bool,
}

impl Tokens {
    /// Reads a `tokenizer.json`; `path` is only for what is said about it.
    pub(super) fn parse(path: &Path, json: &[u8], identity: &EmbedderIdentity) -> Result<Self> {
        let refuse = |reason: &str, source| Error::ModelFormat { path: path.to_owned(), reason: reason.into(), source };
        let tokenizer =
            GuardedTokenizer::parse(json).map_err(|e| refuse("not a tokenizer that this release can read", Some(e)))?;

        // Any text shows where the special tokens go: the mask is 1 on them.
        let framed = tokenizer.encode("a", Special::Added).map_err(|e| refuse("it cannot tokenize", Some(e)))?;
        let is_special = |mask: &&u32| **mask == 1;
        let mask = framed.get_special_tokens_mask();
        let leading = mask.iter().take_while(is_special).count();
        let trailing = mask.iter().rev().take_while(is_special).count();
        let ids = framed.get_ids();
        let before: Vec<u32> = ids.iter().take(leading).copied().collect();
        let after: Vec<u32> = ids.iter().skip(ids.len().saturating_sub(trailing)).copied().collect();
        if leading == ids.len() || before.len() + after.len() >= identity.max_tokens {
            return Err(refuse("its special tokens leave no room for text", None));
        }

        let mut tokens = Self {
            embedder: identity.name.clone(),
            max_body_tokens: identity.max_tokens - before.len() - after.len(),
            tokenizer,
            before,
            after,
            passage_prefix_tokens: 0,
        };
        tokens.passage_prefix_tokens = tokens.count_tokens(&identity.passage_prefix);
        Ok(tokens)
    }

    /// Tokenizes texts that already have their prefix, one answer each, in order. Uses all cores.
    pub(super) fn encode(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>> {
        let encodings = self.tokenizer.encode_all(texts).map_err(|e| Error::TextRefused {
            embedder: self.embedder.clone(),
            reason: "its tokenizer failed".into(),
            source: Some(e),
        })?;
        Ok(encodings.iter().map(|encoding| self.frame(encoding.get_ids())).collect())
    }

    /// Whether upper and lower case are the same to it.
    pub(super) fn ignore_case(&self) -> bool {
        let ids = |text| self.tokenizer.encode(text, Special::LeftOut).map(|encoding| encoding.get_ids().to_vec());
        matches!((ids("Water IN the Well"), ids("water in the well")), (Ok(mixed), Ok(lower)) if mixed == lower)
    }

    fn frame(&self, body: &[u32]) -> TokenizedText {
        let kept = body.get(..self.max_body_tokens).unwrap_or(body);
        TokenizedText { ids: [&self.before, kept, &self.after].concat(), truncated: kept.len() < body.len() }
    }
}

impl TokenCounter for Tokens {
    fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer.count(text)
    }

    fn max_text_tokens(&self) -> usize {
        self.max_body_tokens.saturating_sub(self.passage_prefix_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::*;

    fn tokens() -> Tokens {
        Tokens::parse(Path::new("tokenizer.json"), tiny::TOKENIZER.as_bytes(), &tiny::identity()).unwrap()
    }

    fn encode(text: &str) -> TokenizedText {
        tokens().encode(vec![text.to_owned()]).unwrap().remove(0)
    }

    #[test]
    fn texts_are_framed_and_neither_padded_nor_cut_as_the_file_says() {
        assert_eq!(encode("Bees"), TokenizedText { ids: vec![2, 4, 5, 3], truncated: false });
        assert_eq!(encode("hive hive bees nest"), TokenizedText { ids: vec![2, 6, 6, 4, 5, 1, 3], truncated: false });
        assert_eq!(encode(""), TokenizedText { ids: vec![2, 3], truncated: false });
    }

    #[test]
    fn a_text_that_just_fits_is_whole_and_one_token_more_is_cut_and_marked() {
        let fits = encode("water hive bees bees");
        assert_eq!(fits, TokenizedText { ids: vec![2, 7, 6, 4, 5, 4, 5, 3], truncated: false });
        let over = encode("water hive bees bees water");
        assert_eq!(over, TokenizedText { ids: vec![2, 7, 6, 4, 5, 4, 5, 3], truncated: true });
    }

    #[test]
    fn answers_come_in_the_order_of_the_texts() {
        let texts: Vec<String> = ["hive", "water", "bee"].map(String::from).into();
        let ids: Vec<u32> = tokens().encode(texts).unwrap().iter().map(|t| t.ids[1]).collect();
        assert_eq!(ids, [6, 7, 4]);
    }

    #[test]
    fn the_counter_knows_no_window_and_leaves_room_for_the_prefix() {
        let tokens = tokens();
        assert_eq!(tokens.count_tokens(""), 0);
        assert_eq!(tokens.count_tokens("bees in the hive"), 5);
        assert_eq!(tokens.count_tokens(&"hive ".repeat(300)), 300);
        // A window of 8, less [CLS] and [SEP], less the passage prefix.
        assert_eq!(tokens.max_text_tokens(), 5);
    }

    #[test]
    fn rejects_a_corrupt_tokenizer() {
        let truncated = tiny::TOKENIZER.get(..700).unwrap();
        for json in ["", "{}", "not json", truncated] {
            match Tokens::parse(Path::new("tokenizer.json"), json.as_bytes(), &tiny::identity()) {
                Err(Error::ModelFormat { path, source: Some(_), .. }) => assert_eq!(path, Path::new("tokenizer.json")),
                Err(other) => panic!("{json}: {other}"),
                Ok(_) => panic!("{json} was accepted"),
            }
        }
    }
}
