//! What an embedder is, as a value: two embedders with equal identities give interchangeable vectors, all others are never
//! mixed.

use serde::{Deserialize, Serialize};

use crate::id::{EmbedderId, hex};

/// How token states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Mean over real tokens (MiniLM, e5).
    Mean,
    /// The first token's state (BGE, BGE-M3).
    Cls,
    /// Not a transformer.
    None,
}

/// Number format of weights and of what they are multiplied with; it changes vectors in the last digits, so it is part of
/// the identity. Sums, norms and softmax are of 32 bits in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 16 bits with the exponent of `f32` and 8 bits of mantissa; half the memory, and about twice the speed on processors
    /// that multiply it (AVX512-BF16). The same vectors, to a cosine of 0.9999, on all others.
    Bf16,
    /// IEEE 754 half precision; on graphics processors only.
    F16,
}

impl Precision {
    /// As it is written in settings: `f32`, `bf16`, `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything that changes a vector. Its hash is the embedder's fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedderIdentity {
    /// The name people use: `all-minilm-l6-v2`, `fake:384`.
    pub name: String,
    /// Length of every vector.
    pub dimension: usize,
    /// Whether vectors have unit norm.
    pub normalised: bool,
    /// How token states become one vector.
    pub pooling: Pooling,
    /// Number format of weights and activations.
    pub precision: Precision,
    /// The window, in tokens, special tokens included; longer texts are cut.
    pub max_tokens: usize,
    /// Put before every question.
    pub query_prefix: String,
    /// Put before every passage.
    pub passage_prefix: String,
    /// sha256 of the weights file, hex; for a model that is not pinned by the catalog followed by what its configuration
    /// adds (`<sha256> bert heads=12 eps=1e-12`); for embedders without weights, the name of the algorithm and its version.
    pub weights: String,
    /// sha256 of the tokenizer file, hex; likewise.
    pub tokenizer: String,
}

impl EmbedderIdentity {
    /// The id under which vectors of this embedder are stored: the name, made safe for a file name, and the first 8 hex
    /// digits of the blake3 of all fields.
    pub fn id(&self) -> EmbedderId {
        let mut hasher = blake3::Hasher::new();
        // Each field with its length, in the order of declaration: equal bytes mean equal fields.
        let numbers = [
            self.dimension.to_string(),
            self.normalised.to_string(),
            format!("{:?}", self.pooling),
            format!("{:?}", self.precision),
            self.max_tokens.to_string(),
        ];
        let texts = [&self.name, &self.query_prefix, &self.passage_prefix, &self.weights, &self.tokenizer];
        for field in numbers.iter().chain(texts) {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        let fingerprint = hex(hasher.finalize().as_bytes().get(..4).unwrap_or_default());
        let name: String =
            self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        EmbedderId::from_stored(format!("{name}-{fingerprint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> EmbedderIdentity {
        EmbedderIdentity {
            name: "Some/Model".into(),
            dimension: 384,
            normalised: true,
            pooling: Pooling::Mean,
            precision: Precision::F32,
            max_tokens: 256,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            weights: "w".into(),
            tokenizer: "t".into(),
        }
    }

    #[test]
    fn every_field_changes_the_id() {
        let base = identity();
        let changed: [fn(&mut EmbedderIdentity); 12] = [
            |i| i.name = "other".into(),
            |i| i.dimension = 385,
            |i| i.normalised = false,
            |i| i.pooling = Pooling::Cls,
            |i| i.precision = Precision::Bf16,
            |i| i.precision = Precision::F16,
            |i| i.max_tokens = 128,
            |i| i.query_prefix = "q".into(),
            |i| i.passage_prefix = "q".into(),
            |i| i.weights = "x".into(),
            |i| i.tokenizer = "x".into(),
            |i| (i.weights, i.tokenizer) = ("wt".into(), String::new()),
        ];
        let mut ids = vec![base.id()];
        for change in changed {
            let mut other = base.clone();
            change(&mut other);
            ids.push(other.id());
        }
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}");
    }

    #[test]
    fn the_id_is_safe_as_a_file_name() {
        assert!(identity().id().as_str().starts_with("some-model-"));
        assert!(identity().id().as_str().chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
    }
}
