//! Files as they were: kept before a change that notifies a handler, and put back where the service did not come up with
//! the new ones, or where it never got to try them.

use std::path::PathBuf;

use super::{
    Flow, Runner,
    handlers::Key,
    ledger::{Backup, Debt},
};
use crate::{
    host::{Attrs, Command, Effect, FileKind, Write},
    modules::Failure,
    playbook::model::{Handler, Play},
    protocol::EventKind,
    vars::Scope,
};

/// Where systemd reads units: it goes on with what it has read until it is told to read again.
const UNITS: &[&str] = &["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system"];

impl Runner<'_> {
    /// Keeps files and links as they are before a change. True beside them if one of the paths cannot be kept so.
    pub(super) fn back_up(&self, paths: &[PathBuf]) -> Result<(Vec<Backup>, bool), Failure> {
        let mut out: Vec<Backup> = Vec::new();
        let mut beyond = paths.is_empty();
        for path in paths {
            if out.iter().any(|b| b.path == *path) {
                continue;
            }
            if let Some(known) = self.ledger.debts().iter().flat_map(|d| &d.backups).find(|b| b.path == *path) {
                out.push(known.clone());
                continue;
            }
            let nothing = Backup {
                path: path.clone(),
                copy: None,
                link: None,
                mode: 0,
                owner: String::new(),
                group: String::new(),
            };
            let Some(meta) = self.real.meta(path).map_err(|e| Failure::io("look at", path, &e))? else {
                out.push(nothing);
                continue;
            };
            match meta.kind {
                FileKind::File => {
                    let content = self.real.read(path).map_err(|e| Failure::io("read", path, &e))?;
                    let copy = self.unused_copy();
                    self.ledger.keep(&copy, &content)?;
                    let (mode, owner, group) = (meta.mode, meta.owner, meta.group);
                    out.push(Backup { copy: Some(copy), mode, owner, group, ..nothing });
                }
                FileKind::Symlink => {
                    let target = self.real.read_link(path).map_err(|e| Failure::io("read", path, &e))?;
                    out.push(Backup { link: Some(target), ..nothing });
                }
                // They are not replaced by their content.
                FileKind::Directory | FileKind::Other => beyond = true,
            }
        }
        Ok((out, beyond))
    }

    fn unused_copy(&self) -> PathBuf {
        (0..usize::MAX)
            .map(|n| self.ledger.copy_path(&self.context.init.run_id, n))
            .find(|p| !p.exists())
            .unwrap_or_default()
    }

    /// After a handler that failed: the previous files, and the handler once more, so that the service is up as it was.
    pub(super) fn restore(&mut self, play: &Play, handler: &Handler, key: &Key, scope: &Scope) {
        let Some(debt) = self.ledger.find(&key.0, key.1.as_deref()).cloned() else { return };
        if debt.backups.is_empty() {
            return;
        }
        if let Err(failure) = self.put_back(&debt) {
            self.handler_failed(handler, scope, failure);
            return;
        }
        // Struck when the service is up: until then a later run has it to do.
        let up = matches!(self.run_task(play, &handler.task, true), Flow::Next);
        if up && let Err(failure) = self.ledger.strike(&key.0, key.1.as_deref()) {
            self.handler_failed(handler, scope, failure);
        }
        self.tell_restored(handler, debt, "the handler failed", !up);
    }

    /// Before a handler that does not run in this run: the service runs as it was, and its files become what they were. A
    /// reboot, a crash or a person that starts it must not start it with something that was never tried.
    ///
    /// The debt is struck with that, for the next run finds the change again; unless there is more to it than files, or it is
    /// an earlier run's, which may have been killed after the service had got them.
    pub(super) fn take_back(&mut self, handler: &Handler, key: &Key, why: &str) -> Result<(), Failure> {
        let Some(debt) = self.ledger.find(&key.0, key.1.as_deref()).cloned() else { return Ok(()) };
        if debt.backups.is_empty() {
            return Ok(());
        }
        self.put_back(&debt)?;
        let owed = debt.beyond || debt.run_id != self.context.init.run_id;
        if !owed {
            self.ledger.strike(&key.0, key.1.as_deref())?;
        }
        self.tell_restored(handler, debt, why, owed);
        Ok(())
    }

    /// The role's other handlers that have not run: its files belong together. Names of a service must not lead to the port that
    /// it did not get.
    pub(super) fn take_back_others(&mut self, play: &Play, key: &Key, why: &str) -> Result<(), Failure> {
        if key.1.is_none() {
            return Ok(());
        }
        for handler in &play.handlers {
            let other = self.key(handler);
            if other.1 == key.1 && self.state.notified.remove(&handler.task.id).is_some() {
                self.take_back(handler, &other, why)?;
            }
        }
        Ok(())
    }

    /// The play is over on this host: handlers that take turns and have had none.
    pub(super) fn untried(&mut self, play: &Play, why: &str) {
        if self.context.init.check {
            return;
        }
        for handler in &play.handlers {
            let scope = self.scope(play, &handler.task);
            if !self.state.notified.contains_key(&handler.task.id) || !self.is_gated(handler, &scope) {
                continue;
            }
            self.state.notified.remove(&handler.task.id);
            let key = self.key(handler);
            let done = self.take_back(handler, &key, why).and_then(|()| self.take_back_others(play, &key, why));
            if let Err(failure) = done {
                self.handler_failed(handler, &scope, failure);
            }
        }
    }

    fn tell_restored(&self, handler: &Handler, debt: Debt, why: &str, owed: bool) {
        let files = debt.backups.into_iter().map(|b| b.path).collect();
        let (name, role) = (debt.handler, debt.role);
        self.emit(handler.task.id, EventKind::Restored { handler: name, role, files, why: why.to_owned(), owed });
    }

    /// All files of a debt. Services that have already got one of them from this run run with what is no longer there:
    /// their handlers are owed again.
    fn put_back(&mut self, debt: &Debt) -> Result<(), Failure> {
        for backup in &debt.backups {
            put_back(self.real, backup)?;
        }
        if debt.backups.iter().any(|b| UNITS.iter().any(|folder| b.path.starts_with(folder))) {
            self.real.run(&Command::new(["systemctl", "daemon-reload"]), &[Effect::Other])?;
        }
        let touched = |paid: &&Debt| {
            (&paid.handler, &paid.role) != (&debt.handler, &debt.role)
                && paid.backups.iter().any(|p| debt.backups.iter().any(|b| b.path == p.path))
        };
        for paid in self.state.paid.iter().filter(touched).cloned().collect::<Vec<_>>() {
            self.ledger.owe(Debt { backups: Vec::new(), beyond: true, ..paid })?;
        }
        Ok(())
    }
}

