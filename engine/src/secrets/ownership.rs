//! The ownership table: every secret that Rollcall makes, who makes it, who may read it, what rotates it.
//!
//! It is the one place that decides. Who answers hosts asks it before the store; the policies for the stores and the table of
//! the manual are made from it. A name that it does not have is the user's own, and is read by the hosts that the project
//! grants it to.

use std::fmt;

use super::Name;

/// A host, as who answers it knows it: never as it calls itself.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// Its name in the inventory, which is the name of its node.
    pub host: &'a str,
    /// Its groups.
    pub groups: &'a [String],
}

/// A kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Of the group `consul_servers`.
    ConsulServer,
    /// Of the group `consul_clients`.
    ConsulClient,
    /// Of the group `nomad_servers`.
    NomadServer,
    /// Of the group `nomad_clients`.
    NomadClient,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ConsulServer, Self::ConsulClient, Self::NomadServer, Self::NomadClient];

    /// The group of its hosts.
    pub fn group(self) -> &'static str {
        match self {
            Self::ConsulServer => "consul_servers",
            Self::ConsulClient => "consul_clients",
            Self::NomadServer => "nomad_servers",
            Self::NomadClient => "nomad_clients",
        }
    }
}

/// How a value comes about that nobody has given yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// A random UUID: what Consul and Nomad take as a token's secret.
    Uuid,
    /// 32 random bytes in base64: what both take as a gossip key.
    GossipKey,
    /// The cluster's issuer, with its certificate.
    Issuer,
    /// Written when a cluster has been formed for the first time.
    Mark,
    /// The product itself, which lets nobody choose; kept by the host that asked for it.
    Product,
}

/// Who may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// No host: it stays with who answers them.
    Nobody,
    /// Every host of one of these roles.
    Roles(&'static [Role]),
    /// The host whose name is the name's last part, if it has one of these roles; and every host of the roles of the second list,
    /// which make it known to the product.
    OwnAnd(&'static [Role], &'static [Role]),
}

/// A line of the table.
#[derive(Debug)]
pub struct Rule {
    /// The name; a part `*` stands for the name of a node, or of an operator's token.
    pub pattern: &'static str,
    /// What it is.
    pub what: &'static str,
    /// How it is made.
    pub maker: Maker,
    /// Who may read it.
    pub readers: Readers,
    /// What rotates it.
    pub rotation: &'static str,
    /// It is deleted in the course of things (a rotation ends, a node or a token goes) and made again under the same name. A store
    /// that could bring deleted values back would refuse that name until then: such a value goes at once, and is worth nothing anyway.
    pub remade: bool,
}

use Role::{ConsulClient, ConsulServer, NomadClient, NomadServer};

const CONSUL: &[Role] = &[ConsulServer, ConsulClient];
const NOMAD: &[Role] = &[NomadServer, NomadClient];

