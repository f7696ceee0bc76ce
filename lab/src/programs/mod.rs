//! The real programs that hosts run. Each comes from the first of: the user's PATH, if it is the wanted version;
//! the vendor's release, if the user names where releases are, or there is no Go; its Go module, built once.

mod build;
mod release;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::cloud::Owner;
use crate::failure::Failure;
use crate::paths;

/// In a finished cache folder.
const COMPLETE: &str = ".complete";

/// What can be had.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// Go packages of its `main`, or of each plugin's.
    packages: &'static [&'static str],
    /// What the linker is told.
    linker: &'static str,
    /// A build with fewer parts than the vendor's.
    fewer: Option<Fewer>,
    pub(crate) layout: Layout,
    go_mod: &'static str,
    go_sum: &'static str,
    /// Every lab has it. The others are made for who names them: a program may take minutes and hundreds of megabytes.
    always: bool,
}

/// What a recipe makes, and how its vendor releases it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Layout {
    /// One program, in a zip: HashiCorp's.
    #[default]
    Program,
    /// A folder of programs that another one calls, in a tar archive: that of the CNI plugins.
    Plugins,
}

impl Layout {
    /// The variable that names the vendor's release server, and which that is. Each vendor has its own.
    const fn releases(self) -> (&'static str, &'static str) {
        match self {
            Self::Program => ("ROLLCALL_LAB_RELEASES", "https://releases.hashicorp.com"),
            Self::Plugins => {
                ("ROLLCALL_LAB_CNI_RELEASES", "https://github.com/containernetworking/plugins/releases/download")
            }
        }
    }
}

/// A build tag of the vendor's for a smaller program, and what is added to it again.
#[derive(Debug)]
struct Fewer {
    tag: &'static str,
    /// The Go module that is changed, and the file in it.
    module: &'static str,
    file: &'static str,
    /// What stands in the file instead.
    text: &'static str,
}

/// Without what debuggers need.
const STRIPPED: &str = "-s -w";

/// Every program of the lab.
pub(crate) const RECIPES: [Recipe; 4] = [
    Recipe {
        name: "consul",
        version: "1.22.2",
        packages: &["github.com/hashicorp/consul"],
        linker: STRIPPED,
        fewer: None,
        layout: Layout::Program,
        go_mod: include_str!("../../programs/consul/go.mod"),
        go_sum: include_str!("../../programs/consul/go.sum"),
        always: true,
    },
    Recipe {
        name: "nomad",
        version: "1.11.2",
        packages: &["github.com/hashicorp/nomad"],
        linker: STRIPPED,
        fewer: None,
        layout: Layout::Program,
        go_mod: include_str!("../../programs/nomad/go.mod"),
        go_sum: include_str!("../../programs/nomad/go.sum"),
        always: false,
    },
    Recipe {
        name: "vault",
        version: "1.21.0",
        packages: &["github.com/hashicorp/vault"],
        linker: STRIPPED,
        // Without the clouds and databases that it can also speak to: they take as long as all the rest.
        fewer: Some(Fewer {
            tag: "minimal",
            module: "github.com/hashicorp/vault",
            file: "command/commands_min.go",
            text: include_str!("../../programs/vault/commands_min.go"),
        }),
        layout: Layout::Program,
        go_mod: include_str!("../../programs/vault/go.mod"),
        go_sum: include_str!("../../programs/vault/go.sum"),
        always: false,
    },
    Recipe {
        name: "cni-plugins",
        version: "1.9.1",
        // Those that Nomad's bridge networking calls.
        packages: &[
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            "github.com/containernetworking/plugins/plugins/main/bridge",
            "github.com/containernetworking/plugins/plugins/main/loopback",
            "github.com/containernetworking/plugins/plugins/meta/firewall",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ],
        // They know their version from the linker only.
        linker: "-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=v1.9.1",
        fewer: None,
        layout: Layout::Plugins,
        go_mod: include_str!("../../programs/cni-plugins/go.mod"),
        go_sum: include_str!("../../programs/cni-plugins/go.sum"),
        always: false,
    },
];

/// Names of all programs.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|recipe| recipe.name)
}

