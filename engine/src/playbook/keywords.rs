//! Every keyword of the language, and where it may stand. The parser and the manual use this one table.

/// What a keyword stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// A play.
    Play,
    /// `import_playbook`.
    ImportPlaybook,
    /// An entry of `roles:` (other keys there are parameters) or of a role's dependencies.
    Role,
    /// A block.
    Block,
    /// A task, `import_tasks` and `import_role` too.
    Task,
    /// `include_tasks` and `include_role`; their `apply` takes what a block takes.
    Include,
    /// A handler.
    Handler,
    /// `loop_control`.
    LoopControl,
}

impl On {
    /// `a play`: for messages.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Play => "a play",
            Self::ImportPlaybook => "an import_playbook",
            Self::Role => "a role's entry",
            Self::Block => "a block",
            Self::Task => "a task",
            Self::Include => "an include",
            Self::Handler => "a handler",
            Self::LoopControl => "loop_control",
        }
    }
}

/// What becomes of a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is carried out.
    Taken,
    /// It is read and has no effect: a warning says why.
    Ignored(&'static str),
    /// It is an error; the text says what to do instead.
    NotYet(&'static str),
}

/// A keyword.
#[derive(Clone, Copy, Debug)]
pub struct Keyword {
    /// As it is written.
    pub name: &'static str,
    /// Where it may stand.
    pub on: &'static [On],
    /// What becomes of it.
    pub status: Status,
    /// One sentence for the manual.
    pub doc: &'static str,
}

const fn taken(name: &'static str, on: &'static [On], doc: &'static str) -> Keyword {
    Keyword { name, on, status: Status::Taken, doc }
}

const fn ignored(name: &'static str, on: &'static [On], why: &'static str) -> Keyword {
    Keyword { name, on, status: Status::Ignored(why), doc: why }
}

const fn not_yet(name: &'static str, on: &'static [On], instead: &'static str) -> Keyword {
    Keyword { name, on, status: Status::NotYet(instead), doc: instead }
}

use On::{Block, Handler, ImportPlaybook, Include, LoopControl, Play, Role, Task};

const PLAY: &[On] = &[Play];
const INHERITED: &[On] = &[Play, Role, Block, Task, Handler];
const INSIDE: &[On] = &[Role, Block, Task, Handler];
const TASKS: &[On] = &[Task, Handler];
const LOOPS: &[On] = &[Task, Handler, Include];
const ALL: &[On] = &[Play, ImportPlaybook, Role, Block, Task, Handler, Include];

/// The table.
const KEYWORDS: &[Keyword] = &[
    taken(
        "name",
        &[Play, ImportPlaybook, Block, Task, Handler, Include],
        "What the run shows; of a handler, what `notify` names.",
    ),
    taken("hosts", PLAY, "The hosts: a pattern, or a list of patterns."),
    taken("become", INHERITED, "Run as another user (root unless `become_user` says otherwise), through sudo."),
    taken("become_user", INHERITED, "As whom."),
    taken("become_method", INHERITED, "Only `sudo`."),
    not_yet("become_flags", INHERITED, "options of sudo belong into the host's sudoers"),
    not_yet("become_exe", INHERITED, "sudo is looked for on the host's PATH"),
    taken(
        "serial",
        &[Play, Handler],
        "Of a play: batches, as a number, a percentage or a list of them. Of a handler: how many hosts take their turn at once.",
    ),
    taken("max_fail_percentage", PLAY, "The run stops when more hosts of the batch than this failed."),
    taken("any_errors_fatal", INHERITED, "One failure stops the other hosts at their next task boundary."),
    taken("ignore_unreachable", PLAY, "Unreachable hosts do not count as a failure of the run."),
    ignored(
        "ignore_unreachable",
        INSIDE,
        "there is one connection for the whole run: it is decided by the play, not by a task",
    ),
    taken("gather_facts", PLAY, "`false`: no facts."),
    not_yet("gather_subset", PLAY, "facts are cheap here: all of them are gathered"),
    not_yet("gather_timeout", PLAY, "facts are cheap here: all of them are gathered"),
    not_yet("fact_path", PLAY, "local facts are not read; use group_vars or host_vars"),
    taken("vars", ALL, "Variables."),
    taken("vars_files", PLAY, "Files with variables; a missing one is an error."),
    not_yet("vars_prompt", PLAY, "give the value with -e name=value"),
    taken("environment", INHERITED, "Environment variables: a mapping, or a list of mappings."),
    taken("tags", ALL, "Names by which `--tags` and `--skip-tags` select."),
    taken("pre_tasks", PLAY, "Tasks before the roles."),
    taken("roles", PLAY, "Roles, before the tasks."),
    taken("tasks", PLAY, "Tasks."),
    taken("post_tasks", PLAY, "Tasks after the handlers of roles and tasks."),
    taken("handlers", PLAY, "Tasks that run once when something notified them."),
    taken("remote_user", PLAY, "The login user."),
    not_yet(
        "remote_user",
        INSIDE,
        "a run has one connection per host: set remote_user on the play, or use become_user",
    ),
    taken("port", PLAY, "The port of sshd."),
    not_yet("port", INSIDE, "a run has one connection per host: set port on the play"),
    not_yet("connection", INHERITED, "hosts are reached over SSH; use delegate_to: localhost for this machine"),
    taken("strategy", PLAY, "`free` is how plays run here; `linear` is accepted with a warning."),
    not_yet("order", PLAY, "hosts run at the same time, in the order of the inventory"),
    not_yet(
        "force_handlers",
        PLAY,
        "handlers that were notified before a failure are kept on the host and paid by the next run",
    ),
    ignored(
        "collections",
        &[Play, Role, Block, Task, Handler, Include],
        "modules are built in: there are no collections",
    ),
    taken("module_defaults", &[Play, Block, Task, Handler], "Arguments by module, for tasks that do not give them."),
    taken(
        "no_log",
        INHERITED,
        "Arguments and results are shown nowhere; inside such a block or play it cannot be undone.",
    ),
    taken("no_log", &[Include], "Arguments and results are shown nowhere."),
    taken("import_playbook", &[ImportPlaybook], "The plays of another playbook stand here."),
    taken("role", &[Role], "The role's name."),
    taken("name", &[Role], "The role's name."),
    taken("public", &[Role], "The role's defaults and vars are seen by the whole play."),
    not_yet("src", &[Role], "roles are not downloaded: put the folder under roles/"),
    taken(
        "when",
        &[ImportPlaybook, Role, Block, Task, Handler, Include],
        "A condition, or a list that must hold altogether; no braces.",
    ),
    taken("block", &[Block], "Tasks that share the keywords of the block."),
    taken("rescue", &[Block], "Tasks for a host on which the block failed."),
    taken("always", &[Block], "Tasks that run in any case."),
    taken("action", LOOPS, "The module and its arguments in one line, or a mapping with `module`."),
    taken("local_action", TASKS, "`action` with `delegate_to: localhost`."),
    taken("args", LOOPS, "Further arguments of the module."),
    taken("loop", LOOPS, "A list, or an expression that gives one."),
    taken("with_items", LOOPS, "As `loop`, lists inside the list are unfolded once."),
    taken("with_list", LOOPS, "As `loop`."),
    taken("with_dict", LOOPS, "As `loop` over `dict2items`: `item.key`, `item.value`."),
    not_yet("with_sequence", LOOPS, "write loop: \"{{ range(1, 11) | list }}\" (the end is not included)"),
    not_yet("with_fileglob", LOOPS, "copy the folder with copy: src=folder/, or name the files in loop"),
    not_yet("with_filetree", LOOPS, "copy the folder with copy: src=folder/"),
    not_yet("with_first_found", LOOPS, "name the file with an expression: \"{{ facts.os.id }}.yaml\""),
    not_yet("with_nested", LOOPS, "include tasks in a loop over the outer list"),
    not_yet("with_cartesian", LOOPS, "include tasks in a loop over the outer list"),
    not_yet("with_together", LOOPS, "write loop: \"{{ a | zip(b) | list }}\""),
    not_yet("with_subelements", LOOPS, "include tasks in a loop over the outer list"),
    not_yet("with_indexed_items", LOOPS, "write loop with loop_control: index_var"),
    not_yet("with_flattened", LOOPS, "write loop: \"{{ list | flatten }}\""),
    not_yet("with_lines", LOOPS, "register a command and loop over its stdout_lines"),
    not_yet("with_random_choice", LOOPS, "a run must be repeatable: choose in the inventory"),
    taken("loop_control", LOOPS, "How the loop runs and is shown."),
    taken("loop_var", &[LoopControl], "The variable that holds the item; `item` if not given."),
    taken("index_var", &[LoopControl], "The variable that holds the index, from 0."),
    taken("label", &[LoopControl], "Shown instead of the item."),
    taken("pause", &[LoopControl], "Seconds between items."),
    taken("extended", &[LoopControl], "Gives `ansible_loop` with index, first, last and so on."),
    not_yet("break_when", &[LoopControl], "put the condition into when"),
    not_yet("extended_allitems", &[LoopControl], "leave it out"),
    taken("register", LOOPS, "The variable that holds the result."),
    taken("until", TASKS, "The task is repeated until this holds."),
    taken("retries", TASKS, "Further attempts, 3 if only `until` is given."),
    taken("delay", TASKS, "Seconds between attempts, 5 if not given."),
    taken("changed_when", TASKS, "Says whether the task changed something."),
    taken("failed_when", TASKS, "Says whether the task failed."),
    taken("notify", &[Play, Role, Block, Task, Handler], "Handlers to run if something changed."),
    taken("ignore_errors", &[Play, Role, Block, Task, Handler, Include], "Goes on after a failure."),
    taken("check_mode", INHERITED, "`true`: never for real; `false`: for real in check mode too."),
    taken("diff", INHERITED, "Shows differences or not."),
    taken("delegate_to", INSIDE, "Carried out on another host, with this host's variables."),
    not_yet("delegate_facts", INSIDE, "facts belong to the host that gathered them: let a play of its own run there"),
    taken("run_once", &[Play, Role, Block, Task, Handler, Include], "Once for the batch; the result goes to all."),
    taken("timeout", INHERITED, "Seconds; then the task's processes are killed and it fails."),
    taken("throttle", &[Play, Role, Block, Task, Handler], "How many hosts at once may be in the task."),
    not_yet("debugger", ALL, "run with -vvv, or use the debug module"),
    not_yet("async", TASKS, "use timeout, or start a unit with systemd_unit and wait with wait_for"),
    not_yet("poll", TASKS, "use timeout, or start a unit with systemd_unit and wait with wait_for"),
    taken("listen", &[Handler], "Further names that the handler hears."),
    taken("gate", &[Handler], "Asked between turns: `consul` or `nomad`."),
    taken("after", &[Handler], "Names of hosts: a turn waits until their handlers have run."),
    not_yet("first_available_file", TASKS, "name the file with an expression"),
    not_yet("sudo", INHERITED, "write become: true"),
    not_yet("sudo_user", INHERITED, "write become_user"),
];

/// All keywords, in the order of the manual.
pub const fn keywords() -> &'static [Keyword] {
    KEYWORDS
}

