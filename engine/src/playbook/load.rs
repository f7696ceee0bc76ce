//! Reading playbooks: everything wrong in all files is told in one go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    files::{Blob, EMBEDDED, Tree, hint_file, shown},
    keywords::{self, Class, On, Status},
    model::{Bundle, Handler, Play, RoleId},
    syntax,
};
use crate::{
    diag::{Diagnostic, Diagnostics, Sources, Span},
    node::{Kind, Node},
    project::Project,
    roles::EmbeddedRoles,
    vars::{Layer, Scope, Var, Vars},
};

/// Uses of roles and files of tasks in a run.
const MAX_UNFOLDED: usize = 10_000;

/// Reads playbooks.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// Where texts are kept for messages.
    pub sources: &'a Sources,
    /// Where roles and playbooks are looked for.
    pub project: &'a Project,
    /// The roles and playbooks that come with the program.
    pub embedded_roles: &'a dyn EmbeddedRoles,
    /// `-e`: names of files, roles and the like may be made of these.
    pub extra: &'a Vars,
}

impl std::fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("project", &self.project).finish_non_exhaustive()
    }
}

/// What was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The plays and what they need. Give it to [`select_tags`](super::select_tags) before it is used.
    pub bundle: Bundle,
    /// Where to read the bytes of each hash in [`Bundle::files`].
    pub contents: BTreeMap<String, Blob>,
    /// Worth telling, in order of place.
    pub warnings: Vec<Diagnostic>,
    /// Which roles were taken from where, in order of use.
    pub roles_used: Vec<RoleUsed>,
}

/// A role that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleUsed {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// It came with the program.
    pub embedded: bool,
    /// Only an include whose name the host makes can mean it.
    pub possible: bool,
}

impl Loader<'_> {
    /// Reads and checks playbooks with their roles, tasks, templates and variable files.
    ///
    /// A playbook is a path, or the bare name of one in the project's playbook folders or of ours. The errors are all
    /// that were found, sorted by place; warnings are among them.
    pub fn load(&self, playbooks: &[PathBuf]) -> Result<Loaded, Diagnostics> {
        let mut state = State::new(*self);
        if let Some(project) = state.bundle.project.clone() {
            for folder in ["files", "templates"] {
                state.take_in(&project.join(folder), Span::NONE);
            }
        }
        for playbook in playbooks {
            match state.find_playbook(playbook) {
                Ok(path) => state.playbook(&path, Span::NONE, &mut Vec::new()),
                Err(wrong) => state.out.push(wrong),
            }
        }
        state.finish()
    }
}

/// What surrounds a list of tasks that is being read.
#[derive(Clone, Debug)]
pub(super) struct Cx {
    /// The folder of the file.
    pub(super) dir: PathBuf,
    /// The play's place.
    pub(super) play: Span,
    /// The role.
    pub(super) role: Option<Rc<RoleCx>>,
    /// Handlers are read.
    pub(super) handlers: bool,
    /// Files being read, outermost first.
    pub(super) files: Vec<PathBuf>,
    /// Modules with the arguments that `module_defaults` give them.
    pub(super) defaulted: Vec<(String, Vec<String>)>,
}

/// The role whose tasks are read.
#[derive(Debug)]
pub(super) struct RoleCx {
    pub(super) id: RoleId,
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Uses that led here, outermost first: folder and task file, with the name to show.
    pub(super) chain: Vec<(PathBuf, String, String)>,
    /// Conditions of those uses.
    pub(super) when: Vec<String>,
}

/// A notification to be looked up when the play has been read.
#[derive(Debug)]
pub(super) struct Notified {
    pub(super) name: String,
    pub(super) span: Span,
}

/// Reading in progress.
pub(super) struct State<'a> {
    pub(super) loader: Loader<'a>,
    pub(super) out: Diagnostics,
    pub(super) bundle: Bundle,
    pub(super) tree: Tree,
    pub(super) roles_used: Vec<RoleUsed>,
    next_task: u32,
    unfolded: usize,
    /// Variables that are known without a host.
    pub(super) known: Scope,
    /// Variables of the `import_playbook`s around: they win over the play's.
    pub(super) given: Vars,
    pub(super) handlers: Vec<Handler>,
    pub(super) notified: Vec<Notified>,
    pub(super) public: Vec<RoleId>,
    /// First use of each role in this play, by everything that makes uses differ.
    pub(super) first_use: HashMap<String, RoleId>,
    /// Task files that were read, or are being read.
    pub(super) task_files: BTreeSet<PathBuf>,
    /// Files that includes of this play name.
    pub(super) included: BTreeSet<PathBuf>,
    /// Includes around whose role the host picks.
    pub(super) picking: usize,
    /// Roles whose files were taken in.
    pub(super) taken_in: BTreeSet<PathBuf>,
    /// Templates that were checked.
    pub(super) checked: BTreeSet<PathBuf>,
}

