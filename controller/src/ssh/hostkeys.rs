//! Decides whether a host's key is the right one.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use super::console::keys_from_console;
use super::error::ConnectError;
use super::known_hosts::{self, KnownHosts, Verdict, lookup_name};
use super::pins;
use super::public_key::PublicKey;
use super::settings::{HostKeyPolicy, Settings, Target};

/// Reads what an EC2 instance has written to its console.
pub trait ConsoleSource: Send + Sync {
    /// The text so far; `None` while the API has none yet. An error (no permission, no such
    /// instance) ends first contact at once.
    fn console<'a>(
        &'a self,
        instance_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>, String>> + Send + 'a>>;
}

/// Pauses between looks at a console that lags.
const CONSOLE_PAUSES: [u64; 4] = [2, 4, 8, 15];

/// Everything known about one host's keys, gathered before the connection so that the handshake
/// can ask for a kind of key that we can check.
pub(super) struct HostCheck {
    /// As known_hosts files it; for instances, the id.
    pub(super) name: String,
    names: Vec<String>,
    address: String,
    port: u16,
    known: Arc<RwLock<KnownHosts>>,
    policy: HostKeyPolicy,
    append_to: Option<PathBuf>,
    instance: Option<Instance>,
}

struct Instance {
    id: String,
    file: PathBuf,
    /// Known from an earlier connection.
    pinned: Option<KnownHosts>,
    /// Printed on the console; only looked at when nothing is pinned.
    console: Vec<PublicKey>,
}

impl HostCheck {
    /// Gathers what files, pins and, at first contact with an instance, its console say.
    pub(super) async fn prepare(
        settings: &Settings,
        target: &Target,
        known: Arc<RwLock<KnownHosts>>,
    ) -> Result<Self, ConnectError> {
        let names = match &target.host_key_alias {
            Some(alias) => vec![alias.to_ascii_lowercase()],
            None if target.port == 22 => vec![lookup_name(&target.host, 22)],
            None => vec![lookup_name(&target.host, target.port), lookup_name(&target.host, 22)],
        };
        let files = target.known_hosts.as_ref().unwrap_or(&settings.known_hosts);
        let mut check = Self {
            name: names[0].clone(),
            names,
            address: target.host.clone(),
            port: target.port,
            known,
            policy: target.accept.unwrap_or(settings.accept),
            append_to: files.first().cloned(),
            instance: None,
        };
        if let Some(id) = &target.instance_id {
            let instance = check.instance(settings, id).await?;
            check.name = format!("{} ({id})", target.name);
            check.instance = Some(instance);
        }
        Ok(check)
    }

