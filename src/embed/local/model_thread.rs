//! What the model thread does: it loads the model for the first work, answers what waits in batches, and lets the model go.
//!
//! Guarantees: answers come in the order of the texts; a batch that fails, or panics, costs no request but those that fail alone, too; a
//! request whose caller is gone is not computed; a failed load answers the work in hand and is tried again for the next, so
//! that pulling a model mends a running process. Must not know: channels, how a model is loaded or computes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tokio::sync::oneshot;

use super::tokenize::TokenizedText;
use super::usage::Usage;
use crate::embed::Embedded;
use crate::embed::batching::{Place, Waiting};
use crate::error::{BoxError, Error, Result};
use crate::failure::Panicked;

/// Requests that are answered side by side. Enough to gather the questions of many callers into one batch.
const OPEN_REQUESTS: usize = 16;

/// Most tokens of a batch until a loaded model says otherwise; none is computed before.
const BATCH_TOKENS: usize = 1_024;

/// What the threads run; shared by both.
pub(super) trait Engine: Send + Sync + 'static {
    /// A loaded model. It stays on the thread that loaded it.
    type Model;

    /// The embedder's name, for errors.
    fn name(&self) -> &str;
    /// Tokenizes on the tokenizing thread; loads the tokenizer at its first call.
    fn tokenize(&self, texts: Vec<String>) -> Result<Vec<TokenizedText>>;
    /// Loads the model on the model thread.
    fn load(&self) -> Result<Self::Model>;
    /// Most tokens of a batch for this model.
    fn batch_tokens(&self, model: &Self::Model) -> usize;
    /// Computes one batch on the model thread: one vector per text, in order.
    fn compute(&self, model: &Self::Model, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError>;
    /// The model is gone; what was kept beside it can go, too.
    fn unloaded(&self);
}

/// Where the answer to a request goes.
pub(super) type Reply = oneshot::Sender<Result<Vec<Embedded>>>;

/// What the model thread is asked for.
pub(super) enum Task {
    /// Embed these texts.
    Embed(Vec<TokenizedText>, Reply),
    /// Load the model if it is not.
    Load(oneshot::Sender<Result<()>>),
    /// Let the model go once all that came before is answered.
    Unload(oneshot::Sender<()>),
}

/// How long the model thread may wait for a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Wait {
    Forever,
    /// A model is loaded: only until it counts as idle.
    UntilIdle,
    /// Texts wait.
    NotAtAll,
}

/// What came of waiting.
pub(super) enum Next {
    Task(Task),
    /// No task within the time.
    Nothing,
    /// No task can come any more.
    Closed,
}

/// Answers tasks until there are no more to come.
pub(super) fn serve<E: Engine>(engine: &E, usage: &Usage, mut next: impl FnMut(Wait) -> Next) {
    let mut desk = Desk {
        engine,
        usage,
        model: None,
        open: BTreeMap::new(),
        waiting: Waiting::new(BATCH_TOKENS),
        next_number: 0,
        unloads: Vec::new(),
    };
    loop {
        if desk.must_work() {
            desk.work();
            continue;
        }
        match next(desk.wait()) {
            Next::Task(Task::Embed(texts, reply)) => desk.open(texts, reply),
            Next::Task(Task::Load(reply)) => drop(reply.send(desk.load().map(drop))),
            Next::Task(Task::Unload(reply)) => desk.unloads.push(reply),
            Next::Nothing if desk.open.is_empty() => desk.unload(),
            Next::Nothing => desk.work(),
            Next::Closed => return,
        }
    }
}

/// The requests in hand, and the model.
struct Desk<'a, E: Engine> {
    engine: &'a E,
    usage: &'a Usage,
    model: Option<E::Model>,
    /// By number, oldest first.
    open: BTreeMap<u64, Open>,
    waiting: Waiting,
    next_number: u64,
    /// Who waits for the model to go.
    unloads: Vec<oneshot::Sender<()>>,
}

/// A request that is being answered.
struct Open {
    texts: Vec<TokenizedText>,
    answers: Vec<Option<Embedded>>,
    missing: usize,
    reply: Reply,
}

