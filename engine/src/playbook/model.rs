//! What a playbook means, after imports and roles are resolved: the form that travels to the host.
//!
//! Everything static is settled here: `import_*` is unfolded, conditions, tags, become, environment and variables that a
//! task inherits from its blocks and role stand in the task itself. Nothing is rendered yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{diag::Span, node::Node, vars::Vars};

/// A run's plays and everything that hosts need to carry them out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bundle {
    /// In order.
    pub plays: Vec<Play>,
    /// Roles, by [`RoleId`]. One entry for each use of a role (its parameters differ).
    pub roles: Vec<Role>,
    /// Files that tasks may ask for (`files/`, `templates/`, literal `src`), by the path that search folders give.
    pub files: BTreeMap<PathBuf, FileEntry>,
    /// Task files for includes whose names are known only on the host, parsed; by path, with the role they belong to.
    pub task_files: BTreeMap<PathBuf, Arc<Vec<Item>>>,
    /// Variable files that `include_vars` may ask for, by path.
    pub vars_files: BTreeMap<PathBuf, Arc<Node>>,
    /// The project's folder, whose `files/` and `templates/` count for playbooks that lie elsewhere; `None`: it is no project.
    #[serde(default)]
    pub project: Option<PathBuf>,
    /// Paths of all source files by [`crate::diag::FileId`], so that a host can name places.
    pub sources: Vec<PathBuf>,
    /// What `--tags` and `--skip-tags` asked for: included tasks are selected when they are included.
    #[serde(default)]
    pub selection: Selection,
    /// What tasks ask of other hosts; empty until [`note_others`](super::note_others) has looked.
    #[serde(default)]
    pub others: AskedOfOthers,
}

/// What tasks ask of other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedOfOthers {
    /// Names that tasks of the run set (`register`, `set_fact`), with the place of the first such task.
    pub set_by: Arc<BTreeMap<String, String>>,
    /// Names that a task asks for, by [`Task::id`].
    pub by_task: BTreeMap<u32, BTreeSet<String>>,
    /// Names that every task asks for which an include draws in, by the include's [`Task::id`]: its conditions and the
    /// like are theirs.
    pub inside: BTreeMap<u32, BTreeSet<String>>,
}

impl AskedOfOthers {
    /// Every name that some task asks for.
    pub fn names(&self) -> BTreeSet<String> {
        self.by_task.values().chain(self.inside.values()).flatten().cloned().collect()
    }
}

/// What `--tags` and `--skip-tags` ask for; both empty: everything but `never`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// `--tags`.
    pub only: Vec<String>,
    /// `--skip-tags`.
    pub skip: Vec<String>,
}

/// A file of the project that may travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// SHA-256, hex.
    pub hash: String,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// Index into [`Bundle::roles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RoleId(pub u32);

/// One use of a role.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Its folder (`<embedded>/NAME` for one of ours).
    pub path: PathBuf,
    /// `defaults/main`.
    pub defaults: Arc<Vars>,
    /// `vars/main`.
    pub vars: Arc<Vars>,
    /// Given where the role was named.
    pub params: Arc<Vars>,
    /// The roles whose `defaults`, `vars` and `params` are seen too, outermost first (it is a dependency of theirs, or
    /// they of it, as Ansible has it); this role is not among them.
    pub parents: Vec<RoleId>,
    /// An earlier use in the same play that does the same under the same conditions:
    /// [`select_tags`](super::select_tags) leaves this one out when that one is selected.
    #[serde(default)]
    pub repeats: Option<RoleId>,
}

