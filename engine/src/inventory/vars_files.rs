//! `group_vars/` and `host_vars/`: files and folders named after groups and hosts.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use indexmap::IndexMap;

use super::model::{ALL, Group, Host};
use crate::{
    diag::{Diagnostic, Diagnostics, Sources, Span},
    node::{Kind, Node},
    vars::{Layer, Var, Vars},
    yaml,
};

const EXTENSIONS: [&str; 3] = ["yml", "yaml", "json"];
const MAX_DEPTH: usize = 16;

/// Beside what the folders stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    Inventory,
    Playbook,
}

/// A folder in which `group_vars/` and `host_vars/` may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VarsDirSpec {
    pub(super) path: PathBuf,
    pub(super) beside: Beside,
}

/// What was read there: by group or host, one set of variables per file, the last one wins.
#[derive(Debug)]
pub(super) struct VarsDir {
    pub(super) beside: Beside,
    pub(super) groups: HashMap<usize, Vec<Arc<Vars>>>,
    pub(super) hosts: HashMap<usize, Vec<Arc<Vars>>>,
}

impl VarsDir {
    pub(super) fn read(
        spec: &VarsDirSpec,
        sources: &Sources,
        hosts: &IndexMap<String, Host>,
        groups: &IndexMap<String, Group>,
        out: &mut Diagnostics,
    ) -> Self {
        let mut found = Self { beside: spec.beside, groups: HashMap::new(), hosts: HashMap::new() };
        for (name, files) in listing(&spec.path.join("group_vars"), out) {
            let Some(index) = groups.get_index_of(&name) else { continue };
            let layer = match (name == ALL, spec.beside) {
                (true, Beside::Inventory) => Layer::InventoryAllVars,
                (true, Beside::Playbook) => Layer::PlaybookAllVars,
                (false, Beside::Inventory) => Layer::InventoryGroupVars,
                (false, Beside::Playbook) => Layer::PlaybookGroupVars,
            };
            found.groups.insert(index, read_files(&files, layer, sources, out));
        }
        let host_layer = match spec.beside {
            Beside::Inventory => Layer::InventoryHostVars,
            Beside::Playbook => Layer::PlaybookHostVars,
        };
        for (name, files) in listing(&spec.path.join("host_vars"), out) {
            let Some(index) = hosts.get_index_of(&name) else { continue };
            found.hosts.insert(index, read_files(&files, host_layer, sources, out));
        }
        found
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Vars> {
        self.groups.values().chain(self.hosts.values()).flatten().map(AsRef::as_ref)
    }
}

/// The files that belong to each name in a folder. Read once per folder, however many hosts there are.
fn listing(dir: &Path, out: &mut Diagnostics) -> BTreeMap<String, Vec<PathBuf>> {
    // Candidates per name with their rank: without extension, .yml, .yaml, .json: the first one is read.
    let mut candidates: BTreeMap<String, Vec<(usize, PathBuf)>> = BTreeMap::new();
    for (file_name, path) in sorted_entries(dir, out) {
        if file_name.starts_with('.') || file_name.ends_with('~') {
            continue;
        }
        candidates.entry(file_name.clone()).or_default().push((0, path.clone()));
        for (rank, extension) in EXTENSIONS.iter().enumerate() {
            if let Some(name) = file_name.strip_suffix(extension).and_then(|n| n.strip_suffix('.')) {
                candidates.entry(name.to_owned()).or_default().push((rank + 1, path.clone()));
            }
        }
    }
    let mut found = BTreeMap::new();
    for (name, mut paths) in candidates {
        paths.sort();
        let mut paths = paths.into_iter().map(|(_, path)| path);
        let Some(first) = paths.next() else { continue };
        for other in paths {
            out.push(
                Diagnostic::warning(
                    Span::NONE,
                    format!("{} is not read: {} stands for the same name", other.display(), first.display()),
                )
                .hint("put both into one folder of that name"),
            );
        }
        let mut files = Vec::new();
        if first.is_dir() {
            folder(&first, &mut files, 0, out);
        } else {
            files.push(first);
        }
        found.insert(name, files);
    }
    found
}

/// Files of a folder, with those of its folders, in name order.
fn folder(dir: &Path, files: &mut Vec<PathBuf>, depth: usize, out: &mut Diagnostics) {
    if depth > MAX_DEPTH {
        out.push(Diagnostic::error(Span::NONE, format!("{} nests more than {MAX_DEPTH} folders", dir.display())));
        return;
    }
    for (name, path) in sorted_entries(dir, out) {
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let extension = path.extension().and_then(|e| e.to_str());
        if path.is_dir() {
            if extension.is_none() {
                folder(&path, files, depth + 1, out);
            }
        } else if extension.is_none_or(|e| EXTENSIONS.contains(&e)) {
            files.push(path);
        }
    }
}

fn sorted_entries(dir: &Path, out: &mut Diagnostics) -> Vec<(String, PathBuf)> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            out.push(Diagnostic::error(Span::NONE, format!("{} must be a folder", dir.display())));
            return Vec::new();
        }
        Err(e) => {
            out.push(Diagnostic::error(Span::NONE, format!("cannot read the folder {}: {e}", dir.display())));
            return Vec::new();
        }
    };
    let mut names: Vec<(String, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.file_name().to_str()?.to_owned(), entry.path())))
        .collect();
    names.sort();
    names
}

fn read_files(files: &[PathBuf], layer: Layer, sources: &Sources, out: &mut Diagnostics) -> Vec<Arc<Vars>> {
    let mut found = Vec::new();
    for path in files {
        match read_file(path, layer, sources, out) {
            Ok(vars) => found.push(Arc::new(vars)),
            Err(e) => out.push(e),
        }
    }
    found
}

fn read_file(path: &Path, layer: Layer, sources: &Sources, out: &mut Diagnostics) -> Result<Vars, Diagnostic> {
    let file = sources.read(path)?;
    let node = parse_vars_file(sources, file)?;
    let Kind::Map(entries) = node.kind else { return Ok(Vars::new()) };
    let mut vars = Vars::with_capacity(entries.len());
    for (key, value) in entries {
        if key.name == "ansible_group_priority" {
            out.push(
                Diagnostic::warning(key.span, "'ansible_group_priority' has no effect in a file of variables").hint(
                    "give it under 'vars:' of the group in the inventory file: it decides how these files are merged",
                ),
            );
            continue;
        }
        vars.insert(key.name, Var::raw(value, layer));
    }
    Ok(vars)
}

/// A file of variables: a mapping, or nothing.
pub(super) fn parse_vars_file(sources: &Sources, file: crate::diag::FileId) -> Result<Node, Diagnostic> {
    if sources.get(file).is_some_and(|s| s.text.starts_with("$ANSIBLE_VAULT;")) {
        return Err(Diagnostic::error(
            Span { file, line: 1, column: 1 },
            "files encrypted by Ansible Vault are not read",
        )
        .hint("keep secrets in the secrets store, or decrypt the file: ansible-vault decrypt FILE"));
    }
    let node = yaml::parse(sources, file)?;
    if !node.is_null() {
        node.map().map_err(|_| {
            node.expected("a mapping of variables").hint("a file of variables has one 'name: value' per line")
        })?;
    }
    Ok(node)
}
