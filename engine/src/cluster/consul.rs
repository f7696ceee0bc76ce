//! Consul's HTTP API: a thin typed client that blocks. Only the endpoints that are used here.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    api::{Api, BOOTSTRAP_TIMEOUT, Call, Dialect},
    autopilot::UNSETTLED,
    error::is_lost,
};
use crate::{
    modules::{
        Failure,
        http::{Trust, Web},
    },
    secrets::Secret,
};

mod login;
mod objects;
mod operate;

pub use super::error::{ApiError, Kind};
pub(super) use login::duration;
pub use login::{AuthMethod, BindingRule};
pub use objects::{
    Entry, NodeIdentity, Policy, Rights, Role, ServiceIdentity, TemplateVariables, TemplatedPolicy, Token,
};
use objects::{RawRole, RawToken};

/// How Consul speaks.
static DIALECT: Dialect = Dialect { product: "Consul", header: "X-Consul-Token", kind };

/// One agent's API, with a token or without.
#[derive(Clone, Debug)]
pub struct Consul(Api);

impl Consul {
    /// A client for an address.
    pub(crate) fn new(url: &Web, trust: Trust, token: Option<Secret>) -> Result<Self, Failure> {
        Api::new(url, trust, token, &DIALECT).map(Self)
    }

    /// The same agent with another token.
    pub fn with(&self, token: &Secret) -> Self {
        Self(self.0.with(Some(token)))
    }

    /// The token that is sent.
    pub fn token(&self) -> Option<&Secret> {
        self.0.token()
    }

    /// The leader's address; empty where there is none. Needs no token.
    pub fn leader(&self) -> Result<String, ApiError> {
        self.0.get(&["status", "leader"], &[])
    }

    /// Addresses of the servers that vote. Needs no token.
    pub fn peers(&self) -> Result<Vec<String>, ApiError> {
        self.0.get(&["status", "peers"], &[])
    }

    /// Bootstraps with a secret of one's own. The secret that the token got: servers before 1.15 choose one themselves.
    pub fn bootstrap(&self, secret: &Secret) -> Result<Secret, ApiError> {
        let body = json!({ "BootstrapSecret": secret.expose() });
        let call = Call { timeout: BOOTSTRAP_TIMEOUT, hide: &[secret], ..Call::put(&["acl", "bootstrap"], &body) };
        let token: RawToken = self.0.read(&call)?;
        Ok(Secret::new(token.secret_id))
    }

    /// The token that is sent. `stale`: as the server that answers knows it.
    pub fn own_token(&self, stale: bool) -> Result<Token, ApiError> {
        let query: &[(&str, &str)] = if stale { &[("stale", "")] } else { &[] };
        match self.0.get::<RawToken>(&["acl", "token", "self"], query) {
            Ok(token) => Ok(token.into()),
            // Of its own token that is what it says.
            Err(error) if error.kind == Kind::NotFound => Err(ApiError { kind: Kind::UnknownToken, ..error }),
            Err(error) => Err(error),
        }
    }

    /// Whether the bootstrap has been done, by the answer that a token gets which nobody knows, or everybody.
    pub fn is_bootstrapped(&self) -> Result<bool, ApiError> {
        match self.0.get::<Value>(&["acl", "policies"], &[]) {
            Err(error) if error.kind == Kind::NotBootstrapped => Ok(false),
            Err(error) if !matches!(error.kind, Kind::UnknownToken | Kind::Denied) => Err(error),
            _ => Ok(true),
        }
    }

    /// A token by its accessor.
    pub fn acl_token(&self, accessor: &str) -> Result<Option<Token>, ApiError> {
        let found: Option<RawToken> = self.0.found(&["acl", "token", accessor], &[])?;
        Ok(found.map(Token::from))
    }

    /// Makes a token; both ids are ours. It ends after this long, if one is given.
    pub fn create_token(&self, token: &Token, lifetime: Option<Duration>) -> Result<(), ApiError> {
        let mut body = token.body();
        if let Some(lifetime) = lifetime {
            body.insert("ExpirationTTL".into(), format!("{}s", lifetime.as_secs()).into());
        }
        let secret = token.secret.clone().unwrap_or_else(|| Secret::new(""));
        body.insert("SecretID".into(), secret.expose().into());
        let body = Value::Object(body);
        self.0.send(&Call { hide: &[&secret], ..Call::put(&["acl", "token"], &body) }).map(drop)
    }

