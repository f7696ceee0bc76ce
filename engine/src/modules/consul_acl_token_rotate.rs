//! `consul_acl_token_rotate`: the two steps that replace a token by one with the same rights and another secret, so that at every
//! moment a token is known to the cluster that its users have.

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_acl_token::{Servers, other},
    consul_api::{self as api, Act, Given, Opened, SecretName, api_args},
    http::{Trust, Web},
};
use crate::{
    choice,
    cluster::consul::{ApiError, Consul, Kind, Token},
    secrets::Secret,
};

choice!(
    /// Which step.
    Step { Make = "make", Retire = "retire" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// `make`: the new token is made beside the old one. `retire`: the old one is removed; only when `from` has the new secret.
        step []: Step, required;
        /// The name of the secret that is rotated: `consul/token/dns`.
        from []: SecretName, required;
        /// The name under which its next value lies: `consul/token-next/dns`.
        to []: SecretName, required;
        /// What the description says after `Made by Rollcall: ` where the old token has another beginning.
        purpose []: String = String::new();
        /// Addresses of servers that must know the new token before the task ends.
        servers []: Vec<Web>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_token_rotate",
    aliases: &[],
    summary: "Replaces a token of Consul's ACLs, in two steps, by one with the same rights and another secret",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("accessor_id", "The new token's accessor.")]],
    example: "- name: the token for DNS gets a successor\n  consul_acl_token_rotate:\n    step: make\n    from: consul/token/dns\n    to: consul/token-next/dns\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let given = |arg, name: &SecretName| api::secret(("", None), (arg, Some(name)), cx);
    let (from, to) = match (given("from", &args.from)?, given("to", &args.to)?) {
        (Given::Value(from), Given::Value(to)) => (from, to),
        (Given::NotYet(why), _) | (_, Given::NotYet(why)) => return Ok(api::may_change(why)),
        (Given::Nothing, _) | (_, Given::Nothing) => return Err(Failure::new("both secrets must have a value")),
    };
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    match args.step {
        Step::Make => make(&args, cx, consul, &from, to),
        Step::Retire => retire(&args, cx, consul, &from, &to),
    }
}

/// The token of a secret; `None`: the cluster does not know it.
fn of(consul: &Consul, secret: &Secret) -> Result<Option<Token>, ApiError> {
    match consul.with(secret).own_token(false) {
        Ok(token) => Ok(Some(token)),
        Err(error) if error.kind == Kind::UnknownToken => Ok(None),
        Err(error) => Err(error),
    }
}

fn make(args: &Args, cx: &Cx<'_>, consul: Consul, from: &Secret, to: Secret) -> Result<Plan, Failure> {
    let found = match api::first_look(args.wait, cx, || of(&consul, from)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let Some(old) = found else {
        return Err(Failure::new(format!("the cluster does not know the token of '{}'", args.from.0))
            .hint("a run of the role makes it again; then rotate"));
    };
    let trust = Trust::read(args.ca_file.as_ref(), cx.host)?;
    let servers = Servers { urls: args.servers.clone(), trust, wait: args.wait };
    // The name has the new value already: what is left to do is the other step.
    if *from == to {
        return Ok(Plan::Unchanged(Outcome::unchanged().with("accessor_id", old.accessor)));
    }
    let Some(accessor) = other(&old.accessor) else {
        return Err(Failure::new(format!("the accessor of '{}' is no UUID", args.from.0)));
    };
    let ours = api::is_ours(&old.description);
    let description = if ours { old.description.clone() } else { api::ours(&args.purpose) };
    let wanted = Token { accessor: accessor.clone(), secret: Some(to), description, ..old };
    let found = match api::first_look(args.wait, cx, || consul.acl_token(&accessor)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let outcome = |changed| api::outcome(changed).with("accessor_id", accessor.clone());
    if right(found.as_ref(), &wanted) {
        if !cx.host.is_overlay() {
            servers.know(&wanted)?;
        }
        return Ok(Plan::Unchanged(outcome(false)));
    }
    let diff = api::diff(
        format!("consul token of {}", args.from.0),
        "",
        &format!("{accessor}: {}\n{}", wanted.description, wanted.rights.lines()),
    );
    let (planned, wait) = (outcome(true), args.wait);
    let done = planned.clone();
    Ok(Act::plan(diff, planned, move |_| {
        let settled = api::settle(
            wait,
            || consul.acl_token(&wanted.accessor),
            |found| right(found, &wanted),
            |found| match found {
                None => consul.create_token(&wanted, None),
                Some(found) if found.secret == wanted.secret => consul.update_token(&wanted),
                // Of a rotation that was given up: nobody was told its secret.
                Some(_) => consul.delete_token(&wanted.accessor),
            },
        )?;
        servers.know(&wanted).map_err(|failure| Failure { changed: settled.changed, ..failure })?;
        Ok(done)
    }))
}

/// It is the token that is wanted.
fn right(found: Option<&Token>, wanted: &Token) -> bool {
    found.is_some_and(|found| {
        found.secret == wanted.secret && found.description == wanted.description && found.rights == wanted.rights
    })
}

fn retire(args: &Args, cx: &Cx<'_>, consul: Consul, from: &Secret, to: &Secret) -> Result<Plan, Failure> {
    if from != to {
        return Err(Failure::new(format!("'{}' does not have the value of '{}' yet", args.from.0, args.to.0))
            .hint("the old token goes only when the store names the new one"));
    }
    let found = match api::first_look(args.wait, cx, || of(&consul, to)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let Some(new) = found else {
        return Err(Failure::new(format!(
            "the cluster does not know the token of '{}': nothing is removed",
            args.from.0
        ))
        .hint("a run of the role makes it again"));
    };
    let Some(accessor) = other(&new.accessor) else {
        return Err(Failure::new(format!("the accessor of '{}' is no UUID", args.from.0)));
    };
    let found = match api::first_look(args.wait, cx, || consul.acl_token(&accessor)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let outcome = |changed| api::outcome(changed).with("accessor_id", new.accessor.clone());
    let Some(old) = found else { return Ok(Plan::Unchanged(outcome(false))) };
    let what = format!("consul token of {}", args.from.0);
    let diff = api::diff(what, &format!("{accessor}: {}\n{}", old.description, old.rights.lines()), "");
    let (planned, wait) = (outcome(true), args.wait);
    let done = planned.clone();
    Ok(Act::plan(diff, planned, move |_| {
        api::settle(wait, || consul.acl_token(&accessor), |found| found.is_none(), |_| consul.delete_token(&accessor))?;
        Ok(done)
    }))
}

#[cfg(test)]
mod tests;
