//! `nomad_namespace`: a namespace of Nomad.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Cx, Definition, Failure, FreeForm, Invocation, Needs, Plan,
    nomad_api::{self as api, State, api_args},
    object::{self, Object},
};
use crate::cluster::nomad::{ApiError, Nomad};

api_args! {
    /// Arguments.
    pub struct Args {
        /// Its name: letters, digits and `-`.
        name []: String, required;
        /// What it is for. Nomad shows `Made by Rollcall: …`.
        description []: String = String::new();
        /// Words that programs may give a meaning: `{owner: shop}`.
        meta []: Map<String, Value> = Map::new();
        /// The only task drivers that jobs in it may use; all without it.
        enabled_task_drivers []: Vec<String>;
        /// Task drivers that jobs in it may not use.
        disabled_task_drivers []: Vec<String>;
        /// `absent` removes it if Rollcall made it. Nomad refuses that while jobs run in it.
        state []: State = State::Present;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "nomad_namespace",
    aliases: &[],
    summary: "Makes, changes or removes a namespace of Nomad",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("id", "Its name, which is what Nomad knows it by.")]],
    example: "- name: where the shop runs\n  nomad_namespace:\n    name: shop\n    description: what customers see\n    disabled_task_drivers: [raw_exec]\n    token_secret: nomad/management\n",
    plan,
};

/// Nomad's names of the lists of drivers.
const ENABLED: &str = "EnabledTaskDrivers";
const DISABLED: &str = "DisabledTaskDrivers";

/// A namespace as Nomad tells it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Namespace {
    name: String,
    description: String,
    meta: Option<Map<String, Value>>,
    /// What is allowed in it. What Rollcall has no argument for stays as it is.
    capabilities: Option<Map<String, Value>>,
}

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    check_name(&args.name)?;
    let mut meta = Map::new();
    for (key, value) in &args.meta {
        let Value::String(_) = value else {
            return Err(Failure::new(format!("argument 'meta': '{key}' is no text: put it into quotes")));
        };
        meta.insert(key.clone(), value.clone());
    }
    let wanted = (args.state == State::Present).then(|| Namespace {
        name: args.name.clone(),
        description: api::ours(&args.description),
        meta: Some(meta),
        capabilities: Some(Map::from_iter([
            (ENABLED.to_owned(), json!(args.enabled_task_drivers)),
            (DISABLED.to_owned(), json!(args.disabled_task_drivers)),
        ])),
    });
    object::plan(args.name.clone(), wanted, (&args.access(), args.wait), cx)
}

/// Nomad's rule for names of namespaces.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    if (1..=128).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Ok(());
    }
    Err(Failure::new(format!("'{}' is no name for a namespace", name.escape_debug()))
        .hint("letters, digits and '-', 128 at most"))
}

impl Namespace {
    /// Drivers that are allowed and that are not; order means nothing.
    fn drivers(&self) -> [Vec<&str>; 2] {
        let sorted = |key: &str| {
            let list = self.capabilities.as_ref().and_then(|map| map.get(key)).and_then(Value::as_array);
            let mut list: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
            list.sort_unstable();
            list
        };
        [sorted(ENABLED), sorted(DISABLED)]
    }

    fn meta(&self) -> Map<String, Value> {
        self.meta.clone().unwrap_or_default()
    }
}

impl Object for Namespace {
    type Api = Nomad;
    const PRODUCT: &'static str = "Nomad";
    const KIND: &'static str = "namespace";

