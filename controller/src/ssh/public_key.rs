//! A host's public key as it stands in files and on the wire, free of any library's types.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// A public key: the blob of RFC 4253 §6.6, whose first string names the algorithm.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    blob: Vec<u8>,
}

impl PublicKey {
    /// From the wire. `None` when the blob does not start with an algorithm's name.
    pub fn from_blob(blob: Vec<u8>) -> Option<Self> {
        blob_algorithm(&blob)?;
        Some(Self { blob })
    }

    /// From the two words of a key line; the name must be the one inside the blob.
    pub fn from_words(algorithm: &str, base64: &str) -> Option<Self> {
        let key = Self::from_blob(STANDARD.decode(base64).ok()?)?;
        (key.algorithm() == algorithm).then_some(key)
    }

    /// `ssh-ed25519`, `ssh-rsa`, `ecdsa-sha2-nistp256`, …
    pub fn algorithm(&self) -> &str {
        blob_algorithm(&self.blob).unwrap_or_default()
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// The name that people use: `ED25519`, `RSA`, `ECDSA`.
    pub fn short_name(&self) -> &'static str {
        short_name(self.algorithm())
    }
}

/// `ALGORITHM BASE64`, as it stands in known_hosts.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm(), STANDARD.encode(&self.blob))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm(), self.fingerprint())
    }
}

fn blob_algorithm(blob: &[u8]) -> Option<&str> {
    let (length, rest) = blob.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let name = rest.get(..length)?;
    let name = std::str::from_utf8(name).ok()?;
    // A key has something behind its name.
    (rest.len() > length && is_algorithm(name)).then_some(name)
}

/// Is it the name of a host key algorithm?
pub(super) fn is_algorithm(word: &str) -> bool {
    word.starts_with("ssh-")
        || word.starts_with("ecdsa-sha2-")
        || word.starts_with("sk-ssh-")
        || word.starts_with("sk-ecdsa-")
}

fn short_name(algorithm: &str) -> &'static str {
    match algorithm {
        "ssh-ed25519" => "ED25519",
        "ssh-rsa" => "RSA",
        "ssh-dss" => "DSA",
        a if a.starts_with("ecdsa-sha2-") => "ECDSA",
        a if a.starts_with("sk-") => "security key",
        _ => "unknown",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const ED: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    /// A key that differs for each seed; only good for comparing.
    pub(in super::super) fn sample(seed: u8) -> PublicKey {
        let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
        blob.extend([seed; 32]);
        PublicKey::from_blob(blob).expect("a well-formed blob")
    }

    #[test]
    fn words_round_trip_and_must_agree() {
        let key = PublicKey::from_words("ssh-ed25519", ED).expect("a good key");
        assert_eq!(key.to_string(), format!("ssh-ed25519 {ED}"));
        assert!(PublicKey::from_words("ssh-rsa", ED).is_none());
        assert!(PublicKey::from_words("ssh-ed25519", "AAAA").is_none());
        assert!(PublicKey::from_words("ssh-ed25519", "not base64!").is_none());
    }

    #[test]
    fn fingerprint_is_that_of_ssh_keygen() {
        // Checked with: ssh-keygen -lf on the line `ssh-ed25519 <ED>`.
        let key = PublicKey::from_words("ssh-ed25519", ED).expect("a good key");
        assert_eq!(key.fingerprint(), FINGERPRINT_OF_ED);
    }

    const FINGERPRINT_OF_ED: &str = "SHA256:T7SvZ2cslqpPj6nKzitCBHHlpVF3r3MvLwmFL0fk0IE";
}
