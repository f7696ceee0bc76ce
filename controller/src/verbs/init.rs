use std::{fs, io::Write as _, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args as ClapArgs;

use crate::exit::Exit;

/// Make a project that works at once.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// The folder; made if it is not there. It must hold none of the files that are made.
    pub(crate) dir: PathBuf,
}

/// Files of a new project.
const FILES: [(&str, &str); 5] = [
    ("rollcall.yaml", include_str!("init/rollcall.yaml")),
    ("inventory/hosts.yaml", include_str!("init/hosts.yaml")),
    ("inventory/group_vars/all.yaml", include_str!("init/all.yaml")),
    ("playbooks/hello.yaml", include_str!("init/hello.yaml")),
    (".gitignore", "/output\n"),
];

/// The verb.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let there: Vec<&str> = FILES.iter().map(|(path, _)| *path).filter(|path| args.dir.join(path).exists()).collect();
    if !there.is_empty() {
        bail!("{} holds already: {}", args.dir.display(), there.join(", "));
    }
    for (path, text) in FILES {
        let path = args.dir.join(path);
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = std::io::stdout();
    writeln!(
        out,
        "made {}; try:\n  cd {}\n  controller inventory --graph\n  controller run hello.yaml --check --diff",
        args.dir.display(),
        args.dir.display()
    )?;
    Ok(Exit::Done)
}
