//! `nomad_acl_token`: a token of Nomad's ACLs, whose secret is kept in the project's store.
//!
//! Nomad chooses the secret itself. So a token is made first and its secret kept then, with a call that overwrites nothing, and
//! whoever hears that another value stands there takes its own token away. A token that was made and not kept (somebody died in
//! between) has our name and is not the kept one: it is removed as soon as there is a kept one that Nomad knows. Not before: it may
//! be what somebody else is about to keep.

use std::{sync::Arc, time::Duration};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    nomad_api::{self as api, Act, Opened, SecretName, State, api_args},
};
use crate::{
    cluster::nomad::{ApiError, Kind, Nomad, Token},
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants},
        redact,
    },
};

api_args! {
    /// Arguments.
    pub struct Args {
        /// What it is for. Nomad shows `Made by Rollcall: …` as its name; each purpose has one token.
        purpose []: String, required;
        /// The name under which its secret is kept: `nomad/token/server`. The host must be one that may read it.
        secret_from []: SecretName, required;
        /// Names of policies.
        policies []: Vec<String>;
        /// Names of roles.
        roles []: Vec<String>;
        /// It may do everything, instead of having policies and roles.
        management []: bool = false;
        /// Known in all regions.
        global []: bool = false;
        /// For how many seconds it counts from when it is made; Nomad takes a minute to a day, unless its configuration says
        /// otherwise. When it has ended it is made anew. Without it, it does not end.
        ttl []: Option<Duration>;
        /// `absent` removes all tokens of this purpose. What is kept of them is replaced when one is made again.
        state []: State = State::Present;
    }
}

/// Characters of a name that Nomad takes.
const NAME: usize = 256;
/// How often something is done about it before it counts as a quarrel.
const TURNS: usize = 8;

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_acl_token",
    aliases: &[],
    summary: "Makes, changes or removes a token of Nomad's ACLs, and keeps its secret in the project's store",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("accessor_id", "The token's accessor; not there where it is absent, or only planned.")]],
    example: "- name: with which the servers are asked how they are\n  nomad_acl_token:\n    purpose: servers\n    secret_from: nomad/token/server\n    policies: [rollcall-server]\n    token_secret: nomad/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let wanted = wanted(&args)?;
    let name = args.secret_from.0.clone();
    let kept = match cx.secrets.secret(&name) {
        Ok(secret) => Some(secret),
        Err(GrantError::NotYet(_)) => None,
        Err(error) => return Err(refused(&error)),
    };
    let nomad: Nomad = match api::open(&args.access(), cx)? {
        Opened::Client(nomad) => *nomad,
        Opened::Later(plan) => return Ok(plan),
    };
    let work = Work {
        nomad,
        wanted,
        present: args.state == State::Present,
        name,
        kept,
        grants: Arc::clone(cx.secrets),
        wait: args.wait,
        changed: false,
    };
    let found = match api::first_look(args.wait, cx, || work.look()) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    work.is_its_own(&found)?;
    if work.is_right(&found) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), found.own.as_ref())));
    }
    let mut after = if work.present { lines(&work.wanted) } else { String::new() };
    if work.present && found.own.as_ref().is_some_and(|own| work.is_another(own)) {
        after.push_str("made anew: its kind or its scope is another\n");
    }
    let mut before = found.own.as_ref().map(lines).unwrap_or_default();
    for other in &found.others {
        before.push_str(&format!("{}: one that nobody has kept\n", other.accessor));
    }
    let diff = api::diff(format!("nomad token {}", args.purpose), &before, &after);
    let planned = told(Outcome::changed(), found.own.as_ref().filter(|_| work.present));
    Ok(Act::plan(diff, planned, move |_| work.carry_out()))
}

fn wanted(args: &Args) -> Result<Token, Failure> {
    let name = api::ours(&args.purpose);
    if args.purpose.is_empty() || name.chars().count() > NAME {
        let most = NAME - api::ours("x").chars().count() + 1;
        return Err(Failure::new(format!("argument 'purpose': expected 1 to {most} characters")));
    }
    if args.management && !(args.policies.is_empty() && args.roles.is_empty()) {
        return Err(Failure::new("a token that may do everything ('management') has no policies and no roles"));
    }
    if args.state == State::Present && !args.management && args.policies.is_empty() && args.roles.is_empty() {
        return Err(Failure::new("the token may do nothing").hint("give 'policies', 'roles' or 'management'"));
    }
    let ttl = args.ttl.map(|ttl| ttl.as_secs());
    if ttl == Some(0) {
        return Err(Failure::new("argument 'ttl': expected a number of seconds of at least 1"));
    }
    Ok(Token {
        name,
        management: args.management,
        policies: args.policies.iter().cloned().collect(),
        roles: args.roles.iter().cloned().collect(),
        global: args.global,
        ttl,
        ..Token::default()
    })
}

/// What Nomad has.
#[derive(Debug)]
struct Found {
    /// The token of the kept secret; `None`: nothing is kept, or Nomad does not know it (any more).
    own: Option<Token>,
    /// Others of the same name.
    others: Vec<Token>,
}

/// All that is needed to bring the token to what it should be.
#[derive(Debug)]
struct Work {
    nomad: Nomad,
    wanted: Token,
    present: bool,
    name: Name,
    kept: Option<Secret>,
    grants: Arc<dyn Grants>,
    wait: Duration,
    changed: bool,
}

