//! What a fuzz target does with the conditions of a search, and what has to be true of the text that the storage engine is
//! given for them.

use super::SearchFilter;

/// One condition a line, each as a user would write it.
pub fn filter(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let conditions: Vec<&str> = text.lines().collect();
    let Ok(filter) = SearchFilter::parse(&conditions) else { return };
    let Some(filter) = filter.to_store_filter() else { return assert!(conditions.is_empty()) };
    let sent = filter.to_sql();
    let (skeleton, values) = literals(&sent);
    let expected: Vec<&str> = conditions.iter().map(|text| text.split_once('=').unwrap().1.trim()).collect();
    assert_eq!(values, expected, "each value comes back as it was written");
    for (part, written) in skeleton.trim_matches(['(', ')']).split(" AND ").zip(&conditions) {
        let column = written.split_once('=').unwrap().0.trim_end_matches('^').trim();
        let made_here =
            [format!("{column} = ?"), format!("starts_with({column}, ?"), format!("starts_with({column}, ?)")];
        assert!(made_here.iter().any(|known| known == part), "nothing but columns, operators and values: {sent}");
    }
    assert_eq!(skeleton.matches('?').count(), conditions.len());
}

/// What stands outside of literals, with a `?` for each of them; and their values, read by the rule of the standard: a quote
/// ends a literal unless another one follows, which makes it a character.
fn literals(text: &str) -> (String, Vec<String>) {
    let (mut skeleton, mut values) = (String::new(), Vec::new());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\'' {
            skeleton.push(c);
            continue;
        }
        let mut value = String::new();
        loop {
            match rest.next() {
                Some('\'') if rest.next_if_eq(&'\'').is_some() => value.push('\''),
                Some('\'') => break,
                Some(c) => value.push(c),
                None => panic!("a literal does not end: {text}"),
            }
        }
        skeleton.push('?');
        values.push(value);
    }
    (skeleton, values)
}
