//! `nomad_acl_policy`: a policy of Nomad's ACLs.

use serde_json::Value;

use super::{
    Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Plan,
    nomad_api::{self as api, State, api_args},
    object::{self, Object},
    rules,
};
use crate::cluster::nomad::{ApiError, Nomad, Policy};

api_args! {
    /// Arguments.
    pub struct Args {
        /// Its name. What requests without a token may do stands in the policy `anonymous`.
        name []: String, required;
        /// What it allows: Nomad's own text (HCL or JSON), or a mapping.
        rules []: Option<Rules>;
        /// What it is for. Nomad shows `Made by Rollcall: …`.
        description []: String = String::new();
        /// `absent` removes it if Rollcall made it.
        state []: State = State::Present;
    }
}

/// Rules as text; what they are about has been checked: releases before 1.9 take any name and then allow nothing.
#[derive(Clone, Debug)]
pub struct Rules(String);

impl FromArg for Rules {
    fn kind() -> String {
        rules::KIND.into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        rules::read(value, RESOURCES, "Nomad").map(Self)
    }
}

/// What rules can be about.
const RESOURCES: &[&str] =
    &["agent", "host_volume", "namespace", "node", "node_pool", "operator", "plugin", "quota", "sentinel"];

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_acl_policy",
    aliases: &[],
    summary: "Makes, changes or removes a policy of Nomad's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "Its name, which is what Nomad knows it by.")]],
    example: "- name: who looks at the nodes\n  nomad_acl_policy:\n    name: nodes\n    rules: |\n      node { policy = \"read\" }\n    token_secret: nomad/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let name_fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if args.name.is_empty() || args.name.len() > 128 || !args.name.chars().all(name_fits) {
        return Err(Failure::new(format!("argument 'name': '{}' is no name of a policy", args.name.escape_debug()))
            .hint("letters, digits and '-', 128 at most"));
    }
    let wanted = match (args.state, &args.rules) {
        (State::Present, None) => return Err(Failure::new("argument 'rules' is missing")),
        (State::Present, Some(rules)) => {
            Some(Policy { name: args.name.clone(), description: api::ours(&args.description), rules: rules.0.clone() })
        }
        (State::Absent, _) => None,
    };
    object::plan(args.name.clone(), wanted, (&args.access(), args.wait), cx)
}

impl Object for Policy {
    type Api = Nomad;
    const PRODUCT: &'static str = "Nomad";
    const KIND: &'static str = "policy";

    fn id(&self) -> &str {
        &self.name
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn same(&self, other: &Self) -> bool {
        self.description == other.description && self.rules.trim_end() == other.rules.trim_end()
    }

    fn lines(&self) -> String {
        format!("description: {}\n{}\n", self.description, self.rules.trim_end())
    }

    fn find(nomad: &Nomad, name: &str) -> Result<Option<Self>, ApiError> {
        nomad.policy(name)
    }

    fn write(&self, nomad: &Nomad) -> Result<(), ApiError> {
        nomad.write_policy(self)
    }

    fn delete(&self, nomad: &Nomad) -> Result<(), ApiError> {
        nomad.delete_policy(&self.name)
    }
}

#[cfg(test)]
mod tests;
