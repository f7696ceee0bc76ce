//! The bootstrap of ACLs, exactly once per cluster, whoever else tries, crashes or tries again.
//!
//! The secret was written down (escrowed) before anybody comes here, and all who come have the same. So a call whose answer is
//! lost may simply be made again, and whatever calls said, the token itself tells: it may do everything, or nobody knows it.
//!
//! ```text
//! gate ──▶ call ──▶ verify ──▶ management token: done, whatever the call said
//!  ▲                  │
//!  │                  ├──▶ "already done", and nobody knows the token for 35 s: someone else bootstrapped. Nothing is reset
//!  └──────────────────┴──▶ anything else: again with the same secret, until the time is over
//! ```

use std::time::Duration;

use super::error::{ApiError, Kind};
use crate::secrets::Secret;

/// Between two looks.
const POLL: Duration = Duration::from_secs(1);
/// How long a token may be unknown that the cluster has: followers lag, and "not found" is kept for 30 s.
pub const LAG: Duration = Duration::from_secs(35);

/// The cluster, as far as the bootstrap asks.
pub trait Cluster {
    /// Its leader's address; empty where there is none.
    fn leader(&mut self) -> Result<String, ApiError>;
    /// How many servers vote.
    fn peers(&mut self) -> Result<usize, ApiError>;
    /// The call. The secret that the token got.
    fn bootstrap(&mut self, secret: &Secret) -> Result<Secret, ApiError>;
    /// The token of the secret.
    fn own_token(&mut self, secret: &Secret) -> Result<Holder, ApiError>;
    /// Whether anybody has done it, with whatever secret.
    fn is_bootstrapped(&mut self, secret: &Secret) -> Result<bool, ApiError>;
    /// Time since the beginning.
    fn elapsed(&self) -> Duration;
    /// Waits.
    fn pause(&mut self, time: Duration);
}

