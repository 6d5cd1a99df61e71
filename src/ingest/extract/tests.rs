//! What each kind of file, good or bad, hands to its sink.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::error::Error;

/// Keeps everything, and insists on the order of calls.
#[derive(Default)]
struct Collected {
    documents: Vec<Document>,
    open: Option<Document>,
    skipped: Vec<(Option<u64>, SkipReason)>,
    largest_segment: usize,
}

#[derive(Debug, PartialEq)]
struct Document {
    header: DocumentHeader,
    markup: Option<Markup>,
    text: String,
}

impl DocumentSink for Collected {
    fn begin(&mut self, header: DocumentHeader) -> Result<()> {
        assert!(self.open.is_none(), "two documents at once");
        self.open = Some(Document { header, markup: None, text: String::new() });
        Ok(())
    }

    fn segment(&mut self, markup: Markup, text: &str) -> Result<()> {
        let open = self.open.as_mut().expect("a segment outside a document");
        assert!(open.markup.is_none_or(|before| before == markup));
        open.markup = Some(markup);
        open.text.push_str(text);
        self.largest_segment = self.largest_segment.max(text.len());
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let document = self.open.take().expect("an end without a beginning");
        assert!(document.markup.is_some(), "a document without text");
        self.documents.push(document);
        Ok(())
    }

    fn skip(&mut self, skipped: Skipped) -> Result<()> {
        assert!(Path::new(&skipped.path).is_absolute());
        self.open = None;
        self.skipped.push((skipped.line, skipped.reason));
        Ok(())
    }
}

fn found(dir: &Path, name: &str) -> FoundFile {
    let mut files = crate::ingest::walk::walk(&dir.join(name)).unwrap();
    files.next().unwrap().unwrap()
}

fn extracted(name: &str, bytes: impl AsRef<[u8]>) -> Collected {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), bytes).unwrap();
    let mut sink = Collected::default();
    extract(&found(dir.path(), name), name, &RecordFields::default(), &mut sink).unwrap();
    assert!(sink.open.is_none(), "a document was neither ended nor discarded");
    sink
}

/// The ids, texts, categories and attributes of records.
fn records<'a>(sink: &'a Collected) -> Vec<(&'a str, &'a str, Option<&'a str>, Value)> {
    let row = |d: &'a Document| {
        let DocumentHeader { record_id, category, attributes, .. } = &d.header;
        (record_id.as_deref().unwrap(), d.text.as_str(), category.as_deref(), Value::Object(attributes.clone()))
    };
    sink.documents.iter().map(row).collect()
}

fn bad(reason: &str) -> SkipReason {
    SkipReason::BadRecord(reason.into())
}

#[test]
fn a_text_file_is_one_plain_document() {
    let sink = extracted("a.txt", "\u{feff}one\r\ntwo\r\n");
    let expected =
        Document { header: DocumentHeader::default(), markup: Some(Markup::Plain), text: "one\ntwo\n".into() };
    assert_eq!((sink.documents, sink.skipped), (vec![expected], vec![]));
}

#[test]
fn markdown_gets_its_attributes_from_its_front_matter() {
    let sink = extracted("a.md", "---\r\ntitle: Bees\r\ncategory: animals\r\nyear: 2024\r\n---\r\n# Hives\r\n");
    let [document] = sink.documents.as_slice() else { panic!() };
    assert_eq!((document.markup, document.text.as_str()), (Some(Markup::Markdown), "# Hives\n"));
    assert_eq!(document.header.title.as_deref(), Some("Bees"));
    assert_eq!(document.header.category.as_deref(), Some("animals"));
    assert_eq!(Value::Object(document.header.attributes.clone()), json!({"title": "Bees", "year": 2024}));
}

#[test]
fn malformed_front_matter_costs_the_attributes_alone() {
    let text = "---\ntitle: [Bees\n---\n# Hives\n";
    let sink = extracted("a.md", text);
    assert!(matches!(sink.skipped.as_slice(), [(Some(1), SkipReason::BadFrontMatter(_))]), "{:?}", sink.skipped);
    let [document] = sink.documents.as_slice() else { panic!() };
    assert_eq!((document.text.as_str(), &document.header), (text, &DocumentHeader::default()));
}

