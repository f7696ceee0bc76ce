use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::Write as _,
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args as ClapArgs;
use rollcall_engine::{
    diag::{Diagnostic, Diagnostics, Sources},
    inventory::Inventory,
    playbook::{
        self, Blob, Loaded, Loader,
        model::{Bundle, FileEntry, Item},
    },
    protocol::Shared,
    roles::Embedded,
    template,
    vars::{Scope, Vars},
};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    context::{self, Context, Login, Wrong},
    exit::Exit,
    lookups,
    options::{Connect, Hosts, Show},
    output::{self, Look},
    run::{
        Content, Job,
        dispatcher::Dispatcher,
        events::Sink,
        remote::{Dialer, Incoming},
        secrets,
    },
    ssh::{Agents, Transport, find_agents},
};

/// Connections opened at once.
const FORKS: usize = 50;

/// Carry out playbooks on hosts.
///
/// A playbook is a file, or the bare name of one in the project's playbooks folder or of ours (`consul.yaml`). Everything
/// that can be known is checked on all hosts before the first one is changed.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller run consul.yaml --limit consul_servers
  controller run site.yaml -e consul_version=1.22.2 --check --diff
  controller run site.yaml --limit 'consul_servers:!consul-server-1' -t config")]
pub(crate) struct Args {
    /// Playbooks, in order.
    #[arg(required = true, value_name = "PLAYBOOK")]
    pub(crate) playbooks: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) hosts: Hosts,
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// Only tasks with one of these tags.
    #[arg(short = 't', long, value_name = "TAGS", value_delimiter = ',')]
    pub(crate) tags: Vec<String>,
    /// Not the tasks with one of these tags.
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    pub(crate) skip_tags: Vec<String>,
    /// Change nothing; say what would be changed.
    #[arg(short = 'C', long)]
    pub(crate) check: bool,
    /// Show the differences.
    #[arg(short = 'D', long)]
    pub(crate) diff: bool,
    /// Only list the hosts of each play.
    #[arg(long)]
    pub(crate) list_hosts: bool,
    /// Only list the tasks of each play.
    #[arg(long)]
    pub(crate) list_tasks: bool,
    /// Only list the tags.
    #[arg(long)]
    pub(crate) list_tags: bool,
    /// Print the run as JSON, one event a line (see `docs/events.md`).
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder with the agents (`agent-x86_64-linux`, …); beside this program otherwise.
    #[arg(long, value_name = "DIR", env = "ROLLCALL_AGENTS")]
    pub(crate) agents: Option<PathBuf>,
}

/// What a verb that runs plays has in hand before it dials.
pub(crate) struct Prepared {
    pub(crate) job: Job,
    pub(crate) transport: Arc<Transport>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) forks: usize,
}

/// The verb.
pub(crate) async fn run(args: Args, show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(sources, &args.hosts.extra)?;
    let loaded = load(&context, &args)?;
    let dirs = args.playbooks.iter().filter_map(|p| p.parent().map(PathBuf::from)).collect();
    let inventory = context.inventory(&args.hosts, playbook_dirs(&context, &loaded, dirs)).await?;
    let play_hosts = select(&context, &inventory, &loaded, args.hosts.limit.as_deref())?;
    if args.list_hosts || args.list_tasks || args.list_tags {
        return list(&args, &loaded, &play_hosts);
    }
    if !args.json {
        for role in loaded.roles_used.iter().filter(|r| show.verbose > 0 || !r.embedded && !r.possible) {
            let whose = if role.embedded { "ours" } else { "yours" };
            context::eprint_line(&format!("role {}: {whose} ({})", role.name, role.path.display()));
        }
    }
    let look = Look { json: args.json, verbose: show.verbose, quiet: show.quiet, diff: args.diff };
    let sinks = output::sinks(&look, &context.sources);
    let prepared = prepare(&context, &inventory, loaded, play_hosts, &args)?;
    carry_out(prepared, sinks).await
}

/// Reads the playbooks; all that is wrong is told at once.
fn load(context: &Context, args: &Args) -> anyhow::Result<Loaded> {
    let loader = Loader {
        sources: &context.sources,
        project: &context.project,
        embedded_roles: &Embedded,
        extra: &context.extra,
    };
    let mut loaded = loader.load(&args.playbooks).map_err(Wrong)?;
    context.warn(&loaded.warnings);
    playbook::select_tags(&mut loaded.bundle, &args.tags, &args.skip_tags).map_err(Wrong)?;
    Ok(loaded)
}

