//! All hosts of a lab, and what the EC2 API and the verbs do to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Mutex as StdMutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot, watch};
use tokio::task::block_in_place;

use crate::cloud::{Hypervisor, Instance, State};
use crate::failure::{Failure, nearest};
use crate::host::{self, Disk, HostEnv};
use crate::socket::{Fault, HostStatus};
use crate::{net, ssh_files};

/// How long a host may take from power on until SSH answers.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// What `partition` calls the lab's services and everything else that is no host.
pub(crate) const GATEWAY: &str = "gateway";

/// Something that happened to a host by itself.
#[derive(Debug)]
pub(crate) enum Event {
    /// SSH answers for the first time since it was switched on.
    Ready,
    /// The boot with this number is over.
    Ended { id: String, boot: u64, status: Option<ExitStatus> },
    /// Somebody wants this instance, which the API has stopped, to be started there.
    StartAsked { id: String, done: oneshot::Sender<Result<()>> },
}

/// Why a host is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Off {
    /// The EC2 API says so, or it was not booted yet.
    Stopped,
    /// `lab kill`: down until `lab start`.
    Killed,
    /// It shut itself down.
    Itself,
    /// Its container failed.
    Crashed,
}

#[derive(Debug)]
struct Running {
    /// Counts over all hosts, so that news of an earlier boot is known as such.
    boot: u64,
    /// Of nspawn.
    pid: Pid,
    ended: watch::Receiver<bool>,
    /// Time until SSH answered.
    ready: watch::Receiver<Option<Duration>>,
}

#[derive(Debug)]
enum Power {
    On(Running),
    Off(Off),
}

#[derive(Debug)]
struct Host {
    instance: Instance,
    disk: Disk,
    power: Power,
    faults: BTreeSet<Fault>,
    cuts: BTreeSet<Ipv4Addr>,
}

type Hosts = BTreeMap<String, Host>;

/// The hypervisor of a lab.
#[derive(Debug)]
pub(crate) struct Fleet {
    env: HostEnv,
    /// Name of the instance that alone answers SSH from outside.
    jump_host: Option<String>,
    hosts: Mutex<Hosts>,
    /// Pairs of instance ids, or [`GATEWAY`].
    partitions: StdMutex<BTreeSet<(String, String)>>,
    /// What the rule that closes SSH was made for last.
    ssh_open_to: StdMutex<Option<Option<Ipv4Addr>>>,
    boots: std::sync::atomic::AtomicU64,
    events: mpsc::UnboundedSender<Event>,
}

impl Hypervisor for Fleet {
    async fn reconcile(&self, instances: &[Instance]) -> Result<()> {
        let mut hosts = self.hosts.lock().await;
        let wanted: BTreeMap<&str, &Instance> =
            instances.iter().filter(|i| i.state != State::Terminated).map(|i| (i.id.as_str(), i)).collect();
        let gone: Vec<String> = hosts.keys().filter(|id| !wanted.contains_key(id.as_str())).cloned().collect();
        let to_stop = |id: &String| wanted.get(id.as_str()).is_none_or(|i| i.state == State::Stopped);
        let stopping: Vec<String> = hosts.keys().filter(|id| to_stop(id)).cloned().collect();
        self.shut_down(&mut hosts, &stopping).await?;
        for id in &gone {
            if let Some(host) = hosts.remove(id) {
                tracing::info!(id, name = host.instance.name, "removed");
                block_in_place(|| host.disk.remove())?;
            }
        }
        let mut failed = Vec::new();
        for (id, instance) in wanted {
            if let Err(error) = self.follow(&mut hosts, id, instance) {
                failed.push(format!("{id} ({}): {error:#}", instance.name));
            }
        }
        self.close_ssh(&hosts)?;
        if !gone.is_empty() {
            self.write_ssh_files(&hosts)?;
        }
        if failed.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("cannot boot {}", failed.join("; "))) }
    }

    fn console(&self, id: &str) -> Result<String> {
        // Of the files alone, so that nobody waits for a host that is being stopped.
        host::read_console(&Disk::new(&self.env.paths, id).console())
    }
}

