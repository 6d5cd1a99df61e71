//! What "acknowledged" means on disk.
//!
//! Lance writes whole new files and renames them into place, but never syncs. That is safe against a killed process; against
//! a power cut only if the filesystem is synced, which [`Disk::acknowledge`] does.

use std::path::{Path, PathBuf};

use super::acknowledged::Acknowledged;
use crate::error::{Error, Result};

/// How much an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// A power cut. The default: one sync of the filesystem per acknowledged batch.
    #[default]
    PowerLoss,
    /// A crash of the process, not of the machine.
    ProcessCrash,
}

/// The filesystem that holds the bank.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    durability: Durability,
}

impl Disk {
    pub(crate) fn new(root: &Path, durability: Durability) -> Self {
        Self { root: root.to_owned(), durability }
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    /// Returns once everything written so far is on the medium, if that is asked for, and notes which versions that are.
    pub(crate) async fn acknowledge(&self) -> Result<()> {
        let (root, durability) = (self.root.clone(), self.durability);
        let synced = tokio::task::spawn_blocking(move || {
            // Before the sync: what another process commits during it may or may not be covered.
            let acknowledged = Acknowledged::observe(&root, durability)?;
            if durability == Durability::PowerLoss {
                sync_filesystem(&root)?;
            }
            acknowledged.write(&root)
        });
        synced.await.map_err(|e| Error::io("sync", &self.root)(std::io::Error::other(e)))??;
        if durability == Durability::PowerLoss {
            // Tests follow the order of commits and syncs by this line.
            tracing::trace!("synced");
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn sync_filesystem(root: &Path) -> Result<()> {
    let folder = std::fs::File::open(root).map_err(Error::io("open", root))?;
    rustix::fs::syncfs(&folder).map_err(|e| Error::io("sync", root)(e.into()))
}

/// Elsewhere there is no sync of one filesystem; `sync_all` on the folder and every file below it comes nearest.
#[cfg(not(target_os = "linux"))]
fn sync_filesystem(root: &Path) -> Result<()> {
    for entry in std::fs::read_dir(root).map_err(Error::io("read", root))? {
        let path = entry.map_err(Error::io("read", root))?.path();
        if path.is_dir() {
            sync_filesystem(&path)?;
        } else {
            std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", &path))?;
        }
    }
    Ok(())
}
