//! Why a text has no vector: the kinds of failures, and the one place that decides which kind a failure is of.
//!
//! Guarantees: every error and every unusable answer has exactly one kind; the words that are stored for kinds stay what they
//! are. Must not know: embedders, tables, when a text is tried again (`status`).

use std::any::Any;
use std::fmt;

use crate::error::Error;

/// What is to be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// It may pass: the text is tried again after a pause, [`MAX_ATTEMPTS`](crate::MAX_ATTEMPTS) times in all.
    Transient,
    /// It would come again: the text is not tried again until somebody asks for it.
    Permanent,
    /// No other text would fare better: the run stops at once and no text is marked.
    Fatal,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Transient, Self::Permanent, Self::Fatal];

    /// The kind as it is stored and printed: `transient`, `permanent`, `fatal`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::Fatal => "fatal",
        }
    }

    /// The kind of this word, if it is one.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for FailureKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What went wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// The call for it failed, in this way.
    Call(FailureKind),
    /// It was answered with what cannot be stored: a vector that is not finite, too short or of norm 0, or no vector.
    Answer,
}

impl FailureCause {
    /// What the error of a call says about its texts.
    pub(crate) fn of(error: &Error) -> Self {
        Self::Call(error.failure_kind())
    }

    /// The kind for a text that has failed `attempts` times before. A bad answer may come of a machine that is short of memory;
    /// the one that comes again comes of the text.
    pub(crate) fn kind(self, attempts: u32) -> FailureKind {
        match (self, attempts) {
            (Self::Call(kind), _) => kind,
            (Self::Answer, 0) => FailureKind::Transient,
            (Self::Answer, _) => FailureKind::Permanent,
        }
    }
}

impl Error {
    /// What an embedder's failure with this error means for the texts that it was given.
    ///
    /// | error | kind |
    /// |---|---|
    /// | [`Error::EmbedderFailed`], a panic among them | transient |
    /// | [`Error::TextRefused`] | permanent |
    /// | any other: refused credentials, a missing model, a spend cap, the store | fatal |
    pub fn failure_kind(&self) -> FailureKind {
        match self {
            Self::EmbedderFailed { .. } => FailureKind::Transient,
            Self::TextRefused { .. } => FailureKind::Permanent,
            _ => FailureKind::Fatal,
        }
    }
}

/// A panic that was caught, as the cause of an error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub(crate) struct Panicked(String);

impl Panicked {
    /// With the message of the panic, where it has one.
    pub(crate) fn new(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self(text.unwrap_or("without a message").to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::FailureKind::{Fatal, Permanent, Transient};
    use super::*;

    fn word() -> String {
        "x".into()
    }

    #[test]
    fn each_error_of_an_embedder_has_its_kind_whatever_came_before() {
        let table = [
            (Error::EmbedderFailed { embedder: word(), reason: word(), source: None }, Transient),
            (Error::TextRefused { embedder: word(), reason: word(), source: None }, Permanent),
            (Error::EmbedderDown { embedder: word(), source: "x".into() }, Fatal),
            (Error::ModelMissing { model: word(), dir: word().into(), missing: word() }, Fatal),
            (Error::ModelFormat { path: word().into(), reason: word(), source: None }, Fatal),
            (Error::ChecksumMismatch { path: word().into(), expected: word(), found: word() }, Fatal),
            (Error::ModelDrift { model: word(), text: word(), cosine: 0.5, required: 0.9 }, Fatal),
            (Error::NoTextTower { model: word() }, Fatal),
            (Error::UnknownEmbedder { name: word(), known: word() }, Fatal),
            (Error::ProviderRefused { provider: word(), status: 401, reason: word() }, Fatal),
            (Error::ProviderUnavailable { provider: word(), waited_seconds: 3, source: None }, Fatal),
            (Error::SpendCapReached { scope: "run", cap: word(), spent_tokens: 1, wanted_tokens: 1 }, Fatal),
            (Error::InvalidSetting { setting: "x", reason: word() }, Fatal),
            (Error::Io { action: "read", path: word().into(), source: std::io::Error::other("x") }, Fatal),
            (Error::Store { action: "scan", table: word(), source: "x".into() }, Fatal),
            (Error::Cancelled, Fatal),
        ];
        for (error, kind) in table {
            for attempts in [0, 1, 7] {
                assert_eq!(FailureCause::of(&error).kind(attempts), kind, "{error}");
            }
        }
    }

    #[test]
    fn a_bad_answer_is_tried_again_once() {
        assert_eq!([0, 1, 2].map(|attempts| FailureCause::Answer.kind(attempts)), [Transient, Permanent, Permanent]);
    }

    #[test]
    fn the_stored_words_stay_what_they_are() {
        assert_eq!(FailureKind::ALL.map(FailureKind::as_str), ["transient", "permanent", "fatal"]);
        assert_eq!(FailureKind::ALL.map(|kind| FailureKind::parse(kind.as_str())), FailureKind::ALL.map(Some));
        assert_eq!(FailureKind::parse("vector"), None);
    }

    #[test]
    fn a_panics_message_is_kept_in_either_form() {
        for payload in [Box::new("seven") as Box<dyn Any + Send>, Box::new("seven".to_owned())] {
            assert_eq!(Panicked::new(&*payload).to_string(), "panicked: seven");
        }
        assert_eq!(Panicked::new(&7).to_string(), "panicked: without a message");
    }
}
