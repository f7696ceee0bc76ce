//! Loops: `loop`, and the `with_…` forms that can be told in it.

use std::time::Duration;

use super::{
    keywords::On,
    load::{State, is_identifier},
    model::Loop,
    play::present,
    syntax,
};
use crate::{
    diag::{Diagnostic, Span},
    node::{Key, Kind, Node},
};

impl State<'_> {
    /// The loop of a task.
    pub(super) fn loop_(&mut self, node: &Node) -> Option<Loop> {
        let given: Vec<(&Key, &Node)> = ["loop", "with_items", "with_list", "with_dict"]
            .iter()
            .filter_map(|name| node.map().ok()?.iter().find(|(k, _)| k.name == *name).map(|(k, v)| (k, v)))
            .collect();
        let control = present(node, "loop_control");
        let Some((key, value)) = given.first() else {
            if let Some(control) = control {
                self.out.push(Diagnostic::error(control.span, "'loop_control' without a loop"));
            }
            return None;
        };
        if let Some((second, _)) = given.get(1) {
            self.out.push(
                Diagnostic::error(
                    second.span,
                    format!("a task has one loop, this one has '{}' and '{}'", key.name, second.name),
                )
                .note(key.span, "the first one"),
            );
        }
        self.check_text(value);
        let items = match key.name.as_str() {
            "with_items" => self.with_items(value),
            "with_dict" => self.with_dict(value),
            name => self.list_of(value, name),
        }?;
        let mut out = Loop { items, var: "item".into(), index_var: None, label: None, pause: None, extended: false };
        if let Some(control) = control {
            self.loop_control(control, &mut out);
        }
        Some(out)
    }

    fn list_of(&mut self, value: &Node, key: &str) -> Option<Node> {
        match &value.kind {
            Kind::List(_) => Some(value.clone()),
            Kind::Str(text) if syntax::braces(text) => Some(value.clone()),
            Kind::Map(_) => {
                self.out.push(
                    value.expected(&format!("a list for '{key}'")).hint("for a mapping: \"{{ map | dict2items }}\""),
                );
                None
            }
            Kind::Str(text) => {
                self.out.push(
                    value
                        .expected(&format!("a list for '{key}'"))
                        .hint(format!("for a variable: {key}: \"{{{{ {text} }}}}\"")),
                );
                None
            }
            _ => {
                self.out.push(value.expected(&format!("a list for '{key}'")));
                None
            }
        }
    }

    /// `with_items`: lists inside the list are unfolded once.
    fn with_items(&mut self, value: &Node) -> Option<Node> {
        let entries = match &value.kind {
            Kind::List(entries) => entries,
            Kind::Str(text) if syntax::single(text).is_some() => {
                let inner = syntax::single(text).unwrap_or_default();
                return Some(expression(format!("[{inner}] | flatten(levels=2)"), value.span));
            }
            Kind::Map(_) => return self.list_of(value, "with_items"),
            // One plain value is a list of one.
            _ => return Some(Node { span: value.span, kind: Kind::List(vec![value.clone()]) }),
        };
        let may_be_list = |n: &Node| n.as_str().is_some_and(|t| syntax::single(t).is_some());
        if !entries.iter().any(may_be_list) {
            let flat = entries.iter().flat_map(|n| match &n.kind {
                Kind::List(inner) => inner.clone(),
                _ => vec![n.clone()],
            });
            return Some(Node { span: value.span, kind: Kind::List(flat.collect()) });
        }
        let parts: Vec<String> = entries.iter().map(as_expression).collect();
        Some(expression(format!("[{}] | flatten(levels=1)", parts.join(", ")), value.span))
    }

    fn with_dict(&mut self, value: &Node) -> Option<Node> {
        match &value.kind {
            Kind::Map(entries) => {
                let key = |name: &str, span| Key { name: name.to_owned(), span };
                let pairs = entries.iter().map(|(k, v)| {
                    let name = Node { span: k.span, kind: Kind::Str(k.name.clone()) };
                    Node {
                        span: k.span,
                        kind: Kind::Map(vec![(key("key", k.span), name), (key("value", k.span), v.clone())]),
                    }
                });
                Some(Node { span: value.span, kind: Kind::List(pairs.collect()) })
            }
            Kind::Str(text) if syntax::single(text).is_some() => {
                let inner = syntax::single(text).unwrap_or_default();
                Some(expression(format!("({inner}) | dict2items"), value.span))
            }
            _ => {
                self.out.push(value.expected("a mapping for 'with_dict', or an expression that gives one"));
                None
            }
        }
    }

    fn loop_control(&mut self, control: &Node, out: &mut Loop) {
        if !matches!(control.kind, Kind::Map(_)) {
            self.out.push(control.expected("a mapping for 'loop_control'"));
            return;
        }
        self.check_keys(On::LoopControl, control, &[]);
        let mut name = |key: &str| {
            let node = present(control, key)?;
            match node.as_str().filter(|n| is_identifier(n)) {
                Some(name) => Some(name.to_owned()),
                None => {
                    self.out.push(node.expected(&format!("the name of a variable for '{key}'")));
                    None
                }
            }
        };
        if let Some(var) = name("loop_var") {
            out.var = var;
        }
        out.index_var = name("index_var");
        if let Some(label) = present(control, "label") {
            self.check_text(label);
            out.label = Some(label.clone());
        }
        if let Some(pause) = present(control, "pause") {
            let value = self.known_value(pause, "'pause'");
            let seconds = value.as_ref().and_then(|v| v.as_f64().or_else(|| v.as_str()?.trim().parse().ok()));
            match seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
                Some(pause) => out.pause = Some(pause),
                None => self.out.push(Diagnostic::error(pause.span, "'pause' must be a number of seconds")),
            }
        }
        out.extended = present(control, "extended").and_then(|n| self.known_bool(n, "extended")).unwrap_or(false);
    }
}

fn expression(text: String, span: Span) -> Node {
    Node { span, kind: Kind::Str(format!("{{{{ {text} }}}}")) }
}

/// A value as part of an expression.
fn as_expression(node: &Node) -> String {
    match &node.kind {
        Kind::Str(text) => match syntax::single(text) {
            Some(inner) => format!("({inner})"),
            None if syntax::braces(text) => {
                let mut parts = Vec::new();
                let mut rest = text.as_str();
                while let Some((before, after)) = rest.split_once("{{") {
                    let (inner, after) = after.split_once("}}").unwrap_or((after, ""));
                    parts.push(format!("{} ~ ({})", quote(before), inner.trim()));
                    rest = after;
                }
                parts.push(quote(rest));
                format!("({})", parts.join(" ~ "))
            }
            None => quote(text),
        },
        Kind::List(items) => format!("[{}]", items.iter().map(as_expression).collect::<Vec<_>>().join(", ")),
        Kind::Map(entries) => {
            let pairs: Vec<String> =
                entries.iter().map(|(k, v)| format!("{}: {}", quote(&k.name), as_expression(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Kind::Null => "none".into(),
        _ => node.to_value().to_string(),
    }
}

/// JSON's way of writing text is Jinja's too.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
