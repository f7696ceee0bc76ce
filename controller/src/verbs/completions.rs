use clap::Args as ClapArgs;
use clap_complete::Shell;

use crate::exit::Exit;

/// Print completions for a shell.
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = "Example:\n  controller completions bash > /etc/bash_completion.d/controller")]
pub(crate) struct Args {
    /// bash, zsh, fish, elvish or powershell.
    pub(crate) shell: Shell,
}

/// The verb.
pub(crate) fn run(args: &Args, command: &mut clap::Command) -> Exit {
    clap_complete::generate(args.shell, command, "controller", &mut std::io::stdout());
    Exit::Done
}
