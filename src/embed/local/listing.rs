//! What there is to choose from: the known models, and which of them are on this machine.

use std::path::{Path, PathBuf};

use super::catalog;
use super::files::ModelFiles;
use crate::embed::Pooling;

/// A known model, as it is listed for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedModel {
    /// What it is called here.
    pub name: &'static str,
    /// Its repository on the Hugging Face hub, `owner/name`.
    pub repo: &'static str,
    /// Length of every vector.
    pub dimension: usize,
    /// The window, in tokens, special tokens included.
    pub max_tokens: usize,
    /// How token states become one vector.
    pub pooling: Pooling,
    /// Whether the files' checksums are known to this release. Of a model whose are not, those of the files that came
    /// first count.
    pub pinned: bool,
    /// Its folder, whether it is there or not.
    pub dir: PathBuf,
    /// Bytes of its files on this machine, if all of them are here.
    pub bytes: Option<u64>,
}

/// All known models. Looks at the sizes of files, reads none.
pub fn list_models(model_dir: &Path) -> impl Iterator<Item = ListedModel> {
    let known = catalog::known_models().filter_map(|name| catalog::find(name).ok());
    known.map(move |model| {
        let dir = model_dir.join(model.name);
        let files = ModelFiles::new(model.name, dir.clone());
        let size = |file: &str| std::fs::metadata(files.path(file)).map_or(0, |found| found.len());
        let sizes = || [catalog::CONFIG, catalog::TOKENIZER, catalog::WEIGHTS].map(size).iter().sum();
        ListedModel {
            name: model.name,
            repo: model.repo,
            dimension: model.dimension,
            max_tokens: model.max_tokens,
            pooling: model.pooling,
            pinned: model.pins.is_some(),
            bytes: files.require().is_ok().then(sizes),
            dir,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_here_once_all_its_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let listed = || list_models(dir.path()).find(|model| model.name == "all-minilm-l6-v2").unwrap();
        std::fs::create_dir(&listed().dir).unwrap();
        for (file, bytes) in [("config.json", None), ("tokenizer.json", None), ("model.safetensors", Some(3))] {
            std::fs::write(listed().dir.join(file), "x").unwrap();
            assert_eq!(listed().bytes, bytes, "{file}");
        }
        let model = listed();
        assert_eq!((model.dimension, model.max_tokens, model.pooling, model.pinned), (384, 256, Pooling::Mean, true));
    }
}
