//! Reads a text file in pieces of checked UTF-8, so that its length does not matter.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::super::cut::cut_at;
use super::super::format::refuse_binary;
use super::super::skip::SkipReason;
use super::{BYTE_ORDER_MARK, Markup, unreadable};
use crate::regular_file;

/// Files up to this length come in one piece, so that where a piece ends cannot matter to any ordinary document.
const WHOLE_BYTES: usize = 4 << 20;
/// Longer files come in pieces of at most this length.
const SEGMENT_BYTES: usize = 1 << 20;

/// The pieces of a file, in order, without byte order mark and with `\n` as line end. Ends after an error.
pub(super) struct Segments {
    file: File,
    markup: Markup,
    /// What was read and not handed out yet.
    buffer: Vec<u8>,
    /// Where `buffer` starts in the file.
    offset: u64,
    at_end: bool,
    failed: bool,
}

impl Segments {
    /// Opens a file, reads its beginning and refuses it where that is binary.
    pub(super) fn open(path: &Path, markup: Markup) -> Result<Self, SkipReason> {
        let file = regular_file::open(path).map_err(|error| unreadable(&error))?;
        let mut segments = Self { file, markup, buffer: Vec::new(), offset: 0, at_end: false, failed: false };
        segments.fill(WHOLE_BYTES).map_err(|error| unreadable(&error))?;
        refuse_binary(&segments.buffer)?;
        if segments.buffer.starts_with(BYTE_ORDER_MARK) {
            segments.take_bytes(BYTE_ORDER_MARK.len());
        }
        Ok(segments)
    }

    /// Reads until more than `wanted` bytes are there, or the file ends.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        let missing = (wanted + 1).saturating_sub(self.buffer.len());
        let read = (&mut self.file).take(missing as u64).read_to_end(&mut self.buffer)?;
        self.at_end |= read < missing;
        Ok(())
    }

    fn take_bytes(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        let taken = std::mem::replace(&mut self.buffer, rest);
        self.offset += taken.len() as u64;
        taken
    }

    fn next_segment(&mut self) -> Result<Option<String>, SkipReason> {
        if !self.at_end && self.buffer.len() <= SEGMENT_BYTES {
            self.fill(SEGMENT_BYTES).map_err(|error| unreadable(&error))?;
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        // At its end already in the first fill: the file is short.
        let whole = self.at_end && (self.buffer.len() <= SEGMENT_BYTES || self.offset <= BYTE_ORDER_MARK.len() as u64);
        let length = if whole { self.buffer.len() } else { self.cut()? };
        let offset = self.offset;
        let text = String::from_utf8(self.take_bytes(length))
            .map_err(|error| SkipReason::NotUtf8 { offset: offset + error.utf8_error().valid_up_to() as u64 })?;
        Ok(Some(if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text }))
    }

    /// How many bytes of the buffer make the next piece.
    fn cut(&self) -> Result<usize, SkipReason> {
        let head = self.buffer.get(..SEGMENT_BYTES).unwrap_or(&self.buffer);
        let text = match std::str::from_utf8(head) {
            Ok(text) => text,
            Err(error) => {
                match (error.error_len(), std::str::from_utf8(head.get(..error.valid_up_to()).unwrap_or_default())) {
                    // The piece ends within a character: the character belongs to the next piece.
                    (None, Ok(text)) if !text.is_empty() => text,
                    _ => return Err(SkipReason::NotUtf8 { offset: self.offset + error.valid_up_to() as u64 }),
                }
            }
        };
        let outside_code = if self.markup == Markup::Markdown { last_blank_line_outside_code(text) } else { None };
        // One byte less than there is, so that a cut is looked for.
        Ok(outside_code.unwrap_or_else(|| cut_at(text, text.len().saturating_sub(1))))
    }
}

impl Iterator for Segments {
    type Item = Result<String, SkipReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let segment = self.next_segment().transpose();
        self.failed = matches!(segment, Some(Err(_)));
        segment
    }
}

