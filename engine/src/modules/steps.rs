//! Changes that are a list of steps: what `user`, `package`, `systemd_unit` and their like are made of.

use std::path::{Path, PathBuf};

use super::{Change, Diff, Failure, Invocation, Outcome, Plan};
use crate::host::{Attrs, Command, Effect, Output, Ran, Read, Write};

/// One step of a [`Steps`].
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Runs a program that must end with 0; what it brings about.
    Run(Command, Vec<Effect>),
    /// Puts a file in place.
    Write(PathBuf, Vec<u8>, Attrs),
    /// Makes a folder, unless it is there.
    Mkdir(PathBuf, Attrs),
    /// Removes a file or folder.
    Remove(PathBuf),
    /// In check mode only: a folder that an earlier program would have made.
    PlannedDirectory(PathBuf, Attrs),
    /// In check mode only: a file that an earlier program would have written.
    PlannedFile(PathBuf, Vec<u8>),
}

/// See [`Steps::finish`].
pub(crate) type Finish = fn(&dyn Read, Outcome) -> Result<Outcome, Failure>;

/// Steps in order; the first that fails ends them.
#[derive(Debug)]
pub(crate) struct Steps {
    pub(crate) diffs: Vec<Diff>,
    pub(crate) list: Vec<Step>,
    pub(crate) outcome: Outcome,
    /// Adds results that are known only afterwards (not in check mode).
    pub(crate) finish: Option<Finish>,
}

impl Steps {
    pub(crate) fn new(outcome: Outcome) -> Self {
        Self { diffs: Vec::new(), list: Vec::new(), outcome, finish: None }
    }

    pub(crate) fn diff(mut self, what: impl Into<String>, before: impl Into<String>, after: impl Into<String>) -> Self {
        self.diffs.push(Diff { what: what.into(), before: before.into(), after: after.into(), hidden: false });
        self
    }

    pub(crate) fn step(mut self, step: Step) -> Self {
        self.list.push(step);
        self
    }

    pub(crate) fn into_plan(self) -> Plan {
        Plan::Change(Box::new(self))
    }
}

impl Change for Steps {
    fn diffs(&self) -> Vec<Diff> {
        self.diffs.clone()
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.list
            .iter()
            .filter_map(|step| match step {
                Step::Write(path, ..) | Step::Remove(path) => Some(path.clone()),
                _ => None,
            })
            .collect()
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let Self { list, mut outcome, finish, .. } = *self;
        outcome.unknown |= apply(&list, host)?;
        match finish {
            Some(finish) if !host.is_overlay() => finish(host.as_read(), outcome),
            _ => Ok(outcome),
        }
    }
}

/// Applies steps in order; true if nobody knows what one of them would have done (check mode).
pub(crate) fn apply(steps: &[Step], host: &mut dyn Write) -> Result<bool, Failure> {
    let mut unknown = false;
    for (index, step) in steps.iter().enumerate() {
        match one(step, host) {
            Ok(maybe) => unknown |= maybe,
            Err(mut failure) => {
                failure.changed |= index > 0;
                return Err(failure);
            }
        }
    }
    Ok(unknown)
}

fn one(step: &Step, host: &mut dyn Write) -> Result<bool, Failure> {
    match step {
        Step::Run(command, effects) => return Ok(run(host, command, effects)? == Ran::Unknown),
        Step::Write(path, content, attrs) => host.write(path, content, attrs, None)?,
        Step::Mkdir(path, attrs) => {
            if exists(host.as_read(), path)? {
                return Ok(false);
            }
            host.mkdir(path, attrs)?;
        }
        Step::Remove(path) => host.remove(path)?,
        Step::PlannedDirectory(path, attrs) if host.is_overlay() => {
            let above: Vec<&Path> = path.ancestors().skip(1).collect();
            for folder in above.into_iter().rev() {
                if !exists(host.as_read(), folder)? {
                    host.mkdir(folder, &Attrs::default())?;
                }
            }
            if !exists(host.as_read(), path)? {
                host.mkdir(path, attrs)?;
            }
        }
        Step::PlannedFile(path, content) if host.is_overlay() => host.write(path, content, &Attrs::default(), None)?,
        Step::PlannedDirectory(..) | Step::PlannedFile(..) => {}
    }
    Ok(false)
}

/// Runs a program; an exit code other than 0 is a failure.
pub(crate) fn run(host: &mut dyn Write, command: &Command, effects: &[Effect]) -> Result<Ran, Failure> {
    let ran = host.run(command, effects)?;
    match &ran {
        Ran::Done(output) if output.code != 0 => Err(failed(command, output)),
        _ => Ok(ran),
    }
}

/// Runs a program that changes nothing; an exit code other than 0 is a failure.
pub(crate) fn query(host: &dyn Read, command: &Command) -> Result<String, Failure> {
    let output = host.query(command)?;
    if output.code == 0 { Ok(text(&output.stdout)) } else { Err(failed(command, &output)) }
}

/// The failure of a program that ended badly, with its last words.
pub(crate) fn failed(command: &Command, output: &Output) -> Failure {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let words = if stderr.trim().is_empty() { &stdout } else { &stderr };
    let last = words.trim().lines().last().map(|line| format!(": {line}")).unwrap_or_default();
    Failure::new(format!("{} {}{last}", command.argv.first().map_or("", String::as_str), ended(output.code)))
        .with("rc", output.code)
        .with("cmd", command.argv.clone())
        .with("stdout", stdout)
        .with("stderr", stderr)
}

/// `ended with code 3`, `was killed by signal 9`.
pub(crate) fn ended(code: i32) -> String {
    if code < 0 { format!("was killed by signal {}", -code) } else { format!("ended with code {code}") }
}

/// Bytes as text; what is no UTF-8 is replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// True if something stands at the path (links are not followed).
pub(crate) fn exists(host: &dyn Read, path: &Path) -> Result<bool, Failure> {
    host.meta(path).map(|meta| meta.is_some()).map_err(|e| Failure::io("look at", path, &e))
}

/// A text file; `None` where there is none.
pub(crate) fn read_text(host: &dyn Read, path: &Path) -> Result<Option<String>, Failure> {
    match host.read(path) {
        Ok(bytes) => Ok(Some(text(&bytes))),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Failure::io("read", path, &e)),
    }
}

/// A file's diff: content only where the run asked for diffs.
pub(crate) fn file_diff(inv: &Invocation, path: &Path, before: &str, after: &str) -> Diff {
    let (before, after) = if inv.diff { (before, after) } else { ("", "") };
    Diff { what: path.display().to_string(), before: before.into(), after: after.into(), hidden: false }
}

/// For arguments of Ansible's modules that we do not have: says what stands for them.
pub(crate) fn hinted<T>(parsed: Result<T, Failure>, hints: &[(&str, &str)]) -> Result<T, Failure> {
    parsed.map_err(|failure| {
        let hint = failure
            .message
            .strip_prefix("unknown argument '")
            .and_then(|rest| rest.strip_suffix('\''))
            .and_then(|name| hints.iter().find(|(known, _)| *known == name));
        match hint {
            Some((_, hint)) => failure.hint(*hint),
            None => failure,
        }
    })
}
