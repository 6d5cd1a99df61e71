//! Which files a folder holds, in a fixed order.
//!
//! Guarantees: the same folder gives the same files in the same order; nothing outside the root is read, except the
//! ignore files of the folders above it; what is left out for a reason that a person may not expect is reported. Must not
//! know: what is in the files.

use std::fs;
use std::path::{Path, PathBuf};

use super::format::Format;
use super::skip::{SkipReason, Skipped};
use crate::error::{Error, Result};

/// The file that marks a folder as a bank.
const BANK_MARKER: &str = "embank.json";

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    /// Where it is: absolute, without links.
    pub(crate) path: PathBuf,
    /// Relative to the root, with `/` between the parts on every system. For a root that is itself a file, its name.
    pub(crate) rel_path: String,
    /// The first sub-folder below the root; `None` for a file that lies in the root itself.
    pub(crate) folder: Option<String>,
    /// Length in bytes when it was found.
    pub(crate) len: u64,
    /// How to read it.
    pub(crate) format: Format,
}

/// All files under `root`, sorted by path, depth first. A root that is a file is that one file, whatever its name.
///
/// `.gitignore` and `.ignore` files count, those of the folders above the root and the repository's `info/exclude` too,
/// whether or not there is a repository; a person's global ignore file does not, since what a bank holds must not depend
/// on who refreshes it. Hidden files are left out without a word, and so are folders that are banks.
///
/// # Errors
/// [`Error::Io`] for a root that does not exist or cannot be resolved; [`Error::InvalidSetting`] for a root that is a bank.
pub(crate) fn walk(root: &Path) -> Result<FileWalk> {
    let root = fs::canonicalize(root).map_err(Error::io("read", root))?;
    if is_bank(&root) {
        let reason = format!("{} is a bank, not a folder of documents", root.display());
        return Err(Error::InvalidSetting { setting: "PATH", reason });
    }
    let walk = ignore::WalkBuilder::new(&root)
        .follow_links(false)
        .require_git(false)
        .git_global(false)
        .sort_by_file_path(Path::cmp)
        .filter_entry(|entry| !(entry.file_type().is_some_and(|kind| kind.is_dir()) && is_bank(entry.path())))
        .build();
    Ok(FileWalk { root, walk })
}

/// The iterator behind [`walk`]: a file, or something that was left out.
pub(crate) struct FileWalk {
    root: PathBuf,
    walk: ignore::Walk,
}

impl Iterator for FileWalk {
    type Item = Result<FoundFile, Skipped>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.walk.next()? {
                Ok(entry) => entry,
                Err(error) => match self.unreadable(&error) {
                    Some(skipped) => return Some(Err(skipped)),
                    None => continue,
                },
            };
            let reason = match entry.file_type() {
                Some(kind) if kind.is_dir() => continue,
                Some(kind) if kind.is_symlink() => SkipReason::SymlinkNotFollowed,
                Some(kind) if kind.is_file() => match self.found(entry.path()) {
                    Ok(file) => return Some(Ok(file)),
                    Err(reason) => reason,
                },
                // Opening a pipe would wait for a writer, perhaps for ever.
                _ => SkipReason::NotAFile,
            };
            return Some(Err(Skipped { path: entry.path().display().to_string(), line: None, reason }));
        }
    }
}

impl FileWalk {
    fn found(&self, path: &Path) -> Result<FoundFile, SkipReason> {
        let (rel_path, folder) = self.relative(path).ok_or(SkipReason::NameNotUtf8)?;
        let metadata = fs::symlink_metadata(path).map_err(|error| SkipReason::Unreadable(error.to_string()))?;
        Ok(FoundFile { path: path.into(), rel_path, folder, len: metadata.len(), format: Format::of(path)? })
    }

