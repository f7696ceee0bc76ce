//! Handlers: notified, owed, paid; gated where they ask for it.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use super::{
    Flow, Runner, gates,
    invoke::render_args,
    ledger::{Backup, Debt},
    results::{Attempt, failure_of},
    task::text,
};
use crate::{
    diag::{Diagnostic, nearest},
    modules::{self, Failure, FromArg, Invocation, Needs},
    playbook::model::{Action, Become, Gate, Handler, Play, RoleId, Task},
    protocol::{Answer, Ask, Before, EventKind},
    template::{self, EvalError},
    vars::{Layer, Scope, Var},
};

/// Which debts of earlier runs a flush pays. The tasks before it may be what mends the reason for which a handler failed
/// then, so that a debt is not paid before those have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// None: only what this run notified.
    Notified,
    /// Those of this role (of no role: the play's own).
    Role(Option<RoleId>),
    /// All.
    All,
}

/// What the ledger knows a handler by: its name and its role.
pub(super) type Key = (String, Option<String>);

/// Why a handler had no turn, or its turn no good end.
pub(super) enum Closed {
    /// Someone asked to stop, or the controller is gone.
    Stopped(String),
    /// The gate, or the controller, said no.
    Refused(Failure),
    /// This host is well after its turn, and the cluster is not.
    Elsewhere(Failure),
}

