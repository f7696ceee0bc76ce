use std::sync::Arc;

use rollcall_engine::diag::Sources;

use crate::{exit::Exit, options::Show};

/// Say what `run` would change, with the differences, and change nothing.
///
/// The same as `run --check --diff`. What depends on something that a plan does not do (a command, a download) is told
/// as `may do`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: super::run::Args,
}

/// The verb.
pub(crate) async fn run(args: Args, show: Show, sources: Arc<Sources>) -> anyhow::Result<Exit> {
    let args = super::run::Args { check: true, diff: true, ..args.run };
    super::run::run(args, show, sources).await
}
