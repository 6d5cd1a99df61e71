//! What kind of file a file is: by its extension, and where that says nothing by a look at its first bytes.

use std::io::{self, Read};
use std::path::Path;

use super::skip::SkipReason;
use crate::regular_file;

/// Bytes looked at to tell text from binary; the figure that git uses.
pub(super) const HEAD_BYTES: usize = 8 * 1024;

/// How a file is read.
///
/// | extension (any case) | format |
/// |---|---|
/// | `md` `markdown` `mdown` `mkd` | Markdown |
/// | `html` `htm` `xhtml` | HTML |
/// | `jsonl` `ndjson` | one JSON object a line |
/// | `csv` | comma-separated, with a header row |
/// | `tsv` | tab-separated, with a header row |
/// | `png` `jpg` `jpeg` `webp` `gif` | image |
/// | `txt` `text` `log` `rst` `adoc` `org` `tex` | text |
/// | anything else, or none | text if the first 8 KiB are UTF-8 without NUL, else skipped |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Markdown,
    Html,
    Jsonl,
    Csv,
    Tsv,
    Image,
}

impl Format {
    /// Whether a file of this format holds many documents.
    pub(crate) fn holds_records(self) -> bool {
        matches!(self, Self::Jsonl | Self::Csv | Self::Tsv)
    }

    /// The format that the name promises, if it promises one.
    fn by_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "md" | "markdown" | "mdown" | "mkd" => Self::Markdown,
            "html" | "htm" | "xhtml" => Self::Html,
            "jsonl" | "ndjson" => Self::Jsonl,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "png" | "jpg" | "jpeg" | "webp" | "gif" => Self::Image,
            "txt" | "text" | "log" | "rst" | "adoc" | "org" | "tex" => Self::Text,
            _ => return None,
        })
    }

    /// The format of a file; opens it only where the name says nothing.
    pub(super) fn of(path: &Path) -> Result<Self, SkipReason> {
        if let Some(format) = Self::by_extension(path) {
            return Ok(format);
        }
        let head = read_head(path).map_err(|error| SkipReason::Unreadable(error.to_string()))?;
        refuse_binary(&head)?;
        match std::str::from_utf8(&head) {
            Ok(_) => Ok(Self::Text),
            // No `error_len`: the look ended within a character, which says nothing against the file.
            Err(error) if error.error_len().is_none() && head.len() == HEAD_BYTES => Ok(Self::Text),
            Err(error) => Err(SkipReason::NotUtf8 { offset: error.valid_up_to() as u64 }),
        }
    }
}

/// Refuses a file whose first bytes have a NUL among them, which text never has.
pub(super) fn refuse_binary(head: &[u8]) -> Result<(), SkipReason> {
    if head.iter().take(HEAD_BYTES).any(|&byte| byte == 0) { Err(SkipReason::Binary) } else { Ok(()) }
}

fn read_head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    regular_file::open(path)?.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format_of(name: &str, bytes: &[u8]) -> Result<Format, SkipReason> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Format::of(&path)
    }

    #[test]
    fn the_extension_decides_whatever_its_case() {
        assert_eq!(format_of("A.MD", b"\0"), Ok(Format::Markdown));
        assert_eq!(format_of("a.htm", b""), Ok(Format::Html));
        assert_eq!(format_of("a.ndjson", b""), Ok(Format::Jsonl));
        assert_eq!(format_of("a.csv", b""), Ok(Format::Csv));
        assert_eq!(format_of("a.tsv", b""), Ok(Format::Tsv));
        assert_eq!(format_of("a.txt", b""), Ok(Format::Text));
        assert_eq!(format_of("a.JPG", b""), Ok(Format::Image));
    }

    #[test]
    fn other_files_are_text_only_if_they_look_like_it() {
        assert_eq!(format_of("Makefile", b"all:\n"), Ok(Format::Text));
        assert_eq!(format_of("a.bin", b"a\0b"), Err(SkipReason::Binary));
        assert_eq!(format_of("a.pdf", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3"), Err(SkipReason::NotUtf8 { offset: 10 }));
        let mut cut_within_a_character = vec![b'a'; HEAD_BYTES - 1];
        cut_within_a_character.extend("é".as_bytes());
        assert_eq!(format_of("notes", &cut_within_a_character), Ok(Format::Text));
        assert_eq!(format_of("notes", b"caf\xc3"), Err(SkipReason::NotUtf8 { offset: 3 }));
    }
}
