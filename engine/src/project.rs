//! The project file `rollcall.yaml`: where things are, and how hosts are reached.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    diag::{Diagnostic, Diagnostics, Sources},
    node::{Fields, Kind, Node},
    secrets::{
        issuer::Own,
        settings::{KINDS, Settings},
    },
    yaml,
};

/// The name of the file.
pub const FILE: &str = "rollcall.yaml";

/// A project. Paths are ready to be used: relative ones were taken relative to the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Project {
    /// The folder of the file, or the working directory.
    pub root: PathBuf,
    /// The file; `None`: there is none, and Ansible's defaults hold.
    pub file: Option<PathBuf>,
    /// Inventory files and folders that are read when no `-i` is given.
    pub inventory: Vec<PathBuf>,
    /// Folders in which a playbook's bare name is looked for.
    pub playbooks: Vec<PathBuf>,
    /// Folders of roles.
    pub roles: Vec<PathBuf>,
    /// The name of the cluster.
    pub cluster: Option<String>,
    /// How hosts are reached.
    pub ssh: Ssh,
    /// Hosts that are connected at once.
    pub forks: Option<usize>,
    /// Where secrets are.
    pub store: Option<Store>,
}

/// `ssh:`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ssh {
    /// The login user.
    pub user: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Private keys.
    pub identity_file: Vec<PathBuf>,
    /// Files of known hosts.
    pub known_hosts: Vec<PathBuf>,
    /// Jump hosts, outermost first: `user@host:port`.
    pub jump: Vec<String>,
    /// Key exchanges, the preferred one first.
    pub kex: Vec<String>,
    /// An OpenSSH client configuration to read.
    pub config: Option<PathBuf>,
    /// `strict` or `accept-new`.
    pub host_keys: Option<String>,
    /// For each stage of connecting.
    pub connect_timeout: Option<Duration>,
    /// Silence before a probe; zero switches it off.
    pub keepalive: Option<Duration>,
    /// How long an EC2 console may lag at first contact.
    pub console_wait: Option<Duration>,
}

/// `store:`.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// Which one, as written.
    pub kind: Node,
    /// Its settings, as written, without `type`.
    pub settings: Node,
}

impl Project {
    /// Looks for `rollcall.yaml` from a folder upwards and reads it. Without one, Ansible's defaults: `./inventory`,
    /// `./roles`.
    pub fn find(sources: &Sources, start: &Path) -> Result<Self, Diagnostics> {
        let absolute = std::path::absolute(start).unwrap_or_else(|_| start.to_path_buf());
        match absolute.ancestors().map(|dir| dir.join(FILE)).find(|p| p.is_file()) {
            Some(file) => Self::read(sources, &file),
            None => Ok(Self::without_file(start)),
        }
    }

    /// A folder without the file.
    pub fn without_file(root: &Path) -> Self {
        let inventory = ["inventory", "inventory.yaml", "inventory.yml"].iter().map(|n| root.join(n));
        Self {
            root: root.to_path_buf(),
            inventory: inventory.filter(|p| p.exists()).take(1).collect(),
            playbooks: vec![root.join("playbooks")],
            roles: vec![root.join("roles")],
            ..Self::default()
        }
    }

    /// Reads a project file.
    pub fn read(sources: &Sources, path: &Path) -> Result<Self, Diagnostics> {
        let shown = crate::playbook::shown(path);
        let file = match sources.read(&shown) {
            Ok(file) => file,
            Err(_) => sources.read(path)?,
        };
        let node = yaml::parse(sources, file)?;
        let root = shown.parent().map(Path::to_path_buf).unwrap_or_default();
        Self::parse(&node, &root, &shown)
    }

    /// Reads the tree of a project file whose folder is `root`.
    pub fn parse(node: &Node, root: &Path, file: &Path) -> Result<Self, Diagnostics> {
        let mut project = Self { file: Some(file.to_path_buf()), ..Self::without_file(root) };
        if node.is_null() {
            return Ok(project);
        }
        let mut out = Diagnostics::default();
        let mut fields = Fields::new("project file", node)?;
        let paths = |fields: &mut Fields<'_>, key: &'static str, to: &mut Vec<PathBuf>, out: &mut Diagnostics| {
            if let Some(value) = fields.take(key) {
                *to = texts(value, out).iter().map(|p| resolve(root, p)).collect();
            }
        };
        paths(&mut fields, "inventory", &mut project.inventory, &mut out);
        paths(&mut fields, "playbooks", &mut project.playbooks, &mut out);
        paths(&mut fields, "roles", &mut project.roles, &mut out);
        project.cluster = fields.take("cluster").and_then(|n| text(n, &mut out));
        project.forks = fields.take("forks").and_then(|n| count(n, "forks", 10_000, &mut out));
        if let Some(value) = fields.take("ssh") {
            project.ssh = Ssh::parse(value, root, &mut out);
        }
        project.store = fields.take("store").and_then(|n| Store::parse(n, root, &mut out));
        fields.finish(&mut out);
        if out.has_errors() { Err(out) } else { Ok(project) }
    }
}

