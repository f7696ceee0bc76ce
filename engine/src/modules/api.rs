//! What the modules `consul_*` and `nomad_*` share: how the API is reached and with which token, secrets by value or by name, and
//! bringing one object of the cluster to what it should be.

use std::{
    fmt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Change, Cx, Diff, Failure, FromArg, Outcome, Plan,
    args::expected,
    http::{Trust, Web},
};
use crate::{
    choice,
    cluster::{
        consul::Consul,
        error::{ApiError, Kind},
        nomad::Nomad,
    },
    host::{Read, Write},
    secrets::{Name, Secret, grants::GrantError, redact},
};

/// What descriptions of our objects begin with.
const OURS: &str = "Made by Rollcall";
/// Between two questions to a cluster that is not as far yet.
const PAUSE: Duration = Duration::from_secs(1);
/// How often something is written before it counts as a quarrel.
const WRITES: usize = 6;

/// The name of a secret.
#[derive(Clone, Debug)]
pub struct SecretName(pub(super) Name);

impl FromArg for SecretName {
    fn kind() -> String {
        "the name of a secret".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| expected::<Self>(value))?;
        Name::new(text).map(Self).map_err(|e| e.to_string())
    }
}

/// A value that is never shown.
#[derive(Clone, Debug)]
pub struct Hidden(pub(super) Secret);

impl FromArg for Hidden {
    fn kind() -> String {
        "a string".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        match value {
            Value::String(text) if !text.is_empty() => Ok(Self(Secret::new(text.as_str()))),
            Value::String(_) => Err("expected a string, found an empty one".into()),
            _ => Err("expected a string, found something else".into()),
        }
    }
}

/// The address of an API, for defaults: constants that are URLs, which the tests of each module prove.
pub(super) fn url(text: &str) -> Web {
    #[expect(clippy::expect_used, reason = "a constant that is a URL")]
    Web::from_arg(&Value::from(text)).expect("it is a URL")
}

choice!(
    /// Whether it is there.
    State { Present = "present", Absent = "absent" }
);

/// Declares the arguments of a module that asks an API with a token: its own, and how the API is reached. First the address that
/// is asked where none is given.
macro_rules! agent_args {
    ([$url:literal] $(#[$m:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $crate::args! {
            $(#[$m])*
            pub struct $name {
                $($own)*
                /// The agent's API.
                url []: $crate::modules::http::Web = $crate::modules::api::url($url);
                /// Certificates (PEM) of who signed the agent's, for `https`.
                ca_file []: Option<std::path::PathBuf>;
                /// The secret of the token that asks.
                token []: Option<$crate::modules::api::Hidden>;
                /// The name of that secret instead: `consul/management`, `nomad/management`.
                token_secret []: Option<$crate::modules::api::SecretName>;
                /// For how many seconds to ask a cluster that is only being formed.
                wait []: std::time::Duration = std::time::Duration::from_secs(30);
            }
        }

        impl $name {
            fn access(&self) -> $crate::modules::api::Access<'_> {
                $crate::modules::api::Access {
                    url: &self.url,
                    ca_file: self.ca_file.as_ref(),
                    token: self.token.as_ref(),
                    token_secret: self.token_secret.as_ref(),
                }
            }
        }
    };
}
pub(super) use agent_args;

/// A secret that a call was given, or not.
#[derive(Debug)]
pub(super) enum Given {
    /// Here it is.
    Value(Secret),
    /// Check mode: it is not there yet.
    NotYet(String),
    /// The call names none.
    Nothing,
}

