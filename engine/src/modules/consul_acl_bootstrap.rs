//! `consul_acl_bootstrap`: the first token of a cluster, which may do everything.

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan,
    args::expected,
    consul_api::{self as api, Access, Act, Given, Hidden, Opened, SecretName},
    http::Web,
};
use crate::{
    args,
    cluster::{
        bootstrap::{self, BootstrapError, Cluster, Done, Holder, Limits},
        consul::{ApiError, Consul, Kind},
    },
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants},
    },
};

args! {
    /// Arguments.
    pub struct Args {
        /// The token's secret, a UUID. All who may bootstrap the cluster must have the same.
        secret []: Option<Hidden>;
        /// The name of the secret instead, `consul/management`: it is written down before anything is asked of the cluster.
        secret_from []: Option<SecretName>;
        /// The name under which it is written down that the cluster was formed, `consul/formed`. A fresh cluster in the place of one
        /// that was formed before is refused: its servers lost what they had.
        mark []: Option<SecretName>;
        /// The version that the servers run. Those before 1.15 choose the secret themselves, and are refused.
        version []: Release, required;
        /// How many servers must vote before it is done.
        servers []: Option<u32>;
        /// This server's API.
        url []: Web = api::url("http://127.0.0.1:8500");
        /// Certificates (PEM) of who signed the server's, for `https`.
        ca_file []: Option<PathBuf>;
        /// For how many seconds to try.
        timeout []: Duration = Duration::from_mins(5);
    }
}

/// A release, such as 1.22.2.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(u64, u64, u64);

impl FromArg for Release {
    fn kind() -> String {
        "a version like 1.22.2".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| expected::<Self>(value))?;
        // `+ent` and the like say nothing about what a version can do.
        let plain = text.split(['+', '-']).next().unwrap_or_default();
        let numbers: Option<Vec<u64>> = plain.split('.').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some([major, minor, patch]) => Ok(Self(*major, *minor, *patch)),
            _ => Err(expected::<Self>(value)),
        }
    }
}

/// The first that takes a secret.
const FIRST: Release = Release(1, 15, 0);

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_bootstrap",
    aliases: &[],
    summary: "Bootstraps Consul's ACLs, once per cluster, with a secret that is known beforehand",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("accessor_id", "The accessor of the token; not its secret."),
        ("foreign_bootstrap", "In failures: someone else bootstrapped the cluster."),
        ("total_loss", "In failures: the cluster was formed before, and a fresh one stands in its place."),
    ]],
    example: "- name: the cluster's first token\n  consul_acl_bootstrap:\n    secret_from: consul/management\n    version: 1.22.2\n    servers: 3\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    if args.version < FIRST {
        let Release(major, minor, patch) = args.version;
        return Err(Failure::new(format!(
            "Consul {major}.{minor}.{patch} cannot be bootstrapped safely: it takes no secret (BootstrapSecret), so a lost answer is a lost token"
        ))
        .hint("upgrade the servers to 1.15 or newer before ACLs are turned on"));
    }
    let secret = match api::secret(("secret", args.secret.as_ref()), ("secret_from", args.secret_from.as_ref()), cx)? {
        Given::Value(secret) => secret,
        Given::NotYet(why) => return Ok(api::may_change(why)),
        Given::Nothing => return Err(Failure::new("argument 'secret' or 'secret_from' is missing")),
    };
    if uuid::Uuid::parse_str(secret.expose()).is_err() || secret.expose().len() != 36 {
        return Err(Failure::new("the secret is no UUID").hint("Consul takes nothing else; make one with `uuidgen`"));
    }
    let access = Access { url: &args.url, ca_file: args.ca_file.as_ref(), token: None, token_secret: None };
    let consul = match api::open(&access, cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let mark = match &args.mark {
        None => None,
        Some(name) => {
            Some(Mark { formed: was_formed(name, cx)?, name: name.0.clone(), grants: Arc::clone(cx.secrets) })
        }
    };
    match consul.with(&secret).own_token(false) {
        Ok(token) if token.management => {
            let outcome = Outcome::unchanged().with("accessor_id", token.accessor);
            return Ok(match mark {
                // Whoever bootstrapped it did not come to that, or is about to.
                Some(mark) if !mark.formed => {
                    let diff = api::diff("consul's cluster".into(), "", "formed\n");
                    Act::plan(diff, outcome.clone(), move |_| mark.set().map(|()| outcome))
                }
                _ => Plan::Unchanged(outcome),
            });
        }
        Ok(token) => return Err(explain(BootstrapError::Weak { accessor: token.accessor })),
        Err(error) if cx.host.is_overlay() => return Ok(check(&consul.with(&secret), error)),
        // Whatever it is, the bootstrap deals with it.
        Err(_) => {}
    }
    let formed = mark.as_ref().is_some_and(|mark| mark.formed);
    let limits = Limits { peers: args.servers.map(|n| n as usize), formed, time: args.timeout };
    let diff = api::diff("consul ACLs".into(), "", "bootstrapped\n");
    Ok(Act::plan(diff, Outcome::changed(), move |_| {
        let outcome = bootstrap(consul, &secret, limits)?;
        if let Some(mark) = mark.filter(|mark| !mark.formed) {
            mark.set().map_err(|failure| Failure { changed: outcome.changed, ..failure })?;
        }
        Ok(outcome)
    }))
}