/// The end of the last blank line in the second half of `text` that is not within a fenced code block. A piece that began
/// within one would be read inside out: the end of the fence would be taken for the start of another.
fn last_blank_line_outside_code(text: &str) -> Option<usize> {
    let (mut at, mut best, mut fence) = (0, None, None);
    for line in text.split_inclusive('\n') {
        at += line.len();
        let start = line.trim_start();
        match fence {
            None if line.trim().is_empty() && at * 2 >= text.len() => best = Some(at),
            None => fence = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark)),
            Some(mark) if start.starts_with(mark) => fence = None,
            Some(_) => {}
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], markup: Markup) -> Vec<Result<String, SkipReason>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        match Segments::open(&path, markup) {
            Ok(segments) => segments.collect(),
            Err(reason) => vec![Err(reason)],
        }
    }

    fn joined(segments: &[Result<String, SkipReason>]) -> String {
        segments.iter().map(|segment| segment.as_ref().unwrap().as_str()).collect()
    }

    #[test]
    fn a_short_file_comes_in_one_piece_with_plain_line_ends() {
        assert_eq!(read(b"\xef\xbb\xbfa\r\nb\rc\n", Markup::Plain), [Ok("a\nb\rc\n".to_owned())]);
        assert_eq!(read(b"", Markup::Plain), []);
        assert_eq!(read(&vec![b'a'; WHOLE_BYTES], Markup::Plain).len(), 1);
        let mut marked = BYTE_ORDER_MARK.to_vec();
        marked.resize(WHOLE_BYTES, b'a');
        assert_eq!(read(&marked, Markup::Plain).len(), 1);
    }

    #[test]
    fn a_long_file_is_cut_at_blank_lines_and_nothing_is_lost() {
        let text: String = (0..60_000).map(|n| format!("paragraph {n} of bees, Bienen, 蜂\nand water\n\n")).collect();
        assert!(text.len() > WHOLE_BYTES / 2);
        let text = text.repeat(3);
        let segments = read(text.as_bytes(), Markup::Plain);
        assert!(segments.len() > 4);
        assert_eq!(joined(&segments), text);
        for segment in &segments {
            let segment = segment.as_ref().unwrap();
            assert!(segment.len() <= SEGMENT_BYTES && segment.ends_with("\n\n"));
        }
    }

    #[test]
    fn one_endless_line_is_cut_between_words_or_characters() {
        let words = "蜂 bee 🐝 ".repeat(500_000);
        let segments = read(words.as_bytes(), Markup::Plain);
        assert_eq!(joined(&segments), words);
        assert!(segments.iter().all(|s| s.as_ref().unwrap().len() <= SEGMENT_BYTES));
        let unbroken = "蜂🐝".repeat(800_000);
        let segments = read(unbroken.as_bytes(), Markup::Plain);
        assert_eq!(joined(&segments), unbroken);
        assert!(segments.iter().all(|s| s.as_ref().unwrap().len() <= SEGMENT_BYTES));
    }

    #[test]
    fn windows_line_ends_are_never_torn() {
        let text = "x".repeat(99) + "\r\n";
        let segments = read(text.repeat(60_000).as_bytes(), Markup::Plain);
        assert_eq!(joined(&segments), ("x".repeat(99) + "\n").repeat(60_000));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named_by_their_place_in_the_file() {
        assert_eq!(read(b"caf\xe9 au lait", Markup::Plain), [Err(SkipReason::NotUtf8 { offset: 3 })]);
        assert_eq!(read(b"\xef\xbb\xbfcaf\xe9", Markup::Plain), [Err(SkipReason::NotUtf8 { offset: 6 })]);
        let mut long = "line\n".repeat(2 << 20).into_bytes();
        let place = 5_000_001;
        long[place] = 0xff;
        let segments = read(&long, Markup::Plain);
        assert!(segments.len() > 1);
        assert_eq!(segments.last(), Some(&Err(SkipReason::NotUtf8 { offset: place as u64 })));
        assert!(segments[..segments.len() - 1].iter().all(Result::is_ok));
    }

    #[test]
    fn a_file_that_ends_within_a_character_is_refused() {
        let mut long = "line\n".repeat(1 << 20).into_bytes();
        let place = long.len() as u64;
        long.push(0xc3);
        assert_eq!(read(&long, Markup::Plain).last(), Some(&Err(SkipReason::NotUtf8 { offset: place })));
    }

    #[test]
    fn binary_files_are_refused() {
        assert_eq!(read(b"\x89PNG\0", Markup::Plain), [Err(SkipReason::Binary)]);
    }

    #[test]
    fn markdown_is_not_cut_within_code() {
        let code = format!("```\n{}```\n", "let bees = 1;\n\n".repeat(30_000));
        let text = format!("intro\n\n{code}\nprose\n\n").repeat(14);
        assert!(text.len() > WHOLE_BYTES);
        for segment in read(text.as_bytes(), Markup::Markdown) {
            assert_eq!(segment.unwrap().matches("```").count() % 2, 0);
        }
    }
}
