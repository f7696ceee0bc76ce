//! Consul's HTTP API: a thin typed client that blocks. Only the endpoints that are used here.
//!
//! A token is sent as a header that is marked sensitive: it is in no address and in no error. Nothing is sent twice by this
//! layer: whoever calls knows what an answer that was lost means.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, Method, Url, header::HeaderValue, redirect};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    modules::{
        Failure,
        http::{self, Reach, Trust, Web},
    },
    secrets::Secret,
};

/// For one request: Consul itself looks for a leader for seven seconds before it gives up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// For the bootstrap, which was seen to take seven seconds and more: an answer that is waited for is worth more than a guess.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(90);
/// The policy that allows everything.
const GLOBAL_MANAGEMENT: &str = "00000000-0000-0000-0000-000000000001";
/// Ids that begin so are Consul's own.
const BUILTIN: &str = "00000000-0000-0000-0000-0000000000";

/// What kind of refusal an answer is, by its text: codes differ between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection: it was not sent.
    Unreachable,
    /// The answer was lost: nobody knows whether it happened.
    Lost,
    /// There is no leader now.
    NoLeader,
    /// Too many requests, or a server that is about to stop: try again.
    Busy,
    /// The bootstrap has been done.
    Bootstrapped,
    /// The bootstrap has not been done: no token is known.
    NotBootstrapped,
    /// Someone put a reset file on the leader.
    ResetFile,
    /// ACLs are off.
    AclOff,
    /// The token that was sent is not known.
    UnknownToken,
    /// The token that was sent does not allow it.
    Denied,
    /// There is no such thing.
    NotFound,
    /// The name or the id is in use.
    InUse,
    /// Anything else.
    Refused,
}

impl Kind {
    /// What an answer that is no success means.
    pub fn of(status: u16, text: &str) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        if has(&["bootstrap no longer allowed"]) {
            Self::Bootstrapped
        } else if has(&["must be bootstrapped before"]) {
            Self::NotBootstrapped
        } else if has(&["bootstrap reset index"]) {
            Self::ResetFile
        } else if has(&["ACL support disabled"]) {
            Self::AclOff
        } else if has(&["is already in use", "already exists"]) {
            Self::InUse
        } else if has(&["No cluster leader", "currently in legacy mode", "No path to datacenter"]) {
            Self::NoLeader
        } else if status == 404 || has(&["token does not exist"]) {
            Self::NotFound
        } else if has(&["ACL not found"]) {
            Self::UnknownToken
        } else if status == 429 || has(&["try again later"]) {
            Self::Busy
        } else if has(LOST) || matches!(status, 502..=504) {
            Self::Lost
        } else if status == 403 {
            Self::Denied
        } else {
            Self::Refused
        }
    }

    /// Asking again, with the same values, may help.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Unreachable | Self::Lost | Self::NoLeader | Self::Busy)
    }

    /// A cluster that is only being formed answers so for a while.
    pub fn may_come(self) -> bool {
        self.is_passing() || matches!(self, Self::UnknownToken | Self::NotBootstrapped)
    }
}

/// Texts of answers after which nobody knows: a server, or the way to it, was lost on the way.
const LOST: &[&str] = &[
    "EOF",
    "connection reset",
    "connection refused",
    "broken pipe",
    "i/o timeout",
    "stream closed",
    "session shutdown",
    "rpc error getting client",
    "No known Consul servers",
    "leadership lost",
    "leadership transfer in progress",
    "not the leader",
    "raft is already shutdown",
    "timed out enqueuing",
    "context deadline exceeded",
    "context canceled",
];