/// A secret by value, or by name from who answers this host.
pub(super) fn secret(
    (value_arg, value): (&str, Option<&Hidden>),
    (name_arg, name): (&str, Option<&SecretName>),
    cx: &Cx<'_>,
) -> Result<Given, Failure> {
    match (value, name) {
        (Some(_), Some(_)) => Err(Failure::new(format!("'{value_arg}' and '{name_arg}' exclude each other"))),
        (Some(value), None) => {
            // One that was not asked for by its name is taken out of what is told all the same.
            redact::register(&value.0);
            Ok(Given::Value(value.0.clone()))
        }
        (None, None) => Ok(Given::Nothing),
        (None, Some(name)) => match cx.secrets.secret(&name.0) {
            Ok(secret) => Ok(Given::Value(secret)),
            Err(GrantError::NotYet(why)) => Ok(Given::NotYet(why)),
            Err(GrantError::Refused { why, hint }) => {
                Err(Failure::new(format!("argument '{name_arg}': {why}")).hint_if(hint))
            }
        },
    }
}

/// The arguments by which the API is reached.
#[derive(Debug)]
pub(super) struct Access<'a> {
    pub(super) url: &'a Web,
    pub(super) ca_file: Option<&'a PathBuf>,
    pub(super) token: Option<&'a Hidden>,
    pub(super) token_secret: Option<&'a SecretName>,
}

/// A client of one product.
pub(super) trait Client: Sized {
    /// For an address, with a token or without.
    fn make(url: &Web, trust: Trust, token: Option<Secret>) -> Result<Self, Failure>;
}

impl Client for Consul {
    fn make(url: &Web, trust: Trust, token: Option<Secret>) -> Result<Self, Failure> {
        Self::new(url, trust, token)
    }
}

impl Client for Nomad {
    fn make(url: &Web, trust: Trust, token: Option<Secret>) -> Result<Self, Failure> {
        Self::new(url, trust, token)
    }
}

/// A client, or what the call says without one.
#[derive(Debug)]
pub(super) enum Opened<C> {
    /// It can be asked.
    Client(Box<C>),
    /// Check mode: it will be possible later.
    Later(Plan),
}

/// A client for a call.
pub(super) fn open<C: Client>(access: &Access<'_>, cx: &Cx<'_>) -> Result<Opened<C>, Failure> {
    let token = match secret(("token", access.token), ("token_secret", access.token_secret), cx)? {
        Given::Value(token) => Some(token),
        Given::NotYet(why) => return Ok(Opened::Later(may_change(why))),
        Given::Nothing => None,
    };
    let trust = match Trust::read(access.ca_file, cx.host) {
        Ok(trust) => trust,
        Err(failure) if cx.host.is_overlay() => return Ok(Opened::Later(may_change(failure.message))),
        Err(failure) => return Err(Failure { message: failure.message.replace("'ca_path'", "'ca_file'"), ..failure }),
    };
    C::make(access.url, trust, token).map(|client| Opened::Client(Box::new(client)))
}

/// Check mode cannot know.
pub(super) fn may_change(why: impl fmt::Display) -> Plan {
    Plan::Unchanged(Outcome::unknown(format!("not yet: {why}")))
}

/// Asks until there is an answer: a cluster that is being formed refuses for a while.
pub(super) fn patiently<T>(wait: Duration, mut ask: impl FnMut() -> Result<T, ApiError>) -> Result<T, ApiError> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(error) if error.kind.may_come() && begun.elapsed() < wait => {
                thread::sleep(PAUSE.min(wait.saturating_sub(begun.elapsed())));
            }
            answer => return answer,
        }
    }
}

/// The first look of a plan. The outer error is the plan of a check that cannot look yet.
pub(super) fn first_look<T>(
    wait: Duration,
    cx: &Cx<'_>,
    ask: impl FnMut() -> Result<T, ApiError>,
) -> Result<Result<T, Failure>, Plan> {
    let check = cx.host.is_overlay();
    match patiently(if check { Duration::ZERO } else { wait }, ask) {
        // What a check finds off or missing may be what this very run turns on or makes.
        Err(error) if check && error.kind.may_come() => Err(may_change(error)),
        answer => Ok(answer.map_err(Failure::from)),
    }
}

