//! What the verbs that work on a running cluster share: a play of one of our roles, carried out over the same way as any run, and
//! the store of the cluster's secrets.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::bail;
use clap::{Args as ClapArgs, ValueEnum};
use rollcall_engine::{
    diag::Sources,
    inventory::Inventory,
    protocol::{Status, TaskResult},
    secrets::{Name, Secret, SecretStore, StoreError, issuer::Issuer, redact},
};
use serde_json::{Value, json};

use super::own_play;
use crate::{
    context::{self, Context},
    exit::Exit,
    options::{Connect, Hosts, Show},
    output::{self, Look},
    run::{
        events::{RunEvent, Sink},
        secrets,
    },
};

/// A product whose cluster is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Product {
    /// Consul.
    Consul,
    /// Nomad.
    Nomad,
}

impl Product {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Consul, Self::Nomad];

    /// In small letters: its role, and the first part of its secrets' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Consul => "consul",
            Self::Nomad => "nomad",
        }
    }

    /// The group of who is asked.
    pub(crate) fn servers(self) -> &'static [&'static str] {
        match self {
            Self::Consul => &["consul_servers"],
            Self::Nomad => &["nomad_servers"],
        }
    }

    /// Groups of those who gossip, and hold tokens.
    pub(crate) fn members(self) -> &'static [&'static str] {
        match self {
            Self::Consul => &["consul_servers", "consul_clients"],
            Self::Nomad => &["nomad_servers"],
        }
    }
}

/// How a cluster is reached.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Way {
    #[command(flatten)]
    pub(crate) hosts: Hosts,
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// Folder with the agents; beside this program otherwise.
    #[arg(long, value_name = "DIR", env = "ROLLCALL_AGENTS")]
    pub(crate) agents: Option<PathBuf>,
}

/// A project, its inventory and its secrets.
pub(crate) struct Operator {
    pub(crate) context: Context,
    pub(crate) inventory: Inventory,
    pub(crate) store: Arc<dyn SecretStore>,
    issuer: Issuer,
    way: Way,
    show: Show,
}

/// What is to be done on hosts: one of a role's files of tasks.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// For people.
    pub(crate) name: &'a str,
    /// Hosts of these groups.
    pub(crate) groups: &'a [&'a str],
    /// But not on this one.
    pub(crate) without: Option<&'a str>,
    /// On the first of them that answers, for all.
    pub(crate) once: bool,
    pub(crate) role: &'a str,
    pub(crate) tasks: &'a str,
    /// Variables; their texts are no expressions.
    pub(crate) vars: Value,
}

/// How it went.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Of all hosts, in the order in which they ended.
    pub(crate) results: Vec<(String, TaskResult)>,
    /// Hosts, and why.
    pub(crate) unreachable: Vec<(String, String)>,
    /// Hosts on which a task failed.
    pub(crate) failed: BTreeSet<String>,
    /// What the run as a whole ended with.
    pub(crate) exit: Option<Exit>,
}

impl Ended {
    /// The result of a module's task that was carried out, and not skipped.
    pub(crate) fn of_module(&self, module: &str) -> Option<&TaskResult> {
        let fits = |result: &&TaskResult| {
            result.module == module && !matches!(result.status, Status::Failed | Status::Skipped)
        };
        self.results.iter().map(|(_, result)| result).find(fits)
    }

    /// All hosts did all of it.
    pub(crate) fn is_whole(&self) -> bool {
        self.exit == Some(Exit::Done)
    }

    /// It was done somewhere, and failed nowhere: a host that is away was not needed.
    pub(crate) fn is_done_once(&self) -> bool {
        matches!(self.exit, Some(Exit::Done | Exit::Unreachable)) && self.failed.is_empty() && !self.results.is_empty()
    }

    /// With what the program ends if this is what stopped it.
    pub(crate) fn exit(&self) -> Exit {
        match self.exit {
            Some(Exit::Done) | None => Exit::Failed,
            Some(exit) => exit,
        }
    }

    /// Tells people what went wrong.
    pub(crate) fn tell(&self) {
        for (host, why) in &self.unreachable {
            context::eprint_line(&format!("{host}: not reachable: {why}"));
        }
        for (host, result) in self.results.iter().filter(|(_, result)| result.status == Status::Failed) {
            let item = result.item.as_ref().map(|item| format!(" ({item})")).unwrap_or_default();
            context::eprint_line(&format!(
                "{host}: {}{item}: {}",
                result.name,
                result.msg.as_deref().unwrap_or("failed")
            ));
            if let Some(hint) = &result.hint {
                context::eprint_line(&format!("  hint: {hint}"));
            }
        }
    }
}

