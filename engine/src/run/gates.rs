//! Gates: what is asked of the cluster before and after a handler's turn, and with what.

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};

use super::{Runner, handlers::Closed, results::failure_of, task::seconds};
use crate::{
    cluster::{self, NotWhole},
    modules::{Failure, FromArg},
    playbook::model::{Gate, Handler},
    protocol::EventKind,
    secrets::{Name, Secret, grants::GrantError},
    template::{self, EvalError},
    vars::Scope,
};

/// How long a gate waits for the cluster, where the variable `gate_timeout` does not say otherwise.
const GATE_TIMEOUT: Duration = Duration::from_mins(5);

impl Runner<'_> {
    /// Asks the cluster, where the handler has a gate.
    pub(super) fn gate(&self, handler: &Handler, scope: &Scope, when: &str) -> Result<(), Closed> {
        let Some(gate) = handler.gate else { return Ok(()) };
        if !wanted(scope).map_err(Closed::Refused)? {
            return Ok(());
        }
        let asked = cluster_question(&self.context.init.cluster, gate, scope);
        let asked = asked.map_err(|error| Closed::Refused(failed(error)))?;
        let tokens = self.gate_tokens(gate, scope).map_err(Closed::Refused)?;
        let ca = self.gate_authority(gate, scope).map_err(Closed::Refused)?;
        let asked = cluster::Question { tokens, ca, ..asked };
        let waiting = |what: &str| self.emit(handler.task.id, EventKind::Waiting { what: what.to_owned() });
        let refused = |why: String, hint: &str| {
            Failure::new(format!("gate refused {when} the handler: {why}")).hint(hint).with("gate", json!("refused"))
        };
        match cluster::wait_healthy(gate, &asked, &|| self.link.stopped(), &waiting) {
            Ok(()) => Ok(()),
            Err(NotWhole::Stopped(why)) => Err(Closed::Stopped(why)),
            Err(NotWhole::Elsewhere(why)) if when == "after" => Err(Closed::Elsewhere(refused(
                why,
                "this host is well; mend the others and run again: the handler stays owed",
            ))),
            Err(NotWhole::Here(why) | NotWhole::Elsewhere(why) | NotWhole::Broken(why)) => Err(Closed::Refused(
                refused(why, "mend the cluster and run again; `-e rollcall_gate=false` runs the handler ungated"),
            )),
        }
    }

    /// The tokens that the gate asks with: the secrets that `consul_gate_tokens` (`nomad_gate_tokens`) names.
    fn gate_tokens(&self, gate: Gate, scope: &Scope) -> Result<Vec<Secret>, Failure> {
        let variable = names(gate).tokens;
        let wrong = |why: String| Failure::new(format!("{variable}: {why}"));
        let mut tokens = Vec::new();
        for name in given::<Vec<String>>(variable, scope)?.unwrap_or_default() {
            let name = Name::new(&name).map_err(|e| wrong(e.to_string()))?;
            match self.link.grants().secret(&name) {
                Ok(secret) => tokens.push(secret),
                Err(GrantError::NotYet(_)) => {}
                Err(GrantError::Refused { why, hint }) => return Err(Failure { hint, ..wrong(why) }),
            }
        }
        Ok(tokens)
    }

    /// Who signed the certificate of the server that the gate asks: the file of this host that `consul_gate_ca` (`nomad_gate_ca`)
    /// names.
    fn gate_authority(&self, gate: Gate, scope: &Scope) -> Result<Option<Vec<u8>>, Failure> {
        let variable = names(gate).ca;
        let read = |path: PathBuf| {
            let wrong = |e| Failure::new(format!("{variable}: {}: {e}", path.display()));
            self.host.read(&path).map_err(wrong)
        };
        given::<Option<PathBuf>>(variable, scope)?.flatten().map(read).transpose()
    }
}

/// The variables of a gate, and what it asks without them.
struct Names {
    url: &'static str,
    tokens: &'static str,
    ca: &'static str,
    default: &'static str,
    servers: &'static str,
}

/// The variable with which a gate's patience is said, whatever it asks.
const TIMEOUT: &str = "gate_timeout";

fn names(gate: Gate) -> Names {
    match gate {
        Gate::Consul => Names {
            url: "consul_gate_url",
            tokens: "consul_gate_tokens",
            ca: "consul_gate_ca",
            default: "http://127.0.0.1:8500",
            servers: "consul_servers",
        },
        Gate::Nomad => Names {
            url: "nomad_gate_url",
            tokens: "nomad_gate_tokens",
            ca: "nomad_gate_ca",
            default: "http://127.0.0.1:4646",
            servers: "nomad_servers",
        },
    }
}