impl Work {
    fn look(&self) -> Result<Found, ApiError> {
        // First of all whether who asks may: what follows then is about the kept one.
        let mut others = self.nomad.tokens()?;
        let own = match &self.kept {
            None => None,
            Some(kept) => match self.nomad.with(kept).own_token() {
                Ok(token) => Some(token),
                Err(error) if error.kind == Kind::UnknownToken => None,
                Err(error) => return Err(error),
            },
        };
        let accessor = own.as_ref().map(|own| own.accessor.as_str());
        others.retain(|token| token.name == self.wanted.name && Some(token.accessor.as_str()) != accessor);
        Ok(Found { own, others })
    }

    /// A kept secret of another token is none of this task's business.
    fn is_its_own(&self, found: &Found) -> Result<(), Failure> {
        match &found.own {
            Some(own) if own.name != self.wanted.name && !is_successor(&own.name, &self.wanted.name) => Err(Failure {
                changed: self.changed,
                ..Failure::new(format!("the secret '{}' belongs to another token: '{}'", self.name, own.name))
                    .hint("each purpose keeps its token under a name of its own")
            }),
            _ => Ok(()),
        }
    }

    fn is_right(&self, found: &Found) -> bool {
        match &found.own {
            Some(own) => self.present && found.others.is_empty() && !self.is_another(own) && self.has_its_rights(own),
            None => !self.present && found.others.is_empty(),
        }
    }

    /// It would have to be another one: neither can be changed.
    fn is_another(&self, own: &Token) -> bool {
        own.management != self.wanted.management || own.global != self.wanted.global
    }

    fn has_its_rights(&self, own: &Token) -> bool {
        (&own.policies, &own.roles) == (&self.wanted.policies, &self.wanted.roles)
    }

    fn carry_out(mut self) -> Result<Outcome, Failure> {
        let wait = self.wait;
        for _ in 0..TURNS {
            let found = api::patiently(wait, || self.look()).map_err(|error| self.failed(error))?;
            self.is_its_own(&found)?;
            if self.is_right(&found) {
                return Ok(told(api::outcome(self.changed), found.own.as_ref()));
            }
            match self.turn(&found) {
                Ok(()) => {}
                Err(Wrong::Api(error)) if error.kind == Kind::Lost => self.changed = true,
                Err(Wrong::Api(error)) if error.kind.is_passing() => {}
                Err(Wrong::Api(error)) => return Err(self.failed(error)),
                Err(Wrong::Kept(error)) => return Err(Failure { changed: self.changed, ..refused(&error) }),
            }
        }
        Err(Failure { changed: self.changed, ..Failure::new("it does not stay as it was made") }
            .hint("look who else makes or removes tokens of this name"))
    }

    fn failed(&self, error: ApiError) -> Failure {
        Failure { changed: self.changed, ..error.into() }
    }

    /// Does the next thing.
    fn turn(&mut self, found: &Found) -> Result<(), Wrong> {
        match &found.own {
            None if self.present => self.make(),
            Some(own) if self.present && self.is_another(own) => self.make(),
            Some(own) if self.present && !self.has_its_rights(own) => {
                self.nomad.update_token(&Token { accessor: own.accessor.clone(), ..self.wanted.clone() })?;
                self.changed = true;
                Ok(())
            }
            own => {
                for token in found.others.iter().chain(own.iter().filter(|_| !self.present)) {
                    self.nomad.delete_token(&token.accessor)?;
                    self.changed = true;
                }
                Ok(())
            }
        }
    }

    /// Makes one and keeps it; takes it away again where another one is kept already, or nobody keeps it.
    fn make(&mut self) -> Result<(), Wrong> {
        let made = self.nomad.create_token(&self.wanted)?;
        let Some(secret) = made.secret else {
            let said = "the answer has no secret".to_owned();
            return Err(ApiError { kind: Kind::Lost, call: "PUT /v1/acl/token".into(), said }.into());
        };
        redact::register(&secret);
        match self.grants.keep(&self.name, &secret, self.kept.as_ref()) {
            Ok(stands) => {
                if stands == secret {
                    self.changed = true;
                } else {
                    self.nomad.delete_token(&made.accessor)?;
                }
                self.kept = Some(stands);
                Ok(())
            }
            Err(error) => {
                // Where nobody knows whether it was kept, the next run finds it so or makes another.
                self.changed |= self.nomad.delete_token(&made.accessor).is_err();
                Err(Wrong::Kept(error))
            }
        }
    }
}

/// A token that took another one's place goes under that one's name, and says so until the other is gone.
pub(super) fn is_successor(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.starts_with(SUCCEEDS))
}

/// What stands between a name and the accessor of the token that it had before.
pub(super) const SUCCEEDS: &str = ", in place of ";

/// What went wrong in a turn.
#[derive(Debug)]
enum Wrong {
    Api(ApiError),
    Kept(GrantError),
}

impl From<ApiError> for Wrong {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

fn refused(error: &GrantError) -> Failure {
    Failure::new(format!("argument 'secret_from': {error}")).hint_if(error.hint())
}

fn told(outcome: Outcome, token: Option<&Token>) -> Outcome {
    match token {
        Some(token) => outcome.with("accessor_id", token.accessor.as_str()),
        None => outcome,
    }
}

fn lines(token: &Token) -> String {
    let mut out = format!("name: {}\n", token.name);
    if token.management {
        out.push_str("may do everything\n");
    }
    for name in &token.policies {
        out.push_str(&format!("policy {name}\n"));
    }
    for name in &token.roles {
        out.push_str(&format!("role {name}\n"));
    }
    if token.global {
        out.push_str("in all regions\n");
    }
    out
}

#[cfg(test)]
mod tests;
