//! The local machine behind two traits.
//!
//! [`Read`] looks, [`Write`] changes. A module's plan gets `&dyn Read`; only its change gets `&mut dyn Write`. The
//! machine itself is `real::Real`; `overlay::Overlay` records changes in memory over a machine that it can only read, which is
//! what check mode runs on: a later task of the same check sees the files, users and units planned by an earlier one.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::modules::Failure;

pub(crate) mod atomic;
/// Running programs.
pub mod exec;
/// A task's time limit.
pub mod limited;
/// Changes kept in memory.
pub mod overlay;
/// The machine itself.
pub mod real;
pub mod unfinished;

/// Writes the content of a file, piece by piece.
pub type Fill<'a> = &'a mut dyn FnMut(&mut dyn io::Write) -> Result<(), Failure>;

/// What kind of thing stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link (never followed by [`Read::meta`]).
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// What `lstat` says. Owners are names where the machine has one for the id, decimal ids otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The kind.
    pub kind: FileKind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub owner: String,
    /// Group.
    pub group: String,
    /// Bytes.
    pub size: u64,
    /// Last modification.
    pub modified: SystemTime,
    /// Device and inode: equal for hard links of one file.
    pub identity: (u64, u64),
}

/// The part of `st_mode` that says what a thing is: `S_IFMT`. The number is that of every Unix; its width in C is not.
pub const FORMAT: u32 = 0o170_000;

/// What `lstat` says beyond [`Meta`]; only of what is really there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Details {
    /// Hard links.
    pub links: u64,
    /// Last access, in seconds since 1970.
    pub accessed: f64,
    /// Last change of the file or its attributes, in seconds since 1970.
    pub changed: f64,
    /// For [`FileKind::Other`]: `S_IFBLK` and the like, out of `st_mode` by [`FORMAT`].
    pub format: u32,
    /// Of a device: its number.
    pub device: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// The size, in bytes, that suits reading and writing.
    pub block_size: u64,
    /// What this process may do with it; with a link, with what it points to.
    pub access: Access,
}

/// What a process may do with a file, by its effective user and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
    /// Execute it; enter it, if it is a folder.
    pub execute: bool,
}

/// Owner and mode to be set; `None` leaves what is there (new files: root's, `0644` and `0755`, from the umask).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attrs {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner, a name or a decimal id.
    pub owner: Option<String>,
    /// Group, a name or a decimal id.
    pub group: Option<String>,
}

/// A line of /etc/passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Number; `None` for a user that is only planned.
    pub uid: Option<u32>,
    /// Number of the primary group; `None` where it is only planned.
    pub gid: Option<u32>,
    /// Comment.
    pub gecos: String,
    /// Home.
    pub home: PathBuf,
    /// Shell.
    pub shell: PathBuf,
}

/// A line of /etc/group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Number; `None` for a planned group.
    pub gid: Option<u32>,
    /// Names of the members that have it as a further group.
    pub members: Vec<String>,
}

/// What systemd says of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The unit's file is known to systemd (or planned).
    pub exists: bool,
    /// `ActiveState`: active, inactive, failed, activating …
    pub active: String,
    /// `UnitFileState`: enabled, disabled, static, masked, or empty.
    pub enabled: String,
    /// `SubState`.
    pub sub: String,
    /// `MainPID`, 0 for none.
    pub main_pid: u32,
    /// `NeedDaemonReload`.
    pub needs_reload: bool,
}

/// A program to run. Arguments are passed as they are; there is no shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program, then its arguments.
    pub argv: Vec<String>,
    /// Working directory.
    pub chdir: Option<PathBuf>,
    /// Added to the environment (PATH, HOME and LANG=C.UTF-8 are always set).
    pub env: Vec<(String, String)>,
    /// Given on standard input.
    pub stdin: Option<Vec<u8>>,
    /// After this long the program's process group is killed and the call fails.
    pub timeout: Option<Duration>,
}

impl Command {
    /// A command from its words.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Output {
    /// Exit code; -N for death by signal N.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// What running a command is known to bring about: the real machine runs the command, the overlay takes the effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The user exists like this afterwards.
    User(User),
    /// The user is gone.
    NoUser(String),
    /// The group exists like this afterwards.
    Group(Group),
    /// The group is gone.
    NoGroup(String),
    /// The unit is in this state.
    Unit(String, Unit),
    /// The package is installed in this version (`None`: gone).
    Package(String, Option<String>),
    /// The machine's name.
    Hostname(String),
    /// Something else that later tasks do not ask for through [`Read`] (an index refreshed, a reload).
    Other,
}