#[test]
fn html_is_markdown_with_a_title() {
    let sink =
        extracted("a.html", "<html><head><title>Bees</title></head><body><h2>Hives</h2><p>Sun.</p></body></html>");
    let [document] = sink.documents.as_slice() else { panic!() };
    assert_eq!((document.markup, document.text.as_str()), (Some(Markup::Markdown), "## Hives\n\nSun."));
    assert_eq!(document.header.title.as_deref(), Some("Bees"));
}

#[test]
fn files_without_text_are_listed() {
    let front_matter_alone = "---\ntitle: x\n---\n\n";
    let files = [
        ("a.txt", ""),
        ("a.txt", "\u{feff} \n\t\r\n"),
        ("a.md", "\n\n"),
        ("a.md", front_matter_alone),
        ("a.html", "<p> </p><script>x</script>"),
        ("a.jsonl", ""),
        ("a.jsonl", "\n \r\n"),
        ("a.csv", ""),
        ("a.csv", "text\n\n"),
        ("README", ""),
    ];
    for (name, text) in files {
        let sink = extracted(name, text);
        assert_eq!((sink.documents.len(), sink.skipped), (0, vec![(None, SkipReason::Empty)]), "{name}: {text:?}");
    }
}

#[test]
fn binary_and_non_utf8_files_are_listed() {
    for name in ["a.txt", "a.md", "a.html", "a.jsonl", "a.csv"] {
        let sink = extracted(name, b"text\nab\0cd");
        assert_eq!((sink.documents.len(), sink.skipped), (0, vec![(None, SkipReason::Binary)]), "{name}");
    }
    for name in ["a.txt", "a.md", "a.html"] {
        let sink = extracted(name, b"text\ncaf\xe9\n");
        assert_eq!(
            (sink.documents.len(), sink.skipped),
            (0, vec![(None, SkipReason::NotUtf8 { offset: 8 })]),
            "{name}"
        );
    }
}

#[test]
fn a_file_that_vanished_or_is_a_folder_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.txt", "a.html", "a.jsonl", "a.csv"] {
        fs::write(dir.path().join(name), "text").unwrap();
        let file = found(dir.path(), name);
        fs::remove_file(&file.path).unwrap();
        for is_folder in [false, true] {
            if is_folder {
                fs::create_dir(&file.path).unwrap();
            }
            let mut sink = Collected::default();
            extract(&file, "file", &RecordFields::default(), &mut sink).unwrap();
            assert!(
                matches!(sink.skipped.as_slice(), [(None, SkipReason::Unreadable(_))]),
                "{name}: {:?}",
                sink.skipped
            );
        }
    }
}

#[test]
fn a_huge_text_is_handed_over_in_small_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = std::io::BufWriter::new(fs::File::create(dir.path().join("a.md")).unwrap());
    let mut hasher = blake3::Hasher::new();
    for n in 0..700_000u64 {
        let line = format!(
            "line {n} about {} and a word in another script: 蜂蜜\n{}",
            n.wrapping_mul(2_654_435_761),
            ["", "\n"][n as usize % 2]
        );
        hasher.update(line.as_bytes());
        file.write_all(line.as_bytes()).unwrap();
    }
    // One endless line after that, without any line end.
    let word = "endless ".repeat(1 << 20);
    for _ in 0..2 {
        hasher.update(word.as_bytes());
        file.write_all(word.as_bytes()).unwrap();
    }
    file.flush().unwrap();
    drop(file);
    let found = found(dir.path(), "a.md");
    assert!(found.len > 60 << 20, "{}", found.len);

    /// Hashes what it gets, so that the test does not hold it either.
    struct Hashing(blake3::Hasher, usize, usize);
    impl DocumentSink for Hashing {
        fn begin(&mut self, _: DocumentHeader) -> Result<()> {
            Ok(())
        }
        fn segment(&mut self, _: Markup, text: &str) -> Result<()> {
            self.0.update(text.as_bytes());
            self.1 = self.1.max(text.len());
            Ok(())
        }
        fn end(&mut self) -> Result<()> {
            self.2 += 1;
            Ok(())
        }
        fn skip(&mut self, skipped: Skipped) -> Result<()> {
            panic!("{skipped}")
        }
    }
    let mut sink = Hashing(blake3::Hasher::new(), 0, 0);
    extract(&found, "file", &RecordFields::default(), &mut sink).unwrap();
    assert_eq!((sink.0.finalize(), sink.2), (hasher.finalize(), 1));
    assert!(sink.1 <= 2 << 20, "{}", sink.1);
}

