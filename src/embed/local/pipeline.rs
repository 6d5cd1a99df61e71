//! The threads behind a local embedder: one that tokenizes, one that owns the model, with bounded channels between.
//!
//! Guarantees: the model is loaded for the first work and dropped after an idle time; at most a handful of requests wait;
//! answers come in the order of the texts; a request whose caller is gone is not computed. The threads end when the last
//! handle is dropped. Must not know: how a model is loaded or computes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::tokenize::TokenizedText;
use crate::embed::Embedded;
use crate::embed::batching::{cut_batches, restore_order};
use crate::error::{BoxError, Error, Result};

/// Requests that wait to be tokenized, and tokenized ones that wait for the model. Two keep both threads busy; more would
/// only hold memory.
const WAITING: usize = 2;

/// Texts to embed and where the answer goes.
struct Request {
    texts: Vec<String>,
    reply: oneshot::Sender<Result<Vec<Embedded>>>,
}

/// What the threads do; shared by both.
pub(super) trait Engine: Send + Sync + 'static {
    /// A loaded model. It stays on the thread that loaded it.
    type Model;

    /// The embedder's name, for errors.
    fn name(&self) -> &str;
    /// Tokenizes on the tokenizing thread; loads the tokenizer at its first call.
    fn tokenize(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>>;
    /// Loads the model on the model thread.
    fn load(&self) -> Result<Self::Model>;
    /// Computes one batch on the model thread: one vector per text, in order.
    fn compute(&self, model: &Self::Model, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError>;
}

/// How a pipeline cuts and waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct PipelineOptions {
    /// Most tokens in one batch.
    pub(super) batch_tokens: usize,
    /// How long the model stays loaded without work.
    pub(super) idle_unload: Duration,
}

/// The way to both threads. They end when its last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    requests: mpsc::Sender<Request>,
    /// The model thread has the other end; it only goes if that thread panics, say on a lost device.
    model_thread: Weak<()>,
}

impl Pipeline {
    /// Starts both threads. Nothing is loaded yet.
    pub(super) fn start<E: Engine>(engine: Arc<E>, options: PipelineOptions) -> Result<Self> {
        let (requests, waiting) = mpsc::channel(WAITING);
        let (work, ready) = sync_channel(WAITING);
        let alive = Arc::new(());
        let model_thread = Arc::downgrade(&alive);
        spawn(engine.name(), "embank-model", {
            let engine = Arc::clone(&engine);
            move || {
                let _alive = alive;
                serve(&*engine, |wait| next_work(&ready, wait, options.idle_unload));
            }
        })?;
        spawn(engine.name(), "embank-tokenize", {
            let engine = Arc::clone(&engine);
            move || tokenize_all(&*engine, waiting, &work, options.batch_tokens)
        })?;
        Ok(Self { requests, model_thread })
    }

    /// Whether requests can still be answered.
    pub(super) fn is_running(&self) -> bool {
        !self.requests.is_closed() && self.model_thread.strong_count() > 0
    }

    /// Embeds texts that already have their prefix. `None` if the model thread stopped.
    pub(super) async fn embed(&self, texts: Vec<String>) -> Option<Result<Vec<Embedded>>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { texts, reply }).await.ok()?;
        answer.await.ok()
    }
}

fn spawn(embedder: &str, thread: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    match thread::Builder::new().name(thread.to_owned()).spawn(body) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::EmbedderFailed {
            embedder: embedder.to_owned(),
            reason: format!("cannot start the thread {thread}"),
            source: Some(e.into()),
        }),
    }
}

/// A tokenized request, cut into batches.
struct Work {
    texts: Vec<TokenizedText>,
    /// Indices into `texts`.
    batches: Vec<Vec<usize>>,
    reply: oneshot::Sender<Result<Vec<Embedded>>>,
}

fn tokenize_all<E: Engine>(
    engine: &E,
    mut requests: mpsc::Receiver<Request>,
    work: &SyncSender<Work>,
    batch_tokens: usize,
) {
    while let Some(Request { texts, reply }) = requests.blocking_recv() {
        if reply.is_closed() {
            continue;
        }
        match engine.tokenize(texts) {
            // A send that fails only means that nobody waits any more.
            Err(e) => drop(reply.send(Err(e))),
            Ok(texts) => {
                let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
                let batches = cut_batches(&lengths, batch_tokens);
                if work.send(Work { texts, batches, reply }).is_err() {
                    return;
                }
            }
        }
    }
}

