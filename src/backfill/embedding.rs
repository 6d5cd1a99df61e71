//! The second stage: gives the embedder its texts, call after call, the next one always waiting.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::bisection::{Bisection, Stop};
use super::{Backfill, Shared};
use crate::embed::Embedded;
use crate::error::Result;
use crate::failure::FailureCause;
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
    pub(super) cause: FailureCause,
    pub(super) message: String,
}

/// What became of some texts of a batch. `None`: given back, because stopping was asked for or the embedder cannot work.
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
        let (mut under_way, mut result, mut is_over) = (FuturesUnordered::new(), Ok(()), false);
        loop {
            let size = shared.call.get();
            let ended = tokio::select! {
                call = calls.next(size), if under_way.len() < CALLS && !is_over => {
                    match call {
                        Some(texts) => under_way.push(answer(&backfill, &shared, &answers, texts)),
                        None => is_over = true,
                    }
                    continue;
                }
                Some(ended) = under_way.next() => ended,
                else => return result,
            };
            match ended {
                Ok(()) => {}
                Err(Stop::Embedder(error)) => {
                    shared.fail();
                    result = result.and(Err(error));
                }
                Err(Stop::WriterIsGone) => return result,
            }
        }
    }
}

async fn answer(
    backfill: &Backfill,
    shared: &Shared,
    answers: &mpsc::Sender<Answer>,
    texts: Texts,
) -> Result<(), Stop> {
    let Texts { number, texts } = texts;
    let (hashes, texts): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
    Bisection::new(backfill, shared, answers, number).run(&hashes, &texts).await
}

impl TextFailure {
    /// With the error's causes, for the status table.
    pub(super) fn new(cause: FailureCause, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { cause, message: crate::error::chain(error) }
    }
}
