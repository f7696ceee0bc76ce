//! Who answers hosts: looks a name up in the [ownership table](super::ownership), reads the store, and makes what Rollcall
//! makes. The controller asks it in a run over SSH, a server's agent at boot.
//!
//! A value is made in this order: a random one is written with a create-only call, then the store is read, and what was
//! read is used. Of any number of makers all use one value so, and a maker that dies after the write has lost nothing.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use globset::{GlobBuilder, GlobMatcher};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use crate::{
    diag::{Diagnostic, Diagnostics},
    project::{Store, texts},
};

use super::{
    MIN_VALUE, Name, Secret, SecretStore, StoreError,
    grants::{GrantError, Wish},
    ownership::{Maker, RESERVED, Reader, Rule},
    redact,
};

mod signing;

/// The first pause between two attempts, doubled with each.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Opens the store, when the first secret is asked for.
pub type Opener = Box<dyn Fn() -> Result<Arc<dyn SecretStore>, GrantError> + Send + Sync>;

/// Told before an attempt is repeated: what is waited for.
pub type Told<'a> = &'a (dyn Fn(String) + Send + Sync);

/// The hosts that may read the user's own secrets: patterns of names, and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own(Vec<OwnRule>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnRule {
    pattern: String,
    groups: Vec<String>,
}

impl Own {
    /// The grants of a project: `grants:` of its store, a mapping of patterns of names to groups.
    pub fn read(store: &Store, out: &mut Diagnostics) -> Self {
        let mut own = Self::default();
        let Some(node) = store.settings.get("grants") else { return own };
        let Ok(entries) = node.map() else {
            out.push(node.expected("a mapping of names of secrets to groups"));
            return own;
        };
        for (name, groups) in entries {
            let groups = texts(groups, out);
            if let Err(why) = own.grant(&name.name, groups) {
                out.push(Diagnostic::error(name.span, why));
            }
        }
        own
    }

    /// Adds a grant. The pattern is a name in which `*` stands for anything inside of a part, `**` for any number of parts.
    pub fn grant(&mut self, pattern: &str, groups: Vec<String>) -> Result<(), String> {
        let first = pattern.split('/').next().unwrap_or_default();
        if RESERVED.contains(&first) {
            return Err(format!(
                "names that begin with '{first}/' are Rollcall's own: the ownership table says who may read them"
            ));
        }
        if pattern.is_empty() || groups.is_empty() {
            return Err("a grant needs a name and at least one group".to_owned());
        }
        matcher(pattern)?;
        self.0.push(OwnRule { pattern: pattern.to_owned(), groups });
        Ok(())
    }

    fn grants(&self, name: &Name, reader: Reader<'_>) -> bool {
        self.0.iter().any(|rule| {
            matcher(&rule.pattern).is_ok_and(|glob| glob.is_match(name.as_str()))
                && rule.groups.iter().any(|group| reader.groups.contains(group))
        })
    }

    /// Groups that may read a name.
    fn readers(&self, name: &Name) -> Vec<&str> {
        let fits = |rule: &&OwnRule| matcher(&rule.pattern).is_ok_and(|glob| glob.is_match(name.as_str()));
        self.0.iter().filter(fits).flat_map(|rule| rule.groups.iter().map(String::as_str)).collect()
    }
}

fn matcher(pattern: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|e| format!("'{pattern}' is no pattern of names: {e}"))
}

/// What came of the last attempt to get a value.
#[derive(Debug, Default)]
struct Slot {
    value: Option<Secret>,
    /// When it failed, what was wished then, and why.
    failed: Option<(Instant, Wish, GrantError)>,
}

