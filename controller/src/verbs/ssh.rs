use std::{collections::HashMap, io::Write as _, os::unix::process::CommandExt as _, process::ExitCode, sync::Arc};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use rollcall_engine::diag::Sources;

use crate::{
    context::{Context, eprint_line},
    exit::Exit,
    options::{Connect, Hosts},
    run::remote::{Way, chain},
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
    let config = match transport.openssh_config(&target).await {
        Ok(config) => config,
        Err(error) => {
            eprint_line(&format!("{name}: {}", chain(&error)));
            return Ok(Exit::Unreachable.into());
        }
    };
    let dirs = crate::context::dirs().context("there is no home folder")?;
    let folder = dirs.state.join("ssh");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // One for each host, put there whole: ssh reads it again for each jump, while another login may be on its way.
    let file = folder.join(format!("{}.config", name.replace('/', "_")));
    let write = || -> std::io::Result<()> {
        let mut new = tempfile::NamedTempFile::new_in(&folder)?;
        new.write_all(config.as_bytes())?;
        new.persist(&file)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    let mut ssh = std::process::Command::new("ssh");
    ssh.arg("-F").arg(file).arg(&target.name).args(&args.command);
    Err(anyhow::Error::new(ssh.exec()).context("cannot start ssh"))
}
