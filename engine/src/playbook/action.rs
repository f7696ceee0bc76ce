//! What a task does: the module and its arguments in all their forms.

use std::path::Path;

use super::{
    load::{Cx, State, is_identifier},
    model::{Action, Item, SearchKind},
    syntax, words,
};
use crate::{
    diag::{Diagnostic, Span},
    modules::{self, Definition, FreeForm, Needs},
    node::{Key, Kind, Node},
    vars::Layer,
};

/// Actions that are no modules.
pub(super) const SPECIAL: &[&str] =
    &["meta", "import_tasks", "include_tasks", "import_role", "include_role", "include_vars"];

/// Arguments that may stand among the words of a free form (`command: make creates=/x`).
const AMONG_WORDS: &[&str] =
    &["creates", "removes", "chdir", "executable", "stdin", "stdin_add_newline", "strip_empty_ends"];

/// What a key of a task names.
#[derive(Clone, Copy, Debug)]
pub(super) enum ActionName {
    Module(&'static Definition),
    Meta,
    ImportTasks,
    IncludeTasks,
    ImportRole,
    IncludeRole,
    IncludeVars,
}

impl ActionName {
    pub(super) fn of(name: &str) -> Option<Self> {
        let short =
            name.strip_prefix("ansible.builtin.").or_else(|| name.strip_prefix("ansible.legacy.")).unwrap_or(name);
        Some(match short {
            "meta" => Self::Meta,
            "import_tasks" => Self::ImportTasks,
            "include_tasks" => Self::IncludeTasks,
            "import_role" => Self::ImportRole,
            "include_role" => Self::IncludeRole,
            "include_vars" => Self::IncludeVars,
            _ => Self::Module(modules::find(name)?),
        })
    }

    pub(super) fn is_include(self) -> bool {
        matches!(self, Self::IncludeTasks | Self::IncludeRole)
    }
}

impl State<'_> {
    /// `action: copy src=a dest=b`, or a mapping with `module`.
    pub(super) fn old_action(&mut self, key: &Key, value: &Node) -> Option<(ActionName, Key, Node)> {
        let (name, args) = match &value.kind {
            Kind::Str(text) => {
                let text = text.trim();
                let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
                let rest = rest.trim();
                let kind = if rest.is_empty() { Kind::Null } else { Kind::Str(rest.to_owned()) };
                (name.to_owned(), Node { span: value.span, kind })
            }
            Kind::Map(entries) => {
                let Some(module) = value.get("module").and_then(Node::as_str) else {
                    self.out.push(Diagnostic::error(value.span, format!("'{}' needs 'module'", key.name)));
                    return None;
                };
                let rest = entries.iter().filter(|(k, _)| k.name != "module").cloned().collect();
                (module.to_owned(), Node { span: value.span, kind: Kind::Map(rest) })
            }
            _ => {
                self.out.push(value.expected(&format!("a module and its arguments for '{}'", key.name)));
                return None;
            }
        };
        let Some(action) = ActionName::of(&name) else {
            // There are too many to name them all.
            let near = crate::diag::nearest(&name, modules::names().chain(SPECIAL.iter().copied()));
            let hint =
                near.map_or("`controller doc` lists the modules".to_owned(), |near| format!("did you mean '{near}'?"));
            self.out.push(Diagnostic::error(value.span, format!("unknown module '{name}'")).hint(hint));
            return None;
        };
        Some((action, Key { name, span: key.span }, args))
    }

