//! Where things lie: caches in the invoking user's cache folder, a lab's state under `/run`.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cloud::Owner;
use crate::failure::Failure;

/// All labs of this machine. Gone after a reboot, as the labs are.
const RUN: &str = "/run/rollcall-lab";

/// The state of one lab, all of it in one folder that only root can write.
#[derive(Debug, Clone)]
pub(crate) struct LabPaths {
    pub(crate) name: String,
}

impl LabPaths {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("socket")
    }

    /// What `up` decided once: subnet, owner, a copy of the lab file.
    pub(crate) fn record(&self) -> PathBuf {
        self.dir().join("lab.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir().join("supervisor.log")
    }

    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.dir().join("known_hosts")
    }

    pub(crate) fn ssh_config(&self) -> PathBuf {
        self.dir().join("ssh_config")
    }

    pub(crate) fn key(&self, key: &str) -> PathBuf {
        self.dir().join("keys").join(key)
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.dir().join("hosts")
    }

    pub(crate) fn host(&self, id: &str) -> PathBuf {
        self.hosts().join(id)
    }

    pub(crate) fn namespace(&self) -> String {
        format!("rollcall-{}", self.name)
    }

    pub(crate) fn namespace_file(&self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace())
    }
}

/// Makes the folder of all labs, and says where it is.
pub(crate) fn run_dir() -> Result<PathBuf> {
    let dir = PathBuf::from(RUN);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Others may pass through it to a lab's files that are theirs, and may not plant anything.
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set the mode of {}", dir.display()))?;
    Ok(dir)
}

/// Names of all labs that have state, running or crashed, sorted.
pub(crate) fn labs() -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(RUN) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {RUN}")),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {RUN}"))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// One writer at a time for what all labs share: subnets, names, namespaces. Freed by the kernel when the process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its lock")] std::fs::File);

/// Waits for the lock of all labs.
pub(crate) fn lock() -> Result<Lock> {
    loop {
        let path = run_dir()?.join("lock");
        let file = open_lock(&path)?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        // Who held it may have removed it with the last lab: then it is no lock any more.
        let mine = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        if std::fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (mine.dev(), mine.ino())) {
            return Ok(Lock(file));
        }
    }
}

/// Removes a folder with everything in it; one that is not there is as good.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the folder of all labs after the last of them. The lock must be held.
pub(crate) fn remove_run_dir(_lock: &Lock) -> Result<()> {
    if labs()?.is_empty() {
        let dir = Path::new(RUN);
        // Not there is as good; another file in it keeps it.
        let _ = std::fs::remove_file(dir.join("lock"));
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// Waits for the lock of one cache folder.
pub(crate) fn lock_in(dir: &Path) -> Result<Lock> {
    let path = dir.join("lock");
    let file = open_lock(&path)?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(Lock(file))
}

fn open_lock(path: &Path) -> Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// The user on whose behalf root works: `sudo`'s invoking user, else whoever runs this.
pub(crate) fn owner() -> Result<Owner> {
    owner_from(std::env::var("SUDO_UID").ok().as_deref(), std::env::var("SUDO_GID").ok().as_deref())
}

fn owner_from(sudo_uid: Option<&str>, sudo_gid: Option<&str>) -> Result<Owner> {
    let me = nix::unistd::geteuid();
    // Only root was given the right to act for somebody else.
    if let (true, Some(uid), Some(gid)) = (me.is_root(), sudo_uid, sudo_gid) {
        let uid: u32 = uid.parse().with_context(|| format!("SUDO_UID is '{uid}', which is no user id"))?;
        let gid: u32 = gid.parse().with_context(|| format!("SUDO_GID is '{gid}', which is no group id"))?;
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
            .with_context(|| format!("cannot look up user {uid}"))?
            .ok_or_else(|| Failure::new(format!("SUDO_UID names user {uid}, who does not exist"), "unset SUDO_UID"))?;
        return Ok(Owner { uid, gid, home: user.dir });
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = match home {
        Some(home) => home,
        None => nix::unistd::User::from_uid(me).ok().flatten().map_or_else(|| PathBuf::from("/"), |user| user.dir),
    };
    Ok(Owner { uid: me.as_raw(), gid: nix::unistd::getegid().as_raw(), home })
}

/// The cache of the owner: `$XDG_CACHE_HOME/rollcall-lab`, else `~/.cache/rollcall-lab`. Made if it is not there,
/// and the parts that had to be made belong to the owner.
pub(crate) fn cache_dir(owner: &Owner) -> Result<PathBuf> {
    let dir = cache_dir_from(std::env::var_os("XDG_CACHE_HOME"), &owner.home);
    create_owned(&dir, owner)?;
    Ok(dir)
}

fn cache_dir_from(xdg: Option<OsString>, home: &Path) -> PathBuf {
    // The XDG specification: a relative path is to be ignored.
    let base = xdg.map(PathBuf::from).filter(|path| path.is_absolute()).unwrap_or_else(|| home.join(".cache"));
    base.join("rollcall-lab")
}

/// `mkdir -p` whose new folders belong to the owner.
pub(crate) fn create_owned(dir: &Path, owner: &Owner) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_owned(parent, owner)?;
    }
    std::fs::create_dir(dir)
        .or_else(|error| if dir.is_dir() { Ok(()) } else { Err(error) })
        .with_context(|| format!("cannot make {}", dir.display()))?;
    give(dir, owner)
}

/// Makes the owner the owner of a file or folder.
pub(crate) fn give(path: &Path, owner: &Owner) -> Result<()> {
    let meta = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if meta.uid() == owner.uid && meta.gid() == owner.gid {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))
        .with_context(|| format!("cannot give {} to user {}", path.display(), owner.uid))
}

/// Replaces a file at once, so that no reader sees half of it.
pub(crate) fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(dir)
        .with_context(|| format!("cannot write in {}", dir.display()))?;
    file.write_all(content).with_context(|| format!("cannot write {}", path.display()))?;
    // The umask took bits away from the mode that was asked for.
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))
        .and_then(|()| file.as_file().sync_all())
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_follows_xdg_and_ignores_a_relative_path() {
        let home = Path::new("/home/ada");
        assert_eq!(cache_dir_from(None, home), Path::new("/home/ada/.cache/rollcall-lab"));
        assert_eq!(cache_dir_from(Some("/fast".into()), home), Path::new("/fast/rollcall-lab"));
        assert_eq!(cache_dir_from(Some("here".into()), home), Path::new("/home/ada/.cache/rollcall-lab"));
        assert_eq!(cache_dir_from(Some(String::new().into()), home), Path::new("/home/ada/.cache/rollcall-lab"));
    }

    #[test]
    fn an_atomic_write_replaces_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn sudo_variables_that_are_no_numbers_are_told() {
        if nix::unistd::geteuid().is_root() {
            let error = owner_from(Some("ada"), Some("100")).unwrap_err();
            assert!(error.to_string().contains("SUDO_UID is 'ada'"), "{error}");
        } else {
            assert_eq!(owner_from(Some("0"), Some("0")).unwrap().uid, nix::unistd::geteuid().as_raw());
        }
    }
}
