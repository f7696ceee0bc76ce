//! `--tags` and `--skip-tags`, as Ansible reads them.

use std::collections::BTreeSet;

use super::model::{Action, Bundle, Item, RoleId, Selection, Task};
use crate::diag::{Diagnostic, Diagnostics, Span};

/// Tags with a meaning of their own.
const SPECIAL: &[&str] = &["all", "always", "never", "tagged", "untagged"];

/// Leaves only what the tags select, and drops repeated uses of a role. To be called for every run, also with two
/// empty lists: `never` means never without being asked.
///
/// `always` runs unless it is skipped by name, `never` only when one of the task's tags is asked for; `tagged`,
/// `untagged` and `all` are understood. Handlers are not touched. A tag that no task carries is an error.
pub fn select_tags(bundle: &mut Bundle, tags: &[String], skip: &[String]) -> Result<(), Diagnostics> {
    let split = |list: &[String]| -> Vec<String> {
        list.iter().flat_map(|t| t.split(',')).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
    };
    let selection = Selection { only: split(tags), skip: split(skip) };
    let known = known_tags(bundle);
    let mut wrong = Diagnostics::default();
    for (option, list) in [("--tags", &selection.only), ("--skip-tags", &selection.skip)] {
        for tag in list.iter().filter(|t| !known.contains(*t) && !SPECIAL.contains(&t.as_str())) {
            wrong.push(
                Diagnostic::error(Span::NONE, format!("no task carries the tag '{tag}' of {option}"))
                    .nearest(tag, known.iter().map(String::as_str).chain(SPECIAL.iter().copied())),
            );
        }
    }
    if !wrong.0.is_empty() {
        return Err(wrong);
    }
    for play in &mut bundle.plays {
        for list in [&mut play.pre_tasks, &mut play.tasks, &mut play.post_tasks] {
            selection.keep(list);
        }
    }
    bundle.selection = selection;
    drop_repeated(bundle);
    Ok(())
}

/// All tags that tasks carry, also in files that are included on the host.
pub fn known_tags(bundle: &Bundle) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for play in &bundle.plays {
        for list in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            collect(list, &mut known);
        }
    }
    for items in bundle.task_files.values() {
        collect(items, &mut known);
    }
    known
}

fn collect(items: &[Item], known: &mut BTreeSet<String>) {
    for item in items {
        match item {
            Item::Block(block) => {
                for list in [&block.block, &block.rescue, &block.always] {
                    collect(list, known);
                }
            }
            Item::Task(task) => {
                known.extend(task.tags.iter().cloned());
                task.action.role_tasks().for_each(|tasks| collect(tasks, known));
                if let Action::IncludeTasks { inherit, .. } = &task.action {
                    known.extend(inherit.tags.iter().cloned());
                }
            }
        }
    }
}

impl Selection {
    /// Leaves only what is selected; a block without tasks goes too.
    pub fn keep(&self, items: &mut Vec<Item>) {
        items.retain_mut(|item| match item {
            Item::Block(block) => {
                for list in [&mut block.block, &mut block.rescue, &mut block.always] {
                    self.keep(list);
                }
                !block.block.is_empty() || !block.always.is_empty()
            }
            Item::Task(task) => {
                task.action.role_tasks_mut().for_each(|tasks| self.keep(tasks));
                self.selects(&task.tags)
            }
        });
    }

    /// True if a task with these tags runs.
    pub fn selects(&self, tags: &[String]) -> bool {
        let has = |tag: &str| tags.iter().any(|t| t == tag);
        let untagged = tags.is_empty();
        let meets = |list: &[String]| list.iter().any(|t| has(t) || (t == "untagged" && untagged));
        let asks = |list: &[String], tag: &str| list.iter().any(|t| t == tag);
        let all = self.only.is_empty() || asks(&self.only, "all");
        let run = has("always")
            || (all && !has("never"))
            || meets(&self.only)
            || (asks(&self.only, "tagged") && !untagged && !has("never"));
        if !run || self.skip.is_empty() {
            return run;
        }
        if asks(&self.skip, "all") {
            return has("always") && !asks(&self.skip, "always");
        }
        !(meets(&self.skip) || (asks(&self.skip, "tagged") && !untagged))
    }
}

/// A role that is named again with the same parameters under the same conditions runs once: the first use that is
/// still there stays.
fn drop_repeated(bundle: &mut Bundle) {
    let repeats: Vec<Option<RoleId>> = bundle.roles.iter().map(|r| r.repeats).collect();
    for play in &mut bundle.plays {
        let mut used = BTreeSet::new();
        for list in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            each_task(list, &mut |task| used.extend(task.role));
        }
        let mut gone = BTreeSet::new();
        for (index, first) in repeats.iter().enumerate() {
            let id = RoleId(u32::try_from(index).unwrap_or(u32::MAX));
            if first.is_some_and(|f| used.contains(&f) && !gone.contains(&f)) && used.contains(&id) {
                gone.insert(id);
            }
        }
        if gone.is_empty() {
            continue;
        }
        // What a left-out use named goes with it.
        for (index, role) in bundle.roles.iter().enumerate() {
            if role.parents.iter().any(|p| gone.contains(p)) {
                gone.insert(RoleId(u32::try_from(index).unwrap_or(u32::MAX)));
            }
        }
        for list in [&mut play.pre_tasks, &mut play.tasks, &mut play.post_tasks] {
            drop_roles(list, &gone);
        }
        play.handlers.retain(|h| h.task.role.is_none_or(|r| !gone.contains(&r)));
    }
}

fn each_task(items: &[Item], see: &mut dyn FnMut(&Task)) {
    for item in items {
        match item {
            Item::Task(task) => see(task),
            Item::Block(block) => {
                for list in [&block.block, &block.rescue, &block.always] {
                    each_task(list, see);
                }
            }
        }
    }
}

fn drop_roles(items: &mut Vec<Item>, gone: &BTreeSet<RoleId>) {
    items.retain_mut(|item| match item {
        Item::Task(task) => task.role.is_none_or(|r| !gone.contains(&r)),
        Item::Block(block) => {
            for list in [&mut block.block, &mut block.rescue, &mut block.always] {
                drop_roles(list, gone);
            }
            !block.block.is_empty() || !block.always.is_empty()
        }
    });
}
