//! HTTP APIs of the products: a thin client that blocks.
//!
//! A token is sent as a header that is marked sensitive: it is in no address and in no error. Nothing is sent twice by this
//! layer: whoever calls knows what an answer that was lost means.

use std::time::Duration;

use reqwest::{Client, Method, Url, header::HeaderValue, redirect};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{ApiError, Kind};
use crate::{
    modules::{
        Failure,
        http::{self, Reach, Trust, Web},
    },
    secrets::Secret,
};

/// For one request: a server looks for a leader for some seconds before it gives up.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// For the bootstrap, which was seen to take seven seconds and more: an answer that is waited for is worth more than a guess.
pub(super) const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(90);

/// What differs between the products.
#[derive(Debug)]
pub(super) struct Dialect {
    /// The product's name.
    pub(super) product: &'static str,
    /// The header that a token is sent in.
    pub(super) header: &'static str,
    /// What an answer that is no success means.
    pub(super) kind: fn(u16, &str) -> Kind,
}

/// One agent's API, with a token or without.
#[derive(Clone, Debug)]
pub(super) struct Api {
    base: Url,
    client: Client,
    token: Option<Secret>,
    dialect: &'static Dialect,
}

impl Api {
    /// A client for an address.
    pub(super) fn new(
        url: &Web,
        trust: Trust,
        token: Option<Secret>,
        dialect: &'static Dialect,
    ) -> Result<Self, Failure> {
        if let Some(token) = &token
            && HeaderValue::from_str(token.expose()).is_err()
        {
            return Err(Failure::new("the token holds characters that a header cannot have"));
        }
        let reach = Reach { trust, use_proxy: false, environment: Vec::new() };
        let client = http::client(url, &reach, |builder| {
            builder
                .connect_timeout(Duration::from_secs(10))
                .redirect(redirect::Policy::none())
                .referer(false)
                // Each request has a runtime of its own, which a kept connection would not survive.
                .pool_max_idle_per_host(0)
                .retry(reqwest::retry::never())
        })?;
        Ok(Self { base: url.url().clone(), client, token, dialect })
    }

    /// The same agent with another token, or without.
    pub(super) fn with(&self, token: Option<&Secret>) -> Self {
        Self { token: token.cloned(), ..self.clone() }
    }

    /// The token that is sent.
    pub(super) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// Reads.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, ApiError> {
        self.read(&Call { query, ..Call::new(Method::GET, path) })
    }

    /// `None` where there is no such thing.
    pub(super) fn found<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<T>, ApiError> {
        match self.get(path, query) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes something away; what is not there is not missed.
    pub(super) fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> Result<(), ApiError> {
        match self.send(&Call { query, ..Call::new(Method::DELETE, path) }) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// An answer in JSON.
    pub(super) fn read<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, ApiError> {
        let body = self.send(call)?;
        // The parser's error may quote the answer, which may hold a secret.
        serde_json::from_slice(&body).map_err(|e| ApiError {
            kind: Kind::Lost,
            call: self.shown(call),
            said: format!(
                "the answer is not what {} gives (line {}, column {})",
                self.dialect.product,
                e.line(),
                e.column()
            ),
        })
    }

    /// An answer's bytes.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Vec<u8>, ApiError> {
        let failed = |kind, said: String| ApiError { kind, call: self.shown(call), said };
        let mut request = self.client.request(call.method.clone(), self.address(call)).timeout(call.timeout);
        if let Some(token) = &self.token
            && let Ok(mut value) = HeaderValue::from_str(token.expose())
        {
            value.set_sensitive(true);
            request = request.header(self.dialect.header, value);
        }
        if let Some(body) = &call.body {
            request = request.body(body.clone());
        }
        let work = async {
            let answer = request.send().await?;
            let status = answer.status().as_u16();
            Ok::<_, reqwest::Error>((status, answer.bytes().await?.to_vec()))
        };
        let answer = http::block_on(work).map_err(|failure| failed(Kind::Unreachable, failure.message))?;
        let (status, body) = answer.map_err(|error| {
            let kind = if error.is_connect() || error.is_builder() { Kind::Unreachable } else { Kind::Lost };
            failed(kind, http::reason(error, call.timeout))
        })?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        let kind = (self.dialect.kind)(status, &text);
        let mut said = text;
        for secret in self.token.iter().chain(call.hide.iter().copied()) {
            if !secret.expose().is_empty() {
                said = said.replace(secret.expose(), "…");
            }
        }
        let said: String = said.trim().chars().take(call.said).collect();
        Err(failed(kind, if said.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {said}") }))
    }

    fn address(&self, call: &Call<'_>) -> Url {
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(call.path);
        }
        for (name, value) in call.query {
            if value.is_empty() {
                url.query_pairs_mut().append_key_only(name);
            } else {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        url
    }

    fn shown(&self, call: &Call<'_>) -> String {
        let mut url = self.address(call);
        url.set_query(None);
        format!("{} {}", call.method, http::shown(&url))
    }
}

/// One request.
pub(super) struct Call<'a> {
    /// How.
    pub(super) method: Method,
    /// Below `/v1`; each part is escaped.
    pub(super) path: &'a [&'a str],
    /// Names and values; a name alone where the value is empty.
    pub(super) query: &'a [(&'a str, &'a str)],
    /// What is sent.
    pub(super) body: Option<Vec<u8>>,
    /// For all of it.
    pub(super) timeout: Duration,
    /// What its errors must not tell.
    pub(super) hide: &'a [&'a Secret],
    /// How many characters of a refusal are told.
    pub(super) said: usize,
}

impl<'a> Call<'a> {
    /// Without a body.
    pub(super) fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self { method, path, query: &[], body: None, timeout: TIMEOUT, hide: &[], said: 300 }
    }

    /// Writes.
    pub(super) fn put(path: &'a [&'a str], body: &Value) -> Self {
        Self { body: Some(body.to_string().into_bytes()), ..Self::new(Method::PUT, path) }
    }
}
