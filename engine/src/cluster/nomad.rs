//! Nomad's HTTP API: a thin typed client that blocks. What is used here often has a call of its own; the rest of the API is
//! reached through [`Nomad::get`], [`Nomad::put`] and the like.
//!
//! Nomad says "Permission denied" both of a token without the right and of one that it does not know, and "ACL support disabled"
//! for whichever server was asked in the end. Where that matters this client asks once more, without changing anything, and its
//! errors say which it is.

use reqwest::Method;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

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

mod objects;
mod operate;

pub use super::error::{ApiError, Kind};
use objects::{Leads, Raft, RawRole, RawToken};
pub use objects::{Policy, Role, Token};
pub use operate::{Node, Voter};

/// How Nomad speaks.
static DIALECT: Dialect = Dialect { product: "Nomad", header: "X-Nomad-Token", kind };

/// What is sent as a secret to learn whether the bootstrap has been done: no UUID, so that nothing is made of it.
const PROBE: &str = "rollcall asks whether";
/// The accessor of requests to servers whose ACLs are off.
const OFF: &str = "acls-disabled";
/// Characters of a refusal that are told: those of jobs and policies have many lines.
const SAID: usize = 4000;

/// One agent's API, with a token or without.
#[derive(Clone, Debug)]
pub struct Nomad {
    api: Api,
    namespace: Option<String>,
}

impl Nomad {
    /// A client for an address.
    pub(crate) fn new(url: &Web, trust: Trust, token: Option<Secret>) -> Result<Self, Failure> {
        let api = Api::new(url, trust, token, &DIALECT)?;
        Ok(Self { api, namespace: None })
    }

    /// The same agent with another token.
    pub fn with(&self, token: &Secret) -> Self {
        Self { api: self.api.with(Some(token)), ..self.clone() }
    }

    /// The same agent; [`get`](Self::get) and the like are about what is in this namespace.
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The token that is sent.
    pub fn token(&self) -> Option<&Secret> {
        self.api.token()
    }

    /// The leader's address; empty where there is none. Needs no token.
    pub fn leader(&self) -> Result<String, ApiError> {
        match self.api.get(&["status", "leader"], &[]) {
            Err(error) if error.kind == Kind::NoLeader => Ok(String::new()),
            answer => answer,
        }
    }

    /// Addresses of the servers that vote. Needs no token.
    pub fn peers(&self) -> Result<Vec<String>, ApiError> {
        self.api.get(&["status", "peers"], &[])
    }

    /// Bootstraps with a secret of one's own. The secret that the token got: servers before 1.3.2 choose one themselves.
    pub fn bootstrap(&self, secret: &Secret) -> Result<Secret, ApiError> {
        let body = json!({ "BootstrapSecret": secret.expose() });
        let call = Call { timeout: BOOTSTRAP_TIMEOUT, hide: &[secret], ..Call::put(&["acl", "bootstrap"], &body) };
        let token: RawToken = self.api.read(&call).map_err(|error| self.explained(error))?;
        Ok(Secret::new(token.secret_id))
    }

    /// Whether the bootstrap has been done. It is asked for with a secret that no server takes: one that has been bootstrapped
    /// says so before it looks at the secret. Needs no token. Where somebody has put a file there that resets the ACLs, with the right number,
    /// it answers as if nobody had: no one without a token can tell the two from each other.
    pub fn is_bootstrapped(&self) -> Result<bool, ApiError> {
        match self.api.send(&Call::put(&["acl", "bootstrap"], &probe())) {
            // That the number of the file is wrong it says of a bootstrap that was done.
            Err(error) if matches!(error.kind, Kind::Bootstrapped | Kind::ResetFile) => Ok(true),
            Err(error) if takes_no_probe(&error.said) => Ok(false),
            Err(error) => Err(self.explained(error)),
            Ok(_) => Err(ApiError {
                kind: Kind::Refused,
                call: "PUT /v1/acl/bootstrap".into(),
                said: "the servers took what is no secret: they are older than 1.3.2".into(),
            }),
        }
    }

