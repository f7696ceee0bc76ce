//! The inventory as text: `--graph`, `--list` (Ansible's JSON), `--list --yaml`, `--host`, `--explain`.

use std::{collections::HashSet, fmt::Write as _};

use serde_json::{Map, Value, json};

use super::{
    host_vars::{raw_value, value_of},
    model::{ALL, Group, Host, Inventory},
    pytext,
};
use crate::{
    diag::{Diagnostic, Sources, Span, suggest},
    template::EvalError,
    vars::{Binding, Layer, Var},
};

/// Hosts to show: all, or those of a limit.
pub type Shown<'a> = Option<&'a HashSet<String>>;

impl Inventory {
    /// The tree of a group as `ansible-inventory --graph` prints it, without a newline at the end.
    pub fn graph(&self, group: &str, with_vars: bool, shown: Shown<'_>) -> Result<String, Diagnostic> {
        let start = self.group(group).ok_or_else(|| {
            let error = Diagnostic::error(Span::NONE, format!("there is no group '{group}'"));
            if self.host(group).is_some() {
                return error.hint(format!("'{group}' is a host: controller inventory --host {group}"));
            }
            error.nearest(group, self.groups().map(|g| g.name.as_str()))
        })?;
        let mut out = String::new();
        self.graph_group(&mut out, start, 0, with_vars, shown);
        out.pop();
        Ok(out)
    }

    fn graph_group(&self, out: &mut String, group: &Group, depth: usize, with_vars: bool, shown: Shown<'_>) {
        graph_line(out, &format!("@{}:", group.name), depth);
        for child in self.children(group) {
            self.graph_group(out, child, depth + 1, with_vars, shown);
        }
        if group.name != ALL {
            for host in self.direct_hosts(group).filter(|h| is_shown(h, shown)) {
                graph_line(out, &host.name, depth + 1);
                if with_vars {
                    graph_vars(out, &self.raw_host_vars(host), depth + 2);
                }
            }
        }
        if with_vars {
            graph_vars(out, &self.raw_group_vars(group), depth + 1);
        }
    }

