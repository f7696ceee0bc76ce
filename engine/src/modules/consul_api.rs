//! What the modules `consul_*` share: what all that ask an [API](super::api) share, for Consul, and who a token or a role may be.

use serde_json::{Map, Value};

pub(super) use super::api::*;
use super::{Cx, Failure, FromArg};
use crate::cluster::consul::{Consul, NodeIdentity, ServiceIdentity, TemplateVariables, TemplatedPolicy};

/// Declares the arguments of a module that asks Consul with a token.
macro_rules! api_args {
    ($($all:tt)*) => { $crate::modules::api::agent_args! { ["http://127.0.0.1:8500"] $($all)* } };
}
pub(super) use api_args;

/// A client of Consul, or what the call says without one.
pub(super) type Opened = super::api::Opened<Consul>;

/// A client for a call.
pub(super) fn open(access: &Access<'_>, cx: &Cx<'_>) -> Result<Opened, Failure> {
    super::api::open(access, cx)
}

/// Reads a mapping whose keys are these; its name alone may stand for it.
fn fields(
    value: &Value,
    what: &str,
    first: &'static str,
    known: &[&'static str],
) -> Result<Map<String, Value>, String> {
    match value {
        Value::String(name) => Ok(Map::from_iter([(first.to_owned(), Value::from(name.as_str()))])),
        Value::Object(map) => {
            for key in map.keys() {
                if !known.contains(&key.as_str()) {
                    let near = crate::diag::nearest(key, known.iter().copied());
                    let near = near.map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default();
                    return Err(format!("{what} has no '{key}', only {}{near}", known.join(", ")));
                }
            }
            match map.get(first) {
                Some(Value::String(name)) if !name.is_empty() => Ok(map.clone()),
                _ => Err(format!("{what} needs a '{first}'")),
            }
        }
        _ => Err(format!("expected {what}: a name or a mapping of {}", known.join(", "))),
    }
}

fn text(map: &Map<String, Value>, key: &str) -> Result<String, String> {
    map.get(key).map_or(Ok(String::new()), |value| String::from_arg(value).map_err(|e| format!("{key}: {e}")))
}

fn places(map: &Map<String, Value>) -> Result<std::collections::BTreeSet<String>, String> {
    let list = map.get("datacenters").map_or(Ok(Vec::new()), Vec::<String>::from_arg);
    list.map(|list| list.into_iter().collect()).map_err(|e| format!("datacenters: {e}"))
}

impl FromArg for ServiceIdentity {
    fn kind() -> String {
        "a service's name, or its name and datacenters".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let map = fields(value, "a service identity", "name", &["name", "datacenters"])?;
        Ok(Self { service_name: text(&map, "name")?, datacenters: places(&map)? })
    }
}

impl FromArg for NodeIdentity {
    fn kind() -> String {
        "a node's name and its datacenter".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let map = fields(value, "a node identity", "name", &["name", "datacenter"])?;
        let identity = Self { node_name: text(&map, "name")?, datacenter: text(&map, "datacenter")? };
        if identity.datacenter.is_empty() { Err("a node identity needs a 'datacenter'".into()) } else { Ok(identity) }
    }
}

impl FromArg for TemplatedPolicy {
    fn kind() -> String {
        "a templated policy such as builtin/dns, or its template, name and datacenters".into()
    }
    fn from_arg(value: &Value) -> Result<Self, String> {
        let map = fields(value, "a templated policy", "template", &["template", "name", "datacenters"])?;
        let name = text(&map, "name")?;
        Ok(Self {
            template_name: text(&map, "template")?,
            template_variables: (!name.is_empty()).then_some(TemplateVariables { name }),
            datacenters: places(&map)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn identities_are_names_or_mappings() {
        let service = ServiceIdentity::from_arg(&json!({"name": "web", "datacenters": ["b", "a"]})).unwrap();
        assert_eq!((service.service_name.as_str(), service.datacenters.len()), ("web", 2));
        assert_eq!(ServiceIdentity::from_arg(&json!("web")).unwrap().datacenters, BTreeSet::new());
        let dns = TemplatedPolicy::from_arg(&json!("builtin/dns")).unwrap();
        assert_eq!((dns.template_name.as_str(), dns.template_variables), ("builtin/dns", None));
        for (found, why) in [
            (NodeIdentity::from_arg(&json!("n")).unwrap_err(), "needs a 'datacenter'"),
            (
                NodeIdentity::from_arg(&json!({"name": "n", "datacentre": "x"})).unwrap_err(),
                "did you mean 'datacenter'",
            ),
            (ServiceIdentity::from_arg(&json!({"datacenters": "x"})).unwrap_err(), "needs a 'name'"),
            (TemplatedPolicy::from_arg(&json!(3)).unwrap_err(), "a name or a mapping of template"),
        ] {
            assert!(found.contains(why), "{found}");
        }
    }
}
