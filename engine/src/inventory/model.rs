//! Hosts and groups, and the rules that hold between them.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use indexmap::{IndexMap, IndexSet};
use serde_json::Value;

use super::{
    CacheUse, only_warnings,
    vars_files::{VarsDir, VarsDirSpec},
};
use crate::{
    diag::{Diagnostic, Diagnostics, Sources, Span},
    node::Node,
    vars::{Binding, Layer, Var, Vars},
};

/// The group of everything.
pub const ALL: &str = "all";
/// The group of hosts that are in no other.
pub const UNGROUPED: &str = "ungrouped";
const ALL_INDEX: usize = 0;
const UNGROUPED_INDEX: usize = 1;

/// Where an EC2 instance is, so that its console can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRef {
    /// `i-0123…`
    pub id: String,
    /// Its region.
    pub region: String,
    /// How the source reached the account.
    pub account: super::aws_ec2::Account,
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// `inventory_hostname`.
    pub name: String,
    /// The EC2 instance, where a cloud told of it.
    pub instance: Option<InstanceRef>,
    /// The file that named it first.
    pub source: Option<PathBuf>,
    pub(super) layers: Vec<(usize, Arc<Vars>)>,
    direct: IndexSet<usize>,
    groups: Vec<usize>,
}

/// A group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// `ansible_group_priority`: among groups of one depth the higher wins.
    pub priority: i64,
    pub(super) layers: Vec<(usize, Arc<Vars>)>,
    pub(super) hosts: IndexSet<usize>,
    pub(super) children: IndexSet<usize>,
    parents: Vec<usize>,
    depth: usize,
}

impl Group {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            priority: 1,
            layers: Vec::new(),
            hosts: IndexSet::new(),
            children: IndexSet::new(),
            parents: Vec::new(),
            depth: 0,
        }
    }
}

/// Takes hosts, groups and variables from sources.
#[derive(Debug)]
pub struct Builder {
    /// Files.
    pub sources: Arc<Sources>,
    /// What was found wrong so far.
    pub diagnostics: Diagnostics,
    /// Sources answered from the cache.
    pub caches: Vec<CacheUse>,
    hosts: IndexMap<String, Host>,
    groups: IndexMap<String, Group>,
    source: usize,
    source_path: Option<PathBuf>,
}

impl Builder {
    /// An inventory with `all` and `ungrouped` only.
    pub fn new(sources: Arc<Sources>) -> Self {
        let mut builder = Self {
            sources,
            diagnostics: Diagnostics::default(),
            caches: Vec::new(),
            hosts: IndexMap::new(),
            groups: IndexMap::new(),
            source: 0,
            source_path: None,
        };
        builder.add_group(ALL);
        builder.add_group(UNGROUPED);
        builder.link(ALL_INDEX, UNGROUPED_INDEX);
        builder
    }

    /// From now on things come from this file (or from a host list).
    pub fn start_source(&mut self, path: Option<PathBuf>) {
        self.source += 1;
        self.source_path = path;
    }

    /// The group's index; it is made where it is new.
    pub fn add_group(&mut self, name: &str) -> usize {
        match self.groups.get_index_of(name) {
            Some(index) => index,
            None => self.groups.insert_full(name.to_owned(), Group::new(name)).0,
        }
    }

    /// The host's index, as a member of the group; both are made where they are new.
    pub fn add_host(&mut self, name: &str, group: usize) -> usize {
        let index = if let Some(index) = self.hosts.get_index_of(name) {
            index
        } else {
            let host = Host {
                name: name.to_owned(),
                instance: None,
                source: self.source_path.clone(),
                layers: Vec::new(),
                direct: IndexSet::new(),
                groups: Vec::new(),
            };
            self.hosts.insert_full(name.to_owned(), host).0
        };
        self.groups[group].hosts.insert(index);
        self.hosts[index].direct.insert(group);
        index
    }

    /// Notes which instance a host is.
    pub fn set_instance(&mut self, host: usize, instance: InstanceRef) {
        self.hosts[host].instance = Some(instance);
    }

    /// Makes one group a child of another; an error where that closes a circle.
    pub fn add_child(&mut self, parent: usize, child: usize, span: Span) -> Result<(), Diagnostic> {
        if parent == child || self.ancestors(parent).contains(&child) {
            let (parent, child) = (&self.groups[parent].name, &self.groups[child].name);
            return Err(Diagnostic::error(
                span,
                format!("group '{child}' cannot be a child of '{parent}': that closes a circle"),
            ));
        }
        self.link(parent, child);
        Ok(())
    }

    fn link(&mut self, parent: usize, child: usize) {
        if self.groups[parent].children.insert(child) {
            self.groups[child].parents.push(parent);
        }
    }

    fn ancestors(&self, group: usize) -> HashSet<usize> {
        let mut seen = HashSet::new();
        let mut todo = self.groups[group].parents.clone();
        while let Some(next) = todo.pop() {
            if seen.insert(next) {
                todo.extend(&self.groups[next].parents);
            }
        }
        seen
    }

