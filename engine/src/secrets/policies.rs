//! Policies for the stores, made from the ownership table: what each kind of host may read, and who answers hosts may do.
//!
//! In a run over SSH only the controller talks to the store. At first boot hosts do: with these policies the store itself
//! keeps a client from the secrets of servers and of other nodes.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    ownership::{Maker, Readers, Role, TABLE, node_part},
    settings::{Aws, Vault},
};

/// Whom a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Who answers hosts: the controller, or an operator.
    Controller,
    /// Hosts of one kind.
    Hosts(Role),
}

impl Audience {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Controller).chain(Role::ALL.into_iter().map(Self::Hosts))
    }

    /// `controller`, `consul_servers`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Hosts(role) => role.group(),
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|audience| audience.name() == name)
    }
}

/// A name that a kind of host may use; `*` in it stands for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    pattern: &'static str,
    /// Every node's, not only its own.
    every_node: bool,
    /// May make it where nobody has yet. It cannot change it afterwards.
    creates: bool,
}

/// What the table grants to a kind of host.
fn grants(role: Role) -> Vec<Grant> {
    let grant = |rule: &'static super::ownership::Rule| {
        let has = |roles: &[Role]| roles.contains(&role);
        let every_node = match rule.readers {
            Readers::Nobody => return None,
            Readers::Roles(roles) => has(roles).then_some(true)?,
            Readers::OwnAnd(_, others) if has(others) => true,
            Readers::OwnAnd(roles, _) => has(roles).then_some(false)?,
        };
        // At first boot servers make what all of them share; what signs is made by nobody but the issuer.
        let is_server = matches!(role, Role::ConsulServer | Role::NomadServer);
        let creates = is_server && every_node && rule.maker != Maker::Issuer;
        Some(Grant { pattern: rule.pattern, every_node, creates })
    };
    TABLE.iter().filter_map(grant).collect()
}

/// A policy for Vault and OpenBao, in HCL. Without a node its name is that of the entity that logs in.
pub fn vault(settings: &Vault, cluster: &str, audience: Audience, node: Option<&str>) -> String {
    let (mount, base) = (&settings.mount, format!("{}/{cluster}", settings.prefix));
    let mut text =
        format!("# Secrets of the cluster {cluster} for {}. Made by `controller policies`.\n", audience.name());
    let mut path = |path: String, capabilities: &[&str]| {
        let list = capabilities.iter().map(|c| format!("\"{c}\"")).collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\npath \"{path}\" {{\n  capabilities = [{list}]\n}}\n");
    };
    match audience {
        Audience::Controller => {
            path(format!("{mount}/data/{base}/*"), &["create", "read", "update"]);
            path(format!("{mount}/metadata/{base}/*"), &["read", "list", "delete"]);
        }
        Audience::Hosts(role) => {
            let own = node.map_or_else(|| "{{identity.entity.name}}".to_owned(), node_part);
            for grant in grants(role) {
                let name = grant.pattern.replace('*', if grant.every_node { "+" } else { &own });
                // Without "update" the store itself refuses a second value.
                let capabilities: &[&str] = if grant.creates { &["create", "read"] } else { &["read"] };
                path(format!("{mount}/data/{base}/{name}"), capabilities);
            }
        }
    }
    text
}

