use std::{collections::HashMap, io::Write as _, path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;
use rollcall_engine::{
    diag::Sources,
    protocol::{Frame, FromAgent, Init, ToAgent, VERSION},
};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    context::Context,
    exit::Exit,
    options::{Connect, Hosts},
    run::remote::{Dialer, Incoming, dial},
};

/// Show what a host is, as JSON: what plays see under `facts`.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller facts consul-server-1
  controller facts consul-server-1 | jq .os")]
pub(crate) struct Args {
    /// The host.
    pub(crate) host: String,
    #[command(flatten)]
    pub(crate) hosts: Hosts,
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// Folder with the agents; beside this program otherwise.
    #[arg(long, value_name = "DIR", env = "ROLLCALL_AGENTS")]
    pub(crate) agents: Option<PathBuf>,
}

/// The verb.
pub(crate) async fn run(args: Args, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(sources, &args.hosts.extra)?;
    let inventory = context.inventory(&args.hosts, Vec::new()).await?;
    let name = &Context::one_host(&inventory, &args.host, args.hosts.limit.as_deref(), "facts are shown")?;
    let password = if args.connect.ask_become_pass { Some(crate::context::ask_become_password()?) } else { None };
    let transport = context.transport(&args.connect, &inventory)?;
    let specs = context.hosts(
        &inventory,
        std::slice::from_ref(name),
        &args.connect,
        &HashMap::new(),
        &transport,
        password.as_ref(),
    );
    let spec = specs.into_iter().next().context("the host vanished")?;
    let (incoming, mut receiver) = mpsc::unbounded_channel();
    let agents = Arc::new(super::run::agents(args.agents.as_ref())?);
    let dialer = Dialer { transport, agents, forks: Arc::new(Semaphore::new(1)), incoming };
    let init = ToAgent::Init(Box::new(Init {
        version: VERSION,
        run_id: uuid::Uuid::now_v7().to_string(),
        owner: crate::context::local_user(),
        host: spec.name.clone(),
        check: true,
        diff: false,
        login_user: spec.login_user.clone(),
        become_default: false,
        pack: String::new(),
        shared: None,
        vars: Vec::new(),
        extra: Arc::default(),
        group_names: Vec::new(),
        cluster: serde_json::Value::Null,
        plays: Vec::new(),
        ec2: spec.ec2,
        facts_only: true,
        go: None,
    }));
    let way = spec.way.map_err(anyhow::Error::msg)?;
    let _link = dial(&dialer, 0, way, vec![Arc::new(Frame::json(&init)?.encode())]);
    drop(dialer);
    while let Some((_, message)) = receiver.recv().await {
        match message {
            Incoming::Agent(message) => match *message {
                FromAgent::Ready { facts, .. } => {
                    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&facts)?)?;
                    return Ok(Exit::Done);
                }
                FromAgent::Fatal { failure } => bail!("{}: {}", spec.name, failure.message),
                _ => {}
            },
            Incoming::Unreachable(reason) | Incoming::Lost(reason) => {
                crate::context::eprint_line(&format!("{}: {reason}", spec.name));
                return Ok(Exit::Unreachable);
            }
            Incoming::Started { .. } | Incoming::Waiting(_) | Incoming::Answered { .. } => {}
        }
    }
    bail!("{}: no answer", spec.name)
}
