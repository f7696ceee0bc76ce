//! Why a connection could not be made, or was lost. Every text can stand alone in a recap.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::known_hosts::Place;
use super::public_key::PublicKey;

/// What was going on when the time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Resolve,
    Tcp,
    KeyExchange,
    Authentication,
    Channel,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name resolution",
            Self::Tcp => "TCP connect",
            Self::KeyExchange => "SSH greeting and key exchange",
            Self::Authentication => "authentication",
            Self::Channel => "opening a channel",
        })
    }
}

/// Why there is no connection. `address` is `host:port` as it was used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot reach {address} ({stage}): {reason}")]
    Unreachable { address: String, stage: Stage, reason: String },

    #[error("{address} did not answer within {} s ({stage})", limit.as_secs_f32())]
    Timeout { address: String, stage: Stage, limit: Duration },

    /// The stream ended or made no sense before a session existed.
    #[error("no SSH session with {address} ({stage}): {reason}")]
    Protocol { address: String, stage: Stage, reason: String },

    #[error(
        "the host key of {name} is not known: it offers {algorithm} {fingerprint}\n{}{}\n{hint}",
        notes_text(notes),
        compare_hint(name, algorithm)
    )]
    HostKeyUnknown {
        /// As known_hosts would file it.
        name: String,
        algorithm: String,
        fingerprint: String,
        /// known_hosts lines that could not be read.
        notes: Vec<String>,
        hint: String,
    },

    #[error("{}", changed_text(name, offered, recorded, hint))]
    HostKeyChanged {
        name: String,
        offered: PublicKey,
        /// Where the keys that were expected are written down.
        recorded: Vec<(Place, PublicKey)>,
        hint: String,
    },

    #[error("the host key of {name} ({fingerprint}) is revoked by {place}")]
    HostKeyRevoked { name: String, fingerprint: String, place: Place },

    /// The host showed a certificate that no authority of ours vouches for.
    #[error("the host certificate of {name} ({fingerprint}) is refused: {reason}")]
    HostCertificate { name: String, fingerprint: String, reason: String },

    #[error("no host key of {instance} in its console output after {} s{}\n\
             hint: the console of an instance lags by up to a few minutes; try again, or record \
             the key by hand, from ssh-keygen -lf on the instance (see docs/ssh.md)", waited.as_secs(), reason_text(reason.as_deref()))]
    Console { instance: String, waited: Duration, reason: Option<String> },

    #[error("{address} lets {user} not in; tried: {}{hint}", tried_text(tried))]
    AuthFailed { address: String, user: String, tried: Vec<String>, hint: String },

    #[error("{}: {reason}", path.display())]
    KeyFile { path: PathBuf, reason: String },

    #[error("{}", path.display())]
    HostKeyFile {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },

    #[error("{reason}")]
    Config { reason: String },

    /// The way to the host is closed; `hop` is the jump host that failed.
    #[error("jump host {hop}")]
    Jump {
        hop: String,
        #[source]
        source: Arc<ConnectError>,
    },
}

impl ConnectError {
    #[cfg(test)]
    /// Is it about who the host is, rather than about reaching it? Such a host must never be
    /// retried with less checking.
    pub fn is_host_key(&self) -> bool {
        match self {
            Self::HostKeyUnknown { .. }
            | Self::HostKeyChanged { .. }
            | Self::HostKeyRevoked { .. }
            | Self::HostCertificate { .. }
            | Self::Console { .. } => true,
            Self::Jump { source, .. } => source.is_host_key(),
            _ => false,
        }
    }
}

/// Why a command could not be started, or its connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SshError {
    #[error("{name}: the host opens no further channel: {reason}")]
    ChannelRefused { name: String, reason: String },
    #[error("{name}: connection lost: {reason}")]
    Lost { name: String, reason: String },
    #[error("{name} did not answer within {} s ({stage})", limit.as_secs_f32())]
    Timeout { name: String, stage: Stage, limit: Duration },
}

fn tried_text(tried: &[String]) -> String {
    if tried.is_empty() { "nothing, there is no key to offer".to_owned() } else { tried.join(", ") }
}

fn reason_text(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {reason}")).unwrap_or_default()
}

fn notes_text(notes: &[String]) -> String {
    notes.iter().take(3).map(|note| format!("note: ignored {note}\n")).collect::<Vec<_>>().concat()
}

/// The command that shows the fingerprint on the host itself.
fn compare_hint(name: &str, algorithm: &str) -> String {
    let file = match algorithm {
        "ssh-ed25519" => "ed25519",
        "ssh-rsa" => "rsa",
        a if a.starts_with("ecdsa") => "ecdsa",
        _ => "*",
    };
    format!(
        "hint: compare it with what this prints on {name} itself: \
         ssh-keygen -lf /etc/ssh/ssh_host_{file}_key.pub"
    )
}

fn changed_text(name: &str, offered: &PublicKey, recorded: &[(Place, PublicKey)], hint: &str) -> String {
    let bar = "@".repeat(64);
    let mut text = format!(
        "the host key of {name} HAS CHANGED\n{bar}\n\
         Somebody may be listening in (man in the middle), or the host was set up anew.\n\
         It offers  {} {}\n",
        offered.short_name(),
        offered.fingerprint()
    );
    for (place, key) in recorded {
        text += &format!("recorded   {} {} in {place}\n", key.short_name(), key.fingerprint());
    }
    text + &format!("{bar}\nNothing was sent to it.\nhint: {hint}")
}
