//! The package repository that hosts install from: real Debian packages with all that they depend on, and one small
//! package of our own in two versions, signed with a key that is made once.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;

use crate::paths;
use crate::programs::{Workshop, tool};

/// The Debian release of the hosts.
pub(crate) const RELEASE: &str = "bookworm";
/// The name of our repository's only suite.
pub(crate) const SUITE: &str = "lab";
/// What roles and tests install; their dependencies come along.
const PACKAGES: [&str; 5] = ["jq", "chrony", "logrotate", "unzip", "cron"];
const DEBIAN: &str = "http://deb.debian.org/debian";
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
pub(crate) async fn repository(workshop: &Workshop<'_>) -> anyhow::Result<PathBuf> {
    let arch = crate::programs::go_arch();
    let packages = PACKAGES.join(" ");
    let inputs = [FORMAT, &packages, RELEASE, DEBIAN, arch, &PROBE_VERSIONS.join(" ")];
    workshop
        .once("apt", "repository", &inputs, async |folder| {
            (workshop.say)("downloading Debian packages for the hosts");
            let pool = folder.join("pool/main");
            std::fs::create_dir_all(&pool).with_context(|| format!("cannot make {}", pool.display()))?;
            give_tree(&folder, workshop)?;
            download(workshop, &pool, arch).await?;
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

/// Lets apt resolve for a machine that has nothing installed, so that every dependency is fetched. Its lists and
/// its state lie in a temporary folder; of this machine's settings it keeps how to reach the network.
async fn download(workshop: &Workshop<'_>, pool: &Path, arch: &str) -> anyhow::Result<()> {
    let apt = tool("apt-get", "apt")?;
    anyhow::ensure!(
        Path::new(KEYRING).exists(),
        crate::failure::Failure::new(format!("{KEYRING} is missing"), "apt-get install debian-archive-keyring")
    );
    let machine = workshop.run("apt-config", workshop.command(&tool("apt-config", "apt")?).args(["dump", "Acquire"])).await?;
    let root = scratch(workshop)?;
    let at = |path: &str| root.path().join(path);
    for folder in ["lists/partial", "cache/archives/partial", "etc"] {
        paths::create_owned(&at(folder), workshop.owner)?;
    }
    let network: String = machine.lines().filter(|line| line.contains("Proxy") || line.contains("::CaInfo")).collect::<Vec<_>>().join("\n");
    let root_path = root.path().display();
    let settings = format!(
        "{network}\nDir::Etc \"{root_path}/etc\";\nDir::Etc::Parts \"-\";\nDir::Etc::SourceParts \"-\";\nDir::Etc::PreferencesParts \"-\";\n\
         Dir::State \"{root_path}\";\nDir::State::Lists \"lists\";\nDir::State::Status \"{root_path}/status\";\nDir::Cache \"{root_path}/cache\";\n\
         APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
    );
    let sources: String = [
        (DEBIAN.to_owned(), RELEASE.to_owned()),
        (DEBIAN.to_owned(), format!("{RELEASE}-updates")),
        (format!("{DEBIAN}-security"), format!("{RELEASE}-security")),
    ]
    .iter()
    .map(|(url, suite)| format!("deb [signed-by={KEYRING}] {url} {suite} main\n"))
    .collect();
    for (name, text) in [("status", ""), ("apt.conf", &settings), ("etc/sources.list", &sources)] {
        paths::write_atomic(&at(name), text.as_bytes(), 0o644)?;
        paths::give(&at(name), workshop.owner)?;
    }
    let mut update = workshop.command(&apt);
    update.env("APT_CONFIG", at("apt.conf")).args(["-q", "update"]);
    workshop.run("apt-get update", &mut update).await?;
    let mut install = workshop.command(&apt);
    install.env("APT_CONFIG", at("apt.conf")).args(["-q", "-y", "--download-only", "install"]).args(PACKAGES);
    workshop.run("apt-get install --download-only", &mut install).await?;
    let archives = at("cache/archives");
    for entry in std::fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", archives.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            // apt writes epochs as `%3a`, which a URL would have to escape once more.
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace("%3a", ".");
            std::fs::copy(&path, pool.join(&name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
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
        command.arg("--homedir").arg(home).args(["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]);
        command.stdin(Stdio::null());
        command
    };
    workshop.run("gpg --import", call().arg("--import").arg(key)).await?;
    let release = suite.join("Release");
    let inline = suite.join("InRelease");
    workshop.run("gpg --clearsign", call().args(["--digest-algo", "SHA512", "--clearsign", "-o"]).arg(&inline).arg(&release)).await?;
    let detached = suite.join("Release.gpg");
    workshop.run("gpg --detach-sign", call().args(["--digest-algo", "SHA512", "--armor", "--detach-sign", "-o"]).arg(&detached).arg(&release)).await?;
    workshop.run("gpg --export", call().args(["--export", "-o"]).arg(folder.join("key.gpg"))).await.map(drop)
}

/// The secret key, in a file of the cache that only its owner can read.
async fn signing_key(workshop: &Workshop<'_>, gpg: &Path) -> anyhow::Result<PathBuf> {
    let folder = workshop
        .once("apt-key", "ed25519", &[SIGNER], async |folder| {
            let home = scratch(workshop)?;
            let call = || {
                let mut command = workshop.command(gpg);
                command.arg("--homedir").arg(home.path()).args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]);
                command
            };
            let made = workshop.run("gpg --quick-gen-key", call().args(["--quick-gen-key", SIGNER, "ed25519", "sign", "never"])).await;
            let exported = match made {
                Ok(_) => workshop.run("gpg --export-secret-keys", call().args(["--armor", "--export-secret-keys"])).await,
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
