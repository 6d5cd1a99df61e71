//! What a fuzz target does with the answer of a provider, and what has to be true of what is read off it.

use super::protocol::{error_code, error_message, parse_answer};

/// The first byte: how many texts were asked for. The rest: the body of the answer.
pub fn answer(data: &[u8]) {
    let Some((&want, body)) = data.split_first() else { return };
    let want = usize::from(want % 8);
    if let Ok(answer) = parse_answer(body, want) {
        assert_eq!(answer.vectors.len(), want, "one vector for each text, or none");
        let numbers: usize = answer.vectors.iter().map(Vec::len).sum();
        assert!(numbers <= body.len(), "no number comes out of nothing");
    }
    let message = error_message(body);
    assert!(message.len() <= 304 && !message.contains(char::is_control), "shortened, and safe to print: {message:?}");
    let _ = error_code(body);
}
