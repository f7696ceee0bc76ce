//! What the services of a lab are made from, and making it: the API server's Python environment, the programs,
//! the release mirror, the package repository. All of it lies in the cache and is made once.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cloud::Owner;
use crate::failure::{Failure, nearest};
use crate::programs::{self, Program, Workshop};
use crate::{apt, mirror, paths};

/// Exact versions of all packages of the environment.
const REQUIREMENTS: &str = include_str!("../moto/requirements.txt");

/// The name of the EC2 API server's program.
const API_SERVER: &str = "moto_server";

/// What [`prepare`] made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Prepared {
    /// The `moto_server` of the environment.
    pub(crate) moto: PathBuf,
    pub(crate) programs: Vec<Program>,
    /// Root of the release mirror.
    pub(crate) mirror: PathBuf,
    /// Root of the package repository; `key.gpg` in it is what hosts trust.
    pub(crate) apt: PathBuf,
}

impl Prepared {
    /// Folders of the programs, for a PATH.
    pub(crate) fn path_folders(&self) -> Vec<PathBuf> {
        let files = self.programs.iter().filter(|program| program.layout == programs::Layout::Program);
        files.filter_map(|program| program.path.parent()).map(Path::to_owned).collect()
    }
}

/// Makes what is missing. Needs the network when something is; runs outside of the lab's namespace.
/// `further` names programs that not every lab has, `packages` Debian packages of which the same is true; `say` hears one line
/// before each step that takes long.
pub(crate) async fn prepare(
    cache: &Path,
    owner: &Owner,
    further: &[String],
    packages: &[String],
    say: &(dyn Fn(&str) + Send + Sync),
) -> anyhow::Result<Prepared> {
    let workshop = Workshop { cache, owner, say };
    let moto = environment(&workshop).await.context("cannot make the EC2 API's environment")?;
    let apt = apt::repository(&workshop, packages).await.context("cannot make the package repository")?;
    let mut found = Vec::new();
    for recipe in programs::wanted(further) {
        found.push(programs::resolve(recipe, &workshop).await?);
    }
    let tree = publish(&workshop, &found).await?;
    Ok(Prepared { moto, programs: found, mirror: tree, apt })
}

/// One program by its name, made if it is not there yet.
pub(crate) async fn program(
    cache: &Path,
    owner: &Owner,
    name: &str,
    say: &(dyn Fn(&str) + Send + Sync),
) -> anyhow::Result<PathBuf> {
    let workshop = Workshop { cache, owner, say };
    if name == API_SERVER {
        return environment(&workshop).await;
    }
    match programs::RECIPES.iter().find(|recipe| recipe.name == name) {
        Some(recipe) => Ok(programs::resolve(recipe, &workshop).await?.path),
        None => {
            let known: Vec<&str> = programs::names().chain([API_SERVER]).collect();
            let hint = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("there are: {}", known.join(", ")),
            };
            Err(Failure::new(format!("the lab has no program '{name}'"), hint).into())
        }
    }
}

/// Only the API server, for tests.
#[cfg(test)]
pub(crate) async fn moto(cache: &Path, owner: &Owner) -> anyhow::Result<PathBuf> {
    environment(&Workshop { cache, owner, say: &|_| {} }).await
}

/// The virtual environment of the API server.
async fn environment(workshop: &Workshop<'_>) -> anyhow::Result<PathBuf> {
    let python = programs::tool("python3", "python3")?;
    let version = workshop.run("python3 --version", workshop.command(&python).arg("--version")).await?;
    let folder = workshop
        .once("moto", "venv", &[REQUIREMENTS, version.trim(), &python.to_string_lossy()], async |folder| {
            (workshop.say)("installing the EC2 API server (moto) into a virtual environment");
            let mut venv = workshop.command(&python);
            venv.args(["-m", "venv"]).arg(&folder);
            workshop
                .run("python3 -m venv", &mut venv)
                .await
                .map_err(|error| crate::failure::Failure::new(format!("{error:#}"), "apt-get install python3-venv"))?;
            let list = folder.join("requirements.txt");
            paths::write_atomic(&list, REQUIREMENTS.as_bytes(), 0o644)?;
            let mut pip = workshop.command(&folder.join("bin/python"));
            pip.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
                "--no-deps",
                "-r",
            ])
            .arg(&list);
            workshop.run("pip install", &mut pip).await.map(drop)
        })
        .await?;
    Ok(folder.join("bin/moto_server"))
}

/// Puts the programs into the mirror.
async fn publish(workshop: &Workshop<'_>, found: &[Program]) -> anyhow::Result<PathBuf> {
    let tree = workshop.cache.join("mirror");
    paths::create_owned(&tree, workshop.owner)?;
    let (root, list) = (tree.clone(), found.to_vec());
    let published = tokio::task::spawn_blocking(move || {
        let _lock = paths::lock_in(&root)?;
        list.iter().try_for_each(|program| mirror::publish(&root, program, programs::go_arch()))
    });
    published.await.context("the packing was broken off")?.context("cannot fill the release mirror")?;
    Ok(tree)
}