/// A play.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Play {
    /// Its name, or its hosts.
    pub name: String,
    /// Where it stands.
    pub span: Span,
    /// The host pattern: text, or a list joined with commas. May hold expressions (extra vars, play vars).
    pub hosts: Node,
    /// Batches; empty: all hosts at once. The last one repeats.
    pub serial: Vec<BatchSize>,
    /// Exceeded: the run stops.
    pub max_fail_percentage: Option<f64>,
    /// One failure stops the others at their next task boundary.
    pub any_errors_fatal: bool,
    /// Go on with the play for the hosts that can be reached; `false` is the default: a dead host is dropped.
    pub ignore_unreachable: bool,
    /// `false`: facts are not gathered (they are cheap here).
    pub gather_facts: bool,
    /// `vars:`.
    pub vars: Arc<Vars>,
    /// `vars_files:`, read; names with expressions are resolved with what is known without a host.
    pub vars_files: Arc<Vars>,
    /// Overrides of the login user, port (`remote_user`, `port`).
    pub remote_user: Option<Node>,
    /// See [`Play::remote_user`].
    pub port: Option<Node>,
    /// Handlers flush after each section.
    pub pre_tasks: Vec<Item>,
    /// Roles, then tasks.
    pub tasks: Vec<Item>,
    /// After the tasks' handlers.
    pub post_tasks: Vec<Item>,
    /// In order of definition: the play's, then each role's. Each use of a role has its own: a task's notification
    /// means the play's handler of that name, else the one of its own [`RoleId`], else the first one of that name.
    pub handlers: Vec<Handler>,
    /// Roles named with `public: true`: their defaults and vars are seen by the whole play.
    #[serde(default)]
    pub public: Vec<RoleId>,
}

/// A number of hosts in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchSize {
    /// Hosts.
    Count(usize),
    /// Of the play's hosts, at least one.
    Percent(f64),
}

/// A handler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handler {
    /// What it does. `task.name` is what `notify` names.
    pub task: Task,
    /// Further names that it hears.
    pub listen: Vec<String>,
    /// Turns: how many hosts at once. `None`: all.
    pub serial: Option<usize>,
    /// Asked between turns.
    pub gate: Option<Gate>,
    /// Names of hosts that go before: a turn waits until their handlers have run.
    pub after: Option<Node>,
}

/// What a gate asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Consul's autopilot: all voters healthy, failure tolerance back.
    Consul,
    /// Nomad's.
    Nomad,
}

/// Something in a list of tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// A task.
    Task(Box<Task>),
    /// A block.
    Block(Box<Block>),
}

/// A block with rescue or always. A block without either is unfolded into its tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Block {
    /// Its name.
    pub name: Option<String>,
    /// Where it stands.
    pub span: Span,
    /// Tried.
    pub block: Vec<Item>,
    /// Run on a host on which a task of the block failed. Sees `failed_task` and `failed_result`
    /// (`ansible_failed_task`, `ansible_failed_result` name them in the error).
    pub rescue: Vec<Item>,
    /// Run in any case.
    pub always: Vec<Item>,
}

