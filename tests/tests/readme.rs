//! The README and the manual are true: their commands are run as a newcomer runs them, in a fresh copy of what is committed
//! with an empty home folder, and end in a real Consul cluster. PROFILE says by which programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rollcall_tests::markdown::{self, Block, Place, blocks};
use rollcall_tests::{Lab, Running, Said, program, root, run};

/// From nothing, with the builds of the shipped programs and of Consul.
const LIMIT: Duration = Duration::from_mins(45);

/// The clone's folder among the newcomer's.
const CLONE: &str = "rollcall";

/// A newcomer: a clone, a home folder, and the names under which the demo does not meet another one on this machine.
struct Newcomer {
    dir: tempfile::TempDir,
    lab: Lab,
    port: u16,
    /// Whose mounts its commands see.
    place: Running,
}

impl Newcomer {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        std::fs::create_dir(dir.path().join("home")).expect("a folder");
        copy_all(&dir.path().join(CLONE));
        let place = in_place(&dir.path().join(CLONE));
        Self { dir, lab: Lab { name: format!("{}-demo", Lab::shared().name) }, port, place }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn clone(&self) -> PathBuf {
        self.dir.path().join(CLONE)
    }

    /// A command in the clone. The home folder is empty; what was built or fetched before may be kept by the standard
    /// variables for that, unless ROLLCALL_README_COLD is set.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.place.id()));
        command.args(["sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"]).arg(root()).arg(program).args(words);
        let old_home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        command.env("HOME", self.home()).env("DEMO_LAB", &self.lab.name).env("DEMO_PORT", self.port.to_string());
        for name in
            ["ROLLCALL_LAB", "ROLLCALL_TEST_LAB", "ROLLCALL_TEST_DIR", "ROLLCALL_BIN", "T", "MAKEFLAGS", "MAKELEVEL"]
        {
            command.env_remove(name);
        }
        let keep = |command: &mut Command, name: &str, default: &str| {
            let value = std::env::var_os(name).map_or_else(|| old_home.join(default), PathBuf::from);
            command.env(name, value);
        };
        // The toolchain is the newcomer's own, by rustup or by the system.
        keep(&mut command, "RUSTUP_HOME", ".rustup");
        keep(&mut command, "CARGO_HOME", ".cargo");
        if std::env::var_os("ROLLCALL_README_COLD").is_none() {
            keep(&mut command, "XDG_CACHE_HOME", ".cache");
        } else {
            command.env_remove("CARGO_TARGET_DIR").env_remove("XDG_CACHE_HOME");
        }
        command
    }

    #[track_caller]
    fn run(&self, page: &Path, block: &Block) -> Option<Said> {
        let script = format!("set -euo pipefail\n{}", block.text);
        let said = match &block.place {
            Place::Nowhere(_) => return None,
            Place::Machine => run(&mut self.command("bash", &["-c", &script]), LIMIT),
            Place::DemoShell => run(&mut self.command("lab/demo", &["shell", "bash", "-c", &script]), LIMIT),
        };
        assert_eq!(said.code, 0, "{}:{}\n{}", page.display(), block.line, said.report());
        Some(said)
    }

    fn members(&self) -> Vec<String> {
        let line =
            "export CONSUL_HTTP_TOKEN=$(controller token create test --product consul --policy rollcall-operator-read)
            consul members";
        let said = run(&mut self.command("lab/demo", &["shell", "bash", "-euc", line]), LIMIT).ok();
        said.out.lines().skip(1).map(str::to_owned).collect()
    }

    /// Consul's page in a browser of this machine.
    fn sees_the_page(&self) {
        let ui = Running::start(&mut self.command("lab/demo", &["ui"]));
        let url = format!("https://127.0.0.1:{}/ui/", self.port);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let said = run(
                Command::new("curl").args(["--silent", "--fail", "--location", "--insecure", &url]),
                Duration::from_secs(20),
            );
            if said.code == 0 {
                said.says("Consul");
                break;
            }
            assert!(Instant::now() < deadline, "{}", said.report());
            std::thread::sleep(Duration::from_millis(200));
        }
        ui.signal("TERM");
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let lab = program("lab");
        let _ = self.command(&lab.to_string_lossy(), &["down", "--name", &self.lab.name]).output();
    }
}

