//! Putting files, links and folders in place so that nobody ever sees a half of one.
//!
//! A new file is written beside its place under a name of ours, gets owner and mode, is validated and flushed, and only then
//! renamed over what was there. A crash leaves at most such a name, which the next write in that folder removes.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{errno::Errno, libc, sys::stat};

use super::{Command, Fill, exec, unfinished};
use crate::modules::Failure;

/// Every temporary name starts with it.
const PREFIX: &str = ".rollcall-";

/// Attributes with names resolved to numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ids {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A failed call on a path, with what a person can do about it.
pub(crate) fn explain(verb: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::io(verb, path, error);
    let folder = path.parent().unwrap_or(path).display();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC) => {
            failure.hint(format!("the disk is full: see df -h {folder} and df -i {folder}; nothing was replaced"))
        }
        Some(Errno::EDQUOT) => failure.hint("the disk quota is used up; nothing was replaced"),
        Some(Errno::EROFS) => failure.hint(format!(
            "the filesystem of {folder} is read-only: see findmnt -T {folder}, and dmesg for disk errors"
        )),
        Some(Errno::EACCES | Errno::EPERM) if !nix::unistd::geteuid().is_root() => {
            failure.hint("does the task need 'become: true'?")
        }
        Some(Errno::EPERM) => failure.hint("is the file immutable (lsattr)?"),
        Some(Errno::ENAMETOOLONG) => failure.hint("a file name has at most 255 bytes"),
        _ => failure,
    }
}

/// The parent and the name of a path that something is to be put at; clear errors for paths that cannot be one.
pub(super) fn place(path: &Path) -> Result<(&Path, &OsStr), Failure> {
    if path.as_os_str().as_bytes().contains(&0) {
        let shown = path.display().to_string().replace('\0', "\\0");
        return Err(Failure::new(format!("the path {shown} holds a NUL byte")));
    }
    if !path.is_absolute() {
        return Err(Failure::new(format!("the path '{}' is not absolute", path.display())));
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(Failure::new(format!("{} cannot be replaced: it has no name of its own", path.display()))),
    }
}

/// The error for a parent that is missing or no folder.
pub(super) fn no_parent(path: &Path, parent: &Path, exists: bool) -> Failure {
    let failure = Failure::new(if exists {
        format!("cannot write {}: {} is not a folder", path.display(), parent.display())
    } else {
        format!("cannot write {}: the folder {} does not exist", path.display(), parent.display())
    });
    if exists {
        failure
    } else {
        failure.hint(format!("make it by an earlier task: file: {{path: {}, state: directory}}", parent.display()))
    }
}

/// The error for a folder that stands where a file is to be.
pub(super) fn is_folder(path: &Path) -> Failure {
    Failure::new(format!("cannot write {}: a folder is there", path.display()))
        .hint("name the file in it, or remove the folder by an earlier task")
}

/// The words of a `validate` command, `%s` replaced by the file.
pub(super) fn validate_words(validate: &str, file: &Path) -> Result<Vec<String>, Failure> {
    let words =
        shell_words::split(validate).map_err(|e| Failure::new(format!("argument 'validate': {e} in '{validate}'")))?;
    if !words.iter().any(|w| w.contains("%s")) {
        return Err(Failure::new(format!("argument 'validate': '{validate}' lacks %s, which stands for the new file")));
    }
    let file = file
        .to_str()
        .ok_or_else(|| Failure::new(format!("cannot validate {}: its name is not UTF-8", file.display())))?;
    Ok(words.into_iter().map(|w| w.replace("%s", file)).collect())
}

