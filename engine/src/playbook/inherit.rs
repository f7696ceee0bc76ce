//! Inheritance: what a block, an import, a role or a play gives to the tasks inside it. One function for what is
//! settled when the playbook is read and for what is included on the host.

use std::path::Path;

use super::model::{Action, Bundle, Inherit, Item, RoleId, Task};
use crate::{
    modules,
    node::{Kind, Node},
};

impl Inherit {
    /// Only the role.
    pub fn of_role(role: RoleId) -> Self {
        Self { role: Some(role), ..Self::default() }
    }

    /// Gives what it holds to every task inside.
    pub fn lay_on(&self, items: &mut [Item]) {
        for item in items {
            match item {
                Item::Task(task) => self.lay_on_task(task),
                Item::Block(block) => {
                    self.lay_on(&mut block.block);
                    self.lay_on(&mut block.rescue);
                    self.lay_on(&mut block.always);
                }
            }
        }
    }

    /// Gives what it holds to one task, and to what that task includes.
    pub fn lay_on_task(&self, task: &mut Task) {
        task.role = task.role.or(self.role);
        prepend(&mut task.when, &self.when);
        prepend_new(&mut task.tags, &self.tags);
        prepend(&mut task.vars, &self.vars);
        prepend(&mut task.environment, &self.environment);
        task.become_.enabled = task.become_.enabled.or(self.become_.enabled);
        fill(&mut task.become_.user, self.become_.user.as_ref());
        fill(&mut task.ignore_errors, self.ignore_errors.as_ref());
        fill(&mut task.delegate_to, self.delegate_to.as_ref());
        fill(&mut task.timeout, self.timeout.as_ref());
        task.check_mode = task.check_mode.or(self.check_mode);
        task.diff = task.diff.or(self.diff);
        task.throttle = task.throttle.or(self.throttle);
        task.no_log |= self.no_log;
        task.run_once |= self.run_once;
        task.any_errors_fatal |= self.any_errors_fatal;
        match &mut task.action {
            Action::Module { name, args } => {
                for (_, defaults) in self.module_defaults.iter().filter(|(module, _)| module == name) {
                    fill_arguments(name, args, defaults);
                }
                append_new(&mut task.notify, &self.notify);
            }
            Action::IncludeTasks { inherit, .. } => self.lay_on_inherit(inherit),
            Action::IncludeRole { choices, .. } => choices.iter_mut().for_each(|choice| self.lay_on(&mut choice.tasks)),
            _ => {}
        }
    }

    fn lay_on_inherit(&self, inner: &mut Self) {
        inner.role = inner.role.or(self.role);
        prepend(&mut inner.when, &self.when);
        prepend_new(&mut inner.tags, &self.tags);
        prepend(&mut inner.vars, &self.vars);
        prepend(&mut inner.environment, &self.environment);
        append_new(&mut inner.notify, &self.notify);
        inner.become_.enabled = inner.become_.enabled.or(self.become_.enabled);
        fill(&mut inner.become_.user, self.become_.user.as_ref());
        fill(&mut inner.ignore_errors, self.ignore_errors.as_ref());
        fill(&mut inner.delegate_to, self.delegate_to.as_ref());
        fill(&mut inner.timeout, self.timeout.as_ref());
        inner.check_mode = inner.check_mode.or(self.check_mode);
        inner.diff = inner.diff.or(self.diff);
        inner.throttle = inner.throttle.or(self.throttle);
        inner.no_log |= self.no_log;
        inner.run_once |= self.run_once;
        inner.any_errors_fatal |= self.any_errors_fatal;
        // Inner defaults are laid on first, so they stand first.
        inner.module_defaults.extend(self.module_defaults.iter().cloned());
    }
}

impl Bundle {
    /// The tasks of an included file as they run: inheritance laid on, tags selected. `path` is the first of the
    /// include's search folders joined with the rendered name that [`Bundle::task_files`] holds. `None`: there is no
    /// such file, or `include` is no `include_tasks`.
    pub fn included(&self, include: &Task, path: &Path) -> Option<Vec<Item>> {
        let Action::IncludeTasks { inherit, .. } = &include.action else { return None };
        let mut items = self.task_files.get(path)?.as_ref().clone();
        inherit.lay_on(&mut items);
        self.selection.keep(&mut items);
        Some(items)
    }
}

fn prepend<T: Clone>(to: &mut Vec<T>, from: &[T]) {
    if !from.is_empty() {
        to.splice(0..0, from.iter().cloned());
    }
}

fn prepend_new<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
    let mut all = from.to_vec();
    append_new(&mut all, to);
    *to = all;
}

fn append_new<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
    for item in from {
        if !to.contains(item) {
            to.push(item.clone());
        }
    }
}

fn fill<T: Clone>(to: &mut Option<T>, from: Option<&T>) {
    if to.is_none() {
        *to = from.cloned();
    }
}

/// Adds the defaults that the task does not give, under whatever name it gives them.
fn fill_arguments(module: &str, args: &mut Node, defaults: &Node) {
    let (Kind::Map(given), Kind::Map(defaults)) = (&mut args.kind, &defaults.kind) else { return };
    let known = modules::find(module).map_or(&[][..], |d| d.args);
    let canonical = |name: &str| -> String {
        let arg = known.iter().find(|a| a.name == name || a.aliases.contains(&name));
        arg.map_or(name, |a| a.name).to_owned()
    };
    for (key, value) in defaults {
        if !given.iter().any(|(k, _)| canonical(&k.name) == canonical(&key.name)) {
            given.push((key.clone(), value.clone()));
        }
    }
}
