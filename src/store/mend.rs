//! What is done about a table that lacks something: versions that a hard stop left unfinished are set aside, rows and
//! indexes that are gone are taken off the books. Each leaves the bank in a state that it had, or that a crash could leave,
//! and from there the ordinary steps fill it again.
//!
//! Guarantees: nothing is destroyed (manifests go to `set-aside/`); one process mends at a time, and looks again when it is
//! its turn, so nothing that another one wrote meanwhile is touched: what a living process has not finished has another
//! name. Must not know what the columns mean.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use lance::index::DatasetIndexExt;
use serde::Serialize;

use super::acknowledged::Acknowledged;
use super::faults::Faults;
use super::inspect::{Flaw, Part, TableFolder, Version};
use super::table::StoredTable;
use crate::error::{Error, Result};

/// Where manifests go that cannot be used; below it a folder for each table.
const SET_ASIDE: &str = "set-aside";

/// Held while something is mended.
const LOCK: &str = "embank.lock";

/// How many versions are gone back at most where it is not known what was acknowledged. Fewer are written between two
/// acknowledged batches; where this is too few, rows are taken off the books instead.
const UNKNOWN_BACK: usize = 64;

/// Damage that was met when a table was opened, and mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mend {
    /// The table.
    pub table: String,
    /// What was wrong, and what was done.
    #[serde(flatten)]
    pub kind: MendKind,
}

/// What was wrong with a table, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MendKind {
    /// The newest version could not be read. It was set aside, and the one before it opened.
    VersionUnreadable {
        /// The version's number.
        version: u64,
        /// Its manifest, below the table's folder.
        file: String,
    },
    /// A file of the newest version was damaged that an earlier one does not need. What is newer than that one, and was
    /// never acknowledged, was set aside.
    VersionIncomplete {
        /// The version's number.
        version: u64,
        /// The damaged file, below the table's folder.
        file: String,
        /// The version that opened.
        opened: u64,
    },
    /// Files with rows were damaged that were acknowledged. The rows were taken off the books; the next sync fills them
    /// again from what is left.
    RowsLost {
        /// Rows.
        rows: u64,
        /// The files, below the table's folder.
        files: Vec<String>,
    },
    /// An index lost a file and was taken off the books. Searches look at all vectors until the next sync builds one.
    IndexLost {
        /// The generation.
        generation: String,
        /// The file, below the table's folder.
        file: String,
    },
    /// The table was gone and was made anew, empty; the next sync fills it from what is left.
    TableLost,
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}: ", self.table)?;
        match &self.kind {
            MendKind::VersionUnreadable { version, file } => {
                write!(f, "version {version} cannot be read ({file}); it was set aside, the version before it opened")
            }
            MendKind::VersionIncomplete { version, file, opened } => {
                write!(f, "version {version} lacks {file}; version {opened} opened, what is newer was set aside")
            }
            MendKind::RowsLost { rows, files } => {
                write!(f, "{rows} rows are lost with {}; the next sync fills them again", files.join(", "))
            }
            MendKind::IndexLost { generation, file } => {
                write!(f, "the index of generation {generation} lacks {file}; the next sync builds one")
            }
            MendKind::TableLost => f.write_str("it was gone and was made anew; the next sync fills it again"),
        }
    }
}

/// One table to be mended.
pub(super) struct Mender<'a> {
    pub(super) root: &'a Path,
    pub(super) folder: TableFolder,
    pub(super) faults: &'a Faults,
}

