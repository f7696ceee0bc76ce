//! Certificates: the cluster's authority out of the same store.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{Issuer, Told};
use crate::{
    pki::issuer::{self as pki, Host},
    secrets::{
        Secret,
        grants::{GrantError, Issued, SignRequest, Wish},
    },
};

impl Issuer {
    /// Says which cluster it is: a new authority bears its name.
    pub fn of_cluster(mut self, name: &str) -> Self {
        name.clone_into(&mut self.cluster);
        self
    }

    /// Signs what a host asks for, with the names that it may have.
    pub async fn sign(&self, host: Host<'_>, request: &SignRequest, told: Told<'_>) -> Result<Issued, GrantError> {
        self.authority(Wish::Make, told).await?;
        self.pki().await?.sign(host, request, SystemTime::now(), told).await
    }

    /// The authority's certificate. It is no secret: nothing hides it.
    ///
    /// Hosts that ask at once share one conversation with the store, also one that fails.
    pub(super) async fn authority(&self, wish: Wish, told: Told<'_>) -> Result<Secret, GrantError> {
        let asked = Instant::now();
        let mut failed = self.unsigned.lock().await;
        if let Some((when, what, error)) = &*failed
            && *when >= asked
            && *what == wish
        {
            return Err(error.clone());
        }
        let found = async { self.pki().await?.certificate(wish != Wish::Look, SystemTime::now(), told).await }.await;
        if let Err(error) = &found {
            *failed = Some((Instant::now(), wish, error.clone()));
        }
        found
    }

    async fn pki(&self) -> Result<&pki::Issuer, GrantError> {
        let made = async || {
            let store = self.store().await?;
            Ok(pki::Issuer::new(Arc::clone(&store), self.cluster.clone()))
        };
        self.pki.get_or_try_init(made).await
    }
}
