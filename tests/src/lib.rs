//! What the end-to-end tests stand on: a lab whose hosts they borrow, labs of their own, projects in temporary folders,
//! and programs that are run with everything they said kept for the error.
//!
//! `tests/run` (`make test`, `make test-lab T=NAME`) boots the lab and sets the variables that are read here. Tests see the
//! programs from outside only. Helpers panic with a readable text, as assertions do.

mod hosts;
mod lab;
mod leaves;
pub mod markdown;
mod operated;
mod planted;
mod project;
mod said;
mod seeded;
pub mod servers;

pub use hosts::Borrowed;
pub use lab::{Host, Lab, OwnLab, Status};
pub use leaves::Aged;
pub use operated::{Operated, kill_after, killed, kills, say};
pub use planted::{Found, Wanted, encode};
pub use project::Project;
pub use said::{Running, Said, run};
pub use seeded::{Random, counted, number, seed};

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// A variable that `tests/run` sets.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: tests on hosts are started by `make test-lab T=NAME`"))
}

/// One of our programs: `lab`, `controller`, `agent`.
pub fn program(name: &str) -> PathBuf {
    let path = PathBuf::from(setting("ROLLCALL_BIN")).join(name);
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

/// Waits for something that comes about by itself.
#[track_caller]
pub fn until(limit: Duration, missing: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{missing}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_path_buf()
}
