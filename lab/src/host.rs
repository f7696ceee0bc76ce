//! One host: a disk (an overlay over the image, on a file system of its own size in memory), a container with its own
//! init, a console log. What is done to it here is what happens to a machine: power on, power cut, power button.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::Cgroups;
use crate::cloud::Instance;
use crate::net;
use crate::paths::{self, LabPaths, write_atomic};

/// How long an orderly shutdown may take before the power goes.
pub(crate) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);
/// Exit code with which nspawn says that the host wants to be started again.
pub(crate) const REBOOT: i32 = 133;

/// Where hosts keep the layers of containers: parts of the disk that are no overlay, as an overlay cannot be a layer of another.
const LAYERED: [&str; 2] = ["/var/lib/docker", "/var/lib/containerd"];

/// What every host of a lab shares.
#[derive(Debug, Clone)]
pub(crate) struct HostEnv {
    pub(crate) paths: LabPaths,
    pub(crate) subnet: Ipv4Net,
    /// Root of the image.
    pub(crate) base: PathBuf,
    /// Size of each disk.
    pub(crate) disk_bytes: u64,
    pub(crate) cgroups: Cgroups,
    /// Lines of the Debian packages' source, and the key that signs it.
    pub(crate) apt: AptSource,
}

/// How hosts find Debian packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AptSource {
    pub(crate) list: String,
    /// In armour or binary, as apt takes both by the file's ending.
    pub(crate) key: Vec<u8>,
    pub(crate) key_file: String,
}

/// Where the parts of a host's disk are. The mounts exist only in the supervisor's mount namespace.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    dir: PathBuf,
}

impl Disk {
    pub(crate) fn new(paths: &LabPaths, id: &str) -> Self {
        Self { dir: paths.host(id) }
    }

    fn store(&self) -> PathBuf {
        self.dir.join("disk")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What nspawn itself says.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("nspawn.log")
    }

    /// Makes an empty disk over the image, if there is none yet.
    pub(crate) fn make(&self, env: &HostEnv) -> Result<()> {
        if self.root().join("usr").is_dir() {
            return Ok(());
        }
        for dir in [self.store(), self.root()] {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let size = format!("size={},mode=0755", env.disk_bytes);
        mount(Some("rollcall-lab"), &self.store(), Some("tmpfs"), MsFlags::MS_NODEV, Some(size.as_str()))
            .with_context(|| format!("cannot mount the disk {}", self.store().display()))?;
        let (upper, work) = (self.store().join("upper"), self.store().join("work"));
        let layers = LAYERED.map(|path| self.layers(path));
        for dir in [&upper, &work].into_iter().chain(&layers) {
            std::fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot set the mode of {}", dir.display()))?;
        }
        // The image is mounted at a path of ours, since a user's folder may hold the ':' and ',' that mount would read.
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            base_mount(&env.paths).display(),
            upper.display(),
            work.display()
        );
        mount(Some("overlay"), &self.root(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("cannot mount the overlay {}", self.root().display()))
    }

    /// What of the disk a folder of [`LAYERED`] is.
    fn layers(&self, path: &str) -> PathBuf {
        self.store().join(path.rsplit('/').next().unwrap_or(path))
    }

    /// Throws the disk away, and keeps the console's log.
    pub(crate) fn discard(&self) -> Result<()> {
        for path in [self.root(), self.store()] {
            match umount2(&path, MntFlags::MNT_DETACH) {
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", path.display())),
            }
        }
        Ok(())
    }

    /// Throws away everything of the host.
    pub(crate) fn remove(&self) -> Result<()> {
        self.discard()?;
        paths::remove_dir(&self.dir)
    }

    /// The host's own SSH keys: name and content, for a reset that keeps the host's identity.
    pub(crate) fn ssh_keys(&self) -> Vec<(String, Vec<u8>)> {
        let Ok(entries) = std::fs::read_dir(self.root().join("etc/ssh")) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("ssh_host_"))?;
                let content = std::fs::read(entry.path()).ok().filter(|content| !content.is_empty())?;
                Some((name, content))
            })
            .collect()
    }

    pub(crate) fn put_ssh_keys(&self, keys: &[(String, Vec<u8>)]) -> Result<()> {
        for (name, content) in keys {
            let mode = if name.to_ascii_lowercase().ends_with(".pub") { 0o644 } else { 0o600 };
            write_atomic(&self.root().join("etc/ssh").join(name), content, mode)?;
        }
        Ok(())
    }

    /// Lets the disk be full from now on: its size becomes what is in use. `None` gives it its size back.
    pub(crate) fn limit(&self, env: &HostEnv, full: bool) -> Result<()> {
        let store = self.store();
        let bytes = if full {
            let stat =
                nix::sys::statvfs::statvfs(&store).with_context(|| format!("cannot read {}", store.display()))?;
            (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
        } else {
            env.disk_bytes
        };
        let size = format!("size={bytes}");
        mount(None::<&str>, &store, None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_NODEV, Some(size.as_str()))
            .with_context(|| format!("cannot resize {}", store.display()))
    }
}

