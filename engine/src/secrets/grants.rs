//! What a host asks of who answers it: secrets by name, signatures on certificates. The same for a run over SSH, where the
//! controller answers, and for first boot, where a server does.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use serde::{Deserialize, Serialize};

use super::{Name, Secret};

/// Who answers a host.
pub trait Grants: fmt::Debug + Send + Sync {
    /// The value of a secret that the host may read; made if it is one that Rollcall makes. Blocks.
    fn secret(&self, name: &Name) -> Result<Secret, GrantError>;

    /// Writes down that something has come about, under a name whose maker is [`Maker::Mark`](super::ownership::Maker):
    /// the time, once and for all. Returns what stands there. Blocks.
    fn mark(&self, name: &Name) -> Result<Secret, GrantError> {
        Err(GrantError::refused(format!("there is nobody to write down '{name}'")))
    }

    /// Keeps a value that only the product could make, under a name whose maker is
    /// [`Maker::Product`](super::ownership::Maker): written where there is none, or in the place of one that is of no use any
    /// more. Returns what stands there then, which may be another's: who is told so has lost, and takes its own away. Blocks.
    fn keep(&self, name: &Name, _value: &Secret, _in_place_of: Option<&Secret>) -> Result<Secret, GrantError> {
        Err(GrantError::refused(format!("there is nobody to keep '{name}'")))
    }

    /// A certificate for a key that the host keeps. Blocks.
    fn sign(&self, request: &SignRequest) -> Result<Issued, GrantError>;
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// Consul's agent.
    Consul,
    /// Nomad's agent.
    Nomad,
}

impl Product {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consul => "Consul",
            Self::Nomad => "Nomad",
        }
    }
}

/// A wish for a certificate. Whether it is a server's or a client's, and of which node, is up to who signs, who knows the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignRequest {
    /// What for.
    pub product: Product,
    /// Consul's datacenter, Nomad's region.
    pub place: String,
    /// The domain of Consul's names. Of a Nomad server: where Consul knows it by a name; empty where it does not.
    pub domain: String,
    /// How long it shall count, in seconds.
    pub lifetime: u64,
    /// PKCS #10 in PEM; its signature proves that the host has the key.
    pub csr: String,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The leaf, PEM.
    pub certificate: String,
    /// The authority's, PEM.
    pub authority: String,
}

/// Why a host did not get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum GrantError {
    /// Check mode: it is not there yet, and a check makes nothing.
    #[error("{0}")]
    NotYet(String),
    /// It was refused, or the store could not be asked.
    #[error("{why}")]
    Refused {
        /// The reason.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl GrantError {
    /// A refusal.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into(), hint: None }
    }

    /// The same, with what to do about it.
    pub fn refused_with(why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { why: why.into(), hint: Some(hint.into()) }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Refused { hint, .. } => hint.as_deref(),
            Self::NotYet(_) => None,
        }
    }
}

/// What is wanted of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Its value if it is there: nothing is made.
    Look,
    /// Its value, made if it is one that Rollcall makes.
    Make,
    /// A mark, see [`Grants::mark`].
    Mark,
}

/// Nobody answers, and why.
#[derive(Debug)]
struct Nobody {
    why: &'static str,
    hint: Option<&'static str>,
}

impl Nobody {
    fn refuse<T>(&self, what: &str) -> Result<T, GrantError> {
        Err(GrantError::Refused { why: format!("{what}: {}", self.why), hint: self.hint.map(str::to_owned) })
    }
}

impl Grants for Nobody {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        self.refuse(&format!("the secret '{name}' cannot be had"))
    }

    fn mark(&self, name: &Name) -> Result<Secret, GrantError> {
        self.refuse(&format!("'{name}' cannot be written down"))
    }

    fn keep(&self, name: &Name, _: &Secret, _: Option<&Secret>) -> Result<Secret, GrantError> {
        self.refuse(&format!("'{name}' cannot be kept"))
    }

    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        self.refuse("a certificate cannot be had")
    }
}

/// Where nobody answers: every question is refused.
pub fn nobody() -> &'static Arc<dyn Grants> {
    static NOBODY: LazyLock<Arc<dyn Grants>> =
        LazyLock::new(|| Arc::new(Nobody { why: "there is nobody to ask", hint: None }));
    &NOBODY
}

/// What a module is told that runs as another user than root: who answers is known to the agent's own process only.
pub fn not_as_this_user() -> &'static Arc<dyn Grants> {
    static REFUSING: LazyLock<Arc<dyn Grants>> = LazyLock::new(|| {
        Arc::new(Nobody {
            why: "a module asks for secrets as root only, this one runs as another user",
            hint: Some("set `become: true` on the task, or hand the value over with secret() in an argument"),
        })
    });
    &REFUSING
}