/// A variable's value; `None`: there is no such variable.
fn given<T: FromArg>(variable: &str, scope: &Scope) -> Result<Option<T>, Failure> {
    let Some(var) = scope.get(variable) else { return Ok(None) };
    let value = template::eval(variable, var.origin, scope).map_err(failed)?;
    T::from_arg(&value).map(Some).map_err(|why| Failure::new(format!("{variable}: {why}")))
}

pub(super) fn failed(error: EvalError) -> Failure {
    match error {
        EvalError::Wrong(diagnostic) => failure_of(&diagnostic),
        EvalError::Unknown(why) => Failure::new(why),
    }
}

/// The variables that a gate asks by, as they are where its handler is notified: a run that does not have the handler's role pays the
/// debt with them. Secrets are not among them, only their names.
pub(super) fn variables(gate: Gate, scope: &Scope) -> Map<String, Value> {
    let Names { url, tokens, ca, .. } = names(gate);
    let of = |name: &str| {
        let scope = scope.aside();
        let value = scope.get(name).and_then(|var| template::eval(name, var.origin, &scope).ok())?;
        // What a secret went into stays off this host's disk.
        (!scope.tainted()).then(|| (name.to_owned(), value))
    };
    [url, tokens, ca, TIMEOUT].into_iter().filter_map(of).collect()
}

/// Whether handlers heed their gates, and who goes first: `rollcall_gate` is not false.
pub(super) fn wanted(scope: &Scope) -> Result<bool, Failure> {
    given("rollcall_gate", scope).map(|wanted| wanted.unwrap_or(true))
}

/// What the gate asks, from the variables.
fn cluster_question(cluster: &Value, gate: Gate, scope: &Scope) -> Result<cluster::Question, EvalError> {
    let Names { url, default, servers, .. } = names(gate);
    let url = scope.get(url).map(|var| template::eval(url, var.origin, scope)).transpose()?;
    let url = url.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_else(|| default.to_owned());
    let timeout = match scope.get(TIMEOUT) {
        Some(v) => {
            let node = crate::node::Node::from_value(&json!("{{ gate_timeout }}"), v.origin);
            seconds(&node, scope, TIMEOUT)?
        }
        None => GATE_TIMEOUT,
    };
    let voters = cluster.get(servers).and_then(Value::as_array).map(Vec::len).filter(|n| *n > 0);
    Ok(cluster::Question { url, timeout, voters, tokens: Vec::new(), ca: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::Node,
        vars::{Layer, Var, Vars},
    };

    #[test]
    fn what_a_gate_asks_by_is_known_where_its_role_is_not() {
        let raw = |value: Value| Var::raw(Node::from_value(&value, crate::diag::Span::NONE), Layer::RoleDefaults);
        let role = Scope::of(Vars::from_iter([
            ("scheme".to_owned(), raw(json!("https"))),
            ("nomad_gate_url".to_owned(), raw(json!("{{ scheme }}://127.0.0.1:4646"))),
            ("nomad_gate_tokens".to_owned(), raw(json!(["nomad/token/server"]))),
            ("nomad_gate_ca".to_owned(), raw(json!("{{ unknown }}"))),
            ("consul_gate_url".to_owned(), raw(json!("http://127.0.0.1:8500"))),
        ]));
        let kept = variables(Gate::Nomad, &role);
        let wanted = json!({"nomad_gate_url": "https://127.0.0.1:4646", "nomad_gate_tokens": ["nomad/token/server"]});
        assert_eq!(Value::Object(kept.clone()), wanted);
        // As a task of another play has them.
        let other: Vars = kept.into_iter().map(|(name, value)| (name, Var::data(value, Layer::Task))).collect();
        let asked = cluster_question(&json!({"nomad_servers": [1, 2, 3]}), Gate::Nomad, &Scope::of(other)).unwrap();
        assert_eq!((asked.url.as_str(), asked.voters), ("https://127.0.0.1:4646", Some(3)));
        let without = cluster_question(&Value::Null, Gate::Nomad, &Scope::new()).unwrap();
        assert_eq!(without.url, "http://127.0.0.1:4646");
    }

    #[test]
    fn a_gate_is_left_out_in_every_way_of_saying_so() {
        let said = |value: Value| {
            let raw = Var::raw(Node::from_value(&value, crate::diag::Span::NONE), Layer::Extra);
            wanted(&Scope::of(Vars::from_iter([("rollcall_gate".to_owned(), raw)])))
        };
        // `-e rollcall_gate=false` gives text.
        for value in [json!(false), json!("false"), json!("no"), json!("{{ 1 == 2 }}")] {
            assert!(!said(value.clone()).unwrap(), "{value}");
        }
        for value in [json!(true), json!("true"), json!("yes")] {
            assert!(said(value.clone()).unwrap(), "{value}");
        }
        assert!(wanted(&Scope::new()).unwrap());
        let wrong = said(json!("flase")).unwrap_err();
        assert!(wrong.message.starts_with("rollcall_gate: expected a boolean"), "{}", wrong.message);
    }
}
