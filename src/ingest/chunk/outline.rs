//! What a Markdown text is made of at its top level: where its blocks start, and its headings.

use std::ops::Range;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// The top level of a Markdown text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outline {
    /// In the order of the text.
    pub(super) blocks: Vec<Block>,
    /// In the order of the text; those within quotes and lists are left out, they head nothing that comes after.
    pub(super) headings: Vec<Heading>,
}

/// A paragraph, list, table, code block, quote or heading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Block {
    /// The byte it starts at.
    pub(super) start: usize,
    /// 1 to 6 for a heading, 7 for anything else: the lower, the better to cut before it.
    pub(super) rank: u8,
}

/// The rank of what is no heading.
pub(super) const BODY_RANK: u8 = 7;

/// A heading.
#[derive(Debug, PartialEq)]
pub(super) struct Heading {
    /// Its line or lines, marks included.
    pub(super) range: Range<usize>,
    /// 1 to 6.
    pub(super) level: u8,
    /// Its text without marks, with single spaces.
    pub(super) text: String,
}

impl Outline {
    pub(super) fn of(text: &str) -> Self {
        let mut outline = Self::default();
        let mut depth = 0_usize;
        // The text of the top-level heading that is being read.
        let mut heading: Option<String> = None;
        for (event, range) in Parser::new_ext(text, options()).into_offset_iter() {
            if depth == 0 && !matches!(event, Event::End(_)) {
                let rank = if let Event::Start(Tag::Heading { level, .. }) = &event { rank(*level) } else { BODY_RANK };
                outline.blocks.push(Block { start: range.start, rank });
                heading = (rank < BODY_RANK).then(String::new);
            }
            match event {
                Event::Start(_) => depth += 1,
                Event::End(end) => {
                    depth = depth.saturating_sub(1);
                    if let (0, TagEnd::Heading(level), Some(text)) = (depth, end, heading.take_if(|_| depth == 0)) {
                        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                        outline.headings.push(Heading { range, level: rank(level), text });
                    }
                }
                Event::Text(piece) | Event::Code(piece) | Event::InlineMath(piece) => {
                    heading.iter_mut().for_each(|text| text.push_str(&piece));
                }
                Event::SoftBreak | Event::HardBreak => heading.iter_mut().for_each(|text| text.push(' ')),
                _ => {}
            }
        }
        outline
    }
}

/// What the splitter reads too, less what would change the words of a heading or read a rule at the top as metadata, which
/// extraction has taken off already.
fn options() -> Options {
    Options::all()
        - Options::ENABLE_SMART_PUNCTUATION
        - Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        - Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS
}

fn rank(level: HeadingLevel) -> u8 {
    match level {
        HeadingLevel::H1 => 1,
        HeadingLevel::H2 => 2,
        HeadingLevel::H3 => 3,
        HeadingLevel::H4 => 4,
        HeadingLevel::H5 => 5,
        HeadingLevel::H6 => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_of_all_kinds_are_found_with_their_words() {
        let text = "# A \"quoted\" `code` *title* {#id}\n\ntext\n\nSetext\nover two\n---\n\n> ## in a quote\n\n\
                    - ### in a list\n\n```\n# in code\n```\n### Third ###\n";
        let outline = Outline::of(text);
        let headings: Vec<_> = outline.headings.iter().map(|h| (h.level, h.text.as_str())).collect();
        assert_eq!(headings, [(1, "A \"quoted\" code title"), (2, "Setext over two"), (3, "Third")]);
        for heading in &outline.headings {
            assert!(text[heading.range.clone()].contains(heading.text.split(' ').next().unwrap()));
        }
        let starts: Vec<_> =
            outline.blocks.iter().map(|b| (b.rank, text[b.start..].split(' ').next().unwrap())).collect();
        assert_eq!(
            starts,
            [(1, "#"), (7, "text\n\nSetext\nover"), (2, "Setext\nover"), (7, ">"), (7, "-"), (7, "```\n#"), (3, "###")]
        );
    }
}
