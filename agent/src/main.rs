//! Rollcall's program on the host.

use clap::{Parser, Subcommand};
use rollcall_engine::secrets::redact;

/// Content that the run brings along.
mod blobs;
/// A run over SSH: messages on standard input and output.
mod exec;
/// Secrets, asked of the controller.
mod grants;
/// The other end of the run: events, asks, stop.
mod link;
/// One run at a time.
mod lock;
/// Where things are kept.
mod paths;
/// What this host owes and is.
mod status;
/// Calls as another user.
mod worker;

/// Rollcall's program on the host: carries plays out where they act.
///
/// You rarely start it by hand: `controller` puts it on the host and starts `agent exec` there; a unit starts it at
/// boot.
#[derive(Debug, Parser)]
#[command(name = "agent", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Carry out a run: frames on standard input and output. Started by the controller.
    Exec,
    /// Carry out calls as another user. Started by `exec`.
    #[command(hide = true)]
    Worker {
        /// The user.
        user: String,
    },
    /// Show what this machine is, as JSON: what plays see under `facts`.
    Facts,
    /// Show this host's lock and the handlers that it owes. Exit code 1 if one is owed.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> std::process::ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("ROLLCALL_LOG"))
        .with_writer(|| redact::Scrubbed(std::io::stderr()))
        .init();
    let ended = match Cli::parse().verb {
        Verb::Exec => exec::run(),
        Verb::Worker { user } => worker::run(&user),
        Verb::Facts => status::facts(),
        Verb::Status { json } => status::run(json),
    };
    ended.unwrap_or_else(|error| {
        eprint_chain(&error);
        std::process::ExitCode::from(1)
    })
}

/// What this process is told may be secret: no core dump, and nobody but root reads its memory.
pub(crate) fn closed() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::debug!(%error, "a core dump of this process would hold secrets");
    }
}

#[expect(clippy::print_stderr, reason = "the one place where the program's own failure is told")]
fn eprint_chain(error: &anyhow::Error) {
    eprintln!("agent: {}", redact::text(&format!("{error:#}")));
}