impl<E: Engine> Desk<'_, E> {
    fn wait(&self) -> Wait {
        match (&self.model, self.open.is_empty()) {
            (_, false) => Wait::NotAtAll,
            (Some(_), true) => Wait::UntilIdle,
            (None, true) => Wait::Forever,
        }
    }

    /// Whether what is in hand comes before any new task.
    fn must_work(&self) -> bool {
        self.open.len() >= OPEN_REQUESTS || !self.unloads.is_empty()
    }

    fn open(&mut self, texts: Vec<TokenizedText>, reply: Reply) {
        if texts.is_empty() {
            drop(reply.send(Ok(Vec::new())));
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.add(number, texts.iter().map(|text| text.ids.len()));
        let open = Open { answers: vec![None; texts.len()], missing: texts.len(), texts, reply };
        self.open.insert(number, open);
    }

    /// One batch; or, with nothing left to compute, what waits for that.
    fn work(&mut self) {
        self.forget_abandoned();
        let Some(oldest) = self.open.first_key_value().map(|(number, _)| *number) else {
            if !self.unloads.is_empty() {
                self.unload();
            }
            return;
        };
        if let Err(e) = self.load() {
            self.close(oldest, Err(e));
            return;
        }
        let batch = self.waiting.next_batch();
        if let Err(e) = self.compute(&batch) {
            self.compute_apart(&batch, e);
        }
    }

    fn load(&mut self) -> Result<&E::Model> {
        match self.model.take() {
            Some(model) => Ok(self.model.insert(model)),
            None => {
                let model = self.engine.load()?;
                self.usage.loaded();
                self.waiting.set_budget(self.engine.batch_tokens(&model));
                Ok(self.model.insert(model))
            }
        }
    }

    fn unload(&mut self) {
        drop(self.model.take());
        self.engine.unloaded();
        for reply in self.unloads.drain(..) {
            // One whose caller is gone needs no answer.
            let _ = reply.send(());
        }
    }

    /// Computes a batch and answers the requests that are whole with it.
    fn compute(&mut self, batch: &[Place]) -> Result<(), BoxError> {
        // Gone if the last batch made it panic.
        self.load()?;
        let Some(model) = &self.model else { return Err("no model is loaded".into()) };
        let text = |place: &Place| self.open.get(&place.request)?.texts.get(place.text);
        let ids: Vec<&[u32]> = batch.iter().filter_map(text).map(|text| text.ids.as_slice()).collect();
        // One line a batch: what the model of a run that was killed had computed can be counted from outside.
        tracing::trace!(texts = ids.len(), "the model begins a batch");
        let started = Instant::now();
        // What a panic left half done goes with the model; the next batch loads it anew.
        let vectors = match catch_unwind(AssertUnwindSafe(|| self.engine.compute(model, &ids))) {
            Ok(computed) => computed?,
            Err(payload) => {
                drop(self.model.take());
                return Err(Panicked::new(&*payload).into());
            }
        };
        self.usage.computed(ids.len(), ids.iter().map(|ids| ids.len()).sum(), started.elapsed());
        if vectors.len() != batch.len() {
            return Err(format!("{} vectors for {} texts", vectors.len(), batch.len()).into());
        }
        for (place, vector) in batch.iter().zip(vectors) {
            self.answer(*place, vector);
        }
        Ok(())
    }

    /// After a batch failed: each of its requests by itself, so that only those at fault fail.
    fn compute_apart(&mut self, batch: &[Place], error: BoxError) {
        let mut numbers: Vec<u64> = batch.iter().map(|place| place.request).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if let [only] = numbers.as_slice() {
            self.fail(*only, batch.len(), error);
            return;
        }
        for number in numbers {
            let own: Vec<Place> = batch.iter().copied().filter(|place| place.request == number).collect();
            if let Err(e) = self.compute(&own) {
                self.fail(number, own.len(), e);
            }
        }
    }

    fn fail(&mut self, number: u64, texts: usize, source: BoxError) {
        let embedder = self.engine.name().to_owned();
        let reason = format!("the model failed on a batch of {texts} texts");
        self.close(number, Err(Error::EmbedderFailed { embedder, reason, source: Some(source) }));
    }

    fn answer(&mut self, place: Place, vector: Vec<f32>) {
        let Some(open) = self.open.get_mut(&place.request) else { return };
        let (Some(answer), Some(text)) = (open.answers.get_mut(place.text), open.texts.get(place.text)) else { return };
        // No window comes near 2^32 tokens.
        *answer = Some(Embedded { vector, tokens: text.ids.len() as u32, truncated: text.truncated });
        open.missing -= 1;
        if open.missing == 0 {
            let answers = std::mem::take(&mut open.answers).into_iter().flatten().collect();
            self.close(place.request, Ok(answers));
        }
    }

    fn close(&mut self, number: u64, answer: Result<Vec<Embedded>>) {
        self.waiting.remove(number);
        if let Some(open) = self.open.remove(&number) {
            drop(open.reply.send(answer));
        }
    }

    fn forget_abandoned(&mut self) {
        let abandoned: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.reply.is_closed()).map(|(number, _)| *number).collect();
        for number in abandoned {
            self.waiting.remove(number);
            self.open.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A text is a number of tokens; a vector says how long its text was.
    #[derive(Default)]
    struct Counting {
        loads: Mutex<u32>,
        unloads: Mutex<u32>,
        batches: Mutex<Vec<Vec<usize>>>,
        failing_loads: u32,
    }

    impl Engine for Counting {
        type Model = ();

        fn name(&self) -> &str {
            "counting"
        }
        fn tokenize(&self, _: Vec<String>) -> Result<Vec<TokenizedText>> {
            panic!("texts come tokenized")
        }
        fn load(&self) -> Result<()> {
            let mut loads = self.loads.lock().unwrap();
            *loads += 1;
            if *loads <= self.failing_loads { Err(Error::Cancelled) } else { Ok(()) }
        }
        fn batch_tokens(&self, (): &()) -> usize {
            10
        }
        fn compute(&self, (): &(), batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
            let lengths: Vec<usize> = batch.iter().map(|ids| ids.len()).collect();
            if lengths.contains(&7) {
                return Err("seven tokens".into());
            }
            self.batches.lock().unwrap().push(lengths.clone());
            // Too few answers for three tokens.
            let answered = lengths.iter().filter(|&&length| length != 3);
            Ok(answered.map(|&length| vec![length as f32]).collect())
        }
        fn unloaded(&self) {
            *self.unloads.lock().unwrap() += 1;
        }
    }

    type Answer = oneshot::Receiver<Result<Vec<Embedded>>>;

    fn work(lengths: &[usize]) -> (Next, Answer) {
        let (reply, answer) = oneshot::channel();
        let texts = lengths.iter().map(|&n| TokenizedText { ids: vec![1; n], truncated: n == 9 }).collect();
        (Next::Task(Task::Embed(texts, reply)), answer)
    }

    /// Serves what the script says, then closes; the waits that were asked for.
    fn serve_script(engine: &Counting, script: Vec<Next>) -> Vec<Wait> {
        let mut waits = Vec::new();
        let mut script = script.into_iter();
        serve(engine, &Usage::default(), |wait| {
            waits.push(wait);
            script.next().unwrap_or(Next::Closed)
        });
        waits
    }

    fn lengths(mut answer: Answer) -> Vec<f32> {
        answer.try_recv().unwrap().unwrap().iter().map(|answer| answer.vector[0]).collect()
    }

    #[test]
    fn the_model_is_loaded_for_the_first_work_and_again_after_idling() {
        let engine = Counting::default();
        let (works, answers): (Vec<_>, Vec<_>) = (0..3).map(|_| work(&[1])).unzip();
        let mut works = works.into_iter();
        let mut next = || works.next().unwrap();
        // Nothing more comes: the work is done. Nothing comes for the idle time: the model goes.
        let script = vec![next(), Next::Nothing, next(), Next::Nothing, Next::Nothing, next(), Next::Nothing];
        let waits = serve_script(&engine, script);
        let [forever, idle, not] = [Wait::Forever, Wait::UntilIdle, Wait::NotAtAll];
        assert_eq!(waits, [forever, not, idle, not, idle, forever, not, idle]);
        assert_eq!((*engine.loads.lock().unwrap(), *engine.unloads.lock().unwrap()), (2, 1));
        assert!(answers.into_iter().all(|mut answer| answer.try_recv().unwrap().is_ok()));
    }

    #[test]
    fn answers_come_in_the_order_of_the_texts_from_batches_under_the_budget() {
        let engine = Counting::default();
        let (request, mut answer) = work(&[2, 9, 4, 12, 4, 1]);
        serve_script(&engine, [request].into_iter().chain((0..4).map(|_| Next::Nothing)).collect());
        let answers = answer.try_recv().unwrap().unwrap();
        let found: Vec<_> = answers.iter().map(|a| (a.vector[0], a.tokens, a.truncated)).collect();
        let expected =
            [(2.0, 2, false), (9.0, 9, true), (4.0, 4, false), (12.0, 12, false), (4.0, 4, false), (1.0, 1, false)];
        assert_eq!(found, expected);
        assert_eq!(*engine.batches.lock().unwrap(), [vec![12], vec![9], vec![4, 4, 2], vec![1]]);
    }

    #[test]
    fn requests_that_wait_together_share_batches_and_get_their_own_answers() {
        let engine = Counting::default();
        let ((a, first), (b, second)) = (work(&[5, 2]), work(&[1, 2]));
        serve_script(&engine, vec![a, b, Next::Nothing]);
        assert_eq!((lengths(first), lengths(second)), (vec![5.0, 2.0], vec![1.0, 2.0]));
        assert_eq!(*engine.batches.lock().unwrap(), [vec![5, 2, 2, 1]]);
    }

    #[test]
    fn a_shared_batch_that_fails_costs_only_the_request_at_fault() {
        let engine = Counting::default();
        let ((a, first), (b, mut failed), (c, mut short)) = (work(&[2]), work(&[7]), work(&[3]));
        serve_script(&engine, vec![a, b, Next::Nothing, c, Next::Nothing]);
        assert_eq!(lengths(first), [2.0]);
        match failed.try_recv().unwrap() {
            Err(Error::EmbedderFailed { embedder, source: Some(cause), .. }) => {
                assert_eq!((embedder.as_str(), cause.to_string().as_str()), ("counting", "seven tokens"));
            }
            other => panic!("{other:?}"),
        }
        match short.try_recv().unwrap() {
            Err(Error::EmbedderFailed { source: Some(cause), .. }) => {
                assert_eq!(cause.to_string(), "0 vectors for 1 texts");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failed_load_answers_the_oldest_work_and_is_tried_again() {
        let engine = Counting { failing_loads: 1, ..Counting::default() };
        let ((a, mut refused), (b, answered)) = (work(&[1]), work(&[2]));
        serve_script(&engine, vec![a, b, Next::Nothing, Next::Nothing]);
        assert!(matches!(refused.try_recv().unwrap(), Err(Error::Cancelled)));
        assert_eq!(lengths(answered), [2.0]);
    }

    #[test]
    fn work_whose_caller_is_gone_is_not_computed_and_does_not_unload_the_model() {
        let engine = Counting::default();
        let ((a, first), (abandoned, gone)) = (work(&[1]), work(&[1]));
        drop(gone);
        serve_script(&engine, vec![a, Next::Nothing, abandoned, Next::Nothing]);
        assert_eq!(lengths(first), [1.0]);
        assert_eq!(*engine.batches.lock().unwrap(), [[1]]);
        assert_eq!(*engine.unloads.lock().unwrap(), 0);
    }

    #[test]
    fn unloading_waits_for_what_came_before_it() {
        let engine = Counting::default();
        let (request, answer) = work(&[9, 9]);
        let (unloaded, mut told) = oneshot::channel();
        let (loaded, mut told_of_load) = oneshot::channel();
        let waits =
            serve_script(&engine, vec![Next::Task(Task::Load(loaded)), request, Next::Task(Task::Unload(unloaded))]);
        assert!(told_of_load.try_recv().unwrap().is_ok());
        assert_eq!(lengths(answer), [9.0, 9.0]);
        told.try_recv().unwrap();
        assert_eq!(waits, [Wait::Forever, Wait::UntilIdle, Wait::NotAtAll, Wait::Forever]);
        assert_eq!((*engine.loads.lock().unwrap(), *engine.unloads.lock().unwrap()), (1, 1));
    }

    #[test]
    fn no_text_needs_no_model() {
        let engine = Counting::default();
        let (request, answer) = work(&[]);
        serve_script(&engine, vec![request]);
        assert!(lengths(answer).is_empty());
        assert_eq!(*engine.loads.lock().unwrap(), 0);
    }
}
