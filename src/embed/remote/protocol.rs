//! The wire: what `/v1/embeddings` is asked, and what of its answer is believed.
//!
//! Guarantees: vectors come in the order of the texts, one each, or the answer is refused with what is wrong with it. What a
//! vector holds (dimension, finite, norm) is not judged here.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::floats;
use crate::error::BoxError;

/// How vectors are written in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    /// Little-endian 32-bit floats in base64.
    Base64,
    /// Decimal numbers.
    Float,
}

/// The body of a request.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Request<'a> {
    pub(super) model: &'a str,
    pub(super) input: &'a [&'a str],
    pub(super) encoding_format: Encoding,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dimensions: Option<usize>,
}

/// A believable answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// One per text, in order.
    pub(super) vectors: Vec<Vec<f32>>,
    /// Tokens billed for the request, where the provider says.
    pub(super) billed_tokens: Option<u64>,
}

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerDefect {
    #[error("the JSON ends early")]
    Truncated(#[source] BoxError),
    #[error("it is not the JSON of an embeddings answer")]
    NotAnAnswer(#[source] BoxError),
    #[error("it reports an error: {message}")]
    Reported { message: String },
    #[error("it has {got} vectors for {want} texts")]
    Count { got: usize, want: usize },
    #[error("its indexes are not those of {want} texts")]
    Index { want: usize },
    #[error("it is longer than {limit} bytes")]
    TooLong { limit: u64 },
}

impl Request<'_> {
    pub(super) fn body(&self) -> Vec<u8> {
        serde_json::json!(self).to_string().into_bytes()
    }
}

/// Bytes that an answer may have: decimal numbers take up to 25 bytes each with separators, a text has an envelope, an answer
/// has one of its own.
pub(super) fn answer_limit(texts: usize, dimension: usize) -> u64 {
    const NUMBER: u64 = 32;
    const TEXT: u64 = 1024;
    const ENVELOPE: u64 = 64 << 10;
    (texts as u64).saturating_mul((dimension as u64).saturating_mul(NUMBER).saturating_add(TEXT)) + ENVELOPE
}

/// Reads the answer to a request of `want` texts.
pub(super) fn parse_answer(body: &[u8], want: usize) -> Result<Answer, AnswerDefect> {
    let envelope: Envelope = serde_json::from_slice(body).map_err(|e| {
        if e.is_eof() { AnswerDefect::Truncated(Box::new(e)) } else { AnswerDefect::NotAnAnswer(Box::new(e)) }
    })?;
    let Some(items) = envelope.data else {
        return Err(AnswerDefect::Reported { message: error_message(body) });
    };
    if items.len() != want {
        return Err(AnswerDefect::Count { got: items.len(), want });
    }
    let billed_tokens = envelope.usage.and_then(|usage| usage.total_tokens.or(usage.prompt_tokens));
    Ok(Answer { vectors: in_order(items, want)?, billed_tokens })
}

/// Puts items in the order of their indexes. Servers that give none answer in the order of the texts; some with and some
/// without is not believed, nor is an index that comes twice: a vector must not end up at another text.
fn in_order(mut items: Vec<Item>, want: usize) -> Result<Vec<Vec<f32>>, AnswerDefect> {
    if items.iter().any(|item| item.index.is_some()) {
        items.sort_by_key(|item| item.index);
        let expected = (0..want as u64).map(Some);
        if !items.iter().map(|item| item.index).eq(expected) {
            return Err(AnswerDefect::Index { want });
        }
    }
    Ok(items.into_iter().map(|item| item.embedding.0).collect())
}

/// What a provider says is wrong, out of the forms that providers use; shortened, without control characters.
pub(super) fn error_message(body: &[u8]) -> String {
    const LONGEST: usize = 300;
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let found = parsed.as_ref().and_then(|value| {
        let places = ["/error/message", "/error", "/message", "/detail", "/detail/0/msg"];
        places.iter().find_map(|place| value.pointer(place)?.as_str())
    });
    let raw = String::from_utf8_lossy(body);
    let text = found.unwrap_or(&raw);
    let mut clean: String = text.split(|c: char| c.is_control() || c.is_whitespace()).collect::<Vec<_>>().join(" ");
    if clean.len() > LONGEST {
        clean.truncate(clean.floor_char_boundary(LONGEST));
        clean.push('…');
    }
    if clean.trim().is_empty() { "no explanation".into() } else { clean }
}

/// The machine-readable code of an error, such as `insufficient_quota`.
pub(super) fn error_code(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    ["/error/code", "/error/type", "/code"].iter().find_map(|place| Some(value.pointer(place)?.as_str()?.to_owned()))
}

#[derive(Deserialize)]
struct Envelope {
    data: Option<Vec<Item>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Item {
    index: Option<u64>,
    embedding: Floats,
}

/// A vector in either encoding, whatever was asked for: some servers ignore the question.
struct Floats(Vec<f32>);

impl<'de> Deserialize<'de> for Floats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FloatsVisitor).map(Self)
    }
}

struct FloatsVisitor;