impl<'a> State<'a> {
    fn new(loader: Loader<'a>) -> Self {
        let project = loader.project.file.is_some().then(|| loader.project.root.clone());
        Self {
            loader,
            out: Diagnostics::default(),
            bundle: Bundle { project, ..Bundle::default() },
            tree: Tree::default(),
            roles_used: Vec::new(),
            next_task: 1,
            unfolded: 0,
            known: Scope::of(loader.extra.clone()),
            given: Vars::new(),
            handlers: Vec::new(),
            notified: Vec::new(),
            public: Vec::new(),
            first_use: HashMap::new(),
            task_files: BTreeSet::new(),
            included: BTreeSet::new(),
            picking: 0,
            taken_in: BTreeSet::new(),
            checked: BTreeSet::new(),
        }
    }

    fn finish(mut self) -> Result<Loaded, Diagnostics> {
        let sources = self.loader.sources;
        let path = |d: &Diagnostic| sources.get(d.span.file).map(|s| s.path.clone());
        let mut found = std::mem::take(&mut self.out.0);
        found.sort_by_cached_key(|d| (path(d), d.span.line, d.span.column, std::cmp::Reverse(d.severity)));
        let mut seen = std::collections::HashSet::new();
        found.retain(|d| seen.insert((path(d), d.span.line, d.span.column, d.message.clone())));
        let found = Diagnostics(found);
        if found.has_errors() {
            return Err(found);
        }
        self.bundle.sources = sources.paths();
        Ok(Loaded { bundle: self.bundle, contents: self.tree.contents, warnings: found.0, roles_used: self.roles_used })
    }

    /// A path, else a bare name in the project's folders, else one of ours.
    fn find_playbook(&mut self, given: &Path) -> Result<PathBuf, Diagnostic> {
        if given.is_file() {
            return Ok(shown(given));
        }
        let bare = given.components().count() == 1;
        let names: Vec<PathBuf> = match given.extension() {
            Some(_) => vec![given.to_path_buf()],
            None => ["yaml", "yml"].iter().map(|e| given.with_extension(e)).collect(),
        };
        let folders = if bare { &self.loader.project.playbooks[..] } else { &[] };
        for folder in std::iter::once(Path::new("")).chain(folders.iter().map(PathBuf::as_path)) {
            if let Some(path) = names.iter().map(|n| folder.join(n)).find(|p| p.is_file()) {
                return Ok(shown(&path));
            }
        }
        if bare {
            for name in &names {
                let ours = self.loader.embedded_roles;
                if ours.playbook(&name.to_string_lossy()).is_some() {
                    // All of them: one may import another.
                    let dir = Path::new(EMBEDDED).join("playbooks");
                    let all = ours
                        .playbooks()
                        .into_iter()
                        .filter_map(|n| Some((PathBuf::from(&n), ours.playbook(&n)?, 0o644)));
                    self.tree.embed(&dir, all.collect());
                    return Ok(dir.join(name));
                }
            }
        }
        let mut known = self.loader.embedded_roles.playbooks();
        for folder in folders {
            known.extend(self.tree.names(folder).into_iter().filter(|n| super::files::is_yaml(Path::new(n))));
        }
        let what = if given.is_dir() { "is a folder, not a playbook" } else { "does not exist" };
        if let Some(dir) = given.parent() {
            known.extend(Self::siblings(dir).into_iter().map(|n| dir.join(n).display().to_string()));
        }
        let wrong = Diagnostic::error(Span::NONE, format!("playbook {} {what}", given.display()));
        Err(hint_file(wrong, &given.to_string_lossy(), &known))
    }