/// The table.
pub const TABLE: &[Rule] = &[
    Rule {
        pattern: "ca/key",
        what: "private key of the cluster's certificate authority, with its certificate",
        maker: Maker::Issuer,
        readers: Readers::Nobody,
        rotation: "by hand: docs/certificates.md",
        remade: false,
    },
    Rule {
        pattern: "ca/certificate",
        what: "certificate of the cluster's certificate authority (no secret, but one with its key)",
        maker: Maker::Issuer,
        readers: Readers::Roles(&Role::ALL),
        rotation: "with its key",
        remade: false,
    },
    Rule {
        pattern: "consul/gossip",
        what: "Consul's gossip key",
        maker: Maker::GossipKey,
        readers: Readers::Roles(CONSUL),
        rotation: "controller rotate gossip",
        remade: false,
    },
    Rule {
        pattern: "consul/gossip-next",
        what: "the gossip key that Consul is being given, while it is rotated",
        maker: Maker::GossipKey,
        readers: Readers::Roles(&[ConsulServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "consul/management",
        what: "Consul's bootstrap token: may do everything",
        maker: Maker::Uuid,
        readers: Readers::Roles(&[ConsulServer]),
        rotation: "controller rotate tokens",
        remade: false,
    },
    Rule {
        pattern: "consul/management-next",
        what: "the token that takes the place of consul/management, while it is rotated",
        maker: Maker::Uuid,
        readers: Readers::Roles(&[ConsulServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "consul/formed",
        what: "when Consul's cluster was formed: with it, and no server alive, nothing is formed anew",
        maker: Maker::Mark,
        readers: Readers::Roles(&[ConsulServer]),
        rotation: "never",
        remade: false,
    },
    Rule {
        pattern: "consul/token/agent/*",
        what: "token of a node's Consul agent",
        maker: Maker::Uuid,
        readers: Readers::OwnAnd(CONSUL, &[ConsulServer]),
        rotation: "controller rotate tokens",
        remade: true,
    },
    Rule {
        pattern: "consul/token/dns",
        what: "token with which Consul agents answer DNS",
        maker: Maker::Uuid,
        readers: Readers::Roles(CONSUL),
        rotation: "controller rotate tokens",
        remade: true,
    },
    Rule {
        pattern: "consul/token/nomad/*",
        what: "token with which a node's Nomad agent talks to Consul",
        maker: Maker::Uuid,
        readers: Readers::OwnAnd(NOMAD, &[ConsulServer]),
        rotation: "controller rotate tokens",
        remade: true,
    },
    Rule {
        pattern: "consul/token-next/agent/*",
        what: "the token that a node's Consul agent is being given, while it is rotated",
        maker: Maker::Uuid,
        readers: Readers::OwnAnd(CONSUL, &[ConsulServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "consul/token-next/nomad/*",
        what: "the token that a node's Nomad agent is being given for Consul, while it is rotated",
        maker: Maker::Uuid,
        readers: Readers::OwnAnd(NOMAD, &[ConsulServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "consul/token-next/dns",
        what: "the token that agents are being given for DNS, while it is rotated",
        maker: Maker::Uuid,
        readers: Readers::Roles(CONSUL),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "consul/token/operator/*",
        what: "an operator's token of Consul, if it is kept in the store; `*` is its name",
        maker: Maker::Uuid,
        readers: Readers::Roles(&[ConsulServer]),
        rotation: "controller token revoke, then create",
        remade: true,
    },
    Rule {
        pattern: "nomad/gossip",
        what: "gossip key of Nomad's servers",
        maker: Maker::GossipKey,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "controller rotate gossip",
        remade: false,
    },
    Rule {
        pattern: "nomad/gossip-next",
        what: "the gossip key that Nomad's servers are being given, while it is rotated",
        maker: Maker::GossipKey,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "nomad/management",
        what: "Nomad's bootstrap token: may do everything",
        maker: Maker::Uuid,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "controller rotate tokens",
        remade: false,
    },
    Rule {
        pattern: "nomad/management-next",
        what: "the token that takes the place of nomad/management, while it is rotated",
        maker: Maker::Product,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "nomad/token/operator/*",
        what: "an operator's token of Nomad, if it is kept in the store; `*` is its name",
        maker: Maker::Product,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "controller token revoke, then create",
        remade: true,
    },
    Rule {
        pattern: "nomad/token-next/server",
        what: "the token that takes the place of nomad/token/server, while it is rotated",
        maker: Maker::Product,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "goes when the rotation is done",
        remade: true,
    },
    Rule {
        pattern: "nomad/token/server",
        what: "token with which Nomad's servers are asked how they are",
        maker: Maker::Product,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "controller rotate tokens",
        remade: true,
    },
    Rule {
        pattern: "nomad/formed",
        what: "when Nomad's cluster was formed: with it, and no server alive, nothing is formed anew",
        maker: Maker::Mark,
        readers: Readers::Roles(&[NomadServer]),
        rotation: "never",
        remade: false,
    },
];

/// The first parts of names that are the table's alone: nobody else gives them a meaning.
pub const RESERVED: [&str; 3] = ["ca", "consul", "nomad"];

impl Rule {
    /// The line of a name.
    pub fn of(name: &Name) -> Option<&'static Self> {
        TABLE.iter().find(|rule| rule.fits(name))
    }

    /// The node that a name of this line is about.
    pub fn node<'n>(&self, name: &'n Name) -> Option<&'n str> {
        self.pattern.split('/').zip(name.parts()).find(|(part, _)| *part == "*").map(|(_, node)| node)
    }

    fn fits(&self, name: &Name) -> bool {
        let pattern: Vec<&str> = self.pattern.split('/').collect();
        let parts: Vec<&str> = name.parts().collect();
        pattern.len() == parts.len() && pattern.iter().zip(&parts).all(|(want, have)| *want == "*" || want == have)
    }

    /// The name under which the value lies that takes this one's place, while a secret is rotated: there is a line for it.
    pub fn next(name: &Name) -> Option<Name> {
        let next = match name.as_str().split_once("/token/") {
            Some((product, rest)) => format!("{product}/token-next/{rest}"),
            None => format!("{name}-next"),
        };
        Name::new(&next).ok().filter(|next| Self::of(next).is_some())
    }

    /// True for a host that may read a name of this line.
    pub fn grants(&self, name: &Name, reader: Reader<'_>) -> bool {
        let has = |roles: &[Role]| roles.iter().any(|role| reader.groups.iter().any(|group| group == role.group()));
        let own = || self.node(name) == Some(node_part(reader.host).as_str());
        match self.readers {
            Readers::Nobody => false,
            Readers::Roles(roles) => has(roles),
            Readers::OwnAnd(roles, others) => (own() && has(roles)) || has(others),
        }
    }
}

impl fmt::Display for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = |roles: &[Role]| roles.iter().map(|r| r.group()).collect::<Vec<_>>().join(", ");
        match self {
            Self::Nobody => f.write_str("no host"),
            Self::Roles(roles) => f.write_str(&groups(roles)),
            Self::OwnAnd(roles, others) => write!(f, "the node itself ({}); {}", groups(roles), groups(others)),
        }
    }
}

/// A host's name as part of a secret's name. Names of hosts may hold capitals, which not every store tells apart.
///
/// Two hosts of one cluster whose names differ in that only would share their secrets: that such a pair is refused is up to
/// who loads the inventory.
pub fn node_part(host: &str) -> String {
    host.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(host: &str, groups: &[&str], name: &str) -> bool {
        let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        let name = Name::new(name).unwrap();
        Rule::of(&name).is_some_and(|rule| rule.grants(&name, Reader { host, groups: &groups }))
    }

    #[test]
    fn a_client_reads_nothing_that_is_not_its_own() {
        let client = ["all", "consul_clients", "nomad_clients"];
        for denied in [
            "ca/key",
            "consul/management",
            "nomad/management",
            "nomad/gossip",
            "consul/token/agent/b",
            "consul/token/nomad/b",
            "consul/token-next/nomad/b",
        ] {
            assert!(!may("a", &client, denied), "{denied}");
        }
        for granted in [
            "ca/certificate",
            "consul/gossip",
            "consul/token/agent/a",
            "consul/token/dns",
            "consul/token/nomad/a",
            "consul/token-next/nomad/a",
        ] {
            assert!(may("a", &client, granted), "{granted}");
        }
    }

    #[test]
    fn the_authoritys_key_is_read_by_no_host() {
        let all: Vec<&str> = Role::ALL.iter().map(|r| r.group()).collect();
        assert!(!may("a", &all, "ca/key"));
        assert!(!may("a", &["all"], "ca/certificate"), "a host without a role has no certificates");
    }

    #[test]
    fn servers_read_the_tokens_that_they_make_known() {
        assert!(may("s", &["consul_servers"], "consul/token/agent/b"));
        assert!(may("s", &["consul_servers"], "consul/token/nomad/b"));
        assert!(!may("s", &["consul_servers"], "nomad/management"));
        assert!(!may("s", &["nomad_servers"], "consul/management"));
    }

    #[test]
    fn what_comes_and_goes_is_made_again_and_nothing_else_is() {
        for rule in TABLE {
            let comes_and_goes = rule.pattern.ends_with("-next") || rule.pattern.contains("/token");
            assert_eq!(rule.remade, comes_and_goes, "{}", rule.pattern);
            let name = Name::new(&rule.pattern.replace('*', "node")).unwrap();
            assert!(Rule::next(&name).is_none_or(|next| Rule::of(&next).unwrap().remade), "{name}");
        }
    }

    #[test]
    fn every_line_is_a_name_below_a_reserved_part() {
        for rule in TABLE {
            let name = Name::new(&rule.pattern.replace('*', "node")).unwrap();
            assert!(RESERVED.contains(&name.parts().next().unwrap()), "{}", rule.pattern);
            assert_eq!(Rule::of(&name).unwrap().pattern, rule.pattern);
            assert_eq!(rule.node(&name), rule.pattern.contains('*').then_some("node"));
        }
        for (name, next) in [
            ("consul/gossip", Some("consul/gossip-next")),
            ("consul/token/agent/web-next", Some("consul/token-next/agent/web-next")),
            ("consul/token/nomad/web-1", Some("consul/token-next/nomad/web-1")),
            ("consul/formed", None),
            ("consul/gossip-next", None),
        ] {
            let found = Rule::next(&Name::new(name).unwrap());
            assert_eq!(found.as_ref().map(Name::as_str), next, "{name}");
        }
        assert!(Rule::of(&Name::new("consul/token/agent/a/b").unwrap()).is_none());
        assert!(may("Web-1", &["consul_clients"], "consul/token/agent/web-1"));
    }
}
