//! Reads a file line by line with a limit, so that one endless line cannot fill the memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::super::format::refuse_binary;
use super::super::skip::SkipReason;
use super::{BYTE_ORDER_MARK, unreadable};
use crate::regular_file;

/// The longest line or record that is read: some eight thousand pages of text.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// The lines of a file.
pub(super) struct Lines {
    reader: BufReader<File>,
    place: Place,
}

/// The start of a line.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Counted from 1.
    pub(super) line: u64,
    /// In bytes from the start of the file.
    pub(super) offset: u64,
}

/// Whether a line was read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// It was.
    Whole,
    /// It was longer than allowed; its end was passed over.
    TooLong,
}

impl Lines {
    /// Opens a file and refuses it where its beginning is binary. A byte order mark is passed over.
    pub(super) fn open(path: &Path) -> Result<Self, SkipReason> {
        let open = || -> io::Result<(BufReader<File>, Vec<u8>)> {
            let mut reader = BufReader::with_capacity(64 * 1024, regular_file::open(path)?);
            let head = reader.fill_buf()?.to_vec();
            Ok((reader, head))
        };
        let (mut reader, head) = open().map_err(|error| unreadable(&error))?;
        refuse_binary(&head)?;
        let mark = if head.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        reader.consume(mark);
        Ok(Self { reader, place: Place { line: 1, offset: mark as u64 } })
    }

    /// Where the next line starts.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Goes to a place that was met before.
    pub(super) fn go_to(&mut self, place: Place) -> io::Result<()> {
        self.reader.seek(SeekFrom::Start(place.offset))?;
        self.place = place;
        Ok(())
    }

    /// Appends the next line to `line`, its `\n` included, but no more than `limit` bytes of it. `None` at the end.
    pub(super) fn read(&mut self, line: &mut Vec<u8>, limit: usize) -> io::Result<Option<Length>> {
        let before = line.len();
        let read = (&mut self.reader).take(limit as u64 + 1).read_until(b'\n', line)?;
        if read == 0 {
            return Ok(None);
        }
        self.place.offset += read as u64;
        self.place.line += 1;
        if read <= limit {
            return Ok(Some(Length::Whole));
        }
        if line.last() != Some(&b'\n') {
            self.pass_over_rest()?;
        }
        line.truncate(before + limit);
        Ok(Some(Length::TooLong))
    }

    fn pass_over_rest(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let passed = end.map_or(buffer.len(), |at| at + 1);
            self.reader.consume(passed);
            self.place.offset += passed as u64;
            if end.is_some() || passed == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_passed_over_and_places_stay_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"\xef\xbb\xbfone\n123456789\n12345\n\nlast").unwrap();
        let mut lines = Lines::open(&path).unwrap();
        let mut seen = Vec::new();
        let mut places = Vec::new();
        loop {
            let mut line = Vec::new();
            let place = lines.place();
            let Some(length) = lines.read(&mut line, 6).unwrap() else { break };
            places.push(place);
            seen.push((place.line, place.offset, String::from_utf8(line).unwrap(), length));
        }
        let whole = |line, offset, text: &str| (line, offset, text.to_owned(), Length::Whole);
        let long = (2, 7, "123456".to_owned(), Length::TooLong);
        assert_eq!(
            seen,
            [whole(1, 3, "one\n"), long, whole(3, 17, "12345\n"), whole(4, 23, "\n"), whole(5, 24, "last")]
        );

        lines.go_to(places[2]).unwrap();
        let mut line = Vec::new();
        lines.read(&mut line, 100).unwrap();
        assert_eq!((line.as_slice(), lines.place().line), (b"12345\n".as_slice(), 4));
    }
}
