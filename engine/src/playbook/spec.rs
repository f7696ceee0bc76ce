//! `argument_specs`: what a role says of the variables it takes becomes an `assert` before its tasks.

use std::sync::Arc;

use super::{
    load::{State, is_identifier},
    model::{Action, Item, Task},
    play::present,
    role::Named,
};
use crate::{
    diag::{Diagnostic, Span},
    modules,
    node::{Key, Kind, Node},
};

/// Keys of an option that are read or only describe it.
const KNOWN: &[&str] = &["type", "required", "choices", "elements", "default", "description", "version_added"];
const TYPES: &[&str] = &["str", "path", "raw", "int", "float", "bool", "list", "dict"];

impl State<'_> {
    /// The check of a role's arguments; `None` if the role says nothing for this entry.
    pub(super) fn argument_check(&mut self, specs: &Node, named: &Named) -> Option<Item> {
        if !matches!(specs.kind, Kind::Map(_)) {
            self.out.push(specs.expected("entry points (a mapping) for 'argument_specs'"));
            return None;
        }
        let entry = present(specs, named.tasks_from.as_deref().unwrap_or("main"))?;
        let options = present(entry, "options")?;
        let Kind::Map(options) = &options.kind else {
            self.out.push(options.expected("options (a mapping)"));
            return None;
        };
        let mut that = Vec::new();
        for (name, option) in options {
            self.option(name, option, &mut that);
        }
        if that.is_empty() {
            return None;
        }
        let definition = modules::find("assert")?;
        let span = entry.span;
        let text = |text: String, span: Span| Node { span, kind: Kind::Str(text) };
        let that = that.into_iter().map(|(expr, span)| text(expr, span)).collect();
        let args = vec![
            (Key { name: "that".into(), span }, Node { span, kind: Kind::List(that) }),
            (Key { name: "quiet".into(), span }, Node { span, kind: Kind::Bool(true) }),
        ];
        let action = Action::Module { name: definition.name.to_owned(), args: Node { span, kind: Kind::Map(args) } };
        let name = Some(text(format!("check the arguments of role {}", named.name), span));
        let task = Task::new(self.next_id(), span, action);
        Some(Item::Task(Box::new(Task { name, tags: vec!["always".into()], vars: vec![Arc::default()], ..task })))
    }

    fn option(&mut self, name: &Key, option: &Node, that: &mut Vec<(String, Span)>) {
        let var = &name.name;
        if !is_identifier(var) {
            self.out.push(Diagnostic::error(name.span, format!("'{var}' is no name for a variable")));
            return;
        }
        let Kind::Map(entries) = &option.kind else {
            self.out.push(option.expected("an option (a mapping)"));
            return;
        };
        for (key, _) in entries.iter().filter(|(k, _)| !KNOWN.contains(&k.name.as_str())) {
            let wrong = Diagnostic::error(key.span, format!("'{}' of an argument is not taken yet", key.name));
            self.out.push(match key.name.as_str() {
                "options" | "apply_defaults" | "mutually_exclusive" | "required_together" | "required_if" => {
                    wrong.hint("check it with assert in the role's tasks")
                }
                other => wrong.nearest(other, KNOWN.iter().copied()),
            });
        }
        let mut rules = Vec::new();
        if let Some(kind) = present(option, "type") {
            rules.extend(self.type_rule(kind, var));
        }
        if let Some(kind) = present(option, "elements") {
            let test = match kind.as_str() {
                Some("str" | "path") => Some("string"),
                Some("int") => Some("integer"),
                Some("float") => Some("number"),
                Some("bool") => Some("boolean"),
                Some("dict") => Some("mapping"),
                Some("raw") => None,
                other => {
                    let wrong = Diagnostic::error(kind.span, "unknown type of elements");
                    self.out.push(wrong.nearest(other.unwrap_or_default(), TYPES.iter().copied()));
                    None
                }
            };
            rules.extend(test.map(|t| format!("({var} | reject('{t}') | list | length == 0)")));
        }
        if let Some(choices) = present(option, "choices") {
            match &choices.kind {
                Kind::List(_) => rules.push(format!("{var} in {}", choices.to_value())),
                _ => self.out.push(choices.expected("a list of choices")),
            }
        }
        let required = present(option, "required").and_then(|n| self.known_bool(n, "required")).unwrap_or(false);
        if required {
            that.push((format!("{var} is defined"), name.span));
        }
        for rule in rules {
            let free = if required { String::new() } else { format!("{var} is not defined or {var} is none or ") };
            that.push((format!("{free}{rule}"), name.span));
        }
    }

    /// The rule of a type; `None` where everything is right, or the type is unknown, which is told.
    fn type_rule(&mut self, kind: &Node, var: &str) -> Option<String> {
        match kind.as_str() {
            Some("raw") => None,
            Some("str" | "path") => Some(format!("({var} is string or {var} is number)")),
            Some("int") => Some(format!("{var} is integer")),
            Some("float") => Some(format!("{var} is number")),
            Some("bool") => Some(format!("{var} is boolean")),
            Some("list") => Some(format!("({var} is sequence and {var} is not string)")),
            Some("dict") => Some(format!("{var} is mapping")),
            other => {
                let wrong = Diagnostic::error(kind.span, "unknown type of an argument");
                self.out.push(wrong.nearest(other.unwrap_or_default(), TYPES.iter().copied()));
                None
            }
        }
    }
}
