//! What a run says about SSH as a whole, and about one host.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::hostkeys::ConsoleSource;
use super::jumps::Hop;

/// What to do with the key of a host that no known_hosts file names.
/// A key that differs from a recorded one is refused under both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostKeyPolicy {
    /// Refuse it, and say how to learn it.
    #[default]
    Strict,
    /// Record it and go on.
    AcceptNew,
}

/// A text that no `Debug` shows and that is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        // Keeps the optimiser from dropping the writes above.
        std::hint::black_box(&bytes);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Asks a person for the passphrase of the key file that is given. `None`: there is no terminal,
/// or the person gave up. Called at most once per key and run, from a thread that may block.
pub type PassphrasePrompt = Arc<dyn Fn(&std::path::Path) -> Option<Secret> + Send + Sync>;

/// The question on the terminal of this process; without one, nobody is asked.
pub fn ask_on_terminal() -> PassphrasePrompt {
    Arc::new(|path| rpassword::prompt_password(format!("Passphrase for {}: ", path.display())).ok().map(Secret::new))
}

/// SSH settings of a run: `ssh:` of `rollcall.yaml`, overlaid with the command line.
#[derive(Clone)]
pub struct Settings {
    /// known_hosts files; the first one is written under [`HostKeyPolicy::AcceptNew`].
    pub known_hosts: Vec<PathBuf>,
    pub accept: HostKeyPolicy,
    /// Key files offered to every host that names none; empty: `~/.ssh/id_{ed25519,ecdsa,rsa}`.
    pub identity_files: Vec<PathBuf>,
    /// Socket of ssh-agent, normally `$SSH_AUTH_SOCK`.
    pub agent_socket: Option<PathBuf>,
    /// The user's ssh configuration. A file that is not there counts as empty.
    pub ssh_config: Option<PathBuf>,
    /// Limit of each stage of connecting (TCP, key exchange, authentication).
    pub connect_timeout: Duration,
    /// A probe goes out after this much silence; three without an answer end the connection.
    pub keepalive: Duration,
    /// Key exchange algorithms by name, most preferred first; `None`: ours.
    pub kex: Option<Vec<String>>,
    /// Folder of the host keys pinned to EC2 instances, one file per instance id.
    pub pins: PathBuf,
    /// Reads the console of an EC2 instance at first contact.
    pub console: Option<Arc<dyn ConsoleSource>>,
    /// How long the console may lag before first contact fails.
    pub console_wait: Duration,
    /// EC2 instances by address: a jump host that is one of them is checked by the key pinned to its id.
    pub instances: HashMap<String, String>,
    pub passphrase: Option<PassphrasePrompt>,
    /// The user's home: `~` in paths and the default key files.
    pub home: PathBuf,
    /// Who logs in where neither inventory nor ssh configuration says.
    pub local_user: String,
}

impl Settings {
    /// The defaults for a user: `~/.ssh`, the system's known hosts, no agent, strict host keys.
    /// `state` is the program's XDG state folder.
    pub fn for_user(home: impl Into<PathBuf>, state: impl Into<PathBuf>, user: &str) -> Self {
        let home = home.into();
        Self {
            known_hosts: vec![
                home.join(".ssh/known_hosts"),
                home.join(".ssh/known_hosts2"),
                "/etc/ssh/ssh_known_hosts".into(),
            ],
            accept: HostKeyPolicy::Strict,
            identity_files: Vec::new(),
            agent_socket: None,
            ssh_config: Some(home.join(".ssh/config")),
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(15),
            kex: None,
            pins: state.into().join("known_hosts.d"),
            console: None,
            console_wait: Duration::from_mins(3),
            instances: HashMap::new(),
            passphrase: None,
            home,
            local_user: user.to_owned(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("known_hosts", &self.known_hosts)
            .field("accept", &self.accept)
            .field("identity_files", &self.identity_files)
            .field("agent_socket", &self.agent_socket)
            .field("ssh_config", &self.ssh_config)
            .field("kex", &self.kex)
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

/// What the inventory says about a host; the rest comes from the ssh configuration.
#[derive(Debug, Clone, Default)]
pub struct TargetSpec {
    /// The host's name in the inventory.
    pub name: String,
    /// `ansible_host`. As in Ansible, it is what `Host` lines of the ssh configuration match;
    /// without it, the name is.
    pub host: Option<String>,
    /// `ansible_port`.
    pub port: Option<u16>,
    /// `ansible_user`, `-u`.
    pub user: Option<String>,
    /// `ansible_ssh_private_key_file`, `--private-key`.
    pub identity_file: Option<PathBuf>,
    /// From `ansible_ssh_common_args`; `Some` of an empty list: no jump host, whatever the
    /// ssh configuration says.
    pub jumps: Option<Vec<Hop>>,
    /// The EC2 instance id: its host keys are pinned to it instead of to an address.
    pub instance_id: Option<String>,
}

/// A host with everything that a connection needs.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Name in messages.
    pub name: String,
    /// Address or DNS name.
    pub host: String,
    pub port: u16,
    pub user: String,
    /// Offered first; with it the default key files are not offered.
    pub identity_files: Vec<PathBuf>,
    /// Jump hosts, the nearest to us first.
    pub jumps: Vec<Hop>,
    pub instance_id: Option<String>,
    /// Looked up in known_hosts instead of host and port.
    pub host_key_alias: Option<String>,
    /// Overrides [`Settings::known_hosts`].
    pub known_hosts: Option<Vec<PathBuf>>,
    /// Overrides [`Settings::accept`].
    pub accept: Option<HostKeyPolicy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(secret.expose(), "hunter2");
    }
}
