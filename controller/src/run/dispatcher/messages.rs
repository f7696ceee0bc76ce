//! What arrives: from hosts, and from whoever presses Ctrl-C.

use std::sync::Arc;

use rollcall_engine::{
    diag::{Diagnostic, Severity},
    playbook::model::Play,
    protocol::{Answer, Ask, EventKind, Frame, FromAgent, PlayEnd, Status, ToAgent},
};
use serde_json::Value;

use super::{
    super::{
        events::RunEvent,
        pack,
        remote::Incoming,
        turns::{Waiter, refusal},
    },
    Dispatcher, State, TICK, encode,
};
use crate::exit::Exit;

impl Dispatcher {
    /// One message, one signal, or a tick.
    pub(super) async fn step(&mut self) {
        tokio::select! {
            Some((host, message)) = self.incoming.recv() => self.take(host, message),
            Some(()) = self.signals.recv() => self.interrupt(),
            () = tokio::time::sleep(TICK) => {}
        }
    }

    pub(super) fn interrupt(&mut self) {
        self.interrupts += 1;
        if self.interrupts == 1 {
            let text = "interrupted: tasks in flight are finished; once more ends at once".to_owned();
            self.tell(&RunEvent::Notice { text });
            self.stop_all("interrupted");
        }
    }

    pub(super) fn stop_all(&mut self, reason: &str) {
        self.stopping.get_or_insert_with(|| reason.to_owned());
        for host in 0..self.hosts.len() {
            self.send(host, &ToAgent::Stop { reason: reason.to_owned() });
        }
        // After the stop, so that an agent knows why it waits no longer.
        let mut answers = self.turns.stop(reason);
        answers.extend(self.order.stop().into_iter().map(|waiter| (waiter, Answer::Refused(refusal(reason)))));
        answers.extend(self.stop_asking(reason));
        self.answer(answers);
    }

    pub(super) fn send(&mut self, host: usize, message: &ToAgent) {
        if let Some(link) = &self.hosts[host].link
            && let Ok(bytes) = encode(message)
        {
            // A connection that is gone is told by its own message.
            let _ = link.send(bytes);
        }
    }

    pub(super) fn answer(&mut self, answers: Vec<(Waiter, Answer)>) {
        for ((host, id), answer) in answers {
            self.blocked.remove(&host);
            self.send(host, &ToAgent::Answer { id, answer });
        }
    }

    pub(super) fn take(&mut self, host: usize, message: Incoming) {
        match message {
            Incoming::Started { pushed, millis } => {
                self.hosts[host].pushed = pushed;
                self.hosts[host].millis = millis;
            }
            Incoming::Unreachable(reason) => self.unreachable(host, reason),
            Incoming::Lost(reason) => self.lost(host, reason),
            Incoming::Agent(message) => self.agent(host, *message),
            Incoming::Waiting(what) => self.tell(&RunEvent::Waiting { host: self.name(host), what }),
            Incoming::Answered { id, answer } => {
                if self.asking.remove(&(host, id)).is_some() {
                    self.answer(vec![((host, id), answer)]);
                }
            }
        }
    }

    pub(super) fn agent(&mut self, host: usize, message: FromAgent) {
        match message {
            FromAgent::Ready { facts, problems, debts } => {
                self.keep_facts(host, facts);
                self.ready(host, problems, debts);
            }
            FromAgent::Keep { name, known } => self.keep(host, name, known),
            FromAgent::Flushed { place, well } => {
                self.order.flushed(host, place, well);
                self.meet();
            }
            FromAgent::Need { hashes } => self.need(host, hashes),
            FromAgent::Event(event) => self.event(host, event),
            FromAgent::Ask { id, ask } => self.ask((host, id), ask),
            FromAgent::Invoked { id, reply } => {
                if let Some((waiter, _)) = self.delegated.remove(&id) {
                    self.answer(vec![(waiter, Answer::Reply(Box::new(reply)))]);
                }
            }
            FromAgent::PlayDone { play, end } => self.play_done(host, play, &end),
            FromAgent::Fatal { failure } => {
                let locked = failure.message.starts_with("another run is at work");
                let mut reason = failure.message;
                if let Some(hint) = failure.hint {
                    reason.push_str(&format!("\nhint: {hint}"));
                }
                if locked {
                    self.worst(Exit::Locked);
                }
                self.out_of_reach(host, reason, locked);
            }
        }
    }