impl<'de> Visitor<'de> for FloatsVisitor {
    type Value = Vec<f32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, or base64 of 32-bit floats")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<f32>, E> {
        floats::decode(text).ok_or_else(|| E::custom("the vector is not base64 of 32-bit floats"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vec<f32>, A::Error> {
        let mut vector = Vec::new();
        // JSON has no NaN: `null` is what servers write for it. As a number that is not finite it costs its text alone.
        while let Some(number) = numbers.next_element::<Option<f64>>()? {
            vector.push(number.map_or(f32::NAN, |number| number as f32));
        }
        Ok(vector)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str, want: usize) -> Result<Answer, String> {
        parse_answer(json.as_bytes(), want).map_err(|defect| defect.to_string())
    }

    #[test]
    fn vectors_come_in_the_order_of_the_texts_whatever_their_order_and_encoding() {
        let text = base64::engine::general_purpose::STANDARD.encode([1.5_f32, -2.0].map(f32::to_le_bytes).concat());
        let json = format!(
            r#"{{"object":"list","data":[{{"object":"embedding","index":1,"embedding":[0.25,-1e-3]}},
            {{"index":0,"embedding":"{text}"}}],"model":"m","usage":{{"prompt_tokens":7,"total_tokens":8}}}}"#
        );
        let answer = parse(&json, 2).unwrap();
        assert_eq!(answer, Answer { vectors: vec![vec![1.5, -2.0], vec![0.25, -0.001]], billed_tokens: Some(8) });
        let bare = parse(r#"{"data":[{"embedding":[1]},{"embedding":[2]}]}"#, 2).unwrap();
        assert_eq!(bare, Answer { vectors: vec![vec![1.0], vec![2.0]], billed_tokens: None });
    }

    #[test]
    fn each_defect_is_named() {
        let says = |json: &str, said: &str| {
            let found = parse(json, 2).unwrap_err();
            assert!(found.contains(said), "{json}: {found}");
        };
        says(r#"{"data":[{"index":0,"embedding":[0.1,"#, "ends early");
        says("", "ends early");
        says("<html>Bad gateway</html>", "not the JSON");
        says(r#"{"data":[{"index":0,"embedding":[NaN]}]}"#, "not the JSON");
        says(r#"{"data":[{"index":0,"embedding":"AAA"}]}"#, "not the JSON");
        says(r#"{"error":{"message":"overloaded"}}"#, "reports an error: overloaded");
        says(r#"{"data":[{"index":0,"embedding":[1]}]}"#, "1 vectors for 2 texts");
        says(r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[2]}]}"#, "indexes");
        says(r#"{"data":[{"index":1,"embedding":[1]},{"index":2,"embedding":[2]}]}"#, "indexes");
        says(r#"{"data":[{"index":0,"embedding":[1]},{"embedding":[2]}]}"#, "indexes");
    }

    #[test]
    fn what_json_writes_for_nan_and_infinity_is_not_finite_and_spoils_no_neighbour() {
        let vectors = parse(r#"{"data":[{"embedding":[null,1e39]},{"embedding":[1,2]}]}"#, 2).unwrap().vectors;
        assert!(vectors[0].iter().all(|x| !x.is_finite()));
        assert_eq!(vectors[1], [1.0, 2.0]);
    }

    #[test]
    fn an_explanation_is_found_shortened_and_cleaned() {
        assert_eq!(error_message(br#"{"error":{"message":"no\nsuch model","code":"x"}}"#), "no such model");
        assert_eq!(error_message(br#"{"detail":[{"msg":"too long"}]}"#), "too long");
        assert_eq!(error_message(b"\x1b[31mgone"), " [31mgone");
        assert_eq!(error_message(b""), "no explanation");
        assert!(error_message("ä".repeat(1000).as_bytes()).len() < 310);
        assert_eq!(
            error_code(br#"{"error":{"message":"m","code":"insufficient_quota"}}"#).unwrap(),
            "insufficient_quota"
        );
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let request =
            Request { model: "m", input: &["a\0", "\"b\""], encoding_format: Encoding::Base64, dimensions: None };
        let sent: serde_json::Value = serde_json::from_slice(&request.body()).unwrap();
        assert_eq!(sent, serde_json::json!({"model": "m", "input": ["a\0", "\"b\""], "encoding_format": "base64"}));
        let request = Request { dimensions: Some(256), encoding_format: Encoding::Float, ..request };
        let sent: serde_json::Value = serde_json::from_slice(&request.body()).unwrap();
        assert_eq!((&sent["dimensions"], &sent["encoding_format"]), (&256.into(), &"float".into()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), want in 0_usize..4) {
            let _ = (parse_answer(&bytes, want), error_message(&bytes), error_code(&bytes));
        }

        #[test]
        fn every_cut_of_a_good_answer_is_refused(cut in 0_usize..71) {
            let good = r#"{"data":[{"index":0,"embedding":[0.5,0.25]}],"usage":{"total_tokens":3}}"#;
            prop_assert!(parse(good, 1).is_ok());
            prop_assert!(parse(good.get(..cut).unwrap(), 1).is_err());
        }
    }
}
