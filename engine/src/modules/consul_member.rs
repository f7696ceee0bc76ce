//! `consul_member`: a node that is no member of Consul's cluster any more.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_api::{self as api, Act, Opened, api_args},
};
use crate::{
    choice,
    cluster::{consul::Consul, gossip::Gossip as _},
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
        /// `absent`: it is taken away, if it is not alive.
        state []: State = State::Absent;
        /// Also of one that is alive it is no error: it stays a member, for nobody but its own agent can make it leave.
        force []: bool = false;
    }
}

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_member",
    aliases: &[],
    summary: "Takes a node that is gone out of Consul's cluster",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("was", "`alive`, `failed`, `left`, or `none` where there was no such member.")]],
    example: "- name: web-3 is gone\n  consul_member:\n    name: web-3\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let State::Absent = args.state;
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let members = match api::first_look(args.wait, cx, || consul.members()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let Some(member) = members.iter().find(|member| member.name == args.name) else {
        return Ok(Plan::Unchanged(Outcome::unchanged().with("was", "none")));
    };
    let was = member.state;
    if member.is_alive() {
        if !args.force {
            return Err(Failure::new(format!("'{}' is alive: it is a member that answers", args.name))
                .hint("stop Consul there first, or say that you mean it (force)"));
        }
        return Ok(Plan::Unchanged(Outcome::unchanged().with("was", was)));
    }
    if member.is_gone() {
        return Ok(Plan::Unchanged(Outcome::unchanged().with("was", was)));
    }
    let diff = api::diff("members of consul".into(), &format!("{} ({was})\n", args.name), "");
    let planned = Outcome::changed().with("was", was);
    let (done, name, wait) = (planned.clone(), args.name.clone(), args.wait);
    Ok(Act::plan(diff, planned, move |_| take_away(&consul, &name, wait).map(|()| done)))
}

fn take_away(consul: &Consul, name: &str, wait: Duration) -> Result<(), Failure> {
    let until = Instant::now() + wait;
    loop {
        api::patiently(wait, || consul.force_leave(name))?;
        let members = api::patiently(wait, || consul.members())?;
        if members.iter().all(|member| member.name != name || member.is_gone()) {
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
