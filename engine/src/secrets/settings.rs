//! The settings of a store, as `store:` of `rollcall.yaml` has them. They are read, and refused, when the project is loaded:
//! before any host is asked.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::PATIENCE;
use crate::{
    diag::{Diagnostic, Diagnostics, Span, suggest},
    node::{Fields, Kind, Node},
    project::{resolve, seconds, text, texts},
};

/// The stores that there are.
pub const KINDS: [&str; 3] = ["file", "vault", "aws-secretsmanager"];
/// Stores that are planned.
const PLANNED: [&str; 2] = ["aws-ssm", "consul-kv"];

/// How long a store's answer may take, unless the settings say otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of one store. Paths are ready to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// `file`.
    File(File),
    /// `vault`.
    Vault(Vault),
    /// `aws-secretsmanager`.
    Aws(Aws),
}

/// Settings of the `file` store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The encrypted file; `None`: `CLUSTER.age` in the user's data folder.
    pub path: Option<PathBuf>,
    /// The file with the operator's age identities; `None`: `identity.txt` in the user's configuration folder.
    pub identity: Option<PathBuf>,
    /// Further keys (`age1…`) that can open it.
    pub recipients: Vec<String>,
    /// How long to wait for another process that writes.
    pub lock_timeout: Duration,
}

impl Default for File {
    fn default() -> Self {
        Self { path: None, identity: None, recipients: Vec::new(), lock_timeout: TIMEOUT }
    }
}

/// Settings of the `vault` store: a KV engine of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vault {
    /// `https://vault.example.com:8200`; `None`: from `VAULT_ADDR`.
    pub address: Option<String>,
    /// Where the KV engine is mounted.
    pub mount: String,
    /// The first parts of every path below the mount; the cluster's name follows.
    pub prefix: String,
    /// A namespace (Vault Enterprise, OpenBao).
    pub namespace: Option<String>,
    /// Certificates of the authorities that are trusted, and no others; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The Consul in which Vault keeps its data, or by whose names it is found, is another than this cluster's.
    pub other_consul: bool,
    /// How to log in.
    pub auth: VaultAuth,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long a run asks a store that is sealed or does not answer.
    pub patience: Duration,
}

/// How to log in to Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultAuth {
    /// The token of `VAULT_TOKEN`.
    Environment,
    /// The token in a file.
    TokenFile(PathBuf),
    /// An AppRole.
    AppRole {
        /// Where the method is mounted.
        mount: String,
        /// The file with the role's id.
        role_id_file: PathBuf,
        /// The file with the secret id.
        secret_id_file: PathBuf,
    },
}

/// Settings of the `aws-secretsmanager` store. What is not set comes from where every AWS program takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aws {
    /// The region.
    pub region: Option<String>,
    /// The profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// Another endpoint: of a VPC, or of what plays AWS.
    pub endpoint: Option<String>,
    /// The first parts of every name; the cluster's name follows.
    pub prefix: String,
    /// The key that encrypts new secrets; `None`: `aws/secretsmanager`.
    pub kms_key: Option<String>,
    /// Days in which a deleted secret can be brought back, 7 to 30; 0: it is gone at once.
    pub recovery_days: i64,
    /// How long an answer may take, repeated tries included.
    pub timeout: Duration,
    /// How long a run asks a store that does not answer.
    pub patience: Duration,
}

impl Settings {
    /// Reads the settings of a store, without its `type`. `root` is where relative paths start.
    pub fn read(kind: &Node, settings: &Node, root: &Path, out: &mut Diagnostics) -> Option<Self> {
        let name = text(kind, out)?;
        if !KINDS.contains(&name.as_str()) {
            out.push(unknown(&name, kind));
            return None;
        }
        let before = out.0.len();
        let mut fields = match Fields::new("store section", settings) {
            Ok(fields) => fields,
            Err(wrong) => {
                out.push(wrong);
                return None;
            }
        };
        // Who may read the user's own secrets is up to who answers the hosts, whatever the store.
        fields.take_entry("grants");
        let read = match name.as_str() {
            "vault" => Self::Vault(Vault::read(&mut fields, root, out)),
            "aws-secretsmanager" => Self::Aws(Aws::read(&mut fields, out)),
            _ => Self::File(File::read(&mut fields, root, out)),
        };
        fields.finish(out);
        (out.0.len() == before).then_some(read)
    }
}

