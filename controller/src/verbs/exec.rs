use std::{path::PathBuf, sync::Arc};

use clap::Args as ClapArgs;
use rollcall_engine::{diag::Sources, protocol::Status};
use serde_json::{Value, json};

use super::own_play;
use crate::{
    context::{Context, Wrong},
    exit::Exit,
    options::{Connect, Hosts, Show},
    run::events::{RunEvent, Sink},
};

/// Run one command on hosts, and show what it says.
///
/// The command is started as it stands, without a shell: `-- sh -c '…'` where one is wanted.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  controller exec consul_servers -- consul members
  controller exec 'all:!jump' -b -- systemctl is-active consul
  controller exec web-1 -- sh -c 'uptime; free -m'")]
pub(crate) struct Args {
    /// Hosts: names, groups, globs, `a:&b:!c`.
    pub(crate) pattern: String,
    #[command(flatten)]
    pub(crate) hosts: Hosts,
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// Print the run as JSON, one event a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Folder with the agents; beside this program otherwise.
    #[arg(long, value_name = "DIR", env = "ROLLCALL_AGENTS")]
    pub(crate) agents: Option<PathBuf>,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// The verb.
pub(crate) async fn run(args: Args, show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let context = Context::new(sources, &args.hosts.extra)?;
    let inventory = context.inventory(&args.hosts, Vec::new()).await?;
    let limit = args.hosts.limit.as_deref();
    let names: Vec<String> =
        inventory.select(&args.pattern, limit).map_err(Wrong::from)?.iter().map(|h| h.name.clone()).collect();
    // The playbook that a person would write; what it holds is quoted, so that braces in the command stay braces.
    let argv: Vec<Value> = args.command.iter().map(|word| Value::String(own_play::raw(word))).collect();
    let play = json!({ "name": "exec", "hosts": "all", "tasks": [{
        "name": args.command.join(" "), "command": { "argv": argv }, "changed_when": false }] });
    let sinks: Vec<Box<dyn Sink>> = if args.json {
        vec![Box::new(crate::output::json::Lines::new(std::io::stdout()))]
    } else {
        vec![Box::new(Said { quiet: show.quiet })]
    };
    let options =
        own_play::Options { hosts: &args.hosts, connect: &args.connect, agents: args.agents.as_ref(), json: args.json };
    own_play::carry_out(&context, &inventory, (&play, names), &options, sinks).await
}

/// What the command said, host by host, as each one ends.
#[derive(Debug)]
struct Said {
    quiet: bool,
}

impl Sink for Said {
    #[expect(clippy::print_stdout, reason = "what the command said is this verb's data")]
    fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Task { host, result } => {
                let text = |name: &str| result.result.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                let (out, err) = (text("stdout"), text("stderr"));
                if !self.quiet {
                    let code = result.result.get("rc").and_then(Value::as_i64);
                    match code {
                        Some(code) => println!("{host} | exit code {code}"),
                        None => println!("{host} | {}", result.msg.as_deref().unwrap_or("failed")),
                    }
                }
                for part in [out, err] {
                    if !part.is_empty() {
                        println!("{}", part.trim_end_matches('\n'));
                    }
                }
                if let (Status::Failed, Some(hint)) = (result.status, &result.hint) {
                    println!("hint: {hint}");
                }
            }
            RunEvent::HostUnreachable { host, reason, .. } => println!("{host} | unreachable: {reason}"),
            RunEvent::Notice { text } => println!("{text}"),
            _ => {}
        }
    }
}
