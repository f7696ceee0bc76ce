//! Expressions (minijinja, strict) and templates (Tera for `.tera`, minijinja for `.j2`). The only importer of both.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    diag::{Diagnostic, Span},
    node::{Kind, Node},
    vars::{Binding, Scope},
};

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
    let environment = minijinja::Environment::new();
    let wrong = |e: minijinja::Error| EvalError::Wrong(Diagnostic::error(span, e.to_string()));
    let compiled = environment.compile_expression(expression).map_err(wrong)?;
    let mut context = serde_json::Map::new();
    for name in compiled.undeclared_variables(false) {
        if let Some(var) = scope.get(&name) {
            let value = match &var.binding {
                Binding::Raw(node) => render(node, scope)?,
                Binding::Data(value) => (**value).clone(),
                Binding::Unknown(why) => return Err(EvalError::Unknown(why.clone())),
            };
            context.insert(name, value);
        }
    }
    let value = compiled.eval(minijinja::Value::from(minijinja::value::Serde(context))).map_err(wrong)?;
    if value.is_undefined() {
        return Err(Diagnostic::error(span, format!("'{expression}' is undefined")).into());
    }
    serde_json::to_value(&value).map_err(|e| Diagnostic::error(span, e.to_string()).into())
}

/// Evaluates a condition: it must give a boolean.
pub fn condition(expression: &str, span: Span, scope: &Scope) -> Result<bool, EvalError> {
    match eval(expression, span, scope)? {
        Value::Bool(b) => Ok(b),
        other => Err(Diagnostic::error(span, format!("a condition must give true or false, this gives {other}")).into()),
    }
}

/// Renders text: exactly one `{{ … }}` keeps its type, anything else is a string.
pub fn render_str(text: &str, span: Span, scope: &Scope) -> Result<Value, EvalError> {
    if !text.contains("{{") && !text.contains("{%") && !text.contains("{#") {
        return Ok(Value::String(text.to_owned()));
    }
    let trimmed = text.strip_prefix("{{").and_then(|t| t.strip_suffix("}}")).filter(|t| !t.contains("}}"));
    if let Some(expression) = trimmed {
        return eval(expression, span, scope);
    }
    Err(Diagnostic::error(span, "text with several expressions").into())
}

/// Renders a whole tree.
pub fn render(node: &Node, scope: &Scope) -> Result<Value, EvalError> {
    Ok(match &node.kind {
        Kind::Str(text) => render_str(text, node.span, scope)?,
        Kind::List(items) => Value::Array(items.iter().map(|n| render(n, scope)).collect::<Result<_, _>>()?),
        Kind::Map(entries) => Value::Object(
            entries.iter().map(|(k, v)| Ok((k.name.clone(), render(v, scope)?))).collect::<Result<_, EvalError>>()?,
        ),
        _ => node.to_value(),
    })
}

/// Top-level names (with the attribute path, `facts.os.family`) that an expression asks for.
pub fn references(expression: &str, span: Span) -> Result<BTreeSet<String>, Diagnostic> {
    let environment = minijinja::Environment::new();
    let compiled =
        environment.compile_expression(expression).map_err(|e| Diagnostic::error(span, e.to_string()))?;
    Ok(compiled.undeclared_variables(true).into_iter().collect())
}
