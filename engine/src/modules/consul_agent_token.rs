//! `consul_agent_token`: a token that this host's Consul agent uses.
//!
//! The agent tells nobody which tokens it has. What it was given it writes down in its data folder, which is also what it starts
//! with, and what wins over its configuration: that file is what is compared.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_api::{self as api, Access, Act, Given, Hidden, Opened, SecretName},
    http::Web,
    steps::read_text,
};
use crate::{
    args, choice,
    cluster::consul::{ApiError, Consul, Kind},
    host::Read,
    secrets::Secret,
};

choice!(
    /// What the agent uses it for.
    Use {
        Agent = "agent",
        Default = "default",
        Dns = "dns",
        Services = "config_file_service_registration",
        Replication = "replication",
        Recovery = "agent_recovery",
    }
);

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Default => "default",
            Self::Dns => "dns",
            Self::Services => "config_file_service_registration",
            Self::Replication => "replication",
            Self::Recovery => "agent_recovery",
        }
    }
}

args! {
    /// Arguments.
    pub struct Args {
        /// What the agent uses it for: its own work (`agent`), requests without a token (`default`), names (`dns`) and so on.
        name []: Use, required;
        /// The token's secret.
        secret []: Option<Hidden>;
        /// The name of the token's secret instead: `consul/token/agent/NODE`.
        secret_from []: Option<SecretName>;
        /// The agent's data folder, where it writes down what it was given (`enable_token_persistence`).
        data_dir []: PathBuf = PathBuf::from("/var/lib/consul");
        /// The agent's API.
        url []: Web = api::url("http://127.0.0.1:8500");
        /// Certificates (PEM) of who signed the agent's, for `https`.
        ca_file []: Option<PathBuf>;
        /// The secret of a token that may write to the agent; without it the given one itself must.
        token []: Option<Hidden>;
        /// The name of that secret instead.
        token_secret []: Option<SecretName>;
        /// For how many seconds to wait for the token to be known: who makes it may be at it now.
        wait []: Duration = Duration::from_secs(30);
    }
}

/// The file in the agent's data folder.
const FILE: &str = "acl-tokens.json";

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_agent_token",
    aliases: &[],
    summary: "Gives this host's Consul agent a token to use, and proves that it works",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("accessor_id", "The token's accessor.")]],
    example: "- name: the agent's own token\n  consul_agent_token:\n    name: agent\n    secret_from: consul/token/agent/{{ inventory_hostname | lower }}\n",
    plan,
};

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let secret = match api::secret(("secret", args.secret.as_ref()), ("secret_from", args.secret_from.as_ref()), cx)? {
        Given::Value(secret) => secret,
        Given::NotYet(why) => return Ok(api::may_change(why)),
        Given::Nothing => return Err(Failure::new("argument 'secret' or 'secret_from' is missing")),
    };
    let (token, token_secret) = (args.token.as_ref(), args.token_secret.as_ref());
    let access = Access { url: &args.url, ca_file: args.ca_file.as_ref(), token, token_secret };
    let consul = match api::open(&access, cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let with = consul.with(&secret);
    // What the agent's server knows by itself: the answer is not kept, as refusals of other requests are.
    let known = match api::first_look(args.wait, cx, || with.own_token(true)) {
        Ok(known) => known.map_err(unknown)?,
        Err(plan) => return Ok(plan),
    };
    let path = args.data_dir.join(FILE);
    let had = written_down(cx.host, &path)?;
    let name = args.name.name();
    if had.get(name).and_then(Value::as_str) == Some(secret.expose()) {
        return Ok(Plan::Unchanged(Outcome::unchanged().with("accessor_id", known.accessor)));
    }
    let before = if had.contains_key(name) { "another token\n" } else { "" };
    let diff = api::diff(format!("consul agent's token '{name}'"), before, &format!("{}\n", known.accessor));
    let planned = Outcome::changed().with("accessor_id", known.accessor);
    let writer = if consul.token().is_some() { consul } else { with };
    let planned_too = planned.clone();
    Ok(Act::plan(diff, planned, move |host| {
        hand_over(host, &writer, name, &secret, &path, args.wait)?;
        Ok(planned_too)
    }))
}

fn hand_over(
    host: &dyn Read,
    consul: &Consul,
    name: &str,
    secret: &Secret,
    path: &Path,
    wait: Duration,
) -> Result<(), Failure> {
    // A lost answer costs nothing: the same value again.
    api::patiently(wait, || consul.give_agent(name, secret)).map_err(|error| denied(name, error))?;
    let now = written_down(host, path).map_err(|failure| Failure { changed: true, ..failure })?;
    if now.get(name).and_then(Value::as_str) == Some(secret.expose()) {
        return Ok(());
    }
    let failure =
        Failure::new(format!("the agent took the token '{name}', and did not write it to {}", path.display()));
    Err(Failure { changed: true, ..failure }
        .hint("set `acl: {enable_token_persistence: true}` in its configuration, and data_dir to its folder"))
}

fn unknown(failure: Failure) -> Failure {
    if failure.message.contains("ACL not found") {
        let message = format!("the cluster does not know the token: {}", failure.message);
        return Failure { message, ..failure }.hint("make it on a server first, by consul_acl_token");
    }
    failure
}

fn denied(name: &str, error: ApiError) -> Failure {
    let kind = error.kind;
    let failure = Failure::from(error);
    match kind {
        Kind::Denied => failure.hint(
            "the token needs the right `agent \"NODE\" { policy = \"write\" }`, or give a token_secret that has it",
        ),
        Kind::NotFound => failure.hint(format!("this version of Consul knows no token '{name}'")),
        _ => failure,
    }
}

/// What the agent wrote down; nothing where the file cannot be understood, as the agent itself takes it then.
fn written_down(host: &dyn Read, path: &Path) -> Result<Map<String, Value>, Failure> {
    let text = read_text(host, path)?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

#[cfg(test)]
mod tests;
