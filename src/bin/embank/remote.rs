//! The section `[remote]` of embank.toml: which remote model, who serves it, and what it may cost.
//!
//! Guarantees: a key itself is never in the file, only where it is found; an unknown key of the section is refused by its
//! name. Must not know: how requests are made.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use embank::Error;
use embank::embed::remote::{
    ApiKey, Normalisation, Price, ProviderOptions, RemoteEmbedder, RemoteOptions, RequestDimension,
};
use serde::Deserialize;

/// What an embedder's name begins with if it is a remote one: `openai:text-embedding-3-small`.
pub const SCHEME: &str = "openai:";

/// `[remote]`; what is left out has the defaults of the library.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RemoteTable {
    dimension: Option<usize>,
    request_dimension: Option<bool>,
    family: Option<String>,
    revision: Option<String>,
    max_tokens: Option<usize>,
    query_prefix: Option<String>,
    passage_prefix: Option<String>,
    normalise: Option<bool>,
    batch_texts: Option<NonZeroUsize>,
    batch_tokens: Option<u64>,
    attempts: Option<NonZeroU32>,
    total_wait_seconds: Option<u64>,
    request_timeout_seconds: Option<u64>,
    run: Option<String>,
    run_tokens: Option<u64>,
    run_cost: Option<f64>,
    day_tokens: Option<u64>,
    day_cost: Option<f64>,
    #[serde(default)]
    providers: Vec<ProviderTable>,
}

/// `[[remote.providers]]`, in the order in which they are asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ProviderTable {
    base_url: String,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    model: Option<String>,
    price_per_million_tokens: Option<f64>,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
    max_concurrent: Option<NonZeroUsize>,
}

impl RemoteTable {
    /// Paths are relative to the file that the table is from.
    pub fn relative_to(&mut self, dir: &Path) {
        for path in self.providers.iter_mut().filter_map(|provider| provider.key_file.as_mut()) {
            *path = dir.join(&*path);
        }
    }

    /// The embedder of this model; nothing is sent.
    pub fn embedder(&self, model: &str) -> Result<RemoteEmbedder, Error> {
        RemoteEmbedder::open(self.options(model)?)
    }

    fn options(&self, model: &str) -> Result<RemoteOptions, Error> {
        let missing = |key| Error::InvalidSetting {
            setting: "embank.toml",
            reason: format!("the embedder {SCHEME}{model} needs {key} in the section [remote]"),
        };
        let dimension = self.dimension.ok_or_else(|| missing("`dimension`"))?;
        if self.providers.is_empty() {
            return Err(missing("[[remote.providers]] with a `base-url`"));
        }
        // Replaced below by all of them.
        let mut options = RemoteOptions::new(model, dimension, "");
        options.providers = self.providers.iter().map(ProviderTable::options).collect::<Result<_, _>>()?;
        if self.request_dimension == Some(true) {
            options.request_dimension = RequestDimension::Send;
        }
        if self.normalise == Some(false) {
            options.normalisation = Normalisation::AsSent;
        }
        set(&mut options.family, &self.family);
        set(&mut options.revision, &self.revision);
        set(&mut options.max_tokens, &self.max_tokens);
        set(&mut options.query_prefix, &self.query_prefix);
        set(&mut options.passage_prefix, &self.passage_prefix);
        set(&mut options.batch.texts, &self.batch_texts);
        set(&mut options.batch.tokens, &self.batch_tokens);
        set(&mut options.retry.attempts, &self.attempts);
        set(&mut options.retry.total_wait, &self.total_wait_seconds.map(Duration::from_secs));
        set(&mut options.request_timeout, &self.request_timeout_seconds.map(Duration::from_secs));
        options.run.clone_from(&self.run);
        options.caps.run_tokens = self.run_tokens;
        options.caps.run_cost = self.run_cost;
        options.caps.day_tokens = self.day_tokens;
        options.caps.day_cost = self.day_cost;
        Ok(options)
    }
}

impl ProviderTable {
    fn options(&self) -> Result<ProviderOptions, Error> {
        let mut options = ProviderOptions::new(&self.base_url);
        options.key = match (&self.key_env, &self.key_file) {
            (Some(_), Some(_)) => {
                let reason = format!("{} has both `key-env` and `key-file`; keep one", self.base_url);
                return Err(Error::InvalidSetting { setting: "embank.toml", reason });
            }
            (Some(variable), None) => Some(ApiKey::from_env(variable)?),
            (None, Some(path)) => Some(ApiKey::from_file(path)?),
            (None, None) => None,
        };
        options.model.clone_from(&self.model);
        options.price = self.price_per_million_tokens.map(|per_million_tokens| Price { per_million_tokens });
        options.limits.requests_per_minute = self.requests_per_minute;
        options.limits.tokens_per_minute = self.tokens_per_minute;
        set(&mut options.max_concurrent, &self.max_concurrent);
        Ok(options)
    }
}

/// Leaves the default where nothing is set.
fn set<T: Clone>(option: &mut T, setting: &Option<T>) {
    if let Some(value) = setting {
        option.clone_from(value);
    }
}

#[cfg(test)]
mod tests {
    use embank::embed::Embedder;

    use super::*;

    fn table(text: &str) -> RemoteTable {
        toml::from_str(text).unwrap()
    }

    const ONE: &str = "dimension = 8\n[[providers]]\nbase-url = \"http://localhost:1/v1\"\n";

    #[test]
    fn what_is_set_is_used_and_the_rest_has_defaults() {
        let text = format!(
            "max-tokens = 512\nnormalise = false\nday-cost = 1.5\nattempts = 2\n{ONE}price-per-million-tokens = 0.02"
        );
        let options = table(&text).options("m").unwrap();
        assert_eq!((options.model.as_str(), options.dimension, options.max_tokens), ("m", 8, 512));
        assert_eq!((options.normalisation, options.caps.day_cost), (Normalisation::AsSent, Some(1.5)));
        assert_eq!((options.retry.attempts.get(), options.batch.texts.get()), (2, 128));
        assert_eq!(options.providers.len(), 1);
        assert_eq!(options.providers[0].price.unwrap().per_million_tokens, 0.02);
        let embedder = table(&text).embedder("m").unwrap();
        assert_eq!(embedder.identity().name, "openai:m");
    }

    #[test]
    fn what_is_missing_or_contradicts_itself_is_named() {
        let refusal = |text: &str| table(text).options("m").unwrap_err().to_string();
        assert!(refusal("").contains("the embedder openai:m needs `dimension`"));
        assert!(refusal("dimension = 8").contains("[[remote.providers]]"));
        assert!(refusal(&format!("{ONE}key-env = \"A\"\nkey-file = \"b\"")).contains("keep one"));
        assert!(toml::from_str::<RemoteTable>("api-key = \"sk-x\"").unwrap_err().message().contains("api-key"));
    }

    #[test]
    fn the_key_file_lies_beside_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "sk-test\n").unwrap();
        let mut table = table(&format!("{ONE}key-file = \"key\""));
        table.relative_to(dir.path());
        assert!(table.options("m").unwrap().providers[0].key.is_some());
    }
}
