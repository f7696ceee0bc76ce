use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use rollcall_engine::{digest::sha256_hex, modules::Failure, run::ledger::private_dir};

/// Content by hash: in memory what is small, in a folder what is not, so that a second run need not carry it again.
#[derive(Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
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

impl Blobs {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("blobs"), state: Mutex::default(), arrived: Condvar::new() }
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
        if bytes.len() >= KEEP_FROM
            && private_dir(&self.dir).is_ok()
            && let Err(error) = write()
        {
            tracing::debug!(%error, "content is not kept");
        }
    }

    /// Removes halves that a killed run left. The caller holds the host's lock.
    pub(crate) fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
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
        let bytes = fs::read(self.dir.join(hash)).ok()?;
        (sha256_hex(&bytes) == hash).then(|| {
            let bytes = Arc::new(bytes);
            self.state().memory.insert(hash.to_owned(), Arc::clone(&bytes));
            bytes
        })
    }

    /// Blocks until it is here.
    pub(crate) fn wait(&self, hash: &str) -> Result<Arc<Vec<u8>>, Failure> {
        let mut state = self.state();
        loop {
            if let Some(bytes) = state.memory.get(hash) {
                let bytes = Arc::clone(bytes);
                drop(state);
                let found = sha256_hex(&bytes);
                if found != hash {
                    return Err(Failure::new(format!("content {hash} arrived as {found}")));
                }
                self.cache(hash, &bytes);
                return Ok(bytes);
            }
            if let Some(why) = &state.ended {
                return Err(Failure::new(format!("content {hash} did not arrive: {why}")));
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
