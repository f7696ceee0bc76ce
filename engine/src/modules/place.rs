//! What the modules that put files have in common: steps that are planned on a scratch overlay and then applied.
//!
//! Each step is tried on the overlay as it is planned, so that a plan finds the errors that the change would meet, and later
//! steps see what earlier ones do.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::{Change, Cx, Diff, Failure, Outcome, Plan, args::Mode};
use crate::{
    digest::sha256_hex,
    host::{
        Attrs, Command, FileKind, Meta, Read, Write,
        atomic::explain,
        overlay::{Overlay, umask},
    },
};

/// Results of whatever puts a file or folder in place.
pub(super) const RESULTS: &super::Results = &[
    ("path", "Where it stands."),
    ("dest", "The same."),
    ("state", "`file`, `directory` or `link`; `absent` where nothing stands."),
    ("mode", "Permission bits, as \"0644\"."),
    ("owner", "The owner's name."),
    ("group", "The group's name."),
    ("uid", "The owner's number; null where it is only planned."),
    ("gid", "The group's number; likewise."),
    ("size", "Bytes."),
];
/// The result of `backup`.
pub(super) const BACKUP: &super::Results = &[("backup_file", "The copy of the file that was there, with `backup`.")];

/// Beyond this, and for what is not text, a diff names size and checksum.
const DIFF_LIMIT: usize = 512 * 1024;
/// After this long a comparison of lines becomes a rough one.
const DIFF_TIME: Duration = Duration::from_millis(300);

/// Owner and mode as a task writes them.
#[derive(Clone, Debug, Default)]
pub(super) struct Perms {
    pub(super) mode: Option<Mode>,
    pub(super) owner: Option<String>,
    pub(super) group: Option<String>,
}

impl Perms {
    /// Resolved for what stands there, and a source's mode.
    pub(super) fn attrs(&self, current: Option<&Meta>, source: u32, directory: bool) -> Attrs {
        let start = current.map_or_else(|| if directory { 0o777 & !umask() } else { 0o666 & !umask() }, |m| m.mode);
        Attrs {
            mode: self.mode.as_ref().map(|m| m.resolve(start, source, directory)),
            owner: self.owner.clone(),
            group: self.group.clone(),
        }
    }

    /// `preserve` where there is no source to take a mode from.
    pub(super) fn refuse_preserve(&self, why: &str) -> Result<(), Failure> {
        match self.mode {
            Some(Mode::Preserve) => {
                Err(Failure::new(format!("argument 'mode': 'preserve' needs a source file, and {why}")))
            }
            _ => Ok(()),
        }
    }
}

/// How a file is put.
#[derive(Clone, Debug, Default)]
pub(super) struct Put {
    pub(super) validate: Option<String>,
    pub(super) backup: bool,
    /// Its content is never shown.
    pub(super) secret: bool,
    /// Its content is not shown; `None`: unless everybody may read it.
    pub(super) confidential: Option<bool>,
    /// The mode of its source.
    pub(super) source_mode: u32,
}

/// One effect.
#[derive(Debug)]
enum Step {
    Mkdir(PathBuf, Attrs),
    Write { path: PathBuf, content: Vec<u8>, attrs: Attrs, validate: Option<String> },
    Attrs(PathBuf, Attrs),
    Symlink(PathBuf, PathBuf),
    HardLink(PathBuf, PathBuf),
    Remove(PathBuf),
    Touch(PathBuf),
    Stream(Box<dyn Stream>),
}

/// Files whose content comes piece by piece.
pub(super) trait Stream: std::fmt::Debug + Send {
    /// What it writes.
    fn paths(&self) -> Vec<PathBuf>;
    /// Writes it.
    fn run(&self, host: &mut dyn Write) -> Result<(), Failure>;
}

impl Step {
    fn run(&self, host: &mut dyn Write) -> Result<(), Failure> {
        match self {
            Self::Mkdir(path, attrs) => host.mkdir(path, attrs),
            Self::Write { path, content, attrs, validate } => host.write(path, content, attrs, validate.as_deref()),
            Self::Attrs(path, attrs) => host.set_attrs(path, attrs),
            Self::Symlink(target, path) => host.symlink(target, path),
            Self::HardLink(target, path) => host.hard_link(target, path),
            Self::Remove(path) => host.remove(path),
            Self::Touch(path) => host.touch(path),
            Self::Stream(stream) => stream.run(host),
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Stream(stream) => stream.paths(),
            Self::Mkdir(path, _)
            | Self::Write { path, .. }
            | Self::Attrs(path, _)
            | Self::Symlink(_, path)
            | Self::HardLink(_, path)
            | Self::Remove(path)
            | Self::Touch(path) => vec![path.clone()],
        }
    }
}

