//! `import_tasks`, `include_tasks`, `import_role`, `include_role`, `include_vars`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    files::{folder, hint_file, is_yaml},
    keywords::On,
    load::{Cx, State},
    model::{Action, Inherit, Item, RoleChoice},
    play::present,
    role::{Named, Use},
    syntax,
};
use crate::{
    diag::{Diagnostic, Span},
    node::{Key, Kind, Node},
    vars::{Layer, Vars},
};

impl State<'_> {
    /// Reads the arguments of an action of ours: a mapping, or a string for the first name.
    fn own_arguments(&mut self, action: &str, value: &Node, node: &Node, names: &[&'static str]) -> Vec<(Key, Node)> {
        let mut entries = match &value.kind {
            Kind::Map(entries) => entries.clone(),
            Kind::Str(_) => vec![(Key { name: names[0].to_owned(), span: value.span }, value.clone())],
            Kind::Null => Vec::new(),
            _ => {
                self.out.push(value.expected(&format!("the arguments of '{action}'")));
                return Vec::new();
            }
        };
        if let Some(args) = present(node, "args") {
            match &args.kind {
                Kind::Map(more) => entries.extend(more.iter().cloned()),
                _ => self.out.push(args.expected("a mapping for 'args'")),
            }
        }
        for (key, _) in &mut entries {
            if key.name == "_raw" || key.name == "_raw_params" {
                names[0].clone_into(&mut key.name);
            }
        }
        let mut unknown = false;
        for (key, _) in entries.iter().filter(|(k, _)| !names.contains(&k.name.as_str())) {
            unknown = true;
            self.out.push(
                Diagnostic::error(key.span, format!("unknown argument '{}' of '{action}'", key.name))
                    .nearest(&key.name, names.iter().copied()),
            );
        }
        if !entries.iter().any(|(k, v)| k.name == names[0] && !v.is_null()) {
            if !unknown {
                self.out.push(Diagnostic::error(value.span, format!("'{action}' needs '{}'", names[0])));
            }
            return Vec::new();
        }
        entries
    }

    /// Folders in which a file of tasks is looked for.
    fn task_search(cx: &Cx) -> Vec<PathBuf> {
        let mut search = vec![cx.dir.clone()];
        if let Some(role) = &cx.role {
            search.push(role.path.join("tasks"));
        }
        if let Some(first) = cx.files.first().and_then(|f| f.parent()) {
            search.push(first.to_path_buf());
        }
        let mut seen = std::collections::HashSet::new();
        search.retain(|dir| seen.insert(dir.clone()));
        search
    }

    fn find_tasks(&mut self, file: &Node, name: &str, cx: &Cx) -> Option<PathBuf> {
        let search = Self::task_search(cx);
        // `..` is followed here, so that a file has one name however it is reached.
        let found = search.iter().map(|dir| dir.join(name)).find(|p| self.tree.is_file(p));
        if found.is_none() {
            let near: Vec<String> = search.iter().flat_map(|d| self.yaml_names(d)).collect();
            let wrong = Diagnostic::error(file.span, format!("task file '{name}' does not exist"));
            let mut wrong = hint_file(wrong, name, &near);
            for dir in &search {
                wrong = wrong.note(Span::NONE, format!("looked in {}", folder(dir)));
            }
            self.out.push(wrong);
        }
        found
    }

    fn yaml_names(&self, dir: &Path) -> Vec<String> {
        if dir.starts_with(super::files::EMBEDDED) { self.tree.names(dir) } else { Self::siblings(dir) }
    }

    /// `import_tasks`: the tasks stand here.
    pub(super) fn import_tasks(&mut self, node: &Node, value: &Node, cx: &Cx, out: &mut Vec<Item>) {
        let args = self.own_arguments("import_tasks", value, node, &["file"]);
        let Some((_, file)) = args.first() else { return };
        let Some(name) = self.known_text(file, "the name of an imported file (use include_tasks otherwise)") else {
            return;
        };
        let Some(path) = self.find_tasks(file, &name, cx) else { return };
        let inherit = self.inherit(node, Layer::Block);
        self.note_notified(&inherit.notify);
        let mut inner = cx.clone();
        inner.defaulted.extend(Self::defaulted(node));
        let mut items = self.task_file(&path, file.span, &inner);
        inherit.lay_on(&mut items);
        out.append(&mut items);
    }

    /// The tasks of a file, told where a circle closes.
    pub(super) fn task_file(&mut self, path: &Path, used: Span, cx: &Cx) -> Vec<Item> {
        if cx.files.iter().any(|f| f == path) {
            let chain: Vec<String> =
                cx.files.iter().map(PathBuf::as_path).chain([path]).map(|p| p.display().to_string()).collect();
            self.out.push(Diagnostic::error(used, format!("files import each other: {}", chain.join(" -> "))));
            return Vec::new();
        }
        if cx.files.len() > 64 {
            self.out.push(Diagnostic::error(used, "imports are nested more than 64 levels deep"));
            return Vec::new();
        }
        if !self.unfolds(used) {
            return Vec::new();
        }
        self.task_files.insert(path.to_path_buf());
        let Some(tree) = self.yaml(path, used) else { return Vec::new() };
        if let Kind::List(entries) = &tree.kind
            && let Some(play) = entries.iter().find(|n| n.get("hosts").is_some())
        {
            self.out.push(
                Diagnostic::error(play.span, "this is a play, where a task is expected")
                    .note(used, "the file is used as a list of tasks here")
                    .hint("a playbook is used by import_playbook"),
            );
            return Vec::new();
        }
        let mut inner = cx.clone();
        inner.files.push(path.to_path_buf());
        inner.dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
        self.items(&tree, &inner)
    }

    /// `include_tasks`: the file is chosen on the host.
    pub(super) fn include_tasks(&mut self, node: &Node, value: &Node, cx: &Cx, out: &mut Vec<Item>) {
        let args = self.own_arguments("include_tasks", value, node, &["file", "apply"]);
        let get = |name: &str| args.iter().find(|(k, _)| k.name == name).map(|(_, v)| v);
        let Some(file) = get("file") else { return };
        let text = match file.scalar_text() {
            Ok(text) => text,
            Err(wrong) => {
                self.out.push(wrong);
                return;
            }
        };
        self.check_text(file);
        if syntax::braces(&text) {
            self.possible_files(&text, file.span, cx);
        } else if let Some(path) = self.find_tasks(file, &text, cx) {
            self.included_file(&path, file.span, cx);
        }
        let mut inherit = self.applied(get("apply"));
        let given = present(node, "vars").map(|n| self.vars(n, Layer::IncludeParams)).unwrap_or_default();
        if !given.is_empty() {
            inherit.vars.insert(0, Arc::new(given));
        }
        let action = Action::IncludeTasks {
            file: Node { span: file.span, kind: Kind::Str(text) },
            search: Self::task_search(cx),
            inherit: Box::new(inherit),
        };
        let task = self.build(node, action, Layer::IncludeParams);
        out.push(Item::Task(Box::new(task)));
    }

    /// `apply`: what a block can say.
    fn applied(&mut self, apply: Option<&Node>) -> Inherit {
        let Some(apply) = apply.filter(|n| !n.is_null()) else { return Inherit::default() };
        if !matches!(apply.kind, Kind::Map(_)) {
            self.out.push(apply.expected("a mapping for 'apply'"));
            return Inherit::default();
        }
        for key in ["block", "rescue", "always"] {
            if let Some(node) = apply.get(key) {
                self.out.push(Diagnostic::error(node.span, format!("'{key}' cannot stand in 'apply'")));
            }
        }
        self.check_keys(On::Block, apply, &[]);
        let inherit = self.inherit(apply, Layer::Block);
        self.note_notified(&inherit.notify);
        inherit
    }

    /// Reads a file that an include names, once, without what it inherits.
    fn included_file(&mut self, path: &Path, used: Span, cx: &Cx) {
        if !self.included.insert(path.to_path_buf()) {
            return;
        }
        // Held while it is read: a file that includes itself ends here.
        let known = self.bundle.task_files.contains_key(path);
        self.bundle.task_files.entry(path.to_path_buf()).or_default();
        let inner = Cx { files: cx.files.first().cloned().into_iter().collect(), ..cx.clone() };
        let items = self.task_file(path, used, &inner);
        // A later play reads it again for its own handlers and notifications; the tasks are the same.
        if !known {
            self.bundle.task_files.insert(path.to_path_buf(), Arc::new(items));
        }
    }

    /// Reads every file that a name with expressions can mean.
    fn possible_files(&mut self, text: &str, span: Span, cx: &Cx) {
        let pattern = syntax::pattern(text);
        let mut any = false;
        for dir in Self::task_search(cx) {
            let of_role = cx.role.as_ref().is_some_and(|r| dir.starts_with(r.path.join("tasks")));
            // Beside a playbook stand playbooks too: only its tasks/ folder is taken as files of tasks, unless the
            // name says more than its ending.
            let base = Path::new(pattern.prefix()).parent().map(|p| dir.join(p)).unwrap_or(dir.clone());
            let (files, _) = if of_role || base != dir {
                self.tree.walk(&base)
            } else {
                let tasks = self.tree.walk(&dir.join("tasks"));
                let beside = Self::siblings(&dir).into_iter().map(|n| dir.join(n)).filter(|p| Self::is_task_file(p));
                (tasks.0.into_iter().chain(beside).collect(), Vec::new())
            };
            for path in files.into_iter().filter(|p| is_yaml(p)) {
                let name = path.strip_prefix(&dir).unwrap_or(&path).to_string_lossy().into_owned();
                if pattern.is_match(&name) && !cx.files.contains(&path) {
                    any = true;
                    self.included_file(&path, span, cx);
                }
            }
        }
        if !any {
            self.out.push(Diagnostic::error(span, format!("no file can be meant by '{text}'")).hint(format!(
                "looked in {}",
                Self::task_search(cx).iter().map(|d| folder(d)).collect::<Vec<_>>().join(", ")
            )));
        }
    }

    /// True for a list of mappings none of which is a play.
    fn is_task_file(path: &Path) -> bool {
        let Ok(text) = std::fs::read_to_string(path) else { return false };
        let Ok(tree) = crate::yaml::parse_text(crate::diag::FileId::NONE, &text) else { return false };
        let plain =
            |n: &Node| matches!(n.kind, Kind::Map(_)) && n.get("hosts").is_none() && n.get("import_playbook").is_none();
        matches!(&tree.kind, Kind::List(items) if items.iter().all(plain))
    }

    /// `import_role` and `include_role`.
    pub(super) fn named_role(&mut self, node: &Node, value: &Node, dynamic: bool, cx: &Cx, out: &mut Vec<Item>) {
        let action = if dynamic { "include_role" } else { "import_role" };
        const COMMON: &[&str] = &[
            "name",
            "tasks_from",
            "vars_from",
            "defaults_from",
            "handlers_from",
            "public",
            "allow_duplicates",
            "rolespec_validate",
            "apply",
        ];
        let names = if dynamic { COMMON } else { &COMMON[..COMMON.len() - 1] };
        let mut args = self.own_arguments(action, value, node, names);
        if let Some((key, _)) = args.iter_mut().find(|(k, _)| k.name == "role") {
            key.name = "name".into();
        }
        let get = |name: &str| args.iter().find(|(k, v)| k.name == name && !v.is_null()).map(|(_, v)| v);
        let Some(name_node) = get("name") else { return };
        let picked = dynamic && self.is_picked(name_node);
        let name = if picked { None } else { self.known_text(name_node, "the name of a role") };
        if name.is_none() && !picked {
            return;
        }
        let mut text = |key: &str| get(key).and_then(|n| self.known_text(n, &format!("'{key}'")));
        let (tasks_from, vars_from) = (text("tasks_from"), text("vars_from"));
        let (defaults_from, handlers_from) = (text("defaults_from"), text("handlers_from"));
        let mut flag = |key: &str, default: bool| get(key).and_then(|n| self.known_bool(n, key)).unwrap_or(default);
        let public = flag("public", false);
        let validate = flag("rolespec_validate", true);
        let allow_duplicates = flag("allow_duplicates", true);
        let layer = if dynamic { Layer::IncludeParams } else { Layer::Block };
        let mut inherit = if dynamic { self.applied(get("apply")) } else { self.inherit(node, layer) };
        self.note_notified(&inherit.notify);
        if dynamic {
            let given = present(node, "vars").map(|n| self.vars(n, layer)).unwrap_or_default();
            if !given.is_empty() {
                inherit.vars.insert(0, Arc::new(given));
            }
        }
        let used = Named {
            name: name.unwrap_or_default(),
            span: name_node.span,
            params: Vars::new(),
            vars: Vars::new(),
            tasks_from,
            vars_from,
            defaults_from,
            handlers_from,
            public,
            validate,
            once: !allow_duplicates,
        };
        let mut inner = cx.clone();
        inner.defaulted.extend(Self::defaulted(node));
        if picked {
            let choices = self.possible_roles(name_node, &used, &inherit, &inner);
            let task = self.build(node, Action::IncludeRole { name: Some(name_node.clone()), choices }, layer);
            out.push(Item::Task(Box::new(task)));
            return;
        }
        let name = used.name.clone();
        let Some(Use { id, mut items }) = self.use_role(used, &inherit, &inner) else { return };
        if dynamic {
            let choices = vec![RoleChoice { name, role: id, tasks: items }];
            let task = self.build(node, Action::IncludeRole { name: None, choices }, layer);
            out.push(Item::Task(Box::new(task)));
        } else {
            out.append(&mut items);
        }
    }

    /// `include_vars`.
    pub(super) fn include_vars(&mut self, node: &Node, value: &Node, cx: &Cx, out: &mut Vec<Item>) {
        if let Some(key) = ["dir", "depth", "files_matching", "ignore_files", "extensions", "hash_behaviour"]
            .iter()
            .find_map(|k| value.map().ok()?.iter().find(|(key, _)| key.name == *k).map(|(key, _)| key))
        {
            self.out.push(
                Diagnostic::error(key.span, format!("argument '{}' of 'include_vars' is not taken yet", key.name))
                    .hint("name each file, or loop over the names"),
            );
            return;
        }
        let args = self.own_arguments("include_vars", value, node, &["file", "name"]);
        let get = |name: &str| args.iter().find(|(k, v)| k.name == name && !v.is_null()).map(|(_, v)| v);
        let Some(file) = get("file") else { return };
        let Some(text) = self.told(file.scalar_text()) else { return };
        self.check_text(file);
        let name = get("name").and_then(|n| self.known_text(n, "'name'"));
        let mut search = Vec::new();
        if let Some(role) = &cx.role {
            search.extend([role.path.join("vars"), role.path.clone()]);
        }
        search.push(cx.dir.clone());
        if let Some(play) = cx.files.first().and_then(|f| f.parent()) {
            search.extend([play.join("vars"), play.to_path_buf()]);
        }
        if !syntax::braces(&text) {
            match search.iter().map(|d| d.join(&text)).find(|p| self.tree.is_file(p)) {
                Some(path) => self.take_vars_file(&path, file.span),
                None => {
                    let near: Vec<String> = search.iter().flat_map(|d| self.yaml_names(d)).collect();
                    let wrong = Diagnostic::error(file.span, format!("vars file '{text}' does not exist"));
                    self.out.push(hint_file(wrong, &text, &near));
                }
            }
        }
        if syntax::braces(&text) {
            let pattern = syntax::pattern(&text);
            for dir in &search {
                let base = Path::new(pattern.prefix()).parent().map_or(dir.clone(), |p| dir.join(p));
                // A name that is nothing but an expression means files of a vars/ folder.
                if pattern.prefix().is_empty() && !dir.ends_with("vars") {
                    continue;
                }
                for path in self.tree.walk(&base).0.into_iter().filter(|p| is_yaml(p)) {
                    let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
                    if pattern.is_match(&name) {
                        self.take_vars_file(&path, file.span);
                    }
                }
            }
        }
        let action = Action::IncludeVars { file: Node { span: file.span, kind: Kind::Str(text) }, search, name };
        let task = self.build(node, action, Layer::Task);
        out.push(Item::Task(Box::new(task)));
    }

    /// Reads a file of variables for `include_vars`.
    pub(super) fn take_vars_file(&mut self, path: &Path, used: Span) {
        if self.bundle.vars_files.contains_key(path) {
            return;
        }
        if let Some(tree) = self.yaml(path, used) {
            self.vars(&tree, Layer::Registered);
            self.bundle.vars_files.insert(path.to_path_buf(), tree);
        }
    }
}
