//! The part of a chunk to show: from the beginning of the sentence from which on most of the question's words are said.

use std::collections::HashSet;

/// At most `limit` characters of `content` without its leading heading, on one line, from the start of a sentence.
pub(super) fn snippet(content: &str, heading: &str, query: &str, limit: usize) -> String {
    let body = content.strip_prefix(heading).filter(|body| !body.trim().is_empty()).unwrap_or(content);
    let wanted: HashSet<String> = query.split_whitespace().map(plain).filter(|word| word.chars().count() > 2).collect();
    let words = words_of(body);
    let starts = (0..words.len()).filter(|at| words.get(*at).is_some_and(|word| word.starts_sentence));
    let best = starts.map(|start| (start, window(&words, start, limit, &wanted))).reduce(|best, next| {
        // The earliest of equally good ones.
        if next.1.merit > best.1.merit { next } else { best }
    });
    let Some((start, Window { end, .. })) = best else { return String::new() };
    let text: Vec<_> = words.get(start..end).unwrap_or_default().iter().map(|word| word.text).collect();
    let before = if start > 0 { "… " } else { "" };
    let after = if end < words.len() { " …" } else { "" };
    format!("{before}{}{after}", text.join(" "))
}

struct Word<'a> {
    text: &'a str,
    starts_sentence: bool,
}

/// Words without the marks of Markdown. A sentence starts with a paragraph, behind a mark, and behind an end of sentence.
fn words_of(body: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for paragraph in body.split("\n\n") {
        let mut starts_sentence = true;
        for text in paragraph.split_whitespace() {
            if is_markup(text) {
                starts_sentence = true;
                continue;
            }
            words.push(Word { text, starts_sentence });
            starts_sentence = text.ends_with(['.', '!', '?']);
        }
    }
    words
}

struct Window {
    /// Behind its last word.
    end: usize,
    /// Different words of the question that are said in it, and in its first sentence.
    merit: (usize, usize),
}

/// The words from `start` on that fit; at least one.
fn window(words: &[Word<'_>], start: usize, limit: usize, wanted: &HashSet<String>) -> Window {
    let mut said = HashSet::new();
    let (mut end, mut size, mut at_first) = (start, 0, None);
    for word in words.iter().skip(start) {
        size += word.text.chars().count() + 1;
        if size > limit && end > start {
            break;
        }
        if word.starts_sentence && end > start {
            at_first.get_or_insert(said.len());
        }
        end += 1;
        said.extend(wanted.get(&plain(word.text)));
    }
    Window { end, merit: (said.len(), at_first.unwrap_or(said.len())) }
}

/// Whether a word is but a mark of Markdown: the beginning of a heading, an item, a quotation, the edge of a table cell.
fn is_markup(word: &str) -> bool {
    word.chars().all(|c| matches!(c, '#' | '-' | '*' | '>' | '|' | ':' | '+'))
}

/// A word as it is compared: lower case, without punctuation around it.
fn plain(word: &str) -> String {
    word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_with_the_sentence_that_says_most_of_what_was_asked() {
        let (before, after) = ("The the the barrel. ".repeat(9), "Tail. ".repeat(60));
        let content = format!("Water › Rain\n\n{before}Please empty the barrel before frost. {after}");
        let shown = snippet(&content, "Water › Rain", "When do I empty the barrel for frost?", 60);
        assert!(shown.starts_with("… Please empty the barrel before frost."), "{shown}");
        assert!(shown.ends_with(" …") && shown.chars().count() <= 60 + 4, "{shown}");
    }

    #[test]
    fn without_matching_words_it_shows_the_beginning() {
        assert_eq!(snippet("Title\n\none two three", "Title", "", 9), "one two …");
        assert_eq!(snippet("## Two\n\n- three | four", "", "", 99), "Two three four");
        assert_eq!(snippet("short", "", "nothing", 240), "short");
        assert_eq!(snippet("", "", "x", 10), "");
        assert_eq!(snippet("Only Heading", "Only Heading", "x", 100), "Only Heading");
    }

    #[test]
    fn a_word_longer_than_the_limit_is_shown_whole() {
        assert_eq!(snippet("Donaudampfschifffahrt fährt", "", "", 5), "Donaudampfschifffahrt …");
    }
}
