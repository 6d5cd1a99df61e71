//! Cuts a document into chunks: pieces that fit the embedder's window, each with the headings that it stands under.
//!
//! Guarantees: no chunk has more tokens than allowed, heading included, but for images, which are not cut; every word of the
//! text is in a chunk; no chunk is blank; the same text gives the same chunks. Must not know: files, tables, vectors.
//!
//! How: Markdown's outline is read ([`outline`]), each heading gets its path ([`path`]), the text is taken in windows that
//! start at a block ([`window`]), `text-splitter` cuts each window where the text itself has its joints, with the sizes
//! that [`measure`] looks up, and every chunk is measured once more as a whole before it is handed out.

mod measure;
mod outline;
mod path;
#[cfg(test)]
mod tests;
mod window;

use std::sync::Arc;

use self::measure::KnownWords;
use self::outline::Outline;
use self::path::Paths;
use self::window::WindowChunker;
use super::extract::Markup;
use crate::embed::TokenCounter;
use crate::error::{Error, Result};

/// Changes whenever the same file would be read, or the same text cut, otherwise than before, so that documents are made
/// anew.
const RULES_VERSION: u32 = 1;
/// Below this there is no room for a heading and a sentence, and one rare character may take several tokens.
const MIN_TOKENS: usize = 16;
/// The most of a chunk that its heading, and that its overlap, may take: the text itself should be most of it.
const MAX_SHARE: usize = 4;

/// How documents are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkOptions {
    /// The most tokens of a chunk, by the embedder's own tokenizer, at least 16. Default: what fits its window.
    pub max_tokens: Option<usize>,
    /// Tokens that a chunk repeats of the one before it, at most; whole sentences or blocks, and none where the last one
    /// is longer than this. No more than a quarter of a chunk is ever used.
    ///
    /// Default 32, which is one or two sentences: what is said across a cut is whole in one of the two chunks, for an
    /// eighth more chunks at 256 tokens.
    pub overlap_tokens: usize,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { max_tokens: None, overlap_tokens: 32 }
    }
}

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The headings in effect where the chunk's own text begins, `Title › Section › Sub`; empty where there are none.
    pub(crate) heading: String,
    /// Exactly what the embedder is given: the heading, a blank line and the text, or the text alone.
    pub(crate) content: String,
}

/// Cuts documents; cheap to clone, and usable from several threads.
#[derive(Clone)]
pub(crate) struct Chunker(Arc<Rules>);

struct Rules {
    counter: Arc<dyn TokenCounter>,
    max_tokens: usize,
    overlap_tokens: usize,
    known_words: KnownWords,
}

impl Chunker {
    /// A chunker that measures with `counter`.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a `max_tokens` below 16 or beyond the embedder's window.
    pub(crate) fn new(counter: Arc<dyn TokenCounter>, options: ChunkOptions) -> Result<Self> {
        let window = counter.max_text_tokens();
        let max_tokens = options.max_tokens.unwrap_or(window);
        let refuse = |reason| Err(Error::InvalidSetting { setting: "max_tokens", reason });
        if max_tokens > window {
            return refuse(format!(
                "{max_tokens} is more than the {window} tokens of text that fit the embedder's window"
            ));
        }
        if max_tokens < MIN_TOKENS {
            return refuse(format!("{max_tokens} is less than {MIN_TOKENS}, which a heading and a sentence need"));
        }
        let overlap_tokens = options.overlap_tokens.min(max_tokens / MAX_SHARE);
        Ok(Self(Arc::new(Rules { counter, max_tokens, overlap_tokens, known_words: KnownWords::default() })))
    }

    /// The settings and the version of the rules. Together with the identity of the embedder, whose tokens are counted,
    /// it says whether chunks that were made before would be made again.
    pub(crate) fn fingerprint(&self) -> String {
        let Rules { max_tokens, overlap_tokens, .. } = &*self.0;
        format!("chunks-v{RULES_VERSION}-max{max_tokens}-overlap{overlap_tokens}")
    }

    /// Begins a document.
    pub(crate) fn start(&self, title: Option<&str>) -> DocumentChunks {
        let rules = Arc::clone(&self.0);
        DocumentChunks { paths: Paths::new(title, Arc::clone(&rules.counter), rules.max_tokens / MAX_SHARE), rules }
    }
}

/// Where the headings of a Markdown text are, which a chunk may show in its path instead.
#[cfg(any(test, fuzzing))]
pub(super) fn heading_ranges(text: &str) -> Vec<std::ops::Range<usize>> {
    Outline::of(text).headings.into_iter().map(|heading| heading.range).collect()
}

/// One document being cut. Headings stay in effect from one segment to the next.
pub(crate) struct DocumentChunks {
    rules: Arc<Rules>,
    paths: Paths,
}

impl DocumentChunks {
    /// Cuts the next segment of the document and appends its chunks to `chunks`. No chunk reaches over two segments.
    pub(crate) fn push(&mut self, markup: Markup, text: &str, chunks: &mut Vec<Chunk>) {
        let outline = match markup {
            Markup::Image => {
                // An image is not cut, and it is found again by all that stands here.
                chunks.push(Chunk { heading: String::new(), content: text.to_owned() });
                return;
            }
            Markup::Plain => Outline::default(),
            Markup::Markdown => Outline::of(text),
        };
        let sections = self.paths.sections(outline.headings);
        for window in window::windows(text, markup, &outline.blocks) {
            WindowChunker::new(&self.rules, &sections, text, window).chunk(chunks);
        }
    }
}
