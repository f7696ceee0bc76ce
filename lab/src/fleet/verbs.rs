//! What the verbs do to hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use tokio::sync::{MutexGuard, oneshot};
use tokio::task::block_in_place;

use super::{BOOT_LIMIT, Event, Fleet, GATEWAY, Hosts, Off, Power, find};
use crate::cloud::State;
use crate::failure::Failure;
use crate::host::{self, Disk};
use crate::net;
use crate::socket::{Fault, HostStatus};

impl Fleet {
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
        let said = [disk.console(), disk.log()]
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect::<String>();
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
        let down =
            || Failure::new(format!("{} is down", host.instance.name), format!("lab start {}", host.instance.name));
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
}