impl Runner<'_> {
    /// Writes down, before a change, which handlers it will owe, and keeps the files that it replaces. Returns the
    /// handlers that were not owed before.
    pub(super) fn note(&mut self, task: &Task, scope: &Scope, paths: &[PathBuf]) -> Result<Vec<u32>, Attempt> {
        if task.notify.is_empty() {
            return Ok(Vec::new());
        }
        let handlers = self.notified_by(task, scope).map_err(Attempt::from)?;
        if self.context.init.check {
            return Ok(handlers.iter().map(|h| h.task.id).collect());
        }
        let (backups, beyond) = self.back_up(paths).map_err(|f| Attempt::Failed(f, task.span))?;
        let mut fresh = Vec::new();
        for handler in handlers {
            let debt = Debt { beyond, ..self.debt(&handler, backups.clone()) };
            if self.ledger.find(&debt.handler, debt.role.as_deref()).is_none() {
                fresh.push(handler.task.id);
            }
            self.ledger.owe(debt).map_err(|f| Attempt::Failed(f, task.span))?;
        }
        Ok(fresh)
    }

    /// The change was made: its handlers run at the next flush.
    pub(super) fn keep(&mut self, task: &Task) -> Result<(), Failure> {
        if task.notify.is_empty() {
            return Ok(());
        }
        let bundle = std::sync::Arc::clone(&self.context.bundle);
        let play = self.state.go.as_ref().and_then(|go| bundle.plays.get(go.play));
        let Some(play) = play else { return Ok(()) };
        let scope = self.scope(play, task);
        let handlers = self.notified_by(task, &scope).map_err(|e| match e {
            EvalError::Unknown(why) => Failure::new(why),
            EvalError::Wrong(diagnostic) => failure_of(&diagnostic),
        })?;
        for handler in handlers {
            self.state.notified.entry(handler.task.id).or_default().push(task.id);
        }
        Ok(())
    }

    /// The change was not made: what it alone would have owed is struck.
    pub(super) fn withdraw(&mut self, fresh: &[u32]) -> Result<(), Failure> {
        if fresh.is_empty() || self.context.init.check {
            return Ok(());
        }
        let bundle = std::sync::Arc::clone(&self.context.bundle);
        let play = self.state.go.as_ref().and_then(|go| bundle.plays.get(go.play));
        for handler in play.into_iter().flat_map(|p| &p.handlers).filter(|h| fresh.contains(&h.task.id)) {
            let (name, role) = self.key(handler);
            self.ledger.strike(&name, role.as_deref())?;
        }
        Ok(())
    }

    fn notified_by(&self, task: &Task, scope: &Scope) -> Result<Vec<Handler>, EvalError> {
        let bundle = &self.context.bundle;
        let handlers = self.state.go.as_ref().and_then(|go| bundle.plays.get(go.play)).map(|p| &p.handlers);
        let handlers = handlers.map(Vec::as_slice).unwrap_or_default();
        let mut out: Vec<Handler> = Vec::new();
        for node in &task.notify {
            let wanted = text(node, scope, "a handler's name")?;
            let is = |h: &&Handler| {
                let (name, role) = self.key(h);
                name == wanted || role.is_some_and(|role| format!("{role} : {name}") == wanted)
            };
            // The play's own wins, then the one of this use of the role.
            let named = handlers
                .iter()
                .filter(|h| h.task.role.is_none())
                .find(is)
                .or_else(|| handlers.iter().filter(|h| h.task.role == task.role).find(is))
                .or_else(|| handlers.iter().find(is));
            let found: Vec<&Handler> =
                named.into_iter().chain(handlers.iter().filter(|h| h.listen.contains(&wanted))).collect();
            if found.is_empty() {
                let names: Vec<String> = handlers.iter().map(|h| self.key(h).0).collect();
                let diagnostic = Diagnostic::error(node.span, format!("no handler '{wanted}'"));
                return Err(match nearest(&wanted, names.iter().map(String::as_str)) {
                    Some(near) => diagnostic.hint(format!("did you mean '{near}'?")),
                    None => diagnostic,
                }
                .into());
            }
            for handler in found {
                if !out.iter().any(|h| h.task.id == handler.task.id) {
                    out.push(handler.clone());
                }
            }
        }
        Ok(out)
    }

    /// A handler's name and role: its key in the ledger.
    pub(super) fn key(&self, handler: &Handler) -> Key {
        let name = handler.task.name.as_ref().and_then(|n| n.as_str()).unwrap_or_default().to_owned();
        let role = handler.task.role.and_then(|id| self.context.bundle.roles.get(id.0 as usize));
        (name, role.map(|r| r.name.clone()))
    }

    fn debt(&self, handler: &Handler, backups: Vec<Backup>) -> Debt {
        let (name, role) = self.key(handler);
        let bundle = &self.context.bundle;
        let play = self.state.go.as_ref().and_then(|go| bundle.plays.get(go.play));
        let scope = play.map(|play| self.scope(play, &handler.task));
        let call = match (&handler.task.action, &scope) {
            (Action::Module { name, args }, Some(scope)) => modules::find(name)
                .filter(|d| d.needs == Needs::Nothing)
                .and_then(|d| render_args(d.name, args, scope).ok().map(|args| (d.name, args)))
                // A secret is not written to this host's disk: such a debt is paid by a run that has the handler.
                .filter(|_| !scope.tainted())
                .map(|(module, args)| Invocation {
                    module: module.to_owned(),
                    args,
                    content: None,
                    environment: Vec::new(),
                    diff: false,
                    timeout: None,
                    secret: false,
                }),
            _ => None,
        };
        let gate_vars =
            handler.gate.zip(scope.as_ref()).map(|(gate, scope)| gates::variables(gate, scope)).unwrap_or_default();
        let user = scope.and_then(|scope| self.user(&handler.task, &scope).ok()).unwrap_or_else(|| "root".to_owned());
        let since = self.host.now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let run_id = self.context.init.run_id.clone();
        Debt {
            handler: name,
            role,
            call,
            user,
            serial: handler.serial,
            gate: handler.gate,
            run_id,
            since,
            backups,
            beyond: false,
            gate_vars,
        }
    }

    /// Runs the handlers that were notified, and the debts that are due, and tells it where other hosts may wait for that.
    pub(super) fn flush(&mut self, play: &Play, due: Due) -> Flow {
        let flow = self.run_handlers(play, due);
        let well = matches!(flow, Flow::Next);
        let awaited = !self.context.init.check && play.handlers.iter().any(|h| h.after.is_some());
        if awaited && (well || matches!(flow, Flow::Failed(_))) {
            self.link.flushed(self.state.others.place(), well);
        }
        flow
    }

    /// In order of definition, until none is left.
    fn run_handlers(&mut self, play: &Play, due: Due) -> Flow {
        let role = match due {
            Due::Role(role) => role.and_then(|id| self.context.bundle.roles.get(id.0 as usize)).map(|r| r.name.clone()),
            Due::Notified | Due::All => None,
        };
        // A debt that is still there after its handler's turn is one for the next run.
        let mut tried: Vec<Key> = Vec::new();
        loop {
            let next = play.handlers.iter().find(|h| {
                if self.state.notified.contains_key(&h.task.id) {
                    return true;
                }
                let key = self.key(h);
                let owed = match due {
                    Due::Notified => false,
                    Due::Role(_) => key.1 == role,
                    Due::All => true,
                };
                owed && !tried.contains(&key) && self.ledger.find(&key.0, key.1.as_deref()).is_some()
            });
            let Some(handler) = next else { break };
            if self.link.stopped().is_some() {
                return Flow::Stopped;
            }
            let key = self.key(handler);
            let flow = self.pay(play, handler, &key);
            if !matches!(flow, Flow::Next) {
                return flow;
            }
            tried.push(key);
        }
        if due == Due::All { self.pay_foreign() } else { Flow::Next }
    }

    fn pay(&mut self, play: &Play, handler: &Handler, key: &Key) -> Flow {
        self.state.notified.remove(&handler.task.id);
        let scope = self.scope(play, &handler.task);
        let check = self.context.init.check;
        let gated = !check && self.is_gated(handler, &scope);
        if gated {
            if let Err(failure) = self.handler_turn(handler, &scope) {
                let closed = match self.link.stopped() {
                    Some(why) => Closed::Stopped(why),
                    None => Closed::Refused(
                        failure.hint("this host was left as it was; mend what went wrong there, and run again"),
                    ),
                };
                return self.passed_over(play, handler, key, &scope, closed);
            }
            // A cluster that is not whole before the restart would lose a second member.
            if let Err(closed) = self.gate(handler, &scope, "before") {
                let flow = self.passed_over(play, handler, key, &scope, closed);
                self.turn_done(handler, false);
                return flow;
            }
        }
        let mut flow = self.run_task(play, &handler.task, true);
        let mut kept = false;
        if matches!(flow, Flow::Next)
            && gated
            && let Err(closed) = self.gate(handler, &scope, "after")
        {
            kept = !matches!(closed, Closed::Refused(_));
            flow = self.closed(handler, &scope, closed);
        }
        match &flow {
            Flow::Next if !kept => {
                if let Err(failure) = self.paid(key) {
                    flow = self.handler_failed(handler, &scope, failure);
                }
            }
            // It runs with its new files. Only the cluster's word is missing, which the next run asks for.
            _ if kept => {
                let (handler_name, role) = key.clone();
                let why = self.link.stopped().unwrap_or_else(|| "the cluster is not whole".into());
                self.emit(handler.task.id, EventKind::Owed { handler: handler_name, role, why });
            }
            Flow::Failed(_) if !check => {
                self.restore(play, handler, key, &scope);
                if gated && let Err(failure) = self.take_back_others(play, key, "another handler of the role failed") {
                    flow = self.handler_failed(handler, &scope, failure);
                }
            }
            _ => {}
        }
        if gated {
            self.turn_done(handler, matches!(flow, Flow::Next) && !kept);
        }
        flow
    }

    /// A handler that takes turns, of a service that runs. A first start needs no turn: there is nothing yet to protect.
    pub(super) fn is_gated(&self, handler: &Handler, scope: &Scope) -> bool {
        let takes_turns = handler.serial.is_some() || handler.gate.is_some() || handler.after.is_some();
        takes_turns && self.is_running(handler, scope)
    }

    fn handler_turn(&self, handler: &Handler, scope: &Scope) -> Result<(), Failure> {
        let before = match &handler.after {
            Some(named) if gates::wanted(scope)? => {
                let value = template::render(named, scope).map_err(gates::failed)?;
                let hosts = names_of_hosts(&value).map_err(Failure::new)?;
                Some(Before { hosts, place: self.state.others.place().to_vec() })
            }
            _ => None,
        };
        self.take_turn(handler.task.id, handler.serial.unwrap_or(usize::MAX), handler.gate, before)
    }

    fn turn_done(&self, handler: &Handler, ok: bool) {
        // If the controller is gone there is nobody left to tell.
        let _ = self.link.ask(Ask::TurnDone { handler: handler.task.id, ok });
    }

    /// The handler did not run: its files go back, for whatever starts the service meanwhile.
    fn passed_over(&mut self, play: &Play, handler: &Handler, key: &Key, scope: &Scope, closed: Closed) -> Flow {
        let why = match &closed {
            Closed::Stopped(why) => format!("stopped before its turn: {why}"),
            Closed::Refused(failure) | Closed::Elsewhere(failure) => failure.message.clone(),
        };
        let flow = self.closed(handler, scope, closed);
        match self.take_back(handler, key, &why).and_then(|()| self.take_back_others(play, key, &why)) {
            Ok(()) => flow,
            Err(failure) => self.handler_failed(handler, scope, failure),
        }
    }

    fn closed(&mut self, handler: &Handler, scope: &Scope, closed: Closed) -> Flow {
        match closed {
            Closed::Stopped(_) => Flow::Stopped,
            Closed::Refused(failure) | Closed::Elsewhere(failure) => self.handler_failed(handler, scope, failure),
        }
    }

    /// Strikes the debt of a handler that has succeeded.
    fn paid(&mut self, (name, role): &Key) -> Result<(), Failure> {
        self.state.paid.extend(self.ledger.find(name, role.as_deref()).cloned());
        self.ledger.strike(name, role.as_deref())
    }

    pub(super) fn handler_failed(&mut self, handler: &Handler, scope: &Scope, failure: Failure) -> Flow {
        let started = std::time::Instant::now();
        self.tell(&handler.task, scope, &Attempt::Failed(failure, handler.task.span), started)
    }

    fn is_running(&self, handler: &Handler, scope: &Scope) -> bool {
        let Action::Module { name, args } = &handler.task.action else { return true };
        if modules::find(name).is_none_or(|d| !matches!(d.name, "service" | "nomad_restart")) {
            return true;
        }
        let Some(unit) = args.get("name").and_then(|n| text(n, scope, "a unit's name").ok()) else { return true };
        let unit = if unit.contains('.') { unit } else { format!("{unit}.service") };
        self.host.unit(&unit).is_ok_and(|u| u.active == "active" || u.active == "reloading")
    }

    /// Waits until the controller gives this host its turn.
    pub(super) fn take_turn(
        &self,
        task: u32,
        hosts: usize,
        gate: Option<Gate>,
        before: Option<Before>,
    ) -> Result<(), Failure> {
        let what = match &before {
            Some(before) => format!("its turn, after {}", before.hosts.join(", ")),
            None => "its turn".to_owned(),
        };
        self.emit(task, EventKind::Waiting { what });
        match self.link.ask(Ask::Turn { handler: task, serial: hosts, gate, before })? {
            Answer::Granted => Ok(()),
            Answer::Refused(why) => Err(Failure::new(why)),
            _ => Err(Failure::new("an answer of the wrong kind")),
        }
    }

    /// Debts of earlier runs whose handlers no play of this run defines.
    fn pay_foreign(&mut self) -> Flow {
        let bundle = std::sync::Arc::clone(&self.context.bundle);
        let defined: Vec<(String, Option<String>)> =
            bundle.plays.iter().flat_map(|p| &p.handlers).map(|h| self.key(h)).collect();
        let foreign: Vec<Debt> = self
            .ledger
            .debts()
            .iter()
            .filter(|d| !defined.iter().any(|(n, r)| *n == d.handler && *r == d.role))
            .cloned()
            .collect();
        let Some(play) = self.state.go.as_ref().and_then(|go| bundle.plays.get(go.play)) else { return Flow::Next };
        for debt in foreign {
            let Some(handler) = foreign_handler(&debt, play) else { continue };
            let flow = self.pay(play, &handler, &(debt.handler.clone(), debt.role.clone()));
            if !matches!(flow, Flow::Next) {
                return flow;
            }
        }
        Flow::Next
    }
}

