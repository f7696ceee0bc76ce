//! Variables: where each came from, which one wins, and the scope that expressions see.
//!
//! Precedence is Ansible's for the layers that exist here; [`Layer`]'s order is that table. Values stay unrendered until
//! an expression asks for them.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{diag::Span, node::Node, secrets::grants::Grants};

/// What the hosts of a run know of each other: `hostvars`.
pub mod hosts;

/// Where a variable comes from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// `roles/NAME/defaults`.
    RoleDefaults,
    /// `vars:` of a group in an inventory source; what a cloud says of an instance.
    InventoryGroup,
    /// `group_vars/all` beside the inventory.
    InventoryAllVars,
    /// `group_vars/all` beside the playbook.
    PlaybookAllVars,
    /// `group_vars/GROUP` beside the inventory.
    InventoryGroupVars,
    /// `group_vars/GROUP` beside the playbook.
    PlaybookGroupVars,
    /// Variables of a host in an inventory source.
    InventoryHost,
    /// `host_vars/HOST` beside the inventory.
    InventoryHostVars,
    /// `host_vars/HOST` beside the playbook.
    PlaybookHostVars,
    /// Facts.
    Facts,
    /// `vars:` of the play.
    Play,
    /// `vars_files:` of the play.
    VarsFiles,
    /// `roles/NAME/vars`.
    RoleVars,
    /// `vars:` of a block.
    Block,
    /// `vars:` of a task.
    Task,
    /// `include_vars`.
    IncludeVars,
    /// `set_fact` and `register`.
    Registered,
    /// Parameters given where the role is named.
    RoleParams,
    /// `vars:` of an include.
    IncludeParams,
    /// `-e`.
    Extra,
    /// Names that the run itself gives: `inventory_hostname`, `groups`, `hostvars`, loop variables.
    Magic,
}

/// A value, rendered or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binding {
    /// Written by a person: expressions in it are rendered when it is used.
    Raw(Arc<Node>),
    /// Data (facts, results, tags, file contents): never rendered.
    Data(Arc<Value>),
    /// Data that something secret was asked for to make: whatever is made of it is secret too.
    #[serde(skip)]
    Secret(Arc<Value>),
    /// Not known in this check: it depends on something that was not done. The text says on what.
    Unknown(String),
    /// `hostvars`: made on each host, it never travels.
    #[serde(skip)]
    Hosts(Arc<hosts::HostVars>),
}

/// A variable with its history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Var {
    /// The value.
    pub binding: Binding,
    /// Where it stands.
    pub origin: Span,
    /// Its layer.
    pub layer: Layer,
}

impl Var {
    /// A variable that a person wrote.
    pub fn raw(node: Node, layer: Layer) -> Self {
        Self { origin: node.span, binding: Binding::Raw(Arc::new(node)), layer }
    }

    /// A variable that is data.
    pub fn data(value: Value, layer: Layer) -> Self {
        Self { origin: Span::NONE, binding: Binding::Data(Arc::new(value)), layer }
    }

    /// The same, as something secret where it is.
    pub fn data_of(value: Value, layer: Layer, secret: bool) -> Self {
        let value = Arc::new(value);
        let binding = if secret { Binding::Secret(value) } else { Binding::Data(value) };
        Self { origin: Span::NONE, binding, layer }
    }

    /// True for what is made of something secret.
    pub fn is_secret(&self) -> bool {
        matches!(self.binding, Binding::Secret(_))
    }
}

/// Variables by name, in order.
pub type Vars = IndexMap<String, Var>;

/// Where `lookup(…)` gets its answers. Set on the controller only ([`Scope::with_lookups`]): on a host
/// they are refused.
pub trait Lookups: std::fmt::Debug + Send + Sync {
    /// A variable of the environment; `None` where it is not set.
    fn env(&self, name: &str) -> Result<Option<String>, String>;