/// Where the image is seen in the supervisor's mount namespace.
pub(crate) fn base_mount(paths: &LabPaths) -> PathBuf {
    paths.dir().join("base")
}

/// Writes what an instance's boot needs to know onto its disk. Done before every boot: an address may be new.
pub(crate) fn seed(env: &HostEnv, disk: &Disk, instance: &Instance) -> Result<()> {
    let root = disk.root();
    let hostname = net::hostname(instance.address);
    let write = |path: &str, mode: u32, content: &[u8]| {
        let path = root.join(path);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        write_atomic(&path, content, mode)
    };
    // A person or a role may have changed these on purpose: they are the host's after its first boot.
    let first = !root.join("var/lib/cloud/data/instance-id").exists();
    if first {
        write("etc/hostname", 0o644, format!("{hostname}\n").as_bytes())?;
        write("etc/hosts", 0o644, hosts_file(&hostname, instance).as_bytes())?;
        write("etc/machine-id", 0o444, format!("{}\n", machine_id(&instance.id)).as_bytes())?;
        write("etc/apt/sources.list.d/rollcall-lab.list", 0o644, env.apt.list.as_bytes())?;
        write(&env.apt.key_file, 0o644, &env.apt.key)?;
        // Archives that were unpacked would take memory for as long as the host lives.
        write("etc/apt/apt.conf.d/91rollcall-lab", 0o644, b"APT::Keep-Downloaded-Packages \"false\";\n")?;
    }
    // The kernel has what bridges need, or this lab had none; programs look for it where modules would be.
    let kernel = nix::sys::utsname::uname().context("cannot tell the kernel's version")?;
    let modules = format!("usr/lib/modules/{}/modules.builtin", kernel.release().to_string_lossy());
    write(&modules, 0o644, b"kernel/net/bridge/bridge.ko\n")?;
    write("etc/systemd/network/10-host0.network", 0o644, network_file(env.subnet, instance.address).as_bytes())?;
    let mut keys = instance.public_keys.join("\n");
    if !keys.is_empty() {
        keys.push('\n');
    }
    write("var/lib/cloud/seed/rollcall/authorized_keys", 0o600, keys.as_bytes())?;
    let user_data = root.join("var/lib/cloud/seed/rollcall/user-data");
    match &instance.user_data {
        Some(data) => write("var/lib/cloud/seed/rollcall/user-data", 0o600, data)?,
        None if user_data.exists() => {
            std::fs::remove_file(&user_data).with_context(|| format!("cannot remove {}", user_data.display()))?;
        }
        None => {}
    }
    // Last: its presence is what the units look for.
    write("var/lib/cloud/seed/rollcall/instance-id", 0o644, format!("{}\n", instance.id).as_bytes())
}