    /// The path below the root and its first folder; `None` if a part is not UTF-8.
    fn relative(&self, path: &Path) -> Option<(String, Option<String>)> {
        let below = path.strip_prefix(&self.root).ok()?;
        let parts: Vec<&str> = below.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
        match parts.as_slice() {
            [] => Some((path.file_name()?.to_str()?.to_owned(), None)),
            [name] => Some(((*name).to_owned(), None)),
            [folder, ..] => Some((parts.join("/"), Some((*folder).to_owned()))),
        }
    }

    /// The row for a folder that could not be listed. `None` for a pattern that an ignore file states wrongly: git passes
    /// over it too, and no file is lost by it.
    fn unreadable(&self, error: &ignore::Error) -> Option<Skipped> {
        let reason = SkipReason::Unreadable(error.io_error()?.to_string());
        let path = path_of(error).unwrap_or(&self.root);
        Some(Skipped { path: path.display().to_string(), line: None, reason })
    }
}

fn is_bank(path: &Path) -> bool {
    path.join(BANK_MARKER).is_file()
}

/// The path that an error of the walk is about.
fn path_of(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::Loop { child, .. } => Some(child),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => path_of(err),
        ignore::Error::Partial(errors) => errors.iter().find_map(path_of),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, each with its own name as text.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    fn walked(root: &Path) -> (Vec<String>, Vec<(String, SkipReason)>) {
        let root_name = format!("{}/", fs::canonicalize(root).unwrap().display());
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        for item in walk(root).unwrap() {
            match item {
                Ok(file) => found.push(file.rel_path),
                Err(row) => skipped.push((row.path.replacen(&root_name, "", 1), row.reason)),
            }
        }
        (found, skipped)
    }

    #[test]
    fn files_come_sorted_with_their_first_folder() {
        let dir = folder(&["b.md", "a/z.txt", "a/deep/y.md", "a.txt", "c/x.md"]);
        let files: Vec<FoundFile> = walk(dir.path()).unwrap().map(Result::unwrap).collect();
        let seen: Vec<_> = files.iter().map(|f| (f.rel_path.as_str(), f.folder.as_deref(), f.len)).collect();
        assert_eq!(
            seen,
            [
                ("a/deep/y.md", Some("a"), 11),
                ("a/z.txt", Some("a"), 7),
                ("a.txt", None, 5),
                ("b.md", None, 4),
                ("c/x.md", Some("c"), 6)
            ]
        );
        assert!(files.iter().all(|f| f.path.is_absolute() && f.path.is_file()));
    }

    #[test]
    fn ignored_and_hidden_files_are_left_out_without_a_repository() {
        let dir =
            folder(&["kept.md", "draft.tmp", "sub/draft.tmp", "sub/kept.md", ".hidden.md", ".git/x.md", "out/a.md"]);
        fs::write(dir.path().join(".gitignore"), "*.tmp\n/out\n").unwrap();
        assert_eq!(walked(dir.path()), (vec!["kept.md".into(), "sub/kept.md".into()], vec![]));
        // The rules of a folder above the root count for a root below it.
        assert_eq!(walked(&dir.path().join("sub")), (vec!["kept.md".into()], vec![]));
    }

    #[test]
    fn a_folder_that_was_named_is_read_even_if_it_is_ignored() {
        let dir = folder(&["data/a.md", "data/sub/b.md"]);
        fs::write(dir.path().join(".gitignore"), "/data/\n").unwrap();
        assert_eq!(walked(dir.path()).0, Vec::<String>::new());
        assert_eq!(walked(&dir.path().join("data")).0, ["a.md", "sub/b.md"]);
    }

    #[test]
    fn banks_are_never_read() {
        let dir = folder(&["a.md", "bank/embank.json", "bank/documents/x.md"]);
        assert_eq!(walked(dir.path()), (vec!["a.md".into()], vec![]));
        assert!(matches!(walk(&dir.path().join("bank")), Err(Error::InvalidSetting { setting: "PATH", .. })));
    }

    #[test]
    fn a_single_file_is_a_root() {
        let dir = folder(&[".notes.md"]);
        let files: Vec<FoundFile> = walk(&dir.path().join(".notes.md")).unwrap().map(Result::unwrap).collect();
        let [file] = files.as_slice() else { panic!("{files:?}") };
        assert_eq!((file.rel_path.as_str(), &file.folder, file.format), (".notes.md", &None, Format::Markdown));
    }

    #[test]
    fn a_root_that_does_not_exist_is_an_error() {
        let dir = folder(&[]);
        let missing = dir.path().join("missing");
        assert!(matches!(walk(&missing), Err(Error::Io { path, .. }) if path == missing));
    }

    #[test]
    fn binary_files_are_listed() {
        let dir = folder(&["a.md"]);
        fs::write(dir.path().join("b.dat"), b"\x7fELF\0\0").unwrap();
        fs::write(dir.path().join("c.dat"), b"caf\xe9").unwrap();
        let skipped = vec![("b.dat".into(), SkipReason::Binary), ("c.dat".into(), SkipReason::NotUtf8 { offset: 3 })];
        assert_eq!(walked(dir.path()), (vec!["a.md".into()], skipped));
    }

    #[cfg(unix)]
    mod unix {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        use super::*;

        #[test]
        fn links_are_listed_and_not_followed() {
            let outside = folder(&["secret.md"]);
            let dir = folder(&["a.md", "sub/b.md"]);
            symlink("..", dir.path().join("sub/loop")).unwrap();
            symlink(outside.path(), dir.path().join("out")).unwrap();
            symlink(outside.path().join("secret.md"), dir.path().join("out.md")).unwrap();
            symlink("nowhere", dir.path().join("dangling.md")).unwrap();
            let links = ["dangling.md", "out", "out.md", "sub/loop"];
            let skipped = links.map(|link| (link.to_owned(), SkipReason::SymlinkNotFollowed)).to_vec();
            assert_eq!(walked(dir.path()), (vec!["a.md".into(), "sub/b.md".into()], skipped));
        }

        #[test]
        fn a_root_that_is_a_link_is_resolved() {
            let dir = folder(&["real/a.md"]);
            symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
            assert_eq!(walked(&dir.path().join("link")), (vec!["a.md".into()], vec![]));
        }

        #[test]
        fn what_is_not_a_regular_file_is_listed_and_not_opened() {
            let dir = folder(&["a.md"]);
            let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket.md")).unwrap();
            let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe.md")).status().unwrap();
            assert!(made.success());
            let skipped = ["pipe.md", "socket.md"].map(|name| (name.to_owned(), SkipReason::NotAFile));
            assert_eq!(walked(dir.path()).1, skipped);
        }

        #[test]
        fn a_name_that_is_not_utf8_is_listed() {
            let dir = folder(&["a.md"]);
            fs::write(dir.path().join(OsStr::from_bytes(b"caf\xe9.md")), "text").unwrap();
            assert_eq!(walked(dir.path()).1, [("caf\u{fffd}.md".to_owned(), SkipReason::NameNotUtf8)]);
        }

        #[test]
        fn an_unreadable_folder_or_file_is_listed() {
            let dir = folder(&["a.md", "locked/b.md", "c.unknown"]);
            let lock = |name: &str, mode| {
                fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
            };
            lock("locked", 0o000);
            lock("c.unknown", 0o000);
            // Root reads what nobody may read; then there is nothing to see.
            if fs::read_dir(dir.path().join("locked")).is_err() {
                let (found, skipped) = walked(dir.path());
                assert_eq!(found, ["a.md"]);
                let named: Vec<_> = skipped.iter().map(|(path, _)| path.as_str()).collect();
                assert_eq!(named, ["c.unknown", "locked"]);
                assert!(skipped.iter().all(|(_, reason)| matches!(reason, SkipReason::Unreadable(_))));
            }
            lock("locked", 0o755);
        }
    }
}
