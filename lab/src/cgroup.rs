//! Control groups: one per lab and one per host, so that everything a lab started can be found and ended,
//! whatever crashed, and so that a host's memory can be told. Version 2, or version 1 with systemd's hierarchy.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::Failure;

const ROOT: &str = "/sys/fs/cgroup";
/// The group of all labs in every hierarchy.
const TOP: &str = "rollcall-lab";

/// The hierarchies in which labs have groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// Where processes are listed and systemd makes its own groups.
    main: PathBuf,
    /// Further ones: version 1 has one per controller. A host that is in all of them sees its own part as the whole.
    others: Vec<PathBuf>,
    /// File that tells a group's memory, and where.
    memory: Option<(PathBuf, &'static str)>,
}

impl Cgroups {
    /// What this machine has.
    pub(crate) fn find() -> Result<Self> {
        Self::find_in(Path::new(ROOT))
    }

    fn find_in(root: &Path) -> Result<Self> {
        if root.join("cgroup.controllers").is_file() {
            return Ok(Self {
                main: root.to_owned(),
                others: Vec::new(),
                memory: Some((root.to_owned(), "memory.current")),
            });
        }
        let named = root.join("systemd");
        if named.join("cgroup.procs").is_file() {
            // Links (`cpu` to `cpu,cpuacct`) lead to others of them.
            let mut others = groups_in(root);
            others.retain(|dir| *dir != named && dir.join("cgroup.procs").is_file());
            others.sort();
            let memory = others.iter().find(|dir| dir.ends_with("memory")).cloned();
            let memory = memory.map(|dir| (dir, "memory.usage_in_bytes"));
            return Ok(Self { main: named, others, memory });
        }
        Err(Failure::new(
            format!(
                "there are no control groups at {}: neither version 2 nor systemd's hierarchy of version 1",
                root.display()
            ),
            "mount them: mount -t cgroup2 none /sys/fs/cgroup",
        )
        .into())
    }

    fn hierarchies(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.main).chain(&self.others)
    }

    /// Makes the group `part` of a lab, and returns the files that a process writes its id to in order to join it.
    pub(crate) fn make(&self, lab: &str, part: &str) -> Result<Vec<PathBuf>> {
        self.hierarchies()
            .map(|hierarchy| {
                let mut dir = hierarchy.clone();
                for name in [TOP, lab, part] {
                    dir.push(name);
                    make_group(&dir).with_context(|| format!("cannot make the control group {}", dir.display()))?;
                }
                Ok(dir.join("cgroup.procs"))
            })
            .collect()
    }

    /// The process that is PID 1 of a host, as this process's PID namespace numbers it.
    pub(crate) fn init_of(&self, lab: &str, id: &str) -> Option<i32> {
        let group = self.main.join(TOP).join(lab).join(id).join("payload/init.scope/cgroup.procs");
        // Those of another namespace are shown as 0.
        std::fs::read_to_string(group).ok()?.lines().find_map(|line| line.parse().ok().filter(|pid| *pid > 0))
    }

    /// Bytes that a host's processes and its files in memory take.
    pub(crate) fn memory_of(&self, lab: &str, part: &str) -> Option<u64> {
        let (root, file) = self.memory.as_ref()?;
        let text = std::fs::read_to_string(root.join(TOP).join(lab).join(part).join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// Whether anything of a lab runs.
    pub(crate) fn is_alive(&self, lab: &str) -> bool {
        !processes(&self.main.join(TOP).join(lab)).is_empty()
    }

    /// Ends every process of a lab, or of one part of it, and removes the groups. Nothing to do is fine.
    pub(crate) fn end(&self, lab: &str, part: Option<&str>) -> Result<()> {
        let inside = |hierarchy: &PathBuf| {
            let dir = hierarchy.join(TOP).join(lab);
            part.map_or(dir.clone(), |part| dir.join(part))
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let pids: Vec<i32> = self.hierarchies().flat_map(|hierarchy| processes(&inside(hierarchy))).collect();
            if pids.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                anyhow::bail!("the processes {pids:?} of lab '{lab}' do not end");
            }
            for pid in pids {
                // It may have ended by itself meanwhile.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for hierarchy in self.hierarchies() {
            remove_groups(&inside(hierarchy), deadline)?;
            if part.is_none() {
                // Only goes when no other lab is in it.
                let _ = std::fs::remove_dir(hierarchy.join(TOP));
            }
        }
        Ok(())
    }
}

/// Makes a group if it is not there. In version 1 a new one may use no processor and no memory node, and so take no process,
/// until it is told which.
fn make_group(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (Some(parent), own) = (dir.parent(), dir.join(file)) else { continue };
        let Ok(current) = std::fs::read_to_string(&own) else { continue };
        if current.trim().is_empty() && parent.join("cpuset.cpu_exclusive").is_file() {
            std::fs::write(&own, std::fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// All processes of a group and of those inside it.
fn processes(dir: &Path) -> Vec<i32> {
    let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) else { return Vec::new() };
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for group in groups_in(dir) {
        pids.extend(processes(&group));
    }
    pids
}

fn groups_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Innermost first. A group is busy for a moment after its last process ended.
fn remove_groups(dir: &Path, deadline: Instant) -> Result<()> {
    for group in groups_in(dir) {
        remove_groups(&group, deadline)?;
    }
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove the control group {}", dir.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    #[test]
    fn both_versions_are_found_and_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cgroups::find_in(dir.path()).unwrap_err();
        assert!(error.to_string().contains("no control groups"), "{error}");

        touch(&dir.path().join("systemd/cgroup.procs"));
        touch(&dir.path().join("memory/cgroup.procs"));
        let one = Cgroups::find_in(dir.path()).unwrap();
        assert_eq!(one.main, dir.path().join("systemd"));
        assert_eq!(one.others, [dir.path().join("memory")]);

        touch(&dir.path().join("cgroup.controllers"));
        let two = Cgroups::find_in(dir.path()).unwrap();
        assert_eq!((two.main, two.others.len()), (dir.path().to_owned(), 0));
    }

    #[test]
    fn groups_are_made_and_removed_with_what_is_inside() {
        let dir = tempfile::tempdir().unwrap();
        let groups = Cgroups { main: dir.path().to_owned(), others: Vec::new(), memory: None };
        groups.make("a", "host-1").unwrap();
        std::fs::create_dir_all(dir.path().join("rollcall-lab/a/host-1/payload/init.scope")).unwrap();
        std::fs::create_dir_all(dir.path().join("rollcall-lab/b")).unwrap();
        groups.end("a", None).unwrap();
        assert!(!dir.path().join("rollcall-lab/a").exists());
        assert!(dir.path().join("rollcall-lab/b").exists());
        groups.end("a", None).unwrap();
        groups.end("b", None).unwrap();
        assert!(!dir.path().join("rollcall-lab").exists());
    }
}
