//! The part of a chunk to show: the window with most of the question's words, cut at words.

use std::collections::HashSet;

/// At most `limit` characters of `content` without its leading heading, on one line.
pub(super) fn snippet(content: &str, heading: &str, query: &str, limit: usize) -> String {
    let body = content.strip_prefix(heading).filter(|body| !body.trim().is_empty()).unwrap_or(content);
    let wanted: HashSet<String> = query.split_whitespace().map(plain).filter(|word| word.chars().count() > 2).collect();
    let words: Vec<&str> = body.split_whitespace().filter(|word| !is_markup(word)).collect();
    let lengths: Vec<usize> = words.iter().map(|word| word.chars().count() + 1).collect();
    let is_hit: Vec<bool> = words.iter().map(|word| wanted.contains(&plain(word))).collect();
    let window = best_window(&lengths, &is_hit, limit);
    let text = words.get(window.clone()).unwrap_or_default().join(" ");
    let before = if window.start > 0 { "… " } else { "" };
    let after = if window.end < words.len() { " …" } else { "" };
    format!("{before}{text}{after}")
}

/// The earliest window of at most `limit` characters with the most hits; at least one word, if there is one.
fn best_window(lengths: &[usize], is_hit: &[bool], limit: usize) -> std::ops::Range<usize> {
    let (mut best, mut best_hits) = (0..lengths.len().min(1), 0);
    let (mut start, mut size, mut hits) = (0, 0, 0);
    for (end, (length, hit)) in lengths.iter().zip(is_hit).enumerate() {
        size += length;
        hits += usize::from(*hit);
        while size > limit && start < end {
            size -= lengths.get(start).copied().unwrap_or(0);
            hits -= usize::from(is_hit.get(start).copied().unwrap_or(false));
            start += 1;
        }
        let longer_from_the_same_start = start == best.start && end + 1 > best.end;
        if hits > best_hits || (hits == best_hits && longer_from_the_same_start) {
            (best, best_hits) = (start..end + 1, hits);
        }
    }
    best
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
    fn shows_the_window_with_the_words_that_were_asked_for() {
        let content =
            format!("Water › Rain\n\n{} empty the barrel before frost {}", "filler ".repeat(60), "tail ".repeat(60));
        let shown = snippet(&content, "Water › Rain", "When do I empty my rain barrel?", 60);
        assert!(shown.contains("empty the barrel"), "{shown}");
        assert!(shown.starts_with("… ") && shown.ends_with(" …"), "{shown}");
        assert!(shown.chars().count() <= 60 + 4);
    }

    #[test]
    fn without_matching_words_it_shows_the_beginning() {
        assert_eq!(snippet("Title\n\none two three", "Title", "", 9), "one two …");
        assert_eq!(snippet("## Two\n\n- three | four", "", "", 99), "Two three four");
        assert_eq!(snippet("short", "", "nothing", 240), "short");
        assert_eq!(snippet("", "", "x", 10), "");
        assert_eq!(snippet("Only Heading", "Only Heading", "x", 100), "Only Heading");
    }
}
