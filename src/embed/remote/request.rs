//! The life of one request: which provider is asked, when it is asked again, and when it is given up.
//!
//! Guarantees: a 429 costs no attempt; attempts per provider and waiting in all are bounded; nothing is sent without money set
//! aside for it, nor once the call was given up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Shared;
use super::breaker::{Circuit, Pass};
use super::budget::{Budget, Draw};
use super::protocol::Answer;
use super::provider::{Billing, Failure, Fault, Provider, Verdict};
use super::tokens::Prepared;
use crate::error::{Error, Result};
use crate::failure::FailureKind;

/// A request under way.
pub(super) struct Sending<'a> {
    shared: &'a Shared,
    budget: &'a Budget,
    stop: Stop,
    texts: &'a [Prepared],
    /// What became of each provider, for this request.
    tried: Vec<Tried>,
    throttled: u32,
    waited: Duration,
}

/// Asks to stop: the call that wants the answers was given up, or another request of it found that none can be had.
#[derive(Clone)]
pub(super) struct Stop(Arc<watch::Sender<bool>>);

#[derive(Default)]
struct Tried {
    attempts: u32,
    /// Not asked again by this request.
    is_out: bool,
    last: Option<Setback>,
}

/// Why a provider gave no answer.
enum Setback {
    Failed { fault: Fault, is_suspect: bool },
    Refused { status: u16, reason: String },
}

/// What to do next.
enum Next {
    Ask(usize),
    Wait(Duration),
    /// For the probe of this provider.
    WaitForProbe(usize),
    GiveUp,
}

/// What one attempt leads to.
enum Step {
    Done(Answer),
    /// After a pause; zero where only the request or the provider is another one.
    Again(Duration),
}

impl<'a> Sending<'a> {
    pub(super) fn new(shared: &'a Shared, budget: &'a Budget, stop: Stop, texts: &'a [Prepared]) -> Self {
        let tried = shared.providers.iter().map(|_| Tried::default()).collect();
        Self { shared, budget, stop, texts, tried, throttled: 0, waited: Duration::ZERO }
    }

    /// # Errors
    /// [`Error::EmbedderFailed`] and [`Error::TextRefused`] where another choice of texts may fare better; otherwise
    /// [`Error::ProviderRefused`], [`Error::ProviderUnavailable`], [`Error::SpendCapReached`], [`Error::InvalidSetting`],
    /// [`Error::Cancelled`].
    pub(super) async fn answer(self) -> Result<Answer> {
        let stop = self.stop.clone();
        self.ask_until_answered().await.inspect_err(|error| stop.stop_for(error))
    }

    async fn ask_until_answered(mut self) -> Result<Answer> {
        let inputs: Vec<&str> = self.texts.iter().map(|text| text.input.as_str()).collect();
        let tokens =
            u32::try_from(self.texts.iter().map(|text| u64::from(text.tokens)).sum::<u64>()).unwrap_or(u32::MAX);
        let most_tokens = self.texts.iter().map(|text| text.most_tokens).sum();
        loop {
            let number = match self.next() {
                Next::Ask(number) => number,
                Next::Wait(pause) => {
                    self.wait(pause).await?;
                    continue;
                }
                Next::WaitForProbe(number) => {
                    if let Some(provider) = self.shared.providers.get(number) {
                        self.stop.or(provider.breaker.probe_ended()).await?;
                    }
                    continue;
                }
                Next::GiveUp => return Err(self.given_up()),
            };
            let Some(provider) = self.shared.providers.get(number) else { return Err(self.given_up()) };
            self.stop.or(provider.pacer.admit(tokens)).await?;
            let slot = self.stop.or(provider.host.slot(provider.max_concurrent)).await?;
            // After the waits: the circuit may have opened, or the provider asked to be left alone.
            if !provider.held_for(self.now()).is_zero() {
                continue;
            }
            let Some(pass) = provider.breaker.admit(self.now()) else { continue };
            let draw = self.stop.or(self.budget.draw(most_tokens)).await??;
            // From here on nothing is given up half-way: what is sent is heard out, or counted as paid.
            let verdict = provider.attempt(&inputs, self.shared.timer.now()).await;
            let step =
                self.note(number, provider, pass, draw, verdict).inspect_err(|error| self.stop.stop_for(error))?;
            drop(slot);
            match step {
                Step::Done(answer) => return Ok(answer),
                Step::Again(pause) => self.wait(pause).await?,
            }
        }
    }

