//! The verbs of `lab`: their arguments, and one function each.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::paths::LabPaths;
use crate::record::{Record, choose};
use crate::socket::{self, Answer, Fault, HostStatus, Request, Status};
use crate::{forward, output, paths, run, shell, supervisor, up};

/// A cloud on one Linux machine: real Debian hosts, the EC2 API, instance metadata, a release mirror.
#[derive(Debug, Parser)]
#[command(name = "lab", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// The lab that is meant. Without it: $ROLLCALL_LAB, else the only one; for `up` the name in the file.
    #[arg(long, short, global = true, value_name = "LAB")]
    name: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make what labs need and what is made once: image, EC2 API, programs, packages
    Prepare {
        /// Programs that not every lab has: `vault`
        #[arg(value_name = "PROGRAM", value_parser = clap::builder::PossibleValuesParser::new(crate::programs::names()))]
        programs: Vec<String>,
    },
    /// Print where one of the lab's programs is (`consul`, `vault`, `moto_server`); it is made if it is not there yet
    Program {
        #[arg(value_name = "PROGRAM")]
        program: String,
    },
    /// Bring a lab up and wait until every host answers on SSH
    Up {
        /// The lab file. Without it three plain hosts come up
        file: Option<PathBuf>,
    },
    /// Take a lab down and remove every trace of it
    Down {
        /// Every lab of this machine
        #[arg(long)]
        all: bool,
    },
    /// Show a lab and its hosts
    Status {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Enter the lab's network with its AWS settings, in a shell or with one command
    Shell {
        /// What to run instead of a shell
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Print the lab's settings as lines for a shell
    Env,
    /// Log in to a host, or run something there, by SSH
    Ssh {
        host: String,
        /// What to run
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Run a command on a host. One word is a line for the host's shell, several are a program and its arguments
    Exec {
        host: String,
        /// As root in the host's namespaces, past its SSH server and its network
        #[arg(long)]
        direct: bool,
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Lead a port of this machine into the lab
    Forward {
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// A host, and its port if it is another. Without it the lab's own services (5000: EC2 API)
        #[arg(long, value_name = "HOST[:PORT]")]
        to: Option<String>,
    },
    /// Cut a host's power. The EC2 API goes on to say that it runs
    Kill { host: String },
    /// Switch a host on again that was killed or that shut itself down
    Start { host: String },
    /// Give a host an empty disk and boot it: same address, same host keys
    Reset { host: String },
    /// Print what a host wrote to its console
    Console { host: String },
    /// Cut hosts off from each other; `gateway` stands for all that is no host
    Partition {
        /// One or more, separated by commas
        #[arg(value_delimiter = ',', required = true, num_args = 1)]
        a: Vec<String>,
        #[arg(value_delimiter = ',', required = true, num_args = 1)]
        b: Vec<String>,
    },
    /// End all partitions
    Heal,
    /// Break a host's disk, or mend it
    Fault { host: String, kind: FaultKind },
    /// PID 1 of a lab
    #[command(hide = true)]
    Init { lab: String },
    /// The supervisor of a lab
    #[command(hide = true)]
    Supervise { lab: String },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FaultKind {
    /// No byte can be written to the disk any more
    DiskFull,
    /// Nothing on the disk can be opened for writing
    ReadOnly,
    /// All as it should be
    Clear,
}

/// Runs a verb; the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8> {
    let name = cli.name.as_deref();
    let ask = |request: Request| socket::ask_and_tell(&choose(name)?, &request);
    match cli.verb {
        Verb::Prepare { programs } => prepare(&programs),
        Verb::Program { program } => up::program(&program).map(|path| output::data(path.display().to_string())),
        Verb::Up { file } => up::up(file.as_deref(), name),
        Verb::Down { all } => down(name, all),
        Verb::Status { json } => status(name, json),
        Verb::Shell { command } => shell::shell(&choose(name)?, &command),
        Verb::Env => env(name),
        Verb::Ssh { host, command } => shell::ssh(&choose(name)?, &host, &[], &command),
        Verb::Exec { host, direct, command } => exec(name, &host, direct, &command),
        Verb::Forward { port, to } => forward::forward(&choose(name)?, port, to.as_deref()),
        Verb::Kill { host } => ask(Request::Kill { host }),
        Verb::Start { host } => ask(Request::Start { host }),
        Verb::Reset { host } => ask(Request::Reset { host }),
        Verb::Console { host } => console(name, host),
        Verb::Partition { a, b } => ask(Request::Partition { a, b }),
        Verb::Heal => ask(Request::Heal),
        Verb::Fault { host, kind } => fault(name, host, kind),
        Verb::Init { lab } => return supervisor::init(&lab),
        Verb::Supervise { lab } => supervisor::supervise(&lab),
    }
    .map(|()| 0)
}

fn prepare(further: &[String]) -> Result<()> {
    let (image, prepared) = up::prepare(further, &[])?;
    output::note(format!("image      {}", image.display()));
    for program in &prepared.programs {
        output::note(format!("{:10} {} ({})", program.name, program.path.display(), program.version));
    }
    output::note("everything is there: lab up FILE");
    Ok(())
}

fn down(name: Option<&str>, all: bool) -> Result<()> {
    run::require_root("taking a lab down")?;
    let labs = paths::labs()?;
    match name {
        _ if all => labs.iter().try_for_each(|lab| up::down(lab)),
        None if labs.is_empty() => {
            output::note("no lab is up");
            Ok(())
        }
        name => up::down(&choose(name)?.name),
    }
}

fn status(name: Option<&str>, json: bool) -> Result<()> {
    let paths = choose(name)?;
    let status = socket::status(&paths)?;
    if json {
        output::data(serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    output::data(status_text(&status));
    Ok(())
}

fn status_text(status: &Status) -> String {
    let mut text = format!(
        "lab '{}' ({}) is {}\nnetwork   {} in namespace {}\nEC2 API   {}\nmirror    {}\n",
        status.name, status.file, status.state, status.subnet, status.namespace, status.aws_endpoint, status.mirror
    );
    for (name, file) in &status.keys {
        text.push_str(&format!("key       {name}: {file}\n"));
    }
    if let Some(jump) = &status.jump_host {
        text.push_str(&format!("jump host {jump}: SSH from outside is open to it only\n"));
    }
    for (one, other) in &status.partitions {
        text.push_str(&format!("cut       {one} from {other}\n"));
    }
    let width = status.hosts.iter().map(|host| host.name.len()).max().unwrap_or(0).max(4);
    text.push_str(&format!("\n{:width$}  {:14} {:19} {:12} {:8} tags", "host", "address", "id", "zone", "state"));
    for host in &status.hosts {
        text.push_str(&format!("\n{}", host_line(host, width)));
    }
    text
}

fn host_line(host: &HostStatus, width: usize) -> String {
    let tags = host.tags.iter().filter(|(name, _)| *name != "Name").map(|(name, value)| format!("{name}={value}"));
    let mut notes: Vec<String> = tags.collect();
    notes.extend(host.faults.iter().map(|fault| format!("[{}]", fault.name())));
    format!(
        "{:width$}  {:14} {:19} {:12} {:8} {}",
        host.name,
        host.address,
        host.id,
        host.zone,
        host.state,
        notes.join(" ")
    )
}

fn env(name: Option<&str>) -> Result<()> {
    output::data(shell::export_lines(&socket::status(&choose(name)?)?));
    Ok(())
}

fn exec(name: Option<&str>, host: &str, direct: bool, command: &[String]) -> Result<()> {
    let paths = choose(name)?;
    if direct {
        return shell::direct(&paths, host, command);
    }
    shell::ssh(&paths, host, &["-T"], command)
}

/// Works for a crashed lab too: its console logs are files.
fn console(name: Option<&str>, host: String) -> Result<()> {
    let paths = choose(name)?;
    Record::of(&paths)?;
    let by_id = LabPaths::host(&paths, &host).join("console.log");
    let is_id = host.starts_with("i-") && !host.contains('/');
    if is_id && let Ok(bytes) = std::fs::read(by_id) {
        output::raw(&bytes);
        return Ok(());
    }
    match socket::ask(&paths, &Request::Console { host })? {
        Answer::Console(text) => output::raw(text.as_bytes()),
        other => anyhow::bail!("the lab's supervisor answers something else: {other:?}"),
    }
    Ok(())
}

fn fault(name: Option<&str>, host: String, kind: FaultKind) -> Result<()> {
    let fault = match kind {
        FaultKind::DiskFull => Some(Fault::DiskFull),
        FaultKind::ReadOnly => Some(Fault::ReadOnly),
        FaultKind::Clear => None,
    };
    socket::ask_and_tell(&choose(name)?, &Request::Fault { host, fault })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sides_of_a_partition_may_be_lists() {
        let cli = Cli::try_parse_from(["lab", "partition", "a,b", "c"]).unwrap();
        assert!(matches!(cli.verb, Verb::Partition { a, b } if a == ["a", "b"] && b == ["c"]));
        assert!(Cli::try_parse_from(["lab", "partition", "a"]).is_err());
        assert!(Cli::try_parse_from(["lab", "fault", "a", "on-fire"]).is_err());
        assert!(Cli::try_parse_from(["lab", "forward", "0"]).is_err());
        assert!(Cli::try_parse_from(["lab", "exec", "a"]).is_err());
    }
}