    fn id(&self) -> &str {
        &self.name
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn same(&self, other: &Self) -> bool {
        self.description == other.description && self.meta() == other.meta() && self.drivers() == other.drivers()
    }

    fn lines(&self) -> String {
        let mut lines = format!("description: {}\n", self.description);
        let meta = self.meta();
        let mut keys: Vec<&String> = meta.keys().collect();
        keys.sort();
        for key in keys {
            lines.push_str(&format!("meta {key}: {}\n", meta[key].as_str().unwrap_or_default()));
        }
        let [enabled, disabled] = self.drivers();
        for (what, list) in [("allowed", enabled), ("not allowed", disabled)] {
            if !list.is_empty() {
                lines.push_str(&format!("drivers {what}: {}\n", list.join(", ")));
            }
        }
        lines
    }

    fn find(nomad: &Nomad, name: &str) -> Result<Option<Self>, ApiError> {
        nomad.found(&["namespace", name], &[])
    }

    fn write(&self, nomad: &Nomad) -> Result<(), ApiError> {
        // The whole is written: what others have set in it is taken over.
        let mut body: Map<String, Value> = nomad.found(&["namespace", &self.name], &[])?.unwrap_or_default();
        let mut capabilities = match body.remove("Capabilities") {
            Some(Value::Object(there)) => there,
            _ => Map::new(),
        };
        capabilities.extend(self.capabilities.clone().unwrap_or_default());
        for read_only in ["CreateIndex", "ModifyIndex", "Hash"] {
            body.remove(read_only);
        }
        body.insert("Name".into(), self.name.clone().into());
        body.insert("Description".into(), self.description.clone().into());
        body.insert("Meta".into(), self.meta().into());
        body.insert("Capabilities".into(), capabilities.into());
        nomad.send(&["namespace", &self.name], &[], &Value::Object(body))
    }

    fn delete(&self, nomad: &Nomad) -> Result<(), ApiError> {
        nomad.delete(&["namespace", &self.name], &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::{
        fake::{Fake, go, plan},
        http::tests::{Server, answer},
    };

    fn stored(more: &[(&str, Value)]) -> String {
        let mut namespace = json!({"Name": "shop", "Description": "Made by Rollcall", "Meta": null, "Quota": "q",
            "Capabilities": {"EnabledTaskDrivers": ["exec", "docker"], "DisabledTaskDrivers": null, "EnabledNetworkModes": ["host"]},
            "CreateIndex": 3, "ModifyIndex": 4, "Hash": "x"});
        for (name, value) in more {
            namespace[*name] = value.clone();
        }
        answer("200 OK", &namespace.to_string())
    }

    #[test]
    fn what_others_set_stays_and_order_means_nothing() {
        let before = stored(&[]);
        let after = stored(&[("Meta", json!({"owner": "me"}))]);
        let args = |server: &Server, meta: Value| json!({"name": "shop", "enabled_task_drivers": ["docker", "exec"], "meta": meta, "url": server.url(""), "wait": 0});
        let server = Server::new([&before]);
        assert!(!go(&mut Fake::new(), "nomad_namespace", args(&server, json!({}))).unwrap().changed);
        let server = Server::new([&before, &before, &before, &answer("200 OK", ""), &after]);
        let outcome = go(&mut Fake::new(), "nomad_namespace", args(&server, json!({"owner": "me"}))).unwrap();
        assert!(outcome.changed);
        let written = server.requests()[3].clone();
        assert!(written.starts_with("PUT /v1/namespace/shop "), "{written}");
        let body: Value = serde_json::from_str(written.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!((&body["Quota"], &body["Meta"]["owner"]), (&json!("q"), &json!("me")));
        assert_eq!(body["Capabilities"]["EnabledNetworkModes"], json!(["host"]));
        assert!(body.get("ModifyIndex").is_none());
    }

    #[test]
    fn bad_input_is_refused() {
        for (args, message) in [
            (json!({"name": "a b"}), "'a b' is no name for a namespace"),
            (json!({"name": "a", "meta": {"n": 1}}), "'n' is no text"),
            (json!({"name": "a", "drivers": []}), "unknown argument 'drivers'"),
        ] {
            let failure = plan(&Fake::new(), "nomad_namespace", args).unwrap_err();
            assert!(failure.message.contains(message), "{failure}");
        }
        let server = Server::new([&stored(&[("Description", json!("by hand"))])]);
        let absent = json!({"name": "shop", "state": "absent", "url": server.url("")});
        let failure = plan(&Fake::new(), "nomad_namespace", absent).unwrap_err();
        assert!(failure.message.contains("namespace 'shop' was not made by Rollcall"), "{failure}");
    }
}
