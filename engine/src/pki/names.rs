//! The names of a leaf. The same code says which ones a host gets, and which ones it looks for in what it has.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use super::PkiError;
use crate::secrets::grants::Product;

/// A name that a certificate is good for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AltName {
    /// A host name, in small letters.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl fmt::Display for AltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => write!(f, "{address}"),
        }
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// The product.
    pub product: Product,
    /// The node is one of its servers.
    pub server: bool,
    /// The node is one of its clients.
    pub client: bool,
    /// Consul's datacenter, Nomad's region.
    pub place: &'a str,
    /// The domain of Consul's names; Nomad's own is always `nomad`. Where Consul knows Nomad's servers by a name, theirs is in it.
    pub domain: &'a str,
    /// The node's name.
    pub node: &'a str,
    /// Where others reach the node: an address or a name.
    pub address: &'a str,
}

impl Holder<'_> {
    /// The names that the node's certificate has, exactly. Others of the cluster take a node for a server that has
    /// `server.PLACE.DOMAIN`: no client gets one that could be read so.
    pub fn names(&self) -> Result<BTreeSet<AltName>, PkiError> {
        let suffix = self.suffix()?;
        let mut names = BTreeSet::from([dns("localhost"), AltName::Ip([127, 0, 0, 1].into())]);
        names.insert(AltName::Ip(std::net::Ipv6Addr::LOCALHOST.into()));
        if self.server {
            names.insert(dns(&format!("server.{suffix}")));
        }
        if self.client {
            names.insert(dns(&format!("client.{suffix}")));
        }
        // As Consul's DNS calls them: whoever finds them through it gets any of them.
        if self.server && self.product == Product::Nomad && !self.domain.is_empty() {
            let domain = checked(self.domain.strip_suffix('.').unwrap_or(self.domain))?;
            names.insert(dns(&format!("nomad.service.{}", domain.to_ascii_lowercase())));
        }
        let node = self.node.to_ascii_lowercase();
        if self.server && self.product == Product::Consul && is_host_name(&node) && node.parse::<IpAddr>().is_err() {
            names.insert(dns(&format!("{node}.server.{suffix}")));
        }
        // Names that no host can have (`web 1`) are good enough for an inventory, and are left out here.
        names.extend([self.node, self.address].into_iter().filter_map(|text| self.plain(text)));
        names.retain(|name| !matches!(name, AltName::Dns(name) if name.len() > 253));
        Ok(names)
    }

    /// The name that stands for what the node is: `server.dc1.consul`.
    pub fn title(&self) -> Result<String, PkiError> {
        Ok(format!("{}.{}", if self.server { "server" } else { "client" }, self.suffix()?))
    }

    fn suffix(&self) -> Result<String, PkiError> {
        let (what, domain) = match self.product {
            Product::Consul => ("the datacenter", self.domain.strip_suffix('.').unwrap_or(self.domain)),
            Product::Nomad => ("the region", "nomad"),
        };
        label(what, self.place)?;
        let domain = checked(domain)?;
        Ok(format!("{}.{domain}", self.place).to_ascii_lowercase())
    }

    /// A node's own name or address, if it can stand in a certificate.
    fn plain(&self, text: &str) -> Option<AltName> {
        let text = text.trim().to_ascii_lowercase();
        if let Ok(address) = text.parse::<IpAddr>() {
            return (!address.is_unspecified()).then_some(AltName::Ip(address));
        }
        let a_servers = text.split('.').any(|part| part == "server");
        (is_host_name(&text) && (self.server || !a_servers)).then_some(AltName::Dns(text))
    }
}

/// A domain that a certificate can hold.
fn checked(domain: &str) -> Result<&str, PkiError> {
    if domain.is_empty() || domain.len() > 190 {
        return Err(bad("the domain", domain, "expected 1 to 190 characters"));
    }
    for part in domain.split('.') {
        label("the domain", part)?;
    }
    Ok(domain)
}

fn dns(name: &str) -> AltName {
    AltName::Dns(name.to_owned())
}

fn bad(what: &'static str, text: &str, why: &'static str) -> PkiError {
    PkiError::Name { what, text: text.chars().take(80).collect(), why }
}

/// One part of a name between dots.
fn label(what: &'static str, text: &str) -> Result<(), PkiError> {
    if is_label(text) {
        return Ok(());
    }
    Err(bad(what, text, "expected 1 to 63 letters, digits, '-' and '_' between dots, '-' not at an end"))
}

fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_host_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Names as one line, the shorter way of two: `a, b and 7 others`.
pub fn list<'a>(names: impl IntoIterator<Item = &'a AltName>) -> String {
    let all: Vec<String> = names.into_iter().map(ToString::to_string).collect();
    match all.len() {
        0..=4 => all.join(", "),
        many => format!("{} and {} others", all[..3].join(", "), many - 3),
    }
}