/// Plans steps.
pub(super) struct Planner<'a> {
    /// The machine as it will be.
    pub(super) host: Overlay<'a>,
    steps: Vec<Step>,
    diffs: Vec<Diff>,
    backup: Option<PathBuf>,
    show: bool,
}

impl<'a> Planner<'a> {
    /// `show`: build diffs with contents.
    pub(super) fn new(cx: &Cx<'a>, show: bool) -> Self {
        Self { host: Overlay::new(cx.host), steps: Vec::new(), diffs: Vec::new(), backup: None, show }
    }

    fn push(&mut self, step: Step) -> Result<(), Failure> {
        step.run(&mut self.host)?;
        self.steps.push(step);
        Ok(())
    }

    fn diff(&mut self, what: impl Into<String>, before: impl Into<String>, after: impl Into<String>) {
        self.diffs.push(Diff { what: what.into(), before: before.into(), after: after.into(), hidden: false });
    }

    /// `lstat` on the machine as it will be.
    pub(super) fn meta(&self, path: &Path) -> Result<Option<Meta>, Failure> {
        self.host.meta(path).map_err(|e| explain("look at", path, &e))
    }

    /// Makes sure of owner and mode of what stands there.
    pub(super) fn attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        let before = self.meta(path)?;
        self.host.set_attrs(path, attrs)?;
        let after = self.meta(path)?;
        if let (Some(before), Some(after)) = (before, after)
            && self.attrs_diff(path, &before, &after)
        {
            self.steps.push(Step::Attrs(path.to_path_buf(), attrs.clone()));
        }
        Ok(())
    }

    /// Records how attributes differ; false where they do not.
    fn attrs_diff(&mut self, path: &Path, before: &Meta, after: &Meta) -> bool {
        let (mut old, mut new) = (String::new(), String::new());
        for (name, was, is) in [
            ("mode", format!("{:04o}", before.mode), format!("{:04o}", after.mode)),
            ("owner", before.owner.clone(), after.owner.clone()),
            ("group", before.group.clone(), after.group.clone()),
        ] {
            if was != is {
                old.push_str(&format!("{name}: {was}\n"));
                new.push_str(&format!("{name}: {is}\n"));
            }
        }
        let differ = old != new;
        if differ {
            self.diff(format!("attributes of {}", path.display()), old, new);
        }
        differ
    }

    /// Makes sure of a file's content, owner and mode. A link that stands there is replaced.
    pub(super) fn file(&mut self, path: &Path, content: &[u8], perms: &Perms, put: &Put) -> Result<(), Failure> {
        let current = self.meta(path)?;
        let kept = current.as_ref().filter(|m| m.kind == FileKind::File);
        let attrs = perms.attrs(kept, put.source_mode, false);
        let old = match kept {
            Some(_) => match self.host.read(path) {
                Ok(bytes) => Some(bytes),
                // Planned content that is only known once it is there (a download) is not this content.
                Err(_) if self.host.base().is_overlay() => None,
                Err(e) => return Err(explain("read", path, &e)),
            },
            None => None,
        };
        if old.as_deref() == Some(content) {
            return self.attrs(path, &attrs);
        }
        if put.backup
            && let (Some(bytes), Some(meta)) = (&old, kept)
        {
            let to = backup_name(path, &self.host);
            let attrs =
                Attrs { mode: Some(meta.mode), owner: Some(meta.owner.clone()), group: Some(meta.group.clone()) };
            self.push(Step::Write { path: to.clone(), content: bytes.clone(), attrs, validate: None })?;
            self.backup = Some(to);
        }
        let (path_buf, validate) = (path.to_path_buf(), put.validate.clone());
        self.push(Step::Write { path: path_buf, content: content.to_vec(), attrs, validate })?;
        let after = self.meta(path)?;
        let closed = |m: Option<&Meta>| m.is_some_and(|m| m.mode & 0o004 == 0);
        let confidential = put.confidential.unwrap_or_else(|| closed(after.as_ref()) || closed(kept));
        let secret = put.secret || confidential;
        let link = current.as_ref().is_some_and(|m| m.kind == FileKind::Symlink);
        let link_target = if link { self.host.base().read_link(path).ok() } else { None };
        self.diffs.push(content_diff(path, old.as_deref(), content, secret, self.show, link_target));
        if let (Some(before), Some(after)) = (kept, after) {
            self.attrs_diff(path, before, &after);
        }
        Ok(())
    }

    /// Makes sure of a folder and of those above it; what is made new gets the attributes.
    pub(super) fn folder(&mut self, path: &Path, perms: &Perms, source_mode: u32) -> Result<(), Failure> {
        let current = self.host.meta_follow(path).map_err(|e| explain("look at", path, &e))?;
        match current {
            Some(meta) if meta.kind == FileKind::Directory => {
                let at = followed(&self.host, path)?;
                let attrs = perms.attrs(Some(&meta), source_mode, true);
                return self.attrs(&at, &attrs);
            }
            Some(_) => return Err(Failure::new(format!("cannot make the folder {}: a file is there", path.display()))),
            None => {}
        }
        if self.meta(path)?.is_some() {
            return Err(Failure::new(format!(
                "cannot make the folder {}: a link that leads nowhere is there",
                path.display()
            )));
        }
        if let Some(parent) = path.parent()
            && self.host.meta_follow(parent).map_err(|e| explain("look at", parent, &e))?.is_none()
        {
            self.folder(parent, perms, source_mode)?;
        }
        self.push(Step::Mkdir(path.to_path_buf(), perms.attrs(None, source_mode, true)))?;
        self.diff(path.display().to_string(), "", "folder\n");
        Ok(())
    }

    /// Plans a file whose content a [`Stream`] will bring; `after` describes it.
    pub(super) fn expect(&mut self, path: &Path, attrs: &Attrs, after: String) -> Result<(), Failure> {
        let before = match self.meta(path)?.filter(|m| m.kind == FileKind::File) {
            Some(meta) => format!("{} bytes\n", meta.size),
            None => self.describe(path)?,
        };
        self.host.receive(path, attrs, &mut |_| Ok(()))?;
        self.diff(path.display().to_string(), before, after);
        Ok(())
    }

    /// Adds what brings the content of files that were expected.
    pub(super) fn stream(&mut self, stream: Box<dyn Stream>) {
        self.steps.push(Step::Stream(stream));
    }

    /// Makes a symbolic link, replacing a file or link.
    pub(super) fn symlink(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        let before = self.describe(path)?;
        self.push(Step::Symlink(target.to_path_buf(), path.to_path_buf()))?;
        self.diff(path.display().to_string(), before, format!("link to {}\n", target.display()));
        Ok(())
    }

    /// Makes a hard link, replacing a file or link.
    pub(super) fn hard_link(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        let before = self.describe(path)?;
        self.push(Step::HardLink(target.to_path_buf(), path.to_path_buf()))?;
        self.diff(path.display().to_string(), before, format!("hard link to {}\n", target.display()));
        Ok(())
    }

    /// Removes what stands there.
    pub(super) fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        let before = self.describe(path)?;
        if !before.is_empty() {
            self.push(Step::Remove(path.to_path_buf()))?;
            self.diff(path.display().to_string(), before, "");
        }
        Ok(())
    }

    /// Sets the times of what stands there to now.
    pub(super) fn touch(&mut self, path: &Path) -> Result<(), Failure> {
        self.push(Step::Touch(path.to_path_buf()))?;
        self.diff(format!("times of {}", path.display()), "", "now\n");
        Ok(())
    }

    /// What stands there in a word, as a line; empty for nothing.
    fn describe(&self, path: &Path) -> Result<String, Failure> {
        Ok(match self.meta(path)?.map(|m| m.kind) {
            None => String::new(),
            Some(FileKind::File) => "file\n".into(),
            Some(FileKind::Directory) => "folder\n".into(),
            Some(FileKind::Other) => "device, socket or pipe\n".into(),
            Some(FileKind::Symlink) => {
                let target = self.host.read_link(path).map_err(|e| explain("read", path, &e))?;
                format!("link to {}\n", target.display())
            }
        })
    }

    /// The results that all of Ansible's file modules give, of the machine as it will be.
    pub(super) fn results(&self, mut outcome: Outcome, path: &Path) -> Result<Outcome, Failure> {
        let shown = path.display().to_string();
        outcome = outcome.with("path", shown.clone()).with("dest", shown);
        let Some(meta) = self.meta(path)? else { return Ok(outcome.with("state", "absent")) };
        let (uid, gid) = ids(&self.host, &meta);
        let state = match meta.kind {
            FileKind::Directory => "directory",
            FileKind::Symlink => "link",
            FileKind::File | FileKind::Other => "file",
        };
        Ok(outcome
            .with("state", state)
            .with("mode", format!("{:04o}", meta.mode))
            .with("owner", meta.owner)
            .with("group", meta.group)
            .with("uid", uid)
            .with("gid", gid)
            .with("size", meta.size))
    }

    /// The plan: unchanged where no step was needed.
    pub(super) fn finish(self, mut outcome: Outcome) -> Plan {
        if self.steps.is_empty() {
            return Plan::Unchanged(outcome);
        }
        if let Some(backup) = self.backup {
            outcome = outcome.with("backup_file", backup.display().to_string());
        }
        outcome.changed = true;
        Plan::Change(Box::new(Steps { list: self.steps, diffs: self.diffs, outcome }))
    }
}

