//! Roles: where they are, what they hold, what they depend on.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    files::is_yaml,
    keywords::{self, On},
    load::{Cx, RoleCx, State, is_identifier},
    model::{Inherit, Item, Role, RoleId},
    play::present,
};
use crate::{
    diag::{Diagnostic, Span},
    node::{Kind, Node},
    vars::{Layer, Var, Vars},
};

/// A role as it is named somewhere.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) span: Span,
    pub(super) params: Vars,
    /// `vars:` of the entry: they stand with the role's own.
    pub(super) vars: Vars,
    pub(super) tasks_from: Option<String>,
    pub(super) vars_from: Option<String>,
    pub(super) defaults_from: Option<String>,
    pub(super) handlers_from: Option<String>,
    pub(super) public: bool,
    /// Arguments are checked where the role says which it takes.
    pub(super) validate: bool,
    /// The same use is left out the second time.
    pub(super) once: bool,
}

impl Named {
    fn plain(name: String, span: Span) -> Self {
        Self {
            name,
            span,
            params: Vars::new(),
            vars: Vars::new(),
            tasks_from: None,
            vars_from: None,
            defaults_from: None,
            handlers_from: None,
            public: false,
            validate: true,
            once: true,
        }
    }
}

/// A use of a role, with the tasks of its dependencies before its own.
#[derive(Debug)]
pub(super) struct Use {
    pub(super) id: RoleId,
    pub(super) items: Vec<Item>,
}

/// What `meta/main` says.
#[derive(Debug, Default)]
struct Meta {
    dependencies: Vec<Node>,
    allow_duplicates: bool,
    argument_specs: Option<Node>,
}

