//! The dispatcher: the only owner of a run's state. Connections, signals and answers come to it as messages; what it
//! tells goes to the sinks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use rollcall_engine::{
    diag::{Diagnostic, Severity, suggest},
    playbook::model::Play,
    protocol::{Frame, Go, Init, ToAgent, VERSION},
    secrets::redact,
    vars::hosts::Known,
};
use tokio::{sync::mpsc, task::AbortHandle};

use super::{
    Job,
    batches::batches,
    events::{self, Counts, RunEvent, Sink},
    meetings::Meetings,
    order::Order,
    pack::{self, Packed},
    remote::{Bytes, Dialer, Incoming, dial},
    turns::{Once, Turns, Waiter},
};
use crate::exit::Exit;

mod delegation;
mod messages;
mod others;
mod secrets;

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
    /// It took part in a play.
    begun: bool,
    /// What it set that tasks of other hosts ask for.
    kept: BTreeMap<String, Known>,
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
    order: Order,
    meetings: Meetings,
    /// Hosts that wait for what others do: until their ask is answered.
    blocked: HashSet<usize>,
    /// Delegated calls under way: who asked, and who carries it out.
    delegated: HashMap<u64, (Waiter, usize)>,
    next_call: u64,
    /// Hosts that wait for a secret or a certificate, and the work that gets it for them.
    asking: HashMap<Waiter, (secrets::Refuse, AbortHandle)>,
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
            begun: false,
            kept: BTreeMap::new(),
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
            order: Order::default(),
            meetings: Meetings::default(),
            blocked: HashSet::new(),
            delegated: HashMap::new(),
            next_call: 1,
            asking: HashMap::new(),
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
        let clean = redact::active().then(|| redact::scrubbed(event.clone()));
        let event = clean.as_ref().unwrap_or(event);
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

    /// A host of the run by its name.
    fn host_named(&self, name: &str) -> Option<usize> {
        self.job.hosts.iter().position(|host| host.name == name)
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
        self.order = Order::default();
        let parts = batches(hosts, &play.serial);
        let of = parts.len();
        let play_hosts: Vec<String> = hosts.iter().map(|h| self.name(*h)).collect();
        for (number, batch) in parts.into_iter().enumerate() {
            let names: Vec<String> = batch.iter().map(|h| self.name(*h)).collect();
            if of > 1 {
                self.tell(&RunEvent::BatchStart { batch: number + 1, of, hosts: names.clone() });
            }
            self.once = Once::default();
            self.order.begin_batch();
            self.meetings = Meetings::default();
            self.blocked.clear();
            self.batch = batch;
            let go = Go { play: index, batch: names, play_hosts: play_hosts.clone() };
            for host in self.batch.clone() {
                if self.hosts[host].state == State::Ready {
                    self.hosts[host].state = State::Playing;
                    self.hosts[host].begun = true;
                    self.send(host, &ToAgent::Go(go.clone()));
                }
            }
            while self.batch.iter().any(|h| self.hosts[*h].state == State::Playing) {
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
}

/// What a task is told that names a host which is not there.
fn no_host<'n>(keyword: &str, name: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    let hint = suggest(name, known).map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{keyword}: there is no host '{name}'{hint}")
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
