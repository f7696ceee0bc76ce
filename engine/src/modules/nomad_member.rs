//! `nomad_member`: a node that belongs to Nomad's cluster no more, be it a server or a host of jobs.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    nomad_api::{self as api, Act, Opened, api_args},
};
use crate::{
    choice,
    cluster::{
        gossip::Member,
        nomad::{ApiError, Node, Nomad},
    },
};

choice!(
    /// A member is made by its agent, which joins.
    State { Absent = "absent" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// The node's name.
        name []: String, required;
        /// `absent`: it is taken away, if it is not alive: a client is purged, a server leaves the members and Raft's configuration.
        state []: State = State::Absent;
        /// Also of one that is alive it is no error: it stays, for it would come back by itself.
        force []: bool = false;
    }
}

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_member",
    aliases: &[],
    summary: "Takes a node that is gone out of Nomad's cluster, server or client",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[(
        "was",
        "`server` and `client` with their states, such as `client down`, or `none` where there was no such node.",
    )]],
    example: "- name: web-3 is gone\n  nomad_member:\n    name: web-3\n    token_secret: nomad/management\n",
    plan,
};

/// What there is of a name.
#[derive(Debug, Default)]
struct Found {
    /// The server: its name in gossip, and how it is.
    server: Option<(String, Member)>,
    /// Its id in Raft's configuration.
    voter: Option<String>,
    /// Hosts of jobs; a host that was made anew is another one of the same name.
    clients: Vec<Node>,
}

impl Found {
    fn look(nomad: &Nomad, name: &str) -> Result<Self, ApiError> {
        let server = nomad.servers()?.into_iter().find(|(_, member)| member.name == name);
        let voter = match &server {
            // Who is no member any more has no name in Raft's configuration: it must be looked up before.
            Some((full, _)) => nomad.voters()?.into_iter().find(|voter| voter.name == *full).map(|voter| voter.id),
            None => None,
        };
        let clients = nomad.nodes()?.into_iter().filter(|node| node.name == name).collect();
        Ok(Self { server, voter, clients })
    }

    /// `server failed, client down`.
    fn told(&self) -> String {
        let server = self.server.iter().map(|(_, member)| format!("server {}", member.state));
        let clients = self.clients.iter().map(|node| format!("client {}", node.status));
        let parts: Vec<String> = server.chain(clients).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    }

    /// A part of it answers: which.
    fn alive(&self) -> Option<&'static str> {
        if self.server.as_ref().is_some_and(|(_, member)| member.is_alive()) {
            return Some("a server that answers");
        }
        self.clients.iter().any(is_alive).then_some("a client that is ready")
    }

    /// What can be taken away.
    fn gone(self) -> Self {
        Self {
            server: self.server.filter(|(_, member)| !member.is_alive() && (self.voter.is_some() || !member.is_gone())),
            voter: self.voter,
            clients: self.clients.into_iter().filter(|node| !is_alive(node)).collect(),
        }
    }
}

/// It has a server's ear, or is about to.
fn is_alive(node: &Node) -> bool {
    matches!(node.status.as_str(), "ready" | "initializing")
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let State::Absent = args.state;
    let nomad: Nomad = match api::open(&args.access(), cx)? {
        Opened::Client(nomad) => *nomad,
        Opened::Later(plan) => return Ok(plan),
    };
    let found = match api::first_look(args.wait, cx, || Found::look(&nomad, &args.name)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let was = found.told();
    if let (Some(what), false) = (found.alive(), args.force) {
        return Err(Failure::new(format!("'{}' is alive: it is {what}", args.name)).hint(
            "stop Nomad there first, and give the servers half a minute to miss it (five minutes, where their leader is new); or say that you \
             mean it (force)",
        ));
    }
    let gone = found.gone();
    if gone.server.is_none() && gone.clients.is_empty() {
        return Ok(Plan::Unchanged(Outcome::unchanged().with("was", was)));
    }
    let diff = api::diff("members of nomad".into(), &format!("{}: {was}\n", args.name), "");
    let planned = Outcome::changed().with("was", was);
    let (done, wait) = (planned.clone(), args.wait);
    Ok(Act::plan(diff, planned, move |_| take_away(&nomad, &gone, wait).map(|()| done)))
}

fn take_away(nomad: &Nomad, gone: &Found, wait: Duration) -> Result<(), Failure> {
    for node in &gone.clients {
        match api::patiently(wait, || nomad.purge_node(&node.id)) {
            // Somebody was faster.
            Err(error) if nomad.nodes()?.iter().any(|other| other.id == node.id) => return Err(error.into()),
            _ => {}
        }
    }
    let Some((name, _)) = &gone.server else { return Ok(()) };
    let until = Instant::now() + wait;
    loop {
        let member = nomad.servers()?.into_iter().any(|(other, member)| other == *name && !member.is_gone());
        if member {
            api::patiently(wait, || nomad.force_leave(name))?;
        }
        let votes = |id: &String| nomad.voters().map(|all| all.iter().any(|voter| voter.id == *id));
        let voter = gone.voter.as_ref().map_or(Ok(None), |id| votes(id).map(|votes| votes.then_some(id)))?;
        if let Some(id) = voter {
            // The leader does it, too, when it notices; that there is nothing left to do is seen at the next look.
            let _ = nomad.remove_voter(id);
        }
        if !member && voter.is_none() {
            return Ok(());
        }
        if Instant::now() > until {
            let failure = Failure::new(format!("'{name}' is still a member after {} s", wait.as_secs()));
            return Err(Failure { changed: true, ..failure }.hint("is it alive again?"));
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests;
