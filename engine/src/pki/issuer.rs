//! Who signs: the cluster's authority in its store, and what a host may get from it.
//!
//! The same for a run over SSH, where the controller calls it, and for first boot, where a server does. Of the host it takes only
//! what its caller knows by itself (name, groups, address): never what the host says of itself.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::OnceCell;

use super::{Authority, Holder, LIFETIMES, PkiError, request};
use crate::secrets::{
    Created, Name, Secret, SecretStore,
    grants::{GrantError, Issued, Product, SignRequest},
    issuer::{Told, patient, refusal},
    ownership::{Reader, Role},
    redact,
};

/// Where the authority is kept: its key, with its certificate in the same text.
pub const KEY: &str = "ca/key";
/// Its certificate alone, for those who may read no key.
pub const CERTIFICATE: &str = "ca/certificate";

/// A host, as who answers it knows it.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// Name and groups.
    pub reader: Reader<'a>,
    /// Where others of the cluster reach it.
    pub address: &'a str,
}

/// Signs for the hosts of one cluster.
#[derive(Debug)]
pub struct Issuer {
    store: Arc<dyn SecretStore>,
    cluster: String,
    /// Read once: it does not change under a run.
    authority: OnceCell<Authority>,
}

impl Issuer {
    /// For the cluster whose secrets are in this store.
    pub fn new(store: Arc<dyn SecretStore>, cluster: impl Into<String>) -> Self {
        Self { store, cluster: cluster.into(), authority: OnceCell::new() }
    }

    /// The authority. With `make` it is made if there is none; otherwise (a check) that is [`GrantError::NotYet`].
    pub async fn authority(&self, make: bool, now: SystemTime, told: Told<'_>) -> Result<&Authority, GrantError> {
        self.authority.get_or_try_init(|| self.load(make, now, told)).await
    }

    /// The authority's certificate, PEM: the value of [`CERTIFICATE`].
    pub async fn certificate(&self, make: bool, now: SystemTime, told: Told<'_>) -> Result<Secret, GrantError> {
        Ok(Secret::new(self.authority(make, now, told).await?.certificate().pem.clone()))
    }

    /// Signs what a host asks for, with the names that it may have.
    pub async fn sign(
        &self,
        host: Host<'_>,
        request: &SignRequest,
        now: SystemTime,
        told: Told<'_>,
    ) -> Result<Issued, GrantError> {
        let (server, client) = kinds(host.reader, request.product)?;
        let holder = Holder {
            product: request.product,
            server,
            client,
            place: &request.place,
            domain: &request.domain,
            node: host.reader.host,
            address: host.address,
        };
        let lifetime = Duration::from_secs(request.lifetime);
        if !LIFETIMES.contains(&lifetime) {
            let why = format!("a certificate for {} seconds: expected a minute to ten years", request.lifetime);
            return Err(GrantError::refused(why));
        }
        let key = request::public_key(&request.csr).map_err(|e| refused(&e))?;
        // A wish that cannot be met makes no authority.
        holder.names().map_err(|e| refused(&e))?;
        let authority = self.authority(true, now, told).await?;
        let certificate = authority.sign(&key, &holder, lifetime, now).map_err(|e| refused(&e))?;
        Ok(Issued { certificate, authority: authority.certificate().pem.clone() })
    }

    async fn load(&self, make: bool, now: SystemTime, told: Told<'_>) -> Result<Authority, GrantError> {
        let shelf = Shelf { store: &*self.store, told };
        let record = match shelf.get(KEY).await? {
            Some(record) => record,
            None if shelf.get(CERTIFICATE).await?.is_some() => return Err(lost(&*self.store)),
            None if !make => {
                return Err(GrantError::NotYet(
                    "the cluster has no certificate authority yet: the run makes it".into(),
                ));
            }
            None => self.make(now, shelf).await?,
        };
        redact::register(&key_of(&record));
        let authority = Authority::from_record(&record).map_err(|error| GrantError::Refused {
            why: format!("{}: '{KEY}' cannot be used: {}", self.store.describe(), error.chain()),
            hint: Some("docs/certificates.md tells what to do where the authority is lost".into()),
        })?;
        if make {
            shelf.publish(&authority).await?;
        }
        Ok(authority)
    }

    /// Of any number that make one at once, all use the one that the store took.
    async fn make(&self, now: SystemTime, shelf: Shelf<'_>) -> Result<Secret, GrantError> {
        let made = Authority::make(&self.cluster, now).map_err(|e| refused(&e))?;
        shelf.create(KEY, made.record()).await?;
        let missing = || format!("{}: '{KEY}' was written, and is not there", self.store.describe());
        shelf.get(KEY).await?.ok_or_else(|| GrantError::refused(missing()))
    }
}

