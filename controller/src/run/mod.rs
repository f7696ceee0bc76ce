//! A run: what it is made of, and its two phases.
//!
//! - [`job`]: options, inventory and playbooks become a [`Job`];
//! - [`pack`]: what travels to all hosts, compressed once;
//! - [`remote`]: one host's connection;
//! - [`dispatcher`]: owns the state of the run; everything that happens passes through it;
//! - [`turns`]: what hosts wait for;
//! - [`order`]: turns that come after those of other hosts;
//! - [`meetings`]: where they wait for each other's results;
//! - [`batches`]: `serial`;
//! - [`secrets`]: who answers for secrets, and what is told without them;
//! - [`events`]: what is told.

pub(crate) mod batches;
pub(crate) mod dispatcher;
pub(crate) mod events;
pub(crate) mod meetings;
pub(crate) mod order;
pub(crate) mod pack;
pub(crate) mod remote;
pub(crate) mod secrets;
pub(crate) mod turns;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
};

use rollcall_engine::{playbook::model::Bundle, secrets::issuer::Issuer, vars::Vars};
use serde_json::Value;

/// A run, settled before any host is touched.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its name in locks, records and events.
    pub(crate) run_id: String,
    /// `user@machine`.
    pub(crate) owner: String,
    /// Names of the playbooks, for people.
    pub(crate) playbooks: Vec<String>,
    /// The plays.
    pub(crate) bundle: Arc<Bundle>,
    /// Where the content of each hash is.
    pub(crate) contents: HashMap<String, Content>,
    /// Hosts that some play addresses, in the order of the inventory.
    pub(crate) hosts: Vec<HostSpec>,
    /// Names of all hosts of the inventory.
    pub(crate) known: BTreeSet<String>,
    /// For each play its hosts, as indexes.
    pub(crate) play_hosts: Vec<Vec<usize>>,
    /// What templates see of other hosts, where something refers to them.
    pub(crate) shared: Option<rollcall_engine::protocol::Shared>,
    /// `-e`.
    pub(crate) extra: Arc<Vars>,
    /// Nothing is changed.
    pub(crate) check: bool,
    /// Diffs are built.
    pub(crate) diff: bool,
    /// `-b`.
    pub(crate) become_default: bool,
    /// Answers hosts that ask for secrets.
    pub(crate) issuer: Arc<Issuer>,
}

/// Where content is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// In a file.
    File(PathBuf),
    /// In this program (one of our own roles).
    Bytes(Arc<Vec<u8>>),
}

impl Content {
    /// Reads it.
    pub(crate) fn read(&self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::File(path) => std::fs::read(path),
            Self::Bytes(bytes) => Ok(bytes.to_vec()),
        }
    }
}

/// A host of the run.
#[derive(Clone, Debug)]
pub(crate) struct HostSpec {
    /// Its name in the inventory.
    pub(crate) name: String,
    /// How to get at it, or why not.
    pub(crate) way: Result<remote::Way, String>,
    /// Who logs in.
    pub(crate) login_user: String,
    /// Variables of the inventory, weakest layer first.
    pub(crate) vars: Vec<Arc<Vars>>,
    /// Its groups.
    pub(crate) group_names: Vec<String>,
    /// What roles know of the cluster.
    pub(crate) cluster: Value,
    /// It is an EC2 instance.
    pub(crate) ec2: bool,
    /// Another host of the inventory whose node has the same name in secrets: they differ in capitals only.
    pub(crate) twin: Option<String>,
}
