//! A machine in memory for the modules' tests: it runs nothing, takes the effects, and remembers what was asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value, json};

use super::{Cx, Failure, Invocation, Outcome, Plan, find};
use crate::host::{Attrs, Command, Effect, FileKind, Group, Meta, Output, Ran, Read, Unit, User, Write};

/// An answer of a program: the command starts with these words, and it answers once (`times`) or always.
#[derive(Debug)]
struct Answer {
    start: String,
    output: Output,
    times: Option<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(crate) attrs: BTreeMap<PathBuf, Attrs>,
    pub(crate) folders: BTreeSet<PathBuf>,
    pub(crate) times: BTreeMap<PathBuf, SystemTime>,
    pub(crate) users: Vec<User>,
    pub(crate) groups: Vec<Group>,
    pub(crate) units: BTreeMap<String, Unit>,
    pub(crate) packages: BTreeMap<String, String>,
    pub(crate) hostname: String,
    /// Command lines in the order in which they ran (not the queries).
    pub(crate) ran: Vec<String>,
    /// Standard input of those that had one.
    pub(crate) stdin: Vec<String>,
    answers: Mutex<Vec<Answer>>,
}

impl Fake {
    /// A Debian with nothing on it.
    pub(crate) fn new() -> Self {
        let mut fake = Self { hostname: "old".into(), ..Self::default() };
        let folders = ["/", "/etc/apt/keyrings", "/etc/apt/sources.list.d", "/etc/systemd/system", "/home", "/opt"];
        fake.folders = folders.into_iter().flat_map(|f| Path::new(f).ancestors()).map(Into::into).collect();
        for (name, id) in [("root", 0), ("daemon", 1)] {
            fake.groups.push(Group { name: name.into(), gid: Some(id), members: Vec::new() });
            fake.users.push(User {
                name: name.into(),
                uid: Some(id),
                gid: Some(id),
                gecos: String::new(),
                home: "/root".into(),
                shell: "/bin/sh".into(),
            });
        }
        fake
    }

    pub(crate) fn file(mut self, path: &str, content: &str) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }

    pub(crate) fn unit_is(mut self, name: &str, active: &str, enabled: &str) -> Self {
        self.units.insert(name.into(), unit(active, enabled));
        self.files.insert(Path::new("/lib/systemd/system").join(name), b"[Service]\n".to_vec());
        self
    }

    /// From now on a command that starts with these words ends like this.
    pub(crate) fn answers(self, start: &str, code: i32, stdout: &str, stderr: &str) -> Self {
        self.answer(start, code, stdout, stderr, None)
    }

    /// The next command that starts with these words ends like this.
    pub(crate) fn answers_once(self, start: &str, code: i32, stdout: &str, stderr: &str) -> Self {
        self.answer(start, code, stdout, stderr, Some(1))
    }

    fn answer(self, start: &str, code: i32, stdout: &str, stderr: &str, times: Option<usize>) -> Self {
        self.answers.lock().unwrap().push(Answer {
            start: start.into(),
            output: Output { code, stdout: stdout.into(), stderr: stderr.into() },
            times,
        });
        self
    }

    fn output(&self, line: &str) -> Option<Output> {
        let mut answers = self.answers.lock().unwrap();
        let answer = answers.iter_mut().find(|a| a.times != Some(0) && line.starts_with(&a.start))?;
        answer.times = answer.times.map(|n| n - 1);
        Some(answer.output.clone())
    }

    fn take(&mut self, effect: &Effect) {
        match effect.clone() {
            Effect::User(mut user) => {
                user.uid = user.uid.or(Some(900));
                user.gid = user.gid.or(Some(901));
                self.users.retain(|u| u.name != user.name);
                self.users.push(user);
            }
            Effect::NoUser(name) => self.users.retain(|u| u.name != name),
            Effect::Group(mut group) => {
                group.gid = group.gid.or(Some(901));
                self.groups.retain(|g| g.name != group.name);
                self.groups.push(group);
            }
            Effect::NoGroup(name) => self.groups.retain(|g| g.name != name),
            Effect::Unit(name, unit) => {
                self.units.insert(name, unit);
            }
            Effect::Package(name, Some(version)) => {
                self.packages.insert(name, version);
            }
            Effect::Package(name, None) => {
                self.packages.remove(&name);
            }
            Effect::Hostname(name) => self.hostname = name,
            Effect::Other => {}
        }
    }
}

pub(crate) fn unit(active: &str, enabled: &str) -> Unit {
    Unit {
        exists: true,
        active: active.into(),
        enabled: enabled.into(),
        sub: if active == "active" { "running" } else { "dead" }.into(),
        main_pid: u32::from(active == "active") * 100,
        needs_reload: false,
    }
}

fn line(command: &Command) -> String {
    command.argv.join(" ")
}

