//! Takes a segment in windows, and cuts a window into chunks.
//!
//! The splitter looks through all that remains of its text for each chunk that it cuts, so that its time grows with the
//! square of the text; windows keep that to a few dozen chunks.

use std::ops::Range;
use std::sync::Arc;

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};

use super::super::cut::cut_at;
use super::measure::WordTokens;
use super::outline::{BODY_RANK, Block};
use super::path::{Path, Sections};
use super::{Chunk, MAX_SHARE, Markup, Rules};

/// The most bytes that the splitter is given at once: thirty chunks of 256 tokens of English.
const WINDOW_BYTES: usize = 32 * 1024;

/// A part of a segment.
pub(super) struct Window {
    pub(super) range: Range<usize>,
    /// How to cut it: a single block of Markdown that is longer than a window is cut as plain text.
    pub(super) markup: Markup,
}

/// Divides a segment into windows. In Markdown they start at a block, the second half of a window permitting at the
/// heading of the lowest level, so that each is read as it would be in its place.
pub(super) fn windows(text: &str, markup: Markup, blocks: &[Block]) -> Vec<Window> {
    let (mut windows, mut start) = (Vec::new(), 0);
    while start < text.len() {
        let end = if markup == Markup::Markdown { markdown_end(text.len(), start, blocks) } else { text.len() };
        if end - start <= WINDOW_BYTES {
            windows.push(Window { range: start..end, markup });
            start = end;
        }
        while start < end {
            let rest = text.get(start..end).unwrap_or_default();
            let piece = cut_at(rest, WINDOW_BYTES).max(1);
            windows.push(Window { range: start..start + piece, markup: Markup::Plain });
            start += piece;
        }
    }
    windows
}

/// Where the window that starts at `start` ends; further than a window may only where a single block is longer.
fn markdown_end(length: usize, start: usize, blocks: &[Block]) -> usize {
    if length - start <= WINDOW_BYTES {
        return length;
    }
    let after = blocks.get(blocks.partition_point(|block| block.start <= start)..).unwrap_or_default();
    let near = after.get(..after.partition_point(|block| block.start <= start + WINDOW_BYTES)).unwrap_or_default();
    let second_half = near.get(near.partition_point(|block| block.start < start + WINDOW_BYTES / 2)..).unwrap_or_default();
    // The last of the best: `min_by_key` takes the first of equals.
    let best = second_half.iter().rev().min_by_key(|block| block.rank);
    best.or(near.last()).or(after.first()).map_or(length, |block| block.start)
}

/// Cuts one window into chunks.
pub(super) struct WindowChunker<'a> {
    rules: &'a Rules,
    sections: &'a Sections,
    text: &'a str,
    /// Where `text` starts in its segment.
    start: usize,
    markup: Markup,
    words: WordTokens<'a>,
    /// The least that a heading takes of a chunk in this window.
    reserve: usize,
}

/// A piece of the window as a chunk.
struct Placed<'a> {
    path: &'a Arc<Path>,
    /// The text without the headings at its beginning that are in the path, in the window.
    body: Range<usize>,
    /// Whether there is nothing but headings in it.
    headings_alone: bool,
}

impl<'a> WindowChunker<'a> {
    pub(super) fn new(
        rules: &'a Rules,
        sections: &'a Sections,
        segment: &'a str,
        range: Range<usize>,
        markup: Markup,
    ) -> Self {
        let text = segment.get(range.clone()).unwrap_or_default();
        let words = rules.known_words.measure(text, &*rules.counter);
        let first = sections.list.partition_point(|section| section.range.start < range.start);
        let within = sections.list.iter().skip(first).take_while(|section| section.range.start < range.end);
        let at_start = sections.path_at(range.start).tokens;
        let reserve = within.map(|section| section.path.tokens).fold(at_start, usize::min);
        Self { rules, sections, text, start: range.start, markup, words, reserve }
    }

    /// Appends the chunks of this window to `chunks`.
    pub(super) fn chunk(&self, chunks: &mut Vec<Chunk>) {
        let capacity = self.rules.max_tokens - self.reserve.min(self.rules.max_tokens / 2);
        let overlap = self.rules.overlap_tokens.min(capacity / MAX_SHARE);
        // The overlap is below the capacity, so that there is nothing to fail.
        let Ok(config) = ChunkConfig::new(capacity).with_sizer(self).with_overlap(overlap) else { return };
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let range = |(start, piece): (usize, &str)| start..start + piece.len();
        match self.markup {
            Markup::Plain => pieces.extend(TextSplitter::new(config).chunk_indices(self.text).map(range)),
            Markup::Markdown => pieces.extend(MarkdownSplitter::new(config).chunk_indices(self.text).map(range)),
        }
        for (number, piece) in pieces.iter().enumerate() {
            let placed = self.place(piece.clone());
            let next = pieces.get(number + 1);
            if placed.headings_alone && next.is_some_and(|next| self.is_headed_by(next, piece)) {
                continue;
            }
            self.hand_out(placed.path, self.text.get(placed.body).unwrap_or_default(), chunks);
        }
    }

