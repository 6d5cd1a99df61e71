//! What a command works with: settings, the embedder, the bank, and where progress goes.
//!
//! Guarantees: the bank is opened only by commands that ask for it, and made only by those that may; no model is loaded
//! by opening. Must not know: any one command.

use std::sync::Arc;

use embank::embed::remote::RemoteEmbedder;
use embank::embed::{ClipEmbedder, Embedder, FakeEmbedder, LocalEmbedder, LocalImageEmbedder};
use embank::embed::{LocalOptions, Precision, PullOptions, PullReport};
use embank::embed::{known_models, pull_model};
use embank::{Bank, BankOptions, Error, ServedEmbedder, StoreOptions};

use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Display;
use crate::remote;
use crate::settings::Settings;

/// Most dimensions of a fake embedder; wider than any published text model.
const FAKE_DIMENSIONS: usize = 16_384;

/// What the name of a CLIP model starts with; its folder follows.
const CLIP_SCHEME: &str = "clip:";

/// One run of the command.
pub struct Session {
    settings: Settings,
    display: Display,
    interrupt: Interrupt,
    output: Output,
}

/// The embedder that was named.
pub enum NamedEmbedder {
    Fake(FakeEmbedder),
    Local(LocalEmbedder),
    Clip(ClipEmbedder),
    Remote(RemoteEmbedder),
}

impl NamedEmbedder {
    fn shared(self) -> Arc<dyn Embedder> {
        match self {
            Self::Fake(fake) => Arc::new(fake),
            Self::Local(local) => Arc::new(local),
            Self::Clip(clip) => Arc::new(clip),
            Self::Remote(remote) => Arc::new(remote),
        }
    }
}