/// An expression or condition and its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expr {
    /// Without braces.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// A task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Unique in the bundle; grows in the order of the file.
    pub id: u32,
    /// As written; may hold expressions.
    pub name: Option<Node>,
    /// Where it stands.
    pub span: Span,
    /// The role it belongs to.
    pub role: Option<RoleId>,
    /// What it does.
    pub action: Action,
    /// All must hold, outermost first. Evaluated for each item of a loop.
    pub when: Vec<Expr>,
    /// Its own and inherited ones, outermost first.
    pub tags: Vec<String>,
    /// Its blocks' variables, then its own: the last one wins. Those of a dynamic include have the layer
    /// [`IncludeParams`](crate::vars::Layer::IncludeParams), which beats `set_fact`.
    pub vars: Vec<Arc<Vars>>,
    /// As whom.
    pub become_: Become,
    /// Maps, outermost first.
    pub environment: Vec<Node>,
    /// `loop` (or `with_items` and `with_dict`, translated).
    pub loop_: Option<Loop>,
    /// The name of the result.
    pub register: Option<String>,
    /// Repeated until it holds.
    pub until: Vec<Expr>,
    /// Further attempts; a number or an expression.
    pub retries: Option<Node>,
    /// Seconds between attempts.
    pub delay: Option<Node>,
    /// Replaces the module's answer.
    pub changed_when: Option<Vec<Expr>>,
    /// Replaces the module's answer.
    pub failed_when: Option<Vec<Expr>>,
    /// Names of handlers; each may hold an expression.
    pub notify: Vec<Node>,
    /// Goes on after a failure.
    pub ignore_errors: Option<Node>,
    /// `false`: runs for real in check mode (only for modules that do not change the host, or `command`); `true`: never
    /// for real.
    pub check_mode: Option<bool>,
    /// Shows differences or not, whatever `--diff` says.
    #[serde(default)]
    pub diff: Option<bool>,
    /// Arguments and results are not shown.
    pub no_log: bool,
    /// Carried out on another host, with this host's variables.
    pub delegate_to: Option<Node>,
    /// Once for the batch.
    pub run_once: bool,
    /// See [`Play::any_errors_fatal`].
    pub any_errors_fatal: bool,
    /// The module's process group is killed after it.
    pub timeout: Option<Node>,
    /// How many hosts at once may be in this task.
    pub throttle: Option<usize>,
}

impl Task {
    /// A task that does this and says nothing else.
    pub fn new(id: u32, span: Span, action: Action) -> Self {
        Self {
            id,
            name: None,
            span,
            role: None,
            action,
            when: Vec::new(),
            tags: Vec::new(),
            vars: Vec::new(),
            become_: Become::default(),
            environment: Vec::new(),
            loop_: None,
            register: None,
            until: Vec::new(),
            retries: None,
            delay: None,
            changed_when: None,
            failed_when: None,
            notify: Vec::new(),
            ignore_errors: None,
            check_mode: None,
            diff: None,
            no_log: false,
            delegate_to: None,
            run_once: false,
            any_errors_fatal: false,
            timeout: None,
            throttle: None,
        }
    }
}

/// As whom a task runs. `None` where nothing was said: the host's variables (`ansible_become*`) or the options decide.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Become {
    /// `become:`.
    pub enabled: Option<bool>,
    /// `become_user:`.
    pub user: Option<Node>,
}

/// What a task does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A module: [`crate::modules::Definition::name`], arguments (a mapping, unrendered).
    Module {
        /// The name in the manual.
        name: String,
        /// A mapping.
        args: Node,
    },
    /// `include_tasks`: resolved on the host; `tasks` are found in [`Bundle::task_files`].
    IncludeTasks {
        /// The file, may hold expressions; looked for in `search`.
        file: Node,
        /// Folders, in order.
        search: Vec<PathBuf>,
        /// What the tasks of the file inherit: from the include's blocks, role and play, its `vars` and `apply`.
        /// [`Bundle::included`] lays it on them.
        inherit: Box<Inherit>,
    },
    /// `include_vars`.
    IncludeVars {
        /// The file, may hold expressions.
        file: Node,
        /// Folders, in order.
        search: Vec<PathBuf>,
        /// Under this name, instead of the top level.
        name: Option<String>,
    },
    /// `include_role`: its tasks, read beforehand.
    IncludeRole {
        /// The name, where the host picks the role.
        #[serde(default)]
        name: Option<Node>,
        /// Every role that the name can mean; one where the host does not pick.
        choices: Vec<RoleChoice>,
    },
    /// `meta: flush_handlers`.
    FlushHandlers,
    /// `meta: end_host`.
    EndHost,
    /// `meta: end_play`.
    EndPlay,
    /// `meta: noop`.
    Noop,
}

/// A role that an `include_role` can mean.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoleChoice {
    /// Its name.
    pub name: String,
    /// The role's use.
    pub role: RoleId,
    /// Its tasks.
    pub tasks: Vec<Item>,
}

