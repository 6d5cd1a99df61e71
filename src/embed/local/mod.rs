//! Transformer models on this machine, run by burn. The only place that names burn.
//!
//! [`LocalEmbedder`] is a cheap handle. Its model lives on a thread of its own, is loaded for the first text and dropped
//! after an idle time. Files come from [`pull_model`], are pinned by the catalog and checked before every load.
//! Must not know: tables, documents.

mod buckets;
mod catalog;
mod checksums;
mod config;
mod device;
mod encoder;
mod files;
mod folder;
mod fused;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod listing;
mod model_source;
mod model_thread;
mod ops;
#[cfg(test)]
mod parity;
mod pipeline;
mod pull;
mod safetensors;
mod self_test;
mod shape;
mod sources;
mod stock;
#[cfg(test)]
mod tiny;
mod token_file;
mod tokenize;
mod tokenizer;
mod usage;
mod vision;
mod weights;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

pub use catalog::known_models;
pub use device::{LocalDevice, cpu_instructions};
pub use listing::{ListedModel, list_models};
pub use pull::{PullOptions, PullReport, PullSource, pull_model};
pub use shape::ModelShape;
pub use token_file::TokenizerFile;
pub use usage::ModelUsage;
pub use vision::{
    ClipEmbedder, ImageDefect, ImageFormat, ImageSource, LocalImageEmbedder, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS,
};
pub(crate) use vision::{ImageReference, image_facts, read_image};

use super::{Embedded, Embedder, EmbedderIdentity, Pooling, Precision, TextKind, TokenCounter};
use crate::error::{BoxError, Error, Result};
use catalog::WEIGHTS;
use encoder::Encoder;
use model_source::ModelSource;
use model_thread::Engine;
use pipeline::Pipeline;
use tokenize::{TokenizedText, Tokens};

/// How long a model stays in memory without work.
const IDLE_UNLOAD: Duration = Duration::from_secs(10 * 60);

/// Which model a [`LocalEmbedder`] runs, from where and on what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalOptions {
    /// The model's name, one of [`known_models`], or a folder that holds a model: `path:mine`, `./mine`, `/opt/mine`.
    pub model: String,
    /// The folder of all models; the model's own folder is in it under its name.
    pub model_dir: PathBuf,
    /// Most tokens computed at once; memory grows with it. A text longer than that is a batch of its own. Default 1,024 on the
    /// processor, 16,384 on a graphics processor.
    pub batch_tokens: Option<usize>,
    /// How long the model stays loaded without work. Default 10 minutes.
    pub idle_unload: Duration,
    /// Number format of the weights; part of the identity. Default [`Precision::F32`].
    pub precision: Precision,
    /// What computes; no part of the identity. Default [`LocalDevice::Auto`].
    pub device: LocalDevice,
    /// How token states become a vector, for a folder that does not say so itself. Default: it has to.
    pub pooling: Option<Pooling>,
}

impl LocalOptions {
    /// The defaults for a model.
    pub fn new(model: impl Into<String>, model_dir: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            model_dir: model_dir.into(),
            batch_tokens: None,
            idle_unload: IDLE_UNLOAD,
            precision: Precision::default(),
            device: LocalDevice::default(),
            pooling: None,
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
    idle_unload: Duration,
    /// `None` until the first text. Dropped with the last handle, which ends the threads.
    pipeline: Arc<Mutex<Option<Pipeline>>>,
}

impl LocalEmbedder {
    /// A handle to the model that `options` name. Starts no threads and does not load the model: both happen with the first
    /// text. Of a model that the catalog does not pin, the small files are read and the large ones hashed, once.
    ///
    /// # Errors
    /// [`Error::UnknownEmbedder`] where there is no such model. Where the catalog does not pin it, also
    /// [`Error::ModelMissing`], [`Error::ModelFormat`] naming what is not supported, and [`Error::ChecksumMismatch`].
    pub fn open(options: LocalOptions) -> Result<Self> {
        Ok(Self::with_source(ModelSource::find(&options.model, &options.model_dir, options.pooling)?, options))
    }

    /// Whether the model's files are all there. They are neither read nor checked; that happens when they are loaded.
    ///
    /// # Errors
    /// [`Error::ModelMissing`] naming the first file that is missing.
    pub fn check_installed(&self) -> Result<()> {
        self.local.source.files().require()
    }

    /// Loads the model now, rather than with the first text: checks the files, reads them, and holds what the model answers
    /// against what it is known to answer.
    ///
    /// # Errors
    /// [`Error::ModelMissing`], [`Error::ChecksumMismatch`], [`Error::ModelFormat`], [`Error::ModelDrift`].
    pub async fn load(&self) -> Result<()> {
        self.pipeline()?.load().await.unwrap_or_else(|| Err(self.stopped()))
    }