    /// The first provider that may still be asked and whose circuit is not open; if all are, what is to be waited for.
    fn next(&self) -> Next {
        let now = self.now();
        let (mut probing, mut shortest) = (None, None);
        for (number, (provider, tried)) in self.shared.providers.iter().zip(&self.tried).enumerate() {
            if tried.is_out {
                continue;
            }
            match provider.breaker.circuit(now) {
                Circuit::Passable => {
                    let held_for = provider.held_for(now);
                    return if held_for.is_zero() { Next::Ask(number) } else { Next::Wait(held_for) };
                }
                Circuit::Probing => probing = probing.or(Some(number)),
                Circuit::OpenFor(pause) => shortest = shortest.map_or(Some(pause), |other| Some(pause.min(other))),
            }
        }
        match (probing, shortest) {
            (Some(number), _) => Next::WaitForProbe(number),
            (None, Some(pause)) => Next::Wait(pause),
            (None, None) => Next::GiveUp,
        }
    }

    /// Draws the consequences of one attempt.
    fn note(
        &mut self,
        number: usize,
        provider: &Provider,
        pass: Pass,
        draw: Draw<'_>,
        verdict: Verdict,
    ) -> Result<Step> {
        let now = self.now();
        let price = provider.picos_per_token;
        let bill_answer = |draw: Draw<'_>, answer: &Answer| match answer.billed_tokens {
            Some(tokens) => draw.bill(tokens, price),
            None => draw.bill_all(),
        };
        let at_once = Step::Again(Duration::ZERO);
        match verdict {
            Verdict::Answered(answer) => {
                pass.succeeded();
                bill_answer(draw, &answer);
                Ok(Step::Done(answer))
            }
            Verdict::OtherDimension { answer, got } => {
                pass.succeeded();
                bill_answer(draw, &answer);
                let want = self.shared.identity.dimension;
                let reason = format!("{} answers with {got} dimensions, {want} are promised", provider.name);
                Err(Error::InvalidSetting { setting: "dimension", reason })
            }
            Verdict::Throttled(asked) => {
                pass.succeeded();
                draw.bill(0, 0);
                self.throttled += 1;
                let pause = match asked {
                    Some(asked) if !asked.is_zero() => self.shared.backoff.after(asked),
                    _ => self.shared.backoff.pause(self.throttled),
                };
                tracing::debug!(provider = provider.name, ?pause, "throttled");
                // For all requests: the next one would be throttled as well.
                provider.hold(now.saturating_add(pause));
                Ok(at_once)
            }
            Verdict::OtherEncoding => {
                pass.succeeded();
                draw.bill(0, 0);
                Ok(at_once)
            }
            Verdict::Rejected(fault) => {
                pass.succeeded();
                draw.bill(0, 0);
                Err(self.rejected(&provider.name, fault))
            }
            Verdict::Refused { status, reason } => {
                pass.refused(now);
                draw.bill(0, 0);
                self.set_back(number, Setback::Refused { status, reason }, true);
                // The next provider, if there is one.
                if self.tried.iter().all(|tried| tried.is_out) { Err(self.given_up()) } else { Ok(at_once) }
            }
            Verdict::Down(failure) => {
                pass.failed(now);
                Ok(self.count_failure(number, draw, failure, false).map_or(at_once, Step::Again))
            }
            Verdict::Suspect(failure) => {
                let pause = self.count_failure(number, draw, failure, true);
                // Bisecting a batch for one bad text must not look like an outage: a request counts once, when it is given up.
                if pause.is_none() {
                    pass.failed(now)
                } else {
                    pass.succeeded()
                }
                Ok(pause.map_or(at_once, Step::Again))
            }
        }
    }

    /// Counts an attempt. The pause before the next one; `None` once the provider is given up for this request.
    fn count_failure(&mut self, number: usize, draw: Draw<'_>, failure: Failure, is_suspect: bool) -> Option<Duration> {
        match failure.billing {
            Billing::Free => draw.bill(0, 0),
            Billing::Unknown => draw.bill_all(),
        }
        let tried = self.tried.get_mut(number)?;
        tried.attempts += 1;
        let attempts = tried.attempts;
        let is_out = attempts >= self.shared.retry.attempts.get();
        tracing::debug!(attempts, fault = %failure.fault, "attempt failed");
        self.set_back(number, Setback::Failed { fault: failure.fault, is_suspect }, is_out);
        let backoff = &self.shared.backoff;
        let pause = failure.retry_after.map_or_else(|| backoff.pause(attempts), |asked| backoff.after(asked));
        (!is_out).then_some(pause)
    }

    fn set_back(&mut self, number: usize, setback: Setback, is_out: bool) {
        if let Some(tried) = self.tried.get_mut(number) {
            tried.last = Some(setback);
            tried.is_out |= is_out;
        }
    }

    async fn wait(&mut self, pause: Duration) -> Result<()> {
        if pause.is_zero() {
            return Ok(());
        }
        self.waited = self.waited.saturating_add(pause);
        if self.waited > self.shared.retry.total_wait {
            return Err(self.given_up());
        }
        self.stop.or(self.shared.timer.sleep(pause)).await
    }

    /// The error of a request that no provider answered: the last word of the one that was asked last in the chain.
    fn given_up(&mut self) -> Error {
        let embedder = self.shared.identity.name.clone();
        let waited_seconds = self.waited.as_secs();
        let last = self.shared.providers.iter().zip(&mut self.tried).rev();
        for (provider, tried) in last {
            let name = provider.name.clone();
            match tried.last.take() {
                None => {}
                Some(Setback::Refused { status, reason }) => {
                    return Error::ProviderRefused { provider: name, status, reason };
                }
                Some(Setback::Failed { fault, is_suspect: true }) if tried.is_out => {
                    let reason = format!("{name} gave no good answer in {} attempts", tried.attempts);
                    return Error::EmbedderFailed { embedder, reason, source: Some(Box::new(fault)) };
                }
                Some(Setback::Failed { fault, .. }) => {
                    return Error::ProviderUnavailable {
                        provider: name,
                        waited_seconds,
                        source: Some(Box::new(fault)),
                    };
                }
            }
        }
        let provider = self.shared.providers.first().map(|provider| provider.name.clone()).unwrap_or_default();
        Error::ProviderUnavailable { provider, waited_seconds, source: None }
    }

    fn rejected(&self, provider: &str, fault: Fault) -> Error {
        let embedder = self.shared.identity.name.clone();
        Error::TextRefused {
            embedder,
            reason: format!("{provider} rejects the request"),
            source: Some(Box::new(fault)),
        }
    }

    fn now(&self) -> Duration {
        self.shared.timer.elapsed()
    }
}

impl Stop {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::channel(false).0))
    }

    pub(super) fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Stops the other requests as well if none of them would fare better.
    fn stop_for(&self, error: &Error) {
        if error.failure_kind() == FailureKind::Fatal {
            self.stop();
        }
    }

    /// The work's result, unless stopping is asked for before it is there.
    pub(super) async fn or<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut asked = self.0.subscribe();
        tokio::select! {
            biased;
            _ = asked.wait_for(|stop| *stop) => Err(Error::Cancelled),
            done = work => Ok(done),
        }
    }
}
