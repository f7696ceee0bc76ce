//! Looking before anything is changed: every name that a task asks for, and every value that can be known now.
//!
//! Run on each host in the first phase, so that a variable that is undefined only on the last host is told before the
//! first one is touched. What depends on results (`register`, `set_fact`) is left for the run itself.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    Context,
    content::{included_file, picked},
    handlers::names_of_hosts,
    invoke::render_args,
    scope::{Layers, magic},
    task::{conditions, loop_items, loop_vars},
};
use crate::{
    diag::{Diagnostic, nearest},
    node::{Kind, Node},
    playbook::model::{Action, Block, Handler, Item, Loop, Play, RoleId, SearchKind, Task},
    protocol::Go,
    secrets::grants::Grants,
    template::{self, EvalError, TemplateKind, TemplateSource},
    vars::{Binding, Layer, Scope, Var, Vars},
};

/// Fetches a template's text by its hash.
pub type Fetch<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// What is wrong with the plays that this host is part of, each finding once. `looking` is asked for secrets, and makes
/// none: one that the host may not read, or that is not there and nobody makes, is told here.
pub fn preflight(context: &Context, fetch: Fetch<'_>, looking: &Arc<dyn Grants>) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = Vec::new();
    let late = late_names(context);
    for index in &context.init.plays {
        let Some(play) = context.bundle.plays.get(*index) else { continue };
        let go = Go { play: *index, batch: Vec::new(), play_hosts: Vec::new() };
        let magic = Arc::new(magic(context, &go.batch, &go.play_hosts));
        let layers = Layers { context, play, magic, grants: looking };
        let mut check = Check {
            context,
            play,
            layers,
            late: &late,
            fetch,
            rescued: 0,
            picked: HashSet::new(),
            may_end: false,
            found: Vec::new(),
        };
        for section in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            check.items(section);
        }
        // Whether a handler runs is not known.
        check.may_end = true;
        for handler in &play.handlers {
            check.task(&handler.task);
            check.after(handler);
        }
        found.append(&mut check.found);
    }
    let mut seen = HashSet::new();
    found.retain(|d| seen.insert(d.clone()));
    found
}

/// Names that only the run brings about, so that their absence now says nothing.
fn late_names(context: &Context) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for name in ["failed_task", "failed_result", "ansible_failed_task", "ansible_failed_result", "ansible_loop"] {
        names.insert(name.to_owned());
    }
    for play in &context.bundle.plays {
        for section in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
            late_of_items(section, &mut names);
        }
        for handler in &play.handlers {
            late_of_task(&handler.task, &mut names);
        }
    }
    for items in context.bundle.task_files.values() {
        late_of_items(items, &mut names);
    }
    for node in context.bundle.vars_files.values() {
        names.extend(node.map().into_iter().flatten().map(|(k, _)| k.name.clone()));
    }
    names
}

fn late_of_items(items: &[Item], names: &mut BTreeSet<String>) {
    for item in items {
        match item {
            Item::Task(task) => late_of_task(task, names),
            Item::Block(block) => {
                for part in [&block.block, &block.rescue, &block.always] {
                    late_of_items(part, names);
                }
            }
        }
    }
}

fn late_of_task(task: &Task, names: &mut BTreeSet<String>) {
    names.extend(task.register.clone());
    match &task.action {
        Action::Module { name, args } if name == "set_fact" => {
            names.extend(args.map().into_iter().flatten().map(|(k, _)| k.name.clone()));
        }
        Action::IncludeVars { name: Some(name), .. } => {
            names.insert(name.clone());
        }
        action => action.role_tasks().for_each(|tasks| late_of_items(tasks, names)),
    }
    if let Some(looped) = &task.loop_ {
        names.insert(looped.var.clone());
        names.extend(looped.index_var.clone());
    }
    if matches!(task.action, Action::IncludeTasks { .. } | Action::IncludeRole { .. }) {
        // Its variables are seen inside what it includes.
        names.extend(task.vars.iter().flat_map(|v| v.keys().cloned()));
    }
}

struct Check<'a> {
    context: &'a Context,
    play: &'a Play,
    layers: Layers<'a>,
    late: &'a BTreeSet<String>,
    fetch: Fetch<'a>,
    /// Blocks around the task whose rescue takes its failure over.
    rescued: usize,
    /// Roles that this host picks, whose tasks were looked at.
    picked: HashSet<RoleId>,
    /// Something before it may end the play for this host.
    may_end: bool,
    found: Vec<Diagnostic>,
}

