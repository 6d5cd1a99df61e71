//! What chunks look like, and what is true of all of them.

use proptest::prelude::*;

use super::*;

/// Ways to count, as different as tokenizers are.
#[derive(Clone, Copy, Debug)]
enum Counter {
    /// A word between white space is a token.
    Words,
    /// As BERT's: words in pieces of four letters, each mark and each ideograph a token.
    Pieces,
    /// As byte-level BPE: every four bytes, white space included, so that words do not add up to the text.
    Bytes,
}

impl Counter {
    fn count(self, text: &str) -> usize {
        match self {
            Self::Words => text.split_whitespace().count(),
            Self::Bytes => text.len().div_ceil(4),
            Self::Pieces => text
                .split(|c: char| !c.is_alphanumeric())
                .map(|word| {
                    let ideographs = word.chars().filter(|c| *c > '\u{3000}').count();
                    ideographs + (word.chars().count() - ideographs).div_ceil(4)
                })
                .sum::<usize>()
                .saturating_add(text.chars().filter(|c| !c.is_alphanumeric() && !c.is_whitespace()).count()),
        }
    }
}

struct Window(Counter, usize);

impl TokenCounter for Window {
    fn count_tokens(&self, text: &str) -> usize {
        self.0.count(text)
    }
    fn max_text_tokens(&self) -> usize {
        self.1
    }
}

fn chunker(counter: Counter, max_tokens: usize, overlap_tokens: usize) -> Chunker {
    let options = ChunkOptions { max_tokens: None, overlap_tokens };
    Chunker::new(Arc::new(Window(counter, max_tokens)), options).unwrap()
}

fn chunks(chunker: &Chunker, title: Option<&str>, markup: Markup, segments: &[&str]) -> Vec<Chunk> {
    let mut document = chunker.start(title);
    let mut chunks = Vec::new();
    for segment in segments {
        document.push(markup, segment, &mut chunks);
    }
    chunks
}

fn markdown(max_tokens: usize, title: Option<&str>, text: &str) -> Vec<(String, String)> {
    let chunks = chunks(&chunker(Counter::Words, max_tokens, 0), title, Markup::Markdown, &[text]);
    chunks.into_iter().map(|chunk| (chunk.heading, chunk.content)).collect()
}

fn pair(heading: &str, content: &str) -> (String, String) {
    (heading.into(), content.into())
}

