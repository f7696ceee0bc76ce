//! The roles and playbooks that come with the program, embedded when it is built.

use std::path::{Path, PathBuf};

/// Where embedded roles and playbooks come from; tests bring their own.
pub trait EmbeddedRoles {
    /// A role's files: relative path, bytes, permission bits.
    fn get(&self, name: &str) -> Option<Vec<(PathBuf, Vec<u8>, u32)>>;
    /// The names of all roles, sorted.
    fn names(&self) -> Vec<String>;
    /// A playbook by its file name.
    fn playbook(&self, name: &str) -> Option<Vec<u8>> {
        let _ = name;
        None
    }
    /// The file names of all playbooks, sorted.
    fn playbooks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A file: path, bytes, permission bits.
type File = (&'static str, &'static [u8], u32);

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The roles and playbooks of this program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embedded;

impl EmbeddedRoles for Embedded {
    fn get(&self, name: &str) -> Option<Vec<(PathBuf, Vec<u8>, u32)>> {
        let inside = |path: &str| Path::new(path).strip_prefix(name).ok().map(Path::to_path_buf);
        let files: Vec<_> = ROLES
            .iter()
            .filter_map(|(path, bytes, mode)| Some((inside(path)?, bytes.to_vec(), *mode)))
            .filter(|(path, ..)| !path.as_os_str().is_empty())
            .collect();
        (!files.is_empty() && !name.contains('/')).then_some(files)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            ROLES.iter().filter_map(|(path, ..)| path.split_once('/')).map(|(role, _)| role.to_owned()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn playbook(&self, name: &str) -> Option<Vec<u8>> {
        PLAYBOOKS.iter().find(|(path, ..)| *path == name).map(|(_, bytes, _)| bytes.to_vec())
    }

    fn playbooks(&self) -> Vec<String> {
        let yaml = |path: &str| Path::new(path).extension().is_some_and(|e| e == "yaml" || e == "yml");
        PLAYBOOKS.iter().map(|(path, ..)| (*path).to_owned()).filter(|p| yaml(p) && !p.contains('/')).collect()
    }
}

/// No roles at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRoles;

impl EmbeddedRoles for NoRoles {
    fn get(&self, _: &str) -> Option<Vec<(PathBuf, Vec<u8>, u32)>> {
        None
    }
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_embedded_role_has_files() {
        for name in Embedded.names() {
            assert!(Embedded.get(&name).is_some_and(|files| !files.is_empty()), "{name}");
        }
        assert!(Embedded.get("no-such-role").is_none());
        for name in Embedded.playbooks() {
            assert!(Embedded.playbook(&name).is_some(), "{name}");
        }
        assert!(Embedded.playbook("no-such.yaml").is_none());
    }
}