/// Folders whose `group_vars` and `host_vars` count.
fn playbook_dirs(context: &Context, loaded: &Loaded, given: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut dirs = given;
    for play in &loaded.bundle.plays {
        if let Some(source) = context.sources.get(play.span.file)
            && let Some(dir) = source.path.parent()
        {
            dirs.push(dir.to_path_buf());
        }
    }
    let mut seen = HashSet::new();
    dirs.retain(|d| {
        seen.insert(d.clone()) && d.is_dir() || d.as_os_str().is_empty() && seen.insert(PathBuf::from("."))
    });
    dirs
}

/// The hosts of each play, by name. A play that the limit leaves without hosts is skipped; a limit that leaves no play
/// is an error.
fn select(
    context: &Context,
    inventory: &Inventory,
    loaded: &Loaded,
    limit: Option<&str>,
) -> Result<Vec<Vec<String>>, Wrong> {
    // What is wrong with the limit is wrong with the command line, not with a play.
    if let Some(limit) = limit {
        inventory.select_limit(limit).map_err(|mut d| {
            d.message = format!("--limit: {}", d.message);
            d
        })?;
    }
    let mut out = Vec::new();
    let mut wrong = Diagnostics::default();
    for play in &loaded.bundle.plays {
        let scope = Scope::of(Arc::clone(&play.vars)).with(Arc::clone(&context.extra));
        let pattern = match template::render(&play.hosts, &scope) {
            Ok(Value::String(text)) => text,
            Ok(Value::Array(items)) => items
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join(","),
            Ok(other) => {
                wrong.push(Diagnostic::error(play.hosts.span, format!("expected a host pattern, found {other}")));
                continue;
            }
            Err(template::EvalError::Wrong(diagnostic)) => {
                wrong.push(diagnostic);
                continue;
            }
            Err(template::EvalError::Unknown(why)) => {
                wrong.push(Diagnostic::error(play.hosts.span, why));
                continue;
            }
        };
        match inventory.select(&pattern, limit) {
            Ok(hosts) => out.push(hosts.iter().map(|h| h.name.clone()).collect()),
            Err(mut diagnostic) => {
                if diagnostic.span.is_none() {
                    diagnostic.span = play.hosts.span;
                }
                wrong.push(diagnostic);
            }
        }
    }
    if wrong.has_errors() {
        return Err(Wrong(wrong));
    }
    if !out.is_empty() && out.iter().all(Vec::is_empty) {
        let text = format!("the limit '{}' leaves no host of any play", limit.unwrap_or_default());
        return Err(Diagnostic::error(rollcall_engine::diag::Span::NONE, text).into());
    }
    Ok(out)
}

/// Everything that a run needs, before it dials.
pub(crate) fn prepare(
    context: &Context,
    inventory: &Inventory,
    loaded: Loaded,
    play_hosts: Vec<Vec<String>>,
    args: &Args,
) -> anyhow::Result<Prepared> {
    let password = if args.connect.ask_become_pass { Some(context::ask_become_password()?) } else { None };
    let agents = Arc::new(agents(args.agents.as_ref())?);
    let transport = context.transport(&args.connect, inventory)?;
    // All hosts can be delegated to; only those of plays are dialled.
    let names: Vec<String> = inventory.hosts().map(|h| h.name.clone()).collect();
    let addressed: HashSet<&String> = play_hosts.iter().flatten().collect();
    let delegates = delegates(&loaded);
    let names: Vec<String> = names
        .into_iter()
        .filter(|n| addressed.contains(n) || delegates)
        .chain(addressed.contains(&"localhost".to_owned()).then(|| "localhost".to_owned()))
        .collect();
    let logins = logins(context, &loaded, &play_hosts)?;
    let hosts = context.hosts(inventory, &names, &args.connect, &logins, &transport, password.as_ref());
    let index: HashMap<&str, usize> = hosts.iter().enumerate().map(|(i, h)| (h.name.as_str(), i)).collect();
    let play_hosts =
        play_hosts.iter().map(|names| names.iter().filter_map(|n| index.get(n.as_str()).copied()).collect()).collect();
    let mut shared = shared(inventory, &loaded);
    let mut bundle = loaded.bundle;
    bundle.sources = context.sources.paths();
    let root = &context.project.root;
    let extra = lookups::settle_alone(Arc::clone(&context.extra), &Arc::default(), root);
    for play in &mut bundle.plays {
        play.vars = lookups::settle_alone(Arc::clone(&play.vars), &extra, root);
        play.vars_files = lookups::settle_alone(Arc::clone(&play.vars_files), &extra, root);
    }
    if let Some(shared) = &mut shared {
        shared.taking_part = Arc::new(addressed.iter().map(|name| (*name).clone()).collect());
        note_others(&mut bundle, &loaded.contents, inventory, shared, &extra);
    }
    let contents = loaded
        .contents
        .into_iter()
        .map(|(hash, blob)| {
            let content = match blob {
                Blob::File(path) => Content::File(path),
                Blob::Bytes(bytes) => Content::Bytes(Arc::new(bytes.to_vec())),
            };
            (hash, content)
        })
        .collect();
    let forks = args.connect.forks.or(context.project.forks).unwrap_or(FORKS).max(1);
    let job = Job {
        run_id: uuid::Uuid::now_v7().to_string(),
        owner: owner(),
        playbooks: args.playbooks.iter().map(|p| p.display().to_string()).collect(),
        bundle: Arc::new(bundle),
        contents,
        hosts,
        known: inventory.hosts().map(|h| h.name.clone()).collect(),
        play_hosts,
        shared,
        extra,
        check: args.check,
        diff: args.diff,
        become_default: args.connect.become_root,
        issuer: Arc::new(secrets::issuer(&context.project, &context.sources)),
    };
    Ok(Prepared { job, transport, agents, forks })
}