/// Steps that were planned.
#[derive(Debug)]
struct Steps {
    list: Vec<Step>,
    diffs: Vec<Diff>,
    outcome: Outcome,
}

impl Change for Steps {
    fn diffs(&self) -> Vec<Diff> {
        self.diffs.clone()
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.list.iter().flat_map(Step::paths).collect();
        paths.dedup();
        paths
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        for (i, step) in self.list.iter().enumerate() {
            step.run(host).map_err(|f| Failure { changed: f.changed || i > 0, ..f })?;
        }
        Ok(self.outcome)
    }
}

/// A change that a check cannot foresee; on the overlay it makes what comes later uncertain.
#[derive(Debug)]
struct Unforeseen(String);

impl Change for Unforeseen {
    fn diffs(&self) -> Vec<Diff> {
        Vec::new()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        if !host.is_overlay() {
            return Err(Failure::new(format!("cannot apply what only a check planned: {}", self.0)));
        }
        // A command whose effects nobody knows is how an overlay is told.
        host.run(&Command::default(), &[])?;
        Ok(Outcome::unknown(self.0))
    }
}

/// In a check, what cannot be known because something earlier was not done is unknown.
pub(super) fn unforeseen(why: impl Into<String>) -> Plan {
    Plan::Change(Box::new(Unforeseen(why.into())))
}