impl Ssh {
    fn parse(node: &Node, root: &Path, out: &mut Diagnostics) -> Self {
        let mut ssh = Self::default();
        let mut fields = match Fields::new("ssh section", node) {
            Ok(fields) => fields,
            Err(wrong) => {
                out.push(wrong);
                return ssh;
            }
        };
        let mut many =
            |key: &'static str, out: &mut Diagnostics| fields.take(key).map(|n| texts(n, out)).unwrap_or_default();
        ssh.identity_file = many("identity_file", out).iter().map(|p| resolve(root, p)).collect();
        ssh.known_hosts = many("known_hosts", out).iter().map(|p| resolve(root, p)).collect();
        let split = |list: Vec<String>| list.iter().flat_map(|t| t.split(',')).map(|t| t.trim().to_owned()).collect();
        ssh.jump = split(many("jump", out));
        ssh.kex = split(many("kex", out));
        ssh.user = fields.take("user").and_then(|n| text(n, out));
        ssh.port = fields.take("port").and_then(|n| count(n, "port", 65_535, out)).and_then(|n| u16::try_from(n).ok());
        ssh.config = fields.take("config").and_then(|n| text(n, out)).map(|p| resolve(root, &p));
        ssh.connect_timeout = fields.take("connect_timeout").and_then(|n| seconds(n, "connect_timeout", false, out));
        ssh.keepalive = fields.take("keepalive").and_then(|n| seconds(n, "keepalive", true, out));
        ssh.console_wait = fields.take("console_wait").and_then(|n| seconds(n, "console_wait", true, out));
        if let Some(node) = fields.take("host_keys") {
            const KNOWN: [&str; 2] = ["strict", "accept-new"];
            match text(node, out) {
                Some(word) if KNOWN.contains(&word.as_str()) => ssh.host_keys = Some(word),
                Some(word) => {
                    out.push(
                        Diagnostic::error(node.span, format!("'host_keys' cannot be '{word}'")).nearest(&word, KNOWN),
                    );
                }
                None => {}
            }
        }
        fields.finish(out);
        ssh
    }
}

impl Store {
    /// Takes the section apart; its settings are right, or told.
    fn parse(node: &Node, root: &Path, out: &mut Diagnostics) -> Option<Self> {
        let (kind, settings) = match &node.kind {
            Kind::Str(_) => (Some(node), Node { span: node.span, kind: Kind::Map(Vec::new()) }),
            Kind::Map(entries) => {
                let rest = entries.iter().filter(|(k, _)| k.name != "type").cloned().collect();
                (node.get("type"), Node { span: node.span, kind: Kind::Map(rest) })
            }
            _ => {
                out.push(node.expected("the name of a store, or a mapping with 'type'"));
                return None;
            }
        };
        let Some(kind) = kind else {
            out.push(Diagnostic::error(node.span, "store needs 'type'").hint(format!("one of {}", KINDS.join(", "))));
            return None;
        };
        let store = Self { kind: kind.clone(), settings };
        let before = out.0.len();
        Own::read(&store, out);
        store.read(root, out).filter(|_| out.0.len() == before).map(|_| store)
    }

    /// The settings; relative paths start at `root`, the project's folder.
    pub fn read(&self, root: &Path, out: &mut Diagnostics) -> Option<Settings> {
        Settings::read(&self.kind, &self.settings, root, out)
    }
}

pub(crate) fn text(node: &Node, out: &mut Diagnostics) -> Option<String> {
    match node.scalar_text() {
        Ok(text) if !text.trim().is_empty() => Some(text),
        Ok(_) => {
            out.push(Diagnostic::error(node.span, "this is empty"));
            None
        }
        Err(wrong) => {
            out.push(wrong);
            None
        }
    }
}

pub(crate) fn texts(node: &Node, out: &mut Diagnostics) -> Vec<String> {
    node.one_or_many().into_iter().filter_map(|n| text(n, out)).collect()
}

fn count(node: &Node, key: &str, most: usize, out: &mut Diagnostics) -> Option<usize> {
    let number = match node.kind {
        Kind::Int(n) => usize::try_from(n).ok().filter(|n| (1..=most).contains(n)),
        _ => None,
    };
    if number.is_none() {
        out.push(Diagnostic::error(node.span, format!("'{key}' must be a whole number from 1 to {most}")));
    }
    number
}

