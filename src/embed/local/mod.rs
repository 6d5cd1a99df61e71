//! Transformer models on this machine, run by burn. The only place that names burn.
//!
//! [`LocalEmbedder`] is a cheap handle. Its model lives on a thread of its own, is loaded for the first text and dropped
//! after an idle time. Files come from [`pull_model`], are pinned by the catalog and checked before every load.
//! Must not know: tables, documents.

mod catalog;
mod config;
mod encoder;
mod files;
mod pipeline;
mod pull;
mod sources;
#[cfg(test)]
mod tiny;
mod tokenize;
mod weights;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use burn::tensor::Device;

pub use catalog::known_models;
pub use pull::{PullOptions, PullReport, PullSource, pull_model};

use super::{Embedded, Embedder, EmbedderIdentity, TextKind, TokenCounter};
use crate::error::{BoxError, Error, Result};
use catalog::KnownModel;
use config::BertConfig;
use encoder::Encoder;
use files::ModelFiles;
use pipeline::{Engine, Pipeline, PipelineOptions};
use tokenize::{TokenizedText, Tokens};

/// Tokens in one batch. Measured on two cores with AVX-512, all-MiniLM-L6-v2: 2,048 to 4,096 are best, 1,024 is 5 % slower,
/// 16,384 is 15 % slower.
const BATCH_TOKENS: usize = 4_096;

/// How long a model stays in memory without work.
const IDLE_UNLOAD: Duration = Duration::from_secs(10 * 60);

/// Which model a [`LocalEmbedder`] runs, from where and on what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalOptions {
    /// The model's name, one of [`known_models`].
    pub model: String,
    /// The folder of all models; the model's own folder is in it under its name.
    pub model_dir: PathBuf,
    /// Most tokens computed at once; memory grows with it. Default 4,096; a text longer than that is a batch of its own.
    pub batch_tokens: usize,
    /// How long the model stays loaded without work. Default 10 minutes.
    pub idle_unload: Duration,
    /// What computes. Default [`LocalDevice::Cpu`].
    pub device: LocalDevice,
}

/// What computes a local model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalDevice {
    /// All cores of the processor.
    #[default]
    Cpu,
    /// The default graphics processor, through Vulkan, Metal or DirectX 12. Only in builds with the feature `wgpu`.
    #[cfg(feature = "wgpu")]
    Gpu,
}

impl LocalOptions {
    /// The defaults for a model.
    pub fn new(model: impl Into<String>, model_dir: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            model_dir: model_dir.into(),
            batch_tokens: BATCH_TOKENS,
            idle_unload: IDLE_UNLOAD,
            device: LocalDevice::default(),
        }
    }
}

/// An embedder that runs a transformer on this machine. Clones share the model.
///
/// A batch is sorted by length and cut under a token budget; large batches are the fast ones. The future may be dropped at
/// any time; what is not computed yet is not computed then.
#[derive(Clone)]
pub struct LocalEmbedder {
    identity: Arc<EmbedderIdentity>,
    local: Arc<Local>,
    options: PipelineOptions,
    /// `None` until the first text. Dropped with the last handle, which ends the threads.
    pipeline: Arc<Mutex<Option<Pipeline>>>,
}

impl LocalEmbedder {
    /// A handle to the model that `options` name. Neither reads files nor starts threads: both happen with the first text.
    ///
    /// # Errors
    /// [`Error::UnknownEmbedder`] where there is no such model.
    pub fn open(options: LocalOptions) -> Result<Self> {
        Ok(Self::with_model(catalog::find(&options.model)?, options))
    }

    /// Whether the model's files are all there. They are neither read nor checked; that happens when they are loaded.
    ///
    /// # Errors
    /// [`Error::ModelMissing`] naming the first file that is missing.
    pub fn check_installed(&self) -> Result<()> {
        self.local.files.require()
    }

    fn with_model(model: &'static KnownModel, options: LocalOptions) -> Self {
        let local = Local {
            model,
            files: ModelFiles::new(model, &options.model_dir),
            device: options.device,
            tokens: Mutex::default(),
        };
        Self {
            identity: Arc::new(model.identity()),
            local: Arc::new(local),
            options: PipelineOptions { batch_tokens: options.batch_tokens, idle_unload: options.idle_unload },
            pipeline: Arc::default(),
        }
    }

    /// The threads, which are started now if they do not run.
    fn pipeline(&self) -> Result<Pipeline> {
        let mut pipeline = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pipeline {
            Some(running) if running.is_running() => Ok(running.clone()),
            _ => Ok(pipeline.insert(Pipeline::start(Arc::clone(&self.local), self.options)?).clone()),
        }
    }

    fn stopped(&self) -> Error {
        Error::EmbedderFailed {
            embedder: self.identity.name.clone(),
            reason: "the model thread stopped; the log says why".into(),
            source: None,
        }
    }
}

#[async_trait]
impl Embedder for LocalEmbedder {
    fn identity(&self) -> &EmbedderIdentity {
        &self.identity
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        Ok(self.local.tokens()?)
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let prefix = match kind {
            TextKind::Query => self.identity.query_prefix.as_str(),
            TextKind::Passage => self.identity.passage_prefix.as_str(),
        };
        let texts = texts.iter().map(|text| [prefix, text].concat()).collect();
        self.pipeline()?.embed(texts).await.unwrap_or_else(|| Err(self.stopped()))
    }
}

impl std::fmt::Debug for LocalEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalEmbedder").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// One model, its files and its tokenizer.
struct Local {
    model: &'static KnownModel,
    files: ModelFiles,
    device: LocalDevice,
    /// Kept once loaded: a few megabytes, and chunking needs it without the model.
    tokens: Mutex<Option<Arc<Tokens>>>,
}

