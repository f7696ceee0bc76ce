//! Facts of the machine: system, processors, memory, filesystems.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{exists, line, read};
use crate::host::Read;

const MIB: u64 = 1024 * 1024;

pub(super) fn arch() -> String {
    nix::sys::utsname::uname().map(|uname| uname.machine().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Debian's name of an architecture.
pub(super) fn deb_arch(arch: &str) -> Option<&'static str> {
    Some(match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" => "armhf",
        "i686" | "i386" => "i386",
        "ppc64le" => "ppc64el",
        "s390x" => "s390x",
        "riscv64" => "riscv64",
        _ => return None,
    })
}

pub(super) fn os(host: &dyn Read) -> Value {
    let text = match read(host, "/etc/os-release") {
        text if text.is_empty() => read(host, "/usr/lib/os-release"),
        text => text,
    };
    let get = |key: &str| {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        shell_words::split(value).ok().map(|words| words.join(" ")).filter(|value| !value.is_empty())
    };
    let id = get("ID");
    let version = get("VERSION_ID");
    let like = get("ID_LIKE").unwrap_or_default();
    json!({
        "family": id.as_deref().and_then(|id| family(id, &like)),
        "version_major": version.as_ref().and_then(|v| v.split('.').next().map(str::to_owned)),
        "id": id,
        "version": version,
        "codename": get("VERSION_CODENAME"),
        "name": get("NAME"),
        "pretty_name": get("PRETTY_NAME"),
        "kernel": line(host, "/proc/sys/kernel/osrelease"),
    })
}

fn family(id: &str, like: &str) -> Option<&'static str> {
    std::iter::once(id).chain(like.split_whitespace()).find_map(|id| {
        Some(match id {
            "debian" | "ubuntu" => "debian",
            "rhel" | "fedora" | "centos" | "amzn" | "rocky" | "almalinux" | "ol" => "redhat",
            "suse" | "opensuse" | "sles" => "suse",
            "arch" => "archlinux",
            "alpine" => "alpine",
            _ => return None,
        })
    })
}

/// Processors that are switched on.
pub(super) fn cores(host: &dyn Read) -> usize {
    let online = line(host, "/sys/devices/system/cpu/online").and_then(|text| count(&text));
    online.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1)
}

/// `0-3,5` → 5.
fn count(ranges: &str) -> Option<usize> {
    ranges.split(',').try_fold(0, |sum, range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        Some(sum + (to + 1).checked_sub(from)?)
    })
}

pub(super) fn memory(host: &dyn Read) -> Value {
    let text = read(host, "/proc/meminfo");
    let mib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024)
    };
    json!({"total_mib": mib("MemTotal"), "available_mib": mib("MemAvailable"), "swap_mib": mib("SwapTotal")})
}

/// Filesystems on devices and of other machines; not those that the kernel makes up.
pub(super) fn mounts(host: &dyn Read) -> Vec<Value> {
    let text = read(host, "/proc/self/mounts");
    let mut mounts = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(path), Some(fstype), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = unescape(path);
        if !(device.starts_with('/') || device.contains(":/") || path == "/") {
            continue;
        }
        // A server that does not answer would hold up everything for minutes.
        let remote = device.contains(":/")
            || ["nfs", "nfs4", "cifs", "ceph", "glusterfs"].contains(&fstype)
            || fstype.starts_with("fuse");
        let (size, free) = if remote { (None, None) } else { space(Path::new(&path)) };
        mounts.push(json!({
            "path": path,
            "device": unescape(device),
            "fstype": fstype,
            "options": options.split(',').collect::<Vec<_>>(),
            "size_mib": size,
            "free_mib": free,
        }));
    }
    mounts
}

/// Size, and what is free for programs without privileges, in MiB.
fn space(path: &Path) -> (Option<u64>, Option<u64>) {
    let Ok(found) = nix::sys::statvfs::statvfs(path) else { return (None, None) };
    #[allow(clippy::unnecessary_cast, reason = "the widths of these differ between systems")]
    let (block, blocks, available) =
        (found.fragment_size() as u64, found.blocks() as u64, found.blocks_available() as u64);
    (Some(blocks.saturating_mul(block) / MIB), Some(available.saturating_mul(block) / MIB))
}

/// `\040` → a space.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let Some(code) =
                tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok())
        {
            out.push(code);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn init(host: &dyn Read) -> Option<String> {
    if exists(host, "/run/systemd/system") { Some("systemd".into()) } else { line(host, "/proc/1/comm") }
}

fn dmi(host: &dyn Read, name: &str) -> String {
    line(host, &format!("/sys/class/dmi/id/{name}")).unwrap_or_default()
}

/// A container's manager, or the hypervisor; `none` for a machine that shows signs of neither.
pub(super) fn virtualization(host: &dyn Read) -> String {
    if let Some(manager) = line(host, "/run/systemd/container").or_else(|| line(host, "/run/host/container-manager")) {
        return manager;
    }
    if exists(host, "/.dockerenv") {
        return "docker".into();
    }
    let (vendor, product) = (dmi(host, "sys_vendor"), dmi(host, "product_name"));
    if vendor == "Amazon EC2" {
        return if product.contains("metal") { "none" } else { "amazon" }.into();
    }
    let known = [
        ("QEMU", "kvm"),
        ("KVM", "kvm"),
        ("VMware", "vmware"),
        ("VirtualBox", "virtualbox"),
        ("innotek", "virtualbox"),
        ("Microsoft", "microsoft"),
        ("Xen", "xen"),
        ("Google", "google"),
    ];
    let text = format!("{vendor} {product}");
    if let Some((_, name)) = known.iter().find(|(sign, _)| text.contains(sign)) {
        return (*name).into();
    }
    if exists(host, "/sys/hypervisor/uuid") {
        return "xen".into();
    }
    let cpu = read(host, "/proc/cpuinfo");
    let hypervisor =
        cpu.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|flag| flag == "hypervisor"));
    if hypervisor { "vm" } else { "none" }.into()
}

