//! What tasks ask of other hosts: every `hostvars[…].NAME` in them, in their variables and in their templates where NAME
//! is a fact or is set by the run. It is looked for before the run, so that all hosts agree on where they have to wait
//! for each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    model::{Action, AskedOfOthers, Bundle, Expr, FileEntry, Inherit, Item, Task},
    syntax,
};
use crate::{
    node::{Kind, Node},
    template::{self, HostReferences, TemplateKind},
    vars::{Binding, Vars, hosts::FACTS},
};

/// Variables that tasks ask for without naming them.
const IMPLIED: &[&str] = &["ansible_become", "ansible_become_user"];

/// Finds out what tasks ask of other hosts and writes it into [`Bundle::others`].
///
/// `layers` are variables from outside the playbooks: the inventory's and `-e`. `read` gives the text of a template. A
/// variable counts by its name, wherever it is set. To be called after [`select_tags`](super::select_tags).
pub fn note_others(bundle: &mut Bundle, layers: &[Arc<Vars>], read: &dyn Fn(&FileEntry) -> Option<String>) {
    let mut parts = Parts::default();
    parts.bundle(bundle);
    for layer in layers {
        parts.vars(layer);
    }
    let mut search =
        Search { set_by: parts.set_by, marked: BTreeMap::new(), files: &bundle.files, read, templates: HashMap::new() };
    search.mark(&parts.variables);
    let mut others = AskedOfOthers::default();
    for task in parts.tasks {
        let names = search.task(task);
        if !names.is_empty() {
            others.by_task.insert(task.id, names);
        }
        if let Action::IncludeTasks { inherit, .. } = &task.action {
            let names = search.inherited(inherit);
            if !names.is_empty() {
                others.inside.insert(task.id, names);
            }
        }
    }
    others.set_by = Arc::new(search.set_by);
    bundle.others = others;
}

/// All tasks and variables of a bundle.
#[derive(Default)]
struct Parts<'a> {
    tasks: Vec<&'a Task>,
    variables: Vec<(&'a str, &'a Node)>,
    set_by: BTreeMap<String, String>,
    /// Addresses of layers that were taken: tasks of a block share theirs.
    seen: HashSet<usize>,
}

impl<'a> Parts<'a> {
    fn bundle(&mut self, bundle: &'a Bundle) {
        for play in &bundle.plays {
            self.vars(&play.vars);
            self.vars(&play.vars_files);
            for items in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
                self.items(bundle, items);
            }
            for handler in &play.handlers {
                self.task(bundle, &handler.task);
            }
        }
        for role in &bundle.roles {
            for layer in [&role.defaults, &role.vars, &role.params] {
                self.vars(layer);
            }
        }
        for items in bundle.task_files.values() {
            self.items(bundle, items);
        }
        for file in bundle.vars_files.values() {
            let entries = file.map().unwrap_or_default();
            self.variables.extend(entries.iter().map(|(key, value)| (key.name.as_str(), value)));
        }
    }

    fn vars(&mut self, layer: &'a Arc<Vars>) {
        if !self.seen.insert(Arc::as_ptr(layer) as usize) {
            return;
        }
        for (name, var) in layer.iter() {
            if let Binding::Raw(node) = &var.binding {
                self.variables.push((name, node));
            }
        }
    }

    fn items(&mut self, bundle: &'a Bundle, items: &'a [Item]) {
        for item in items {
            match item {
                Item::Task(task) => self.task(bundle, task),
                Item::Block(block) => {
                    for part in [&block.block, &block.rescue, &block.always] {
                        self.items(bundle, part);
                    }
                }
            }
        }
    }

    fn task(&mut self, bundle: &'a Bundle, task: &'a Task) {
        self.tasks.push(task);
        task.vars.iter().for_each(|layer| self.vars(layer));
        let mut set: Vec<&str> = task.register.as_deref().into_iter().collect();
        match &task.action {
            Action::Module { name, args } if name == "set_fact" => {
                let names = args.map().unwrap_or_default().iter().map(|(key, _)| key.name.as_str());
                set.extend(names.filter(|name| !syntax::braces(name)));
            }
            Action::IncludeTasks { inherit, .. } => inherit.vars.iter().for_each(|layer| self.vars(layer)),
            Action::IncludeVars { name: Some(name), .. } => {
                self.variables.extend(bundle.vars_files.values().map(|file| (name.as_str(), &**file)));
            }
            _ => {}
        }
        for name in set {
            let source = bundle.sources.get(task.span.file.0 as usize);
            let path = source.map(|path| path.display().to_string()).unwrap_or_default();
            self.set_by.entry(name.to_owned()).or_insert_with(|| format!("{path}:{}", task.span.line));
        }
        task.action.role_tasks().for_each(|tasks| self.items(bundle, tasks));
    }
}