fn hosts_file(hostname: &str, instance: &Instance) -> String {
    let domain = if instance.region == "us-east-1" { "ec2.internal" } else { "compute.internal" };
    let full = match instance.region.as_str() {
        "us-east-1" => format!("{hostname}.{domain}"),
        region => format!("{hostname}.{region}.{domain}"),
    };
    format!("127.0.0.1 localhost\n127.0.1.1 {full} {hostname}\n\n::1 localhost ip6-localhost ip6-loopback\n")
}

/// The route to the metadata service is one of its own, as on EC2: it is no neighbour in the subnet.
fn network_file(subnet: Ipv4Net, address: Ipv4Addr) -> String {
    let gateway = net::gateway(subnet);
    format!(
        "[Match]\nName=host0\n\n[Network]\nAddress={address}/{}\nGateway={gateway}\nDNS={gateway}\n\
         LinkLocalAddressing=no\nIPv6AcceptRA=no\nLLMNR=no\n\n\
         [Route]\nDestination=169.254.169.254/32\nScope=link\n",
        subnet.prefix_len()
    )
}

/// The same instance has the same machine id for ever, as a reset makes no other machine of it.
fn machine_id(id: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::digest(format!("rollcall-lab machine {id}"));
    let mut bytes: [u8; 16] = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().simple().to_string()
}

/// Starts the container. Returns when its process runs; the host boots from then on.
pub(crate) fn start(env: &HostEnv, disk: &Disk, instance: &Instance) -> Result<tokio::process::Child> {
    let join = env.cgroups.make(&env.paths.name, &instance.id)?;
    let last = instance.address.octets()[3];
    // What a power cut left of the last boot's cable, if the kernel has not removed it yet.
    let _ = crate::run::run(crate::run::command("ip").args(["link", "delete", &format!("vb-h{last}")]));
    let append = |path: PathBuf| -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    };
    // The shell joins the host's groups, then becomes nspawn: there is no moment at which it is outside of them.
    let script =
        "for group in $GROUPS_TO_JOIN; do echo 0 > \"$group\" || exit 1; done; unset GROUPS_TO_JOIN; exec \"$@\"";
    let groups: Vec<String> = join.iter().map(|path| path.display().to_string()).collect();
    let mut command = tokio::process::Command::new("/bin/sh");
    command
        .args(["-c", script, "sh"])
        .arg(crate::run::find("systemd-nspawn").unwrap_or_else(|| "systemd-nspawn".into()))
        .args(["--quiet", "--register=no", "--keep-unit", "--settings=no", "--boot", "--console=read-only"])
        .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
        // What runs containers needs them, as it would have them on an instance.
        .args(["--capability=all", "--system-call-filter=add_key keyctl bpf"])
        .arg(format!("--machine=h{last}"))
        .arg(format!("--hostname={}", net::hostname(instance.address)))
        .arg(format!("--uuid={}", machine_id(&instance.id)))
        .arg(format!("--network-bridge={}", net::BRIDGE))
        .arg(format!("--directory={}", disk.root().display()))
        .args(LAYERED.map(|path| format!("--bind={}:{path}", disk.layers(path).display())))
        .arg("--setenv=SYSTEMD_COLORS=0")
        .env("GROUPS_TO_JOIN", groups.join(" "))
        // /tmp is a part of the disk, as on Debian.
        .env("SYSTEMD_NSPAWN_TMPFS_TMP", "0")
        .stdin(Stdio::null())
        .stdout(append(disk.console())?)
        .stderr(append(disk.log())?);
    command.spawn().context("cannot start systemd-nspawn")
}