    async fn instance(&self, settings: &Settings, id: &str) -> Result<Instance, ConnectError> {
        let file = pins::path(&settings.pins, id)
            .ok_or_else(|| ConnectError::Config { reason: format!("{id:?} is no instance id") })?;
        let pinned = pins::load(&file, id)
            .map_err(|source| ConnectError::HostKeyFile { path: file.clone(), source: Arc::new(source) })?;
        let mut console = Vec::new();
        if pinned.is_none()
            && let Some(source) = &settings.console
        {
            // With an entry for the address the console need not have caught up: one look.
            let wait = if self.read_known(|known| known.keys(&self.names)).is_empty() {
                settings.console_wait
            } else {
                Duration::ZERO
            };
            match learn(source.as_ref(), id, wait).await {
                Ok(keys) => console = keys,
                // The entry for the address, or the policy, may still vouch for it.
                Err(_) if wait.is_zero() || self.policy == HostKeyPolicy::AcceptNew => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Instance { id: id.to_owned(), file, pinned, console })
    }

    fn read_known<T>(&self, read: impl FnOnce(&KnownHosts) -> T) -> T {
        read(&self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Algorithms of the keys that we could check, most wanted first. The server picks its key by
    /// this list: without it, a host recorded by its RSA key would show its ed25519 key and look
    /// like a stranger.
    pub(super) fn algorithms(&self) -> Vec<String> {
        let keys = match &self.instance {
            Some(Instance { pinned: Some(pinned), id, .. }) => pinned.keys(std::slice::from_ref(id)),
            Some(Instance { console, .. }) if !console.is_empty() => console.clone(),
            _ => self.read_known(|known| known.keys(&self.names)),
        };
        let mut algorithms: Vec<String> = Vec::new();
        for key in &keys {
            if !algorithms.iter().any(|known| known == key.algorithm()) {
                algorithms.push(key.algorithm().to_owned());
            }
        }
        algorithms
    }

    /// Keys that may vouch for the host by a certificate. Pinned instances take none: the pin is
    /// the narrower promise.
    pub(super) fn authorities(&self) -> Vec<PublicKey> {
        match &self.instance {
            Some(Instance { pinned: Some(_), .. }) => Vec::new(),
            _ => self.read_known(|known| known.authorities(&self.names)),
        }
    }

    /// Names that a host certificate may be made out to.
    pub(super) fn principals(&self) -> [&str; 2] {
        [self.names.last().map_or("", String::as_str), &self.address]
    }

    /// Is `key` revoked for the host? Asked of certificates' authorities too.
    pub(super) fn refuse_revoked(&self, key: &PublicKey) -> Result<(), ConnectError> {
        let revoked = self.read_known(|known| {
            let mut names = self.names.clone();
            names.extend(self.instance.as_ref().map(|instance| instance.id.clone()));
            known.revoked(&names, key)
        });
        match revoked {
            None => Ok(()),
            Some(place) => {
                Err(ConnectError::HostKeyRevoked { name: self.name.clone(), fingerprint: key.fingerprint(), place })
            }
        }
    }

    /// Accepts the key, recording it where that is due, or says why not.
    pub(super) async fn decide(&self, key: &PublicKey) -> Result<(), ConnectError> {
        self.refuse_revoked(key)?;
        match &self.instance {
            Some(instance) => self.decide_instance(instance, key),
            None => self.decide_named(key).await,
        }
    }

    async fn decide_named(&self, key: &PublicKey) -> Result<(), ConnectError> {
        match self.read_known(|known| known.check(&self.names, key)) {
            Verdict::Known => Ok(()),
            Verdict::Unknown if self.policy == HostKeyPolicy::AcceptNew => self.record(key).await,
            Verdict::Unknown => Err(self.unknown(
                key,
                format!(
                    "and record it by: ssh-keyscan -p {} {}, or run with accept-new (ssh.host_keys in rollcall.yaml)",
                    self.port, self.address
                ),
            )),
            Verdict::Changed(recorded) => Err(self.changed(key, recorded)),
            Verdict::Revoked(place) => {
                Err(ConnectError::HostKeyRevoked { name: self.name.clone(), fingerprint: key.fingerprint(), place })
            }
        }
    }

    async fn record(&self, key: &PublicKey) -> Result<(), ConnectError> {
        let Some(path) = self.append_to.clone() else {
            return Err(self.unknown(key, "no known_hosts file is configured to record it in".into()));
        };
        let (file, name, new) = (path.clone(), self.names[0].clone(), key.clone());
        // The file's lock may be held by another program for a moment.
        let appended = tokio::task::spawn_blocking(move || known_hosts::append(&file, &name, &new)).await;
        let appended = appended.unwrap_or_else(|join| Err(std::io::Error::other(join)));
        match appended {
            Ok(Verdict::Changed(recorded)) => Err(self.changed(key, recorded)),
            Ok(Verdict::Revoked(place)) => {
                Err(ConnectError::HostKeyRevoked { name: self.name.clone(), fingerprint: key.fingerprint(), place })
            }
            Ok(Verdict::Known | Verdict::Unknown) => {
                tracing::info!(
                    target: "rollcall::ssh",
                    "{}: recorded new host key {} {} in {}",
                    self.name, key.algorithm(), key.fingerprint(), path.display()
                );
                let mut known = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                known.add_text(&path, &format!("{} {key}", self.names[0]));
                Ok(())
            }
            Err(source) => Err(ConnectError::HostKeyFile { path, source: Arc::new(source) }),
        }
    }

    fn decide_instance(&self, instance: &Instance, key: &PublicKey) -> Result<(), ConnectError> {
        let Instance { id, file, pinned, console } = instance;
        if let Some(pinned) = pinned {
            return match pinned.check(std::slice::from_ref(id), key) {
                Verdict::Changed(recorded) => Err(ConnectError::HostKeyChanged {
                    name: self.name.clone(),
                    offered: key.clone(),
                    recorded,
                    hint: format!(
                        "an instance keeps its keys for life. If they were made anew on purpose: rm {}",
                        file.display()
                    ),
                }),
                _ => Ok(()),
            };
        }
        let keys = if console.contains(key) {
            console.clone()
        } else if self.read_known(|known| known.check(&self.names, key)) == Verdict::Known {
            vec![key.clone()]
        } else if !console.is_empty() {
            let printed: Vec<String> = console.iter().map(PublicKey::fingerprint).collect();
            return Err(self.unknown(
                key,
                format!(
                    "DO NOT accept it unseen: the console of {id} printed other keys ({}); another machine answers \
                 at {}, or the keys were made anew after boot",
                    printed.join(", "),
                    self.address
                ),
            ));
        } else if self.policy == HostKeyPolicy::AcceptNew {
            vec![key.clone()]
        } else {
            return Err(self.unknown(key, format!("and record it: echo '{id} {key}' > {}", file.display())));
        };
        pins::store(file, id, &keys)
            .map_err(|source| ConnectError::HostKeyFile { path: file.clone(), source: Arc::new(source) })?;
        // Another run may have been first; what it pinned is what counts.
        match pins::load(file, id) {
            Ok(Some(now)) => match now.check(std::slice::from_ref(id), key) {
                Verdict::Changed(recorded) => Err(self.changed(key, recorded)),
                _ => Ok(()),
            },
            Ok(None) => Ok(()),
            Err(source) => Err(ConnectError::HostKeyFile { path: file.clone(), source: Arc::new(source) }),
        }
    }

    fn unknown(&self, key: &PublicKey, hint: String) -> ConnectError {
        ConnectError::HostKeyUnknown {
            name: self.name.clone(),
            algorithm: key.algorithm().to_owned(),
            fingerprint: key.fingerprint(),
            notes: self.read_known(|known| known.problems.clone()),
            hint: format!("      {hint}"),
        }
    }

    fn changed(&self, key: &PublicKey, recorded: Vec<(known_hosts::Place, PublicKey)>) -> ConnectError {
        let remove = match recorded.first() {
            Some((place, _)) => format!("ssh-keygen -R '{}' -f {}", self.names[0], place.file.display()),
            None => "remove the old entry".to_owned(),
        };
        ConnectError::HostKeyChanged {
            name: self.name.clone(),
            offered: key.clone(),
            recorded,
            hint: format!("only when you know why it changed: {remove}"),
        }
    }
}

/// The keys on an instance's console. Looks again for up to `wait`: EC2 shows the console with a
/// delay, and cloud-init prints the keys at the end of the first boot.
async fn learn(source: &dyn ConsoleSource, id: &str, wait: Duration) -> Result<Vec<PublicKey>, ConnectError> {
    let start = Instant::now();
    let mut pauses = CONSOLE_PAUSES.iter().chain(std::iter::repeat(&15));
    loop {
        let text = source.console(id).await.map_err(|reason| ConnectError::Console {
            instance: id.to_owned(),
            waited: start.elapsed(),
            reason: Some(reason),
        })?;
        let keys = text.as_deref().map(keys_from_console).unwrap_or_default();
        if !keys.is_empty() {
            tracing::debug!(target: "rollcall::ssh", "{id}: {} host keys on its console", keys.len());
            return Ok(keys);
        }
        let left = wait.saturating_sub(start.elapsed());
        let pause = Duration::from_secs(*pauses.next().unwrap_or(&15)).min(left);
        if pause.is_zero() {
            let reason = if text.is_some() { "it holds no complete block of host keys" } else { "it is empty" };
            return Err(ConnectError::Console {
                instance: id.to_owned(),
                waited: start.elapsed(),
                reason: Some(reason.to_owned()),
            });
        }
        tokio::time::sleep(pause).await;
    }
}