    /// The token that is sent, as the server that answers knows it.
    pub fn own_token(&self) -> Result<Token, ApiError> {
        match self.api.get::<RawToken>(&["acl", "token", "self"], &[]) {
            // Where ACLs are off everybody has a token of that name.
            Ok(token) if token.accessor == OFF => Err(self.explained(ApiError {
                kind: Kind::AclOff,
                call: "GET /v1/acl/token/self".into(),
                said: "ACL support disabled".into(),
            })),
            Ok(token) => Ok(token.into()),
            // Every token may read itself.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Denied) => {
                Err(ApiError { kind: Kind::UnknownToken, ..error })
            }
            Err(error) => Err(self.explained(error)),
        }
    }

    /// All tokens, without their secrets.
    pub fn tokens(&self) -> Result<Vec<Token>, ApiError> {
        Ok(self.get::<Vec<RawToken>>(&["acl", "tokens"], &[])?.into_iter().map(Token::from).collect())
    }

    /// A token by its accessor.
    pub fn acl_token(&self, accessor: &str) -> Result<Option<Token>, ApiError> {
        let found: Option<RawToken> = self.found(&["acl", "token", accessor], &[])?;
        Ok(found.map(Token::from))
    }

    /// Makes a token; both its ids are Nomad's. What was made.
    pub fn create_token(&self, token: &Token) -> Result<Token, ApiError> {
        let raw: RawToken = self.put(&["acl", "token"], &[], &Value::Object(token.body()))?;
        Ok(raw.into())
    }

    /// Gives a token another name and other rights. Its secret, its end and where it is known cannot be changed.
    pub fn update_token(&self, token: &Token) -> Result<(), ApiError> {
        let body = Value::Object(token.body());
        self.put::<Value>(&["acl", "token", &token.accessor], &[], &body).map(drop)
    }

    /// Takes a token away.
    pub fn delete_token(&self, accessor: &str) -> Result<(), ApiError> {
        self.delete(&["acl", "token", accessor], &[])
    }

    /// Has another server lead, if this one does: the name of the one that was chosen. A token must be one for everything.
    pub fn step_down(&self) -> Result<Option<String>, ApiError> {
        let agent: Leads = self.get(&["agent", "self"], &[])?;
        if agent.stats.get("nomad").and_then(|stats| stats.get("leader")).is_none_or(|leader| leader != "true") {
            return Ok(None);
        }
        let raft: Raft = self.get(&["operator", "raft", "configuration"], &[])?;
        let Some(other) = raft.servers.into_iter().find(|server| server.voter && !server.leader) else {
            return Ok(None);
        };
        self.send(&["operator", "raft", "transfer-leadership"], &[("id", &other.id)], &json!({}))?;
        Ok(Some(other.node))
    }

    /// A policy by its name.
    pub fn policy(&self, name: &str) -> Result<Option<Policy>, ApiError> {
        self.found(&["acl", "policy", name], &[])
    }

    /// Makes or changes a policy.
    pub fn write_policy(&self, policy: &Policy) -> Result<(), ApiError> {
        let body = json!({ "Name": policy.name, "Description": policy.description, "Rules": policy.rules });
        self.send(&["acl", "policy", &policy.name], &[], &body)
    }

    /// Takes a policy away.
    pub fn delete_policy(&self, name: &str) -> Result<(), ApiError> {
        self.delete(&["acl", "policy", name], &[])
    }

    /// A role of ACLs by its name.
    pub fn role(&self, name: &str) -> Result<Option<Role>, ApiError> {
        let found: Option<RawRole> = self.found(&["acl", "role", "name", name], &[])?;
        Ok(found.map(Role::from))
    }

    /// Reads from an endpoint below `/v1`; each part of the path is escaped.
    pub fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, ApiError> {
        self.call(Call { query, ..Call::new(Method::GET, path) })
    }

    /// The same; `None` where there is no such thing.
    pub fn found<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Option<T>, ApiError> {
        match self.get(path, query) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes and reads the answer.
    pub fn put<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)], body: &Value) -> Result<T, ApiError> {
        self.call(Call { query, ..Call::put(path, body) })
    }

    /// The same with POST.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: &Value,
    ) -> Result<T, ApiError> {
        self.call(Call { query, method: Method::POST, ..Call::put(path, body) })
    }

    /// Writes; what the answer holds is of no interest.
    pub fn send(&self, path: &[&str], query: &[(&str, &str)], body: &Value) -> Result<(), ApiError> {
        self.raw(Call { query, ..Call::put(path, body) }).map(drop)
    }

    /// Writes a value whose texts are secret: no error tells them.
    pub fn send_hidden<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: &Value,
        hide: &[&Secret],
    ) -> Result<T, ApiError> {
        self.call(Call { query, hide, ..Call::put(path, body) })
    }

    /// Takes something away and reads the answer; what is not there is an error.
    pub fn remove<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, ApiError> {
        self.call(Call { query, ..Call::new(Method::DELETE, path) })
    }

    /// Takes something away; what is not there is not missed.
    pub fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> Result<(), ApiError> {
        match self.raw(Call { query, ..Call::new(Method::DELETE, path) }) {
            Err(error) if error.kind != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ApiError> {
        self.in_namespace(call, |call| self.api.read(call))
    }

    fn raw(&self, call: Call<'_>) -> Result<Vec<u8>, ApiError> {
        self.in_namespace(call, |call| self.api.send(call))
    }

    fn in_namespace<T>(
        &self,
        call: Call<'_>,
        send: impl FnOnce(&Call<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let mut query = call.query.to_vec();
        if let Some(namespace) = &self.namespace {
            query.push(("namespace", namespace));
        }
        send(&Call { query: &query, said: SAID, ..call }).map_err(|error| self.explained(error))
    }

    /// The same error with a kind that says what Nomad's words leave open.
    fn explained(&self, error: ApiError) -> ApiError {
        let kind = match error.kind {
            Kind::Denied if self.api.token().is_some() => match self.api.get::<Value>(&["acl", "token", "self"], &[]) {
                Err(own) if matches!(own.kind, Kind::Denied | Kind::NotFound | Kind::UnknownToken) => {
                    Kind::UnknownToken
                }
                _ => Kind::Denied,
            },
            Kind::AclOff if self.has_acls() == Some(true) => Kind::AclOffElsewhere,
            kind => kind,
        };
        ApiError { kind, ..error }
    }

    /// Whether ACLs are on in the agent that answers; `None`: nobody can tell.
    fn has_acls(&self) -> Option<bool> {
        #[derive(Deserialize)]
        struct Agent {
            config: Config,
        }
        #[derive(Deserialize)]
        struct Config {
            #[serde(rename = "ACL")]
            acl: Acl,
        }
        #[derive(Deserialize)]
        struct Acl {
            #[serde(rename = "Enabled")]
            enabled: bool,
        }
        match self.api.with(None).get::<Agent>(&["agent", "self"], &[]) {
            Ok(agent) => Some(agent.config.acl.enabled),
            // Without ACLs nobody is denied.
            Err(error) => (error.kind == Kind::Denied).then_some(true),
        }
    }
}

/// The body of a bootstrap that nobody carries out.
pub(super) fn probe() -> Value {
    json!({ "BootstrapSecret": PROBE })
}

/// Whether a refusal is that of a server that would have taken a better secret.
pub(super) fn takes_no_probe(said: &str) -> bool {
    said.contains("invalid acl token")
}

/// What an answer of Nomad that is no success means.
pub(super) fn kind(status: u16, text: &str) -> Kind {
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    // What a job's text says must not be taken for what Nomad says.
    if status == 400 && has(&["Failed to parse job"]) {
        Kind::Refused
    } else if has(&["ACL bootstrap already done"]) {
        Kind::Bootstrapped
    } else if has(&["bootstrap reset index", "reset index for ACL bootstrap"]) {
        Kind::ResetFile
    } else if has(&["ACL support disabled"]) {
        Kind::AclOff
    } else if has(&["No cluster leader", "No path to region", "not ready to serve", UNSETTLED]) {
        Kind::NoLeader
    } else if status == 404 || has(&["delete nonexistent", "cannot find token"]) {
        Kind::NotFound
    } else if has(&["ACL token not found", "ACL token expired"]) {
        Kind::UnknownToken
    } else if status == 409 || has(&["already exists"]) {
        Kind::InUse
    } else if status == 429 || has(&["try again later"]) {
        Kind::Busy
    } else if status == 403 || has(&["Permission denied"]) {
        Kind::Denied
    } else if is_lost(status, text) {
        Kind::Lost
    } else {
        Kind::Refused
    }
}

#[cfg(test)]
mod tests;
