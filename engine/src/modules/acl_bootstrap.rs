//! What `consul_acl_bootstrap` and `nomad_acl_bootstrap` share: the secret, the mark, what a check can know, and what is told of
//! how it ended. What happens stands in [`bootstrap`].

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Cx, Failure, FromArg, Outcome, Plan,
    api::{self, Access, Act, Client, Given, Hidden, Opened, SecretName},
    args::expected,
    http::Web,
};
use crate::{
    cluster::{
        bootstrap::{self, BootstrapError, Cluster, Done, Holder, Limits},
        error::{ApiError, Kind},
    },
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants},
    },
};

/// A release, such as 1.22.2.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub(super) u64, pub(super) u64, pub(super) u64);

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

/// What differs between the products.
#[derive(Debug)]
pub(super) struct Product {
    /// Its name.
    pub(super) name: &'static str,
    /// The first release that takes a secret.
    pub(super) first: Release,
    /// The name of the secret that says that a cluster was formed.
    pub(super) mark: &'static str,
    /// The manual's page.
    pub(super) page: &'static str,
    /// What turns [`Wanted::reset`] on, in the role; `None`: the product itself tells a reset from an empty cluster.
    pub(super) reset: Option<&'static str>,
}

/// A client of a product that can be bootstrapped.
pub(super) trait Bootstraps: Client + Clone + Send + 'static {
    /// What differs.
    const PRODUCT: &'static Product;
    /// The same agent with another token.
    fn with(&self, token: &Secret) -> Self;
    /// The leader's address; empty where there is none.
    fn leader(&self) -> Result<String, ApiError>;
    /// How many servers vote.
    fn peers(&self) -> Result<usize, ApiError>;
    /// The call; the secret that the token got.
    fn bootstrap(&self, secret: &Secret) -> Result<Secret, ApiError>;
    /// The token that is sent; as this server itself knows it, or the cluster.
    fn own(&self, here: bool) -> Result<Holder, ApiError>;
    /// Whether it has been done, with whatever secret.
    fn is_bootstrapped(&self) -> Result<bool, ApiError>;
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) secret: Option<&'a Hidden>,
    pub(super) secret_from: Option<&'a SecretName>,
    pub(super) mark: Option<&'a SecretName>,
    pub(super) version: &'a Release,
    pub(super) servers: Option<u32>,
    pub(super) url: &'a Web,
    pub(super) ca_file: Option<&'a PathBuf>,
    /// Somebody has reset the ACLs on purpose: a cluster that was formed may look like one that never was.
    pub(super) reset: bool,
    pub(super) timeout: Duration,
}

/// The plan of either module.
pub(super) fn plan<C: Bootstraps>(wanted: &Wanted<'_>, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let product = C::PRODUCT;
    if *wanted.version < product.first {
        let Release(major, minor, patch) = wanted.version;
        return Err(Failure::new(format!(
            "{} {major}.{minor}.{patch} cannot be bootstrapped safely: it takes no secret (BootstrapSecret), so a lost answer is a lost token",
            product.name
        ))
        .hint(format!("upgrade the servers to {} or newer before ACLs are turned on", product.first)));
    }
    let secret = match api::secret(("secret", wanted.secret), ("secret_from", wanted.secret_from), cx)? {
        Given::Value(secret) => secret,
        Given::NotYet(why) => return Ok(api::may_change(why)),
        Given::Nothing => return Err(Failure::new("argument 'secret' or 'secret_from' is missing")),
    };
    if uuid::Uuid::parse_str(secret.expose()).is_err() || secret.expose().len() != 36 {
        return Err(Failure::new("the secret is no UUID")
            .hint(format!("{} takes nothing else; make one with `uuidgen`", product.name)));
    }
    let access = Access { url: wanted.url, ca_file: wanted.ca_file, token: None, token_secret: None };
    let client = match api::open::<C>(&access, cx)? {
        Opened::Client(client) => *client,
        Opened::Later(plan) => return Ok(plan),
    };
    let mark = match wanted.mark {
        None => None,
        Some(name) => {
            Some(Mark { formed: was_formed(name, cx)?, name: name.0.clone(), grants: Arc::clone(cx.secrets) })
        }
    };
    let lower = product.name.to_lowercase();
    let own = client.with(&secret);
    match own.own(false) {
        // A server that has not heard of it yet would refuse what comes next: that is waited for below.
        Ok(token) if token.management && (cx.host.is_overlay() || own.own(true).is_ok()) => {
            let outcome = Outcome::unchanged().with("accessor_id", token.accessor);
            return Ok(match mark {
                // Whoever bootstrapped it did not come to that, or is about to.
                Some(mark) if !mark.formed => {
                    let diff = api::diff(format!("{lower}'s cluster"), "", "formed\n");
                    Act::plan(diff, outcome.clone(), move |_| mark.set().map(|()| outcome))
                }
                _ => Plan::Unchanged(outcome),
            });
        }
        Ok(token) if !token.management => {
            return Err(explain(product, BootstrapError::Weak { accessor: token.accessor }));
        }
        Err(error) if cx.host.is_overlay() => return Ok(check(&own, error)),
        // Whatever it is, the bootstrap deals with it.
        _ => {}
    }
    let formed = mark.as_ref().is_some_and(|mark| mark.formed) && !wanted.reset;
    let limits = Limits { peers: wanted.servers.map(|n| n as usize), formed, time: wanted.timeout };
    let diff = api::diff(format!("{lower} ACLs"), "", "bootstrapped\n");
    Ok(Act::plan(diff, Outcome::changed(), move |_| {
        let outcome = carry_out(client, &secret, limits)?;
        if let Some(mark) = mark.filter(|mark| !mark.formed) {
            mark.set().map_err(|failure| Failure { changed: outcome.changed, ..failure })?;
        }
        Ok(outcome)
    }))
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(major, minor, patch) = self;
        if *patch == 0 { write!(f, "{major}.{minor}") } else { write!(f, "{major}.{minor}.{patch}") }
    }
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
        self.grants.mark(&self.name).map(drop).map_err(|e| refused(&e))
    }
}