/// A token, as far as the bootstrap asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What it is called where its secret is not to be told.
    pub accessor: String,
    /// It may do everything.
    pub management: bool,
}

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// This call, as far as anybody can know.
    Here,
    /// Somebody with the same secret.
    Elsewhere,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// Somebody with another secret was first.
    #[error("someone else bootstrapped this cluster: {said}; the token of our secret is unknown to it")]
    Foreign {
        /// What the call said.
        said: String,
    },
    /// A cluster was formed before, and this one is not it.
    #[error(
        "this cluster was formed before, and what answers now has never been bootstrapped: all its servers lost what they had"
    )]
    TotalLoss,
    /// ACLs are off on this host.
    #[error("ACLs are off")]
    Off(#[source] ApiError),
    /// The token is known, and may not do everything.
    #[error("the secret belongs to a token that may not do everything ({accessor})")]
    Weak {
        /// The token's accessor.
        accessor: String,
    },
    /// The server chose a secret of its own.
    #[error("the servers took no notice of our secret: they are too old for one")]
    Ignored,
    /// Somebody is resetting the ACLs.
    #[error("the leader has a file that resets ACLs, with a wrong number")]
    ResetFile(#[source] ApiError),
    /// The time is over.
    #[error("not done after {} s: {last}", .after.as_secs())]
    GaveUp {
        /// How long it took.
        after: Duration,
        /// What was in the way last.
        last: String,
    },
    /// The cluster will not do it.
    #[error("refused")]
    Refused(#[source] ApiError),
}

/// What is asked of [`run`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many servers must vote before the call; `None`: any number.
    pub peers: Option<usize>,
    /// The cluster has been formed before: a fresh one in its place is a loss, not a beginning.
    pub formed: bool,
    /// For all of it.
    pub time: Duration,
}

/// How a look at the token ended.
enum Seen {
    Management,
    Unknown(String),
    Passing(String),
}

/// Bootstraps, or finds that it has been done with the same secret.
pub fn run(cluster: &mut dyn Cluster, secret: &Secret, limits: Limits) -> Result<Done, BootstrapError> {
    let mut last = String::new();
    // A call whose answer was lost may have been the one.
    let mut lost = false;
    loop {
        gate(cluster, limits, &last)?;
        // Somebody may have been faster; and where ACLs are off, this server says so.
        if let Seen::Management = look(cluster, secret)? {
            return Ok(if lost { Done::Here } else { Done::Elsewhere });
        }
        if limits.formed && !lost {
            match cluster.is_bootstrapped(secret) {
                Ok(true) => {}
                Ok(false) => return Err(BootstrapError::TotalLoss),
                Err(error) => {
                    last = error.to_string();
                    in_time(cluster, limits, &last)?;
                    cluster.pause(POLL);
                    continue;
                }
            }
        }
        let called = cluster.bootstrap(secret);
        match verify(cluster, secret, &called)? {
            Ok(()) => {
                let here = match &called {
                    Ok(_) => true,
                    Err(error) => lost || error.kind == Kind::Lost,
                };
                return Ok(if here { Done::Here } else { Done::Elsewhere });
            }
            Err(why) => last = why,
        }
        lost |= called.is_err_and(|error| error.kind == Kind::Lost);
        in_time(cluster, limits, &last)?;
        cluster.pause(POLL);
    }
}

fn in_time(cluster: &dyn Cluster, limits: Limits, last: &str) -> Result<(), BootstrapError> {
    let after = cluster.elapsed();
    if after < limits.time { Ok(()) } else { Err(BootstrapError::GaveUp { after, last: last.to_owned() }) }
}

/// Waits for a leader, and the servers that are expected, the same on two looks.
fn gate(cluster: &mut dyn Cluster, limits: Limits, last: &str) -> Result<(), BootstrapError> {
    let mut before: Option<String> = None;
    loop {
        let seen = match (cluster.leader(), cluster.peers()) {
            (Ok(leader), _) if leader.is_empty() => Err("there is no leader".to_owned()),
            (Ok(leader), Ok(peers)) => match limits.peers {
                Some(wanted) if wanted != peers => Err(format!("{peers} servers of {wanted} vote")),
                _ => Ok(leader),
            },
            (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
        };
        match seen {
            Ok(leader) if before.as_ref() == Some(&leader) => return Ok(()),
            Ok(leader) => {
                before = Some(leader);
                in_time(cluster, limits, if last.is_empty() { "no leader that stays" } else { last })?;
            }
            Err(why) => {
                before = None;
                in_time(cluster, limits, &why)?;
            }
        }
        cluster.pause(POLL);
    }
}

fn look(cluster: &mut dyn Cluster, secret: &Secret) -> Result<Seen, BootstrapError> {
    match cluster.own_token(secret) {
        Ok(token) if token.management => Ok(Seen::Management),
        Ok(token) => Err(BootstrapError::Weak { accessor: token.accessor }),
        Err(error) => match error.kind {
            Kind::UnknownToken | Kind::NotBootstrapped | Kind::NotFound => Ok(Seen::Unknown(error.to_string())),
            Kind::AclOff => Err(BootstrapError::Off(error)),
            _ => Ok(Seen::Passing(error.to_string())),
        },
    }
}

/// Asks the token. The inner error: to be called again, and why.
fn verify(
    cluster: &mut dyn Cluster,
    secret: &Secret,
    called: &Result<Secret, ApiError>,
) -> Result<Result<(), String>, BootstrapError> {
    // Whether the cluster says that it has the token, or another one.
    let settled = match called {
        Ok(given) if given != secret => return Err(BootstrapError::Ignored),
        Ok(_) => true,
        // The number in a file that resets ACLs is wrong as soon as another one of us has bootstrapped with it.
        Err(error) => matches!(error.kind, Kind::Bootstrapped | Kind::ResetFile),
    };
    let mut unknown_since: Option<Duration> = None;
    let begun = cluster.elapsed();
    loop {
        let why = match look(cluster, secret)? {
            Seen::Management => return Ok(Ok(())),
            Seen::Unknown(why) => {
                unknown_since.get_or_insert_with(|| cluster.elapsed());
                why
            }
            Seen::Passing(why) => {
                // Only a cluster that answers can say that it does not know the token.
                unknown_since = None;
                why
            }
        };
        if !settled {
            break;
        }
        let now = cluster.elapsed();
        if unknown_since.is_some_and(|since| now.saturating_sub(since) >= LAG) {
            return match called {
                Err(error) if error.kind == Kind::ResetFile => Err(BootstrapError::ResetFile(error.clone())),
                Err(error) => Err(BootstrapError::Foreign { said: error.said.clone() }),
                Ok(_) => Ok(Err(why)),
            };
        }
        // A cluster that has lost its leader in between is for the gate to wait for.
        if unknown_since.is_none() && now.saturating_sub(begun) >= LAG {
            return Ok(Err(why));
        }
        cluster.pause(POLL);
    }
    let Err(error) = called else { return Ok(Err(String::new())) };
    match error.kind {
        // Somebody with the same secret, or a token that happens to have it: the token tells.
        Kind::InUse => Ok(Err(error.to_string())),
        kind if kind.may_come() => Ok(Err(error.to_string())),
        _ => Err(BootstrapError::Refused(error.clone())),
    }
}

#[cfg(test)]
mod tests;