impl Local {
    fn tokens(&self) -> Result<Arc<Tokens>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*tokens {
            return Ok(Arc::clone(loaded));
        }
        self.files.require()?;
        let (path, json) = self.files.read_verified(&self.model.tokenizer)?;
        Ok(Arc::clone(tokens.insert(Arc::new(Tokens::parse(&path, &json, self.model)?))))
    }

    fn burn_device(&self) -> Device {
        match self.device {
            LocalDevice::Cpu => Device::flex(),
            #[cfg(feature = "wgpu")]
            LocalDevice::Gpu => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        }
    }
}

impl Engine for Local {
    type Model = Encoder;

    fn name(&self) -> &str {
        self.model.name
    }

    fn tokenize(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>> {
        self.tokens()?.encode(texts)
    }

    fn load(&self) -> Result<Encoder> {
        self.files.require()?;
        let (path, json) = self.files.read_verified(&self.model.config)?;
        let config = BertConfig::parse(&path, &json)?;
        if config.hidden_size != self.model.dimension || config.max_position_embeddings < self.model.max_tokens {
            return Err(Error::ModelFormat { path, reason: "it describes another model".into(), source: None });
        }
        let weights = self.files.verified(&self.model.weights)?;
        weights::load(&weights, &config, self.model.pooling, &self.burn_device())
    }

    fn compute(&self, model: &Encoder, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
        model.embed(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(model: &'static KnownModel, model_dir: &std::path::Path) -> LocalEmbedder {
        LocalEmbedder::with_model(model, LocalOptions::new(model.name, model_dir))
    }

    async fn embed(embedder: &LocalEmbedder, kind: TextKind, texts: &[&str]) -> Result<Vec<Embedded>> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        embedder.embed(kind, &texts).await
    }

    fn assert_near(found: &[f32], ids: &[u32]) {
        let expected = tiny::reference(&tiny::tensors(), ids);
        assert!(found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{found:?}, {expected:?}");
    }

    #[tokio::test]
    async fn texts_become_the_vectors_of_their_tokens_with_the_prefix_of_their_kind() {
        let dir = tempfile::tempdir().unwrap();
        let embedder = open(tiny::install(dir.path()), dir.path());
        let queries = embed(&embedder, TextKind::Query, &["bees", "", "hive"]).await.unwrap();
        for (answer, ids) in queries.iter().zip([&[2, 4, 5, 3][..], &[2, 3], &[2, 6, 3]]) {
            assert_near(&answer.vector, ids);
            assert_eq!((answer.tokens as usize, answer.truncated), (ids.len(), false));
        }
        let passages = embed(&embedder, TextKind::Passage, &["bees", &"hive ".repeat(6)]).await.unwrap();
        assert_near(&passages[0].vector, &[2, 7, 4, 5, 3]);
        assert_near(&passages[1].vector, &[2, 7, 6, 6, 6, 6, 6, 3]);
        assert_eq!((passages[1].tokens, passages[1].truncated), (8, true));
    }

    #[tokio::test]
    async fn opening_needs_no_files_and_pulling_the_model_mends_a_running_process() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let model = tiny::install(elsewhere.path());
        let embedder = open(model, dir.path());
        assert_eq!(embedder.identity().dimension, 8);
        assert!(matches!(embed(&embedder, TextKind::Query, &["bee"]).await, Err(Error::ModelMissing { .. })));
        assert!(matches!(embedder.token_counter().map(drop), Err(Error::ModelMissing { .. })));
        std::fs::rename(elsewhere.path().join("tiny"), dir.path().join("tiny")).unwrap();
        assert_near(&embed(&embedder, TextKind::Query, &["bee"]).await.unwrap()[0].vector, &[2, 4, 3]);
    }

    #[tokio::test]
    async fn a_file_that_is_not_the_published_one_is_refused_before_it_is_used() {
        for file in ["model.safetensors", "tokenizer.json", "config.json"] {
            let dir = tempfile::tempdir().unwrap();
            let embedder = open(tiny::install(dir.path()), dir.path());
            let path = dir.path().join("tiny").join(file);
            let mut content = std::fs::read(&path).unwrap();
            *content.last_mut().unwrap() ^= 1;
            std::fs::write(&path, content).unwrap();
            match embed(&embedder, TextKind::Query, &["bee"]).await {
                Err(Error::ChecksumMismatch { path: named, .. }) => assert_eq!(named, path),
                other => panic!("{file}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn many_callers_share_one_model_and_get_their_own_answers() {
        let dir = tempfile::tempdir().unwrap();
        let embedder = open(tiny::install(dir.path()), dir.path());
        let words = ["bee", "hive", "water", "bees"];
        let calls = (0..20).map(|i| {
            let (embedder, word) = (embedder.clone(), words[i % 4]);
            async move { (word, embed(&embedder, TextKind::Query, &[word]).await.unwrap()) }
        });
        for (word, answers) in futures::future::join_all(calls).await {
            let ids: &[u32] = match word {
                "bee" => &[2, 4, 3],
                "hive" => &[2, 6, 3],
                "water" => &[2, 7, 3],
                _ => &[2, 4, 5, 3],
            };
            assert_near(&answers[0].vector, ids);
        }
    }

    #[test]
    fn an_unknown_model_is_refused() {
        let refused = LocalEmbedder::open(LocalOptions::new("gpt-5", "models"));
        assert!(matches!(refused, Err(Error::UnknownEmbedder { .. })));
    }
}
