//! What Consul keeps: policies, roles, tokens, values; and how its answers write them.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::secrets::Secret;

/// The policy that allows everything.
const GLOBAL_MANAGEMENT: &str = "00000000-0000-0000-0000-000000000001";
/// Ids that begin so are Consul's own.
const BUILTIN: &str = "00000000-0000-0000-0000-0000000000";

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
    /// When it was made, in Consul's own count: what was made later has a greater one.
    #[serde(rename = "CreateIndex")]
    pub made: u64,
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
    pub(super) fn fill(&self, body: &mut Map<String, Value>) {
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// When it was made, as Consul writes times.
    pub made: String,
    /// When it ends; empty: never.
    pub expires: String,
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

/// A token as Consul tells it; its secret is taken over at once.
#[derive(Deserialize)]
pub(super) struct RawToken {
    #[serde(rename = "AccessorID")]
    accessor: String,
    #[serde(rename = "SecretID", default)]
    pub(super) secret_id: String,
    #[serde(rename = "Description", default)]
    description: String,
    #[serde(rename = "Local", default)]
    local: bool,
    #[serde(rename = "CreateTime", default)]
    made: String,
    #[serde(rename = "ExpirationTime", default)]
    expires: Option<String>,
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
            made: raw.made,
            expires: raw.expires.unwrap_or_default(),
        }
    }
}

impl Token {
    pub(super) fn body(&self) -> Map<String, Value> {
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
pub(super) struct RawRole {
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
