//! Heading paths: `Title › Section › Sub`, no longer than their share of a chunk.

use std::ops::Range;
use std::sync::Arc;

use super::outline::Heading;
use crate::embed::TokenCounter;

const BETWEEN: &str = " › ";
const LEFT_OUT: &str = "…";

/// The headings that are in effect somewhere, as they head a chunk.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Path {
    /// What is shown; empty where there are no headings.
    pub(super) text: String,
    /// Its tokens, with the blank line after it.
    pub(super) tokens: usize,
    /// How many of the last headings are in `text` whole.
    pub(super) whole: usize,
}

/// A heading of a segment, and what it puts in effect.
pub(super) struct Section {
    /// The heading's line or lines.
    pub(super) range: Range<usize>,
    pub(super) level: u8,
    /// From here to the next heading.
    pub(super) path: Arc<Path>,
    /// What is in effect above this heading: the path without it.
    pub(super) parent: Arc<Path>,
}

/// The sections of a segment.
pub(super) struct Sections {
    /// In effect before the first heading.
    pub(super) before: Arc<Path>,
    pub(super) list: Vec<Section>,
}

/// Follows the headings of a document.
pub(super) struct Paths {
    counter: Arc<dyn TokenCounter>,
    max_tokens: usize,
    title: Option<String>,
    /// The open headings, outermost first.
    open: Vec<(u8, String)>,
    current: Arc<Path>,
}

impl Paths {
    /// For a document with this title. Paths have at most `max_tokens` tokens.
    pub(super) fn new(title: Option<&str>, counter: Arc<dyn TokenCounter>, max_tokens: usize) -> Self {
        let title = title.map(|title| title.split_whitespace().collect::<Vec<_>>().join(" "));
        let title = title.filter(|title| !title.is_empty());
        let mut paths = Self { counter, max_tokens, title, open: Vec::new(), current: Arc::default() };
        paths.current = paths.path();
        paths
    }

    /// The sections that these headings of the next segment make.
    pub(super) fn sections(&mut self, headings: Vec<Heading>) -> Sections {
        let before = Arc::clone(&self.current);
        let list = headings.into_iter().map(|heading| self.section(heading)).collect();
        Sections { before, list }
    }

    fn section(&mut self, Heading { range, level, text }: Heading) -> Section {
        self.open.truncate(self.open.iter().position(|(open, _)| *open >= level).unwrap_or(self.open.len()));
        let parent = self.path();
        self.open.push((level, text));
        self.current = self.path();
        Section { range, level, path: Arc::clone(&self.current), parent }
    }

    fn path(&self) -> Arc<Path> {
        // A page's title is most often its first heading too.
        let first = self.open.first().map(|(_, text)| text);
        let title = self.title.as_ref().filter(|title| first.is_none_or(|first| !first.eq_ignore_ascii_case(title)));
        let parts: Vec<&str> =
            title.into_iter().chain(self.open.iter().map(|(_, text)| text)).map(String::as_str).collect();
        let (text, whole) = self.shorten(&parts);
        let tokens = if text.is_empty() { 0 } else { self.counter.count_tokens(&format!("{text}\n\n")) };
        Arc::new(Path { text, tokens, whole })
    }

    /// As many of the headings as fit, and how many of the last ones are whole: left out are those in the middle, from the
    /// outermost on, then the outermost itself, then the end of the innermost.
    fn shorten(&self, parts: &[&str]) -> (String, usize) {
        let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        let Some((last, _)) = parts.split_last() else { return (String::new(), 0) };
        let join = |head: &[&str], tail: &[&str]| [head, tail].concat().join(BETWEEN);
        let full = join(&[], &parts);
        if self.fits(&full) {
            return (full, parts.len());
        }
        let tails = (2..parts.len()).filter_map(|from| parts.get(from..));
        for tail in tails {
            let text = join(&[parts.first().copied().unwrap_or_default(), LEFT_OUT], tail);
            if self.fits(&text) {
                return (text, tail.len());
            }
        }
        let tails = (1..parts.len()).filter_map(|from| parts.get(from..));
        for tail in tails {
            let text = join(&[LEFT_OUT], tail);
            if self.fits(&text) {
                return (text, tail.len());
            }
        }
        (self.longest_start(last), 0)
    }

    /// As many words of a heading as fit, or nothing.
    fn longest_start(&self, heading: &str) -> String {
        let ends: Vec<usize> = heading.match_indices(' ').map(|(at, _)| at).collect();
        let start = |end: usize| heading.get(..end).map(|start| format!("{start} {LEFT_OUT}")).unwrap_or_default();
        // More words are more tokens, so that the number of those that fit is found by halving.
        let fitting = ends.partition_point(|&end| self.fits(&start(end)));
        fitting.checked_sub(1).and_then(|at| ends.get(at)).map(|&end| start(end)).unwrap_or_default()
    }

    fn fits(&self, text: &str) -> bool {
        self.counter.count_tokens(text) <= self.max_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token is a word between white space.
    struct Words;

    impl TokenCounter for Words {
        fn count_tokens(&self, text: &str) -> usize {
            text.split_whitespace().count()
        }
        fn max_text_tokens(&self) -> usize {
            64
        }
    }

    /// The path after these headings.
    fn path(title: Option<&str>, max_tokens: usize, headings: &[(u8, &str)]) -> (String, usize) {
        let mut paths = Paths::new(title, Arc::new(Words), max_tokens);
        let heading = |&(level, text): &(u8, &str)| Heading { range: 0..0, level, text: text.into() };
        let Sections { before, list } = paths.sections(headings.iter().map(heading).collect());
        let path = list.last().map_or(before, |section| Arc::clone(&section.path));
        (path.text.clone(), path.whole)
    }

    #[test]
    fn a_heading_ends_its_equals_and_what_is_below_them() {
        let headings = [(1, "Bees"), (2, "Hives"), (4, "Wood"), (3, "Straw"), (2, "Honey"), (3, "Jars")];
        let seen: Vec<String> = (0..=6).map(|n| path(Some("Farm"), 99, &headings[..n]).0).collect();
        let expected = [
            "Farm",
            "Farm › Bees",
            "Farm › Bees › Hives",
            "Farm › Bees › Hives › Wood",
            "Farm › Bees › Hives › Straw",
            "Farm › Bees › Honey",
            "Farm › Bees › Honey › Jars",
        ];
        assert_eq!(seen, expected);
        assert_eq!(path(None, 99, &[]), (String::new(), 0));
    }

    #[test]
    fn a_title_that_is_the_first_heading_too_is_shown_once() {
        assert_eq!(path(Some(" Bee  care"), 99, &[(1, "Bee Care"), (2, "Hives")]).0, "Bee Care › Hives");
        assert_eq!(path(Some("Bee care"), 99, &[(1, "Other")]).0, "Bee care › Other");
    }

    #[test]
    fn a_long_path_loses_its_middle_then_its_front_then_its_end() {
        let headings = [(1, "one one"), (2, "two two"), (3, "three three"), (4, "four four")];
        assert_eq!(path(None, 11, &headings), ("one one › two two › three three › four four".into(), 4));
        assert_eq!(path(None, 10, &headings), ("one one › … › three three › four four".into(), 2));
        assert_eq!(path(None, 9, &headings), ("one one › … › four four".into(), 1));
        assert_eq!(path(None, 6, &headings), ("… › four four".into(), 1));
        assert_eq!(path(None, 3, &headings), ("four …".into(), 0));
        assert_eq!(path(None, 1, &headings), (String::new(), 0));
    }
}
