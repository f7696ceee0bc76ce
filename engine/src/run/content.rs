//! What a task brings along or includes: files, templates, task files, variable files.

use std::{path::PathBuf, sync::Arc, time::Instant};

use serde_json::{Map, Value};

use super::{
    Flow, Runner,
    results::Attempt,
    task::{conditions, loop_items, loop_vars, text},
};
use crate::{
    diag::{Diagnostic, FileId, Span, nearest},
    modules::{Base64, Content, Failure, FromArg as _, Outcome, TreeEntry},
    node::Node,
    playbook::model::{Action, Bundle, Item, Play, RoleChoice, SearchKind, Task},
    template::{self, EvalError, TemplateKind, TemplateSource},
    vars::{Layer, Scope, Var, Vars},
};

impl Runner<'_> {
    /// Content for `src`, unless it is a file of the host (`remote_src`) or there is none (`content`).
    pub(super) fn file_content(
        &mut self,
        play: &Play,
        task: &Task,
        args: &Map<String, Value>,
    ) -> Result<Option<Content>, EvalError> {
        let remote = args.get("remote_src").is_some_and(|v| bool::from_arg(v).unwrap_or(false));
        let Some(src) = args.get("src").and_then(Value::as_str).filter(|_| !remote) else { return Ok(None) };
        let bundle = Arc::clone(&self.context.bundle);
        let search = bundle.search(task.role, play.span, SearchKind::Files);
        if let Some((_, entry)) = bundle.find_file(&search, src) {
            let bytes = self.link.blob(&entry.hash).map_err(|f| wrong(task, &f))?;
            return Ok(Some(Content::File { bytes, mode: entry.mode, secret: false }));
        }
        self.tree(task, &search, src)?.map_or_else(|| Err(missing(task, "file", src, &bundle.files)), |t| Ok(Some(t)))
    }

    fn tree(&self, task: &Task, search: &[PathBuf], src: &str) -> Result<Option<Content>, EvalError> {
        for dir in search {
            let root = dir.join(src.trim_end_matches('/'));
            let mut entries = Vec::new();
            let mut folders = std::collections::BTreeSet::new();
            for (path, entry) in self.context.bundle.files.range(root.clone()..) {
                let Ok(relative) = path.strip_prefix(&root) else { break };
                if relative.as_os_str().is_empty() {
                    continue;
                }
                for folder in relative.ancestors().skip(1).filter(|f| !f.as_os_str().is_empty()) {
                    folders.insert(folder.to_path_buf());
                }
                let bytes = self.link.blob(&entry.hash).map_err(|f| wrong(task, &f))?;
                entries.push(TreeEntry { path: relative.to_path_buf(), mode: entry.mode, bytes: Some(Base64(bytes)) });
            }
            if entries.is_empty() {
                continue;
            }
            entries.extend(folders.into_iter().map(|path| TreeEntry { path, mode: 0o755, bytes: None }));
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            return Ok(Some(Content::Tree(entries)));
        }
        Ok(None)
    }

    pub(super) fn template_content(
        &mut self,
        play: &Play,
        task: &Task,
        args: &Map<String, Value>,
        scope: &Scope,
    ) -> Result<Option<Content>, EvalError> {
        let Some(src) = args.get("src").and_then(Value::as_str) else { return Ok(None) };
        let bundle = Arc::clone(&self.context.bundle);
        let search = bundle.search(task.role, play.span, SearchKind::Templates);
        let Some((path, entry)) = bundle.find_file(&search, src) else {
            return Err(missing(task, "template", src, &bundle.files));
        };
        let source = self.text_of(task, path, &entry.hash)?;
        let load = |name: &str| {
            let (path, entry) = bundle.find_file(&search, name)?;
            self.text_of(task, path, &entry.hash).ok().map(|text| (self.file_id(path), text))
        };
        let name = path.display().to_string();
        let template = TemplateSource { name: &name, file: self.file_id(path), text: &source };
        let rendered = template::render_template(TemplateKind::of(path), &template, scope, &load)?;
        Ok(Some(Content::File { bytes: rendered.text.into_bytes(), mode: entry.mode, secret: rendered.secret }))
    }

    fn text_of(&self, task: &Task, path: &std::path::Path, hash: &str) -> Result<String, EvalError> {
        let bytes = self.link.blob(hash).map_err(|f| wrong(task, &f))?;
        String::from_utf8(bytes)
            .map_err(|_| Diagnostic::error(task.span, format!("{} is not UTF-8", path.display())).into())
    }

    /// The id under which the controller knows a file, so that an error can point into it.
    fn file_id(&self, path: &std::path::Path) -> FileId {
        let at = self.context.bundle.sources.iter().position(|p| p == path);
        at.and_then(|i| u32::try_from(i).ok()).map_or(FileId::NONE, FileId)
    }

    /// `include_vars`.
    pub(super) fn include_vars(
        &mut self,
        task: &Task,
        file: &Node,
        search: &[PathBuf],
        name: Option<&str>,
        scope: &Scope,
    ) -> Attempt {
        let wanted = match text(file, scope, "a file's name") {
            Ok(wanted) => wanted,
            Err(error) => return error.into(),
        };
        let bundle = Arc::clone(&self.context.bundle);
        let Some(node) = search.iter().find_map(|dir| bundle.vars_files.get(&dir.join(&wanted))) else {
            return missing(task, "variable file", &wanted, &bundle.vars_files).into();
        };
        let vars = match name {
            Some(name) => Vars::from_iter([(name.to_owned(), Var::raw((**node).clone(), Layer::IncludeVars))]),
            None => match node.map() {
                Ok(entries) => {
                    entries.iter().map(|(k, v)| (k.name.clone(), Var::raw(v.clone(), Layer::IncludeVars))).collect()
                }
                Err(diagnostic) => return EvalError::Wrong(diagnostic).into(),
            },
        };
        Arc::make_mut(&mut self.state.included).extend(vars);
        Attempt::Done(Outcome::unchanged(), Vec::new())
    }

    /// `include_tasks` and `include_role`: the condition once, then the tasks with the include's variables.
    pub(super) fn include(&mut self, play: &Play, task: &Task, scope: &Scope, started: Instant) -> Flow {
        let items = match &task.loop_ {
            None => vec![None],
            Some(looped) => match loop_items(looped, scope) {
                Ok(items) => {
                    let count = items.len();
                    items
                        .iter()
                        .enumerate()
                        .map(|(i, item)| Some(loop_vars(looped, item, i, count, scope.tainted())))
                        .collect()
                }
                Err(error) => return self.tell(task, scope, &error.into(), started),
            },
        };
        for (turn, vars) in (0..).zip(items) {
            self.state.others.enter(turn);
            let flow = self.include_one(play, task, scope, vars, started);
            self.state.others.leave();
            if !matches!(flow, Flow::Next) {
                return flow;
            }
        }
        Flow::Next
    }

    fn include_one(&mut self, play: &Play, task: &Task, scope: &Scope, vars: Option<Vars>, started: Instant) -> Flow {
        let scope = vars.as_ref().map_or_else(|| scope.clone(), |vars| scope.with(vars.clone()));
        match conditions(&task.when, &scope) {
            Ok(None) => {}
            Ok(Some(why)) => return self.tell(task, &scope, &Attempt::Skipped(why), started),
            Err(error) => return self.tell(task, &scope, &error.into(), started),
        }
        let tasks = match self.included_items(task, &scope) {
            Ok(tasks) => tasks,
            Err(error) => return self.tell(task, &scope, &error.into(), started),
        };
        let depth = self.state.include_params.len();
        self.state.include_params.extend(task.vars.iter().cloned());
        self.state.include_params.extend(vars.map(Arc::new));
        let inside = self.context.bundle.others.inside.get(&task.id);
        let outer = self.state.others.inside(inside);
        let flow = self.items(play, &tasks);
        self.state.others.outside(outer);
        self.state.include_params.truncate(depth);
        flow
    }

    fn included_items(&self, task: &Task, scope: &Scope) -> Result<Arc<Vec<Item>>, EvalError> {
        match &task.action {
            Action::IncludeRole { name, choices } => {
                picked(name.as_ref(), choices, scope).map(|c| Arc::new(c.tasks.clone()))
            }
            Action::IncludeTasks { file, search, .. } => {
                let bundle = &self.context.bundle;
                let path = included_file(task, file, search, bundle, scope)?;
                Ok(bundle.included(task, &path).map(Arc::new).unwrap_or_default())
            }
            _ => Ok(Arc::default()),
        }
    }
}

