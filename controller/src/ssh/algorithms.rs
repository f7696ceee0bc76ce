//! Which algorithms are offered, and in which order.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, cipher, compression, kex};

/// By price: curve25519 costs a tenth of the post-quantum hybrids of OpenSSH on the host's side.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::MLKEM768X25519_SHA256,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G18_SHA512,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
];

/// Announce extensions (RFC 8308) and strict key exchange; no algorithms, always sent.
const EXTENSIONS: &[kex::Name] = &[kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];

/// AES-GCM first: both ends have instructions for it.
const CIPHERS: &[cipher::Name] =
    &[cipher::AES_256_GCM, cipher::CHACHA20_POLY1305, cipher::AES_256_CTR, cipher::AES_128_CTR];

const HOST_KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

#[derive(Debug)]
pub(super) struct Algorithms {
    kex: Vec<kex::Name>,
}

impl Algorithms {
    /// `kex`: the user's own list, which replaces ours.
    pub(super) fn new(kex: Option<&[String]>) -> Result<Self, String> {
        let mut chosen = match kex {
            None => KEX.to_vec(),
            Some([]) => return Err("ssh.kex is empty; hint: remove it, or name an algorithm".to_owned()),
            Some(names) => names.iter().map(|name| named(name)).collect::<Result<_, _>>()?,
        };
        chosen.extend_from_slice(EXTENSIONS);
        Ok(Self { kex: chosen })
    }

    /// `known`: algorithms of the keys that are recorded for the host; they come first.
    pub(super) fn preferred(&self, known: &[String], certificates: bool) -> Preferred {
        let mut keys = HOST_KEYS.to_vec();
        keys.sort_by_key(|algorithm| {
            let name = match algorithm {
                Algorithm::Rsa { .. } => "ssh-rsa".to_owned(),
                other => other.to_string(),
            };
            known.iter().position(|known| *known == name).unwrap_or(known.len())
        });
        Preferred {
            kex: Cow::Owned(self.kex.clone()),
            host_key_certificates: if certificates { Cow::Borrowed(HOST_KEYS) } else { Cow::Borrowed(&[]) },
            key: Cow::Owned(keys),
            cipher: Cow::Borrowed(CIPHERS),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        }
    }
}

fn named(name: &str) -> Result<kex::Name, String> {
    let found = KEX.iter().find(|known| known.as_ref() == name);
    found.copied().ok_or_else(|| {
        let names = || KEX.iter().map(AsRef::as_ref);
        let near = rollcall_engine::diag::nearest(name, names());
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        format!(
            "ssh.kex: {name:?} is no key exchange that we have{near}\nhint: {}",
            names().collect::<Vec<_>>().join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_kinds_of_keys_come_first() {
        let algorithms = Algorithms::new(None).expect("ours");
        let preferred = algorithms.preferred(&["ssh-rsa".to_owned(), "ecdsa-sha2-nistp384".to_owned()], false);
        let names: Vec<String> = preferred.key.iter().map(ToString::to_string).collect();
        assert_eq!(names[..4], ["rsa-sha2-512", "rsa-sha2-256", "ecdsa-sha2-nistp384", "ssh-ed25519"]);
        assert_eq!(names.len(), HOST_KEYS.len());
        assert!(preferred.host_key_certificates.is_empty());
    }

    #[test]
    fn curve25519_is_first_unless_the_user_says_otherwise() {
        let ours = Algorithms::new(None).expect("ours");
        assert_eq!(ours.kex[0].as_ref(), "curve25519-sha256");
        let names = ["mlkem768x25519-sha256".to_owned()];
        let theirs = Algorithms::new(Some(&names)).expect("a known name");
        let all: Vec<&str> = theirs.kex.iter().map(AsRef::as_ref).collect();
        assert_eq!(all, ["mlkem768x25519-sha256", "ext-info-c", "kex-strict-c-v00@openssh.com"]);
    }

    #[test]
    fn an_unknown_exchange_names_the_nearest() {
        let names = ["mlkem768x25519-sha265".to_owned()];
        let error = Algorithms::new(Some(&names)).expect_err("unknown");
        assert!(error.contains("did you mean mlkem768x25519-sha256?"), "{error}");
        assert!(Algorithms::new(Some(&["none".to_owned()])).is_err());
        assert!(Algorithms::new(Some(&[])).is_err());
    }
}
