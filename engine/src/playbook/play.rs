//! Plays.

use std::{path::Path, sync::Arc};

use serde_json::Value;

use super::{
    keywords::On,
    load::{Cx, State},
    model::{BatchSize, Gate, Handler, Inherit, Item, Play},
    syntax,
};
use crate::{
    diag::{Diagnostic, Span},
    node::{Kind, Node},
    vars::{Layer, Scope, Vars},
};

impl State<'_> {
    /// Reads a play of the playbook `path`.
    pub(super) fn play(&mut self, node: &Node, path: &Path) -> Option<Play> {
        if !matches!(node.kind, Kind::Map(_)) {
            self.out.push(node.expected("a play (a mapping with 'hosts')"));
            return None;
        }
        if node.get("hosts").is_none() && ["name", "tasks", "roles"].iter().all(|k| node.get(k).is_none()) {
            let looks_like_task = node.map().ok()?.iter().any(|(k, _)| crate::modules::find(&k.name).is_some());
            if looks_like_task {
                self.out.push(
                    Diagnostic::error(node.span, "this is a task, where a play is expected")
                        .hint("a file of tasks is used by import_tasks; a play has 'hosts' and 'tasks'"),
                );
                return None;
            }
        }
        self.check_keys(On::Play, node, &[]);
        let mut play = self.play_head(node)?;
        let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
        self.known = Scope::of(play.vars.clone()).with(self.loader.extra.clone());
        play.vars_files = Arc::new(self.vars_files(node, &dir));
        self.known = Scope::of(play.vars.clone()).with(play.vars_files.clone()).with(self.loader.extra.clone());
        self.bundle.sources = self.loader.sources.paths();
        for folder in ["files", "templates"] {
            self.take_in(&dir.join(folder), node.span);
        }
        let inherit = self.inherit(node, Layer::Play);
        let inherit = Inherit { vars: Vec::new(), ..inherit };
        let cx = Cx {
            dir,
            play: node.span,
            role: None,
            handlers: false,
            files: vec![path.to_path_buf()],
            defaulted: Self::defaulted(node),
        };
        play.pre_tasks = self.section(node, "pre_tasks", &cx);
        let mut tasks = self.play_roles(node, &cx);
        tasks.extend(self.section(node, "tasks", &cx));
        play.tasks = tasks;
        play.post_tasks = self.section(node, "post_tasks", &cx);
        let of_roles = std::mem::take(&mut self.handlers);
        if let Some(list) = present(node, "handlers") {
            self.handler_list(list, &Cx { handlers: true, ..cx.clone() });
        }
        self.handlers.extend(of_roles);
        self.settle(&mut play);
        for list in [&mut play.pre_tasks, &mut play.tasks, &mut play.post_tasks] {
            inherit.lay_on(list);
        }
        for handler in &mut play.handlers {
            inherit.lay_on_task(&mut handler.task);
        }
        Some(play)
    }

    fn play_head(&mut self, node: &Node) -> Option<Play> {
        let Some(hosts) = present(node, "hosts") else {
            self.out.push(
                Diagnostic::error(node.span, "a play needs 'hosts'")
                    .hint("a pattern of the inventory: hosts: consul_servers"),
            );
            return None;
        };
        let patterns: Vec<String> =
            hosts.one_or_many().into_iter().filter_map(|n| self.told(n.scalar_text())).collect();
        if patterns.is_empty() || patterns.iter().any(|p| p.trim().is_empty()) {
            self.out
                .push(Diagnostic::error(hosts.span, "'hosts' is empty").hint("a pattern of the inventory, or 'all'"));
            return None;
        }
        self.check_text(hosts);
        let joined = patterns.join(",");
        let name = present(node, "name").and_then(|n| self.told(n.scalar_text())).unwrap_or_else(|| joined.clone());
        let mut play_vars = present(node, "vars").map(|n| self.vars(n, Layer::Play)).unwrap_or_default();
        play_vars.extend(self.given.clone());
        self.known = Scope::of(play_vars.clone()).with(self.loader.extra.clone());
        self.strategy(node);
        let flag = |state: &mut Self, key: &str, default: bool| {
            present(node, key).and_then(|n| state.known_bool(n, key)).unwrap_or(default)
        };
        for key in ["remote_user", "port"] {
            if let Some(value) = present(node, key) {
                self.check_text(value);
                self.told(value.scalar_text());
            }
        }
        Some(Play {
            name,
            span: node.span,
            hosts: Node { span: hosts.span, kind: Kind::Str(joined) },
            serial: present(node, "serial").map(|n| self.serial(n)).unwrap_or_default(),
            max_fail_percentage: present(node, "max_fail_percentage").and_then(|n| self.percentage(n)),
            any_errors_fatal: flag(self, "any_errors_fatal", false),
            ignore_unreachable: flag(self, "ignore_unreachable", false),
            gather_facts: flag(self, "gather_facts", true),
            vars: Arc::new(play_vars),
            vars_files: Arc::default(),
            remote_user: present(node, "remote_user").cloned(),
            port: present(node, "port").cloned(),
            pre_tasks: Vec::new(),
            tasks: Vec::new(),
            post_tasks: Vec::new(),
            handlers: Vec::new(),
            public: Vec::new(),
        })
    }

    fn strategy(&mut self, node: &Node) {
        let Some(value) = present(node, "strategy") else { return };
        match value.as_str().map(|s| s.strip_prefix("ansible.builtin.").unwrap_or(s)) {
            Some("free") => {}
            Some("linear") => self.out.push(
                Diagnostic::warning(value.span, "hosts do not wait for each other after each task here")
                    .hint("use serial, run_once or a second play where they must"),
            ),
            Some(other) => self.out.push(
                Diagnostic::error(value.span, format!("strategy '{other}' is not taken"))
                    .hint("leave it out: hosts run free between barriers"),
            ),
            None => self.out.push(value.expected("the name of a strategy")),
        }
    }

    fn serial(&mut self, node: &Node) -> Vec<BatchSize> {
        let Some(value) = self.known_value(node, "'serial'") else { return Vec::new() };
        let spans: Vec<Span> = match &node.kind {
            Kind::List(items) => items.iter().map(|n| n.span).collect(),
            _ => vec![node.span],
        };
        let values = match value {
            Value::Array(values) => values,
            other => vec![other],
        };
        if values.is_empty() {
            self.out.push(Diagnostic::error(node.span, "'serial' is an empty list"));
        }
        let single = values.len() == 1;
        let mut sizes = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let text = match value {
                Value::String(s) => s.trim().to_owned(),
                other => other.to_string(),
            };
            let percent = text.strip_suffix('%').and_then(|p| p.trim().parse::<f64>().ok());
            match (percent, text.parse::<usize>()) {
                (Some(p), _) if p > 0.0 && p <= 100.0 => sizes.push(BatchSize::Percent(p)),
                (None, Ok(0)) if single => {}
                (None, Ok(n)) if n > 0 => sizes.push(BatchSize::Count(n)),
                _ => {
                    let span = spans.get(index).copied().unwrap_or(node.span);
                    self.out.push(
                        Diagnostic::error(span, format!("'serial' cannot be '{text}'"))
                            .hint("a number of hosts, a percentage like \"30%\", or a list of them"),
                    );
                }
            }
        }
        sizes
    }

    fn percentage(&mut self, node: &Node) -> Option<f64> {
        let value = self.known_value(node, "'max_fail_percentage'")?;
        let number = match &value {
            Value::Number(n) => n.as_f64(),
            Value::String(s) => s.trim().trim_end_matches('%').parse().ok(),
            _ => None,
        };
        let wrong = Diagnostic::error(node.span, "'max_fail_percentage' must be a number from 0 to 100");
        self.told(number.filter(|n| (0.0..=100.0).contains(n)).ok_or(wrong))
    }

    /// The variables of `vars_files`, later files first in line.
    fn vars_files(&mut self, node: &Node, dir: &Path) -> Vars {
        let mut all = Vars::new();
        let Some(list) = present(node, "vars_files") else { return all };
        for entry in list.one_or_many() {
            // A list inside the list: the first file that is there.
            let candidates = entry.one_or_many();
            let mut names = Vec::new();
            for candidate in candidates {
                let Some(name) = self.known_text(candidate, "the name of a vars file") else { continue };
                names.push(name);
            }
            if names.is_empty() {
                continue;
            }
            let paths: Vec<_> = names.iter().map(|n| super::files::shown(&dir.join(n))).collect();
            let Some(path) = paths.iter().find(|p| self.tree.is_file(p)) else {
                let near = paths[0].parent().map(Self::siblings).unwrap_or_default();
                let base = paths[0].file_name().unwrap_or_default().to_string_lossy().into_owned();
                let shown: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
                let wrong = Diagnostic::error(entry.span, format!("vars file {} does not exist", shown.join(" or ")));
                self.out.push(super::files::hint_file(wrong, &base, &near));
                continue;
            };
            if let Some(tree) = self.yaml(path, entry.span) {
                all.extend(self.vars(&tree, Layer::VarsFiles));
            }
        }
        all
    }

    /// A list of tasks of a play.
    fn section(&mut self, node: &Node, key: &str, cx: &Cx) -> Vec<Item> {
        present(node, key).map(|list| self.items(list, cx)).unwrap_or_default()
    }

    /// Reads handlers into [`State::handlers`].
    pub(super) fn handler_list(&mut self, list: &Node, cx: &Cx) {
        let entries = match &list.kind {
            Kind::List(entries) => entries,
            Kind::Null => return,
            _ => {
                self.out.push(list.expected("a list of handlers"));
                return;
            }
        };
        for node in entries {
            if node.get("block").is_some() {
                self.out.push(Diagnostic::error(node.span, "a handler cannot be a block").hint("use include_tasks"));
                continue;
            }
            let mut items = Vec::new();
            self.task(node, cx, &mut items);
            let turns = present(node, "serial").and_then(|n| self.known_count(n, "serial"));
            let gate = present(node, "gate").and_then(|n| self.gate(n));
            // A gate is asked between turns: without a number, one host takes its turn at a time.
            let turns = turns.or(gate.map(|_| 1));
            let after = present(node, "after").and_then(|n| self.after(n));
            let listen = self.strings(node, "listen");
            let single = items.len() == 1;
            for item in items {
                let Item::Task(task) = item else {
                    self.out.push(Diagnostic::error(node.span, "a handler cannot be a block"));
                    continue;
                };
                if single && task.name.is_none() && listen.is_empty() {
                    self.out.push(
                        Diagnostic::error(node.span, "a handler needs a name or 'listen'")
                            .hint("nothing could notify it"),
                    );
                }
                let after = after.clone();
                self.handlers.push(Handler { task: *task, listen: listen.clone(), serial: turns, gate, after });
            }
        }
    }

    fn gate(&mut self, node: &Node) -> Option<Gate> {
        match node.as_str() {
            Some("consul") => Some(Gate::Consul),
            Some("nomad") => Some(Gate::Nomad),
            other => {
                let wrong = Diagnostic::error(node.span, "'gate' must be consul or nomad");
                self.out.push(wrong.nearest(other.unwrap_or_default(), ["consul", "nomad"]));
                None
            }
        }
    }

    /// Names of hosts: a text, a list of texts, or an expression that gives either.
    fn after(&mut self, node: &Node) -> Option<Node> {
        if let Some(wrong) = node.one_or_many().into_iter().find(|name| name.as_str().is_none()) {
            self.out.push(wrong.expected("the name of a host, or an expression that gives names of hosts"));
            return None;
        }
        Some(node.clone())
    }

    /// A string or a list of strings under a key.
    pub(super) fn strings(&mut self, node: &Node, key: &str) -> Vec<String> {
        let Some(value) = present(node, key) else { return Vec::new() };
        let mut out = Vec::new();
        for item in value.one_or_many() {
            match item.scalar_text() {
                Ok(text) if !syntax::braces(&text) => out.push(text),
                Ok(_) => {
                    if let Some(text) = self.known_text(item, &format!("'{key}'")) {
                        out.push(text);
                    }
                }
                Err(wrong) => self.out.push(wrong),
            }
        }
        out
    }
}

/// A key's value that is not null.
pub(super) fn present<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    node.get(key).filter(|n| !n.is_null())
}
