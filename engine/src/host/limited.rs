//! A machine on which no command runs past a moment: a task's `timeout`.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::{Attrs, Command, Details, Effect, Fill, Group, Meta, Output, Ran, Read, Unit, User, Write};
use crate::modules::Failure;

/// See the module.
pub struct Limited<'a> {
    inner: &'a mut dyn Write,
    until: Instant,
    limit: Duration,
}

impl std::fmt::Debug for Limited<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limited").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<'a> Limited<'a> {
    /// From now on, for so long.
    pub fn new(inner: &'a mut dyn Write, limit: Duration) -> Self {
        Self { inner, until: Instant::now() + limit, limit }
    }

    fn limited(&self, command: &Command) -> Result<Command, Failure> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::new(format!("the task's timeout of {} s is over", self.limit.as_secs_f64())));
        }
        let timeout = command.timeout.map_or(left, |own| own.min(left));
        Ok(Command { timeout: Some(timeout), ..command.clone() })
    }
}

impl Read for Limited<'_> {
    fn meta(&self, path: &Path) -> io::Result<Option<Meta>> {
        self.inner.meta(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.inner.read(path)
    }
    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner.read_link(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.inner.list(path)
    }
    fn users(&self) -> io::Result<Vec<User>> {
        self.inner.users()
    }
    fn groups(&self) -> io::Result<Vec<Group>> {
        self.inner.groups()
    }
    fn unit(&self, name: &str) -> Result<Unit, Failure> {
        self.inner.unit(name)
    }
    fn package(&self, name: &str) -> Result<Option<String>, Failure> {
        self.inner.package(name)
    }
    fn hostname(&self) -> io::Result<String> {
        self.inner.hostname()
    }
    fn query(&self, command: &Command) -> Result<Output, Failure> {
        self.inner.query(&self.limited(command)?)
    }
    fn now(&self) -> SystemTime {
        self.inner.now()
    }
    fn is_overlay(&self) -> bool {
        self.inner.is_overlay()
    }
    fn is_uncertain(&self) -> bool {
        self.inner.is_uncertain()
    }
    fn details(&self, path: &Path) -> io::Result<Option<Details>> {
        self.inner.details(path)
    }
}

impl Write for Limited<'_> {
    fn as_read(&self) -> &dyn Read {
        self
    }
    fn write(&mut self, path: &Path, content: &[u8], attrs: &Attrs, validate: Option<&str>) -> Result<(), Failure> {
        self.inner.write(path, content, attrs, validate)
    }
    fn receive(&mut self, path: &Path, attrs: &Attrs, fill: Fill<'_>) -> Result<bool, Failure> {
        self.inner.receive(path, attrs, fill)
    }
    fn mkdir(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        self.inner.mkdir(path, attrs)
    }
    fn set_attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        self.inner.set_attrs(path, attrs)
    }
    fn symlink(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        self.inner.symlink(target, path)
    }
    fn hard_link(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        self.inner.hard_link(target, path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.inner.rename(from, to)
    }
    fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        self.inner.remove(path)
    }
    fn touch(&mut self, path: &Path) -> Result<(), Failure> {
        self.inner.touch(path)
    }
    fn run(&mut self, command: &Command, effects: &[Effect]) -> Result<Ran, Failure> {
        let command = self.limited(command)?;
        self.inner.run(&command, effects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::real::Real;

    #[test]
    fn a_command_ends_with_the_tasks_time() {
        let mut real = Real::new();
        let mut limited = Limited::new(&mut real, Duration::from_millis(200));
        let begun = Instant::now();
        assert!(limited.run(&Command::new(["sleep", "30"]), &[]).is_err());
        assert!(begun.elapsed() < Duration::from_secs(10));
        let over = limited.run(&Command::new(["true"]), &[]).unwrap_err();
        assert_eq!(over.message, "the task's timeout of 0.2 s is over");
    }
}
