//! What a remote embedder is told: the model, who serves it, and how carefully.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::BreakerOptions;
use super::key::ApiKey;
use super::limits::RateLimits;
use super::retry::RetryOptions;
use super::spend::{Price, SpendCaps};
use super::timer::{SystemTimer, Timer};
use crate::embed::{EmbedderIdentity, Pooling, Precision, TokenCounter};
use crate::error::{Error, Result};

/// The window of OpenAI's text-embedding-3 models, in tokens.
const DEFAULT_MAX_TOKENS: usize = 8191;

/// Which model, where, and within what bounds.
///
/// What changes vectors (model, dimension, revision, prefixes, window, normalisation) is in the identity. Where they come from
/// is not: all providers named here are declared to serve the same model.
#[derive(Clone)]
pub struct RemoteOptions {
    /// The model, as the provider calls it.
    pub model: String,
    /// Length of its vectors.
    pub dimension: usize,
    /// Whether the provider is asked for that length. Default: no.
    pub request_dimension: RequestDimension,
    /// Who makes the model, part of the identity. Default `openai`.
    pub family: String,
    /// A version of the model that its name does not tell, part of the identity: change it when a provider changes the model
    /// under the same name. Default empty.
    pub revision: String,
    /// The model's window, in tokens; longer texts are cut before they are sent, by the estimate of three bytes a token or the
    /// tokenizer. Default 8,191.
    pub max_tokens: usize,
    /// Put before every question. Default empty.
    pub query_prefix: String,
    /// Put before every passage. Default empty.
    pub passage_prefix: String,
    /// Whether vectors are scaled to unit norm. Default: yes.
    pub normalisation: Normalisation,
    /// Who serves it, in the order in which they are asked: the next one while the circuit of those before is open.
    pub providers: Vec<ProviderOptions>,
    /// How texts are cut into requests.
    pub batch: BatchOptions,
    /// How failed requests are repeated.
    pub retry: RetryOptions,
    /// When a provider counts as down.
    pub breaker: BreakerOptions,
    /// The longest that one request may take, answer included. Default 60 s.
    pub request_timeout: Duration,
    /// The most that may be spent. Default: not capped.
    pub caps: SpendCaps,
    /// The name of the run that a run's caps are for: a run that is started again under the same name goes on with what is
    /// left. Default: each embedder is a run of its own.
    pub run: Option<String>,
    /// The model's tokenizer, such as a [`TokenizerFile`](crate::embed::TokenizerFile); otherwise tokens are estimated.
    pub tokenizer: Option<Arc<dyn TokenCounter>>,
    /// Where time comes from. Default: the machine.
    pub timer: Arc<dyn Timer>,
    /// Seed of the jitter. Default: random.
    pub seed: Option<u64>,
}

/// Whether the request has the parameter `dimensions`, which only some models understand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestDimension {
    /// The model's own length is the promised one.
    #[default]
    Omit,
    /// The model shortens its vectors to the promised length.
    Send,
}

/// What is done to vectors before they are returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalisation {
    /// They are scaled to unit norm.
    #[default]
    Unit,
    /// They are left as the provider sends them.
    AsSent,
}

/// One provider.
#[derive(Clone, Debug)]
pub struct ProviderOptions {
    /// The address up to `/v1`: `https://api.openai.com/v1`, `http://localhost:11434/v1`.
    pub base_url: String,
    /// The key, where it wants one. Not sent over plain http, except within this machine.
    pub key: Option<ApiKey>,
    /// What this provider calls the model, if not as [`RemoteOptions::model`] does.
    pub model: Option<String>,
    /// What it asks for a million tokens; free where absent.
    pub price: Option<Price>,
    /// What it allows per minute.
    pub limits: RateLimits,
    /// Requests under way at once, counted over the whole process for its host. Default 8.
    pub max_concurrent: NonZeroUsize,
}

/// How texts are cut into requests.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Texts in one request at most. Default 128: OpenAI takes 2,048, but TEI 32 unless told otherwise; a failed request
    /// repeats that many.
    pub texts: NonZeroUsize,
    /// Estimated tokens in one request at most; a longer text goes alone. Default 32,768: OpenAI takes 300,000.
    pub tokens: u64,
}

