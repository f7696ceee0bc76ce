//! What `consul_keyring` and `nomad_keyring` share: one step of the rotation of a gossip key, proven on every member before the task
//! ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    Cx, Diff, Failure, Plan,
    api::{self, Access, Act, Client, Given, Opened, SecretName},
};
use crate::{
    choice,
    cluster::{
        error::{ApiError, Kind},
        gossip::{Gossip, Member, Ring},
    },
    secrets::{Secret, redact},
};

choice!(
    /// How far the key is.
    Step { Installed = "installed", Primary = "primary", Only = "only" }
);

/// Between two questions to all members.
const PAUSE: Duration = Duration::from_secs(1);

/// What a module's call wants.
pub(super) struct Wanted<'a> {
    /// The product, in small letters.
    pub(super) product: &'static str,
    pub(super) key_from: &'a SecretName,
    pub(super) state: Step,
    pub(super) members: &'a [String],
    pub(super) wait: Duration,
}

/// The plan that leads to it.
pub(super) fn plan<C: Client + Gossip + Send + 'static>(
    wanted: &Wanted<'_>,
    access: &Access<'_>,
    cx: &Cx<'_>,
) -> Result<Plan, Failure> {
    let key = match api::secret(("", None), ("key_from", Some(wanted.key_from)), cx)? {
        Given::Value(key) => key,
        Given::NotYet(why) => return Ok(api::may_change(why)),
        Given::Nothing => return Err(Failure::new("argument 'key_from' is missing")),
    };
    if !STANDARD.decode(key.expose()).is_ok_and(|bytes| matches!(bytes.len(), 16 | 24 | 32)) {
        let why = format!("'{}' is no gossip key: expected 16, 24 or 32 bytes in base64", wanted.key_from.0);
        return Err(Failure::new(why));
    }
    let client: C = match api::open(access, cx)? {
        Opened::Client(client) => *client,
        Opened::Later(plan) => return Ok(plan),
    };
    let members = match api::first_look(wanted.wait, cx, || client.members()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    all_there(&members, wanted.members)?;
    let rings = match api::first_look(wanted.wait, cx, || rings(&client)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if rings.is_empty() {
        let product = wanted.product;
        return Err(Failure::new("gossip is not encrypted in this cluster: there is no key to rotate")
            .hint(format!("{product}_encrypt: true, see docs/role-{product}.md")));
    }
    let asked = rings.iter().find(|ring| !ring.wan).map_or(0, |ring| ring.members);
    let outcome = move |changed| api::outcome(changed).with("members", asked);
    if missing(&rings, &key, wanted.state).is_none() {
        return Ok(Plan::Unchanged(outcome(false)));
    }
    let what = format!("{} gossip key {}", wanted.product, wanted.key_from.0);
    let diff = Diff { what, before: String::new(), after: String::new(), hidden: true };
    let (state, wait) = (wanted.state, wanted.wait);
    Ok(Act::plan(diff, outcome(true), move |_| carry_out(&client, &key, state, wait).map(|()| outcome(true))))
}

/// The rings, their keys registered: what is told of this host has none of them.
fn rings(client: &impl Gossip) -> Result<Vec<Ring>, ApiError> {
    let rings = client.keyring()?;
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
        .map(|member| format!("{} ({})", member.name, member.state))
        .collect();
    let known: BTreeSet<&str> = members.iter().filter(|m| !m.is_gone()).map(|m| m.name.as_str()).collect();
    away.extend(
        expected.iter().filter(|name| !known.contains(name.as_str())).map(|name| format!("{name} (no member)")),
    );
    if away.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("not every member is there: {}", away.join(", "))).hint(
        "start its agent and run the same again; a node that is gone for good: controller forget NODE, and take it out of the inventory",
    ))
}

/// What of a step is not done yet, without telling keys.
fn missing(rings: &[Ring], key: &Secret, step: Step) -> Option<String> {
    let have = |keys: &BTreeMap<String, usize>| keys.get(key.expose()).copied().unwrap_or(0);
    rings.iter().find_map(|ring| {
        let name = if ring.wan { "the ring of all datacenters" } else { "the ring" };
        let (count, does) = match (step, &ring.primary_keys) {
            (Step::Primary, Some(primary)) => (have(primary), "use the key"),
            (Step::Primary, None) => return Some(format!("which key the members of {name} use is not told")),
            (Step::Only, _) if ring.keys.len() > 1 => {
                return Some(format!("{name} still has {} keys", ring.keys.len()));
            }
            (Step::Installed | Step::Only, _) => (have(&ring.keys), "have the key"),
        };
        (count < ring.members || count == 0).then(|| format!("{count} of {} members of {name} {does}", ring.members))
    })
}

fn carry_out(client: &impl Gossip, key: &Secret, step: Step, wait: Duration) -> Result<(), Failure> {
    let until = Instant::now() + wait;
    loop {
        let tried = once(client, key, step);
        let now = api::patiently(wait, || rings(client)).map_err(|e| Failure { changed: true, ..Failure::from(e) })?;
        let untold = step == Step::Primary && now.iter().all(|ring| ring.primary_keys.is_none());
        // Where it is not told, success is: each member said that it uses the key.
        let why = match missing(&now, key, step) {
            None => return Ok(()),
            Some(_) if untold && tried.is_ok() => return Ok(()),
            Some(why) => why,
        };
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
fn once(client: &impl Gossip, key: &Secret, step: Step) -> Result<(), ApiError> {
    match step {
        Step::Installed => client.install_key(key),
        Step::Primary => client.use_key(key),
        Step::Only => {
            let others: BTreeSet<String> = rings(client)?
                .into_iter()
                .flat_map(|ring| ring.keys.into_keys())
                .filter(|other| other != key.expose())
                .collect();
            others.into_iter().try_for_each(|other| client.remove_key(&Secret::new(other)))
        }
    }
}

#[cfg(test)]
mod tests;
