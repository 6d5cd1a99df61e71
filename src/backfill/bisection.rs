//! One call of the embedder, and what follows where it fails: the call is halved until the texts at fault stand alone.
//!
//! Guarantees: a text that was answered is never sent again, and its answer goes to the writer before the next part is asked
//! for; `p` texts at fault among `n` cost at most `2 p (log2 n + 1)` calls more than none; an embedder that fails for every
//! text is found out by one call more, and blamed instead of the texts; a panic is an error like any other.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use futures::FutureExt;
use tokio::sync::mpsc;

use super::embedding::{Answer, TextFailure};
use super::{Backfill, Shared};
use crate::embed::{Embedded, TextKind, check_vector};
use crate::error::{BoxError, Error};
use crate::failure::{FailureCause, FailureKind, Panicked};
use crate::id::ContentHash;

/// What any text embedder can embed. It is none of the user's texts: a failure on it is no text's fault.
const PLAIN_TEXT: &str = "The quick brown fox jumps over the lazy dog.";

/// Failures in a row after which the embedder is doubted again: one bad text among 2,048, as many as a call may have, makes
/// 12 at most.
const DOUBTED_AFTER: u32 = 16;

/// Why a bisection ended early. What was not answered has been given back.
pub(super) enum Stop {
    /// The embedder cannot work.
    Embedder(Error),
    /// Nobody takes answers any more; the writer's own error says why.
    WriterIsGone,
}

/// The texts of a call, or of a part of it.
#[derive(Clone, Copy)]
struct Part<'a> {
    hashes: &'a [ContentHash],
    texts: &'a [String],
}

/// What became of one call.
enum Asked {
    /// One answer for each text.
    Answered(Vec<Result<Embedded, TextFailure>>),
    /// No text has an answer, and another choice of texts may fare better.
    Failed(FailureCause, BoxError),
    /// No other choice would.
    Fatal(Error),
}

/// A call under way.
pub(super) struct Bisection<'a> {
    backfill: &'a Backfill,
    shared: &'a Shared,
    answers: &'a mpsc::Sender<Answer>,
    /// Of the batch that the texts are of.
    number: u64,
    /// Calls that gave no vector since the last one that did.
    failed_in_a_row: u32,
    was_doubted: bool,
}

impl<'a> Bisection<'a> {
    pub(super) fn new(
        backfill: &'a Backfill,
        shared: &'a Shared,
        answers: &'a mpsc::Sender<Answer>,
        number: u64,
    ) -> Self {
        Self { backfill, shared, answers, number, failed_in_a_row: 0, was_doubted: false }
    }

    /// Gets an answer for each text, or gives it back.
    pub(super) async fn run(mut self, hashes: &[ContentHash], texts: &[String]) -> Result<(), Stop> {
        // Left to right, so that answers come in the order of the texts.
        let mut parts = vec![Part { hashes, texts }];
        while let Some(part) = parts.pop() {
            if self.backfill.cancel.is_cancelled() || self.shared.is_failing() {
                parts.push(part);
                return self.give_back(parts).await;
            }
            let began = Instant::now();
            let mut asked = self.backfill.ask(part.texts).await;
            if part.texts.len() == texts.len() {
                self.shared.call.adapt(texts.len(), began.elapsed());
            }
            if self.is_doubtful(&asked)
                && let Err(error) = self.backfill.check_embedder().await
            {
                asked = Asked::Fatal(error);
            }
            match asked {
                Asked::Answered(answers) => self.send(part, answers.into_iter().map(Some)).await?,
                Asked::Failed(..) if part.texts.len() > 1 => {
                    let (left, right) = part.halves();
                    parts.extend([right, left]);
                }
                Asked::Failed(cause, error) => self.send(part, [Some(Err(TextFailure::new(cause, &*error)))]).await?,
                Asked::Fatal(error) => {
                    parts.push(part);
                    self.give_back(parts).await?;
                    return Err(Stop::Embedder(error));
                }
            }
        }
        Ok(())
    }

