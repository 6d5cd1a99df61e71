//! Plain text and Markdown files: one document a file.

use super::super::skip::SkipReason;
use super::super::walk::FoundFile;
use super::front_matter::{self, FrontMatter};
use super::segments::Segments;
use super::{DocumentHeader, DocumentSink, Markup};
use crate::error::Result;

/// Hands the text of `file` to `sink`, piece by piece.
pub(super) fn extract(file: &FoundFile, markup: Markup, sink: &mut dyn DocumentSink) -> Result<()> {
    let segments = match Segments::open(&file.path, markup) {
        Ok(segments) => segments,
        Err(reason) => return sink.skip(file.skipped(None, reason)),
    };
    // Taken when the document begins, which is when there is text: a file of blank lines begins none.
    let mut header = Some(DocumentHeader::default());
    for (number, segment) in segments.enumerate() {
        let segment = match segment {
            Ok(segment) => segment,
            Err(reason) => return sink.skip(file.skipped(None, reason)),
        };
        let mut text = segment.as_str();
        if number == 0 && markup == Markup::Markdown {
            match front_matter::read(text) {
                FrontMatter::None => {}
                FrontMatter::Read { header: stated, rest } => (header, text) = (Some(*stated), rest),
                FrontMatter::Bad(reason) => sink.skip(file.skipped(Some(1), SkipReason::BadFrontMatter(reason)))?,
            }
        }
        if header.is_some() && text.trim().is_empty() {
            continue;
        }
        if let Some(header) = header.take() {
            sink.begin(header)?;
        }
        sink.segment(markup, text)?;
    }
    match header {
        Some(_) => sink.skip(file.skipped(None, SkipReason::Empty)),
        None => sink.end(),
    }
}