impl Check<'_> {
    fn items(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Task(task) => self.task(task),
                Item::Block(block) => self.block(block),
            }
        }
    }

    fn block(&mut self, block: &Block) {
        let rescued = usize::from(!block.rescue.is_empty());
        self.rescued += rescued;
        self.items(&block.block);
        self.rescued -= rescued;
        for part in [&block.rescue, &block.always] {
            self.items(part);
        }
    }

    /// What is known of a task before the run.
    fn scope(&self, task: &Task) -> Scope {
        // Late names are unknown here, so that whatever depends on one is neither wrong nor taken for granted.
        let mut unknown = Vars::new();
        for name in self.late {
            let binding = Binding::Unknown(format!("'{name}' is known only in the run"));
            unknown.insert(name.clone(), Var { binding, origin: task.span, layer: Layer::RoleDefaults });
        }
        let inner = self.layers.scope(task.role, &task.vars, &[], &[]);
        let mut scope = Scope::of(unknown).over(&inner);
        if self.context.init.shared.is_some() {
            let asked = self.context.bundle.others.by_task.get(&task.id).cloned().unwrap_or_default();
            let hostvars = super::others::before(self.context, &Arc::new(asked));
            scope = scope.with(Vars::from_iter([("hostvars".to_owned(), hostvars)]));
        }
        scope
    }

    /// Who goes before a handler's turn.
    fn after(&mut self, handler: &Handler) {
        let (Some(named), scope) = (&handler.after, self.scope(&handler.task)) else { return };
        // Where it does not run nobody goes before it.
        if matches!(conditions(&handler.task.when, &scope), Ok(Some(_))) {
            return;
        }
        match template::render(named, &scope) {
            Ok(value) => self.found.extend(names_of_hosts(&value).err().map(|why| Diagnostic::error(named.span, why))),
            Err(EvalError::Wrong(diagnostic)) => self.found.push(diagnostic),
            Err(EvalError::Unknown(_)) => {}
        }
    }

    fn task(&mut self, task: &Task) {
        let scope = self.scope(task);
        let mut reached = false;
        match conditions(&task.when, &scope) {
            // Known to be skipped on this host: what it would ask for does not matter.
            Ok(Some(_)) => return,
            Ok(None) => reached = self.rescued == 0 && !self.may_end,
            Err(EvalError::Unknown(_)) => {}
            Err(EvalError::Wrong(diagnostic)) => {
                // With a loop the condition may look at the item.
                if task.loop_.is_none() {
                    self.found.push(diagnostic);
                    return;
                }
            }
        }
        if matches!(task.action, Action::EndHost | Action::EndPlay) {
            self.may_end = true;
        }
        match &task.loop_ {
            None => {
                self.included(task, &scope);
                self.values(task, &scope);
                if reached {
                    self.assertion(task, &scope);
                }
            }
            Some(looped) => self.looped(task, looped, &scope),
        }
        if let Action::IncludeRole { name: None, choices } = &task.action {
            for choice in choices {
                self.items(&choice.tasks);
            }
        }
    }

    fn looped(&mut self, task: &Task, looped: &Loop, scope: &Scope) {
        match loop_items(looped, scope) {
            Ok(items) => {
                let count = items.len();
                for (index, item) in items.iter().enumerate() {
                    let scope = scope.with(loop_vars(looped, item, index, count, scope.tainted()));
                    match conditions(&task.when, &scope) {
                        Ok(Some(_)) => {}
                        Ok(None) | Err(EvalError::Unknown(_)) => {
                            self.included(task, &scope);
                            self.values(task, &scope);
                        }
                        Err(EvalError::Wrong(diagnostic)) => self.found.push(diagnostic),
                    }
                }
            }
            Err(EvalError::Unknown(_)) => self.names(task, scope),
            Err(EvalError::Wrong(diagnostic)) => self.found.push(diagnostic),
        }
    }

    /// What is rendered without a result of the run is rendered now.
    fn values(&mut self, task: &Task, scope: &Scope) {
        let guarded = guards(task);
        let mut keep = |result: Result<(), EvalError>| {
            if let Err(EvalError::Wrong(diagnostic)) = result {
                // `when: x is defined` may only turn out in the run.
                if !guarded.iter().any(|name| diagnostic.message.starts_with(&format!("'{name}'"))) {
                    self.found.push(diagnostic);
                }
            }
        };
        for node in task.environment.iter().chain(&task.delegate_to).chain(&task.notify) {
            keep(template::render(node, scope).map(drop));
        }
        if let Action::Module { name, args } = &task.action {
            match render_args(name, args, scope) {
                Err(EvalError::Unknown(_)) => self.names(task, scope),
                Ok(args) => {
                    if name == "template"
                        && let Some(src) = args.get("src").and_then(|v| v.as_str())
                    {
                        self.template(task, src, scope);
                    }
                }
                wrong @ Err(EvalError::Wrong(_)) => keep(wrong.map(drop)),
            }
        }
    }

    /// What an include means, where that is known now. What depends on results is left for the run.
    fn included(&mut self, task: &Task, scope: &Scope) {
        match &task.action {
            Action::IncludeRole { name: Some(name), choices } => match picked(Some(name), choices, scope) {
                Ok(choice) if self.picked.insert(choice.role) => self.items(&choice.tasks),
                Ok(_) | Err(EvalError::Unknown(_)) => {}
                Err(EvalError::Wrong(diagnostic)) => self.found.push(diagnostic),
            },
            Action::IncludeTasks { file, search, .. } => {
                let known = included_file(task, file, search, &self.context.bundle, scope);
                if let Err(EvalError::Wrong(diagnostic)) = known {
                    self.found.push(diagnostic);
                }
            }
            _ => {}
        }
    }

    /// An `assert` that is sure to fail here is told before anything is changed. A `fail` is left to the run: whoever
    /// writes one wants the others to go on.
    fn assertion(&mut self, task: &Task, scope: &Scope) {
        let Action::Module { name, args } = &task.action else { return };
        let taken_over = task.ignore_errors.is_some() || task.failed_when.is_some() || !task.until.is_empty();
        if taken_over || task.retries.is_some() || task.delegate_to.is_some() || task.run_once || name != "assert" {
            return;
        }
        // What is wrong with the arguments themselves has been told.
        let Ok(args) = render_args(name, args, scope) else { return };
        if let Some(failure) = crate::modules::assert::refusal(&args) {
            let mut name = task.name.as_ref().and_then(Node::as_str).unwrap_or_default().to_owned();
            if !name.is_empty() {
                name.push_str(": ");
            }
            self.found.push(Diagnostic::error(task.span, format!("{name}{}", failure.message)));
        }
    }

    fn template(&mut self, task: &Task, src: &str, scope: &Scope) {
        let bundle = &self.context.bundle;
        let search = bundle.search(task.role, self.play.span, SearchKind::Templates);
        let Some((path, entry)) = bundle.find_file(&search, src) else {
            self.found.push(Diagnostic::error(task.span, format!("no template '{src}'")));
            return;
        };
        let text = |hash: &str| (self.fetch)(hash).and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(source) = text(&entry.hash) else { return };
        let id = |path: &std::path::Path| {
            let at = bundle.sources.iter().position(|p| p == path);
            at.and_then(|i| u32::try_from(i).ok()).map_or(crate::diag::FileId::NONE, crate::diag::FileId)
        };
        let load = |name: &str| {
            let (path, entry) = bundle.find_file(&search, name)?;
            text(&entry.hash).map(|t| (id(path), t))
        };
        let name = path.display().to_string();
        let source = TemplateSource { name: &name, file: id(path), text: &source };
        if let Err(EvalError::Wrong(diagnostic)) =
            template::render_template(TemplateKind::of(path), &source, scope, &load)
        {
            self.found.push(diagnostic);
        }
    }

    /// Values depend on the run; the names need not.
    fn names(&mut self, task: &Task, scope: &Scope) {
        let guarded = guards(task);
        let mut local: HashSet<&str> = HashSet::new();
        if let Some(looped) = &task.loop_ {
            local.insert(&looped.var);
            local.extend(looped.index_var.as_deref());
        }
        let mut nodes: Vec<&Node> = task.environment.iter().collect();
        if let Action::Module { args, name } = &task.action {
            if name == "assert" {
                return;
            }
            nodes.push(args);
        }
        for node in nodes {
            let mut strings = Vec::new();
            texts(node, &mut strings);
            for (text, span) in strings {
                let Ok(references) = template::text_references(text, span) else { continue };
                for reference in references.required {
                    let name = reference.split('.').next().unwrap_or(&reference);
                    if scope.get(name).is_some() || local.contains(name) || guarded.contains(name) {
                        continue;
                    }
                    let diagnostic = Diagnostic::error(span, format!("'{name}' is undefined"));
                    self.found.push(match nearest(name, scope.names()) {
                        Some(near) => diagnostic.hint(format!("did you mean '{near}'?")),
                        None => diagnostic,
                    });
                }
            }
        }
    }
}

/// Names that a task's conditions ask about: they may be undefined where the condition does not hold.
fn guards(task: &Task) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for expression in &task.when {
        if expression.text.contains("defined")
            && let Ok(references) = template::expression_references(&expression.text, expression.span)
        {
            names.extend(
                references
                    .optional
                    .iter()
                    .chain(&references.required)
                    .filter_map(|r| r.split('.').next().map(str::to_owned)),
            );
        }
    }
    names
}

fn texts<'a>(node: &'a Node, out: &mut Vec<(&'a str, crate::diag::Span)>) {
    match &node.kind {
        Kind::Str(text) => out.push((text, node.span)),
        Kind::List(items) => items.iter().for_each(|n| texts(n, out)),
        Kind::Map(entries) => entries.iter().for_each(|(_, n)| texts(n, out)),
        _ => {}
    }
}
