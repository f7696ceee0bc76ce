//! Rollcall's command line.

use std::{process::ExitCode, sync::Arc};

use clap::{CommandFactory as _, Parser, Subcommand};
use rollcall_engine::{diag::Sources, secrets::redact};

/// Host keys from the cloud.
mod console;
/// Project, inventory, SSH settings.
mod context;
/// How the program ends.
mod exit;
/// What `lookup(…)` gives.
mod lookups;
/// Options that verbs share.
mod options;
/// How a run is shown.
mod output;
/// A run.
mod run;
/// SSH.
mod ssh;
/// One file per verb.
mod verbs;

use context::Wrong;
use options::Show;

/// Roll out Consul, Nomad and Docker: the same roles that the agent carries out at first boot, over SSH.
///
/// A project is a folder with `rollcall.yaml` (make one with `controller init`). Everything that can be known is checked
/// on all hosts before the first one is changed.
#[derive(Debug, Parser)]
#[command(name = "controller", version, after_help = exit::TABLE, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    show: Show,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<verbs::run::Args>),
    Plan(Box<verbs::plan::Args>),
    Inventory(Box<verbs::inventory::Args>),
    Exec(Box<verbs::exec::Args>),
    Ssh(verbs::ssh::Args),
    Facts(verbs::facts::Args),
    Init(verbs::init::Args),
    Role(verbs::role::Args),
    Ca(verbs::ca::Args),
    Secret(verbs::secret::Args),
    Token(Box<verbs::token::Args>),
    Rotate(Box<verbs::rotate::Args>),
    Forget(Box<verbs::forget::Args>),
    Policies(verbs::policies::Args),
    Doc(verbs::doc::Args),
    Completions(verbs::completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.show.verbose);
    let sources = Arc::new(Sources::default());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&sources, &anyhow::Error::new(error).context("cannot start")),
    };
    let ended = runtime.block_on(dispatch(cli, Arc::clone(&sources)));
    // A read of the terminal or of a file may still hang in a thread.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => fail(&sources, &error),
    }
}

async fn dispatch(cli: Cli, sources: Arc<Sources>) -> anyhow::Result<ExitCode> {
    let show = cli.show;
    Ok(match cli.verb {
        Verb::Run(args) => verbs::run::run(*args, show, sources).await?.into(),
        Verb::Plan(args) => verbs::plan::run(*args, show, sources).await?.into(),
        Verb::Inventory(args) => verbs::inventory::run(*args, show, sources).await?.into(),
        Verb::Exec(args) => verbs::exec::run(*args, show, sources).await?.into(),
        Verb::Ssh(args) => verbs::ssh::run(args, sources).await?,
        Verb::Facts(args) => verbs::facts::run(args, sources).await?.into(),
        Verb::Init(args) => verbs::init::run(&args)?.into(),
        Verb::Role(args) => verbs::role::run(&args)?.into(),
        Verb::Ca(args) => verbs::ca::run(args, sources).await?.into(),
        Verb::Secret(args) => verbs::secret::run(args, sources).await?.into(),
        Verb::Token(args) => verbs::token::run(*args, show, sources).await?.into(),
        Verb::Rotate(args) => verbs::rotate::run(*args, show, sources).await?.into(),
        Verb::Forget(args) => Box::pin(verbs::forget::run(*args, show, sources)).await?.into(),
        Verb::Policies(args) => verbs::policies::run(&args, sources)?.into(),
        Verb::Doc(args) => verbs::doc::run(&args)?.into(),
        Verb::Completions(args) => verbs::completions::run(&args, &mut Cli::command()).into(),
    })
}

/// `-vvv` shows the negotiation of SSH; `ROLLCALL_LOG` anything else.
fn log(verbose: u8) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ROLLCALL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(if verbose > 2 { "rollcall=debug" } else { "error" }));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| redact::Scrubbed(std::io::stderr()))
        .without_time()
        .with_target(false)
        .init();
}

/// Wrong input is told with its places; everything else as a chain of causes.
fn fail(sources: &Sources, error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Wrong>() {
        Some(Wrong(diagnostics)) => {
            for diagnostic in &diagnostics.0 {
                context::eprint_line(sources.render(diagnostic).trim_end());
            }
            exit::Exit::Refused.into()
        }
        None => {
            context::eprint_line(&format!("error: {error:#}"));
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
