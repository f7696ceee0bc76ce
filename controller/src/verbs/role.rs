use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, Subcommand};
use rollcall_engine::{
    diag::suggest,
    roles::{Embedded, EmbeddedRoles as _},
};

use crate::exit::Exit;

/// Our own roles: list them, or copy one out to change it.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Names of the roles that come with this program.
    List,
    /// Copy a role into the project. From then on the copy is taken, whole.
    Export {
        /// The role.
        name: String,
        /// The folder that gets it.
        #[arg(default_value = "roles")]
        to: PathBuf,
    },
}

/// The verb.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout();
    match &args.verb {
        Verb::List => {
            for name in Embedded.names() {
                writeln!(out, "{name}")?;
            }
        }
        Verb::Export { name, to } => {
            let Some(files) = Embedded.get(name) else {
                let names = Embedded.names();
                let hint = suggest(name, names.iter().map(String::as_str)).unwrap_or_default();
                bail!("there is no role '{name}'; {hint}");
            };
            let folder = to.join(name);
            if folder.exists() {
                bail!("{} is there already", folder.display());
            }
            for (path, bytes, mode) in files {
                let path = folder.join(path);
                let parent = path.parent().context("a file without a folder")?;
                fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
                fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            writeln!(out, "{} is taken from {} from now on", name, folder.display())?;
        }
    }
    Ok(Exit::Done)
}
