//! Looking at a leaf: whether it can stay.

use std::{collections::BTreeSet, fmt, time::Duration};

use rcgen::PublicKeyData as _;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{AltName, PkiError, authority::Certificate, date, names, one_block, private_key};
use crate::digest::{hex, sha256_hex};

/// What messages call it.
const WHAT: &str = "the certificate";

/// A leaf that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its names.
    pub names: BTreeSet<AltName>,
    /// From when on it counts, in seconds since 1970.
    pub not_before: i64,
    /// Until when, likewise.
    pub not_after: i64,
    /// SHA-256 of the certificate, 64 digits.
    pub fingerprint: String,
    /// Its number, in hexadecimal digits.
    pub serial: String,
    der: Vec<u8>,
    key: Vec<u8>,
}

/// Why a leaf is to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none.
    Missing,
    /// One of the files cannot be used.
    Unusable(String),
    /// Certificate and key are no pair.
    Key,
    /// It is of another authority than the cluster's.
    Authority,
    /// Its names are not those that the node should have.
    Names {
        /// Missing in it.
        missing: BTreeSet<AltName>,
        /// Too many in it.
        extra: BTreeSet<AltName>,
    },
    /// It does not count yet: a clock is wrong.
    Early(i64),
    /// It has ended.
    Ended(i64),
    /// Too little of its life is left.
    Ends(i64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is none yet"),
            Self::Unusable(why) => f.write_str(why),
            Self::Key => f.write_str("the key belongs to another certificate"),
            Self::Authority => f.write_str("the cluster's authority has not signed it"),
            Self::Names { missing, extra } if extra.is_empty() => write!(f, "it lacks {}", names::list(missing)),
            Self::Names { missing, extra } if missing.is_empty() => {
                write!(f, "it is good for {} as well", names::list(extra))
            }
            Self::Names { missing, extra } => {
                write!(f, "it lacks {}, and is good for {} as well", names::list(missing), names::list(extra))
            }
            Self::Early(from) => write!(f, "it counts from {} on only", date(*from)),
            Self::Ended(at) => write!(f, "it ended on {}", date(*at)),
            Self::Ends(at) => write!(f, "it ends on {}", date(*at)),
        }
    }
}

impl Leaf {
    /// Reads one certificate in PEM.
    pub fn read(pem: &str) -> Result<Self, PkiError> {
        let der = one_block(WHAT, pem, "CERTIFICATE")?;
        let unreadable = |_| PkiError::unreadable(WHAT, "it is no certificate in X.509");
        let (_, cert) = X509Certificate::from_der(&der).map_err(unreadable)?;
        let mut names = BTreeSet::new();
        let given = cert.subject_alternative_name().ok().flatten();
        for name in given.iter().flat_map(|found| &found.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.insert(AltName::Dns(name.to_ascii_lowercase())),
                GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                    (Ok(four), _) => names.insert(AltName::Ip(four.into())),
                    (_, Ok(sixteen)) => names.insert(AltName::Ip(sixteen.into())),
                    _ => continue,
                },
                _ => continue,
            };
        }
        Ok(Self {
            names,
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            fingerprint: sha256_hex(&der),
            serial: hex(cert.raw_serial()),
            key: cert.public_key().raw.to_vec(),
            der,
        })
    }

    /// True if a private key (PEM) is this certificate's.
    pub fn fits(&self, key: &str) -> Result<bool, PkiError> {
        Ok(private_key("the key", key)?.subject_public_key_info() == self.key)
    }

    /// True if an authority has signed it.
    pub fn is_signed_by(&self, authority: &Certificate) -> bool {
        X509Certificate::from_der(&self.der).is_ok_and(|(_, cert)| authority.has_signed(&cert))
    }

    /// How long it counts in all, in seconds.
    pub fn life(&self) -> i64 {
        (self.not_after - self.not_before).max(0)
    }

    /// Why it is to be replaced at a time (seconds since 1970), if it is. `before`: how long before its end; a third of its life
    /// by default.
    pub fn due(
        &self,
        key: &str,
        authority: &Certificate,
        wanted: &BTreeSet<AltName>,
        now: i64,
        before: Option<Duration>,
    ) -> Option<Reason> {
        match self.fits(key) {
            Ok(true) => {}
            Ok(false) => return Some(Reason::Key),
            Err(error) => return Some(Reason::Unusable(error.to_string())),
        }
        if !self.is_signed_by(authority) {
            return Some(Reason::Authority);
        }
        if self.names != *wanted {
            let missing = wanted.difference(&self.names).cloned().collect();
            let extra = self.names.difference(wanted).cloned().collect();
            return Some(Reason::Names { missing, extra });
        }
        self.late(now, before, authority.not_after)
    }

    /// `last`: when its authority ends.
    fn late(&self, now: i64, before: Option<Duration>, last: i64) -> Option<Reason> {
        if now < self.not_before {
            return Some(Reason::Early(self.not_before));
        }
        if now >= self.not_after {
            return Some(Reason::Ended(self.not_after));
        }
        let share = self.life() / 3;
        let before = before.map_or(share, |given| i64::try_from(given.as_secs()).unwrap_or(i64::MAX));
        // A leaf that ends with its authority is as long as one can be.
        (self.not_after - now < before && self.not_after < last).then_some(Reason::Ends(self.not_after))
    }
}
