//! The threads behind a local embedder: one that tokenizes, one that owns the model, with bounded channels between.
//!
//! Guarantees: while a batch is computed the next texts are tokenized; at most a handful of requests wait; the model is
//! dropped after an idle time. The threads end when the last handle is dropped. Must not know: batches, models.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::model_thread::{Engine, Next, Reply, Task, Wait, serve};
use super::tokenize::TokenizedText;
use super::usage::{ModelUsage, Usage};
use crate::embed::Embedded;
use crate::error::{Error, Result};
use crate::failure::Panicked;

/// Requests that wait to be tokenized. One would do: tokenizing takes about 1 % of the time that computing takes.
const WAITING_TEXTS: usize = 2;

/// Tokenized requests that wait for the model; questions of many callers can then share a batch. Token ids take about as
/// much memory as the texts, which the callers hold anyway.
const WAITING_TASKS: usize = 16;

/// What the tokenizing thread is asked for.
enum Request {
    Embed(Vec<String>, Reply),
    /// Passed on as it is, in its place.
    Pass(Task),
}

/// The way to both threads. They end when its last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    requests: mpsc::Sender<Request>,
    /// The model thread has the other end; it only goes if that thread panics, say on a lost device.
    model_thread: Weak<()>,
    usage: Arc<Usage>,
}

impl Pipeline {
    /// Starts both threads. Nothing is loaded yet; a loaded model goes after `idle_unload` without work.
    pub(super) fn start<E: Engine>(engine: Arc<E>, idle_unload: Duration) -> Result<Self> {
        let (requests, waiting) = mpsc::channel(WAITING_TEXTS);
        let (tasks, ready) = sync_channel(WAITING_TASKS);
        let alive = Arc::new(());
        let model_thread = Arc::downgrade(&alive);
        let usage = Arc::new(Usage::default());
        spawn(engine.name(), "embank-model", {
            let (engine, usage) = (Arc::clone(&engine), Arc::clone(&usage));
            move || {
                let _alive = alive;
                serve(&*engine, &usage, |wait| next_task(&ready, wait, idle_unload));
            }
        })?;
        spawn(engine.name(), "embank-tokenize", {
            let engine = Arc::clone(&engine);
            move || tokenize_all(&*engine, waiting, &tasks)
        })?;
        Ok(Self { requests, model_thread, usage })
    }

    /// Whether requests can still be answered.
    pub(super) fn is_running(&self) -> bool {
        !self.requests.is_closed() && self.model_thread.strong_count() > 0
    }

    /// What the model has done since the threads were started.
    pub(super) fn usage(&self) -> ModelUsage {
        self.usage.so_far()
    }

    /// Embeds texts that already have their prefix. `None` if the model thread stopped.
    pub(super) async fn embed(&self, texts: Vec<String>) -> Option<Result<Vec<Embedded>>> {
        self.ask(|reply| Request::Embed(texts, reply)).await
    }

    /// Loads the model now. `None` if the model thread stopped.
    pub(super) async fn load(&self) -> Option<Result<()>> {
        self.ask(|reply| Request::Pass(Task::Load(reply))).await
    }

