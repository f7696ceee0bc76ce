//! Results: what `register` sees and what is told.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::{
    diag::{Diagnostic, Span},
    modules::{Diff, Failure, Outcome},
    protocol::{Status, TaskResult},
    template::EvalError,
    vars::{Layer, Var, Vars},
};

/// A failure that ended a list of items.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The task's name.
    pub name: String,
    /// Its result.
    pub result: Value,
    /// Something secret was asked for to carry it out.
    pub secret: bool,
}

impl Failed {
    /// What a rescue sees.
    pub(super) fn vars(&self) -> Arc<Vars> {
        let task = json!({"name": self.name});
        let mut vars = Vars::new();
        for (name, value) in [
            ("failed_task", task.clone()),
            ("failed_result", self.result.clone()),
            ("ansible_failed_task", task),
            ("ansible_failed_result", self.result.clone()),
        ] {
            vars.insert(name.to_owned(), Var::data_of(value, Layer::Magic, self.secret));
        }
        Arc::new(vars)
    }
}

/// How one attempt at one item ended.
#[derive(Clone, Debug)]
pub(super) enum Attempt {
    /// The module answered.
    Done(Outcome, Vec<Diff>),
    /// A condition did not hold; which one.
    Skipped(String),
    /// It failed; where.
    Failed(Failure, Span),
    /// In check mode: it depends on what was not done.
    Unknown(String),
}

impl From<EvalError> for Attempt {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Unknown(why) => Self::Unknown(why),
            EvalError::Wrong(diagnostic) => {
                let span = diagnostic.span;
                Self::Failed(failure_of(&diagnostic), span)
            }
        }
    }
}

/// A finding as a failure: notes join the message, since a host has no text to show.
pub(super) fn failure_of(diagnostic: &Diagnostic) -> Failure {
    let mut message = diagnostic.message.clone();
    for (_, note) in &diagnostic.notes {
        message.push_str(&format!("; {note}"));
    }
    Failure { hint: diagnostic.hint.clone(), ..Failure::new(message) }
}

impl Attempt {
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Done(outcome, _) if outcome.unknown => Status::MayChange,
            Self::Done(outcome, _) if outcome.changed => Status::Changed,
            Self::Done(outcome, _) if outcome.data.get("skipped") == Some(&json!(true)) => Status::Skipped,
            Self::Done(..) => Status::Ok,
            Self::Skipped(_) => Status::Skipped,
            Self::Failed(..) => Status::Failed,
            Self::Unknown(_) => Status::MayChange,
        }
    }

    /// What `register` sees; `None` where nobody knows.
    pub(super) fn value(&self) -> Option<Value> {
        let mut map = Map::new();
        match self {
            Self::Done(outcome, _) if outcome.unknown => return None,
            Self::Done(outcome, _) => {
                map.clone_from(&outcome.data);
                map.insert("changed".into(), json!(outcome.changed));
                map.insert("failed".into(), json!(false));
                map.entry("skipped").or_insert(json!(false));
                map.insert("msg".into(), json!(outcome.msg.clone().unwrap_or_default()));
            }
            Self::Skipped(why) => {
                map.insert("changed".into(), json!(false));
                map.insert("failed".into(), json!(false));
                map.insert("skipped".into(), json!(true));
                map.insert("skip_reason".into(), json!("Conditional result was False"));
                map.insert("false_condition".into(), json!(why));
            }
            Self::Failed(failure, _) => {
                map.clone_from(&failure.data);
                map.insert("changed".into(), json!(failure.changed));
                map.insert("failed".into(), json!(true));
                map.insert("skipped".into(), json!(false));
                map.insert("msg".into(), json!(failure.message));
            }
            Self::Unknown(_) => return None,
        }
        Some(Value::Object(map))
    }

    /// The result that is told. `shown` is false with `no_log`.
    pub(super) fn told(&self, mut base: TaskResult, shown: bool) -> TaskResult {
        base.status = self.status();
        match self {
            Self::Done(outcome, diffs) => {
                base.msg.clone_from(&outcome.msg);
                base.warnings.clone_from(&outcome.warnings);
                base.diffs.clone_from(diffs);
            }
            Self::Skipped(why) => base.msg = Some(format!("'{why}' is false")),
            Self::Unknown(why) => base.msg = Some(why.clone()),
            Self::Failed(failure, span) => {
                base.msg = Some(failure.message.clone());
                base.hint.clone_from(&failure.hint);
                if !span.is_none() {
                    base.span = *span;
                }
            }
        }
        base.result = self.value().unwrap_or(Value::Null);
        if !shown {
            base.result = Value::Null;
            base.diffs.clear();
            base.warnings.clear();
            if base.msg.is_some() {
                base.msg = Some("hidden by no_log".to_owned());
            }
            base.hint = None;
        }
        base
    }
}

/// Sums up the items of a loop.
pub(super) fn summary(items: &[(Value, Attempt)], var: &str) -> Attempt {
    let unknown = items.iter().find_map(|(_, a)| match a {
        Attempt::Unknown(why) => Some(why.clone()),
        Attempt::Done(o, _) if o.unknown => Some(o.msg.clone().unwrap_or_default()),
        _ => None,
    });
    let results: Vec<Value> = items
        .iter()
        .map(|(item, attempt)| {
            let mut value = attempt.value().unwrap_or_else(|| json!({}));
            if let Value::Object(map) = &mut value {
                map.insert(var.to_owned(), item.clone());
                map.insert("ansible_loop_var".to_owned(), json!(var));
            }
            value
        })
        .collect();
    let changed = items.iter().any(|(_, a)| matches!(a.status(), Status::Changed));
    if let Some((_, Attempt::Failed(failure, span))) = items.iter().find(|(_, a)| a.status() == Status::Failed) {
        let mut failure = failure.clone();
        failure.changed |= changed;
        failure.data = Map::from_iter([("results".to_owned(), json!(results))]);
        return Attempt::Failed(failure, *span);
    }
    if let Some(why) = unknown {
        return Attempt::Unknown(why);
    }
    if !items.is_empty() && items.iter().all(|(_, a)| a.status() == Status::Skipped) {
        return Attempt::Done(Outcome::unchanged().with("skipped", true).with("results", results), Vec::new());
    }
    let mut outcome = Outcome { changed, ..Outcome::default() }.with("results", results);
    if items.is_empty() {
        outcome.msg = Some("the loop has no items".into());
    }
    Attempt::Done(outcome, Vec::new())
}