/// What git knows of, as it lies here: a file that somebody forgot to add is missing here, too. Files and folders with their times, by which
/// Cargo sees what has changed.
fn copy_all(clone: &Path) {
    let list =
        run(Command::new("git").args(["-c", "safe.directory=*", "ls-files", "-z"]).current_dir(root()), LIMIT).ok();
    let mut folders = BTreeSet::new();
    for file in list.out.split('\0').filter(|file| root().join(file).is_file()) {
        let (from, to) = (root().join(file), clone.join(file));
        std::fs::create_dir_all(to.parent().expect("it lies in the clone")).expect("a folder");
        let copy = std::fs::copy(&from, &to).and_then(|_| same_time(&from, &to));
        copy.unwrap_or_else(|error| panic!("cannot copy {file}: {error}"));
        folders.extend(Path::new(file).ancestors().skip(1));
    }
    for folder in folders {
        same_time(&root().join(folder), &clone.join(folder)).expect("a folder's time");
    }
}

fn same_time(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::File::open(to)?.set_modified(std::fs::metadata(from)?.modified()?)
}

/// A process for whom the clone stands where the checkout is: Cargo, which tells packages apart by their paths, knows what was built
/// of the same files.
fn in_place(clone: &Path) -> Running {
    let root = root().canonicalize().expect("the checkout is there");
    let line = "mount --bind \"$1\" \"$2\" && exec sleep infinity";
    let place = Running::start(Command::new("unshare").args(["--mount", "sh", "-c", line, "sh"]).arg(clone).arg(&root));
    let is_there = || {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", place.id())).unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == root))
    };
    let end = Instant::now() + Duration::from_secs(10);
    while !is_there() {
        assert!(Instant::now() < end, "the clone does not get to {}", root.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    place
}

fn page(path: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    blocks(&text).unwrap_or_else(|wrong| panic!("{}: {wrong}", path.display()))
}

#[test]
fn the_readme_leads_from_nothing_to_a_cluster_and_back() {
    let newcomer = Newcomer::new();
    let readme = newcomer.clone().join("README.md");
    let steps = page(&readme);
    let is = |block: &Block, command: &str| block.text.trim() == command;
    assert!(steps.iter().any(|block| is(block, "make demo")) && steps.iter().any(|block| is(block, "make demo-down")));
    let changed = regex::Regex::new("changed=[1-9]").expect("a pattern");
    for block in &steps {
        if is(block, "make demo-down") {
            newcomer.sees_the_page();
            // The manual's commands are for the same fleet.
            for path in markdown::pages(&newcomer.clone(), &["CONTRIBUTING.md"], &["docs"]) {
                for block in page(&path) {
                    newcomer.run(&path, &block);
                }
            }
        }
        let said = newcomer.run(&readme, block);
        if is(block, "make demo") {
            let members = newcomer.members();
            // Name, address, status, type.
            let alive = |kind: &str| {
                let is = |line: &&String| line.split_whitespace().skip(2).take(2).eq(["alive", kind]);
                members.iter().filter(is).count()
            };
            assert_eq!((alive("server"), alive("client"), members.len()), (3, 7, 10), "{members:#?}");
        }
        // The demo did it; the newcomer does it again, and nothing changes.
        if let (Place::DemoShell, Some(said)) = (&block.place, said)
            && block.text.contains("controller run ")
        {
            assert!(!changed.is_match(&said.out), "{}", said.report());
        }
    }
    let status = newcomer.lab.lab(["status"]);
    assert_ne!(status.code, 0, "the demo is gone\n{}", status.report());
    assert!(!Path::new(&format!("/run/netns/rollcall-{}", newcomer.lab.name)).exists());
}
