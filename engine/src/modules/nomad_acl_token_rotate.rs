//! `nomad_acl_token_rotate`: the two steps that replace a token by one with the same rights and another secret, so that at every
//! moment the store names a token that Nomad knows.
//!
//! Nomad chooses the secret: the new token is made first and its secret kept then. The new token's name says whose place it
//! takes, by which a token that nobody kept is found, and the old one, when the store names the new.

use std::sync::Arc;

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    nomad_acl_token::SUCCEEDS,
    nomad_api::{self as api, Act, Opened, SecretName, api_args},
};
use crate::{
    choice,
    cluster::nomad::{ApiError, Kind, Nomad, Token},
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants},
        redact,
    },
};

choice!(
    /// Which step.
    Step { Make = "make", Retire = "retire" }
);

api_args! {
    /// Arguments.
    pub struct Args {
        /// `make`: the new token is made beside the old one, and its secret kept. `retire`: the old one is removed; only when `from` has
        /// the new secret.
        step []: Step, required;
        /// The name of the secret that is rotated: `nomad/token/server`.
        from []: SecretName, required;
        /// The name under which its next value is kept: `nomad/token-next/server`.
        to []: SecretName, required;
        /// What the name says after `Made by Rollcall: ` where the old token has another beginning.
        purpose []: String = String::new();
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_acl_token_rotate",
    aliases: &[],
    summary: "Replaces a token of Nomad's ACLs, in two steps, by one with the same rights and another secret",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("accessor_id", "The new token's accessor; not there while it is only planned.")]],
    example: "- name: the servers' token gets a successor\n  nomad_acl_token_rotate:\n    step: make\n    from: nomad/token/server\n    to: nomad/token-next/server\n    token_secret: nomad/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let given = |name: &SecretName| match cx.secrets.secret(&name.0) {
        Ok(secret) => Ok(Some(secret)),
        Err(GrantError::NotYet(_)) => Ok(None),
        Err(error) => Err(refused(&error)),
    };
    let (from, to) = (given(&args.from)?, given(&args.to)?);
    let Some(from) = from else {
        return Err(Failure::new(format!("'{}' has no value: there is no token to rotate", args.from.0))
            .hint("a run of the role makes it"));
    };
    let nomad: Nomad = match api::open(&args.access(), cx)? {
        Opened::Client(nomad) => *nomad,
        Opened::Later(plan) => return Ok(plan),
    };
    let work = Work {
        nomad,
        from_name: args.from.0.clone(),
        to_name: args.to.0.clone(),
        purpose: args.purpose.clone(),
        from,
        to,
        grants: Arc::clone(cx.secrets),
    };
    let found = match api::first_look(args.wait, cx, || work.look()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    let Some(current) = found.current else {
        return Err(Failure::new(format!("Nomad does not know the token of '{}'", work.from_name))
            .hint("a run of the role makes it again; then rotate"));
    };
    match args.step {
        Step::Make => Ok(work.make(args.wait, current, found.next)),
        Step::Retire => work.retire(args.wait, current),
    }
}

fn refused(error: &GrantError) -> Failure {
    Failure::new(error.to_string()).hint_if(error.hint())
}

/// What Nomad knows.
#[derive(Debug)]
struct Found {
    /// The token of the secret that is rotated.
    current: Option<Token>,
    /// That of the next one.
    next: Option<Token>,
}

/// All that is needed for either step.
struct Work {
    nomad: Nomad,
    from_name: Name,
    to_name: Name,
    purpose: String,
    from: Secret,
    to: Option<Secret>,
    grants: Arc<dyn Grants>,
}

impl Work {
    fn look(&self) -> Result<Found, ApiError> {
        let of = |secret: &Secret| match self.nomad.with(secret).own_token() {
            Ok(token) => Ok(Some(token)),
            Err(error) if error.kind == Kind::UnknownToken => Ok(None),
            Err(error) => Err(error),
        };
        let current = of(&self.from)?;
        let next = self.to.as_ref().map_or(Ok(None), of)?;
        Ok(Found { current, next })
    }