    /// Reads what the task does, and appends the task or what it imports.
    pub(super) fn action(
        &mut self,
        node: &Node,
        (name, key, value): (ActionName, Key, Node),
        local: bool,
        cx: &Cx,
        out: &mut Vec<Item>,
    ) {
        if let (ActionName::ImportTasks | ActionName::ImportRole, Some((bad, _))) = (name, loops_and_results(node)) {
            self.out.push(
                Diagnostic::error(bad.span, format!("'{}' cannot stand on '{}'", bad.name, key.name)).hint(format!(
                    "an import is unfolded before the run; use {}",
                    key.name.replace("import", "include")
                )),
            );
            return;
        }
        match name {
            ActionName::Module(definition) => {
                let args = self.module_args(definition, &key, &value, node, cx);
                let Some(args) = args else { return };
                self.check_source(definition, &args, cx);
                let action = Action::Module { name: definition.name.to_owned(), args };
                let mut task = self.build(node, action, Layer::Task);
                if local {
                    if let Some(other) = &task.delegate_to {
                        self.out
                            .push(Diagnostic::error(other.span, "'local_action' and 'delegate_to' exclude each other"));
                    }
                    task.delegate_to = Some(Node { span: key.span, kind: Kind::Str("localhost".into()) });
                }
                out.push(Item::Task(Box::new(task)));
            }
            ActionName::Meta => {
                if let Some(action) = self.meta(&value) {
                    let task = self.build(node, action, Layer::Task);
                    out.push(Item::Task(Box::new(task)));
                }
            }
            ActionName::ImportTasks => self.import_tasks(node, &value, cx, out),
            ActionName::IncludeTasks => self.include_tasks(node, &value, cx, out),
            ActionName::ImportRole => self.named_role(node, &value, false, cx, out),
            ActionName::IncludeRole => self.named_role(node, &value, true, cx, out),
            ActionName::IncludeVars => self.include_vars(node, &value, cx, out),
        }
    }

    fn meta(&mut self, value: &Node) -> Option<Action> {
        const KNOWN: &[&str] = &["flush_handlers", "end_host", "end_play", "noop"];
        let text = self.told(value.string())?.trim();
        match text {
            "flush_handlers" => Some(Action::FlushHandlers),
            "end_host" => Some(Action::EndHost),
            "end_play" => Some(Action::EndPlay),
            "noop" => Some(Action::Noop),
            "clear_facts" | "clear_host_errors" | "refresh_inventory" | "reset_connection" | "end_batch"
            | "end_role" => {
                let hint = match text {
                    "clear_facts" => "facts are gathered anew in each run",
                    "clear_host_errors" => "use rescue",
                    "refresh_inventory" => "start a second run",
                    "reset_connection" => "start a second run: there is one connection per host",
                    "end_batch" => "use meta: end_host",
                    _ => "use when on a block",
                };
                self.out.push(Diagnostic::error(value.span, format!("meta: {text} is not taken yet")).hint(hint));
                None
            }
            _ => {
                let wrong = Diagnostic::error(value.span, format!("unknown meta action '{text}'"));
                self.out.push(wrong.nearest(text, KNOWN.iter().copied()));
                None
            }
        }
    }

    /// The arguments as one mapping: from the module's key and from `args`, checked.
    fn module_args(
        &mut self,
        definition: &'static Definition,
        key: &Key,
        value: &Node,
        node: &Node,
        cx: &Cx,
    ) -> Option<Node> {
        let mut entries: Vec<(Key, Node)> = match &value.kind {
            Kind::Map(entries) => entries.clone(),
            Kind::Null => Vec::new(),
            Kind::Str(text) => self.free_form(definition, key, text, value.span)?,
            Kind::List(_) => {
                self.out.push(value.expected(&format!("the arguments of '{}' (a mapping)", key.name)));
                return None;
            }
            _ => match definition.free_form {
                FreeForm::Arg(name) => vec![(Key { name: name.to_owned(), span: value.span }, value.clone())],
                FreeForm::No => {
                    self.out.push(value.expected(&format!("the arguments of '{}' (a mapping)", key.name)));
                    return None;
                }
            },
        };
        match node.get("args").map(|n| (&n.kind, n)) {
            None | Some((Kind::Null, _)) => {}
            Some((Kind::Map(more), _)) => {
                for (key, value) in more {
                    match entries.iter().find(|(k, _)| k.name == key.name) {
                        Some((first, _)) => self.out.push(
                            Diagnostic::error(key.span, format!("argument '{}' is given twice", key.name))
                                .note(first.span, "first given here"),
                        ),
                        None => entries.push((key.clone(), value.clone())),
                    }
                }
            }
            Some((Kind::Str(text), n)) if syntax::braces(text) => self.out.push(
                Diagnostic::error(n.span, "'args' with an expression is not taken yet").hint("name the arguments"),
            ),
            Some((_, n)) => self.out.push(n.expected("a mapping for 'args'")),
        }
        let span = if matches!(value.kind, Kind::Map(_)) { value.span } else { key.span };
        self.check_arguments(definition, &entries, key.span, Some(cx));
        Some(Node { span, kind: Kind::Map(entries) })
    }