/// See the module.
pub struct Issuer {
    open: Opener,
    own: Own,
    store: AsyncMutex<Option<Arc<dyn SecretStore>>>,
    slots: Mutex<HashMap<Name, Arc<AsyncMutex<Slot>>>>,
    /// Signs certificates.
    pki: OnceCell<crate::pki::issuer::Issuer>,
    /// When the authority could not be had, what was wished then, and why.
    unsigned: AsyncMutex<Option<(Instant, Wish, GrantError)>>,
    cluster: String,
    /// Instead of what the store's settings say.
    patience: Option<Duration>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Issuer {
    /// An issuer for one cluster. Nothing is opened until a host asks.
    pub fn new(open: Opener, own: Own) -> Self {
        Self {
            open,
            own,
            store: AsyncMutex::default(),
            slots: Mutex::default(),
            pki: OnceCell::new(),
            unsigned: AsyncMutex::default(),
            cluster: String::new(),
            patience: None,
        }
    }

    /// Whether a host may read a name; the refusal says who may.
    pub fn allowed(&self, reader: Reader<'_>, name: &Name) -> Result<(), GrantError> {
        let groups = match reader.groups {
            [] => "it is in no group".to_owned(),
            groups => format!("its groups are {}", groups.join(", ")),
        };
        let Some(rule) = Rule::of(name) else { return self.allowed_own(reader, name, &groups) };
        if rule.grants(name, reader) {
            return Ok(());
        }
        Err(GrantError::refused_with(
            format!(
                "'{}' may not read the secret '{name}' ({}): it is read by {}",
                reader.host, rule.what, rule.readers
            ),
            format!("{groups}; let a host that may read it do this task (delegate_to), or ask for another secret"),
        ))
    }

    fn allowed_own(&self, reader: Reader<'_>, name: &Name, groups: &str) -> Result<(), GrantError> {
        let first = name.parts().next().unwrap_or_default();
        if RESERVED.contains(&first) {
            let known = super::ownership::TABLE.iter().map(|rule| rule.pattern);
            let hint = crate::diag::suggest(name.as_str(), known.clone())
                .unwrap_or_else(|| format!("known: {}", known.collect::<Vec<_>>().join(", ")));
            return Err(GrantError::refused_with(
                format!("there is no secret '{name}': names that begin with '{first}/' are Rollcall's own"),
                hint,
            ));
        }
        if self.own.grants(name, reader) {
            return Ok(());
        }
        let readers = self.own.readers(name);
        let who = if readers.is_empty() {
            "no group is granted it".to_owned()
        } else {
            format!("it is granted to {}", readers.join(", "))
        };
        let group = reader.groups.iter().find(|g| !matches!(g.as_str(), "all" | "ungrouped"));
        let group = group.map_or("GROUP", String::as_str);
        Err(GrantError::refused_with(
            format!("'{}' may not read the secret '{name}': {who}; {groups}", reader.host),
            format!("grant it in rollcall.yaml, under 'store:': `grants: {{{name}: [{group}]}}`"),
        ))
    }

    /// The value of a name for a host. Hosts that ask for the same name at once share one conversation with the store.
    pub async fn secret(
        &self,
        reader: Reader<'_>,
        name: &str,
        wish: Wish,
        told: Told<'_>,
    ) -> Result<Secret, GrantError> {
        let name = Name::new(name).map_err(|bad| GrantError::refused(bad.to_string()))?;
        self.allowed(reader, &name)?;
        if wish == Wish::Mark && !Rule::of(&name).is_some_and(|rule| rule.maker == Maker::Mark) {
            return Err(GrantError::refused(format!("'{name}' is no mark: it is not to be written down")));
        }
        if Rule::of(&name).is_some_and(|rule| rule.maker == Maker::Issuer) {
            return self.authority(wish, told).await;
        }
        let asked = Instant::now();
        let slot =
            Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default());
        let mut slot = slot.lock().await;
        if let Some(value) = &slot.value {
            return Ok(value.clone());
        }
        // Whoever waited while it failed is not made to wait for the next failure.
        if let Some((when, what, error)) = &slot.failed
            && *when >= asked
            && *what == wish
        {
            return Err(error.clone());
        }
        match self.fetch(&name, wish, told).await {
            Ok(value) => {
                redact::register(&value);
                slot.value = Some(value.clone());
                Ok(value)
            }
            Err(error) => {
                slot.failed = Some((Instant::now(), wish, error.clone()));
                Err(error)
            }
        }
    }

    /// The value of a name for who answers hosts itself; made if it is one that Rollcall makes.
    pub async fn make(&self, name: &Name, told: Told<'_>) -> Result<Secret, GrantError> {
        let value = self.fetch(name, Wish::Make, told).await?;
        redact::register(&value);
        Ok(value)
    }

