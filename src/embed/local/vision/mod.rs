//! Image models on this machine: CLIP, whose texts and images share a space, and DINOv2, which knows images alone.
//!
//! [`LocalImageEmbedder`] reads a model folder as it is published and turns files of pictures, and for CLIP texts, into
//! vectors. Runs on the processor. Guarantees: one answer an image, in order; a bad image costs itself alone; what changes a
//! vector is in the identity. Must not know: tables, documents.

mod blocks;
mod clip;
mod config;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod picture;
mod positions;
mod preprocess;
mod reference;
mod resample;
#[cfg(test)]
mod tests;
mod towers;
mod weights;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sha2::{Digest, Sha256};

pub use clip::ClipEmbedder;
pub(crate) use picture::facts as image_facts;
pub use picture::{ImageDefect, ImageFormat, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS};
pub(crate) use reference::ImageReference;

use super::catalog::{CONFIG, TOKENIZER, WEIGHTS};
use super::checksums::{Checksums, OnChange};
use super::files::{self, MAX_SMALL_BYTES};
use super::tokenize::{TokenizedText, Tokens};
use crate::embed::{Embedded, EmbedderIdentity, Pooling, Precision};
use crate::error::{Error, Result};
use crate::id::hex;
use crate::kernels::{Cpu, Number};
use crate::regular_file;
use config::VisionConfig;
use picture::Picture;
use preprocess::Preprocessor;
use weights::Towers;

/// Tokens computed at once, of texts or of images; as for texts alone, see `BATCH_TOKENS` of the text models.
const BATCH_TOKENS: usize = 4_096;

/// Where an image's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum ImageSource<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// In a file, which is read when its turn comes.
    Path(&'a Path),
}

/// An embedder of images that runs on this machine. Clones share the model.
///
/// The calls compute on the threads of the process's pool and return when they are done: from asynchronous code, call them
/// on a thread that may block.
#[derive(Clone)]
pub struct LocalImageEmbedder {
    inner: Arc<Inner>,
}

struct Inner {
    identity: EmbedderIdentity,
    config: VisionConfig,
    preprocessor: Preprocessor,
    /// `None` where the model knows images alone.
    tokens: Option<Arc<Tokens>>,
    weights: PathBuf,
    /// As it was when the model was opened.
    weights_sha256: String,
    cpu: Cpu,
    number: Number,
    /// `None` until the first use.
    towers: Mutex<Option<Arc<Towers>>>,
}

impl LocalImageEmbedder {
    /// Opens a folder with a published CLIP or DINOv2 model: `config.json`, `preprocessor_config.json`,
    /// `model.safetensors` and, for CLIP, `tokenizer.json`. Reads the small files and hashes the weights, which are part of the
    /// identity; once, where the folder can be written to. The weights are loaded for the first image or text.
    ///
    /// # Errors
    /// [`Error::ModelFormat`] naming the file that is missing, cannot be understood, or asks for what this release does not
    /// do; [`Error::InvalidSetting`] for [`Precision::F16`], which processors lack.
    pub fn open(folder: impl Into<PathBuf>, precision: Precision) -> Result<Self> {
        Self::open_on(folder.into(), precision, Cpu::best())
    }

