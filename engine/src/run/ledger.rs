//! What stays on the host between runs: handlers that are owed.
//!
//! The ledger is JSON with a version and a generation, written atomically (temporary file, fsync, rename, fsync of the
//! folder). A notification is written *before* the change that causes it, so that a kill at any point leaves either no
//! change or a debt that the next run pays. The previous version of every file that notified a handler is kept beside
//! it until that handler has succeeded.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    modules::{Failure, Invocation},
    playbook::model::Gate,
};

/// The layout of the file.
const VERSION: u32 = 1;
/// How names of files begin that are being written.
const HALF: &str = ".half-";

/// A handler that is owed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Debt {
    /// The handler's name.
    pub handler: String,
    /// The role it belongs to.
    pub role: Option<String>,
    /// The call as it was when it was owed, so that a run without this handler can pay it; `None` where it could not be
    /// rendered then.
    pub call: Option<Invocation>,
    /// As whom.
    pub user: String,
    /// Turns.
    pub serial: Option<usize>,
    /// Asked between turns.
    pub gate: Option<Gate>,
    /// The run that owes it.
    pub run_id: String,
    /// Seconds since 1970.
    pub since: u64,
    /// What was there before.
    pub backups: Vec<Backup>,
    /// Something notified it that no copy takes back: a command, a package, a folder.
    #[serde(default)]
    pub beyond: bool,
    /// The variables that its gate asks by, as they were when it was owed.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub gate_vars: serde_json::Map<String, serde_json::Value>,
}

/// A file as it was before a change that notified a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The file.
    pub path: PathBuf,
    /// Its copy; `None` where there was no file.
    pub copy: Option<PathBuf>,
    /// Where it pointed, if it was a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PathBuf>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: String,
    /// Group.
    pub group: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    generation: u64,
    debts: Vec<Debt>,
}

/// The debts of this host.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    generation: u64,
    /// False in check mode: nothing is written.
    persistent: bool,
    debts: Vec<Debt>,
}

impl Ledger {
    /// Reads the ledger in a state folder; none is an empty one. One that cannot be understood is an error: it may hold
    /// debts.
    pub fn open(dir: &Path, persistent: bool) -> Result<Self, Failure> {
        let path = dir.join("ledger.json");
        let stored = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Stored>(&bytes).map_err(|e| {
                Failure::new(format!("cannot understand {}: {e}", path.display()))
                    .hint("it lists handlers that are owed; restart those services and remove the file")
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Stored { version: VERSION, generation: 0, debts: Vec::new() }
            }
            Err(e) => return Err(Failure::io("read", &path, &e)),
        };
        if stored.version != VERSION {
            return Err(Failure::new(format!(
                "{} has layout {}, this agent knows {VERSION}",
                path.display(),
                stored.version
            )));
        }
        let ledger = Self { dir: dir.to_path_buf(), generation: stored.generation, persistent, debts: stored.debts };
        if persistent {
            ledger.sweep();
        }
        Ok(ledger)
    }

    /// Removes what a killed run left: copies that no debt names, halves of files. Only who holds the host's lock opens a
    /// ledger for writing, so nobody is at work on them.
    fn sweep(&self) {
        let copies: Vec<&PathBuf> =
            self.debts.iter().flat_map(|d| &d.backups).filter_map(|b| b.copy.as_ref()).collect();
        let backup = self.dir.join("backup");
        for folder in [&self.dir, &backup] {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let half = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(HALF));
                if half || *folder == backup && !copies.contains(&&path) {
                    // Left over, it is a file too many and nothing worse.
                    let _ = fs::remove_file(path);
                }
            }
        }
    }

    /// All debts, oldest first.
    pub fn debts(&self) -> &[Debt] {
        &self.debts
    }

    /// The debt for a handler.
    pub fn find(&self, handler: &str, role: Option<&str>) -> Option<&Debt> {
        self.debts.iter().find(|d| d.handler == handler && d.role.as_deref() == role)
    }

    /// Writes a debt down, or adds to the one that is there.
    pub fn owe(&mut self, debt: Debt) -> Result<(), Failure> {
        let known = self.debts.iter_mut().find(|d| d.handler == debt.handler && d.role == debt.role);
        match known {
            None => self.debts.push(debt),
            Some(old) => {
                // The oldest copy is the version under which the service last came up.
                for backup in debt.backups {
                    if !old.backups.iter().any(|b| b.path == backup.path) {
                        old.backups.push(backup);
                    }
                }
                old.call = debt.call.or(old.call.take());
                old.beyond |= debt.beyond;
            }
        }
        self.commit()
    }

    /// Strikes a debt and removes its copies.
    pub fn strike(&mut self, handler: &str, role: Option<&str>) -> Result<(), Failure> {
        let Some(at) = self.debts.iter().position(|d| d.handler == handler && d.role.as_deref() == role) else {
            return Ok(());
        };
        let debt = self.debts.remove(at);
        self.commit()?;
        for copy in debt.backups.into_iter().filter_map(|b| b.copy) {
            if !self.debts.iter().flat_map(|d| &d.backups).any(|b| b.copy.as_ref() == Some(&copy)) {
                // Left over, it is a file too many and nothing worse.
                let _ = fs::remove_file(copy);
            }
        }
        Ok(())
    }

    /// Where a copy goes that does not exist yet.
    pub fn copy_path(&self, run_id: &str, n: usize) -> PathBuf {
        self.dir.join("backup").join(format!("{run_id}-{n}"))
    }

    /// Keeps a file's content.
    pub fn keep(&self, copy: &Path, content: &[u8]) -> Result<(), Failure> {
        let dir = copy.parent().unwrap_or(&self.dir);
        private_dir(dir)?;
        atomic(copy, content)
    }

    fn commit(&mut self) -> Result<(), Failure> {
        self.generation += 1;
        if !self.persistent {
            return Ok(());
        }
        private_dir(&self.dir)?;
        let stored = Stored { version: VERSION, generation: self.generation, debts: self.debts.clone() };
        let bytes =
            serde_json::to_vec_pretty(&stored).map_err(|e| Failure::new(format!("cannot write the ledger: {e}")))?;
        atomic(&self.dir.join("ledger.json"), &bytes)
    }
}