impl Session {
    pub fn new(settings: Settings, display: Display) -> Self {
        let output = Output::new(settings.json);
        Self { settings, display, interrupt: Interrupt::new(), output }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn display(&self) -> &Display {
        &self.display
    }

    pub fn output(&self) -> &Output {
        &self.output
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// From now on Ctrl-C stops after the batch in hand.
    pub fn stop_gently(&self) {
        let display = self.display.clone();
        self.interrupt.watch(move |line| display.say(line));
    }

    /// The embedder of the settings; its model is not loaded.
    pub fn embedder(&self) -> Result<Arc<dyn Embedder>, Error> {
        Ok(self.named_embedder(&self.settings.embedder)?.shared())
    }

    /// Opens the bank, which must exist.
    pub async fn open(&self) -> Result<Bank, Error> {
        let (name, precision) = self.chosen().await?;
        self.open_as(&name, precision).await
    }

    /// Opens the bank, or makes it.
    pub async fn open_or_create(&self) -> Result<Bank, Error> {
        let (name, precision) = self.chosen().await?;
        let embedder = self.embedder_as(&name, precision)?.shared();
        Bank::open_or_create(&self.settings.bank, embedder, self.bank_options()).await
    }

    /// Opens the bank, which must exist, with this embedder.
    pub async fn open_as(&self, name: &str, precision: Precision) -> Result<Bank, Error> {
        Bank::open(&self.settings.bank, self.embedder_as(name, precision)?.shared(), self.bank_options()).await
    }

    /// What the bank is opened with: what somebody named, else what serves the bank, else the default.
    pub async fn chosen(&self) -> Result<(String, Precision), Error> {
        let set = (self.settings.embedder.clone(), Precision::from(self.settings.precision));
        if self.settings.embedder_is_named {
            return Ok(set);
        }
        let serving = match Bank::serving_of(&self.settings.bank).await {
            Err(Error::NoBank { .. }) => None,
            serving => serving?,
        };
        Ok(serving.map_or(set, |state| self.as_served(&state.active)))
    }

    /// How to open an embedder that the bank names.
    pub fn as_served(&self, served: &ServedEmbedder) -> (String, Precision) {
        let set = Precision::from(self.settings.precision);
        (served.name.clone(), if self.settings.precision_is_named { set } else { served.precision })
    }

    /// Fetches the embedder's model if it is a local one and a file of it is missing.
    pub async fn pull_if_missing(&self) -> Result<Option<PullReport>, Error> {
        let (name, precision) = self.chosen().await?;
        let missing = match self.embedder_as(&name, precision) {
            Ok(NamedEmbedder::Local(local)) => local.check_installed().is_err(),
            Ok(NamedEmbedder::Fake(_) | NamedEmbedder::Clip(_) | NamedEmbedder::Remote(_)) => false,
            // A model without pins is named by its files.
            Err(Error::ModelMissing { .. }) => true,
            Err(e) => return Err(e),
        };
        // What is in a folder of the user's own cannot be fetched.
        if missing && known_models().any(|known| known == name) {
            return self.pull(&name, None).await.map(Some);
        }
        Ok(None)
    }

    /// Fetches a model.
    pub async fn pull(&self, model: &str, from: Option<std::path::PathBuf>) -> Result<PullReport, Error> {
        let options = PullOptions { model: model.to_owned(), model_dir: self.settings.model_dir.clone(), from };
        let (listener, cancel) = (self.display.listener(), self.interrupt.cancel().clone());
        let pulled = tokio::task::spawn_blocking(move || pull_model(&options, &listener, &cancel)).await;
        pulled.unwrap_or_else(|e| Err(Error::ModelFetch { model: model.to_owned(), reason: e.to_string() }))
    }

    /// What the settings say of a local model, by its name or folder.
    pub fn local_options(&self, model: &str) -> LocalOptions {
        let mut options = LocalOptions::new(model, &self.settings.model_dir);
        options.precision = self.settings.precision.into();
        options.device = self.settings.device;
        options
    }

    /// An embedder by its name, in the precision of the settings; its model is not loaded.
    pub fn named_embedder(&self, name: &str) -> Result<NamedEmbedder, Error> {
        self.embedder_as(name, self.settings.precision.into())
    }

    fn embedder_as(&self, name: &str, precision: Precision) -> Result<NamedEmbedder, Error> {
        let dimension = name.strip_prefix("fake:").and_then(|dimension| dimension.parse().ok());
        if let Some(dimension) = dimension.filter(|dimension| (1..=FAKE_DIMENSIONS).contains(dimension)) {
            return Ok(NamedEmbedder::Fake(FakeEmbedder::new(dimension)));
        }
        if let Some(model) = name.strip_prefix(remote::SCHEME) {
            return self.settings.remote.embedder(model).map(NamedEmbedder::Remote);
        }
        if let Some(folder) = name.strip_prefix(CLIP_SCHEME) {
            let model = LocalImageEmbedder::open(folder, precision)?;
            // Images are known by their path from the folder that holds the bank.
            let bank = &self.settings.bank;
            let bank = bank.canonicalize().or_else(|_| std::path::absolute(bank)).map_err(|source| Error::Io {
                action: "find",
                path: bank.clone(),
                source,
            })?;
            return ClipEmbedder::new(model, bank.parent().unwrap_or(&bank)).map(NamedEmbedder::Clip);
        }
        let mut options = self.local_options(name);
        options.precision = precision;
        match LocalEmbedder::open(options) {
            Err(Error::UnknownEmbedder { name, known }) => {
                let known = format!(
                    "{known}, a folder with a model's files (path:DIR), one with a CLIP model (clip:DIR), openai:MODEL with a section [remote] in embank.toml, \
                     fake:D with D from 1 to {FAKE_DIMENSIONS}"
                );
                Err(Error::UnknownEmbedder { name, known })
            }
            opened => opened.map(NamedEmbedder::Local),
        }
    }

    /// How to open the bank.
    pub fn bank_options(&self) -> BankOptions {
        BankOptions {
            store: StoreOptions { durability: self.settings.durability.into(), ..StoreOptions::default() },
            memory_limit: self.settings.memory_limit,
            listener: self.display.listener(),
            cancel: self.interrupt.cancel().clone(),
            ..BankOptions::default()
        }
    }
}
