//! A module's call: its arguments rendered, its content fetched, carried out here, as another user, or elsewhere.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use similar::{ChangeTag, TextDiff};

use super::{
    Runner,
    results::Attempt,
    task::{conditions, number, text},
};
use crate::{
    diag::{Diagnostic, Span},
    host::limited::Limited,
    modules::{self, Cx, Diff, Failure, FromArg as _, Invocation, Needs, Plan},
    node::{Kind, Node},
    playbook::model::{Expr, Play, Task},
    protocol::{Answer, Ask, Call, Reply},
    secrets::grants::Grants,
    template::{self, EvalError},
    vars::{Layer, Scope, Var},
};

/// How long two texts are compared: those that have nothing in common would take for ever.
const DIFF_TIME: Duration = Duration::from_millis(200);

impl Runner<'_> {
    pub(super) fn module(&mut self, play: &Play, task: &Task, name: &str, args: &Node, scope: &Scope) -> Attempt {
        let Some(definition) = modules::find(name) else {
            return Attempt::Failed(Failure::new(format!("there is no module '{name}'")), task.span);
        };
        let invocation = match self.invocation(play, task, definition, args, scope) {
            Ok(invocation) => invocation,
            Err(error) => return error.into(),
        };
        let attempt = match &task.delegate_to {
            Some(node) => match text(node, scope, "a host's name") {
                Ok(host) if host == self.context.init.host => self.here(task, definition, invocation, scope),
                Ok(host) => self.delegated(task, host, invocation, scope),
                Err(error) => error.into(),
            },
            None => self.here(task, definition, invocation, scope),
        };
        if definition.name == "set_fact"
            && let Attempt::Done(outcome, _) = &attempt
        {
            let secret = task.no_log || self.sets_secret(task, scope);
            for (name, value) in outcome.data.get("facts").and_then(Value::as_object).into_iter().flatten() {
                self.register(name, Var::data_of(value.clone(), Layer::Registered, scope.tainted()), secret);
            }
        }
        attempt
    }

    fn invocation(
        &mut self,
        play: &Play,
        task: &Task,
        definition: &modules::Definition,
        args: &Node,
        scope: &Scope,
    ) -> Result<Invocation, EvalError> {
        let args = render_args(definition.name, args, scope)?;
        // What a template asks for is told by its content.
        let secret = scope.tainted();
        let content = match definition.needs {
            Needs::Nothing => None,
            Needs::File => self.file_content(play, task, &args)?,
            Needs::Template => self.template_content(play, task, &args, scope)?,
        };
        let mut environment = Vec::new();
        for node in &task.environment {
            let Value::Object(map) = template::render(node, scope)? else {
                return Err(node.expected("a mapping of variables").into());
            };
            environment.extend(map.into_iter().map(|(k, v)| (k, plain(v))));
        }
        let timeout = match &task.timeout {
            None => None,
            // Ansible's 0 is no limit.
            Some(node) => Some(number(node, scope, "timeout")?).filter(|s| *s > 0.0),
        };
        Ok(Invocation {
            module: definition.name.to_owned(),
            args,
            content,
            environment,
            diff: task.diff.unwrap_or(self.context.init.diff) && !task.no_log,
            timeout,
            secret,
        })
    }

    /// As whom: the task, then the host's variables, then the options.
    pub(super) fn user(&self, task: &Task, scope: &Scope) -> Result<String, EvalError> {
        let init = &self.context.init;
        let becomes = match task.become_.enabled {
            Some(enabled) => enabled,
            None => match variable(scope, "ansible_become")? {
                Some(value) => bool::from_arg(&value)
                    .map_err(|why| Diagnostic::error(task.span, format!("ansible_become: {why}")))?,
                None => init.become_default,
            },
        };
        if !becomes {
            return Ok(init.login_user.clone());
        }
        if let Some(node) = &task.become_.user {
            return text(node, scope, "a user's name");
        }
        Ok(variable(scope, "ansible_become_user")?.map_or_else(|| "root".to_owned(), plain))
    }

    fn delegated(&mut self, task: &Task, host: String, invocation: Invocation, scope: &Scope) -> Attempt {
        let user = match self.user(task, scope) {
            // On the controller's own machine the engine runs as the user who started it.
            Ok(_) if host == "localhost" => String::new(),
            Ok(user) => user,
            Err(error) => return error.into(),
        };
        let noted = self.note(task, scope, &[]);
        let call = Call { invocation, user, check: self.checks(task) };
        let reply = match self.link.ask(Ask::Delegate { host, call: Box::new(call) }) {
            Ok(Answer::Reply(reply)) => *reply,
            Ok(Answer::Refused(why)) => Reply::Failed(Failure::new(why)),
            Ok(_) => Reply::Failed(Failure::new("an answer of the wrong kind")),
            Err(failure) => Reply::Failed(failure),
        };
        self.replied(task, reply, noted)
    }

    fn replied(&mut self, task: &Task, reply: Reply, noted: Result<Vec<u32>, Attempt>) -> Attempt {
        let noted = match noted {
            Ok(noted) => noted,
            Err(attempt) => return attempt,
        };
        let attempt = match reply {
            Reply::Done { outcome, diffs } => Attempt::Done(outcome, diffs),
            Reply::Failed(failure) => Attempt::Failed(failure, task.span),
            Reply::Unreachable(why) => Attempt::Failed(Failure::new(format!("unreachable: {why}")), task.span),
        };
        let changed = match &attempt {
            Attempt::Done(outcome, _) => outcome.changed || outcome.unknown,
            Attempt::Failed(failure, _) => failure.changed,
            _ => false,
        };
        self.settle(task, noted, changed, attempt)
    }

    /// Who answers a task for secrets: where it only says what it would do, none is made.
    pub(super) fn answering(&self, task: &Task) -> &Arc<dyn Grants> {
        if self.checks(task) { self.link.looking() } else { self.link.grants() }
    }

    /// True where this task only says what it would do.
    fn checks(&self, task: &Task) -> bool {
        task.check_mode.unwrap_or(self.context.init.check)
    }

    fn here(
        &mut self,
        task: &Task,
        definition: &modules::Definition,
        invocation: Invocation,
        scope: &Scope,
    ) -> Attempt {
        let user = match self.user(task, scope) {
            Ok(user) => user,
            Err(error) => return error.into(),
        };
        let check = self.checks(task);
        // In check mode one overlay stands for the whole machine, whoever the user is.
        if user != self.context.process_user && !self.context.init.check && needs_user(definition) {
            let noted = self.note(task, scope, &[]);
            let reply = match self.link.as_user(&Call { invocation, user, check }) {
                Ok(reply) => reply,
                Err(failure) => Reply::Failed(failure),
            };
            return self.replied(task, reply, noted);
        }
        if check && !self.context.init.check {
            let overlay = crate::host::overlay::Overlay::new(&*self.real);
            return plan_and_apply(definition, &invocation, &self.context.facts, self.link.looking(), &mut { overlay });
        }
        let facts = Arc::clone(&self.context.facts);
        let planned = {
            let host = if check { self.host.as_read() } else { self.real.as_read() };
            let host = if self.context.init.check && !check { self.real.as_read() } else { host };
            (definition.plan)(&invocation, &Cx { host, facts: &facts, secrets: self.answering(task) })
        };
        let change = match planned {
            Ok(Plan::Unchanged(outcome)) => return Attempt::Done(outcome, Vec::new()),
            Ok(Plan::Change(change)) => change,
            Err(failure) => return Attempt::Failed(failure, task.span),
        };
        let noted = match self.note(task, scope, &change.paths()) {
            Ok(noted) => noted,
            Err(attempt) => return attempt,
        };
        let diffs = diffs(&*change, &invocation);
        let host = if check { &mut *self.host } else { &mut *self.real };
        let (attempt, changed) = match apply(change, host, &invocation) {
            Ok(outcome) => {
                let changed = outcome.changed || outcome.unknown;
                (Attempt::Done(outcome, diffs), changed)
            }
            Err(failure) => {
                let changed = failure.changed;
                (Attempt::Failed(failure, task.span), changed)
            }
        };
        self.settle(task, noted, changed, attempt)
    }

    /// `changed_when` has spoken: it, not the module, decides whether handlers are notified.
    pub(super) fn settle_judged(&mut self, task: &Task, scope: &Scope, attempt: Attempt) -> Attempt {
        let noted = self.state.noted.take();
        if task.changed_when.is_none() || task.notify.is_empty() {
            return attempt;
        }
        let changed = match &attempt {
            Attempt::Done(outcome, _) => outcome.changed || outcome.unknown,
            Attempt::Failed(failure, _) => failure.changed,
            _ => false,
        };
        let noted = match noted {
            Some(noted) => noted,
            // The module saw nothing to change, and so owes nothing yet.
            None if changed => match self.note(task, scope, &[]) {
                Ok(noted) => noted,
                Err(attempt) => return attempt,
            },
            None => return attempt,
        };
        let settled = if changed { self.keep(task) } else { self.withdraw(&noted) };
        match settled {
            Ok(()) => attempt,
            Err(failure) => Attempt::Failed(failure, task.span),
        }
    }

    /// Notes are kept where something changed; else they are taken back. With `changed_when` that is not known yet.
    fn settle(&mut self, task: &Task, noted: Vec<u32>, changed: bool, attempt: Attempt) -> Attempt {
        if task.changed_when.is_some() {
            self.state.noted = Some(noted);
            return attempt;
        }
        let settled = if changed { self.keep(task) } else { self.withdraw(&noted) };
        match settled {
            Ok(()) => attempt,
            Err(failure) => Attempt::Failed(failure, task.span),
        }
    }
}