    /// Names of a host's groups as they stand now, sorted, without `all`.
    pub fn group_names(&self, host: usize) -> Vec<String> {
        let mut all = HashSet::new();
        for group in &self.hosts[host].direct {
            all.insert(*group);
            all.extend(self.ancestors(*group));
        }
        let mut names: Vec<String> =
            all.into_iter().filter(|g| *g != ALL_INDEX).map(|g| self.groups[g].name.clone()).collect();
        names.sort();
        names
    }

    /// Sets a variable of a host; a later source wins, an earlier value stays for `--explain`.
    pub fn set_host_var(&mut self, host: usize, name: &str, var: Var) {
        set(&mut self.hosts[host].layers, self.source, name, var);
    }

    /// Sets a variable of a group. `ansible_group_priority` is taken out.
    pub fn set_group_var(&mut self, group: usize, name: &str, node: &Node) -> Result<(), Diagnostic> {
        if name == "ansible_group_priority" {
            self.groups[group].priority = match node.to_value() {
                Value::Number(n) => n.as_i64(),
                Value::String(s) => s.trim().parse().ok(),
                _ => None,
            }
            .ok_or_else(|| node.expected("a whole number for 'ansible_group_priority'"))?;
            return Ok(());
        }
        set(&mut self.groups[group].layers, self.source, name, Var::raw(node.clone(), Layer::InventoryGroup));
        Ok(())
    }

    /// Applies the rules (everything is under `all`, lone hosts are `ungrouped`), reads the folders of variables, and
    /// gives the inventory, or everything that is wrong.
    pub(super) fn finish(mut self, dirs: &[VarsDirSpec], extra: &Arc<Vars>) -> Result<Inventory, Diagnostics> {
        self.reconcile();
        let conflicts: Vec<String> = self.hosts.keys().filter(|h| self.groups.contains_key(*h)).cloned().collect();
        for name in conflicts {
            self.diagnostics.push(
                Diagnostic::warning(Span::NONE, format!("'{name}' is both a host and a group"))
                    .hint("a pattern with just this word means the host"),
            );
        }
        let dirs: Vec<VarsDir> = dirs
            .iter()
            .map(|spec| VarsDir::read(spec, &self.sources, &self.hosts, &self.groups, &mut self.diagnostics))
            .collect();
        let warnings = only_warnings(self.diagnostics)?;
        let uses_hostvars = mentions_hostvars(&self.hosts, &self.groups, &dirs, extra);
        Ok(Inventory {
            localhost: implicit_localhost(&self.hosts),
            hosts: self.hosts,
            groups: self.groups,
            dirs,
            extra: extra.clone(),
            warnings,
            caches: self.caches,
            uses_hostvars,
            groups_value: OnceLock::new(),
            hostvars_value: OnceLock::new(),
        })
    }

    fn reconcile(&mut self) {
        for group in 1..self.groups.len() {
            if self.groups[group].parents.is_empty() {
                self.link(ALL_INDEX, group);
            }
        }
        for host in 0..self.hosts.len() {
            let grouped = self.hosts[host].direct.iter().any(|g| *g > UNGROUPED_INDEX);
            if grouped {
                self.hosts[host].direct.shift_remove(&UNGROUPED_INDEX);
                self.groups[UNGROUPED_INDEX].hosts.shift_remove(&host);
            } else {
                self.hosts[host].direct.insert(UNGROUPED_INDEX);
                self.groups[UNGROUPED_INDEX].hosts.insert(host);
            }
        }
        let mut depths: Vec<Option<usize>> = vec![None; self.groups.len()];
        for group in 0..self.groups.len() {
            self.groups[group].depth = depth(&self.groups, group, &mut depths);
        }
        let ancestors: Vec<HashSet<usize>> = (0..self.groups.len()).map(|g| self.ancestors(g)).collect();
        let mut known: HashMap<Vec<usize>, Vec<usize>> = HashMap::new();
        for host in 0..self.hosts.len() {
            let mut direct: Vec<usize> = self.hosts[host].direct.iter().copied().collect();
            direct.sort_unstable();
            let groups = &self.groups;
            // Hosts of one role share their groups: most are sorted once.
            let sorted = known.entry(direct).or_insert_with_key(|direct| {
                let mut all: HashSet<usize> = HashSet::from([ALL_INDEX]);
                for group in direct {
                    all.insert(*group);
                    all.extend(&ancestors[*group]);
                }
                let mut all: Vec<usize> = all.into_iter().collect();
                all.sort_by(|a, b| {
                    let (a, b) = (&groups[*a], &groups[*b]);
                    (a.depth, a.priority, &a.name).cmp(&(b.depth, b.priority, &b.name))
                });
                all
            });
            self.hosts[host].groups.clone_from(sorted);
        }
    }
}

fn set(layers: &mut Vec<(usize, Arc<Vars>)>, source: usize, name: &str, var: Var) {
    if layers.last().is_none_or(|(s, _)| *s != source) {
        layers.push((source, Arc::new(Vars::new())));
    }
    if let Some((_, vars)) = layers.last_mut() {
        Arc::make_mut(vars).insert(name.to_owned(), var);
    }
}

