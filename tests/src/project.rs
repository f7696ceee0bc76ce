//! A user's project in a temporary folder, and the controller run in it as a user of the lab's network does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Host, Lab, Running, Said, program, setting};

const LIMIT: Duration = Duration::from_mins(10);

/// A project: its folder, and a home folder of its own. Gone when dropped.
#[derive(Debug)]
pub struct Project {
    lab: Lab,
    dir: tempfile::TempDir,
}

impl Project {
    /// A project whose `rollcall.yaml` names the lab's key and its hosts' keys, with an inventory of these hosts in
    /// the group `all`, under their names.
    #[track_caller]
    pub fn new<'a>(lab: &Lab, hosts: impl IntoIterator<Item = &'a Host>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let project = Self { lab: lab.clone(), dir };
        project.share_packed_agents().expect("the home folder can be made");
        let status = lab.status();
        let key = status.keys.values().next().expect("every lab of the tests has a key");
        let settings = format!(
            "inventory: [inventory.yaml]\nssh:\n  user: admin\n  identity_file: [{key}]\n  known_hosts: [{}]\n",
            status.known_hosts
        );
        let mut inventory = "all:\n  hosts:\n".to_owned();
        for host in hosts {
            write!(inventory, "    {}:\n      ansible_host: {}\n", host.name, host.address)
                .expect("text can be written");
        }
        project.file("rollcall.yaml", &settings).file("inventory.yaml", &inventory)
    }

    /// The home folder, empty but for the agents that all tests share: packing one again for each project takes a second.
    fn share_packed_agents(&self) -> std::io::Result<()> {
        let (agents, cache) =
            (Path::new(&setting("ROLLCALL_TEST_DIR")).join("agents"), self.home().join(".cache/rollcall"));
        std::fs::create_dir_all(&agents)?;
        std::fs::create_dir_all(&cache)?;
        std::os::unix::fs::symlink(agents, cache.join("agents"))
    }

    /// Writes a file of the project, with the folders that it needs.
    #[track_caller]
    #[must_use]
    pub fn file(self, path: &str, text: &str) -> Self {
        self.write(path, text);
        self
    }

    /// The same for a project that is in use.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it lies in the project")).expect("its folder can be made");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    /// What `rollcall.yaml` says.
    #[track_caller]
    pub fn settings(&self) -> String {
        std::fs::read_to_string(self.path().join("rollcall.yaml")).expect("every project has one")
    }

    /// Adds lines at the end of `rollcall.yaml`, whose last section is `ssh:`.
    #[track_caller]
    pub fn add_settings(&self, more: &str) {
        self.write("rollcall.yaml", &format!("{}{more}", self.settings()));
    }

    /// The project's folder.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    /// The home folder of who runs the controller.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A command for the controller, in the lab's network and the project's folder. `lab shell` becomes the controller, so
    /// signals reach it.
    pub fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let controller = program("controller");
        let mut command = self.lab.command(["shell", "--"]);
        command.arg(controller).args(words);
        self.settle(&mut command);
        command
    }

    fn settle(&self, command: &mut Command) {
        command.current_dir(self.path()).env("HOME", self.home());
        for (name, _) in std::env::vars_os() {
            // A developer's own agent, caches and settings have no part in it.
            let name = name.to_string_lossy().into_owned();
            if ["SSH_", "XDG_", "ANSIBLE_", "AWS_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
    }

    /// Runs the controller to its end.
    #[track_caller]
    pub fn controller<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Said {
        crate::run(&mut self.command(words), LIMIT)
    }

    /// Starts the controller; the test goes on beside it.
    #[track_caller]
    pub fn start<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Running {
        Running::start(&mut self.command(words))
    }

    /// Holds the lock of a store's file (its path, from the project's folder), as another controller does while it writes: until it is
    /// dropped.
    #[track_caller]
    pub fn hold(&self, lock: &str) -> Running {
        let (line, held) = ("exec flock --no-fork \"$0\" sh -c 'touch held; exec sleep 600'", self.path().join("held"));
        let holder = Running::start(Command::new("sh").args(["-c", line, lock]).current_dir(self.path()));
        let until = Instant::now() + Duration::from_secs(20);
        while !held.exists() {
            assert!(Instant::now() < until, "the lock is not taken");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::remove_file(held).expect("it is there");
        holder
    }

    /// A line for the shell in the project's folder and the lab's network.
    #[track_caller]
    pub fn shell(&self, line: &str) -> Said {
        let mut command = self.lab.command(["shell", "--", "bash", "-c", line]);
        self.settle(&mut command);
        crate::run(&mut command, LIMIT)
    }

    /// Puts one of Rollcall's own secrets into the project's store.
    #[track_caller]
    pub fn put(&self, name: &str, value: &str) {
        self.shell(&format!("printf %s '{value}' | {} secret put {name} --force", program("controller").display()))
            .ok();
    }

    /// A file of the repository that the project gets a copy of, such as `playbooks/consul.yaml`.
    #[track_caller]
    #[must_use]
    pub fn copy(self, from: &str, to: &str) -> Self {
        copy(&crate::root().join(from), &self.path().join(to));
        self
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).expect("a folder can be made");
        for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("cannot read {}: {error}", from.display())) {
            let entry = entry.expect("a folder can be read");
            copy(&entry.path(), &to.join(entry.file_name()));
        }
        return;
    }
    std::fs::create_dir_all(to.parent().expect("it lies in the project")).expect("a folder can be made");
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
}