/// The file of tasks that an include means on this host.
pub(super) fn included_file(
    task: &Task,
    file: &Node,
    search: &[PathBuf],
    bundle: &Bundle,
    scope: &Scope,
) -> Result<PathBuf, EvalError> {
    let wanted = text(file, scope, "a file's name")?;
    let found = search.iter().map(|dir| dir.join(&wanted)).find(|p| bundle.task_files.contains_key(p));
    found.ok_or_else(|| missing(task, "task file", &wanted, &bundle.task_files))
}

/// The role that an include means on this host.
pub(super) fn picked<'c>(
    name: Option<&Node>,
    choices: &'c [RoleChoice],
    scope: &Scope,
) -> Result<&'c RoleChoice, EvalError> {
    let (wanted, span) = match (name, choices) {
        (None, [only]) => return Ok(only),
        (None, _) => (String::new(), Span::NONE),
        (Some(name), _) => (text(name, scope, "the name of a role")?, name.span),
    };
    choices.iter().find(|choice| choice.name == wanted).ok_or_else(|| {
        let known = choices.iter().map(|choice| choice.name.as_str());
        let written = name.and_then(Node::as_str).unwrap_or_default();
        Diagnostic::error(span, format!("no role '{wanted}' that '{written}' can mean")).nearest(&wanted, known).into()
    })
}

fn wrong(task: &Task, failure: &Failure) -> EvalError {
    Diagnostic::error(task.span, failure.message.clone()).into()
}

fn missing<V>(task: &Task, what: &str, name: &str, known: &std::collections::BTreeMap<PathBuf, V>) -> EvalError {
    let names: Vec<&str> = known.keys().filter_map(|p| p.file_name()?.to_str()).collect();
    let diagnostic =
        Diagnostic::error(task.span, format!("no {what} '{name}' in the role, beside the playbook or in the project"));
    match nearest(name, names) {
        Some(near) => diagnostic.hint(format!("did you mean '{near}'?")),
        None => diagnostic,
    }
    .into()
}
