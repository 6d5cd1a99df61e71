//! Opening files that anybody may have put there: regular files alone, and without waiting.
//!
//! Guarantees: a pipe, a device or a folder in the place of a file is an error at once, also where it takes the file's place
//! after it was looked at; reading with a limit takes no more memory than the limit. Must not know: what files are for.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Opens a regular file for reading.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Opening a pipe would wait for a writer, perhaps for ever. Regular files do not know this flag.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// The content of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; [`io::ErrorKind::FileTooLarge`] for a longer one.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than is allowed shows that there is more, however the file's size is stated.
    open(path)?.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 <= limit {
        Ok(content)
    } else {
        Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit_and_not_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "bees").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"bees");
        assert_eq!(read(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(open(&dir.path().join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(open(dir.path()).is_err());
    }

    /// Were it to wait, this test would not end.
    #[test]
    #[cfg(unix)]
    fn a_pipe_without_a_writer_and_a_device_without_an_end_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            assert_eq!(read(path, 10).unwrap_err().to_string(), "not a regular file");
        }
    }
}
