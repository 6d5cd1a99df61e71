//! What a version of a table lacks on disk: a manifest that cannot be read, a file that is gone, empty or cut short.
//!
//! A hard stop of the machine leaves names without contents. Lance's files end in a mark, and manifests know the sizes of
//! data and index files, so that a look at the end of each file tells, without reading what is in the middle. Reads only.
//! Must not know: what is done about it, what the columns mean.

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance::io::ObjectStore;
use lance_file::format::MAGIC;
use lance_table::format::{DeletionFile, DeletionFileType, Fragment, IndexMetadata};
use lance_table::io::commit::{ManifestLocation, ManifestNamingScheme, VERSIONS_DIR};
use lance_table::io::deletion::{read_deletion_file, relative_deletion_file_path};
use lance_table::io::manifest::{read_manifest, read_manifest_indexes};

use crate::error::{Error, Result};

/// Fragments whose files are looked into when a table is opened, the newest ones; of the others it is enough that they
/// are there and not too short. More are hardly written between two acknowledged states.
const LOOKED_INTO: usize = 256;

/// The mark at both ends of an Arrow file, which a list of deleted rows is.
const ARROW_MARK: &[u8] = b"ARROW1";

/// Something that a version lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) table: String,
    pub(super) version: u64,
    pub(super) part: Part,
    /// Relative to the table's folder.
    pub(super) file: String,
    pub(super) reason: &'static str,
}

/// What the file is to its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The version itself.
    Manifest,
    /// Rows of a fragment, or the list of those deleted from it.
    Rows { fragment: u64 },
    /// The index of this name.
    Index { name: String },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}, version {}: {} {}", self.table, self.version, self.file, self.reason)
    }
}

/// A table's folder, whether or not the table can be opened.
#[derive(Clone, Debug)]
pub(super) struct TableFolder {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// What a manifest says of the files that its version consists of.
pub(super) struct Version {
    pub(super) number: u64,
    /// The manifest's name.
    manifest: String,
    fragments: Arc<Vec<Fragment>>,
    indexes: Arc<Vec<IndexMetadata>>,
}

impl Version {
    pub(super) async fn of(dataset: &Dataset) -> lance::Result<Self> {
        let manifest = dataset.manifest_location().path.filename().unwrap_or_default().to_owned();
        let (number, fragments) = (dataset.version_id(), dataset.manifest().fragments.clone());
        Ok(Self { number, manifest, fragments, indexes: dataset.load_indices().await? })
    }

