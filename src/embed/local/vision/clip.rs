//! CLIP as the embedder of a bank: images by their pixels, texts and questions by their words, all in one space.
//!
//! Must not know: tables.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::picture::{self, Picture};
use super::reference::ImageReference;
use super::{ImageDefect, LocalImageEmbedder, read_image};
use crate::embed::{Embedded, Embedder, EmbedderIdentity, TextKind, TokenCounter};
use crate::error::{Error, Result};

/// A CLIP model as the embedder of a bank, so that `a red bicycle` finds pictures of one.
///
/// What ingest made of an image is embedded by the image's pixels; every other passage, and every question, by its text.
/// Passages longer than CLIP's window of 77 tokens are cut by ingest, as for any embedder.
#[derive(Clone, Debug)]
pub struct ClipEmbedder {
    model: LocalImageEmbedder,
    home: PathBuf,
}

impl ClipEmbedder {
    /// `home` is the folder that holds the bank: images below it are known by their path from there.
    ///
    /// # Errors
    /// [`Error::NoTextTower`] for a model that knows images alone.
    pub fn new(model: LocalImageEmbedder, home: impl Into<PathBuf>) -> Result<Self> {
        // The tokens are part of the text tower.
        model.tokens()?;
        Ok(Self { model, home: home.into() })
    }

    /// One answer a text or image, in order.
    fn embed_now(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        let references: Vec<Option<ImageReference>> = match kind {
            TextKind::Passage => texts.iter().map(|text| ImageReference::of(text)).collect(),
            TextKind::Query => vec![None; texts.len()],
        };
        // All pictures before any product: a call that fails for one of them costs no more than their decoding.
        let named: Vec<&ImageReference> = references.iter().flatten().collect();
        let crops: Vec<Picture> = named.par_iter().map(|reference| self.crop(reference)).collect::<Result<_>>()?;
        let mut images = self.model.embed_crops(&crops)?.into_iter();

        let words = texts.iter().zip(&references).filter(|(_, reference)| reference.is_none());
        let words: Vec<String> = words.map(|(text, _)| text.clone()).collect();
        let mut words = self.model.embed_texts(&words)?.into_iter();
        let next = |reference: &Option<_>| if reference.is_some() { images.next() } else { words.next() };
        Ok(references.iter().filter_map(next).collect())
    }

    fn crop(&self, reference: &ImageReference) -> Result<Picture> {
        let path = self.home.join(&reference.source);
        let cropped = read_image(&path).and_then(|bytes| {
            if !reference.is_of(&bytes) {
                return Err(ImageDefect::Changed);
            }
            Ok(self.model.crop_of(&picture::decode(&bytes)?))
        });
        cropped.map_err(|defect| {
            let reason = format!("image {}", path.display());
            match &defect {
                // A file that is there and cannot be read now may be read later, say once fewer are open.
                ImageDefect::Unreadable(e) if e.kind() != ErrorKind::NotFound => self.failed(reason, defect),
                _ => {
                    let embedder = self.identity().name.clone();
                    Error::TextRefused { embedder, reason, source: Some(defect.into()) }
                }
            }
        })
    }

    fn failed(&self, reason: String, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::EmbedderFailed { embedder: self.identity().name.clone(), reason, source: Some(source.into()) }
    }
}

#[async_trait]
impl Embedder for ClipEmbedder {
    fn identity(&self) -> &EmbedderIdentity {
        self.model.identity()
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        Ok(self.model.tokens()?)
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        let (embedder, texts) = (self.clone(), texts.to_vec());
        let embedded = tokio::task::spawn_blocking(move || embedder.embed_now(kind, &texts)).await;
        embedded.unwrap_or_else(|e| Err(self.failed("its thread stopped".into(), e)))
    }
}
