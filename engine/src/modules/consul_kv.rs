//! `consul_kv`: a value of Consul's key-value store.

use std::time::Duration;

use super::{
    Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    consul_api::{self as api, Act, Given, Opened, SecretName, State, api_args},
    steps::text,
};
use crate::cluster::consul::{ApiError, Consul, Entry};

api_args! {
    /// Arguments.
    pub struct Args {
        /// The key.
        key []: String, required;
        /// The value.
        value []: Option<String>;
        /// The name of a secret that is the value. It is shown in no diff; but whoever may read the key reads it.
        value_from []: Option<SecretName>;
        /// A number that programs may give a meaning.
        flags []: u64 = 0;
        /// Write it only if the key has no value yet.
        create_only []: bool = false;
        /// `absent` removes the key.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "consul_kv",
    aliases: &[],
    summary: "Writes or removes a value of Consul's key-value store",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("index", "The key's index after the call; 0 where it has no value.")]],
    example: "- name: what the shop is called\n  consul_kv:\n    key: shop/name\n    value: Kraken\n",
    plan,
};

/// What the key should have.
#[derive(Clone, Debug)]
struct Wanted {
    key: String,
    /// `None`: no value.
    value: Option<Vec<u8>>,
    flags: u64,
    create_only: bool,
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    if args.key.is_empty() || args.key.starts_with('/') {
        return Err(Failure::new(format!("argument 'key': '{}' is no key", args.key))
            .hint("keys do not begin with a slash: shop/name"));
    }
    let (value, hidden) = match (args.state, &args.value, &args.value_from) {
        (State::Absent, None, None) => (None, false),
        (State::Absent, ..) => return Err(Failure::new("a key that is to be removed has no value")),
        (State::Present, Some(value), None) => (Some(value.clone().into_bytes()), false),
        (State::Present, None, from @ Some(_)) => {
            match api::secret(("value", None), ("value_from", from.as_ref()), cx)? {
                Given::Value(secret) => (Some(secret.expose().as_bytes().to_vec()), true),
                Given::NotYet(why) => return Ok(api::may_change(why)),
                Given::Nothing => (None, true),
            }
        }
        (State::Present, Some(_), Some(_)) => return Err(Failure::new("'value' and 'value_from' exclude each other")),
        (State::Present, None, None) => return Err(Failure::new("argument 'value' is missing")),
    };
    let wanted = Wanted { key: args.key.clone(), value, flags: args.flags, create_only: args.create_only };
    let consul = match api::open(&args.access(), cx)? {
        Opened::Client(consul) => *consul,
        Opened::Later(plan) => return Ok(plan),
    };
    let found = match api::first_look(args.wait, cx, || consul.kv(&args.key)) {
        Ok(found) => found?,
        Err(plan) => return Ok(plan),
    };
    if wanted.is_met(found.as_ref()) {
        return Ok(Plan::Unchanged(told(Outcome::unchanged(), found.as_ref())));
    }
    let show = |value: Option<&Vec<u8>>| value.map(|value| format!("{}\n", text(value))).unwrap_or_default();
    let what = format!("consul key {}", args.key);
    let diff = if hidden {
        Diff { what, before: String::new(), after: String::new(), hidden: true }
    } else {
        api::diff(what, &show(found.as_ref().map(|entry| &entry.value)), &show(wanted.value.as_ref()))
    };
    let planned = told(Outcome::changed(), found.as_ref());
    Ok(Act::plan(diff, planned, move |_| write(&consul, &wanted, args.wait)))
}

impl Wanted {
    fn is_met(&self, found: Option<&Entry>) -> bool {
        match (&self.value, found) {
            (Some(_), Some(_)) if self.create_only => true,
            (Some(value), Some(entry)) => entry.value == *value && entry.flags == self.flags,
            (None, None) => true,
            _ => false,
        }
    }
}

fn write(consul: &Consul, wanted: &Wanted, wait: Duration) -> Result<Outcome, Failure> {
    let settled = api::settle(
        wait,
        || consul.kv(&wanted.key),
        |found| wanted.is_met(found),
        |found| {
            let index = found.map_or(0, |entry| entry.index);
            let done = match &wanted.value {
                Some(value) => consul.write_kv(&wanted.key, value, wanted.flags, index)?,
                None => consul.delete_kv(&wanted.key, index)?,
            };
            if done { Ok(()) } else { Err(ApiError::overtaken(format!("key {}", wanted.key))) }
        },
    )?;
    Ok(told(api::outcome(settled.changed), settled.now.as_ref()))
}

fn told(outcome: Outcome, entry: Option<&Entry>) -> Outcome {
    outcome.with("index", entry.map_or(0, |entry| entry.index))
}

#[cfg(test)]
mod tests;