#[test]
fn a_file_that_turns_bad_late_is_discarded() {
    let mut bytes = "a line of text\n".repeat(400_000).into_bytes();
    let place = bytes.len() - 100;
    bytes[place] = 0xff;
    let sink = extracted("a.txt", bytes);
    assert_eq!((sink.documents.len(), sink.skipped), (0, vec![(None, SkipReason::NotUtf8 { offset: place as u64 })]));
    assert!(sink.largest_segment > 0, "the document had begun");
}

#[test]
fn a_jsonl_line_is_a_document_with_typed_attributes() {
    let lines = [
        json!({"id": "a", "text": "one", "category": "water", "n": 1, "x": 1.5, "tags": ["p", {"q": null}], "ok": true}),
        json!({"id": 7, "text": " two\r\n", "category": 3}),
        json!({"text": "three", "category": ["list"], "title": "not embedded"}),
        json!({"id": null, "text": "four", "category": null}),
        json!({"id": "", "text": "five", "category": " "}),
    ];
    let text = format!("\u{feff}{}\n{}\r\n\n{}\n{}\n{}", lines[0], lines[1], lines[2], lines[3], lines[4]);
    let sink = extracted("a.jsonl", text);
    assert_eq!(sink.skipped, []);
    assert_eq!(
        records(&sink),
        [
            ("a", "one", Some("water"), json!({"n": 1, "x": 1.5, "tags": ["p", {"q": null}], "ok": true})),
            ("7", " two\r\n", Some("3"), json!({})),
            ("#4", "three", None, json!({"category": ["list"], "title": "not embedded"})),
            ("#5", "four", None, json!({})),
            ("#6", "five", None, json!({"category": " "})),
        ]
    );
    let places: Vec<_> = sink.documents.iter().map(|d| d.header.line.unwrap()).collect();
    assert_eq!(places, [1, 2, 4, 5, 6]);
    assert!(sink.documents.iter().all(|d| d.header.title.is_none() && d.markup == Some(Markup::Plain)));
}

#[test]
fn a_bad_jsonl_line_costs_that_line() {
    let mut text = b"{\"text\": \"good\"}\n{\"text\": oops}\n[1]\n{\"n\": 1}\n\
        {\"text\": 5}\n{\"text\": \" \"}\n{\"id\": 1.5, \"text\": \"x\"}\n"
        .to_vec();
    let offset = text.len() as u64 + 10;
    text.extend(b"{\"text\": \"\xff\"}\n");
    text.extend(format!("{}\n", "[".repeat(1000)).bytes());
    text.extend(
        b"{\"id\": \"d\", \"text\": \"first\"}\n{\"id\": \"d\", \"text\": \"second\"}\n\
        {\"id\": \"#1\", \"text\": \"x\"}\n",
    );
    text.extend(b"{\"text\": \"last");
    let sink = extracted("a.jsonl", &text);
    let texts: Vec<_> = sink.documents.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(texts, ["good", "first"]);
    assert_eq!(
        sink.skipped,
        [
            (Some(2), bad("not JSON: expected value at column 10")),
            (Some(3), bad("not a JSON object")),
            (Some(4), bad("no field `text`")),
            (Some(5), bad("field `text` is not a string")),
            (Some(6), SkipReason::Empty),
            (Some(7), bad("field `id` is neither a string nor an integer")),
            (Some(8), SkipReason::NotUtf8 { offset }),
            (Some(9), bad("not JSON: recursion limit exceeded at column 128")),
            (Some(11), SkipReason::DuplicateId("d".into())),
            (Some(12), SkipReason::DuplicateId("#1".into())),
            (Some(13), bad("not JSON: EOF while parsing a string at column 14")),
        ]
    );
}

#[test]
fn an_endless_jsonl_line_costs_that_line() {
    let long = "x".repeat(lines::MAX_RECORD_BYTES);
    let sink = extracted("a.jsonl", format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"after\"}}\n"));
    assert_eq!(sink.skipped, [(Some(1), SkipReason::TooLong { limit_bytes: 16 << 20 })]);
    assert_eq!(records(&sink), [("#2", "after", None, json!({}))]);
}

