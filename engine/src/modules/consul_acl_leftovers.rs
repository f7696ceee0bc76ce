//! `consul_acl_leftovers`: how programs logged in to Consul before they were told otherwise: what is ours of it, and wanted no more.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_acl_auth_method::check_name,
    consul_api::{self as api, Act, Opened, api_args},
    http::Web,
};
use crate::cluster::consul::{ApiError, Consul};

api_args! {
    /// Arguments.
    pub struct Args {
        /// The auth method that is wanted. Without it: none is.
        auth_method []: Option<String>;
        /// Names of the binding rules that it has: others of ours are removed.
        rules []: Vec<String>;
        /// What descriptions of methods say after `Made by Rollcall: `. Another method of this description and of the same keys is one of
        /// before: it is removed, with all that it has, as soon as no token is left that was got with it.
        description []: String, required;
        /// The keys: where the method's `jwks_url` is.
        jwks_url []: Web, required;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_leftovers",
    aliases: &[],
    summary: "Removes auth methods and binding rules of ours that are no longer wanted",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("removed", "What was removed: `auth method NAME`, `binding rule METHOD/NAME`."),
        ("in_use", "Methods that would be removed, if tokens were not left that were got with them."),
    ]],
    example: "- name: how jobs no longer log in\n  consul_acl_leftovers:\n    auth_method: nomad-workloads\n    rules: [services, tasks]\n    description: Nomad's jobs\n    jwks_url: https://nomad.service.consul:4646/.well-known/jwks.json\n    token_secret: consul/management\n",
    plan,
};

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    /// Rules: their ids, and what people call them.
    rules: Vec<(String, String)>,
    methods: BTreeSet<String>,
    in_use: BTreeSet<String>,
}

impl Left {
    fn look(consul: &Consul, args: &Args) -> Result<Self, ApiError> {
        let mut left = Self::default();
        if let Some(method) = &args.auth_method {
            let wanted: BTreeSet<String> = args.rules.iter().map(|name| api::ours(name)).collect();
            for rule in consul.binding_rules(method)? {
                if api::is_ours(&rule.description) && !wanted.contains(&rule.description) {
                    let name = rule.description.split_once(": ").map_or("", |(_, name)| name);
                    left.rules.push((rule.id, format!("{method}/{name}")));
                }
            }
        }
        for name in consul.auth_methods()? {
            if args.auth_method.as_ref() == Some(&name) {
                continue;
            }
            let Some(method) = consul.auth_method(&name)? else { continue };
            let same_keys = method.config.get("JWKSURL").is_some_and(|url| url == args.jwks_url.url().as_str());
            if method.description != api::ours(&args.description) || !same_keys {
                continue;
            }
            if consul.has_tokens_of(&name)? { &mut left.in_use } else { &mut left.methods }.insert(name);
        }
        Ok(left)
    }

    fn removed(&self) -> Vec<String> {
        let rules = self.rules.iter().map(|(_, name)| format!("binding rule {name}"));
        rules.chain(self.methods.iter().map(|name| format!("auth method {name}"))).collect()
    }

    fn told(&self, outcome: Outcome) -> Outcome {
        outcome.with("removed", self.removed()).with("in_use", self.in_use.iter().cloned().collect::<Vec<_>>())
    }
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    if let Some(name) = &args.auth_method {
        check_name(name)?;
    }
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let left = match api::first_look(args.wait, cx, || Left::look(&consul, &args)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if left.rules.is_empty() && left.methods.is_empty() {
        return Ok(Plan::Unchanged(left.told(Outcome::unchanged())));
    }
    let lines = left.removed().join("\n") + "\n";
    let diff = api::diff("consul's logins of before".into(), &lines, "");
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
    Ok(())
}

#[cfg(test)]
mod tests;
