//! What this machine saw last of a store that a server keeps: when each value was written. A server that was put back from a backup
//! answers as well as before, and with values that the cluster does not go by any more; this tells it before new secrets are
//! made beside them.
//!
//! It is no part of the store, holds no secrets, and may be removed at any time: then only the comparison is lost.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Created, Name, Secret, SecretStore, StoreError};
use crate::digest::sha256_hex;

/// Names that nobody deletes while their cluster lives, and whose value no run can make anew for it.
const LASTING: [&str; 5] = ["ca/key", "consul/gossip", "consul/management", "nomad/gossip", "nomad/management"];
/// How often an answer that is too old is asked for again: a replica may lag behind.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// When a value was written, as the store says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub made: i64,
    /// Which version of the name it is, where the store counts them.
    pub version: Option<u64>,
}

impl Stamp {
    /// A version that is counted decides together with the time: clocks of servers differ, and a name that was deleted and made
    /// again begins at the first version.
    fn is_older_than(self, other: Self) -> bool {
        let counted = self.version.zip(other.version).is_none_or(|(own, other)| own < other);
        self.made < other.made && counted
    }

    fn shown(self) -> String {
        let time =
            jiff::Timestamp::from_millisecond(self.made).map_or_else(|_| self.made.to_string(), |t| t.to_string());
        self.version.map_or_else(|| time.clone(), |version| format!("{time}, version {version}"))
    }
}

/// A store whose answers are compared with what was seen of it.
#[derive(Debug)]
pub struct Witnessed {
    store: Arc<dyn SecretStore>,
    folder: PathBuf,
    /// Between two answers that are too old.
    pause: Duration,
}

impl Witnessed {
    /// `seen`: the folder in which there is one for each store.
    pub fn new(store: Arc<dyn SecretStore>, seen: &Path) -> Self {
        let key = sha256_hex(store.describe().as_bytes());
        Self { folder: seen.join(&key[..16]), store, pause: PAUSE }
    }

    /// Where it stands what was seen of a name. Names have no `+`.
    fn file(&self, name: &Name) -> PathBuf {
        self.folder.join(name.as_str().replace('/', "+"))
    }

    /// What was seen last. What cannot be read counts as nothing.
    fn seen(&self, name: &Name) -> Option<Stamp> {
        serde_json::from_slice(&fs::read(self.file(name)).ok()?).ok()
    }

