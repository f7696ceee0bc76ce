//! The messages between controller and agent.
//!
//! A frame is a length (4 bytes, big endian, of what follows), a kind (1 byte) and a body. Kind 0 is JSON, kind 1 a
//! blob: its SHA-256 in hex (64 bytes), then its bytes. The controller always drives the agent that it pushed itself,
//! so there is no negotiation: [`VERSION`] is compared and a difference is an error.
//!
//! ```text
//! controller                      agent
//!   Init, Blob (the bundle)  ─▶
//!                            ◀─   Need (blobs that are not in its cache)
//!   Blob …                   ─▶   facts, preflight: nothing is changed
//!                            ◀─   Ready
//!   Go (a play, a batch)     ─▶
//!                            ◀─   Event …, Keep (what other hosts ask for), Flushed (what their turns wait for), Ask (a
//!                                 turn, a delegated task, results of other hosts, a certificate, a secret; the last one
//!                                 also before Ready)
//!   Answer, Invoke           ─▶
//!                            ◀─   PlayDone
//!   Bye                      ─▶
//! ```

mod frame;

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use self::frame::{Frame, FrameError, MAX_FRAME, pack, unpack};
use crate::{
    diag::Diagnostic,
    modules::{Base64, Diff, Failure, Invocation, Outcome},
    playbook::model::{Bundle, Gate},
    secrets::{
        Secret,
        grants::{GrantError, Issued, SignRequest, Wish},
    },
    vars::{Vars, hosts::Known},
};

/// Compared at the start.
pub const VERSION: u32 = 1;

/// From the controller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToAgent {
    /// First.
    Init(Box<Init>),
    /// Carry out a play.
    Go(Go),
    /// To an [`Ask`].
    Answer {
        /// The ask's.
        id: u64,
        /// What came of it.
        answer: Answer,
    },
    /// Another host's task, delegated to this one.
    Invoke {
        /// Comes back in [`FromAgent::Invoked`].
        id: u64,
        /// The call.
        call: Call,
    },
    /// Stop at the next task boundary.
    Stop {
        /// Said in the result.
        reason: String,
    },
    /// No more plays.
    Bye,
}

/// What a run is, for one host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Init {
    /// [`VERSION`].
    pub version: u32,
    /// The run.
    pub run_id: String,
    /// Who started it: `user@machine`.
    pub owner: String,
    /// The host's name in the inventory.
    pub host: String,
    /// Nothing is changed.
    pub check: bool,
    /// Diffs are built.
    pub diff: bool,
    /// The login user, for tasks without become.
    pub login_user: String,
    /// `-b`.
    pub become_default: bool,
    /// Hash of the zstd-compressed JSON of [`Bundle`] and small files ([`Pack`]).
    pub pack: String,
    /// Hash of the shared `hostvars` and `groups` ([`Shared`]), zstd-compressed JSON, where something refers to them.
    pub shared: Option<String>,
    /// Inventory variables of this host, weakest layer first.
    pub vars: Vec<Arc<Vars>>,
    /// `-e`.
    pub extra: Arc<Vars>,
    /// Groups of this host.
    pub group_names: Vec<String>,
    /// What our own roles know of the cluster: `name`, `self`, `consul_servers`, `nomad_servers`.
    pub cluster: Value,
    /// Plays (by index) that this host is part of: what preflight looks at.
    pub plays: Vec<usize>,
    /// It is an EC2 instance: its facts hold what the metadata service says.
    #[serde(default)]
    pub ec2: bool,
    /// Only gather facts, send [`FromAgent::Ready`] and end.
    pub facts_only: bool,
    /// Start this at once if preflight finds nothing: saves a round trip where there is no other host to wait for.
    pub go: Option<Go>,
}

/// Sent once for all hosts, compressed once.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pack {
    /// The plays.
    pub bundle: Bundle,
    /// Contents of small files, by hash.
    pub files: Vec<(String, crate::modules::Base64)>,
}

/// What templates may ask of other hosts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Shared {
    /// Names of hosts by group, in order; `all` and `ungrouped` too.
    pub groups: indexmap::IndexMap<String, Vec<String>>,
    /// Inventory variables of every host, rendered: a mapping of hosts.
    pub hostvars: Arc<Value>,
    /// Hosts that some play addresses: what they leave in this run can be asked for.
    pub taking_part: Arc<BTreeSet<String>>,
}

