//! Values that must be known before the run: what they are made of is `-e` and the play's variables.

use serde_json::Value;

use super::{load::State, syntax};
use crate::{diag::Diagnostic, node::Node, template};

impl State<'_> {
    /// A value that must be known before the run: expressions see `-e` and the play's variables only.
    pub(super) fn known_value(&mut self, node: &Node, what: &str) -> Option<Value> {
        if !syntax::has_expression(node) {
            return Some(node.to_value());
        }
        match template::render(node, &self.known) {
            Ok(value) => Some(value),
            Err(template::EvalError::Wrong(wrong)) => {
                self.out.push(
                    Diagnostic::error(node.span, format!("{what} must be known before the run: {}", wrong.message))
                        .hint(wrong.hint.unwrap_or_else(|| "only -e and the play's vars can be used here".into())),
                );
                None
            }
            Err(template::EvalError::Unknown(why)) => {
                self.out.push(Diagnostic::error(node.span, format!("{what} must be known before the run: {why}")));
                None
            }
        }
    }

    /// Text that must be known before the run.
    pub(super) fn known_text(&mut self, node: &Node, what: &str) -> Option<String> {
        let value = self.known_value(node, what)?;
        let read = Node::from_value(&value, node.span).scalar_text();
        let text = self.told(read.map_err(|d| Diagnostic { message: format!("{what}: {}", d.message), ..d }))?;
        if text.is_empty() {
            self.out.push(Diagnostic::error(node.span, format!("{what} is empty")));
            return None;
        }
        Some(text)
    }

    /// A boolean that must be known before the run.
    pub(super) fn known_bool(&mut self, node: &Node, key: &str) -> Option<bool> {
        let value = self.known_value(node, &format!("'{key}'"))?;
        let rendered = syntax::has_expression(node);
        match &value {
            Value::Bool(b) => Some(*b),
            Value::String(text) if rendered => match text.to_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Some(true),
                "false" | "no" | "off" | "0" => Some(false),
                _ => self.told(Err(node.expected(&format!("true or false for '{key}'")))),
            },
            _ => {
                let found = Node::from_value(&value, node.span);
                let shown = match &value {
                    Value::String(s) => format!("the string '{s}'"),
                    _ => found.describe().to_owned(),
                };
                self.out.push(Diagnostic::error(node.span, format!("'{key}' must be true or false, found {shown}")));
                None
            }
        }
    }

    /// A whole number from 1 that must be known before the run.
    pub(super) fn known_count(&mut self, node: &Node, key: &str) -> Option<usize> {
        let value = self.known_value(node, &format!("'{key}'"))?;
        let number = match &value {
            Value::Number(n) => n.as_u64(),
            Value::String(s) => s.trim().parse().ok(),
            _ => None,
        };
        match number.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
            Some(n) => Some(n),
            None => {
                self.out.push(Diagnostic::error(node.span, format!("'{key}' must be a whole number from 1")));
                None
            }
        }
    }
}
