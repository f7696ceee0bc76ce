//! Files of roles: where a role is, which of its files travel, and what is said of those that are missing.

use std::path::{Path, PathBuf};

use super::{
    files::{EMBEDDED, folder, is_yaml, shown},
    load::{Cx, RoleUsed, State},
    role::Named,
    syntax,
};
use crate::diag::{Diagnostic, Span};

/// The parts of a role's folder.
pub(super) const PARTS: &[&str] = &["tasks", "handlers", "defaults", "vars", "meta", "files", "templates"];

impl State<'_> {
    /// Folders in which a role is looked for.
    pub(super) fn role_folders(&self, is_path: bool, cx: &Cx) -> Vec<PathBuf> {
        let play_dir = cx.files.first().and_then(|f| f.parent()).unwrap_or(Path::new("")).to_path_buf();
        let mut folders: Vec<PathBuf> = Vec::new();
        if is_path {
            folders.extend([play_dir.clone(), cx.dir.clone()]);
        }
        folders.push(play_dir.join("roles"));
        folders.extend(self.loader.project.roles.iter().cloned());
        if let Some(role) = &cx.role {
            folders.extend(role.path.parent().filter(|p| !p.starts_with(EMBEDDED)).map(Path::to_path_buf));
        }
        folders
    }

    pub(super) fn find_role(&mut self, named: &Named, cx: &Cx) -> Option<PathBuf> {
        let name = &named.name;
        let folders = self.role_folders(name.contains('/'), cx);
        for dir in &folders {
            let path = shown(&dir.join(name));
            if path.is_dir() {
                if !PARTS.iter().any(|part| path.join(part).is_dir()) {
                    self.out.push(
                        Diagnostic::error(named.span, format!("{} is no role", folder(&path)))
                            .hint(format!("a role has some of the folders {}", PARTS.join(", "))),
                    );
                    return None;
                }
                return Some(path);
            }
        }
        let path = Path::new(EMBEDDED).join(name);
        if self.tree.is_dir(&path) {
            return Some(path);
        }
        if let Some(files) = self.loader.embedded_roles.get(name) {
            self.tree.embed(&path, files);
            return Some(path);
        }
        self.missing_role(named, &folders);
        None
    }

    fn missing_role(&mut self, named: &Named, folders: &[PathBuf]) {
        let name = &named.name;
        let mut known = self.loader.embedded_roles.names();
        for dir in folders {
            let entries = std::fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
            known.extend(
                entries
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|e| e.path().is_dir())
                    .map(|e| e.file_name().to_string_lossy().into_owned()),
            );
        }
        known.sort();
        known.dedup();
        let mut wrong = Diagnostic::error(named.span, format!("role '{name}' does not exist"));
        if name.matches('.').count() >= 2 {
            wrong = wrong.hint("roles of collections are not read: copy the role's folder to roles/");
        } else if let Some(near) = crate::diag::nearest(name, known.iter().map(String::as_str)) {
            wrong = wrong.hint(format!("did you mean '{near}'?"));
        }
        let mut seen = std::collections::HashSet::new();
        for dir in folders.iter().map(|d| shown(d)).filter(|d| seen.insert(d.clone())) {
            wrong = wrong.note(Span::NONE, format!("looked in {}", folder(&dir)));
        }
        self.out.push(wrong);
    }

    /// The first time a role is used: its files travel, its templates are checked.
    pub(super) fn take_role_files(&mut self, named: &Named, path: &Path) {
        if !self.taken_in.insert(path.to_path_buf()) {
            let known = self.roles_used.iter_mut().find(|role| role.path == path);
            if let Some(role) = known.filter(|_| self.picking == 0) {
                role.possible = false;
            }
            return;
        }
        let embedded = path.starts_with(EMBEDDED);
        let possible = self.picking > 0;
        self.roles_used.push(RoleUsed { name: named.name.clone(), path: path.to_path_buf(), embedded, possible });
        self.take_in(&path.join("files"), named.span);
        let templates = path.join("templates");
        self.take_in(&templates, named.span);
        for file in self.tree.walk(&templates).0 {
            if file.extension().is_some_and(|e| e == "j2" || e == "tera") {
                self.check_template(&file, named.span);
            }
        }
    }

    /// Takes all files of a folder along.
    pub(super) fn take_in(&mut self, dir: &Path, used: Span) {
        let (files, wrong) = self.tree.walk(dir);
        self.out.0.extend(wrong);
        for file in files {
            self.take_file(file, used);
        }
    }

    /// Takes one file along, under the name by which tasks find it.
    pub(super) fn take_file(&mut self, path: PathBuf, used: Span) {
        if self.bundle.files.contains_key(&path) {
            return;
        }
        let entry = self.tree.entry(&path, used);
        if let Some(entry) = self.told(entry) {
            self.bundle.files.insert(path, entry);
        }
    }

    /// Checks the syntax of a template, once.
    pub(super) fn check_template(&mut self, path: &Path, used: Span) {
        if !self.checked.insert(path.to_path_buf()) {
            return;
        }
        let file = self.tree.text(self.loader.sources, path, used);
        let Some(file) = self.told(file) else { return };
        let text = self.loader.sources.get(file).map(|s| s.text.clone()).unwrap_or_default();
        if let Err(wrong) = syntax::template(path, file, &text) {
            self.out.push(wrong);
        }
    }

    pub(super) fn part_file(&self, path: &Path, part: &str, name: &str) -> Option<PathBuf> {
        let dir = path.join(part);
        [name.to_owned(), format!("{name}.yml"), format!("{name}.yaml")]
            .iter()
            .map(|n| dir.join(n))
            .find(|p| self.tree.is_file(p) && is_yaml(p))
    }

    pub(super) fn missing_part(&self, path: &Path, part: &str, name: &str, used: Span) -> Diagnostic {
        let near = self.tree.names(&path.join(part));
        super::files::hint_file(
            Diagnostic::error(used, format!("{}{part}/{name} does not exist", folder(path))),
            name,
            &near,
        )
    }
}