    /// A host's variables as they are written, the winners only, sorted by name.
    fn raw_host_vars(&self, host: &Host) -> Map<String, Value> {
        let mut all: Vec<(String, Value)> = Vec::new();
        let mut at = std::collections::HashMap::new();
        for layer in self.host_vars(host).into_iter().chain([self.extra.clone()]) {
            for (name, var) in layer.iter() {
                let next = all.len();
                let index = *at.entry(name.clone()).or_insert(next);
                let value = raw_value(var);
                if index == next {
                    all.push((name.clone(), value));
                } else {
                    all[index].1 = value;
                }
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter().collect()
    }

    fn raw_group_vars(&self, group: &Group) -> Map<String, Value> {
        let mut vars: Vec<(String, Value)> = self
            .group_vars(&group.name)
            .iter()
            .flat_map(|layer| layer.iter().map(|(name, var)| (name.clone(), raw_value(var))).collect::<Vec<_>>())
            .collect();
        if group.priority != 1 {
            vars.push(("ansible_group_priority".to_owned(), group.priority.into()));
        }
        // Stable: of one name the last one, the winner, stays last.
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        vars.into_iter().collect()
    }

    /// Variables for a reader that evaluates expressions: text of hosts and clouds that looks like one is marked.
    fn marked_host_vars(&self, host: &Host) -> Value {
        let scope_vars = self.raw_host_vars(host);
        let mut marked = Map::new();
        let layers = self.host_vars(host);
        for (name, value) in scope_vars {
            let winner = layers.iter().rev().find_map(|layer| layer.get(&name));
            let is_data =
                !self.extra.contains_key(&name) && winner.is_some_and(|v| matches!(v.binding, Binding::Data(_)));
            marked.insert(name, if is_data { mark(value) } else { value });
        }
        Value::Object(marked)
    }

    /// Ansible's inventory JSON with `_meta`, sorted by name. `with_meta` off leaves the variables out.
    pub fn list_json(&self, shown: Shown<'_>) -> Value {
        let mut groups: Vec<(String, Value)> = Vec::new();
        for group in self.groups() {
            let mut entry = Map::new();
            let children: Vec<&str> = self.children(group).map(|g| g.name.as_str()).collect();
            if !children.is_empty() {
                entry.insert("children".into(), json!(children));
            }
            if group.name != ALL {
                let hosts: Vec<&str> =
                    self.direct_hosts(group).filter(|h| is_shown(h, shown)).map(|h| h.name.as_str()).collect();
                if !hosts.is_empty() {
                    entry.insert("hosts".into(), json!(hosts));
                }
            }
            if !entry.is_empty() {
                groups.push((group.name.clone(), Value::Object(entry)));
            }
        }
        let mut hosts: Vec<(String, Value)> = self
            .hosts()
            .filter(|h| is_shown(h, shown))
            .map(|h| (h.name.clone(), self.marked_host_vars(h)))
            .filter(|(_, vars)| vars.as_object().is_some_and(|m| !m.is_empty()))
            .collect();
        hosts.sort_by(|a, b| a.0.cmp(&b.0));
        let hosts: Map<String, Value> = hosts.into_iter().collect();
        groups.sort_by(|a, b| a.0.cmp(&b.0));
        let mut all = Map::new();
        all.insert("_meta".into(), json!({"hostvars": hosts, "profile": "inventory_legacy"}));
        all.extend(groups);
        Value::Object(all)
    }

    /// The inventory as a static YAML inventory that Ansible and we can read again.
    pub fn list_yaml(&self, shown: Shown<'_>) -> Value {
        let (mut seen_groups, mut seen_hosts) = (HashSet::new(), HashSet::new());
        let all = self.group(ALL).map(|g| self.yaml_group(g, shown, &mut seen_groups, &mut seen_hosts));
        json!({ALL: all.unwrap_or(Value::Null)})
    }

    fn yaml_group(
        &self,
        group: &Group,
        shown: Shown<'_>,
        seen_groups: &mut HashSet<String>,
        seen_hosts: &mut HashSet<String>,
    ) -> Value {
        let mut entry = Map::new();
        let mut children = Map::new();
        for child in self.children(group) {
            let value = if seen_groups.insert(child.name.clone()) {
                self.yaml_group(child, shown, seen_groups, seen_hosts)
            } else {
                json!({})
            };
            children.insert(child.name.clone(), value);
        }
        if !children.is_empty() {
            entry.insert("children".into(), Value::Object(children));
        }
        let mut hosts = Map::new();
        if group.name != ALL {
            for host in self.direct_hosts(group).filter(|h| is_shown(h, shown)) {
                let first = seen_hosts.insert(host.name.clone());
                let vars = if first { Value::Object(self.raw_host_vars(host)) } else { json!({}) };
                hosts.insert(host.name.clone(), vars);
            }
        }
        if !hosts.is_empty() {
            entry.insert("hosts".into(), Value::Object(hosts));
        }
        Value::Object(entry)
    }

    /// A host's variables, as Ansible's `--host` gives them.
    pub fn host_json(&self, host: &str) -> Result<Value, Diagnostic> {
        Ok(self.marked_host_vars(self.known_host(host)?))
    }

    /// A host by name, or an error with the nearest name.
    pub fn known_host(&self, name: &str) -> Result<&Host, Diagnostic> {
        self.host(name).ok_or_else(|| {
            let error = Diagnostic::error(Span::NONE, format!("there is no host '{name}'"));
            if self.group(name).is_some() {
                return error.hint(format!("'{name}' is a group: controller inventory --graph {name}"));
            }
            match suggest(name, self.hosts().map(|h| h.name.as_str())) {
                Some(hint) => error.hint(hint),
                None => error.hint("see what there is: controller inventory --graph"),
            }
        })
    }

    /// Every place that sets a variable of a host, the winner first, and the value that comes out. Ends with a newline.
    pub fn explain(&self, host: &str, name: &str, sources: &Sources) -> Result<String, Diagnostic> {
        let host = self.known_host(host)?;
        let scope = self.scope(host);
        let history: Vec<&Var> = scope.history(name).collect();
        let Some(winner) = history.first() else {
            let error = Diagnostic::error(Span::NONE, format!("nothing sets '{name}' for host '{}'", host.name));
            return Err(match suggest(name, scope.names()) {
                Some(hint) => error.hint(hint),
                None => error.hint("role defaults and play variables are not part of the inventory"),
            });
        };
        let mut out = format!("{name} of {}\n", host.name);
        for (number, var) in history.iter().enumerate() {
            let place = place(var, host, sources);
            let mark = if number == 0 { "wins" } else { "    " };
            let _ = writeln!(out, "  {mark}  {:<32} {place}", layer_text(var.layer));
            let _ = writeln!(out, "          {}", one_line(&raw_value(var)));
        }
        match value_of(winner, &scope) {
            Ok(value) => {
                let _ = writeln!(out, "value: {value}");
            }
            Err(EvalError::Unknown(why)) => {
                let _ = writeln!(out, "value: not known before a run: it depends on {why}");
            }
            Err(EvalError::Wrong(e)) => {
                let _ = writeln!(out, "value: cannot be rendered from the inventory alone: {}", e.message);
                if let Some(place) = sources.place(e.span) {
                    let _ = writeln!(out, "       {place}");
                }
            }
        }
        Ok(out)
    }
}

/// JSON as Ansible prints it: indented by four.
pub fn json_text(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut out, serde_json::ser::PrettyFormatter::with_indent(b"    "));
    if serde::Serialize::serialize(value, &mut serializer).is_err() {
        return value.to_string();
    }
    String::from_utf8(out).unwrap_or_else(|_| value.to_string())
}

fn is_shown(host: &Host, shown: Shown<'_>) -> bool {
    shown.is_none_or(|names| names.contains(&host.name))
}

fn graph_line(out: &mut String, name: &str, depth: usize) {
    if depth > 0 {
        out.push_str(&"  |".repeat(depth));
        out.push_str("--");
    }
    let _ = writeln!(out, "{name}");
}

fn graph_vars(out: &mut String, vars: &Map<String, Value>, depth: usize) {
    for (name, value) in vars {
        graph_line(out, &format!("{{{name} = {}}}", pytext::text(value)), depth);
    }
}

/// Marks text that would be taken for an expression, as Ansible's own JSON does.
fn mark(value: Value) -> Value {
    match value {
        Value::String(s) if s.contains("{{") || s.contains("{%") || s.contains("{#") => {
            json!({"__ansible_unsafe": s})
        }
        Value::Array(items) => Value::Array(items.into_iter().map(mark).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, mark(v))).collect()),
        other => other,
    }
}

