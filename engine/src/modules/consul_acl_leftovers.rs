//! `consul_acl_leftovers`: what programs had in Consul before they were told otherwise, how they logged in and what they might do: what
//! is ours of it, and wanted no more.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_acl_auth_method::check_name,
    consul_api::{self as api, Act, Opened, api_args},
    http::Web,
};
use crate::cluster::consul::{ApiError, Consul};

mod rights;

api_args! {
    /// Arguments.
    pub struct Args {
        /// The auth method that is wanted. Without it: none is.
        auth_method []: Option<String>;
        /// Names of the binding rules that it has: others of ours are removed.
        rules []: Vec<String>;
        /// What descriptions of methods say after `Made by Rollcall: `. Another method of this description and of the same keys is one of
        /// before: it is removed, with all that it has, as soon as no token is left that was got with it.
        description []: Option<String>;
        /// The keys: where the method's `jwks_url` is.
        jwks_url []: Option<Web>;
        /// What descriptions of roles, and of their policies, begin with after `Made by Rollcall: `. Others of this kind than `roles` are
        /// removed if the method's rules would still give them; otherwise as soon as no token has them. What a rule of another method gives
        /// stays.
        roles_of []: Option<String>;
        /// Names of the roles of this kind that are wanted, and of their policies.
        roles []: Vec<String>;
        /// What descriptions of policies begin with of which there is one for each description: one that nothing uses any
        /// more is removed where one that is used was made after it. It has another name now.
        renamed []: Vec<String>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_leftovers",
    aliases: &[],
    summary: "Removes auth methods, binding rules, roles and policies of ours that are no longer wanted",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("removed", "What was removed: `auth method NAME`, `binding rule METHOD/NAME`, `role NAME`, `policy NAME`."),
        (
            "in_use",
            "What would be removed, if no tokens were left that were got with it or have it: `auth method NAME`, `role NAME`.",
        ),
    ]],
    example: "- name: how jobs no longer log in\n  consul_acl_leftovers:\n    auth_method: nomad-workloads\n    rules: [services, tasks]\n    description: Nomad's jobs\n    jwks_url: https://nomad.service.consul:4646/.well-known/jwks.json\n    roles_of: tasks of Nomad's namespace\n    roles: [nomad-tasks-default]\n    token_secret: consul/management\n",
    plan,
};

/// Something of Consul's: its id, and what people call it.
type Named = (String, String);

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    rules: Vec<Named>,
    methods: BTreeSet<String>,
    roles: Vec<Named>,
    policies: Vec<Named>,
    in_use: BTreeSet<String>,
}

impl Left {
    fn look(consul: &Consul, args: &Args) -> Result<Self, ApiError> {
        let mut left = Self::default();
        left.look_at_logins(consul, args)?;
        left.look_at_rights(consul, args)?;
        Ok(left)
    }

    fn look_at_logins(&mut self, consul: &Consul, args: &Args) -> Result<(), ApiError> {
        let (Some(description), Some(keys)) = (&args.description, &args.jwks_url) else { return Ok(()) };
        if let Some(method) = &args.auth_method {
            let wanted: BTreeSet<String> = args.rules.iter().map(|name| api::ours(name)).collect();
            for rule in consul.binding_rules(method)? {
                if api::is_ours(&rule.description) && !wanted.contains(&rule.description) {
                    let name = rule.description.split_once(": ").map_or("", |(_, name)| name);
                    self.rules.push((rule.id, format!("{method}/{name}")));
                }
            }
        }
        for name in consul.auth_methods()? {
            if args.auth_method.as_ref() == Some(&name) {
                continue;
            }
            let Some(method) = consul.auth_method(&name)? else { continue };
            let same_keys = method.config.get("JWKSURL").is_some_and(|url| url == keys.url().as_str());
            if method.description != api::ours(description) || !same_keys {
                continue;
            }
            if consul.has_tokens_of(&name)? {
                self.in_use.insert(format!("auth method {name}"));
            } else {
                self.methods.insert(name);
            }
        }
        Ok(())
    }

    fn removed(&self) -> Vec<String> {
        let of = |kind: &'static str, all: &[Named]| -> Vec<String> {
            all.iter().map(|(_, name)| format!("{kind} {name}")).collect()
        };
        let methods = self.methods.iter().map(|name| format!("auth method {name}")).collect();
        [of("binding rule", &self.rules), methods, of("role", &self.roles), of("policy", &self.policies)].concat()
    }

    fn told(&self, outcome: Outcome) -> Outcome {
        outcome.with("removed", self.removed()).with("in_use", self.in_use.iter().cloned().collect::<Vec<_>>())
    }
}

/// The arguments belong together.
fn check(args: &Args) -> Result<(), Failure> {
    if let Some(name) = &args.auth_method {
        check_name(name)?;
    }
    let missing = match (&args.description, &args.jwks_url) {
        (None, Some(_)) => Some("description"),
        (Some(_), None) => Some("jwks_url"),
        (None, None) if args.auth_method.is_some() || !args.rules.is_empty() => Some("description"),
        _ if args.roles_of.is_none() && !args.roles.is_empty() => Some("roles_of"),
        (None, None) if args.roles_of.is_none() && args.renamed.is_empty() => Some("description"),
        _ => None,
    };
    match missing {
        Some(name) => Err(Failure::new(format!("argument '{name}' is missing")).hint(
            "it takes 'description' with 'jwks_url' (and 'auth_method', 'rules'), 'roles_of' (with 'roles'), 'renamed', or more than one of them",
        )),
        None => Ok(()),
    }
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check(&args)?;
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let left = match api::first_look(args.wait, cx, || Left::look(&consul, &args)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let removed = left.removed();
    if removed.is_empty() {
        return Ok(Plan::Unchanged(left.told(Outcome::unchanged())));
    }
    let diff = api::diff("consul's rights and logins of before".into(), &(removed.join("\n") + "\n"), "");
    let planned = left.told(Outcome::changed());
    let (done, wait) = (planned.clone(), args.wait);
    Ok(Act::plan(diff, planned, move |_| remove(&consul, &left, wait).map(|()| done)))
}

/// Others may do the same at this moment: what is gone is not missed.
fn remove(consul: &Consul, left: &Left, wait: Duration) -> Result<(), Failure> {
    for (id, _) in &left.rules {
        api::patiently(wait, || consul.delete_binding_rule(id))?;
    }
    for name in &left.methods {
        api::patiently(wait, || consul.delete_auth_method(name))?;
    }
    for (id, _) in &left.roles {
        api::patiently(wait, || consul.delete_role(id))?;
    }
    for (id, _) in &left.policies {
        api::patiently(wait, || consul.delete_policy(id))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
