//! `consul_acl_role`: a role of Consul's ACLs.

use std::{path::PathBuf, time::Duration};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_acl_policy::State,
    consul_api::{self as api, Access, Act, Hidden, Opened, SecretName},
    http::Web,
};
use crate::{
    args,
    cluster::consul::{Consul, NodeIdentity, Rights, Role, ServiceIdentity, TemplatedPolicy},
};

args! {
    /// Arguments.
    pub struct Args {
        /// Its name.
        name []: String, required;
        /// What it is for. Consul shows `Made by Rollcall: …`.
        description []: String = String::new();
        /// Names of policies.
        policies []: Vec<String>;
        /// Services that it may be: names, or mappings of `name` and `datacenters`.
        service_identities []: Vec<ServiceIdentity>;
        /// Nodes that it may be: mappings of `name` and `datacenter`.
        node_identities []: Vec<NodeIdentity>;
        /// Consul's own policies: `builtin/dns`, or mappings of `template`, `name` and `datacenters` (1.17 and newer).
        templated_policies []: Vec<TemplatedPolicy>;
        /// `absent` removes it if Rollcall made it.
        state []: State = State::Present;
        /// The agent's API.
        url []: Web = api::local();
        /// Certificates (PEM) of who signed the agent's, for `https`.
        ca_file []: Option<PathBuf>;
        /// The token's secret.
        token []: Option<Hidden>;
        /// The name of the token's secret instead: `consul/management`.
        token_secret []: Option<SecretName>;
        /// For how many seconds to ask a cluster that is only being formed.
        wait []: Duration = Duration::from_secs(30);
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_role",
    aliases: &[],
    summary: "Makes, changes or removes a role of Consul's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "The role's id.")]],
    example: "- name: what the shop may do\n  consul_acl_role:\n    name: shop\n    policies: [catalog]\n    service_identities: [shop, basket]\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let (token, token_secret) = (args.token.as_ref(), args.token_secret.as_ref());
    let access = Access { url: &args.url, ca_file: args.ca_file.as_ref(), token, token_secret };
    let wanted = (args.state == State::Present).then(|| Role {
        id: String::new(),
        name: args.name.clone(),
        description: api::ours(&args.description),
        rights: Rights {
            policies: args.policies.iter().cloned().collect(),
            service_identities: args.service_identities.iter().cloned().collect(),
            node_identities: args.node_identities.iter().cloned().collect(),
            templated_policies: args.templated_policies.iter().cloned().collect(),
            ..Rights::default()
        },
    });
    let consul = match api::open(&access, cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let found = match api::first_look(args.wait, cx, || consul.role(&args.name)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if let (None, Some(found)) = (&wanted, &found)
        && !api::is_ours(&found.description)
    {
        return Err(api::not_ours(&format!("role '{}'", args.name)));
    }
    if same(found.as_ref(), wanted.as_ref()) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), found.as_ref())));
    }
    let diff = api::diff(format!("consul role {}", args.name), &lines(found.as_ref()), &lines(wanted.as_ref()));
    let planned = told(Outcome::changed(), found.as_ref());
    Ok(Act::plan(diff, planned, move |_| write(&consul, &args.name, wanted.as_ref(), args.wait)))
}

fn write(consul: &Consul, name: &str, wanted: Option<&Role>, wait: Duration) -> Result<Outcome, Failure> {
    let settled = api::settle(
        wait,
        || consul.role(name),
        |found| same(found, wanted),
        |found| match (wanted, found) {
            (Some(wanted), found) => {
                let id = found.map(|found| found.id.clone()).unwrap_or_default();
                consul.write_role(&Role { id, ..wanted.clone() })
            }
            (None, Some(found)) => consul.delete_role(&found.id),
            (None, None) => Ok(()),
        },
    )?;
    Ok(told(api::outcome(settled.changed), settled.now.as_ref()))
}

fn told(outcome: Outcome, role: Option<&Role>) -> Outcome {
    match role {
        Some(role) => outcome.with("id", role.id.clone()),
        None => outcome,
    }
}

fn same(found: Option<&Role>, wanted: Option<&Role>) -> bool {
    found.map(|r| (&r.description, &r.rights)) == wanted.map(|r| (&r.description, &r.rights))
}

fn lines(role: Option<&Role>) -> String {
    role.map_or_else(String::new, |role| format!("description: {}\n{}", role.description, role.rights.lines()))
}

#[cfg(test)]
mod tests;
