//! What an answer of Consul or Nomad means that is no success.

use crate::modules::Failure;

/// What kind of refusal an answer is, by its text: codes differ between versions and products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No connection: it was not sent.
    Unreachable,
    /// The answer was lost: nobody knows whether it happened.
    Lost,
    /// There is no leader now.
    NoLeader,
    /// Too many requests, or a server that is about to stop: try again.
    Busy,
    /// The bootstrap has been done.
    Bootstrapped,
    /// The bootstrap has not been done: no token is known.
    NotBootstrapped,
    /// Someone put a reset file on the leader.
    ResetFile,
    /// ACLs are off.
    AclOff,
    /// ACLs are off on the server that leads, or that was asked in its stead.
    AclOffElsewhere,
    /// The token that was sent is not known.
    UnknownToken,
    /// The token that was sent does not allow it.
    Denied,
    /// There is no such thing.
    NotFound,
    /// The name or the id is in use.
    InUse,
    /// Consul could not fetch the keys of an auth method.
    NoKeys,
    /// Anything else.
    Refused,
}

impl Kind {
    /// Asking again, with the same values, may help.
    pub fn is_passing(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::Lost | Self::NoLeader | Self::Busy | Self::AclOffElsewhere | Self::NoKeys
        )
    }

    /// A cluster that is only being formed, or whose ACLs are being turned on, answers so for a while.
    pub fn may_come(self) -> bool {
        self.is_passing() || matches!(self, Self::UnknownToken | Self::NotBootstrapped | Self::AclOff)
    }
}

/// Whether an answer is one after which nobody knows: a server, or the way to it, was lost on the way.
pub(super) fn is_lost(status: u16, text: &str) -> bool {
    LOST.iter().any(|part| text.contains(part)) || matches!(status, 502..=504)
}

/// Texts of such answers.
const LOST: &[&str] = &[
    "EOF",
    "connection reset",
    "connection refused",
    "broken pipe",
    "i/o timeout",
    "stream closed",
    "session shutdown",
    "rpc error getting client",
    "No known Consul servers",
    "no known servers",
    "failed to get conn",
    "leadership lost",
    "leadership transfer in progress",
    "not the leader",
    "raft is already shutdown",
    "timed out enqueuing",
    "context deadline exceeded",
    "context canceled",
];

/// A request that was not answered with success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {said}")]
pub struct ApiError {
    /// What it means.
    pub kind: Kind,
    /// Method and address.
    pub call: String,
    /// What the product or the connection said. Secrets of the call are taken out.
    pub said: String,
}

impl ApiError {
    /// Nothing was written: what is there is no longer what was read.
    pub fn overtaken(call: impl Into<String>) -> Self {
        Self { kind: Kind::InUse, call: call.into(), said: "somebody else wrote it at the same time".into() }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let failure = Self::new(error.to_string());
        match error.kind {
            Kind::AclOff | Kind::AclOffElsewhere => {
                failure.hint("ACLs are off: set `acl: {enabled: true}` in the configuration of all servers")
            }
            Kind::UnknownToken => failure.hint("the cluster does not know the token that was sent"),
            Kind::NoKeys => failure.hint(
                "Consul's servers fetch the keys from that address themselves: it must be reachable from them, under that name",
            ),
            _ if failure.message.contains("error checking JWKSURL") => failure.hint(
                "Consul's servers do not trust who signed the certificate of that address: name the authority (jwks_ca_file), and an \
                 address that the certificate is for",
            ),
            Kind::NotBootstrapped => failure.hint("run consul_acl_bootstrap on the servers first"),
            _ => failure,
        }
    }
}
