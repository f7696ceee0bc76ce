//! `consul_acl_policy`: a policy of Consul's ACLs.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Plan,
    consul_api::{self as api, State, api_args},
    object::{self, Object},
    rules,
};
use crate::cluster::consul::{ApiError, Consul, Policy};

api_args! {
    /// Arguments.
    pub struct Args {
        /// Its name.
        name []: String, required;
        /// What it allows: Consul's own text (HCL or JSON), or a mapping.
        rules []: Option<Rules>;
        /// What it is for. Consul shows `Made by Rollcall: …`.
        description []: String = String::new();
        /// Where it holds; everywhere without.
        datacenters []: Vec<String>;
        /// `absent` removes it if Rollcall made it.
        state []: State = State::Present;
    }
}

/// Rules as text; what they are about has been checked, for Consul takes any name and then allows nothing.
#[derive(Clone, Debug)]
pub struct Rules(String);

impl FromArg for Rules {
    fn kind() -> String {
        rules::KIND.into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        rules::read(value, RESOURCES, "Consul").map(Self)
    }
}

/// What rules can be about.
const RESOURCES: &[&str] = &[
    "acl",
    "agent",
    "agent_prefix",
    "event",
    "event_prefix",
    "identity",
    "identity_prefix",
    "key",
    "key_prefix",
    "keyring",
    "mesh",
    "namespace",
    "namespace_prefix",
    "node",
    "node_prefix",
    "operator",
    "partition",
    "partition_prefix",
    "peering",
    "query",
    "query_prefix",
    "service",
    "service_prefix",
    "session",
    "session_prefix",
];

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_policy",
    aliases: &[],
    summary: "Makes, changes or removes a policy of Consul's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "The policy's id.")]],
    example: "- name: who reads the catalog\n  consul_acl_policy:\n    name: catalog\n    rules: |\n      node_prefix \"\" { policy = \"read\" }\n      service_prefix \"\" { policy = \"read\" }\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let wanted = match (args.state, &args.rules) {
        (State::Present, None) => return Err(Failure::new("argument 'rules' is missing")),
        (State::Present, Some(rules)) => Some(Policy {
            id: String::new(),
            name: args.name.clone(),
            description: api::ours(&args.description),
            rules: rules.0.clone(),
            datacenters: args.datacenters.iter().cloned().collect(),
            made: 0,
        }),
        (State::Absent, _) => None,
    };
    object::plan(args.name.clone(), wanted, (&args.access(), args.wait), cx)
}

impl Object for Policy {
    type Api = Consul;
    const PRODUCT: &'static str = "Consul";
    const KIND: &'static str = "policy";

    fn id(&self) -> &str {
        &self.id
    }

    fn with_id(self, id: String) -> Self {
        Self { id, ..self }
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn is_builtin(&self) -> bool {
        Self::is_builtin(self)
    }

    fn same(&self, other: &Self) -> bool {
        fn parts(p: &Policy) -> (&str, &str, &BTreeSet<String>) {
            (&p.description, p.rules.trim_end(), &p.datacenters)
        }
        parts(self) == parts(other)
    }

    fn lines(&self) -> String {
        let mut lines = format!("description: {}\n", self.description);
        for place in &self.datacenters {
            lines.push_str(&format!("in {place}\n"));
        }
        lines + self.rules.trim_end() + "\n"
    }

    fn find(consul: &Consul, name: &str) -> Result<Option<Self>, ApiError> {
        consul.policy(name)
    }

    fn write(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.write_policy(self)
    }

    fn delete(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.delete_policy(&self.id)
    }
}

#[cfg(test)]
mod tests;