    /// Whether the embedder is to be asked for something that cannot be at fault: once a call that fails, and again whenever
    /// it has been silent for long.
    fn is_doubtful(&mut self, asked: &Asked) -> bool {
        let is_silent = match asked {
            Asked::Answered(answers) => answers.iter().all(Result::is_err),
            Asked::Failed(..) => true,
            Asked::Fatal(_) => return false,
        };
        if !is_silent {
            self.failed_in_a_row = 0;
            return false;
        }
        self.failed_in_a_row += 1;
        !std::mem::replace(&mut self.was_doubted, true) || self.failed_in_a_row.is_multiple_of(DOUBTED_AFTER)
    }

    /// Ends what was not answered: with the answers that the embedder has at hand all the same, or without any.
    async fn give_back(&self, parts: Vec<Part<'_>>) -> Result<(), Stop> {
        for part in parts.into_iter().rev() {
            let kept = self.backfill.embedder.kept_answers(TextKind::Passage, part.texts).into_iter();
            self.send(part, kept.map(|answer| answer.map(|answer| self.backfill.checked(answer)))).await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        part: Part<'_>,
        answers: impl IntoIterator<Item = Option<Result<Embedded, TextFailure>>>,
    ) -> Result<(), Stop> {
        let answers = part.hashes.iter().copied().zip(answers).collect();
        self.answers.send(Answer { number: self.number, answers }).await.map_err(|_| Stop::WriterIsGone)
    }
}

impl<'a> Part<'a> {
    fn halves(self) -> (Self, Self) {
        let middle = self.texts.len() / 2;
        let ((left, right), (left_texts, right_texts)) = (self.hashes.split_at(middle), self.texts.split_at(middle));
        (Part { hashes: left, texts: left_texts }, Part { hashes: right, texts: right_texts })
    }
}

impl Backfill {
    /// Makes one call. A panic in it is a failure.
    async fn ask(&self, texts: &[String]) -> Asked {
        // One line a call: what a run that was killed had given the embedder can be counted from outside.
        tracing::trace!(texts = texts.len(), "asking the embedder");
        // Within a future of its own, because an embedder may panic before it gives one. What the panic leaves half done is the
        // embedder's; nothing here is touched by it.
        let call = AssertUnwindSafe(async { self.embedder.embed(TextKind::Passage, texts).await });
        let answered = call.catch_unwind().await.unwrap_or_else(|payload| {
            let source = Panicked::new(&*payload);
            let (embedder, reason) = (self.embedder.identity().name.clone(), "it gave up".into());
            Err(Error::EmbedderFailed { embedder, reason, source: Some(source.into()) })
        });
        match answered {
            Ok(answers) if answers.len() == texts.len() => {
                Asked::Answered(answers.into_iter().map(|answer| self.checked(answer)).collect())
            }
            Ok(answers) => {
                Asked::Failed(FailureCause::Answer, WrongCount { got: answers.len(), want: texts.len() }.into())
            }
            Err(error) => match FailureCause::of(&error) {
                FailureCause::Call(FailureKind::Fatal) => Asked::Fatal(error),
                cause => Asked::Failed(cause, error.into()),
            },
        }
    }

    /// Whether the embedder works at all.
    async fn check_embedder(&self) -> Result<(), Error> {
        let source: BoxError = match self.ask(&[PLAIN_TEXT.to_owned()]).await {
            Asked::Answered(answers) => match answers.into_iter().find_map(Result::err) {
                None => return Ok(()),
                Some(failure) => failure.message.into(),
            },
            Asked::Failed(_, error) => error,
            // One that knows images alone cannot be asked like this.
            Asked::Fatal(Error::NoTextTower { .. }) => return Ok(()),
            Asked::Fatal(error) => return Err(error),
        };
        Err(Error::EmbedderDown { embedder: self.embedder.identity().name.clone(), source })
    }

    fn checked(&self, answer: Embedded) -> Result<Embedded, TextFailure> {
        match check_vector(&answer.vector, self.embedder.identity()) {
            Ok(()) => Ok(answer),
            Err(defect) => Err(TextFailure::new(FailureCause::Answer, &defect)),
        }
    }
}

/// An answer that cannot be told apart into texts.
#[derive(Debug, thiserror::Error)]
#[error("the embedder gave {got} answers for {want} texts")]
struct WrongCount {
    got: usize,
    want: usize,
}
