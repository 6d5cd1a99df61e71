//! A model as a user names it: one of the catalog, or a folder of its own. What it is, where its files are, and how they
//! become a tokenizer and an encoder.
//!
//! Guarantees: a model is named from the catalog's pins, or from the checksums of its files; nothing is used before its
//! files were found to be those that named it. Must not know: threads, when a model is needed.

use std::path::{Path, PathBuf};

use super::catalog::{self, CONFIG, KnownModel, Pins, TOKENIZER, WEIGHTS};
use super::checksums::{Checksums, OnChange};
use super::config::BertConfig;
use super::encoder::{Encoder, Processor};
use super::files::{MAX_SMALL_BYTES, ModelFiles, check_sha256};
use super::folder::ModelFolder;
use super::safetensors::Safetensors;
use super::tokenize::Tokens;
use super::weights;
use crate::embed::{EmbedderIdentity, Pooling, Precision};
use crate::error::{Error, Result};
use crate::regular_file;

/// Says that what follows is a folder, where it could be taken for a name.
const PATH_SCHEME: &str = "path:";

/// One model and its files.
#[derive(Clone, Debug)]
pub(crate) struct ModelSource {
    /// In 32 bits.
    identity: EmbedderIdentity,
    files: ModelFiles,
    pins: Option<&'static Pins>,
    lower_case: bool,
}

impl ModelSource {
    /// The model of a name in the catalog, or in a folder: `path:models/mine`, `./mine`, `/opt/mine`.
    ///
    /// A pinned model is named without looking at the disk; of another one the small files are read, and the large ones
    /// hashed where that has not been done. `pooling` is for folders that do not name one.
    ///
    /// # Errors
    /// [`Error::UnknownEmbedder`]; for a model that is not pinned also [`Error::ModelMissing`],
    /// [`Error::ModelFormat`] naming what in the folder is not supported, [`Error::ChecksumMismatch`] where a pulled file
    /// is no longer the one that was pulled.
    pub(crate) fn find(name_or_path: &str, model_dir: &Path, pooling: Option<Pooling>) -> Result<Self> {
        match folder_named_by(name_or_path) {
            Some(folder) => Self::in_folder(&folder, pooling),
            None => Self::known(catalog::find(name_or_path)?, model_dir),
        }
    }

    /// A model of the catalog, in its folder below `model_dir`.
    pub(super) fn known(model: &'static KnownModel, model_dir: &Path) -> Result<Self> {
        let files = ModelFiles::new(model.name, model_dir.join(model.name));
        let (weights, tokenizer) = match &model.pins {
            Some(pins) => (pins.weights.sha256.to_owned(), pins.tokenizer.sha256.to_owned()),
            None => {
                files.require()?;
                let (path, json) = files.read(CONFIG)?;
                let config = BertConfig::parse(&path, &json)?;
                let mut checksums = Checksums::of(files.dir());
                // What was pulled first is what is trusted.
                let weights = checksums.sha256(WEIGHTS, OnChange::Refuse)?;
                (unpinned(&weights, &config), checksums.sha256(TOKENIZER, OnChange::Refuse)?)
            }
        };
        let identity = EmbedderIdentity {
            name: model.name.to_owned(),
            dimension: model.dimension,
            normalised: true,
            pooling: model.pooling,
            precision: Precision::F32,
            max_tokens: model.max_tokens,
            query_prefix: model.query_prefix.to_owned(),
            passage_prefix: model.passage_prefix.to_owned(),
            weights,
            tokenizer,
        };
        Ok(Self { identity, files, pins: model.pins.as_ref(), lower_case: false })
    }

    fn in_folder(path: &Path, pooling: Option<Pooling>) -> Result<Self> {
        let known = path.file_name().and_then(|name| name.to_str()).and_then(|name| catalog::find(name).ok());
        let folder = ModelFolder::open(path, pooling, known)?;
        let mut checksums = Checksums::of(&folder.dir);
        let weights = checksums.sha256(WEIGHTS, OnChange::Follow)?;
        let tokenizer = checksums.sha256(TOKENIZER, OnChange::Follow)?;
        let ModelFolder { dir, config, .. } = folder;
        // Not the folder's name: a model that is moved stays the same one.
        let (layers, width) = (config.num_hidden_layers, config.hidden_size);
        let name = format!("{}-{layers}x{width}", config.architecture.name());
        let identity = EmbedderIdentity {
            dimension: width,
            normalised: folder.normalised,
            pooling: folder.pooling,
            precision: Precision::F32,
            max_tokens: folder.max_tokens,
            query_prefix: folder.query_prefix,
            passage_prefix: folder.passage_prefix,
            weights: unpinned(&weights, &config),
            tokenizer,
            name: name.clone(),
        };
        Ok(Self { identity, files: ModelFiles::new(name, dir), pins: None, lower_case: folder.lower_case })
    }

