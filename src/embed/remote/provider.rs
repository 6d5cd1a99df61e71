//! One provider at run time: its connection, limits, circuit and place in the process's cap; and what one answer means.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::breaker::Breaker;
use super::endpoint::Endpoint;
use super::exchange::{Raw, Wire, WireFault};
use super::host::Host;
use super::key::ApiKey;
use super::limits::Pacer;
use super::options::{ProviderOptions, RemoteOptions, RequestDimension};
use super::protocol::{Answer, AnswerDefect, Encoding, Request, answer_limit, error_code, error_message, parse_answer};
use super::retry::parse_retry_after;
use crate::error::Result;

/// Requests refused for their content, without a good one between them, after which it is not the content. Bisecting a batch
/// for one bad text takes a dozen.
const REJECTIONS_IN_A_ROW: u32 = 64;

/// A provider; shared by all requests.
pub(super) struct Provider {
    /// Host and port: what errors call it.
    pub(super) name: String,
    pub(super) breaker: Arc<Breaker>,
    pub(super) pacer: Pacer,
    pub(super) host: Arc<Host>,
    pub(super) max_concurrent: NonZeroUsize,
    pub(super) picos_per_token: u64,
    wire: Wire,
    key: Option<ApiKey>,
    model: String,
    dimension: usize,
    request_dimension: RequestDimension,
    /// Until when it asked not to be asked.
    hold_until: Mutex<Duration>,
    /// Whether base64 is understood.
    encoding: AtomicU8,
    dimension_seen: AtomicBool,
    rejections: AtomicU32,
}

/// What one attempt came to.
#[derive(Debug)]
pub(super) enum Verdict {
    Answered(Answer),
    /// Ask later, for as long as it says, if it says.
    Throttled(Option<Duration>),
    /// Ask again; the provider, or the way to it, failed.
    Down(Failure),
    /// Ask again; it may be a text of this request that makes it fail.
    Suspect(Failure),
    /// These texts will not be answered.
    Rejected(Fault),
    /// No text will be answered.
    Refused {
        status: u16,
        reason: String,
    },
    /// Every vector has another length than the identity promises, and never had the right one.
    OtherDimension {
        answer: Answer,
        got: usize,
    },
    /// Base64 is not understood; ask again for numbers.
    OtherEncoding,
}

/// An attempt that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    pub(super) billing: Billing,
    /// The pause that the provider asks for.
    pub(super) retry_after: Option<Duration>,
}

