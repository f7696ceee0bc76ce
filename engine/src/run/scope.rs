//! The scope of a task: every layer of variables, weakest first.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Context, Runner};
use crate::{
    playbook::model::{Bundle, Play, Role, RoleId, Task},
    secrets::grants::Grants,
    vars::{Layer, Scope, Var, Vars},
};

/// A role's own uses first of those that it sees, then itself.
pub(super) fn role_chain(bundle: &Bundle, role: Option<RoleId>) -> Vec<&Role> {
    let get = |id: &RoleId| bundle.roles.get(id.0 as usize);
    let Some(role) = role.as_ref().and_then(get) else { return Vec::new() };
    role.parents.iter().filter_map(get).chain([role]).collect()
}

/// Names that the run itself gives.
pub(super) fn magic(context: &Context, batch: &[String], play_hosts: &[String]) -> Vars {
    let init = &context.init;
    let mut vars = Vars::new();
    let mut put = |name: &str, value: Value| {
        vars.insert(name.to_owned(), Var::data(value, Layer::Magic));
    };
    put("inventory_hostname", json!(init.host));
    put("inventory_hostname_short", json!(init.host.split('.').next().unwrap_or(&init.host)));
    put("group_names", json!(init.group_names));
    put("cluster", init.cluster.clone());
    put("ansible_check_mode", json!(init.check));
    put("ansible_diff_mode", json!(init.diff));
    put("ansible_play_hosts", json!(play_hosts));
    put("ansible_play_hosts_all", json!(play_hosts));
    put("ansible_play_batch", json!(batch));
    put("rollcall_run_id", json!(init.run_id));
    put("playbook_dir", json!(playbook_dir(context)));
    if init.shared.is_some() {
        put("groups", json!(context.shared.groups));
        vars.insert("hostvars".to_owned(), super::others::before(context, &Arc::default()));
    }
    vars
}

fn playbook_dir(context: &Context) -> String {
    let first = context.bundle.plays.first().and_then(|p| context.bundle.sources.get(p.span.file.0 as usize));
    let dir = first.and_then(|p| p.parent()).map(|p| p.display().to_string()).unwrap_or_default();
    if dir.is_empty() { ".".to_owned() } else { dir }
}

fn is_include(vars: &Vars) -> bool {
    vars.values().next().is_some_and(|v| v.layer == Layer::IncludeParams)
}

/// The layers that are the same for all tasks of a play on this host, up to the role's.
pub(super) fn facts_layer(facts: &Arc<Value>) -> Vars {
    Vars::from_iter([(
        "facts".to_owned(),
        Var {
            binding: crate::vars::Binding::Data(Arc::clone(facts)),
            origin: crate::diag::Span::NONE,
            layer: Layer::Facts,
        },
    )])
}

/// Builds a scope from its layers; shared with preflight, which has no state yet.
pub(super) struct Layers<'a> {
    pub(super) context: &'a Context,
    pub(super) play: &'a Play,
    pub(super) magic: Arc<Vars>,
    pub(super) grants: &'a Arc<dyn Grants>,
}

impl Layers<'_> {
    pub(super) fn scope(
        &self,
        role: Option<RoleId>,
        task_vars: &[Arc<Vars>],
        late: &[Arc<Vars>],
        include_params: &[Arc<Vars>],
    ) -> Scope {
        let bundle = &self.context.bundle;
        let chain = role_chain(bundle, role);
        let public: Vec<&Role> = self.play.public.iter().filter_map(|id| bundle.roles.get(id.0 as usize)).collect();
        let mut scope = Scope::new().with_secrets(self.grants);
        for role in public.iter().chain(&chain) {
            scope = scope.with(Arc::clone(&role.defaults));
        }
        for layer in &self.context.init.vars {
            scope = scope.with(Arc::clone(layer));
        }
        scope = scope.with(facts_layer(&self.context.facts));
        scope = scope.with(Arc::clone(&self.play.vars)).with(Arc::clone(&self.play.vars_files));
        for role in public.iter().chain(&chain) {
            scope = scope.with(Arc::clone(&role.vars));
        }
        // Variables of an include beat `set_fact`; those of tasks and blocks do not.
        let (params, own): (Vec<_>, Vec<_>) = task_vars.iter().partition(|v| is_include(v));
        for layer in own.into_iter().chain(late).chain(params) {
            scope = scope.with(Arc::clone(layer));
        }
        for role in &chain {
            scope = scope.with(Arc::clone(&role.params));
        }
        for layer in include_params {
            scope = scope.with(Arc::clone(layer));
        }
        let role_names = Vars::from_iter(
            chain.last().map(|role| ("role_name".to_owned(), Var::data(json!(role.name), Layer::Magic))),
        );
        scope.with(Arc::clone(&self.context.init.extra)).with(Arc::clone(&self.magic)).with(role_names)
    }
}

impl Runner<'_> {
    /// What a task's expressions see.
    pub(super) fn scope(&self, play: &Play, task: &Task) -> Scope {
        let layers =
            Layers { context: self.context, play, magic: Arc::clone(&self.state.magic), grants: self.answering(task) };
        let mut late = vec![Arc::clone(&self.state.included), Arc::clone(&self.state.registered)];
        late.extend(self.state.failure.clone());
        let scope = layers.scope(task.role, &task.vars, &late, &self.state.include_params);
        match self.hostvars() {
            Some(hostvars) => scope.with(Vars::from_iter([("hostvars".to_owned(), hostvars)])),
            None => scope,
        }
    }
}
