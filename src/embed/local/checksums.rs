//! The checksums of files that nobody pinned, kept beside them so that naming a model stays cheap.
//!
//! Guarantees: a file is hashed again whenever its size or its time of change differ from the record. A record that cannot
//! be read counts as none, and one that cannot be written (a read-only folder) costs the hashing next time, never an error.
//! Must not know: which files make a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::files::sha256_of;
use crate::error::{Error, Result};

/// The record's name in the model's folder.
const RECORD: &str = ".embank-checksums.json";

/// What it means when a file is no longer the recorded one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum OnChange {
    /// It is damaged or exchanged: what was trusted first stays trusted.
    Refuse,
    /// It is another model now.
    Follow,
}

/// The record of one folder.
pub(super) struct Checksums {
    dir: PathBuf,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    sha256: String,
    #[serde(flatten)]
    seen: Seen,
}

/// The file as it was when it was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

impl Checksums {
    /// The record of `dir`, or an empty one.
    pub(super) fn of(dir: &Path) -> Self {
        let files = std::fs::read(dir.join(RECORD)).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Self { dir: dir.to_owned(), files: files.unwrap_or_default() }
    }

    /// The recorded checksum of a file, whatever the file is now.
    pub(super) fn recorded(&self, file: &str) -> Option<&str> {
        self.files.get(file).map(|entry| entry.sha256.as_str())
    }

    /// The checksum of a file as it is now, hashed only where it changed since it was recorded.
    ///
    /// # Errors
    /// [`Error::ChecksumMismatch`] where it is not the recorded one and that is to be refused; [`Error::Io`].
    pub(super) fn sha256(&mut self, file: &str, on_change: OnChange) -> Result<String> {
        let path = self.dir.join(file);
        let seen = Seen::of(&path)?;
        match self.files.get(file) {
            Some(entry) if entry.seen == seen => Ok(entry.sha256.clone()),
            Some(Entry { sha256: recorded, .. }) if on_change == OnChange::Refuse => {
                let found = sha256_of(&path)?;
                if *recorded != found {
                    return Err(Error::ChecksumMismatch { path, expected: recorded.clone(), found });
                }
                Ok(self.record(file, found, seen))
            }
            _ => Ok(self.record(file, sha256_of(&path)?, seen)),
        }
    }

    /// Hashes a file and records it, whatever was recorded before.
    pub(super) fn renew(&mut self, file: &str) -> Result<()> {
        self.files.remove(file);
        self.sha256(file, OnChange::Follow).map(drop)
    }

    fn record(&mut self, file: &str, sha256: String, seen: Seen) -> String {
        self.files.insert(file.to_owned(), Entry { sha256: sha256.clone(), seen });
        if let Err(error) = self.save() {
            tracing::debug!(dir = %self.dir.display(), %error, "checksums cannot be kept, they are computed each time");
        }
        sha256
    }

    /// Writes beside the goal and renames, so that a reader sees the old record or the new one.
    fn save(&self) -> std::io::Result<()> {
        let staged = self.dir.join(format!("{RECORD}.{}", std::process::id()));
        std::fs::write(&staged, serde_json::to_vec_pretty(&self.files)?)?;
        std::fs::rename(&staged, self.dir.join(RECORD)).inspect_err(|_| drop(std::fs::remove_file(&staged)))
    }
}

impl Seen {
    fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        let modified = metadata.modified().map_err(Error::io("read", path))?;
        // Before 1970 or after 2554: a clock that was wrong; equal to itself all the same.
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Ok(Self { bytes: metadata.len(), modified })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sha256 of `abc`, from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "abc").unwrap();
        dir
    }

    /// Other content, and a time of change that no clock gives twice.
    fn change(dir: &Path, content: &str) {
        let path = dir.join("file");
        std::fs::write(&path, content).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(7)).unwrap();
    }

    #[test]
    fn a_file_is_hashed_once_and_known_from_the_record_afterwards() {
        let dir = folder();
        assert_eq!(Checksums::of(dir.path()).sha256("file", OnChange::Follow).unwrap(), ABC);
        let record = dir.path().join(RECORD);
        // What the record says is believed while size and time are the recorded ones.
        let doctored = std::fs::read_to_string(&record).unwrap().replace("ba7816bf", "ffffffff");
        std::fs::write(&record, doctored).unwrap();
        assert!(Checksums::of(dir.path()).sha256("file", OnChange::Follow).unwrap().starts_with("ffffffff"));
    }

    #[test]
    fn a_changed_file_is_refused_or_followed() {
        let dir = folder();
        Checksums::of(dir.path()).sha256("file", OnChange::Refuse).unwrap();
        change(dir.path(), "abd");
        match Checksums::of(dir.path()).sha256("file", OnChange::Refuse) {
            Err(Error::ChecksumMismatch { path, expected, found }) => {
                assert_eq!((path, expected.as_str()), (dir.path().join("file"), ABC));
                assert_ne!(found, ABC);
            }
            other => panic!("{other:?}"),
        }
        let followed = Checksums::of(dir.path()).sha256("file", OnChange::Follow).unwrap();
        assert_ne!(followed, ABC);
        assert_eq!(Checksums::of(dir.path()).recorded("file"), Some(followed.as_str()));
    }

    #[test]
    fn a_file_that_was_only_touched_is_the_same_file() {
        let dir = folder();
        Checksums::of(dir.path()).sha256("file", OnChange::Refuse).unwrap();
        change(dir.path(), "abc");
        assert_eq!(Checksums::of(dir.path()).sha256("file", OnChange::Refuse).unwrap(), ABC);
    }

    #[test]
    fn a_damaged_record_counts_as_none_and_a_missing_file_is_an_error() {
        let dir = folder();
        std::fs::write(dir.path().join(RECORD), "{").unwrap();
        assert_eq!(Checksums::of(dir.path()).sha256("file", OnChange::Refuse).unwrap(), ABC);
        let missing = Checksums::of(dir.path()).sha256("other", OnChange::Follow);
        assert!(matches!(missing, Err(Error::Io { action: "read", .. })));
    }
}