impl RemoteOptions {
    /// A model of this name and dimension at one address, without a key, everything else at its default.
    pub fn new(model: impl Into<String>, dimension: usize, base_url: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            dimension,
            request_dimension: RequestDimension::default(),
            family: "openai".into(),
            revision: String::new(),
            max_tokens: DEFAULT_MAX_TOKENS,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            normalisation: Normalisation::default(),
            providers: vec![ProviderOptions::new(base_url)],
            batch: BatchOptions::default(),
            retry: RetryOptions::default(),
            breaker: BreakerOptions::default(),
            request_timeout: Duration::from_secs(60),
            caps: SpendCaps::default(),
            run: None,
            tokenizer: None,
            timer: Arc::new(SystemTimer::default()),
            seed: None,
        }
    }

    /// # Errors
    /// [`Error::InvalidSetting`].
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |setting, reason: &str| Err(Error::InvalidSetting { setting, reason: reason.into() });
        if self.model.trim().is_empty() {
            return refuse("model", "it is empty; name the model as the provider does");
        }
        // No published text model is wider than 8,192; the bound keeps an answer's size within memory.
        if self.dimension == 0 || self.dimension > 1 << 16 {
            return refuse("dimension", "it is not between 1 and 65,536");
        }
        if self.providers.is_empty() {
            return refuse("providers", "there is none; give a base URL");
        }
        if self.request_timeout.is_zero() {
            return refuse("request_timeout", "it is zero");
        }
        if self.caps.has_cost() && self.providers.iter().any(|provider| provider.price.is_none()) {
            return refuse("caps", "a cap in currency needs the price of every provider");
        }
        Ok(())
    }

    pub(super) fn identity(&self) -> EmbedderIdentity {
        let Self { family, model, dimension, revision, .. } = self;
        EmbedderIdentity {
            name: format!("openai:{model}"),
            dimension: *dimension,
            normalised: self.normalisation == Normalisation::Unit,
            pooling: Pooling::None,
            precision: Precision::F32,
            max_tokens: self.max_tokens,
            query_prefix: self.query_prefix.clone(),
            passage_prefix: self.passage_prefix.clone(),
            // As JSON, so that no two combinations read the same.
            weights: format!("remote:{}", serde_json::json!([family, model, dimension, revision])),
            tokenizer: "remote".into(),
        }
    }
}

impl fmt::Debug for RemoteOptions {
    /// Without what has no form for people: the tokenizer and the timer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("model", &self.model)
            .field("dimension", &self.dimension)
            .field("request_dimension", &self.request_dimension)
            .field("family", &self.family)
            .field("revision", &self.revision)
            .field("max_tokens", &self.max_tokens)
            .field("query_prefix", &self.query_prefix)
            .field("passage_prefix", &self.passage_prefix)
            .field("normalisation", &self.normalisation)
            .field("providers", &self.providers)
            .field("batch", &self.batch)
            .field("retry", &self.retry)
            .field("breaker", &self.breaker)
            .field("request_timeout", &self.request_timeout)
            .field("caps", &self.caps)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

impl ProviderOptions {
    /// A provider at this address, without key, price and limits.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            key: None,
            model: None,
            price: None,
            limits: RateLimits::default(),
            max_concurrent: NonZeroUsize::new(8).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { texts: NonZeroUsize::new(128).unwrap_or(NonZeroUsize::MIN), tokens: 32_768 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_vectors_is_in_the_identity_and_where_they_come_from_is_not() {
        let base = RemoteOptions::new("m", 8, "http://localhost/v1");
        let id = |change: fn(&mut RemoteOptions)| {
            let mut options = base.clone();
            change(&mut options);
            options.identity().id()
        };
        let same = id(|_| {});
        assert!(same.as_str().starts_with("openai-m-"), "{same}");
        assert_eq!(same, id(|o| o.providers.push(ProviderOptions::new("https://other.example/v1"))));
        assert_eq!(same, id(|o| o.providers[0].model = Some("m-alias".into())));
        let others = [
            id(|o| o.model = "n".into()),
            id(|o| o.dimension = 9),
            id(|o| o.family = "tei".into()),
            id(|o| o.revision = "2".into()),
            id(|o| o.max_tokens = 512),
            id(|o| o.query_prefix = "query: ".into()),
            id(|o| o.normalisation = Normalisation::AsSent),
        ];
        let unique: std::collections::HashSet<_> = others.iter().chain([&same]).collect();
        assert_eq!(unique.len(), others.len() + 1);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let refused = |change: fn(&mut RemoteOptions)| {
            let mut options = RemoteOptions::new("m", 8, "http://localhost/v1");
            assert!(options.check().is_ok());
            change(&mut options);
            match options.check() {
                Err(Error::InvalidSetting { setting, .. }) => setting,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(|o| o.model = " ".into()), "model");
        assert_eq!(refused(|o| o.dimension = 0), "dimension");
        assert_eq!(refused(|o| o.providers.clear()), "providers");
        assert_eq!(refused(|o| o.request_timeout = Duration::ZERO), "request_timeout");
        assert_eq!(refused(|o| o.caps.day_cost = Some(1.0)), "caps");
    }
}