impl Read for Fake {
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
        let kind = if self.files.contains_key(path) {
            FileKind::File
        } else if self.folders.contains(path) || self.files.keys().any(|f| f.starts_with(path)) {
            FileKind::Directory
        } else {
            return Ok(None);
        };
        let attrs = self.attrs.get(path).cloned().unwrap_or_default();
        Ok(Some(Meta {
            kind,
            mode: attrs.mode.unwrap_or(0o644),
            owner: attrs.owner.unwrap_or_else(|| "root".into()),
            group: attrs.group.unwrap_or_else(|| "root".into()),
            size: self.files.get(path).map_or(0, |f| f.len() as u64),
            modified: self.times.get(path).copied().unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000)),
            identity: (0, 0),
        }))
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn read_link(&self, _: &Path) -> io::Result<PathBuf> {
        Err(io::ErrorKind::InvalidInput.into())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let names: BTreeSet<OsString> = self
            .files
            .keys()
            .chain(&self.folders)
            .filter_map(|f| f.strip_prefix(path).ok()?.iter().next().map(Into::into))
            .collect();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names.into_iter().collect()) }
    }
    fn users(&self) -> io::Result<Vec<User>> {
        Ok(self.users.clone())
    }
    fn groups(&self) -> io::Result<Vec<Group>> {
        Ok(self.groups.clone())
    }
    fn unit(&self, name: &str) -> Result<Unit, Failure> {
        Ok(self.units.get(name).cloned().unwrap_or(Unit { exists: false, ..unit("inactive", "") }))
    }
    fn package(&self, name: &str) -> Result<Option<String>, Failure> {
        Ok(self.packages.get(name).cloned())
    }
    fn hostname(&self) -> io::Result<String> {
        Ok(self.hostname.clone())
    }
    fn query(&self, command: &Command) -> Result<Output, Failure> {
        self.output(&line(command)).ok_or_else(|| Failure::new(format!("no such program: {}", line(command))))
    }
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }
    fn is_overlay(&self) -> bool {
        false
    }
}

impl Write for Fake {
    fn as_read(&self) -> &dyn Read {
        self
    }
    fn write(&mut self, path: &Path, content: &[u8], attrs: &Attrs, _: Option<&str>) -> Result<(), Failure> {
        self.files.insert(path.into(), content.into());
        self.attrs.insert(path.into(), attrs.clone());
        Ok(())
    }
    fn mkdir(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        self.folders.insert(path.into());
        self.attrs.insert(path.into(), attrs.clone());
        Ok(())
    }
    fn set_attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        self.attrs.insert(path.into(), attrs.clone());
        Ok(())
    }
    fn symlink(&mut self, _: &Path, path: &Path) -> Result<(), Failure> {
        Err(Failure::new(format!("no links here: {}", path.display())))
    }
    fn hard_link(&mut self, _: &Path, path: &Path) -> Result<(), Failure> {
        Err(Failure::new(format!("no links here: {}", path.display())))
    }
    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        let content = self.files.remove(from).ok_or_else(|| Failure::new("nothing to rename"))?;
        self.files.insert(to.into(), content);
        Ok(())
    }
    fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        self.files.retain(|f, _| !f.starts_with(path));
        self.folders.retain(|f| !f.starts_with(path));
        Ok(())
    }
    fn touch(&mut self, path: &Path) -> Result<(), Failure> {
        self.times.insert(path.into(), self.now());
        Ok(())
    }
    fn run(&mut self, command: &Command, effects: &[Effect]) -> Result<Ran, Failure> {
        self.ran.push(line(command));
        if let Some(stdin) = &command.stdin {
            self.stdin.push(String::from_utf8_lossy(stdin).into_owned());
        }
        let output = self.output(&line(command)).unwrap_or_default();
        if output.code == 0 {
            for effect in effects {
                self.take(effect);
            }
        }
        Ok(Ran::Done(output))
    }
}

pub(crate) fn call(module: &str, args: Value) -> Invocation {
    let args: Map<String, Value> = args.as_object().cloned().unwrap();
    Invocation {
        module: module.into(),
        args,
        content: None,
        environment: Vec::new(),
        diff: true,
        timeout: None,
        secret: false,
    }
}

pub(crate) fn plan(host: &dyn Read, module: &str, args: Value) -> Result<Plan, Failure> {
    let facts = json!({"os": {"family": "debian"}, "arch": "x86_64"});
    let definition = find(module).unwrap();
    (definition.plan)(
        &call(definition.name, args),
        &Cx { host, facts: &facts, secrets: crate::secrets::grants::nobody() },
    )
}

/// Plans and applies.
pub(crate) fn go(host: &mut dyn Write, module: &str, args: Value) -> Result<Outcome, Failure> {
    let outcome = match plan(host.as_read(), module, args)? {
        Plan::Unchanged(outcome) => outcome,
        Plan::Change(change) => change.apply(host)?,
    };
    let untold = find(module).unwrap().untold(&outcome.data);
    assert!(untold.is_empty(), "{module}: results that the manual does not name: {untold:?}");
    Ok(outcome)
}

/// What check says is what the run does, and a second run has nothing to do. Returns the run's outcome.
pub(crate) fn converges(fake: &mut Fake, module: &str, args: Value) -> Outcome {
    let mut overlay = crate::host::overlay::Overlay::new(fake);
    let Plan::Change(checked) = plan(&overlay, module, args.clone()).unwrap() else { panic!("nothing planned") };
    let check_diffs = checked.diffs();
    let checked = checked.apply(&mut overlay).unwrap();
    let again = go(&mut overlay, module, args.clone()).unwrap();
    assert!(!again.changed && !again.unknown, "a second check: {again:?}");
    drop(overlay);
    let Plan::Change(change) = plan(fake, module, args.clone()).unwrap() else { panic!("nothing planned") };
    assert_eq!(change.diffs(), check_diffs);
    let outcome = change.apply(fake).unwrap();
    assert_eq!((outcome.changed, checked.unknown), (checked.changed, false));
    match plan(fake, module, args).unwrap() {
        Plan::Unchanged(second) => assert!(!second.changed, "{second:?}"),
        Plan::Change(change) => panic!("a second run would change: {change:?}"),
    }
    outcome
}
