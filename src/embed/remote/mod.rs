//! Embedding over the network: any provider of OpenAI's `/v1/embeddings` (OpenAI, Novita, TEI, Ollama, vLLM).
//!
//! Guarantees: a key is never shown, logged, or sent in the clear to another machine; rates, concurrency, waiting and spending
//! stay within their bounds, the last one across crashes; what was paid for is not paid for again while the process lives;
//! vectors of different models are never mixed. Must not know: tables, documents.
//!
//! From the outside in: [`RemoteEmbedder`] → `call` (texts ⇄ requests) → `request` (attempts and waits) → `provider` (what an
//! answer means) → `exchange` (HTTP).

pub(crate) mod audit;
mod book;
mod breaker;
mod budget;
mod call;
mod endpoint;
mod exchange;
mod floats;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod host;
mod kept;
mod key;
mod limits;
mod options;
mod protocol;
mod provider;
mod request;
mod retry;
mod spend;
mod timer;
mod tokens;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use breaker::BreakerOptions;
pub use key::ApiKey;
pub use limits::RateLimits;
pub use options::{BatchOptions, Normalisation, ProviderOptions, RemoteOptions, RequestDimension};
pub use retry::RetryOptions;
pub use spend::{Price, Spend, SpendCaps, SpendLedger};
pub use timer::{SystemTimer, Timer};

use super::{Embedded, Embedder, EmbedderIdentity, Estimate, TextKind, TokenCounter};
use crate::error::Result;
use budget::Account;
use kept::{Kept, TextKey};
use provider::Provider;
use retry::Backoff;
use tokens::Meter;

/// A model behind an HTTP address; cheap to clone.
#[derive(Clone)]
pub struct RemoteEmbedder(Arc<Shared>);

/// What was spent, or is set aside for requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spending {
    /// Today, UTC, by all runs on the ledger.
    pub today: Spend,
    /// In this run.
    pub run: Spend,
    /// Ever.
    pub total: Spend,
}

/// What all calls share.
struct Shared {
    identity: EmbedderIdentity,
    providers: Vec<Provider>,
    meter: Meter,
    batch: BatchOptions,
    normalisation: Normalisation,
    retry: RetryOptions,
    backoff: Backoff,
    timer: Arc<dyn Timer>,
    account: Arc<Account>,
    kept: Kept,
}

impl RemoteEmbedder {
    /// Checks the options; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting), such as for a key that would travel over plain http.
    pub fn open(options: RemoteOptions) -> Result<Self> {
        options.check()?;
        let identity = options.identity();
        let RemoteOptions { query_prefix, passage_prefix, max_tokens, .. } = &options;
        let run = options.run.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
        // Random bits without a further dependency.
        let seed = options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        Ok(Self(Arc::new(Shared {
            meter: Meter::new(options.tokenizer.clone(), *max_tokens, query_prefix, passage_prefix)?,
            providers: options.providers.iter().map(|one| Provider::new(one, &options)).collect::<Result<_>>()?,
            account: Arc::new(Account::new(&options.caps, run, options.timer.clone())?),
            backoff: Backoff::new(&options.retry, seed),
            kept: Kept::new(identity.dimension),
            identity,
            batch: options.batch,
            normalisation: options.normalisation,
            retry: options.retry,
            timer: options.timer,
        })))
    }

    /// What the ledger says.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) before a ledger was attached; those of the ledger.
    pub async fn spending(&self) -> Result<Spending> {
        let [today, run, total] = self.0.account.sums().await?;
        Ok(Spending { today, run, total })
    }
}

impl fmt::Debug for RemoteEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let providers: Vec<_> = self.0.providers.iter().map(|provider| &provider.name).collect();
        f.debug_struct("RemoteEmbedder").field("identity", &self.0.identity).field("providers", &providers).finish()
    }
}

#[async_trait]
impl Embedder for RemoteEmbedder {
    fn identity(&self) -> &EmbedderIdentity {
        &self.0.identity
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        Ok(Arc::new(self.0.meter.clone()))
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        call::embed(&self.0, kind, texts).await
    }

    fn texts_per_call(&self) -> usize {
        // All requests side by side at the first provider, full ones.
        let at_once = self.0.providers.first().map_or(1, |provider| provider.max_concurrent.get());
        at_once.saturating_mul(self.0.batch.texts.get())
    }

    fn attach_ledger(&self, ledger: Arc<dyn SpendLedger>) {
        self.0.account.attach(ledger);
    }

    fn kept_answers(&self, kind: TextKind, texts: &[String]) -> Vec<Option<Embedded>> {
        let keys: Vec<_> = texts.iter().map(|text| TextKey::new(kind, text)).collect();
        self.0.kept.get(&keys)
    }

    fn estimate(&self, kind: TextKind, texts: &[String]) -> Result<Estimate> {
        let tokens = texts.iter().map(|text| u64::from(self.0.meter.prepare(kind, text).tokens)).sum();
        // The first provider is asked first.
        let price = self.0.providers.first().map_or(0, |provider| provider.picos_per_token);
        Ok(Estimate { texts: texts.len() as u64, tokens, cost: Spend::of(tokens, price).cost() })
    }
}
