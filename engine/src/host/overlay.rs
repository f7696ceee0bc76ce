//! Changes kept in memory over a machine that is only read.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    Attrs, Command, Details, Effect, FileKind, Group, Meta, Output, Read, Unit, User,
    atomic::{self, explain},
    real,
};
use crate::modules::Failure;

mod write;

/// Where systemd looks for unit files.
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// A machine whose changes are only recorded.
pub struct Overlay<'a> {
    base: &'a dyn Read,
    /// By path without links in its parents.
    nodes: BTreeMap<PathBuf, Entry>,
    users: Option<Vec<User>>,
    groups: Option<Vec<Group>>,
    units: BTreeMap<String, Unit>,
    packages: BTreeMap<String, Option<String>>,
    hostname: Option<String>,
    uncertain: bool,
    /// Files made here, for their identities.
    made: u64,
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("paths", &self.nodes.keys().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Gone,
    There(Meta, Holds),
}

#[derive(Clone, Debug)]
enum Holds {
    /// New content.
    Content(Arc<[u8]>),
    /// The content of a file of the base.
    Base(PathBuf),
    /// Content that nobody knows before the run (a download).
    Unknown,
    /// A link's target.
    Link(PathBuf),
    /// A folder; its entries in the base count unless it is `fresh`.
    Folder { fresh: bool },
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl<'a> Overlay<'a> {
    /// Nothing changed yet.
    pub fn new(base: &'a dyn Read) -> Self {
        Self {
            base,
            nodes: BTreeMap::new(),
            users: None,
            groups: None,
            units: BTreeMap::new(),
            packages: BTreeMap::new(),
            hostname: None,
            uncertain: false,
            made: 0,
        }
    }

    /// The machine below, without what is recorded here.
    pub(crate) fn base(&self) -> &dyn Read {
        self.base
    }

    /// Says that something could not be simulated: what is read from now on may be stale.
    pub fn mark_uncertain(&mut self) {
        self.uncertain = true;
    }

    /// Looks up a path that has no links in its parents.
    fn lookup(&self, path: &Path) -> io::Result<Option<(Meta, Holds)>> {
        for ancestor in path.ancestors() {
            match self.nodes.get(ancestor) {
                Some(Entry::There(meta, holds)) if ancestor == path => return Ok(Some((meta.clone(), holds.clone()))),
                Some(Entry::There(_, Holds::Folder { fresh: false })) => break,
                Some(_) => return Ok(None),
                None => {}
            }
        }
        let Some(meta) = self.base.meta(path)? else { return Ok(None) };
        let holds = match meta.kind {
            FileKind::Symlink => Holds::Link(self.base.read_link(path)?),
            FileKind::Directory => Holds::Folder { fresh: false },
            FileKind::File | FileKind::Other => Holds::Base(path.to_path_buf()),
        };
        Ok(Some((meta, holds)))
    }

    /// The path with the links of its parents resolved; those of its last part too where `last` is set.
    fn resolve(&self, path: &Path, last: bool) -> io::Result<PathBuf> {
        let mut rest: Vec<OsString> = parts(path);
        let (mut out, mut links) = (PathBuf::from("/"), 0);
        while let Some(part) = rest.pop() {
            if part == ".." {
                out.pop();
                continue;
            }
            out.push(&part);
            if rest.is_empty() && !last {
                break;
            }
            if let Some((_, Holds::Link(target))) = self.lookup(&out)? {
                links += 1;
                if links > 40 {
                    return Err(io::Error::other("too many levels of symbolic links"));
                }
                out.pop();
                if target.is_absolute() {
                    out = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
        }
        Ok(out)
    }

    fn find(&self, path: &Path, follow: bool) -> io::Result<Option<(Meta, Holds)>> {
        self.lookup(&self.resolve(path, follow)?)
    }

    /// Where something is to be put, with what stands there; the errors are those of the real machine.
    fn target(&self, path: &Path) -> Result<(PathBuf, Option<Meta>), Failure> {
        let (parent, _) = atomic::place(path)?;
        match self.find(parent, true).map_err(|e| explain("look at", parent, &e))? {
            Some((meta, _)) if meta.kind == FileKind::Directory => {}
            found => return Err(atomic::no_parent(path, parent, found.is_some())),
        }
        let at = self.resolve(path, false).map_err(|e| explain("look at", path, &e))?;
        let found = self.lookup(&at).map_err(|e| explain("look at", path, &e))?;
        Ok((at, found.map(|(meta, _)| meta)))
    }

    fn target_of_file(&self, path: &Path) -> Result<(PathBuf, Option<Meta>), Failure> {
        match self.target(path)? {
            (_, Some(meta)) if meta.kind == FileKind::Directory => Err(atomic::is_folder(path)),
            found => Ok(found),
        }
    }

    /// Attributes of something new, or of a file that replaces another.
    fn new_meta(&mut self, kind: FileKind, size: u64, attrs: &Attrs, kept: Option<&Meta>) -> Result<Meta, Failure> {
        self.made += 1;
        let (owner, group) = self.self_names();
        let mode = match kind {
            FileKind::Directory if attrs.owner.is_some() || attrs.group.is_some() => 0o755,
            FileKind::Directory => 0o777 & !umask(),
            FileKind::Symlink => 0o777,
            FileKind::File | FileKind::Other => 0o666 & !umask(),
        };
        let mut meta = Meta {
            kind,
            mode: kept.map_or(mode, |m| m.mode),
            owner: kept.map_or(owner, |m| m.owner.clone()),
            group: kept.map_or(group, |m| m.group.clone()),
            size,
            modified: self.base.now(),
            identity: (u64::MAX, self.made),
        };
        self.apply_attrs(&mut meta, attrs)?;
        Ok(meta)
    }

    fn self_names(&self) -> (String, String) {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let user = self.users().unwrap_or_default().into_iter().find(|u| u.uid == Some(uid));
        let group = self.groups().unwrap_or_default().into_iter().find(|g| g.gid == Some(gid));
        (user.map_or_else(|| uid.to_string(), |u| u.name), group.map_or_else(|| gid.to_string(), |g| g.name))
    }

    fn apply_attrs(&self, meta: &mut Meta, attrs: &Attrs) -> Result<(), Failure> {
        if let Some(mode) = attrs.mode.filter(|_| meta.kind != FileKind::Symlink) {
            meta.mode = mode;
        }
        if let Some(owner) = &attrs.owner {
            // A number is shown by its name, as the real machine does.
            let uid = real::user_id(self, owner)?;
            let users = self.users().unwrap_or_default();
            let named = users.iter().find(|u| u.name == *owner || (uid.is_some() && u.uid == uid));
            meta.owner = named.map_or_else(|| owner.clone(), |u| u.name.clone());
        }
        if let Some(group) = &attrs.group {
            let gid = real::group_id(self, group)?;
            let groups = self.groups().unwrap_or_default();
            let named = groups.iter().find(|g| g.name == *group || (gid.is_some() && g.gid == gid));
            meta.group = named.map_or_else(|| group.clone(), |g| g.name.clone());
        }
        Ok(())
    }

    /// Forgets what was recorded at and below a path.
    fn forget(&mut self, at: &Path) {
        self.nodes.retain(|path, _| !path.starts_with(at));
    }

    /// Every path at and below one, parents first.
    fn subtree(&self, at: &Path, out: &mut Vec<(PathBuf, Meta, Holds)>) -> io::Result<()> {
        if let Some((meta, holds)) = self.lookup(at)? {
            let folder = meta.kind == FileKind::Directory;
            out.push((at.to_path_buf(), meta, holds));
            if folder {
                for name in self.list(at)? {
                    self.subtree(&at.join(name), out)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, effect: &Effect) -> io::Result<()> {
        match effect {
            Effect::User(user) => {
                let mut users = self.users()?;
                users.retain(|u| u.name != user.name);
                users.push(user.clone());
                self.users = Some(users);
            }
            Effect::NoUser(name) => {
                let mut users = self.users()?;
                users.retain(|u| u.name != *name);
                self.users = Some(users);
            }
            Effect::Group(group) => {
                let mut groups = self.groups()?;
                groups.retain(|g| g.name != group.name);
                groups.push(group.clone());
                self.groups = Some(groups);
            }
            Effect::NoGroup(name) => {
                let mut groups = self.groups()?;
                groups.retain(|g| g.name != *name);
                self.groups = Some(groups);
            }
            Effect::Unit(name, unit) => {
                self.units.insert(name.clone(), unit.clone());
            }
            Effect::Package(name, version) => {
                self.packages.insert(name.clone(), version.clone());
                // Nobody knows which files, users and units a package brings or takes along.
                self.uncertain = true;
            }
            Effect::Hostname(name) => self.hostname = Some(name.clone()),
            Effect::Other => {}
        }
        Ok(())
    }
}

/// The parts of a path in reverse order, to be popped.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    parts.map(|c| c.as_os_str().to_owned()).rev().collect()
}

/// The umask of this process; it can be set but not asked for by a call that changes nothing.
pub(crate) fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
    line.and_then(|l| u32::from_str_radix(l.trim(), 8).ok()).unwrap_or(0o022)
}

impl Read for Overlay<'_> {
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
        Ok(self.find(path, false)?.map(|(meta, _)| meta))
    }

    fn details(&self, path: &Path) -> io::Result<Option<Details>> {
        let at = self.resolve(path, false)?;
        let planned = at
            .ancestors()
            .any(|a| !matches!(self.nodes.get(a), None | Some(Entry::There(_, Holds::Folder { fresh: false }))));
        if planned || self.nodes.contains_key(&at) { Ok(None) } else { self.base.details(&at) }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self.find(path, true)?.ok_or_else(not_found)? {
            (_, Holds::Content(bytes)) => Ok(bytes.to_vec()),
            (_, Holds::Base(base)) => self.base.read(&base),
            (_, Holds::Unknown) => Err(io::Error::other("its content is known only when the run has written it")),
            (_, Holds::Folder { .. }) => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            (_, Holds::Link(_)) => Err(not_found()),
        }
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        match self.find(path, false)?.ok_or_else(not_found)? {
            (_, Holds::Link(target)) => Ok(target),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let at = self.resolve(path, true)?;
        let (meta, holds) = self.lookup(&at)?.ok_or_else(not_found)?;
        if meta.kind != FileKind::Directory {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let fresh = matches!(holds, Holds::Folder { fresh: true });
        let mut names = if fresh { Vec::new() } else { self.base.list(&at)? };
        for (path, entry) in self.nodes.range(at.clone()..).take_while(|(p, _)| p.starts_with(&at)) {
            if path.parent() != Some(&at) {
                continue;
            }
            let Some(name) = path.file_name() else { continue };
            names.retain(|n| n != name);
            if matches!(entry, Entry::There(..)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn users(&self) -> io::Result<Vec<User>> {
        self.users.clone().map_or_else(|| self.base.users(), Ok)
    }

    fn groups(&self) -> io::Result<Vec<Group>> {
        self.groups.clone().map_or_else(|| self.base.groups(), Ok)
    }

    fn unit(&self, name: &str) -> Result<Unit, Failure> {
        if let Some(unit) = self.units.get(name) {
            return Ok(unit.clone());
        }
        // `name@instance.service` comes from the file `name@.service`.
        let template =
            name.split_once('@').and_then(|(stem, rest)| Some(format!("{stem}@.{}", rest.rsplit_once('.')?.1)));
        let (mut planned, mut removed, mut there) = (false, false, false);
        for file in [Some(name.to_owned()), template].into_iter().flatten() {
            for folder in UNIT_FOLDERS {
                let path = Path::new(folder).join(&file);
                match self.nodes.get(&path) {
                    Some(Entry::There(..)) => planned = true,
                    Some(Entry::Gone) => removed = true,
                    None => there |= self.meta(&path).ok().flatten().is_some(),
                }
            }
        }
        let unit = match self.base.unit(name) {
            // On a machine that is only being prepared, a planned unit is all that is known.
            Err(_) if planned => None,
            Ok(unit) if planned && !unit.exists => None,
            other => Some(other?),
        };
        Ok(match unit {
            Some(unit) => Unit { exists: unit.exists && !(removed && !there && !planned), ..unit },
            None => Unit {
                exists: true,
                active: "inactive".into(),
                enabled: "disabled".into(),
                sub: "dead".into(),
                main_pid: 0,
                needs_reload: true,
            },
        })
    }

    fn package(&self, name: &str) -> Result<Option<String>, Failure> {
        self.packages.get(name).map_or_else(|| self.base.package(name), |version| Ok(version.clone()))
    }

    fn hostname(&self) -> io::Result<String> {
        self.hostname.clone().map_or_else(|| self.base.hostname(), Ok)
    }

    fn query(&self, command: &Command) -> Result<Output, Failure> {
        self.base.query(command)
    }

    fn now(&self) -> SystemTime {
        self.base.now()
    }

    fn is_overlay(&self) -> bool {
        true
    }

    fn is_uncertain(&self) -> bool {
        self.uncertain || self.base.is_uncertain()
    }
}

#[cfg(test)]
mod tests;