/// Puts a file in place; see [`super::Write::write`].
pub(super) fn put(path: &Path, ids: &Ids, validate: Option<&str>, fill: Fill<'_>) -> Result<(), Failure> {
    let (parent, name) = place(path)?;
    let existing = standing(path, parent)?;
    // A link's own owner and mode say nothing about the file that takes its place.
    let kept = existing.filter(fs::Metadata::is_file);
    clean(parent);
    unfinished::write_down(parent);
    let temp = Temp::new(path, parent, name, validate.is_some())?;
    // Without a wish for the mode a new file gets what the umask leaves; everything else starts closed.
    let first = if kept.is_none() && ids.mode.is_none() { 0o666 } else { 0o600 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(first)
        .open(&temp.file)
        .map_err(|e| explain("write", path, &e))?;
    fill(&mut file)?;
    let ids = Ids {
        mode: ids.mode.or(kept.as_ref().map(|m| m.mode() & 0o7777)),
        uid: ids.uid.or(kept.as_ref().map(MetadataExt::uid)),
        gid: ids.gid.or(kept.as_ref().map(MetadataExt::gid)),
    };
    own(&file, path, &ids)?;
    file.sync_all().map_err(|e| explain("flush", path, &e))?;
    drop(file);
    if let Some(validate) = validate {
        check(path, validate, &temp.file)?;
    }
    fs::rename(&temp.file, path).map_err(|e| explain("replace", path, &e))?;
    sync_folder(parent)
}

/// Runs the `validate` command on the temporary file.
fn check(path: &Path, validate: &str, file: &Path) -> Result<(), Failure> {
    let output = exec::run(&Command::new(validate_words(validate, file)?))?;
    if output.code == 0 {
        return Ok(());
    }
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&file.display().to_string(), &path.display().to_string());
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let shown = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
    Err(Failure::new(format!("validation of the new {} failed (rc {}): {shown}", path.display(), output.code))
        .hint("the file that was there is untouched")
        .with("rc", output.code)
        .with("stdout", stdout)
        .with("stderr", stderr))
}

/// What stands at a path, a folder being an error; the parent must be there.
fn standing(path: &Path, parent: &Path) -> Result<Option<fs::Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Err(is_folder(path)),
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && parent.is_dir() => Ok(None),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(no_parent(path, parent, parent.symlink_metadata().is_ok()))
        }
        Err(e) => Err(explain("look at", path, &e)),
    }
}

/// Owner and mode on the open file. The owner comes first: a change of owner clears set-id bits.
fn own(file: &File, path: &Path, ids: &Ids) -> Result<(), Failure> {
    let meta = file.metadata().map_err(|e| explain("look at", path, &e))?;
    let (uid, gid) = (ids.uid.filter(|u| *u != meta.uid()), ids.gid.filter(|g| *g != meta.gid()));
    if uid.is_some() || gid.is_some() {
        std::os::unix::fs::fchown(file, uid, gid).map_err(|e| explain("change the owner of", path, &e))?;
    }
    match ids.mode {
        Some(mode) => {
            file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|e| explain("change the mode of", path, &e))
        }
        None => Ok(()),
    }
}

/// Sets owner and mode of what stands at a path; links are not followed, and have no mode.
pub(super) fn set_attrs(path: &Path, ids: &Ids) -> Result<(), Failure> {
    place(path).or_else(|e| if path == Path::new("/") { Ok((path, OsStr::new(""))) } else { Err(e) })?;
    let meta = fs::symlink_metadata(path).map_err(|e| explain("look at", path, &e))?;
    let (uid, gid) = (ids.uid.filter(|u| *u != meta.uid()), ids.gid.filter(|g| *g != meta.gid()));
    let owned = uid.is_some() || gid.is_some();
    if owned {
        std::os::unix::fs::lchown(path, uid, gid).map_err(|e| explain("change the owner of", path, &e))?;
    }
    // A change of owner clears set-id bits: what was there is set again.
    let mode = ids.mode.or_else(|| owned.then_some(meta.mode() & 0o7777));
    match mode {
        Some(mode) if !meta.is_symlink() => {
            let mode = stat::Mode::from_bits_truncate(mode as libc::mode_t);
            stat::fchmodat(nix::fcntl::AT_FDCWD, path, mode, stat::FchmodatFlags::NoFollowSymlink)
                .map_err(|e| explain("change the mode of", path, &e.into()))
        }
        _ => Ok(()),
    }
}

/// Makes one folder, closed until it has its owner.
pub(super) fn mkdir(path: &Path, ids: &Ids) -> Result<(), Failure> {
    let (parent, name) = place(path)?;
    match fs::metadata(parent) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(no_parent(path, parent, true)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(no_parent(path, parent, false)),
        Err(e) => return Err(explain("make", path, &e)),
    }
    if fs::symlink_metadata(path).is_ok() {
        return Err(Failure::new(format!("cannot make the folder {}: something is there", path.display())));
    }
    clean(parent);
    unfinished::write_down(parent);
    // Under our own name first, so that the folder never stands there with the wrong owner.
    let temp = parent.join(temp_name(name, ".tmp"));
    let first = if ids.mode.is_some() || ids.uid.is_some() || ids.gid.is_some() { 0o700 } else { 0o777 };
    fs::DirBuilder::new().mode(first).create(&temp).map_err(|e| explain("make", path, &e))?;
    let mode = ids.mode.or_else(|| (first == 0o700).then_some(0o755));
    set_attrs(&temp, &Ids { mode, ..*ids })
        .and_then(|()| fs::rename(&temp, path).map_err(|e| explain("make", path, &e)))
        .inspect_err(|_| drop(fs::remove_dir(&temp)))?;
    sync_folder(parent)
}

