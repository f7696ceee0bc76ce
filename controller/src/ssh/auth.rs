//! Logging in: keys are offered one after the other, the likeliest first, without a probe.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::{Signature, public::KeyData};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{AgentAuthError, MethodKind, MethodSet, Signer};

use super::error::{ConnectError, Stage};
use super::handler::Handler;
use super::identities::{FileKey, Identities, Offer};

pub(super) struct Login<'a> {
    pub(super) handle: &'a mut Handle<Handler>,
    pub(super) identities: &'a Identities,
    pub(super) user: &'a str,
    /// `host:port`, for messages.
    pub(super) address: &'a str,
    pub(super) limit: Duration,
}

/// The end of one offer.
enum Outcome {
    In,
    /// Refused; these methods are left.
    Out {
        methods: MethodSet,
        partial: bool,
    },
    /// The key itself cannot be used.
    Unusable(String),
}

impl Login<'_> {
    /// Logs in, or says what was tried. `own` are the key files of this host.
    pub(super) async fn run(mut self, own: &[std::path::PathBuf]) -> Result<(), ConnectError> {
        let (offers, trouble) = self.identities.offers(self.user, own).await;
        let mut tried: Vec<String> = trouble.into_iter().collect();
        let mut hint = String::new();
        let mut unusable: Option<ConnectError> = None;
        let mut asked = 0usize;
        for offer in &offers {
            let label = offer.label();
            let outcome = match self.offer(offer).await {
                Ok(outcome) => outcome,
                Err(error @ ConnectError::KeyFile { .. }) => {
                    tried.push(error.to_string());
                    unusable.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match outcome {
                Outcome::In => {
                    tracing::debug!(target: "rollcall::ssh", "{}: accepted key {label}", self.address);
                    self.identities.remember(self.user, offer);
                    return Ok(());
                }
                Outcome::Unusable(reason) => tried.push(format!("{label} ({reason})")),
                Outcome::Out { methods, partial } => {
                    asked += 1;
                    tracing::debug!(target: "rollcall::ssh", "{}: refused key {label}", self.address);
                    tried.push(label);
                    if partial {
                        hint = String::from("\nhint: the key was right, but the host wants a second factor");
                        break;
                    }
                    if self.handle.is_closed() || methods.is_empty() {
                        hint = String::from(
                            "\nhint: the host ended the attempt (too many keys?); name the right one: \
                             --private-key, or ansible_ssh_private_key_file",
                        );
                        break;
                    }
                    if !methods.contains(&MethodKind::PublicKey) {
                        hint = format!("\nhint: the host takes no keys, only {}", methods_text(&methods));
                        break;
                    }
                }
            }
        }
        // A key that cannot be read, and no other to offer: that is the answer, not "access denied".
        if let Some(error) = unusable
            && asked == 0
            && tried.len() == 1
        {
            return Err(error);
        }
        if hint.is_empty() && asked > 0 {
            hint = format!("\nhint: is the public key in ~{}/.ssh/authorized_keys there?", self.user);
        }
        Err(ConnectError::AuthFailed { address: self.address.to_owned(), user: self.user.to_owned(), tried, hint })
    }

    async fn offer(&mut self, offer: &Offer) -> Result<Outcome, ConnectError> {
        tracing::debug!(target: "rollcall::ssh", "{}: offering {}", self.address, offer.label());
        match offer {
            Offer::File(path) => {
                // Not within the time limit: a person may be typing a passphrase.
                let key = self.identities.load(path).await?;
                self.offer_file(&key).await
            }
            Offer::Agent(identity) => self.offer_agent(identity).await,
        }
    }

    async fn offer_file(&mut self, file: &FileKey) -> Result<Outcome, ConnectError> {
        let Ok(hash) = self.rsa_hash(file.key.algorithm().is_rsa()).await? else {
            return Ok(Outcome::Unusable(NO_SHA1.to_owned()));
        };
        if let Some(certificate) = &file.certificate {
            tracing::debug!(
                target: "rollcall::ssh",
                "{}: offering certificate {}", self.address, certificate.key_id()
            );
            let mut signer = FileSigner(file.key.clone());
            let attempt = self.handle.authenticate_certificate_with(self.user, certificate.clone(), hash, &mut signer);
            match timed(attempt, self.limit, self.address).await? {
                Ok(AuthResult::Failure { .. }) if !self.handle.is_closed() => {}
                other => return Ok(outcome(other)),
            }
        }
        let key = PrivateKeyWithHashAlg::new(file.key.clone(), hash);
        let attempt = self.handle.authenticate_publickey(self.user, key);
        Ok(outcome(timed(attempt, self.limit, self.address).await?))
    }

    async fn offer_agent(&mut self, identity: &AgentIdentity) -> Result<Outcome, ConnectError> {
        let rsa = matches!(identity.public_key().key_data(), KeyData::Rsa(_));
        let Ok(hash) = self.rsa_hash(rsa).await? else {
            return Ok(Outcome::Unusable(NO_SHA1.to_owned()));
        };
        let mut agent = match self.identities.connect_agent().await {
            Ok(agent) => agent,
            Err(error) => return Ok(Outcome::Unusable(error.to_string())),
        };
        // The agent may ask its user to confirm: the limit is that of a person.
        let limit = self.limit.max(Duration::from_mins(1));
        let result = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                let attempt = self.handle.authenticate_publickey_with(self.user, key.clone(), hash, &mut agent);
                timed(attempt, limit, self.address).await?
            }
            AgentIdentity::Certificate { certificate, .. } => {
                let attempt =
                    self.handle.authenticate_certificate_with(self.user, certificate.clone(), hash, &mut agent);
                timed(attempt, limit, self.address).await?
            }
        };
        Ok(outcome(result))
    }

    /// The hash for an RSA signature: what the host announces, SHA-2 by default, never SHA-1
    /// (the inner error).
    async fn rsa_hash(&self, rsa: bool) -> Result<Result<Option<HashAlg>, ()>, ConnectError> {
        if !rsa {
            return Ok(Ok(None));
        }
        let announced = timed(self.handle.best_supported_rsa_hash(), self.limit, self.address).await?;
        Ok(match announced {
            Ok(Some(Some(hash))) => Ok(Some(hash)),
            Ok(Some(None)) => Err(()),
            Ok(None) | Err(_) => Ok(Some(HashAlg::Sha512)),
        })
    }
}

