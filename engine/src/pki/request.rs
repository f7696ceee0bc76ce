//! A host's key, and the request that proves that the host has it.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use x509_parser::{
    certification_request::X509CertificationRequest, prelude::FromDer as _, public_key::PublicKey, x509,
};
use zeroize::Zeroizing;

use super::{PkiError, one_block};

/// What messages call it.
const WHAT: &str = "the request for a certificate";
/// Bytes of a request at most: one of RSA with 8192 bits has 4,000.
const MAX: usize = 16 * 1024;

/// A new key, and the request for it.
pub struct Made {
    /// PKCS #8 in PEM.
    pub key: Zeroizing<String>,
    /// PKCS #10 in PEM.
    pub csr: String,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("csr", &self.csr).finish_non_exhaustive()
    }
}

/// Makes a key (ECDSA on P-256) and the request for it, which names nothing.
pub fn make() -> Result<Made, PkiError> {
    let key = KeyPair::generate().map_err(PkiError::library("make a key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(PkiError::library("make a request"))?;
    let csr = request.pem().map_err(PkiError::library("write a request"))?;
    Ok(Made { key: Zeroizing::new(key.serialize_pem()), csr })
}

/// The public key of a request whose signature holds. Whatever else the request says (names, uses) is not looked at.
pub fn public_key(csr: &str) -> Result<SubjectPublicKeyInfo, PkiError> {
    if csr.len() > MAX {
        return Err(PkiError::unreadable(WHAT, format!("it has {} bytes, more than {MAX}", csr.len())));
    }
    let der = one_block(WHAT, csr, "CERTIFICATE REQUEST")?;
    let unreadable = || PkiError::unreadable(WHAT, "it is no PKCS #10 request");
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| unreadable())?;
    if !rest.is_empty() {
        return Err(unreadable());
    }
    let key = &request.certification_request_info.subject_pki;
    strong(WHAT, key)?;
    request.verify_signature().map_err(|_| {
        PkiError::unreadable(WHAT, "its signature does not fit its key, so nothing proves that the host has the key")
    })?;
    let public = SubjectPublicKeyInfo::from_der(key.raw).map_err(PkiError::library("read the key of a request"))?;
    // What is signed must be what was proven.
    if public.subject_public_key_info() != key.raw {
        return Err(PkiError::unreadable(WHAT, "its key is written in an unusual form"));
    }
    Ok(public)
}

/// Refuses keys that are too weak, and kinds that Consul and Nomad may not know.
pub(super) fn strong(what: &'static str, key: &x509::SubjectPublicKeyInfo<'_>) -> Result<(), PkiError> {
    const EXPECTED: &str = "expected ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits";
    let found = match key.parsed() {
        Ok(PublicKey::RSA(rsa)) if (2048..=8192).contains(&rsa.key_size()) => return Ok(()),
        Ok(PublicKey::RSA(rsa)) => format!("RSA of {} bits", rsa.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
            match curve.as_deref() {
                // P-256, P-384
                Some("1.2.840.10045.3.1.7" | "1.3.132.0.34") => return Ok(()),
                Some(other) => format!("a key on the curve {other}"),
                None => "a key on a curve without a name".to_owned(),
            }
        }
        _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => return Ok(()),
        _ => format!("a key of the kind {}", key.algorithm.algorithm.to_id_string()),
    };
    Err(PkiError::unreadable(what, format!("it has {found}, {EXPECTED}")))
}