    /// Without success only a later comparison is lost.
    fn remember(&self, name: &Name, stamp: Stamp) {
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let mut file = tempfile::Builder::new().prefix(".seen-").tempfile_in(&self.folder)?;
            file.write_all(&serde_json::to_vec(&stamp)?)?;
            file.persist(self.file(name))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, folder = %self.folder.display(), "cannot remember when a secret was written");
        }
    }

    fn forget(&self, name: &Name) {
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, folder = %self.folder.display(), "cannot forget when a secret was written");
            }
            _ => {}
        }
    }

    /// Compares an answer with what was seen, and remembers it.
    fn compare(&self, name: &Name, found: Option<&(Secret, Option<Stamp>)>) -> Result<(), StoreError> {
        let seen = self.seen(name);
        let (there, stamp) = (found.is_some(), found.and_then(|(_, stamp)| *stamp));
        let why = match (stamp, seen) {
            (None, Some(seen)) if !there && LASTING.contains(&name.as_str()) => {
                format!(
                    "'{name}' is gone, and nobody deleted it from here: this machine saw the one of {}",
                    seen.shown()
                )
            }
            (Some(stamp), Some(seen)) if stamp.is_older_than(seen) => format!(
                "'{name}' is an old one: it was written {}, and this machine saw the one of {} already",
                stamp.shown(),
                seen.shown()
            ),
            (Some(stamp), seen) => {
                if seen != Some(stamp) {
                    self.remember(name, stamp);
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let hint = format!(
            "was it put back from a backup? docs/secrets.md tells what to do; if this is right, remove {}",
            self.file(name).display()
        );
        Err(StoreError::Impossible { store: self.store.describe(), why, hint: Some(hint) })
    }
}

#[async_trait::async_trait]
impl SecretStore for Witnessed {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn patience(&self) -> Duration {
        self.store.patience()
    }

    async fn create(&self, name: &Name, value: &Secret) -> Result<Created, StoreError> {
        // What was there before is not made anew because it is gone.
        if LASTING.contains(&name.as_str()) && self.seen(name).is_some() && self.get(name).await?.is_some() {
            return Ok(Created::Exists);
        }
        self.store.create(name, value).await
    }

    async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
        Ok(self.get_dated(name).await?.map(|(value, _)| value))
    }

    async fn get_dated(&self, name: &Name) -> Result<Option<(Secret, Option<Stamp>)>, StoreError> {
        let mut tries = 1;
        loop {
            let found = self.store.get_dated(name).await?;
            match self.compare(name, found.as_ref()) {
                Ok(()) => return Ok(found),
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => tokio::time::sleep(self.pause).await,
            }
            tries += 1;
        }
    }

    async fn put(&self, name: &Name, value: &Secret) -> Result<(), StoreError> {
        self.store.put(name, value).await
    }

    async fn delete(&self, name: &Name) -> Result<(), StoreError> {
        self.store.delete(name).await?;
        self.forget(name);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Name>, StoreError> {
        self.store.list(prefix).await
    }

    async fn clear(&self) -> Result<usize, StoreError> {
        let count = self.store.clear().await?;
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, folder = %self.folder.display(), "cannot forget a store");
            }
            _ => {}
        }
        Ok(count)
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.store.probe().await
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use super::*;

    /// Values with the time and the version of each.
    #[derive(Debug, Default)]
    struct Dated(Mutex<BTreeMap<Name, (String, Stamp)>>);

    impl Dated {
        fn set(&self, name: &str, made: i64, version: Option<u64>) {
            let value = (format!("value of {made}"), Stamp { made, version });
            self.0.lock().unwrap().insert(Name::new(name).unwrap(), value);
        }
    }

    #[async_trait::async_trait]
    impl SecretStore for Dated {
        fn describe(&self) -> String {
            "the dated store".to_owned()
        }
        async fn create(&self, name: &Name, _: &Secret) -> Result<Created, StoreError> {
            if self.get(name).await?.is_some() {
                return Ok(Created::Exists);
            }
            self.set(name.as_str(), 1, None);
            Ok(Created::New)
        }
        async fn get(&self, name: &Name) -> Result<Option<Secret>, StoreError> {
            Ok(self.get_dated(name).await?.map(|(value, _)| value))
        }
        async fn get_dated(&self, name: &Name) -> Result<Option<(Secret, Option<Stamp>)>, StoreError> {
            Ok(self.0.lock().unwrap().get(name).map(|(value, stamp)| (Secret::new(value.as_str()), Some(*stamp))))
        }
        async fn put(&self, name: &Name, _: &Secret) -> Result<(), StoreError> {
            self.set(name.as_str(), 1, None);
            Ok(())
        }
        async fn delete(&self, name: &Name) -> Result<(), StoreError> {
            self.0.lock().unwrap().remove(name);
            Ok(())
        }
        async fn list(&self, _: &str) -> Result<Vec<Name>, StoreError> {
            Ok(self.0.lock().unwrap().keys().cloned().collect())
        }
        async fn probe(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    fn at_once(inner: &Arc<Dated>, seen: &Path) -> Witnessed {
        let store = Witnessed::new(Arc::clone(inner) as Arc<dyn SecretStore>, seen);
        Witnessed { pause: Duration::ZERO, ..store }
    }

    fn told(error: StoreError) -> String {
        format!("{error}; {}", error.hint().unwrap_or_default())
    }

    #[tokio::test]
    async fn what_is_older_than_what_was_seen_is_refused() {
        let (dir, inner) = (tempfile::tempdir().unwrap(), Arc::new(Dated::default()));
        let open = || at_once(&inner, dir.path());
        let name = Name::new("app/db").unwrap();
        assert!(open().get(&name).await.unwrap().is_none());
        // Of what a store counts both must say it: clocks differ, and a name made again begins at its first version.
        for (made, version, good) in [
            (100, Some(7), true),
            (90, Some(8), true),
            (200, Some(1), true),
            (199, Some(2), true),
            (150, Some(1), false),
            (300, Some(3), true),
            (299, None, false),
            (400, None, true),
        ] {
            inner.set("app/db", made, version);
            let got = open().get(&name).await;
            assert_eq!(got.is_ok(), good, "{made} {version:?}");
            if let Err(error) = got {
                let said = told(error);
                assert!(said.contains("is an old one") && said.contains("app+db"), "{said}");
            }
        }
        // Somebody else may delete a name of the user's own.
        inner.delete(&name).await.unwrap();
        assert!(open().get(&name).await.unwrap().is_none());
        inner.set("app/db", 1, None);
        assert!(open().get(&name).await.is_err());
        open().delete(&name).await.unwrap();
        inner.set("app/db", 1, None);
        assert!(open().get(&name).await.is_ok(), "what is deleted here is forgotten");
    }

    #[tokio::test]
    async fn what_a_cluster_lives_by_is_not_made_anew() {
        let (dir, inner) = (tempfile::tempdir().unwrap(), Arc::new(Dated::default()));
        let store = at_once(&inner, dir.path());
        let (name, value) = (Name::new("consul/management").unwrap(), Secret::new("value"));
        assert_eq!(store.create(&name, &value).await.unwrap(), Created::New);
        assert!(store.get(&name).await.unwrap().is_some());
        assert_eq!(store.create(&name, &value).await.unwrap(), Created::Exists);
        inner.delete(&name).await.unwrap();
        for refused in [store.get(&name).await.map(drop), store.create(&name, &value).await.map(drop)] {
            let said = told(refused.unwrap_err());
            assert!(said.contains("is gone, and nobody deleted it from here") && said.contains("remove"), "{said}");
        }
        assert!(inner.get(&name).await.unwrap().is_none(), "nothing was made");
        // Brought back on purpose, or deleted from here, it is as any other.
        inner.set("consul/management", 500, None);
        assert!(store.get(&name).await.unwrap().is_some());
        store.delete(&name).await.unwrap();
        assert_eq!(store.create(&name, &value).await.unwrap(), Created::New);
        store.clear().await.unwrap();
        assert!(store.get(&name).await.unwrap().is_none(), "a store that was destroyed is forgotten");
    }
}
