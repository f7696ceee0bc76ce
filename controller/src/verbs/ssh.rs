use std::{collections::HashMap, os::unix::process::CommandExt as _, process::ExitCode, sync::Arc};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use rollcall_engine::diag::Sources;

use crate::{
    context::Context,
    options::{Connect, Hosts},
    run::remote::Way,
};

/// Log in to a host with the system's ssh: the inventory's address, user, key and jump hosts, our host keys.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller ssh consul-server-1
  controller ssh consul-server-1 -- journalctl -u consul -n 50")]
pub(crate) struct Args {
    /// The host.
    pub(crate) host: String,
    #[command(flatten)]
    pub(crate) hosts: Hosts,
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// A command to run there instead of a shell, after `--`.
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

/// The verb. Does not come back where ssh could be started.
pub(crate) async fn run(args: Args, sources: Arc<Sources>) -> anyhow::Result<ExitCode> {
    let context = Context::new(sources, &args.hosts.extra)?;
    let inventory = context.inventory(&args.hosts, Vec::new()).await?;
    let name = &Context::one_host(&inventory, &args.host, args.hosts.limit.as_deref(), "a shell is")?;
    let transport = context.transport(&args.connect, &inventory)?;
    let specs = context.hosts(&inventory, std::slice::from_ref(name), &args.connect, &HashMap::new(), &transport, None);
    let spec = specs.into_iter().next().context("the host vanished")?;
    let target = match spec.way.map_err(anyhow::Error::msg)? {
        Way::Ssh { target, .. } => target,
        Way::Local { .. } => bail!("{name} is this machine"),
    };
    // The first contact learns and checks host keys by our rules; ssh then finds them written down.
    let config = transport.openssh_config(&target).await?;
    let dirs = crate::context::dirs().context("there is no home folder")?;
    std::fs::create_dir_all(&dirs.state).with_context(|| format!("cannot create {}", dirs.state.display()))?;
    let file = dirs.state.join("ssh_config");
    std::fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let mut ssh = std::process::Command::new("ssh");
    ssh.arg("-F").arg(file).arg(&target.name).args(&args.command);
    Err(anyhow::Error::new(ssh.exec()).context("cannot start ssh"))
}
