//! Where a model's files live, and whether they are the expected ones.
//!
//! `<model dir>/<model name>/{config.json,tokenizer.json,model.safetensors}`, or any folder of the same form. Must not know:
//! what is in the files, where they come from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::catalog::{CONFIG, TOKENIZER, WEIGHTS};
use crate::error::{Error, Result};
use crate::id::hex;
use crate::regular_file;

/// Bytes hashed or copied at a time.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

/// The most of a file other than the weights.
pub(super) const MAX_SMALL_BYTES: u64 = super::tokenizer::MAX_BYTES;

/// The files of one model on this machine.
#[derive(Clone, Debug)]
pub(crate) struct ModelFiles {
    model: String,
    dir: PathBuf,
}

impl ModelFiles {
    /// The files of `model` in its own folder `dir`, which need not exist.
    pub(crate) fn new(model: impl Into<String>, dir: PathBuf) -> Self {
        Self { model: model.into(), dir }
    }

    /// The model's own folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Fails with [`Error::ModelMissing`] unless every file is there.
    pub(crate) fn require(&self) -> Result<()> {
        match [CONFIG, TOKENIZER, WEIGHTS].iter().find(|file| !self.path(file).is_file()) {
            None => Ok(()),
            Some(missing) => Err(Error::ModelMissing {
                model: self.model.clone(),
                dir: self.dir.clone(),
                missing: (*missing).to_owned(),
            }),
        }
    }

    /// The content of a small file; and its path, for what is said about it later.
    pub(crate) fn read(&self, file: &str) -> Result<(PathBuf, Vec<u8>)> {
        let path = self.path(file);
        let content = regular_file::read(&path, MAX_SMALL_BYTES).map_err(Error::io("read", &path))?;
        Ok((path, content))
    }

    /// The same, if its checksum is right.
    pub(crate) fn read_verified(&self, file: &str, sha256: &str) -> Result<(PathBuf, Vec<u8>)> {
        let (path, content) = self.read(file)?;
        compare(&path, sha256, &hex(&Sha256::digest(&content)))?;
        Ok((path, content))
    }
}

/// A file's sha256 as hex, read in blocks.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut hasher = Sha256::new();
    loop {
        let read = file.read(&mut block).map_err(Error::io("read", path))?;
        match block.get(..read) {
            Some([]) | None => return Ok(hex(&hasher.finalize())),
            Some(bytes) => hasher.update(bytes),
        }
    }
}

/// Compares a file's sha256 with the expected one.
pub(crate) fn check_sha256(path: &Path, expected: &str) -> Result<()> {
    compare(path, expected, &sha256_of(path)?)
}

fn compare(path: &Path, expected: &str, found: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::ChecksumMismatch { path: path.to_owned(), expected: expected.to_owned(), found: found.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sha256 of `abc`, from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn checksums_are_the_published_sha256_over_any_number_of_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        check_sha256(&path, ABC).unwrap();
        // A million times `a`, from FIPS 180-2; here it takes two blocks.
        std::fs::write(&path, "a".repeat(1_000_000)).unwrap();
        let million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        check_sha256(&path, million).unwrap();
    }

    #[test]
    fn a_wrong_checksum_is_refused_with_file_expected_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "abcd").unwrap();
        match check_sha256(&path, ABC) {
            Err(Error::ChecksumMismatch { path: named, expected, found }) => {
                assert_eq!((named, expected.as_str()), (path, ABC));
                assert_ne!(found, ABC);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = ModelFiles::new("all-minilm-l6-v2", dir.path().to_owned());
        std::fs::write(files.path("config.json"), "{}").unwrap();
        match files.require() {
            Err(Error::ModelMissing { model, dir, missing }) => {
                assert_eq!((model.as_str(), missing.as_str()), ("all-minilm-l6-v2", "tokenizer.json"));
                assert_eq!(dir, files.dir());
            }
            other => panic!("{other:?}"),
        }
    }
}
