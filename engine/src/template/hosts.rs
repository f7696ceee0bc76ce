//! `hostvars` as expressions see it: hosts by name, each with the inventory's variables and what it left for others.

use std::sync::Arc;

use minijinja::{
    Value,
    value::{Enumerator, Object, ObjectRepr},
};

use super::{
    EvalError,
    session::{Session, invalid},
    values,
};
use crate::vars::hosts::{Found, HostVars};

/// `hostvars`.
pub(super) fn value(session: &Arc<Session>, hosts: &Arc<HostVars>) -> Value {
    Value::from_object(All { session: session.clone(), hosts: hosts.clone() })
}

#[derive(Debug)]
struct All {
    session: Arc<Session>,
    hosts: Arc<HostVars>,
}

impl Object for All {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let one = || One { session: self.session.clone(), hosts: self.hosts.clone(), host: Arc::from(key) };
        self.hosts.is_host(key).then(|| Value::from_object(one()))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.hosts.hosts().map(Value::from).collect())
    }
}

/// One host.
#[derive(Debug)]
struct One {
    session: Arc<Session>,
    hosts: Arc<HostVars>,
    host: Arc<str>,
}

impl Object for One {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match self.hosts.find(&self.host, key) {
            Found::Inventory => values::below(&self.hosts.inventory, &self.host, key),
            Found::Value(value) => Some(values::data(&value)),
            Found::Secret(value) => {
                self.session.taint();
                Some(values::data(&value))
            }
            Found::Unknown(why) => {
                self.session.fail(EvalError::Unknown(why));
                Some(invalid())
            }
            Found::Refused { message, hint } => {
                self.session.fail_about(key, message, hint);
                Some(invalid())
            }
            Found::Nothing => {
                self.session.note_absent(self.hosts.absent(&self.host, key).message);
                None
            }
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.hosts.names(&self.host).into_iter().map(Value::from).collect())
    }
}