    /// A string after the module's name.
    fn free_form(&mut self, definition: &Definition, key: &Key, text: &str, span: Span) -> Option<Vec<(Key, Node)>> {
        let entry =
            |name: &str, value: String| (Key { name: name.to_owned(), span }, Node { span, kind: Kind::Str(value) });
        let words = match words::split(text) {
            Ok(words) => words,
            Err(why) => {
                self.out.push(Diagnostic::error(span, format!("{why} in the arguments of '{}'", key.name)));
                return None;
            }
        };
        if let FreeForm::Arg(argument) = definition.free_form {
            let known = |name: &str| AMONG_WORDS.contains(&name) && definition.args.iter().any(|a| a.name == name);
            let mut raw = text.to_owned();
            let mut entries = Vec::new();
            for word in words.iter().rev() {
                if let Some((name, value)) = text[word.clone()].split_once('=').filter(|(n, _)| known(n)) {
                    entries.insert(0, entry(name, words::unquote(value)));
                    raw.replace_range(word.clone(), "");
                }
            }
            let raw = raw.trim();
            if !raw.is_empty() {
                entries.insert(0, entry(argument, raw.to_owned()));
            }
            return Some(entries);
        }
        let mut entries: Vec<(Key, Node)> = Vec::new();
        for word in words {
            let word = &text[word];
            match word.split_once('=').filter(|(name, _)| is_identifier(name)) {
                Some((name, _)) if entries.iter().any(|(k, _)| k.name == name) => {
                    self.out.push(Diagnostic::error(span, format!("argument '{name}' is given twice")));
                }
                Some((name, value)) => entries.push(entry(name, words::unquote(value))),
                None => {
                    let example = definition
                        .args
                        .iter()
                        .find(|a| a.required)
                        .or(definition.args.first())
                        .map_or("name", |a| a.name);
                    self.out.push(
                        Diagnostic::error(span, format!("expected the arguments of '{}', found '{word}'", key.name))
                            .hint(format!("write a mapping, or {example}=…")),
                    );
                    return None;
                }
            }
        }
        Some(entries)
    }

    /// Unknown and missing names, values that cannot be right. Without `cx` nothing can be missing.
    pub(super) fn check_arguments(
        &mut self,
        definition: &Definition,
        entries: &[(Key, Node)],
        span: Span,
        cx: Option<&Cx>,
    ) {
        let module = definition.name;
        if definition.args.iter().any(|a| a.name == "*") {
            self.free_names(module, entries, span);
            return;
        }
        let mut given: Vec<(&str, Span)> = Vec::new();
        let mut meant: Vec<&str> = Vec::new();
        for (key, value) in entries {
            let arg = definition.args.iter().find(|a| a.name == key.name || a.aliases.contains(&key.name.as_str()));
            let Some(arg) = arg else {
                meant.extend(crate::diag::nearest(&key.name, definition.args.iter().map(|a| a.name)));
                let unknown =
                    Diagnostic::error(key.span, format!("unknown argument '{}' of module '{module}'", key.name));
                self.out.push(match modules::args::equivalent(&key.name) {
                    Some(hint) => unknown.hint(hint),
                    None => unknown.nearest(&key.name, definition.args.iter().map(|a| a.name)),
                });
                continue;
            };
            if let Some((_, first)) = given.iter().find(|(name, _)| *name == arg.name) {
                self.out.push(
                    Diagnostic::error(key.span, format!("argument '{}' is given twice", arg.name))
                        .note(*first, format!("'{}' means the same", arg.name)),
                );
            }
            if value.is_null() {
                continue;
            }
            given.push((arg.name, key.span));
            if matches!((module, arg.name), ("assert", "that") | ("debug", "var")) {
                self.check_expressions(value, module == "assert");
                continue;
            }
            self.check_text(value);
            if !syntax::has_expression(value)
                && let Err(why) = (arg.check)(&value.to_value())
            {
                self.out.push(Diagnostic::error(
                    value.span,
                    format!("argument '{}' of module '{module}': {why}", key.name),
                ));
            }
        }
        let Some(cx) = cx else { return };
        let defaulted = |name: &str| {
            cx.defaulted.iter().any(|(m, names)| {
                m == module
                    && names.iter().any(|n| {
                        n == name || definition.args.iter().any(|a| a.name == name && a.aliases.contains(&n.as_str()))
                    })
            })
        };
        for arg in definition.args.iter().filter(|a| a.required) {
            let misspelt = meant.contains(&arg.name);
            if !given.iter().any(|(name, _)| *name == arg.name) && !defaulted(arg.name) && !misspelt {
                self.out.push(
                    Diagnostic::error(span, format!("module '{module}' needs argument '{}'", arg.name)).hint(format!(
                        "{}: {}",
                        arg.name,
                        (arg.kind)()
                    )),
                );
            }
        }
    }

