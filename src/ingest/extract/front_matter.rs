//! Front matter: what a Markdown file states about itself at its top, as YAML between `---` lines or TOML between `+++`
//! lines.

use serde_json::{Map, Number, Value};

use super::DocumentHeader;

/// What the top of a Markdown file is.
pub(super) enum FrontMatter<'a> {
    /// Text. An opening line without a closing one, or with a blank line after it, is a horizontal rule.
    None,
    /// Attributes, and the text after them.
    Read { header: Box<DocumentHeader>, rest: &'a str },
    /// Something between two marks that is neither YAML nor TOML with keys; and why.
    Bad(String),
}

/// Reads the front matter of `text`, whose line ends are `\n`.
///
/// Every key becomes an attribute of its own type; dates become strings. `category` is taken out; `title` is the title and
/// an attribute.
pub(super) fn read(text: &str) -> FrontMatter<'_> {
    let Some((language, inside, rest)) = split(text) else { return FrontMatter::None };
    let attributes = match language {
        Language::Yaml => yaml(inside),
        Language::Toml => toml_table(inside),
    };
    match attributes {
        Ok(attributes) => FrontMatter::Read { header: Box::new(header(attributes)), rest },
        Err(reason) => FrontMatter::Bad(reason),
    }
}

/// The text of a scalar: what a category or a title may be. `None` for a blank one and for anything else.
pub(super) fn scalar_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Bool(bool) => bool.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    if text.is_empty() { None } else { Some(text) }
}

#[derive(Clone, Copy)]
enum Language {
    Yaml,
    Toml,
}

/// The front matter between its marks, and what comes after it.
fn split(text: &str) -> Option<(Language, &str, &str)> {
    let mut lines = text.split_inclusive('\n');
    let opening = lines.next()?;
    let (language, closings): (_, &[&str]) = match opening.trim_end() {
        "---" => (Language::Yaml, &["---", "..."]),
        "+++" => (Language::Toml, &["+++"]),
        _ => return None,
    };
    let start = opening.len();
    if text.get(start..)?.starts_with('\n') {
        return None;
    }
    let mut at = start;
    for line in lines {
        if closings.contains(&line.trim_end()) {
            return Some((language, text.get(start..at)?, text.get(at + line.len()..)?));
        }
        at += line.len();
    }
    None
}

fn header(mut attributes: Map<String, Value>) -> DocumentHeader {
    let title = attributes.get("title").and_then(scalar_text);
    let category = attributes.get("category").and_then(scalar_text);
    if category.is_some() {
        attributes.remove("category");
    }
    DocumentHeader { category, title, attributes, ..DocumentHeader::default() }
}

fn yaml(text: &str) -> Result<Map<String, Value>, String> {
    // As written where YAML 1.1 and 1.2 disagree: `no` is a word, `007` and `1_000` are strings.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    };
    match serde_saphyr::from_str_with_options::<Value>(text, options) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err("it has no keys".into()),
        Err(error) => Err(first_line(&error.without_snippet().to_string())),
    }
}

fn toml_table(text: &str) -> Result<Map<String, Value>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| first_line(error.message()))?;
    Ok(table.into_iter().map(|(key, value)| (key, toml_value(value))).collect())
}

fn toml_value(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(integer) => Value::Number(integer.into()),
        // JSON has no word for infinity; TOML's own is kept.
        toml::Value::Float(float) => Number::from_f64(float).map_or_else(|| float.to_string().into(), Value::Number),
        toml::Value::Boolean(bool) => Value::Bool(bool),
        toml::Value::Datetime(datetime) => Value::String(datetime.to_string()),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(toml_value).collect()),
        toml::Value::Table(table) => Value::Object(table.into_iter().map(|(k, v)| (k, toml_value(v))).collect()),
    }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attributes(text: &str) -> (Value, String) {
        match read(text) {
            FrontMatter::Read { header, rest } => (Value::Object(header.attributes), rest.to_owned()),
            FrontMatter::None => panic!("no front matter: {text}"),
            FrontMatter::Bad(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn yaml_keeps_its_types() {
        let text = "---\ntitle: Bees\nyear: 2024\nweight: 1.5\ndraft: false\ntags: [a, b]\ndate: 2024-05-01\nanswer: no\n\
                    phone: 007\nnested:\n  deep: {x: 1}\nnothing:\n---\n\n# Text\n";
        let (stated, rest) = attributes(text);
        assert_eq!(
            stated,
            json!({"title": "Bees", "year": 2024, "weight": 1.5, "draft": false, "tags": ["a", "b"],
                "date": "2024-05-01", "answer": "no", "phone": "007", "nested": {"deep": {"x": 1}}, "nothing": null})
        );
        assert_eq!(rest, "\n# Text\n");
    }

    #[test]
    fn toml_keeps_its_types() {
        let text = "+++\ntitle = \"Bees\"\nyear = 2024\nweight = 1.5\ndraft = false\n\
                    date = 2024-05-01\n[nested]\nx = [1]\n+++\nText";
        let (stated, rest) = attributes(text);
        assert_eq!(
            stated,
            json!({"title": "Bees", "year": 2024, "weight": 1.5, "draft": false, "date": "2024-05-01", "nested": {"x": [1]}})
        );
        assert_eq!(rest, "Text");
    }

    #[test]
    fn title_and_category_are_taken_as_such() {
        let FrontMatter::Read { header, .. } = read("---\ntitle: 1984\ncategory: ' fiction '\n---\n") else { panic!() };
        assert_eq!(header.title.as_deref(), Some("1984"));
        assert_eq!(header.category.as_deref(), Some("fiction"));
        assert_eq!(Value::Object(header.attributes), json!({"title": 1984}));
        let FrontMatter::Read { header, .. } = read("---\ncategory: [a, b]\ntitle: ''\n...\nx") else { panic!() };
        assert_eq!((header.title, header.category), (None, None));
        assert_eq!(Value::Object(header.attributes), json!({"category": ["a", "b"], "title": ""}));
    }

    #[test]
    fn what_only_looks_like_front_matter_is_text() {
        for text in [
            "---\na rule, and no end\n",
            "---\n\nbetween rules\n\n---\n",
            "text\n---\na: 1\n---\n",
            "----\na: 1\n---\n",
            "",
            "--- # x\na: 1\n---\n",
        ] {
            assert!(matches!(read(text), FrontMatter::None), "{text}");
        }
    }

    #[test]
    fn malformed_front_matter_says_why_in_one_line() {
        let bomb = format!(
            "---\na: &a [x, x, x, x, x, x, x, x, x]\n{}---\n",
            ('b'..='l').fold(String::new(), |text, name| {
                let before = char::from(name as u8 - 1);
                text + &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", "))
            })
        );
        for text in
            ["---\na: [1\n---\n", "---\njust a sentence\n---\n", "---\na: 1\na: 2\n---\n", "+++\na = \n+++\n", &bomb]
        {
            let FrontMatter::Bad(reason) = read(text) else { panic!("{text}") };
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
        }
    }
}
