//! The file `embank.json` that makes a directory a bank, and its format version.
//!
//! It is written first and by rename, so a directory either is a bank of a known format or is not one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::faults::Faults;
use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// The marker's name.
pub(crate) const MARKER: &str = "embank.json";

/// Settings that a user may keep in the bank.
const SETTINGS: &str = "embank.toml";

/// The format that this release writes, and the newest that it reads. Raised by every change that an older release would
/// misread.
pub(crate) const FORMAT: u64 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u64,
    created_by: String,
    created_at: String,
}

/// Whether `root` is a bank that this release can use; reads only.
pub(crate) fn check(root: &Path) -> Result<()> {
    let marker = root.join(MARKER);
    let text = match std::fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(what_else(root)),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Err(what_else(root)),
        Err(error) => return Err(Error::io("read", marker)(error)),
    };
    let not_a_bank = |e: serde_json::Error| Error::NotABank {
        path: root.to_owned(),
        reason: format!("its {MARKER} is unreadable: {e}"),
    };
    let marker: Marker = serde_json::from_str(&text).map_err(not_a_bank)?;
    if marker.format > FORMAT {
        return Err(Error::NewerFormat { path: root.to_owned(), found: marker.format, supported: FORMAT });
    }
    Ok(())
}

/// Makes an empty or missing directory a bank.
pub(crate) fn create(root: &Path, now: Timestamp, faults: &Faults) -> Result<()> {
    std::fs::create_dir_all(root).map_err(Error::io("create", root))?;
    faults.point_now("bank: folder made")?;
    let marker = Marker {
        format: FORMAT,
        created_by: concat!("embank ", env!("CARGO_PKG_VERSION")).to_owned(),
        created_at: now.to_rfc3339(),
    };
    let path = root.join(MARKER);
    // A name of our own: two processes may create the bank at once, and then write the same.
    let draft = root.join(format!("{MARKER}.{}.tmp", std::process::id()));
    let text = format!("{:#}\n", serde_json::json!(marker));
    std::fs::write(&draft, text).map_err(Error::io("write", &draft))?;
    std::fs::File::open(&draft).and_then(|file| file.sync_all()).map_err(Error::io("sync", &draft))?;
    faults.point_now("bank: marker drafted")?;
    std::fs::rename(&draft, &path).map_err(Error::io("create", path))?;
    sync_folder(root)?;
    faults.point_now("bank: marker written")
}

/// Has the marker's name on the medium before any table is: tables without it are not a bank.
fn sync_folder(root: &Path) -> Result<()> {
    if cfg!(unix) {
        std::fs::File::open(root).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", root))?;
    }
    Ok(())
}

/// Why a directory without a marker is not a bank: there is nothing, or something else.
fn what_else(root: &Path) -> Error {
    let not_a_bank = |reason: &str| Error::NotABank { path: root.to_owned(), reason: reason.to_owned() };
    if root.exists() && !root.is_dir() {
        return not_a_bank("it is a file");
    }
    let Ok(mut entries) = std::fs::read_dir(root) else { return Error::NoBank { path: root.to_owned() } };
    // A draft of the marker is what a process that was killed while creating the bank leaves; settings may be laid there
    // before the bank is made.
    let ours = |name: &str| name.starts_with(MARKER) || name == SETTINGS;
    let foreign = entries.any(|entry| entry.is_ok_and(|e| !ours(&e.file_name().to_string_lossy())));
    if foreign { not_a_bank("it holds other files") } else { Error::NoBank { path: root.to_owned() } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_bank_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("bank");
        assert!(matches!(check(&root), Err(Error::NoBank { .. })));
        create(&root, Timestamp(0), &Faults::default()).unwrap();
        check(&root).unwrap();
    }

    #[test]
    fn other_directories_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "dear").unwrap();
        assert!(matches!(check(dir.path()), Err(Error::NotABank { .. })));
        assert!(matches!(check(&dir.path().join("thesis.txt")), Err(Error::NotABank { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_newer_format_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let newer = format!(r#"{{"format":{},"created_by":"embank 9","created_at":""}}"#, FORMAT + 1);
        std::fs::write(dir.path().join(MARKER), newer).unwrap();
        let error = check(dir.path()).unwrap_err();
        assert!(
            matches!(error, Error::NewerFormat { found, supported, .. } if found == FORMAT + 1 && supported == FORMAT)
        );
    }

    #[test]
    fn a_garbled_marker_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MARKER), "{").unwrap();
        assert!(matches!(check(dir.path()), Err(Error::NotABank { .. })));
    }
}