/// What a key is where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    /// Known here.
    Known(&'static Keyword),
    /// Known elsewhere.
    Misplaced(&'static Keyword),
    /// Not known.
    Unknown,
}

pub(super) fn classify(on: On, name: &str) -> Class {
    let mut same = KEYWORDS.iter().filter(|k| k.name == name);
    match same.clone().find(|k| k.on.contains(&on)) {
        Some(keyword) => Class::Known(keyword),
        None => same.next().map_or(Class::Unknown, Class::Misplaced),
    }
}

/// The keywords that are taken at a place.
pub(super) fn taken_on(on: On) -> impl Iterator<Item = &'static str> {
    KEYWORDS.iter().filter(move |k| k.on.contains(&on) && k.status == Status::Taken).map(|k| k.name)
}

/// Modules of Ansible that have another name or way here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("add_host", "hosts come from the inventory"),
    ("apt_key", "give the key to repository: signed_by"),
    ("archive", "use command with tar"),
    ("assemble", "use template"),
    ("async_status", "use timeout, or systemd_unit and wait_for"),
    ("authorized_key", "use lineinfile on the user's authorized_keys"),
    ("blockinfile", "use lineinfile or template"),
    ("cron", "use systemd_unit with a timer"),
    ("debconf", "use command with debconf-set-selections"),
    ("dnf", "packages are installed with apt only for now"),
    ("fetch", "use command and register"),
    ("find", "use command with find, and register"),
    ("firewalld", "use command"),
    ("gather_facts", "facts are gathered by the play"),
    ("getent", "use command with getent, and register"),
    ("git", "use download with a checksum, or command with git"),
    ("group_by", "groups come from the inventory; use when"),
    ("import_playbook", "it stands in a playbook, beside the plays"),
    ("include", "use import_tasks or include_tasks"),
    ("ini_file", "use template or lineinfile"),
    ("iptables", "use command"),
    ("known_hosts", "use lineinfile"),
    ("modprobe", "use copy to /etc/modules-load.d and command"),
    ("mount", "use systemd_unit with a mount unit"),
    ("package_facts", "use command with dpkg-query, and register"),
    ("pause", "use wait_for, or retries with delay"),
    ("ping", "the connection is tested before anything runs"),
    ("pip", "use command"),
    ("raw", "use shell"),
    ("reboot", "use command, then wait_for in the next play"),
    ("replace", "use lineinfile or template"),
    ("rpm_key", "packages are installed with apt only for now"),
    ("script", "use copy, then command"),
    ("service_facts", "use command with systemctl, and register"),
    ("set_stats", "use set_fact"),
    ("setup", "facts are gathered by the play"),
    ("slurp", "use command with cat, and register"),
    ("synchronize", "use copy or unarchive"),
    ("sysctl", "use copy to /etc/sysctl.d and a handler"),
    ("tempfile", "name the path"),
    ("timezone", "use file with state: link on /etc/localtime"),
    ("ufw", "use command"),
    ("yum", "packages are installed with apt only for now"),
    ("yum_repository", "packages are installed with apt only for now"),
];

/// What to do instead of a module of Ansible that is not here. Fully qualified names of any collection are understood.
pub(super) fn instead_of_module(name: &str) -> Option<&'static str> {
    let short = name.rsplit('.').next().unwrap_or(name);
    ELSEWHERE.iter().find(|(n, _)| *n == short).map(|(_, hint)| *hint)
}