/// Carry out a play.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Go {
    /// Index of the play.
    pub play: usize,
    /// Hosts of the batch, in order.
    pub batch: Vec<String>,
    /// Hosts of the play.
    pub play_hosts: Vec<String>,
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// Blobs that it lacks.
    Need {
        /// Hashes.
        hashes: Vec<String>,
    },
    /// Nothing has been changed yet.
    Ready {
        /// What the machine is; null unless only that was asked for, or another host asks for it.
        facts: Arc<Value>,
        /// What is wrong. Without errors it waits for [`ToAgent::Go`].
        problems: Vec<Diagnostic>,
        /// Handlers that earlier runs left owed.
        debts: Vec<String>,
    },
    /// Something happened.
    Event(Event),
    /// Something that tasks of other hosts ask for was set.
    Keep {
        /// Its name.
        name: String,
        /// What it is.
        known: Known,
    },
    /// Handlers have run, or one of them failed, where other hosts' turns may wait for it ([`Before`]).
    Flushed {
        /// Where in the play, as in [`Ask::Others`].
        place: Vec<u32>,
        /// None failed.
        well: bool,
    },
    /// Something only the controller can do.
    Ask {
        /// Comes back in [`ToAgent::Answer`].
        id: u64,
        /// What.
        ask: Ask,
    },
    /// The answer to [`ToAgent::Invoke`].
    Invoked {
        /// The invoke's.
        id: u64,
        /// What came of it.
        reply: Reply,
    },
    /// The play is over for this host.
    PlayDone {
        /// Index of the play.
        play: usize,
        /// How.
        end: PlayEnd,
    },
    /// The run cannot go on on this host.
    Fatal {
        /// Why.
        failure: Failure,
    },
}

/// How a play ended for a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlayEnd {
    /// To its end.
    Done,
    /// A task failed.
    Failed,
    /// The controller asked to stop.
    Stopped,
    /// `meta: end_host`: no further plays.
    EndHost,
}

/// A module's call for another user or host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// The call.
    pub invocation: Invocation,
    /// As whom.
    pub user: String,
    /// Nothing is changed.
    pub check: bool,
}

/// What came of a [`Call`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It ended well.
    Done {
        /// How.
        outcome: Outcome,
        /// What was changed.
        diffs: Vec<Diff>,
    },
    /// It failed.
    Failed(Failure),
    /// The host is not there.
    Unreachable(String),
}

/// What only the controller can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// A `run_once` task was reached.
    RunOnce {
        /// The task.
        task: u32,
    },
    /// The result of the `run_once` task that this host carried out, for the others.
    RanOnce {
        /// The task.
        task: u32,
        /// For `register`; `None`: skipped or nothing registered.
        result: Value,
        /// The facts that it set.
        facts: Value,
    },
    /// A task was reached that asks for what other hosts of the run have. Answered when each host of the batch that is at
    /// work has come as far.
    Others {
        /// Where in the play: section, tasks and turns of loops, outermost first. What comes later is greater.
        place: Vec<u32>,
        /// What it asks for.
        names: BTreeSet<String>,
    },
    /// A call on another host; `localhost` is the controller's machine.
    Delegate {
        /// Its name in the inventory.
        host: String,
        /// The call.
        call: Box<Call>,
    },
    /// A handler's turn.
    Turn {
        /// The handler's task.
        handler: u32,
        /// Hosts at once.
        serial: usize,
        /// What will be asked of the cluster after it.
        gate: Option<Gate>,
        /// Who goes first.
        before: Option<Before>,
    },
    /// A secret, for this host.
    Secret {
        /// Its name.
        name: String,
        /// Whether it may be made.
        wish: Wish,
    },
    /// A value that the product has made for this host, to be kept. Answered as [`Ask::Secret`] is, with what is kept.
    Keep {
        /// Its name.
        name: String,
        /// The value.
        value: Passed,
        /// What it may replace.
        in_place_of: Option<Passed>,
    },
    /// A certificate for a key of this host.
    Sign(SignRequest),
    /// The turn is over.
    TurnDone {
        /// The handler's task.
        handler: u32,
        /// The handler and its gate went well.
        ok: bool,
    },
}

/// Hosts whose handlers must have run before a turn is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Their names.
    pub hosts: Vec<String>,
    /// Where in the play, as in [`Ask::Others`]: they have been there, or further on.
    pub place: Vec<u32>,
}

/// To an [`Ask`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Go ahead (a turn, or this host carries the `run_once` task out).
    Granted,
    /// Another host carried it out.
    Result {
        /// For `register`.
        result: Value,
        /// The facts that it set.
        facts: Value,
    },
    /// The delegated call's.
    Reply(Box<Reply>),
    /// What the hosts of the run have: [`Others`](crate::vars::hosts::Others), zstd-compressed JSON.
    Others(Base64),
    /// A secret, or why there is none.
    Secret(Result<Passed, GrantError>),
    /// A certificate, or why there is none.
    Issued(Result<Issued, GrantError>),
    /// Not to be had: the reason.
    Refused(String),
}

