//! The dispatcher: the only owner of a run's state. Connections, signals and answers come to it as messages; what it
//! tells goes to the sinks.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use rollcall_engine::{
    diag::{Diagnostic, Severity},
    playbook::model::Play,
    protocol::{Answer, Ask, Call, EventKind, Frame, FromAgent, Go, Init, PlayEnd, Reply, Status, ToAgent, VERSION},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    Job,
    batches::batches,
    events::{self, Counts, RunEvent, Sink},
    pack::{self, Packed},
    remote::{Bytes, Dialer, Incoming, dial},
    turns::{Once, Turns, Waiter},
};
use crate::exit::Exit;

/// Between two looks at the signals while nothing arrives.
const TICK: Duration = Duration::from_millis(500);

/// Where a host stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not dialled (a host that is only delegated to).
    Idle,
    /// On the way to [`State::Ready`].
    Starting,
    /// Nothing speaks against the run; waits for a play.
    Ready,
    /// Carries a play out.
    Playing,
    /// Takes part no more: it failed, or ended by itself.
    Out,
    /// Its connection is gone.
    Gone,
}

#[derive(Debug)]
struct Host {
    state: State,
    link: Option<mpsc::UnboundedSender<Bytes>>,
    counts: Counts,
    started: Instant,
    pushed: bool,
    millis: u64,
    problems: Vec<Diagnostic>,
    owed: Vec<String>,
    /// Calls for it that wait until it is ready.
    queued: Vec<Bytes>,
    failed: bool,
    /// Names of tasks under way, by id: for retries.
    task: String,
}

/// See the module.
pub(crate) struct Dispatcher {
    job: Arc<Job>,
    hosts: Vec<Host>,
    dialer: Dialer,
    incoming: mpsc::UnboundedReceiver<(usize, Incoming)>,
    sinks: Vec<Box<dyn Sink>>,
    plays: Packed,
    shared: Option<Packed>,
    once: Once,
    turns: Turns,
    /// Delegated calls under way: who asked, and who carries it out.
    delegated: HashMap<u64, (Waiter, usize)>,
    next_call: u64,
    /// Hosts of the batch that is at work, in order.
    batch: Vec<usize>,
    exit: Exit,
    stopping: Option<String>,
    interrupts: u32,
    signals: mpsc::UnboundedReceiver<()>,
    begun: Instant,
    remark: Option<String>,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Prepares a run; nothing is dialled yet.
    pub(crate) fn new(
        job: Arc<Job>,
        dialer: Dialer,
        incoming: mpsc::UnboundedReceiver<(usize, Incoming)>,
        sinks: Vec<Box<dyn Sink>>,
    ) -> anyhow::Result<Self> {
        let (plays, shared) = (pack::plays(&job)?, pack::shared(&job)?);
        let hosts = job.hosts.iter().map(|_| Host {
            state: State::Idle,
            link: None,
            counts: Counts::default(),
            started: Instant::now(),
            pushed: false,
            millis: 0,
            problems: Vec::new(),
            owed: Vec::new(),
            queued: Vec::new(),
            failed: false,
            task: String::new(),
        });
        Ok(Self {
            hosts: hosts.collect(),
            dialer,
            incoming,
            sinks,
            plays,
            shared,
            once: Once::default(),
            turns: Turns::default(),
            delegated: HashMap::new(),
            next_call: 1,
            batch: Vec::new(),
            exit: Exit::Done,
            stopping: None,
            interrupts: 0,
            signals: signals(),
            begun: Instant::now(),
            remark: None,
            job,
        })
    }

    /// Both phases. Always ends with the recap.
    pub(crate) async fn run(mut self) -> Exit {
        self.tell(&RunEvent::RunStart {
            version: events::VERSION,
            run_id: self.job.run_id.clone(),
            check: self.job.check,
            playbooks: self.job.playbooks.clone(),
            hosts: self.job.hosts.len(),
        });
        if self.look().await {
            self.carry_out().await;
        }
        self.end().await;
        self.exit
    }

