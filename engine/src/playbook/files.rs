//! The files of a project as the loader sees them: on disk, or embedded in the program.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::model::FileEntry;
use crate::{
    diag::{Diagnostic, Sources, Span},
    digest::{sha256_hex, sha256_of},
    node::Node,
    yaml,
};

/// The folder under which embedded roles are seen.
pub(super) const EMBEDDED: &str = "<embedded>";

/// Where the bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob {
    /// On disk.
    File(PathBuf),
    /// In the program.
    Bytes(Arc<[u8]>),
}

/// Disk and embedded files under one roof. Each file is parsed and hashed once.
#[derive(Debug, Default)]
pub(super) struct Tree {
    embedded: BTreeMap<PathBuf, (Arc<[u8]>, u32)>,
    parsed: HashMap<PathBuf, Option<Arc<Node>>>,
    hashed: HashMap<PathBuf, FileEntry>,
    /// Where to read each hash.
    pub(super) contents: BTreeMap<String, Blob>,
}

/// The path without `.` parts, relative to the working directory where it lies in it.
pub(crate) fn shown(path: &Path) -> PathBuf {
    let clean: PathBuf = path.components().filter(|c| *c != Component::CurDir).collect();
    let short = std::env::current_dir().ok().and_then(|cwd| clean.strip_prefix(cwd).map(Path::to_path_buf).ok());
    short.unwrap_or(clean)
}

/// A folder for messages: the empty path is the working directory.
pub(super) fn folder(dir: &Path) -> String {
    if dir.as_os_str().is_empty() { "./".into() } else { format!("{}/", dir.display()) }
}

/// The nearest of some file names; the endings do not count.
pub(super) fn nearest_file<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let stem = |n: &str| Path::new(n).with_extension("").to_string_lossy().into_owned();
    let same = known.iter().find(|k| stem(k) == stem(name) && k.as_str() != name);
    let stems: Vec<String> = known.iter().map(|k| stem(k)).collect();
    let near = || {
        let near = crate::diag::nearest(&stem(name), stems.iter().map(String::as_str))?.to_owned();
        known.iter().find(|k| stem(k) == near)
    };
    same.or_else(near).map(String::as_str)
}

/// Adds the nearest file name as the hint.
pub(super) fn hint_file(wrong: Diagnostic, name: &str, known: &[String]) -> Diagnostic {
    match nearest_file(name, known) {
        Some(near) => wrong.hint(format!("did you mean '{near}'?")),
        None => wrong,
    }
}

/// True for the two endings of YAML files.
pub(super) fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yml" || e == "yaml")
}

impl Tree {
    /// Adds the files of an embedded role or playbook.
    pub(super) fn embed(&mut self, under: &Path, files: Vec<(PathBuf, Vec<u8>, u32)>) {
        for (path, bytes, mode) in files {
            self.embedded.insert(under.join(path), (bytes.into(), mode));
        }
    }

    fn inside(path: &Path) -> bool {
        path.starts_with(EMBEDDED)
    }

    pub(super) fn is_file(&self, path: &Path) -> bool {
        if Self::inside(path) { self.embedded.contains_key(path) } else { path.is_file() }
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        if Self::inside(path) { self.embedded.keys().any(|p| p != path && p.starts_with(path)) } else { path.is_dir() }
    }

    /// Parses a YAML file once. `Err` only the first time, so that a broken file is told once.
    pub(super) fn yaml(&mut self, sources: &Sources, path: &Path, used: Span) -> Result<Option<Arc<Node>>, Diagnostic> {
        if let Some(known) = self.parsed.get(path) {
            return Ok(known.clone());
        }
        self.parsed.insert(path.to_path_buf(), None);
        let node = Arc::new(self.text(sources, path, used).and_then(|file| yaml::parse(sources, file))?);
        self.parsed.insert(path.to_path_buf(), Some(node.clone()));
        Ok(Some(node))
    }

    /// Registers the text of a file.
    pub(super) fn text(&self, sources: &Sources, path: &Path, used: Span) -> Result<crate::diag::FileId, Diagnostic> {
        if Self::inside(path) {
            let missing = || Diagnostic::error(used, format!("cannot read {}: no such file", path.display()));
            let (bytes, _) = self.embedded.get(path).ok_or_else(missing)?;
            let text = std::str::from_utf8(bytes).map_err(|e| {
                Diagnostic::error(used, format!("{} is not UTF-8 (byte {})", path.display(), e.valid_up_to()))
            })?;
            return Ok(sources.add(path, text));
        }
        sources.read(path).map_err(|d| Diagnostic { span: used, ..d })
    }

    /// All files under a folder, in name order. A link that leads out of the folder, or nowhere, is in the second list.
    pub(super) fn walk(&self, dir: &Path) -> (Vec<PathBuf>, Vec<Diagnostic>) {
        let mut found = Vec::new();
        let mut wrong = Vec::new();
        if Self::inside(dir) {
            found.extend(self.embedded.keys().filter(|p| p.starts_with(dir)).cloned());
        } else if let Ok(root) = dir.canonicalize() {
            walk_disk(dir, &root, &mut HashSet::new(), &mut found, &mut wrong);
        }
        (found, wrong)
    }

    /// Names in a folder that can be listed, for suggestions.
    pub(super) fn names(&self, dir: &Path) -> Vec<String> {
        let (files, _) = self.walk(dir);
        files.iter().filter_map(|f| f.strip_prefix(dir).ok()).map(|p| p.display().to_string()).collect()
    }

    /// Hashes a file once and remembers where its bytes are.
    pub(super) fn entry(&mut self, path: &Path, used: Span) -> Result<FileEntry, Diagnostic> {
        if let Some(entry) = self.hashed.get(path) {
            return Ok(entry.clone());
        }
        let (entry, blob) = match self.embedded.get(path) {
            Some((bytes, mode)) => {
                let entry = FileEntry { hash: sha256_hex(bytes), size: bytes.len() as u64, mode: *mode };
                (entry, Blob::Bytes(bytes.clone()))
            }
            None => {
                let entry = hash_file(path)
                    .map_err(|e| Diagnostic::error(used, format!("cannot read {}: {e}", path.display())))?;
                (entry, Blob::File(std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())))
            }
        };
        self.contents.entry(entry.hash.clone()).or_insert(blob);
        self.hashed.insert(path.to_path_buf(), entry.clone());
        Ok(entry)
    }
}

fn hash_file(path: &Path) -> std::io::Result<FileEntry> {
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    let (hash, size) = sha256_of(file)?;
    Ok(FileEntry { hash, size, mode: mode(&metadata) })
}

fn mode(metadata: &std::fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o7777
}

fn walk_disk(
    dir: &Path,
    root: &Path,
    seen: &mut HashSet<PathBuf>,
    found: &mut Vec<PathBuf>,
    wrong: &mut Vec<Diagnostic>,
) {
    let Ok(real) = dir.canonicalize() else { return };
    if !seen.insert(real) {
        return;
    }
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => {
            wrong.push(Diagnostic::error(Span::NONE, format!("cannot read {}: {e}", dir.display())));
            return;
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_symlink() {
            let leads = path.canonicalize();
            if !leads.as_ref().is_ok_and(|real| real.starts_with(root)) {
                let why = if leads.is_ok() { "leads out of its folder" } else { "leads nowhere" };
                wrong.push(Diagnostic::warning(
                    Span::NONE,
                    format!("the link {} {why}: it is left out", path.display()),
                ));
                continue;
            }
        }
        if path.is_dir() {
            walk_disk(&path, root, seen, found, wrong);
        } else if path.is_file() {
            found.push(path);
        }
    }
}
