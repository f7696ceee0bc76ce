//! What every verb starts from: the project, the inventory, the SSH settings.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rollcall_engine::{
    diag::{Diagnostic, Diagnostics, Severity, Sources},
    inventory::{self, Inventory, SourceSpec, connection::Way as ConnectionWay},
    project::Project,
    secrets::ownership::node_part,
    vars::Vars,
};
use serde_json::{Value, json};

use crate::{
    lookups,
    options::{Connect, Hosts},
    run::{HostSpec, remote::Way},
    ssh::{self, Elevation, HostKeyPolicy, Secret, Settings, TargetSpec, Transport},
};

/// Wrong input: shown with its places, and the program ends with exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.0.iter().map(|d| d.message.clone()).collect::<Vec<_>>().join("; "))]
pub(crate) struct Wrong(pub(crate) Diagnostics);

impl From<Diagnostics> for Wrong {
    fn from(diagnostics: Diagnostics) -> Self {
        Self(diagnostics)
    }
}

impl From<Diagnostic> for Wrong {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(diagnostic.into())
    }
}

/// What a play says about logging in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) port: Option<u16>,
}

/// The project and what the command line adds to it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) sources: Arc<Sources>,
    pub(crate) project: Project,
    pub(crate) extra: Arc<Vars>,
}

impl Context {
    /// Reads rollcall.yaml and `-e`.
    pub(crate) fn new(sources: Arc<Sources>, extra: &[String]) -> Result<Self, Wrong> {
        let project = Project::find(&sources, &PathBuf::from("."))?;
        let extra = Arc::new(inventory::extra::read(extra, &sources)?);
        Ok(Self { sources, project, extra })
    }

    /// Loads the inventory: `-i` wins over the project's.
    pub(crate) async fn inventory(&self, hosts: &Hosts, playbook_dirs: Vec<PathBuf>) -> anyhow::Result<Inventory> {
        let specs: Vec<SourceSpec> = if hosts.inventory.is_empty() {
            self.project.inventory.iter().cloned().map(SourceSpec::Path).collect()
        } else {
            hosts.inventory.iter().map(|text| SourceSpec::parse(text)).collect()
        };
        let options = inventory::Options {
            sources: Arc::clone(&self.sources),
            playbook_dirs,
            extra: Arc::clone(&self.extra),
            cache_dir: dirs().map(|d| d.cache),
            refresh_cache: hosts.refresh_cache,
        };
        let inventory = inventory::load(&specs, &options).await.map_err(Wrong)?;
        for cache in &inventory.caches {
            let age = inventory::cache::age_text(cache.age);
            let text = format!("{} is answered from the cache ({age} old)", cache.source.display());
            eprint_line(&text);
        }
        self.warn(&inventory.warnings);
        Ok(inventory)
    }

    /// Warnings go to standard error, where no data is.
    pub(crate) fn warn(&self, warnings: &[Diagnostic]) {
        for warning in warnings.iter().filter(|w| w.severity == Severity::Warning) {
            eprint_line(self.sources.render(warning).trim_end());
        }
    }