/// A request that was not answered with success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {said}")]
pub struct ApiError {
    /// What it means.
    pub kind: Kind,
    /// Method and address.
    pub call: String,
    /// What Consul or the connection said. Secrets of the call are taken out.
    pub said: String,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let failure = Self::new(error.to_string());
        match error.kind {
            Kind::AclOff => {
                failure.hint("ACLs are off: set `acl: {enabled: true}` in the configuration of all servers")
            }
            Kind::UnknownToken => failure.hint("the cluster does not know the token that was sent"),
            Kind::NotBootstrapped => failure.hint("run consul_acl_bootstrap on the servers first"),
            _ => failure,
        }
    }
}

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Policy {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people; says whose it is.
    pub description: String,
    /// HCL or JSON.
    pub rules: String,
    /// Where it holds; empty: everywhere.
    #[serde(deserialize_with = "null_is_empty")]
    pub datacenters: BTreeSet<String>,
}

impl Policy {
    /// Consul's own, which cannot be changed.
    pub fn is_builtin(&self) -> bool {
        self.id.starts_with(BUILTIN) || self.name.starts_with("builtin/")
    }
}

/// A service that a role or token may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceIdentity {
    /// Its name.
    pub service_name: String,
    /// Where; empty: everywhere.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "BTreeSet::is_empty")]
    pub datacenters: BTreeSet<String>,
}

/// A node that a role or token may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeIdentity {
    /// Its name.
    pub node_name: String,
    /// Its datacenter.
    pub datacenter: String,
}

/// One of Consul's own policies, filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TemplatedPolicy {
    /// `builtin/dns` and the like.
    pub template_name: String,
    /// What it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_variables: Option<TemplateVariables>,
    /// Where; empty: everywhere.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "BTreeSet::is_empty")]
    pub datacenters: BTreeSet<String>,
}

/// What a templated policy asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TemplateVariables {
    /// A name.
    pub name: String,
}

/// What a role or a token may do. Order means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Names of policies.
    pub policies: BTreeSet<String>,
    /// Names of roles; of tokens only.
    pub roles: BTreeSet<String>,
    /// Services.
    pub service_identities: BTreeSet<ServiceIdentity>,
    /// Nodes.
    pub node_identities: BTreeSet<NodeIdentity>,
    /// Consul's own policies.
    pub templated_policies: BTreeSet<TemplatedPolicy>,
}

impl Rights {
    /// As the body of a request has them.
    fn fill(&self, body: &mut Map<String, Value>) {
        let links = |names: &BTreeSet<String>| names.iter().map(|name| json!({ "Name": name })).collect::<Vec<_>>();
        body.insert("Policies".into(), links(&self.policies).into());
        if !self.roles.is_empty() {
            body.insert("Roles".into(), links(&self.roles).into());
        }
        body.insert("ServiceIdentities".into(), json!(self.service_identities));
        body.insert("NodeIdentities".into(), json!(self.node_identities));
        // Servers before 1.17 do not know the key.
        if !self.templated_policies.is_empty() {
            body.insert("TemplatedPolicies".into(), json!(self.templated_policies));
        }
    }

    /// A line for each, for people.
    pub fn lines(&self) -> String {
        let mut out = String::new();
        let places = |set: &BTreeSet<String>| {
            if set.is_empty() {
                String::new()
            } else {
                format!(" in {}", set.iter().cloned().collect::<Vec<_>>().join(", "))
            }
        };
        for name in &self.policies {
            out.push_str(&format!("policy {name}\n"));
        }
        for name in &self.roles {
            out.push_str(&format!("role {name}\n"));
        }
        for service in &self.service_identities {
            out.push_str(&format!("service {}{}\n", service.service_name, places(&service.datacenters)));
        }
        for node in &self.node_identities {
            out.push_str(&format!("node {} in {}\n", node.node_name, node.datacenter));
        }
        for template in &self.templated_policies {
            let of = template.template_variables.as_ref().map(|v| format!(" of {}", v.name)).unwrap_or_default();
            out.push_str(&format!("{}{of}{}\n", template.template_name, places(&template.datacenters)));
        }
        out
    }
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people; says whose it is.
    pub description: String,
    /// What it may do.
    pub rights: Rights,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is called where its secret is not to be told.
    pub accessor: String,
    /// Its secret; `None`: Consul did not tell it.
    pub secret: Option<Secret>,
    /// For people; says whose it is.
    pub description: String,
    /// Ids of its policies are of interest only for whether it may do everything.
    pub management: bool,
    /// Known in its own datacenter only.
    pub local: bool,
    /// What it may do.
    pub rights: Rights,
}

