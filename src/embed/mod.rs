//! Turning texts into vectors: the [`Embedder`] trait, the identity that keeps vectors of different models apart, and the
//! implementations.
//!
//! Guarantees: an embedder answers one [`Embedded`] per text, in order; a stored vector is always of one
//! [`EmbedderIdentity`], whose fingerprint covers everything that changes the vector. Must not know: tables, documents.

mod batching;
mod conformance;
mod fake;
mod identity;
pub(crate) mod local;
mod vector;

use async_trait::async_trait;

pub use conformance::check_conformance;
pub use fake::{FakeEmbedder, Fault};
pub use identity::{EmbedderIdentity, Pooling, Precision};
pub use local::{
    LocalDevice, LocalEmbedder, LocalOptions, PullOptions, PullReport, PullSource, known_models, pull_model,
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
/// 0.9999; an empty slice gives an empty answer; a text longer than the window is cut and marked.
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
    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>>;
}
