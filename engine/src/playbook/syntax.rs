//! Expressions and text in playbooks, as far as they can be checked without values.

use std::path::Path;

use crate::{
    diag::{Diagnostic, FileId, Span},
    node::{Kind, Node},
    template::{self, TemplateKind, TemplateSource},
};

/// True if text holds an expression or a statement.
pub(super) fn braces(text: &str) -> bool {
    text.contains("{{") || text.contains("{%")
}

/// True if some text in the tree holds an expression.
pub(super) fn has_expression(node: &Node) -> bool {
    match &node.kind {
        Kind::Str(text) => braces(text),
        Kind::List(items) => items.iter().any(has_expression),
        Kind::Map(entries) => entries.iter().any(|(_, v)| has_expression(v)),
        _ => false,
    }
}

/// The expression, where the text is nothing but one `{{ … }}`.
pub(super) fn single(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}")).then(|| inner.trim())
}

/// Checks an expression without braces.
pub(super) fn expression(text: &str, span: Span) -> Result<(), Diagnostic> {
    template::check_expression(text, span)
}

/// Checks text with expressions in it.
pub(super) fn text(text: &str, span: Span) -> Result<(), Diagnostic> {
    template::check_text(text, span)
}

/// Checks the text of a template.
pub(super) fn template(path: &Path, file: FileId, text: &str) -> Result<(), Diagnostic> {
    let name = path.to_string_lossy();
    template::check_template(TemplateKind::of(path), &TemplateSource { name: &name, file, text }).map(|_| ())
}

/// True if text that may hold expressions can come out as `name`.
pub(super) fn may_be(text: &str, name: &str) -> bool {
    if !braces(text) {
        return text == name;
    }
    pattern(text).is_match(name)
}

/// A pattern for what text with expressions can come out as.
pub(super) fn pattern(text: &str) -> Pattern {
    let mut literals = vec![String::new()];
    let mut rest = text;
    while let Some(start) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let close = if rest[start..].starts_with("{{") { "}}" } else { "%}" };
        if let Some(last) = literals.last_mut() {
            last.push_str(&rest[..start]);
        }
        literals.push(String::new());
        rest = rest[start..].find(close).map_or("", |end| &rest[start + end + 2..]);
    }
    if let Some(last) = literals.last_mut() {
        last.push_str(rest);
    }
    Pattern(literals)
}

/// Literal pieces with anything between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<String>);

impl Pattern {
    /// Text before the first expression.
    pub(super) fn prefix(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_first() else { return text.is_empty() };
        let Some(mut left) = text.strip_prefix(first.as_str()) else { return false };
        let Some((last, middle)) = rest.split_last() else { return left.is_empty() };
        for piece in middle {
            match left.find(piece.as_str()) {
                Some(at) => left = &left[at + piece.len()..],
                None => return false,
            }
        }
        left.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_text_can_become() {
        assert!(may_be("restart {{ x }}", "restart consul"));
        assert!(!may_be("restart {{ x }}", "reload consul"));
        assert!(may_be("{{ a }}-{{ b }}.yml", "x-y.yml"));
        assert!(!may_be("{{ a }}-{{ b }}.yml", "xy.yml"));
        assert!(may_be("plain", "plain") && !may_be("plain", "plainer"));
        assert_eq!(pattern("tasks/{{ os }}.yml").prefix(), "tasks/");
        assert!(!may_be("a{{ x }}a", "a"));
    }

    #[test]
    fn single_expressions_are_told_from_text() {
        assert_eq!(single("{{ a }}"), Some("a"));
        assert_eq!(single(" {{ a }} "), Some("a"));
        assert_eq!(single("{{ a }}{{ b }}"), None);
        assert_eq!(single("x {{ a }}"), None);
    }
}
