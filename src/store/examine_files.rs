//! A look at the files of a bank's tables from outside: versions that cannot be read, files that a version lacks, files that
//! belong to none, and what was set aside in mending. Changes nothing.
//!
//! Damage is found by the same look as when a bank is opened ([`TableFolder`]), so that what this names is what opening
//! mends. Must not know: what is done about it.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use lance::dataset::cleanup::{CleanupFileKind, CleanupPolicy};

use super::Store;
use super::examine::Inspection;
use super::inspect::{Part, TableFolder, Version};
use super::mend::{self, Mend};
use super::table::StoredTable;
use crate::clock::Timestamp;
use crate::error::{BoxError, Error, Result};

/// Files of a table that one look names at most; their number and bytes are those of all.
const NAMED: usize = 10_000;

/// A fragment whose files are not what its version says they are.
pub(crate) struct BrokenFragment {
    pub(crate) id: u64,
    pub(crate) why: BoxError,
    /// Whether opening the bank mends it: it sees ends and lengths, and not what is in the middle of a file.
    pub(crate) is_mended_by_opening: bool,
}

/// Files that no version of a table refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) bytes: u64,
}

impl Inspection {
    /// Fragments of a table whose files are missing or are not what the table says they are, and why.
    pub(crate) async fn broken_fragments(&self, table: &str) -> Result<Vec<BrokenFragment>> {
        let Some(stored) = self.tables.get(table) else { return Ok(Vec::new()) };
        let dataset = stored.dataset().await?;
        let version = Version::of(&dataset).await.map_err(|e| stored.error("look into", e))?;
        let mut flaws = TableFolder::new(self.root(), table).flaws(&version).await?;
        let mut broken = Vec::new();
        for fragment in dataset.get_fragments() {
            let id = fragment.id() as u64;
            if let Some(at) = flaws.iter().position(|flaw| flaw.part == Part::Rows { fragment: id }) {
                let why = flaws.swap_remove(at).to_string().into();
                broken.push(BrokenFragment { id, why, is_mended_by_opening: true });
            } else if let Err(error) = fragment.validate().await {
                broken.push(BrokenFragment { id, why: error.into(), is_mended_by_opening: false });
            }
        }
        Ok(broken)
    }

    /// Files of a table that none of its versions refers to and that are older than `before`: what writes left that failed or
    /// were killed before their commit. Those of indexes are not among them.
    pub(crate) async fn leftovers(&self, table: &str, before: Timestamp) -> Result<Leftovers> {
        let Some(stored) = self.tables.get(table) else { return Ok(Leftovers::default()) };
        let dataset = stored.dataset().await?;
        // Lance says what a clean-up that spares every version would remove; nothing is removed by asking.
        let policy = CleanupPolicy { before_version: Some(0), delete_unverified: true, ..CleanupPolicy::default() };
        let asked = dataset.cleanup(policy).with_max_candidate_files(NAMED).explain().await;
        let mut left = Leftovers::default();
        for file in asked.map_err(|e| stored.error("look for leftovers of", e))?.candidate_files {
            let Some(path) = self.below_root(stored, &file.path) else { continue };
            if file.kind == CleanupFileKind::Index || !is_older(&path, before) {
                continue;
            }
            left.files.push(path);
            left.bytes += file.size_bytes;
        }
        Ok(left)
    }

    /// Everything that was ever set aside, below the bank's directory.
    pub(crate) fn set_aside(&self) -> Result<Vec<PathBuf>> {
        mend::set_aside(self.root())
    }

    /// A path that Lance names, from its table or from the root of the disk, as one of the file system.
    fn below_root(&self, table: &StoredTable, path: &str) -> Option<PathBuf> {
        let folder = format!("{}.lance/", table.name());
        let below = path.rsplit_once(&folder).map_or(path, |(_, below)| below);
        let is_plain = below.split('/').all(|part| !part.is_empty() && part != "..");
        is_plain.then(|| self.root().join(folder).join(below))
    }
}

fn is_older(path: &std::path::Path, before: Timestamp) -> bool {
    // One that has gone meanwhile was another's.
    let Ok(modified) = std::fs::metadata(path).and_then(|data| data.modified()) else { return false };
    micros(modified).is_some_and(|modified| modified < before.0)
}

fn micros(moment: SystemTime) -> Option<i64> {
    i64::try_from(moment.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()
}

impl Store {
    /// Opens every table that is there, so that what can be mended by that is; those that every bank has were opened with
    /// it. Returns what was mended since the bank was opened.
    pub(crate) async fn mend_tables(&self) -> Result<Vec<Mend>> {
        for name in self.table_names().await? {
            self.connection.find(&name).await?;
        }
        Ok(self.mends())
    }

    /// Removes files that a look found to be of no version.
    pub(crate) async fn remove_leftovers(&self, files: &[PathBuf]) -> Result<()> {
        for file in files {
            self.fault_point("repair: before a leftover goes").await?;
            match std::fs::remove_file(file) {
                // It was removed by somebody else, which is as good.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", file)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