    /// Returns when all that was asked for before is answered and the model is gone. `None` if the model thread stopped.
    pub(super) async fn unload(&self) -> Option<()> {
        self.ask(|reply| Request::Pass(Task::Unload(reply))).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
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

fn tokenize_all<E: Engine>(engine: &E, mut requests: mpsc::Receiver<Request>, tasks: &SyncSender<Task>) {
    while let Some(request) = requests.blocking_recv() {
        let task = match request {
            Request::Embed(_, reply) if reply.is_closed() => continue,
            Request::Embed(texts, reply) => match tokenized(engine, texts) {
                Ok(texts) => Task::Embed(texts, reply),
                Err(e) => {
                    // A send that fails only means that nobody waits any more.
                    drop(reply.send(Err(e)));
                    continue;
                }
            },
            Request::Pass(task) => task,
        };
        if tasks.send(task).is_err() {
            return;
        }
    }
}

/// A text that makes the tokenizer panic costs its request, not the thread.
fn tokenized<E: Engine>(engine: &E, texts: Vec<String>) -> Result<Vec<TokenizedText>> {
    catch_unwind(AssertUnwindSafe(|| engine.tokenize(texts))).unwrap_or_else(|payload| {
        Err(Error::EmbedderFailed {
            embedder: engine.name().to_owned(),
            reason: "its tokenizer failed".into(),
            source: Some(Panicked::new(&*payload).into()),
        })
    })
}

fn next_task(ready: &Receiver<Task>, wait: Wait, idle: Duration) -> Next {
    match wait {
        Wait::Forever => ready.recv().map_or(Next::Closed, Next::Task),
        Wait::UntilIdle => match ready.recv_timeout(idle) {
            Ok(task) => Next::Task(task),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::Closed,
        },
        Wait::NotAtAll => match ready.try_recv() {
            Ok(task) => Next::Task(task),
            Err(TryRecvError::Empty) => Next::Nothing,
            Err(TryRecvError::Disconnected) => Next::Closed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BoxError;

    /// A text is a number of tokens; a vector says how long its text was. Thirteen tokens make it panic, and so does the
    /// word `panic`; with `false` it panics while it loads.
    struct Counting {
        loads: bool,
    }

    impl Engine for Counting {
        type Model = ();

        fn name(&self) -> &str {
            "counting"
        }
        fn tokenize(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>> {
            assert!(!texts.contains(&"panic".to_owned()), "the word");
            let ids = |text: &String| text.parse().map(|n| vec![1; n]).map_err(|_| Error::Cancelled);
            texts.iter().map(|text| Ok(TokenizedText { ids: ids(text)?, truncated: false })).collect()
        }
        fn load(&self) -> Result<()> {
            assert!(self.loads, "it cannot be loaded");
            Ok(())
        }
        fn batch_tokens(&self, (): &()) -> usize {
            10
        }
        fn compute(&self, (): &(), batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
            assert!(batch.iter().all(|ids| ids.len() != 13), "thirteen tokens");
            Ok(batch.iter().map(|ids| vec![ids.len() as f32]).collect())
        }
        fn unloaded(&self) {}
    }

    fn start() -> Pipeline {
        Pipeline::start(Arc::new(Counting { loads: true }), Duration::from_secs(600)).unwrap()
    }

    fn texts(lengths: &[usize]) -> Vec<String> {
        lengths.iter().map(usize::to_string).collect()
    }

    #[test]
    fn waiting_ends_with_the_idle_time_only_while_a_model_is_loaded() {
        let (sender, ready) = sync_channel(1);
        let task = || Task::Unload(oneshot::channel().0);
        assert!(matches!(next_task(&ready, Wait::UntilIdle, Duration::ZERO), Next::Nothing));
        assert!(matches!(next_task(&ready, Wait::NotAtAll, Duration::MAX), Next::Nothing));
        sender.send(task()).unwrap();
        assert!(matches!(next_task(&ready, Wait::UntilIdle, Duration::ZERO), Next::Task(_)));
        sender.send(task()).unwrap();
        assert!(matches!(next_task(&ready, Wait::NotAtAll, Duration::ZERO), Next::Task(_)));
        drop(sender);
        for wait in [Wait::UntilIdle, Wait::NotAtAll, Wait::Forever] {
            assert!(matches!(next_task(&ready, wait, Duration::ZERO), Next::Closed));
        }
    }

    #[tokio::test]
    async fn many_callers_get_their_own_answers_and_the_work_is_counted() {
        let pipeline = start();
        let calls = (1..=12).map(|n| {
            let pipeline = pipeline.clone();
            async move { (n, pipeline.embed(texts(&[n, 1])).await.unwrap().unwrap()) }
        });
        for (n, answers) in futures::future::join_all(calls).await {
            assert_eq!((answers[0].vector[0], answers[1].vector[0]), (n as f32, 1.0));
        }
        let usage = pipeline.usage();
        assert_eq!((usage.loads, usage.texts, usage.tokens), (1, 24, 12 * 13 / 2 + 12));
    }

    #[tokio::test]
    async fn a_text_that_cannot_be_tokenized_fails_its_request_and_no_other() {
        let pipeline = start();
        assert!(pipeline.embed(vec!["1".into(), "x".into()]).await.unwrap().is_err());
        assert_eq!(pipeline.embed(texts(&[3])).await.unwrap().unwrap().len(), 1);
        assert!(pipeline.is_running());
    }

    #[tokio::test]
    async fn a_model_that_was_let_go_is_loaded_again() {
        let pipeline = start();
        pipeline.load().await.unwrap().unwrap();
        pipeline.unload().await.unwrap();
        assert_eq!(pipeline.embed(texts(&[3])).await.unwrap().unwrap().len(), 1);
        assert_eq!(pipeline.usage().loads, 2);
    }

    #[tokio::test]
    async fn a_request_whose_future_is_dropped_leaves_the_others_alone() {
        let pipeline = start();
        let abandoned = pipeline.clone();
        let polled = futures::poll!(Box::pin(async move { abandoned.embed(texts(&[2])).await }));
        assert!(polled.is_pending());
        assert_eq!(pipeline.embed(texts(&[3])).await.unwrap().unwrap()[0].vector, [3.0]);
    }

    #[tokio::test]
    async fn a_panic_costs_its_request_alone_and_says_its_message() {
        let pipeline = start();
        for (text, message) in [("13", "thirteen tokens"), ("panic", "the word")] {
            let (other, failed) = tokio::join!(pipeline.embed(texts(&[3])), pipeline.embed(vec![text.into()]));
            assert_eq!(other.unwrap().unwrap()[0].vector, [3.0], "{text}");
            let Err(Error::EmbedderFailed { source: Some(panicked), .. }) = failed.unwrap() else { panic!("{text}") };
            assert!(panicked.to_string().contains(message), "{panicked}");
        }
        assert!(pipeline.is_running());
        // Nothing that a panic may have left half done is computed with.
        assert_eq!(pipeline.embed(texts(&[2])).await.unwrap().unwrap()[0].vector, [2.0]);
        assert!(pipeline.usage().loads >= 2);
    }

    #[tokio::test]
    async fn a_panic_while_loading_ends_the_request_instead_of_hanging() {
        let pipeline = Pipeline::start(Arc::new(Counting { loads: false }), Duration::from_secs(600)).unwrap();
        assert!(pipeline.embed(texts(&[13])).await.is_none());
        // The thread may still be unwinding; a request that it cannot take ends as well, and the pipeline is seen as dead.
        assert!(pipeline.embed(texts(&[1])).await.is_none());
        assert!(!pipeline.is_running());
    }
}