/// What a text asks for, its variables included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asks {
    names: BTreeSet<String>,
    /// It hands `hostvars` on: whoever uses it may ask for more.
    open: bool,
}

impl Asks {
    fn add(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
        self.open |= other.open;
    }
}

struct Search<'a> {
    set_by: BTreeMap<String, String>,
    /// Variables whose text asks for something.
    marked: BTreeMap<String, Asks>,
    files: &'a BTreeMap<PathBuf, FileEntry>,
    read: &'a dyn Fn(&FileEntry) -> Option<String>,
    templates: HashMap<PathBuf, HostReferences>,
}

impl Search<'_> {
    /// Marks variables until nothing is new: one may be made of another.
    fn mark(&mut self, variables: &[(&str, &Node)]) {
        loop {
            let mut grown = false;
            for (name, node) in variables {
                let mut asks = Asks::default();
                self.node(node, &mut asks);
                if asks == Asks::default() {
                    continue;
                }
                let known = self.marked.entry((*name).to_owned()).or_default();
                let before = known.clone();
                known.add(&asks);
                grown |= *known != before;
            }
            if !grown {
                return;
            }
        }
    }

    /// False for text that cannot ask for anything: most text is not taken apart.
    fn may_ask(&self, text: &str) -> bool {
        text.contains("hostvars") || self.marked.keys().any(|name| text.contains(name.as_str()))
    }

    fn is_set(&self, name: &str) -> bool {
        name == FACTS || self.set_by.contains_key(name)
    }

    fn found(&self, found: &HostReferences, asks: &mut Asks) {
        let mut own = Asks { names: found.names.clone(), open: found.open };
        found.variables.iter().filter_map(|name| self.marked.get(name)).for_each(|marked| own.add(marked));
        if own.open {
            own.names.extend(found.words.iter().cloned());
        }
        own.names.retain(|name| self.is_set(name));
        asks.add(&own);
    }

    fn expression(&self, text: &str, asks: &mut Asks) {
        if self.may_ask(text) {
            self.found(&template::host_references(text), asks);
        }
    }

    fn text(&self, text: &str, asks: &mut Asks) {
        if self.may_ask(text) {
            self.found(&template::text_host_references(text), asks);
        }
    }

    fn node(&self, node: &Node, asks: &mut Asks) {
        match &node.kind {
            Kind::Str(text) => self.text(text, asks),
            Kind::List(items) => items.iter().for_each(|item| self.node(item, asks)),
            Kind::Map(entries) => {
                for (key, value) in entries {
                    self.text(&key.name, asks);
                    self.node(value, asks);
                }
            }
            _ => {}
        }
    }

    fn nodes<'n>(&self, nodes: impl IntoIterator<Item = &'n Node>, asks: &mut Asks) {
        nodes.into_iter().for_each(|node| self.node(node, asks));
    }

    fn expressions<'n>(&self, expressions: impl IntoIterator<Item = &'n Expr>, asks: &mut Asks) {
        expressions.into_iter().for_each(|expression| self.expression(&expression.text, asks));
    }

    /// What a task asks for. What it includes is not part of it.
    fn task(&mut self, task: &Task) -> BTreeSet<String> {
        let mut asks = Asks::default();
        let mut shadowed = None;
        if let Some(looped) = &task.loop_ {
            self.nodes([&looped.items].into_iter().chain(&looped.label), &mut asks);
            if asks.open {
                // The items are hosts' variables.
                let open = Asks { open: true, ..asks.clone() };
                shadowed = Some((looped.var.clone(), self.marked.insert(looped.var.clone(), open)));
            }
        }
        self.body(task, &mut asks);
        match shadowed {
            Some((name, Some(before))) => drop(self.marked.insert(name, before)),
            Some((name, None)) => drop(self.marked.remove(&name)),
            None => {}
        }
        IMPLIED.iter().filter_map(|name| self.marked.get(*name)).for_each(|marked| asks.add(marked));
        asks.names
    }

    fn body(&mut self, task: &Task, asks: &mut Asks) {
        let judged = [&task.changed_when, &task.failed_when].into_iter().flatten().flatten();
        self.expressions(task.when.iter().chain(&task.until).chain(judged), asks);
        let single = [&task.retries, &task.delay, &task.ignore_errors, &task.delegate_to, &task.timeout];
        let single = single.into_iter().chain([&task.become_.user]).flatten();
        self.nodes(task.environment.iter().chain(&task.notify).chain(single), asks);
        match &task.action {
            Action::Module { name, args } => {
                for (key, value) in args.map().unwrap_or_default() {
                    self.text(&key.name, asks);
                    match (name.as_str(), key.name.as_str()) {
                        ("assert", "that") | ("debug", "var") => {
                            let texts = value.one_or_many().into_iter().filter_map(Node::as_str);
                            texts.for_each(|text| self.expression(text, asks));
                        }
                        _ => self.node(value, asks),
                    }
                }
                if name == "template"
                    && let Some(src) = args.get("src").and_then(Node::as_str)
                {
                    self.template(src, &mut HashSet::new(), asks);
                }
            }
            Action::IncludeTasks { file, .. } | Action::IncludeVars { file, .. } => self.node(file, asks),
            Action::IncludeRole { name: Some(name), .. } => self.node(name, asks),
            _ => {}
        }
    }

    /// What an include gives to the tasks that it draws in.
    fn inherited(&self, inherit: &Inherit) -> BTreeSet<String> {
        let mut asks = Asks::default();
        self.expressions(&inherit.when, &mut asks);
        let single = [&inherit.ignore_errors, &inherit.delegate_to, &inherit.timeout, &inherit.become_.user];
        let defaults = inherit.module_defaults.iter().map(|(_, node)| node);
        let lists = inherit.environment.iter().chain(&inherit.notify).chain(defaults);
        self.nodes(lists.chain(single.into_iter().flatten()), &mut asks);
        asks.names
    }

    /// Every template that a name can mean, and those that it draws in.
    fn template(&mut self, src: &str, open: &mut HashSet<PathBuf>, asks: &mut Asks) {
        let files = self.files;
        for (path, entry) in files.iter().filter(|(path, _)| may_mean(src, path)) {
            if !open.insert(path.clone()) {
                continue;
            }
            if !self.templates.contains_key(path) {
                let text = (self.read)(entry).unwrap_or_default();
                let draws_in = ["include", "import", "extends"].iter().any(|word| text.contains(word));
                let found = if draws_in || self.may_ask(&text) {
                    template::template_host_references(TemplateKind::of(path), &text)
                } else {
                    HostReferences::default()
                };
                self.templates.insert(path.clone(), found);
            }
            let Some(found) = self.templates.get(path).cloned() else { continue };
            self.found(&found, asks);
            for name in &found.templates {
                self.template(name, open, asks);
            }
        }
    }
}

/// True if a task that names `src` can mean this file.
fn may_mean(src: &str, path: &Path) -> bool {
    if !syntax::braces(src) {
        return path.ends_with(src);
    }
    let mut rest = path;
    while !rest.as_os_str().is_empty() {
        if syntax::may_be(src, &rest.to_string_lossy()) {
            return true;
        }
        let mut parts = rest.components();
        parts.next();
        rest = parts.as_path();
    }
    false
}
