//! `consul_keyring`: one step of the rotation of Consul's gossip key, proven on every member before the task ends.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Plan,
    consul_api::{self as api, Act, Given, Opened, SecretName, api_args},
};
use crate::{
    choice,
    cluster::consul::{ApiError, Consul, Kind, Member, Ring},
    secrets::{Secret, redact},
};

choice!(
    /// How far the key is.
    Step { Installed = "installed", Primary = "primary", Only = "only" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// The name of the key's secret: `consul/gossip-next`.
        key_from []: SecretName, required;
        /// `installed`: every member has it. `primary`: every member encrypts with it. `only`: no member has another.
        state []: Step, required;
        /// Nodes that must be alive members. Whoever is a member must be alive in any case: one that is away would not learn of the key.
        members []: Vec<String>;
    }
}

/// Between two questions to all members.
const PAUSE: Duration = Duration::from_secs(1);

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_keyring",
    aliases: &[],
    summary: "Installs a gossip key on all members of Consul, makes it the one they use, or removes all others",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("members", "How many members were asked, in the ring of the datacenter.")]],
    example: "- name: every member knows the next key\n  consul_keyring:\n    key_from: consul/gossip-next\n    state: installed\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let key = match api::secret(("", None), ("key_from", Some(&args.key_from)), cx)? {
        Given::Value(key) => key,
        Given::NotYet(why) => return Ok(api::may_change(why)),
        Given::Nothing => return Err(Failure::new("argument 'key_from' is missing")),
    };
    if !STANDARD.decode(key.expose()).is_ok_and(|bytes| matches!(bytes.len(), 16 | 24 | 32)) {
        return Err(Failure::new(format!(
            "'{}' is no gossip key: expected 16, 24 or 32 bytes in base64",
            args.key_from.0
        )));
    }
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let members = match api::first_look(args.wait, cx, || consul.members()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    all_there(&members, &args.members)?;
    let rings = match api::first_look(args.wait, cx, || rings(&consul)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if rings.is_empty() {
        return Err(Failure::new("gossip is not encrypted in this cluster: there is no key to rotate")
            .hint("consul_encrypt: true, see docs/role-consul.md"));
    }
    let asked = rings.iter().find(|ring| !ring.wan).map_or(0, |ring| ring.num_nodes);
    let outcome = move |changed| api::outcome(changed).with("members", asked);
    if missing(&rings, &key, args.state).is_none() {
        return Ok(Plan::Unchanged(outcome(false)));
    }
    let what = format!("consul gossip key {}", args.key_from.0);
    let diff = Diff { what, before: String::new(), after: String::new(), hidden: true };
    let (state, wait) = (args.state, args.wait);
    Ok(Act::plan(diff, outcome(true), move |_| carry_out(&consul, &key, state, wait).map(|()| outcome(true))))
}

/// The rings, their keys registered: what is told of this host has none of them.
fn rings(consul: &Consul) -> Result<Vec<Ring>, ApiError> {
    let rings = match consul.keyring() {
        Err(error) if error.kind == Kind::Refused && error.said.contains("No keyring") => Vec::new(),
        Err(error) if error.said.contains("keyring") && error.said.contains("is empty") => Vec::new(),
        other => other?,
    };
    for key in rings.iter().flat_map(|ring| ring.keys.keys()) {
        redact::register(&Secret::new(key.as_str()));
    }
    Ok(rings)
}

/// A member that is away would come back with the old key, and be heard by nobody.
fn all_there(members: &[Member], expected: &[String]) -> Result<(), Failure> {
    let mut away: Vec<String> = members
        .iter()
        .filter(|member| !member.is_alive() && !member.is_gone())
        .map(|member| format!("{} ({})", member.name, member.state()))
        .collect();
    let known: BTreeSet<&str> = members.iter().filter(|m| !m.is_gone()).map(|m| m.name.as_str()).collect();
    away.extend(
        expected.iter().filter(|name| !known.contains(name.as_str())).map(|name| format!("{name} (no member)")),
    );
    if away.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("not every member is there: {}", away.join(", "))).hint(
        "start Consul there and run the same again; a node that is gone for good: controller forget NODE, and take it out of the inventory",
    ))
}

/// What of a step is not done yet, without telling keys.
fn missing(rings: &[Ring], key: &Secret, step: Step) -> Option<String> {
    rings.iter().find_map(|ring| {
        let name = if ring.wan { "the ring of all datacenters" } else { "the datacenter's ring" };
        let have = |keys: &std::collections::BTreeMap<String, usize>| keys.get(key.expose()).copied().unwrap_or(0);
        let (count, does) = match step {
            Step::Installed => (have(&ring.keys), "have the key"),
            Step::Primary => (have(&ring.primary_keys), "use the key"),
            Step::Only if ring.keys.len() > 1 => return Some(format!("{name} still has {} keys", ring.keys.len())),
            Step::Only => (have(&ring.keys), "have the key"),
        };
        (count < ring.num_nodes || count == 0)
            .then(|| format!("{count} of {} members of {name} {does}", ring.num_nodes))
    })
}

fn carry_out(consul: &Consul, key: &Secret, step: Step, wait: Duration) -> Result<(), Failure> {
    let until = Instant::now() + wait;
    loop {
        let tried = once(consul, key, step);
        let now = api::patiently(wait, || rings(consul)).map_err(|e| Failure { changed: true, ..Failure::from(e) })?;
        let Some(why) = missing(&now, key, step) else { return Ok(()) };
        if let Err(error) = &tried
            && !error.kind.is_passing()
            && error.kind != Kind::Refused
        {
            return Err(Failure { changed: true, ..Failure::from(error.clone()) });
        }
        if Instant::now() > until {
            let said = tried.err().map(|error| format!(" ({error})")).unwrap_or_default();
            let failure = Failure::new(format!("after {} s {why}{said}", wait.as_secs()));
            return Err(Failure { changed: true, ..failure }
                .hint("members that do not answer keep the old key: look at them, and run the same again"));
        }
        thread::sleep(PAUSE);
    }
}

/// All of these may be said again without harm.
fn once(consul: &Consul, key: &Secret, step: Step) -> Result<(), ApiError> {
    match step {
        Step::Installed => consul.install_key(key),
        Step::Primary => consul.use_key(key),
        Step::Only => {
            let others: BTreeSet<String> = rings(consul)?
                .into_iter()
                .flat_map(|ring| ring.keys.into_keys())
                .filter(|other| other != key.expose())
                .collect();
            others.into_iter().try_for_each(|other| consul.remove_key(&Secret::new(other)))
        }
    }
}

#[cfg(test)]
mod tests;
