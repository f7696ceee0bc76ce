//! The machine itself.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    sys::{stat, time::TimeSpec},
    unistd::{AccessFlags, faccessat},
};

use super::{
    Access, Attrs, Command, Details, Effect, FileKind, Fill, Group, Meta, Output, Ran, Read, Unit, User, Write,
    atomic::{self, Ids, explain},
    exec,
};
use crate::{diag, modules::Failure};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Asked again so shortly after, and with nothing changed or run between, the files of users and groups count as unchanged.
const RECENT: Duration = Duration::from_millis(20);

/// How long `systemctl show` and `dpkg-query` may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The machine that this process runs on, with this process's rights.
#[derive(Debug, Default)]
pub struct Real {
    names: Mutex<Names>,
}

/// Users and groups, kept as long as the files that they were read from do not change.
#[derive(Debug, Default)]
struct Names {
    stamp: Option<[Stamp; 2]>,
    /// When the stamp was found to be true, unless something was changed since.
    checked: Option<Instant>,
    users: Vec<User>,
    groups: Vec<Group>,
    by_uid: HashMap<u32, String>,
    by_gid: HashMap<u32, String>,
}

/// Inode, size and modification time in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

impl Real {
    /// This machine.
    pub fn new() -> Self {
        Self::default()
    }

    fn names(&self) -> io::Result<MutexGuard<'_, Names>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.checked.is_some_and(|at| at.elapsed() < RECENT) {
            return Ok(names);
        }
        let stamp = |path| fs::metadata(path).map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        let stamps = Some([stamp(PASSWD)?, stamp(GROUP)?]);
        if names.stamp != stamps {
            names.users = parse_passwd(&fs::read(PASSWD)?);
            names.groups = parse_group(&fs::read(GROUP)?);
            // The first of several names for one number is the one that the system shows.
            names.by_uid = names.users.iter().rev().filter_map(|u| Some((u.uid?, u.name.clone()))).collect();
            names.by_gid = names.groups.iter().rev().filter_map(|g| Some((g.gid?, g.name.clone()))).collect();
            names.stamp = stamps;
        }
        names.checked = Some(Instant::now());
        Ok(names)
    }

    /// What may have changed users and groups lets nobody see the old ones.
    fn changing(&mut self) {
        self.names.get_mut().unwrap_or_else(PoisonError::into_inner).checked = None;
    }

    /// Names, or numbers where nobody has the number or the files cannot be read.
    fn owner_names(&self, uid: u32, gid: u32) -> (String, String) {
        let name = |map: &HashMap<u32, String>, id: u32| map.get(&id).cloned().unwrap_or_else(|| id.to_string());
        match self.names() {
            Ok(names) => (name(&names.by_uid, uid), name(&names.by_gid, gid)),
            Err(_) => (uid.to_string(), gid.to_string()),
        }
    }

    fn ids(&self, attrs: &Attrs) -> Result<Ids, Failure> {
        Ok(Ids {
            mode: attrs.mode,
            uid: attrs.owner.as_deref().map(|name| user_id(self, name)).transpose()?.flatten(),
            gid: attrs.group.as_deref().map(|name| group_id(self, name)).transpose()?.flatten(),
        })
    }
}

fn access(path: &Path) -> Access {
    let may = |what| faccessat(AT_FDCWD, path, what, AtFlags::AT_EACCESS).is_ok();
    Access { read: may(AccessFlags::R_OK), write: may(AccessFlags::W_OK), execute: may(AccessFlags::X_OK) }
}

/// The number of a user; `None` for one that is only planned. A name that is nobody's is an error.
pub(super) fn user_id(host: &dyn Read, name: &str) -> Result<Option<u32>, Failure> {
    let users = host.users().map_err(|e| explain("read", Path::new(PASSWD), &e))?;
    if let Some(user) = users.iter().find(|u| u.name == name) {
        return Ok(user.uid);
    }
    name.parse().map(Some).map_err(|_| nobody("user", name, users.iter().map(|u| u.name.as_str())))
}

