//! What is done to a cluster that runs: looking at its tokens and members, its gossip keys, taking a member away.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use serde_json::json;

use super::{ApiError, Call, Consul, Method, RawToken, Token};
use crate::secrets::Secret;

/// A member of the gossip ring.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Member {
    /// Its node's name.
    pub name: String,
    /// Serf's number.
    status: u8,
}

impl Member {
    /// It answers.
    pub fn is_alive(&self) -> bool {
        self.status == 1
    }

    /// It said farewell, or was made to: no member any more.
    pub fn is_gone(&self) -> bool {
        self.status == 3
    }

    /// `alive`, `failed` and so on.
    pub fn state(&self) -> &'static str {
        match self.status {
            1 => "alive",
            2 => "leaving",
            3 => "left",
            4 => "failed",
            _ => "unknown",
        }
    }
}

/// The keys of one ring (the datacenter's, or that of all datacenters' servers), with how many members have each.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ring {
    /// The ring of all datacenters' servers.
    #[serde(rename = "WAN", default)]
    pub wan: bool,
    /// Its datacenter.
    #[serde(default)]
    pub datacenter: String,
    /// Members that have a key, by key.
    #[serde(default)]
    pub keys: BTreeMap<String, usize>,
    /// Members that encrypt with a key, by key.
    #[serde(default)]
    pub primary_keys: BTreeMap<String, usize>,
    /// Members that were asked.
    #[serde(default)]
    pub num_nodes: usize,
}

/// Keys are secrets.
impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("wan", &self.wan).field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Consul {
    /// All tokens, without their secrets.
    pub fn tokens(&self) -> Result<Vec<Token>, ApiError> {
        let raw: Vec<RawToken> = self.0.get(&["acl", "tokens"], &[])?;
        Ok(raw.into_iter().map(|raw| Token { secret: None, ..raw.into() }).collect())
    }

    /// The members of the datacenter's ring, as the agent that is asked knows them.
    pub fn members(&self) -> Result<Vec<Member>, ApiError> {
        self.0.get(&["agent", "members"], &[])
    }

    /// Takes a member away that is not alive: it will not be waited for.
    pub fn force_leave(&self, node: &str) -> Result<(), ApiError> {
        let path = ["agent", "force-leave", node];
        self.0.send(&Call { query: &[("prune", "")], ..Call::new(Method::PUT, &path) }).map(drop)
    }

    /// The gossip keys of all rings. Every member is asked.
    pub fn keyring(&self) -> Result<Vec<Ring>, ApiError> {
        self.0.get(&["operator", "keyring"], &[])
    }

    /// Gives every member a key besides those it has.
    pub fn install_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key(Method::POST, key)
    }

    /// Makes every member encrypt with a key that it has.
    pub fn use_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key(Method::PUT, key)
    }

    /// Takes a key from every member; not the one that it encrypts with.
    pub fn remove_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key(Method::DELETE, key)
    }

    fn key(&self, method: Method, key: &Secret) -> Result<(), ApiError> {
        let body = json!({ "Key": key.expose() });
        self.0.send(&Call { method, hide: &[key], ..Call::put(&["operator", "keyring"], &body) }).map(drop)
    }
}
