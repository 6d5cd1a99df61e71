//! Image files: one document a file, whose text is a line about the image and a reference to the file.
//!
//! The line is what a text embedder and the keyword search have: the file's name and what the file says about its picture.
//! An embedder of images finds the picture by the reference. The picture itself is not decoded here, so a file that is
//! damaged behind its header is found by the embedder.

use serde_json::{Map, Value};

use super::super::skip::SkipReason;
use super::super::walk::FoundFile;
use super::{DocumentHeader, DocumentSink, Markup, unreadable};
use crate::embed::local::{ImageReference, image_facts, read_image};
use crate::embed::{ImageDefect, MAX_IMAGE_BYTES};
use crate::error::Result;

/// Hands the image in `file` to `sink`. `source` is the name that the bank knows the file by.
pub(super) fn extract(file: &FoundFile, source: &str, sink: &mut dyn DocumentSink) -> Result<()> {
    let read = read_image(&file.path).and_then(|bytes| Ok((image_facts(&bytes)?, bytes)));
    let (facts, bytes) = match read {
        Ok(read) => read,
        Err(defect) => return sink.skip(file.skipped(None, reason(&defect))),
    };
    let mut attributes = Map::new();
    let mut state = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
    state("format", facts.format.name().into());
    state("width", facts.width.into());
    state("height", facts.height.into());
    state("bytes", bytes.len().into());
    state("blake3", blake3::hash(&bytes).to_hex().as_str().into());
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    let mut line = format!("{name}, {} x {}", facts.width, facts.height);
    if let Some(taken) = facts.taken {
        let day = taken.split_once('T').map_or(taken.as_str(), |(day, _)| day);
        line.push_str(&format!(", taken {day}"));
        state("exif_date", taken.into());
    }
    sink.begin(DocumentHeader { attributes, ..DocumentHeader::default() })?;
    // A name may hold a line end; the reference has to be the second line.
    let line = line.replace(['\n', '\r'], " ");
    sink.segment(Markup::Image, &format!("{line}\n{}", ImageReference::new(source, &bytes)))?;
    sink.end()
}

fn reason(defect: &ImageDefect) -> SkipReason {
    match defect {
        ImageDefect::Unreadable(error) => unreadable(error),
        ImageDefect::TooManyBytes { .. } => SkipReason::TooLong { limit_bytes: MAX_IMAGE_BYTES },
        other => SkipReason::BadImage(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::ingest::skip::Skipped;

    #[derive(Default)]
    struct Collected {
        attributes: Value,
        content: String,
        skipped: Option<SkipReason>,
    }

    impl DocumentSink for Collected {
        fn begin(&mut self, header: DocumentHeader) -> Result<()> {
            self.attributes = Value::Object(header.attributes);
            Ok(())
        }

        fn segment(&mut self, markup: Markup, text: &str) -> Result<()> {
            assert_eq!(markup, Markup::Image);
            self.content.push_str(text);
            Ok(())
        }

        fn end(&mut self) -> Result<()> {
            Ok(())
        }

        fn skip(&mut self, skipped: Skipped) -> Result<()> {
            self.skipped = Some(skipped.reason);
            Ok(())
        }
    }

    fn extracted(path: &Path) -> Collected {
        let mut files = crate::ingest::walk::walk(path).unwrap();
        let mut sink = Collected::default();
        extract(&files.next().unwrap().unwrap(), "pictures/turned.jpg", &mut sink).unwrap();
        sink
    }

    fn turned() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vision/images/turned.jpg")
    }

    #[test]
    fn an_image_is_a_line_of_words_a_reference_and_attributes() {
        let found = extracted(&turned());
        let bytes = std::fs::read(turned()).unwrap();
        // As the picture is looked at: the file stores it lying on its side.
        let expected = json!({"format": "jpeg", "width": 64, "height": 100, "bytes": bytes.len(),
            "blake3": blake3::hash(&bytes).to_hex().as_str(), "exif_date": "2023-07-14T18:30:05"});
        assert_eq!(found.attributes, expected);
        assert_eq!(found.content.lines().next(), Some("turned.jpg, 64 x 100, taken 2023-07-14"));
        assert_eq!(ImageReference::of(&found.content), Some(ImageReference::new("pictures/turned.jpg", &bytes)));
    }

    #[test]
    fn what_is_no_image_is_skipped_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.png");
        std::fs::write(&path, "text by another name").unwrap();
        let reason = extracted(&path).skipped.unwrap();
        assert_eq!(reason.to_string(), "bad image: it is no PNG, JPEG, WebP or GIF");
        std::fs::write(&path, &std::fs::read(turned()).unwrap()[..20]).unwrap();
        assert_eq!(extracted(&path).skipped.unwrap().to_string(), "bad image: it is a damaged jpeg file");
    }
}
