//! One HTTP exchange: bytes out, status and bytes back, within a time and a size. Blocking; runs on a blocking thread.
//!
//! Guarantees: no redirect is followed, so neither texts nor key go where nobody sent them; an answer is never read beyond its
//! limit. Must not know: retries, JSON.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::HeaderValue;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};

use super::endpoint::{Endpoint, Reach};
use super::key::ApiKey;
use super::protocol::AnswerDefect;
use crate::error::{Error, Result};

/// How long a connection may take; a provider that is down should be noticed soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection pool to one endpoint; cheap to clone.
#[derive(Clone)]
pub(super) struct Wire {
    agent: ureq::Agent,
    url: Arc<str>,
    authorization: Option<HeaderValue>,
}

/// What came back, whatever its status.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) status: u16,
    pub(super) retry_after: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Why nothing usable came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireFault {
    /// The request was not sent.
    #[error("it cannot be reached")]
    Unreachable(#[source] ureq::Error),
    /// It may have been received and worked on.
    #[error("it gave no whole answer in time")]
    TimedOut(#[source] ureq::Error),
    /// Likewise.
    #[error("the connection broke")]
    Broken(#[source] ureq::Error),
    /// It was worked on.
    #[error("its answer cannot be used")]
    Answer(#[source] AnswerDefect),
}

impl Wire {
    pub(super) fn new(
        endpoint: &Endpoint,
        key: Option<&ApiKey>,
        timeout: Duration,
        connections: usize,
    ) -> Result<Self> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout)))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .user_agent(concat!("embank/", env!("CARGO_PKG_VERSION")));
        if endpoint.reach == Reach::Loopback {
            // A proxy of the environment would carry it off this machine.
            config = config.proxy(None);
        }
        let authorization = key.map(header).transpose()?;
        Ok(Self { agent: config.build().into(), url: endpoint.url.as_str().into(), authorization })
    }

    /// Sends `body` and reads the answer, at most `limit` bytes of it.
    pub(super) fn exchange(&self, body: &[u8], limit: u64) -> std::result::Result<Raw, WireFault> {
        let mut request = self.agent.post(&*self.url).header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request.send(body).map_err(fault)?;
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(String::from);
        let status = response.status().as_u16();
        match response.into_body().into_with_config().limit(limit).read_to_vec() {
            Ok(body) => Ok(Raw { status, retry_after, body }),
            // The status says enough; its explanation is lost.
            Err(_) if status >= 400 => Ok(Raw { status, retry_after, body: Vec::new() }),
            Err(ureq::Error::BodyExceedsLimit(limit)) => Err(WireFault::Answer(AnswerDefect::TooLong { limit })),
            Err(error) => Err(fault(error)),
        }
    }
}

fn header(key: &ApiKey) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&key.authorization())
        .map_err(|_| Error::InvalidSetting { setting: "key", reason: "it cannot stand in an HTTP header".into() })?;
    // The HTTP library then leaves it out of what it prints.
    value.set_sensitive(true);
    Ok(value)
}

fn fault(error: ureq::Error) -> WireFault {
    use ureq::{Error as E, Timeout};
    match &error {
        E::Timeout(Timeout::Resolve | Timeout::Connect) => WireFault::Unreachable(error),
        E::Timeout(_) => WireFault::TimedOut(error),
        E::HostNotFound
        | E::ConnectionFailed
        | E::BadUri(_)
        | E::Http(_)
        | E::Tls(_)
        | E::Rustls(_)
        | E::InvalidProxyUrl
        | E::ConnectProxyFailed(_) => WireFault::Unreachable(error),
        E::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => WireFault::Unreachable(error),
        E::Io(e) if e.kind() == io::ErrorKind::TimedOut => WireFault::TimedOut(error),
        _ => WireFault::Broken(error),
    }
}
