//! The second stage: gives the embedder its texts, call after call, the next one always waiting; and finds the text that is
//! at fault where a call fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use tokio::sync::mpsc;

use super::{Backfill, Shared};
use crate::embed::{Embedded, TextKind, check_vector};
use crate::error::{Error, Result};
use crate::id::ContentHash;

/// Calls on their way at once: one that the model works on, and the next.
const CALLS: usize = 2;

/// The texts of one batch that have to be embedded, each once.
pub(super) struct Texts {
    pub(super) number: u64,
    pub(super) texts: Vec<(ContentHash, String)>,
}

/// Why one text could not be embedded.
#[derive(Clone, Debug)]
pub(super) struct TextFailure {
    pub(super) kind: &'static str,
    pub(super) message: String,
}

/// What became of some texts of a batch. `None`: not attempted, because stopping was asked for or the embedder cannot work.
pub(super) struct Answer {
    pub(super) number: u64,
    pub(super) answers: Vec<(ContentHash, Option<Result<Embedded, TextFailure>>)>,
}

/// Calls the embedder for what comes.
pub(super) struct Caller {
    pub(super) backfill: Backfill,
    pub(super) shared: Arc<Shared>,
    pub(super) texts: mpsc::Receiver<Texts>,
    pub(super) answers: mpsc::Sender<Answer>,
}

/// Batches cut into calls.
struct Calls {
    received: mpsc::Receiver<Texts>,
    /// What is left of a batch that was begun.
    rest: Option<Texts>,
}

impl Calls {
    /// At most `size` texts of one batch; `None` once no more come. Nothing is lost where this is not awaited to its end.
    async fn next(&mut self, size: usize) -> Option<Texts> {
        while self.rest.is_none() {
            self.rest = Some(self.received.recv().await?).filter(|batch| !batch.texts.is_empty());
        }
        let Texts { number, mut texts } = self.rest.take()?;
        let rest = texts.split_off(size.min(texts.len()));
        self.rest = (!rest.is_empty()).then_some(Texts { number, texts: rest });
        Some(Texts { number, texts })
    }
}

impl Caller {
    /// Embeds until no more texts come.
    ///
    /// # Errors
    /// Where the embedder cannot work at all. What comes after that is not attempted, so that its claims are given back.
    pub(super) async fn run(self) -> Result<()> {
        let Self { backfill, shared, texts, answers } = self;
        let mut calls = Calls { received: texts, rest: None };
        let (mut under_way, mut result, mut is_over) = (FuturesOrdered::new(), Ok(()), false);
        loop {
            let size = shared.call.get();
            let answered = tokio::select! {
                call = calls.next(size), if under_way.len() < CALLS && !is_over => {
                    match call {
                        Some(texts) => under_way.push_back(backfill.answer(texts, &shared)),
                        None => is_over = true,
                    }
                    continue;
                }
                Some(answered) = under_way.next() => answered,
                else => return result,
            };
            let (answer, error) = answered;
            if let Some(error) = error {
                shared.is_failing.store(true, Ordering::Relaxed);
                result = result.and(Err(error));
            }
            if answers.send(answer).await.is_err() {
                // The writer has failed; its own error says why.
                return result;
            }
        }
    }
}

impl Backfill {
    /// Makes one call. With the error of an embedder that cannot work come the answers that it has all the same.
    async fn answer(&self, texts: Texts, shared: &Shared) -> (Answer, Option<Error>) {
        let Texts { number, texts } = texts;
        let (hashes, texts): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
        let count = texts.len();
        let is_over = self.cancel.is_cancelled() || shared.is_failing.load(Ordering::Relaxed);
        let (answers, error) = if is_over {
            (vec![None; count], None)
        } else {
            let began = std::time::Instant::now();
            let embedded = self.embed_each(&texts).await;
            shared.call.adapt(count, began.elapsed());
            match embedded {
                Ok(answers) => (answers.into_iter().map(Some).collect(), None),
                Err(error) => {
                    let kept = self.embedder.kept_answers(TextKind::Passage, &texts).into_iter();
                    (kept.map(|answer| answer.map(|answer| self.checked(answer))).collect(), Some(error))
                }
            }
        };
        (Answer { number, answers: hashes.into_iter().zip(answers).collect() }, error)
    }

    /// One answer for each text. A batch that fails as a whole, or is answered with a wrong count, is halved until the text
    /// at fault stands alone.
    fn embed_each<'a>(&'a self, texts: &'a [String]) -> BoxFuture<'a, Result<Vec<Result<Embedded, TextFailure>>>> {
        Box::pin(async move {
            // One line a call: what a run that was killed had given the embedder can be counted from outside.
            tracing::trace!(texts = texts.len(), "asking the embedder");
            let failure = match self.embedder.embed(TextKind::Passage, texts).await {
                Ok(answers) if answers.len() == texts.len() => {
                    return Ok(answers.into_iter().map(|answer| self.checked(answer)).collect());
                }
                Ok(answers) => TextFailure {
                    kind: "count",
                    message: format!("the embedder gave {} answers for {} texts", answers.len(), texts.len()),
                },
                // Not a matter of a text: no other text would fare better.
                Err(error) if error.is_permanent() => return Err(error),
                Err(error) => TextFailure { kind: "embedder", message: error_chain(&error) },
            };
            if texts.len() <= 1 {
                return Ok(texts.iter().map(|_| Err(failure.clone())).collect());
            }
            let (left, right) = texts.split_at(texts.len() / 2);
            let mut answers = self.embed_each(left).await?;
            answers.extend(self.embed_each(right).await?);
            Ok(answers)
        })
    }

    fn checked(&self, answer: Embedded) -> Result<Embedded, TextFailure> {
        match check_vector(&answer.vector, self.embedder.identity()) {
            Ok(()) => Ok(answer),
            Err(defect) => Err(TextFailure { kind: "vector", message: defect.to_string() }),
        }
    }
}

/// An error with its causes, for the status table.
fn error_chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
