//! The package repository that hosts install from: real Debian packages with all that they depend on, and one small
//! package of our own in two versions, signed with a key that is made once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;

use crate::base::{Mirror, SUITE as RELEASE};
use crate::paths;
use crate::programs::{Workshop, tool};

/// The name of our repository's only suite.
pub(crate) const SUITE: &str = "lab";
/// What roles and tests install; their dependencies come along.
const PACKAGES: [&str; 6] = ["jq", "chrony", "logrotate", "unzip", "cron", "libfaketime"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Our own package.
const PROBE: &str = "rollcall-probe";
const PROBE_VERSIONS: [&str; 2] = ["1.0", "1.1"];
const SIGNER: &str = "Rollcall lab <lab@rollcall.invalid>";
/// Counts up when this file makes something else from the same inputs.
const FORMAT: &str = "1";

/// The line for a host's `sources.list.d`. `key` is where the host keeps `key.gpg`.
pub(crate) fn source_line(base: &str, key: &str) -> String {
    format!("deb [signed-by={key}] {} {SUITE} main", base.trim_end_matches('/'))
}

/// The repository's folder, made if need be.
///
/// `further` names packages that not every lab has. Each set of them is a repository of its own, made once.
pub(crate) async fn repository(workshop: &Workshop<'_>, further: &[String]) -> anyhow::Result<PathBuf> {
    let arch = crate::programs::go_arch();
    let wanted: BTreeSet<&str> = PACKAGES.into_iter().chain(further.iter().map(String::as_str)).collect();
    // Without further ones it is the list as it stands.
    let wanted: Vec<&str> = if further.is_empty() { PACKAGES.to_vec() } else { wanted.into_iter().collect() };
    let packages = wanted.join(" ");
    let mirror = crate::base::mirror()?;
    let inputs = [FORMAT, &packages, RELEASE, &mirror.url, arch, &PROBE_VERSIONS.join(" ")];
    workshop
        .once("apt", "repository", &inputs, async |folder| {
            (workshop.say)("downloading Debian packages for the hosts");
            let pool = folder.join("pool/main");
            std::fs::create_dir_all(&pool).with_context(|| format!("cannot make {}", pool.display()))?;
            give_tree(&folder, workshop)?;
            download(workshop, &mirror, &pool, arch, &wanted).await?;
            for version in PROBE_VERSIONS {
                build_probe(workshop, &pool, version).await?;
            }
            index(workshop, &folder, arch).await?;
            sign(workshop, &folder).await
        })
        .await
}

fn give_tree(folder: &Path, workshop: &Workshop<'_>) -> anyhow::Result<()> {
    for path in [folder.to_owned(), folder.join("pool"), folder.join("pool/main")] {
        paths::give(&path, workshop.owner)?;
    }
    Ok(())
}

/// A temporary folder that belongs to the owner.
fn scratch(workshop: &Workshop<'_>) -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("rollcall-").tempdir().context("cannot make a temporary folder")?;
    paths::give(folder.path(), workshop.owner)?;
    Ok(folder)
}

/// Lets apt resolve for a machine that has nothing installed, so that every dependency is fetched.
async fn download(
    workshop: &Workshop<'_>,
    mirror: &Mirror,
    pool: &Path,
    arch: &str,
    packages: &[&str],
) -> anyhow::Result<()> {
    let keyring =
        || crate::failure::Failure::new(format!("{KEYRING} is missing"), "apt-get install debian-archive-keyring");
    anyhow::ensure!(Path::new(KEYRING).exists(), keyring());
    let url = &mirror.url;
    let mut suites = vec![(url.clone(), RELEASE.to_owned())];
    if mirror.usual {
        // Other mirrors need not have these, or have them elsewhere.
        suites.push((url.clone(), format!("{RELEASE}-updates")));
        suites.push((format!("{url}-security"), format!("{RELEASE}-security")));
    }
    let lines: Vec<String> =
        suites.iter().map(|(url, suite)| format!("deb [signed-by={KEYRING}] {url} {suite} main\n")).collect();
    let sources = lines.concat();
    let apt = PrivateApt::new(workshop, &sources, arch).await?;
    apt.get(workshop, &["update"]).await?;
    apt.get(workshop, &[&["--download-only", "install"][..], packages].concat()).await?;
    for path in apt.archives()? {
        // apt writes epochs as `%3a`, which a URL would have to escape once more.
        let name = path.file_name().unwrap_or_default().to_string_lossy().replace("%3a", ".");
        std::fs::copy(&path, pool.join(&name)).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(())
}

/// apt with lists, state and cache of its own in a temporary folder, where nothing is installed. Of this machine's
/// settings it keeps how to reach the network.
struct PrivateApt {
    root: tempfile::TempDir,
    program: PathBuf,
}

impl PrivateApt {
    async fn new(workshop: &Workshop<'_>, sources: &str, arch: &str) -> anyhow::Result<Self> {
        let program = tool("apt-get", "apt")?;
        let machine =
            workshop.run("apt-config", workshop.command(&tool("apt-config", "apt")?).args(["dump", "Acquire"])).await?;
        let network: Vec<&str> =
            machine.lines().filter(|line| line.contains("Proxy") || line.contains("::CaInfo")).collect();
        let root = scratch(workshop)?;
        for folder in ["lists/partial", "cache/archives/partial", "etc"] {
            paths::create_owned(&root.path().join(folder), workshop.owner)?;
        }
        let (network, at) = (network.join("\n"), root.path().display());
        let settings = format!(
            "{network}\nDir::Etc \"{at}/etc\";\nDir::Etc::Parts \"-\";\nDir::Etc::SourceParts \"-\";\nDir::Etc::PreferencesParts \"-\";\n\
             Dir::State \"{at}\";\nDir::State::Lists \"lists\";\nDir::State::Status \"{at}/status\";\nDir::Cache \"{at}/cache\";\n\
             APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
        );
        for (name, text) in [("status", ""), ("apt.conf", &settings), ("etc/sources.list", sources)] {
            let path = root.path().join(name);
            paths::write_atomic(&path, text.as_bytes(), 0o644)?;
            paths::give(&path, workshop.owner)?;
        }
        Ok(Self { root, program })
    }

    async fn get(&self, workshop: &Workshop<'_>, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = workshop.command(&self.program);
        command
            .env("APT_CONFIG", self.root.path().join("apt.conf"))
            .env("LC_ALL", "C")
            .args(["-q", "-y"])
            .args(arguments);
        workshop.run(&format!("apt-get {}", arguments.join(" ")), &mut command).await
    }

    /// The packages that it has downloaded.
    fn archives(&self) -> anyhow::Result<Vec<PathBuf>> {
        let folder = self.root.path().join("cache/archives");
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

/// A package with a program that says its version, and a configuration file that an upgrade must respect.
async fn build_probe(workshop: &Workshop<'_>, pool: &Path, version: &str) -> anyhow::Result<()> {
    let root = scratch(workshop)?;
    let tree = root.path().join("tree");
    let control = format!(
        "Package: {PROBE}\nVersion: {version}\nArchitecture: all\nMaintainer: {SIGNER}\nSection: misc\nPriority: optional\n\
         Description: a package to install, upgrade and remove in tests\n It says its version, and has one configuration file.\n"
    );
    let program = format!("#!/bin/sh\n. /etc/rollcall-probe.conf\necho \"{PROBE} {version} $greeting\"\n");
    let files = [
        ("DEBIAN/control", control.as_str(), 0o644),
        ("DEBIAN/conffiles", "/etc/rollcall-probe.conf\n", 0o644),
        ("etc/rollcall-probe.conf", "greeting=hello\n", 0o644),
        ("usr/bin/rollcall-probe", &program, 0o755),
    ];
    for (name, text, mode) in files {
        let path = tree.join(name);
        if let Some(folder) = path.parent() {
            paths::create_owned(folder, workshop.owner)?;
        }
        paths::write_atomic(&path, text.as_bytes(), mode)?;
        paths::give(&path, workshop.owner)?;
    }
    let mut build = workshop.command(&tool("dpkg-deb", "dpkg")?);
    build.args(["--root-owner-group", "--build"]).arg(&tree).arg(pool.join(format!("{PROBE}_{version}_all.deb")));
    // The same bytes every time.
    build.env("SOURCE_DATE_EPOCH", "1700000000");
    workshop.run("dpkg-deb", &mut build).await.map(drop)
}

/// Writes Packages and Release.
async fn index(workshop: &Workshop<'_>, folder: &Path, arch: &str) -> anyhow::Result<()> {
    let program = tool("apt-ftparchive", "apt-utils")?;
    let suite = folder.join("dists").join(SUITE);
    let binary = suite.join(format!("main/binary-{arch}"));
    paths::create_owned(&binary, workshop.owner)?;
    let mut packages = workshop.command(&program);
    packages.current_dir(folder).args(["packages", "pool"]);
    let list = workshop.run("apt-ftparchive packages", &mut packages).await?;
    paths::write_atomic(&binary.join("Packages"), list.as_bytes(), 0o644)?;
    let mut release = workshop.command(&program);
    release.current_dir(folder).arg("release");
    for (key, value) in [
        ("Origin", "Rollcall lab"),
        ("Label", "Rollcall lab"),
        ("Suite", SUITE),
        ("Codename", SUITE),
        ("Architectures", arch),
        ("Components", "main"),
    ] {
        release.args(["-o", &format!("APT::FTPArchive::Release::{key}={value}")]);
    }
    release.arg(&suite);
    let text = workshop.run("apt-ftparchive release", &mut release).await?;
    paths::write_atomic(&suite.join("Release"), text.as_bytes(), 0o644)
}

/// Signs Release, and puts the public key beside the repository.
async fn sign(workshop: &Workshop<'_>, folder: &Path) -> anyhow::Result<()> {
    let gpg = tool("gpg", "gnupg")?;
    let home = scratch(workshop)?;
    let key = signing_key(workshop, &gpg).await?;
    let result = sign_in(workshop, &gpg, home.path(), &key, folder).await;
    end_agent(workshop, home.path()).await;
    result
}

async fn sign_in(workshop: &Workshop<'_>, gpg: &Path, home: &Path, key: &Path, folder: &Path) -> anyhow::Result<()> {
    let suite = folder.join("dists").join(SUITE);
    paths::give(&suite, workshop.owner)?;
    paths::give(&suite.join("Release"), workshop.owner)?;
    let call = || {
        let mut command = workshop.command(gpg);
        command.arg("--homedir").arg(home).args([
            "--batch",
            "--yes",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]);
        command.stdin(Stdio::null());
        command
    };
    workshop.run("gpg --import", call().arg("--import").arg(key)).await?;
    let release = suite.join("Release");
    let inline = suite.join("InRelease");
    workshop
        .run(
            "gpg --clearsign",
            call().args(["--digest-algo", "SHA512", "--clearsign", "-o"]).arg(&inline).arg(&release),
        )
        .await?;
    let detached = suite.join("Release.gpg");
    workshop
        .run(
            "gpg --detach-sign",
            call().args(["--digest-algo", "SHA512", "--armor", "--detach-sign", "-o"]).arg(&detached).arg(&release),
        )
        .await?;
    workshop.run("gpg --export", call().args(["--export", "-o"]).arg(folder.join("key.gpg"))).await.map(drop)
}

/// The secret key, in a file of the cache that only its owner can read.
async fn signing_key(workshop: &Workshop<'_>, gpg: &Path) -> anyhow::Result<PathBuf> {
    let folder = workshop
        .once("apt-key", "ed25519", &[SIGNER], async |folder| {
            let home = scratch(workshop)?;
            let call = || {
                let mut command = workshop.command(gpg);
                command.arg("--homedir").arg(home.path()).args([
                    "--batch",
                    "--quiet",
                    "--pinentry-mode",
                    "loopback",
                    "--passphrase",
                    "",
                ]);
                command
            };
            let made = workshop
                .run("gpg --quick-gen-key", call().args(["--quick-gen-key", SIGNER, "ed25519", "sign", "never"]))
                .await;
            let exported = match made {
                Ok(_) => {
                    workshop.run("gpg --export-secret-keys", call().args(["--armor", "--export-secret-keys"])).await
                }
                Err(error) => Err(error),
            };
            end_agent(workshop, home.path()).await;
            let file = folder.join("secret.asc");
            paths::write_atomic(&file, exported?.as_bytes(), 0o600)?;
            paths::give(&file, workshop.owner)
        })
        .await?;
    Ok(folder.join("secret.asc"))
}

/// gpg leaves an agent behind for every home. Nothing depends on its end: it also ends when its home is gone.
async fn end_agent(workshop: &Workshop<'_>, home: &Path) {
    if let Ok(program) = tool("gpgconf", "gpgconf") {
        let mut command = workshop.command(&program);
        command.arg("--homedir").arg(home).args(["--kill", "all"]);
        if let Err(error) = workshop.run("gpgconf --kill", &mut command).await {
            tracing::debug!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn served(root: &Path) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = crate::mirror::router(root);
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }

    fn copy_tree(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() { copy_tree(&path, &target) } else { std::fs::copy(&path, &target).map(drop).unwrap() }
        }
    }

    /// The names of packages that apt downloaded from a repository.
    async fn fetched(workshop: &Workshop<'_>, folder: &Path, wanted: &[&str]) -> anyhow::Result<Vec<String>> {
        let base = served(folder).await;
        let key = folder.join("key.gpg").display().to_string();
        let apt = PrivateApt::new(workshop, &source_line(&base, &key), crate::programs::go_arch()).await?;
        apt.get(workshop, &["-o", "APT::Update::Error-Mode=any", "update"]).await?;
        apt.get(workshop, &[&["--download-only", "install"], wanted].concat()).await?;
        let names =
            apt.archives()?.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        Ok(names)
    }

    #[tokio::test]
    async fn apt_trusts_the_repository_and_refuses_a_changed_one() {
        let owner = paths::owner().unwrap();
        let cache = paths::cache_dir(&owner).unwrap();
        let workshop = Workshop { cache: &cache, owner: &owner, say: &|_| {} };
        let folder = repository(&workshop, &[]).await.unwrap();
        let names = fetched(&workshop, &folder, &["rollcall-probe=1.0", "jq"]).await.unwrap();
        assert!(names.contains(&"rollcall-probe_1.0_all.deb".to_owned()), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("libonig5_")), "dependencies come along: {names:?}");
        let newest = fetched(&workshop, &folder, &["rollcall-probe"]).await.unwrap();
        assert_eq!(newest, ["rollcall-probe_1.1_all.deb"]);

        let changed = tempfile::tempdir().unwrap();
        let copy = changed.path().join("repository");
        copy_tree(&folder, &copy);
        std::fs::write(copy.join("pool/main/rollcall-probe_1.1_all.deb"), "something else").unwrap();
        assert!(fetched(&workshop, &copy, &["rollcall-probe"]).await.is_err());
        let release = copy.join("dists/lab/InRelease");
        let text = std::fs::read_to_string(&release).unwrap().replace("Rollcall lab", "Somebody else");
        std::fs::write(&release, text).unwrap();
        let error = fetched(&workshop, &copy, &["rollcall-probe=1.0"]).await.unwrap_err().to_string();
        assert!(error.contains("BADSIG") || error.contains("signature"), "{error}");
    }
}