    /// Rows of these fragments.
    pub(super) fn rows_of(&self, numbers: &[u64]) -> u64 {
        let named = self.fragments.iter().filter(|fragment| numbers.contains(&fragment.id));
        named.map(|fragment| fragment.num_rows().unwrap_or(0) as u64).sum()
    }
}

/// A file that should be there.
struct Expected {
    part: Part,
    file: String,
    /// Its size, where it is known; 1 otherwise.
    bytes: u64,
    /// What it ends with, if it is to be looked into.
    mark: &'static [u8],
}

impl TableFolder {
    pub(super) fn new(root: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), path: root.join(format!("{name}.lance")) }
    }

    pub(super) fn has_versions(&self) -> bool {
        let entries = std::fs::read_dir(self.path.join(VERSIONS_DIR)).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|entry| ManifestNamingScheme::detect_scheme(&entry.file_name().to_string_lossy()).is_some())
    }

    /// The versions that have a manifest, newest first, with its path.
    pub(super) fn manifests(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.path.join(VERSIONS_DIR);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", folder)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let version = ManifestNamingScheme::detect_scheme(&name).and_then(|scheme| scheme.parse_version(&name));
            found.extend(version.map(|version| (version, entry.path())));
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Why the newest version cannot be read, if it cannot.
    pub(super) async fn newest_flaw(&self) -> Result<Option<Flaw>> {
        let Some((number, path)) = self.manifests()?.into_iter().next() else { return Ok(None) };
        Ok(self.read(number, &path).await?.and_then(std::result::Result::err))
    }

    /// Reads a manifest; `None` if it is gone, the flaw if it cannot be understood.
    pub(super) async fn read(&self, number: u64, path: &Path) -> Result<Option<std::result::Result<Version, Flaw>>> {
        // What the system refuses, such as permission, is an error and no damage.
        match std::fs::File::open(path) {
            Ok(_) => {}
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let flaw = |reason| Flaw {
            table: self.name.clone(),
            version: number,
            part: Part::Manifest,
            file: format!("{VERSIONS_DIR}/{name}"),
            reason,
        };
        let (store, base) = ObjectStore::from_uri(self.uri()?).await.map_err(|e| self.failed(e))?;
        let scheme = ManifestNamingScheme::detect_scheme(&name).unwrap_or(ManifestNamingScheme::V2);
        let location = ManifestLocation {
            version: number,
            path: scheme.manifest_path(&base, number),
            size: None,
            naming_scheme: scheme,
            e_tag: None,
            identity: None,
        };
        let manifest = match read_manifest(&store, &location.path, None).await {
            Ok(manifest) => manifest,
            Err(error) if is_refusal(&error) => return Err(self.failed(error)),
            Err(_) => return Ok(Some(Err(flaw("cannot be read")))),
        };
        let indexes = match read_manifest_indexes(&store, &location, &manifest).await {
            Ok(indexes) => indexes,
            Err(error) if is_refusal(&error) => return Err(self.failed(error)),
            Err(_) => return Ok(Some(Err(flaw("names indexes that cannot be read")))),
        };
        let fragments = manifest.fragments.clone();
        Ok(Some(Ok(Version { number, manifest: name, fragments, indexes: indexes.into() })))
    }

    /// What a version lacks.
    pub(super) async fn flaws(&self, version: &Version) -> Result<Vec<Flaw>> {
        let bound = oldest_looked_into(&version.fragments);
        // Lance opens a manifest of nothing but zeros as an empty table.
        let file = format!("{VERSIONS_DIR}/{}", version.manifest);
        let mut expected = vec![Expected { part: Part::Manifest, file, bytes: 1, mark: MAGIC }];
        let mut lists = Vec::new();
        for fragment in version.fragments.iter() {
            let mark = if fragment.id >= bound { MAGIC.as_slice() } else { &[] };
            let part = Part::Rows { fragment: fragment.id };
            for file in &fragment.files {
                let bytes = file.file_size_bytes.get().map_or(1, Into::into);
                expected.push(Expected { part: part.clone(), file: format!("data/{}", file.path), bytes, mark });
            }
            let Some(list) = &fragment.deletion_file else { continue };
            let file = relative_deletion_file_path(fragment.id, list);
            match list.file_type {
                DeletionFileType::Array => {
                    expected.push(Expected { part, file, bytes: 1, mark: ARROW_MARK });
                }
                DeletionFileType::Bitmap => {
                    expected.push(Expected { part, file, bytes: 1, mark: &[] });
                    lists.push((fragment.id, list.clone()));
                }
            }
        }
        for index in version.indexes.iter() {
            let part = Part::Index { name: index.name.clone() };
            for file in index.files.iter().flatten() {
                let path = format!("_indices/{}/{}", index.uuid, file.path);
                expected.push(Expected { part: part.clone(), file: path, bytes: file.size_bytes, mark: MAGIC });
            }
        }
        let (folder, number) = (self.clone(), version.number);
        let looking = tokio::task::spawn_blocking(move || folder.missing(number, expected));
        let mut flaws = looking.await.map_err(|e| Error::io("read", &self.path)(std::io::Error::other(e)))??;
        flaws.extend(self.unreadable_lists(number, lists, &flaws).await?);
        Ok(flaws)
    }

    fn missing(&self, version: u64, expected: Vec<Expected>) -> Result<Vec<Flaw>> {
        let mut flaws = Vec::new();
        for Expected { part, file, bytes, mark } in expected {
            let path = self.path.join(&file);
            if let Some(reason) = what_is_wrong(&path, bytes, mark).map_err(Error::io("read", path))? {
                flaws.push(Flaw { table: self.name.clone(), version, part, file, reason });
            }
        }
        Ok(flaws)
    }

    /// Bitmaps of deleted rows have neither a mark nor a known size: they are read. Few tables have any.
    async fn unreadable_lists(
        &self,
        version: u64,
        lists: Vec<(u64, DeletionFile)>,
        known: &[Flaw],
    ) -> Result<Vec<Flaw>> {
        let mut flaws = Vec::new();
        if lists.is_empty() {
            return Ok(flaws);
        }
        let (store, base) = ObjectStore::from_uri(self.uri()?).await.map_err(|e| self.failed(e))?;
        for (fragment, list) in lists {
            let file = relative_deletion_file_path(fragment, &list);
            if known.iter().any(|flaw| flaw.file == file) {
                continue;
            }
            if let Err(error) = read_deletion_file(fragment, &list, &base, &store).await {
                if is_refusal(&error) {
                    return Err(self.failed(error));
                }
                let (table, part) = (self.name.clone(), Part::Rows { fragment });
                flaws.push(Flaw { table, version, part, file, reason: "cannot be read" });
            }
        }
        Ok(flaws)
    }

    fn uri(&self) -> Result<&str> {
        self.path.to_str().ok_or_else(|| self.failed("its path is not valid UTF-8"))
    }

    pub(super) fn failed(&self, source: impl Into<crate::error::BoxError>) -> Error {
        Error::Store { action: "look into", table: self.name.clone(), source: source.into() }
    }
}

/// The lowest number of a fragment that is looked into.
fn oldest_looked_into(fragments: &[Fragment]) -> u64 {
    let mut numbers: Vec<_> = fragments.iter().map(|fragment| fragment.id).collect();
    numbers.sort_unstable();
    numbers.iter().rev().nth(LOOKED_INTO).map_or(0, |number| number + 1)
}

/// Why the file cannot be what was written, if it cannot.
fn what_is_wrong(path: &Path, bytes: u64, mark: &[u8]) -> std::io::Result<Option<&'static str>> {
    let found = match std::fs::metadata(path) {
        Ok(data) => data.len(),
        Err(error) if is_gone(&error) => return Ok(Some("is missing")),
        Err(error) => return Err(error),
    };
    if found == 0 {
        return Ok(Some("is empty"));
    }
    if found < bytes.max(mark.len() as u64) {
        return Ok(Some("is cut short"));
    }
    if mark.is_empty() {
        return Ok(None);
    }
    let mut end = vec![0; mark.len()];
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::End(-i64::try_from(mark.len()).unwrap_or(0)))?;
    file.read_exact(&mut end)?;
    Ok((end != mark).then_some("does not end as it should"))
}

