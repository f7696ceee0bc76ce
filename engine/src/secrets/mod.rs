//! Secrets: what they are called, who makes them, who may read them, and where they are kept.
//!
//! A run's hosts never talk to a store. They ask by name; who answers them (the controller; at first boot a server's agent)
//! looks the name up in the [ownership table](ownership) and reads the [store](SecretStore). What Rollcall itself makes is
//! made there too: written first with a create-only call, and read back, so that of any number of makers all use one value.

use std::{fmt, time::Duration};

use zeroize::Zeroizing;

#[cfg(feature = "stores")]
pub mod aws;
#[cfg(feature = "stores")]
pub mod file;
pub mod grants;
pub mod issuer;
#[cfg(feature = "stores")]
pub mod open;
pub mod ownership;
pub mod policies;
#[cfg(feature = "stores")]
pub mod probe;
pub mod redact;
pub mod settings;
#[cfg(feature = "stores")]
pub mod vault;
pub mod witness;

pub use witness::Stamp;

/// Bytes of a value at most: what the smallest store takes.
pub const MAX_VALUE: usize = 64 * 1024;
/// Bytes of a value at least: what is shorter stands in other words too, and could not be kept out of what is shown.
pub const MIN_VALUE: usize = 6;
/// How long a store that may come back is asked, unless its settings say otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// Bytes of a name at most.
pub const MAX_NAME: usize = 200;

/// A value that is shown nowhere: `Debug` hides it, there is no `Display`, and its memory is wiped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text. Whoever asks for it answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The name of a secret inside a cluster: parts of small letters, digits, `-`, `_`, `.` between slashes
/// (`consul/token/agent/web-1`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why a text is no name of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no name of a secret: {why}")]
pub struct BadName {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Name {
    /// Reads a name.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let bad = |why| Err(BadName { text: text.to_owned(), why });
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > MAX_NAME {
            return bad("it has more than 200 bytes");
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if !text.bytes().all(allowed) {
            return bad("expected small letters, digits, '-', '_' and '.', in parts between slashes");
        }
        if text.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            return bad("a part between slashes is empty or begins with a dot");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between slashes.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a create-only write found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The name is new, and has this value now.
    New,
    /// The name had a value already; it still has that one.
    Exists,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It may or may not have happened: the answer was lost. To be asked again, with the same value.
    #[error("no answer from {store} to '{call}': nobody knows whether it happened")]
    Unknown {
        /// The store, as its `describe` says.
        store: String,
        /// The call.
        call: String,
        /// What the connection said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not happen, and may later: not reachable, sealed, throttled.
    #[error("{store} cannot be used now: {why}")]
    Unavailable {
        /// The store.
        store: String,
        /// What it said, or what reaching it said.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It refused who asks.
    #[error("{store} refuses '{call}': {why}")]
    Denied {
        /// The store.
        store: String,
        /// The call, with the name that it was about.
        call: String,
        /// What it said, and the permission that is missing where that is known.
        why: String,
    },
    /// It did not happen, and will not: a value too large, a name that is being deleted, a store that cannot be read.
    #[error("{store}: {why}")]
    Impossible {
        /// The store.
        store: String,
        /// What is wrong.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl StoreError {
    /// Asking again may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Unavailable { .. })
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unavailable { hint, .. } | Self::Impossible { hint, .. } => hint.as_deref(),
            Self::Unknown { .. } | Self::Denied { .. } => None,
        }
    }
}

/// What every store refuses: a value that the smallest of them could not keep.
pub fn check_value(store: &str, name: &Name, value: &Secret) -> Result<(), StoreError> {
    let impossible =
        |why, hint: &str| Err(StoreError::Impossible { store: store.to_owned(), why, hint: Some(hint.to_owned()) });
    match value.expose().len() {
        0 => impossible(format!("the value for '{name}' is empty"), "to take a name away, delete it"),
        1..=MAX_VALUE => Ok(()),
        size => impossible(
            format!("the value for '{name}' has {size} bytes, which is more than {MAX_VALUE}"),
            "a store holds keys and tokens; files belong to the project, encrypted if need be",
        ),
    }
}

/// Where the secrets of one cluster are kept. Names are the cluster's; the store puts them where it has been told to.
///
/// Every call either says what is, or fails: [`StoreError::Unknown`] where a write may have happened.
#[async_trait::async_trait]
pub trait SecretStore: fmt::Debug + Send + Sync {
    /// What messages call it: kind and place (`the file store /home/ops/kraken.age`).
    fn describe(&self) -> String;

    /// How long a run asks a store that cannot be used now.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Gives a name its value if it has none. Of any number that race, exactly one hears [`Created::New`].
    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError>;

    /// The value of a name; `None`: it has none.
    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError>;

    /// The value of a name, and when it was written, where the store says that.
    async fn get_dated(&self, name: &Name) -> Result<Option<(Secret, Option<Stamp>)>, StoreError> {
        Ok(self.get(name).await?.map(|value| (value, None)))
    }

    /// Gives a name a value, whatever it had.
    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError>;

    /// Takes a name away; nothing happens where it has no value.
    async fn delete(&self, name: &Name) -> Result<(), StoreError>;

    /// The names that begin with a text, in order.
    async fn list(&self, prefix: &str) -> Result<Vec<Name>, StoreError>;

    /// Deletes everything, for a cluster that is no more. Says how many secrets there were.
    async fn clear(&self) -> Result<usize, StoreError> {
        let names = self.list("").await?;
        for name in &names {
            self.delete(name).await?;
        }
        Ok(names.len())
    }

    /// Proves that it can be written, read and deleted from, with a value of its own.
    async fn probe(&self) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_between_slashes() {
        for good in ["consul/gossip", "consul/token/agent/web-1.eu_2", "a"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "/a", "a/", "a//b", "../a", "a/..", "A", "a b", "a\0", "ä", "a/.b", &"a".repeat(201)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(secret.expose(), "hunter2");
    }
}