    /// Keeps a value that the product has made for a host: where the name has none, or where it still has the one that the host
    /// found to be of no use. Returns what the name has then.
    ///
    /// No store compares before it replaces. In one run that is settled here; two controllers that replace a dead value at the
    /// same moment may overwrite each other, and the next run finds one of the two in Nomad and no other in the store.
    pub async fn keep(
        &self,
        reader: Reader<'_>,
        name: &str,
        value: &Secret,
        in_place_of: Option<&Secret>,
        told: Told<'_>,
    ) -> Result<Secret, GrantError> {
        let name = Name::new(name).map_err(|bad| GrantError::refused(bad.to_string()))?;
        redact::register(value);
        self.allowed(reader, &name)?;
        if !Rule::of(&name).is_some_and(|rule| rule.maker == Maker::Product) {
            return Err(GrantError::refused(format!("'{name}' is not for hosts to write")));
        }
        let slot =
            Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(name.clone()).or_default());
        let mut slot = slot.lock().await;
        let store = self.store().await?;
        let patience = self.patience.unwrap_or_else(|| store.patience());
        let there = patient(patience, told, || store.get(&name)).await.map_err(refusal)?;
        let stands = match there {
            None => create(&store, patience, &name, value.clone(), told).await?,
            Some(there) if Some(&there) == in_place_of && there != *value => {
                patient(patience, told, || store.put(&name, value)).await.map_err(refusal)?;
                let read = patient(patience, told, || store.get(&name)).await.map_err(refusal)?;
                read.ok_or_else(|| GrantError::refused(format!("'{name}' was written, and is not there")))?
            }
            Some(there) => there,
        };
        redact::register(&stands);
        *slot = Slot { value: Some(stands.clone()), failed: None };
        Ok(stands)
    }

    async fn fetch(&self, name: &Name, wish: Wish, told: Told<'_>) -> Result<Secret, GrantError> {
        let store = self.store().await?;
        let patience = self.patience.unwrap_or_else(|| store.patience());
        let maker = Rule::of(name).map(|rule| rule.maker);
        let value = match patient(patience, told, || store.get(name)).await.map_err(refusal)? {
            Some(value) => value,
            None => {
                let make = made(&store.describe(), name, maker, wish)?;
                create(&store, patience, name, make, told).await?
            }
        };
        if value.expose().len() < MIN_VALUE {
            return Err(GrantError::refused_with(
                format!(
                    "the secret '{name}' has fewer than {MIN_VALUE} bytes: it could not be kept out of what is shown"
                ),
                format!("give it a longer value: controller secret put {name}"),
            ));
        }
        Ok(value)
    }

    /// The store, opened once.
    pub async fn store(&self) -> Result<Arc<dyn SecretStore>, GrantError> {
        let mut opened = self.store.lock().await;
        if let Some(store) = &*opened {
            return Ok(Arc::clone(store));
        }
        let store = (self.open)()?;
        *opened = Some(Arc::clone(&store));
        Ok(store)
    }
}

/// The value that a name gets which has none, if it is to be made.
fn made(store: &str, name: &Name, maker: Option<Maker>, wish: Wish) -> Result<Secret, GrantError> {
    match (maker, wish) {
        (None, _) => Err(GrantError::refused_with(
            format!("there is no secret '{name}' in {store}"),
            format!("put it there: controller secret put {name}"),
        )),
        (Some(Maker::Uuid | Maker::GossipKey), Wish::Look) => {
            Err(GrantError::NotYet(format!("the secret '{name}' is not there yet: a run makes it")))
        }
        (Some(Maker::Uuid), _) => Ok(Secret::new(uuid::Uuid::new_v4().to_string())),
        (Some(Maker::GossipKey), _) => {
            let mut key = zeroize::Zeroizing::new([0_u8; 32]);
            getrandom::fill(&mut *key).map_err(|e| GrantError::refused(format!("there is no randomness: {e}")))?;
            Ok(Secret::new(BASE64_STANDARD.encode(*key)))
        }
        (Some(Maker::Mark), Wish::Mark) => Ok(Secret::new(jiff::Timestamp::now().to_string())),
        (Some(Maker::Mark), _) => Err(GrantError::NotYet(format!("'{name}' has not been written down yet"))),
        (Some(Maker::Product), _) => {
            Err(GrantError::NotYet(format!("the secret '{name}' is not there yet: a task makes it with the product")))
        }
        // Answered before the store is read.
        (Some(Maker::Issuer), _) => Err(GrantError::refused(format!("'{name}' is made with the cluster's authority"))),
    }
}

/// Writes a value where there is none, and returns the one that is there then.
async fn create(
    store: &Arc<dyn SecretStore>,
    patience: Duration,
    name: &Name,
    value: Secret,
    told: Told<'_>,
) -> Result<Secret, GrantError> {
    redact::register(&value);
    // Where nobody knows whether it happened it is written again, with the same value.
    patient(patience, told, || store.create(name, &value)).await.map_err(refusal)?;
    let read = async || match store.get(name).await? {
        Some(value) => Ok(value),
        // A store that answers from a replica may lag behind its own write.
        None => Err(StoreError::Unavailable {
            store: store.describe(),
            why: format!("'{name}' was written, and is not there"),
            hint: Some("if the store drops what it is given, nothing can be kept in it".to_owned()),
        }),
    };
    patient(patience, told, read).await.map_err(refusal)
}

/// Repeats a call that may yet succeed.
pub(crate) async fn patient<T, F: Future<Output = Result<T, StoreError>>>(
    patience: Duration,
    told: Told<'_>,
    mut call: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let until = Instant::now() + patience;
    let mut pause = PAUSE;
    loop {
        match call().await {
            Err(error) if error.is_passing() && Instant::now() + pause < until => {
                told(format!("the secrets store: {}", with_causes(&error)));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            ended => return ended,
        }
    }
}

pub(crate) fn refusal(error: StoreError) -> GrantError {
    GrantError::Refused { why: with_causes(&error), hint: error.hint().map(str::to_owned) }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