/// The longest way from `all`.
fn depth(groups: &IndexMap<String, Group>, group: usize, depths: &mut Vec<Option<usize>>) -> usize {
    if let Some(depth) = depths[group] {
        return depth;
    }
    let found = groups[group].parents.iter().map(|p| depth(groups, *p, depths) + 1).max().unwrap_or(0);
    depths[group] = Some(found);
    found
}

fn implicit_localhost(hosts: &IndexMap<String, Host>) -> Option<Host> {
    if hosts.contains_key("localhost") {
        return None;
    }
    let vars = Vars::from([(
        "ansible_connection".to_owned(),
        Var::data(Value::String("local".to_owned()), Layer::InventoryHost),
    )]);
    Some(Host {
        name: "localhost".to_owned(),
        instance: None,
        source: None,
        layers: vec![(0, Arc::new(vars))],
        direct: IndexSet::new(),
        groups: vec![ALL_INDEX],
    })
}

/// True if some text of the inventory asks for other hosts: only then their variables are rendered.
fn mentions_hostvars(
    hosts: &IndexMap<String, Host>,
    groups: &IndexMap<String, Group>,
    dirs: &[VarsDir],
    extra: &Vars,
) -> bool {
    let layers = hosts
        .values()
        .flat_map(|h| h.layers.iter())
        .chain(groups.values().flat_map(|g| g.layers.iter()))
        .map(|(_, vars)| vars.as_ref());
    let mut seen: HashSet<*const Node> = HashSet::new();
    layers.chain(dirs.iter().flat_map(VarsDir::all)).chain([extra]).flat_map(|vars| vars.values()).any(|var| match &var
        .binding
    {
        Binding::Raw(node) => seen.insert(Arc::as_ptr(node)) && node_mentions(node, "hostvars"),
        _ => false,
    })
}

fn node_mentions(node: &Node, word: &str) -> bool {
    match &node.kind {
        crate::node::Kind::Str(text) => text.contains(word),
        crate::node::Kind::List(items) => items.iter().any(|n| node_mentions(n, word)),
        crate::node::Kind::Map(entries) => entries.iter().any(|(_, n)| node_mentions(n, word)),
        _ => false,
    }
}

/// Everything that the sources said.
#[derive(Debug)]
pub struct Inventory {
    pub(super) hosts: IndexMap<String, Host>,
    pub(super) groups: IndexMap<String, Group>,
    pub(super) localhost: Option<Host>,
    pub(super) dirs: Vec<VarsDir>,
    pub(super) extra: Arc<Vars>,
    /// What is worth knowing.
    pub warnings: Vec<Diagnostic>,
    /// Sources that were answered from the cache.
    pub caches: Vec<CacheUse>,
    pub(super) uses_hostvars: bool,
    pub(super) groups_value: OnceLock<Arc<Value>>,
    pub(super) hostvars_value: OnceLock<Arc<Value>>,
}

impl Inventory {
    /// All hosts, in order. The implicit `localhost` is not among them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// A host by its name; `localhost` always exists.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.get(name).or_else(|| self.localhost.as_ref().filter(|h| h.name == name))
    }

    /// All groups, in order, `all` first.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// A group by its name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The groups below a group, in order.
    pub fn children<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Group> {
        group.children.iter().map(|g| &self.groups[*g])
    }

    /// The hosts that are members themselves, in order.
    pub fn direct_hosts<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Host> {
        group.hosts.iter().map(|h| &self.hosts[*h])
    }

    /// A host's groups from the weakest to the strongest: by depth, priority, name; `all` first.
    pub fn groups_of<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a Group> {
        host.groups.iter().map(|g| &self.groups[*g])
    }

    /// Names of a host's groups, sorted, without `all` (`group_names`).
    pub fn group_names(&self, host: &Host) -> Vec<String> {
        let mut names: Vec<String> = self.groups_of(host).map(|g| g.name.clone()).filter(|n| n != ALL).collect();
        names.sort();
        names
    }

    /// All hosts of a group and the groups below it, each once: those of the children first, in order. `all` keeps the
    /// order in which hosts were named.
    pub fn group_hosts(&self, group: &Group) -> Vec<&Host> {
        if group.name == ALL {
            return self.hosts.values().collect();
        }
        let mut found = IndexSet::new();
        let mut seen = HashSet::new();
        if let Some(index) = self.groups.get_index_of(&group.name) {
            self.collect_hosts(index, &mut found, &mut seen);
        }
        found.into_iter().map(|h| &self.hosts[h]).collect()
    }

    fn collect_hosts(&self, group: usize, found: &mut IndexSet<usize>, seen: &mut HashSet<usize>) {
        if !seen.insert(group) {
            return;
        }
        for child in &self.groups[group].children {
            self.collect_hosts(*child, found, seen);
        }
        found.extend(&self.groups[group].hosts);
    }

    pub(super) fn group_indices(host: &Host) -> impl Iterator<Item = usize> + '_ {
        host.groups.iter().copied()
    }

    pub(super) fn is_all(index: usize) -> bool {
        index == ALL_INDEX
    }
}