/// Whether the system refused to read, as for want of file descriptors or permission: that says nothing of the contents.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let refused = error.downcast_ref::<std::io::Error>().is_some_and(|e| e.raw_os_error().is_some() && !is_gone(e));
    refused || error.source().is_some_and(is_refusal)
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_from_what_a_hard_stop_leaves_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let look = |content: Option<&[u8]>| {
            let _ = std::fs::remove_file(&path);
            content.iter().for_each(|content| std::fs::write(&path, content).unwrap());
            what_is_wrong(&path, 8, b"LANC").unwrap()
        };
        assert_eq!(look(Some(b"rowsLANC")), None);
        assert_eq!(look(None), Some("is missing"));
        assert_eq!(look(Some(b"")), Some("is empty"));
        assert_eq!(look(Some(b"rowsLAN")), Some("is cut short"));
        assert_eq!(look(Some(b"rows\0\0\0\0")), Some("does not end as it should"));
    }

    #[test]
    fn what_the_system_refuses_is_no_damage() {
        let refused = |code| Error::io("read", "file")(std::io::Error::from_raw_os_error(code));
        // Too many open files; no such file.
        assert!(is_refusal(&refused(24)));
        assert!(!is_refusal(&refused(2)));
        assert!(!is_refusal(&Error::io("read", "file")(std::io::Error::other("no manifest"))));
    }

    #[test]
    fn the_newest_fragments_are_looked_into_whatever_their_order() {
        let fragments: Vec<_> = (0..300).rev().map(Fragment::new).collect();
        assert_eq!(oldest_looked_into(&fragments), 300 - LOOKED_INTO as u64);
        assert_eq!(oldest_looked_into(&fragments[..10]), 0);
    }
}
