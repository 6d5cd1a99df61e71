//! HTML files: what a reader would see, as Markdown, so that headings, lists and tables keep their form.

use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use htmd::element_handler::{HandlerResult, Handlers};
use htmd::{Element, HtmlToMarkdown, Node};

use super::super::format::refuse_binary;
use super::super::skip::SkipReason;
use super::super::walk::FoundFile;
use super::{BYTE_ORDER_MARK, DocumentHeader, DocumentSink, Markup, unreadable};
use crate::error::Result;
use crate::regular_file;

/// HTML is parsed as a whole, at about ten times its length in memory; what is longer than this is a data dump.
const MAX_BYTES: usize = 16 << 20;
/// Elements within elements. Browsers stop at 512; the conversion recurses, with about 1 KiB of stack an element.
const MAX_DEPTH: usize = 256;

/// How many times a page's length all its list items and quotes may have together, each with all that is in it. Before each
/// line of theirs comes an indent or a mark, and each level is copied once, so that this bounds the text that a page becomes
/// and the time that it takes. It is the depth of the lists where a page is nothing but lists.
const MAX_GROWTH: usize = 16;
/// What they may have besides, whatever the page's length.
const FREE_GROWTH: usize = 1 << 20;

/// Attributes of one tag. The parser compares each with all before it, so that a tag of a hundred thousand takes it minutes.
const MAX_ATTRIBUTES: usize = 1_000;

/// Blocks that were opened and not closed so far, by the look of the source. The parser looks through all of them at each
/// further one, so that 200,000 of them take it minutes; this is far from that, and from any page.
const MAX_OPEN_BLOCKS: usize = 2_000;

/// The blocks that the parser looks through its open elements for, and that only a closing tag closes.
const BLOCKS: [&str; 25] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "center",
    "details",
    "dialog",
    "dir",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "header",
    "hgroup",
    "main",
    "menu",
    "nav",
    "ol",
    "pre",
    "search",
    "section",
    "summary",
    "ul",
];
/// Elements of which a reader sees nothing, or nothing to read.
const UNSEEN: [&str; 14] = [
    "script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "audio", "video", "select", "meta",
    "link", "base",
];
/// Elements that pages commonly hide by the attribute `hidden`.
const HIDEABLE: [&str; 9] = ["div", "section", "article", "aside", "p", "ul", "details", "dialog", "form"];

/// What documentation generators link a heading to itself with.
const PERMALINKS: [&str; 4] = ["#", "\\#", "¶", "🔗"];

/// Hands the visible text of `file` to `sink`.
pub(super) fn extract(file: &FoundFile, sink: &mut dyn DocumentSink) -> Result<()> {
    let page = match read(&file.path).and_then(|html| convert(&html)) {
        Ok(page) => page,
        Err(reason) => return sink.skip(file.skipped(None, reason)),
    };
    if page.markdown.trim().is_empty() {
        return sink.skip(file.skipped(None, SkipReason::Empty));
    }
    sink.begin(DocumentHeader { title: page.title, ..DocumentHeader::default() })?;
    sink.segment(Markup::Markdown, &page.markdown)?;
    sink.end()
}

struct Page {
    title: Option<String>,
    markdown: String,
}

fn read(path: &Path) -> Result<String, SkipReason> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>| -> io::Result<usize> {
        regular_file::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(bytes)
    };
    read(&mut bytes).map_err(|error| unreadable(&error))?;
    refuse_binary(&bytes)?;
    if bytes.len() > MAX_BYTES {
        return Err(SkipReason::TooLong { limit_bytes: MAX_BYTES as u64 });
    }
    let start = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let text = bytes.split_off(start);
    String::from_utf8(text)
        .map_err(|error| SkipReason::NotUtf8 { offset: (start + error.utf8_error().valid_up_to()) as u64 })
}

fn convert(html: &str) -> Result<Page, SkipReason> {
    let too_deep = || SkipReason::TooDeep { limit: MAX_DEPTH as u64 };
    scan(html).map_err(|refusal| match refusal {
        Refusal::OpenBlocks => too_deep(),
        Refusal::Attributes => SkipReason::TooManyAttributes { limit: MAX_ATTRIBUTES as u64 },
    })?;
    let title = Arc::new(OnceLock::new());
    let room = Arc::new(Room(AtomicUsize::new(FREE_GROWTH + MAX_GROWTH * html.len())));
    let converter = converter(Arc::clone(&title), Arc::clone(&room));
    let tree = converter.html_to_tree(html).map_err(|error| unreadable(&error))?;
    if is_deeper_than(&tree, MAX_DEPTH) {
        return Err(too_deep());
    }
    let markdown = converter.tree_to_markdown(&tree);
    if room.is_used_up() {
        return Err(too_deep());
    }
    Ok(Page { title: title.get().filter(|title| !title.is_empty()).cloned(), markdown })
}

/// What is left of the length that items and quotes may have.
struct Room(AtomicUsize);