/// What came of [`Write::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It ran.
    Done(Output),
    /// Not run: its effects were recorded in the overlay.
    Planned,
    /// Not run, and nobody knows what it would have done.
    Unknown,
}

/// Looking at the machine. No method changes anything.
pub trait Read: Send + Sync {
    /// `lstat`: `None` where nothing stands.
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>>;
    /// The whole content of a file (links are followed).
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Where a link points.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;
    /// Names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// All users, from /etc/passwd (never NSS).
    fn users(&self) -> io::Result<Vec<User>>;
    /// All groups, from /etc/group.
    fn groups(&self) -> io::Result<Vec<Group>>;
    /// A systemd unit; the name has its suffix.
    fn unit(&self, name: &str) -> Result<Unit, Failure>;
    /// The installed version of a package, `None` where it is not installed.
    fn package(&self, name: &str) -> Result<Option<String>, Failure>;
    /// The machine's static name.
    fn hostname(&self) -> io::Result<String>;
    /// Runs a command that is known to change nothing.
    fn query(&self, command: &Command) -> Result<Output, Failure>;
    /// The time.
    fn now(&self) -> SystemTime;
    /// True where changes are only recorded (check mode): what cannot be known then is unknown, not an error.
    fn is_overlay(&self) -> bool;
    /// True where something earlier in this check could not be simulated, so that what is read may be stale.
    fn is_uncertain(&self) -> bool {
        false
    }

    /// More of `lstat`; `None` where nothing stands, or what stands there is only planned.
    fn details(&self, _path: &Path) -> io::Result<Option<Details>> {
        Ok(None)
    }

    /// `stat`: like [`Read::meta`], links followed (up to 40).
    fn meta_follow(&self, path: &Path) -> io::Result<Option<Meta>> {
        let mut path = path.to_path_buf();
        for _ in 0..40 {
            match self.meta(&path)? {
                Some(meta) if meta.kind == FileKind::Symlink => {
                    let target = self.read_link(&path)?;
                    path = match path.parent() {
                        Some(parent) if target.is_relative() => parent.join(target),
                        _ => target,
                    };
                }
                other => return Ok(other),
            }
        }
        Err(io::Error::other("too many levels of symbolic links"))
    }
}

/// Changing the machine.
pub trait Write: Read {
    /// This machine, to look at.
    fn as_read(&self) -> &dyn Read;
    /// Puts a file in place atomically: temporary file in the same folder, owner and mode, fsync, `validate` (a
    /// command line in which `%s` stands for the temporary file), rename, fsync of the folder. What was there, a link
    /// too, is replaced; a folder is an error. With `attrs` fields `None` an existing file's are kept.
    fn write(&mut self, path: &Path, content: &[u8], attrs: &Attrs, validate: Option<&str>) -> Result<(), Failure>;
    /// Like [`Write::write`] for content that comes piece by piece (a download): `fill` writes to the temporary file, and its
    /// failure leaves what was there. False where `fill` was not called, because changes are only recorded.
    fn receive(&mut self, path: &Path, attrs: &Attrs, fill: Fill<'_>) -> Result<bool, Failure> {
        let mut content = Vec::new();
        fill(&mut content)?;
        self.write(path, &content, attrs, None).map(|()| true)
    }
    /// Makes one folder.
    fn mkdir(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure>;
    /// Sets owner, group, mode; links are not followed.
    fn set_attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure>;
    /// Makes or replaces a symbolic link, atomically.
    fn symlink(&mut self, target: &Path, path: &Path) -> Result<(), Failure>;
    /// Makes or replaces a hard link, atomically.
    fn hard_link(&mut self, target: &Path, path: &Path) -> Result<(), Failure>;
    /// Renames within one filesystem.
    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure>;
    /// Removes a file, link or whole folder; absent is fine.
    fn remove(&mut self, path: &Path) -> Result<(), Failure>;
    /// Sets access and modification time to now.
    fn touch(&mut self, path: &Path) -> Result<(), Failure>;
    /// Runs a command. `effects` is what it is known to bring about; empty means that nobody knows.
    fn run(&mut self, command: &Command, effects: &[Effect]) -> Result<Ran, Failure>;
}
