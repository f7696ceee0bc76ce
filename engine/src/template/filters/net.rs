//! Addresses and networks.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{Args, Filter, list_of, lists::texts, text_of};

pub(super) const FILTERS: &[Filter] = &[
    Filter::new(&["ipaddr"], &["query"], |v, a| ipaddr(v, a, |_| true)),
    Filter::new(&["ipv4"], &["query"], |v, a| ipaddr(v, a, IpAddr::is_ipv4)),
    Filter::new(&["ipv6"], &["query"], |v, a| ipaddr(v, a, IpAddr::is_ipv6)),
    Filter::new(&["ipwrap"], &[], ipwrap),
    Filter::new(&["cidr_contains"], &["address"], cidr_contains),
    Filter::new(&["in_cidr"], &["network"], in_cidr),
    Filter::new(&["cidr_host"], &["number"], cidr_host),
];

/// An address, with its network if a prefix was given.
struct Address {
    ip: IpAddr,
    net: Option<IpNet>,
}

fn parse(text: &str) -> Option<Address> {
    if let Ok(ip) = text.trim().parse::<IpAddr>() {
        return Some(Address { ip, net: None });
    }
    let (ip, mask) = text.trim().split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let prefix = match mask.parse::<u8>() {
        Ok(prefix) => prefix,
        Err(_) => ipnet::ip_mask_to_prefix(mask.parse().ok()?).ok()?,
    };
    Some(Address { ip, net: Some(IpNet::new(ip, prefix).ok()?) })
}

impl Address {
    fn whole(&self) -> IpNet {
        self.net.unwrap_or_else(|| IpNet::from(self.ip))
    }

    fn private(&self) -> bool {
        match self.ip {
            IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(),
        }
    }

    /// What a query asks of it; `None` where it does not fit.
    fn ask(&self, query: &str, original: &str) -> Result<Option<Value>, String> {
        let net = self.whole();
        let all = || Some(Value::from(original));
        let host_part = self.net.is_none_or(|n| n.addr() != n.network() || n.prefix_len() == n.max_prefix_len());
        Ok(match query {
            "" => all(),
            "address" | "ip" if host_part => Some(self.ip.to_string().into()),
            "address" | "ip" => None,
            "host" => host_part.then(|| format!("{}/{}", self.ip, net.prefix_len()).into()),
            "net" => (self.net.is_some() && !host_part).then(|| net.to_string().into()),
            "network" | "network_id" => Some(net.network().to_string().into()),
            "network/prefix" | "subnet" => Some(net.trunc().to_string().into()),
            "cidr" | "address/prefix" | "ip/prefix" => Some(format!("{}/{}", self.ip, net.prefix_len()).into()),
            "prefix" => Some(net.prefix_len().into()),
            "netmask" => Some(net.netmask().to_string().into()),
            "wildcard" | "hostmask" => Some(net.hostmask().to_string().into()),
            "broadcast" => Some(net.broadcast().to_string().into()),
            "size" => Some(size(&net)),
            "first_usable" => net.hosts().next().map(|ip| ip.to_string().into()),
            "last_usable" => Some(last_usable(&net).to_string().into()),
            "version" => Some(if self.ip.is_ipv4() { 4 } else { 6 }.into()),
            "private" => self.private().then(all).flatten(),
            "public" => (!self.private() && !self.ip.is_multicast()).then(all).flatten(),
            "loopback" => self.ip.is_loopback().then(all).flatten(),
            "multicast" => self.ip.is_multicast().then(all).flatten(),
            "ipv4" => self.ip.is_ipv4().then(all).flatten(),
            "ipv6" => self.ip.is_ipv6().then(all).flatten(),
            "bool" => Some(true.into()),
            other => match parse(other) {
                Some(outer) => outer.whole().contains(&net).then(all).flatten(),
                None => {
                    return Err(format!(
                        "unknown query '{other}' (known: address, host, net, network, network/prefix, cidr, prefix, netmask, hostmask, broadcast, size, first_usable, last_usable, version, private, public, loopback, multicast, ipv4, ipv6, or a network such as 10.0.0.0/8)"
                    ));
                }
            },
        })
    }
}