fn put_back(host: &mut dyn Write, backup: &Backup) -> Result<(), Failure> {
    let path = &backup.path;
    if let Some(target) = &backup.link {
        return host.symlink(target, path);
    }
    let Some(copy) = &backup.copy else {
        // Nothing was there. A folder that is there now stays: services may have put their data into it.
        let meta = host.meta(path).map_err(|e| Failure::io("look at", path, &e))?;
        return match meta {
            Some(meta) if meta.kind != FileKind::Directory => host.remove(path),
            _ => Ok(()),
        };
    };
    let content = std::fs::read(copy).map_err(|e| Failure::io("read", copy, &e))?;
    let attrs = Attrs { mode: Some(backup.mode), owner: Some(backup.owner.clone()), group: Some(backup.group.clone()) };
    host.write(path, &content, &attrs, None)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;
    use crate::host::real::Real;

    fn backup(path: &Path, copy: Option<PathBuf>, link: Option<PathBuf>) -> Backup {
        let meta = Real::new();
        let owner = crate::host::Read::meta(&meta, path.parent().unwrap()).unwrap().unwrap();
        Backup { path: path.to_path_buf(), copy, link, mode: 0o640, owner: owner.owner, group: owner.group }
    }

    #[test]
    fn files_links_and_nothing_come_back_and_folders_with_data_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, made, folder) =
            (dir.path().join("file"), dir.path().join("link"), dir.path().join("made"), dir.path().join("folder"));
        let copy = dir.path().join("copy");
        fs::write(&copy, "old").unwrap();
        fs::write(&file, "new").unwrap();
        fs::write(&made, "new").unwrap();
        std::os::unix::fs::symlink("new", &link).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("data"), "precious").unwrap();
        let mut host = Real::new();
        for one in [
            backup(&file, Some(copy), None),
            backup(&link, None, Some("old".into())),
            backup(&made, None, None),
            backup(&folder, None, None),
        ] {
            put_back(&mut host, &one).unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("old"));
        assert!(!made.exists());
        assert_eq!(fs::read_to_string(folder.join("data")).unwrap(), "precious");
    }

    #[test]
    fn a_copy_that_is_gone_is_an_error_and_leaves_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "new").unwrap();
        let lost = backup(&file, Some(dir.path().join("copy")), None);
        assert!(put_back(&mut Real::new(), &lost).unwrap_err().message.contains("copy"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }
}
