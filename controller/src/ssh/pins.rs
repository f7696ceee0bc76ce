//! Host keys of EC2 instances, pinned to the instance id.
//!
//! Addresses move from one instance to the next, ids never do. So a new instance on an old
//! address is simply a new host, and another key under the same id is an alarm. One file per
//! instance, in known_hosts format with the id in place of the name.

use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::known_hosts::KnownHosts;
use super::public_key::PublicKey;

/// The file that holds the keys of `instance`. `None` when the id could leave the folder: it comes
/// from an API and is not trusted to be a file name.
pub(super) fn path(folder: &Path, instance: &str) -> Option<PathBuf> {
    let plain = instance.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    (plain && !instance.is_empty() && instance.len() <= 128).then(|| folder.join(instance))
}

/// The keys pinned to the instance, as known_hosts entries under its id. `None`: never met.
pub(super) fn load(path: &Path, instance: &str) -> io::Result<Option<KnownHosts>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let mut known = KnownHosts::default();
            known.add_text(path, &text);
            // A pin file that names no key would make every key look new.
            if known.keys(&[instance.to_owned()]).is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("it holds no key of {instance}; remove it to learn the keys anew"),
                ));
            }
            Ok(Some(known))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pins `keys`. Atomic, and first come first served: when another run pinned the instance
/// meanwhile, its pins stay and are what the next connection is checked against.
pub(super) fn store(path: &Path, instance: &str, keys: &[PublicKey]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    for key in keys {
        writeln!(file, "{instance} {key}")?;
    }
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => std::fs::File::open(folder)?.sync_all(),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::known_hosts::Verdict;
    use crate::ssh::public_key::tests::sample;

    #[test]
    fn stored_pins_come_back_and_are_not_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(&folder.path().join("pins"), "i-0abc").expect("a plain id");
        assert!(load(&path, "i-0abc").expect("read").is_none());
        store(&path, "i-0abc", &[sample(1), sample(2)]).expect("stored");
        store(&path, "i-0abc", &[sample(3)]).expect("left alone");
        let known = load(&path, "i-0abc").expect("read").expect("pinned");
        let name = ["i-0abc".to_owned()];
        assert_eq!(known.check(&name, &sample(2)), Verdict::Known);
        assert!(matches!(known.check(&name, &sample(3)), Verdict::Changed(_)));
    }

    #[test]
    fn an_id_that_is_no_plain_word_has_no_file() {
        for bad in ["", "../x", "a/b", ".", "..", "i 1", "i\0"] {
            assert!(path(Path::new("/p"), bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_damaged_pin_file_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("i-1");
        for text in ["", "i-1 ssh-ed25519 AAAA\n", "garbage"] {
            std::fs::write(&path, text).expect("written");
            assert!(load(&path, "i-1").is_err(), "{text:?}");
        }
    }
}
