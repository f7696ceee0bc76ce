//! Expressions (minijinja, strict) and templates (Tera for `.tera`, minijinja for everything else). The only importer
//! of both.
//!
//! Variables are rendered when an expression asks for them, once per evaluation, and only the part that is asked for.
//! Data (facts, results, tags) is never rendered. See `docs/language-expressions.md` for what people may write.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use crate::{
    diag::{Diagnostic, FileId, Span},
    node::{Kind, Node},
    vars::Scope,
};

mod calls;
mod env;
mod explain;
mod filters;
mod hosts;
mod jinja;
mod limits;
mod place;
mod refs;
mod session;
mod soften;
mod tera_files;
mod values;

#[cfg(test)]
mod test_eval;
#[cfg(test)]
mod test_filters;
#[cfg(test)]
mod test_templates;

use explain::Origin;
use place::Place;
pub use refs::{HostReferences, References};
use session::{Failed, Session};
pub(crate) use values::truthy;

/// Why a value could not be had.
#[derive(Clone, Debug, PartialEq)]
pub enum EvalError {
    /// It depends on something that this check did not do; the text says on what.
    Unknown(String),
    /// It is wrong.
    Wrong(Diagnostic),
}

impl From<Diagnostic> for EvalError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Wrong(diagnostic)
    }
}

/// Evaluates an expression (no braces) to its typed value. Undefined names, also as the result, are errors.
pub fn eval(expression: &str, span: Span, scope: &Scope) -> Result<Value, EvalError> {
    Session::run(scope, span, |session| {
        let place = Place::Scalar { span, text: expression, offset: 0 };
        let value = session.expression(expression, place)?;
        to_json(session, &value, &Origin { source: expression, place, files: None })
    })
}

/// Evaluates a condition: it must give a boolean.
pub fn condition(expression: &str, span: Span, scope: &Scope) -> Result<bool, EvalError> {
    match eval(expression, span, scope)? {
        Value::Bool(b) => Ok(b),
        other => {
            let shown: String = other.to_string().chars().take(60).collect();
            let what = match &other {
                Value::Null => "nothing".to_owned(),
                Value::String(_) => format!("the string {shown}"),
                Value::Number(_) => format!("the number {shown}"),
                Value::Array(_) => format!("the list {shown}"),
                _ => format!("the mapping {shown}"),
            };
            let error = Diagnostic::error(span, format!("a condition must give true or false, this gives {what}"));
            Err(error.hint(condition_hint(expression, &other)).into())
        }
    }
}

fn condition_hint(expression: &str, value: &Value) -> String {
    let expression = expression.trim();
    match value {
        Value::String(_) => format!(
            "'{expression} | bool' reads yes, no, true and false; '{expression} | length > 0' asks whether there is text"
        ),
        Value::Number(_) => format!("compare it: '{expression} != 0'"),
        Value::Null => format!("ask '{expression} is not none'"),
        _ => format!("ask '{expression} | length > 0'"),
    }
}

/// Renders text: exactly one `{{ … }}` keeps its type, anything else is a string.
pub fn render_str(text: &str, span: Span, scope: &Scope) -> Result<Value, EvalError> {
    if !has_markup(text) {
        return Ok(Value::String(text.to_owned()));
    }
    Session::run(scope, span, |session| {
        let value = session.text(text, span)?;
        to_json(session, &value, &origin_of(text, span))
    })
}

/// Renders a whole tree. Keys whose value is `omit` are left out.
pub fn render(node: &Node, scope: &Scope) -> Result<Value, EvalError> {
    if !needs_rendering(node) {
        return Ok(node.to_value());
    }
    let rendered = render_optional(node, scope)?;
    rendered.ok_or_else(|| Diagnostic::error(node.span, "'omit' cannot stand here: a value is needed").into())
}

/// As [`render`], for an argument: `None` where its value is `omit`, so that it counts as not given.
pub fn render_optional(node: &Node, scope: &Scope) -> Result<Option<Value>, EvalError> {
    if !needs_rendering(node) {
        return Ok(Some(node.to_value()));
    }
    Session::run(scope, node.span, |session| render_node(session, node))
}

fn needs_rendering(node: &Node) -> bool {
    match &node.kind {
        Kind::Str(text) => has_markup(text),
        Kind::List(items) => items.iter().any(needs_rendering),
        Kind::Map(entries) => entries.iter().any(|(k, v)| has_markup(&k.name) || needs_rendering(v)),
        _ => false,
    }
}

fn render_node(session: &std::sync::Arc<Session>, node: &Node) -> Result<Option<Value>, Failed> {
    Ok(Some(match &node.kind {
        Kind::Str(text) if has_markup(text) => {
            let value = session.text(text, node.span)?;
            if values::is_omit(&value) {
                return Ok(None);
            }
            to_json(session, &value, &origin_of(text, node.span))?
        }
        Kind::List(items) => {
            let mut list = Vec::with_capacity(items.len());
            for item in items {
                list.extend(render_node(session, item)?);
            }
            Value::Array(list)
        }
        Kind::Map(entries) => {
            let mut map = serde_json::Map::with_capacity(entries.len());
            for (key, value) in entries {
                if let Some(value) = render_node(session, value)? {
                    map.insert(render_key(session, key)?, value);
                }
            }
            Value::Object(map)
        }
        _ => node.to_value(),
    }))
}

/// Keys may hold expressions too, as in Ansible.
fn render_key(session: &std::sync::Arc<Session>, key: &crate::node::Key) -> Result<String, Failed> {
    if !has_markup(&key.name) {
        return Ok(key.name.clone());
    }
    let value = session.text(&key.name, key.span)?;
    Ok(values::python_text(&to_json(session, &value, &origin_of(&key.name, key.span))?))
}