impl Fleet {
    pub(crate) fn new(env: HostEnv, jump_host: Option<String>, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            env,
            jump_host,
            hosts: Mutex::new(BTreeMap::new()),
            partitions: StdMutex::new(BTreeSet::new()),
            ssh_open_to: StdMutex::new(None),
            boots: std::sync::atomic::AtomicU64::new(0),
            events,
        }
    }

    /// Brings one host to what the API says, stops apart.
    fn follow(&self, hosts: &mut Hosts, id: &str, instance: &Instance) -> Result<()> {
        let host = hosts.entry(id.to_owned()).or_insert_with(|| Host {
            instance: instance.clone(),
            disk: Disk::new(&self.env.paths, id),
            power: Power::Off(Off::Stopped),
            faults: BTreeSet::new(),
            cuts: BTreeSet::new(),
        });
        if host.instance != *instance {
            host.instance = instance.clone();
        }
        match (instance.state, &host.power) {
            (State::Running, Power::Off(Off::Stopped)) => self.boot(host),
            // Whatever switched it off: the API has now stopped it, so a start by the API counts.
            (State::Stopped, Power::Off(_)) => {
                host.power = Power::Off(Off::Stopped);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Switches a host on.
    fn boot(&self, host: &mut Host) -> Result<()> {
        let booted = block_in_place(|| {
            host.disk.make(&self.env)?;
            host::seed(&self.env, &host.disk, &host.instance)?;
            host::start(&self.env, &host.disk, &host.instance)
        });
        let mut child = match booted {
            Ok(child) => child,
            Err(error) => {
                // Not tried again every second: `lab start` does.
                host.power = Power::Off(Off::Crashed);
                return Err(error);
            }
        };
        let number = self.boots.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let pid = Pid::from_raw(child.id().and_then(|pid| i32::try_from(pid).ok()).context("systemd-nspawn ended at once")?);
        let (ended_tx, ended) = watch::channel(false);
        let (ready_tx, ready) = watch::channel(None);
        let (events, id) = (self.events.clone(), host.instance.id.clone());
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            ended_tx.send_replace(true);
            // Nobody listens any more only when the whole lab ends.
            let _ = events.send(Event::Ended { id, boot: number, status });
        });
        self.watch_boot(host, ended.clone(), ready_tx);
        tracing::info!(id = host.instance.id, name = host.instance.name, address = %host.instance.address, "booting");
        host.power = Power::On(Running { boot: number, pid, ended, ready });
        Ok(())
    }

    /// Waits in a thread of its own, inside the host's network namespace, until SSH answers there.
    fn watch_boot(&self, host: &Host, ended: watch::Receiver<bool>, ready: watch::Sender<Option<Duration>>) {
        let (id, address, cuts) = (host.instance.id.clone(), host.instance.address, host.cuts.clone());
        let (cgroups, lab, events) = (self.env.cgroups.clone(), self.env.paths.name.clone(), self.events.clone());
        let started = Instant::now();
        std::thread::spawn(move || {
            let over = || *ended.borrow() || started.elapsed() > BOOT_LIMIT;
            let init = loop {
                if over() {
                    return;
                }
                if let Some(init) = cgroups.init_of(&lab, &id) {
                    break init;
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            if !cuts.is_empty()
                && let Err(error) = net::cut_off(init, &cuts)
            {
                tracing::error!(id, "cannot partition a host that boots: {error:#}");
            }
            let namespace = PathBuf::from(format!("/proc/{init}/ns/net"));
            let answered = net::in_namespace(&namespace, || {
                while !over() {
                    if net::ssh_answers(address) {
                        return Ok(true);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(false)
            });
            match answered {
                Ok(true) => {
                    ready.send_replace(Some(started.elapsed()));
                    let _ = events.send(Event::Ready);
                }
                Ok(false) => {}
                Err(error) => tracing::error!(id, "cannot watch a host's boot: {error:#}"),
            }
        });
    }

    /// The power button: all of them at once, and who does not obey in time has its power cut.
    async fn shut_down(&self, hosts: &mut Hosts, ids: &[String]) -> Result<()> {
        for id in ids {
            if let Some(Host { power: Power::On(running), .. }) = hosts.get(id) {
                let _ = kill(running.pid, Signal::SIGTERM);
            }
        }
        let deadline = tokio::time::Instant::now() + host::SHUTDOWN_LIMIT;
        for id in ids {
            let Some(host) = hosts.get_mut(id) else { continue };
            let Power::On(running) = &mut host.power else { continue };
            if tokio::time::timeout_at(deadline, running.ended.wait_for(|ended| *ended)).await.is_err() {
                tracing::warn!(id, "does not shut down: power cut");
            }
            self.cut_power(host, Off::Stopped).await?;
        }
        Ok(())
    }

    /// Ends every process of a host at once. The disk stays as it is.
    async fn cut_power(&self, host: &mut Host, why: Off) -> Result<()> {
        let id = host.instance.id.clone();
        if let Power::On(running) = &mut host.power {
            if !*running.ended.borrow() {
                let _ = kill(running.pid, Signal::SIGKILL);
            }
            let ended = tokio::time::timeout(Duration::from_secs(10), running.ended.wait_for(|ended| *ended)).await;
            block_in_place(|| self.env.cgroups.end(&self.env.paths.name, Some(&id)))?;
            anyhow::ensure!(ended.is_ok(), "the container of {id} does not end");
        }
        host.power = Power::Off(why);
        // They are gone with the mount namespace in which they were made.
        host.faults.remove(&Fault::ReadOnly);
        Ok(())
    }

    /// Takes notice of a host that ended by itself. Some(id): the API must be told that it is off.
    pub(crate) async fn ended(&self, id: &str, boot: u64, status: Option<ExitStatus>) -> Result<Option<String>> {
        let mut hosts = self.hosts.lock().await;
        let Some(host) = hosts.get_mut(id) else { return Ok(None) };
        if !matches!(&host.power, Power::On(running) if running.boot == boot) {
            return Ok(None);
        }
        let code = status.and_then(|status| status.code());
        let why = if code == Some(0) || code == Some(host::REBOOT) { Off::Itself } else { Off::Crashed };
        self.cut_power(host, why).await?;
        if code == Some(host::REBOOT) {
            tracing::info!(id, "reboots");
            self.boot(host)?;
            return Ok(None);
        }
        tracing::info!(id, ?status, "is down by itself");
        Ok((why == Off::Itself).then(|| id.to_owned()))
    }

    /// `lab kill`.
    pub(crate) async fn kill(&self, name: &str) -> Result<String> {
        let mut hosts = self.hosts.lock().await;
        let host = find(&mut hosts, name)?;
        if let Power::Off(_) = host.power {
            return Ok(format!("{} is down already", host.instance.name));
        }
        self.cut_power(host, Off::Killed).await?;
        Ok(format!("{} is down: its power was cut", host.instance.name))
    }

    /// `lab start`. What the API has stopped is started there: else the two would say different things.
    pub(crate) async fn start(&self, name: &str) -> Result<String> {
        let mut hosts = self.hosts.lock().await;
        let host = find(&mut hosts, name)?;
        match host.power {
            Power::On(_) => {}
            Power::Off(_) if host.instance.state == State::Running => self.boot(host)?,
            Power::Off(_) => {
                let id = host.instance.id.clone();
                drop(hosts);
                let (done, answer) = oneshot::channel();
                self.events.send(Event::StartAsked { id, done }).context("the lab is ending")?;
                answer.await.context("the lab is ending")??;
                hosts = self.hosts.lock().await;
            }
        }
        self.when_up(hosts, name).await
    }

    /// `lab reset`: an empty disk over the image, the same identity (address, host keys, machine id).
    pub(crate) async fn reset(&self, name: &str) -> Result<String> {
        let mut hosts = self.hosts.lock().await;
        let host = find(&mut hosts, name)?;
        if host.instance.state != State::Running {
            let message = format!("{} was stopped through the EC2 API", host.instance.name);
            return Err(Failure::new(message, format!("lab start {}", host.instance.name)).into());
        }
        let keys = host.disk.ssh_keys();
        self.cut_power(host, Off::Killed).await?;
        host.faults.clear();
        block_in_place(|| {
            host.disk.discard()?;
            host.disk.make(&self.env)?;
            host.disk.put_ssh_keys(&keys)
        })?;
        self.boot(host)?;
        self.when_up(hosts, name).await
    }

    /// Lets go of the hosts, and waits until one of them answers.
    async fn when_up(&self, mut hosts: MutexGuard<'_, Hosts>, name: &str) -> Result<String> {
        let host = find(&mut hosts, name)?;
        let (name, id) = (host.instance.name.clone(), host.instance.id.clone());
        let Power::On(running) = &host.power else { anyhow::bail!("{name} is down") };
        let (mut ready, mut ended) = (running.ready.clone(), running.ended.clone());
        drop(hosts);
        let up = async { ready.wait_for(Option::is_some).await.map(|took| took.unwrap_or_default()).ok() };
        let down = async { ended.wait_for(|ended| *ended).await.is_ok() };
        tokio::select! {
            took = up => {
                if let Some(took) = took {
                    return Ok(format!("{name} is up after {:.1} s", took.as_secs_f64()));
                }
            }
            _ = down => {}
            () = tokio::time::sleep(BOOT_LIMIT) => {}
        }
        Err(self.no_boot(&name, &id))
    }

    fn no_boot(&self, name: &str, id: &str) -> anyhow::Error {
        let disk = Disk::new(&self.env.paths, id);
        let said = [disk.console(), disk.log()].iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect::<String>();
        let message = format!("{name} ({id}) does not come up: {}", crate::run::last_lines(&said, 3));
        Failure::new(message, format!("lab console {id}")).into()
    }

    /// How many of the hosts that are on answer, and how many there are; an error when one of them went down.
    pub(crate) async fn progress(&self) -> Result<(usize, usize)> {
        let hosts = self.hosts.lock().await;
        let mut answer = (0, 0);
        for host in hosts.values() {
            match &host.power {
                Power::On(running) => {
                    answer.1 += 1;
                    answer.0 += usize::from(running.ready.borrow().is_some());
                }
                Power::Off(Off::Crashed) => return Err(self.no_boot(&host.instance.name, &host.instance.id)),
                Power::Off(_) => {}
            }
        }
        Ok(answer)
    }

    /// `lab fault`; `None` clears all.
    pub(crate) async fn fault(&self, name: &str, fault: Option<Fault>) -> Result<String> {
        let mut hosts = self.hosts.lock().await;
        let host = find(&mut hosts, name)?;
        let init = self.env.cgroups.init_of(&self.env.paths.name, &host.instance.id);
        let down = || Failure::new(format!("{} is down", host.instance.name), format!("lab start {}", host.instance.name));
        // Noted first, so that `clear` also mends what breaks off half-way.
        host.faults.extend(fault);
        match fault {
            Some(Fault::DiskFull) => block_in_place(|| host.disk.limit(&self.env, true))?,
            Some(Fault::ReadOnly) => {
                let init = init.ok_or_else(down)?;
                block_in_place(|| host::set_read_only(init, true))?;
            }
            None => {
                if host.faults.contains(&Fault::DiskFull) {
                    block_in_place(|| host.disk.limit(&self.env, false))?;
                }
                if let (true, Some(init)) = (host.faults.contains(&Fault::ReadOnly), init) {
                    block_in_place(|| host::set_read_only(init, false))?;
                }
            }
        }
        let name = &host.instance.name;
        match fault {
            Some(fault) => Ok(format!("{name}: {}", fault.name())),
            None => {
                host.faults.clear();
                Ok(format!("{name}: no faults"))
            }
        }
    }

    /// `lab partition`: every one of `a` from every one of `b`.
    pub(crate) async fn partition(&self, a: &[String], b: &[String]) -> Result<String> {
        let mut hosts = self.hosts.lock().await;
        let mut ids = |names: &[String]| -> Result<Vec<String>> {
            let id = |name: &String| match name.as_str() {
                GATEWAY => Ok(GATEWAY.to_owned()),
                name => find(&mut hosts, name).map(|host| host.instance.id.clone()),
            };
            names.iter().map(id).collect()
        };
        let (names_a, names_b) = (a.join(", "), b.join(", "));
        let (a, b) = (ids(a)?, ids(b)?);
        if let Some(both) = a.iter().find(|id| b.contains(id)) {
            return Err(Failure::new(format!("{both} stands on both sides"), "name two different sides").into());
        }
        if let Ok(mut pairs) = self.partitions.lock() {
            for (one, other) in a.iter().flat_map(|one| b.iter().map(move |other| (one, other))) {
                pairs.insert((one.min(other).clone(), one.max(other).clone()));
            }
        }
        self.cut(&mut hosts)?;
        Ok(format!("{names_a} and {names_b} hear nothing of each other"))
    }

    /// `lab heal`: all partitions end.
    pub(crate) async fn heal(&self) -> Result<String> {
        let mut hosts = self.hosts.lock().await;
        if let Ok(mut pairs) = self.partitions.lock() {
            pairs.clear();
        }
        self.cut(&mut hosts)?;
        Ok("no partitions".to_owned())
    }

    fn pairs(&self) -> BTreeSet<(String, String)> {
        self.partitions.lock().map(|pairs| pairs.clone()).unwrap_or_default()
    }

    /// Makes the hosts' rules those of the partitions.
    fn cut(&self, hosts: &mut Hosts) -> Result<()> {
        let pairs = self.pairs();
        let addresses: BTreeMap<String, Ipv4Addr> = hosts
            .iter()
            .map(|(id, host)| (id.clone(), host.instance.address))
            .chain([(GATEWAY.to_owned(), net::gateway(self.env.subnet))])
            .collect();
        for (id, host) in hosts.iter_mut() {
            let others = pairs.iter().filter_map(|(one, other)| match (one == id, other == id) {
                (true, _) => addresses.get(other).copied(),
                (_, true) => addresses.get(one).copied(),
                _ => None,
            });
            let mut cuts: BTreeSet<Ipv4Addr> = others.collect();
            if cuts.contains(&net::gateway(self.env.subnet)) {
                // The metadata service is on the same side.
                cuts.insert(Ipv4Addr::new(169, 254, 169, 254));
            }
            if cuts != host.cuts {
                let init = self.env.cgroups.init_of(&self.env.paths.name, id);
                block_in_place(|| host::apply_cuts(init, &cuts))?;
                host.cuts = cuts;
            }
        }
        Ok(())
    }

    /// Keeps the rule about SSH from outside right when the jump host changes.
    fn close_ssh(&self, hosts: &Hosts) -> Result<()> {
        let Some(jump) = &self.jump_host else { return Ok(()) };
        let address = hosts.values().find(|host| host.instance.name == *jump).map(|host| host.instance.address);
        let Ok(mut last) = self.ssh_open_to.lock() else { return Ok(()) };
        if *last != Some(address) {
            block_in_place(|| net::open_ssh_to(self.env.subnet, address))?;
            *last = Some(address);
        }
        Ok(())
    }

    /// Every host, by name.
    pub(crate) async fn statuses(&self) -> Vec<HostStatus> {
        let hosts = self.hosts.lock().await;
        self.list(&hosts)
    }

    pub(crate) async fn status(&self, name: &str) -> Result<HostStatus> {
        let mut hosts = self.hosts.lock().await;
        find(&mut hosts, name).map(|host| self.describe(host))
    }

    /// Partitions by the names of the hosts.
    pub(crate) async fn partitions(&self) -> Vec<(String, String)> {
        let hosts = self.hosts.lock().await;
        let name = |id: &String| hosts.get(id).map_or_else(|| id.clone(), |host| host.instance.name.clone());
        self.pairs().iter().map(|(one, other)| (name(one), name(other))).collect()
    }

    fn list(&self, hosts: &Hosts) -> Vec<HostStatus> {
        let mut list: Vec<HostStatus> = hosts.values().map(|host| self.describe(host)).collect();
        list.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        list
    }

    fn describe(&self, host: &Host) -> HostStatus {
        let took = match &host.power {
            Power::On(running) => *running.ready.borrow(),
            Power::Off(_) => None,
        };
        let state = match &host.power {
            Power::On(_) if took.is_some() => "up",
            Power::On(_) => "booting",
            Power::Off(Off::Stopped) => "stopped",
            Power::Off(Off::Killed) => "killed",
            Power::Off(Off::Itself) => "off",
            Power::Off(Off::Crashed) => "crashed",
        };
        HostStatus {
            name: host.instance.name.clone(),
            id: host.instance.id.clone(),
            address: host.instance.address,
            hostname: net::hostname(host.instance.address),
            state: state.to_owned(),
            boot_seconds: took.map(|took| took.as_secs_f64()),
            zone: host.instance.zone.clone(),
            instance_type: host.instance.instance_type.clone(),
            key: host.instance.key_name.clone(),
            tags: host.instance.tags.clone(),
            faults: host.faults.iter().copied().collect(),
            host_keys: host::read_console(&host.disk.console()).map(|text| host::host_keys(&text)).unwrap_or_default(),
            memory: self.env.cgroups.memory_of(&self.env.paths.name, &host.instance.id),
        }
    }

    fn write_ssh_files(&self, hosts: &Hosts) -> Result<()> {
        ssh_files::write(&self.env.paths, self.jump_host.as_deref(), &self.list(hosts))
    }

    /// Brings the files for SSH clients up to date.
    pub(crate) async fn refresh_ssh_files(&self) -> Result<()> {
        let hosts = self.hosts.lock().await;
        self.write_ssh_files(&hosts)
    }
}

/// A host by instance id, name, address or host name.
fn find<'a>(hosts: &'a mut Hosts, given: &str) -> Result<&'a mut Host> {
    let is_meant = |host: &Host| {
        let instance = &host.instance;
        instance.name == given
            || instance.id == given
            || instance.address.to_string() == given
            || net::hostname(instance.address) == given
    };
    let found: Vec<String> = hosts.iter().filter(|(_, host)| is_meant(host)).map(|(id, _)| id.clone()).collect();
    match found.as_slice() {
        [id] => {
            let id = id.clone();
            hosts.get_mut(&id).context("the host is gone")
        }
        [] => {
            let names: Vec<&str> = hosts.values().map(|host| host.instance.name.as_str()).collect();
            let hint = match nearest(given, names.iter().copied()) {
                Some(name) => format!("did you mean '{name}'?"),
                None if names.is_empty() => "the lab has no hosts now".to_owned(),
                None => format!("there are: {}", names.join(", ")),
            };
            Err(Failure::new(format!("no host is called '{given}'"), hint).into())
        }
        several => {
            let hint = format!("name one by its id: {}", several.join(", "));
            Err(Failure::new(format!("{} hosts are called '{given}'", several.len()), hint).into())
        }
    }
}
