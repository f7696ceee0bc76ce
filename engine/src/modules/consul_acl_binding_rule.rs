//! `consul_acl_binding_rule`: what who logs in with an auth method of Consul gets.

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    consul_acl_auth_method::check_name,
    consul_api::{self as api, State, api_args},
    object::{self, Object},
};
use crate::{
    choice,
    cluster::consul::{ApiError, BindingRule, Consul},
};

choice!(
    /// What a rule gives.
    Bind { Service = "service", Node = "node", Role = "role", Policy = "policy" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// What Rollcall calls it, in its description; Consul's rules have no names.
        name []: String, required;
        /// The auth method's name.
        auth_method []: String, required;
        /// For whom it holds, in Consul's language of filters: `"nomad_service" in value`. For all without it.
        selector []: String = String::new();
        /// What it gives: the right to be a service or a node, a role, or a policy (1.16 and newer).
        bind_type []: Option<Bind>;
        /// Its name, in which `${value.nomad_service}` stands for what the proof says. What does not exist at login gives nothing.
        bind_name []: Option<String>;
        /// `absent` removes it if Rollcall made it.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_binding_rule",
    aliases: &[],
    summary: "Makes, changes or removes a binding rule of Consul's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "The rule's id.")]],
    example: "- name: a job's service may register itself\n  consul_acl_binding_rule:\n    name: services\n    auth_method: nomad-workloads\n    selector: '\"nomad_service\" in value'\n    bind_type: service\n    bind_name: ${value.nomad_service}\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_name(&args.auth_method)?;
    if args.name.is_empty() {
        return Err(Failure::new("argument 'name' is empty"));
    }
    let missing = |name: &str| Failure::new(format!("argument '{name}' is missing"));
    let wanted = match args.state {
        State::Absent => None,
        State::Present => Some(BindingRule {
            id: String::new(),
            description: api::ours(&args.name),
            auth_method: args.auth_method.clone(),
            selector: args.selector.clone(),
            bind_type: match args.bind_type.ok_or_else(|| missing("bind_type"))? {
                Bind::Service => "service",
                Bind::Node => "node",
                Bind::Role => "role",
                Bind::Policy => "policy",
            }
            .to_owned(),
            bind_name: args.bind_name.clone().ok_or_else(|| missing("bind_name"))?,
            twins: Vec::new(),
        }),
    };
    object::plan(format!("{}/{}", args.auth_method, args.name), wanted, (&args.access(), args.wait), cx)
}

impl Object for BindingRule {
    type Api = Consul;
    const PRODUCT: &'static str = "Consul";
    const KIND: &'static str = "binding rule";

    fn id(&self) -> &str {
        &self.id
    }

    fn with_id(self, id: String) -> Self {
        Self { id, ..self }
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn same(&self, other: &Self) -> bool {
        fn parts(rule: &BindingRule) -> (&str, &str, &str, &str, &str) {
            (&rule.description, &rule.auth_method, &rule.selector, &rule.bind_type, &rule.bind_name)
        }
        parts(self) == parts(other) && self.twins == other.twins
    }

    fn lines(&self) -> String {
        let whom = if self.selector.is_empty() { "all" } else { &self.selector };
        let twins = if self.twins.is_empty() { "" } else { "made more than once\n" };
        format!("description: {}\nfor {whom}\ngives {} {}\n{twins}", self.description, self.bind_type, self.bind_name)
    }

    /// The rule of `METHOD/NAME`: its name stands in the description.
    fn find(consul: &Consul, name: &str) -> Result<Option<Self>, ApiError> {
        let (method, name) = name.split_once('/').unwrap_or((name, ""));
        let mut rules = of_description(consul, method, &api::ours(name))?.into_iter();
        let first = rules.next();
        Ok(first.map(|rule| Self { twins: rules.map(|twin| twin.id).collect(), ..rule }))
    }

    fn write(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.write_binding_rule(self)?;
        // Servers that made it at the same moment: the first is kept by all of them.
        for twin in of_description(consul, &self.auth_method, &self.description)?.iter().skip(1) {
            consul.delete_binding_rule(&twin.id)?;
        }
        Ok(())
    }

    fn delete(&self, consul: &Consul) -> Result<(), ApiError> {
        consul.delete_binding_rule(&self.id)
    }
}

/// All rules of a method under a description, in an order that is the same for everybody.
fn of_description(consul: &Consul, method: &str, description: &str) -> Result<Vec<BindingRule>, ApiError> {
    let mut rules = consul.binding_rules(method)?;
    rules.retain(|rule| rule.description == description);
    rules.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(rules)
}

#[cfg(test)]
mod tests;