    /// The text of a file, by the path that the expression names.
    fn file(&self, path: &str) -> Result<String, String>;
}

/// Lookups in this process's environment and in files below a folder.
#[derive(Clone, Debug)]
pub struct LocalLookups {
    base: PathBuf,
}

impl LocalLookups {
    /// Relative paths are taken from `base`.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }
}

impl Lookups for LocalLookups {
    fn env(&self, name: &str) -> Result<Option<String>, String> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err("its value is no UTF-8 text".to_owned()),
        }
    }

    fn file(&self, path: &str) -> Result<String, String> {
        let path = self.base.join(path);
        std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))
    }
}

/// What an expression can see: layers of variables, the last one wins. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    layers: Vec<Arc<Vars>>,
    lookups: Option<Arc<dyn Lookups>>,
    secrets: Option<Asked>,
}

/// Who answers `secret(…)`, and whether it was asked.
#[derive(Clone, Debug)]
struct Asked {
    grants: Arc<dyn Grants>,
    tainted: Arc<AtomicBool>,
}

impl Scope {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One layer.
    pub fn of(vars: impl Into<Arc<Vars>>) -> Self {
        Self { layers: vec![vars.into()], ..Self::default() }
    }

    /// This scope with one more layer on top.
    pub fn with(&self, vars: impl Into<Arc<Vars>>) -> Self {
        let mut layers = self.layers.clone();
        layers.push(vars.into());
        Self { layers, lookups: self.lookups.clone(), secrets: self.secrets.clone() }
    }

    /// This scope, with answers for `lookup(…)`.
    pub fn with_lookups(&self, lookups: Arc<dyn Lookups>) -> Self {
        Self { lookups: Some(lookups), ..self.clone() }
    }

    /// This scope, with answers for `secret(…)`. Nothing secret was asked for yet.
    pub fn with_secrets(&self, grants: &Arc<dyn Grants>) -> Self {
        let asked = Asked { grants: Arc::clone(grants), tainted: Arc::default() };
        Self { secrets: Some(asked), ..self.clone() }
    }

    /// This scope, for what leaves no trace in what is made: conditions. What it asks for does not taint this one.
    pub fn aside(&self) -> Self {
        match &self.secrets {
            Some(asked) => self.with_secrets(&asked.grants),
            None => self.clone(),
        }
    }

    /// What answers `secret(…)`; nothing on the controller.
    pub fn secrets(&self) -> Option<&Arc<dyn Grants>> {
        self.secrets.as_ref().map(|asked| &asked.grants)
    }

    /// Notes that something secret was asked for in this scope, and in those that it was made from.
    pub(crate) fn taint(&self) {
        if let Some(asked) = &self.secrets {
            asked.tainted.store(true, Ordering::Relaxed);
        }
    }

    /// True once something secret was asked for in this scope, or in one made from it.
    pub fn tainted(&self) -> bool {
        self.secrets.as_ref().is_some_and(|asked| asked.tainted.load(Ordering::Relaxed))
    }

    /// What answers `lookup(…)`; nothing on a host.
    pub fn lookups(&self) -> Option<&dyn Lookups> {
        self.lookups.as_deref()
    }

    /// This scope under all layers of another.
    pub fn over(&self, stronger: &Self) -> Self {
        let layers = self.layers.iter().chain(&stronger.layers).cloned().collect();
        Self { layers, lookups: stronger.lookups.clone(), secrets: stronger.secrets.clone() }
    }

    /// The variable that wins.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.layers.iter().rev().find_map(|layer| layer.get(name))
    }

    /// All variables of a name, the winner first: for `--explain`.
    pub fn history<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Var> {
        self.layers.iter().rev().filter_map(move |layer| layer.get(name))
    }

    /// All names, each once, strongest layer first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut seen = std::collections::HashSet::new();
        self.layers.iter().rev().flat_map(|l| l.keys()).map(String::as_str).filter(move |n| seen.insert(*n))
    }
}