impl Mender<'_> {
    /// Sets aside what cannot be opened, or should not be. Returns what was done.
    pub(super) async fn step_back(&self) -> Result<Vec<Mend>> {
        let mut mends = Vec::new();
        let (newest, flaws) = loop {
            let Some((number, path)) = self.folder.manifests()?.into_iter().next() else { return Ok(mends) };
            match self.folder.read(number, &path).await? {
                None => {}
                Some(Ok(version)) => {
                    let flaws = self.folder.flaws(&version).await?;
                    // What a clean-up of another process removed meanwhile belongs to a version that has been replaced.
                    if self.folder.manifests()?.first().is_some_and(|(newest, _)| *newest == number) {
                        break (version, flaws);
                    }
                }
                Some(Err(flaw)) => {
                    self.set_aside(&path)?;
                    mends.push(self.mend(MendKind::VersionUnreadable { version: number, file: flaw.file }));
                }
            }
        };
        let Some(lost) = flaws.into_iter().find(|flaw| matches!(flaw.part, Part::Rows { .. })) else {
            return Ok(mends);
        };
        let Some(opened) = self.last_intact(newest.number).await? else { return Ok(mends) };
        // Newest first: whatever is done by the time of a crash, the rest is found and done by the next one.
        for (number, path) in self.folder.manifests()? {
            if number > opened {
                self.set_aside(&path)?;
            }
        }
        mends.push(self.mend(MendKind::VersionIncomplete { version: newest.number, file: lost.file, opened }));
        Ok(mends)
    }

    /// Takes off the books what the newest version still lacks: it was acknowledged, and going back would lose more.
    pub(super) async fn go_on_without(&self, table: &StoredTable) -> Result<Vec<Mend>> {
        let failed = |e| table.error("mend", e);
        let dataset = table.dataset().await?;
        let version = Version::of(&dataset).await.map_err(failed)?;
        let flaws = self.folder.flaws(&version).await?;
        let mut mends = Vec::new();
        let (mut fragments, mut files) = (Vec::new(), Vec::new());
        for Flaw { part, file, .. } in &flaws {
            if let Part::Rows { fragment } = part {
                fragments.push(*fragment);
                files.push(file.clone());
            }
        }
        fragments.sort_unstable();
        fragments.dedup();
        if !fragments.is_empty() {
            let rows = version.rows_of(&fragments);
            let mend = self.mend(MendKind::RowsLost { rows, files });
            // A note first: it has everything compared again, whatever happens after the next line.
            self.note(version.number, &mend)?;
            table.drop_fragments(&dataset, fragments).await?;
            mends.push(mend);
        }
        let mut dataset = table.dataset().await?.as_ref().clone();
        for Flaw { part, file, .. } in flaws {
            let Part::Index { name } = part else { continue };
            if dataset.load_indices_by_name(&name).await.map_err(failed)?.is_empty() {
                continue;
            }
            dataset.drop_index(&name).await.map_err(failed)?;
            mends.push(self.mend(MendKind::IndexLost { generation: name, file }));
        }
        table.adopt(dataset);
        Ok(mends)
    }

    /// The newest version before this one that lacks no rows, and behind which nothing was acknowledged.
    async fn last_intact(&self, newest: u64) -> Result<Option<u64>> {
        let acknowledged = Acknowledged::read(self.root).version_of(&self.folder.name);
        let manifests = self.folder.manifests()?.into_iter().filter(|(number, _)| *number < newest);
        let back = acknowledged.map_or(UNKNOWN_BACK, |_| usize::MAX);
        for (number, path) in manifests.take(back) {
            if acknowledged.is_some_and(|acknowledged| number < acknowledged) {
                return Ok(None);
            }
            let Some(Ok(version)) = self.folder.read(number, &path).await? else { continue };
            let flaws = self.folder.flaws(&version).await?;
            if !flaws.iter().any(|flaw| matches!(flaw.part, Part::Rows { .. })) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn set_aside(&self, manifest: &Path) -> Result<()> {
        let name = manifest.file_name().unwrap_or_default().to_string_lossy();
        let to = self.free_name(&name)?;
        self.faults.point_now("mend: before a version is set aside")?;
        match std::fs::rename(manifest, &to) {
            // Lance's note of the newest version's number; it is made anew by the next commit.
            Ok(()) => match std::fs::remove_file(manifest.with_file_name("latest_version_hint.json")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove", manifest.with_file_name("latest_version_hint.json"))(error))
                }
                _ => Ok(()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("set aside", manifest)(error)),
        }
    }

    fn note(&self, version: u64, mend: &Mend) -> Result<()> {
        let path = self.free_name(&format!("version-{version}-rows-lost.json"))?;
        self.faults.point_now("mend: before lost rows are noted")?;
        std::fs::write(&path, format!("{:#}\n", serde_json::json!(mend))).map_err(Error::io("write", path))
    }

    /// A name below `set-aside/` that nothing has yet.
    fn free_name(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(SET_ASIDE).join(&self.folder.name);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut path = folder.join(name);
        for number in 2.. {
            if !path.exists() {
                break;
            }
            path = folder.join(format!("{name}.{number}"));
        }
        Ok(path)
    }

    fn mend(&self, kind: MendKind) -> Mend {
        Mend { table: self.folder.name.clone(), kind }
    }
}

/// Everything that was ever set aside, below the bank's directory.
pub(super) fn set_aside(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in entries(&root.join(SET_ASIDE))? {
        for file in entries(&folder)? {
            found.push(file.strip_prefix(root).unwrap_or(&file).to_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.path()).map_err(Error::io("read", folder))).collect()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("read", folder)(error)),
    }
}

/// Waits for its turn; others wait until the file is dropped.
pub(super) async fn lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let locking = tokio::task::spawn_blocking(move || {
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io("create", &path))?;
        file.lock().map_err(Error::io("lock", path))?;
        Ok(file)
    });
    locking.await.map_err(|e| Error::io("lock", root)(std::io::Error::other(e)))?
}
