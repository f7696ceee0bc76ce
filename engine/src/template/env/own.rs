//! Filters that need more than a plain value: undefined ones, other filters by name, several types of arguments.
//! Those that minijinja brings along are wrapped, so that nothing undefined passes through them.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters as builtin,
    value::{Kwargs, Rest, ValueKind},
};

use super::{super::values, with_named, wrong};

/// All filters that are registered here.
pub(super) const NAMES: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "extract",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "mandatory",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "upper",
    "urlencode",
    "zip",
];

pub(super) fn register(env: &mut Environment<'static>) {
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("mandatory", mandatory);
    env.add_filter("extract", extract);
    env.add_filter("__soft", soft);
    env.add_filter("__whole", whole);
    env.add_filter("string", |value: &Value| -> Result<String, Error> {
        defined(value)?;
        Ok(value.to_string())
    });
    env.add_filter("list", |state: &State, value: Value| -> Result<Value, Error> {
        defined(&value)?;
        builtin::list(state, value)
    });
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("tojson", |value: &Value| -> Result<String, Error> {
        let plain = values::to_json(value)?;
        serde_json::to_string(&plain).map_err(|e| wrong(e.to_string()))
    });
    env.add_filter("first", |value: &Value| edge(value, "first"));
    env.add_filter("last", |value: &Value| edge(value, "last"));
    env.add_filter("chain", |state: &mut State, value: Value, rest: Rest<Value>| -> Result<Value, Error> {
        std::iter::once(&value).chain(rest.iter()).try_for_each(defined)?;
        builtin::chain(state, value, rest)
    });
    env.add_filter("zip", |state: &State, value: Value, rest: Rest<Value>| -> Result<Value, Error> {
        std::iter::once(&value).chain(rest.iter()).try_for_each(defined)?;
        builtin::zip(state, value, rest)
    });
    env.add_filter("groupby", |value: Value, attribute: Option<String>, named: Kwargs| -> Result<Value, Error> {
        defined(&value)?;
        builtin::groupby(value, attribute.as_deref(), named)
    });
    env.add_filter("urlencode", |value: &Value| -> Result<String, Error> {
        defined(value)?;
        builtin::urlencode(value)
    });
    for name in ["items", "reverse", "attr", "length", "count", "lines", "pprint", "escape", "e", "safe"] {
        strict(env, name);
    }
    for name in NAMES {
        for prefix in super::PREFIXES {
            env.add_filter(format!("{prefix}{name}"), move |state: &mut State, args: Rest<Value>, named: Kwargs| {
                state.apply_filter(name, &with_named(args, named))
            });
        }
    }
}

/// Wraps a filter of minijinja that would take something undefined.
fn strict(env: &mut Environment<'static>, name: &'static str) {
    env.add_filter(name, move |state: &mut State, value: Value, rest: Rest<Value>| -> Result<Value, Error> {
        defined(&value)?;
        let none = || wrong(format!("{name}: unexpected arguments"));
        let first = rest.first();
        match (name, first) {
            ("attr", Some(key)) => builtin::attr(&value, key),
            (_, Some(_)) | ("attr", None) => Err(none()),
            ("items", _) => builtin::items(&value),
            ("reverse", _) => builtin::reverse(&value),
            ("length" | "count", _) => builtin::length(&value).map(Value::from),
            ("lines", _) => builtin::lines(&value),
            ("pprint", _) => serde_json::to_string_pretty(&values::to_json(&value)?)
                .map(Value::from)
                .map_err(|e| wrong(e.to_string())),
            ("escape" | "e", _) => builtin::escape(state, &value),
            _ => Ok(value),
        }
    });
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(Error::from(ErrorKind::UndefinedError)) } else { Ok(()) }
}

/// `default(x)`, `default(x, true)`: the other value where the first is undefined (or, with true, empty).
fn default(value: Value, rest: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut positional = rest.0.into_iter();
    let (mut other, mut boolean) = (positional.next(), positional.next().map(|v| v.is_true()));
    for key in ["default_value", "value"] {
        other = other.or(named.get::<Option<Value>>(key)?);
    }
    boolean = boolean.or(named.get::<Option<bool>>("boolean")?);
    named.assert_all_used()?;
    if positional.next().is_some() {
        return Err(wrong("default: takes a value and a boolean"));
    }
    let missing = value.is_undefined() || boolean == Some(true) && !value.is_true();
    if !missing {
        return Ok(value);
    }
    let other = other.unwrap_or_else(|| Value::from(""));
    defined(&other)?;
    Ok(other)
}