/// Whether it is written down that the cluster was formed.
pub(super) fn was_formed(name: &SecretName, cx: &Cx<'_>) -> Result<bool, Failure> {
    match cx.secrets.secret(&name.0) {
        Ok(_) => Ok(true),
        Err(GrantError::NotYet(_)) => Ok(false),
        Err(error) => Err(refused(&error)),
    }
}

fn refused(error: &GrantError) -> Failure {
    Failure::new(format!("argument 'mark': {error}")).hint_if(error.hint())
}

/// What a check can know.
fn check<C: Bootstraps>(client: &C, error: ApiError) -> Plan {
    if error.kind != Kind::UnknownToken {
        return api::may_change(error);
    }
    match client.is_bootstrapped() {
        Ok(false) => {
            let diff = api::diff(format!("{} ACLs", C::PRODUCT.name.to_lowercase()), "", "bootstrapped\n");
            Act::plan(diff, Outcome::changed(), |_| Err(Failure::new("a check bootstraps nothing")))
        }
        Ok(true) => api::may_change("the cluster has been bootstrapped, and does not know the token"),
        Err(error) => api::may_change(error),
    }
}

fn carry_out<C: Bootstraps>(client: C, secret: &Secret, limits: Limits) -> Result<Outcome, Failure> {
    let with = client.with(secret);
    let mut real = Real { client, begun: Instant::now() };
    let done = bootstrap::run(&mut real, secret, limits).map_err(|error| explain(C::PRODUCT, error))?;
    let failed = |error: ApiError| Failure { changed: done == Done::Here, ..error.into() };
    // Later tasks use it on this server.
    api::patiently(bootstrap::LAG, || with.own(true)).map_err(failed)?;
    let token = api::patiently(bootstrap::LAG, || with.own(false)).map_err(failed)?;
    let outcome = match done {
        Done::Here => Outcome::changed().msg("bootstrapped"),
        Done::Elsewhere => Outcome::unchanged().msg("bootstrapped by another server's call"),
    };
    Ok(outcome.with("accessor_id", token.accessor))
}

pub(super) fn explain(product: &Product, error: BootstrapError) -> Failure {
    let failure = Failure::new(chain(&error));
    match error {
        BootstrapError::Foreign { .. } => failure
            .hint(format!(
                "take the cluster for compromised: whoever was first may do everything in it. Nothing was reset. If it was you, store \
                 that token's secret under the name that this task asks for; else close the cluster's ports, and follow \
                 'Someone else bootstrapped' in {}",
                product.page
            ))
            .with("foreign_bootstrap", true),
        BootstrapError::TotalLoss => failure.hint(lost(product)).with("total_loss", true),
        BootstrapError::Off(_) => failure.hint("set `acl: {enabled: true}` in the configuration of all servers"),
        BootstrapError::Weak { .. } => {
            failure.hint("the secret has been used for another token: take that one away, or give another secret")
        }
        BootstrapError::Ignored => failure
            .hint(format!(
                "what they made is a token that nobody has now: upgrade them, and reset the ACLs as {}'s manual tells",
                product.name
            )),
        BootstrapError::ResetFile(_) => {
            failure.hint("remove the file acl-bootstrap-reset from the data folders of the servers, unless somebody is at work there")
        }
        BootstrapError::GaveUp { .. } => failure.hint("run again: the secret stays the same, so nothing can be lost"),
        BootstrapError::Refused(_) => failure,
    }
}

/// What to do about a cluster that is empty, and should not be. Beside one that runs, a server that still has its data would be merged
/// with it, and lose it.
fn lost(product: &Product) -> String {
    let (name, mark, page) = (product.name.to_lowercase(), product.mark, product.page);
    let stop = match product.reset {
        Some(word) => format!(
            "If somebody has just put files there that reset the ACLs: run again with `-e {word}=true`. Else stop"
        ),
        None => "Stop".to_owned(),
    };
    format!(
        "nothing was bootstrapped. {stop} {name} on these servers, and empty their data folders, before anything else: beside them, a \
         server that still has its data would lose it. Then start those that have it; or, if all is lost, take the mark away (`controller \
         secret delete {mark} --force`), run again, and restore a snapshot: 'Total loss' in {page}"
    )
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// A real cluster, seen from one of its servers.
struct Real<C> {
    client: C,
    begun: Instant,
}

impl<C: Bootstraps> Cluster for Real<C> {
    fn leader(&mut self) -> Result<String, ApiError> {
        self.client.leader()
    }
    fn peers(&mut self) -> Result<usize, ApiError> {
        self.client.peers()
    }
    fn bootstrap(&mut self, secret: &Secret) -> Result<Secret, ApiError> {
        self.client.bootstrap(secret)
    }
    fn own_token(&mut self, secret: &Secret) -> Result<Holder, ApiError> {
        self.client.with(secret).own(false)
    }
    fn is_bootstrapped(&mut self, secret: &Secret) -> Result<bool, ApiError> {
        self.client.with(secret).is_bootstrapped()
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
