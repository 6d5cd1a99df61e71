//! Where to cut a text that is too long to be taken in one piece.

/// The best place to cut `text` so that the first part has at most `limit` bytes: after the last blank line, else after
/// the last line end, else after the last white space, each only if the first part keeps at least half of `limit`; else
/// between any two characters.
///
/// Never cuts within a character or between `\r` and `\n`. The answer is greater than 0 unless `text` is empty or `limit`
/// is smaller than the first character, and it is `text.len()` where the whole text fits.
pub(super) fn cut_at(text: &str, limit: usize) -> usize {
    if text.len() <= limit {
        return text.len();
    }
    let limit = text.floor_char_boundary(limit);
    let head = text.get(..limit).unwrap_or_default();
    let in_second_half = |at: &usize| *at * 2 >= limit;
    let after = |pattern: &str| head.rfind(pattern).map(|at| at + pattern.len());
    let blank_line = after("\n\n").max(after("\n\r\n")).filter(in_second_half);
    let line_end = || after("\n").filter(in_second_half);
    let white_space = || {
        let at = head.char_indices().rev().find(|(_, c)| c.is_whitespace() && *c != '\r');
        at.map(|(at, c)| at + c.len_utf8()).filter(in_second_half)
    };
    let between_characters = || if head.len() > 1 && head.ends_with('\r') { limit - 1 } else { limit };
    blank_line.or_else(line_end).or_else(white_space).unwrap_or_else(between_characters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_blank_line_is_better_than_a_line_end_is_better_than_a_space() {
        assert_eq!(cut_at("abc\n\nde\nf gh ij", 10), 5);
        assert_eq!(cut_at("ab\r\n\r\ncd\nef gh", 11), 6);
        assert_eq!(cut_at("abc\nde fg hi", 8), 4);
        assert_eq!(cut_at("abcd efgh ijkl", 12), 10);
        assert_eq!(cut_at("abcdefghijkl", 5), 5);
        assert_eq!(cut_at("a\n\nbcdefghijkl mn", 12), 12);
        assert_eq!(cut_at("short", 12), 5);
    }

    proptest! {
        #[test]
        fn the_cut_is_within_the_limit_and_between_characters(text in "[a-c é🐝\r\n]{1,60}", limit in 4usize..50) {
            let at = cut_at(&text, limit);
            prop_assert!(text.is_char_boundary(at));
            prop_assert!(at > 0 && at <= limit.max(1));
            prop_assert!(at == text.len() || !(text[..at].ends_with('\r') && text[at..].starts_with('\n')));
        }
    }
}