/// The host keys that the console shows, each an OpenSSH line without comment; those of the last boot.
pub(crate) fn host_keys(console: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut inside = false;
    for line in console.lines().map(str::trim) {
        match line {
            "-----BEGIN SSH HOST KEY KEYS-----" => {
                inside = true;
                keys.clear();
            }
            "-----END SSH HOST KEY KEYS-----" => inside = false,
            _ if inside => {
                let mut words = line.split_whitespace();
                if let (Some(kind), Some(key)) = (words.next(), words.next()) {
                    keys.push(format!("{kind} {key}"));
                }
            }
            _ => {}
        }
    }
    keys
}

/// Makes all folders of the disk read-only for everything that opens a file from now on, or takes that back.
/// (A remount of the whole is refused while the journal is open for writing.) The mounts spread to the services that
/// have mount namespaces of their own.
pub(crate) fn set_read_only(init: i32, on: bool) -> Result<()> {
    let script = if on { READ_ONLY } else { WRITABLE };
    let mut command = crate::run::command("nsenter");
    command.arg(format!("--target={init}")).args(["--mount", "--pid", "--root", "--wd", "/bin/sh", "-s"]);
    crate::run::run_with_input(&mut command, script.as_bytes()).map(drop)
}

const READ_ONLY: &str = r#"set -e
stage=/run/rollcall-lab-stage
mkdir -p "$stage"
disk=$(stat -c %d /)
for dir in /*; do
    [ -d "$dir" ] && [ ! -L "$dir" ] && [ "$(stat -c %d "$dir")" = "$disk" ] || continue
    grep -q " $dir overlay ro" /proc/1/mounts && continue
    mount --rbind "$dir" "$stage"
    mount --make-rprivate "$stage"
    mount -o remount,bind,ro "$stage"
    # Parts of the same disk, mounted inside.
    for part in /var/lib/docker /var/lib/containerd; do
        inside=${part#"$dir"}
        [ "$inside" = "$part" ] || mount -o remount,bind,ro "$stage$inside"
    done
    mount --rbind "$stage" "$dir"
    umount -l "$stage"
done
rmdir "$stage"
"#;

const WRITABLE: &str = r#"set -e
for dir in /*; do
    while grep -q " $dir overlay ro" /proc/1/mounts; do
        umount -l "$dir"
    done
done
"#;

/// Applies a host's part of the partitions, if it runs.
pub(crate) fn apply_cuts(init: Option<i32>, others: &BTreeSet<Ipv4Addr>) -> Result<()> {
    init.map_or(Ok(()), |pid| net::cut_off(pid, others))
}

/// Reads a console's log; a host that never booted has an empty one.
pub(crate) fn read_console(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_those_of_the_last_boot() {
        let console = "noise\r\n-----BEGIN SSH HOST KEY KEYS-----\r\nssh-ed25519 OLD root@a\r\n-----END SSH HOST KEY KEYS-----\r\n\
            ec2: -----BEGIN SSH HOST KEY FINGERPRINTS-----\r\n-----BEGIN SSH HOST KEY KEYS-----\r\n\
            ecdsa-sha2-nistp256 AAA root@a\r\nssh-ed25519 NEW root@a\r\n-----END SSH HOST KEY KEYS-----\r\nlogin:";
        assert_eq!(host_keys(console), ["ecdsa-sha2-nistp256 AAA", "ssh-ed25519 NEW"]);
        assert!(host_keys("nothing").is_empty());
    }

    #[test]
    fn an_instance_keeps_its_machine_id() {
        assert_eq!(machine_id("i-1"), machine_id("i-1"));
        assert_ne!(machine_id("i-1"), machine_id("i-2"));
        assert_eq!(machine_id("i-1").len(), 32);
    }

    #[test]
    fn the_network_file_names_address_gateway_and_metadata_route() {
        let text = network_file("10.77.3.0/24".parse().unwrap(), Ipv4Addr::new(10, 77, 3, 12));
        assert!(text.contains("Address=10.77.3.12/24\nGateway=10.77.3.1\n"), "{text}");
        assert!(text.contains("Destination=169.254.169.254/32"), "{text}");
    }
}
