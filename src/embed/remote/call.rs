//! One call of the embedder: texts to requests, requests side by side, answers back in order.
//!
//! Guarantees: an answer that was paid for is never lost while the process lives: it reaches the caller, or is kept for the
//! next call, even if this one fails or its future is dropped. Requests that are not yet sent then never are.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Shared;
use super::budget::Budget;
use super::kept::TextKey;
use super::options::Normalisation;
use super::protocol::Answer;
use super::request::{Sending, Stop};
use super::tokens::{Prepared, cut_requests, share};
use crate::embed::{Embedded, TextKind, check_vector};
use crate::error::{BoxError, Error, Result};
use crate::failure::FailureKind;

/// One text of a call.
struct Text {
    position: usize,
    key: TextKey,
    text: String,
}

/// Texts that are sent together.
struct Request {
    texts: Vec<Text>,
    prepared: Vec<Prepared>,
}

/// Answers by the text's position in the call.
type Answered = Vec<(usize, Embedded)>;

/// Embeds `texts`; what the future of [`RemoteEmbedder`](super::RemoteEmbedder) does.
pub(super) async fn embed(shared: &Arc<Shared>, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
    let keys: Vec<TextKey> = texts.iter().map(|text| TextKey::new(kind, text)).collect();
    let mut answers = shared.kept.get(&keys);
    let missing = answers.iter().zip(keys.iter().zip(texts)).enumerate().filter(|(_, (kept, _))| kept.is_none());
    let missing: Vec<Text> =
        missing.map(|(position, (_, (key, text)))| Text { position, key: *key, text: text.clone() }).collect();
    if !missing.is_empty() {
        // A task of its own, so that it ends in order where this future is dropped.
        let stop = Stop::new();
        let _stop_on_drop = StopOnDrop(stop.clone());
        let (tell, told) = oneshot::channel();
        tokio::spawn(run(shared.clone(), kind, missing, stop, tell));
        for (position, answer) in told.await.map_err(|e| failed(shared, "the call ended early", e))?? {
            if let Some(place) = answers.get_mut(position) {
                *place = Some(answer);
            }
        }
    }
    let answers: Vec<Embedded> = answers.into_iter().flatten().collect();
    shared.kept.delivered(keys.into_iter().zip(&answers).filter(|(_, answer)| is_good(shared, answer)));
    Ok(answers)
}

/// Sends what is missing and tells the answers; keeps them where the call fails, or nobody is there any more to be told.
async fn run(
    shared: Arc<Shared>,
    kind: TextKind,
    missing: Vec<Text>,
    stop: Stop,
    tell: oneshot::Sender<Result<Answered>>,
) {
    let keys: Vec<(usize, TextKey)> = missing.iter().map(|text| (text.position, text.key)).collect();
    let mut answered = Vec::with_capacity(missing.len());
    let result = send_all(&shared, kind, missing, stop, &mut answered).await;
    let keep = |answered: Answered| {
        let mut answered: HashMap<usize, Embedded> = answered.into_iter().collect();
        let answers = keys.iter().map(|(position, key)| {
            // A bad vector is not worth keeping: asked again, the provider may do better.
            (*key, answered.remove(position).filter(|answer| is_good(&shared, answer)))
        });
        shared.kept.failed(answers);
    };
    match result {
        Err(error) => {
            keep(answered);
            // Fails where nobody is there to be told; what was paid for is kept.
            let _ = tell.send(Err(error));
        }
        Ok(()) => {
            if let Err(Ok(answered)) = tell.send(Ok(answered)) {
                keep(answered);
            }
        }
    }
}

/// Sends what is missing; whatever was answered is in `answered`, also where it fails.
async fn send_all(
    shared: &Arc<Shared>,
    kind: TextKind,
    missing: Vec<Text>,
    stop: Stop,
    answered: &mut Answered,
) -> Result<()> {
    let requests = prepare(shared, kind, missing).await?;
    let most = |request: &Request| request.prepared.iter().map(|text| text.most_tokens).sum();
    let bounds: Vec<u64> = requests.iter().map(most).collect();
    let dearest = shared.providers.iter().map(|provider| provider.picos_per_token).max().unwrap_or(0);
    let budget = Arc::new(stop.or(Budget::open(shared.account.clone(), dearest, &bounds)).await??);

    let mut sending = JoinSet::new();
    for request in requests {
        let (shared, budget, stop) = (shared.clone(), budget.clone(), stop.clone());
        sending.spawn(async move {
            let answer = Sending::new(&shared, &budget, stop, &request.prepared).answer().await?;
            let positions = request.texts.iter().map(|text| text.position);
            Ok(positions.zip(embedded(&shared, &request.prepared, answer)).collect::<Answered>())
        });
    }
    let mut first_error = None;
    while let Some(ended) = sending.join_next().await {
        match ended.map_err(|e| failed(shared, "a request ended early", e)).flatten() {
            Ok(answers) => answered.extend(answers),
            Err(error) => first_error = Some(worse(first_error, error)),
        }
    }
    budget.close().await;
    first_error.map_or(Ok(()), Err)
}

/// Tokenises and cuts, on a thread for it: 512 texts take a tokenizer about 20 ms.
async fn prepare(shared: &Arc<Shared>, kind: TextKind, missing: Vec<Text>) -> Result<Vec<Request>> {
    let of = shared.clone();
    let prepared = tokio::task::spawn_blocking(move || {
        let prepared = missing.iter().map(|text| of.meter.prepare(kind, &text.text)).collect();
        let mut texts = missing.into_iter();
        let requests = cut_requests(prepared, of.batch.texts.get(), of.batch.tokens).into_iter();
        requests.map(|prepared| Request { texts: texts.by_ref().take(prepared.len()).collect(), prepared }).collect()
    });
    prepared.await.map_err(|e| failed(shared, "texts could not be prepared", e))
}

/// The answers for a request's texts. Their vectors may still be wrong; the caller judges each by itself.
fn embedded(shared: &Shared, texts: &[Prepared], answer: Answer) -> Vec<Embedded> {
    let estimates: Vec<u32> = texts.iter().map(|text| text.tokens).collect();
    let billed = answer.billed_tokens.unwrap_or_else(|| estimates.iter().copied().map(u64::from).sum());
    let tokens = share(billed, &estimates, shared.identity.max_tokens);
    let answers = answer.vectors.into_iter().zip(texts).zip(tokens);
    answers
        .map(|((mut vector, text), tokens)| {
            if shared.normalisation == Normalisation::Unit {
                normalise(&mut vector);
            }
            Embedded { vector, tokens, truncated: text.truncated }
        })
        .collect()
}

fn is_good(shared: &Shared, answer: &Embedded) -> bool {
    check_vector(&answer.vector, &shared.identity).is_ok()
}

/// Scales to unit norm; a vector of norm 0, or with values that are not finite, stays what it is.
fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 && norm.is_finite() {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// Of two errors the one that tells more: a permanent one, and never that something was stopped because of the other.
fn worse(first: Option<Error>, second: Error) -> Error {
    let rank = |error: &Error| match error {
        Error::Cancelled => 0,
        other if other.failure_kind() == FailureKind::Fatal => 2,
        _ => 1,
    };
    match first {
        Some(first) if rank(&first) >= rank(&second) => first,
        _ => second,
    }
}

fn failed(shared: &Shared, reason: &str, source: impl Into<BoxError>) -> Error {
    let embedder = shared.identity.name.clone();
    Error::EmbedderFailed { embedder, reason: reason.into(), source: Some(source.into()) }
}

/// Asks to stop when the caller no longer waits.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}
