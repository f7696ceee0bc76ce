//! Facts of the network: names, addresses, the default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use serde_json::{Map, Value, json};

use super::read;
use crate::host::Read;

/// `{ipv4: […], ipv6: […], by_interface: {NAME: {up, mac, ipv4: […], ipv6: […]}}}`. The first two lists are without
/// loopback and link-local addresses.
pub(super) fn addresses() -> Value {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    let mut interfaces: Map<String, Value> = Map::new();
    for found in getifaddrs().into_iter().flatten() {
        let interface = interfaces.entry(found.interface_name).or_insert_with(
            || json!({"up": found.flags.contains(InterfaceFlags::IFF_UP), "mac": null, "ipv4": [], "ipv6": []}),
        );
        let Some(address) = found.address else { continue };
        if let Some(mac) = address.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr) {
            if mac.iter().any(|byte| *byte != 0) {
                interface["mac"] = mac.map(|byte| format!("{byte:02x}")).join(":").into();
            }
            continue;
        }
        let (ip, mask): (IpAddr, Option<IpAddr>) = if let Some(v4) = address.as_sockaddr_in() {
            (v4.ip().into(), found.netmask.and_then(|m| m.as_sockaddr_in().map(|m| m.ip().into())))
        } else if let Some(v6) = address.as_sockaddr_in6() {
            (v6.ip().into(), found.netmask.and_then(|m| m.as_sockaddr_in6().map(|m| m.ip().into())))
        } else {
            continue;
        };
        let entry = entry(ip, mask);
        let (list, all) = if ip.is_ipv4() { ("ipv4", &mut ipv4) } else { ("ipv6", &mut ipv6) };
        if let Some(items) = interface[list].as_array_mut() {
            items.push(entry);
        }
        if !ip.is_loopback() && !is_link_local(ip) {
            all.push(ip.to_string());
        }
    }
    json!({"ipv4": ipv4, "ipv6": ipv6, "by_interface": interfaces})
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => is_unicast_link_local(ip),
    }
}

fn is_unicast_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// `{address, prefix, cidr}`; `cidr` is the network.
fn entry(ip: IpAddr, mask: Option<IpAddr>) -> Value {
    let prefix = mask.and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok());
    let cidr = prefix.and_then(|prefix| IpNet::new(ip, prefix).ok()).map(|net| net.trunc().to_string());
    json!({"address": ip.to_string(), "prefix": prefix, "cidr": cidr})
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) interface: String,
    pub(super) gateway: Ipv4Addr,
}

/// The default route of IPv4 with the lowest metric.
pub(super) fn default_route(host: &dyn Read) -> Option<Route> {
    let text = read(host, "/proc/net/route");
    let routes = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (interface, target, gateway) = (fields.first()?, fields.get(1)?, fields.get(2)?);
        let (flags, metric, mask) = (fields.get(3)?, fields.get(6)?, fields.get(7)?);
        // 1: up, 2: through a gateway.
        let usable = u32::from_str_radix(flags, 16).ok()? & 3 == 3;
        let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
        let route = Route { interface: (*interface).to_owned(), gateway };
        (usable && *target == "00000000" && *mask == "00000000").then_some((metric.parse::<u32>().ok()?, route))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, route)| route)
}

/// `{address, interface}` of the default route, null without one.
pub(super) fn default_ipv4(route: Option<&Route>, addresses: &Value) -> Value {
    let Some(route) = route else { return Value::Null };
    let address = &addresses["by_interface"][&route.interface]["ipv4"][0]["address"];
    json!({"address": address, "interface": route.interface})
}

/// The full name that /etc/hosts has for the host's name; the name itself where there is none.
pub(super) fn fqdn(host: &dyn Read, hostname: &str) -> String {
    if hostname.contains('.') {
        return hostname.to_owned();
    }
    let text = read(host, "/etc/hosts");
    let full = text.lines().find_map(|line| {
        let names: Vec<&str> = line.split('#').next()?.split_whitespace().skip(1).collect();
        let prefix = format!("{hostname}.");
        names
            .contains(&hostname)
            .then(|| names.iter().find(|name| name.starts_with(&prefix)).map(|n| (*n).to_owned()))?
    });
    full.unwrap_or_else(|| hostname.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::fake::Fake;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth1\t00000000\t0102A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
        host0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
        host0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn the_default_route_is_the_one_with_the_lowest_metric() {
        let route = default_route(&Fake::new().file("/proc/net/route", ROUTES)).unwrap();
        assert_eq!(route, Route { interface: "host0".into(), gateway: Ipv4Addr::new(10, 0, 0, 1) });
        let addresses = json!({"by_interface": {"host0": {"ipv4": [{"address": "10.0.0.7"}]}}});
        assert_eq!(default_ipv4(Some(&route), &addresses), json!({"address": "10.0.0.7", "interface": "host0"}));
        assert_eq!(default_route(&Fake::new()), None);
    }

    #[test]
    fn addresses_have_their_network() {
        let entry = entry([10, 1, 2, 3].into(), Some([255, 255, 240, 0].into()));
        assert_eq!(entry, json!({"address": "10.1.2.3", "prefix": 20, "cidr": "10.1.0.0/20"}));
        assert!(is_link_local("fe80::1".parse().unwrap()) && is_link_local("169.254.1.1".parse().unwrap()));
        assert!(!is_link_local("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn the_full_name_comes_from_the_hosts_file() {
        let fake = Fake::new().file("/etc/hosts", "127.0.0.1 localhost\n10.0.0.7 consul-1.example.org consul-1 # us\n");
        assert_eq!(fqdn(&fake, "consul-1"), "consul-1.example.org");
        assert_eq!(fqdn(&fake, "consul-2"), "consul-2");
        assert_eq!(fqdn(&fake, "a.b"), "a.b");
    }
}