    fn open_on(folder: PathBuf, precision: Precision, cpu: Cpu) -> Result<Self> {
        let number = match precision {
            Precision::F32 => Number::F32,
            Precision::Bf16 => Number::Bf16,
            Precision::F16 => {
                let reason = "f16 is for graphics processors; choose f32 or bf16".to_owned();
                return Err(Error::InvalidSetting { setting: "precision", reason });
            }
        };
        let weights = require_weights(&folder)?;
        let read = |name: &str| {
            let path = require(&folder, name)?;
            let content = regular_file::read(&path, MAX_SMALL_BYTES).map_err(Error::io("read", &path))?;
            Ok::<_, Error>((path, content))
        };
        let (config_path, json) = read(CONFIG)?;
        let config = VisionConfig::parse(&config_path, &json)?;
        let (path, json) = read("preprocessor_config.json")?;
        let preprocessor = Preprocessor::parse(&path, &json)?;
        check_pixels(&path, &config, &preprocessor)?;
        let weights_sha256 = Checksums::of(&folder).sha256(WEIGHTS, OnChange::Follow)?;

        let mut identity = EmbedderIdentity {
            name: config.name(),
            dimension: config.dimension(),
            normalised: true,
            pooling: Pooling::Cls,
            precision,
            max_tokens: 0,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            weights: format!("{weights_sha256} {}", config.fingerprint()),
            tokenizer: preprocessor.fingerprint(),
        };
        let tokens = match &config {
            VisionConfig::Dinov2(_) => None,
            VisionConfig::Clip { text, .. } => {
                let (path, json) = read(TOKENIZER)?;
                identity.max_tokens = text.window;
                identity.tokenizer = format!("{} {}", hex(&Sha256::digest(&json)), identity.tokenizer);
                Some(Arc::new(Tokens::parse(&path, &json, &identity)?))
            }
        };
        let inner = Inner {
            identity,
            config,
            preprocessor,
            tokens,
            weights,
            weights_sha256,
            cpu,
            number,
            towers: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What this embedder is; equal identities give interchangeable vectors, of images and texts alike.
    pub fn identity(&self) -> &EmbedderIdentity {
        &self.inner.identity
    }

    /// Whether texts can be embedded into the space of the images.
    pub fn has_text_tower(&self) -> bool {
        self.inner.tokens.is_some()
    }

    /// One vector an image, in order: `dimension` numbers of unit norm, or what is wrong with the image.
    ///
    /// # Errors
    /// Fails as a whole only where the model cannot be loaded.
    pub fn embed_images(&self, images: &[ImageSource<'_>]) -> Result<Vec<Result<Vec<f32>, ImageDefect>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let towers = self.towers()?;
        let mut answers = Vec::with_capacity(images.len());
        // Decoded in pieces: an image's crop is held while its piece is computed, its whole picture only while it is cropped.
        for images in images.chunks(self.images_at_once(&towers)) {
            let crops: Vec<_> = images.par_iter().map(|image| self.crop(*image)).collect();
            let mut vectors = self.image_vectors(&towers, crops.iter().flatten()).into_iter();
            answers.extend(crops.into_iter().map(|crop| crop.map(|_| vectors.next().unwrap_or_default())));
        }
        Ok(answers)
    }

    /// The answers for images of which only what the model sees is left.
    fn embed_crops(&self, crops: &[Picture]) -> Result<Vec<Embedded>> {
        if crops.is_empty() {
            return Ok(Vec::new());
        }
        let towers = self.towers()?;
        let tokens = towers.image.patches() + 1;
        let pieces = crops.chunks(self.images_at_once(&towers));
        let vectors = pieces.flat_map(|crops| self.image_vectors(&towers, crops.iter()));
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        Ok(vectors.map(|vector| Embedded { vector, tokens, truncated: false }).collect())
    }

    fn image_vectors<'a>(&self, towers: &Towers, crops: impl Iterator<Item = &'a Picture>) -> Vec<Vec<f32>> {
        let patch = self.inner.config.image().patch;
        let mut patches = Vec::new();
        crops.for_each(|crop| self.inner.preprocessor.append_patches(crop, patch, &mut patches));
        towers.image.embed(self.inner.cpu, &patches)
    }

    fn images_at_once(&self, towers: &Towers) -> usize {
        // One token more an image: the class.
        (BATCH_TOKENS / (towers.image.patches() + 1)).max(1)
    }

    /// One vector a text, in order, in the space of the images. What is longer than the window is cut and marked.
    ///
    /// # Errors
    /// [`Error::NoTextTower`] where the model knows images alone; else fails only where the model cannot be loaded or its
    /// tokenizer fails.
    pub fn embed_texts(&self, texts: &[String]) -> Result<Vec<Embedded>> {
        let tokens = self.tokens()?;
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let towers = self.towers()?;
        let tower = towers.text.as_ref().ok_or_else(|| self.no_texts())?;
        let mut answers = Vec::with_capacity(texts.len());
        for texts in texts.chunks((BATCH_TOKENS / self.inner.identity.max_tokens.max(1)).max(1)) {
            let tokenized = tokens.encode(texts.to_vec())?;
            let ids: Vec<&[u32]> = tokenized.iter().map(up_to_the_end).collect();
            if ids.iter().copied().flatten().any(|&id| id as usize >= tower.vocabulary()) {
                return Err(Error::ModelFormat {
                    path: self.inner.weights.clone(),
                    reason: format!("the tokenizer has ids beyond the model's {} words", tower.vocabulary()),
                    source: None,
                });
            }
            let vectors = tower.embed(self.inner.cpu, &ids);
            answers.extend(tokenized.iter().zip(vectors).map(|(text, vector)| Embedded {
                vector,
                tokens: u32::try_from(text.ids.len()).unwrap_or(u32::MAX),
                truncated: text.truncated,
            }));
        }
        Ok(answers)
    }

    /// Gives the weights back; the next image or text loads them again.
    pub fn unload(&self) {
        *self.inner.towers.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The weights, loaded now if they are not.
    fn towers(&self) -> Result<Arc<Towers>> {
        let inner = &self.inner;
        let mut towers = inner.towers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*towers {
            return Ok(Arc::clone(loaded));
        }
        // The file may have been replaced since it was hashed, and vectors are stored under that hash. Hashed while it is
        // read: whichever is slower decides how long a load takes. On a thread of its own, not in the pool: a thread of the
        // pool that waits here takes up other work, which could ask for this lock.
        let pixels = inner.preprocessor.crop_size();
        let (checked, loaded) = std::thread::scope(|scope| {
            let load = scope.spawn(|| weights::load(&inner.weights, &inner.config, pixels, inner.number));
            let checked = files::check_sha256(&inner.weights, &inner.weights_sha256);
            (checked, load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        checked?;
        Ok(Arc::clone(towers.insert(Arc::new(loaded?))))
    }

    /// The pixels of one image that the model sees.
    fn crop(&self, image: ImageSource<'_>) -> Result<Picture, ImageDefect> {
        let picture = match image {
            ImageSource::Bytes(bytes) => picture::decode(bytes)?,
            ImageSource::Path(path) => picture::decode(&read_image(path)?)?,
        };
        Ok(self.crop_of(&picture))
    }

    fn crop_of(&self, picture: &Picture) -> Picture {
        self.inner.preprocessor.crop(picture)
    }

    fn tokens(&self) -> Result<Arc<Tokens>> {
        self.inner.tokens.clone().ok_or_else(|| self.no_texts())
    }

    fn no_texts(&self) -> Error {
        Error::NoTextTower { model: self.inner.identity.name.clone() }
    }
}

impl std::fmt::Debug for LocalImageEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalImageEmbedder").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

/// The bytes of an image file, unless it is too large.
pub(crate) fn read_image(path: &Path) -> Result<Vec<u8>, ImageDefect> {
    let file = regular_file::open(path).map_err(ImageDefect::Unreadable)?;
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that there is more, however the file's size is stated.
    file.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes).map_err(ImageDefect::Unreadable)?;
    match bytes.len() as u64 {
        0..=MAX_IMAGE_BYTES => Ok(bytes),
        bytes => Err(ImageDefect::TooManyBytes { bytes, limit: MAX_IMAGE_BYTES }),
    }
}

/// A text's tokens up to the first one that ends texts: CLIP reads a text's vector off it, and sees nothing after it, which
/// matters where a text spells `<|endoftext|>` out.
fn up_to_the_end(text: &TokenizedText) -> &[u32] {
    let ids = text.ids.as_slice();
    let end = ids.iter().position(|id| Some(id) == ids.last()).unwrap_or(ids.len());
    ids.get(..=end).unwrap_or(ids)
}

/// Refuses an image processor whose pixels the model cannot take.
fn check_pixels(path: &Path, config: &VisionConfig, preprocessor: &Preprocessor) -> Result<()> {
    let (size, tower) = (preprocessor.crop_size(), config.image());
    let fits = match config {
        // Its positions are for one size alone.
        VisionConfig::Clip { .. } => (size.width, size.height) == (tower.image, tower.image),
        VisionConfig::Dinov2(_) => size.width.is_multiple_of(tower.patch) && size.height.is_multiple_of(tower.patch),
    };
    if fits {
        return Ok(());
    }
    let reason = format!(
        "it makes images of {} x {} pixels, config.json wants {} in patches of {}",
        size.width, size.height, tower.image, tower.patch
    );
    Err(Error::ModelFormat { path: path.to_owned(), reason, source: None })
}

/// The weights in a form that is read.
fn require_weights(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("pytorch_model.bin");
    if path.is_file() && !folder.join(WEIGHTS).is_file() {
        let reason = "weights in this form can hold programs and are not read; save the model again as safetensors, with \
                      `AutoModel.from_pretrained(folder).save_pretrained(new_folder)`";
        return Err(Error::ModelFormat { path, reason: reason.into(), source: None });
    }
    require(folder, WEIGHTS)
}

fn require(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Error::ModelFormat { path, reason: "it is missing".into(), source: None })
    }
}