/// How long the model thread may wait for work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    Forever,
    /// A model is loaded: only until it counts as idle.
    UntilIdle,
}

/// What the model thread waited for.
enum Next<W> {
    Work(W),
    Idle,
    Closed,
}

fn next_work(ready: &Receiver<Work>, wait: Wait, idle: Duration) -> Next<Work> {
    match wait {
        Wait::Forever => ready.recv().map_or(Next::Closed, Next::Work),
        Wait::UntilIdle => match ready.recv_timeout(idle) {
            Ok(work) => Next::Work(work),
            Err(RecvTimeoutError::Timeout) => Next::Idle,
            Err(RecvTimeoutError::Disconnected) => Next::Closed,
        },
    }
}

/// The model thread: answers work until there is no more to come. A failed load answers the work in hand and is tried
/// again for the next, so that pulling the model mends a running process.
fn serve<E: Engine>(engine: &E, mut next: impl FnMut(Wait) -> Next<Work>) {
    let mut loaded = None;
    loop {
        let wait = if loaded.is_some() { Wait::UntilIdle } else { Wait::Forever };
        let work = match next(wait) {
            Next::Work(work) => work,
            Next::Idle => {
                loaded = None;
                continue;
            }
            Next::Closed => return,
        };
        let model = match loaded.take().map_or_else(|| engine.load(), Ok) {
            Ok(model) => loaded.insert(model),
            Err(e) => {
                drop(work.reply.send(Err(e)));
                continue;
            }
        };
        if let Some(answer) = compute_all(engine, model, &work) {
            drop(work.reply.send(answer));
        }
    }
}

