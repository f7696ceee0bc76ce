//! `ssh_config` and `known_hosts` of a lab, kept right for its hosts: what `lab ssh` uses, and any other SSH client can.

use anyhow::Result;

use crate::paths::{LabPaths, write_atomic};
use crate::socket::HostStatus;

/// The login user of Debian's EC2 images.
const USER: &str = "admin";

/// Writes both files.
pub(crate) fn write(paths: &LabPaths, jump_host: Option<&str>, hosts: &[HostStatus]) -> Result<()> {
    write_atomic(&paths.known_hosts(), known_hosts(hosts).as_bytes(), 0o644)?;
    write_atomic(&paths.ssh_config(), ssh_config(paths, jump_host, hosts).as_bytes(), 0o644)
}

/// Each key under the instance's id, which it belongs to for ever, and its address, which clients know.
fn known_hosts(hosts: &[HostStatus]) -> String {
    let lines = hosts
        .iter()
        .flat_map(|host| host.host_keys.iter().map(move |key| format!("{},{} {key}\n", host.id, host.address)));
    lines.collect()
}

fn ssh_config(paths: &LabPaths, jump_host: Option<&str>, hosts: &[HostStatus]) -> String {
    let mut text = String::new();
    for host in hosts {
        let is_only = hosts.iter().filter(|other| other.name == host.name).count() == 1;
        let name = if is_only { format!("{} ", host.name) } else { String::new() };
        text.push_str(&format!("Host {name}{} {} {}\n", host.id, host.address, host.hostname));
        text.push_str(&format!("    HostName {}\n    HostKeyAlias {}\n", host.address, host.id));
        if let Some(key) = &host.key {
            text.push_str(&format!("    IdentityFile \"{}\"\n", paths.key(key).display()));
        }
        if let Some(jump) = jump_host.filter(|jump| host.name != **jump) {
            text.push_str(&format!("    ProxyJump {jump}\n"));
        }
    }
    text.push_str(&format!(
        "Host *\n    User {USER}\n    IdentitiesOnly yes\n    StrictHostKeyChecking yes\n    UpdateHostKeys no\n    \
         ConnectTimeout 10\n    \
         UserKnownHostsFile \"{}\"\n    GlobalKnownHostsFile /dev/null\n    LogLevel ERROR\n",
        paths.known_hosts().display()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, id: &str, last: u8) -> HostStatus {
        HostStatus {
            name: name.into(),
            id: id.into(),
            address: std::net::Ipv4Addr::new(10, 77, 1, last),
            hostname: format!("ip-10-77-1-{last}"),
            state: "up".into(),
            boot_seconds: Some(1.0),
            zone: "us-west-2a".into(),
            instance_type: "t3.micro".into(),
            key: Some("k".into()),
            tags: indexmap::IndexMap::new(),
            faults: Vec::new(),
            host_keys: vec!["ssh-ed25519 AAA".into()],
            memory: None,
        }
    }

    #[test]
    fn hosts_of_one_name_are_told_apart_by_id() {
        let hosts = [host("web", "i-1", 10), host("web", "i-2", 11), host("jump", "i-3", 12)];
        let text = ssh_config(&LabPaths::new("x"), Some("jump"), &hosts);
        assert!(text.contains("Host i-1 10.77.1.10 ip-10-77-1-10\n"), "{text}");
        assert!(text.contains("Host jump i-3 10.77.1.12 ip-10-77-1-12\n"), "{text}");
        assert_eq!(text.matches("ProxyJump jump").count(), 2);
        assert_eq!(known_hosts(&hosts[..1]), "i-1,10.77.1.10 ssh-ed25519 AAA\n");
    }
}
