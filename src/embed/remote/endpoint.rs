//! Where requests go: the address made of a base URL, and the rule that a key is not sent in the clear.

use std::net::IpAddr;

use ureq::http::Uri;

use super::key::ApiKey;
use crate::error::{Error, Result};

/// A provider's address, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The full address of the embeddings resource.
    pub(super) url: String,
    /// Host, and port where it is given: what errors call the provider, and what shares one cap of concurrent requests.
    pub(super) host: String,
    /// Whether the host is this machine.
    pub(super) reach: Reach,
}

/// How far a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It stays on this machine.
    Loopback,
    /// It leaves it.
    Network,
}

impl Endpoint {
    /// `base` is what providers document as base URL: `https://api.openai.com/v1`, `http://localhost:11434/v1`.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for what is not an http or https address, one with user name or query, and for plain http
    /// with a key to another machine.
    pub(super) fn parse(base: &str, key: Option<&ApiKey>) -> Result<Self> {
        let refuse = |reason: String| Error::InvalidSetting { setting: "base_url", reason };
        let uri: Uri = base.trim().parse().map_err(|e| refuse(format!("{base} is not a URL: {e}")))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let (Some(authority), true) = (uri.authority(), matches!(scheme, "http" | "https")) else {
            return Err(refuse(format!("{base} does not begin with https:// or http://")));
        };
        if authority.as_str().contains('@') {
            return Err(refuse("it holds a user name; give the key by itself".into()));
        }
        if uri.query().is_some() {
            return Err(refuse(format!("{base} has a query; give the address up to `/v1`")));
        }
        let reach = if is_loopback(authority.host()) { Reach::Loopback } else { Reach::Network };
        if key.is_some() && scheme == "http" && reach == Reach::Network {
            return Err(refuse(format!("a key is not sent over plain http to {authority}; use https")));
        }
        let path = uri.path().trim_end_matches('/');
        Ok(Self { url: format!("{scheme}://{authority}{path}/embeddings"), host: authority.to_string(), reach })
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // RFC 6761, 6.3: names under localhost are loopback addresses.
    let named = bare.eq_ignore_ascii_case("localhost") || bare.to_ascii_lowercase().ends_with(".localhost");
    named || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_travels_in_the_clear_only_within_the_machine() {
        let key = ApiKey::new("sk-secret").unwrap();
        for fine in
            ["http://localhost:11434/v1", "http://127.0.0.1:8080", "http://[::1]:80/v1", "https://api.openai.com/v1"]
        {
            assert!(Endpoint::parse(fine, Some(&key)).is_ok(), "{fine}");
        }
        for bad in
            ["http://api.openai.com/v1", "http://192.168.1.2/v1", "http://localhost.example.org/v1", "http://[::2]/v1"]
        {
            let error = Endpoint::parse(bad, Some(&key)).unwrap_err().to_string();
            assert!(error.contains("plain http") && !error.contains("secret"), "{error}");
            assert!(Endpoint::parse(bad, None).is_ok(), "{bad} without a key");
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for bad in
            ["", "api.openai.com/v1", "ftp://x/v1", "https://127.0.0.1@example.org/v1", "https://x/v1?a=b", "/v1"]
        {
            assert!(matches!(Endpoint::parse(bad, None), Err(Error::InvalidSetting { .. })), "{bad}");
        }
    }

    #[test]
    fn the_resource_is_below_the_base() {
        let endpoint = Endpoint::parse("https://api.example.org/openai/v1/", None).unwrap();
        assert_eq!(endpoint.url, "https://api.example.org/openai/v1/embeddings");
        assert_eq!((endpoint.host.as_str(), endpoint.reach), ("api.example.org", Reach::Network));
    }
}
