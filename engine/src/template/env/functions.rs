//! Functions of expressions: lookups, `omit`, `secret`.

use std::sync::Arc;

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, Rest},
};

use super::{super::values, wrong};
use crate::{
    diag::nearest,
    secrets::{Name, grants::GrantError},
    template::{EvalError, session::Session},
};

/// Lookups that are known.
const LOOKUPS: &[&str] = &["env", "file", "vars"];

pub(super) fn register(env: &mut Environment<'static>) {
    env.add_global("omit", Value::from_object(values::Omit));
    env.add_function("lookup", |state: &State, name: String, terms: Rest<Value>, options: Kwargs| {
        lookup(state, &name, &terms, &options).map(|mut found| match found.len() {
            1 => found.remove(0),
            _ => Value::from(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        })
    });
    for name in ["query", "q"] {
        env.add_function(name, |state: &State, name: String, terms: Rest<Value>, options: Kwargs| {
            lookup(state, &name, &terms, &options)
        });
    }
    env.add_function("secret", |state: &State, name: String| -> Result<Value, Error> {
        secret(&*values::session(state)?, &name)
    });
}

/// Asks who answers this host. The value taints what it is used for, and so does the attempt to get it.
fn secret(session: &Session, name: &str) -> Result<Value, Error> {
    session.taint();
    let grants = session.scope.secrets().ok_or_else(|| {
        wrong(format!(
            "secret('{name}') is evaluated on hosts only: the controller, which decides where and in which order tasks \
             run, reads no secret for itself"
        ))
    })?;
    let name = Name::new(name).map_err(|bad| wrong(bad.to_string()))?;
    match grants.secret(&name) {
        Ok(value) => Ok(Value::from(value.expose())),
        Err(GrantError::NotYet(why)) => {
            session.fail(EvalError::Unknown(why));
            Err(wrong("a secret is not there yet"))
        }
        Err(error @ GrantError::Refused { .. }) => Err(wrong(error.to_string()).with_source(error)),
    }
}

fn lookup(state: &State, name: &str, terms: &[Value], options: &Kwargs) -> Result<Vec<Value>, Error> {
    let session = values::session(state)?;
    let short = name.rsplit('.').next().unwrap_or(name);
    let default: Option<Value> = options.get("default")?;
    options.get::<Option<Value>>("errors")?;
    options.assert_all_used()?;
    if terms.is_empty() {
        return Err(wrong(format!("lookup('{name}') needs a name")));
    }
    terms.iter().map(|term| one(&session, short, term, default.as_ref())).collect()
}

fn one(session: &Arc<Session>, name: &str, term: &Value, default: Option<&Value>) -> Result<Value, Error> {
    let term = term.as_str().ok_or_else(|| wrong(format!("lookup('{name}') needs text, not a {}", term.kind())))?;
    let here = |what: &str| {
        session.scope.lookups().ok_or_else(|| {
            wrong(format!(
                "lookup('{what}') is evaluated on the controller only: set a variable with it in the play's vars or in the inventory, and use that here"
            ))
        })
    };
    match name {
        "env" => match here("env")?.env(term).map_err(|e| wrong(format!("lookup('env', '{term}'): {e}")))? {
            Some(value) => Ok(Value::from(value)),
            None => Ok(default.cloned().unwrap_or_else(|| Value::from(""))),
        },
        "file" => {
            let text = here("file")?.file(term).map_err(|e| wrong(format!("lookup('file', '{term}'): {e}")))?;
            // As Ansible: the newline at the end of a file is not part of what was asked for.
            Ok(Value::from(text.trim_end_matches(['\n', '\r'])))
        }
        "vars" => match session.lookup(term).or_else(|| default.cloned()) {
            Some(value) => Ok(value),
            None => Err(wrong(format!("lookup('vars'): '{term}' is undefined"))),
        },
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    let hint = match super::refused(name).map(str::to_owned) {
        Some(why) => why,
        None => match nearest(name, LOOKUPS.iter().copied()) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("known: {}", LOOKUPS.join(", ")),
        },
    };
    wrong(format!("unknown lookup '{name}' ({hint})"))
}