/// How something of the cluster came to be as it should.
#[derive(Debug)]
pub(super) struct Settled<T> {
    /// As it is now.
    pub(super) now: Option<T>,
    /// It was written here.
    pub(super) changed: bool,
}

/// Brings something to what it should be: read, write what is wrong, read back; and again where an answer was lost, or
/// somebody else was faster.
pub(super) fn settle<T>(
    wait: Duration,
    mut read: impl FnMut() -> Result<Option<T>, ApiError>,
    right: impl Fn(Option<&T>) -> bool,
    mut write: impl FnMut(Option<&T>) -> Result<(), ApiError>,
) -> Result<Settled<T>, Failure> {
    let begun = Instant::now();
    let mut changed = false;
    let mut last: Option<ApiError> = None;
    let mut turn = 0;
    loop {
        let now = patiently(wait, &mut read).map_err(|e| Failure { changed, ..Failure::from(e) })?;
        if right(now.as_ref()) {
            return Ok(Settled { now, changed });
        }
        if turn == WRITES {
            break;
        }
        turn += 1;
        match write(now.as_ref()) {
            Ok(()) => (changed, last) = (true, None),
            Err(error) if error.kind == Kind::Lost => (changed, last) = (true, Some(error)),
            // Nothing was written: that may go on for as long as there is time.
            Err(error) if error.kind.is_passing() && begun.elapsed() < wait => {
                turn -= 1;
                last = Some(error);
                thread::sleep(PAUSE.min(wait.saturating_sub(begun.elapsed())));
            }
            Err(error) if error.kind.is_passing() || error.kind == Kind::InUse => {
                last = Some(error);
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(Failure { changed, ..error.into() }),
        }
    }
    Err(match last {
        Some(error) => Failure { changed, ..error.into() },
        None => Failure {
            changed,
            ..Failure::new("it does not stay as it was written").hint("look who else writes it: two of one name?")
        },
    })
}

/// A description that says whose it is.
pub(super) fn ours(description: &str) -> String {
    if description.is_empty() { OURS.to_owned() } else { format!("{OURS}: {description}") }
}

/// Whether a description says that it is ours.
pub(super) fn is_ours(description: &str) -> bool {
    description.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// The failure of a removal of what others made.
pub(super) fn not_ours(what: &str) -> Failure {
    Failure::new(format!("{what} was not made by Rollcall: it is left as it is"))
        .hint("only what Rollcall made is removed (its description begins with 'Made by Rollcall')")
}

/// What is done; it may look at the machine afterwards.
pub(super) type Work = Box<dyn FnOnce(&dyn Read) -> Result<Outcome, Failure> + Send>;

/// A change that is a call.
pub(super) struct Act {
    pub(super) diffs: Vec<Diff>,
    /// What a check says.
    pub(super) planned: Outcome,
    pub(super) work: Work,
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Act").field("planned", &self.planned).finish_non_exhaustive()
    }
}

impl Act {
    /// A change with one diff.
    pub(super) fn plan(
        diff: Diff,
        planned: Outcome,
        work: impl FnOnce(&dyn Read) -> Result<Outcome, Failure> + Send + 'static,
    ) -> Plan {
        Plan::Change(Box::new(Self { diffs: vec![diff], planned, work: Box::new(work) }))
    }
}

impl Change for Act {
    fn diffs(&self) -> Vec<Diff> {
        self.diffs.clone()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        if host.is_overlay() { Ok(self.planned) } else { (self.work)(host.as_read()) }
    }
}

/// A difference between two texts.
pub(super) fn diff(what: String, before: &str, after: &str) -> Diff {
    Diff { what, before: before.to_owned(), after: after.to_owned(), hidden: false }
}

/// The result of a call that made, changed or found something.
pub(super) fn outcome(changed: bool) -> Outcome {
    if changed { Outcome::changed() } else { Outcome::unchanged() }
}

#[cfg(test)]
mod tests;