/// A value of the key-value store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes.
    pub value: Vec<u8>,
    /// The application's number.
    pub flags: u64,
    /// Compared by a write that must not overwrite what it has not seen.
    pub index: u64,
}

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
            return self.send(&Call::put(path, &body)).map(drop);
        }
        body["ID"] = id.into();
        let path: Vec<&str> = path.iter().copied().chain([id]).collect();
        self.send(&Call::put(&path, &body)).map(drop)
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

/// A token as Consul tells it; its secret is taken over at once.
#[derive(Deserialize)]
struct RawToken {
    #[serde(rename = "AccessorID")]
    accessor: String,
    #[serde(rename = "SecretID", default)]
    secret_id: String,
    #[serde(rename = "Description", default)]
    description: String,
    #[serde(rename = "Local", default)]
    local: bool,
    #[serde(rename = "Policies", default)]
    policies: Option<Vec<Linked>>,
    #[serde(rename = "Roles", default)]
    roles: Option<Vec<Linked>>,
    #[serde(rename = "ServiceIdentities", default, deserialize_with = "null_is_empty")]
    service_identities: BTreeSet<ServiceIdentity>,
    #[serde(rename = "NodeIdentities", default, deserialize_with = "null_is_empty")]
    node_identities: BTreeSet<NodeIdentity>,
    #[serde(rename = "TemplatedPolicies", default, deserialize_with = "null_is_empty")]
    templated_policies: BTreeSet<TemplatedPolicy>,
}

#[derive(Deserialize)]
struct Linked {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Name", default)]
    name: String,
}

impl From<RawToken> for Token {
    fn from(raw: RawToken) -> Self {
        Self {
            management: raw.policies.iter().flatten().any(|link| link.id == GLOBAL_MANAGEMENT),
            rights: Rights {
                policies: names(raw.policies.as_deref()),
                roles: names(raw.roles.as_deref()),
                service_identities: raw.service_identities,
                node_identities: raw.node_identities,
                templated_policies: raw.templated_policies,
            },
            accessor: raw.accessor,
            secret: (!matches!(raw.secret_id.as_str(), "" | "<hidden>")).then(|| Secret::new(raw.secret_id)),
            description: raw.description,
            local: raw.local,
        }
    }
}

impl Token {
    fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("AccessorID".into(), self.accessor.clone().into());
        body.insert("Description".into(), self.description.clone().into());
        body.insert("Local".into(), self.local.into());
        self.rights.fill(&mut body);
        body
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRole {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    policies: Option<Vec<Linked>>,
    #[serde(default, deserialize_with = "null_is_empty")]
    service_identities: BTreeSet<ServiceIdentity>,
    #[serde(default, deserialize_with = "null_is_empty")]
    node_identities: BTreeSet<NodeIdentity>,
    #[serde(default, deserialize_with = "null_is_empty")]
    templated_policies: BTreeSet<TemplatedPolicy>,
}

impl From<RawRole> for Role {
    fn from(raw: RawRole) -> Self {
        let rights = Rights {
            policies: names(raw.policies.as_deref()),
            roles: BTreeSet::new(),
            service_identities: raw.service_identities,
            node_identities: raw.node_identities,
            templated_policies: raw.templated_policies,
        };
        Self { id: raw.id, name: raw.name, description: raw.description, rights }
    }
}

fn names(links: Option<&[Linked]>) -> BTreeSet<String> {
    links.unwrap_or_default().iter().map(|link| link.name.clone()).collect()
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