/// Which of a product's certificates a host may have: server, client.
fn kinds(reader: Reader<'_>, product: Product) -> Result<(bool, bool), GrantError> {
    let has = |role: Role| reader.groups.iter().any(|group| group == role.group());
    let (servers, clients) = match product {
        Product::Consul => (Role::ConsulServer, Role::ConsulClient),
        Product::Nomad => (Role::NomadServer, Role::NomadClient),
    };
    // A host has one Consul, and a server's does for a client too; Nomad may be both in one.
    let (server, client) = (has(servers), has(clients));
    if !server && !client {
        let why = format!("{} is neither in {} nor in {}", reader.host, servers.group(), clients.group());
        return Err(GrantError::refused(format!("{why}: it gets no certificate of {}", product.name())));
    }
    Ok((server, client && !(server && product == Product::Consul)))
}

/// Puts an authority that somebody else has made into a store. With one there already it is refused, unless `replace`.
///
/// Returns what was there of before: true if it was replaced.
pub async fn import(
    store: &dyn SecretStore,
    authority: &Authority,
    replace: bool,
    now: SystemTime,
    told: Told<'_>,
) -> Result<bool, GrantError> {
    let shelf = Shelf { store, told };
    authority.usable(now).map_err(|e| refused(&e))?;
    if shelf.create(KEY, authority.record()).await? == Created::New {
        shelf.publish(authority).await?;
        return Ok(false);
    }
    let there = shelf.get(KEY).await?;
    let same = there.as_ref().is_some_and(|record| record == authority.record());
    if !same && !replace {
        return Err(GrantError::Refused {
            why: format!("{} has a certificate authority already", store.describe()),
            hint: Some(
                "--replace puts this one in its place: until each host has its new certificate, hosts with a new and with an \
                 old one do not talk to each other"
                    .into(),
            ),
        });
    }
    if !same {
        shelf.put(KEY, authority.record()).await?;
    }
    shelf.publish(authority).await?;
    Ok(!same)
}

/// The authority of a store, if it has one.
pub async fn find(store: &dyn SecretStore, told: Told<'_>) -> Result<Option<Authority>, GrantError> {
    let Some(record) = (Shelf { store, told }).get(KEY).await? else { return Ok(None) };
    Authority::from_record(&record).map(Some).map_err(|e| refused(&e))
}

/// A store, asked until it answers or patience ends.
#[derive(Clone, Copy)]
struct Shelf<'a> {
    store: &'a dyn SecretStore,
    told: Told<'a>,
}

impl Shelf<'_> {
    async fn get(self, name: &str) -> Result<Option<Secret>, GrantError> {
        let name = known(name)?;
        patient(self.store.patience(), self.told, || self.store.get(&name)).await.map_err(refusal)
    }

    /// With the same value each time, so that it makes no difference whether a try of which nobody knows happened.
    async fn create(self, name: &str, value: &Secret) -> Result<Created, GrantError> {
        let name = known(name)?;
        patient(self.store.patience(), self.told, || self.store.create(&name, value)).await.map_err(refusal)
    }

    async fn put(self, name: &str, value: &Secret) -> Result<(), GrantError> {
        let name = known(name)?;
        patient(self.store.patience(), self.told, || self.store.put(&name, value)).await.map_err(refusal)
    }

    /// Makes the certificate known beside the key; the key's record decides.
    async fn publish(self, authority: &Authority) -> Result<(), GrantError> {
        let pem = Secret::new(authority.certificate().pem.clone());
        let there = self.get(CERTIFICATE).await?;
        if there.as_ref() == Some(&pem) {
            return Ok(());
        }
        if there.is_none() && self.create(CERTIFICATE, &pem).await? == Created::New {
            return Ok(());
        }
        if self.get(CERTIFICATE).await?.as_ref() == Some(&pem) { Ok(()) } else { self.put(CERTIFICATE, &pem).await }
    }
}

/// The key is written before the certificate: a certificate alone was left behind. A new authority would replace the certificates
/// of all hosts, so nobody makes one without being told to.
fn lost(store: &dyn SecretStore) -> GrantError {
    GrantError::Refused {
        why: format!("{} has '{CERTIFICATE}' and no '{KEY}': the key of the cluster's authority is lost", store.describe()),
        hint: Some(
            "bring the key back from a backup; docs/certificates.md tells how the authority is replaced where there is none".into(),
        ),
    }
}

/// The part of a record that is to be seen nowhere.
fn key_of(record: &Secret) -> Secret {
    let text = record.expose();
    Secret::new(text.split_once("-----BEGIN CERTIFICATE").map_or(text, |(key, _)| key))
}

fn known(name: &str) -> Result<Name, GrantError> {
    Name::new(name).map_err(|e| GrantError::refused(e.to_string()))
}

fn refused(error: &PkiError) -> GrantError {
    GrantError::Refused { why: error.chain(), hint: error.hint().map(str::to_owned) }
}