/// The recipes of every lab, and those that are named besides.
pub(crate) fn wanted(further: &[String]) -> impl Iterator<Item = &'static Recipe> {
    RECIPES.iter().filter(|recipe| recipe.always || further.iter().any(|name| name == recipe.name))
}

/// A program that is there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The file; of plugins the folder.
    pub(crate) path: PathBuf,
    // Records of earlier labs do not name it.
    #[serde(default)]
    pub(crate) layout: Layout,
}

/// Where things are made, on whose behalf, and who hears about it.
pub(crate) struct Workshop<'a> {
    pub(crate) cache: &'a Path,
    pub(crate) owner: &'a Owner,
    pub(crate) say: &'a (dyn Fn(&str) + Send + Sync),
}

impl Workshop<'_> {
    /// A command that runs as the owner, with the owner's home.
    pub(crate) fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command.env("HOME", &self.owner.home).stdin(Stdio::null()).kill_on_drop(true);
        if nix::unistd::geteuid().as_raw() != self.owner.uid {
            command.uid(self.owner.uid).gid(self.owner.gid).env_remove("XDG_CACHE_HOME");
        }
        command
    }

    /// Runs a command to its end; an error shows the end of what it said.
    pub(crate) async fn run(&self, what: &str, command: &mut tokio::process::Command) -> anyhow::Result<String> {
        let output = command.output().await.with_context(|| format!("cannot start {what}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        anyhow::bail!("{what} ended with {}:\n{tail}", output.status)
    }

    /// The folder `KIND/NAME-KEY` of the cache, made by `make` if it is not there whole. Two callers at once: the
    /// second waits for the first. A half-made folder, from a crash, is made anew.
    pub(crate) async fn once<F>(
        &self,
        kind: &str,
        name: &str,
        inputs: &[&str],
        make: impl FnOnce(PathBuf) -> F,
    ) -> anyhow::Result<PathBuf>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let shelf = self.cache.join(kind);
        paths::create_owned(&shelf, self.owner)?;
        let folder = shelf.join(format!("{name}-{}", key(inputs)));
        let complete = folder.join(COMPLETE);
        if complete.exists() {
            return Ok(folder);
        }
        let waiting = shelf.clone();
        let _lock = tokio::task::spawn_blocking(move || paths::lock_in(&waiting))
            .await
            .context("the wait for a lock was broken off")??;
        // Made by root on the owner's behalf, it must not keep the owner out.
        paths::give(&shelf.join("lock"), self.owner)?;
        if complete.exists() {
            return Ok(folder);
        }
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove the unfinished {}", folder.display()))?;
        }
        paths::create_owned(&folder, self.owner)?;
        make(folder.clone()).await?;
        paths::write_atomic(&complete, b"", 0o644)?;
        paths::give(&complete, self.owner)?;
        Ok(folder)
    }
}

/// Twelve hex digits of a hash over what something is made from.
fn key(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        // The length keeps `ab`, `c` apart from `a`, `bc`.
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    crate::mirror::hex(&hash.finalize()[..6])
}

/// The program of a recipe, made if need be.
pub(crate) async fn resolve(recipe: &Recipe, workshop: &Workshop<'_>) -> anyhow::Result<Program> {
    let program = |path| Program {
        name: recipe.name.to_owned(),
        version: recipe.version.to_owned(),
        path,
        layout: recipe.layout,
    };
    if let Some(path) = find(recipe.name, std::env::var_os("PATH").as_deref())
        && is_version(&path, recipe).await
    {
        return Ok(program(path));
    }
    let (variable, vendor) = recipe.layout.releases();
    let named = std::env::var(variable).ok().filter(|url| !url.is_empty());
    let made = match (&named, locate("go")) {
        (Some(base), _) => release::fetch(recipe, base, workshop).await?,
        (None, Some(go)) => build::build(recipe, &go, workshop).await?,
        (None, None) => {
            let fetched = release::fetch(recipe, vendor, workshop).await;
            fetched.context("Go is not installed, so that it is not built (apt-get install golang-go, or the archive from go.dev: 1.26 or newer)")?
        }
    };
    anyhow::ensure!(
        is_version(&made, recipe).await,
        "{} says that it is not {} {}",
        made.display(),
        recipe.name,
        recipe.version
    );
    Ok(program(made))
}

