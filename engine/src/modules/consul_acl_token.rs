//! `consul_acl_token`: a token of Consul's ACLs, with ids that are known beforehand, so that making it twice makes one.

use std::time::Duration;

use serde_json::Value;
use sha1::{Digest as _, Sha1};
use uuid::Uuid;

use super::{
    Cx, Definition, Failure, FreeForm, FromArg, Invocation, Needs, Outcome, Plan,
    args::expected,
    consul_api::{self as api, Act, Given, Hidden, Opened, SecretName, State, api_args},
    http::{Trust, Web},
};
use crate::{
    cluster::consul::{ApiError, Consul, Kind, NodeIdentity, Rights, ServiceIdentity, TemplatedPolicy, Token},
    secrets::Secret,
};

api_args! {
    /// Arguments.
    pub struct Args {
        /// What it is for. Its accessor follows from this and `cluster`, so that each purpose has one token (two while it is rotated).
        purpose []: Option<String>;
        /// The cluster's name, part of what the accessor is made of.
        cluster []: String = String::new();
        /// Its accessor, a UUID, instead of a purpose. `00000000-0000-0000-0000-000000000002` is Consul's own anonymous token, what
        /// requests without a token may do: it takes rights, and nothing else of it changes.
        accessor_id []: Option<Accessor>;
        /// Its secret, a UUID.
        secret []: Option<Hidden>;
        /// The name of its secret instead: `consul/token/dns`. It is made if nobody has made it.
        secret_from []: Option<SecretName>;
        /// For people; the purpose without it. Consul shows `Made by Rollcall: …`.
        description []: Option<String>;
        /// The machine that uses it: an EC2 instance's id. It stands in the description, and a token of another machine is left alone:
        /// whoever comes back under an old name gets no old token. Empty: nobody knows.
        instance []: String = String::new();
        /// Names of policies.
        policies []: Vec<String>;
        /// Names of roles.
        roles []: Vec<String>;
        /// Services that it may be: names, or mappings of `name` and `datacenters`.
        service_identities []: Vec<ServiceIdentity>;
        /// Nodes that it may be: mappings of `name` and `datacenter`.
        node_identities []: Vec<NodeIdentity>;
        /// Consul's own policies: `builtin/dns`, or mappings of `template`, `name` and `datacenters` (1.17 and newer).
        templated_policies []: Vec<TemplatedPolicy>;
        /// Known in this datacenter only.
        local []: bool = false;
        /// For how many seconds it counts from when it is made: 60 to 86400. It is not changed afterwards. Without it: for ever.
        ttl []: Option<Duration>;
        /// `absent` removes it if Rollcall made it.
        state []: State = State::Present;
        /// Addresses of servers that must know it before the task ends: a follower learns of it a moment later.
        servers []: Vec<Web>;
    }
}

/// A UUID.
#[derive(Clone, Debug)]
pub struct Accessor(Uuid);

impl FromArg for Accessor {
    fn kind() -> String {
        "a UUID".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let uuid = value.as_str().and_then(|text| Uuid::parse_str(text).ok());
        uuid.map(Self).ok_or_else(|| expected::<Self>(value))
    }
}

/// The space of names that accessors are made in (UUID version 5). Another one would be other tokens.
const SPACE: Uuid = Uuid::from_u128(0x8b3f_61c2_5d0e_4c7a_9a54_2f1d_7e90_b6c3);

/// The accessor of the token of requests that show none. Consul makes it before anybody can ask, and keeps it.
const ANONYMOUS: Uuid = Uuid::from_u128(2);

/// What Consul takes as a token's lifetime.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(24);

/// The accessor of a purpose.
pub(crate) fn accessor(cluster: &str, purpose: &str) -> Uuid {
    let digest = Sha1::new()
        .chain_update(SPACE.as_bytes())
        .chain_update(cluster.as_bytes())
        .chain_update([0])
        .chain_update(purpose.as_bytes())
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_sha1_bytes(bytes).into_uuid()
}

