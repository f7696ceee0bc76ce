//! Filters over plain values, the same ones in expressions, in `.j2` and in `.tera`.

use serde_json::{Map, Value};

mod data;
mod lists;
mod net;
mod regexes;
mod text;

pub(super) use regexes::test as regex_test;
pub(super) use text::compare_versions;

/// One filter.
#[derive(Debug)]
pub(super) struct Filter {
    /// Its name and aliases.
    pub(super) names: &'static [&'static str],
    /// Its arguments after the value, in order.
    params: &'static [&'static str],
    /// Further positional arguments are taken (`combine(a, b, c)`).
    pub(super) rest: bool,
    run: fn(Value, &mut Args) -> Result<Value, String>,
}

impl Filter {
    const fn new(
        names: &'static [&'static str],
        params: &'static [&'static str],
        run: fn(Value, &mut Args) -> Result<Value, String>,
    ) -> Self {
        Self { names, params, rest: false, run }
    }

    const fn variadic(
        names: &'static [&'static str],
        params: &'static [&'static str],
        run: fn(Value, &mut Args) -> Result<Value, String>,
    ) -> Self {
        Self { names, params, rest: true, run }
    }

    /// Runs it. The error is a fragment that starts with the filter's name.
    pub(super) fn call(&self, value: Value, args: &mut Args) -> Result<Value, String> {
        let name = args.name;
        (self.run)(value, args).map_err(|e| format!("{name}: {e}"))
    }
}

/// All filters of the table.
pub(super) fn all() -> impl Iterator<Item = &'static Filter> {
    [data::FILTERS, lists::FILTERS, net::FILTERS, regexes::FILTERS, text::FILTERS].into_iter().flatten()
}

/// The arguments of a call, by name.
#[derive(Debug)]
pub(super) struct Args {
    name: &'static str,
    named: Map<String, Value>,
    /// Positional arguments beyond the named ones.
    rest: Vec<Value>,
}

impl Args {
    /// Brings positional and named arguments together.
    pub(super) fn bind(
        filter: &Filter,
        name: &'static str,
        positional: Vec<Value>,
        named: Map<String, Value>,
    ) -> Result<Self, String> {
        if filter.rest {
            Self::known(name, filter.params, &named)?;
            return Ok(Self { name, named, rest: positional });
        }
        Self::bind_to(name, filter.params, positional, named)
    }

    /// As [`Args::bind`], for a list of names.
    pub(super) fn bind_to(
        name: &'static str,
        params: &[&'static str],
        positional: Vec<Value>,
        mut named: Map<String, Value>,
    ) -> Result<Self, String> {
        Self::known(name, params, &named)?;
        if positional.len() > params.len() {
            return Err(format!("{name}: takes at most {} argument(s)", params.len()));
        }
        for (param, value) in params.iter().zip(positional) {
            if named.insert((*param).to_owned(), value).is_some() {
                return Err(format!("{name}: '{param}' is given twice"));
            }
        }
        Ok(Self { name, named, rest: Vec::new() })
    }

    fn known(name: &str, params: &[&'static str], named: &Map<String, Value>) -> Result<(), String> {
        match named.keys().find(|key| !params.contains(&key.as_str())) {
            Some(key) => {
                let hint = crate::diag::suggest(key, params.iter().copied());
                Err(format!("{name}: unknown argument '{key}'{}", hint.map(|h| format!(" ({h})")).unwrap_or_default()))
            }
            None => Ok(()),
        }
    }

    /// An argument; null counts as not given.
    pub(super) fn get(&mut self, param: &str) -> Option<Value> {
        self.named.remove(param).filter(|v| !v.is_null())
    }

    /// An argument that must be given.
    pub(super) fn need(&mut self, param: &str) -> Result<Value, String> {
        self.named.remove(param).ok_or_else(|| format!("the argument '{param}' is missing"))
    }

    pub(super) fn text(&mut self, param: &str) -> Result<Option<String>, String> {
        match self.get(param) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(other) => Err(format!("'{param}' must be text, not {}", kind(&other))),
        }
    }

    pub(super) fn flag(&mut self, param: &str) -> Result<Option<bool>, String> {
        match self.get(param) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(format!("'{param}' must be true or false, not {}", kind(&other))),
        }
    }

    pub(super) fn int(&mut self, param: &str) -> Result<Option<i64>, String> {
        match self.get(param) {
            None => Ok(None),
            Some(other) => match other.as_i64() {
                Some(i) => Ok(Some(i)),
                None => Err(format!("'{param}' must be a whole number, not {}", kind(&other))),
            },
        }
    }
}

/// `a list`: for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The value as text; numbers and booleans are written out.
fn text_of(value: &Value) -> Result<String, String> {
    match value {
        Value::Array(_) | Value::Object(_) => Err(format!("text is needed, not {}", kind(value))),
        Value::Null => Err("text is needed, not null".to_owned()),
        other => Ok(super::values::python_text(other)),
    }
}

fn list_of(value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(format!("a list is needed, not {}", kind(&other))),
    }
}

fn map_of(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("a mapping is needed, not {}", kind(&other))),
    }
}

/// An attribute of an item; a path with dots reaches deeper.
fn attribute<'a>(item: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(item, |value, step| match value {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        other => other.get(step),
    })
}