/// The number of a group; `None` for one that is only planned.
pub(super) fn group_id(host: &dyn Read, name: &str) -> Result<Option<u32>, Failure> {
    let groups = host.groups().map_err(|e| explain("read", Path::new(GROUP), &e))?;
    if let Some(group) = groups.iter().find(|g| g.name == name) {
        return Ok(group.gid);
    }
    name.parse().map(Some).map_err(|_| nobody("group", name, groups.iter().map(|g| g.name.as_str())))
}

fn nobody<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let failure = Failure::new(format!("the {what} '{name}' does not exist"));
    match diag::nearest(name, known) {
        Some(near) => failure.hint(format!("did you mean '{near}'?")),
        None => failure.hint(format!("make it by an earlier task: {what}: {{name: {name}}}")),
    }
}

/// The lines of /etc/passwd; those that are not of its form are passed over, as the system does.
pub(crate) fn parse_passwd(text: &[u8]) -> Vec<User> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, gecos, home, shell] = fields[..] else { return None };
            Some(User {
                name: name.to_owned(),
                uid: Some(uid.parse().ok()?),
                gid: Some(gid.parse().ok()?),
                gecos: gecos.to_owned(),
                home: home.into(),
                shell: shell.into(),
            })
        })
        .collect()
}

/// The lines of /etc/group.
pub(crate) fn parse_group(text: &[u8]) -> Vec<Group> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members] = fields[..] else { return None };
            Some(Group {
                name: name.to_owned(),
                gid: Some(gid.parse().ok()?),
                members: members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// What `systemctl show` says, from its `Key=value` lines.
fn parse_unit(text: &str) -> Unit {
    let value = |key: &str| {
        text.lines().find_map(|l| l.split_once('=').filter(|(k, _)| *k == key)).map_or("", |(_, v)| v).to_owned()
    };
    Unit {
        exists: !matches!(value("LoadState").as_str(), "not-found" | ""),
        active: value("ActiveState"),
        enabled: value("UnitFileState"),
        sub: value("SubState"),
        main_pid: value("MainPID").parse().unwrap_or(0),
        needs_reload: value("NeedDaemonReload") == "yes",
    }
}

/// The version of a package in the text of dpkg's status file. `name` may carry an architecture (`libc6:i386`).
fn dpkg_status(text: &str, name: &str) -> Option<String> {
    let (name, arch) = name.split_once(':').map_or((name, None), |(n, a)| (n, Some(a)));
    text.split("\n\n").find_map(|stanza| {
        let field = |key: &str| {
            stanza.lines().find_map(|l| l.strip_prefix(key).and_then(|l| l.strip_prefix(':')).map(str::trim))
        };
        let mine = field("Package")? == name
            && arch.is_none_or(|a| field("Architecture") == Some(a))
            && field("Status")?.ends_with(" installed");
        if mine { field("Version").map(str::to_owned) } else { None }
    })
}

/// dpkg's own files are asked first: a process for each package would be most of an idle run.
fn installed(name: &str) -> Result<Option<String>, Failure> {
    let status = Path::new("/var/lib/dpkg/status");
    if !status.exists() {
        return Err(Failure::new("cannot ask for packages: this host has no dpkg")
            .hint("packages of other families (rpm) are not handled by this release"));
    }
    // Entries in updates/ are newer than the status file and are only merged by dpkg.
    let merged = fs::read_dir("/var/lib/dpkg/updates").map_or(true, |mut entries| entries.next().is_none());
    if merged {
        let text = fs::read(status).map_err(|e| explain("read", status, &e))?;
        return Ok(dpkg_status(&String::from_utf8_lossy(&text), name));
    }
    let mut command = Command::new(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Version}\n", "--", name]);
    command.timeout = Some(QUERY_TIMEOUT);
    let output = exec::run(&command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().find_map(|line| {
        let (status, version) = line.split_once('\t')?;
        (status.trim().ends_with('i') && status.len() > 1).then(|| version.to_owned())
    }))
}

impl Read for Real {
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        let (owner, group) = self.owner_names(meta.uid(), meta.gid());
        Ok(Some(Meta {
            kind: match meta.file_type() {
                t if t.is_file() => FileKind::File,
                t if t.is_dir() => FileKind::Directory,
                t if t.is_symlink() => FileKind::Symlink,
                _ => FileKind::Other,
            },
            mode: meta.mode() & 0o7777,
            owner,
            group,
            size: meta.size(),
            modified: meta.modified()?,
            identity: (meta.dev(), meta.ino()),
        }))
    }

    fn details(&self, path: &Path) -> io::Result<Option<Details>> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(e),
        };
        #[expect(clippy::cast_precision_loss, reason = "microseconds are left until the year 2100")]
        let seconds = |whole: i64, nanos: i64| whole as f64 + nanos as f64 / 1e9;
        Ok(Some(Details {
            links: meta.nlink(),
            accessed: seconds(meta.atime(), meta.atime_nsec()),
            changed: seconds(meta.ctime(), meta.ctime_nsec()),
            format: meta.mode() & super::FORMAT,
            device: meta.rdev(),
            blocks: meta.blocks(),
            block_size: meta.blksize(),
            access: access(path),
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        fs::read_link(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = fs::read_dir(path)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn users(&self) -> io::Result<Vec<User>> {
        self.names().map(|names| names.users.clone())
    }

    fn groups(&self) -> io::Result<Vec<Group>> {
        self.names().map(|names| names.groups.clone())
    }

    fn unit(&self, name: &str) -> Result<Unit, Failure> {
        const KEYS: &str = "LoadState,ActiveState,UnitFileState,SubState,MainPID,NeedDaemonReload";
        let mut command = Command::new(["systemctl", "show", "-p", KEYS, "--", name]);
        command.timeout = Some(QUERY_TIMEOUT);
        let output = exec::run(&command)?;
        if output.code != 0 {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("no reason given").to_owned();
            let failure = Failure::new(format!("systemctl show {name} failed (rc {}): {said}", output.code));
            return Err(if said.contains("not been booted with systemd") {
                failure.hint("services can only be managed where systemd is the running init")
            } else {
                failure
            });
        }
        Ok(parse_unit(&String::from_utf8_lossy(&output.stdout)))
    }

    fn package(&self, name: &str) -> Result<Option<String>, Failure> {
        installed(name)
    }

    fn hostname(&self) -> io::Result<String> {
        let text = match fs::read_to_string("/etc/hostname") {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let name = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#'));
        match name {
            Some(name) => Ok(name.to_owned()),
            None => Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned()),
        }
    }

    fn query(&self, command: &Command) -> Result<Output, Failure> {
        exec::run(command)
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn is_overlay(&self) -> bool {
        false
    }
}

impl Write for Real {
    fn as_read(&self) -> &dyn Read {
        self
    }

    fn write(&mut self, path: &Path, content: &[u8], attrs: &Attrs, validate: Option<&str>) -> Result<(), Failure> {
        let ids = self.ids(attrs)?;
        self.changing();
        atomic::put(path, &ids, validate, &mut |out| out.write_all(content).map_err(|e| explain("write", path, &e)))
    }

    fn receive(&mut self, path: &Path, attrs: &Attrs, fill: Fill<'_>) -> Result<bool, Failure> {
        let ids = self.ids(attrs)?;
        self.changing();
        atomic::put(path, &ids, None, fill).map(|()| true)
    }

    fn mkdir(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        atomic::mkdir(path, &self.ids(attrs)?)
    }

    fn set_attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        atomic::set_attrs(path, &self.ids(attrs)?)
    }

    fn symlink(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        self.changing();
        atomic::link(path, |temp| std::os::unix::fs::symlink(target, temp))
    }

    fn hard_link(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        self.changing();
        atomic::link(path, |temp| fs::hard_link(target, temp))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.changing();
        let (parent, _) = atomic::place(to)?;
        fs::rename(from, to).map_err(|e| explain(&format!("rename {} to", from.display()), to, &e))?;
        atomic::sync_folder(parent)?;
        match from.parent() {
            Some(old) if old != parent => atomic::sync_folder(old),
            _ => Ok(()),
        }
    }

    fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        self.changing();
        atomic::remove(path)
    }

    fn touch(&mut self, path: &Path) -> Result<(), Failure> {
        let now = TimeSpec::UTIME_NOW;
        stat::utimensat(nix::fcntl::AT_FDCWD, path, &now, &now, stat::UtimensatFlags::NoFollowSymlink)
            .map_err(|e| explain("touch", path, &e.into()))
    }

    fn run(&mut self, command: &Command, _effects: &[Effect]) -> Result<Ran, Failure> {
        let ran = exec::run(command);
        self.changing();
        ran.map(Ran::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_and_group_are_parsed_and_broken_lines_passed_over() {
        let users = parse_passwd(
            b"root:x:0:0:root:/root:/bin/bash\nbroken\n+::::::\nconsul:x:998:997::/opt/consul:/bin/false\n",
        );
        assert_eq!(users.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(), ["root", "consul"]);
        assert_eq!(
            (users[1].uid, users[1].gid, users[1].home.as_path()),
            (Some(998), Some(997), Path::new("/opt/consul"))
        );
        let groups = parse_group(b"adm:x:4:a,b\nempty:x:5:\nnot a line\n");
        assert_eq!(groups[0].members, ["a", "b"]);
        assert!(groups[1].members.is_empty() && groups.len() == 2);
    }

    #[test]
    fn units_and_packages_are_parsed() {
        let unit = parse_unit(
            "MainPID=7\nNeedDaemonReload=yes\nLoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n",
        );
        assert_eq!(
            unit,
            Unit {
                exists: true,
                active: "active".into(),
                enabled: "enabled".into(),
                sub: "running".into(),
                main_pid: 7,
                needs_reload: true
            }
        );
        assert!(!parse_unit("LoadState=not-found\nActiveState=inactive\n").exists);
        assert!(parse_unit("LoadState=masked\nUnitFileState=masked\n").exists);
        let status = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 2\n\nPackage: a-x\nStatus: hold ok installed\nArchitecture: all\nVersion: 3\n";
        assert_eq!(dpkg_status(status, "a").as_deref(), Some("1.0"));
        assert_eq!(dpkg_status(status, "a:i386"), None);
        assert_eq!(dpkg_status(status, "b"), None);
        assert_eq!(dpkg_status(status, "a-x").as_deref(), Some("3"));
    }

    #[test]
    fn looking_and_changing() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = Real::new();
        let path = folder.path().join("a");
        assert_eq!(host.meta(&path).unwrap(), None);
        host.write(&path, b"text", &Attrs { mode: Some(0o600), ..Attrs::default() }, None).unwrap();
        let meta = host.meta(&path).unwrap().unwrap();
        assert_eq!((meta.kind, meta.mode, meta.size), (FileKind::File, 0o600, 4));
        let own = nix::unistd::geteuid().as_raw();
        let name = host.users().unwrap().into_iter().find(|u| u.uid == Some(own)).map_or(own.to_string(), |u| u.name);
        assert_eq!(meta.owner, name);
        host.set_attrs(&path, &Attrs { mode: Some(0o644), owner: Some(name), group: None }).unwrap();
        let link = folder.path().join("l");
        host.symlink(Path::new("a"), &link).unwrap();
        assert_eq!(host.meta_follow(&link).unwrap().unwrap().mode, 0o644);
        assert_eq!(host.meta(&path.join("x")).unwrap(), None, "below a file nothing stands");
        host.rename(&path, &folder.path().join("b")).unwrap();
        assert_eq!(host.list(folder.path()).unwrap(), ["b", "l"]);
        assert_eq!(host.meta_follow(&link).unwrap(), None);
    }

    #[test]
    fn unknown_owners_are_errors_with_the_nearest_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = Real::new();
        let attrs = Attrs { owner: Some("rooot".into()), ..Attrs::default() };
        let failure = host.write(&folder.path().join("a"), b"", &attrs, None).unwrap_err();
        assert_eq!(failure.message, "the user 'rooot' does not exist");
        assert_eq!(failure.hint.as_deref(), Some("did you mean 'root'?"));
        assert!(host.list(folder.path()).unwrap().is_empty());
    }
}