/// The answer to one request; `None` if its caller has gone.
fn compute_all<E: Engine>(engine: &E, model: &E::Model, work: &Work) -> Option<Result<Vec<Embedded>>> {
    let mut answers = Vec::with_capacity(work.texts.len());
    for batch in &work.batches {
        if work.reply.is_closed() {
            return None;
        }
        let texts: Vec<&TokenizedText> = batch.iter().filter_map(|&i| work.texts.get(i)).collect();
        let ids: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
        match engine.compute(model, &ids) {
            Ok(vectors) => answers.extend(texts.iter().zip(vectors).map(|(text, vector)| Embedded {
                vector,
                // No window comes near 2^32 tokens.
                tokens: text.ids.len() as u32,
                truncated: text.truncated,
            })),
            Err(e) => {
                return Some(Err(Error::EmbedderFailed {
                    embedder: engine.name().to_owned(),
                    reason: format!("the model failed on a batch of {} texts", batch.len()),
                    source: Some(e),
                }));
            }
        }
    }
    Some(Ok(restore_order(&work.batches, answers)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A text is a number of tokens; a vector says in which batch it came and how long its text was.
    #[derive(Default)]
    struct Counting {
        loads: Mutex<u32>,
        batches: Mutex<Vec<Vec<usize>>>,
        failing_loads: u32,
    }

    impl Engine for Counting {
        type Model = ();

        fn name(&self) -> &str {
            "counting"
        }
        fn tokenize(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>> {
            let ids = texts.iter().map(|text| vec![1; text.parse().unwrap()]);
            Ok(ids.map(|ids| TokenizedText { truncated: ids.len() == 9, ids }).collect())
        }
        fn load(&self) -> Result<()> {
            let mut loads = self.loads.lock().unwrap();
            *loads += 1;
            if *loads <= self.failing_loads { Err(Error::Cancelled) } else { Ok(()) }
        }
        fn compute(&self, (): &(), batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
            let lengths: Vec<usize> = batch.iter().map(|ids| ids.len()).collect();
            assert!(!lengths.contains(&13), "thirteen tokens");
            if lengths.contains(&7) {
                return Err("seven tokens".into());
            }
            self.batches.lock().unwrap().push(lengths.clone());
            Ok(lengths.iter().map(|&length| vec![length as f32]).collect())
        }
    }

    fn work(lengths: &[usize]) -> (Work, oneshot::Receiver<Result<Vec<Embedded>>>) {
        let (reply, answer) = oneshot::channel();
        let texts = lengths.iter().map(|&n| TokenizedText { ids: vec![1; n], truncated: false }).collect();
        (Work { texts, batches: cut_batches(lengths, 10), reply }, answer)
    }

    /// Serves what the script says, then closes; the waits that were asked for.
    fn serve_script(engine: &Counting, script: Vec<Next<Work>>) -> Vec<Wait> {
        let mut waits = Vec::new();
        let mut script = script.into_iter();
        serve(engine, |wait| {
            waits.push(wait);
            script.next().unwrap_or(Next::Closed)
        });
        waits
    }

    const OPTIONS: PipelineOptions = PipelineOptions { batch_tokens: 10, idle_unload: Duration::from_secs(600) };

    fn texts(lengths: &[usize]) -> Vec<String> {
        lengths.iter().map(usize::to_string).collect()
    }

    #[test]
    fn the_model_is_loaded_for_the_first_work_and_again_after_idling() {
        let engine = Counting::default();
        let answers: Vec<_> = (0..3).map(|_| work(&[1])).collect();
        let (mut works, receivers): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let mut next = || Next::Work(works.pop().unwrap());
        let waits = serve_script(&engine, vec![next(), next(), Next::Idle, next()]);
        assert_eq!(waits, [Wait::Forever, Wait::UntilIdle, Wait::UntilIdle, Wait::Forever, Wait::UntilIdle]);
        assert_eq!(*engine.loads.lock().unwrap(), 2);
        assert!(receivers.into_iter().all(|mut answer| answer.try_recv().unwrap().is_ok()));
    }

    #[test]
    fn waiting_ends_with_the_idle_time_only_while_a_model_is_loaded() {
        let (sender, ready) = sync_channel(1);
        assert!(matches!(next_work(&ready, Wait::UntilIdle, Duration::ZERO), Next::Idle));
        sender.send(work(&[1]).0).unwrap();
        assert!(matches!(next_work(&ready, Wait::UntilIdle, Duration::ZERO), Next::Work(_)));
        drop(sender);
        assert!(matches!(next_work(&ready, Wait::UntilIdle, Duration::ZERO), Next::Closed));
        assert!(matches!(next_work(&ready, Wait::Forever, Duration::ZERO), Next::Closed));
    }

    #[test]
    fn a_failed_load_answers_the_work_in_hand_and_is_tried_again() {
        let engine = Counting { failing_loads: 1, ..Counting::default() };
        let ((first, mut refused), (second, mut answered)) = (work(&[1]), work(&[2]));
        serve_script(&engine, vec![Next::Work(first), Next::Work(second)]);
        assert!(matches!(refused.try_recv().unwrap(), Err(Error::Cancelled)));
        assert_eq!(answered.try_recv().unwrap().unwrap()[0].tokens, 2);
    }

    #[test]
    fn work_whose_caller_is_gone_is_not_computed() {
        let engine = Counting::default();
        let (abandoned, answer) = work(&[1]);
        drop(answer);
        serve_script(&engine, vec![Next::Work(abandoned)]);
        assert!(engine.batches.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn answers_come_in_the_order_of_the_texts_from_batches_under_the_budget() {
        let engine = Arc::new(Counting::default());
        let pipeline = Pipeline::start(Arc::clone(&engine), OPTIONS).unwrap();
        let answers = pipeline.embed(texts(&[2, 9, 4, 12, 4, 1])).await.unwrap().unwrap();
        let found: Vec<_> = answers.iter().map(|a| (a.vector[0], a.tokens, a.truncated)).collect();
        let expected =
            [(2.0, 2, false), (9.0, 9, true), (4.0, 4, false), (12.0, 12, false), (4.0, 4, false), (1.0, 1, false)];
        assert_eq!(found, expected);
        assert_eq!(*engine.batches.lock().unwrap(), [vec![12], vec![9], vec![4, 4, 2], vec![1]]);
    }

    #[tokio::test]
    async fn a_failing_batch_fails_its_request_and_no_other() {
        let pipeline = Pipeline::start(Arc::new(Counting::default()), OPTIONS).unwrap();
        match pipeline.embed(texts(&[1, 7])).await.unwrap() {
            Err(Error::EmbedderFailed { embedder, source: Some(cause), .. }) => {
                assert_eq!((embedder.as_str(), cause.to_string().as_str()), ("counting", "seven tokens"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(pipeline.embed(texts(&[3])).await.unwrap().unwrap().len(), 1);
        assert!(pipeline.is_running());
    }

    #[tokio::test]
    async fn a_panic_on_the_model_thread_ends_the_request_instead_of_hanging() {
        let pipeline = Pipeline::start(Arc::new(Counting::default()), OPTIONS).unwrap();
        assert!(pipeline.embed(texts(&[13])).await.is_none());
        // The thread may still be unwinding; a request that it cannot take ends as well, and the pipeline is seen as dead.
        assert!(pipeline.embed(texts(&[1])).await.is_none());
        assert!(!pipeline.is_running());
    }
}
