//! The `file` store: one file on the operator's machine, encrypted with age to the operator's key.
//!
//! A change takes the lock, reads, writes a new file beside the old one, and renames: whoever reads sees the old or the new
//! one, and a crash leaves one of them. Beside the file stands the last generation that was seen on this machine, so that a
//! file that was put back from a backup is noticed before old and new secrets are mixed.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::errno::Errno;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{Created, Name, Secret, SecretStore, StoreError, check_value};

mod content;
mod identity;
mod lock;
mod witness;

use content::Content;
use identity::Keys;

/// No store of ours is larger; what is, is something else.
const MAX_FILE: u64 = 64 << 20;
/// How the names of files end that are not in their place yet.
const TEMPORARY: &str = ".tmp";
/// Bits of a mode that let others in.
const OTHERS: u32 = 0o077;

/// Where the parts of a `file` store are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The encrypted file.
    pub path: PathBuf,
    /// The operator's age identities. Made with the store where there are none.
    pub identity: PathBuf,
    /// The folder for what was seen last; `None`: nothing is remembered.
    pub seen: Option<PathBuf>,
    /// Further keys (`age1…`) that can open the file.
    pub recipients: Vec<String>,
    /// How long to wait for another process that writes.
    pub lock_timeout: Duration,
    /// The folder of `path` is Rollcall's own, and made where it is missing. A folder that was named must be there: it may be
    /// a disk that is not mounted.
    pub makes_folder: bool,
}

/// The store.
#[derive(Debug)]
pub struct FileStore {
    file: Arc<Encrypted>,
    /// Tasks of this process queue here, not at the file's lock.
    turn: Arc<Mutex<()>>,
}

impl FileStore {
    /// The store of a cluster. Nothing is looked at before it is used.
    pub fn new(cluster: &str, places: Places) -> Self {
        let store = format!("the file store {}", places.path.display());
        Self { file: Arc::new(Encrypted { store, cluster: cluster.to_owned(), places }), turn: Arc::default() }
    }

    /// Does something with the file in a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Encrypted) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        let ended = tokio::task::spawn_blocking(move || what(&file)).await;
        ended.unwrap_or_else(|broken| {
            Err(StoreError::Unknown {
                store: self.describe(),
                call: "read and write".to_owned(),
                source: Box::new(broken),
            })
        })
    }

    /// Changes the file, if `change` finds something to change and says true.
    async fn change(&self, change: impl FnOnce(&mut Content) -> bool + Send + 'static) -> Result<bool, StoreError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        self.blocking(move |file| {
            // Held by the thread: a caller that stops waiting must not let the next one in.
            let _turn = turn;
            file.change(change)
        })
        .await
    }
}

#[async_trait::async_trait]
impl SecretStore for FileStore {
    fn describe(&self) -> String {
        self.file.store.clone()
    }

    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError> {
        check_value(&self.file.store, name, value)?;
        let (name, value) = (name.clone(), value.clone());
        let made = self.change(move |content| content.create(name, value)).await?;
        Ok(if made { Created::New } else { Created::Exists })
    }

    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
        let name = name.clone();
        self.blocking(move |file| Ok(file.load()?.and_then(|content| content.get(&name)))).await
    }

    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError> {
        check_value(&self.file.store, name, value)?;
        let (name, value) = (name.clone(), value.clone());
        self.change(move |content| content.put(name, value)).await.map(drop)
    }

    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        let name = name.clone();
        self.change(move |content| content.delete(&name)).await.map(drop)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Name>, StoreError> {
        let prefix = prefix.to_owned();
        self.blocking(move |file| Ok(file.load()?.map(|content| content.list(&prefix)).unwrap_or_default())).await
    }

    async fn clear(&self) -> Result<usize, StoreError> {
        self.blocking(Encrypted::remove).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        super::probe::probe(self).await
    }
}

/// The file itself; every method may block.
#[derive(Debug)]
struct Encrypted {
    /// What messages call it.
    store: String,
    cluster: String,
    places: Places,
}

