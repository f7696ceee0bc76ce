//! Certificates of nodes that the cluster's own authority has signed, with little life left, or none.

use std::time::{Duration, SystemTime};

use rollcall_engine::pki::{Authority, Holder, request};
use rollcall_engine::secrets::Secret;

use crate::Project;

/// How long before now such a leaf is signed: an authority counts since an hour before it was made.
const AGO: Duration = Duration::from_mins(50);

/// A node's certificate and key, in PEM.
#[derive(Debug, Clone)]
pub struct Aged {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Aged {
    /// A leaf with less than a third of its life left: about twenty minutes of a bit more than an hour.
    #[track_caller]
    pub fn ends_soon(project: &Project, holder: &Holder<'_>) -> Self {
        Self::sign(project, holder, AGO + Duration::from_mins(20))
    }

    /// A leaf that ended a minute ago.
    #[track_caller]
    pub fn ended(project: &Project, holder: &Holder<'_>) -> Self {
        Self::sign(project, holder, AGO.saturating_sub(Duration::from_mins(1)))
    }

    #[track_caller]
    fn sign(project: &Project, holder: &Holder<'_>, life: Duration) -> Self {
        let record = Secret::new(project.controller(["secret", "get", "ca/key"]).ok().out);
        let authority = Authority::from_record(&record).expect("the store holds the cluster's authority");
        let made = request::make().expect("a key can be made");
        let key = request::public_key(&made.csr).expect("the request is our own");
        let certificate = authority
            .sign(&key, holder, life, SystemTime::now() - AGO)
            .expect("the authority counts since an hour ago");
        Self { certificate, key: made.key.to_string() }
    }

    /// A line for root's shell that puts it in the place of what is in a folder, with the same owners and modes.
    pub fn install(&self, folder: &str) -> String {
        let Self { certificate, key } = self;
        format!("cat > {folder}/cert.pem <<'EOT'\n{certificate}EOT\ncat > {folder}/key.pem <<'EOT'\n{key}EOT\n")
    }
}
