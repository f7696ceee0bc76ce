//! All hosts of a lab, and what the EC2 API and the verbs do to them.

mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Mutex as StdMutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::block_in_place;

use crate::cloud::{Hypervisor, Instance, State};
use crate::failure::{Failure, nearest};
use crate::host::{self, Disk, HostEnv};
use crate::socket::{Fault, HostStatus};
use crate::{net, ssh_files};

/// How long a host may take from power on until SSH answers.
const BOOT_LIMIT: Duration = Duration::from_mins(2);
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

/// To whom SSH from outside is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opened {
    /// No rule was made yet.
    All,
    /// The rule stands; without a jump host it lets nobody pass.
    Only(Option<Ipv4Addr>),
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
    /// The jump host's address for which the rule that closes SSH was made last.
    ssh_open_to: StdMutex<Opened>,
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
            ssh_open_to: StdMutex::new(Opened::All),
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
        let pid =
            Pid::from_raw(child.id().and_then(|pid| i32::try_from(pid).ok()).context("systemd-nspawn ended at once")?);
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

    /// Keeps the rule about SSH from outside right when the jump host changes.
    fn close_ssh(&self, hosts: &Hosts) -> Result<()> {
        let Some(jump) = &self.jump_host else { return Ok(()) };
        let address = hosts.values().find(|host| host.instance.name == *jump).map(|host| host.instance.address);
        let Ok(mut last) = self.ssh_open_to.lock() else { return Ok(()) };
        if *last != Opened::Only(address) {
            block_in_place(|| net::open_ssh_to(self.env.subnet, address))?;
            *last = Opened::Only(address);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use indexmap::IndexMap;

    fn hosts(list: &[(&str, &str, u8)]) -> Hosts {
        let host = |id: &str, name: &str, last| Host {
            instance: Instance {
                id: id.into(),
                name: name.into(),
                state: State::Running,
                address: Ipv4Addr::new(10, 77, 1, last),
                zone: "us-west-2a".into(),
                region: "us-west-2".into(),
                instance_type: "t3.micro".into(),
                image: "debian-12".into(),
                image_id: "ami-1".into(),
                tags: IndexMap::new(),
                key_name: None,
                public_keys: Vec::new(),
                user_data: None,
                launch_time: String::new(),
            },
            disk: Disk::new(&crate::paths::LabPaths::new("x"), id),
            power: Power::Off(Off::Stopped),
            faults: BTreeSet::new(),
            cuts: BTreeSet::new(),
        };
        list.iter().map(|(id, name, last)| ((*id).to_owned(), host(id, name, *last))).collect()
    }

    #[test]
    fn a_host_is_found_by_all_its_names() {
        let mut hosts = hosts(&[("i-1", "web", 10), ("i-2", "db", 11)]);
        for name in ["db", "i-2", "10.77.1.11", "ip-10-77-1-11"] {
            assert_eq!(find(&mut hosts, name).unwrap().instance.id, "i-2", "{name}");
        }
    }

    #[test]
    fn an_unknown_or_ambiguous_name_is_refused_with_advice() {
        let mut hosts = hosts(&[("i-1", "web", 10), ("i-2", "web", 11), ("i-3", "db-1", 12)]);
        let hint = |error: anyhow::Error| error.downcast::<Failure>().unwrap().hint.unwrap();
        assert_eq!(hint(find(&mut hosts, "web").unwrap_err()), "name one by its id: i-1, i-2");
        assert_eq!(hint(find(&mut hosts, "bd-1").unwrap_err()), "did you mean 'db-1'?");
        assert!(hint(find(&mut hosts, "").unwrap_err()).contains("there are: web"));
    }
}
