//! Carrying out plays on this machine: the same code for a roll-out over SSH, a bake and first boot.
//!
//! [`Runner`] walks a play's items in order. Each task is evaluated here, lazily, from unrendered variables; a module's
//! plan looks, its change writes. What other hosts or the controller must do goes through [`Link`].

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde_json::Value;

use handlers::Due;

use crate::{
    host::Write,
    modules::Failure,
    playbook::model::{Block, Bundle, Item, Play},
    protocol::{Answer, Ask, Call, Event, EventKind, Go, Init, PlayEnd, Reply, Shared, TaskResult},
    secrets::grants::{self, Grants},
    vars::{Vars, hosts::Known},
};

mod content;
mod gates;
mod handlers;
mod invoke;
/// What stays on the host between runs.
pub mod ledger;
mod once;
mod others;
/// Looking before anything is changed.
pub mod preflight;
mod restore;
mod results;
mod scope;
mod task;

pub use invoke::carry_out;
pub use ledger::Ledger;
pub use results::Failed;

/// What the runner asks of whoever drives it.
pub trait Link: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);
    /// Blocks until the controller answers.
    fn ask(&self, ask: Ask) -> Result<Answer, Failure>;
    /// Someone asked to stop, and why.
    fn stopped(&self) -> Option<String>;
    /// The content behind a hash.
    fn blob(&self, hash: &str) -> Result<Vec<u8>, Failure>;
    /// Tasks of other hosts ask for something that was set now.
    fn keep(&self, name: &str, known: Known);
    /// Handlers have run at this place of the play, or one of them failed. Turns of other hosts may wait for it.
    fn flushed(&self, place: &[u32], well: bool);
    /// Who answers modules for secrets and certificates.
    fn grants(&self) -> &Arc<dyn Grants> {
        grants::nobody()
    }
    /// The same where nothing may be made: before the first change of a run, and in check mode.
    fn looking(&self) -> &Arc<dyn Grants> {
        self.grants()
    }
    /// Carries a call out as another user of this machine.
    fn as_user(&self, call: &Call) -> Result<Reply, Failure>;
}

/// What a run is for this host, settled before the first task.
#[derive(Debug)]
pub struct Context {
    /// From the controller.
    pub init: Init,
    /// The plays.
    pub bundle: Arc<Bundle>,
    /// Other hosts, where something refers to them.
    pub shared: Arc<Shared>,
    /// What this machine is.
    pub facts: Arc<Value>,
    /// The user as whom this process runs.
    pub process_user: String,
    /// Where backups are kept.
    pub state_dir: PathBuf,
}

/// How a list of items ended.
#[derive(Debug)]
enum Flow {
    /// Go on.
    Next,
    /// A task failed, and nothing rescued it.
    Failed(Box<Failed>),
    /// `meta: end_play`, or a `run_once` result that ended it.
    EndPlay,
    /// `meta: end_host`.
    EndHost,
    /// The controller asked to stop.
    Stopped,
}

/// Carries out plays.
pub struct Runner<'a> {
    /// The run.
    pub context: &'a Context,
    /// The machine, or in check mode an overlay over it.
    pub host: &'a mut dyn Write,
    /// The machine itself, for `check_mode: false`.
    pub real: &'a mut dyn Write,
    /// Who drives.
    pub link: &'a dyn Link,
    /// Debts.
    pub ledger: &'a mut Ledger,
    state: State,
}

impl std::fmt::Debug for Runner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("host", &self.context.init.host).finish_non_exhaustive()
    }
}

/// What tasks leave behind for later ones.
#[derive(Debug, Default)]
struct State {
    /// `register` and `set_fact`.
    registered: Arc<Vars>,
    /// `include_vars`.
    included: Arc<Vars>,
    /// `vars` of the includes around the task.
    include_params: Vec<Arc<Vars>>,
    /// What a rescue sees.
    failure: Option<Arc<Vars>>,
    /// Blocks with a rescue around the task: its failure is taken over.
    rescues: usize,
    /// Handlers that this run notified, by task id; the tasks that did so.
    notified: HashMap<u32, Vec<u32>>,
    /// Debts that this run paid: a file of theirs that is put back is not what their service runs with.
    paid: Vec<ledger::Debt>,
    /// Handlers that the task at hand wrote down as new debts, until `changed_when` says whether it owes them.
    noted: Option<Vec<u32>>,
    /// The play being carried out, with its batch.
    go: Option<Go>,
    /// The names that the run itself gives: made once a play, for they hold every host of the inventory.
    magic: Arc<Vars>,
    /// Other hosts, as the task at hand sees them.
    others: others::Seen,
}

