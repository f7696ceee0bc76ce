//! The keys that we can log in with: each file is read, and its passphrase asked for, once a run.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Certificate, PrivateKey, PublicKey as WireKey};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::error::ConnectError;
use super::settings::{PassphrasePrompt, Settings};

/// A key file, ready to sign.
#[derive(Debug)]
pub(super) struct FileKey {
    pub(super) key: Arc<PrivateKey>,
    /// From `PATH-cert.pub`.
    pub(super) certificate: Option<Certificate>,
}

/// Something to offer to a host.
#[derive(Debug, Clone)]
pub(super) enum Offer {
    File(PathBuf),
    Agent(Box<AgentIdentity>),
}

impl Offer {
    /// For messages.
    pub(super) fn label(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Agent(identity) => {
                let key = identity.public_key();
                let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256);
                format!("{fingerprint} {} (ssh-agent)", identity.comment())
            }
        }
    }
}

type KeyCell = Arc<OnceCell<Result<Arc<FileKey>, ConnectError>>>;

pub(super) struct Identities {
    files: Mutex<HashMap<PathBuf, KeyCell>>,
    agent: OnceCell<Result<Vec<AgentIdentity>, String>>,
    agent_socket: Option<PathBuf>,
    general: Vec<PathBuf>,
    defaults: Vec<PathBuf>,
    passphrase: Option<PassphrasePrompt>,
    /// One question at a time, or two prompts would share a terminal.
    asking: Arc<Mutex<()>>,
    /// What let us in last, per user name: the first thing to offer to the next host.
    worked: Mutex<HashMap<String, String>>,
}

impl Identities {
    pub(super) fn new(settings: &Settings) -> Self {
        let ssh = settings.home.join(".ssh");
        Self {
            files: Mutex::default(),
            agent: OnceCell::new(),
            agent_socket: settings.agent_socket.clone(),
            general: settings.identity_files.clone(),
            defaults: ["id_ed25519", "id_ecdsa", "id_rsa"].iter().map(|name| ssh.join(name)).collect(),
            passphrase: settings.passphrase.clone(),
            asking: Arc::default(),
            worked: Mutex::default(),
        }
    }

    /// What to offer to a host, the likeliest first, and what could not be asked for keys.
    /// `own` are the host's key files.
    pub(super) async fn offers(&self, user: &str, own: &[PathBuf]) -> (Vec<Offer>, Option<String>) {
        let (agent, trouble) = match self.agent_keys().await {
            Ok(keys) => (keys.to_vec(), None),
            Err(trouble) => (Vec::new(), Some(trouble.clone())),
        };
        let named = if own.is_empty() { &self.general } else { own };
        let mut offers = Vec::new();
        if named.is_empty() {
            offers.extend(agent.into_iter().map(Box::new).map(Offer::Agent));
            offers.extend(self.defaults.iter().filter(|path| path.exists()).cloned().map(Offer::File));
        } else {
            let mut rest = agent;
            for path in named {
                // A key that the agent holds needs no passphrase.
                let held = public_half(path).and_then(|public| {
                    let same = |id: &AgentIdentity| id.public_key().key_data() == public.key_data();
                    rest.iter().position(same)
                });
                offers.push(match held {
                    Some(at) => Offer::Agent(Box::new(rest.remove(at))),
                    None => Offer::File(path.clone()),
                });
            }
            offers.extend(rest.into_iter().map(Box::new).map(Offer::Agent));
        }
        let worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned();
        if own.is_empty()
            && let Some(at) = worked.and_then(|label| offers.iter().position(|offer| offer.label() == label))
        {
            offers[..=at].rotate_right(1);
        }
        (offers, trouble)
    }

    pub(super) fn remember(&self, user: &str, offer: &Offer) {
        let mut worked = self.worked.lock().unwrap_or_else(PoisonError::into_inner);
        worked.insert(user.to_owned(), offer.label());
    }