fn unknown(name: &str, kind: &Node) -> Diagnostic {
    if PLANNED.contains(&name) {
        return Diagnostic::error(kind.span, format!("the store '{name}' is not there yet"))
            .hint(format!("one of {}", KINDS.join(", ")));
    }
    let wrong = Diagnostic::error(kind.span, format!("unknown store '{name}'"));
    match suggest(name, KINDS) {
        Some(hint) => wrong.hint(hint),
        None => wrong.hint(format!("one of {}", KINDS.join(", "))),
    }
}

impl File {
    fn read(fields: &mut Fields<'_>, root: &Path, out: &mut Diagnostics) -> Self {
        let mut settings = Self {
            path: path(fields, "path", root, out),
            identity: path(fields, "identity", root, out),
            ..Self::default()
        };
        if let Some(node) = fields.take("recipients") {
            settings.recipients = texts(node, out);
            let wrong = settings.recipients.iter().find(|r| !r.starts_with("age1"));
            if let Some(wrong) = wrong {
                out.push(
                    Diagnostic::error(node.span, format!("'{wrong}' is no age recipient"))
                        .hint("a public key as `age-keygen -y` prints it: age1…"),
                );
            }
        }
        if let Some(time) = fields.take("lock_timeout").and_then(|n| seconds(n, "lock_timeout", true, out)) {
            settings.lock_timeout = time;
        }
        settings
    }
}

impl Vault {
    fn read(fields: &mut Fields<'_>, root: &Path, out: &mut Diagnostics) -> Self {
        let other_consul = fields.take("other_consul").is_some_and(|node| {
            let told = node.boolean();
            told.map_err(|wrong| out.push(wrong)).unwrap_or_default()
        });
        let address = fields.take("address").and_then(|node| {
            let told = checked_address(&text(node, out)?, other_consul, node.span);
            told.map_err(|wrong| out.push(wrong)).ok()
        });
        Self {
            address,
            mount: place(fields, "mount", "secret", out),
            prefix: place(fields, "prefix", "rollcall", out),
            namespace: fields.take("namespace").and_then(|n| text(n, out)),
            ca_file: path(fields, "ca_file", root, out),
            other_consul,
            auth: VaultAuth::read(fields, root, out),
            timeout: fields.take("timeout").and_then(|n| seconds(n, "timeout", false, out)).unwrap_or(TIMEOUT),
            patience: fields.take("patience").and_then(|n| seconds(n, "patience", true, out)).unwrap_or(PATIENCE),
        }
    }
}

impl VaultAuth {
    fn read(fields: &mut Fields<'_>, root: &Path, out: &mut Diagnostics) -> Self {
        if let Some((key, _)) = fields.take_entry("token") {
            out.push(
                Diagnostic::error(key.span, "a token does not belong into the project's file")
                    .hint("'token_file' names a file with it; without one it comes from VAULT_TOKEN"),
            );
        }
        let token = path(fields, "token_file", root, out);
        let Some(node) = fields.take("approle") else { return token.map_or(Self::Environment, Self::TokenFile) };
        if token.is_some() {
            out.push(Diagnostic::error(node.span, "'token_file' and 'approle' are two ways to log in: choose one"));
        }
        let mut role = match Fields::new("approle section", node) {
            Ok(role) => role,
            Err(wrong) => {
                out.push(wrong);
                return Self::Environment;
            }
        };
        let mut file = |key: &'static str| {
            let node = role.require(key).map_err(|wrong| out.push(wrong)).ok();
            node.and_then(|n| text(n, out)).map(|p| resolve(root, &p)).unwrap_or_default()
        };
        let (role_id_file, secret_id_file) = (file("role_id_file"), file("secret_id_file"));
        let mount = place(&mut role, "mount", "approle", out);
        role.finish(out);
        Self::AppRole { mount, role_id_file, secret_id_file }
    }
}