/// Plans; in a check in which something earlier could not be simulated, a failure means that nobody knows.
pub(super) fn planned(cx: &Cx<'_>, plan: impl FnOnce() -> Result<Plan, Failure>) -> Result<Plan, Failure> {
    match plan() {
        Err(failure) if cx.host.is_overlay() && cx.host.is_uncertain() => {
            Ok(unforeseen(format!("may change: {failure}, which an earlier task may mend")))
        }
        other => other,
    }
}

/// The path at the end of a chain of links.
pub(super) fn followed(host: &dyn Read, path: &Path) -> Result<PathBuf, Failure> {
    let mut at = path.to_path_buf();
    for _ in 0..40 {
        match host.meta(&at).map_err(|e| explain("look at", &at, &e))? {
            Some(meta) if meta.kind == FileKind::Symlink => {
                let target = host.read_link(&at).map_err(|e| explain("read", &at, &e))?;
                at = at.parent().unwrap_or(Path::new("/")).join(target);
            }
            _ => return Ok(at),
        }
    }
    Err(Failure::new(format!("cannot follow {}: too many levels of symbolic links", path.display())))
}

/// Numbers of an owner and a group; null for those that are only planned.
pub(super) fn ids(host: &dyn Read, meta: &Meta) -> (Value, Value) {
    let users = host.users().unwrap_or_default();
    let groups = host.groups().unwrap_or_default();
    let uid = users.iter().find(|u| u.name == meta.owner).map_or_else(|| meta.owner.parse().ok(), |u| u.uid);
    let gid = groups.iter().find(|g| g.name == meta.group).map_or_else(|| meta.group.parse().ok(), |g| g.gid);
    (uid.into(), gid.into())
}

fn backup_name(path: &Path, host: &dyn Read) -> PathBuf {
    let now = jiff::Timestamp::try_from(host.now()).unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(now.strftime(".%Y-%m-%d@%H:%M:%S~").to_string());
    PathBuf::from(name)
}

fn content_diff(path: &Path, old: Option<&[u8]>, new: &[u8], secret: bool, show: bool, link: Option<PathBuf>) -> Diff {
    let what = path.display().to_string();
    let (mut before, mut after) = (String::new(), String::new());
    if show && secret {
        after = match changed_lines(old.unwrap_or_default(), new) {
            Some(lines) => format!("content hidden ({lines} lines changed)\n"),
            None => format!("content hidden ({} bytes)\n", new.len()),
        };
    } else if show {
        before = match link {
            Some(target) => format!("link to {}\n", target.display()),
            None => old.map(shown).unwrap_or_default(),
        };
        after = shown(new);
    }
    Diff { what, before, after, hidden: secret }
}

/// The text, where it is text and not too long.
fn readable(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| text.len() <= DIFF_LIMIT && !text.contains('\0'))
}

fn shown(bytes: &[u8]) -> String {
    readable(bytes).map_or_else(|| format!("{} bytes, sha256:{}\n", bytes.len(), sha256_hex(bytes)), str::to_owned)
}

fn changed_lines(old: &[u8], new: &[u8]) -> Option<usize> {
    let (old, new) = (readable(old)?, readable(new)?);
    // Texts that have nothing in common would take long to compare exactly.
    let diff = TextDiff::configure().timeout(DIFF_TIME).diff_lines(old, new);
    let count = |tag| diff.iter_all_changes().filter(|c| c.tag() == tag).count();
    Some(count(ChangeTag::Insert).max(count(ChangeTag::Delete)))
}

#[cfg(test)]
pub(super) mod testing;
