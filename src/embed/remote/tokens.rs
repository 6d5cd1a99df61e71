//! How many tokens a text is before anybody has counted: for batches, rate limits, prices and caps.
//!
//! Without a tokenizer: [`BYTES_PER_TOKEN`] bytes are taken for a token, and a token for each byte bounds it from above,
//! since no tokenizer in use makes more tokens than bytes. Must not know: requests.

use std::sync::Arc;

use crate::embed::{TextKind, TokenCounter};
use crate::error::{Error, Result};

/// English is about 4 bytes a token in the vocabularies of OpenAI and BERT, German about 3.2, Chinese and Japanese about 3:
/// with 3 the estimate is seldom too low.
const BYTES_PER_TOKEN: usize = 3;

/// Begin and end marks of a text (`[CLS]` and `[SEP]` in BERT).
const MARKS: usize = 2;

/// Tokens beyond one a byte, at most: marks, and what a normaliser may put before a text.
const HEADROOM: usize = 8;

/// Counts, estimates and cuts; what chunks are measured with.
#[derive(Clone)]
pub(super) struct Meter {
    tokenizer: Option<Arc<dyn TokenCounter>>,
    query_prefix: Arc<str>,
    passage_prefix: Arc<str>,
    window: usize,
}

/// One text as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) input: String,
    /// By the estimate, or the tokenizer.
    pub(super) tokens: u32,
    /// The upper bound.
    pub(super) most_tokens: u64,
    pub(super) truncated: bool,
}

impl Meter {
    /// # Errors
    /// [`Error::InvalidSetting`] if the prefixes leave no room in the window.
    pub(super) fn new(
        tokenizer: Option<Arc<dyn TokenCounter>>,
        window: usize,
        query_prefix: &str,
        passage_prefix: &str,
    ) -> Result<Self> {
        let meter =
            Self { tokenizer, query_prefix: query_prefix.into(), passage_prefix: passage_prefix.into(), window };
        for kind in [TextKind::Query, TextKind::Passage] {
            if meter.room(kind) == 0 {
                return Err(Error::InvalidSetting {
                    setting: "max_tokens",
                    reason: format!("a window of {window} tokens has no room for text beside the prefix"),
                });
            }
        }
        Ok(meter)
    }

    /// The text with its prefix, cut to the window.
    pub(super) fn prepare(&self, kind: TextKind, text: &str) -> Prepared {
        let kept = self.cut(text, self.room(kind));
        let truncated = kept.len() < text.len();
        let mut input = format!("{}{kept}", self.prefix(kind));
        if input.is_empty() {
            // Providers refuse an empty string; a space means the same to a tokenizer.
            input.push(' ');
        }
        let counted = self.count_tokens(&input) + MARKS;
        let most = if self.tokenizer.is_some() { counted } else { input.len() + HEADROOM };
        Prepared { input, tokens: u32::try_from(counted).unwrap_or(u32::MAX), most_tokens: most as u64, truncated }
    }

    fn prefix(&self, kind: TextKind) -> &str {
        match kind {
            TextKind::Query => &self.query_prefix,
            TextKind::Passage => &self.passage_prefix,
        }
    }

    /// Tokens of text that fit beside marks and prefix.
    fn room(&self, kind: TextKind) -> usize {
        self.window.saturating_sub(MARKS + self.count_tokens(self.prefix(kind)))
    }

    /// The longest beginning of at most `tokens` tokens.
    fn cut<'a>(&self, text: &'a str, tokens: usize) -> &'a str {
        if self.count_tokens(text) <= tokens {
            return text;
        }
        let beginning = |bytes: usize| text.get(..text.floor_char_boundary(bytes)).unwrap_or_default();
        if self.tokenizer.is_none() {
            return beginning(tokens.saturating_mul(BYTES_PER_TOKEN));
        }
        let (mut fits, mut over) = (0, text.len());
        while over - fits > 1 {
            let middle = fits + (over - fits) / 2;
            if self.count_tokens(beginning(middle)) <= tokens { fits = middle } else { over = middle }
        }
        beginning(fits)
    }
}

impl TokenCounter for Meter {
    fn count_tokens(&self, text: &str) -> usize {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.count_tokens(text),
            None => text.len().div_ceil(BYTES_PER_TOKEN),
        }
    }

    fn max_text_tokens(&self) -> usize {
        self.room(TextKind::Passage)
    }
}

/// Cuts texts into requests, in order: at most `texts` texts and `tokens` tokens each; a longer text goes alone.
pub(super) fn cut_requests(prepared: Vec<Prepared>, texts: usize, tokens: u64) -> Vec<Vec<Prepared>> {
    let mut requests: Vec<Vec<Prepared>> = Vec::new();
    let mut used = 0_u64;
    for text in prepared {
        let more = u64::from(text.tokens);
        match requests.last_mut() {
            Some(request) if request.len() < texts && used + more <= tokens => {
                request.push(text);
                used += more;
            }
            _ => {
                requests.push(vec![text]);
                used = more;
            }
        }
    }
    requests
}