/// What `after` says: names, and lists of names, which an expression among several may give.
pub(super) fn names_of_hosts(value: &Value) -> Result<Vec<String>, String> {
    let names = match value {
        Value::Array(parts) => {
            parts.iter().map(Vec::<String>::from_arg).collect::<Result<Vec<_>, _>>().map(|n| n.concat())
        }
        other => Vec::from_arg(other),
    };
    let names = names.map_err(|why| format!("after: {why}"))?;
    if names.iter().any(String::is_empty) { Err("after: a host's name is empty".into()) } else { Ok(names) }
}

/// A handler made of what the ledger holds: its call was rendered when it was owed, and is data now.
fn foreign_handler(debt: &Debt, play: &Play) -> Option<Handler> {
    let call = debt.call.as_ref()?;
    let span = play.span;
    let raw = |value: &Value| crate::node::Node::from_value(value, span);
    // Braces in rendered text would be taken for expressions again.
    let quoted = quote(&Value::Object(call.args.clone()));
    Some(Handler {
        task: Task {
            name: Some(raw(&json!(debt.handler))),
            become_: Become { enabled: Some(true), user: Some(raw(&json!(debt.user))) },
            vars: vec![Arc::new(
                debt.gate_vars
                    .iter()
                    .map(|(name, value)| (name.clone(), Var::data(value.clone(), Layer::Task)))
                    .collect(),
            )],
            ..Task::new(u32::MAX, span, Action::Module { name: call.module.clone(), args: raw(&quoted) })
        },
        listen: Vec::new(),
        serial: debt.serial,
        gate: debt.gate,
        after: None,
    })
}

fn quote(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains("{{") || text.contains("{%") || text.contains("{#") => {
            json!(format!("{{% raw %}}{text}{{% endraw %}}"))
        }
        Value::Array(items) => Value::Array(items.iter().map(quote).collect()),
        Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), quote(v))).collect()),
        other => other.clone(),
    }
}
