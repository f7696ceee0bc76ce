use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::fcntl::{Flock, FlockArg};
use rollcall_engine::{modules::Failure, run::ledger::private_dir};
use serde::{Deserialize, Serialize};

/// Who holds the lock.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) owner: String,
    pub(crate) run_id: String,
    pub(crate) pid: u32,
    pub(crate) since: u64,
}

impl Holder {
    pub(crate) fn age_s(&self) -> u64 {
        now().saturating_sub(self.since)
    }
}

/// Held until dropped; the kernel frees it when the process dies.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Takes the host's lock, or says who has it.
pub(crate) fn take(dir: &Path, owner: &str, run_id: &str) -> Result<Lock, Failure> {
    private_dir(dir)?;
    let path = dir.join("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|e| Failure::io("open", &path, &e))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let holder = Holder { owner: owner.into(), run_id: run_id.into(), pid: std::process::id(), since: now() };
            let text = serde_json::to_string(&holder).unwrap_or_default();
            let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(text.as_bytes()));
            written.map_err(|e| Failure::io("write", &path, &e))?;
            Ok(Lock(lock))
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let held = file.read_to_string(&mut text).ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
            Err(match held {
                Some(h) => Failure::new(format!(
                    "another run is at work on this host: {} (run {}, for {} s, process {})",
                    h.owner,
                    h.run_id,
                    h.age_s(),
                    h.pid
                ))
                .hint("wait for it, or stop it where it was started"),
                None => Failure::new("another run is at work on this host"),
            })
        }
        Err((_, e)) => Err(Failure::new(format!("cannot lock {}: {e}", path.display()))),
    }
}

/// Who holds the lock, if someone does.
pub(crate) fn holder(dir: &Path) -> Option<Holder> {
    let file = OpenOptions::new().read(true).open(dir.join("lock")).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err((mut file, _)) => {
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            serde_json::from_str(&text).ok()
        }
    }
}