    /// `set_fact`: each argument is a variable.
    fn free_names(&mut self, module: &str, entries: &[(Key, Node)], span: Span) {
        if entries.is_empty() {
            self.out.push(
                Diagnostic::error(span, format!("'{module}' sets nothing"))
                    .hint(format!("write {module}: {{name: value}}")),
            );
        }
        for (key, value) in entries {
            if key.name == "cacheable" {
                self.out.push(
                    Diagnostic::error(key.span, format!("argument 'cacheable' of module '{module}' is not taken"))
                        .hint("facts are gathered anew in each run: set the variable in each run, or in host_vars"),
                );
            } else if !is_identifier(&key.name) {
                self.out.push(Diagnostic::error(key.span, format!("'{}' is no name for a variable", key.name)));
            }
            self.check_text(value);
        }
    }

    /// Expressions without braces, as `assert` and `debug` take them.
    fn check_expressions(&mut self, value: &Node, conditions: bool) {
        if conditions {
            self.conditions(value, "that");
            return;
        }
        match &value.kind {
            Kind::Str(text) => {
                let text = syntax::single(text).unwrap_or(text);
                if let Err(wrong) = syntax::expression(text, value.span) {
                    self.out.push(wrong);
                }
            }
            _ => self.out.push(value.expected("the name of a variable")),
        }
    }

    /// A file or template that is named literally must be there.
    fn check_source(&mut self, definition: &Definition, args: &Node, cx: &Cx) {
        let kind = match definition.needs {
            Needs::Nothing => return,
            Needs::File => SearchKind::Files,
            Needs::Template => SearchKind::Templates,
        };
        if args.get("remote_src").is_some_and(|n| !matches!(n.kind, Kind::Bool(false)) && n.as_str() != Some("no")) {
            return;
        }
        let Some(src) = args.get("src").filter(|n| !syntax::has_expression(n)) else { return };
        let Some(name) = src.as_str().filter(|n| !n.is_empty()) else { return };
        self.bundle.sources = self.loader.sources.paths();
        let search = self.bundle.search(cx.role.as_ref().map(|r| r.id), cx.play, kind);
        let found = search.iter().map(|dir| dir.join(name)).find(|p| self.tree.is_file(p) || self.tree.is_dir(p));
        let what = if kind == SearchKind::Files { "file" } else { "template" };
        let Some(path) = found else {
            let near: Vec<String> = search.first().map(|d| self.tree.names(d)).unwrap_or_default();
            let wrong = Diagnostic::error(src.span, format!("{what} '{name}' does not exist"));
            let mut wrong = super::files::hint_file(wrong, name, &near);
            for dir in search.iter().filter(|_| !Path::new(name).is_absolute()) {
                wrong = wrong.note(Span::NONE, format!("looked in {}", super::files::folder(dir)));
            }
            self.out.push(wrong);
            return;
        };
        if self.tree.is_dir(&path) {
            if kind == SearchKind::Templates {
                self.out.push(Diagnostic::error(src.span, format!("template '{name}' is a folder")));
                return;
            }
            self.take_in(&path, src.span);
            return;
        }
        if kind == SearchKind::Templates {
            self.check_template(&path, src.span);
        }
        self.take_file(path, src.span);
    }
}

/// A keyword that only makes sense for what is decided on the host.
fn loops_and_results(node: &Node) -> Option<&(Key, Node)> {
    const RUNTIME: &[&str] = &[
        "loop",
        "with_items",
        "with_list",
        "with_dict",
        "loop_control",
        "register",
        "until",
        "retries",
        "delay",
        "changed_when",
        "failed_when",
    ];
    node.map().ok()?.iter().find(|(k, _)| RUNTIME.contains(&k.name.as_str()))
}