/// The accessor of the token that takes another one's place: while tokens are rotated a purpose has two, which take turns.
pub(super) fn other(accessor: &str) -> Option<String> {
    let uuid = Uuid::parse_str(accessor).ok()?;
    Some(Uuid::from_u128(uuid.as_u128() ^ 1).to_string())
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_acl_token",
    aliases: &[],
    summary: "Makes, changes or removes a token of Consul's ACLs",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("accessor_id", "The token's accessor; its secret is told nowhere.")]],
    example: "- name: the token with which agents answer DNS\n  consul_acl_token:\n    purpose: dns\n    cluster: kraken\n    secret_from: consul/token/dns\n    templated_policies: [builtin/dns]\n    token_secret: consul/management\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let accessor = match (&args.accessor_id, &args.purpose) {
        (Some(given), None) => given.0,
        (None, Some(purpose)) => accessor(&args.cluster, purpose),
        (Some(_), Some(_)) => return Err(Failure::new("'purpose' and 'accessor_id' exclude each other")),
        (None, None) => return Err(Failure::new("argument 'purpose' is missing").hint("or give an 'accessor_id'")),
    };
    if accessor == ANONYMOUS {
        only_rights(&args)?;
    }
    let secret = match api::secret(("secret", args.secret.as_ref()), ("secret_from", args.secret_from.as_ref()), cx)? {
        Given::Value(secret) if Uuid::parse_str(secret.expose()).is_ok() && secret.expose().len() == 36 => Some(secret),
        Given::Value(_) => return Err(Failure::new("the token's secret is no UUID, which Consul asks for")),
        Given::NotYet(why) => return Ok(api::may_change(why)),
        Given::Nothing if args.state == State::Absent || accessor == ANONYMOUS => None,
        Given::Nothing => return Err(Failure::new("argument 'secret' or 'secret_from' is missing")),
    };
    if args.ttl.is_some_and(|ttl| !LIFETIMES.contains(&ttl)) {
        return Err(Failure::new(
            "argument 'ttl': expected 60 to 86400 seconds: Consul makes no token that ends sooner or later",
        ));
    }
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let mut wanted = (args.state == State::Present).then(|| wanted(&args, accessor, secret));
    let place = Place {
        other: args.purpose.is_some().then(|| other(&accessor.to_string())).flatten(),
        accessor: accessor.to_string(),
        lifetime: args.ttl,
    };
    let found = match api::first_look(args.wait, cx, || place.look(&consul, wanted.as_ref())) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    another_machines(&args, found.as_ref())?;
    if let (true, Some(wanted), Some(found)) = (accessor == ANONYMOUS, &mut wanted, &found) {
        wanted.description.clone_from(&found.description);
    }
    let accessor = found.as_ref().map_or_else(|| place.accessor.clone(), |found| found.accessor.clone());
    if let Some(found) = &found
        && !api::is_ours(&found.description)
        && (wanted.is_none() || other_secret(found, wanted.as_ref()))
    {
        return Err(api::not_ours(&format!("token {accessor}")));
    }
    let servers = Servers { urls: args.servers.clone(), trust: trust(&args, cx)?, wait: args.wait };
    if same(found.as_ref(), wanted.as_ref()) {
        if let (Some(wanted), false) = (&wanted, cx.host.is_overlay()) {
            servers.know(wanted)?;
        }
        return Ok(Plan::Unchanged(Outcome::unchanged().with("accessor_id", accessor)));
    }
    let name = if place.is_anonymous() { "anonymous" } else { args.purpose.as_ref().unwrap_or(&accessor) };
    let mut after = lines(wanted.as_ref());
    if other_secret_or_place(found.as_ref(), wanted.as_ref()) {
        after.push_str("made anew: its secret or its scope is another\n");
    }
    let diff = api::diff(format!("consul token {name}"), &lines(found.as_ref()), &after);
    let planned = Outcome::changed().with("accessor_id", accessor.clone());
    Ok(Act::plan(diff, planned, move |_| {
        let outcome = place.write(&consul, wanted.as_ref(), args.wait)?;
        if let Some(wanted) = &wanted {
            servers.know(wanted).map_err(|failure| Failure { changed: outcome.changed, ..failure })?;
        }
        Ok(outcome)
    }))
}

/// Of the anonymous token nothing can be given but rights.
fn only_rights(args: &Args) -> Result<(), Failure> {
    if args.state == State::Absent {
        return Err(Failure::new("the anonymous token is Consul's own and cannot be removed")
            .hint("without 'policies' and the like it has no rights"));
    }
    let given = [
        ("secret", args.secret.is_some()),
        ("secret_from", args.secret_from.is_some()),
        ("description", args.description.is_some()),
        ("instance", !args.instance.is_empty()),
        ("local", args.local),
        ("ttl", args.ttl.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Failure::new(format!("the anonymous token is Consul's own: it takes no '{name}'"))
            .hint("it takes policies, roles and identities")),
        None => Ok(()),
    }
}

/// A node that was made anew under its old name must not go on with the token of the one before.
fn another_machines(args: &Args, found: Option<&Token>) -> Result<(), Failure> {
    let Some(found) = found.filter(|_| !args.instance.is_empty() && args.state == State::Present) else {
        return Ok(());
    };
    let Some((_, id)) = found.description.strip_suffix(')').and_then(|text| text.rsplit_once(" (i-")) else {
        return Ok(());
    };
    if args.instance.strip_prefix("i-") == Some(id) {
        return Ok(());
    }
    let purpose = args.purpose.as_deref().unwrap_or(&found.accessor);
    let failure = format!("the token for '{purpose}' was made for the instance i-{id}, and this is {}", args.instance);
    Err(Failure::new(failure).hint(
        "if that instance is gone: controller forget --terminated (or controller forget NODE), then run again: it gets a token of its own",
    ))
}