    /// What the embedder of this model is.
    pub(crate) fn identity(&self, precision: Precision) -> EmbedderIdentity {
        EmbedderIdentity { precision, ..self.identity.clone() }
    }

    /// Where its files are.
    pub(crate) fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// Whether its checksums are the catalog's; else they are those of the files that were found first.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// [`Error::ModelMissing`], [`Error::ChecksumMismatch`], [`Error::ModelFormat`].
    pub(super) fn tokens(&self) -> Result<Tokens> {
        self.files.require()?;
        let (path, json) = self.files.read_verified(TOKENIZER, &self.identity.tokenizer)?;
        let tokens = Tokens::parse(&path, &json, &self.identity)?;
        if self.lower_case && !tokens.ignore_case() {
            let reason = "do_lower_case is set for this model, and the tokenizer tells cases apart".to_owned();
            return Err(Error::ModelFormat { path, reason, source: None });
        }
        Ok(tokens)
    }

    /// The model's configuration, if it is the one that named the model.
    ///
    /// # Errors
    /// [`Error::ModelMissing`], [`Error::ChecksumMismatch`], [`Error::ModelFormat`].
    pub(super) fn config(&self) -> Result<BertConfig> {
        self.files.require()?;
        let (path, json) = match self.pins {
            Some(pins) => self.files.read_verified(CONFIG, pins.config.sha256)?,
            None => self.files.read(CONFIG)?,
        };
        let config = BertConfig::parse(&path, &json)?;
        let same_architecture = self.pins.is_some() || self.identity.weights.ends_with(&config.fingerprint());
        let fits = config.hidden_size == self.identity.dimension && config.max_tokens() >= self.identity.max_tokens;
        if !same_architecture || !fits {
            return Err(Error::ModelFormat { path, reason: "it describes another model".into(), source: None });
        }
        Ok(config)
    }

    /// Loads the encoder.
    ///
    /// # Errors
    /// Those of [`config`](Self::config); [`Error::InvalidSetting`] for a precision that the processor does not have.
    pub(super) fn load(&self, precision: Precision, processor: &Processor) -> Result<Encoder> {
        let config = self.config()?;
        let path = self.files.path(WEIGHTS);
        let sha256 = self.identity.weights.split(' ').next().unwrap_or_default();
        // Hashed while it is read: whichever is slower decides how long a load takes.
        std::thread::scope(|scope| {
            let check = scope.spawn(|| check_sha256(&path, sha256));
            let encoder = weights::load(&path, &config, &self.identity(precision), processor);
            check.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            encoder
        })
    }
}

/// Whether a file that nobody pinned is at all what it should be; looked at before it is trusted for good.
///
/// # Errors
/// [`Error::ModelFormat`], [`Error::Io`].
pub(super) fn check_plausible(model: &KnownModel, file: &str, path: &Path) -> Result<()> {
    let refuse = |reason: &str, source| Error::ModelFormat { path: path.to_owned(), reason: reason.to_owned(), source };
    if file == WEIGHTS {
        return Safetensors::open(path)
            .map(drop)
            .map_err(|e| refuse("not a safetensors file, or a damaged one", Some(e)));
    }
    let json = regular_file::read(path, MAX_SMALL_BYTES).map_err(Error::io("read", path))?;
    if file == CONFIG {
        let config = BertConfig::parse(path, &json)?;
        let fits = config.hidden_size == model.dimension && config.max_tokens() >= model.max_tokens;
        return if fits { Ok(()) } else { Err(refuse("it describes another model", None)) };
    }
    let parsed: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(&json);
    parsed.map(drop).map_err(|e| refuse("not a tokenizer that this release can read", Some(e.into())))
}

/// How the weights of a model without pins are told apart: two configurations over the same weights are two models.
fn unpinned(sha256: &str, config: &BertConfig) -> String {
    format!("{sha256} {}", config.fingerprint())
}

