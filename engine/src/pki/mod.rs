//! Certificates of a cluster's nodes: one authority for each cluster, a leaf for each node and product.
//!
//! A key is made on the host that uses it and stays there ([`request`]). What a leaf is for is decided by who signs it, from what
//! it knows of the host ([`names`], [`issuer`]): the request proves that the host has the key, and no more. Whether a leaf has to be
//! replaced is the host's to find out ([`leaf`]).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::pem::Pem;

/// The authority: made, brought by the user, read, signing.
pub mod authority;
/// Who may have which certificate, and where the authority is kept.
pub mod issuer;
/// Looking at a leaf that is there.
pub mod leaf;
/// The names of a leaf.
pub mod names;
/// A host's key and its request.
pub mod request;

pub use authority::Authority;
pub use leaf::{Leaf, Reason};
pub use names::{AltName, Holder};

/// Bytes of PEM at most, of any input: a chain of the largest keys stays far below.
const MAX_PEM: usize = 64 * 1024;
/// Clocks of a cluster's hosts may differ by this much: a leaf counts from so long ago.
const SKEW: Duration = Duration::from_hours(1);
/// How long a leaf may be asked for.
pub const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(24 * 3650);

/// Why something with a certificate did not come about. None of the messages quotes what it could not read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Text that is not what it should be.
    #[error("{what}: {why}")]
    Unreadable {
        /// What was read: `the certificate of the authority`.
        what: &'static str,
        /// What is wrong with it.
        why: String,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// A name that cannot be in a certificate.
    #[error("{what} '{text}' cannot be part of a name: {why}")]
    Name {
        /// Which.
        what: &'static str,
        /// The text.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The library for certificates refused.
    #[error("cannot {call}")]
    Library {
        /// What was tried.
        call: &'static str,
        /// What it said.
        #[source]
        source: rcgen::Error,
    },
    /// The authority cannot sign any more, or not what was asked for.
    #[error("the certificate authority {why}")]
    Authority {
        /// What is wrong.
        why: String,
        /// What to do about it.
        hint: Option<&'static str>,
    },
}

impl PkiError {
    fn unreadable(what: &'static str, why: impl Into<String>) -> Self {
        Self::Unreadable { what, why: why.into(), hint: None }
    }

    fn hint_for(what: &'static str, why: impl Into<String>, hint: &'static str) -> Self {
        Self::Unreadable { what, why: why.into(), hint: Some(hint) }
    }

    /// For `map_err` on a call of the library.
    fn library(call: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Library { call, source }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreadable { hint, .. } | Self::Authority { hint, .. } => *hint,
            Self::Name { .. } | Self::Library { .. } => None,
        }
    }

    /// The message with those below it, as one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        text
    }
}

/// Seconds since 1970; what lies before is 0.
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A time for people: `2027-11-21 20:14 UTC`.
pub fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("second {seconds}"), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// The blocks of a PEM text that have one of these labels, in order. Other blocks (parameters of a curve) are passed over.
fn blocks(what: &'static str, text: &str, labels: &[&str]) -> Result<Vec<Pem>, PkiError> {
    if text.len() > MAX_PEM {
        return Err(PkiError::unreadable(what, format!("it has {} bytes, more than {MAX_PEM}", text.len())));
    }
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|e| PkiError::unreadable(what, format!("it is no PEM: {e}")))?;
        if labels.contains(&block.label.as_str()) {
            found.push(block);
        }
    }
    Ok(found)
}

/// The one block of a PEM text that has this label.
fn one_block(what: &'static str, text: &str, label: &'static str) -> Result<Vec<u8>, PkiError> {
    let mut found = blocks(what, text, &[label])?;
    match (found.pop(), found.len()) {
        (Some(block), 0) => Ok(block.contents),
        (Some(_), more) => {
            Err(PkiError::unreadable(what, format!("it has {} blocks '{label}', expected one", more + 1)))
        }
        (None, _) => Err(PkiError::unreadable(what, format!("it has no block '-----BEGIN {label}-----'"))),
    }
}

/// Reads a private key; its text is copied nowhere else.
fn private_key(what: &'static str, text: &str) -> Result<rcgen::KeyPair, PkiError> {
    const LABELS: [&str; 4] = ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"];
    let mut found = blocks(what, text, &LABELS)?;
    let (Some(mut block), more) = (found.pop(), found.len()) else {
        return Err(PkiError::unreadable(what, "it has no block '-----BEGIN PRIVATE KEY-----'"));
    };
    if more > 0 {
        return Err(PkiError::unreadable(what, format!("it has {} private keys, expected one", more + 1)));
    }
    // The older form says in its header that it is encrypted.
    if block.label == "ENCRYPTED PRIVATE KEY" || text.contains("Proc-Type: 4,ENCRYPTED") {
        const HINT: &str = "take the passphrase off first: openssl pkey -in encrypted.pem -out key.pem";
        return Err(PkiError::hint_for(what, "it is encrypted with a passphrase", HINT));
    }
    let key = rcgen::KeyPair::try_from(&block.contents[..]).map_err(|_| {
        const HINT: &str = "ECDSA on P-256 or P-384 is best; RSA of 2048 bits and more, and Ed25519, are taken as well";
        PkiError::hint_for(what, "it is no private key of a kind that is known", HINT)
    });
    zeroize::Zeroize::zeroize(&mut block.contents);
    key
}

#[cfg(test)]
pub(crate) mod tests;
