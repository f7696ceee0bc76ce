use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rollcall_engine::{digest::sha256_hex, modules::Failure, run::ledger::private_dir};

/// Content by hash: in memory what is small, in a folder what is not, so that a second run need not carry it again.
#[derive(Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
    /// Whether what arrives is kept there.
    keep: bool,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    memory: HashMap<String, Arc<Vec<u8>>>,
    /// Why nothing will arrive any more.
    ended: Option<String>,
}

/// Bytes from which a blob is kept in the folder.
const KEEP_FROM: usize = 128 * 1024;
/// How long one that no run asks for stays there.
const KEEP_FOR: Duration = Duration::from_hours(30 * 24);

impl Blobs {
    pub(crate) fn new(state_dir: &Path, keep: bool) -> Self {
        Self { dir: state_dir.join("blobs"), keep, state: Mutex::default(), arrived: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, hash: String, bytes: Vec<u8>) {
        self.state().memory.insert(hash, Arc::new(bytes));
        self.arrived.notify_all();
    }

    /// Keeps what arrived for later runs; a cache that cannot be written is only slower.
    fn cache(&self, hash: &str, bytes: &[u8]) {
        let write = || -> std::io::Result<()> {
            let temporary = self.dir.join(format!(".{hash}-{}", std::process::id()));
            fs::write(&temporary, bytes)?;
            fs::rename(temporary, self.dir.join(hash))
        };
        if self.keep
            && bytes.len() >= KEEP_FROM
            && private_dir(&self.dir).is_ok()
            && let Err(error) = write()
        {
            tracing::debug!(%error, "content is not kept");
        }
    }

    /// Removes halves that a killed run left, and what no run has asked for in a long time. The caller holds the host's lock.
    pub(crate) fn sweep(&self) {
        let unused = |entry: &fs::DirEntry| {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|used| used.elapsed().ok());
            age.is_some_and(|age| age > KEEP_FOR)
        };
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") || unused(&entry) {
                // Left over, it is a file too many and nothing worse.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// No more will arrive.
    pub(crate) fn end(&self, why: &str) {
        self.state().ended.get_or_insert_with(|| why.to_owned());
        self.arrived.notify_all();
    }

    /// What is here already: in memory, or in the folder and whole.
    pub(crate) fn get(&self, hash: &str) -> Option<Arc<Vec<u8>>> {
        if let Some(bytes) = self.state().memory.get(hash) {
            return Some(Arc::clone(bytes));
        }
        let path = self.dir.join(hash);
        let bytes = fs::read(&path).ok()?;
        (sha256_hex(&bytes) == hash).then(|| {
            // When it was used last, for `sweep`; one that cannot be written is only dropped too early.
            if self.keep
                && let Ok(file) = fs::File::options().append(true).open(&path)
            {
                let _ = file.set_modified(SystemTime::now());
            }
            let bytes = Arc::new(bytes);
            self.state().memory.insert(hash.to_owned(), Arc::clone(&bytes));
            bytes
        })
    }

    /// Blocks until it is here, and keeps it for later runs.
    pub(crate) fn wait(&self, hash: &str) -> Result<Arc<Vec<u8>>, Failure> {
        let bytes = self.wait_once(hash)?;
        self.cache(hash, &bytes);
        Ok(bytes)
    }

    /// The same for what is of this run alone, and is not kept.
    pub(crate) fn wait_once(&self, hash: &str) -> Result<Arc<Vec<u8>>, Failure> {
        let mut state = self.state();
        loop {
            if let Some(bytes) = state.memory.get(hash) {
                let bytes = Arc::clone(bytes);
                drop(state);
                let found = sha256_hex(&bytes);
                if found != hash {
                    return Err(Failure::new(format!("content {hash} arrived as {found}")));
                }
                return Ok(bytes);
            }
            if let Some(why) = &state.ended {
                return Err(Failure::new(format!("content {hash} did not arrive: {why}")));
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(dir: &Path) -> usize {
        fs::read_dir(dir.join("blobs")).map_or(0, Iterator::count)
    }

    #[test]
    fn what_is_big_is_kept_while_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7; KEEP_FROM];
        let hash = sha256_hex(&bytes);
        let arrived = |keep: bool| {
            let blobs = Blobs::new(dir.path(), keep);
            blobs.put(hash.clone(), bytes.clone());
            blobs
        };
        // Of this run alone, or of one that changes nothing.
        arrived(true).wait_once(&hash).unwrap();
        arrived(false).wait(&hash).unwrap();
        assert_eq!(kept(dir.path()), 0);
        arrived(true).wait(&hash).unwrap();
        assert_eq!(kept(dir.path()), 1);

        let age = |days: u64| {
            let file = fs::File::options().append(true).open(dir.path().join("blobs").join(&hash)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(24 * days)).unwrap();
        };
        let blobs = Blobs::new(dir.path(), true);
        age(40);
        assert!(blobs.get(&hash).is_some(), "and now it was used");
        blobs.sweep();
        assert_eq!(kept(dir.path()), 1);
        age(31);
        blobs.sweep();
        assert_eq!(kept(dir.path()), 0);
    }
}