impl Aws {
    fn read(fields: &mut Fields<'_>, out: &mut Diagnostics) -> Self {
        let mut word = |key: &'static str| fields.take(key).and_then(|n| text(n, out));
        let (region, profile, kms_key) = (word("region"), word("profile"), word("kms_key"));
        let endpoint = fields.take("endpoint").and_then(|node| {
            let told = check_address(&text(node, out)?);
            told.map_err(|why| out.push(Diagnostic::error(node.span, why))).ok()
        });
        let recovery_days = match fields.take("recovery_days").map(|node| (node, &node.kind)) {
            None => 30,
            Some((_, Kind::Int(days))) if *days == 0 || (7..=30).contains(days) => *days,
            Some((node, _)) => {
                out.push(Diagnostic::error(node.span, "'recovery_days' must be from 7 to 30, or 0 for none"));
                30
            }
        };
        Self {
            region,
            profile,
            endpoint,
            prefix: place(fields, "prefix", "rollcall", out),
            kms_key,
            recovery_days,
            timeout: fields.take("timeout").and_then(|n| seconds(n, "timeout", false, out)).unwrap_or(TIMEOUT),
            patience: fields.take("patience").and_then(|n| seconds(n, "patience", true, out)).unwrap_or(PATIENCE),
        }
    }
}

fn path(fields: &mut Fields<'_>, key: &'static str, root: &Path, out: &mut Diagnostics) -> Option<PathBuf> {
    fields.take(key).and_then(|n| text(n, out)).map(|p| resolve(root, &p))
}