    fn tell(&mut self, event: &RunEvent) {
        for sink in &mut self.sinks {
            sink.event(event);
        }
    }

    fn worst(&mut self, exit: Exit) {
        self.exit = self.exit.max(exit);
    }

    fn name(&self, host: usize) -> String {
        self.job.hosts[host].name.clone()
    }

    fn live(&self) -> Vec<usize> {
        self.batch.iter().copied().filter(|h| self.hosts[*h].state == State::Playing).collect()
    }

    // Phase 1: nothing is changed.

    /// Dials everybody and waits for all; false if the run must not start.
    async fn look(&mut self) -> bool {
        let mut wanted: Vec<usize> = self.job.play_hosts.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let alone = self.go_at_once(&wanted);
        for host in &wanted {
            self.dial(*host, alone.clone());
        }
        while self.hosts.iter().any(|h| h.state == State::Starting) {
            self.step().await;
            if self.interrupts > 0 {
                return false;
            }
        }
        self.report_problems()
    }

    /// A single host has nobody to wait for: it starts its first play as soon as nothing speaks against it.
    fn go_at_once(&mut self, wanted: &[usize]) -> Option<Go> {
        let [host] = wanted else { return None };
        let play = self.job.play_hosts.iter().position(|hosts| !hosts.is_empty())?;
        let name = self.name(*host);
        Some(Go { play, batch: vec![name.clone()], play_hosts: vec![name] })
    }

    fn dial(&mut self, host: usize, go: Option<Go>) {
        let spec = &self.job.hosts[host];
        let plays = (0..self.job.play_hosts.len()).filter(|p| self.job.play_hosts[*p].contains(&host)).collect();
        let init = ToAgent::Init(Box::new(Init {
            version: VERSION,
            run_id: self.job.run_id.clone(),
            owner: self.job.owner.clone(),
            host: spec.name.clone(),
            check: self.job.check,
            diff: self.job.diff,
            login_user: spec.login_user.clone(),
            become_default: self.job.become_default,
            pack: self.plays.hash.clone(),
            shared: self.shared.as_ref().map(|s| s.hash.clone()),
            vars: spec.vars.clone(),
            extra: Arc::clone(&self.job.extra),
            group_names: spec.group_names.clone(),
            cluster: spec.cluster.clone(),
            plays,
            ec2: spec.ec2,
            facts_only: false,
            go,
        }));
        self.hosts[host].started = Instant::now();
        self.hosts[host].state = State::Starting;
        let ready = spec.way.clone().and_then(|way| Ok((way, encode(&init)?)));
        match ready {
            Err(reason) => self.unreachable(host, reason),
            Ok((way, init)) => {
                let mut first = vec![init, Arc::clone(&self.plays.frame)];
                first.extend(self.shared.as_ref().map(|s| Arc::clone(&s.frame)));
                self.hosts[host].link = Some(dial(&self.dialer, host, way, first));
            }
        }
    }

    /// Tells every problem once, with all hosts that have it. False if one of them forbids the run.
    fn report_problems(&mut self) -> bool {
        let mut grouped: IndexMap<Diagnostic, Vec<String>> = IndexMap::new();
        for (at, host) in self.hosts.iter_mut().enumerate() {
            for problem in std::mem::take(&mut host.problems) {
                grouped.entry(problem).or_default().push(self.job.hosts[at].name.clone());
            }
        }
        let mut wrong = false;
        for (diagnostic, hosts) in grouped {
            wrong |= diagnostic.severity == Severity::Error;
            self.tell(&RunEvent::Problem { hosts, diagnostic });
        }
        if wrong {
            self.worst(Exit::Refused);
            self.remark = Some("nothing was changed".into());
        }
        !wrong
    }

    // Phase 2.