    fn make(self, wait: std::time::Duration, current: Token, next: Option<Token>) -> Plan {
        // The name has the new value already: what is left to do is the other step.
        if self.to.as_ref() == Some(&self.from) {
            return Plan::Unchanged(told(Outcome::unchanged(), &current));
        }
        if let Some(next) = &next {
            let same = |t: &Token| (t.management, t.policies.clone(), t.roles.clone(), t.global);
            if same(next) == same(&current) {
                return Plan::Unchanged(told(Outcome::unchanged(), next));
            }
        }
        let begins =
            if api::is_ours(&current.name) { plain(&current.name).0.to_owned() } else { api::ours(&self.purpose) };
        let wanted = Token {
            accessor: String::new(),
            secret: None,
            name: format!("{begins}{SUCCEEDS}{}", current.accessor),
            ttl: None,
            ..current
        };
        let diff = api::diff(format!("nomad token of {}", self.from_name), "", &format!("{}\n", wanted.name));
        Act::plan(diff, Outcome::changed(), move |_| self.carry_out(wait, &wanted))
    }

    fn carry_out(self, wait: std::time::Duration, wanted: &Token) -> Result<Outcome, Failure> {
        // Of somebody who died before it was kept.
        for left in api::patiently(wait, || self.nomad.tokens())?.iter().filter(|token| token.name == wanted.name) {
            api::patiently(wait, || self.nomad.delete_token(&left.accessor))?;
        }
        // Not asked twice: each answer is another token. One whose answer is lost is found by its name, by the next call.
        let made = self.nomad.create_token(wanted)?;
        let changed = |failure| Failure { changed: true, ..failure };
        let Some(secret) = &made.secret else {
            return Err(changed(Failure::new("the answer of Nomad has no secret")));
        };
        redact::register(secret);
        let stands = self.grants.keep(&self.to_name, secret, self.to.as_ref()).map_err(|e| changed(refused(&e)))?;
        if stands != *secret {
            let _ = self.nomad.delete_token(&made.accessor);
            let failure = Failure::new(format!("somebody else keeps another value under '{}'", self.to_name));
            return Err(changed(failure.hint("one rotation at a time: run the same again")));
        }
        // A follower learns of it a moment later.
        let known = api::patiently(wait.max(std::time::Duration::from_secs(5)), || self.nomad.with(secret).own_token());
        known.map(|known| told(Outcome::changed(), &known)).map_err(|error| changed(error.into()))
    }

    fn retire(self, wait: std::time::Duration, current: Token) -> Result<Plan, Failure> {
        if self.to.as_ref().is_some_and(|to| *to != self.from) {
            return Err(Failure::new(format!(
                "'{}' does not have the value of '{}' yet",
                self.from_name, self.to_name
            ))
            .hint("the old token goes only when the store names the new one"));
        }
        let (name, before) = plain(&current.name);
        let Some(before) = before.map(str::to_owned) else {
            return Ok(Plan::Unchanged(told(Outcome::unchanged(), &current)));
        };
        let renamed = Token { name: name.to_owned(), ttl: None, secret: None, ..current.clone() };
        let diff = api::diff(format!("nomad token of {}", self.from_name), &format!("{before}\n"), "");
        let planned = told(Outcome::changed(), &current);
        let done = planned.clone();
        Ok(Act::plan(diff, planned, move |_| {
            api::patiently(wait, || self.nomad.delete_token(&before))?;
            // The last of it: as long as it says whose place it took, that one is looked for.
            let ended = api::patiently(wait, || self.nomad.update_token(&renamed));
            ended.map(|()| done).map_err(|error| Failure { changed: true, ..error.into() })
        }))
    }
}

/// A token's name without, and the accessor of the one whose place it took.
fn plain(name: &str) -> (&str, Option<&str>) {
    match name.split_once(SUCCEEDS) {
        Some((name, accessor)) => (name, Some(accessor)),
        None => (name, None),
    }
}

fn told(outcome: Outcome, token: &Token) -> Outcome {
    outcome.with("accessor_id", token.accessor.as_str())
}

#[cfg(test)]
mod tests;