/// `count` words that occur nowhere else.
fn words(name: &str, count: usize) -> String {
    (0..count).map(|n| format!("{name}{n}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_short_text_is_one_chunk_as_it_is() {
    let chunker = chunker(Counter::Words, 64, 8);
    let chunks = chunks(&chunker, None, Markup::Plain, &["  One line.\n\n# not a heading\n"]);
    assert_eq!(chunks, [Chunk { heading: String::new(), content: "One line.\n\n# not a heading".into() }]);
}

#[test]
fn a_text_cannot_pass_for_an_image() {
    use crate::embed::local::ImageReference;
    let claim = format!("a picture\n{}", ImageReference::new("/etc/secret.png", b"bytes"));
    assert!(ImageReference::of(&claim).is_some());
    for markup in [Markup::Plain, Markup::Markdown] {
        for chunk in chunks(&chunker(Counter::Words, 64, 8), None, markup, &[&claim]) {
            assert_eq!(ImageReference::of(&chunk.content), None);
            assert!(chunk.content.starts_with("a picture") && chunk.content.ends_with("/etc/secret.png"));
        }
    }
    let image = chunks(&chunker(Counter::Words, 64, 8), None, Markup::Image, &[&claim]);
    assert!(ImageReference::of(&image[0].content).is_some());
}

#[test]
fn endless_nesting_is_cut_like_any_text() {
    let deep = 20_000;
    for text in ["> ".repeat(deep), "- ".repeat(deep), "[".repeat(deep), "*a_ ".repeat(deep), "<div>".repeat(deep)] {
        let text = text + "end";
        let made = chunks(&chunker(Counter::Bytes, 200, 0), None, Markup::Markdown, &[&text]);
        let last = &made.last().unwrap().content;
        assert!(last.ends_with("end") && made.iter().all(|chunk| Counter::Bytes.count(&chunk.content) <= 200));
    }
}

#[test]
fn the_title_heads_every_chunk() {
    let text = format!("{}\n\n{}", words("a", 20), words("b", 20));
    let chunks = chunks(&chunker(Counter::Words, 30, 0), Some("Bee care"), Markup::Plain, &[&text]);
    let expected = [words("a", 20), words("b", 20)]
        .map(|body| Chunk { heading: "Bee care".into(), content: format!("Bee care\n\n{body}") });
    assert_eq!(chunks, expected);
}

#[test]
fn a_chunk_stands_under_the_headings_where_its_text_begins() {
    let (a, b, c) = (words("a", 20), words("b", 20), words("c", 20));
    let text = format!("# Bees\n\n{a}\n\n## Hives\n\n{b}\n\n### Wood\n\n{c}\n");
    assert_eq!(
        markdown(30, None, &text),
        [
            pair("Bees", &format!("Bees\n\n{a}")),
            pair("Bees › Hives", &format!("Bees › Hives\n\n{b}")),
            pair("Bees › Hives › Wood", &format!("Bees › Hives › Wood\n\n{c}")),
        ]
    );
    // With room for more, a section shares a chunk with what is below it, and the headings within the chunk stay.
    assert_eq!(
        markdown(50, Some("Farm"), &text),
        [
            pair("Farm › Bees", &format!("Farm › Bees\n\n{a}")),
            pair("Farm › Bees › Hives", &format!("Farm › Bees › Hives\n\n{b}\n\n### Wood\n\n{c}")),
        ]
    );
}

#[test]
fn several_headings_above_a_text_are_all_in_its_path() {
    let body = words("a", 5);
    assert_eq!(
        markdown(30, None, &format!("# One\n\n## Two\n### Three\n{body}")),
        [pair("One › Two › Three", &format!("One › Two › Three\n\n{body}"))]
    );
}

#[test]
fn headings_without_text_are_kept() {
    assert_eq!(markdown(30, None, "# One\n\n## Two\n"), [pair("", "# One\n\n## Two")]);
    // `Two` has no text of its own and is in no path.
    let body = words("a", 5);
    assert_eq!(
        markdown(30, None, &format!("# One\n\n## Two\n\n## Three\n\n{body}")),
        [pair("One › Three", &format!("One › Three\n\n# One\n\n## Two\n\n## Three\n\n{body}"))]
    );
    let long = words("a", 28);
    assert_eq!(
        markdown(30, None, &format!("# One\n\n{long}\n\n## Two\n")),
        [pair("One", &format!("One\n\n{long}")), pair("One", "One\n\n## Two")]
    );
}

#[test]
fn a_heading_that_is_cut_off_from_its_text_is_not_a_chunk_of_its_own() {
    let (a, b) = (words("a", 15), words("b", 28));
    let text = format!("# One\n\n{a}\n\n## Two\n\n{b}\n");
    assert_eq!(
        markdown(31, None, &text),
        [pair("One", &format!("One\n\n{a}")), pair("One › Two", &format!("One › Two\n\n{b}"))]
    );
}

#[test]
fn headings_reach_into_the_next_segment() {
    let chunker = chunker(Counter::Words, 30, 0);
    let chunks = chunks(
        &chunker,
        Some("Farm"),
        Markup::Markdown,
        &["# Bees\n\none\n\n", "two\n\n## Hives\n\nthree\n\n", "four"],
    );
    let headings: Vec<_> = chunks.iter().map(|chunk| chunk.heading.as_str()).collect();
    assert_eq!(headings, ["Farm › Bees", "Farm › Bees", "Farm › Bees › Hives"]);
}

#[test]
fn a_heading_takes_no_more_than_a_quarter() {
    let heading = words("h", 60);
    let chunks = markdown(32, None, &format!("# {heading}\n\n{}\n", words("a", 40)));
    let (path, _) = chunks.last().unwrap();
    assert_eq!(path, &format!("{} …", words("h", 7)));
    // What the path does not show is in a chunk's text.
    let all: String = chunks.iter().map(|(_, content)| content.as_str()).collect::<Vec<_>>().join(" ");
    assert!(heading.split(' ').all(|word| all.split_whitespace().any(|seen| seen == word)));
}

#[test]
fn neighbours_overlap_by_whole_sentences_up_to_the_limit() {
    let sentences: Vec<String> = (0..40).map(|n| format!("Sentence {n} has five words. ")).collect();
    let text = sentences.concat();
    for limit in [0, 5, 10, 100] {
        let chunks = chunks(&chunker(Counter::Words, 40, limit), None, Markup::Plain, &[&text]);
        for pair in chunks.windows(2) {
            let (before, after) = (&pair[0].content, &pair[1].content);
            let shared = sentences.iter().filter(|s| before.contains(s.trim()) && after.contains(s.trim())).count();
            assert_eq!(shared, limit.min(40 / 4) / 5, "{before} | {after}");
        }
    }
}

#[test]
fn sentences_are_not_torn_where_they_fit() {
    let text: String = (0..100).map(|n| format!("This is sentence number {n}. ")).collect();
    for chunk in chunks(&chunker(Counter::Words, 33, 8), None, Markup::Plain, &[&text]) {
        assert!(chunk.content.starts_with("This") && chunk.content.ends_with('.'), "{}", chunk.content);
    }
}

#[test]
fn nested_lists_leave_no_scraps() {
    let items: String = (0..30).map(|n| format!("      - item {n}\n")).collect();
    let text = format!("# Bees\n\nIntro.\n\n- one\n  - two\n    - three\n{items}  - last\n");
    let chunks = markdown(40, None, &text);
    assert_eq!(chunks[0].1, "Bees\n\nIntro.\n\n- one\n  - two\n    - three");
    assert_eq!(chunks.len(), 4);
}

#[test]
fn a_code_block_longer_than_a_window_keeps_its_headings_outside() {
    let code: String = (0..6_000).map(|n| format!("let x{n} = {n};\n# comment {n}\n\n")).collect();
    let text = format!("# Top\n\n## Code\n\n```\n{code}```\n\n## After\n\nend\n");
    assert!(code.len() > 3 * 32 * 1024);
    let chunks = chunks(&chunker(Counter::Words, 100, 10), None, Markup::Markdown, &[&text]);
    let (last, code) = chunks.split_last().unwrap();
    assert_eq!(last.content, "Top › After\n\nend");
    assert!(code.iter().all(|chunk| chunk.heading == "Top › Code"));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let counter: Arc<dyn TokenCounter> = Arc::new(Window(Counter::Words, 254));
    let with = |max_tokens| Chunker::new(Arc::clone(&counter), ChunkOptions { max_tokens, overlap_tokens: 1000 });
    for refused in [Some(0), Some(15), Some(255)] {
        assert!(matches!(with(refused), Err(Error::InvalidSetting { setting: "max_tokens", .. })), "{refused:?}");
    }
    assert_eq!(with(None).unwrap().fingerprint(), "chunks-v1-max254-overlap63");
    assert_eq!(with(Some(16)).unwrap().fingerprint(), "chunks-v1-max16-overlap4");
}

/// Blocks of all kinds, with words short enough for any window. Every word is unique to its text by chance alone.
fn block() -> impl Strategy<Value = String> {
    let word = "[a-z]{1,8}|[0-9]{1,4}|[äöüé]{1,5}|[蜂蜜水土]{1,4}|🐝";
    let words = |most: usize| prop::collection::vec(word, 1..most).prop_map(|words| words.join(" "));
    prop_oneof![
        4 => words(60),
        2 => prop::collection::vec(words(9), 1..8).prop_map(|s| s.join(". ") + "."),
        3 => (1usize..=6, words(6)).prop_map(|(level, text)| format!("{} {text}", "#".repeat(level))),
        1 => words(5).prop_map(|text| format!("{text}\n===")),
        1 => prop::collection::vec(words(12), 1..6).prop_map(|items| format!("- {}", items.join("\n- "))),
        1 => prop::collection::vec(words(12), 1..4).prop_map(|items| format!("1. {}\n\n   {}", items[0], items.join("\n"))),
        1 => words(30).prop_map(|text| format!("```\n{}\n```", text.replace(' ', "\n"))),
        1 => words(30).prop_map(|text| format!("> {text}\n> # {text}")),
        1 => (words(4), words(4)).prop_map(|(a, b)| format!("| {a} | {b} |\n|---|---|\n| {b} | {a} |")),
        1 => Just("---".to_owned()),
        // Markup of all kinds, less what can hide words of a heading: addresses, tags, entities, attributes.
        1 => "[ a-zA-Z0-9#*_=>|~`.+:!\n-]{0,80}",
    ]
}

/// Runs of letters and digits, the words of any markup. Ideographs are written without spaces and may be parted anywhere.
fn letters(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() || c > '\u{3000}').filter(|word| !word.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn chunks_fit_and_lose_nothing(
        blocks in prop::collection::vec(block(), 0..25),
        segments in 1usize..3,
        title in prop::option::of("[A-Z][a-z]{0,9}( [a-z]{1,9}){0,12}"),
        (max_tokens, overlap) in (16usize..90, 0usize..40),
        counter in prop_oneof![Just(Counter::Words), Just(Counter::Pieces), Just(Counter::Bytes)],
        markup in prop_oneof![Just(Markup::Plain), Just(Markup::Markdown)],
    ) {
        let size = blocks.len().div_ceil(segments).max(1);
        let segments: Vec<String> = blocks.chunks(size).map(|part| part.join("\n\n")).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let chunker = chunker(counter, max_tokens, overlap);
        let made = chunks(&chunker, title.as_deref(), markup, &segments);

        for Chunk { heading, content } in &made {
            prop_assert!(counter.count(content) <= max_tokens, "{} of {max_tokens}: {content}", counter.count(content));
            prop_assert!(counter.count(heading) <= max_tokens / 4, "{heading}");
            prop_assert!(!content.trim().is_empty());
            prop_assert_eq!(content.trim(), content.as_str());
            let body = content.strip_prefix(heading.as_str());
            prop_assert!(body.is_some_and(|body| heading.is_empty() || body.starts_with("\n\n") && !body.trim().is_empty()));
        }
        // A word of more tokens than a chunk has is cut; these are not.
        let room = max_tokens - max_tokens / 4 - 1;
        for word in segments.iter().flat_map(|segment| letters(segment)).filter(|word| counter.count(word) * 2 < room) {
            prop_assert!(made.iter().any(|chunk| chunk.content.contains(word)), "{word} is lost: {made:?}");
        }
        // Neither what was cut before nor another chunker changes anything.
        prop_assert_eq!(&made, &chunks(&chunker, title.as_deref(), markup, &segments));
        let fresh = self::chunker(counter, max_tokens, overlap);
        prop_assert_eq!(&made, &chunks(&fresh, title.as_deref(), markup, &segments));
    }

    #[test]
    fn any_characters_at_all_are_cut_without_loss(text in "\\PC{0,400}", max_tokens in 16usize..40) {
        for markup in [Markup::Plain, Markup::Markdown] {
            let made = chunks(&chunker(Counter::Bytes, max_tokens, 4), None, markup, &[&text]);
            for chunk in &made {
                prop_assert!(Counter::Bytes.count(&chunk.content) <= max_tokens);
            }
            let count = |text: &str, wanted: char| text.chars().filter(|c| *c == wanted).count();
            for wanted in text.chars().filter(|c| c.is_alphanumeric()) {
                let kept: usize = made.iter().map(|chunk| count(&chunk.content, wanted)).sum();
                prop_assert!(kept >= count(&text, wanted), "{wanted}");
            }
        }
    }
}