/// Makes a folder that only its owner can enter.
pub fn private_dir(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| Failure::io("create", dir, &e))
}

fn atomic(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::Builder::new().prefix(HALF).tempfile_in(dir)?;
        io::Write::write_all(&mut file, content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|e| Failure::io("write", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debt(backups: Vec<Backup>) -> Debt {
        Debt {
            handler: "restart consul".into(),
            role: Some("consul".into()),
            call: None,
            user: "root".into(),
            serial: Some(1),
            gate: Some(Gate::Consul),
            run_id: "r1".into(),
            since: 1,
            backups,
            beyond: false,
            gate_vars: serde_json::Map::new(),
        }
    }

    #[test]
    fn debts_outlive_the_process_and_keep_the_oldest_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = PathBuf::from("/etc/consul.d/consul.json");
        let mut ledger = Ledger::open(dir.path(), true).unwrap();
        let copy = ledger.copy_path("r1", 0);
        ledger.keep(&copy, b"old").unwrap();
        let backup = |copy: Option<PathBuf>| Backup {
            path: path.clone(),
            copy,
            link: None,
            mode: 0o640,
            owner: "root".into(),
            group: "root".into(),
        };
        ledger.owe(debt(vec![backup(Some(copy.clone()))])).unwrap();
        ledger.owe(debt(vec![backup(None)])).unwrap();

        let mut again = Ledger::open(dir.path(), true).unwrap();
        assert_eq!(again.find("restart consul", Some("consul")).unwrap().backups, [backup(Some(copy.clone()))]);
        assert_eq!(again.find("restart consul", None), None);
        again.strike("restart consul", Some("consul")).unwrap();
        assert!(!copy.exists());
        assert!(Ledger::open(dir.path(), true).unwrap().debts().is_empty());
    }

    #[test]
    fn a_ledger_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ledger.json"), "{").unwrap();
        assert!(Ledger::open(dir.path(), true).unwrap_err().message.contains("cannot understand"));
        fs::write(dir.path().join("ledger.json"), r#"{"version":9,"generation":1,"debts":[]}"#).unwrap();
        assert!(Ledger::open(dir.path(), true).unwrap_err().message.contains("layout 9"));
    }

    #[test]
    fn what_a_killed_run_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path(), true).unwrap();
        let (owed, orphan) = (ledger.copy_path("r1", 0), ledger.copy_path("r1", 1));
        ledger.keep(&owed, b"old").unwrap();
        ledger.keep(&orphan, b"old").unwrap();
        let (mode, owner, group) = (0o644, "root".to_owned(), "root".to_owned());
        let backup = Backup { path: "/etc/x".into(), copy: Some(owed.clone()), link: None, mode, owner, group };
        ledger.owe(debt(vec![backup])).unwrap();
        fs::write(dir.path().join(format!("{HALF}a")), "{").unwrap();
        fs::write(dir.path().join("backup").join(format!("{HALF}b")), "x").unwrap();
        // Check mode looks and leaves everything where it is.
        Ledger::open(dir.path(), false).unwrap();
        assert!(orphan.exists());
        Ledger::open(dir.path(), true).unwrap();
        let names = |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        assert_eq!(names(&dir.path().join("backup")), [owed]);
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn check_mode_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path(), false).unwrap();
        ledger.owe(debt(Vec::new())).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