fn size(net: &IpNet) -> Value {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    match 1_u64.checked_shl(bits).filter(|_| bits < 64) {
        Some(size) => size.into(),
        // More than a number here holds.
        None => format!("2^{bits}").into(),
    }
}

fn last_usable(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            IpAddr::from(std::net::Ipv4Addr::from(u32::from(net.broadcast()).saturating_sub(1)))
        }
        _ => net.broadcast(),
    }
}

/// One address gives its answer or false, a list gives the answers of those that fit.
fn ipaddr(value: Value, args: &mut Args, family: fn(&IpAddr) -> bool) -> Result<Value, String> {
    let query = args.text("query")?.unwrap_or_default();
    let one = |value: &Value| -> Result<Option<Value>, String> {
        let Some(text) = value.as_str() else { return Ok(None) };
        match parse(text).filter(|address| family(&address.ip)) {
            Some(address) => address.ask(&query, text),
            None if query.is_empty() => Ok(None),
            // The query is checked even where there is nothing to ask.
            None => Address { ip: IpAddr::from([127, 0, 0, 1]), net: None }.ask(&query, "").map(|_| None),
        }
    };
    match &value {
        Value::Array(items) => {
            let mut out = Vec::new();
            for item in items {
                out.extend(one(item)?);
            }
            Ok(out.into())
        }
        other => Ok(one(other)?.unwrap_or(Value::Bool(false))),
    }
}

fn ipwrap(value: Value, _: &mut Args) -> Result<Value, String> {
    let wrap = |text: String| match parse(&text) {
        Some(Address { ip: IpAddr::V6(ip), net: None }) => format!("[{ip}]"),
        Some(Address { ip: IpAddr::V6(ip), net: Some(net) }) => format!("[{ip}]/{}", net.prefix_len()),
        _ => text,
    };
    match value {
        Value::Array(items) => items.iter().map(|i| Ok(Value::from(wrap(text_of(i)?)))).collect(),
        other => Ok(wrap(text_of(&other)?).into()),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let parsed = parse(text).filter(|a| a.net.is_some());
    parsed.map(|a| a.whole()).ok_or_else(|| format!("'{text}' is no network (such as 10.0.0.0/8)"))
}

fn address(text: &str) -> Result<IpNet, String> {
    parse(text).map(|a| a.whole()).ok_or_else(|| format!("'{text}' is no address"))
}

fn cidr_contains(value: Value, args: &mut Args) -> Result<Value, String> {
    let net = network(&text_of(&value)?)?;
    let inner = texts(&args.need("address")?)?;
    let mut all = true;
    for text in inner {
        all &= net.contains(&address(&text)?);
    }
    Ok(all.into())
}

/// The addresses of a list that lie in a network; for one address whether it does.
fn in_cidr(value: Value, args: &mut Args) -> Result<Value, String> {
    let mut nets = Vec::new();
    for text in texts(&args.need("network")?)? {
        nets.push(network(&text)?);
    }
    let inside = |value: &Value| -> Result<bool, String> {
        let ip = address(&text_of(value)?)?;
        Ok(nets.iter().any(|net| net.contains(&ip)))
    };
    match value {
        Value::Array(_) => {
            let mut out = Vec::new();
            for item in list_of(value)? {
                if inside(&item)? {
                    out.push(item);
                }
            }
            Ok(out.into())
        }
        other => Ok(inside(&other)?.into()),
    }
}

/// The address with this number in a network; negative numbers count from its end.
fn cidr_host(value: Value, args: &mut Args) -> Result<Value, String> {
    let net = network(&text_of(&value)?)?;
    let number = args.int("number")?.ok_or("the argument 'number' is missing")?;
    let (first, last) = (as_number(net.network()), as_number(net.broadcast()));
    let offset = u128::from(number.unsigned_abs());
    let found = if number < 0 {
        last.checked_sub(offset - 1).filter(|n| *n >= first)
    } else {
        first.checked_add(offset).filter(|n| *n <= last)
    };
    let found = found.ok_or_else(|| format!("{net} has no address with the number {number}"))?;
    let ip = match net {
        IpNet::V4(_) => IpAddr::from(std::net::Ipv4Addr::from(u32::try_from(found).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::from(std::net::Ipv6Addr::from(found)),
    };
    Ok(ip.to_string().into())
}

fn as_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}