    /// SSH as the project and the options want it.
    pub(crate) fn transport(&self, connect: &Connect, inventory: &Inventory) -> anyhow::Result<Arc<Transport>> {
        let dirs = dirs().context("there is no home folder")?;
        let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "root".into());
        let mut settings = Settings::for_user(&dirs.home, &dirs.state, &user);
        let ssh = &self.project.ssh;
        if !ssh.known_hosts.is_empty() {
            settings.known_hosts.clone_from(&ssh.known_hosts);
        }
        settings.identity_files.clone_from(&ssh.identity_file);
        settings.agent_socket = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
        if ssh.config.is_some() {
            settings.ssh_config.clone_from(&ssh.config);
        }
        if !ssh.kex.is_empty() {
            settings.kex = Some(ssh.kex.clone());
        }
        if connect.accept_new || ssh.host_keys.as_deref() == Some("accept-new") {
            settings.accept = HostKeyPolicy::AcceptNew;
        }
        settings.connect_timeout = ssh.connect_timeout.unwrap_or(settings.connect_timeout);
        settings.keepalive = ssh.keepalive.unwrap_or(settings.keepalive);
        settings.console_wait = ssh.console_wait.unwrap_or(settings.console_wait);
        if let Some(seconds) = connect.timeout {
            settings.connect_timeout = Duration::from_secs(seconds.max(1));
        }
        settings.passphrase = Some(ssh::ask_on_terminal());
        settings.instances = instances(inventory);
        settings.console = Some(crate::console::source(inventory));
        Ok(Arc::new(Transport::new(settings)?))
    }

    /// The one host that a pattern and the limit name; `shown` says what is of one host only.
    pub(crate) fn one_host(
        inventory: &Inventory,
        pattern: &str,
        limit: Option<&str>,
        shown: &str,
    ) -> anyhow::Result<String> {
        let hosts = inventory.select(pattern, limit).map_err(Wrong::from)?;
        let [host] = &hosts[..] else { bail!("'{pattern}' are {} hosts; {shown} of one", hosts.len()) };
        Ok(host.name.clone())
    }

    /// How to get at every host. A host that cannot be described is told when the run would need it.
    pub(crate) fn hosts(
        &self,
        inventory: &Inventory,
        names: &[String],
        connect: &Connect,
        logins: &HashMap<String, Login>,
        transport: &Transport,
        password: Option<&Secret>,
    ) -> Vec<HostSpec> {
        let clusters = Clusters::new(self, inventory);
        let mut told = HashSet::new();
        let mut nodes: HashMap<String, Vec<&str>> = HashMap::new();
        for host in inventory.hosts() {
            nodes.entry(node_part(&host.name)).or_default().push(&host.name);
        }
        names
            .iter()
            .filter_map(|name| inventory.host(name))
            .map(|host| {
                let scope = inventory.scope(host);
                let way = inventory.connection(host, &scope).map_err(|d| self.sources.render(&d)).and_then(|c| {
                    let login = c.user.clone();
                    let login_of_play = logins.get(&host.name).cloned().unwrap_or_default();
                    self.way(&host.name, c, connect, login_of_play, transport, password).map(|way| (way, login))
                });
                let login_user = match &way {
                    Ok((Way::Ssh { target, .. }, _)) => target.user.clone(),
                    Ok((Way::Local { .. }, _)) | Err(_) => local_user(),
                };
                let (vars, mut wrong) = lookups::settle(inventory.host_vars(host), &scope);
                // A file for all hosts is wrong once.
                wrong.retain(|finding| told.insert(finding.clone()));
                for finding in wrong {
                    self.warn(&[Diagnostic { severity: Severity::Warning, ..finding }]);
                }
                HostSpec {
                    name: host.name.clone(),
                    way: way.map(|(way, _)| way),
                    login_user,
                    vars,
                    group_names: inventory.group_names(host),
                    cluster: clusters.seen_by(&host.name),
                    ec2: host.instance.is_some(),
                    twin: nodes
                        .get(&node_part(&host.name))
                        .and_then(|same| same.iter().find(|name| **name != host.name))
                        .map(|name| (*name).to_owned()),
                }
            })
            .collect()
    }

    fn way(
        &self,
        name: &str,
        connection: inventory::Connection,
        connect: &Connect,
        login: Login,
        transport: &Transport,
        password: Option<&Secret>,
    ) -> Result<Way, String> {
        if connection.way == ConnectionWay::Local {
            return Ok(Way::Local { elevated: connect.become_root || connection.r#become == Some(true) });
        }
        let jumps = match (ssh::jumps_from_ssh_args(&connection.ssh_args)?, self.project.ssh.jump.is_empty()) {
            (None, false) => ssh::jumps_from_ssh_args(&format!("-J {}", self.project.ssh.jump.join(",")))?,
            (jumps, _) => jumps,
        };
        let target = transport
            .target(&TargetSpec {
                name: name.to_owned(),
                host: Some(connection.host),
                port: connection.port.or(login.port).or(self.project.ssh.port),
                user: connection
                    .user
                    .or(login.user)
                    .or_else(|| connect.user.clone())
                    .or_else(|| self.project.ssh.user.clone()),
                identity_file: connection.identity_file.or_else(|| connect.private_key.clone()),
                jumps,
                instance_id: connection.instance_id,
            })
            .map_err(|e| e.to_string())?;
        if let Some(password) = &connection.become_password {
            never_tell(password);
        }
        let password = connection.become_password.map(Secret::new).or_else(|| password.cloned());
        // The agent always runs as root: it becomes other users, and back, task by task.
        let elevation = Elevation::needed(&target.user, true, password);
        Ok(Way::Ssh { target: Box::new(target), elevation })
    }
}

/// `cluster`: what our own roles know of the cluster, filled from groups.
struct Clusters {
    name: Value,
    members: HashMap<String, Value>,
    lists: serde_json::Map<String, Value>,
}

/// Groups whose members roles may ask for.
const CLUSTER_GROUPS: [&str; 4] = ["consul_servers", "consul_clients", "nomad_servers", "nomad_clients"];

impl Clusters {
    fn new(context: &Context, inventory: &Inventory) -> Self {
        let mut members = HashMap::new();
        for host in inventory.hosts() {
            let scope = inventory.scope(host);
            let text = |name: &str| {
                let var = scope.get(name)?;
                match rollcall_engine::template::eval(name, var.origin, &scope).ok()? {
                    Value::String(text) => Some(text),
                    _ => None,
                }
            };
            let address = inventory.connection(host, &scope).map_or_else(|_| host.name.clone(), |c| c.host);
            let zone = scope
                .get("placement")
                .and_then(|v| rollcall_engine::template::eval("placement.availability_zone", v.origin, &scope).ok());
            let member = json!({
                "name": host.name,
                "address": text("private_ip_address").unwrap_or(address),
                "id": host.instance.as_ref().map(|i| i.id.clone()),
                "zone": zone,
            });
            members.insert(host.name.clone(), member);
        }
        let mut lists = serde_json::Map::new();
        for group in CLUSTER_GROUPS {
            let hosts = inventory.group(group).map(|g| inventory.group_hosts(g)).unwrap_or_default();
            let list: Vec<Value> = hosts.iter().filter_map(|h| members.get(&h.name).cloned()).collect();
            lists.insert(group.to_owned(), Value::Array(list));
        }
        let name = json!(context.project.cluster);
        Self { name, members, lists }
    }

    fn seen_by(&self, host: &str) -> Value {
        let mut cluster = serde_json::Map::new();
        cluster.insert("name".into(), self.name.clone());
        cluster.insert("self".into(), self.members.get(host).cloned().unwrap_or(Value::Null));
        cluster.extend(self.lists.clone());
        Value::Object(cluster)
    }
}

/// The program's folders, after XDG.
pub(crate) struct Dirs {
    pub(crate) home: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) state: PathBuf,
}

