//! Borrowing hosts of the shared lab. Each host has a lock file; who holds it has the host, across threads and processes,
//! and a test that dies gives its hosts back by dying.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Host, Lab, setting};

/// How long a test waits for hosts that others have.
const PATIENCE: Duration = Duration::from_mins(20);

/// Hosts that one test has for itself, as empty as after their first boot. Given back when dropped.
#[derive(Debug)]
pub struct Borrowed {
    /// The lab they belong to.
    pub lab: Lab,
    hosts: Vec<(Host, File)>,
    dir: PathBuf,
}

impl Lab {
    /// Borrows hosts whose names begin so (`server`, `client`; `` for any), waiting for others to give them back.
    /// A test borrows once: one that holds hosts while it asks for more could wait for itself.
    #[track_caller]
    pub fn borrow(&self, count: usize, prefix: &str) -> Borrowed {
        let dir = PathBuf::from(setting("ROLLCALL_TEST_DIR"));
        // One test collects at a time, so that two never wait for each other's hosts.
        let queue = open(&dir.join("queue"));
        queue.lock().expect("a lock can be waited for");
        let candidates: Vec<Host> = self
            .status()
            .hosts
            .into_iter()
            .filter(|host| host.name.starts_with(prefix) && host.name != "jump")
            .collect();
        assert!(
            candidates.len() >= count,
            "lab/test.yaml has {} hosts '{prefix}*', {count} were asked for",
            candidates.len()
        );
        let deadline = Instant::now() + PATIENCE;
        let mut hosts: Vec<(Host, File)> = Vec::new();
        loop {
            for host in &candidates {
                if hosts.len() < count && !hosts.iter().any(|(held, _)| held.name == host.name) {
                    hosts.extend(lock(&dir, &host.name).map(|file| (host.clone(), file)));
                }
            }
            if hosts.len() == count {
                break;
            }
            assert!(Instant::now() < deadline, "no {count} hosts '{prefix}*' were given back within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        hosts.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        // What a test that died left behind is removed by the next who takes the host.
        for (host, _) in &hosts {
            if dir.join(format!("{}.used", host.name)).exists() {
                self.lab(["reset", &host.name]).ok();
            }
            std::fs::write(dir.join(format!("{}.used", host.name)), "").expect("the folder of locks can be written");
        }
        Borrowed { lab: self.clone(), hosts, dir }
    }
}

impl Borrowed {
    /// A host, counted from 0.
    #[track_caller]
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index].0
    }

    /// A host's name.
    #[track_caller]
    pub fn name(&self, index: usize) -> &str {
        &self.host(index).name
    }

    /// All of them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().map(|(host, _)| host)
    }

    /// An inventory in which the first so many hosts are of the first group, and so on; the last group has the rest.
    pub fn inventory(&self, groups: &[(&str, usize)]) -> String {
        let mut text = "all:\n  children:\n".to_owned();
        let mut hosts = self.hosts();
        for (index, (group, count)) in groups.iter().enumerate() {
            text.push_str(&format!("    {group}:\n      hosts:\n"));
            let count = if index + 1 == groups.len() { usize::MAX } else { *count };
            for host in hosts.by_ref().take(count) {
                text.push_str(&format!("        {}: {{ansible_host: {}}}\n", host.name, host.address));
            }
        }
        text
    }

    /// Root's shell on a host, past SSH.
    #[track_caller]
    pub fn root(&self, index: usize, line: &str) -> crate::Said {
        self.lab.root(self.name(index), line)
    }

    /// Copies text files of a host's folder to a folder of another, which is made.
    #[track_caller]
    pub fn hand_over(&self, (from, folder): (usize, &str), (to, place): (usize, &str), files: &[&str]) {
        for file in files {
            let text = self.read(from, &format!("{folder}/{file}"));
            self.root(to, &format!("mkdir -p {place} && cat > {place}/{file} <<'EOT'\n{text}EOT")).ok();
        }
    }

    /// The content of a file on a host.
    #[track_caller]
    pub fn read(&self, index: usize, path: &str) -> String {
        self.lab.read(self.name(index), path)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        for (host, _) in &self.hosts {
            // What fails here, the next borrower's reset tells. Partitions outlive a reset: tests of them run alone.
            let _ = self.lab.command(["reset", &host.name]).output().is_ok_and(|output| {
                output.status.success() && std::fs::remove_file(self.dir.join(format!("{}.used", host.name))).is_ok()
            });
        }
    }
}

fn open(path: &Path) -> File {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

fn lock(dir: &Path, host: &str) -> Option<File> {
    let file = open(&dir.join(format!("{host}.lock")));
    match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("cannot lock {host}: {error}"),
    }
}
