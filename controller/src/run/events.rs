//! What a run tells: one stream, and everything that shows or keeps a run is a consumer of it.

use indexmap::IndexMap;
use rollcall_engine::{
    diag::Diagnostic,
    protocol::{Status, TaskResult},
};
use serde::Serialize;

/// Version of the stream that `--json` prints.
pub(crate) const VERSION: u32 = 1;

/// Something happened in the run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum RunEvent {
    /// First.
    RunStart { version: u32, run_id: String, check: bool, playbooks: Vec<String>, hosts: usize },
    /// A host answered: the agent is there and nothing speaks against the run.
    HostReady { host: String, pushed: bool, owed: Vec<String>, millis: u64 },
    /// A host is not there; told once.
    HostUnreachable { host: String, reason: String, locked: bool },
    /// What is wrong, before anything was changed, and on which hosts.
    Problem { hosts: Vec<String>, diagnostic: Diagnostic },
    /// A play begins.
    PlayStart { play: String, hosts: Vec<String> },
    /// A batch of a play begins.
    BatchStart { batch: usize, of: usize, hosts: Vec<String> },
    /// A task begins on a host.
    TaskStart { host: String, name: String, handler: bool },
    /// One item of a loop ended.
    Item { host: String, result: Box<TaskResult> },
    /// An attempt failed and is repeated.
    Retry { host: String, name: String, left: u64, msg: String },
    /// A host waits for something.
    Waiting { host: String, what: String },
    /// Files that had notified a handler stand there again as they were.
    Restored { host: String, name: String, role: Option<String>, files: Vec<String>, why: String, owed: bool },
    /// A handler was carried out and stays owed, for the cluster's word is missing.
    Owed { host: String, name: String, role: Option<String>, why: String },
    /// A task ended on a host.
    Task { host: String, result: Box<TaskResult> },
    /// Something for people that is no task.
    Notice { text: String },
    /// Last.
    Recap { hosts: IndexMap<String, Counts>, millis: u64, exit: u8, remark: Option<String> },
}

/// What happened on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Tasks that ended well, changed or not.
    pub(crate) ok: u32,
    /// Of these, those that changed something (in check mode: would).
    pub(crate) changed: u32,
    /// Check mode cannot know.
    pub(crate) may_change: u32,
    pub(crate) unreachable: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
    pub(crate) rescued: u32,
    pub(crate) ignored: u32,
    /// Files that were put back as they were before the run.
    pub(crate) restored: u32,
}

impl Counts {
    /// Adds a task's end.
    pub(crate) fn add(&mut self, result: &TaskResult) {
        match result.status {
            Status::Ok => self.ok += 1,
            Status::Changed => {
                self.ok += 1;
                self.changed += 1;
            }
            Status::MayChange => self.may_change += 1,
            Status::Skipped => self.skipped += 1,
            Status::Failed if result.ignored => {
                self.ok += 1;
                self.ignored += 1;
            }
            Status::Failed if result.rescued => self.rescued += 1,
            Status::Failed => self.failed += 1,
        }
    }
}

/// A consumer of the stream.
pub(crate) trait Sink: Send {
    /// Takes one event.
    fn event(&mut self, event: &RunEvent);
}