/// The first executable of that name on a search path.
pub(crate) fn find(name: &str, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let runnable =
        |file: &PathBuf| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    std::env::split_paths(path?).filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(runnable)
}

/// A tool of this machine, or which Debian package has it.
pub(crate) fn tool(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    locate(name)
        .ok_or_else(|| Failure::new(format!("`{name}` is not installed"), format!("apt-get install {package}")).into())
}

fn locate(name: &str) -> Option<PathBuf> {
    // `sudo` and root's shell may leave these out.
    let usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin";
    find(name, std::env::var_os("PATH").as_deref()).or_else(|| find(name, Some(usual.as_ref())))
}

/// Whether `NAME version` begins with the wanted one (`Consul v1.22.2`). Of plugins the first is asked.
async fn is_version(path: &Path, recipe: &Recipe) -> bool {
    let program = match (recipe.layout, recipe.packages.first()) {
        (Layout::Plugins, Some(package)) => path.join(package.rsplit('/').next().unwrap_or(package)),
        _ => path.to_owned(),
    };
    let asked = tokio::process::Command::new(program).arg("version").stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(Ok(output)) = tokio::time::timeout(std::time::Duration::from_secs(20), asked).await else { return false };
    // Plugins tell it as an error.
    let said = if recipe.layout == Layout::Plugins { &output.stderr } else { &output.stdout };
    let text = String::from_utf8_lossy(said);
    let first = text.lines().next().unwrap_or_default();
    // `Vault v1.21.0, built …`
    let words = first.split_whitespace().map(|word| word.trim_end_matches(','));
    words.filter_map(|word| word.strip_prefix('v')).any(|version| version == recipe.version)
}

/// The architecture as vendors of Go programs name it.
pub(crate) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn owner(home: &Path) -> Owner {
        Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), home: home.to_owned() }
    }

    #[test]
    fn only_an_executable_file_in_an_absolute_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("consul")).unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let path = std::env::join_paths([folder.path(), Path::new("."), &bin]).unwrap();
        assert_eq!(find("consul", Some(&path)), None);
        let wanted = script(&bin, "consul", "true");
        assert_eq!(find("consul", Some(&path)), Some(wanted));
        let error = tool("no-such-tool", "some-package").unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.hint.as_deref(), Some("apt-get install some-package"));
    }

    #[tokio::test]
    async fn a_program_of_another_version_is_not_the_wanted_one() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = &RECIPES[0];
        assert!(is_version(&script(folder.path(), "a", "echo 'Consul v1.22.2'"), recipe).await);
        assert!(is_version(&script(folder.path(), "c", "echo 'Consul v1.22.2, built 2026-01-01'"), recipe).await);
        for said in ["echo 'Consul v1.22.20'", "echo 'Consul v1.21.5'; echo v1.22.2", "exit 1", "echo"] {
            assert!(!is_version(&script(folder.path(), "b", said), recipe).await, "{said}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_made_once_and_after_a_crash_anew() {
        let cache = tempfile::tempdir().unwrap();
        let owner = owner(cache.path());
        let workshop = Workshop { cache: cache.path(), owner: &owner, say: &|_| {} };
        let broken = workshop
            .once("things", "a", &["x"], async |folder: PathBuf| {
                std::fs::write(folder.join("half"), "").unwrap();
                anyhow::bail!("crash")
            })
            .await;
        assert!(broken.is_err());
        let made = workshop
            .once("things", "a", &["x"], async |folder: PathBuf| {
                assert!(!folder.join("half").exists());
                std::fs::write(folder.join("whole"), "")?;
                Ok(())
            })
            .await
            .unwrap();
        let again = workshop.once("things", "a", &["x"], async |_| anyhow::bail!("made twice")).await.unwrap();
        assert_eq!(made, again);
        let other = workshop.once("things", "a", &["y"], async |_| Ok(())).await.unwrap();
        assert_ne!(made, other);
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }
}
