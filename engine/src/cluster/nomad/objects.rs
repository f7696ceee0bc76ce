//! What Nomad's ACLs keep, and how its answers write it.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::secrets::Secret;

/// The accessor of requests without a token.
const ANONYMOUS: &str = "anonymous";

/// A policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// For people; says whose it is.
    pub description: String,
    /// HCL or JSON.
    pub rules: String,
}

/// A role of ACLs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people; says whose it is.
    pub description: String,
    /// Names of policies.
    pub policies: BTreeSet<String>,
}

/// A token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// What it is called where its secret is not to be told.
    pub accessor: String,
    /// Its secret; `None`: Nomad did not tell it.
    pub secret: Option<Secret>,
    /// For people; says whose it is. Nomad takes two of one name.
    pub name: String,
    /// May do everything.
    pub management: bool,
    /// Names of policies.
    pub policies: BTreeSet<String>,
    /// Names of roles.
    pub roles: BTreeSet<String>,
    /// Known in all regions.
    pub global: bool,
    /// Seconds for which it counts from when it is made; asked for only.
    pub ttl: Option<u64>,
    /// When it was made (RFC 3339); told only.
    pub made: String,
    /// When it ends (RFC 3339); told only.
    pub expires: Option<String>,
    /// Grows with each token that is made; told only.
    pub create_index: u64,
}

impl Token {
    /// Requests without a token.
    pub fn is_anonymous(&self) -> bool {
        self.accessor == ANONYMOUS
    }

    /// As a request has it.
    pub(super) fn body(&self) -> Map<String, Value> {
        let roles: Vec<Value> = self.roles.iter().map(|name| json!({ "Name": name })).collect();
        let mut body = Map::new();
        if !self.accessor.is_empty() {
            body.insert("AccessorID".into(), self.accessor.clone().into());
        }
        body.insert("Name".into(), self.name.clone().into());
        body.insert("Type".into(), if self.management { "management" } else { "client" }.into());
        if !self.management {
            body.insert("Policies".into(), json!(self.policies));
            body.insert("Roles".into(), roles.into());
        }
        body.insert("Global".into(), self.global.into());
        if let Some(ttl) = self.ttl {
            body.insert("ExpirationTTL".into(), format!("{ttl}s").into());
        }
        body
    }
}

/// A token as Nomad tells it; its secret is taken over at once.
#[derive(Deserialize)]
pub(super) struct RawToken {
    #[serde(rename = "AccessorID")]
    pub(super) accessor: String,
    #[serde(rename = "SecretID", default)]
    pub(super) secret_id: String,
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "Policies", default, deserialize_with = "null_is_empty")]
    policies: BTreeSet<String>,
    #[serde(rename = "Roles", default, deserialize_with = "null_is_empty")]
    roles: Vec<Linked>,
    #[serde(rename = "Global", default)]
    global: bool,
    #[serde(rename = "CreateTime", default)]
    made: String,
    #[serde(rename = "ExpirationTime", default)]
    expires: Option<String>,
    #[serde(rename = "CreateIndex", default)]
    create_index: u64,
}

#[derive(Deserialize)]
struct Linked {
    #[serde(rename = "Name", default)]
    name: String,
}

impl From<RawToken> for Token {
    fn from(raw: RawToken) -> Self {
        Self {
            management: raw.kind == "management",
            accessor: raw.accessor,
            secret: (!raw.secret_id.is_empty()).then(|| Secret::new(raw.secret_id)),
            name: raw.name,
            policies: raw.policies,
            roles: raw.roles.into_iter().map(|role| role.name).collect(),
            global: raw.global,
            ttl: None,
            made: raw.made,
            expires: raw.expires,
            create_index: raw.create_index,
        }
    }
}

/// Whether an agent is the leader, among much else.
#[derive(Deserialize)]
pub(super) struct Leads {
    #[serde(default)]
    pub(super) stats: IndexMap<String, IndexMap<String, String>>,
}

/// Who votes.
#[derive(Deserialize)]
pub(super) struct Raft {
    #[serde(rename = "Servers")]
    pub(super) servers: Vec<Peer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Peer {
    #[serde(rename = "ID")]
    pub(super) id: String,
    pub(super) node: String,
    pub(super) leader: bool,
    pub(super) voter: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawRole {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    policies: Vec<Linked>,
}

impl From<RawRole> for Role {
    fn from(raw: RawRole) -> Self {
        let policies = raw.policies.into_iter().map(|policy| policy.name).collect();
        Self { id: raw.id, name: raw.name, description: raw.description, policies }
    }
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}
