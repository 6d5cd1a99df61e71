//! Takes a segment in windows, and cuts a window into chunks.
//!
//! The splitter looks through all that remains of its text for each chunk that it cuts, so that its time grows with the
//! square of the text; windows keep that to a few dozen chunks.

use std::ops::Range;
use std::sync::Arc;

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};

use super::super::cut::cut_at;
use super::measure::WordTokens;
use super::outline::Block;
use super::path::{Path, Sections};
use super::{Chunk, MAX_SHARE, Markup, Rules};
use crate::embed::local::ImageReference;

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
    let second_half =
        near.get(near.partition_point(|block| block.start < start + WINDOW_BYTES / 2)..).unwrap_or_default();
    // The last of the best: `min_by_key` takes the first of equals.
    let best = second_half.iter().rev().min_by_key(|block| block.rank);
    best.or(near.last()).or(after.first()).map_or(length, |block| block.start)
}

/// Cuts one window into chunks. Ranges are in the segment that the window is a part of.
pub(super) struct WindowChunker<'a> {
    rules: &'a Rules,
    sections: &'a Sections,
    segment: &'a str,
    window: Window,
    words: WordTokens<'a>,
    /// The least that a heading takes of a chunk in this window.
    reserve: usize,
}

/// A piece of the segment as a chunk.
struct Placed<'a> {
    path: &'a Arc<Path>,
    /// The text without the headings at its beginning that are in the path.
    body: Range<usize>,
    /// Whether there is nothing but headings in it.
    headings_alone: bool,
}

impl<'a> WindowChunker<'a> {
    pub(super) fn new(rules: &'a Rules, sections: &'a Sections, segment: &'a str, window: Window) -> Self {
        let text = segment.get(window.range.clone()).unwrap_or_default();
        let words = rules.known_words.measure(text, &*rules.counter);
        let reserve = sections.least_tokens(window.range.end - text.trim_start().len()..window.range.end);
        Self { rules, sections, segment, window, words, reserve }
    }

    /// Appends the chunks of this window to `chunks`.
    pub(super) fn chunk(&self, chunks: &mut Vec<Chunk>) {
        let capacity = self.rules.max_tokens - self.reserve.min(self.rules.max_tokens / 2);
        let overlap = self.rules.overlap_tokens.min(capacity / MAX_SHARE);
        // The overlap is below the capacity, so that there is nothing to fail.
        let Ok(config) = ChunkConfig::new(capacity).with_sizer(self).with_overlap(overlap) else { return };
        let text = self.text(self.window.range.clone());
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let mut add = |(start, piece): (usize, &str)| {
            let start = self.window.range.start + start;
            self.join_or_push(start..start + piece.len(), capacity, &mut pieces);
        };
        match self.window.markup {
            Markup::Plain | Markup::Image => TextSplitter::new(config).chunk_indices(text).for_each(&mut add),
            Markup::Markdown => MarkdownSplitter::new(config).chunk_indices(text).for_each(&mut add),
        }
        for piece in pieces {
            self.piece(piece, chunks);
        }
    }

    /// Joins a piece to the one before it where that leaves out a scrap, which the splitter makes where lists are nested:
    /// a few words alone say too little to be found by. Both must stand under the same heading.
    fn join_or_push(&self, piece: Range<usize>, capacity: usize, pieces: &mut Vec<Range<usize>>) {
        let is_scrap = |range: &Range<usize>| self.size(self.text(range.clone())) * MAX_SHARE < capacity;
        let path = |range: &Range<usize>| self.place(range.clone()).path;
        if let Some(last) = pieces.last_mut()
            && Arc::ptr_eq(path(last), path(&piece))
            && (is_scrap(last) || is_scrap(&piece))
            && self.size(self.text(last.start..piece.end)) <= capacity
        {
            last.end = piece.end;
            return;
        }
        pieces.push(piece);
    }

