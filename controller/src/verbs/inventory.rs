use std::{collections::HashSet, io::Write as _, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use rollcall_engine::{
    diag::Sources,
    inventory::{model::ALL, output::json_text},
};

use crate::{
    context::{Context, Wrong},
    exit::Exit,
    options::{Hosts, Show},
};

/// Show hosts, groups and variables, and where each value comes from.
///
/// `--list` and `--host` print what Ansible expects of an inventory script. Variables are shown as they are written;
/// `--explain` renders one, and shows every place that sets it, the winner first.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  controller inventory --graph
  controller inventory --graph --vars consul_servers
  controller inventory --host consul-1 --explain ansible_host
  controller inventory --list --yaml --limit 'nomad_clients:!nomad_edge'")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["graph", "list", "host"]))]
pub(crate) struct Args {
    #[command(flatten)]
    hosts: Hosts,
    /// The groups as a tree, from `all` or from GROUP.
    #[arg(long)]
    graph: bool,
    /// With --graph: variables too.
    #[arg(long, requires = "graph")]
    vars: bool,
    /// Everything as Ansible's inventory JSON.
    #[arg(long)]
    list: bool,
    /// The variables of one host.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// With --host: every place that sets VAR, the winner first, and its rendered value.
    #[arg(long, value_name = "VAR", requires = "host")]
    explain: Option<String>,
    /// With --list or --host: YAML. A list as YAML is an inventory file again.
    #[arg(short = 'y', long, conflicts_with_all = ["graph", "explain"])]
    yaml: bool,
    /// Read group_vars and host_vars of this playbook folder too. May be repeated; without it, those of the project.
    #[arg(long, value_name = "DIR")]
    playbook_dir: Vec<PathBuf>,
    /// With --graph: start here.
    #[arg(value_name = "GROUP", requires = "graph")]
    group: Option<String>,
}

/// The verb.
pub(crate) async fn run(args: Args, _show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(sources, &args.hosts.extra)?;
    let dirs = if args.playbook_dir.is_empty() { context.project.playbooks.clone() } else { args.playbook_dir.clone() };
    let inventory = context.inventory(&args.hosts, dirs).await?;
    let limited: Option<HashSet<String>> = match &args.hosts.limit {
        Some(limit) => {
            let hosts = inventory.select_limit(limit).map_err(Wrong::from)?;
            Some(hosts.into_iter().map(|h| h.name.clone()).collect())
        }
        None => None,
    };
    let shown = limited.as_ref();
    let text = if let Some(host) = &args.host {
        match &args.explain {
            Some(name) => inventory.explain(host, name, &context.sources).map_err(Wrong::from)?,
            None => written(&inventory.host_json(host).map_err(Wrong::from)?, args.yaml)?,
        }
    } else if args.list {
        let value = if args.yaml { inventory.list_yaml(shown) } else { inventory.list_json(shown) };
        written(&value, args.yaml)?
    } else {
        inventory.graph(args.group.as_deref().unwrap_or(ALL), args.vars, shown).map_err(Wrong::from)?
    };
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n')) {
        // Whoever reads us (head, a pager) may have seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        other => other.map(|()| Exit::Done).context("cannot write to standard output"),
    }
}

fn written(value: &serde_json::Value, yaml: bool) -> anyhow::Result<String> {
    if yaml { rollcall_engine::yaml::to_string(value).map_err(anyhow::Error::msg) } else { Ok(json_text(value)) }
}
