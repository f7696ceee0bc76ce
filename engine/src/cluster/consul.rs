//! Consul's HTTP API: a thin typed client that blocks. Only the endpoints that are used here.
//!
//! A token is sent as a header that is marked sensitive: it is in no address and in no error. Nothing is sent twice by this
//! layer: whoever calls knows what an answer that was lost means.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, Method, Url, header::HeaderValue, redirect};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    modules::{
        Failure,
        http::{self, Reach, Trust, Web},
    },
    secrets::Secret,
};

mod error;
mod login;
mod objects;

pub use error::{ApiError, Kind};
pub use login::{AuthMethod, BindingRule};
pub use objects::{
    Entry, NodeIdentity, Policy, Rights, Role, ServiceIdentity, TemplateVariables, TemplatedPolicy, Token,
};
use objects::{RawRole, RawToken};

/// For one request: Consul itself looks for a leader for seven seconds before it gives up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// For the bootstrap, which was seen to take seven seconds and more: an answer that is waited for is worth more than a guess.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(90);

/// One agent's API, with a token or without.
#[derive(Clone, Debug)]
pub struct Consul {
    base: Url,
    client: Client,
    token: Option<Secret>,
}

impl Consul {
    /// A client for an address.
    pub(crate) fn new(url: &Web, trust: Trust, token: Option<Secret>) -> Result<Self, Failure> {
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
        Ok(Self { base: url.url().clone(), client, token })
    }

    /// The same agent with another token.
    pub fn with(&self, token: &Secret) -> Self {
        Self { token: Some(token.clone()), ..self.clone() }
    }

    /// The token that is sent.
    pub fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// The leader's address; empty where there is none. Needs no token.
    pub fn leader(&self) -> Result<String, ApiError> {
        self.get(&["status", "leader"], &[])
    }

    /// Addresses of the servers that vote. Needs no token.
    pub fn peers(&self) -> Result<Vec<String>, ApiError> {
        self.get(&["status", "peers"], &[])
    }

    /// Bootstraps with a secret of one's own. The secret that the token got: servers before 1.15 choose one themselves.
    pub fn bootstrap(&self, secret: &Secret) -> Result<Secret, ApiError> {
        let body = json!({ "BootstrapSecret": secret.expose() });
        let call = Call { timeout: BOOTSTRAP_TIMEOUT, hide: &[secret], ..Call::put(&["acl", "bootstrap"], &body) };
        let token: RawToken = self.read(&call)?;
        Ok(Secret::new(token.secret_id))
    }

    /// The token that is sent. `stale`: as the server that answers knows it.
    pub fn own_token(&self, stale: bool) -> Result<Token, ApiError> {
        let query: &[(&str, &str)] = if stale { &[("stale", "")] } else { &[] };
        match self.get::<RawToken>(&["acl", "token", "self"], query) {
            Ok(token) => Ok(token.into()),
            // Of its own token that is what it says.
            Err(error) if error.kind == Kind::NotFound => Err(ApiError { kind: Kind::UnknownToken, ..error }),
            Err(error) => Err(error),
        }
    }

    /// Whether the bootstrap has been done, by the answer that a token gets which nobody knows, or everybody.
    pub fn is_bootstrapped(&self) -> Result<bool, ApiError> {
        match self.get::<Value>(&["acl", "policies"], &[]) {
            Err(error) if error.kind == Kind::NotBootstrapped => Ok(false),
            Err(error) if !matches!(error.kind, Kind::UnknownToken | Kind::Denied) => Err(error),
            _ => Ok(true),
        }
    }

    /// A token by its accessor.
    pub fn acl_token(&self, accessor: &str) -> Result<Option<Token>, ApiError> {
        let found: Option<RawToken> = self.found(&["acl", "token", accessor])?;
        Ok(found.map(Token::from))
    }

    /// Makes a token; both ids are ours.
    pub fn create_token(&self, token: &Token) -> Result<(), ApiError> {
        let mut body = token.body();
        let secret = token.secret.clone().unwrap_or_else(|| Secret::new(""));
        body.insert("SecretID".into(), secret.expose().into());
        let body = Value::Object(body);
        self.send(&Call { hide: &[&secret], ..Call::put(&["acl", "token"], &body) }).map(drop)
    }

    /// Gives a token another description and other rights. Its secret and where it is known cannot be changed.
    pub fn update_token(&self, token: &Token) -> Result<(), ApiError> {
        let body = Value::Object(token.body());
        self.send(&Call::put(&["acl", "token", &token.accessor], &body)).map(drop)
    }

    /// Takes a token away.
    pub fn delete_token(&self, accessor: &str) -> Result<(), ApiError> {
        self.delete(&["acl", "token", accessor])
    }

    /// A policy by its name.
    pub fn policy(&self, name: &str) -> Result<Option<Policy>, ApiError> {
        self.found(&["acl", "policy", "name", name])
    }

    /// Makes a policy, or changes the one that has the id.
    pub fn write_policy(&self, policy: &Policy) -> Result<(), ApiError> {
        let mut body = json!({ "Name": policy.name, "Description": policy.description, "Rules": policy.rules });
        if !policy.datacenters.is_empty() {
            body["Datacenters"] = json!(policy.datacenters);
        }
        self.write(&["acl", "policy"], &policy.id, body)
    }

