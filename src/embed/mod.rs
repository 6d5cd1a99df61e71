//! Turning texts into vectors: the [`Embedder`] trait, the identity that keeps vectors of different models apart, and the
//! implementations.
//!
//! Guarantees: an embedder answers one [`Embedded`] per text, in order; a stored vector is always of one
//! [`EmbedderIdentity`], whose fingerprint covers everything that changes the vector. Must not know: tables, documents.

mod batching;
mod conformance;
mod estimate;
mod fake;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod identity;
pub(crate) mod local;
pub mod remote;
mod vector;

use async_trait::async_trait;

pub use conformance::check_conformance;
pub use estimate::Estimate;
pub use fake::{FakeEmbedder, Fault};
pub use identity::{EmbedderIdentity, Pooling, Precision};
pub use local::{
    ClipEmbedder, ImageDefect, ImageFormat, ImageSource, ListedModel, LocalDevice, LocalEmbedder, LocalImageEmbedder,
    LocalOptions, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, ModelShape, ModelUsage, PullOptions, PullReport, PullSource,
    TokenizerFile, cpu_instructions, known_models, list_models, pull_model,
};
pub(crate) use vector::check_vector;

use crate::error::Result;

/// What a text is for: some models embed questions and passages differently (e5: `query: ` and `passage: `).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextKind {
    /// A question that is searched with.
    Query,
    /// A passage that is searched for.
    Passage,
}

/// The answer for one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// `dimension` finite numbers; unit norm where the identity says that vectors are normalised.
    pub vector: Vec<f32>,
    /// Tokens the model was given, special tokens and prefix included.
    pub tokens: u32,
    /// Whether the text was longer than the model's window and was cut.
    pub truncated: bool,
}

/// Counts tokens as the embedder's own tokenizer does; what chunks are measured with.
pub trait TokenCounter: Send + Sync {
    /// Tokens of `text` alone: no special tokens, no prefix, no truncation.
    fn count_tokens(&self, text: &str) -> usize;

    /// Tokens of text that fit beside the special tokens and the passage prefix.
    fn max_text_tokens(&self) -> usize;
}

/// Something that turns texts into vectors.
///
/// # Contract
/// Checked by [`check_conformance`]: one answer per text, in the order of the texts; the promised dimension; finite; unit
/// norm (± 1e-3) where promised; the same text gives the same vector whatever its neighbours in the batch, to a cosine of
/// 0.9999; an empty slice gives an empty answer; a text longer than the window is cut and marked; any text has an answer, be it
/// empty, one endless word, or full of control characters; callers at the same time get their own answers; and a future that
/// is dropped disturbs nobody else.
#[async_trait]
pub trait Embedder: Send + Sync {
    /// What this embedder is; constant over its life. Must not load the model.
    fn identity(&self) -> &EmbedderIdentity;

    /// The tokenizer's measure.
    ///
    /// # Errors
    /// [`Error::ModelMissing`](crate::Error::ModelMissing) and its kin where the tokenizer has to be loaded first.
    fn token_counter(&self) -> Result<std::sync::Arc<dyn TokenCounter>>;

    /// Embeds `texts`, one answer each.
    ///
    /// # Errors
    /// Fails as a whole only where no text of the batch could be answered for; the caller halves the batch to find a text
    /// that is at fault.
    ///
    /// What the error is decides what becomes of the text ([`Error::failure_kind`](crate::Error::failure_kind)):
    /// [`Error::EmbedderFailed`](crate::Error::EmbedderFailed) where it may pass, as for a panic;
    /// [`Error::TextRefused`](crate::Error::TextRefused) where a text is at fault; any other ends the run.
    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>>;

    /// Texts beyond which a larger call gains nothing. A crash costs the calls under way, so callers stay below it; unlimited
    /// by default.
    fn texts_per_call(&self) -> usize {
        usize::MAX
    }

    /// Bytes of memory that it takes beside the program once its model is loaded, for a bank's
    /// [`memory_limit`](crate::BankOptions::memory_limit); nothing by default.
    fn resident_bytes(&self) -> u64 {
        0
    }

    /// Answers that are at hand for these texts without asking for them, because they were paid for in a call that failed as
    /// a whole: what a run stores before it stops. `None` for all others; local embedders keep none.
    fn kept_answers(&self, kind: TextKind, texts: &[String]) -> Vec<Option<Embedded>> {
        let _ = kind;
        vec![None; texts.len()]
    }

    /// What embedding `texts` would take; nothing is sent.
    ///
    /// # Errors
    /// Those of [`Embedder::token_counter`].
    fn estimate(&self, kind: TextKind, texts: &[String]) -> Result<Estimate> {
        let _ = kind;
        let counter = self.token_counter()?;
        let tokens = texts.iter().map(|text| counter.count_tokens(text) as u64).sum();
        Ok(Estimate { texts: texts.len() as u64, tokens, cost: 0.0 })
    }

    /// Gives an embedder that costs money the ledger that its spend caps are kept in; [`Bank`](crate::Bank) does so when it
    /// is opened. The last one counts.
    fn attach_ledger(&self, ledger: std::sync::Arc<dyn remote::SpendLedger>) {
        let _ = ledger;
    }
}