impl Room {
    /// Whether there is room for so many bytes; if not, there is none for anything after.
    fn take(&self, bytes: usize) -> bool {
        let left = self.0.load(Ordering::Relaxed).saturating_sub(bytes);
        self.0.store(left, Ordering::Relaxed);
        left > 0
    }

    fn is_used_up(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Links become their text and images what is written in their place: addresses say nothing to a reader.
fn converter(title: Arc<OnceLock<String>>, room: Arc<Room>) -> HtmlToMarkdown {
    let keep_title = move |handlers: &dyn Handlers, element: Element| {
        let text = handlers.walk_children(element.node).content;
        // The first one: a page has one title.
        let _ = title.set(text.split_whitespace().collect::<Vec<_>>().join(" "));
        None
    };
    let show_text = |handlers: &dyn Handlers, element: Element| {
        let shown = handlers.walk_children(element.node);
        if PERMALINKS.contains(&shown.content.trim()) { None } else { Some(shown) }
    };
    let show_unless_hidden = |handlers: &dyn Handlers, element: Element| {
        if attribute(&element, "hidden").is_some() { None } else { handlers.fallback(element) }
    };
    let show_while_there_is_room = move |handlers: &dyn Handlers, element: Element| {
        let shown = if room.is_used_up() { None } else { handlers.fallback(element) };
        shown.filter(|shown| room.take(shown.content.len()))
    };
    HtmlToMarkdown::builder()
        .skip_tags(UNSEEN.to_vec())
        .add_handler(vec!["title"], keep_title)
        .add_handler(vec!["a"], show_text)
        .add_handler(vec!["img"], |_: &dyn Handlers, element: Element| {
            attribute(&element, "alt").map(|alt| HandlerResult::from(alt.trim()))
        })
        .add_handler(HIDEABLE.to_vec(), show_unless_hidden)
        .add_handler(vec!["li", "blockquote"], show_while_there_is_room)
        .build()
}

fn attribute(element: &Element, name: &str) -> Option<String> {
    element.attrs.iter().find(|attribute| &*attribute.name.local == name).map(|attribute| attribute.value.to_string())
}

/// What the parser would take too long for.
#[derive(Debug, PartialEq)]
enum Refusal {
    OpenBlocks,
    Attributes,
}

/// Refuses a source with more open blocks at any point, or more attributes in any tag, than there may be. Scripts and comments
/// do not count.
fn scan(html: &str) -> Result<(), Refusal> {
    let (mut rest, mut open) = (html, 0_usize);
    while let Some((_, tag)) = rest.split_once('<') {
        rest = tag;
        let closing = tag.strip_prefix('/');
        let name = closing.unwrap_or(tag);
        let name = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        if tag.starts_with("!--") {
            rest = tag.split_once("-->").map_or("", |(_, rest)| rest);
            continue;
        }
        if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let (attributes, length) = attributes(tag.as_bytes());
            if attributes > MAX_ATTRIBUTES {
                return Err(Refusal::Attributes);
            }
            // Past the tag, in which a `<` is a character: what never ends would be looked through again and again.
            rest = tag.get(length..).unwrap_or_default();
        }
        if closing.is_none() && name.eq_ignore_ascii_case("script") {
            rest = rest.split_once("</").map_or("", |(_, rest)| rest);
        } else if BLOCKS.iter().any(|block| name.eq_ignore_ascii_case(block)) {
            open = if closing.is_some() { open.saturating_sub(1) } else { open + 1 };
            if open > MAX_OPEN_BLOCKS {
                return Err(Refusal::OpenBlocks);
            }
        }
    }
    Ok(())
}

/// How many attributes a tag has, and where it ends, by the rules of the HTML standard: a quote opens a value only after `=`.
/// Stops at the first attribute beyond [`MAX_ATTRIBUTES`].
fn attributes(tag: &[u8]) -> (usize, usize) {
    #[derive(Clone, Copy)]
    enum In {
        Name,
        Gap,
        Equals,
        Value,
        Quoted(u8),
    }
    let (mut place, mut count) = (In::Name, 0);
    for (at, &byte) in tag.iter().enumerate() {
        let is_gap = byte.is_ascii_whitespace();
        place = match (place, byte) {
            (In::Quoted(quote), byte) if byte == quote => In::Gap,
            (In::Quoted(_), _) => place,
            (In::Equals, b'"' | b'\'') => In::Quoted(byte),
            (In::Equals, _) if is_gap => In::Equals,
            (_, b'>') => return (count, at),
            (In::Equals | In::Value, _) => {
                if is_gap {
                    In::Gap
                } else {
                    In::Value
                }
            }
            (In::Name, b'=') => In::Equals,
            (In::Name, _) => {
                if is_gap || byte == b'/' {
                    In::Gap
                } else {
                    In::Name
                }
            }
            (In::Gap, b'=') => In::Equals,
            (In::Gap, _) if is_gap || byte == b'/' => In::Gap,
            (In::Gap, _) => {
                count += 1;
                if count > MAX_ATTRIBUTES {
                    return (count, at);
                }
                In::Name
            }
        };
    }
    (count, tag.len())
}

/// Whether the tree has more levels than `limit`; without recursion, which is what the limit guards.
fn is_deeper_than(tree: &Rc<Node>, limit: usize) -> bool {
    let mut open = vec![(Rc::clone(tree), 0)];
    while let Some((node, depth)) = open.pop() {
        if depth > limit {
            return true;
        }
        open.extend(node.children.borrow().iter().map(|child| (Rc::clone(child), depth + 1)));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(html: &str) -> (Option<String>, String) {
        let page = convert(html).unwrap();
        (page.title, page.markdown)
    }

    #[test]
    fn only_what_a_reader_sees_is_kept() {
        let html = "<!doctype html><html><head><title>Bee\n care</title><style>p{color:red}</style><meta name=x content=hid>\
                    <script>let hid = 1;</script></head><body><nav><a href=/hid>Home</a></nav><h1>Hives<a href=#hid>¶</a></h1>\
                    <h2>Sun<a>#</a></h2>\
                    <!-- hid --><p>Bees <b>like</b> <a href='http://hid.example'>sun</a>.</p>\
                    <img src=hid.png alt='A hive'><div hidden>hid</div><noscript>hid</noscript>\
                    <svg><title>hid</title><text>hid</text></svg><template><p>hid</p></template>\
                    <ul><li>one<li>two</ul><script>hid()</script></body></html>";
        let (title, text) = page(html);
        assert_eq!(title.as_deref(), Some("Bee care"));
        assert_eq!(text, "Home\n\n# Hives\n\n## Sun\n\nBees **like** sun.\n\nA hive\n\n*   one\n*   two");
    }

    #[test]
    fn entities_and_broken_html_are_understood() {
        assert_eq!(
            page("<p>Salt &amp; sugar, 5&nbsp;&lt; 7<p>unclosed <b>bold").1,
            "Salt & sugar, 5\u{a0}< 7\n\nunclosed **bold**"
        );
        assert_eq!(page("no tags at all"), (None, "no tags at all".into()));
        assert_eq!(page("<title> </title>"), (None, String::new()));
    }

    #[test]
    fn tables_and_code_keep_their_form() {
        let (_, text) = page(
            "<table><tr><th>Jar</th><th>Minutes</th></tr><tr><td>1 l</td><td>20</td></tr></table>\
             <pre><code>a\n  b</code></pre>",
        );
        assert!(text.contains("| Jar | Minutes |"), "{text}");
        assert!(text.contains("```\na\n  b\n```"), "{text}");
    }

    #[test]
    fn endless_nesting_is_refused_and_not_followed() {
        let nested = |depth: usize| format!("{}deep{}", "<div>".repeat(depth), "</div>".repeat(depth));
        assert_eq!(page(&nested(200)).1, "deep");
        let too_deep = Some(SkipReason::TooDeep { limit: MAX_DEPTH as u64 });
        assert_eq!(convert(&nested(MAX_DEPTH)).err(), too_deep);
        assert_eq!(convert(&nested(200_000)).err(), too_deep);
        assert_eq!(convert(&"<b><x>".repeat(20_000)).err(), too_deep);
        let flat = format!(
            "<!-- {} --><script>{}</script>{}",
            "<div>".repeat(3_000),
            "'<div>'".repeat(3_000),
            "<div>x</div>".repeat(3_000)
        );
        assert_eq!(page(&flat).1.matches('x').count(), 3_000);
    }

    #[test]
    fn a_short_page_does_not_become_a_long_text() {
        let too_deep = Some(SkipReason::TooDeep { limit: MAX_DEPTH as u64 });
        for deep in ["<blockquote>".repeat(200), "<ul><li>".repeat(100)] {
            // A hundred and sixty kilobytes that would be sixteen million, and minutes, as Markdown.
            assert_eq!(convert(&format!("{deep}{}", "<p>a".repeat(40_000))).err(), too_deep);
        }
        let lines = "<li>one<ul><li>two<ul><li>three<ul><li>four<ul><li>five</ul></ul></ul></ul>".repeat(5_000);
        assert_eq!(page(&format!("<ul>{lines}</ul>")).1.matches("five").count(), 5_000);
    }

    #[test]
    fn a_tag_with_endless_attributes_is_refused() {
        let many = |separator: &str| {
            let attributes: Vec<String> = (0..100_000).map(|n| format!("a{n}=1")).collect();
            convert(&format!("<a {}>x", attributes.join(separator))).err()
        };
        let refused = Some(SkipReason::TooManyAttributes { limit: MAX_ATTRIBUTES as u64 });
        assert_eq!(
            [many(" "), many("\n"), many("/ "), many(" \" ")],
            [const { None }; 4].map(|_: Option<()>| refused.clone())
        );
        let value = "a b=c ".repeat(10_000);
        assert_eq!(page(&format!("<p title=\"{value}\" class='{value}'>x")).1, "x");
        assert_eq!(page(&format!("<p title= \"{value}\">x<p title='>'>y")).1, "x\n\ny");
        assert_eq!(scan(&"<a".repeat(1_000_000)), Ok(()));
    }
}