    /// Takes a policy away.
    pub fn delete_policy(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["acl", "policy", id])
    }

    /// A role by its name.
    pub fn role(&self, name: &str) -> Result<Option<Role>, ApiError> {
        let found: Option<RawRole> = self.found(&["acl", "role", "name", name])?;
        Ok(found.map(Role::from))
    }

    /// Makes a role, or changes the one that has the id.
    pub fn write_role(&self, role: &Role) -> Result<(), ApiError> {
        let mut body = Map::new();
        body.insert("Name".into(), role.name.clone().into());
        body.insert("Description".into(), role.description.clone().into());
        role.rights.fill(&mut body);
        self.write(&["acl", "role"], &role.id, Value::Object(body))
    }

    /// Takes a role away.
    pub fn delete_role(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["acl", "role", id])
    }

    /// Gives the agent a token to use.
    pub fn give_agent(&self, name: &str, token: &Secret) -> Result<(), ApiError> {
        let body = json!({ "Token": token.expose() });
        self.send(&Call { hide: &[token], ..Call::put(&["agent", "token", name], &body) }).map(drop)
    }

    /// A value of the key-value store.
    pub fn kv(&self, key: &str) -> Result<Option<Entry>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            value: Option<String>,
            flags: u64,
            modify_index: u64,
        }
        let found: Option<Vec<Raw>> = self.found(&kv_path(key))?;
        let Some(raw) = found.and_then(|list| list.into_iter().next()) else { return Ok(None) };
        let value = STANDARD.decode(raw.value.unwrap_or_default()).map_err(|_| ApiError {
            kind: Kind::Refused,
            call: format!("GET {key}"),
            said: "the value is no base64".into(),
        })?;
        Ok(Some(Entry { value, flags: raw.flags, index: raw.modify_index }))
    }

    /// Writes a value if the key's index is still this (0: if it has none). False: it is another.
    pub fn write_kv(&self, key: &str, value: &[u8], flags: u64, index: u64) -> Result<bool, ApiError> {
        let query = [("cas", index.to_string()), ("flags", flags.to_string())];
        let query: Vec<(&str, &str)> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let path = kv_path(key);
        let shown = Secret::new(String::from_utf8_lossy(value).into_owned());
        let hide = [&shown];
        let call = Call {
            method: Method::PUT,
            path: &path,
            query: &query,
            body: Some(value.to_vec()),
            timeout: TIMEOUT,
            hide: &hide,
        };
        self.read(&call)
    }

    /// Takes a value away if the key's index is still this. False: it is another.
    pub fn delete_kv(&self, key: &str, index: u64) -> Result<bool, ApiError> {
        let index = index.to_string();
        self.read(&Call { query: &[("cas", &index)], ..Call::new(Method::DELETE, &kv_path(key)) })
    }

    fn write(&self, path: &[&str], id: &str, mut body: Value) -> Result<(), ApiError> {
        if id.is_empty() {
            return self.put(path, &body);
        }
        body["ID"] = id.into();
        let path: Vec<&str> = path.iter().copied().chain([id]).collect();
        self.put(&path, &body)
    }

    fn put(&self, path: &[&str], body: &Value) -> Result<(), ApiError> {
        self.send(&Call::put(path, body)).map(drop)
    }

    fn delete(&self, path: &[&str]) -> Result<(), ApiError> {
        match self.send(&Call::new(Method::DELETE, path)) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, ApiError> {
        self.read(&Call { query, ..Call::new(Method::GET, path) })
    }

    /// `None` where there is no such thing.
    fn found<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, ApiError> {
        match self.get(path, &[]) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, ApiError> {
        let body = self.send(call)?;
        // The parser's error may quote the answer, which may hold a secret.
        serde_json::from_slice(&body).map_err(|e| ApiError {
            kind: Kind::Lost,
            call: self.shown(call),
            said: format!("the answer is not what Consul gives (line {}, column {})", e.line(), e.column()),
        })
    }

    fn send(&self, call: &Call<'_>) -> Result<Vec<u8>, ApiError> {
        let failed = |kind, said: String| ApiError { kind, call: self.shown(call), said };
        let mut request = self.client.request(call.method.clone(), self.address(call)).timeout(call.timeout);
        if let Some(token) = &self.token
            && let Ok(mut value) = HeaderValue::from_str(token.expose())
        {
            value.set_sensitive(true);
            request = request.header("X-Consul-Token", value);
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
        let kind = Kind::of(status, &text);
        let mut said = text;
        for secret in self.token.iter().chain(call.hide.iter().copied()) {
            if !secret.expose().is_empty() {
                said = said.replace(secret.expose(), "…");
            }
        }
        let said: String = said.trim().chars().take(300).collect();
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
struct Call<'a> {
    method: Method,
    path: &'a [&'a str],
    query: &'a [(&'a str, &'a str)],
    body: Option<Vec<u8>>,
    timeout: Duration,
    /// What its errors must not tell.
    hide: &'a [&'a Secret],
}

impl<'a> Call<'a> {
    fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self { method, path, query: &[], body: None, timeout: TIMEOUT, hide: &[] }
    }

    fn put(path: &'a [&'a str], body: &Value) -> Self {
        Self { body: Some(body.to_string().into_bytes()), ..Self::new(Method::PUT, path) }
    }
}

fn kv_path(key: &str) -> Vec<&str> {
    std::iter::once("kv").chain(key.split('/')).collect()
}

#[cfg(test)]
mod tests;