/// `remote_user` and `port` of the plays, by host. There is one connection per host and run, so plays must agree.
fn logins(context: &Context, loaded: &Loaded, play_hosts: &[Vec<String>]) -> Result<HashMap<String, Login>, Wrong> {
    let mut out: HashMap<String, Login> = HashMap::new();
    for (play, hosts) in loaded.bundle.plays.iter().zip(play_hosts) {
        let scope = Scope::of(Arc::clone(&play.vars)).with(Arc::clone(&context.extra));
        let text = |node: &Option<rollcall_engine::node::Node>| -> Result<Option<String>, Diagnostic> {
            let Some(node) = node else { return Ok(None) };
            match template::render(node, &scope) {
                Ok(Value::String(text)) => Ok(Some(text)),
                Ok(other) => Ok(Some(other.to_string())),
                Err(template::EvalError::Wrong(diagnostic)) => Err(diagnostic),
                Err(template::EvalError::Unknown(why)) => Err(Diagnostic::error(node.span, why)),
            }
        };
        let user = text(&play.remote_user)?;
        let port = match (text(&play.port)?, &play.port) {
            (Some(text), Some(node)) => {
                Some(text.parse().map_err(|_| Diagnostic::error(node.span, format!("'{text}' is no port")))?)
            }
            _ => None,
        };
        if user.is_none() && port.is_none() {
            continue;
        }
        let login = Login { user, port };
        for host in hosts {
            match out.get(host) {
                Some(known) if *known != login => {
                    let text = format!("'{host}' is in plays with different remote_user or port");
                    return Err(Diagnostic::error(play.span, text)
                        .hint("a run has one connection per host; set ansible_user or ansible_port in the inventory")
                        .into());
                }
                _ => drop(out.insert(host.clone(), login.clone())),
            }
        }
    }
    Ok(out)
}

/// Dials, runs, tells.
pub(crate) async fn carry_out(prepared: Prepared, sinks: Vec<Box<dyn Sink>>) -> anyhow::Result<Exit> {
    let (incoming, receiver) = mpsc::unbounded_channel::<(usize, Incoming)>();
    let dialer = Dialer {
        transport: prepared.transport,
        agents: prepared.agents,
        forks: Arc::new(Semaphore::new(prepared.forks)),
        incoming,
    };
    Ok(Dispatcher::new(Arc::new(prepared.job), dialer, receiver, sinks)?.run().await)
}

/// The agents: in the folder that was given, or beside this program.
pub(crate) fn agents(given: Option<&PathBuf>) -> anyhow::Result<Agents> {
    let dirs = match given {
        Some(dir) => vec![dir.clone()],
        None => {
            let program = std::env::current_exe().context("cannot find this program's folder")?;
            program.parent().map(PathBuf::from).into_iter().collect()
        }
    };
    Ok(find_agents(&dirs, context::dirs().map(|dirs| dirs.cache).as_deref())?)
}