/// Modules that act on this run rather than on the machine need no other user.
fn needs_user(definition: &modules::Definition) -> bool {
    !matches!(definition.name, "assert" | "debug" | "fail" | "set_fact")
}

/// Plans and applies a call on a machine: for workers, delegated calls and forced checks.
pub fn carry_out(call: &Call, facts: &Value, secrets: &Arc<dyn Grants>, host: &mut dyn crate::host::Write) -> Reply {
    let Some(definition) = modules::find(&call.invocation.module) else {
        return Reply::Failed(Failure::new(format!("there is no module '{}'", call.invocation.module)));
    };
    match plan_and_apply(definition, &call.invocation, facts, secrets, host) {
        Attempt::Done(outcome, diffs) => Reply::Done { outcome, diffs },
        Attempt::Failed(failure, _) => Reply::Failed(failure),
        Attempt::Unknown(why) | Attempt::Skipped(why) => Reply::Failed(Failure::new(why)),
    }
}

fn plan_and_apply(
    definition: &modules::Definition,
    invocation: &Invocation,
    facts: &Value,
    secrets: &Arc<dyn Grants>,
    host: &mut dyn crate::host::Write,
) -> Attempt {
    match (definition.plan)(invocation, &Cx { host: host.as_read(), facts, secrets }) {
        Ok(Plan::Unchanged(outcome)) => Attempt::Done(outcome, Vec::new()),
        Ok(Plan::Change(change)) => {
            let diffs = diffs(&*change, invocation);
            match apply(change, host, invocation) {
                Ok(outcome) => Attempt::Done(outcome, diffs),
                Err(failure) => Attempt::Failed(failure, Span::NONE),
            }
        }
        Err(failure) => Attempt::Failed(failure, Span::NONE),
    }
}