/// The address of a server, without a slash at its end. In the clear secrets go to this machine only.
fn check_address(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("'{text}' is no address of a server: {e}"))?;
    let host = url.host_str().unwrap_or_default();
    let is_loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if is_loopback => {}
        "http" => return Err(format!("'{text}' would carry secrets over the network in the clear")),
        _ => return Err(format!("'{text}' is no address of a server")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("the address of {host} has more in it than scheme, host, port and path"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// An address of Vault's, from the settings or from the environment.
pub(crate) fn checked_address(text: &str, other_consul: bool, span: Span) -> Result<String, Diagnostic> {
    let address = check_address(text).map_err(|why| Diagnostic::error(span, why).hint("https://HOST:8200"))?;
    let named = check_name(&address, other_consul).map_err(|why| Diagnostic::error(span, why).hint(ANOTHER_WAY));
    named.map(|()| address)
}

/// What to do about an address that leads through the cluster's Consul.
const ANOTHER_WAY: &str = "an address that is found without Consul; or, where the name is one of another Consul: \
                           `other_consul: true` of the store";

/// A name of Consul's: who asks for it needs the cluster that the store is there to bring back.
fn check_name(address: &str, other_consul: bool) -> Result<(), String> {
    let url = reqwest::Url::parse(address).ok();
    let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default().trim_end_matches('.');
    if other_consul || !host.to_ascii_lowercase().ends_with(".consul") {
        return Ok(());
    }
    Err(format!("'{host}' is a name of Consul's: the store of a cluster must be found without that cluster"))
}

/// Parts between slashes that need no escapes in any store's names.
fn place(fields: &mut Fields<'_>, key: &'static str, default: &str, out: &mut Diagnostics) -> String {
    let Some(node) = fields.take(key) else { return default.to_owned() };
    let Some(text) = text(node, out) else { return default.to_owned() };
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain);
    if !text.split('/').all(plain) {
        out.push(
            Diagnostic::error(node.span, format!("'{key}' cannot be '{text}'"))
                .hint("letters, digits, '-', '_' and '.', in parts between slashes"),
        );
    }
    text
}

/// What may stand in a part of a path without an escape.
pub(crate) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diag::Sources, project::Project, yaml};

    fn read(store: &str) -> Result<Settings, String> {
        let sources = Sources::default();
        let file = sources.add("rollcall.yaml", format!("store: {store}\n"));
        let node = yaml::parse(&sources, file).map_err(|d| sources.render(&d))?;
        let shown = |wrong: &Diagnostics| wrong.0.iter().map(|d| sources.render(d)).collect::<String>();
        let project = Project::parse(&node, Path::new("/p"), Path::new("/p/rollcall.yaml")).map_err(|w| shown(&w))?;
        let mut out = Diagnostics::default();
        project.store.and_then(|s| s.read(Path::new("/p"), &mut out)).ok_or_else(|| shown(&out))
    }

    #[test]
    fn each_store_reads_its_own() {
        assert_eq!(read("file").unwrap(), Settings::File(File::default()));
        let file = read("{type: file, path: s/x.age, identity: ~/id, recipients: age1x, lock_timeout: 2}").unwrap();
        let Settings::File(file) = file else { panic!("{file:?}") };
        assert_eq!(file.path.unwrap(), Path::new("/p/s/x.age"));
        assert!(file.identity.unwrap().is_absolute());
        assert_eq!((file.recipients.len(), file.lock_timeout), (1, Duration::from_secs(2)));
        let vault = read(
            "{type: vault, address: 'https://v:8200/', mount: kv/ops, ca_file: ca.pem, timeout: 5, patience: 0,\n  \
             approle: {role_id_file: r, secret_id_file: s}}",
        );
        let Settings::Vault(vault) = vault.unwrap() else { panic!("another store") };
        assert_eq!(
            (vault.address.as_deref(), vault.mount.as_str(), vault.prefix.as_str()),
            (Some("https://v:8200"), "kv/ops", "rollcall")
        );
        assert!(!vault.other_consul);
        for address in ["https://vault.service.consul:8200", "https://consul:8200"] {
            let other = read(&format!("{{type: vault, other_consul: true, address: '{address}'}}")).unwrap();
            assert!(
                matches!(other, Settings::Vault(vault) if vault.other_consul && vault.address.as_deref() == Some(address))
            );
        }
        assert!(read("{type: vault, address: 'https://consul.example.com'}").is_ok());
        let (role_id_file, secret_id_file) = (PathBuf::from("/p/r"), PathBuf::from("/p/s"));
        assert_eq!(vault.auth, VaultAuth::AppRole { mount: "approle".into(), role_id_file, secret_id_file });
        let Settings::Aws(aws) = read("{type: aws-secretsmanager, region: eu-west-1, recovery_days: 0}").unwrap()
        else {
            panic!("another store")
        };
        assert_eq!((aws.region.as_deref(), aws.recovery_days), (Some("eu-west-1"), 0));
    }

    #[test]
    fn mistakes_are_told_when_the_project_is_loaded() {
        for (store, told) in [
            ("valt", "did you mean 'vault'"),
            ("consul-kv", "the store 'consul-kv' is not there yet"),
            ("aws-ssm", "one of file, vault, aws-secretsmanager"),
            ("{type: file, pth: x}", "unknown key 'pth' in a store section"),
            ("{type: file, pth: x}", "did you mean 'path'"),
            ("{type: file, recipients: [ssh-ed25519 AAAA]}", "is no age recipient"),
            ("{type: vault, address: 'vault:8200'}", "is no address of a server"),
            ("{type: vault, address: 'http://10.0.0.1:8200'}", "in the clear"),
            ("{type: vault, address: 'https://user:pw@v'}", "more in it than"),
            ("{type: aws-secretsmanager, endpoint: 'http://x'}", "in the clear"),
            ("{type: vault, token: s.123}", "does not belong into the project's file"),
            ("{type: vault, token_file: a, approle: {role_id_file: r, secret_id_file: s}}", "choose one"),
            ("{type: vault, approle: {role_id_file: r}}", "approle section needs 'secret_id_file'"),
            ("{type: vault, prefix: a//b}", "'prefix' cannot be 'a//b'"),
            (
                "{type: vault, address: 'https://active.vault.service.Consul.:8200'}",
                "must be found without that cluster",
            ),
            ("{type: vault, address: 'https://vault.service.consul:8200'}", "`other_consul: true` of the store"),
            ("{type: vault, other_consul: perhaps}", "expected"),
            ("{type: vault, mount: ../sys}", "'mount' cannot be"),
            ("{type: aws-secretsmanager, recovery_days: 3}", "from 7 to 30"),
            ("{type: aws-secretsmanager, bucket: x}", "unknown key 'bucket'"),
        ] {
            let wrong = read(store).unwrap_err();
            assert!(wrong.contains(told), "{store}: {wrong}");
            assert!(wrong.contains("rollcall.yaml:1:"), "{store}: {wrong}");
        }
    }
}