impl Encrypted {
    /// Reads the file; `None`: there is no store yet.
    fn load(&self) -> Result<Option<Content>, StoreError> {
        let path = self.real_path()?;
        // Before the file: a writer in between then only makes the file newer than what was seen.
        let seen = self.seen(&path);
        let Some(bytes) = self.read_private(&path)? else {
            self.check_folder(&path)?;
            return match seen {
                Some(seen) => Err(self.impossible(
                    format!("it is gone; at its change number {} it was still there", seen.generation),
                    format!(
                        "put it back from a backup, or, to begin anew with new secrets, remove {}",
                        self.seen_path(&path).unwrap_or_default().display()
                    ),
                )),
                None => Ok(None),
            };
        };
        let text = self.decrypt(&bytes)?;
        let content = Content::parse(&text, &self.cluster).map_err(|why| self.impossible(why, UNTOUCHED.to_owned()))?;
        self.compare(&path, &content, seen)?;
        Ok(Some(content))
    }

    fn decrypt(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let Some(keys) = self.keys()? else {
            return Err(self.impossible(
                format!("the key {} that opens it is not there", self.places.identity.display()),
                "put the key back from its backup, or name it as 'identity' of the store".to_owned(),
            ));
        };
        keys.open(bytes).map_err(|wrong| match wrong {
            age::DecryptError::NoMatchingKeys => self.impossible(
                format!("it was encrypted to another key than those of {}", self.places.identity.display()),
                "name the file with the right key as 'identity' of the store".to_owned(),
            ),
            other => self.impossible(format!("it cannot be decrypted: {other}"), UNTOUCHED.to_owned()),
        })
    }

    /// Changes the file under its lock. Says what `change` says.
    fn change(&self, change: impl FnOnce(&mut Content) -> bool) -> Result<bool, StoreError> {
        let path = self.real_path()?;
        self.make_folder(&path)?;
        let _lock = self.lock(&path)?;
        let loaded = self.load()?;
        let is_new = loaded.is_none();
        let mut content = loaded.unwrap_or_else(|| Content::new(&self.cluster));
        if !change(&mut content) {
            return Ok(false);
        }
        content.generation += 1;
        let keys = match self.keys()? {
            Some(keys) => keys,
            // Never beside a store that is there: it could not be opened with a new key.
            None if is_new => self.make_keys()?,
            None => return Err(self.impossible("its key has just been removed".to_owned(), UNTOUCHED.to_owned())),
        };
        let bytes = content
            .to_json()
            .map_err(|e| e.to_string())
            .and_then(|text| keys.close(&text, &self.places.recipients))
            .map_err(|why| self.impossible(format!("it cannot be encrypted: {why}"), UNTOUCHED.to_owned()))?;
        self.replace(&path, &bytes)?;
        self.remember(&path, &content);
        Ok(true)
    }

    /// Removes the file, and what this machine remembers of it. The key stays: it may open other stores.
    fn remove(&self) -> Result<usize, StoreError> {
        let path = self.real_path()?;
        self.check_folder(&path)?;
        if !folder(&path).is_dir() {
            return Ok(0);
        }
        let _lock = self.lock(&path)?;
        let Some(content) = self.load()? else { return Ok(0) };
        fs::remove_file(&path).map_err(|e| self.io("remove", &path, &e))?;
        self.forget(&path).map_err(|e| self.io("forget", &path, &e))?;
        Ok(content.list("").len())
    }