    /// Reads a playbook's plays. `open` are the playbooks being read.
    fn playbook(&mut self, path: &Path, used: Span, open: &mut Vec<PathBuf>) {
        if open.iter().any(|p| p == path) {
            let chain: Vec<String> =
                open.iter().map(std::path::PathBuf::as_path).chain([path]).map(|p| p.display().to_string()).collect();
            self.out.push(Diagnostic::error(used, format!("playbooks import each other: {}", chain.join(" -> "))));
            return;
        }
        let Some(node) = self.yaml(path, used) else { return };
        let plays = match &node.kind {
            Kind::List(plays) if !plays.is_empty() => plays,
            Kind::Map(_) => {
                self.out.push(
                    Diagnostic::error(node.span, "a playbook is a list of plays, found a mapping")
                        .hint("start each play with '- ': - hosts: all"),
                );
                return;
            }
            Kind::List(_) | Kind::Null => {
                self.out.push(
                    Diagnostic::error(node.span, "the playbook holds no play").hint("a play starts with '- hosts: '"),
                );
                return;
            }
            _ => {
                self.out.push(node.expected("a list of plays"));
                return;
            }
        };
        open.push(path.to_path_buf());
        for play in plays {
            let imported = ["import_playbook", "ansible.builtin.import_playbook"].iter().find_map(|k| play.get(k));
            match imported {
                Some(target) => self.import_playbook(play, target, path, open),
                None => {
                    if let Some(play) = self.play(play, path) {
                        self.bundle.plays.push(play);
                    }
                }
            }
        }
        open.pop();
    }

    fn import_playbook(&mut self, node: &Node, target: &Node, from: &Path, open: &mut Vec<PathBuf>) {
        self.check_keys(On::ImportPlaybook, node, &["ansible.builtin.import_playbook"]);
        // Nothing of the play before it: only -e, and what the imports around it give.
        self.known = Scope::of(self.given.clone()).with(self.loader.extra.clone());
        let Some(name) = self.known_text(target, "the playbook's name") else { return };
        let path = shown(&from.parent().unwrap_or(Path::new("")).join(&name));
        if !self.tree.is_file(&path) {
            let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let near = Self::siblings(&dir);
            let wrong = Diagnostic::error(target.span, format!("playbook {} does not exist", path.display()));
            self.out.push(hint_file(wrong, &name, &near));
            return;
        }
        let inherit = self.inherit(node, Layer::Play);
        let outer = self.given.clone();
        self.given = inherit.vars.iter().flat_map(|v| v.iter().map(|(k, v)| (k.clone(), v.clone()))).collect();
        self.given.extend(outer.clone());
        let inherit = super::model::Inherit { vars: Vec::new(), ..inherit };
        let first = self.bundle.plays.len();
        self.playbook(&path, target.span, open);
        self.given = outer;
        for play in &mut self.bundle.plays[first..] {
            for list in [&mut play.pre_tasks, &mut play.tasks, &mut play.post_tasks] {
                inherit.lay_on(list);
            }
            for handler in &mut play.handlers {
                inherit.lay_on_task(&mut handler.task);
            }
        }
    }