    async fn carry_out(&mut self) {
        let job = Arc::clone(&self.job);
        for (index, play) in job.bundle.plays.iter().enumerate() {
            let wanted = &job.play_hosts[index];
            if wanted.is_empty() {
                continue;
            }
            let fit = |h: &&usize| matches!(self.hosts[**h].state, State::Ready | State::Playing);
            let hosts: Vec<usize> = wanted.iter().filter(fit).copied().collect();
            if hosts.is_empty() {
                self.remark = Some(format!("the run ended before play '{}': none of its hosts is left", play.name));
                return;
            }
            let names = hosts.iter().map(|h| self.name(*h)).collect();
            self.tell(&RunEvent::PlayStart { play: play.name.clone(), hosts: names });
            if !self.play(index, play, &hosts).await {
                return;
            }
        }
    }

    /// A play, batch by batch; false if the run ends with it.
    async fn play(&mut self, index: usize, play: &Play, hosts: &[usize]) -> bool {
        self.turns = Turns::default();
        let parts = batches(hosts, &play.serial);
        let of = parts.len();
        let play_hosts: Vec<String> = hosts.iter().map(|h| self.name(*h)).collect();
        for (number, batch) in parts.into_iter().enumerate() {
            let names: Vec<String> = batch.iter().map(|h| self.name(*h)).collect();
            if of > 1 {
                self.tell(&RunEvent::BatchStart { batch: number + 1, of, hosts: names.clone() });
            }
            self.once = Once::default();
            self.batch = batch;
            let go = Go { play: index, batch: names, play_hosts: play_hosts.clone() };
            for host in self.batch.clone() {
                if self.hosts[host].state == State::Ready {
                    self.hosts[host].state = State::Playing;
                    self.send(host, &ToAgent::Go(go.clone()));
                }
            }
            while !self.live().is_empty() {
                self.step().await;
                if self.interrupts > 1 {
                    return false;
                }
            }
            if !self.may_go_on(play) {
                return false;
            }
        }
        true
    }

    /// After a batch: failures, limits, stops.
    fn may_go_on(&mut self, play: &Play) -> bool {
        if self.stopping.is_some() {
            return false;
        }
        let lost = self.batch.iter().filter(|h| self.hosts[**h].failed).count();
        if lost == 0 {
            return true;
        }
        if lost == self.batch.len() {
            self.remark = Some(format!("every host of the batch failed in play '{}': the run ended there", play.name));
            return false;
        }
        if play.any_errors_fatal {
            self.remark = Some(format!("any_errors_fatal: the run ended in play '{}'", play.name));
            return false;
        }
        if let Some(limit) = play.max_fail_percentage {
            #[expect(clippy::cast_precision_loss, reason = "host counts")]
            let percent = 100.0 * lost as f64 / self.batch.len() as f64;
            if percent > limit {
                self.remark = Some(format!(
                    "{percent:.0} % of the batch failed, more than max_fail_percentage {limit}: the run ended in play '{}'",
                    play.name
                ));
                return false;
            }
        }
        true
    }