/// Where it is written down that the cluster was formed.
#[derive(Debug)]
struct Mark {
    name: Name,
    /// It stood there when the task began.
    formed: bool,
    grants: Arc<dyn Grants>,
}

impl Mark {
    fn set(&self) -> Result<(), Failure> {
        self.grants.mark(&self.name).map(drop).map_err(refused)
    }
}

fn was_formed(name: &SecretName, cx: &Cx<'_>) -> Result<bool, Failure> {
    match cx.secrets.secret(&name.0) {
        Ok(_) => Ok(true),
        Err(GrantError::NotYet(_)) => Ok(false),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: GrantError) -> Failure {
    let failure = Failure::new(format!("argument 'mark': {error}"));
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What a check can know.
fn check(consul: &Consul, error: ApiError) -> Plan {
    if error.kind != Kind::UnknownToken {
        return api::may_change(error);
    }
    match consul.is_bootstrapped() {
        Ok(false) => {
            let diff = api::diff("consul ACLs".into(), "", "bootstrapped\n");
            Act::plan(diff, Outcome::changed(), |_| Err(Failure::new("a check bootstraps nothing")))
        }
        Ok(true) => api::may_change("the cluster has been bootstrapped, and does not know the token"),
        Err(error) => api::may_change(error),
    }
}

fn bootstrap(consul: Consul, secret: &Secret, limits: Limits) -> Result<Outcome, Failure> {
    let with = consul.with(secret);
    let mut real = Real { consul, begun: Instant::now() };
    let done = bootstrap::run(&mut real, secret, limits).map_err(explain)?;
    let failed = |error: ApiError| Failure { changed: done == Done::Here, ..error.into() };
    // Later tasks use it on this server.
    api::patiently(bootstrap::LAG, || with.own_token(true)).map_err(failed)?;
    let token = api::patiently(bootstrap::LAG, || with.own_token(false)).map_err(failed)?;
    let outcome = match done {
        Done::Here => Outcome::changed().msg("bootstrapped"),
        Done::Elsewhere => Outcome::unchanged().msg("bootstrapped by another server's call"),
    };
    Ok(outcome.with("accessor_id", token.accessor))
}

fn explain(error: BootstrapError) -> Failure {
    let failure = Failure::new(chain(&error));
    match error {
        BootstrapError::Foreign { .. } => failure
            .hint(
                "take the cluster for compromised: whoever was first may do everything in it. Nothing was reset. If it was you, store \
                 that token's secret under the name that this task asks for; else close the cluster's ports, and follow \
                 'Someone else bootstrapped' in docs/role-consul.md",
            )
            .with("foreign_bootstrap", true),
        BootstrapError::TotalLoss => failure
            .hint(
                "nothing was bootstrapped. Bring a server back that still has its data folder, or restore a snapshot; if the cluster is to \
                 begin anew, take the mark away (`controller secret delete consul/formed`), and run again",
            )
            .with("total_loss", true),
        BootstrapError::Off(_) => failure.hint("set `acl: {enabled: true}` in the configuration of all servers"),
        BootstrapError::Weak { .. } => {
            failure.hint("the secret has been used for another token: take that one away, or give another secret")
        }
        BootstrapError::Ignored => failure
            .hint("what they made is a token that nobody has now: upgrade them, and reset the ACLs as Consul's manual tells"),
        BootstrapError::ResetFile(_) => {
            failure.hint("remove the file acl-bootstrap-reset from the data folders of the servers, unless somebody is at work there")
        }
        BootstrapError::GaveUp { .. } => failure.hint("run again: the secret stays the same, so nothing can be lost"),
        BootstrapError::Refused(_) => failure,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// A real cluster, seen from one of its servers.
struct Real {
    consul: Consul,
    begun: Instant,
}

impl Cluster for Real {
    fn leader(&mut self) -> Result<String, ApiError> {
        self.consul.leader()
    }
    fn peers(&mut self) -> Result<usize, ApiError> {
        self.consul.peers().map(|peers| peers.len())
    }
    fn bootstrap(&mut self, secret: &Secret) -> Result<Secret, ApiError> {
        self.consul.bootstrap(secret)
    }
    fn own_token(&mut self, secret: &Secret) -> Result<Holder, ApiError> {
        let token = self.consul.with(secret).own_token(false)?;
        Ok(Holder { accessor: token.accessor, management: token.management })
    }
    fn is_bootstrapped(&mut self, secret: &Secret) -> Result<bool, ApiError> {
        self.consul.with(secret).is_bootstrapped()
    }
    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

#[cfg(test)]
mod tests;