/// `None` where there is no home.
pub(crate) fn dirs() -> Option<Dirs> {
    use etcetera::BaseStrategy as _;
    let base = etcetera::base_strategy::Xdg::new().ok()?;
    Some(Dirs {
        home: base.home_dir().to_path_buf(),
        cache: base.cache_dir().join("rollcall"),
        state: base.state_dir()?.join("rollcall"),
    })
}

/// The user who runs this program.
pub(crate) fn local_user() -> String {
    use rollcall_engine::host::Read as _;
    let uid = nix::unistd::geteuid().as_raw();
    let users = rollcall_engine::host::real::Real::new().users().unwrap_or_default();
    users.into_iter().find(|u| u.uid == Some(uid)).map_or_else(|| uid.to_string(), |u| u.name)
}

/// `-K`: asked once, before anything else happens.
pub(crate) fn ask_become_password() -> anyhow::Result<Secret> {
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        let diagnostic =
            Diagnostic::error(rollcall_engine::diag::Span::NONE, "-K needs a terminal to ask for the password");
        return Err(Wrong::from(diagnostic.hint("set ansible_become_password instead")).into());
    }
    let password = rpassword::prompt_password("BECOME password: ").context("cannot ask for the password")?;
    never_tell(&password);
    Ok(Secret::new(password))
}

/// No output shows this password from now on.
fn never_tell(password: &str) {
    rollcall_engine::secrets::redact::register(&rollcall_engine::secrets::Secret::new(password));
}

/// EC2 instances by every address under which a jump host may be named.
fn instances(inventory: &Inventory) -> HashMap<String, String> {
    let mut out = HashMap::new();
    for host in inventory.hosts() {
        let Some(instance) = &host.instance else { continue };
        let scope = inventory.scope(host);
        for name in ["ansible_host", "private_ip_address", "public_ip_address", "private_dns_name", "public_dns_name"] {
            let Some(var) = scope.get(name) else { continue };
            if let Ok(Value::String(address)) = rollcall_engine::template::eval(name, var.origin, &scope)
                && !address.is_empty()
            {
                out.insert(address, instance.id.clone());
            }
        }
        out.insert(host.name.clone(), instance.id.clone());
    }
    out
}

#[expect(clippy::print_stderr, reason = "the place for notes that are no data")]
pub(crate) fn eprint_line(text: &str) {
    eprintln!("{}", rollcall_engine::secrets::redact::text(text));
}