fn place(var: &Var, host: &Host, sources: &Sources) -> String {
    if let Some(place) = sources.place(var.origin) {
        return place;
    }
    match (&host.instance, var.layer) {
        (Some(instance), Layer::InventoryHost) => format!("EC2 instance {} in {}", instance.id, instance.region),
        (_, Layer::Magic) => "given by the run".to_owned(),
        _ => "built in".to_owned(),
    }
}

fn layer_text(layer: Layer) -> &'static str {
    match layer {
        Layer::RoleDefaults => "role defaults",
        Layer::InventoryGroup => "group in the inventory",
        Layer::InventoryAllVars => "group_vars/all (inventory)",
        Layer::PlaybookAllVars => "group_vars/all (playbook)",
        Layer::InventoryGroupVars => "group_vars (inventory)",
        Layer::PlaybookGroupVars => "group_vars (playbook)",
        Layer::InventoryHost => "host in the inventory",
        Layer::InventoryHostVars => "host_vars (inventory)",
        Layer::PlaybookHostVars => "host_vars (playbook)",
        Layer::Facts => "facts",
        Layer::Play => "play vars",
        Layer::VarsFiles => "vars_files",
        Layer::RoleVars => "role vars",
        Layer::Block => "block vars",
        Layer::Task => "task vars",
        Layer::IncludeVars => "include_vars",
        Layer::Registered => "set_fact or register",
        Layer::RoleParams => "role parameters",
        Layer::IncludeParams => "include parameters",
        Layer::Extra => "-e",
        Layer::Magic => "the run itself",
    }
}

fn one_line(value: &Value) -> String {
    let text = match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() > 100 { format!("{}…", line.chars().take(99).collect::<String>()) } else { line }
}