/// Seconds, whole or not; zero only where it means something.
pub(crate) fn seconds(node: &Node, key: &str, zero: bool, out: &mut Diagnostics) -> Option<Duration> {
    let number = node.to_value().as_f64().filter(|n| if zero { *n >= 0.0 } else { *n > 0.0 });
    let time = number.and_then(|n| Duration::try_from_secs_f64(n).ok());
    if time.is_none() {
        let least = if zero { "zero or more" } else { "more than zero" };
        out.push(Diagnostic::error(node.span, format!("'{key}' must be a number of seconds, {least}")));
    }
    time
}

/// A path of the file: `~/` is the home folder, a relative one starts at the file.
pub(crate) fn resolve(root: &Path, path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => root.join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Project, String> {
        let sources = Sources::default();
        let file = sources.add("rollcall.yaml", text);
        let node = yaml::parse(&sources, file).map_err(|d| sources.render(&d))?;
        Project::parse(&node, Path::new("sub"), Path::new("sub/rollcall.yaml"))
            .map_err(|wrong| wrong.0.iter().map(|d| sources.render(d)).collect())
    }

    #[test]
    fn everything_is_read_and_paths_start_at_the_file() {
        let project = read(
            "inventory: [a.yaml, /b]\nplaybooks: plays\nroles: [mine, ../shared]\ncluster: prod\nforks: 50\n\
             ssh:\n  user: admin\n  port: 2222\n  identity_file: key\n  known_hosts: [kh]\n  jump: a,b\n  kex: [x, y]\n  config: ssh_config\n  host_keys: accept-new\n  connect_timeout: 2.5\n  keepalive: 0\n\
             store: {type: file, path: secrets}\n",
        )
        .unwrap();
        assert_eq!(project.inventory, [PathBuf::from("sub/a.yaml"), PathBuf::from("/b")]);
        assert_eq!(project.playbooks, [PathBuf::from("sub/plays")]);
        assert_eq!(project.roles, [PathBuf::from("sub/mine"), PathBuf::from("sub/../shared")]);
        assert_eq!((project.cluster.as_deref(), project.forks), (Some("prod"), Some(50)));
        assert_eq!((project.ssh.user.as_deref(), project.ssh.port), (Some("admin"), Some(2222)));
        assert_eq!(project.ssh.identity_file, [PathBuf::from("sub/key")]);
        assert_eq!((project.ssh.jump.len(), project.ssh.kex.len()), (2, 2));
        assert_eq!(project.ssh.host_keys.as_deref(), Some("accept-new"));
        assert_eq!(project.ssh.connect_timeout, Some(Duration::from_millis(2500)));
        assert_eq!((project.ssh.keepalive, project.ssh.console_wait), (Some(Duration::ZERO), None));
        assert!(read("ssh: {connect_timeout: 0}\n").is_err());
        assert!(read("ssh: {keepalive: soon}\n").is_err());
        let store = project.store.unwrap();
        assert_eq!(
            (store.kind.as_str(), store.settings.to_value()),
            (Some("file"), serde_json::json!({"path": "secrets"}))
        );
    }

    #[test]
    fn an_empty_file_leaves_the_defaults() {
        let project = read("").unwrap();
        assert_eq!(project.roles, [PathBuf::from("sub/roles")]);
        assert_eq!(project.playbooks, [PathBuf::from("sub/playbooks")]);
        assert!(project.inventory.is_empty());
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        assert_eq!(
            read("inventroy: x\n").unwrap_err(),
            "error: unknown key 'inventroy' in a project file\n  --> rollcall.yaml:1:1\n   |\n 1 | inventroy: x\n   | ^\n  hint: did you mean 'inventory'?\n"
        );
        let wrong =
            read("forks: many\nssh: {usr: x, host_keys: never}\nstore: {path: x}\nroles: [{a: b}]\n").unwrap_err();
        for part in [
            "'forks' must be a whole number",
            "did you mean 'user'",
            "'host_keys' cannot be 'never'",
            "store needs 'type'",
            "expected a string, found a mapping",
        ] {
            assert!(wrong.contains(part), "{part}: {wrong}");
        }
        assert!(read("store: valt\n").unwrap_err().contains("did you mean 'vault'"));
        assert!(read("- a\n").unwrap_err().contains("project file"));
    }

    #[test]
    fn the_file_is_found_upwards() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join(FILE), "cluster: up\n").unwrap();
        let found = Project::find(&Sources::default(), &dir.path().join("a/b")).unwrap();
        assert_eq!((found.cluster.as_deref(), found.root.as_path()), (Some("up"), dir.path()));
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::fs::create_dir(dir.path().join("inventory")).unwrap();
        let none = Project::find(&Sources::default(), dir.path()).unwrap();
        assert_eq!((none.file, none.inventory), (None, vec![dir.path().join("inventory")]));
    }
}
