//! A host's variables: the layers in order of precedence, and what expressions see of the other hosts.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    connection::stays_here,
    model::{Host, Inventory},
    vars_files::Beside,
};
use crate::{
    template::{self, EvalError},
    vars::{Binding, Layer, LocalLookups, Lookups, Scope, Var, Vars},
};

impl Inventory {
    /// A host's variables from the weakest layer to the strongest, one map per place (group, file, source); those of
    /// groups are shared. Not among them: the names of [`Inventory::magic_vars`], and `-e`.
    pub fn host_vars(&self, host: &Host) -> Vec<Arc<Vars>> {
        let mut layers: Vec<Arc<Vars>> = Vec::new();
        for group in Self::group_indices(host) {
            layers.extend(self.groups[group].layers.iter().map(|(_, vars)| vars.clone()));
        }
        for (all, beside) in
            [(true, Beside::Inventory), (true, Beside::Playbook), (false, Beside::Inventory), (false, Beside::Playbook)]
        {
            for dir in self.dirs.iter().filter(|d| d.beside == beside) {
                for group in Self::group_indices(host).filter(|g| Self::is_all(*g) == all) {
                    layers.extend(dir.groups.get(&group).into_iter().flatten().cloned());
                }
            }
        }
        layers.extend(host.layers.iter().map(|(_, vars)| vars.clone()));
        if let Some(index) = self.hosts.get_index_of(&host.name) {
            for beside in [Beside::Inventory, Beside::Playbook] {
                for dir in self.dirs.iter().filter(|d| d.beside == beside) {
                    layers.extend(dir.hosts.get(&index).into_iter().flatten().cloned());
                }
            }
        }
        layers
    }

    /// A group's own variables (not those of the groups above it), weakest first.
    pub fn group_vars(&self, name: &str) -> Vec<Arc<Vars>> {
        let Some((index, _, group)) = self.groups.get_full(name) else { return Vec::new() };
        let mut layers: Vec<Arc<Vars>> = group.layers.iter().map(|(_, vars)| vars.clone()).collect();
        for beside in [Beside::Inventory, Beside::Playbook] {
            for dir in self.dirs.iter().filter(|d| d.beside == beside) {
                layers.extend(dir.groups.get(&index).into_iter().flatten().cloned());
            }
        }
        layers
    }

    /// The names that the run itself gives a host: `inventory_hostname`, `inventory_hostname_short`, `group_names`,
    /// `inventory_file`, `inventory_dir`. They are data.
    pub fn magic_vars(&self, host: &Host) -> Vars {
        let mut vars = Vars::new();
        let mut put = |name: &str, value: Value| {
            vars.insert(name.to_owned(), Var::data(value, Layer::Magic));
        };
        put("inventory_hostname", Value::String(host.name.clone()));
        put("inventory_hostname_short", Value::String(short(&host.name).to_owned()));
        put("group_names", self.group_names(host).into());
        if let Some(path) = &host.source {
            put("inventory_file", Value::String(path.display().to_string()));
            let dir = path.parent().map(|p| p.display().to_string()).unwrap_or_default();
            put("inventory_dir", Value::String(dir));
        }
        vars
    }

    /// `groups`: names of hosts by group.
    pub fn groups_json(&self) -> Arc<Value> {
        self.groups_value
            .get_or_init(|| {
                let map: Map<String, Value> = self
                    .groups
                    .values()
                    .map(|g| (g.name.clone(), self.group_hosts(g).into_iter().map(|h| h.name.clone()).collect()))
                    .collect();
                Arc::new(Value::Object(map))
            })
            .clone()
    }

    /// `hostvars`: the rendered variables of every host by name. A variable of a host that cannot be rendered from the
    /// inventory alone (it asks for facts or for variables of a role) is not in it; one that itself asks for `hostvars`
    /// sees those of the others that do not. Passwords of logins are not in it either: it travels.
    pub fn hostvars_json(&self) -> Arc<Value> {
        self.hostvars_value
            .get_or_init(|| {
                let plain = Arc::new(self.render_all(None));
                if self.uses_hostvars { Arc::new(self.render_all(Some(&plain))) } else { plain }
            })
            .clone()
    }

    fn render_all(&self, others: Option<&Arc<Value>>) -> Value {
        let mut all = Map::with_capacity(self.hosts.len());
        for host in self.hosts.values() {
            let scope = self.scope_with(host, others);
            let mut own = Map::new();
            for name in scope.names().map(str::to_owned).collect::<Vec<_>>() {
                if matches!(name.as_str(), "hostvars" | "groups") || stays_here(&name) {
                    continue;
                }
                if let Some(var) = scope.get(&name)
                    && let Ok(value) = value_of(var, &scope)
                {
                    own.insert(name, value);
                }
            }
            all.insert(host.name.clone(), Value::Object(own));
        }
        Value::Object(all)
    }

    /// Everything that an expression of the inventory sees for a host: its layers, `-e`, and the run's own names, with
    /// `groups`, and `hostvars` where some text of the inventory asks for it.
    pub fn scope(&self, host: &Host) -> Scope {
        let others = self.uses_hostvars.then(|| self.hostvars_json());
        self.scope_with(host, others.as_ref())
    }

    fn scope_with(&self, host: &Host, others: Option<&Arc<Value>>) -> Scope {
        let mut scope = Scope::new();
        for layer in self.host_vars(host) {
            scope = scope.with(layer);
        }
        if !self.extra.is_empty() {
            scope = scope.with(self.extra.clone());
        }
        let mut magic = self.magic_vars(host);
        let shared = |value: Arc<Value>| Var {
            binding: Binding::Data(value),
            origin: crate::diag::Span::NONE,
            layer: Layer::Magic,
        };
        magic.insert("groups".to_owned(), shared(self.groups_json()));
        if let Some(others) = others {
            magic.insert("hostvars".to_owned(), shared(others.clone()));
        }
        scope.with(magic).with_lookups(lookups())
    }
}

/// Expressions of the inventory are evaluated here, so `lookup('env', …)` is this process's environment.
pub(super) fn lookups() -> Arc<dyn Lookups> {
    Arc::new(LocalLookups::new("."))
}

/// The value of a variable, rendered where a person wrote it.
pub(super) fn value_of(var: &Var, scope: &Scope) -> Result<Value, EvalError> {
    match &var.binding {
        Binding::Raw(node) => template::render(node, scope),
        Binding::Data(value) | Binding::Secret(value) => Ok((**value).clone()),
        Binding::Unknown(why) => Err(EvalError::Unknown(why.clone())),
        Binding::Hosts(_) => template::eval("hostvars", var.origin, scope),
    }
}

/// The value as it was written.
pub(super) fn raw_value(var: &Var) -> Value {
    match &var.binding {
        Binding::Raw(node) => node.to_value(),
        Binding::Data(value) | Binding::Secret(value) => (**value).clone(),
        Binding::Unknown(_) | Binding::Hosts(_) => Value::Null,
    }
}

/// A name up to its first dot; addresses stay whole.
fn short(name: &str) -> &str {
    if name.parse::<std::net::IpAddr>().is_ok() { name } else { name.split('.').next().unwrap_or(name) }
}