fn wanted(args: &Args, accessor: Uuid, secret: Option<Secret>) -> Token {
    let description = args.description.as_ref().or(args.purpose.as_ref()).map_or("", String::as_str);
    Token {
        accessor: accessor.to_string(),
        secret,
        description: match args.instance.as_str() {
            "" => api::ours(description),
            id => api::ours(&format!("{description} ({id})")),
        },
        local: args.local,
        rights: Rights {
            policies: args.policies.iter().cloned().collect(),
            roles: args.roles.iter().cloned().collect(),
            service_identities: args.service_identities.iter().cloned().collect(),
            node_identities: args.node_identities.iter().cloned().collect(),
            templated_policies: args.templated_policies.iter().cloned().collect(),
        },
        ..Token::default()
    }
}

/// Where a token is looked for, and made.
#[derive(Debug)]
struct Place {
    accessor: String,
    /// Of the token that took the first one's place, or is about to.
    other: Option<String>,
    lifetime: Option<Duration>,
}

impl Place {
    fn is_anonymous(&self) -> bool {
        self.accessor == ANONYMOUS.to_string()
    }

    /// The token that is wanted; where there is none, one that stands in its place.
    fn look(&self, consul: &Consul, wanted: Option<&Token>) -> Result<Option<Token>, ApiError> {
        let first = consul.acl_token(&self.accessor)?;
        if first.as_ref().is_some_and(|first| wanted.is_some() && !other_secret(first, wanted)) {
            return Ok(first);
        }
        let second = match &self.other {
            Some(other) => consul.acl_token(other)?,
            None => None,
        };
        match (first, second) {
            (_, Some(second)) if wanted.is_some() && !other_secret(&second, wanted) => Ok(Some(second)),
            // Consul says "token does not exist" of both the token that is asked for and, on a server that lags, of the one that
            // asks; so the latter is asked for.
            (None, None) if consul.token().is_some() => consul.own_token(false).map(|_| None),
            (first, second) => Ok(first.or(second)),
        }
    }

    fn write(&self, consul: &Consul, wanted: Option<&Token>, wait: Duration) -> Result<Outcome, Failure> {
        let settled = api::settle(
            wait,
            || self.look(consul, wanted),
            |found| same(found, wanted),
            |found| match (wanted, found) {
                (Some(wanted), None) => consul.create_token(wanted, self.lifetime),
                // Neither can be changed: it is taken away here, and made at the next turn.
                (Some(_), Some(found)) if other_secret_or_place(Some(found), wanted) => {
                    consul.delete_token(&found.accessor)
                }
                (Some(wanted), Some(found)) => {
                    consul.update_token(&Token { accessor: found.accessor.clone(), ..wanted.clone() })
                }
                (None, Some(found)) => consul.delete_token(&found.accessor),
                (None, None) => Ok(()),
            },
        );
        let settled = settled.map_err(|failure| {
            if failure.message.contains("SecretID is already in use") {
                failure.hint("the secret belongs to another token: each token needs its own")
            } else {
                failure
            }
        })?;
        let accessor = settled.now.map_or_else(|| self.accessor.clone(), |now| now.accessor);
        Ok(api::outcome(settled.changed).with("accessor_id", accessor))
    }
}

/// Who must know the token.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) urls: Vec<Web>,
    pub(super) trust: Trust,
    pub(super) wait: Duration,
}

impl Servers {
    /// Waits until each server knows it by itself.
    pub(super) fn know(&self, token: &Token) -> Result<(), Failure> {
        let Some(secret) = &token.secret else { return Ok(()) };
        for url in &self.urls {
            let server = Consul::new(url, self.trust.clone(), Some(secret.clone()))?;
            // Refusals that are remembered are so for 30 s.
            let wait = self.wait.max(crate::cluster::bootstrap::LAG);
            api::patiently(wait, || server.own_token(true)).map_err(|error| {
                let unknown = error.kind == Kind::UnknownToken;
                let failure = Failure::from(error);
                if unknown {
                    Failure { message: format!("the new token: {}", failure.message), ..failure }
                } else {
                    failure
                }
            })?;
        }
        Ok(())
    }
}

fn trust(args: &Args, cx: &Cx<'_>) -> Result<Trust, Failure> {
    if args.servers.is_empty() { Ok(Trust::System) } else { Trust::read(args.ca_file.as_ref(), cx.host) }
}

fn other_secret(found: &Token, wanted: Option<&Token>) -> bool {
    // A token without the right to see secrets cannot compare them.
    match (&found.secret, wanted.and_then(|wanted| wanted.secret.as_ref())) {
        (Some(found), Some(wanted)) => found != wanted,
        _ => false,
    }
}

fn other_secret_or_place(found: Option<&Token>, wanted: Option<&Token>) -> bool {
    match (found, wanted) {
        (Some(found), Some(wanted)) => other_secret(found, Some(wanted)) || found.local != wanted.local,
        _ => false,
    }
}

fn same(found: Option<&Token>, wanted: Option<&Token>) -> bool {
    !other_secret_or_place(found, wanted)
        && found.map(|t| (&t.description, &t.rights)) == wanted.map(|t| (&t.description, &t.rights))
}

fn lines(token: Option<&Token>) -> String {
    let Some(token) = token else { return String::new() };
    let scope = if token.local { "this datacenter only\n" } else { "" };
    format!("description: {}\n{scope}{}", token.description, token.rights.lines())
}

#[cfg(test)]
mod tests;
