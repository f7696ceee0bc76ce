//! What is done to a cluster that runs: its members, and its gossip keys.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, Nomad};
use crate::{
    cluster::gossip::{Gossip, Member, Ring},
    secrets::Secret,
};

impl Nomad {
    fn key(&self, what: &str, key: &Secret) -> Result<(), ApiError> {
        let body = json!({ "Key": key.expose() });
        self.send_hidden::<Value>(&["agent", "keyring", what], &[], &body, &[key]).map(drop)
    }
}

impl Gossip for Nomad {
    /// Servers alone gossip.
    fn members(&self) -> Result<Vec<Member>, ApiError> {
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
            // NODE.REGION
            let region = raw.tags.get("region").map(|region| format!(".{region}")).unwrap_or_default();
            let state = ["alive", "leaving", "left", "failed"].into_iter().find(|state| *state == raw.status);
            Member {
                name: raw.name.strip_suffix(&region).unwrap_or(&raw.name).to_owned(),
                state: state.unwrap_or("unknown"),
            }
        };
        Ok(raw.members.into_iter().map(member).collect())
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