const NO_SHA1: &str = "the host takes RSA keys only with SHA-1 signatures, which are broken";

async fn timed<T>(attempt: impl Future<Output = T>, limit: Duration, address: &str) -> Result<T, ConnectError> {
    tokio::time::timeout(limit, attempt).await.map_err(|_| ConnectError::Timeout {
        address: address.to_owned(),
        stage: Stage::Authentication,
        limit,
    })
}

fn outcome<E: std::fmt::Display>(result: Result<AuthResult, E>) -> Outcome {
    match result {
        Ok(AuthResult::Success) => Outcome::In,
        Ok(AuthResult::Failure { remaining_methods, partial_success }) => {
            Outcome::Out { methods: remaining_methods, partial: partial_success }
        }
        Err(error) => Outcome::Unusable(error.to_string().to_lowercase()),
    }
}

fn methods_text(methods: &MethodSet) -> String {
    methods.iter().map(<&'static str>::from).collect::<Vec<_>>().join(", ")
}

/// Signs with a key file, for certificates: the library's own way signs RSA with SHA-1.
struct FileSigner(Arc<PrivateKey>);

impl Signer for FileSigner {
    type Error = AgentAuthError;

    async fn auth_sign(
        &mut self,
        _identity: &AgentIdentity,
        hash: Option<HashAlg>,
        mut data: Vec<u8>,
    ) -> Result<Vec<u8>, AgentAuthError> {
        let signature = sign(&self.0, hash, &data).map_err(russh::keys::Error::from)?;
        let mut blob = Vec::new();
        signature.encode(&mut blob).map_err(russh::keys::Error::from)?;
        blob.encode(&mut data).map_err(russh::keys::Error::from)?;
        Ok(data)
    }
}

fn sign(key: &PrivateKey, hash: Option<HashAlg>, data: &[u8]) -> Result<Signature, russh::keys::ssh_key::Error> {
    Ok(match key.key_data() {
        KeypairData::Rsa(pair) => (pair, hash).try_sign(data)?,
        _ => key.try_sign(data)?,
    })
}
