//! One task: conditions, loop, attempts, result.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Failed, Flow, Runner,
    handlers::Due,
    others::Met,
    results::{Attempt, failure_of, summary},
};
use crate::{
    diag::{Diagnostic, Span},
    modules::{Failure, FromArg as _, Outcome},
    node::Node,
    playbook::model::{Action, Expr, Loop, Play, Task},
    protocol::{Ask, EventKind, Status, TaskResult},
    template::{self, EvalError},
    vars::{Binding, Layer, Scope, Var, Vars},
};

/// Between the attempts of `until`, where `delay` does not say otherwise.
const DELAY: Duration = Duration::from_secs(5);
/// A year.
const MOST_SECONDS: f64 = 366.0 * 86400.0;
/// Attempts after the first, where `until` stands without `retries`.
const RETRIES: u64 = 3;

impl Runner<'_> {
    pub(super) fn task(&mut self, play: &Play, task: &Task) -> Flow {
        match &task.action {
            Action::FlushHandlers => {
                return self.when_then(play, task, |runner, play| runner.flush(play, Due::Role(task.role)));
            }
            Action::EndHost => return self.when_then(play, task, |_, _| Flow::EndHost),
            Action::EndPlay => return self.when_then(play, task, |_, _| Flow::EndPlay),
            Action::Noop => return Flow::Next,
            _ => {}
        }
        if task.run_once { self.run_once(play, task) } else { self.run_task(play, task, false) }
    }

    /// `meta` tasks: nothing is told of them.
    fn when_then(&mut self, play: &Play, task: &Task, then: impl FnOnce(&mut Self, &Play) -> Flow) -> Flow {
        self.once_met(play, task, |runner| runner.when_met(play, task, then))
    }

    /// Goes on with a task when the other hosts that it asks for have come as far.
    fn once_met(&mut self, play: &Play, task: &Task, then: impl FnOnce(&mut Self) -> Flow) -> Flow {
        self.state.others.enter(task.id);
        let flow = match self.meet(task) {
            Ok(Met::Waited) if self.link.stopped().is_some() => Flow::Stopped,
            Ok(_) => then(self),
            Err(failure) => self.broken(play, task, failure),
        };
        self.state.others.leave();
        flow
    }

    fn when_met(&mut self, play: &Play, task: &Task, then: impl FnOnce(&mut Self, &Play) -> Flow) -> Flow {
        let scope = self.scope(play, task);
        match conditions(&task.when, &scope) {
            Ok(None) => then(self, play),
            Ok(Some(_)) | Err(EvalError::Unknown(_)) => Flow::Next,
            Err(EvalError::Wrong(diagnostic)) => {
                let span = diagnostic.span;
                self.finish(task, &scope, &Attempt::Failed(failure_of(&diagnostic), span), Instant::now(), false)
            }
        }
    }

    pub(super) fn broken(&mut self, play: &Play, task: &Task, failure: Failure) -> Flow {
        let scope = self.scope(play, task);
        self.finish(task, &scope, &Attempt::Failed(failure, task.span), Instant::now(), false)
    }

    /// Carries a task or handler out and tells its end.
    pub(super) fn run_task(&mut self, play: &Play, task: &Task, handler: bool) -> Flow {
        self.once_met(play, task, |runner| runner.run_met(play, task, handler))
    }

    /// A task whose other hosts have come as far.
    fn run_met(&mut self, play: &Play, task: &Task, handler: bool) -> Flow {
        let started = Instant::now();
        let scope = self.scope(play, task);
        self.emit(task.id, EventKind::Start { name: Self::name(task, &scope), handler });
        if let Action::IncludeTasks { .. } | Action::IncludeRole { .. } = &task.action {
            return self.include(play, task, &scope, started);
        }
        if let Some(hosts) = task.throttle.filter(|_| !self.context.init.check)
            && let Err(failure) = self.take_turn(task.id, hosts, None, None)
        {
            if self.link.stopped().is_some() {
                return Flow::Stopped;
            }
            return self.finish(task, &scope, &Attempt::Failed(failure, task.span), started, handler);
        }
        let attempt = match &task.loop_ {
            None => self.item(play, task, &scope),
            Some(looped) => self.each(play, task, looped, &scope),
        };
        if task.throttle.is_some() && !self.context.init.check {
            // A failure here is this host's own: the others' turns go on. If the controller is gone nobody waits.
            let _ = self.link.ask(Ask::TurnDone { handler: task.id, ok: true });
        }
        if let Attempt::Unknown(why) = &attempt {
            self.unsettle(task, &scope, why);
        }
        self.finish(task, &scope, &attempt, started, handler)
    }

    pub(super) fn name(task: &Task, scope: &Scope) -> String {
        let named = task.name.as_ref().map(|node| match template::render(node, scope) {
            Ok(Value::String(text)) => text,
            Ok(other) => other.to_string(),
            // A name is for people: one that cannot be rendered is shown as it was written.
            Err(_) => node.as_str().unwrap_or_default().to_owned(),
        });
        named.unwrap_or_else(|| action_name(&task.action).to_owned())
    }

    fn result_base(&self, task: &Task, scope: &Scope, started: Instant, handler: bool) -> TaskResult {
        let role = task.role.and_then(|id| self.context.bundle.roles.get(id.0 as usize));
        TaskResult {
            status: Status::Ok,
            name: Self::name(task, scope),
            role: role.map(|r| r.name.clone()),
            module: action_name(&task.action).to_owned(),
            item: None,
            msg: None,
            hint: None,
            diffs: Vec::new(),
            result: Value::Null,
            warnings: Vec::new(),
            ignored: false,
            rescued: false,
            handler,
            delegated_to: None,
            span: task.span,
            millis: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Registers, tells, and decides how it goes on.
    fn finish(&mut self, task: &Task, scope: &Scope, attempt: &Attempt, started: Instant, handler: bool) -> Flow {
        if let Some(name) = &task.register {
            let var = Self::registered_var(task, scope, attempt);
            self.register(name, var, task.no_log);
        }
        let mut told = attempt.told(self.result_base(task, scope, started, handler), !task.no_log);
        if let Some(node) = &task.delegate_to {
            told.delegated_to = template::render(node, scope).ok().and_then(|v| v.as_str().map(str::to_owned));
        }
        let failed = told.status == Status::Failed;
        told.ignored = failed && Self::ignores(task, scope);
        let ignored = told.ignored;
        told.rescued = failed && !ignored && self.state.rescues > 0;
        let name = told.name.clone();
        self.end(task.id, told);
        if !failed || ignored {
            return Flow::Next;
        }
        let result = attempt.value().unwrap_or(Value::Null);
        Flow::Failed(Box::new(Failed { name, result, secret: scope.tainted() }))
    }

    fn registered_var(task: &Task, scope: &Scope, attempt: &Attempt) -> Var {
        match attempt.value() {
            Some(value) => Var::data_of(value, Layer::Registered, scope.tainted()),
            None => Var {
                binding: Binding::Unknown(format!(
                    "the result of '{}' is not known in check mode",
                    Self::name(task, scope)
                )),
                origin: task.span,
                layer: Layer::Registered,
            },
        }
    }

    /// Keeps a result or a fact, and tells it where other hosts ask for it. What is secret stays here.
    pub(super) fn register(&mut self, name: &str, var: Var, secret: bool) {
        self.tell_others(name, &var, secret);
        Arc::make_mut(&mut self.state.registered).insert(name.to_owned(), var);
    }

    fn ignores(task: &Task, scope: &Scope) -> bool {
        let said = task.ignore_errors.as_ref().and_then(|node| template::render(node, scope).ok());
        said.is_some_and(|value| bool::from_arg(&value).unwrap_or(false))
    }

    /// All items of a loop.
    fn each(&mut self, play: &Play, task: &Task, looped: &Loop, scope: &Scope) -> Attempt {
        // As in Ansible, a false condition that does not look at the item ends the task before the loop is evaluated.
        let items = match loop_items(looped, scope) {
            Ok(items) => items,
            Err(error) => {
                return match conditions(&task.when, scope) {
                    Ok(Some(why)) => Attempt::Skipped(why),
                    _ => error.into(),
                };
            }
        };
        let mut done = Vec::with_capacity(items.len());
        let count = items.len();
        for (index, item) in items.into_iter().enumerate() {
            if self.link.stopped().is_some() && index > 0 {
                done.push((item, Attempt::Failed(Failure::new("stopped before this item"), task.span)));
                break;
            }
            let scope = scope.with(loop_vars(looped, &item, index, count, scope.tainted()));
            let started = Instant::now();
            let attempt = self.item(play, task, &scope);
            let mut told = attempt.told(self.result_base(task, &scope, started, false), !task.no_log);
            told.item = Some(if task.no_log { "hidden by no_log".into() } else { label(looped, &item, &scope) });
            told.ignored = told.status == Status::Failed && Self::ignores(task, &scope);
            self.emit(task.id, EventKind::Item(Box::new(told)));
            done.push((item, attempt));
            if let (Some(pause), true) = (looped.pause, index + 1 < count) {
                std::thread::sleep(pause);
            }
        }
        summary(&done, &looped.var)
    }

    /// One item: its condition, then attempts until it holds.
    fn item(&mut self, play: &Play, task: &Task, scope: &Scope) -> Attempt {
        match conditions(&task.when, scope) {
            Ok(None) => {}
            Ok(Some(why)) => return Attempt::Skipped(why),
            Err(error) => return error.into(),
        }
        let retries = match attempts(task, scope) {
            Ok(n) => n,
            Err(error) => return error.into(),
        };
        let mut tried = 0;
        loop {
            tried += 1;
            let attempt = self.action(play, task, scope);
            let attempt = Self::judge(task, scope, attempt);
            let attempt = self.settle_judged(task, scope, attempt);
            if matches!(attempt, Attempt::Unknown(_)) || task.until.is_empty() && retries == 0 {
                return attempt;
            }
            let (holds, attempt) = until_holds(task, scope, attempt);
            if holds || tried > retries {
                return numbered(attempt, tried, holds);
            }
            let msg = match &attempt {
                Attempt::Failed(failure, _) => failure.message.clone(),
                _ => "not yet".to_owned(),
            };
            self.emit(task.id, EventKind::Retry { left: retries + 1 - tried, msg });
            if let Err(attempt) = self.wait(task, scope) {
                return attempt;
            }
        }
    }

    fn wait(&self, task: &Task, scope: &Scope) -> Result<(), Attempt> {
        let delay = match &task.delay {
            Some(node) => seconds(node, scope, "delay")?,
            None => DELAY,
        };
        let until = Instant::now() + delay;
        while Instant::now() < until {
            if let Some(why) = self.link.stopped() {
                return Err(Attempt::Failed(Failure::new(format!("stopped while it waited: {why}")), task.span));
            }
            std::thread::sleep(Duration::from_millis(100).min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    fn action(&mut self, play: &Play, task: &Task, scope: &Scope) -> Attempt {
        match &task.action {
            Action::Module { name, args } => self.module(play, task, name, args, scope),
            Action::IncludeVars { file, search, name } => self.include_vars(task, file, search, name.as_deref(), scope),
            _ => Attempt::Done(Outcome::unchanged(), Vec::new()),
        }
    }

    /// `changed_when` and `failed_when`.
    fn judge(task: &Task, scope: &Scope, attempt: Attempt) -> Attempt {
        if task.changed_when.is_none() && task.failed_when.is_none() {
            return attempt;
        }
        let Some(value) = attempt.value() else {
            // `changed_when: false` on something that check mode did not do: it will not change anything.
            if let (Some(changed_when), Attempt::Done(..)) = (&task.changed_when, &attempt)
                && conditions(changed_when, scope).is_ok_and(|held| held.is_some())
            {
                return Attempt::Unknown("it changes nothing; its result is not known in check mode".into());
            }
            return attempt;
        };
        let scope = match &task.register {
            Some(name) => {
                let var = Var::data_of(value, Layer::Registered, scope.tainted());
                scope.with(Vars::from_iter([(name.clone(), var)]))
            }
            None => scope.clone(),
        };
        let attempt = match &task.failed_when {
            None => attempt,
            Some(expressions) => match conditions(expressions, &scope) {
                Ok(None) => fail(attempt, task.span, expressions),
                Ok(Some(_)) => pass(attempt),
                Err(error) => return error.into(),
            },
        };
        let Some(expressions) = &task.changed_when else { return attempt };
        match conditions(expressions, &scope) {
            Ok(held) => with_changed(attempt, held.is_none()),
            Err(error) => error.into(),
        }
    }
}

/// `failed_when` held.
fn fail(attempt: Attempt, span: Span, expressions: &[Expr]) -> Attempt {
    match attempt {
        Attempt::Done(outcome, _) => {
            let why = expressions.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join(" and ");
            let failure =
                Failure { data: outcome.data, changed: outcome.changed, ..Failure::new(format!("failed_when: {why}")) };
            Attempt::Failed(failure, expressions.first().map_or(span, |e| e.span))
        }
        other => other,
    }
}

/// `failed_when` did not hold: a failure becomes a success.
fn pass(attempt: Attempt) -> Attempt {
    match attempt {
        Attempt::Failed(failure, _) => Attempt::Done(
            Outcome { changed: failure.changed, data: failure.data, msg: Some(failure.message), ..Outcome::default() },
            Vec::new(),
        ),
        other => other,
    }
}

fn with_changed(attempt: Attempt, changed: bool) -> Attempt {
    match attempt {
        Attempt::Done(outcome, diffs) => Attempt::Done(Outcome { changed, ..outcome }, diffs),
        Attempt::Failed(failure, span) => Attempt::Failed(Failure { changed, ..failure }, span),
        other => other,
    }
}

fn numbered(attempt: Attempt, tried: u64, holds: bool) -> Attempt {
    match attempt {
        Attempt::Done(outcome, diffs) if holds => Attempt::Done(outcome.with("attempts", tried), diffs),
        Attempt::Done(outcome, _) => {
            let failure =
                Failure { data: outcome.data, ..Failure::new(format!("'until' did not hold in {tried} attempts")) };
            Attempt::Failed(failure.with("attempts", tried), Span::NONE)
        }
        Attempt::Failed(failure, span) => Attempt::Failed(failure.with("attempts", tried), span),
        other => other,
    }
}

/// Without `until`, success is what is waited for.
fn until_holds(task: &Task, scope: &Scope, attempt: Attempt) -> (bool, Attempt) {
    if task.until.is_empty() {
        return (!matches!(attempt, Attempt::Failed(..)), attempt);
    }
    let Some(value) = attempt.value() else { return (true, attempt) };
    let scope = match &task.register {
        Some(name) => {
            let var = Var::data_of(value, Layer::Registered, scope.tainted());
            scope.with(Vars::from_iter([(name.clone(), var)]))
        }
        None => scope.clone(),
    };
    match conditions(&task.until, &scope) {
        Ok(held) => (held.is_none(), attempt),
        Err(error) => (true, error.into()),
    }
}

fn attempts(task: &Task, scope: &Scope) -> Result<u64, EvalError> {
    match &task.retries {
        None if task.until.is_empty() => Ok(0),
        None => Ok(RETRIES),
        #[expect(clippy::cast_sign_loss, reason = "clamped to zero and above")]
        Some(node) => number(node, scope, "retries").map(|n| n.max(0.0) as u64),
    }
}

pub(super) fn number(node: &Node, scope: &Scope, what: &str) -> Result<f64, EvalError> {
    let value = template::render(node, scope)?;
    let number = match &value {
        Value::Number(n) => n.as_f64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| Diagnostic::error(node.span, format!("'{what}' must be a number, this is {value}")).into())
}

/// What is longer than a year is a mistake, and the clock may not be able to count it.
pub(super) fn seconds(node: &Node, scope: &Scope, what: &str) -> Result<Duration, EvalError> {
    let seconds = number(node, scope, what)?;
    if (0.0..=MOST_SECONDS).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(Diagnostic::error(node.span, format!("'{what}' is in seconds, from 0 to a year; this is {seconds}")).into())
}

/// The first condition that does not hold; `None` where all do. What a condition looks at does not become part of what the
/// task makes: a secret in it makes no secret of the task's result.
pub(super) fn conditions(expressions: &[Expr], scope: &Scope) -> Result<Option<String>, EvalError> {
    if expressions.is_empty() {
        return Ok(None);
    }
    let scope = &scope.aside();
    for expression in expressions {
        if !template::condition(&expression.text, expression.span, scope)? {
            return Ok(Some(expression.text.clone()));
        }
    }
    Ok(None)
}

pub(super) fn loop_items(looped: &Loop, scope: &Scope) -> Result<Vec<Value>, EvalError> {
    match template::render(&looped.items, scope)? {
        Value::Array(items) => Ok(items),
        other => {
            let found = Node::from_value(&other, looped.items.span);
            let diagnostic = found.expected("a list to loop over");
            Err(match other {
                Value::Object(_) => diagnostic.hint("write it with the filter: {{ mapping | dict2items }}"),
                _ => diagnostic,
            }
            .into())
        }
    }
}

/// What a turn of a loop sees. `secret`: its items were made of something secret.
pub(super) fn loop_vars(looped: &Loop, item: &Value, index: usize, count: usize, secret: bool) -> Vars {
    let mut vars = Vars::new();
    vars.insert(looped.var.clone(), Var::data_of(item.clone(), Layer::Magic, secret));
    if let Some(name) = &looped.index_var {
        vars.insert(name.clone(), Var::data(json!(index), Layer::Magic));
    }
    if looped.extended {
        let info = json!({"index": index + 1, "index0": index, "first": index == 0, "last": index + 1 == count,
            "length": count, "revindex": count - index, "revindex0": count - index - 1});
        vars.insert("ansible_loop".into(), Var::data(info, Layer::Magic));
    }
    vars
}

fn label(looped: &Loop, item: &Value, scope: &Scope) -> String {
    let value = match &looped.label {
        Some(node) => template::render(node, scope).unwrap_or_else(|_| item.clone()),
        None => item.clone(),
    };
    let text = match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    text.chars().take(200).collect()
}

/// What a task does, in one word.
pub(super) fn action_name(action: &Action) -> &str {
    match action {
        Action::Module { name, .. } => name,
        Action::IncludeTasks { .. } => "include_tasks",
        Action::IncludeVars { .. } => "include_vars",
        Action::IncludeRole { .. } => "include_role",
        Action::FlushHandlers | Action::EndHost | Action::EndPlay | Action::Noop => "meta",
    }
}

/// Text or null, for places where only a name makes sense.
pub(super) fn text(node: &Node, scope: &Scope, what: &str) -> Result<String, EvalError> {
    match template::render(node, scope)? {
        Value::String(text) => Ok(text),
        Value::Number(n) => Ok(n.to_string()),
        other => {
            let kind = Node::from_value(&other, node.span);
            Err(kind.expected(what).into())
        }
    }
}

impl Runner<'_> {
    /// Tells the end of something that is not a module's call.
    pub(super) fn tell(&mut self, task: &Task, scope: &Scope, attempt: &Attempt, started: Instant) -> Flow {
        self.finish(task, scope, attempt, started, false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diag::Span;

    #[test]
    fn a_time_that_no_clock_counts_is_refused() {
        let of = |value: Value| seconds(&Node::from_value(&value, Span::NONE), &Scope::new(), "delay");
        assert_eq!(of(json!("{{ 1.5 * 2 }}")).unwrap(), Duration::from_secs(3));
        assert_eq!(of(json!(0)).unwrap(), Duration::ZERO);
        for wrong in [json!(-1), json!(1e20), json!("inf"), json!("nan"), json!("soon")] {
            assert!(matches!(of(wrong.clone()), Err(EvalError::Wrong(_))), "{wrong}");
        }
    }
}
