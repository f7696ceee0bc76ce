//! What the hosts of a run know of each other: `hostvars`.
//!
//! The inventory's variables of every host are always there. What a host found out or set in this run (its facts,
//! `register`, `set_fact`) is there for itself; for another one it travels when a task asks for it by a name that can be
//! seen before the run, see [`crate::playbook::others`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Binding, Vars};
use crate::diag::nearest;

/// The name under which a host's facts stand.
pub const FACTS: &str = "facts";

/// A value that a host left for others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// It.
    Value(Arc<Value>),
    /// Not known in check mode: it depends on something that was not done. The text says on what.
    Unknown(String),
    /// It is secret, and stays where it is.
    Hidden,
}

/// How far a host of the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its first batch has not begun.
    NotBegun,
    /// It is at work.
    Running,
    /// Its plays so far are over.
    Ran,
    /// It failed, or was lost.
    Failed,
    /// It could not be reached at all.
    Unreachable,
}

/// What the controller knows of a host of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// How far it has come.
    pub stage: Stage,
    /// By name; facts under [`FACTS`].
    pub values: BTreeMap<String, Known>,
}

/// What the controller knows of the hosts of the run, by name.
pub type Others = IndexMap<String, Other>;

/// `hostvars`, for one task on one host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostVars {
    /// The inventory's variables, rendered: a mapping of hosts.
    pub inventory: Arc<Value>,
    /// Hosts that some play of the run addresses.
    pub taking_part: Arc<BTreeSet<String>>,
    /// Names that tasks of the run set, with the place of the first such task; [`FACTS`] too.
    pub set_by: Arc<BTreeMap<String, String>>,
    /// This host.
    pub host: Arc<str>,
    /// What it registered and set.
    pub own: Arc<Vars>,
    /// What it is.
    pub facts: Arc<Value>,
    /// Names that the task asks for.
    pub asked: Arc<BTreeSet<String>>,
    /// What the controller answered; `None` where the task asks for nothing.
    pub others: Option<Arc<Others>>,
    /// False before the run: what it will bring is not known yet.
    pub running: bool,
}

/// What stands under a name of a host.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The inventory's variable.
    Inventory,
    /// What the host found out or set.
    Value(Arc<Value>),
    /// The same, made of something secret.
    Secret(Arc<Value>),
    /// It is there or not; that is not known (yet).
    Unknown(String),
    /// It may not be asked for, or not like this.
    Refused {
        /// Why.
        message: String,
        /// What helps.
        hint: String,
    },
    /// Nothing; [`HostVars::absent`] says why.
    Nothing,
}

/// Why nothing stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Why.
    pub message: String,
    /// What helps.
    pub hint: Option<String>,
}