    /// Lets the model go once all that was asked for before is answered, as it goes after
    /// [`idle_unload`](LocalOptions::idle_unload). The next text loads it again.
    ///
    /// # Errors
    /// [`Error::EmbedderFailed`] where the model thread stopped.
    pub async fn unload(&self) -> Result<()> {
        self.pipeline()?.unload().await.ok_or_else(|| self.stopped())
    }

    /// Whether this release knows the checksums of the model's files. Of a model whose are not known, those of the files
    /// that came first count.
    pub fn is_pinned(&self) -> bool {
        self.local.source.is_pinned()
    }

    /// The model's size, from its configuration.
    ///
    /// # Errors
    /// [`Error::ModelMissing`], [`Error::ChecksumMismatch`], [`Error::ModelFormat`].
    pub fn shape(&self) -> Result<ModelShape> {
        self.local.source.config().map(|config| ModelShape::of(&config))
    }

    /// What the model has computed so far, in this process.
    pub fn usage(&self) -> ModelUsage {
        let pipeline = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner);
        pipeline.as_ref().map(Pipeline::usage).unwrap_or_default()
    }

    fn with_source(source: ModelSource, options: LocalOptions) -> Self {
        let identity = Arc::new(source.identity(options.precision));
        let local = Local {
            source,
            identity: Arc::clone(&identity),
            device: options.device,
            batch_tokens: options.batch_tokens,
            tokens: Mutex::default(),
        };
        Self { identity, local: Arc::new(local), idle_unload: options.idle_unload, pipeline: Arc::default() }
    }

    /// The threads, which are started now if they do not run.
    fn pipeline(&self) -> Result<Pipeline> {
        let mut pipeline = self.pipeline.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pipeline {
            Some(running) if running.is_running() => Ok(running.clone()),
            _ => Ok(pipeline.insert(Pipeline::start(Arc::clone(&self.local), self.idle_unload)?).clone()),
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

    /// The weights, which are held once, and 32 MiB for the tokenizer and one batch: all-MiniLM-L6-v2, 87 MiB in f32, took
    /// 117 MB at its peak.
    fn resident_bytes(&self) -> u64 {
        // Of a model that is not here yet nothing is known.
        let weights = std::fs::metadata(self.local.source.files().dir().join(WEIGHTS)).map_or(0, |file| file.len());
        let held = if self.identity.precision == Precision::F32 { weights } else { weights / 2 };
        held + (32 << 20)
    }
}

impl std::fmt::Debug for LocalEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalEmbedder").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// One model, its files and its tokenizer.
struct Local {
    source: ModelSource,
    identity: Arc<EmbedderIdentity>,
    device: LocalDevice,
    batch_tokens: Option<usize>,
    /// Kept while the model is loaded, and by whoever counts tokens: chunking needs it without the model.
    tokens: Mutex<Option<Arc<Tokens>>>,
}

impl Local {
    fn tokens(&self) -> Result<Arc<Tokens>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*tokens {
            return Ok(Arc::clone(loaded));
        }
        Ok(Arc::clone(tokens.insert(Arc::new(self.source.tokens()?))))
    }

    /// A few short texts, for the self-test.
    fn embed_passages(&self, encoder: &Encoder, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let prefix = self.identity.passage_prefix.as_str();
        let tokens = self.tokens()?.encode(texts.iter().map(|text| [prefix, text].concat()).collect())?;
        let ids: Vec<&[u32]> = tokens.iter().map(|text| text.ids.as_slice()).collect();
        encoder.embed(&ids).map_err(|e| Error::EmbedderFailed {
            embedder: self.identity.name.clone(),
            reason: "the model failed in its self-test".into(),
            source: Some(e),
        })
    }
}

impl Engine for Local {
    type Model = Encoder;

    fn name(&self) -> &str {
        &self.identity.name
    }

    fn tokenize(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>> {
        self.tokens()?.encode(texts)
    }

    fn load(&self) -> Result<Encoder> {
        let encoder = self.source.load(self.identity.precision, &self.device.find()?)?;
        self_test::run(&self.identity, self.source.files().dir(), |texts| self.embed_passages(&encoder, texts))?;
        // What the load needed beside the model.
        crate::kernels::return_free_memory();
        Ok(encoder)
    }

    fn batch_tokens(&self, model: &Encoder) -> usize {
        self.batch_tokens.unwrap_or_else(|| model.batch_tokens())
    }

    fn compute(&self, model: &Encoder, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
        model.embed(batch)
    }

    fn unloaded(&self) {
        // Whoever counts tokens holds the tokenizer itself.
        drop(self.tokens.lock().unwrap_or_else(PoisonError::into_inner).take());
        crate::kernels::return_free_memory();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(model: &'static catalog::KnownModel, model_dir: &std::path::Path) -> LocalEmbedder {
        let source = ModelSource::known(model, model_dir).unwrap();
        LocalEmbedder::with_source(source, LocalOptions::new(model.name, model_dir))
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
