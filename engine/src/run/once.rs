//! Tasks that one host of a batch carries out for all.

use std::sync::Arc;

use serde_json::Value;

use super::{Flow, Runner};
use crate::{
    modules::Failure,
    playbook::model::{Play, Task},
    protocol::{Answer, Ask},
    vars::{Binding, Layer, Var},
};

impl Runner<'_> {
    /// On the batch's first live host; its result goes to all.
    pub(super) fn run_once(&mut self, play: &Play, task: &Task) -> Flow {
        match self.link.ask(Ask::RunOnce { task: task.id }) {
            // The host that had it was stopped before it began: so is this one.
            Ok(_) if self.link.stopped().is_some() => Flow::Stopped,
            Ok(Answer::Granted) => {
                let before = Arc::clone(&self.state.registered);
                let others = self.state.go.as_ref().is_some_and(|go| go.batch.len() > 1);
                let flow = self.run_task(play, task, false);
                let mut facts = serde_json::Map::new();
                let mut result = Value::Null;
                for (name, var) in self.state.registered.iter() {
                    if before.get(name) == Some(var) {
                        continue;
                    }
                    if others && var.is_secret() && matches!(flow, Flow::Next) {
                        return self.broken(play, task, secret_for_others(name));
                    }
                    let Binding::Data(value) = &var.binding else { continue };
                    if task.register.as_deref() == Some(name) {
                        result = (**value).clone();
                    } else {
                        facts.insert(name.clone(), (**value).clone());
                    }
                }
                let told = self.link.ask(Ask::RanOnce { task: task.id, result, facts: Value::Object(facts) });
                match told {
                    Ok(_) => flow,
                    Err(failure) => self.broken(play, task, failure),
                }
            }
            Ok(Answer::Result { result, facts }) => {
                if let (Some(name), false) = (&task.register, result.is_null()) {
                    self.register(name, Var::data(result.clone(), Layer::Registered), task.no_log);
                }
                let scope = self.scope(play, task);
                let secret = task.no_log || self.sets_secret(task, &scope);
                for (name, value) in facts.as_object().into_iter().flatten() {
                    self.register(name, Var::data(value.clone(), Layer::Registered), secret);
                }
                if self.context.init.check {
                    self.unsettle_once(task, &scope, &result, &facts);
                }
                Flow::Next
            }
            Ok(Answer::Refused(why)) => self.broken(play, task, Failure::new(why)),
            Ok(Answer::Reply(_) | Answer::Others(_) | Answer::Secret(_) | Answer::Issued(_)) => {
                self.broken(play, task, Failure::new("an answer of the wrong kind"))
            }
            Err(failure) => self.broken(play, task, failure),
        }
    }
}

fn secret_for_others(name: &str) -> Failure {
    Failure::new(format!("run_once: '{name}' holds something secret, which does not travel to the other hosts"))
        .hint("ask for the secret in the task that needs it: every host that may read it gets the same value")
}
