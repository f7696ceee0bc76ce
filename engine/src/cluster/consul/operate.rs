//! What is done to a cluster that runs: looking at its tokens and members, its gossip keys, taking a member away.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, Call, Consul, Kind, Method, RawToken, Token};
use crate::{
    cluster::{
        autopilot::{self, Autopilot, Settings},
        gossip::{Gossip, Member, Ring},
    },
    secrets::Secret,
};

impl Consul {
    /// All tokens, without their secrets.
    pub fn tokens(&self) -> Result<Vec<Token>, ApiError> {
        let raw: Vec<RawToken> = self.0.get(&["acl", "tokens"], &[])?;
        Ok(raw.into_iter().map(|raw| Token { secret: None, ..raw.into() }).collect())
    }

    /// Takes a member away that is not alive: it will not be waited for.
    pub fn force_leave(&self, node: &str) -> Result<(), ApiError> {
        let path = ["agent", "force-leave", node];
        self.0.send(&Call { query: &[("prune", "")], ..Call::new(Method::PUT, &path) }).map(drop)
    }

    fn key(&self, method: Method, key: &Secret) -> Result<(), ApiError> {
        let body = json!({ "Key": key.expose() });
        self.0.send(&Call { method, hide: &[key], ..Call::put(&["operator", "keyring"], &body) }).map(drop)
    }
}

impl Autopilot for Consul {
    fn autopilot(&self) -> Result<Settings, ApiError> {
        self.0.get(autopilot::PATH, &[]).map(Settings::read)
    }

    fn set_autopilot(&self, settings: &Settings) -> Result<bool, ApiError> {
        let (index, body) = (settings.index.to_string(), Value::Object(settings.values.clone()));
        self.0.read(&Call { query: &[("cas", &index)], ..Call::put(autopilot::PATH, &body) })
    }
}

impl Gossip for Consul {
    fn members(&self) -> Result<Vec<Member>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            name: String,
            status: u8,
        }
        let raw: Vec<Raw> = self.0.get(&["agent", "members"], &[])?;
        let state = |status| match status {
            1 => "alive",
            2 => "leaving",
            3 => "left",
            4 => "failed",
            _ => "unknown",
        };
        Ok(raw.into_iter().map(|raw| Member { name: raw.name, state: state(raw.status) }).collect())
    }

    fn keyring(&self) -> Result<Vec<Ring>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            #[serde(rename = "WAN", default)]
            wan: bool,
            #[serde(default)]
            keys: BTreeMap<String, usize>,
            #[serde(default)]
            primary_keys: BTreeMap<String, usize>,
            #[serde(default)]
            num_nodes: usize,
        }
        let raw: Vec<Raw> = match self.0.get(&["operator", "keyring"], &[]) {
            Err(error) if error.kind == Kind::Refused && error.said.contains("No installed keys") => Vec::new(),
            Err(error) if error.said.contains("keyring is empty") => Vec::new(),
            answer => answer?,
        };
        let ring = |raw: Raw| Ring {
            wan: raw.wan,
            keys: raw.keys,
            primary_keys: Some(raw.primary_keys),
            members: raw.num_nodes,
        };
        Ok(raw.into_iter().map(ring).collect())
    }

    fn install_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key(Method::POST, key)
    }

    fn use_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key(Method::PUT, key)
    }

    fn remove_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key(Method::DELETE, key)
    }
}
