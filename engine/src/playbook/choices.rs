//! `include_role` with a name that only the host can make: every role that can be meant is read.

use std::{collections::BTreeSet, path::Path};

use super::{
    load::{Cx, State},
    model::{Inherit, RoleChoice},
    role::{Named, Use},
    role_files::PARTS,
    syntax,
};
use crate::{diag::Diagnostic, node::Node, template};

impl State<'_> {
    /// True for a name that only the host can make: of facts, results, loop variables, variables of the inventory.
    pub(super) fn is_picked(&mut self, name: &Node) -> bool {
        syntax::has_expression(name) && template::render(name, &self.known).is_err()
    }

    /// Reads every role that a name with expressions can mean. Roles that need the one at hand cannot be meant.
    pub(super) fn possible_roles(&mut self, name: &Node, used: &Named, inherit: &Inherit, cx: &Cx) -> Vec<RoleChoice> {
        self.check_text(name);
        let text = name.as_str().unwrap_or_default();
        if used.public {
            self.out.push(
                Diagnostic::error(name.span, "'public' needs a role's name that is known before the run")
                    .hint("every role that can be meant is read, and all of them would be public"),
            );
            return Vec::new();
        }
        let pattern = syntax::pattern(text);
        let mut choices = Vec::new();
        for candidate in self.role_names(Path::new(pattern.prefix()).parent().unwrap_or(Path::new("")), cx) {
            if !pattern.is_match(&candidate) {
                continue;
            }
            let named = Named { name: candidate.clone(), ..used.clone() };
            if !self.may_use(&named, cx) {
                continue;
            }
            self.picking += 1;
            let read = self.use_role(named, inherit, cx);
            self.picking -= 1;
            choices.extend(read.map(|Use { id, items }| RoleChoice { name: candidate, role: id, tasks: items }));
        }
        if choices.is_empty() {
            let from = used.tasks_from.as_ref().map(|from| format!(" with tasks/{from}")).unwrap_or_default();
            self.out.push(Diagnostic::error(name.span, format!("no role{from} can be meant by '{text}'")));
        }
        choices
    }

    /// Names of all roles that can be used here, each once, in order; `below` is what their names begin with as a path.
    fn role_names(&self, below: &Path, cx: &Cx) -> Vec<String> {
        let is_path = !below.as_os_str().is_empty();
        let mut names = BTreeSet::new();
        for dir in self.role_folders(is_path, cx) {
            let dir = dir.join(below);
            let entries = std::fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { &dir });
            let folders = entries.into_iter().flatten().flatten().map(|e| e.path());
            for path in folders.filter(|path| PARTS.iter().any(|part| path.join(part).is_dir())) {
                names.extend(path.file_name().map(|name| below.join(name).to_string_lossy().into_owned()));
            }
        }
        if !is_path {
            names.extend(self.loader.embedded_roles.names());
        }
        names.into_iter().collect()
    }

    /// False for a role that cannot be used like this: it is at work already, or lacks the files that the use names.
    fn may_use(&mut self, named: &Named, cx: &Cx) -> bool {
        let Some(path) = self.find_role(named, cx) else { return false };
        let from = named.tasks_from.as_deref().unwrap_or("main");
        let at_work = cx.role.iter().flat_map(|r| &r.chain).any(|(p, f, _)| *p == path && f == from);
        let parts = [
            ("tasks", &named.tasks_from),
            ("vars", &named.vars_from),
            ("defaults", &named.defaults_from),
            ("handlers", &named.handlers_from),
        ];
        let has = |(part, from): &(&str, &Option<String>)| {
            from.as_deref().is_none_or(|name| {
                self.part_file(&path, part, name).is_some() || self.tree.is_dir(&path.join(part).join(name))
            })
        };
        !at_work && parts.iter().all(has)
    }
}