/// What templates see of other hosts; only where something asks for it.
fn shared(inventory: &Inventory, loaded: &Loaded) -> Option<Shared> {
    let asks = |text: &str| text.contains("hostvars") || text.contains("groups");
    let in_plays = serde_json::to_string(&loaded.bundle).is_ok_and(|text| asks(&text));
    let in_files = || {
        loaded.bundle.files.iter().any(|(path, entry)| {
            // A template of several megabytes is looked at all the same; other files are not templates.
            let template = path.components().any(|c| c.as_os_str() == "templates");
            template
                && loaded.contents.get(&entry.hash).is_some_and(|blob| match blob {
                    Blob::File(path) => std::fs::read_to_string(path).is_ok_and(|text| asks(&text)),
                    Blob::Bytes(bytes) => std::str::from_utf8(bytes).is_ok_and(asks),
                })
        })
    };
    let in_vars = || {
        inventory.hosts().any(|h| {
            inventory.host_vars(h).iter().flat_map(|l| l.values()).any(|v| match &v.binding {
                rollcall_engine::vars::Binding::Raw(node) => asks(&node.to_value().to_string()),
                _ => false,
            })
        })
    };
    if !(in_plays || in_files() || in_vars()) {
        return None;
    }
    let groups = serde_json::from_value((*inventory.groups_json()).clone()).ok()?;
    Some(Shared { groups, hostvars: inventory.hostvars_json(), taking_part: Arc::default() })
}

/// Finds out which tasks ask for results of other hosts.
fn note_others(
    bundle: &mut Bundle,
    contents: &BTreeMap<String, Blob>,
    inventory: &Inventory,
    shared: &Shared,
    extra: &Arc<Vars>,
) {
    let hosts = shared.taking_part.iter().filter_map(|name| inventory.host(name));
    let mut layers: Vec<Arc<Vars>> = hosts.flat_map(|host| inventory.host_vars(host)).collect();
    layers.push(Arc::clone(extra));
    // What cannot be read is told where it is sent.
    let read = |entry: &FileEntry| match contents.get(&entry.hash)? {
        Blob::File(path) => std::fs::read_to_string(path).ok(),
        Blob::Bytes(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
    };
    playbook::note_others(bundle, &layers, &read);
}

fn delegates(loaded: &Loaded) -> bool {
    fn any(items: &[Item]) -> bool {
        items.iter().any(|item| match item {
            Item::Task(task) => task.delegate_to.is_some() || task.action.role_tasks().any(|tasks| any(tasks)),
            Item::Block(block) => [&block.block, &block.rescue, &block.always].iter().any(|part| any(part)),
        })
    }
    let plays = loaded.bundle.plays.iter().any(|p| {
        [&p.pre_tasks, &p.tasks, &p.post_tasks].iter().any(|part| any(part))
            || p.handlers.iter().any(|h| h.task.delegate_to.is_some())
    });
    plays || loaded.bundle.task_files.values().any(|items| any(items))
}

/// Who runs this program, and where.
pub(crate) fn owner() -> String {
    let machine = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let machine = machine.trim();
    format!("{}@{}", context::local_user(), if machine.is_empty() { "unknown" } else { machine })
}

/// `--list-hosts`, `--list-tasks`, `--list-tags`.
fn list(args: &Args, loaded: &Loaded, play_hosts: &[Vec<String>]) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    for (number, (play, hosts)) in loaded.bundle.plays.iter().zip(play_hosts).enumerate() {
        writeln!(out, "play #{} ({}):", number + 1, play.name)?;
        if args.list_hosts {
            writeln!(out, "  hosts ({}):", hosts.len())?;
            for host in hosts {
                writeln!(out, "    {host}")?;
            }
        }
        if args.list_tasks {
            writeln!(out, "  tasks:")?;
            for part in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
                list_items(&mut out, part, loaded)?;
            }
        }
    }
    if args.list_tags {
        writeln!(out, "tags: {}", playbook::known_tags(&loaded.bundle).into_iter().collect::<Vec<_>>().join(", "))?;
    }
    Ok(Exit::Done)
}

fn list_items(out: &mut impl std::io::Write, items: &[Item], loaded: &Loaded) -> std::io::Result<()> {
    for item in items {
        match item {
            Item::Task(task) => {
                let role = task.role.and_then(|id| loaded.bundle.roles.get(id.0 as usize));
                let role = role.map(|r| format!("{} : ", r.name)).unwrap_or_default();
                let name = task.name.as_ref().and_then(|n| n.as_str()).unwrap_or("(without a name)");
                writeln!(out, "    {role}{name}\tTAGS: [{}]", task.tags.join(", "))?;
                for tasks in task.action.role_tasks() {
                    list_items(out, tasks, loaded)?;
                }
            }
            Item::Block(block) => {
                for part in [&block.block, &block.rescue, &block.always] {
                    list_items(out, part, loaded)?;
                }
            }
        }
    }
    Ok(())
}