/// Signs of EC2 that need no request.
pub(super) fn looks_like_ec2(host: &dyn Read) -> bool {
    // A container on an instance is not the instance.
    if exists(host, "/run/systemd/container") || exists(host, "/.dockerenv") {
        return false;
    }
    let uuid = |path: &str| line(host, path).is_some_and(|uuid| uuid.to_lowercase().starts_with("ec2"));
    dmi(host, "sys_vendor") == "Amazon EC2"
        || dmi(host, "bios_vendor") == "Amazon EC2"
        || uuid("/sys/hypervisor/uuid")
        || (dmi(host, "bios_version").to_lowercase().contains("amazon") && uuid("/sys/class/dmi/id/product_uuid"))
}

pub(super) fn security(host: &dyn Read) -> Value {
    let selinux = match line(host, "/sys/fs/selinux/enforce").as_deref() {
        Some("1") => "enforcing",
        Some(_) => "permissive",
        None => "disabled",
    };
    let apparmor = line(host, "/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y");
    let mut out = Map::new();
    out.insert("selinux".into(), selinux.into());
    out.insert("apparmor".into(), apparmor.into());
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::fake::Fake;

    #[test]
    fn systems_have_families() {
        let of = |text: &str| os(&Fake::new().file("/etc/os-release", text));
        let debian = of(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n",
        );
        assert_eq!(
            (&debian["family"], &debian["version"], &debian["codename"]),
            (&json!("debian"), &json!("12"), &json!("bookworm"))
        );
        assert_eq!(debian["name"], "Debian GNU/Linux");
        let amazon = of("NAME=\"Amazon Linux\"\nID=\"amzn\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"2023\"\n");
        assert_eq!((&amazon["family"], &amazon["codename"]), (&json!("redhat"), &Value::Null));
        let ubuntu = of("ID=ubuntu\nVERSION_ID=\"24.04\"\n");
        assert_eq!((&ubuntu["family"], &ubuntu["version_major"]), (&json!("debian"), &json!("24")));
        assert_eq!(of("ID=pop\nID_LIKE=\"ubuntu debian\"\n")["family"], "debian");
        assert_eq!(of("ID=haiku\n")["family"], Value::Null);
    }

    #[test]
    fn processors_are_counted_from_ranges() {
        assert_eq!(count("0-3,5,8-9"), Some(7));
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("3-0"), None);
        assert_eq!(count("x"), None);
    }

    #[test]
    fn memory_is_in_mib() {
        let fake =
            Fake::new().file("/proc/meminfo", "MemTotal:        2048000 kB\nMemAvailable:  1024 kB\nSwapTotal: 0 kB\n");
        assert_eq!(memory(&fake), json!({"total_mib": 2000, "available_mib": 1, "swap_mib": 0}));
    }

    #[test]
    fn only_real_filesystems_are_listed() {
        let text = "proc /proc proc rw 0 0\n/dev/vda1 / ext4 rw,noatime 0 0\nsrv:/x /mnt/a\\040b nfs4 ro 0 0\noverlay /x overlay rw 0 0\n";
        let mounts = mounts(&Fake::new().file("/proc/self/mounts", text));
        assert_eq!(mounts.len(), 2);
        assert_eq!((&mounts[0]["path"], &mounts[0]["options"]), (&json!("/"), &json!(["rw", "noatime"])));
        assert!(mounts[0]["size_mib"].as_u64().unwrap() > 0);
        assert_eq!((&mounts[1]["path"], &mounts[1]["size_mib"]), (&json!("/mnt/a b"), &Value::Null));
    }

    #[test]
    fn machines_and_containers_are_told_apart() {
        let vendor = |vendor: &str| Fake::new().file("/sys/class/dmi/id/sys_vendor", vendor);
        assert_eq!(virtualization(&vendor("QEMU\n")), "kvm");
        assert_eq!(virtualization(&vendor("Amazon EC2\n")), "amazon");
        assert!(looks_like_ec2(&vendor("Amazon EC2\n")));
        assert!(!looks_like_ec2(&vendor("QEMU\n")));
        let inside = vendor("Amazon EC2\n").file("/run/systemd/container", "systemd-nspawn\n");
        assert_eq!(virtualization(&inside), "systemd-nspawn");
        assert!(!looks_like_ec2(&inside));
        assert!(looks_like_ec2(&Fake::new().file("/sys/hypervisor/uuid", "ec2e1916-9099\n")));
        assert_eq!(virtualization(&Fake::new()), "none");
    }

    #[test]
    fn octal_escapes() {
        assert_eq!(unescape("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescape("a\\04"), "a\\04");
    }
}
