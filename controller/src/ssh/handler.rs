//! The library's callbacks: host keys are decided here, and the reason of an end is kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::Names;
use russh::client;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, HashAlg, PublicKey as WireKey, PublicKeyOrCertificate};

use super::error::ConnectError;
use super::hostkeys::HostCheck;
use super::known_hosts::wildcard;
use super::public_key::PublicKey;

/// What the callbacks leave behind for the connection's owner.
#[derive(Debug, Default)]
pub(super) struct Shared {
    host_key: Mutex<Option<PublicKey>>,
    lost: Mutex<Option<String>>,
}

impl Shared {
    #[cfg(test)]
    pub(super) fn host_key(&self) -> Option<PublicKey> {
        self.host_key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the connection ended, once it has.
    pub(super) fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) struct Handler {
    pub(super) check: Arc<HostCheck>,
    pub(super) shared: Arc<Shared>,
}

/// Errors that leave the library's event loop.
#[derive(Debug)]
pub(super) enum HandlerError {
    Ssh(russh::Error),
    Refused(Box<ConnectError>),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl From<ConnectError> for HandlerError {
    fn from(error: ConnectError) -> Self {
        Self::Refused(Box::new(error))
    }
}

impl client::Handler for Handler {
    type Error = HandlerError;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, HandlerError> {
        let key = match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                let key = own_key(key)?;
                self.check.decide(&key).await?;
                key
            }
            PublicKeyOrCertificate::Certificate(certificate) => {
                let key = own_key(&offered.public_key())?;
                check_certificate(&self.check, certificate, &key)?;
                key
            }
        };
        *self.shared.host_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(true)
    }

    async fn kex_done(
        &mut self,
        _secret: Option<&[u8]>,
        names: &Names,
        _session: &mut client::Session,
    ) -> Result<(), HandlerError> {
        tracing::debug!(
            target: "rollcall::ssh",
            "{}: negotiated kex {}, host key {}, cipher {}, mac {}",
            self.check.name,
            names.kex.as_ref(),
            names.key,
            names.cipher.as_ref(),
            names.server_mac.as_ref()
        );
        Ok(())
    }

    async fn auth_banner(&mut self, banner: &str, _session: &mut client::Session) -> Result<(), HandlerError> {
        tracing::debug!(target: "rollcall::ssh", "{}: banner: {}", self.check.name, banner.trim_end());
        Ok(())
    }

    async fn disconnected(&mut self, reason: client::DisconnectReason<HandlerError>) -> Result<(), HandlerError> {
        let (text, result) = match reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                (format!("the host ended it: {}", info.message), Ok(()))
            }
            client::DisconnectReason::Error(HandlerError::Ssh(error)) => {
                (describe(&error), Err(HandlerError::Ssh(error)))
            }
            client::DisconnectReason::Error(error) => ("host key refused".to_owned(), Err(error)),
        };
        tracing::debug!(target: "rollcall::ssh", "{}: disconnected: {text}", self.check.name);
        let mut lost = self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get_or_insert(text);
        result
    }
}

/// It answers no probe, or takes nothing for as long.
const SILENT: &str = "the host stopped answering (keepalive)";

/// A library error in the words of somebody who watches a host.
pub(super) fn describe(error: &russh::Error) -> String {
    match error {
        russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout => SILENT.to_owned(),
        russh::Error::Disconnect | russh::Error::HUP | russh::Error::SendError | russh::Error::RecvError => {
            "the connection was closed".to_owned()
        }
        russh::Error::IO(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the connection was closed".to_owned()
        }
        russh::Error::IO(io) if io.kind() == std::io::ErrorKind::TimedOut => SILENT.to_owned(),
        russh::Error::IO(io) => io.to_string(),
        russh::Error::NoCommonAlgo { kind, ours, theirs } => {
            format!("no common {kind:?} algorithm; ours: {}; theirs: {}", ours.join(","), theirs.join(","))
        }
        russh::Error::Version => "it does not speak SSH 2".to_owned(),
        other => {
            let mut text = other.to_string();
            if let Some(first) = text.get(..1) {
                text.replace_range(..1, &first.to_ascii_lowercase());
            }
            text
        }
    }
}

fn own_key(key: &WireKey) -> Result<PublicKey, HandlerError> {
    let blob = key.to_bytes().map_err(russh::Error::from)?;
    PublicKey::from_blob(blob).ok_or(HandlerError::Ssh(russh::Error::UnknownKey))
}

/// Does an authority of ours vouch for this host by this certificate, now?
fn check_certificate(check: &HostCheck, certificate: &Certificate, key: &PublicKey) -> Result<(), HandlerError> {
    let signer = own_key(&WireKey::new(certificate.signature_key().clone(), ""))?;
    check.refuse_revoked(key)?;
    check.refuse_revoked(&signer)?;
    let refuse = |reason: String| ConnectError::HostCertificate {
        name: check.name.clone(),
        fingerprint: key.fingerprint(),
        reason,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let reason = if !check.authorities().contains(&signer) {
        Some(format!("its authority {} is none of those in known_hosts", signer.fingerprint()))
    } else if certificate.cert_type() != CertType::Host {
        Some("it is a user's certificate".to_owned())
    } else if now < certificate.valid_after() || now >= certificate.valid_before() {
        Some("it is not valid at this time".to_owned())
    } else if !certificate.critical_options().is_empty() {
        Some("it has critical options that are not known".to_owned())
    } else if !names_host(certificate, &check.principals()) {
        Some(format!("it is made out to {:?}", certificate.valid_principals()))
    } else {
        let authority = certificate.signature_key().fingerprint(HashAlg::Sha256);
        certificate.validate_at(now, [&authority]).err().map(|_| "its signature is wrong".to_owned())
    };
    match reason {
        Some(reason) => Err(refuse(reason).into()),
        None => Ok(()),
    }
}

fn names_host(certificate: &Certificate, names: &[&str]) -> bool {
    certificate.valid_principals().iter().any(|principal| {
        let principal = principal.to_ascii_lowercase();
        names.iter().any(|name| wildcard(principal.as_bytes(), name.to_ascii_lowercase().as_bytes()))
    })
}