/// A policy for AWS. Without a node its name is the tag `rollcall-node` of the role's session.
pub fn iam(settings: &Aws, cluster: &str, audience: Audience, node: Option<&str>) -> Value {
    let region = settings.region.as_deref().unwrap_or("*");
    let base = format!("arn:aws:secretsmanager:{region}:*:secret:{}/{cluster}", settings.prefix);
    // AWS ends each ARN with a dash and six characters of its own.
    let arn = |name: &str| format!("{base}/{name}-??????");
    let mut statements = Vec::new();
    let mut allow = |sid: &str, actions: &[&str], resources: Value| {
        let actions: Vec<String> = actions.iter().map(|a| format!("secretsmanager:{a}")).collect();
        statements.push(json!({"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}));
    };
    match audience {
        Audience::Controller => {
            let actions =
                ["CreateSecret", "GetSecretValue", "PutSecretValue", "DeleteSecret", "RestoreSecret", "DescribeSecret"];
            allow("Secrets", &actions, json!([format!("{base}/*")]));
            allow("List", &["ListSecrets"], json!("*"));
        }
        Audience::Hosts(role) => {
            let own = node.map_or_else(|| "${aws:PrincipalTag/rollcall-node}".to_owned(), node_part);
            let grants = grants(role);
            let names = |wanted: fn(&Grant) -> bool| {
                let wanted = grants.iter().filter(|grant| wanted(grant));
                let names = wanted.map(|g| arn(&g.pattern.replace('*', if g.every_node { "*" } else { &own })));
                names.collect::<Vec<_>>()
            };
            allow("Read", &["GetSecretValue"], json!(names(|_| true)));
            let created = names(|grant| grant.creates);
            if !created.is_empty() {
                allow("MakeOnce", &["CreateSecret"], json!(created));
            }
            statements.push(json!({
                "Sid": "NeverChange",
                "Effect": "Deny",
                "Action": [
                    "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecret", "secretsmanager:DeleteSecret",
                    "secretsmanager:PutResourcePolicy", "secretsmanager:UpdateSecretVersionStage",
                ],
                "Resource": format!("{base}/*"),
            }));
        }
    }
    if let Some(key) = settings.kms_key.as_deref().filter(|key| key.starts_with("arn:")) {
        let writes = statements.iter().any(|s| s["Action"].to_string().contains("CreateSecret"));
        let actions: &[&str] = if writes { &["kms:Decrypt", "kms:GenerateDataKey"] } else { &["kms:Decrypt"] };
        statements.push(json!({"Sid": "Key", "Effect": "Allow", "Action": actions, "Resource": key}));
    }
    json!({"Version": "2012-10-17", "Statement": statements})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diag::Diagnostics,
        node::{Kind, Node},
        secrets::{
            Name,
            ownership::{Reader, Rule},
            settings::Settings,
        },
    };

    fn settings(kind: &str) -> Settings {
        let node = |kind| Node { span: crate::diag::Span::NONE, kind };
        let (kind, none) = (node(Kind::Str(kind.into())), node(Kind::Map(Vec::new())));
        Settings::read(&kind, &none, std::path::Path::new("/"), &mut Diagnostics::default()).unwrap()
    }

    /// `*` and `?` as IAM has them.
    fn matches(pattern: &str, text: &str) -> bool {
        let source: String = pattern
            .chars()
            .map(|c| match c {
                '*' => ".*".to_owned(),
                '?' => ".".to_owned(),
                other => regex::escape(&other.to_string()),
            })
            .collect();
        regex::Regex::new(&format!("^{source}$")).unwrap().is_match(text)
    }

    fn decides(policy: &Value, action: &str, arn: &str) -> bool {
        let hit = |statement: &Value| {
            let all = |key: &str| match &statement[key] {
                Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>(),
                other => other.as_str().map(str::to_owned).into_iter().collect(),
            };
            all("Action").iter().any(|a| a == action) && all("Resource").iter().any(|r| matches(r, arn))
        };
        let statements = policy["Statement"].as_array().unwrap();
        let of = |effect: &str| statements.iter().any(|s| s["Effect"] == effect && hit(s));
        of("Allow") && !of("Deny")
    }

    /// Every name of the table, for two nodes, and one that is none of it.
    fn names() -> Vec<Name> {
        let of = |rule: &Rule| ["a", "ab"].map(|node| Name::new(&rule.pattern.replace('*', node)).unwrap());
        let mut names: Vec<Name> = TABLE.iter().flat_map(of).collect();
        names.extend(["app/password", "consul/token/agent/a/b", "ca/key/x"].map(|n| Name::new(n).unwrap()));
        names.sort();
        names.dedup();
        names
    }

    #[test]
    fn iam_says_for_every_name_what_the_table_says() {
        let Settings::Aws(settings) = settings("aws-secretsmanager") else { panic!("another store") };
        for role in Role::ALL {
            let policy = iam(&settings, "kraken", Audience::Hosts(role), Some("A"));
            for name in names() {
                let groups = [role.group().to_owned()];
                let wanted = Rule::of(&name).is_some_and(|r| r.grants(&name, Reader { host: "A", groups: &groups }));
                let arn = format!("arn:aws:secretsmanager:eu-west-1:123456789012:secret:rollcall/kraken/{name}-Ab1cDe");
                let read = decides(&policy, "secretsmanager:GetSecretValue", &arn);
                // A `*` of IAM also stands for slashes; such names are not given to anything.
                if name.as_str() != "consul/token/agent/a/b" {
                    assert_eq!(read, wanted, "{} {name}: {policy:#}", role.group());
                }
                for action in ["PutSecretValue", "DeleteSecret", "UpdateSecret"] {
                    assert!(!decides(&policy, &format!("secretsmanager:{action}"), &arn));
                }
                let other = arn.replace("/kraken/", "/other/");
                assert!(!decides(&policy, "secretsmanager:GetSecretValue", &other));
            }
        }
    }

    #[test]
    fn the_manuals_table_is_up_to_date() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/secrets.md");
        let page = std::fs::read_to_string(page).unwrap();
        let maker = |maker| match maker {
            Maker::Uuid => "a random UUID, when first needed",
            Maker::GossipKey => "32 random bytes, when first needed",
            Maker::Issuer => "the cluster's issuer",
            Maker::Mark => "the first server that sees the cluster formed",
            Maker::Product => "the product, and kept by the server that asked it",
        };
        let row = |rule: &Rule| {
            let Rule { pattern, what, readers, rotation, .. } = rule;
            format!("| `{pattern}` | {what} | {} | {readers} | {rotation} |", maker(rule.maker))
        };
        let table = TABLE.iter().map(row).collect::<Vec<_>>().join("\n");
        assert!(page.contains(&format!("\n{table}\n\n")), "docs/secrets.md wants this table:\n{table}");
    }

    #[test]
    fn a_client_makes_nothing_and_nobody_makes_the_authoritys_key() {
        let Settings::Aws(settings) = settings("aws-secretsmanager") else { panic!("another store") };
        for role in Role::ALL {
            let policy = iam(&settings, "kraken", Audience::Hosts(role), None);
            let arn = |name: &str| format!("arn:aws:secretsmanager:eu-west-1:1:secret:rollcall/kraken/{name}-Ab1cDe");
            let creates = |name: &str| decides(&policy, "secretsmanager:CreateSecret", &arn(name));
            assert!(!creates("ca/key") && !creates("ca/certificate"));
            assert_eq!(creates("consul/management"), role == Role::ConsulServer);
            assert_eq!(creates("nomad/gossip"), role == Role::NomadServer);
        }
    }

    #[test]
    fn vaults_policy_names_one_node_or_its_entity() {
        let Settings::Vault(settings) = settings("vault") else { panic!("another store") };
        let client = vault(&settings, "kraken", Audience::Hosts(Role::ConsulClient), Some("Web-1"));
        assert!(client.contains("path \"secret/data/rollcall/kraken/consul/token/agent/web-1\""), "{client}");
        assert!(!client.contains("management") && !client.contains("ca/key") && !client.contains("create"), "{client}");
        let any = vault(&settings, "kraken", Audience::Hosts(Role::ConsulClient), None);
        assert!(any.contains("agent/{{identity.entity.name}}\""), "{any}");
        let server = vault(&settings, "kraken", Audience::Hosts(Role::ConsulServer), None);
        assert!(server.contains("agent/+\"") && server.contains("[\"create\", \"read\"]"), "{server}");
        assert!(!server.contains("update") && !server.contains("ca/key"), "{server}");
        assert_eq!(Audience::named("consul_clients"), Some(Audience::Hosts(Role::ConsulClient)));
    }
}