    fn ready(&mut self, host: usize, problems: Vec<Diagnostic>, debts: Vec<String>) {
        let wrong = problems.iter().any(|p| p.severity == Severity::Error);
        // With a single host the play is under way already.
        let alone = self.is_alone(host);
        let at = &mut self.hosts[host];
        at.problems = problems;
        at.owed.clone_from(&debts);
        at.state = if alone && !wrong { State::Playing } else { State::Ready };
        if at.state == State::Playing {
            self.batch = vec![host];
            self.hosts[host].begun = true;
        }
        let (pushed, millis) = (self.hosts[host].pushed, self.hosts[host].millis);
        for bytes in std::mem::take(&mut self.hosts[host].queued) {
            if let Some(link) = &self.hosts[host].link {
                let _ = link.send(bytes);
            }
        }
        self.tell(&RunEvent::HostReady { host: self.name(host), pushed, owed: debts, millis });
    }

    fn need(&mut self, host: usize, hashes: Vec<String>) {
        let Some(link) = self.hosts[host].link.clone() else { return };
        let job = Arc::clone(&self.job);
        tokio::task::spawn_blocking(move || {
            for hash in hashes {
                match pack::blob(&job, &hash) {
                    Ok(bytes) => drop(link.send(bytes)),
                    // An empty blob under this hash is refused by the agent, with the hash in its message.
                    Err(error) => {
                        tracing::error!(%error, "content cannot be sent");
                        let _ = link.send(Arc::new(Frame::Blob(hash, Vec::new()).encode()));
                    }
                }
            }
        });
    }

    fn event(&mut self, host: usize, event: rollcall_engine::protocol::Event) {
        let name = self.name(host);
        match event.kind {
            EventKind::Start { name: task, handler } => {
                self.hosts[host].task.clone_from(&task);
                self.tell(&RunEvent::TaskStart { host: name, name: task, handler });
            }
            EventKind::Item(result) => self.tell(&RunEvent::Item { host: name, result }),
            EventKind::Retry { left, msg } => {
                let task = self.hosts[host].task.clone();
                self.tell(&RunEvent::Retry { host: name, name: task, left, msg });
            }
            EventKind::Waiting { what } => self.tell(&RunEvent::Waiting { host: name, what }),
            EventKind::Restored { handler, role, files, why, owed } => {
                let files: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
                self.hosts[host].counts.restored += u32::try_from(files.len()).unwrap_or(u32::MAX);
                self.tell(&RunEvent::Restored { host: name, name: handler, role, files, why, owed });
            }
            EventKind::Owed { handler, role, why } => {
                self.tell(&RunEvent::Owed { host: name, name: handler, role, why });
            }
            EventKind::End(result) => {
                self.hosts[host].counts.add(&result);
                let failed = result.status == Status::Failed && !result.ignored && !result.rescued;
                if failed && result.result.get("gate").and_then(Value::as_str) == Some("refused") {
                    self.worst(Exit::GateRefused);
                }
                // Also where a rescue takes over: whoever was first may do everything in that cluster.
                if result.result.get("foreign_bootstrap") == Some(&Value::Bool(true)) {
                    self.worst(Exit::Foreign);
                    self.remark = Some(
                        "someone else bootstrapped the cluster: take it for compromised; nothing was reset".into(),
                    );
                }
                let fatal = failed && self.is_fatal(event.play, event.task);
                self.tell(&RunEvent::Task { host: name.clone(), result });
                if fatal {
                    self.remark = Some(format!("any_errors_fatal: a task failed on {name}"));
                    self.stop_all(&format!("any_errors_fatal: a task failed on {name}"));
                }
            }
        }
    }

    fn is_fatal(&self, play: usize, task: u32) -> bool {
        let Some(play) = self.job.bundle.plays.get(play) else { return false };
        play.any_errors_fatal || fatal_tasks(play).contains(&task)
    }