/// A secret on its way to a host that may read it, or back from one that made it: the one place where one is serialized.
#[derive(Clone, Debug)]
pub struct Passed(pub Secret);

impl Serialize for Passed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose())
    }
}

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// Something happened on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Index of the play.
    pub play: usize,
    /// The task, [`crate::playbook::model::Task::id`].
    pub task: u32,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A task begins.
    Start {
        /// Its name, rendered.
        name: String,
        /// It is a handler.
        handler: bool,
    },
    /// One item of a loop is done; the task's end follows after the last.
    Item(Box<TaskResult>),
    /// An attempt failed and will be repeated.
    Retry {
        /// Attempts left.
        left: u64,
        /// What the attempt said.
        msg: String,
    },
    /// It waits for something that takes long.
    Waiting {
        /// For what.
        what: String,
    },
    /// Files that had notified a handler stand there again as they were.
    Restored {
        /// The handler.
        handler: String,
        /// Its role.
        role: Option<String>,
        /// Their paths.
        files: Vec<std::path::PathBuf>,
        /// Why.
        why: String,
        /// The handler stays owed all the same.
        owed: bool,
    },
    /// A handler that was carried out stays owed, with its new files in place.
    Owed {
        /// The handler.
        handler: String,
        /// Its role.
        role: Option<String>,
        /// Why.
        why: String,
    },
    /// A task is done.
    End(Box<TaskResult>),
}

/// How a task (or one item) ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something was changed, or would be (check mode).
    Changed,
    /// Check mode cannot know.
    MayChange,
    /// Its condition did not hold.
    Skipped,
    /// It failed.
    Failed,
}

/// The end of a task or item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// How.
    pub status: Status,
    /// The task's name, rendered.
    pub name: String,
    /// The role's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The module or action.
    pub module: String,
    /// The item's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// One line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msg: Option<String>,
    /// What to do about a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What was changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diffs: Vec<Diff>,
    /// Results, as `register` has them. Empty with `no_log`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
    /// Told with the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The failure does not end the play: `ignore_errors`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
    /// A rescue takes over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rescued: bool,
    /// It is a handler.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handler: bool,
    /// Where it was carried out instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated_to: Option<String>,
    /// Where the task (or the failing expression) stands.
    pub span: crate::diag::Span,
    /// Milliseconds.
    pub millis: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let blob = Frame::Blob("a".repeat(64), vec![0, 1, 2]);
        let json = Frame::json(&ToAgent::Bye).unwrap();
        let mut bytes = blob.encode();
        bytes.extend(json.encode());
        let mut from = &bytes[..];
        assert_eq!(Frame::read(&mut from).unwrap(), Some(blob));
        assert!(matches!(Frame::read(&mut from).unwrap().unwrap().message().unwrap(), ToAgent::Bye));
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_secret_passes_and_is_not_shown() {
        let refused = GrantError::refused_with("no", "ask");
        for sent in [Ok(Passed(Secret::new("hunter2"))), Err(refused), Err(GrantError::NotYet("later".into()))] {
            let answer = Answer::Secret(sent.clone());
            assert!(!format!("{answer:?}").contains("hunter2"));
            let frame = Frame::json(&ToAgent::Answer { id: 7, answer }).unwrap();
            let ToAgent::Answer { id: 7, answer: Answer::Secret(got) } = frame.message().unwrap() else { panic!() };
            assert_eq!(got.map(|passed| passed.0), sent.map(|passed| passed.0));
        }
    }

    #[test]
    fn broken_frames_are_refused() {
        assert!(matches!(Frame::read(&mut &b"sudo: a password is required\n"[..]), Err(FrameError::Garbage(_))));
        let mut cut = Frame::Json(b"{}".to_vec()).encode();
        cut.pop();
        assert!(matches!(Frame::read(&mut &cut[..]), Err(FrameError::Cut)));
        assert!(Frame::decode(&[7, 1]).is_err());
        assert!(Frame::decode(&[]).is_err());
        assert!(Frame::decode(&[1, b'x']).is_err());
    }

    proptest::proptest! {
        #![proptest_config(crate::fuzz::cases(20_000))]

        /// Whatever arrives, reading ends with an answer.
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            if bytes.len() > 4 {
                let length = u32::try_from(bytes.len() - 4).unwrap();
                bytes[..4].copy_from_slice(&length.to_be_bytes());
                bytes[4] %= 3;
            }
            if let Ok(Some(frame)) = Frame::read(&mut &bytes[..]) {
                let _ = frame.message::<ToAgent>();
                let _ = frame.message::<FromAgent>();
            }
        }
    }
}