/// Keeps what a run tells.
#[derive(Debug)]
struct Kept {
    ended: Arc<Mutex<Ended>>,
    sources: Arc<Sources>,
}

impl Sink for Kept {
    fn event(&mut self, event: &RunEvent) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RunEvent::Task { host, result } => {
                if result.status == Status::Failed && !result.ignored && !result.rescued {
                    ended.failed.insert(host.clone());
                }
                ended.results.push((host.clone(), (**result).clone()));
            }
            RunEvent::HostUnreachable { host, reason, .. } => ended.unreachable.push((host.clone(), reason.clone())),
            RunEvent::Problem { hosts, diagnostic } => {
                context::eprint_line(&format!("{}: {}", hosts.join(", "), self.sources.render(diagnostic).trim_end()));
            }
            RunEvent::Notice { text } => context::eprint_line(text),
            _ => {}
        }
    }
}

impl Operator {
    /// Reads the project and its inventory, and opens the store. Nothing is asked yet.
    pub(crate) async fn new(way: Way, show: Show, sources: Arc<Sources>) -> anyhow::Result<Self> {
        if way.hosts.limit.is_some() {
            bail!("this verb is about the whole cluster: it takes no --limit");
        }
        let context = Context::new(sources, &way.hosts.extra)?;
        let inventory = context.inventory(&way.hosts, Vec::new()).await?;
        let issuer = secrets::issuer(&context.project, &context.sources);
        let store = issuer.store().await?;
        Ok(Self { context, inventory, store, issuer, way, show })
    }

    /// Names of the hosts of some groups, each once.
    pub(crate) fn hosts(&self, groups: &[&str]) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for group in groups.iter().filter_map(|name| self.inventory.group(name)) {
            for host in self.inventory.group_hosts(group) {
                if !out.contains(&host.name) {
                    out.push(host.name.clone());
                }
            }
        }
        out
    }

    /// The value of a secret, made if it is one that Rollcall makes.
    pub(crate) async fn make(&self, name: &Name) -> anyhow::Result<Secret> {
        let told = |what: String| context::eprint_line(&what);
        Ok(self.issuer.make(name, &told).await?)
    }

    /// The value of a secret, if it has one.
    pub(crate) async fn get(&self, name: &Name) -> anyhow::Result<Option<Secret>> {
        let value = self.store.get(name).await.map_err(told)?;
        value.iter().for_each(redact::register);
        Ok(value)
    }

    pub(crate) async fn put(&self, name: &Name, value: &Secret) -> anyhow::Result<()> {
        self.store.put(name, value).await.map_err(told)
    }

    pub(crate) async fn delete(&self, name: &Name) -> anyhow::Result<()> {
        self.store.delete(name).await.map_err(told)
    }

    /// The names that begin with a text.
    pub(crate) async fn list(&self, prefix: &str) -> anyhow::Result<Vec<Name>> {
        self.store.list(prefix).await.map_err(told)
    }

    /// Carries a piece of work out.
    pub(crate) async fn work(&self, work: &Work<'_>) -> anyhow::Result<Ended> {
        let mut names = self.hosts(work.groups);
        names.retain(|name| Some(name.as_str()) != work.without);
        if names.is_empty() {
            bail!("the inventory has no host in {}: there is nobody to ask", work.groups.join(", "));
        }
        let mut vars = own_play::literal(&work.vars);
        vars["rollcall_operates"] = true.into();
        let play = json!({ "name": work.name, "hosts": "all", "become": true, "vars": vars, "tasks": [{
            "name": work.name, "import_role": { "name": work.role, "tasks_from": work.tasks }, "run_once": work.once }] });
        let ended = Arc::new(Mutex::new(Ended::default()));
        let sources = Arc::clone(&self.context.sources);
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(Kept { ended: Arc::clone(&ended), sources })];
        if self.show.verbose > 0 {
            let look = Look { verbose: self.show.verbose, ..Look::default() };
            sinks.extend(output::notes(&look, &self.context.sources));
        }
        let options = own_play::Options {
            hosts: &self.way.hosts,
            connect: &self.way.connect,
            agents: self.way.agents.as_ref(),
            json: false,
        };
        let exit = own_play::carry_out(&self.context, &self.inventory, (&play, names), &options, sinks).await?;
        let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.exit = Some(exit);
        Ok(std::mem::take(&mut *ended))
    }
}

/// A store's error with what to do about it.
pub(crate) fn told(error: StoreError) -> anyhow::Error {
    let hint = match &error {
        StoreError::Unknown { .. } => Some("do the same again: it does no harm if it has happened".to_owned()),
        other => other.hint().map(str::to_owned),
    };
    match hint {
        Some(hint) => anyhow::anyhow!("{:#}; hint: {hint}", anyhow::Error::new(error)),
        None => error.into(),
    }
}
