//! `consul_acl_policy`: a policy of Consul's ACLs.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Plan,
    consul_acl::{self, Object},
    consul_api::{self as api, State, api_args},
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
        "rules: a text or a mapping".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) => {
                let names = if text.trim_start().starts_with('{') {
                    let map: serde_json::Map<String, Value> =
                        serde_json::from_str(text).map_err(|e| format!("the rules are no JSON: {e}"))?;
                    map.keys().cloned().collect()
                } else {
                    hcl_names(text)?
                };
                known(&names)?;
                Ok(Self(text.clone()))
            }
            Value::Object(map) => {
                known(&map.keys().cloned().collect::<Vec<_>>())?;
                Ok(Self(value.to_string()))
            }
            _ => Err(super::args::expected::<Self>(value)),
        }
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

fn known(names: &[String]) -> Result<(), String> {
    match names.iter().find(|name| !RESOURCES.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let near = crate::diag::nearest(name, RESOURCES.iter().copied());
            let near = near.map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default();
            Err(format!("rules cannot be about '{name}'{near}: Consul would take it, and allow nothing"))
        }
    }
}

/// The names at the outermost level of a text in HCL.
fn hcl_names(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut rest = text.char_indices().peekable();
    // After `=` stands a value, not a name.
    let mut value = false;
    while let Some((at, c)) = rest.next() {
        let line = || text[..at].matches('\n').count() + 1;
        match c {
            '#' => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
            '/' if rest.next_if(|(_, c)| *c == '/').is_some() => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
            '/' if rest.next_if(|(_, c)| *c == '*').is_some() => {
                let mut star = false;
                if !rest.any(|(_, c)| std::mem::replace(&mut star, c == '*') && c == '/') {
                    return Err(format!("line {}: a comment does not end", line()));
                }
            }
            '"' => {
                let mut escaped = false;
                let ended = rest.any(|(_, c)| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                if !ended {
                    return Err(format!("line {}: a quoted text does not end", line()));
                }
                value = false;
            }
            '{' | '[' => (depth, value) = (depth + 1, false),
            '}' | ']' => {
                depth = depth.checked_sub(1).ok_or_else(|| format!("line {}: '{c}' closes nothing", line()))?;
            }
            '=' => value = true,
            '\n' => value = false,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let mut word = String::from(c);
                while let Some((_, c)) = rest.next_if(|(_, c)| c.is_ascii_alphanumeric() || *c == '_' || *c == '-') {
                    word.push(c);
                }
                if depth == 0 && !value {
                    names.push(word);
                }
            }
            _ => {}
        }
    }
    if depth > 0 { Err("a '{' is not closed".into()) } else { Ok(names) }
}

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
        }),
        (State::Absent, _) => None,
    };
    consul_acl::plan(args.name.clone(), wanted, (&args.access(), args.wait), cx)
}

impl Object for Policy {
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