    fn piece(&self, piece: Range<usize>, chunks: &mut Vec<Chunk>) {
        let placed = self.place(piece.clone());
        if placed.headings_alone {
            let with_text = self.place(piece.start..self.segment.len());
            if !with_text.headings_alone && with_text.body.start >= piece.end {
                // The text below follows in a chunk of its own, whose path shows these headings.
                return;
            }
        }
        self.hand_out(placed.path, self.text(placed.body), chunks);
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
            let content = if ImageReference::of(&content).is_some() { tell_from_image(&content) } else { content };
            chunks.push(Chunk { heading, content });
            return;
        }
        let one = body.chars().next().map_or(0, char::len_utf8);
        match body.split_at_checked(cut_at(body, (body.len() * 2 / 3).max(one))) {
            Some((left, right)) if !right.is_empty() => {
                self.hand_out(path, left, chunks);
                self.hand_out(path, right, chunks);
            }
            _ if heading.is_empty() => chunks.push(Chunk { heading, content }),
            _ => self.hand_out(&Arc::default(), body, chunks),
        }
    }

    /// Which headings a piece of the segment stands under, and what of it remains when they are taken off its beginning.
    ///
    /// They stay where the path does not show them all: where it is too long, and where a heading has no text of its own.
    fn place(&self, piece: Range<usize>) -> Placed<'a> {
        let first_text = |from: usize| piece.end - self.text(from..piece.end).trim_start().len();
        let begin = first_text(piece.start);
        let sections = &self.sections.list;
        let first = sections.partition_point(|section| section.range.start < begin);
        let (mut at, mut count, mut level, mut nested) = (begin, 0, 0, true);
        while let Some(section) = sections.get(first + count).filter(|section| section.range.start == at) {
            nested &= section.level > level;
            (level, count) = (section.level, count + 1);
            at = first_text(section.range.end.min(piece.end));
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
            (None, _) => Placed { path: self.sections.path_at(begin), body: begin..piece.end, headings_alone: false },
        }
    }

    fn text(&self, range: Range<usize>) -> &'a str {
        self.segment.get(range).unwrap_or_default()
    }
}

/// A text that reads like the one that stands for an image would have an embedder open the file that it names, wherever that
/// is. A blank line after its first line makes it a text like any other.
fn tell_from_image(content: &str) -> String {
    content.replacen('\n', "\n\n", 1)
}

/// The splitter's measure: the tokens of the chunk that a piece would make, less the reserve that its capacity lacks.
///
/// The splitter asks for dozens of pieces a chunk, all of them parts of the segment, so that where a piece stands in it
/// says what it has for headings and for words.
impl ChunkSizer for WindowChunker<'_> {
    fn size(&self, piece: &str) -> usize {
        let start = piece.as_ptr().addr().checked_sub(self.segment.as_ptr().addr());
        let Some(start) = start.filter(|start| start + piece.len() <= self.segment.len()) else {
            return self.rules.counter.count_tokens(piece);
        };
        let Placed { path, body, .. } = self.place(start..start + piece.len());
        let body = body.start.saturating_sub(self.window.range.start)..body.end.saturating_sub(self.window.range.start);
        (path.tokens + self.words.tokens(body, &*self.rules.counter)).saturating_sub(self.reserve)
    }
}

impl Sections {
    /// The path in effect at a byte of the segment; a heading that starts there is not.
    fn path_at(&self, at: usize) -> &Arc<Path> {
        let before = self.list.partition_point(|section| section.range.start < at);
        before.checked_sub(1).and_then(|last| self.list.get(last)).map_or(&self.before, |section| &section.path)
    }

    /// The tokens of the shortest path in effect in a part of the segment.
    fn least_tokens(&self, part: Range<usize>) -> usize {
        let first = self.list.partition_point(|section| section.range.start < part.start);
        let within = self.list.iter().skip(first).take_while(|section| section.range.start < part.end);
        let starts_with_heading = self.list.get(first).is_some_and(|section| section.range.start == part.start);
        let at_start = (!starts_with_heading).then(|| self.path_at(part.start).tokens);
        within.map(|section| section.path.tokens).chain(at_start).min().unwrap_or(0)
    }
}