    /// Gives a token another description and other rights. Its secret and where it is known cannot be changed.
    pub fn update_token(&self, token: &Token) -> Result<(), ApiError> {
        let body = Value::Object(token.body());
        self.0.send(&Call::put(&["acl", "token", &token.accessor], &body)).map(drop)
    }

    /// Takes a token away.
    pub fn delete_token(&self, accessor: &str) -> Result<(), ApiError> {
        self.0.delete(&["acl", "token", accessor], &[])
    }

    /// A policy by its name.
    pub fn policy(&self, name: &str) -> Result<Option<Policy>, ApiError> {
        self.0.found(&["acl", "policy", "name", name], &[])
    }

    /// All policies, without their rules.
    pub fn policies(&self) -> Result<Vec<Policy>, ApiError> {
        self.0.get(&["acl", "policies"], &[])
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
        self.0.delete(&["acl", "policy", id], &[])
    }

    /// A role by its name.
    pub fn role(&self, name: &str) -> Result<Option<Role>, ApiError> {
        let found: Option<RawRole> = self.0.found(&["acl", "role", "name", name], &[])?;
        Ok(found.map(Role::from))
    }

    /// All roles.
    pub fn roles(&self) -> Result<Vec<Role>, ApiError> {
        let all: Vec<RawRole> = self.0.get(&["acl", "roles"], &[])?;
        Ok(all.into_iter().map(Role::from).collect())
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
        self.0.delete(&["acl", "role", id], &[])
    }

    /// Gives the agent a token to use.
    pub fn give_agent(&self, name: &str, token: &Secret) -> Result<(), ApiError> {
        let body = json!({ "Token": token.expose() });
        self.0.send(&Call { hide: &[token], ..Call::put(&["agent", "token", name], &body) }).map(drop)
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
        let found: Option<Vec<Raw>> = self.0.found(&kv_path(key), &[])?;
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
        let call = Call { query: &query, body: Some(value.to_vec()), hide: &hide, ..Call::new(Method::PUT, &path) };
        self.0.read(&call)
    }

    /// Takes a value away if the key's index is still this. False: it is another.
    pub fn delete_kv(&self, key: &str, index: u64) -> Result<bool, ApiError> {
        let index = index.to_string();
        self.0.read(&Call { query: &[("cas", &index)], ..Call::new(Method::DELETE, &kv_path(key)) })
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
        self.0.send(&Call::put(path, body)).map(drop)
    }
}

/// What an answer of Consul that is no success means.
pub(super) fn kind(status: u16, text: &str) -> Kind {
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if has(&["error checking JWKSURL"]) {
        // Who signed it does not change by waiting.
        if has(&["x509:", "error checking JWKSCACert"]) { Kind::Refused } else { Kind::NoKeys }
    } else if has(&["bootstrap no longer allowed"]) {
        Kind::Bootstrapped
    } else if has(&["must be bootstrapped before"]) {
        Kind::NotBootstrapped
    } else if has(&["bootstrap reset index"]) {
        Kind::ResetFile
    } else if has(&["ACL support disabled"]) {
        if has(&["rpc error"]) { Kind::AclOffElsewhere } else { Kind::AclOff }
    } else if has(&["is already in use", "already exists"]) {
        Kind::InUse
    } else if has(&["No cluster leader", "currently in legacy mode", "No path to datacenter", UNSETTLED]) {
        Kind::NoLeader
    } else if status == 404 || has(&["token does not exist"]) {
        Kind::NotFound
    } else if has(&["ACL not found"]) {
        Kind::UnknownToken
    } else if status == 429 || has(&["try again later"]) {
        Kind::Busy
    } else if is_lost(status, text) {
        Kind::Lost
    } else if status == 403 {
        Kind::Denied
    } else {
        Kind::Refused
    }
}

fn kv_path(key: &str) -> Vec<&str> {
    std::iter::once("kv").chain(key.split('/')).collect()
}

#[cfg(test)]
mod tests;