/// What a change would look like. Where something secret went into the call, only how much of it.
fn diffs(change: &dyn modules::Change, invocation: &Invocation) -> Vec<Diff> {
    if !invocation.diff {
        return Vec::new();
    }
    let diffs = change.diffs();
    if invocation.secret { diffs.into_iter().map(hidden).collect() } else { diffs }
}

fn hidden(diff: Diff) -> Diff {
    if diff.hidden {
        return diff;
    }
    let text = TextDiff::configure().timeout(DIFF_TIME).diff_lines(&diff.before, &diff.after);
    let count = |tag| text.iter_all_changes().filter(|change| change.tag() == tag).count();
    let lines = count(ChangeTag::Insert).max(count(ChangeTag::Delete));
    let after = format!("content hidden ({lines} lines changed)\n");
    Diff { before: String::new(), after, hidden: true, what: diff.what }
}

/// Applies a change within the task's time.
fn apply(
    change: Box<dyn modules::Change>,
    host: &mut dyn crate::host::Write,
    invocation: &Invocation,
) -> Result<modules::Outcome, Failure> {
    match invocation.timeout.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
        Some(limit) => change.apply(&mut Limited::new(host, limit)),
        None => change.apply(host),
    }
}

fn variable(scope: &Scope, name: &str) -> Result<Option<Value>, EvalError> {
    match scope.get(name) {
        None => Ok(None),
        Some(var) => template::eval(name, var.origin, scope).map(Some),
    }
}

fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Arguments, rendered; one that is `omit` is left out. Those that are expressions themselves are evaluated here.
pub(super) fn render_args(module: &str, args: &Node, scope: &Scope) -> Result<Map<String, Value>, EvalError> {
    let mut out = Map::new();
    for (key, node) in args.map()? {
        let value = match (module, key.name.as_str()) {
            ("assert", "that") => Value::Array(
                node.one_or_many().into_iter().map(|node| asserted(node, scope)).collect::<Result<_, _>>()?,
            ),
            ("debug", "var") => {
                let expression = node.string()?;
                json!({ expression: template::eval(expression, node.span, scope)? })
            }
            _ => match template::render_optional(node, scope)? {
                Some(value) => value,
                None => continue,
            },
        };
        out.insert(key.name.clone(), value);
    }
    Ok(out)
}

fn asserted(node: &Node, scope: &Scope) -> Result<Value, EvalError> {
    let text = match &node.kind {
        Kind::Str(text) => text.clone(),
        Kind::Bool(b) => b.to_string(),
        _ => return Err(node.expected("a condition").into()),
    };
    let held = conditions(&[Expr { text: text.clone(), span: node.span }], scope)?.is_none();
    Ok(json!({"expr": text, "ok": held}))
}