    /// Whether the headings that are all there is of `piece` are shown with the chunk after it too.
    fn is_headed_by(&self, next: &Range<usize>, piece: &Range<usize>) -> bool {
        next.start <= piece.start || self.place(piece.start..next.end).body.start >= piece.end
    }

    /// Hands out a chunk, in halves where it turns out too long: words that are counted one by one may come to less than
    /// the whole. A single character is handed out in any case; text is never lost.
    fn hand_out(&self, path: &Arc<Path>, body: &str, chunks: &mut Vec<Chunk>) {
        let body = body.trim();
        if body.is_empty() {
            return;
        }
        let heading = path.text.clone();
        let content = if heading.is_empty() { body.to_owned() } else { format!("{heading}\n\n{body}") };
        if self.rules.counter.count_tokens(&content) <= self.rules.max_tokens {
            chunks.push(Chunk { heading, content });
            return;
        }
        let (left, right) = body.split_at(cut_at(body, body.len() * 2 / 3));
        if !left.is_empty() && !right.is_empty() {
            self.hand_out(path, left, chunks);
            self.hand_out(path, right, chunks);
        } else if heading.is_empty() {
            chunks.push(Chunk { heading, content });
        } else {
            self.hand_out(&Arc::default(), body, chunks);
        }
    }

    /// Which headings a piece of the window stands under, and what of it remains when they are taken off its beginning.
    ///
    /// They stay where the path does not show them all: where it is too long, and where a heading has no text of its own.
    fn place(&self, piece: Range<usize>) -> Placed<'a> {
        let text = self.text.get(piece.clone()).unwrap_or_default();
        let begin = piece.end - text.trim_start().len();
        let sections = &self.sections.list;
        let first = sections.partition_point(|section| section.range.start < self.start + begin);
        let (mut at, mut count, mut level, mut nested) = (begin, 0, 0, true);
        while let Some(section) = sections.get(first + count).filter(|section| section.range.start == self.start + at) {
            nested &= section.level > level;
            (level, count) = (section.level, count + 1);
            let end = section.range.end - self.start;
            let rest = self.text.get(end..piece.end).unwrap_or_default();
            at = piece.end - rest.trim_start().len();
        }
        let last = count.checked_sub(1).and_then(|last| sections.get(first + last));
        match (last, sections.get(first)) {
            (Some(_), Some(head)) if at >= piece.end => {
                Placed { path: &head.parent, body: begin..piece.end, headings_alone: true }
            }
            (Some(last), _) => {
                let shown = nested && count <= last.path.whole;
                Placed { path: &last.path, body: if shown { at } else { begin }..piece.end, headings_alone: false }
            }
            (None, _) => {
                Placed { path: self.sections.path_at(self.start + begin), body: begin..piece.end, headings_alone: false }
            }
        }
    }
}

/// The splitter's measure: the tokens of the chunk that a piece would make, less the reserve that its capacity lacks.
///
/// The splitter asks for dozens of pieces a chunk, all of them parts of the window, so that where a piece stands in it says
/// what it has for headings and for words.
impl ChunkSizer for &WindowChunker<'_> {
    fn size(&self, piece: &str) -> usize {
        let start = (piece.as_ptr() as usize).checked_sub(self.text.as_ptr() as usize);
        let Some(start) = start.filter(|start| start + piece.len() <= self.text.len()) else {
            return self.rules.counter.count_tokens(piece);
        };
        let placed = self.place(start..start + piece.len());
        (placed.path.tokens + self.words.tokens(placed.body, &*self.rules.counter)).saturating_sub(self.reserve)
    }
}

impl Sections {
    /// The path in effect at a byte of the segment.
    fn path_at(&self, at: usize) -> &Arc<Path> {
        let before = self.list.partition_point(|section| section.range.start < at);
        before.checked_sub(1).and_then(|last| self.list.get(last)).map_or(&self.before, |section| &section.path)
    }
}
