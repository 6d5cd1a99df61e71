//! How an image stands in a bank: as a short text that names its file.
//!
//! Ingest writes it as the content of the image's only chunk, so that an image is a document like any other, its words are
//! its file's name, and its content hash follows its bytes. An embedder with an image tower finds the file by it. Must not
//! know: tables, decoding.

use std::fmt;

/// What the last line of such a text starts with.
const SCHEME: &str = "embank-image:";

/// Hexadecimal digits of the file's blake3 that are kept: 128 bits tell apart whatever a disk holds.
const DIGITS: usize = 32;

/// Which file, and what was in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageReference {
    /// As in the documents table: relative to the folder that holds the bank, or absolute.
    pub(crate) source: String,
    /// The start of the blake3 of the file's bytes, in hex.
    digits: String,
}

impl ImageReference {
    /// A reference to the file of this name with these bytes.
    pub(crate) fn new(source: impl Into<String>, bytes: &[u8]) -> Self {
        Self { source: source.into(), digits: digits_of(bytes) }
    }

    /// The reference that `content` ends with, if it is the text of an image: one line about it, and this.
    pub(crate) fn of(content: &str) -> Option<Self> {
        let (_, reference) = content.split_once('\n')?;
        let (digits, source) = reference.strip_prefix(SCHEME)?.split_at_checked(DIGITS)?;
        let source = source.strip_prefix(' ').filter(|source| !source.is_empty())?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        (is_hex && !source.contains('\n')).then(|| Self { source: source.to_owned(), digits: digits.to_owned() })
    }

    /// Whether these are the bytes that it was made of.
    pub(super) fn is_of(&self, bytes: &[u8]) -> bool {
        self.digits == digits_of(bytes)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{} {}", self.digits, self.source)
    }
}

fn digits_of(bytes: &[u8]) -> String {
    let mut digits = blake3::hash(bytes).to_hex().to_string();
    digits.truncate(DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_found_again_in_the_text_that_was_made_of_it() {
        let reference = ImageReference::new("holiday/red bicycle, blue:sky.jpg", b"bytes");
        let content = format!("red bicycle.jpg, 4 x 3\n{reference}");
        assert_eq!(ImageReference::of(&content), Some(reference.clone()));
        assert!(reference.is_of(b"bytes") && !reference.is_of(b"other bytes"));
    }

    #[test]
    fn other_texts_have_none() {
        let line = ImageReference::new("a.png", b"bytes").to_string();
        let more = format!("a.png\n{line}\nand more");
        let shifted = format!("a.png\n {line}");
        let short = "a.png\nembank-image:0123 a.png";
        let letters = format!("a.png\n{}", line.replace(|c: char| c.is_ascii_digit(), "é"));
        for text in ["", "bees", &line, &more, &shifted, short, &letters] {
            assert_eq!(ImageReference::of(text), None, "{text}");
        }
    }
}
