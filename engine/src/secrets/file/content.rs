//! What stands in the file, once it is decrypted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::{Name, Secret};

/// The format that this program writes.
const VERSION: u32 = 1;

/// The secrets of one cluster.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    rollcall_secrets: u32,
    cluster: String,
    /// Tells this store from every other one.
    pub(super) id: String,
    /// Grows with every change.
    pub(super) generation: u64,
    values: BTreeMap<String, Kept>,
}

/// A value inside.
#[derive(PartialEq, Eq)]
struct Kept(Zeroizing<String>);

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept(…)")
    }
}

impl Serialize for Kept {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Zeroizing::new(String::deserialize(deserializer)?)))
    }
}

/// The part that every version has.
#[derive(Deserialize)]
struct Header {
    rollcall_secrets: u32,
}

impl Content {
    /// A store with nothing in it.
    pub(super) fn new(cluster: &str) -> Self {
        Self {
            rollcall_secrets: VERSION,
            cluster: cluster.to_owned(),
            id: uuid::Uuid::new_v4().to_string(),
            generation: 0,
            values: BTreeMap::new(),
        }
    }

    /// Reads a store, which must be that of this cluster. The error says what is wrong, and quotes nothing of it.
    pub(super) fn parse(text: &[u8], cluster: &str) -> Result<Self, String> {
        // serde's own words may quote what they do not like.
        let place = |e: &serde_json::Error| format!("line {}, column {}", e.line(), e.column());
        let header: Header = serde_json::from_slice(text)
            .map_err(|e| format!("what is encrypted in it is no store of Rollcall's ({})", place(&e)))?;
        if header.rollcall_secrets != VERSION {
            return Err(format!(
                "it has version {} of the format, and this program reads version {VERSION}",
                header.rollcall_secrets
            ));
        }
        let content: Self =
            serde_json::from_slice(text).map_err(|e| format!("it is damaged inside ({})", place(&e)))?;
        if content.values.keys().any(|name| Name::new(name).is_err()) {
            return Err("it is damaged inside: one of the names is none".to_owned());
        }
        if content.cluster != cluster {
            return Err(format!("it belongs to the cluster '{}', not to '{cluster}'", content.cluster));
        }
        Ok(content)
    }

    /// The text that is encrypted.
    pub(super) fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
        // With room for all of it, so that growing leaves no copies behind.
        let size: usize = self.values.iter().map(|(name, value)| name.len() + value.0.len() * 2 + 16).sum();
        let mut text = Zeroizing::new(Vec::with_capacity(size + 1024));
        serde_json::to_writer(&mut *text, self)?;
        Ok(text)
    }

    pub(super) fn get(&self, name: &Name) -> Option<Secret> {
        self.values.get(name.as_str()).map(|value| Secret::new(value.0.as_str()))
    }

    /// False where the name has a value.
    pub(super) fn create(&mut self, name: Name, value: Secret) -> bool {
        !self.values.contains_key(name.as_str()) && self.put(name, value)
    }

    /// False where that was the value already.
    pub(super) fn put(&mut self, name: Name, value: Secret) -> bool {
        let value = Kept(Zeroizing::new(value.expose().to_owned()));
        if self.values.get(name.as_str()) == Some(&value) {
            return false;
        }
        self.values.insert(name.as_str().to_owned(), value);
        true
    }

    /// False where there was none.
    pub(super) fn delete(&mut self, name: &Name) -> bool {
        self.values.remove(name.as_str()).is_some()
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<Name> {
        self.values.keys().filter(|name| name.starts_with(prefix)).filter_map(|name| Name::new(name).ok()).collect()
    }
}