#[test]
fn record_fields_have_the_names_that_the_caller_says() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), "{\"_id\": 1, \"body\": \"x\", \"kind\": \"k\", \"id\": 2, \"text\": \"t\"}")
        .unwrap();
    fs::write(dir.path().join("a.csv"), "_id,body,kind,id,text\n1,x,k,2,t\n").unwrap();
    let fields = RecordFields { id: "_id".into(), text: "body".into(), category: "kind".into() };
    for name in ["a.jsonl", "a.csv"] {
        let mut sink = Collected::default();
        extract(&found(dir.path(), name), name, &fields, &mut sink).unwrap();
        assert_eq!(records(&sink), [("1", "x", Some("k"), json!({"id": 2, "text": "t"}))], "{name}");
    }
}

#[test]
fn a_csv_row_is_a_document_with_typed_attributes() {
    let text = "\u{feff}id,text,category,n,x,ok,code,price,empty\r\n\
                a,\"one, \"\"two\"\"\r\nthree\",water,-7,1.5,true,007,1.50,\r\n\r\n\
                ,5\" pipe,,9223372036854775808,1e5,True,x,inf, \n";
    let sink = extracted("a.csv", text);
    assert_eq!(sink.skipped, []);
    assert_eq!(
        records(&sink),
        [
            (
                "a",
                "one, \"two\"\r\nthree",
                Some("water"),
                json!({"n": -7, "x": 1.5, "ok": true, "code": "007", "price": "1.50"})
            ),
            (
                "#5",
                "5\" pipe",
                None,
                json!({"n": "9223372036854775808", "x": "1e5", "ok": "True", "code": "x", "price": "inf"})
            ),
        ]
    );
    let sink = extracted("a.tsv", "text\tn\none, two\t1\n");
    assert_eq!(records(&sink), [("#2", "one, two", None, json!({"n": 1}))]);
}

#[test]
fn a_bad_csv_row_costs_that_row() {
    let mut text = b"id,text\n1,good\n2\n3,x,y\n4,  \n5,".to_vec();
    let offset = text.len() as u64;
    text.extend(b"\xff\n6,after\n6,again\n7,\"multi\nline\"\n8,\"\n9,last\n");
    let sink = extracted("a.csv", &text);
    let texts: Vec<_> = records(&sink).into_iter().map(|(id, text, ..)| (id, text)).collect();
    assert_eq!(texts, [("1", "good"), ("6", "after"), ("7", "multi\nline"), ("9", "last")]);
    assert_eq!(
        sink.skipped,
        [
            (Some(3), bad("1 fields where the header has 2")),
            (Some(4), bad("3 fields where the header has 2")),
            (Some(5), SkipReason::Empty),
            (Some(6), SkipReason::NotUtf8 { offset }),
            (Some(8), SkipReason::DuplicateId("6".into())),
            (Some(11), bad("a quote is never closed")),
        ]
    );
}

#[test]
fn a_stray_quote_does_not_take_the_rows_after_it() {
    let sink = extracted("a.csv", "id,text\n1,\"stray\n2,two\n3,\"three, quoted\"\n4,four\n");
    let texts: Vec<_> = records(&sink).into_iter().map(|(id, text, ..)| (id, text)).collect();
    assert_eq!(texts, [("2", "two"), ("3", "three, quoted"), ("4", "four")]);
    assert_eq!(sink.skipped, [(Some(2), bad("3 fields where the header has 2"))]);
}

#[test]
fn a_table_without_the_text_column_is_listed_with_its_columns() {
    let sink = extracted("a.csv", "id;text\n1;x\n");
    assert_eq!(sink.skipped, [(None, bad("no column `text`; there are: id;text"))]);
    let sink = extracted("a.csv", "text,n,n,\nx,1,2,3\n");
    assert_eq!(sink.skipped, [(Some(1), bad("column `n` is there twice; the first one is used"))]);
    assert_eq!(records(&sink), [("#2", "x", None, json!({"n": 1, "column 4": 3}))]);
}

