//! How the program ends, by kind: scripts may rely on these numbers.

use std::process::ExitCode;

/// Why the program ended. The worst kind that occurred decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// Everything went well.
    Done,
    /// A host could not be reached; the others went well.
    Unreachable,
    /// A task failed on a host.
    Failed,
    /// Another run is at work on a host.
    Locked,
    /// A gate did not find the cluster whole.
    GateRefused,
    /// Someone else bootstrapped the cluster's ACLs.
    Foreign,
    /// The playbook, the inventory or the project is wrong: no host was changed.
    Refused,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            // 1 is an unexpected failure of the program itself, 2 a wrong command line.
            Self::Refused => 3,
            Self::Failed => 4,
            Self::Unreachable => 5,
            Self::GateRefused => 6,
            Self::Locked => 7,
            Self::Foreign => 8,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table for `--help` and the manual.
pub(crate) const TABLE: &str = "\
Exit codes:
    0  everything went well
    1  the program itself failed
    2  the command line is wrong
    3  the playbook, the inventory or the project is wrong; no host was changed
    4  a task failed on a host
    5  a host could not be reached, the others went well
    6  a gate did not find the cluster whole
    7  another run is at work on a host
    8  someone else bootstrapped the cluster's ACLs; nothing was reset
  130  interrupted (Ctrl-C)";