/// Makes something under a temporary name by `make`, then renames it to `path`.
pub(super) fn link(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Failure> {
    let (parent, name) = place(path)?;
    standing(path, parent)?;
    clean(parent);
    unfinished::write_down(parent);
    let temp = parent.join(temp_name(name, ".tmp"));
    make(&temp).map_err(|e| explain("link", path, &e))?;
    let renamed = fs::rename(&temp, path).map_err(|e| explain("replace", path, &e));
    // A rename between two links of one file does nothing and leaves both names.
    drop(fs::remove_file(&temp));
    renamed?;
    sync_folder(parent)
}

/// Removes a file, link or folder with all that is in it.
pub(super) fn remove(path: &Path) -> Result<(), Failure> {
    let (parent, _) = place(path)?;
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(explain("look at", path, &e)),
    };
    let removed = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|e| Failure { changed: meta.is_dir(), ..explain("remove", path, &e) })?;
    sync_folder(parent)
}

/// Flushes a folder's entries.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Failure> {
    match File::open(folder).and_then(|f| f.sync_all()) {
        // Write-only folders and filesystems without the call cannot be flushed; the rename itself stands.
        Err(e)
            if matches!(
                e.raw_os_error().map(Errno::from_raw),
                Some(Errno::EACCES | Errno::EINVAL | Errno::ENOTSUP)
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(Failure { changed: true, ..explain("flush", folder, &e) }),
        Ok(()) => Ok(()),
    }
}

fn temp_name(name: &OsStr, suffix: &str) -> OsString {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut temp = OsString::from(format!("{PREFIX}{pid}-{}-{number}-", began(pid).unwrap_or(0)));
    let bytes = name.as_bytes();
    temp.push(OsStr::from_bytes(&bytes[..bytes.len().min(180)]));
    temp.push(suffix);
    temp
}

/// A temporary file that is removed unless it was renamed.
struct Temp {
    file: PathBuf,
    folder: Option<PathBuf>,
}

impl Temp {
    /// Its own folder where it will be validated: there it can bear its final name, which programs judge by
    /// (`.json`, `.service`), and programs that read all of the parent do not take it for theirs.
    fn new(path: &Path, parent: &Path, name: &OsStr, named: bool) -> Result<Self, Failure> {
        if !named {
            return Ok(Self { file: parent.join(temp_name(name, ".tmp")), folder: None });
        }
        let folder = parent.join(temp_name(name, ".tmp"));
        fs::DirBuilder::new().mode(0o711).create(&folder).map_err(|e| explain("write", path, &e))?;
        Ok(Self { file: folder.join(name), folder: Some(folder) })
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.file));
        if let Some(folder) = &self.folder {
            drop(fs::remove_dir(folder));
        }
    }
}

/// When a process began, in ticks since the machine's start; `None` where the kernel does not tell.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything. Fields after it are counted from the third.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the writer of a temporary name is still at work. After the machine's restart its number may be another's.
fn is_alive(pid: u32, start: u64) -> bool {
    let Ok(number) = i32::try_from(pid) else { return false };
    if nix::sys::signal::kill(nix::unistd::Pid::from_raw(number), None) == Err(Errno::ESRCH) {
        return false;
    }
    began(pid).is_none_or(|now| now == start)
}

/// Removes what writers that are no longer alive left in a folder.
pub(super) fn clean(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.strip_suffix(".tmp")) else { continue };
        let mut numbers = rest.split('-').map(|n| n.parse::<u64>().ok());
        let (Some(Some(pid)), Some(Some(start))) = (numbers.next(), numbers.next()) else { continue };
        let Some(pid) = u32::try_from(pid).ok().filter(|p| *p > 0) else { continue };
        if !is_alive(pid, start) {
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
            // Left for the next time where it cannot be removed now: the write itself is what matters.
            drop(if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) });
        }
    }
}

#[cfg(test)]
mod tests;