    /// Puts a new file in the place of the old one. The caller holds the lock.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let folder = folder(path);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}-");
        remove_leftovers(folder, &prefix);
        let fail = |e: io::Error| self.io("write", path, &e);
        // 0600 from the start.
        let mut file = tempfile::Builder::new().prefix(&prefix).suffix(TEMPORARY).tempfile_in(folder).map_err(fail)?;
        file.as_file_mut().write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(path).map_err(|e| fail(e.error))?;
        // Renamed, but maybe not for a power cut.
        sync_folder(folder).map_err(|e| StoreError::Unknown {
            store: self.store.clone(),
            call: format!("flush {}", folder.display()),
            source: Box::new(e),
        })
    }

    /// Reads a file that only its owner may read; `None`: it is not there.
    fn read_private(&self, path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let fail = |e: io::Error| self.io("read", path, &e);
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(self.impossible(
                format!("{} is no file", path.display()),
                "name the file itself, as 'path' of the store".to_owned(),
            ));
        }
        let mode = meta.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(self.impossible(
                format!("{} has the mode {mode:04o}, with which others can get at it", path.display()),
                format!("chmod 600 {}", path.display()),
            ));
        }
        if meta.len() > MAX_FILE {
            return Err(self.impossible(
                format!("{} has {} bytes: that is no store", path.display(), meta.len()),
                UNTOUCHED.to_owned(),
            ));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1));
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(fail)?;
        Ok(Some(bytes))
    }

    /// The file that a link leads to: a rename onto the link would part them.
    fn real_path(&self) -> Result<PathBuf, StoreError> {
        let path = &self.places.path;
        if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
            return Ok(path.clone());
        }
        fs::canonicalize(path).map_err(|e| self.io("follow the link", path, &e))
    }

    fn make_folder(&self, path: &Path) -> Result<(), StoreError> {
        if self.places.makes_folder {
            make_private(folder(path)).map_err(|e| self.io("make", folder(path), &e))?;
        }
        self.check_folder(path)
    }

    /// A folder that was named must be there.
    fn check_folder(&self, path: &Path) -> Result<(), StoreError> {
        let folder = folder(path);
        if self.places.makes_folder || folder.is_dir() {
            return Ok(());
        }
        Err(self.impossible(
            format!("its folder {} is not there", folder.display()),
            format!("mount it, or make it: mkdir -m 700 -p {}", folder.display()),
        ))
    }

    fn keys(&self) -> Result<Option<Keys>, StoreError> {
        let path = &self.places.identity;
        let Some(bytes) = self.read_private(path)? else { return Ok(None) };
        let keys = Keys::parse(&bytes).map_err(|why| {
            self.impossible(
                format!("its key file {} {why}", path.display()),
                "one age identity on each line, as age-keygen writes them".to_owned(),
            )
        })?;
        Ok(Some(keys))
    }

    /// Makes the operator's key; another process may have been faster, and then it is that one's.
    fn make_keys(&self) -> Result<Keys, StoreError> {
        let path = &self.places.identity;
        let fail = |e: io::Error| self.io("write", path, &e);
        make_private(folder(path)).map_err(fail)?;
        let mut file = tempfile::Builder::new().prefix(".identity-").tempfile_in(folder(path)).map_err(fail)?;
        file.write_all(&identity::generate()).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        match file.persist_noclobber(path) {
            Ok(_) => sync_folder(folder(path)).map_err(fail)?,
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(fail(e.error)),
        }
        self.keys()?.ok_or_else(|| {
            self.impossible(format!("its new key {} is gone at once", path.display()), UNTOUCHED.to_owned())
        })
    }

    fn impossible(&self, why: String, hint: String) -> StoreError {
        StoreError::Impossible { store: self.store.clone(), why, hint: Some(hint) }
    }

    /// A failed system call.
    fn io(&self, verb: &str, path: &Path, error: &io::Error) -> StoreError {
        let (store, call) = (self.store.clone(), format!("{verb} {}", path.display()));
        // By kind: an error with a path in its text has no number any more.
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::Denied { store, call, why: error.to_string() }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Unavailable {
                store,
                why: format!("cannot {call}: {error}"),
                hint: Some(format!("make room (df -h {}); nothing was replaced", folder(path).display())),
            },
            _ => StoreError::Unavailable { store, why: format!("cannot {call}: {error}"), hint: None },
        }
    }
}

const UNTOUCHED: &str = "nothing was changed; put the file back from a backup";

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder with those above it, closed to others.
fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    match fs::File::open(folder).and_then(|f| f.sync_all()) {
        // Filesystems without the call: the rename itself stands.
        Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::ENOTSUP)) => Ok(()),
        other => other,
    }
}

/// Removes what a killed writer left. Only the holder of the lock writes such files, so none of them is in use.
fn remove_leftovers(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(TEMPORARY)) {
            // What cannot be removed now is encrypted as the store is, and is tried again next time.
            drop(fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests;