impl<'a> Runner<'a> {
    /// A runner at the start of a run.
    pub fn new(
        context: &'a Context,
        host: &'a mut dyn Write,
        real: &'a mut dyn Write,
        link: &'a dyn Link,
        ledger: &'a mut Ledger,
    ) -> Self {
        let others = others::Seen::new(&context.bundle.others);
        Self { context, host, real, link, ledger, state: State { others, ..State::default() } }
    }

    /// Carries out a play.
    pub fn play(&mut self, go: &Go) -> PlayEnd {
        let bundle = Arc::clone(&self.context.bundle);
        let Some(play) = bundle.plays.get(go.play) else { return PlayEnd::Failed };
        self.state.go = Some(go.clone());
        self.state.magic = Arc::new(scope::magic(self.context, &go.batch, &go.play_hosts));
        self.state.notified.clear();
        self.state.paid.clear();
        let mut flow = Flow::Next;
        // The play's own tasks may mend what an earlier run's handler failed for: its debts wait for their end.
        let sections = [(&play.pre_tasks, Due::Notified), (&play.tasks, Due::All), (&play.post_tasks, Due::All)];
        for (number, (section, due)) in (0..).zip(sections) {
            self.state.others.section(number);
            flow = self.items(play, section);
            if matches!(flow, Flow::Next) {
                flow = self.flush_after(play, due);
            }
            if !matches!(flow, Flow::Next) {
                break;
            }
        }
        let end = match flow {
            Flow::Next => PlayEnd::Done,
            // What was notified before the end is still owed, and paid now.
            Flow::EndPlay => self.end_early(play, PlayEnd::Done),
            Flow::EndHost => self.end_early(play, PlayEnd::EndHost),
            Flow::Failed(_) => PlayEnd::Failed,
            Flow::Stopped => PlayEnd::Stopped,
        };
        match end {
            PlayEnd::Failed => self.untried(play, "the play ended before its turn"),
            PlayEnd::Stopped => {
                let why = self.link.stopped().unwrap_or_default();
                self.untried(play, &format!("stopped before its turn: {why}"));
            }
            PlayEnd::Done | PlayEnd::EndHost => {}
        }
        end
    }

    fn end_early(&mut self, play: &Play, end: PlayEnd) -> PlayEnd {
        match self.flush_after(play, Due::Notified) {
            Flow::Failed(_) => PlayEnd::Failed,
            Flow::Stopped => PlayEnd::Stopped,
            _ => end,
        }
    }

    /// Handlers after the last task of a section.
    fn flush_after(&mut self, play: &Play, due: Due) -> Flow {
        self.state.others.enter(others::END);
        let flow = self.flush(play, due);
        self.state.others.leave();
        flow
    }

    fn items(&mut self, play: &Play, items: &[Item]) -> Flow {
        for item in items {
            if self.link.stopped().is_some() {
                return Flow::Stopped;
            }
            let flow = match item {
                Item::Task(task) => self.task(play, task),
                Item::Block(block) => self.block(play, block),
            };
            if !matches!(flow, Flow::Next) {
                return flow;
            }
        }
        Flow::Next
    }

    fn block(&mut self, play: &Play, block: &Block) -> Flow {
        let rescued = usize::from(!block.rescue.is_empty());
        self.state.rescues += rescued;
        let mut flow = self.items(play, &block.block);
        self.state.rescues -= rescued;
        if let Flow::Failed(failed) = &flow
            && !block.rescue.is_empty()
        {
            let before = self.state.failure.replace(failed.vars());
            flow = self.items(play, &block.rescue);
            self.state.failure = before;
        }
        if block.always.is_empty() || matches!(flow, Flow::Stopped) {
            return flow;
        }
        match self.items(play, &block.always) {
            Flow::Next => flow,
            other => other,
        }
    }

    fn emit(&self, task: u32, kind: EventKind) {
        let play = self.state.go.as_ref().map_or(0, |go| go.play);
        self.link.event(Event { play, task, kind });
    }

    fn end(&self, task: u32, result: TaskResult) {
        self.emit(task, EventKind::End(Box::new(result)));
    }
}
