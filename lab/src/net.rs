//! A lab's network: a namespace with no way out, a bridge in it, one /24 per lab.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};

use crate::paths::LabPaths;
use crate::run::{command, run, run_with_input};

/// The bridge's name inside the namespace.
pub(crate) const BRIDGE: &str = "br0";
/// Our rules stand in a chain of their own, apart from those that roles make in a host.
const CHAIN: &str = "ROLLCALL-LAB";

/// The lowest subnet of 10.77.0.0/16 that no lab has, or nothing when all 254 are taken.
pub(crate) fn free_subnet(taken: &BTreeSet<Ipv4Net>) -> Option<Ipv4Net> {
    (1..=254)
        .filter_map(|number| Ipv4Net::new(Ipv4Addr::new(10, 77, number, 0), 24).ok())
        .find(|subnet| !taken.contains(subnet))
}

/// The address of the lab's services: the first of its subnet.
pub(crate) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

/// What EC2 calls a host by: `ip-10-77-1-10`.
pub(crate) fn hostname(address: Ipv4Addr) -> String {
    format!("ip-{}", address.to_string().replace('.', "-"))
}

/// Makes the lab's namespace.
pub(crate) fn create_namespace(paths: &LabPaths) -> Result<()> {
    run(command("ip").args(["netns", "add", &paths.namespace()]))
        .map(drop)
        .context("cannot make the lab's network namespace")
}

/// Removes it; it may be gone already.
pub(crate) fn delete_namespace(paths: &LabPaths) -> Result<()> {
    let file = paths.namespace_file();
    if !file.exists() {
        return Ok(());
    }
    match run(command("ip").args(["netns", "delete", &paths.namespace()])) {
        Ok(_) => Ok(()),
        // A crash between making the file and mounting the namespace on it leaves a plain file.
        Err(_) if std::fs::remove_file(&file).is_ok() => Ok(()),
        Err(error) => Err(error).context("cannot remove the lab's network namespace"),
    }
}

/// A locally administered address that nobody else in the subnet has: `02:00:0a:4d:01:01`.
fn hardware_address(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Sets up bridge and addresses. Runs inside the namespace.
pub(crate) fn set_up(subnet: Ipv4Net) -> Result<()> {
    let hardware = hardware_address(gateway(subnet));
    let gateway = format!("{}/{}", gateway(subnet), subnet.prefix_len());
    for line in [
        "link set lo up".to_owned(),
        // One that is not given changes with the hosts that come and go, and all others miss the gateway for seconds.
        format!("link add {BRIDGE} address {hardware} type bridge"),
        format!("addr add {gateway} dev {BRIDGE}"),
        format!("addr add 169.254.169.254/32 dev {BRIDGE}"),
        format!("link set {BRIDGE} up"),
    ] {
        run(command("ip").args(line.split(' '))).context("cannot set up the lab's bridge")?;
    }
    // Nothing is ever forwarded (there is nowhere to go), but so a packet for elsewhere is answered with "no route"
    // at once, where without it it would vanish and its sender would wait for a timeout; and each of them is, where the kernel's own
    // limit is one in a second, which a host that looks for time and names of the outside uses up.
    for (setting, value) in [("ip_forward", "1"), ("icmp_ratelimit", "0")] {
        std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value)
            .with_context(|| format!("cannot set {setting} in the lab's namespace"))?;
    }
    Ok(())
}

/// Closes SSH of all hosts but one to everything outside the hosts. Runs inside the lab's namespace.
pub(crate) fn open_ssh_to(subnet: Ipv4Net, jump: Option<Ipv4Addr>) -> Result<()> {
    let mut rules = String::new();
    if let Some(jump) = jump {
        rules.push_str(&format!("-A {CHAIN} -d {jump} -p tcp --dport 22 -j RETURN\n"));
    }
    rules.push_str(&format!("-A {CHAIN} -d {subnet} -p tcp --dport 22 -j REJECT --reject-with tcp-reset\n"));
    set_rules(None, &["OUTPUT"], &rules)
}

/// Cuts a host off from others, in both directions. An empty set heals it. `init` is the host's PID 1.
pub(crate) fn cut_off(init: i32, others: &BTreeSet<Ipv4Addr>) -> Result<()> {
    let mut rules = String::new();
    for other in others {
        rules.push_str(&format!("-A {CHAIN} -s {other} -j DROP\n-A {CHAIN} -d {other} -j DROP\n"));
    }
    set_rules(Some(init), &["INPUT", "OUTPUT"], &rules)
}

/// Replaces the rules of our chain, in this namespace or in that of a host.
fn set_rules(init: Option<i32>, hooks: &[&str], rules: &str) -> Result<()> {
    let in_host = |program: &str| match init {
        None => command(program),
        Some(pid) => {
            let mut inside = command("nsenter");
            inside.arg(format!("--net=/proc/{pid}/ns/net"));
            inside.arg(crate::run::find(program).unwrap_or_else(|| program.into()));
            inside
        }
    };
    let input = format!("*filter\n:{CHAIN} - [0:0]\n{rules}COMMIT\n");
    // Naming the chain empties it, and all of it takes effect at once.
    run_with_input(in_host("iptables-restore").args(["--noflush", "--wait"]), input.as_bytes())?;
    for hook in hooks {
        if run(in_host("iptables").args(["--wait", "-C", hook, "-j", CHAIN])).is_err() {
            run(in_host("iptables").args(["--wait", "-I", hook, "-j", CHAIN]))?;
        }
    }
    Ok(())
}

/// Runs something in the network namespace of a file like `/proc/PID/ns/net`. In a thread of its own, because the
/// thread that does it stays there.
pub(crate) fn in_namespace<T: Send>(file: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                work()
            })
            .join()
            .map_err(|_| anyhow::anyhow!("the thread in the network namespace died"))?
    })
}

/// Whether an SSH server answers with its greeting there. For use inside a host's namespace.
pub(crate) fn ssh_answers(address: Ipv4Addr) -> bool {
    use std::io::Read as _;
    let to = SocketAddr::from((address, 22));
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(500)) else { return false };
    let mut greeting = [0_u8; 4];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && greeting == *b"SSH-"
}

/// Whether this process is in that namespace already.
pub(crate) fn is_inside(paths: &LabPaths) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let mine = id(Path::new("/proc/self/ns/net"));
    mine.is_some() && mine == id(&paths.namespace_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_taken_from_the_lowest_on() {
        let mut taken = BTreeSet::new();
        for number in 1..=254_u8 {
            let subnet = free_subnet(&taken).unwrap();
            assert_eq!(subnet, Ipv4Net::new(Ipv4Addr::new(10, 77, number, 0), 24).unwrap());
            taken.insert(subnet);
        }
        assert_eq!(free_subnet(&taken), None);
        let freed = Ipv4Net::new(Ipv4Addr::new(10, 77, 9, 0), 24).unwrap();
        taken.remove(&freed);
        assert_eq!(free_subnet(&taken), Some(freed));
        assert_eq!(gateway(freed), Ipv4Addr::new(10, 77, 9, 1));
        assert_eq!(hostname(Ipv4Addr::new(10, 77, 9, 14)), "ip-10-77-9-14");
        assert_eq!(hardware_address(gateway(freed)), "02:00:0a:4d:09:01");
    }
}