impl State<'_> {
    /// The play's `roles:`.
    pub(super) fn play_roles(&mut self, node: &Node, cx: &Cx) -> Vec<Item> {
        let Some(list) = present(node, "roles") else { return Vec::new() };
        let Kind::List(entries) = &list.kind else {
            self.out.push(list.expected("a list of roles"));
            return Vec::new();
        };
        entries.iter().flat_map(|entry| self.role_entry(entry, cx).map(|u| u.items).unwrap_or_default()).collect()
    }

    /// An entry of `roles:` or of a role's dependencies: a name, or a mapping with keywords and parameters.
    fn role_entry(&mut self, entry: &Node, cx: &Cx) -> Option<Use> {
        let Kind::Map(_) = &entry.kind else {
            if entry.as_str().is_none() {
                self.out.push(entry.expected("the name of a role, or a mapping with 'role'"));
                return None;
            }
            let name = self.known_text(entry, "the name of a role")?;
            return self.use_role(Named::plain(name, entry.span), &Inherit::default(), cx);
        };
        let Some(name_node) = present(entry, "role").or_else(|| present(entry, "name")) else {
            self.out.push(Diagnostic::error(entry.span, "a role's entry needs 'role'").hint("write - role: NAME"));
            return None;
        };
        let name = self.known_text(name_node, "the name of a role")?;
        let mut named = Named::plain(name, name_node.span);
        for (key, value) in self.keys(On::Role, entry, &[]) {
            if !is_identifier(&key.name) {
                self.out.push(Diagnostic::error(key.span, format!("'{}' is no name for a variable", key.name)));
                continue;
            }
            self.check_text(value);
            named
                .params
                .insert(key.name.clone(), Var { origin: key.span, ..Var::raw(value.clone(), Layer::RoleParams) });
        }
        named.vars = present(entry, "vars").map(|n| self.vars(n, Layer::RoleVars)).unwrap_or_default();
        named.public = present(entry, "public").and_then(|n| self.known_bool(n, "public")).unwrap_or(false);
        let inherit = self.inherit(entry, Layer::RoleVars);
        self.note_notified(&inherit.notify);
        let inherit = Inherit { vars: Vec::new(), ..inherit };
        self.use_role(named, &inherit, cx)
    }

    /// Reads a role where it is named. `inherit` is laid on its tasks, its handlers and its dependencies.
    pub(super) fn use_role(&mut self, named: Named, inherit: &Inherit, cx: &Cx) -> Option<Use> {
        let path = self.find_role(&named, cx)?;
        let from = named.tasks_from.clone().unwrap_or_else(|| "main".into());
        let chain = cx.role.as_ref().map(|r| r.chain.clone()).unwrap_or_default();
        if chain.iter().any(|(p, f, _)| *p == path && *f == from) {
            let names: Vec<&str> = chain.iter().map(|(_, _, n)| n.as_str()).chain([named.name.as_str()]).collect();
            self.out.push(
                Diagnostic::error(named.span, format!("roles need each other: {}", names.join(" -> ")))
                    .hint("a role cannot be its own dependency, nor include itself"),
            );
            return None;
        }
        if !self.unfolds(named.span) {
            return None;
        }
        self.take_role_files(&named, &path);
        let meta = self.meta_of(&path, named.span);
        let id = self.add_role(&named, &path, inherit, meta.allow_duplicates, cx);
        let mut chain = chain;
        chain.push((path.clone(), from, named.name.clone()));
        let mut when = cx.role.as_ref().map(|r| r.when.clone()).unwrap_or_default();
        when.extend(inherit.when.iter().map(|e| e.text.clone()));
        let role = Rc::new(RoleCx { id, name: named.name.clone(), path: path.clone(), chain, when });
        let inner = Cx { role: Some(role), dir: path.join("tasks"), handlers: false, ..cx.clone() };
        let mut items = self.dependencies(id, &meta, &inner);
        let mut own = Vec::new();
        if let Some(specs) = meta.argument_specs.as_ref().filter(|_| named.validate) {
            own.extend(self.argument_check(specs, &named));
        }
        own.extend(self.role_tasks(&named, &path, &inner));
        Inherit::of_role(id).lay_on(&mut own);
        items.append(&mut own);
        inherit.lay_on(&mut items);
        self.role_handlers(&named, &path, inherit, &inner);
        self.rest_of_tasks(&path, &inner);
        if named.public {
            self.public.push(id);
        }
        Some(Use { id, items })
    }

    fn add_role(&mut self, named: &Named, path: &Path, inherit: &Inherit, duplicates: bool, cx: &Cx) -> RoleId {
        let defaults =
            self.role_vars(path, "defaults", named.defaults_from.as_deref(), Layer::RoleDefaults, named.span);
        let mut vars = self.role_vars(path, "vars", named.vars_from.as_deref(), Layer::RoleVars, named.span);
        for (key, var) in &named.params {
            let known = defaults.contains_key(key) || vars.contains_key(key);
            if let Some(near) = crate::diag::nearest(key, keywords::taken_on(On::Role)).filter(|_| !known) {
                self.out.push(
                    Diagnostic::warning(
                        var.origin,
                        format!("'{key}' is given to role '{}' as a parameter", named.name),
                    )
                    .hint(format!("if it is meant as a keyword: '{near}'")),
                );
            }
        }
        vars.extend(named.vars.clone());
        let parents = cx.role.as_ref().map(|r| {
            let outer = self.bundle.roles.get(r.id.0 as usize).map(|role| role.parents.clone()).unwrap_or_default();
            outer.into_iter().chain([r.id]).collect()
        });
        let id = RoleId(u32::try_from(self.bundle.roles.len()).unwrap_or(u32::MAX));
        let repeats = if named.once && !duplicates { self.first_of(id, named, path, inherit, cx) } else { None };
        self.bundle.roles.push(Role {
            name: named.name.clone(),
            path: path.to_path_buf(),
            defaults: Arc::new(defaults),
            vars: Arc::new(vars),
            params: Arc::new(named.params.clone()),
            parents: parents.unwrap_or_default(),
            repeats,
        });
        id
    }

    /// An earlier use that does the same under the same conditions.
    fn first_of(&mut self, id: RoleId, named: &Named, path: &Path, inherit: &Inherit, cx: &Cx) -> Option<RoleId> {
        let plain = |vars: &Vars| -> serde_json::Map<String, serde_json::Value> {
            vars.iter()
                .map(|(k, v)| {
                    let value = match &v.binding {
                        crate::vars::Binding::Raw(node) => node.to_value(),
                        crate::vars::Binding::Data(value) | crate::vars::Binding::Secret(value) => (**value).clone(),
                        crate::vars::Binding::Unknown(why) => serde_json::Value::from(why.as_str()),
                        crate::vars::Binding::Hosts(_) => serde_json::Value::Null,
                    };
                    (k.clone(), value)
                })
                .collect()
        };
        let mut when: Vec<&str> = cx.role.iter().flat_map(|r| r.when.iter().map(String::as_str)).collect();
        when.extend(inherit.when.iter().map(|e| e.text.as_str()));
        let key = serde_json::json!([
            path,
            named.tasks_from,
            named.vars_from,
            named.defaults_from,
            plain(&named.params),
            plain(&named.vars),
            when,
            inherit.delegate_to.as_ref().map(Node::to_value),
            inherit.become_.user.as_ref().map(Node::to_value),
        ]);
        let first = *self.first_use.entry(key.to_string()).or_insert(id);
        (first != id).then_some(first)
    }

    /// `defaults/main` or `vars/main`: a file, or a folder of files in name order.
    fn role_vars(&mut self, path: &Path, part: &str, from: Option<&str>, layer: Layer, used: Span) -> Vars {
        let name = from.unwrap_or("main");
        let mut all = Vars::new();
        match self.part_file(path, part, name) {
            Some(file) => {
                if let Some(tree) = self.yaml(&file, used) {
                    all.extend(self.vars(&tree, layer));
                }
            }
            None => {
                let dir = path.join(part).join(name);
                let files: Vec<PathBuf> = self.tree.walk(&dir).0.into_iter().filter(|p| is_yaml(p)).collect();
                if files.is_empty() && from.is_some() {
                    self.out.push(self.missing_part(path, part, name, used));
                }
                for file in files {
                    if let Some(tree) = self.yaml(&file, used) {
                        all.extend(self.vars(&tree, layer));
                    }
                }
            }
        }
        all
    }

    fn role_tasks(&mut self, named: &Named, path: &Path, cx: &Cx) -> Vec<Item> {
        let name = named.tasks_from.as_deref().unwrap_or("main");
        let Some(file) = self.part_file(path, "tasks", name) else {
            if named.tasks_from.is_some() {
                self.out.push(self.missing_part(path, "tasks", name, named.span));
            }
            return Vec::new();
        };
        let inner = Cx { files: cx.files.first().cloned().into_iter().collect(), ..cx.clone() };
        self.task_file(&file, named.span, &inner)
    }

    fn role_handlers(&mut self, named: &Named, path: &Path, inherit: &Inherit, cx: &Cx) {
        let name = named.handlers_from.as_deref().unwrap_or("main");
        let Some(file) = self.part_file(path, "handlers", name) else {
            if named.handlers_from.is_some() {
                self.out.push(self.missing_part(path, "handlers", name, named.span));
            }
            return;
        };
        let Some(tree) = self.yaml(&file, named.span) else { return };
        let first = self.handlers.len();
        let mut files: Vec<PathBuf> = cx.files.first().cloned().into_iter().collect();
        files.push(file);
        let cx = Cx { handlers: true, dir: path.join("handlers"), files, ..cx.clone() };
        self.handler_list(&tree, &cx);
        let role = cx.role.as_ref().map(|r| r.id);
        // A handler of a dynamic include would otherwise inherit the include's conditions: Ansible's do too.
        for handler in &mut self.handlers[first..] {
            Inherit { role, ..Inherit::default() }.lay_on_task(&mut handler.task);
            inherit.lay_on_task(&mut handler.task);
        }
    }

    /// Files of tasks that nothing named are read too: a mistake in them is told.
    fn rest_of_tasks(&mut self, path: &Path, cx: &Cx) {
        let (files, _) = self.tree.walk(&path.join("tasks"));
        let Some(role) = &cx.role else { return };
        for file in files.iter().filter(|f| is_yaml(f)) {
            if self.task_files.contains(file) || self.bundle.task_files.contains_key(file) {
                continue;
            }
            // As if the file had been named first: a role may use another file of itself.
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let role = RoleCx {
                id: role.id,
                name: role.name.clone(),
                path: role.path.clone(),
                chain: vec![(path.to_path_buf(), stem, role.name.clone())],
                when: role.when.clone(),
            };
            let files = cx.files.first().cloned().into_iter().collect();
            let inner = Cx { role: Some(Rc::new(role)), files, ..cx.clone() };
            let handlers = self.handlers.len();
            self.task_file(file, cx.play, &inner);
            self.handlers.truncate(handlers);
        }
    }

    fn meta_of(&mut self, path: &Path, used: Span) -> Meta {
        const KNOWN: &[&str] = &["dependencies", "allow_duplicates", "galaxy_info", "argument_specs", "collections"];
        let mut meta = Meta::default();
        if let Some(tree) = self.part_file(path, "meta", "argument_specs").and_then(|f| self.yaml(&f, used)) {
            meta.argument_specs = tree.get("argument_specs").cloned();
            if meta.argument_specs.is_none() {
                self.out.push(Diagnostic::error(tree.span, "this file needs 'argument_specs'"));
            }
        }
        let Some(tree) = self.part_file(path, "meta", "main").and_then(|f| self.yaml(&f, used)) else { return meta };
        if tree.is_null() {
            return meta;
        }
        let Kind::Map(entries) = &tree.kind else {
            self.out.push(tree.expected("a role's meta data (a mapping)"));
            return meta;
        };
        for (key, _) in entries.iter().filter(|(k, _)| !KNOWN.contains(&k.name.as_str())) {
            self.out.push(
                Diagnostic::error(key.span, format!("unknown key '{}' in a role's meta data", key.name))
                    .nearest(&key.name, KNOWN.iter().copied()),
            );
        }
        if let Some(list) = present(&tree, "dependencies") {
            match &list.kind {
                Kind::List(entries) => meta.dependencies.clone_from(entries),
                _ => self.out.push(list.expected("a list of roles for 'dependencies'")),
            }
        }
        meta.allow_duplicates =
            present(&tree, "allow_duplicates").and_then(|n| self.known_bool(n, "allow_duplicates")).unwrap_or(false);
        if let Some(specs) = present(&tree, "argument_specs") {
            meta.argument_specs = Some(specs.clone());
        }
        meta
    }

    /// The tasks of a role's dependencies; the role sees their variables, but not their parameters.
    fn dependencies(&mut self, id: RoleId, meta: &Meta, cx: &Cx) -> Vec<Item> {
        let mut items = Vec::new();
        for entry in &meta.dependencies {
            let Some(used) = self.role_entry(entry, cx) else { continue };
            items.extend(used.items);
            let Some(seen) = self.bundle.roles.get(used.id.0 as usize).cloned() else { continue };
            let outer: Vec<RoleId> =
                self.bundle.roles.get(id.0 as usize).map(|r| r.parents.clone()).unwrap_or_default();
            let shared = RoleId(u32::try_from(self.bundle.roles.len()).unwrap_or(u32::MAX));
            // What the dependency sees of its own dependencies is seen from here too.
            let below: Vec<RoleId> = seen.parents.iter().copied().filter(|p| *p != id && !outer.contains(p)).collect();
            self.bundle.roles.push(Role { params: Arc::default(), parents: Vec::new(), repeats: None, ..seen });
            if let Some(role) = self.bundle.roles.get_mut(id.0 as usize) {
                role.parents.extend(below);
                role.parents.push(shared);
            }
        }
        items
    }
}
