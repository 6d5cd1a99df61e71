//! What a command works with: settings, the embedder, the bank, and where progress goes.
//!
//! Guarantees: the bank is opened only by commands that ask for it, and made only by those that may; no model is loaded
//! by opening. Must not know: any one command.

use std::sync::Arc;

use embank::embed::{Embedder, FakeEmbedder, LocalEmbedder, LocalOptions, PullOptions, PullReport};
use embank::embed::{known_models, pull_model};
use embank::{Bank, BankOptions, Error, StoreOptions};

use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Display;
use crate::settings::Settings;

/// Most dimensions of a fake embedder; wider than any published text model.
const FAKE_DIMENSIONS: usize = 16_384;

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
}

impl NamedEmbedder {
    fn shared(self) -> Arc<dyn Embedder> {
        match self {
            Self::Fake(fake) => Arc::new(fake),
            Self::Local(local) => Arc::new(local),
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
        Ok(self.named_embedder()?.shared())
    }

    /// Opens the bank, which must exist.
    pub async fn open(&self) -> Result<Bank, Error> {
        Bank::open(&self.settings.bank, self.embedder()?, self.bank_options()).await
    }

    /// Opens the bank, or makes it.
    pub async fn open_or_create(&self) -> Result<Bank, Error> {
        Bank::open_or_create(&self.settings.bank, self.embedder()?, self.bank_options()).await
    }

    /// Fetches the embedder's model if it is a local one and a file of it is missing.
    pub async fn pull_if_missing(&self) -> Result<Option<PullReport>, Error> {
        match self.named_embedder()? {
            NamedEmbedder::Local(local) if local.check_installed().is_err() => {
                self.pull(&self.settings.embedder, None).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Fetches a model.
    pub async fn pull(&self, model: &str, from: Option<std::path::PathBuf>) -> Result<PullReport, Error> {
        let options = PullOptions { model: model.to_owned(), model_dir: self.settings.model_dir.clone(), from };
        let (listener, cancel) = (self.display.listener(), self.interrupt.cancel().clone());
        let pulled = tokio::task::spawn_blocking(move || pull_model(&options, &listener, &cancel)).await;
        pulled.unwrap_or_else(|e| Err(Error::ModelFetch { model: model.to_owned(), reason: e.to_string() }))
    }

    /// A handle to a local model.
    pub fn local(&self, model: &str) -> Result<LocalEmbedder, Error> {
        LocalEmbedder::open(LocalOptions::new(model, &self.settings.model_dir))
    }

    fn named_embedder(&self) -> Result<NamedEmbedder, Error> {
        let name = self.settings.embedder.as_str();
        let dimension = name.strip_prefix("fake:").and_then(|dimension| dimension.parse().ok());
        if let Some(dimension) = dimension.filter(|dimension| (1..=FAKE_DIMENSIONS).contains(dimension)) {
            return Ok(NamedEmbedder::Fake(FakeEmbedder::new(dimension)));
        }
        if known_models().any(|known| known == name) {
            return self.local(name).map(NamedEmbedder::Local);
        }
        let fake = format!("fake:D with D from 1 to {FAKE_DIMENSIONS}");
        let known = known_models().map(str::to_owned).chain([fake]).collect::<Vec<_>>().join(", ");
        Err(Error::UnknownEmbedder { name: name.to_owned(), known })
    }

    fn bank_options(&self) -> BankOptions {
        BankOptions {
            store: StoreOptions { durability: self.settings.durability.into(), ..StoreOptions::default() },
            listener: self.display.listener(),
            cancel: self.interrupt.cancel().clone(),
            ..BankOptions::default()
        }
    }
}
