//! The lock of a store: a file beside it, locked by the kernel, so that it ends with whoever holds it.

use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{Encrypted, StoreError};

/// Between two tries: a change takes a few milliseconds.
const PAUSE: Duration = Duration::from_millis(10);

/// Held until dropped.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its lock")] Flock<fs::File>);

impl Encrypted {
    /// Takes the lock, or says who has had it all the time.
    pub(super) fn lock(&self, store: &Path) -> Result<Lock, StoreError> {
        let mut path = store.as_os_str().to_owned();
        path.push(".lock");
        let path = Path::new(&path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(|e| self.io("open", path, &e))?;
        let end = Instant::now() + self.places.lock_timeout;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    // For who waits; the lock holds without it.
                    let holder = format!("process {} since {}", std::process::id(), jiff::Timestamp::now());
                    let told =
                        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(holder.as_bytes()));
                    drop(told);
                    return Ok(Lock(lock));
                }
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < end => {
                    file = back;
                    std::thread::sleep(PAUSE);
                }
                Err((mut back, Errno::EWOULDBLOCK)) => {
                    let mut holder = String::new();
                    drop(back.read_to_string(&mut holder));
                    let holder = if holder.is_empty() { "another process" } else { holder.trim() };
                    return Err(StoreError::Unavailable {
                        store: self.store.clone(),
                        why: format!(
                            "{holder} writes to it, and process {} has waited {} s for its turn",
                            std::process::id(),
                            self.places.lock_timeout.as_secs()
                        ),
                        hint: Some(
                            "see what that process waits for; 'lock_timeout' of the store is the time".to_owned(),
                        ),
                    });
                }
                Err((_, errno)) => return Err(self.io("lock", path, &errno.into())),
            }
        }
    }
}