    /// YAML files beside a path, for suggestions.
    pub(super) fn siblings(dir: &Path) -> Vec<String> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        std::fs::read_dir(dir)
            .map(|entries| {
                let mut names: Vec<String> = entries
                    .flatten()
                    .filter(|e| super::files::is_yaml(&e.path()))
                    .map(|e| e.file_name().to_string_lossy().into_owned())
                    .collect();
                names.sort();
                names
            })
            .unwrap_or_default()
    }

    /// The tree of a file; `None` if it cannot be read, which has been told.
    pub(super) fn yaml(&mut self, path: &Path, used: Span) -> Option<Arc<Node>> {
        match self.tree.yaml(self.loader.sources, path, used) {
            Ok(node) => node,
            Err(wrong) => {
                self.out.push(wrong);
                None
            }
        }
    }

    /// Counts what is unfolded: files that import each other twice would double at each level.
    pub(super) fn unfolds(&mut self, used: Span) -> bool {
        self.unfolded += 1;
        if self.unfolded > MAX_UNFOLDED {
            let wrong = format!("imports and roles unfold to more than {MAX_UNFOLDED} uses");
            self.out.push(Diagnostic::error(used, wrong).hint("use include_tasks where a file is used often"));
        }
        self.unfolded <= MAX_UNFOLDED
    }

    pub(super) fn next_id(&mut self) -> u32 {
        let id = self.next_task;
        self.next_task += 1;
        id
    }

    /// Notes an error and goes on.
    pub(super) fn told<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|wrong| self.out.push(wrong)).ok()
    }

    /// Tells of keys that may not stand here. Returns those that are no keyword at all.
    pub(super) fn keys<'n>(&mut self, on: On, node: &'n Node, others: &[&str]) -> Vec<&'n (crate::node::Key, Node)> {
        let Kind::Map(entries) = &node.kind else { return Vec::new() };
        let mut unknown = Vec::new();
        for entry in entries {
            let key = &entry.0;
            if others.contains(&key.name.as_str()) {
                continue;
            }
            match keywords::classify(on, &key.name) {
                Class::Known(keyword) => match keyword.status {
                    Status::Taken => {}
                    Status::Ignored(why) => {
                        self.out.push(Diagnostic::warning(key.span, format!("'{}' has no effect: {why}", key.name)));
                    }
                    Status::NotYet(instead) => {
                        self.out.push(
                            Diagnostic::error(key.span, format!("keyword '{}' is not taken yet", key.name))
                                .hint(instead),
                        );
                    }
                },
                Class::Misplaced(keyword) => {
                    let places: Vec<&str> = keyword.on.iter().map(|o| o.describe()).collect();
                    let hint = if on == On::Include && keyword.on.contains(&On::Block) {
                        "put it under 'apply', or on a block around the include".to_owned()
                    } else {
                        format!("it stands in {}", places.join(", "))
                    };
                    self.out.push(
                        Diagnostic::error(
                            key.span,
                            format!("keyword '{}' cannot stand in {}", key.name, on.describe()),
                        )
                        .hint(hint),
                    );
                }
                Class::Unknown => unknown.push(entry),
            }
        }
        unknown
    }

    /// As [`State::keys`], and each unknown key is an error.
    pub(super) fn check_keys(&mut self, on: On, node: &Node, others: &[&'static str]) {
        for (key, _) in self.keys(on, node, others) {
            let known: Vec<&str> = keywords::taken_on(on).collect();
            self.out.push(
                Diagnostic::error(key.span, format!("unknown keyword '{}' in {}", key.name, on.describe()))
                    .nearest(&key.name, known),
            );
        }
    }

    /// Variables under `vars:` or in a file.
    pub(super) fn vars(&mut self, node: &Node, layer: Layer) -> Vars {
        let mut vars = Vars::new();
        let entries = match &node.kind {
            Kind::Null => return vars,
            Kind::Map(entries) => entries,
            _ => {
                self.out.push(node.expected("variables (a mapping)"));
                return vars;
            }
        };
        for (key, value) in entries {
            if !is_identifier(&key.name) {
                self.out.push(
                    Diagnostic::error(key.span, format!("'{}' is no name for a variable", key.name))
                        .hint("names are letters, digits and _, and do not start with a digit"),
                );
                continue;
            }
            self.check_text(value);
            vars.insert(key.name.clone(), Var { origin: key.span, ..Var::raw(value.clone(), layer) });
        }
        vars
    }

    /// Checks the syntax of all text in a tree.
    pub(super) fn check_text(&mut self, node: &Node) {
        match &node.kind {
            Kind::Str(text) => {
                if let Err(wrong) = syntax::text(text, node.span) {
                    self.out.push(wrong);
                }
            }
            Kind::List(items) => items.iter().for_each(|n| self.check_text(n)),
            Kind::Map(entries) => entries.iter().for_each(|(_, n)| self.check_text(n)),
            _ => {}
        }
    }

    /// Ends a play: its handlers in order, its notifications checked.
    pub(super) fn settle(&mut self, play: &mut Play) {
        play.handlers.append(&mut self.handlers);
        play.public = std::mem::take(&mut self.public);
        self.check_notified(&play.handlers);
        self.first_use.clear();
        self.included.clear();
    }

    fn check_notified(&mut self, handlers: &[Handler]) {
        let mut names: Vec<String> = Vec::new();
        for handler in handlers {
            names.extend(handler.listen.iter().cloned());
            if let Some(name) = handler.task.name.as_ref().and_then(Node::as_str) {
                names.push(name.to_owned());
                let role = handler.task.role.and_then(|id| self.bundle.roles.get(id.0 as usize));
                names.extend(role.map(|r| format!("{} : {name}", r.name)));
            }
        }
        for notified in std::mem::take(&mut self.notified) {
            if !names.iter().any(|n| syntax::may_be(n, &notified.name)) {
                let wrong = Diagnostic::error(notified.span, format!("no handler is called '{}'", notified.name));
                let wrong = if names.is_empty() {
                    wrong
                        .hint("the play has no handlers: they stand under 'handlers', or in a role's handlers/main.yml")
                } else {
                    wrong.nearest(&notified.name, names.iter().map(String::as_str))
                };
                self.out.push(wrong);
            }
        }
    }
}

/// Letters, digits and `_`, not starting with a digit.
pub(super) fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}
