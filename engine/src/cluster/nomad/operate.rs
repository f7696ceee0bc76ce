//! What is done to a cluster that runs: its members, nodes and voters, and its gossip keys.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, Nomad, Raft};
use crate::{
    cluster::{
        autopilot::{self, Autopilot, Settings},
        gossip::{Gossip, Member, Ring},
    },
    secrets::Secret,
};

/// A host that runs jobs, as the servers know it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name; several may have one.
    pub name: String,
    /// `initializing`, `ready`, `down`, `disconnected`.
    pub status: String,
}

/// A server in Raft's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its id.
    pub id: String,
    /// Its name in gossip: `NODE.REGION`.
    pub name: String,
}

impl Nomad {
    /// The servers, as this one knows them: the name in gossip (`NODE.REGION`), and the member.
    pub fn servers(&self) -> Result<Vec<(String, Member)>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            members: Vec<RawMember>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct RawMember {
            name: String,
            status: String,
            #[serde(default)]
            tags: BTreeMap<String, String>,
        }
        let raw: Raw = self.get(&["agent", "members"], &[])?;
        let member = |raw: RawMember| {
            let region = raw.tags.get("region").map(|region| format!(".{region}")).unwrap_or_default();
            let state = ["alive", "leaving", "left", "failed"].into_iter().find(|state| *state == raw.status);
            let name = raw.name.strip_suffix(&region).unwrap_or(&raw.name).to_owned();
            (raw.name, Member { name, state: state.unwrap_or("unknown") })
        };
        Ok(raw.members.into_iter().map(member).collect())
    }

    /// Makes the others take a server that is not alive for one that left. The name is the one in gossip.
    pub fn force_leave(&self, name: &str) -> Result<(), ApiError> {
        self.send(&["agent", "force-leave"], &[("node", name), ("prune", "true")], &json!({}))
    }

    /// All hosts that run jobs.
    pub fn nodes(&self) -> Result<Vec<Node>, ApiError> {
        self.get(&["nodes"], &[])
    }

    /// Forgets a host; its allocations are placed elsewhere. One that is alive comes back by itself.
    pub fn purge_node(&self, id: &str) -> Result<(), ApiError> {
        self.send(&["node", id, "purge"], &[], &json!({}))
    }

    /// Raft's configuration.
    pub fn voters(&self) -> Result<Vec<Voter>, ApiError> {
        let raft: Raft = self.get(&["operator", "raft", "configuration"], &[])?;
        Ok(raft.servers.into_iter().map(|peer| Voter { id: peer.id, name: peer.node }).collect())
    }

    /// Takes a server out of Raft's configuration. The token must be one for everything.
    pub fn remove_voter(&self, id: &str) -> Result<(), ApiError> {
        self.delete(&["operator", "raft", "peer"], &[("id", id)])
    }

    fn key(&self, what: &str, key: &Secret) -> Result<(), ApiError> {
        let body = json!({ "Key": key.expose() });
        self.send_hidden::<Value>(&["agent", "keyring", what], &[], &body, &[key]).map(drop)
    }
}

impl Autopilot for Nomad {
    fn autopilot(&self) -> Result<Settings, ApiError> {
        self.get(autopilot::PATH, &[]).map(Settings::read)
    }

    fn set_autopilot(&self, settings: &Settings) -> Result<bool, ApiError> {
        let (index, body) = (settings.index.to_string(), Value::Object(settings.values.clone()));
        self.put(autopilot::PATH, &[("cas", &index)], &body)
    }
}

impl Gossip for Nomad {
    /// Servers alone gossip.
    fn members(&self) -> Result<Vec<Member>, ApiError> {
        Ok(self.servers()?.into_iter().map(|(_, member)| member).collect())
    }

    fn keyring(&self) -> Result<Vec<Ring>, ApiError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            #[serde(default)]
            keys: BTreeMap<String, usize>,
            #[serde(default)]
            num_nodes: usize,
        }
        let raw: Raw = match self.get(&["agent", "keyring", "list"], &[]) {
            // What servers say that have none.
            Err(error) if error.said.contains("keyring is empty") || error.said.contains("no keyring") => {
                return Ok(Vec::new());
            }
            answer => answer?,
        };
        Ok(vec![Ring { wan: false, keys: raw.keys, primary_keys: None, members: raw.num_nodes }])
    }

    fn install_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key("install", key)
    }

    fn use_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key("use", key)
    }

    fn remove_key(&self, key: &Secret) -> Result<(), ApiError> {
        self.key("remove", key)
    }
}