    fn ask(&mut self, waiter: Waiter, ask: Ask) {
        let live = self.live();
        let (host, _) = waiter;
        if matches!(ask, Ask::RunOnce { .. } | Ask::Turn { .. } | Ask::Others { .. }) {
            self.blocked.insert(host);
        }
        let answers = match ask {
            Ask::RunOnce { task } => self.once.reached(task, waiter, &live),
            Ask::RanOnce { task, result, facts } => {
                let mut answers = self.once.done(task, result, facts, &live);
                answers.push((waiter, Answer::Granted));
                answers
            }
            Ask::Turn { handler, serial, gate: _, before } => match (&self.stopping, before) {
                // It asked before it heard.
                (Some(why), _) => vec![(waiter, Answer::Refused(refusal(why)))],
                (None, Some(before)) => self.later(waiter, handler, serial, before),
                (None, None) => self.turns.ask(handler, serial, waiter),
            },
            Ask::TurnDone { handler, ok } => {
                let name = self.name(host);
                let mut answers = self.turns.done(handler, host, ok, &name);
                answers.push((waiter, Answer::Granted));
                answers
            }
            Ask::Others { place, names } => {
                self.reached(waiter, place, names);
                Vec::new()
            }
            Ask::Secret { name, wish } => {
                self.secret(waiter, name, wish);
                Vec::new()
            }
            Ask::Keep { name, value, in_place_of } => {
                self.keep_secret(waiter, name, value, in_place_of);
                Vec::new()
            }
            Ask::Sign(request) => {
                self.sign(waiter, request);
                Vec::new()
            }
            Ask::Delegate { host, call } => {
                self.delegate(waiter, &host, *call);
                Vec::new()
            }
        };
        self.answer(answers);
        self.meet();
    }

    fn play_done(&mut self, host: usize, play: usize, end: &PlayEnd) {
        let last = !self.job.play_hosts.iter().skip(play + 1).any(|hosts| hosts.contains(&host));
        let state = match end {
            // A host that is alone ends by itself after its last play.
            PlayEnd::Done if last && self.is_alone(host) => State::Out,
            PlayEnd::Done => State::Ready,
            PlayEnd::EndHost => State::Out,
            PlayEnd::Failed | PlayEnd::Stopped => {
                self.hosts[host].failed = true;
                State::Out
            }
        };
        if *end == PlayEnd::Failed {
            self.worst(Exit::Failed);
        }
        self.hosts[host].state = state;
        self.settle(host);
    }

    /// No other host takes part in any play.
    fn is_alone(&self, host: usize) -> bool {
        self.job.play_hosts.iter().flatten().all(|h| *h == host)
    }

    /// A host has left the batch: others may have waited for it.
    pub(super) fn settle(&mut self, host: usize) {
        let live = self.live();
        let name = self.name(host);
        let mut answers = self.once.settle(&live);
        answers.extend(self.turns.gone(host, &name));
        self.answer(answers);
        self.blocked.remove(&host);
        self.meetings.gone(host);
        self.order.gone(host);
        self.meet();
    }

    pub(super) fn unreachable(&mut self, host: usize, reason: String) {
        // Every play that wants it says that it may be missing.
        let plays = self.job.bundle.plays.iter().zip(&self.job.play_hosts);
        let mut wanting = plays.filter(|(_, hosts)| hosts.contains(&host)).peekable();
        let may_be_missing = wanting.peek().is_some() && wanting.all(|(play, _)| play.ignore_unreachable);
        if !may_be_missing {
            self.worst(Exit::Unreachable);
        }
        self.out_of_reach(host, reason, false);
    }

    pub(super) fn out_of_reach(&mut self, host: usize, reason: String, locked: bool) {
        let at = &mut self.hosts[host];
        if at.state == State::Gone {
            return;
        }
        at.state = State::Gone;
        at.failed = true;
        at.link = None;
        at.counts.unreachable += 1;
        self.tell(&RunEvent::HostUnreachable { host: self.name(host), reason, locked });
        self.refuse_calls(host);
        self.settle(host);
    }

    /// A connection ended: fine after the last message, a loss before it.
    fn lost(&mut self, host: usize, reason: String) {
        match self.hosts[host].state {
            State::Starting | State::Playing => self.unreachable(host, reason),
            State::Ready if self.hosts[host].link.is_some() => self.unreachable(host, reason),
            _ => {
                self.hosts[host].state = State::Gone;
                self.hosts[host].link = None;
                // Also one that has failed carries out what others delegate to it.
                self.refuse_calls(host);
            }
        }
    }
}

fn fatal_tasks(play: &Play) -> Vec<u32> {
    use rollcall_engine::playbook::model::Item;
    fn walk(items: &[Item], out: &mut Vec<u32>) {
        for item in items {
            match item {
                Item::Task(task) if task.any_errors_fatal => out.push(task.id),
                Item::Task(_) => {}
                Item::Block(block) => {
                    for part in [&block.block, &block.rescue, &block.always] {
                        walk(part, out);
                    }
                }
            }
        }
    }
    let mut out = Vec::new();
    for section in [&play.pre_tasks, &play.tasks, &play.post_tasks] {
        walk(section, &mut out);
    }
    out
}
