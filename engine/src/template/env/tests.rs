//! Tests (`x is …`). All but `defined` and `undefined` refuse undefined values.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, tests as builtin,
    value::{Kwargs, Rest, ValueKind},
};
use serde_json::Value as Json;

use super::{
    super::{filters, values, values::truthy},
    plain_args, with_named, wrong,
};

/// A name and its aliases.
type Names = &'static [&'static str];

/// What a test with one argument asks.
type Compare = fn(&Value, &Value) -> bool;

/// What a test asks, after its arguments were read.
type Ask = fn(&Json, &mut filters::Args) -> Result<bool, String>;

/// Names, parameters, the question.
type Own = (Names, &'static [&'static str], Ask);

/// Our own tests over plain values: names, parameters, the question.
const OWN: &[Own] = &[
    (&["version", "version_compare"], &["version", "operator", "strict", "version_type"], version),
    (&["match"], &["pattern", "ignorecase", "multiline"], |v, a| filters::regex_test(v, a, "match")),
    (&["search"], &["pattern", "ignorecase", "multiline"], |v, a| filters::regex_test(v, a, "search")),
    (&["regex"], &["pattern", "ignorecase", "multiline", "match_type"], |v, a| filters::regex_test(v, a, "regex")),
    (&["subset", "issubset"], &["other"], |v, a| Ok(within(v, &a.need("other")?))),
    (&["superset", "issuperset"], &["other"], |v, a| Ok(within(&a.need("other")?, v))),
    (&["contains"], &["item"], contains),
    (&["any"], &[], |v, _| Ok(v.as_array().is_some_and(|items| items.iter().any(truthy)))),
    (&["all"], &[], |v, _| Ok(v.as_array().is_some_and(|items| items.iter().all(truthy)))),
    (&["truthy"], &["convert_bool"], |v, _| Ok(truthy(v))),
    (&["falsy"], &["convert_bool"], |v, _| Ok(!truthy(v))),
    (&["succeeded", "success", "successful"], &[], |v, _| result(v, "failed").map(|failed| !failed)),
    (&["failed", "failure"], &[], |v, _| result(v, "failed")),
    (&["changed", "change"], &[], |v, _| result(v, "changed")),
    (&["skipped", "skip"], &[], |v, _| result(v, "skipped")),
    (&["ip", "ip_address"], &[], |v, _| Ok(v.as_str().is_some_and(|s| s.parse::<std::net::IpAddr>().is_ok()))),
    (&["ipv4", "ipv4_address"], &[], |v, _| Ok(v.as_str().is_some_and(|s| s.parse::<std::net::Ipv4Addr>().is_ok()))),
    (&["ipv6", "ipv6_address"], &[], |v, _| Ok(v.as_str().is_some_and(|s| s.parse::<std::net::Ipv6Addr>().is_ok()))),
    (&["abs"], &[], |v, _| text(v).map(|path| path.starts_with('/'))),
];

/// A name and its question.
type Simple = (&'static str, fn(&Value) -> bool);

/// Tests of minijinja with one value and no argument.
const SIMPLE: &[Simple] = &[
    ("none", builtin::is_none),
    ("boolean", builtin::is_boolean),
    ("number", builtin::is_number),
    ("integer", builtin::is_integer),
    ("float", builtin::is_float),
    ("string", builtin::is_string),
    ("sequence", |v| v.kind() == ValueKind::Seq || v.kind() == ValueKind::String),
    ("iterable", builtin::is_iterable),
    ("mapping", builtin::is_mapping),
    ("lower", builtin::is_lower),
    ("upper", builtin::is_upper),
    ("true", builtin::is_true),
    ("false", builtin::is_false),
    ("safe", builtin::is_safe),
    ("escaped", builtin::is_safe),
];

/// Tests of minijinja with one value and one argument.
const COMPARING: &[(Names, Compare)] = &[
    (&["eq", "equalto", "=="], builtin::is_eq),
    (&["ne", "!="], builtin::is_ne),
    (&["lt", "lessthan", "<"], builtin::is_lt),
    (&["le", "<="], builtin::is_le),
    (&["gt", "greaterthan", ">"], builtin::is_gt),
    (&["ge", ">="], builtin::is_ge),
    (&["sameas"], builtin::is_sameas),
    (&["divisibleby"], builtin::is_divisibleby),
];

/// Tests that are registered one by one.
const OTHER: &[&str] = &["defined", "undefined", "odd", "even", "in", "startingwith", "endingwith", "filter", "test"];

/// All names.
pub(super) fn names() -> Vec<&'static str> {
    OWN.iter()
        .flat_map(|(names, _, _)| names.iter().copied())
        .chain(SIMPLE.iter().map(|(name, _)| *name))
        .chain(COMPARING.iter().flat_map(|(names, _)| names.iter().copied()))
        .chain(OTHER.iter().copied())
        .collect()
}