    /// The key in a file, decrypted.
    pub(super) async fn load(&self, path: &Path) -> Result<Arc<FileKey>, ConnectError> {
        let cell = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.entry(path.to_owned()).or_default().clone()
        };
        cell.get_or_init(|| async {
            let (path, prompt, asking) = (path.to_owned(), self.passphrase.clone(), self.asking.clone());
            let failed = path.clone();
            // Reading, the key derivation and the question itself all block.
            match tokio::task::spawn_blocking(move || read_key(&path, prompt.as_ref(), &asking)).await {
                Ok(result) => result.map(Arc::new),
                Err(join) => Err(ConnectError::KeyFile { path: failed, reason: join.to_string() }),
            }
        })
        .await
        .clone()
    }

    async fn agent_keys(&self) -> Result<&[AgentIdentity], &String> {
        let keys = self.agent.get_or_init(|| async {
            let Some(socket) = &self.agent_socket else { return Ok(Vec::new()) };
            let failed = |what: String| format!("ssh-agent at {}: {what}", socket.display());
            let mut agent = self.connect_agent().await.map_err(|error| failed(error.to_string()))?;
            agent.request_identities().await.map_err(|error| failed(error.to_string()))
        });
        keys.await.as_deref()
    }

    pub(super) async fn connect_agent(&self) -> std::io::Result<AgentClient<UnixStream>> {
        let socket = self.agent_socket.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        Ok(AgentClient::connect(UnixStream::connect(socket).await?))
    }
}

/// The public half of a key file, without its passphrase.
fn public_half(path: &Path) -> Option<WireKey> {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    if let Ok(text) = std::fs::read_to_string(PathBuf::from(public))
        && let Ok(key) = WireKey::from_openssh(text.trim())
    {
        return Some(key);
    }
    let text = std::fs::read_to_string(path).ok()?;
    PrivateKey::from_openssh(text).ok().map(|key| key.public_key().clone())
}

fn read_key(path: &Path, prompt: Option<&PassphrasePrompt>, asking: &Mutex<()>) -> Result<FileKey, ConnectError> {
    let failed = |reason: String| ConnectError::KeyFile { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let mode = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(failed(format!(
            "the private key may be read by others (mode {:04o}); hint: chmod 600 {}",
            mode & 0o7777,
            path.display()
        )));
    }
    let key = match russh::keys::decode_secret_key(&text, None) {
        Ok(key) if key.is_encrypted() => decrypt(path, &text, prompt, asking)?,
        Ok(key) => key,
        Err(russh::keys::Error::KeyIsEncrypted) => decrypt(path, &text, prompt, asking)?,
        Err(_) if text.contains("PUBLIC KEY") || text.starts_with("ssh-") => {
            return Err(failed("this is a public key; hint: name the private one, without .pub".to_owned()));
        }
        Err(error) => return Err(failed(format!("not a private key that can be read: {error}"))),
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push("-cert.pub");
    let certificate = match std::fs::read_to_string(&beside) {
        Ok(text) => Some(
            Certificate::from_openssh(text.trim())
                .map_err(|error| failed(format!("its certificate cannot be read: {error}")))?,
        ),
        Err(_) => None,
    };
    Ok(FileKey { key: Arc::new(key), certificate })
}

fn decrypt(
    path: &Path,
    text: &str,
    prompt: Option<&PassphrasePrompt>,
    asking: &Mutex<()>,
) -> Result<PrivateKey, ConnectError> {
    let failed = |reason: &str| ConnectError::KeyFile { path: path.to_owned(), reason: reason.to_owned() };
    let passphrase = {
        let _one_at_a_time = asking.lock().unwrap_or_else(PoisonError::into_inner);
        prompt.and_then(|prompt| prompt(path))
    };
    let passphrase = passphrase.ok_or_else(|| {
        failed("the key has a passphrase and there is no terminal to ask for it; hint: ssh-add it to an ssh-agent")
    })?;
    let key = russh::keys::decode_secret_key(text, Some(passphrase.expose()));
    key.ok().filter(|key| !key.is_encrypted()).ok_or_else(|| failed("wrong passphrase"))
}