    /// Ends all connections and tells the recap.
    async fn end(&mut self) {
        if self.interrupts > 0 {
            self.worst(Exit::Interrupted);
        }
        for host in 0..self.hosts.len() {
            if self.interrupts < 2 {
                self.send(host, &ToAgent::Bye);
            }
            self.hosts[host].link = None;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.interrupts < 2
            && Instant::now() < deadline
            && self.hosts.iter().any(|h| !matches!(h.state, State::Gone | State::Idle))
        {
            self.step().await;
        }
        let hosts = self.job.hosts.iter().zip(&self.hosts).map(|(s, h)| (s.name.clone(), h.counts)).collect();
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let remark = self.remark.take();
        self.tell(&RunEvent::Recap { hosts, millis, exit: self.exit.code(), remark });
    }

    // Messages.

    /// One message, one signal, or a tick.
    async fn step(&mut self) {
        tokio::select! {
            Some((host, message)) = self.incoming.recv() => self.take(host, message),
            Some(()) = self.signals.recv() => self.interrupt(),
            () = tokio::time::sleep(TICK) => {}
        }
    }

    fn interrupt(&mut self) {
        self.interrupts += 1;
        if self.interrupts == 1 {
            let text = "interrupted: tasks in flight are finished; once more ends at once".to_owned();
            self.tell(&RunEvent::Notice { text });
            self.stop_all("interrupted");
        }
    }

    fn stop_all(&mut self, reason: &str) {
        self.stopping.get_or_insert_with(|| reason.to_owned());
        for host in 0..self.hosts.len() {
            self.send(host, &ToAgent::Stop { reason: reason.to_owned() });
        }
    }

    fn send(&mut self, host: usize, message: &ToAgent) {
        if let Some(link) = &self.hosts[host].link
            && let Ok(bytes) = encode(message)
        {
            // A connection that is gone is told by its own message.
            let _ = link.send(bytes);
        }
    }

    fn answer(&mut self, answers: Vec<(Waiter, Answer)>) {
        for ((host, id), answer) in answers {
            self.send(host, &ToAgent::Answer { id, answer });
        }
    }

    fn take(&mut self, host: usize, message: Incoming) {
        match message {
            Incoming::Started { pushed, millis } => {
                self.hosts[host].pushed = pushed;
                self.hosts[host].millis = millis;
            }
            Incoming::Unreachable(reason) => self.unreachable(host, reason),
            Incoming::Lost(reason) => self.lost(host, reason),
            Incoming::Agent(message) => self.agent(host, *message),
        }
    }

    fn agent(&mut self, host: usize, message: FromAgent) {
        match message {
            FromAgent::Ready { facts: _, problems, debts } => self.ready(host, problems, debts),
            FromAgent::Need { hashes } => self.need(host, hashes),
            FromAgent::Event(event) => self.event(host, event),
            FromAgent::Ask { id, ask } => self.ask((host, id), ask),
            FromAgent::Invoked { id, reply } => {
                if let Some((waiter, _)) = self.delegated.remove(&id) {
                    self.answer(vec![(waiter, Answer::Reply(Box::new(reply)))]);
                }
            }
            FromAgent::PlayDone { play: _, end } => self.play_done(host, &end),
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
        let at = &mut self.hosts[host];
        at.problems = problems;
        at.owed.clone_from(&debts);
        // With a single host the play is under way already.
        let alone = self.job.play_hosts.iter().flatten().all(|h| *h == host);
        at.state = if alone && !wrong { State::Playing } else { State::Ready };
        if at.state == State::Playing {
            self.batch = vec![host];
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
            EventKind::End(result) => {
                self.hosts[host].counts.add(&result);
                let failed = result.status == Status::Failed && !result.ignored && !result.rescued;
                if failed && result.result.get("gate").and_then(Value::as_str) == Some("refused") {
                    self.worst(Exit::GateRefused);
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
        let answers = match ask {
            Ask::RunOnce { task } => self.once.reached(task, waiter, &live),
            Ask::RanOnce { task, result, facts } => {
                let mut answers = self.once.done(task, result, facts, &live);
                answers.push((waiter, Answer::Granted));
                answers
            }
            Ask::Turn { handler, serial, gate: _ } => self.turns.ask(handler, serial, waiter),
            Ask::TurnDone { handler, ok } => {
                let name = self.name(host);
                let mut answers = self.turns.done(handler, host, ok, &name);
                answers.push((waiter, Answer::Granted));
                answers
            }
            Ask::Delegate { host, call } => {
                self.delegate(waiter, &host, *call);
                Vec::new()
            }
        };
        self.answer(answers);
    }

    /// A call for another host, or for this machine.
    fn delegate(&mut self, waiter: Waiter, name: &str, call: Call) {
        if name == "localhost" || name == "127.0.0.1" {
            self.here(waiter, call);
            return;
        }
        let Some(host) = self.job.hosts.iter().position(|h| h.name == name) else {
            let names = self.job.hosts.iter().map(|h| h.name.as_str());
            let mut why = format!("delegate_to: there is no host '{name}'");
            if let Some(hint) = rollcall_engine::diag::suggest(name, names) {
                why.push_str(&format!("; {hint}"));
            }
            self.answer(vec![(waiter, Answer::Refused(why))]);
            return;
        };
        let id = self.next_call;
        self.next_call += 1;
        if self.hosts[host].state == State::Idle {
            self.dial(host, None);
        }
        match encode(&ToAgent::Invoke { id, call }) {
            Ok(bytes) => match self.hosts[host].state {
                State::Gone => {
                    let reply = Reply::Unreachable(format!("{name} is not there"));
                    self.answer(vec![(waiter, Answer::Reply(Box::new(reply)))]);
                }
                State::Starting => {
                    self.delegated.insert(id, (waiter, host));
                    self.hosts[host].queued.push(bytes);
                }
                _ => {
                    self.delegated.insert(id, (waiter, host));
                    if let Some(link) = &self.hosts[host].link {
                        let _ = link.send(bytes);
                    }
                }
            },
            Err(why) => self.answer(vec![(waiter, Answer::Refused(why))]),
        }
    }

    /// On the controller's machine: as the user who started it, without become.
    fn here(&mut self, (host, id): Waiter, call: Call) {
        let Some(link) = self.hosts[host].link.clone() else { return };
        // A thread of its own: modules block.
        std::thread::spawn(move || {
            use rollcall_engine::{facts, host::overlay::Overlay, host::real::Real, run::carry_out};
            let facts = facts::gather(&Real::new());
            let mut real = Real::new();
            let reply = if call.check {
                carry_out(&call, &facts, &mut Overlay::new(&real))
            } else {
                carry_out(&call, &facts, &mut real)
            };
            let answer = ToAgent::Answer { id, answer: Answer::Reply(Box::new(reply)) };
            if let Ok(bytes) = encode(&answer) {
                let _ = link.send(bytes);
            }
        });
    }

    fn play_done(&mut self, host: usize, end: &PlayEnd) {
        let state = match end {
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

    /// A host has left the batch: others may have waited for it.
    fn settle(&mut self, host: usize) {
        let live = self.live();
        let name = self.name(host);
        let mut answers = self.once.settle(&live);
        answers.extend(self.turns.gone(host, &name));
        self.answer(answers);
    }

    fn unreachable(&mut self, host: usize, reason: String) {
        self.worst(Exit::Unreachable);
        self.out_of_reach(host, reason, false);
    }

    fn out_of_reach(&mut self, host: usize, reason: String, locked: bool) {
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

    /// Calls that were delegated to a host that is gone.
    fn refuse_calls(&mut self, host: usize) {
        self.hosts[host].queued.clear();
        let why = format!("{} is gone", self.name(host));
        let mut ids: Vec<u64> = self.delegated.iter().filter(|(_, (_, to))| *to == host).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            if let Some((waiter, _)) = self.delegated.remove(&id) {
                let reply = Answer::Reply(Box::new(Reply::Unreachable(why.clone())));
                self.answer(vec![(waiter, reply)]);
            }
        }
    }

    /// A connection ended: fine after the last message, a loss before it.
    fn lost(&mut self, host: usize, reason: String) {
        match self.hosts[host].state {
            State::Starting | State::Playing => self.unreachable(host, reason),
            State::Ready if self.hosts[host].link.is_some() => self.unreachable(host, reason),
            _ => {
                self.hosts[host].state = State::Gone;
                self.hosts[host].link = None;
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

fn encode(message: &ToAgent) -> Result<Bytes, String> {
    Frame::json(message).map(|frame| Arc::new(frame.encode())).map_err(|e| format!("cannot write a message: {e}"))
}

/// Ctrl-C and SIGTERM as messages.
fn signals() -> mpsc::UnboundedReceiver<()> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            tracing::warn!("signals are not heard");
            return;
        };
        loop {
            tokio::select! {
                Some(()) = interrupt.recv() => {}
                Some(()) = terminate.recv() => {}
                else => return,
            }
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    receiver
}
