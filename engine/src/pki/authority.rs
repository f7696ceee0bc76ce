//! A cluster's certificate authority.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use uuid::Uuid;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, time::ASN1Time};

use super::{AltName, Holder, PkiError, SKEW, blocks, date, one_block, private_key, request::strong, seconds};
use crate::secrets::Secret;

/// What messages call its certificate, and its key.
const WHAT: &str = "the certificate of the authority";
const KEY: &str = "the key of the authority";
/// How long one of ours counts: ten years.
const LIFETIME: Duration = Duration::from_hours(24 * 3652);

/// An authority's certificate: what everybody may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// In PEM: one block.
    pub pem: String,
    /// From when on it counts, in seconds since 1970.
    pub not_before: i64,
    /// Until when, likewise.
    pub not_after: i64,
    /// Whom it names.
    pub subject: String,
    der: Vec<u8>,
}

impl Certificate {
    /// Reads one certificate in PEM, and makes sure that it is one that signs others. Whether it has ended is not looked at.
    pub fn read(pem: &str) -> Result<Self, PkiError> {
        let many = blocks(WHAT, pem, &["CERTIFICATE"])?.len();
        if many > 1 {
            const HINT: &str = "give the one certificate that signs, without those above it";
            return Err(PkiError::hint_for(WHAT, format!("it has {many} blocks 'CERTIFICATE', expected one"), HINT));
        }
        let der = one_block(WHAT, pem, "CERTIFICATE")?;
        let pem = encode("CERTIFICATE", &der);
        let (not_before, not_after, subject) = {
            let unreadable = |_| PkiError::unreadable(WHAT, "it is no certificate in X.509");
            let (_, cert) = X509Certificate::from_der(&der).map_err(unreadable)?;
            signs(&cert)?;
            let validity = cert.validity();
            (validity.not_before.timestamp(), validity.not_after.timestamp(), cert.subject().to_string())
        };
        Ok(Self { pem, not_before, not_after, subject, der })
    }

    /// True if its key has signed a certificate in its name.
    pub(super) fn has_signed(&self, cert: &X509Certificate<'_>) -> bool {
        X509Certificate::from_der(&self.der).is_ok_and(|(_, own)| {
            cert.issuer().as_raw() == own.subject().as_raw() && cert.verify_signature(Some(own.public_key())).is_ok()
        })
    }

    /// SHA-256 of the certificate, 64 digits.
    pub fn fingerprint(&self) -> String {
        crate::digest::sha256_hex(&self.der)
    }

    /// Why it does not count at a time.
    fn counts(&self, now: i64) -> Result<(), PkiError> {
        let (why, hint) = if now >= self.not_after {
            let hint = "docs/certificates.md tells how a cluster gets a new one";
            (format!("ended on {}", date(self.not_after)), hint)
        } else if now < self.not_before {
            (format!("counts from {} on only", date(self.not_before)), "is this machine's clock right?")
        } else {
            return Ok(());
        };
        Err(PkiError::Authority { why, hint: Some(hint) })
    }
}

/// Refuses certificates that Consul and Nomad would not take for an authority's.
fn signs(cert: &X509Certificate<'_>) -> Result<(), PkiError> {
    const LEAF: &str = "it is the certificate of a host or a person: give that of the authority which signs those";
    let constraints = cert.basic_constraints().ok().flatten();
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err(PkiError::hint_for(WHAT, "it may not sign others (its basic constraints lack CA:TRUE)", LEAF));
    }
    if cert.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(PkiError::hint_for(WHAT, "it may not sign others (its key usage lacks keyCertSign)", LEAF));
    }
    // What the library that writes leaves can repeat as the name of their issuer.
    if cert.subject().iter_rdn().any(|part| part.iter().count() != 1) || cert.subject().iter_rdn().count() == 0 {
        return Err(PkiError::unreadable(WHAT, "its subject is empty, or has several attributes in one part"));
    }
    strong(WHAT, cert.public_key())
}

/// An authority with its key.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    issuer: rcgen::Issuer<'static, KeyPair>,
    record: Secret,
}