impl Action {
    /// The tasks of every role that an `include_role` can mean.
    pub fn role_tasks(&self) -> impl Iterator<Item = &Vec<Item>> {
        let choices = if let Self::IncludeRole { choices, .. } = self { &choices[..] } else { &[] };
        choices.iter().map(|choice| &choice.tasks)
    }

    /// As [`Action::role_tasks`], to be changed.
    pub fn role_tasks_mut(&mut self) -> impl Iterator<Item = &mut Vec<Item>> {
        let choices = if let Self::IncludeRole { choices, .. } = self { &mut choices[..] } else { &mut [] };
        choices.iter_mut().map(|choice| &mut choice.tasks)
    }
}

/// What a task inherits from what it stands in: a block, an import, a role, a play, `apply`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inherit {
    /// The role, for tasks that have none yet.
    pub role: Option<RoleId>,
    /// See [`Task::when`].
    pub when: Vec<Expr>,
    /// See [`Task::tags`].
    pub tags: Vec<String>,
    /// See [`Task::vars`].
    pub vars: Vec<Arc<Vars>>,
    /// The inner one wins.
    pub become_: Become,
    /// See [`Task::environment`].
    pub environment: Vec<Node>,
    /// Added to the task's own.
    pub notify: Vec<Node>,
    /// The inner one wins.
    pub ignore_errors: Option<Node>,
    /// The inner one wins.
    pub check_mode: Option<bool>,
    /// The inner one wins.
    pub diff: Option<bool>,
    /// Holds for everything inside.
    pub no_log: bool,
    /// The inner one wins.
    pub delegate_to: Option<Node>,
    /// Holds for everything inside.
    pub run_once: bool,
    /// Holds for everything inside.
    pub any_errors_fatal: bool,
    /// The inner one wins.
    pub timeout: Option<Node>,
    /// The inner one wins.
    pub throttle: Option<usize>,
    /// Arguments by module (its name in the manual), for tasks that do not give them; the inner one wins.
    pub module_defaults: Vec<(String, Node)>,
}

/// A loop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loop {
    /// Gives the list; a list, or text with an expression.
    pub items: Node,
    /// The variable, `item` by default.
    pub var: String,
    /// The index's variable.
    pub index_var: Option<String>,
    /// Shown instead of the item.
    pub label: Option<Node>,
    /// Between items.
    pub pause: Option<Duration>,
    /// `ansible_loop` information asked for (`loop.index` and so on, under this name).
    pub extended: bool,
}

/// Where a task looks for files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchKind {
    /// `files/`.
    Files,
    /// `templates/`.
    Templates,
}

impl Bundle {
    /// The folders in which a task of a role (or of a play whose file is in `play_dir`) looks, in order.
    pub fn search(&self, role: Option<RoleId>, play_file: Span, kind: SearchKind) -> Vec<PathBuf> {
        let folder = match kind {
            SearchKind::Files => "files",
            SearchKind::Templates => "templates",
        };
        let mut out = Vec::new();
        let role = role.and_then(|id| self.roles.get(id.0 as usize));
        if let Some(role) = role {
            out.extend([role.path.join(folder), role.path.clone()]);
            for parent in role.parents.iter().rev().filter_map(|id| self.roles.get(id.0 as usize)) {
                out.push(parent.path.join(folder));
            }
        }
        let play = self.sources.get(play_file.file.0 as usize).and_then(|p| p.parent());
        if let Some(dir) = play {
            out.extend([dir.join(folder), dir.to_path_buf()]);
        }
        let project =
            self.project.iter().map(|dir| dir.join(folder)).filter(|dir| !out.contains(dir)).collect::<Vec<_>>();
        out.extend(project);
        out
    }

    /// The first file of the search folders that is there.
    pub fn find_file(&self, search: &[PathBuf], src: &str) -> Option<(&PathBuf, &FileEntry)> {
        search.iter().find_map(|dir| self.files.get_key_value(&dir.join(src)))
    }
}
