//! Tasks and blocks.

use std::sync::Arc;

use super::{
    action::ActionName,
    keywords::{self, On},
    load::{Cx, Notified, State, is_identifier},
    model::{Action, Become, Block, Expr, Inherit, Item, Task},
    play::present,
    syntax,
};
use crate::{
    diag::{Diagnostic, Span},
    modules,
    node::{Key, Kind, Node},
    vars::Layer,
};

impl State<'_> {
    /// Reads a list of tasks.
    pub(super) fn items(&mut self, list: &Node, cx: &Cx) -> Vec<Item> {
        let mut out = Vec::new();
        match &list.kind {
            Kind::List(entries) => entries.iter().for_each(|node| self.item(node, cx, &mut out)),
            Kind::Null => {}
            Kind::Map(_) => self.out.push(
                Diagnostic::error(list.span, "expected a list of tasks, found a mapping")
                    .hint("start each task with '- '"),
            ),
            _ => self.out.push(list.expected("a list of tasks")),
        }
        out
    }

    fn item(&mut self, node: &Node, cx: &Cx, out: &mut Vec<Item>) {
        if node.get("block").is_some() {
            self.block(node, cx, out);
        } else {
            self.task(node, cx, out);
        }
    }

    fn block(&mut self, node: &Node, cx: &Cx, out: &mut Vec<Item>) {
        for (key, _) in self.keys(On::Block, node, &[]) {
            let wrong = match ActionName::of(&key.name) {
                Some(_) => {
                    Diagnostic::error(key.span, format!("a block cannot have a module ('{}') of its own", key.name))
                        .hint("make it a task of the block")
                }
                None => Diagnostic::error(key.span, format!("unknown keyword '{}' in a block", key.name))
                    .nearest(&key.name, keywords::taken_on(On::Block)),
            };
            self.out.push(wrong);
        }
        let name = self.name(node).and_then(|n| n.as_str().map(str::to_owned));
        let inherit = self.inherit(node, Layer::Block);
        self.note_notified(&inherit.notify);
        let mut inner = cx.clone();
        inner.defaulted.extend(Self::defaulted(node));
        let read = |state: &mut Self, key: &str| {
            let mut items = present(node, key).map(|list| state.items(list, &inner)).unwrap_or_default();
            inherit.lay_on(&mut items);
            items
        };
        let (block, rescue, always) = (read(self, "block"), read(self, "rescue"), read(self, "always"));
        if rescue.is_empty() && always.is_empty() {
            out.extend(block);
        } else {
            out.push(Item::Block(Box::new(Block { name, span: node.span, block, rescue, always })));
        }
    }

    /// Reads a task, or what an import stands for.
    pub(super) fn task(&mut self, node: &Node, cx: &Cx, out: &mut Vec<Item>) {
        let Kind::Map(entries) = &node.kind else {
            self.out.push(node.expected("a task (a mapping)"));
            return;
        };
        let include =
            entries.iter().filter_map(|(k, _)| ActionName::of(&k.name)).any(super::action::ActionName::is_include);
        let on = match (include, cx.handlers) {
            (true, _) => On::Include,
            (false, true) => On::Handler,
            (false, false) => On::Task,
        };
        let unknown = self.keys(on, node, if cx.handlers { &["listen", "serial", "gate", "after"] } else { &[] });
        let mut actions: Vec<(ActionName, Key, Node)> = Vec::new();
        let mut nobody = Vec::new();
        for (key, value) in unknown {
            match ActionName::of(&key.name) {
                Some(action) => actions.push((action, key.clone(), value.clone())),
                None => nobody.push((key, value)),
            }
        }
        let mut local = false;
        for name in ["action", "local_action"] {
            let Some((key, value)) = entries.iter().find(|(k, _)| k.name == name) else { continue };
            local |= name == "local_action";
            match self.old_action(key, value) {
                Some(action) => actions.push(action),
                None => return,
            }
        }
        for (key, value) in &nobody {
            self.nobody(key, value, on, actions.is_empty());
        }
        let mut actions = actions.into_iter();
        let Some(action) = actions.next() else {
            if nobody.is_empty() {
                self.out.push(
                    Diagnostic::error(node.span, "the task has no module")
                        .hint("for example: copy: {src: a, dest: /b}"),
                );
            }
            return;
        };
        if let Some((_, second, _)) = actions.next() {
            self.out.push(
                Diagnostic::error(
                    second.span,
                    format!("a task has one module, this one has '{}' and '{}'", action.1.name, second.name),
                )
                .note(action.1.span, "the first one")
                .hint("make it two tasks"),
            );
            return;
        }
        self.action(node, action, local, cx, out);
    }

    /// A key that is neither keyword nor module.
    fn nobody(&mut self, key: &Key, value: &Node, on: On, may_be_module: bool) {
        let name = &key.name;
        if let Some(instead) = keywords::instead_of_module(name).filter(|_| may_be_module) {
            self.out.push(Diagnostic::error(key.span, format!("module '{name}' is not taken yet")).hint(instead));
            return;
        }
        if name.starts_with("with_") {
            self.out.push(
                Diagnostic::error(key.span, format!("keyword '{name}' is not taken yet"))
                    .hint("write loop with an expression that gives the list"),
            );
            return;
        }
        let known: Vec<&str> = keywords::taken_on(on).collect();
        let modules: Vec<&str> = modules::names().chain(super::action::SPECIAL.iter().copied()).collect();
        let looks_like_module = matches!(value.kind, Kind::Map(_)) || name.contains('.');
        let wrong = if !may_be_module {
            Diagnostic::error(key.span, format!("unknown keyword '{name}' in {}", on.describe())).nearest(name, known)
        } else if looks_like_module {
            let short = name.rsplit('.').next().unwrap_or(name);
            Diagnostic::error(key.span, format!("unknown module '{name}'"))
                .nearest(short, modules.into_iter().chain(known))
        } else {
            Diagnostic::error(key.span, format!("unknown keyword or module '{name}'"))
                .nearest(name, known.into_iter().chain(modules))
        };
        self.out.push(wrong);
    }

    /// A task's name; text of any kind.
    fn name(&mut self, node: &Node) -> Option<Node> {
        let name = present(node, "name")?;
        let text = self.told(name.scalar_text().map_err(|_| name.expected("a name (a string)")))?;
        let name = Node { span: name.span, kind: Kind::Str(text) };
        self.check_text(&name);
        Some(name)
    }

    /// The task around an action.
    pub(super) fn build(&mut self, node: &Node, action: Action, layer: Layer) -> Task {
        let id = self.next_id();
        let common = self.inherit(node, layer);
        self.note_notified(&common.notify);
        let maybe = |state: &mut Self, key: &str| present(node, key).map(|n| state.conditions(n, key));
        let (changed_when, failed_when) = (maybe(self, "changed_when"), maybe(self, "failed_when"));
        let until = maybe(self, "until").unwrap_or_default();
        Task {
            id,
            name: self.name(node),
            span: node.span,
            role: None,
            action,
            when: common.when,
            tags: common.tags,
            vars: common.vars,
            become_: common.become_,
            environment: common.environment,
            loop_: self.loop_(node),
            register: self.register(node),
            until,
            retries: self.number(node, "retries"),
            delay: self.number(node, "delay"),
            changed_when,
            failed_when,
            notify: common.notify,
            ignore_errors: common.ignore_errors,
            check_mode: common.check_mode,
            diff: common.diff,
            no_log: common.no_log,
            delegate_to: common.delegate_to,
            run_once: common.run_once,
            any_errors_fatal: common.any_errors_fatal,
            timeout: common.timeout,
            throttle: common.throttle,
        }
    }

    fn register(&mut self, node: &Node) -> Option<String> {
        let value = present(node, "register")?;
        let name = self.told(value.string())?;
        if !is_identifier(name) {
            self.out.push(
                Diagnostic::error(value.span, format!("'{name}' is no name for a variable"))
                    .hint("names are letters, digits and _, and do not start with a digit"),
            );
            return None;
        }
        Some(name.to_owned())
    }

    /// A number from 0, or an expression.
    fn number(&mut self, node: &Node, key: &str) -> Option<Node> {
        let value = present(node, key)?;
        let ok = match &value.kind {
            Kind::Int(n) => *n >= 0,
            Kind::Float(n) => *n >= 0.0 && n.is_finite(),
            Kind::Str(text) if syntax::braces(text) => true,
            Kind::Str(text) => text.trim().parse::<f64>().is_ok_and(|n| n >= 0.0 && n.is_finite()),
            _ => false,
        };
        if !ok {
            self.out.push(Diagnostic::error(value.span, format!("'{key}' must be a number from 0, or an expression")));
            return None;
        }
        self.check_text(value);
        Some(value.clone())
    }

    /// What a task, block, play or role entry says that can be inherited.
    pub(super) fn inherit(&mut self, node: &Node, layer: Layer) -> Inherit {
        let flag = |state: &mut Self, key: &str| present(node, key).and_then(|n| state.known_bool(n, key));
        let (no_log, run_once) = (flag(self, "no_log"), flag(self, "run_once"));
        let (check_mode, diff) = (flag(self, "check_mode"), flag(self, "diff"));
        let any_errors_fatal = flag(self, "any_errors_fatal");
        Inherit {
            role: None,
            when: present(node, "when").map(|n| self.conditions(n, "when")).unwrap_or_default(),
            tags: self.tags(node),
            vars: present(node, "vars").map(|n| vec![Arc::new(self.vars(n, layer))]).unwrap_or_default(),
            become_: self.becoming(node),
            environment: self.environment(node),
            notify: self.notify(node),
            ignore_errors: self.boolean_or_expression(node, "ignore_errors"),
            check_mode,
            diff,
            no_log: no_log.unwrap_or(false),
            delegate_to: self.text_or_expression(node, "delegate_to"),
            run_once: run_once.unwrap_or(false),
            any_errors_fatal: any_errors_fatal.unwrap_or(false),
            timeout: self.number(node, "timeout"),
            throttle: present(node, "throttle").and_then(|n| self.known_count(n, "throttle")),
            module_defaults: self.module_defaults(node),
        }
    }

    fn tags(&mut self, node: &Node) -> Vec<String> {
        let mut tags: Vec<String> = Vec::new();
        for text in self.strings(node, "tags") {
            for tag in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
                if !tags.iter().any(|t| t == tag) {
                    tags.push(tag.to_owned());
                }
            }
        }
        tags
    }

    fn becoming(&mut self, node: &Node) -> Become {
        if let Some(method) = present(node, "become_method") {
            let name = method.as_str().map(|m| m.strip_prefix("ansible.builtin.").unwrap_or(m));
            if name != Some("sudo") {
                let shown = name.unwrap_or("this");
                self.out.push(
                    Diagnostic::error(method.span, format!("become_method '{shown}' is not taken"))
                        .hint("only sudo is; leave it out"),
                );
            }
        }
        let enabled = present(node, "become").and_then(|n| self.known_bool(n, "become"));
        Become { enabled, user: self.text_or_expression(node, "become_user") }
    }

    fn text_or_expression(&mut self, node: &Node, key: &str) -> Option<Node> {
        let value = present(node, key)?;
        let text = self.told(value.scalar_text().map_err(|_| value.expected(&format!("a string for '{key}'"))))?;
        if text.trim().is_empty() {
            self.out.push(Diagnostic::error(value.span, format!("'{key}' is empty")));
            return None;
        }
        let value = Node { span: value.span, kind: Kind::Str(text) };
        self.check_text(&value);
        Some(value)
    }

    fn boolean_or_expression(&mut self, node: &Node, key: &str) -> Option<Node> {
        let value = present(node, key)?;
        match &value.kind {
            Kind::Bool(_) => Some(value.clone()),
            Kind::Str(text) if syntax::braces(text) => {
                self.check_text(value);
                Some(value.clone())
            }
            _ => {
                self.out.push(value.expected(&format!("true, false or an expression for '{key}'")));
                None
            }
        }
    }

    fn environment(&mut self, node: &Node) -> Vec<Node> {
        let Some(value) = present(node, "environment") else { return Vec::new() };
        let mut maps = Vec::new();
        for map in value.one_or_many() {
            match &map.kind {
                Kind::Map(entries) => {
                    for (key, value) in entries {
                        let bad_name = key.name.is_empty() || key.name.contains(['=', '\0']);
                        if bad_name {
                            self.out.push(Diagnostic::error(key.span, "this is no name for an environment variable"));
                        }
                        if matches!(value.kind, Kind::List(_) | Kind::Map(_)) {
                            self.out.push(value.expected("a string for an environment variable"));
                        }
                    }
                    self.check_text(map);
                    maps.push(map.clone());
                }
                Kind::Str(text) if syntax::single(text).is_some() => {
                    self.check_text(map);
                    maps.push(map.clone());
                }
                _ => self.out.push(map.expected("environment variables (a mapping)")),
            }
        }
        maps
    }

    fn notify(&mut self, node: &Node) -> Vec<Node> {
        let Some(value) = present(node, "notify") else { return Vec::new() };
        let mut names = Vec::new();
        for name in value.one_or_many() {
            match &name.kind {
                Kind::Str(_) => {
                    self.check_text(name);
                    names.push(name.clone());
                }
                _ => self.out.push(name.expected("the name of a handler")),
            }
        }
        names
    }

    /// Remembers literal notifications until the play's handlers are known.
    pub(super) fn note_notified(&mut self, names: &[Node]) {
        for name in names {
            if let Some(text) = name.as_str().filter(|t| !syntax::braces(t)) {
                self.notified.push(Notified { name: text.to_owned(), span: name.span });
            }
        }
    }

    fn module_defaults(&mut self, node: &Node) -> Vec<(String, Node)> {
        let Some(value) = present(node, "module_defaults") else { return Vec::new() };
        let Kind::Map(entries) = &value.kind else {
            self.out.push(value.expected("arguments by module (a mapping)"));
            return Vec::new();
        };
        let mut out = Vec::new();
        for (key, args) in entries {
            let Some(definition) = modules::find(&key.name) else {
                let wrong = Diagnostic::error(key.span, format!("unknown module '{}'", key.name));
                self.out.push(if key.name.starts_with("group/") {
                    wrong.hint("groups of modules are not taken yet: name each module")
                } else {
                    wrong.nearest(&key.name, modules::names())
                });
                continue;
            };
            match &args.kind {
                Kind::Map(entries) => {
                    self.check_arguments(definition, entries, args.span, None);
                    out.push((definition.name.to_owned(), args.clone()));
                }
                Kind::Null => {}
                _ => self.out.push(args.expected("arguments (a mapping)")),
            }
        }
        out
    }

    /// The names that `module_defaults` give, so that nothing is called missing that they give.
    pub(super) fn defaulted(node: &Node) -> Vec<(String, Vec<String>)> {
        let Some(Kind::Map(entries)) = present(node, "module_defaults").map(|n| &n.kind) else { return Vec::new() };
        entries
            .iter()
            .filter_map(|(key, args)| {
                let names = args.map().ok()?.iter().map(|(k, _)| k.name.clone()).collect();
                Some((modules::find(&key.name)?.name.to_owned(), names))
            })
            .collect()
    }

    /// Conditions: text without braces, a boolean, or a list of them.
    pub(super) fn conditions(&mut self, node: &Node, key: &str) -> Vec<Expr> {
        let mut out = Vec::new();
        for item in node.one_or_many() {
            match &item.kind {
                Kind::Bool(b) => out.push(Expr { text: b.to_string(), span: item.span }),
                Kind::Str(text) => out.extend(self.condition(text, item.span, key)),
                Kind::List(_) => out.extend(self.conditions(item, key)),
                _ => self.out.push(
                    Diagnostic::error(item.span, format!("'{key}' must be a condition, found {}", item.describe()))
                        .hint("a condition gives true or false: x is defined, a == 'b'"),
                ),
            }
        }
        out
    }

    fn condition(&mut self, text: &str, span: Span, key: &str) -> Option<Expr> {
        let mut text = text.trim();
        if text.is_empty() {
            self.out.push(Diagnostic::error(span, format!("'{key}' is empty")));
            return None;
        }
        if let Some(inner) = syntax::single(text) {
            self.out.push(
                Diagnostic::warning(span, format!("'{key}' is an expression already: the braces are not needed"))
                    .hint(format!("write {key}: {inner}")),
            );
            text = inner;
        } else if syntax::braces(text) {
            self.out.push(
                Diagnostic::error(span, format!("'{key}' is an expression already: braces cannot stand in it"))
                    .hint("write names without braces: x == y, and join text with ~"),
            );
            return None;
        }
        self.told(syntax::expression(text, span))?;
        let literal_text = text.len() > 1
            && (text.starts_with('\'') || text.starts_with('"'))
            && text.ends_with(&text[..1])
            && !text[1..text.len() - 1].contains(&text[..1]);
        let word = ["yes", "no", "on", "off"].contains(&text.to_lowercase().as_str());
        if word || literal_text || text.parse::<f64>().is_ok() {
            self.out.push(
                Diagnostic::error(span, format!("'{key}' must give true or false, {text} does not")).hint(if word {
                    "write true or false, without quotes"
                } else {
                    "compare it with something"
                }),
            );
            return None;
        }
        Some(Expr { text: text.to_owned(), span })
    }
}
