//! Folders in which this process makes temporary names, written down so that the run after a kill finds what it left.
//!
//! The next write in a folder removes such names too; but after a kill between the rename and the removal of an empty
//! temporary folder there is nothing left to write.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The file, and what stands in it.
static NOTES: Mutex<Option<Notes>> = Mutex::new(None);

#[derive(Debug)]
struct Notes {
    file: PathBuf,
    known: HashSet<PathBuf>,
}

/// Held while a run may write: its folders are written down in a file, which is removed when the run ends by itself.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Removes what the run before left behind, then begins anew. The caller holds the host's lock.
    pub fn begin(file: &Path) -> Self {
        if let Ok(bytes) = fs::read(file) {
            for folder in bytes.split(|b| *b == 0).filter(|f| !f.is_empty()) {
                super::atomic::clean(Path::new(std::ffi::OsStr::from_bytes(folder)));
            }
            // What cannot be removed is read again by the next run, and does no harm.
            let _ = fs::remove_file(file);
        }
        let notes = Notes { file: file.to_path_buf(), known: HashSet::new() };
        NOTES.lock().unwrap_or_else(PoisonError::into_inner).replace(notes);
        Self(file.to_path_buf())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        NOTES.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a folder down before a temporary name is made in it. On a disk that takes no byte the write itself fails too,
/// and tells it better.
pub(super) fn write_down(folder: &Path) {
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(notes) = notes.as_mut() else { return };
    if notes.known.contains(folder) {
        return;
    }
    let mut line = folder.as_os_str().as_bytes().to_vec();
    line.push(0);
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&notes.file);
    if file.and_then(|mut file| file.write_all(&line)).is_ok() {
        notes.known.insert(folder.to_path_buf());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("unfinished");
        let folder = dir.path().join("etc");
        fs::create_dir(&folder).unwrap();
        // Two runs that did not come to their end: one whose process number is nobody's, one whose number is ours by now.
        let nobody = folder.join(format!(".rollcall-{}-1-0-x.tmp", i32::MAX));
        let ours = folder.join(format!(".rollcall-{}-1-0-x.tmp", std::process::id()));
        fs::create_dir(&nobody).unwrap();
        fs::write(&ours, "half").unwrap();
        let run = Unfinished::begin(&file);
        write_down(&folder);
        std::mem::forget(run);
        assert_eq!(fs::read(&file).unwrap(), [folder.as_os_str().as_bytes(), b"\0"].concat());

        let run = Unfinished::begin(&file);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        drop(run);
        assert!(!file.exists());
    }
}
