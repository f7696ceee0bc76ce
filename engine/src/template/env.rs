//! The one environment of expressions: settings, filters, tests, functions, and the cache of compiled expressions.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use minijinja::{
    Environment, Error, ErrorKind, Expression, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Rest},
};

use super::{filters, limits, refs::Callee, soften, soften::Softened, values};

mod functions;
mod own;
mod tests;

/// Instructions that one evaluation may take: stops endless loops within a second or so.
const FUEL: u64 = 5_000_000;
/// Macros and includes inside of each other.
const RECURSION: usize = 60;
/// Compiled expressions that are kept.
const CACHE: usize = 4096;

/// Ansible's settings for templates.
pub(super) fn syntax() -> SyntaxConfig {
    let mut builder = SyntaxConfig::builder();
    builder.trim_blocks(true).lstrip_blocks(false).keep_trailing_newline(true);
    // Only delimiters can be wrong, and they are the default ones.
    builder.build().unwrap_or_default()
}

/// The environment.
pub(super) fn inline() -> &'static Environment<'static> {
    static ENVIRONMENT: OnceLock<Environment<'static>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let mut env = Environment::new();
        env.set_syntax(syntax());
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_debug(false);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(RECURSION);
        env.set_formatter(print);
        env.set_unknown_method_callback(method);
        // It would print every variable, secrets too.
        env.remove_global("debug");
        for filter in filters::all() {
            register(&mut env, filter);
        }
        own::register(&mut env);
        tests::register(&mut env);
        functions::register(&mut env);
        env
    })
}

/// Methods of Python's types (`.get()`, `.split()`); nothing undefined passes through them.
fn method(state: &mut minijinja::State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.is_undefined() || args.iter().any(Value::is_undefined) {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Prints as Ansible does: `True`, `['a', 1]`, and nothing for `null`.
fn print(out: &mut minijinja::Output, _: &mut minijinja::State, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    if value.is_none() {
        return Ok(());
    }
    if values::is_omit(value) {
        return Err(wrong("'omit' can only be the whole value of an argument or of a key"));
    }
    let text = match value.as_str() {
        Some(text) => return out.write_str(text).map_err(Error::from),
        None => value.to_string(),
    };
    out.write_str(&text).map_err(Error::from)
}

pub(super) fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Registers a filter of the common table, also under the long names that Ansible gives it.
fn register(env: &mut Environment<'static>, filter: &'static filters::Filter) {
    for name in filter.names {
        let name: &'static str = name;
        let call = move |value: &Value, rest: Rest<Value>, named: Kwargs| -> Result<Value, Error> {
            let input = values::to_json(value)?;
            let (positional, named) = plain_args(&rest, &named)?;
            let result = filters::Args::bind(filter, name, positional, named)
                .and_then(|mut args| filter.call(input, &mut args))
                .map_err(wrong)?;
            Ok(values::owned(result))
        };
        env.add_filter(name, call);
        for prefix in PREFIXES {
            env.add_filter(format!("{prefix}{name}"), call);
        }
    }
}

/// Collections whose filters and tests are ours under their short names.
const PREFIXES: &[&str] = &["ansible.builtin.", "ansible.utils.", "ansible.netcommon.", "community.general."];

type Arguments = (Vec<serde_json::Value>, serde_json::Map<String, serde_json::Value>);

fn plain_args(rest: &[Value], named: &Kwargs) -> Result<Arguments, Error> {
    let positional = rest.iter().map(values::to_json).collect::<Result<_, _>>()?;
    let named = named.args().map(|name| Ok((name.to_owned(), values::to_json(&named.peek::<Value>(name)?)?)));
    Ok((positional, named.collect::<Result<_, Error>>()?))
}

/// Arguments as a caller hands them over: named ones last.
fn with_named(args: Rest<Value>, named: Kwargs) -> Vec<Value> {
    let mut args = args.0;
    if named.args().next().is_some() {
        args.push(Value::from(named));
    }
    args
}

/// A compiled expression.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) expression: Expression<'static, 'static>,
    /// What was compiled, and how places in it lead back to what was written.
    pub(super) source: Softened<'static>,
}

/// Compiles an expression, or takes it from the cache.
pub(super) fn compile(text: &str) -> Result<Arc<Compiled>, Error> {
    static CACHED: OnceLock<Mutex<HashMap<String, Arc<Compiled>>>> = OnceLock::new();
    let cache = || CACHED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = cache().get(text) {
        return Ok(found.clone());
    }
    limits::expression(text)?;
    let source = soften::expression(text).into_owned();
    let expression = inline().compile_expression_owned(source.text().to_owned())?;
    let compiled = Arc::new(Compiled { expression, source });
    let mut cache = cache();
    if cache.len() >= CACHE {
        cache.clear();
    }
    cache.insert(text.to_owned(), compiled.clone());
    Ok(compiled)
}

/// A function or value that is always there.
pub(super) fn global(name: &str) -> Option<Value> {
    inline().globals().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Known filters, tests or functions.
pub(super) fn names(callee: Callee) -> &'static BTreeSet<String> {
    static NAMES: OnceLock<[BTreeSet<String>; 3]> = OnceLock::new();
    let all = NAMES.get_or_init(|| {
        let with_prefixes = |short: Vec<&'static str>| {
            let mut names: BTreeSet<String> = short.iter().map(|n| (*n).to_owned()).collect();
            for prefix in PREFIXES {
                names.extend(short.iter().map(|n| format!("{prefix}{n}")));
            }
            names
        };
        let filters = filters::all().flat_map(|f| f.names.iter().copied()).chain(own::NAMES.iter().copied());
        let functions = inline().globals().map(|(name, _)| name.to_owned()).collect();
        [with_prefixes(filters.collect()), with_prefixes(tests::names()), functions]
    });
    match callee {
        Callee::Filter => &all[0],
        Callee::Test => &all[1],
        Callee::Function => &all[2],
    }
}

/// Why something that Ansible has is not here, and what to do instead.
pub(super) fn refused(name: &str) -> Option<&'static str> {
    Some(match name.rsplit('.').next().unwrap_or(name) {
        "random" | "shuffle" | "random_mac" => {
            "it gives another value at every run, so nothing would ever be unchanged: write the value down as a variable"
        }
        "now" | "to_datetime" | "strftime" => {
            "it gives another value at every run: take the time from facts, or format it on the host with the command module"
        }
        "password_hash" | "vault" | "unvault" => "hash the password once, and keep the hash as a variable",
        "exists" | "file" | "directory" | "link" | "is_file" | "is_dir" => {
            "ask the host with the stat module and register its result"
        }
        "realpath" | "expanduser" | "fileglob" => {
            "it depends on the machine: ask the host with the stat or the command module"
        }
        "subelements" => {
            "loop over the outer list and use a nested template, or build the pairs with 'product' and 'map'"
        }
        "json_query" => "use 'selectattr', 'map' and attribute access",
        "pipe" => "run a task with the command module and register its result",
        "debug" => "use the debug module: printing every variable would show secrets",
        _ => return None,
    })
}