pub(super) fn register(env: &mut Environment<'static>) {
    for (names, params, ask) in OWN {
        for name in *names {
            env.add_test(*name, move |value: &Value, rest: Rest<Value>, named: Kwargs| -> Result<bool, Error> {
                let plain = values::to_json(value)?;
                let (positional, named) = plain_args(&rest, &named)?;
                let mut args = filters::Args::bind_to(name, params, positional, named).map_err(wrong)?;
                ask(&plain, &mut args).map_err(|e| wrong(format!("is {name}: {e}")))
            });
        }
    }
    for (name, ask) in SIMPLE {
        env.add_test(*name, move |value: &Value| defined(value).map(|()| ask(value)));
    }
    for (names, ask) in COMPARING {
        for name in *names {
            env.add_test(*name, move |value: &Value, other: &Value| -> Result<bool, Error> {
                defined(value)?;
                defined(other)?;
                Ok(ask(value, other))
            });
        }
    }
    for (name, other) in [("odd", 1), ("even", 0)] {
        env.add_test(name, move |value: &Value| -> Result<bool, Error> {
            defined(value)?;
            let number = value.as_i64().ok_or_else(|| wrong(format!("is {name}: a number is needed")))?;
            Ok(number.rem_euclid(2) == other)
        });
    }
    env.add_test("in", |state: &State, value: &Value, other: &Value| -> Result<bool, Error> {
        defined(value)?;
        defined(other)?;
        builtin::is_in(state, value, other)
    });
    for name in names() {
        for prefix in super::PREFIXES {
            env.add_test(format!("{prefix}{name}"), move |state: &mut State, args: Rest<Value>, named: Kwargs| {
                state.perform_test(name, &with_named(args, named))
            });
        }
    }
}

fn defined(value: &Value) -> Result<(), Error> {
    if value.is_undefined() { Err(Error::from(ErrorKind::UndefinedError)) } else { Ok(()) }
}

fn text(value: &Json) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "text is needed".to_owned())
}

fn within(inner: &Json, outer: &Json) -> bool {
    match (inner, outer) {
        (Json::Array(inner), Json::Array(outer)) => inner.iter().all(|item| outer.contains(item)),
        _ => false,
    }
}

fn contains(value: &Json, args: &mut filters::Args) -> Result<bool, String> {
    let item = args.need("item")?;
    match (value, &item) {
        (Json::Array(items), _) => Ok(items.contains(&item)),
        (Json::Object(map), Json::String(key)) => Ok(map.contains_key(key)),
        (Json::String(text), Json::String(part)) => Ok(text.contains(part.as_str())),
        _ => Err("a list, a mapping or text is needed".to_owned()),
    }
}

/// A field of a task's result.
fn result(value: &Json, field: &str) -> Result<bool, String> {
    let map = value.as_object().ok_or("the result of a task is needed (a registered variable)")?;
    match map.get(field) {
        Some(Json::Bool(b)) => Ok(*b),
        // Results of other origin may lack it.
        None if map.contains_key("failed") || map.contains_key("changed") || map.contains_key("rc") => Ok(false),
        _ => Err("the result of a task is needed (a registered variable)".to_owned()),
    }
}

fn version(value: &Json, args: &mut filters::Args) -> Result<bool, String> {
    let plain = |v: &Json| match v {
        Json::String(s) => Ok(s.trim().to_owned()),
        Json::Number(n) => Ok(n.to_string()),
        _ => Err("a version is text or a number".to_owned()),
    };
    let (left, right) = (plain(value)?, plain(&args.need("version")?)?);
    if left.is_empty() || right.is_empty() {
        return Err("a version is empty".to_owned());
    }
    let operator = args.text("operator")?.unwrap_or_else(|| "==".to_owned());
    let order = filters::compare_versions(&left, &right);
    Ok(match operator.as_str() {
        "==" | "=" | "eq" => order.is_eq(),
        "!=" | "<>" | "ne" => order.is_ne(),
        "<" | "lt" => order.is_lt(),
        "<=" | "le" => order.is_le(),
        ">" | "gt" => order.is_gt(),
        ">=" | "ge" => order.is_ge(),
        other => return Err(format!("unknown operator '{other}' (known: ==, !=, <, <=, >, >=)")),
    })
}
