//! What earlier runs know of the agents' binaries: hashes and compressed forms, in the user's cache folder.
//!
//! Hashing and compressing a program of several megabytes at every start would cost more than a run over forty hosts.
//! A hash counts as long as the file's identity, size and times are the same; a compressed form carries its own hash.
//! Whatever cannot be read or written is only slower.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rollcall_engine::digest::sha256_hex;

use super::agents::hash_file;

/// A file that changed so shortly before it was hashed may change again without another time.
const RACY: Duration = Duration::from_secs(2);
/// What was written so long ago is dropped when something new is kept.
const KEEP: Duration = Duration::from_hours(30 * 24);
/// Hex digits of a hash.
const HEX: usize = 64;

/// The folder; `None`: nothing is kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache(Option<PathBuf>);

impl Cache {
    pub(super) fn new(dir: Option<&Path>) -> Self {
        Self(dir.map(|dir| dir.join("agents")))
    }

    /// SHA-256 of a file in hex.
    pub(super) fn hash(&self, path: &Path) -> io::Result<String> {
        let stamp = stamp(path)?;
        let name = format!("{}.hash", sha256_hex(path.as_os_str().as_encoded_bytes()));
        if let Some(known) = self.read(&name)
            && let Ok(text) = std::str::from_utf8(&known)
            && let Some((seen, hash)) = text.trim_end().rsplit_once(' ')
            && seen == stamp.text
            && hash.len() == HEX
            && hash.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Ok(hash.to_owned());
        }
        let hash = hash_file(path)?;
        if stamp.settled {
            self.write(&name, format!("{} {hash}\n", stamp.text).as_bytes());
        }
        Ok(hash)
    }

    /// The packed form of the binary with that hash; `kind` tells ways of packing apart.
    pub(super) fn packed(
        &self,
        hash: &str,
        kind: &str,
        pack: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let name = format!("{hash}.{kind}");
        if let Some(mut known) = self.read(&name)
            && known.len() > HEX
        {
            let (hash, packed) = known.split_at(HEX);
            if sha256_hex(packed).as_bytes() == hash {
                // In place: megabytes are not held twice.
                known.drain(..HEX);
                return Ok(known);
            }
        }
        let packed = pack()?;
        self.prune();
        self.write(&name, &[sha256_hex(&packed).as_bytes(), &packed].concat());
        Ok(packed)
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.as_ref()?.join(name)).ok()
    }

    /// Atomic, so that a run beside this one never reads half of it.
    fn write(&self, name: &str, bytes: &[u8]) {
        let Some(dir) = &self.0 else { return };
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(bytes)?;
            file.persist(dir.join(name))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(target: "rollcall::ssh", "{} is not kept: {error}", dir.join(name).display());
        }
    }

    fn prune(&self) {
        let Some(entries) = self.0.as_ref().and_then(|dir| fs::read_dir(dir).ok()) else { return };
        for entry in entries.flatten() {
            let old = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            if old.is_some_and(|age| age > KEEP) {
                // Another run may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

struct Stamp {
    /// What changes with the content: device, inode, size, both times.
    text: String,
    settled: bool,
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    let text = format!(
        "{} {} {} {}.{:09} {}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    let changed = u64::try_from(meta.ctime().max(meta.mtime())).unwrap_or(0);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(changed));
    Ok(Stamp { text, settled: age.is_ok_and(|age| age > RACY) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(path: &Path, text: &[u8], seconds: u64) {
        fs::write(path, text).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_hash_is_taken_from_the_cache_only_while_the_file_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cache) = (dir.path().join("agent"), Cache::new(Some(dir.path())));
        old(&path, b"one", 100);
        // The inode was changed just now, so that nothing is kept yet.
        assert_eq!(cache.hash(&path).unwrap(), sha256_hex(b"one"));
        assert!(!dir.path().join("agents").exists());
        let name = format!("{}.hash", sha256_hex(path.as_os_str().as_encoded_bytes()));
        let known = "f".repeat(HEX);
        cache.write(&name, format!("{} {known}\n", stamp(&path).unwrap().text).as_bytes());
        assert_eq!(cache.hash(&path).unwrap(), known);
        old(&path, b"two", 100);
        assert_eq!(cache.hash(&path).unwrap(), sha256_hex(b"two"));
        cache.write(&name, b"\xff broken");
        assert_eq!(cache.hash(&path).unwrap(), sha256_hex(b"two"));
        assert_eq!(Cache::new(None).hash(&path).unwrap(), sha256_hex(b"two"));
        assert!(cache.hash(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_packed_form_is_made_once_and_again_where_it_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(dir.path()));
        let never = || -> io::Result<Vec<u8>> { Err(io::Error::other("packed again")) };
        assert!(cache.packed("aa", "gzip", never).is_err());
        assert_eq!(cache.packed("aa", "gzip", || Ok(b"small".to_vec())).unwrap(), b"small");
        assert_eq!(cache.packed("aa", "gzip", never).unwrap(), b"small");
        assert!(cache.packed("aa", "zstd", never).is_err());
        let file = dir.path().join("agents/aa.gzip");
        let half = fs::read(&file).unwrap();
        fs::write(&file, &half[..half.len() - 1]).unwrap();
        assert_eq!(cache.packed("aa", "gzip", || Ok(b"again".to_vec())).unwrap(), b"again");
    }
}