/// A request's billed tokens, shared out to its texts in the proportion of the estimates: at least one each, at most the
/// window, and in sum what was billed as far as those bounds allow.
pub(super) fn share(billed: u64, estimates: &[u32], window: usize) -> Vec<u32> {
    let total: u128 = estimates.iter().map(|tokens| u128::from(*tokens)).sum::<u128>().max(1);
    let most = u32::try_from(window).unwrap_or(u32::MAX).max(1);
    let (mut passed, mut given) = (0_u128, 0_u128);
    let shares = estimates.iter().map(|tokens| {
        passed += u128::from(*tokens);
        let upto = u128::from(billed) * passed / total;
        let share = upto - given;
        given = upto;
        u32::try_from(share).unwrap_or(u32::MAX).clamp(1, most)
    });
    shares.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meter(window: usize) -> Meter {
        Meter::new(None, window, "q: ", "").unwrap()
    }

    #[test]
    fn three_bytes_are_a_token_and_the_window_is_kept() {
        let meter = meter(10);
        assert_eq!((meter.count_tokens(""), meter.count_tokens("four"), meter.max_text_tokens()), (0, 2, 8));
        let fits = meter.prepare(TextKind::Passage, &"x".repeat(24));
        assert_eq!((fits.input.len(), fits.tokens, fits.most_tokens, fits.truncated), (24, 10, 32, false));
        let over = meter.prepare(TextKind::Passage, &"x".repeat(25));
        assert_eq!((over.input.len(), over.tokens, over.truncated), (24, 10, true));
        let question = meter.prepare(TextKind::Query, &"x".repeat(25));
        assert_eq!((question.input.len(), question.tokens, question.truncated), (24, 10, true));
        assert_eq!(meter.prepare(TextKind::Passage, "").input, " ");
        assert!(Meter::new(None, 3, "q: ", "").is_err());
    }

    /// One token a word.
    struct Words;

    impl TokenCounter for Words {
        fn count_tokens(&self, text: &str) -> usize {
            text.split_whitespace().count()
        }
        fn max_text_tokens(&self) -> usize {
            usize::MAX
        }
    }

    #[test]
    fn a_tokenizer_is_believed() {
        let meter = Meter::new(Some(Arc::new(Words)), 5, "", "").unwrap();
        let cut = meter.prepare(TextKind::Passage, "eins zwei drei vier");
        assert_eq!((cut.input.trim_end(), cut.tokens, cut.most_tokens, cut.truncated), ("eins zwei drei", 5, 5, true));
        assert!(!meter.prepare(TextKind::Passage, "eins zwei drei").truncated);
    }

    proptest! {
        #[test]
        fn no_text_is_sent_beyond_the_window_nor_cut_inside_a_character(text in ".{0,80}", window in 4_usize..30) {
            let prepared = meter(window).prepare(TextKind::Passage, &text);
            prop_assert!(prepared.tokens as usize <= window);
            prop_assert!(text.starts_with(&prepared.input) || text.is_empty());
            prop_assert_eq!(prepared.truncated, prepared.input.len() < text.len());
        }

        #[test]
        fn requests_hold_every_text_in_order_within_both_bounds(
            lengths in prop::collection::vec(0_u32..50, 0..60), texts in 1_usize..9, tokens in 1_u64..120,
        ) {
            let prepared = |tokens| Prepared { input: String::new(), tokens, most_tokens: 0, truncated: false };
            let requests = cut_requests(lengths.iter().copied().map(prepared).collect(), texts, tokens);
            let flat: Vec<u32> = requests.iter().flatten().map(|text| text.tokens).collect();
            prop_assert_eq!(flat, lengths);
            for request in &requests {
                let sum: u64 = request.iter().map(|text| u64::from(text.tokens)).sum();
                prop_assert!(!request.is_empty() && request.len() <= texts && (sum <= tokens || request.len() == 1));
            }
        }

        #[test]
        fn shares_add_up_to_the_bill(billed in 0_u64..5000, estimates in prop::collection::vec(1_u32..300, 1..40)) {
            let shares = share(billed, &estimates, 8191);
            let sum: u64 = shares.iter().map(|tokens| u64::from(*tokens)).sum();
            prop_assert_eq!(shares.len(), estimates.len());
            prop_assert!(shares.iter().all(|tokens| *tokens >= 1));
            // Shares of nothing are rounded up to one.
            prop_assert!(sum >= billed && sum <= billed + estimates.len() as u64);
        }
    }
}
