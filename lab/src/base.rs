//! The image that hosts start from: Debian by debootstrap, once, kept in the cache under a hash of all that it is made of.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cloud::Owner;
use crate::failure::Failure;
use crate::{output, paths, run};

pub(crate) const SUITE: &str = "bookworm";
/// Names another mirror of Debian, for networks where the usual one cannot be reached.
pub(crate) const MIRROR_VARIABLE: &str = "ROLLCALL_LAB_DEBIAN_MIRROR";
/// What a Debian server image has, without kernel, documentation tools and cloud-init.
const PACKAGES: [&str; 21] = [
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "libnss-resolve",
    "libnss-myhostname",
    "dbus",
    "openssh-server",
    "iproute2",
    "iputils-ping",
    "netbase",
    "iptables",
    "ca-certificates",
    "curl",
    "sudo",
    "chrony",
    "logrotate",
    "procps",
    "unzip",
    "gnupg",
    "less",
    "strace",
];

/// A file that goes into the image: path in it, mode, content.
type BaseFile = (&'static str, u32, &'static str);

const FILES: [BaseFile; 8] = [
    ("usr/local/lib/rollcall-lab/first-boot", 0o755, include_str!("base/first-boot")),
    ("usr/local/lib/rollcall-lab/cgroups", 0o755, include_str!("base/cgroups")),
    ("etc/systemd/system/rollcall-cgroups.service", 0o644, include_str!("base/rollcall-cgroups.service")),
    ("usr/local/lib/rollcall-lab/user-data", 0o755, include_str!("base/user-data")),
    ("etc/systemd/system/rollcall-first-boot.service", 0o644, include_str!("base/rollcall-first-boot.service")),
    ("etc/systemd/system/rollcall-user-data.service", 0o644, include_str!("base/rollcall-user-data.service")),
    ("etc/ssh/sshd_config.d/50-cloud-init.conf", 0o600, include_str!("base/sshd.conf")),
    ("etc/systemd/system/chrony.service.d/rollcall-lab.conf", 0o644, include_str!("base/chrony.conf")),
];
const SETUP: &str = include_str!("base/setup.sh");

/// Where Debian's packages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) url: String,
    /// Debian's own: updates and security fixes stand beside it.
    pub(crate) usual: bool,
}

/// The mirror that [`MIRROR_VARIABLE`] names, or the one that debootstrap takes by itself.
pub(crate) fn mirror() -> Result<Mirror> {
    if let Some(url) = std::env::var(MIRROR_VARIABLE).ok().filter(|url| !url.is_empty()) {
        return Ok(Mirror { url, usual: false });
    }
    let program = run::find("debootstrap").unwrap_or_else(|| PathBuf::from("debootstrap"));
    let script = std::fs::read_to_string(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let url = default_mirror(&script).ok_or_else(|| {
        let message = format!("{} does not say which mirror it takes", program.display());
        Failure::new(message, format!("name one: {MIRROR_VARIABLE}=URL"))
    })?;
    Ok(Mirror { url: url.to_owned(), usual: true })
}

/// `DEF_MIRROR="URL"`, the first that has a value.
fn default_mirror(script: &str) -> Option<&str> {
    script
        .lines()
        .filter_map(|line| line.trim().strip_prefix("DEF_MIRROR="))
        .map(|value| value.trim_matches(['"', '\'']))
        .find(|value| value.contains("://"))
}

/// Makes the image if it is not in the cache. Returns its root folder.
pub(crate) fn prepare(owner: &Owner) -> Result<PathBuf> {
    let mirror = mirror()?.url;
    let dir = paths::cache_dir(owner)?.join("base");
    paths::create_owned(&dir, owner)?;
    let root = dir.join(key(&mirror)).join("root");
    if root.is_dir() {
        return Ok(root);
    }
    let _lock = paths::lock_in(&dir)?;
    // Somebody else may have made it while this one waited.
    if root.is_dir() {
        return Ok(root);
    }
    output::note(format!("making the image of the hosts: Debian {SUITE} from {mirror} (a minute or two, once)"));
    let parent = dir.join(key(&mirror));
    let half = dir.join("half-made");
    paths::remove_dir(&half)?;
    std::fs::create_dir_all(&half).with_context(|| format!("cannot make {}", half.display()))?;
    debootstrap(&half, &mirror)?;
    for (path, mode, content) in FILES {
        let path = half.join(path);
        let folder = path.parent().unwrap_or(&half);
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        paths::write_atomic(&path, content.as_bytes(), mode)?;
    }
    run::run_with_input(
        run::command("chroot").arg(&half).args(["/bin/sh", "-s"]).env_clear().env("PATH", CHROOT_PATH),
        SETUP.as_bytes(),
    )
    .context("cannot set up the image")?;
    paths::create_owned(&parent, owner)?;
    // Only a whole image ever has this name.
    std::fs::rename(&half, &root).with_context(|| format!("cannot move the image to {}", root.display()))?;
    Ok(root)
}

const CHROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that the image depends on. A change of any of it is another image.
fn key(mirror: &str) -> String {
    let mut hash = Sha256::new();
    let packages = PACKAGES.join(",");
    for part in [SUITE, mirror, &packages, std::env::consts::ARCH, SETUP] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    for (path, mode, content) in FILES {
        hash.update(format!("{path}\0{mode:o}\0{}\0{content}", content.len()));
    }
    let hash = hash.finalize();
    let mut half = [0_u8; 16];
    half.copy_from_slice(&hash[..16]);
    format!("{:032x}", u128::from_be_bytes(half))[..20].to_owned()
}

/// In a mount and PID namespace of its own, and bound to this process, so that a kill at any time leaves no mount
/// and no process that would go on writing.
fn debootstrap(target: &Path, mirror: &str) -> Result<()> {
    let log_path = target.with_extension("log");
    let log = std::fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let errors = log.try_clone().with_context(|| format!("cannot write {}", log_path.display()))?;
    let status = run::command("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--mount", "--kill-child=KILL"])
        .arg(run::find("debootstrap").unwrap_or_else(|| PathBuf::from("debootstrap")))
        .args(["--variant=minbase", &format!("--include={}", PACKAGES.join(",")), SUITE])
        .arg(target)
        .arg(mirror)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .status()
        .context("cannot start debootstrap")?;
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read_to_string(&log_path).unwrap_or_default();
    let message = format!("debootstrap failed ({status}): {}", run::last_lines(&said, 3));
    let hint = format!("the whole log is {}; {MIRROR_VARIABLE} names another mirror", log_path.display());
    Err(Failure::new(message, hint).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_mirror_is_another_image() {
        let usual = "http://debian.example/debian";
        assert_eq!(key(usual), key(usual));
        assert_ne!(key(usual), key("http://mirror.example/debian"));
        assert_eq!(key(usual).len(), 20);
    }

    #[test]
    fn the_usual_mirror_is_debootstraps_own() {
        let script = "DEF_MIRROR=\"\"\n  DEF_MIRROR=\"http://debian.example/debian\"\nMIRRORS=\"$DEF_MIRROR\"\n";
        assert_eq!(default_mirror(script), Some("http://debian.example/debian"));
        assert_eq!(default_mirror("DEF_MIRROR=$1\n"), None);
    }
}