impl HostVars {
    /// All hosts, in the inventory's order.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.inventory.as_object().into_iter().flat_map(|hosts| hosts.keys()).map(String::as_str)
    }

    /// True for a host of the inventory.
    pub fn is_host(&self, host: &str) -> bool {
        self.inventory.get(host).is_some()
    }

    fn is_set_in_run(&self, name: &str) -> bool {
        name == FACTS || self.set_by.contains_key(name)
    }

    /// What stands under a name of a host.
    pub fn find(&self, host: &str, name: &str) -> Found {
        let inventory = || match self.inventory.get(host).and_then(|vars| vars.get(name)) {
            Some(_) => Found::Inventory,
            None => Found::Nothing,
        };
        if *self.host == *host {
            return match self.of_this_host(name) {
                Found::Nothing => inventory(),
                found => found,
            };
        }
        if !self.is_set_in_run(name) || !self.taking_part.contains(host) {
            return inventory();
        }
        if !self.asked.contains(name) {
            return Found::Refused {
                message: format!("'{name}' of '{host}' is asked for by a name that cannot be seen before the run"),
                hint: format!("write the name out, as in hostvars['{host}'].{name}: then it is fetched for this task"),
            };
        }
        if !self.running {
            return Found::Unknown(format!("'{name}' of '{host}' is known only in the run"));
        }
        match self.others.as_ref().and_then(|others| others.get(host)).and_then(|other| other.values.get(name)) {
            Some(Known::Value(value)) => Found::Value(Arc::clone(value)),
            Some(Known::Unknown(why)) => Found::Unknown(format!("'{name}' of '{host}': {why}")),
            Some(Known::Hidden) => Found::Refused {
                message: format!(
                    "'{name}' of '{host}' is secret (its task has no_log, or asked for a secret), so it is not given to other hosts"
                ),
                hint: "set what the others may know with set_fact from something that is no secret".to_owned(),
            },
            None => inventory(),
        }
    }

    fn of_this_host(&self, name: &str) -> Found {
        match self.own.get(name).map(|var| &var.binding) {
            Some(Binding::Data(value)) => Found::Value(Arc::clone(value)),
            Some(Binding::Secret(value)) => Found::Secret(Arc::clone(value)),
            Some(Binding::Unknown(why)) => Found::Unknown(why.clone()),
            _ if name == FACTS => Found::Value(Arc::clone(&self.facts)),
            _ if !self.running && self.is_set_in_run(name) => {
                Found::Unknown(format!("'{name}' is known only in the run"))
            }
            _ => Found::Nothing,
        }
    }

    /// Names that can be had of a host, for loops over them. What is secret is not among them, nor what this task does
    /// not ask for.
    pub fn names(&self, host: &str) -> Vec<String> {
        let inventory = self.inventory.get(host).and_then(Value::as_object);
        let mut names: BTreeSet<&str> =
            inventory.into_iter().flat_map(|vars| vars.keys()).map(String::as_str).collect();
        if *self.host == *host {
            names.extend(self.own.keys().map(String::as_str));
            names.insert(FACTS);
            if !self.running {
                names.extend(self.set_by.keys().map(String::as_str));
            }
        } else if !self.running {
            names.extend(self.asked.iter().map(String::as_str));
        } else if let Some(other) = self.others.as_ref().and_then(|others| others.get(host)) {
            names.extend(other.values.keys().map(String::as_str));
        }
        let there = |name: &&&str| !matches!(self.find(host, name), Found::Nothing | Found::Refused { .. });
        names.iter().filter(there).map(|name| (*name).to_owned()).collect()
    }

    /// Why nothing stands under a name of a host of the inventory.
    pub fn absent(&self, host: &str, name: &str) -> Absent {
        let because = |message: String, hint: &str| Absent { message, hint: Some(hint.to_owned()) };
        let setter = match self.set_by.get(name) {
            Some(place) => format!(" (it is set at {place})"),
            None => String::new(),
        };
        if !self.is_set_in_run(name) {
            return self.unknown_name(host, name);
        }
        if !self.taking_part.contains(host) {
            return because(
                format!("'{host}' does not take part in this run, so there is no '{name}' of it{setter}"),
                "what a host finds out or sets lasts for one run: let a play of this run address it (mind --limit), or put \
                 the value into the inventory",
            );
        }
        let stage = if *self.host == *host {
            Some(Stage::Running)
        } else {
            self.others.as_ref().and_then(|others| others.get(host)).map(|other| other.stage)
        };
        match stage {
            Some(Stage::NotBegun) => because(
                format!("'{host}' has not begun its part of this run, so there is no '{name}' of it yet{setter}"),
                "let an earlier play or an earlier batch set it: what comes later cannot be asked for",
            ),
            Some(Stage::Unreachable) => because(
                format!("'{host}' could not be reached in this run, so there is no '{name}' of it"),
                "mend the connection, or ask 'is defined' first",
            ),
            Some(Stage::Failed) => because(
                format!("'{host}' failed before it set '{name}'{setter}"),
                "mend what failed there, or ask 'is defined' first",
            ),
            Some(Stage::Running | Stage::Ran) | None => because(
                format!("'{host}' runs, but has not set '{name}'{setter}"),
                "the task that sets it comes later, or was skipped there; ask 'is defined' where that is right",
            ),
        }
    }

    fn unknown_name(&self, host: &str, name: &str) -> Absent {
        let names = self.names(host);
        let known = names.iter().chain(self.set_by.keys()).map(String::as_str).filter(|n| *n != name);
        Absent {
            message: format!(
                "'hostvars.{host}.{name}' is undefined: the inventory has no such variable, no task sets it"
            ),
            hint: Some(match nearest(name, known) {
                Some(near) => format!("did you mean '{near}'?"),
                None => "variables of plays and roles are not in hostvars: set_fact makes one known to other hosts"
                    .to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        diag::Span,
        template::{EvalError, eval},
        vars::{Layer, Scope, Var},
    };

    fn set<T: From<&'static str> + Ord>(names: &[&'static str]) -> Arc<BTreeSet<T>> {
        Arc::new(names.iter().map(|n| T::from(n)).collect())
    }

    fn other(stage: Stage, values: Value) -> Other {
        let known = |v: &Value| match v.as_str() {
            Some("unknown") => Known::Unknown("the result of 'make' is not known in check mode".into()),
            Some("hidden") => Known::Hidden,
            _ => Known::Value(Arc::new(v.clone())),
        };
        let values = values.as_object().unwrap().iter().map(|(k, v)| (k.clone(), known(v))).collect();
        Other { stage, values }
    }

    fn hosts() -> HostVars {
        let names = ["me", "a", "quiet", "later", "dead", "gone", "outside"];
        let inventory: serde_json::Map<String, Value> = names
            .iter()
            .map(|n| ((*n).to_owned(), json!({"ip": format!("ip of {n}"), "token": "inventory's"})))
            .collect();
        let mut others = Others::new();
        others.insert(
            "a".into(),
            other(Stage::Ran, json!({"made": {"stdout": "x"}, "check": "unknown", "pw": "hidden"})),
        );
        for (name, stage) in [
            ("quiet", Stage::Running),
            ("later", Stage::NotBegun),
            ("dead", Stage::Failed),
            ("gone", Stage::Unreachable),
        ] {
            others.insert(name.into(), other(stage, json!({})));
        }
        let place = |name: &str| (name.to_owned(), "site.yaml:3".to_owned());
        HostVars {
            inventory: Arc::new(Value::Object(inventory)),
            taking_part: set(&["me", "a", "quiet", "later", "dead", "gone"]),
            set_by: Arc::new(["made", "check", "pw", "token", "other"].into_iter().map(place).collect()),
            host: Arc::from("me"),
            own: Arc::new(Vars::from_iter([(
                "made".to_owned(),
                Var::data(json!({"stdout": "mine"}), Layer::Registered),
            )])),
            facts: Arc::new(json!({"arch": "x86_64"})),
            asked: set(&["made", "check", "pw", "token"]),
            others: Some(Arc::new(others)),
            running: true,
        }
    }

    fn ask(hosts: HostVars, expression: &str) -> Result<Value, EvalError> {
        let binding = Binding::Hosts(Arc::new(hosts));
        let key = Var::data(json!("other"), Layer::Magic);
        let vars =
            [("hostvars".to_owned(), Var { binding, origin: Span::NONE, layer: Layer::Magic }), ("key".into(), key)];
        eval(expression, Span::NONE, &Scope::of(Vars::from_iter(vars)))
    }

    fn wrong(expression: &str) -> String {
        match ask(hosts(), expression) {
            Err(EvalError::Wrong(error)) => format!("{error:?}"),
            other => panic!("{expression}: {other:?}"),
        }
    }

    #[test]
    fn what_was_set_wins_over_the_inventory() {
        let is = |expression: &str, value: Value| assert_eq!(ask(hosts(), expression), Ok(value), "{expression}");
        is("hostvars['a'].made.stdout", json!("x"));
        is("hostvars['me'].made.stdout", json!("mine"));
        is("hostvars['me'].facts.arch", json!("x86_64"));
        is("hostvars['a'].ip", json!("ip of a"));
        is("hostvars['a'].token", json!("inventory's"));
        is("hostvars['outside'].token", json!("inventory's"));
        is("hostvars.quiet.made is defined", json!(false));
        is("hostvars['dead'].made.stdout | default('none')", json!("none"));
        is("hostvars['outside'].made is defined", json!(false));
        is("['a', 'me'] | map('extract', hostvars, ['made', 'stdout']) | list", json!(["x", "mine"]));
        is("hostvars | length", json!(7));
        is("'made' in hostvars['a'] and 'none' not in hostvars['a']", json!(true));
        is("hostvars['quiet'] | dict2items | map(attribute='key') | join(' ')", json!("ip token"));
        is("hostvars['a'].get('made', {}).stdout", json!("x"));
    }

    #[test]
    fn what_is_not_there_says_why() {
        for (expression, why) in [
            ("hostvars['quiet'].made.stdout", "'quiet' runs, but has not set 'made' (it is set at site.yaml:3)"),
            ("hostvars['later'].made", "'later' has not begun"),
            ("hostvars['dead'].made", "'dead' failed before it set 'made'"),
            ("hostvars['gone'].made", "'gone' could not be reached"),
            ("hostvars['outside'].made", "'outside' does not take part in this run"),
            ("hostvars['a'].pw", "is secret"),
            ("hostvars['a'][key]", "a name that cannot be seen before the run"),
            ("hostvars['a'][key] is defined", "a name that cannot be seen before the run"),
            ("hostvars['a'].maed", "did you mean 'made'?"),
            ("hostvars['b'].made", "there is no host 'b' in the inventory"),
            ("['later'] | map('extract', hostvars, 'made') | list", "'later' has not begun"),
        ] {
            let told = wrong(expression);
            assert!(told.contains(why), "{expression}: {told}");
        }
    }

    #[test]
    fn tera_templates_see_the_same() {
        use crate::{
            diag::FileId,
            template::{TemplateKind, TemplateSource, render_template},
        };
        let render = |hosts: HostVars, text: &str| {
            let binding = Binding::Hosts(Arc::new(hosts));
            let var = Var { binding, origin: Span::NONE, layer: Layer::Magic };
            let source = TemplateSource { name: "t.tera", file: FileId::NONE, text };
            let scope = Scope::of(Vars::from_iter([("hostvars".to_owned(), var)]));
            render_template(TemplateKind::Tera, &source, &scope, &|_| None)
        };
        let mut known = hosts();
        let mut others = (**known.others.as_ref().unwrap()).clone();
        others.get_mut("a").unwrap().values.remove("check");
        known.others = Some(Arc::new(others));
        let rendered = render(known.clone(), "{{ hostvars.a.made.stdout }} {{ hostvars['me'].ip }}").unwrap();
        assert_eq!(rendered.text, "x ip of me");
        let Err(EvalError::Wrong(wrong)) = render(known, "x\n{{ hostvars.later.made.stdout }}") else {
            panic!("wrong")
        };
        assert!(wrong.notes.iter().any(|(_, note)| note.contains("'later' has not begun")), "{wrong:?}");
        assert!(matches!(render(hosts(), "{{ hostvars.a.made.stdout }}"), Err(EvalError::Unknown(_))));
    }

    #[test]
    fn in_check_mode_and_before_the_run_it_is_unknown() {
        let unknown = |hosts: HostVars, expression: &str| {
            assert!(matches!(ask(hosts, expression), Err(EvalError::Unknown(_))), "{expression}");
        };
        unknown(hosts(), "hostvars['a'].check.stdout");
        let before = || HostVars { running: false, others: None, own: Arc::default(), ..hosts() };
        unknown(before(), "hostvars['a'].made.stdout");
        unknown(before(), "hostvars['me'].made is defined");
        unknown(before(), "hostvars['a'] | to_json");
        assert!(ask(before(), "hostvars['outside'] | to_json").is_ok());
        assert_eq!(ask(before(), "hostvars['me'].facts.arch"), Ok(json!("x86_64")));
        assert_eq!(ask(before(), "hostvars['outside'].made is defined"), Ok(json!(false)));
        assert!(matches!(ask(before(), "hostvars['outside'].made"), Err(EvalError::Wrong(_))));
        assert!(matches!(ask(before(), "hostvars['a'][key]"), Err(EvalError::Wrong(_))));
    }
}