/// The text that a typed value came from: the inside of the one `{{ … }}`.
fn origin_of(text: &str, span: Span) -> Origin<'_> {
    let (offset, source) = single(text).unwrap_or((0, text));
    Origin { source, place: Place::Scalar { span, text, offset }, files: None }
}

fn to_json(session: &std::sync::Arc<Session>, value: &minijinja::Value, origin: &Origin<'_>) -> Result<Value, Failed> {
    values::to_json(value).map_err(|error| explain::no_value(session, &error, origin))
}

/// True for text that holds expressions.
fn has_markup(text: &str) -> bool {
    text.contains("{{") || text.contains("{%") || text.contains("{#")
}

/// The inside of a text that is exactly one `{{ … }}`, if it looks like one, and its offset.
fn single(text: &str) -> Option<(usize, &str)> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    let start = usize::from(inner.starts_with(['-', '+'])) + 2;
    let end = text.len() - 2 - usize::from(inner.len() > 1 && inner.ends_with('-'));
    Some((start, text.get(start..end)?))
}

/// Top-level names (with the attribute path, `facts.os.family`) that an expression asks for.
pub fn references(expression: &str, span: Span) -> Result<BTreeSet<String>, Diagnostic> {
    let found = expression_references(expression, span)?;
    Ok(found.all().cloned().collect())
}

/// Names that an expression asks for.
pub fn expression_references(expression: &str, span: Span) -> Result<References, Diagnostic> {
    let place = Place::Scalar { span, text: expression, offset: 0 };
    let origin = Origin { source: expression, place, files: None };
    let found = refs::expression(expression).map_err(|e| explain::syntax(&e, &origin))?;
    Ok(without_globals(found.references()))
}

/// Names that a text with expressions asks for.
pub fn text_references(text: &str, span: Span) -> Result<References, Diagnostic> {
    if !has_markup(text) {
        return Ok(References::default());
    }
    let place = Place::Scalar { span, text, offset: 0 };
    let found = refs::template(text).map_err(|e| explain::syntax(&e, &Origin { source: text, place, files: None }))?;
    Ok(without_globals(found.references()))
}

/// What an expression asks of other hosts.
pub fn host_references(expression: &str) -> HostReferences {
    refs::expression(expression).map(|found| found.host_references()).unwrap_or_default()
}

/// What a text with expressions asks of other hosts.
pub fn text_host_references(text: &str) -> HostReferences {
    if !has_markup(text) {
        return HostReferences::default();
    }
    refs::template(text).map(|found| found.host_references()).unwrap_or_default()
}

/// What a template asks of other hosts.
pub fn template_host_references(kind: TemplateKind, text: &str) -> HostReferences {
    match kind {
        TemplateKind::Tera => tera_files::host_references(text),
        TemplateKind::Jinja => refs::template(text).map(|found| found.host_references()).unwrap_or_default(),
    }
}

/// `omit` and the functions are always there.
fn without_globals(mut found: References) -> References {
    let known = |path: &String| env::global(path.split('.').next().unwrap_or(path)).is_some();
    for set in [&mut found.required, &mut found.conditional, &mut found.optional] {
        set.retain(|path| !known(path));
    }
    found
}

/// Checks an expression (no braces) without evaluating it: syntax, and that its filters, tests and functions exist.
pub fn check_expression(text: &str, span: Span) -> Result<(), Diagnostic> {
    let place = Place::Scalar { span, text, offset: 0 };
    let origin = Origin { source: text, place, files: None };
    let found = refs::expression(text).map_err(|e| explain::syntax(&e, &origin))?;
    calls::check(&found, &origin)
}

/// Checks a text with expressions without evaluating it.
pub fn check_text(text: &str, span: Span) -> Result<(), Diagnostic> {
    if !has_markup(text) {
        return Ok(());
    }
    let origin = Origin { source: text, place: Place::Scalar { span, text, offset: 0 }, files: None };
    let found = refs::template(text).map_err(|e| explain::syntax(&e, &origin))?;
    calls::check(&found, &origin)
}

/// A template file.
#[derive(Clone, Copy, Debug)]
pub struct TemplateSource<'a> {
    /// Its path, for messages.
    pub name: &'a str,
    /// The file, for places.
    pub file: FileId,
    /// What it holds.
    pub text: &'a str,
}

/// The engine that renders a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    /// `*.tera`.
    Tera,
    /// Everything else: templates that people bring along.
    Jinja,
}

impl TemplateKind {
    /// By the extension of a path.
    pub fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|e| e == "tera") { Self::Tera } else { Self::Jinja }
    }
}

/// What a template gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// It asked for a secret: neither the text nor a diff of it may be shown.
    pub secret: bool,
}

/// Finds a template that another one names (`include`, `import`, `extends`).
pub type Loader<'a> = &'a dyn Fn(&str) -> Option<(FileId, String)>;

/// Checks a template without rendering it: syntax errors with their place. Returns the names that it needs.
pub fn check_template(kind: TemplateKind, source: &TemplateSource<'_>) -> Result<References, Diagnostic> {
    match kind {
        TemplateKind::Tera => tera_files::check(source),
        TemplateKind::Jinja => jinja::check(source).map(without_globals),
    }
}

/// Renders a template.
pub fn render_template(
    kind: TemplateKind,
    source: &TemplateSource<'_>,
    scope: &Scope,
    loader: Loader<'_>,
) -> Result<Rendered, EvalError> {
    match kind {
        TemplateKind::Tera => tera_files::render(source, scope, loader),
        TemplateKind::Jinja => jinja::render(source, scope, loader),
    }
}
