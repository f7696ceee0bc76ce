//! The ring in which a product's agents gossip: its members, and the keys with which they encrypt. Both products have the same kind.

use std::{collections::BTreeMap, fmt};

use super::error::ApiError;
use crate::secrets::Secret;

/// A member of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its node's name.
    pub name: String,
    /// `alive`, `leaving`, `left`, `failed`, `unknown`.
    pub state: &'static str,
}

impl Member {
    /// It answers.
    pub fn is_alive(&self) -> bool {
        self.state == "alive"
    }

    /// It said farewell, or was made to: no member any more.
    pub fn is_gone(&self) -> bool {
        self.state == "left"
    }
}

/// The keys of one ring, with how many members have each.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring {
    /// The ring of all datacenters' servers.
    pub wan: bool,
    /// Members that have a key, by key.
    pub keys: BTreeMap<String, usize>,
    /// Members that encrypt with a key, by key; `None`: the product does not tell.
    pub primary_keys: Option<BTreeMap<String, usize>>,
    /// Members that were asked.
    pub members: usize,
}

/// Keys are secrets.
impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("wan", &self.wan).field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// A product whose agents gossip.
pub trait Gossip {
    /// The members, as the agent that is asked knows them.
    fn members(&self) -> Result<Vec<Member>, ApiError>;
    /// The keys of all rings; none where gossip is not encrypted. Every member is asked.
    fn keyring(&self) -> Result<Vec<Ring>, ApiError>;
    /// Gives every member a key besides those it has.
    fn install_key(&self, key: &Secret) -> Result<(), ApiError>;
    /// Makes every member encrypt with a key that it has.
    fn use_key(&self, key: &Secret) -> Result<(), ApiError>;
    /// Takes a key from every member; not the one that it encrypts with.
    fn remove_key(&self, key: &Secret) -> Result<(), ApiError>;
}