impl Authority {
    /// Makes one for a cluster: ECDSA on P-256, ten years, and nothing but leaves below it.
    pub fn make(cluster: &str, now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::library("make a key"))?;
        let now = seconds(now);
        let mut params = CertificateParams::default();
        // A common name has 64 characters at most.
        let cluster: String = if cluster.is_empty() { "cluster" } else { cluster }.chars().take(40).collect();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{cluster} certificate authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        params.not_before = time(now - whole(SKEW))?.to_datetime();
        params.not_after = time(now + whole(LIFETIME))?.to_datetime();
        let certificate = params.self_signed(&key).map_err(PkiError::library("sign the authority's certificate"))?;
        Self::read(&key.serialize_pem(), &encode("CERTIFICATE", certificate.der()))
    }

    /// Reads one that somebody else has made: key and certificate in PEM. That it has not ended is for [`Self::usable`].
    pub fn read(key: &str, certificate: &str) -> Result<Self, PkiError> {
        let certificate = Certificate::read(certificate)?;
        let pair = private_key(KEY, key)?;
        let public = pair.subject_public_key_info();
        let belongs = X509Certificate::from_der(&certificate.der).is_ok_and(|(_, own)| own.public_key().raw == public);
        if !belongs {
            const HINT: &str = "compare: openssl pkey -in key.pem -pubout; openssl x509 -in ca.pem -noout -pubkey";
            return Err(PkiError::hint_for(KEY, "it belongs to another certificate than the one beside it", HINT));
        }
        let record = Secret::new(format!("{}\n{}", key.trim(), certificate.pem));
        let der = rcgen::Issuer::from_ca_cert_der(&certificate.der.as_slice().into(), pair);
        let issuer = der.map_err(PkiError::library("use the authority's certificate"))?;
        Ok(Self { certificate, issuer, record })
    }

    /// Reads what [`Self::record`] gave.
    pub fn from_record(record: &Secret) -> Result<Self, PkiError> {
        Self::read(record.expose(), record.expose())
    }

    /// Key and certificate in one text, so that no store can hold the one without the other.
    pub fn record(&self) -> &Secret {
        &self.record
    }

    /// What everybody may have.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Makes sure that it counts now, and that what it signs will be taken for its own.
    pub fn usable(&self, now: SystemTime) -> Result<(), PkiError> {
        let key = super::request::make()?;
        let public = super::request::public_key(&key.csr)?;
        let product = crate::secrets::grants::Product::Consul;
        let (place, domain, node, address) = ("trial", "consul", "trial", "127.0.0.1");
        let holder = Holder { product, server: false, client: true, place, domain, node, address };
        self.sign(&public, &holder, Duration::from_mins(1), now).map(drop)
    }

    /// Signs a leaf for a key: the holder's names, serving and being a client, from a while ago (clocks differ) until `lifetime`
    /// from now, or until the authority itself ends. Returns PEM.
    pub fn sign(
        &self,
        key: &SubjectPublicKeyInfo,
        holder: &Holder<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let (own, now) = (&self.certificate, seconds(now));
        own.counts(now)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let title = holder.title()?;
        if title.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, title);
        }
        for name in holder.names()? {
            params.subject_alt_names.push(match name {
                AltName::Ip(address) => SanType::IpAddress(address),
                AltName::Dns(name) => SanType::DnsName(name.try_into().map_err(PkiError::library("write a name"))?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        // Of a short life the time before must not be the greater part: what is left of it is compared with the whole.
        let skew = whole(SKEW.min(lifetime / 10));
        params.not_before = time((now - skew).max(own.not_before))?.to_datetime();
        params.not_after = time((now + whole(lifetime)).min(own.not_after))?.to_datetime();
        let leaf = params.signed_by(key, &self.issuer).map_err(PkiError::library("sign a certificate"))?;
        let taken = X509Certificate::from_der(leaf.der()).is_ok_and(|(_, cert)| own.has_signed(&cert));
        if !taken {
            // The name of the issuer is written anew, and not every way of writing one can be repeated.
            let why = "has a subject that cannot be repeated exactly in what it signs".to_owned();
            let hint = Some("give one whose subject is a common name only");
            return Err(PkiError::Authority { why, hint });
        }
        Ok(encode("CERTIFICATE", leaf.der()))
    }
}

/// 126 random bits: nobody can tell the next number.
fn serial() -> SerialNumber {
    let mut bytes = *Uuid::new_v4().as_bytes();
    // Neither negative nor shorter than others.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn whole(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> Result<ASN1Time, PkiError> {
    ASN1Time::from_timestamp(seconds).map_err(|_| PkiError::unreadable("the time", "it cannot be in a certificate"))
}

/// A PEM block with lines of 64 characters.
fn encode(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        // Base64 is ASCII: no character is cut.
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