#[test]
fn what_is_said_of_a_header_stays_short_however_long_the_header_is() {
    let names: Vec<_> = (1..=500).map(|n| format!("{n}{}", "x".repeat(500))).collect();
    let sink = extracted("a.csv", format!("{}\n1\n", names.join(",")));
    let [(None, reason)] = &sink.skipped[..] else { panic!("{} reasons", sink.skipped.len()) };
    let reason = reason.to_string();
    assert!(reason.len() < 1000 && reason.ends_with("… and 488 more"), "{reason}");
    let sink = extracted("a.csv", format!("text{}\nx{}\n", ",n".repeat(500), ",1".repeat(500)));
    assert_eq!(sink.skipped.len(), 13);
    assert_eq!(sink.skipped[12], (Some(1), bad("487 more columns are there twice")));
    assert_eq!(records(&sink).len(), 1);
}

#[test]
fn an_error_of_the_sink_stops_the_file() {
    struct Full(usize);
    impl DocumentSink for Full {
        fn begin(&mut self, _: DocumentHeader) -> Result<()> {
            self.0 += 1;
            if self.0 == 2 { Err(Error::Cancelled) } else { Ok(()) }
        }
        fn segment(&mut self, _: Markup, _: &str) -> Result<()> {
            Ok(())
        }
        fn end(&mut self) -> Result<()> {
            Ok(())
        }
        fn skip(&mut self, skipped: Skipped) -> Result<()> {
            panic!("{skipped}")
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("a.jsonl", "{\"text\": \"x\"}\n".repeat(9)), ("a.csv", "text\na\nb\nc\n".to_owned())] {
        fs::write(dir.path().join(name), text).unwrap();
        let mut sink = Full(0);
        let answer = extract(&found(dir.path(), name), name, &RecordFields::default(), &mut sink);
        assert!(matches!(answer, Err(Error::Cancelled)));
        assert_eq!(sink.0, 2, "{name}");
    }
}

#[test]
fn endless_nesting_costs_the_file_or_the_line_and_no_stack() {
    let deep = 100_000;
    let nested = |open: &str, inner: &str, close: &str| open.repeat(deep) + inner + &close.repeat(deep);
    let dotted = vec!["a"; deep].join(".");
    for matter in [
        format!("---\na: {}\n---\ntext", nested("[", "", "]")),
        format!("---\na: {}\n---\ntext", nested("{a: ", "1", "}")),
        format!("---\na:\n  {}x\n---\ntext", "- ".repeat(deep)),
        format!("+++\na = {}\n+++\ntext", nested("[", "", "]")),
        format!("+++\na = {}\n+++\ntext", nested("{a=", "1", "}")),
        format!("+++\n{dotted} = 1\n+++\ntext"),
        format!("+++\n[{dotted}]\nx = 1\n+++\ntext"),
    ] {
        let sink = extracted("a.md", &matter);
        assert!(matches!(sink.skipped.as_slice(), [(Some(1), SkipReason::BadFrontMatter(_))]), "{:?}", sink.skipped);
        assert_eq!(sink.documents.len(), 1, "ingested as text");
    }
    let lines = format!(
        "{{\"text\": \"x\", \"a\": {}}}\n{{\"text\": \"y\"}}\n{{\"text\": \"z\", \"a\": {}}}\n",
        nested("[", "", "]"),
        nested("{\"a\":", "1", "}")
    );
    let sink = extracted("a.jsonl", &lines);
    assert_eq!(records(&sink).iter().map(|record| record.1).collect::<Vec<_>>(), ["y"]);
    assert!(matches!(
        sink.skipped.as_slice(),
        [(Some(1), SkipReason::BadRecord(_)), (Some(3), SkipReason::BadRecord(_))]
    ));
}

#[test]
#[cfg(unix)]
fn a_file_that_becomes_a_pipe_after_it_was_found_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.txt", "a.md", "a.html", "a.jsonl", "a.csv", "a.png"] {
        let path = dir.path().join(name);
        fs::write(&path, "text").unwrap();
        let file = found(dir.path(), name);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut sink = Collected::default();
        extract(&file, name, &RecordFields::default(), &mut sink).unwrap();
        let refused = SkipReason::Unreadable("not a regular file".into());
        assert_eq!((sink.documents.len(), sink.skipped), (0, vec![(None, refused)]), "{name}");
    }
}