/// Whether a failed attempt was paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Billing {
    /// It was not: providers bill what they answer.
    Free,
    /// It may have been: it was sent, and no whole answer was heard.
    Unknown,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("status {status}: {message}")]
    Status { status: u16, message: String },
    #[error(transparent)]
    Wire(#[from] WireFault),
    #[error("the thread of the request ended early")]
    Thread(#[from] tokio::task::JoinError),
}

impl Provider {
    pub(super) fn new(options: &ProviderOptions, remote: &RemoteOptions) -> Result<Self> {
        let endpoint = Endpoint::parse(&options.base_url, options.key.as_ref())?;
        let connections = options.max_concurrent.get();
        let request_tokens = u32::try_from(remote.batch.tokens).unwrap_or(u32::MAX);
        Ok(Self {
            wire: Wire::new(&endpoint, options.key.as_ref(), remote.request_timeout, connections)?,
            breaker: Breaker::new(remote.breaker),
            pacer: Pacer::new(&options.limits, request_tokens, &remote.timer),
            host: Host::named(&endpoint.host),
            max_concurrent: options.max_concurrent,
            picos_per_token: options.price.unwrap_or_default().picos_per_token()?,
            name: endpoint.host,
            key: options.key.clone(),
            model: options.model.clone().unwrap_or_else(|| remote.model.clone()),
            dimension: remote.dimension,
            request_dimension: remote.request_dimension,
            hold_until: Mutex::new(Duration::ZERO),
            encoding: AtomicU8::new(ENCODING_UNKNOWN),
            dimension_seen: AtomicBool::new(false),
            rejections: AtomicU32::new(0),
        })
    }

    /// How long the provider asked to be left alone.
    pub(super) fn held_for(&self, now: Duration) -> Duration {
        self.hold_until.lock().unwrap_or_else(PoisonError::into_inner).saturating_sub(now)
    }

    pub(super) fn hold(&self, until: Duration) {
        let mut held = self.hold_until.lock().unwrap_or_else(PoisonError::into_inner);
        *held = until.max(*held);
    }

    /// Sends one request, once.
    pub(super) async fn attempt(&self, inputs: &[&str], now: crate::clock::Timestamp) -> Verdict {
        let encoding = if self.encoding.load(Ordering::Relaxed) == FLOAT { Encoding::Float } else { Encoding::Base64 };
        let dimensions = (self.request_dimension == RequestDimension::Send).then_some(self.dimension);
        let body = Request { model: &self.model, input: inputs, encoding_format: encoding, dimensions }.body();
        let (wire, limit) = (self.wire.clone(), answer_limit(inputs.len(), self.dimension));
        match tokio::task::spawn_blocking(move || wire.exchange(&body, limit)).await {
            Ok(Ok(raw)) => self.judge(raw, inputs.len(), encoding, now),
            Ok(Err(fault @ WireFault::Answer(_))) => Verdict::Suspect(failure(fault, Billing::Unknown)),
            Ok(Err(fault @ WireFault::Unreachable(_))) => Verdict::Down(failure(fault, Billing::Free)),
            Ok(Err(fault)) => Verdict::Down(failure(fault, Billing::Unknown)),
            Err(ended) => Verdict::Down(Failure { fault: ended.into(), billing: Billing::Unknown, retry_after: None }),
        }
    }

    fn judge(&self, raw: Raw, texts: usize, encoding: Encoding, now: crate::clock::Timestamp) -> Verdict {
        let status = raw.status;
        if (200..300).contains(&status) {
            self.rejections.store(0, Ordering::Relaxed);
            return match parse_answer(&raw.body, texts) {
                Ok(answer) => self.accept(answer, encoding),
                Err(defect) => Verdict::Suspect(failure(WireFault::Answer(self.hidden(defect)), Billing::Unknown)),
            };
        }
        let message = self.hide(error_message(&raw.body));
        let retry_after = raw.retry_after.and_then(|value| parse_retry_after(&value, now));
        let fault = || Fault::Status { status, message: message.clone() };
        match status {
            // Out of money: OpenAI says so with the status of a rate limit, and waiting does not help.
            429 if error_code(&raw.body).is_some_and(|code| code == "insufficient_quota") => {
                Verdict::Refused { status, reason: message }
            }
            429 => Verdict::Throttled(retry_after),
            408 | 425 | 502..=599 => Verdict::Down(Failure { fault: fault(), billing: Billing::Free, retry_after }),
            500 | 501 => Verdict::Suspect(Failure { fault: fault(), billing: Billing::Free, retry_after }),
            400 | 422 if encoding == Encoding::Base64 && self.encoding.load(Ordering::Relaxed) != BASE64 => {
                // Once a request: if numbers are refused as well, it was something else.
                self.encoding.store(FLOAT, Ordering::Relaxed);
                Verdict::OtherEncoding
            }
            400 | 413 | 414 | 415 | 422 => {
                if self.rejections.fetch_add(1, Ordering::Relaxed) + 1 < REJECTIONS_IN_A_ROW {
                    Verdict::Rejected(fault())
                } else {
                    Verdict::Refused { status, reason: message }
                }
            }
            // 401, 402, 403, 404, redirects, and whatever else is no answer to these texts.
            _ => Verdict::Refused { status, reason: message },
        }
    }

    fn accept(&self, answer: Answer, encoding: Encoding) -> Verdict {
        if encoding == Encoding::Base64 {
            self.encoding.store(BASE64, Ordering::Relaxed);
        }
        if answer.vectors.iter().any(|vector| vector.len() == self.dimension) {
            self.dimension_seen.store(true, Ordering::Relaxed);
        }
        match answer.vectors.first().map(Vec::len) {
            Some(got) if !self.dimension_seen.load(Ordering::Relaxed) => Verdict::OtherDimension { answer, got },
            _ => Verdict::Answered(answer),
        }
    }

    fn hidden(&self, defect: AnswerDefect) -> AnswerDefect {
        match defect {
            AnswerDefect::Reported { message } => AnswerDefect::Reported { message: self.hide(message) },
            other => other,
        }
    }

    fn hide(&self, text: String) -> String {
        self.key.as_ref().map_or_else(|| text.clone(), |key| key.hide_in(&text))
    }
}

const ENCODING_UNKNOWN: u8 = 0;
const BASE64: u8 = 1;
const FLOAT: u8 = 2;

fn failure(fault: WireFault, billing: Billing) -> Failure {
    Failure { fault: fault.into(), billing, retry_after: None }
}