/// The folder that is meant, if it is one and not a name.
fn folder_named_by(name_or_path: &str) -> Option<PathBuf> {
    if let Some(path) = name_or_path.strip_prefix(PATH_SCHEME) {
        return Some(PathBuf::from(path));
    }
    let is_path = name_or_path.contains(std::path::is_separator) || name_or_path == "." || name_or_path == "..";
    let path = PathBuf::from(name_or_path);
    // `BAAI/bge-m3` is the name of a repository, unless there is such a folder.
    let is_repo = catalog::find(name_or_path).is_ok() && !path.is_dir();
    (is_path && !is_repo).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::*;

    /// The tiny model in a folder as sentence-transformers writes it.
    fn folder(dir: &Path) -> PathBuf {
        let folder = dir.join("mine");
        std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
        let write = |file: &str, content: &[u8]| std::fs::write(folder.join(file), content).unwrap();
        write("config.json", tiny::CONFIG.as_bytes());
        write("tokenizer.json", tiny::TOKENIZER.as_bytes());
        write("model.safetensors", &tiny::safetensors(&tiny::tensors()));
        let modules = br#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]"#;
        write("modules.json", modules);
        write("1_Pooling/config.json", br#"{"pooling_mode": "mean"}"#);
        folder
    }

    fn find(folder: &Path) -> Result<ModelSource> {
        ModelSource::find(folder.to_str().unwrap(), Path::new("models"), None)
    }

    #[test]
    fn names_and_folders_are_told_apart() {
        for name in ["all-minilm-l6-v2", "BAAI/bge-m3", "bge-m3"] {
            assert_eq!(folder_named_by(name), None, "{name}");
        }
        for (path, folder) in [("path:mine", "mine"), ("./mine", "./mine"), ("/opt/mine", "/opt/mine"), (".", ".")] {
            assert_eq!(folder_named_by(path), Some(PathBuf::from(folder)), "{path}");
        }
    }

    #[test]
    fn a_pinned_model_is_named_without_its_files_and_one_without_pins_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pinned = ModelSource::find("all-minilm-l6-v2", dir.path(), None).unwrap();
        assert!(pinned.is_pinned());
        assert_eq!(pinned.identity(Precision::F32).weights.len(), 64);
        match ModelSource::find("bge-small-en-v1.5", dir.path(), None) {
            Err(Error::ModelMissing { model, .. }) => assert_eq!(model, "bge-small-en-v1.5"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_that_is_moved_is_the_same_model_and_another_configuration_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let identity = find(&folder).unwrap().identity(Precision::F32);
        assert_eq!((identity.name.as_str(), identity.dimension, identity.normalised), ("bert-2x8", 8, false));
        let moved = dir.path().join("moved");
        std::fs::rename(&folder, &moved).unwrap();
        assert_eq!(find(&moved).unwrap().identity(Precision::F32), identity);
        let other = tiny::CONFIG.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 4");
        assert_ne!(other, tiny::CONFIG);
        std::fs::write(moved.join("config.json"), other).unwrap();
        assert_ne!(find(&moved).unwrap().identity(Precision::F32).id(), identity.id());
    }

    #[test]
    fn weights_that_change_after_the_model_was_named_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let source = find(&folder).unwrap();
        let processor = Processor::Cpu(crate::kernels::Cpu::best());
        assert!(source.load(Precision::F32, &processor).is_ok());
        let mut tensors = tiny::tensors();
        tensors.get_mut("embeddings.LayerNorm.bias").unwrap().1[0] += 1.0;
        std::fs::write(folder.join("model.safetensors"), tiny::safetensors(&tensors)).unwrap();
        let changed = source.load(Precision::F32, &processor).map(drop);
        assert!(matches!(changed, Err(Error::ChecksumMismatch { .. })), "{changed:?}");
    }

    #[test]
    fn a_tokenizer_that_keeps_case_is_refused_where_the_model_wants_lower_case() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        std::fs::write(folder.join("sentence_bert_config.json"), r#"{"do_lower_case": true}"#).unwrap();
        assert!(find(&folder).unwrap().tokens().is_ok());
        let keeps_case = tiny::TOKENIZER.replace("\"lowercase\": true", "\"lowercase\": false");
        std::fs::write(folder.join("tokenizer.json"), keeps_case).unwrap();
        match find(&folder).unwrap().tokens().map(drop) {
            Err(Error::ModelFormat { reason, .. }) => assert!(reason.contains("tells cases apart"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