fn mandatory(value: Value, message: Option<String>) -> Result<Value, Error> {
    match (value.is_undefined(), message) {
        (false, _) => Ok(value),
        (true, Some(message)) => Err(wrong(message)),
        (true, None) => Err(Error::from(ErrorKind::UndefinedError)),
    }
}

/// A list or mapping that is written in the text: an item that is missing is an error, whether or not it is read.
fn whole(value: Value) -> Result<Value, Error> {
    for item in value.try_iter()? {
        defined(&item)?;
        if value.kind() == ValueKind::Map {
            defined(&value.get_item(&item)?)?;
        }
    }
    Ok(value)
}

/// Follows a guarded chain: the value, or undefined where a step is missing.
fn soft(value: Value, steps: Rest<Value>) -> Result<Value, Error> {
    let mut value = value;
    for step in steps.iter() {
        if value.is_undefined() || value.is_none() {
            return Ok(Value::UNDEFINED);
        }
        value = value.get_item(step)?;
        if value.kind() == ValueKind::Invalid {
            return Err(wrong("a variable could not be rendered"));
        }
    }
    Ok(value)
}

/// `'key' | extract(mapping, 'attribute')`: for `map('extract', hostvars)`.
fn extract(key: Value, container: Value, more: Option<Value>) -> Result<Value, Error> {
    defined(&key)?;
    defined(&container)?;
    let missing = |key: &Value| Error::new(ErrorKind::InvalidOperation, format!("extract: there is no '{key}'"));
    let mut value = container.get_item(&key)?;
    if value.is_undefined() {
        return Err(missing(&key));
    }
    let steps = match more {
        Some(steps) if steps.kind() == ValueKind::Seq => steps.try_iter()?.collect(),
        Some(step) => vec![step],
        None => Vec::new(),
    };
    for step in &steps {
        value = value.get_item(step)?;
        if value.is_undefined() {
            return Err(missing(step));
        }
    }
    Ok(value)
}

fn edge(value: &Value, which: &str) -> Result<Value, Error> {
    defined(value)?;
    let found = if which == "first" { builtin::first(value)? } else { builtin::last(value.clone())? };
    if found.is_undefined() {
        return Err(wrong(format!("{which}: the list is empty")));
    }
    Ok(found)
}

/// As Jinja: text that is no number gives the default (0).
fn int(value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    defined(value)?;
    let default = default.or(named.get::<Option<Value>>("default")?);
    let base = base.or(named.get::<Option<u32>>("base")?);
    named.assert_all_used()?;
    let fallback = || Ok(default.unwrap_or_else(|| Value::from(0)));
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => Ok(truncated(f64::try_from(value.clone())?).map_or_else(|| Value::from(0), Value::from)),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim().replace('_', "");
            let base = base.unwrap_or(10);
            if !(2..=36).contains(&base) {
                return Err(wrong("int: the base must be from 2 to 36"));
            }
            let digits = match base {
                16 => text.trim_start_matches("0x").trim_start_matches("0X"),
                8 => text.trim_start_matches("0o"),
                2 => text.trim_start_matches("0b"),
                _ => &text,
            };
            match i64::from_str_radix(digits, base) {
                Ok(number) => Ok(Value::from(number)),
                Err(_) => match text.parse::<f64>().ok().filter(|_| base == 10).and_then(truncated) {
                    Some(number) => Ok(Value::from(number)),
                    None => fallback(),
                },
            }
        }
        _ => fallback(),
    }
}

fn truncated(number: f64) -> Option<i64> {
    // 2^63 is the first that does not fit.
    (number.is_finite() && number.abs() < 9_223_372_036_854_775_808.0).then_some(number.trunc() as i64)
}

fn float(value: &Value, default: Option<f64>, named: Kwargs) -> Result<f64, Error> {
    defined(value)?;
    let default = default.or(named.get::<Option<f64>>("default")?);
    named.assert_all_used()?;
    let fallback = default.unwrap_or(0.0);
    Ok(match value.kind() {
        ValueKind::Bool => f64::from(u8::from(value.is_true())),
        ValueKind::Number => f64::try_from(value.clone())?,
        ValueKind::String => value.as_str().and_then(|s| s.trim().parse().ok()).unwrap_or(fallback),
        _ => fallback,
    })
}
