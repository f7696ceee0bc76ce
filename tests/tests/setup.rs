//! `lab/setup` on a machine without Rust: by rustup, which is had from a folder here, and installs two scripts that say what Cargo says.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_tests::{Said, root, run};

/// A machine whose user has an empty home folder, and where rustup comes from.
struct Machine(tempfile::TempDir);

impl Machine {
    /// `has`: the Rust that rustup brings.
    fn new(has: &str) -> Self {
        let machine = Self(tempfile::tempdir().expect("a temporary folder"));
        let script = format!(
            "#!/bin/sh\necho \"$@\" > \"$HOME/asked\"\nmkdir -p \"$HOME/.cargo/bin\"\ncd \"$HOME/.cargo/bin\"\n\
             for it in cargo rustc; do printf '#!/bin/sh\\necho %s {has} x\\n' $it > $it; chmod +x $it; done\n"
        );
        std::fs::create_dir_all(machine.dist("")).expect("a folder");
        std::fs::create_dir(machine.home()).expect("a folder");
        std::fs::write(machine.dist("rustup-init"), script).expect("written");
        let sum = run(Command::new("sha256sum").arg(machine.dist("rustup-init")), Duration::from_secs(5)).ok();
        std::fs::write(machine.dist("rustup-init.sha256"), sum.out).expect("written");
        machine
    }

    fn home(&self) -> PathBuf {
        self.0.path().join("home")
    }

    /// A file where rustup is had from.
    fn dist(&self, file: &str) -> PathBuf {
        self.0.path().join(format!("rustup/dist/{}-unknown-linux-gnu/{file}", std::env::consts::ARCH))
    }

    /// `lab/setup` with the system's programs alone.
    fn sets_up(&self) -> Said {
        let mut setup = Command::new("lab/setup");
        setup.current_dir(root()).env_remove("CARGO_HOME").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        setup.env("HOME", self.home()).env("RUSTUP_UPDATE_ROOT", format!("file://{}/rustup", self.0.path().display()));
        run(&mut setup, Duration::from_mins(5))
    }

    fn has_rust(&self) -> bool {
        self.home().join(".cargo").exists()
    }
}

#[test]
fn rust_is_installed_where_there_is_none() {
    assert!(!["/usr/bin/cargo", "/bin/cargo"].into_iter().any(|cargo| Path::new(cargo).exists()), "the system has one");
    let machine = Machine::new("1.95.1");
    machine.sets_up().ok().says("installing Rust 1.95 by rustup");
    let asked = std::fs::read_to_string(machine.home().join("asked")).expect("it was asked");
    assert_eq!(asked.trim(), "-y --profile minimal --component clippy --component rustfmt --default-toolchain 1.95");
    // It is found again, also by a shell whose PATH does not have it.
    std::fs::remove_file(machine.home().join("asked")).expect("it is there");
    assert_eq!(machine.sets_up().ok().err, "");
    assert!(!machine.home().join("asked").exists());
}

#[test]
fn rust_that_is_not_what_it_should_be_is_refused() {
    let machine = Machine::new("1.95.1");
    let other = machine.dist("rustup-init");
    std::fs::write(&other, "#!/bin/sh\nmkdir -p \"$HOME/.cargo\"\n").expect("written");
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).expect("set");
    machine.sets_up().ends(1).says("is not what its checksum says");
    assert!(!machine.has_rust());

    let machine = Machine::new("1.95.1");
    std::fs::remove_file(machine.dist("rustup-init.sha256")).expect("it is there");
    machine.sets_up().ends(1).says("rustup cannot be had from").says("https://rustup.rs");
    assert!(!machine.has_rust());

    let machine = Machine::new("1.79.0");
    machine.sets_up().ends(1).says("Rust 1.79.0 is too old, 1.95 or newer is needed");
}
