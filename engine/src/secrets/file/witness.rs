//! What this machine saw of a store last. It is no part of the store, and may be removed at any time: then only the
//! comparison is lost.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Content, Encrypted, StoreError, make_private};
use crate::digest::sha256_hex;

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Of which store, for who reads this file.
    store: PathBuf,
    id: String,
    pub(super) generation: u64,
}

impl Encrypted {
    /// Where it is kept; `None`: nothing is remembered.
    pub(super) fn seen_path(&self, store: &Path) -> Option<PathBuf> {
        let absolute = std::path::absolute(store).ok()?;
        let key = sha256_hex(absolute.as_os_str().as_encoded_bytes());
        Some(self.places.seen.as_ref()?.join(format!("{}.json", &key[..16])))
    }

    /// What was seen last. What cannot be read counts as nothing.
    pub(super) fn seen(&self, store: &Path) -> Option<Seen> {
        serde_json::from_slice(&fs::read(self.seen_path(store)?).ok()?).ok()
    }

    /// Remembers a store as it is now. Without success only a later comparison is lost.
    pub(super) fn remember(&self, store: &Path, content: &Content) {
        let Some(path) = self.seen_path(store) else { return };
        let seen = Seen { store: store.to_path_buf(), id: content.id.clone(), generation: content.generation };
        let write = || -> std::io::Result<()> {
            let folder = path.parent().unwrap_or(&path);
            make_private(folder)?;
            let mut file = tempfile::Builder::new().prefix(".seen-").tempfile_in(folder)?;
            file.write_all(&serde_json::to_vec(&seen)?)?;
            file.persist(&path)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, path = %path.display(), "cannot remember the store's generation");
        }
    }

    /// The store is gone for good.
    pub(super) fn forget(&self, store: &Path) -> std::io::Result<()> {
        match self.seen_path(store).map(fs::remove_file) {
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Refuses a store that is older than what was seen, or another one.
    pub(super) fn compare(&self, path: &Path, content: &Content, seen: Option<Seen>) -> Result<(), StoreError> {
        let Some(seen) = seen else {
            self.remember(path, content);
            return Ok(());
        };
        let file = self.seen_path(path).unwrap_or_default();
        if seen.id != content.id {
            return Err(self.impossible(
                "it is another store than the one that was there before".to_owned(),
                format!("put the right file back, or, if this one is right, remove {}", file.display()),
            ));
        }
        if content.generation < seen.generation {
            return Err(self.impossible(
                format!(
                    "it is an old copy: its change number is {}, and {} was seen here already",
                    content.generation, seen.generation
                ),
                format!(
                    "put the newest copy back; if there is none, secrets made since are lost: remove {} to go on with this one",
                    file.display()
                ),
            ));
        }
        if content.generation > seen.generation {
            self.remember(path, content);
        }
        Ok(())
    }
}
