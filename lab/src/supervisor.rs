//! The process that owns a lab: its hosts, its services, its mounts. It runs in PID, mount and network namespaces of
//! the lab's own, so that its death, whatever the cause, takes all of them along.
//!
//! `lab up` starts `unshare … lab init NAME`; that is PID 1, which starts `lab supervise NAME` and buries orphans.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, wait};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::cgroup::Cgroups;
use crate::cloud::{self, Cloud, CloudConfig, Endpoints};
use crate::failure::Failure;
use crate::fleet::{Event, Fleet};
use crate::host::{self, AptSource, HostEnv};
use crate::paths::LabPaths;
use crate::record::Record;
use crate::socket::{Answer, Reply, Request, Status};
use crate::{apt, net};

/// What the directory of a lab's cgroups calls the supervisor and its services.
pub(crate) const GROUP: &str = "supervisor";
/// Where hosts keep the key that signs their packages.
const APT_KEY: &str = "etc/apt/keyrings/rollcall-lab.gpg";

/// PID 1 of a lab: starts the supervisor, waits for every orphan, ends with the supervisor and so ends all.
pub(crate) fn init(name: &str) -> Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let child =
        std::process::Command::new(program).args(["supervise", name]).spawn().context("cannot start the supervisor")?;
    let pid = i32::try_from(child.id()).context("the supervisor has no process id")?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(ended, code)) if ended.as_raw() == pid => return Ok(u8::try_from(code).unwrap_or(1)),
            Ok(WaitStatus::Signaled(ended, _, _)) if ended.as_raw() == pid => return Ok(1),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the supervisor"),
        }
    }
}

/// How far the start has come.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    /// What is being done.
    Starting(&'static str),
    /// Seconds from the start until every host answered, once they did.
    Up(Option<f64>),
}

/// What the connections share.
struct Lab {
    paths: LabPaths,
    record: Record,
    jump_host: Option<String>,
    region: String,
    keys: Vec<String>,
    fleet: Arc<Fleet>,
    cgroups: Cgroups,
    stage: watch::Receiver<Stage>,
}

/// The supervisor. Returns only when the lab cannot go on.
pub(crate) fn supervise(name: &str) -> Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_target(false).with_writer(std::io::stderr).init();
    let paths = LabPaths::new(name);
    let record = Record::of(&paths)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(paths, record))
}

async fn run(paths: LabPaths, record: Record) -> Result<()> {
    let started = Instant::now();
    let spec = record.spec()?;
    let cgroups = Cgroups::find()?;
    let gateway = net::gateway(record.subnet);
    let endpoints = Endpoints::on(gateway);
    let env = HostEnv {
        paths: paths.clone(),
        subnet: record.subnet,
        base: record.base.clone(),
        disk_bytes: spec.disk_bytes,
        cgroups: cgroups.clone(),
        apt: apt_source(&record, &endpoints)?,
    };
    isolate_mounts(&env)?;
    let (events_tx, mut events) = mpsc::unbounded_channel();
    let fleet = Arc::new(Fleet::new(env, spec.jump_host.clone(), events_tx));
    let (stage_tx, stage) = watch::channel(Stage::Starting("setting up the network"));
    let lab = Arc::new(Lab {
        paths: paths.clone(),
        record: record.clone(),
        jump_host: spec.jump_host.clone(),
        region: spec.region.clone(),
        keys: spec.keys.iter().map(|key| key.name.clone()).collect(),
        fleet: Arc::clone(&fleet),
        cgroups,
        stage,
    });
    tokio::spawn(listen(bind(&lab)?, Arc::clone(&lab)));
    net::set_up(record.subnet)?;
    stage_tx.send_replace(Stage::Starting("starting the EC2 API and the services"));
    let config = CloudConfig {
        name: record.name.clone(),
        dir: paths.dir(),
        endpoints,
        subnet: record.subnet,
        region: spec.region,
        keys: spec.keys,
        instances: spec.instances,
        owner: record.owner.clone(),
        prepared: record.prepared.clone(),
        interval: Duration::from_secs(1),
    };
    let mut cloud = cloud::start(config, Arc::clone(&fleet)).await?;
    tracing::info!(seconds = started.elapsed().as_secs_f64(), "services are up, hosts boot");
    stage_tx.send_replace(Stage::Up(None));
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut term =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("cannot catch SIGTERM")?;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    handle(&fleet, &cloud, event).await;
                    note_all_up(&fleet, &stage_tx, started).await;
                }
                None => anyhow::bail!("nobody tells of the hosts any more"),
            },
            _ = tick.tick() => cloud.check()?,
            _ = term.recv() => return cloud.stop().await,
        }
    }
}

/// Sets the time until all were up, once.
async fn note_all_up(fleet: &Fleet, stage: &watch::Sender<Stage>, started: Instant) {
    if *stage.borrow() == Stage::Up(None)
        && let Ok((up, all)) = fleet.progress().await
        && up == all
    {
        stage.send_replace(Stage::Up(Some(started.elapsed().as_secs_f64())));
        tracing::info!(hosts = all, seconds = started.elapsed().as_secs_f64(), "every host answers");
    }
}

async fn handle(fleet: &Fleet, cloud: &Cloud, event: Event) {
    let done = match event {
        Event::Ready => fleet.refresh_ssh_files().await,
        Event::Ended { id, boot, status } => match fleet.ended(&id, boot, status).await {
            Ok(Some(id)) => cloud.powered_off(&id).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        },
        Event::StartAsked { id, done } => {
            // Who asked may have gone away.
            let _ = done.send(cloud.start_instance(&id).await);
            Ok(())
        }
    };
    if let Err(error) = done {
        tracing::error!("{error:#}");
    }
}

/// Makes the mounts of this lab its own, and lets go of those of others.
fn isolate_mounts(env: &HostEnv) -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the mounts private")?;
    // A copy of another lab's namespace file would keep that lab's network alive for as long as this lab lives.
    if let Ok(entries) = std::fs::read_dir("/run/netns") {
        for entry in entries.flatten() {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
    }
    // nspawn keeps locks and sockets there by the container's name, which is unique within a lab only.
    let nspawn = "/run/systemd/nspawn";
    std::fs::create_dir_all(nspawn).with_context(|| format!("cannot make {nspawn}"))?;
    mount(Some("rollcall-lab"), nspawn, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0755"))
        .with_context(|| format!("cannot mount {nspawn}"))?;
    let base = host::base_mount(&env.paths);
    std::fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
    mount(Some(&env.base), &base, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount the image {}", env.base.display()))?;
    // Each container keeps, beneath its own root, a copy of the mounts that it was started from. Those of disks are shared, so
    // that one that is thrown away is so in all containers: otherwise its memory is not given back before the last of them ends.
    let hosts = env.paths.hosts();
    std::fs::create_dir_all(&hosts).with_context(|| format!("cannot make {}", hosts.display()))?;
    mount(Some(&hosts), &hosts, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .and_then(|()| mount(None::<&str>, &hosts, None::<&str>, MsFlags::MS_SHARED, None::<&str>))
        .with_context(|| format!("cannot share the mounts of {}", hosts.display()))
}

fn apt_source(record: &Record, endpoints: &Endpoints) -> Result<AptSource> {
    let key = record.prepared.apt.join("key.gpg");
    Ok(AptSource {
        list: apt::source_line(&format!("http://{}/", endpoints.apt), &format!("/{APT_KEY}")) + "\n",
        key: std::fs::read(&key).with_context(|| format!("cannot read {}", key.display()))?,
        key_file: APT_KEY.to_owned(),
    })
}

/// The socket, for root and the lab's owner.
fn bind(lab: &Lab) -> Result<UnixListener> {
    let path = lab.paths.socket();
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    crate::paths::give(&path, &lab.record.owner)?;
    Ok(listener)
}

async fn listen(listener: UnixListener, lab: Arc<Lab>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let lab = Arc::clone(&lab);
                tokio::spawn(async move {
                    // Whoever asked may have gone away: what was begun is finished all the same.
                    if let Err(error) = serve(stream, &lab).await {
                        tracing::debug!("a connection broke: {error:#}");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, lab: &Lab) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await.context("cannot read the request")?;
    let (progress_tx, mut progress) = mpsc::unbounded_channel();
    let answer = async {
        let request =
            serde_json::from_str(&line).context("this request is not known: is the lab of another version?")?;
        answer(lab, request, progress_tx).await
    };
    tokio::pin!(answer);
    let reply = loop {
        tokio::select! {
            Some(text) = progress.recv() => send(&mut write, &Reply::Progress(text)).await?,
            answer = &mut answer => break match answer {
                Ok(answer) => Reply::Done(answer),
                Err(error) => failed(&error),
            },
        }
    };
    send(&mut write, &reply).await
}

fn failed(error: &anyhow::Error) -> Reply {
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).and_then(|failure| failure.hint.clone());
    Reply::Failed { message: format!("{error:#}"), hint }
}

async fn send(write: &mut tokio::net::unix::OwnedWriteHalf, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply).context("cannot write a reply")?;
    line.push(b'\n');
    write.write_all(&line).await.context("cannot send a reply")
}

async fn answer(lab: &Lab, request: Request, progress: mpsc::UnboundedSender<String>) -> Result<Answer> {
    let fleet = &lab.fleet;
    let text = match request {
        Request::Ready => ready(lab, &progress).await?,
        Request::Status => return Ok(Answer::Status(Box::new(status(lab).await))),
        Request::Find { host } => return Ok(Answer::Host(Box::new(fleet.status(&host).await?))),
        Request::Console { host } => {
            let id = fleet.status(&host).await?.id;
            return Ok(Answer::Console(cloud::Hypervisor::console(fleet.as_ref(), &id)?));
        }
        Request::Kill { host } => fleet.kill(&host).await?,
        Request::Start { host } => fleet.start(&host).await?,
        Request::Reset { host } => fleet.reset(&host).await?,
        Request::Partition { a, b } => fleet.partition(&a, &b).await?,
        Request::Heal => fleet.heal().await?,
        Request::Fault { host, fault } => fleet.fault(&host, fault).await?,
    };
    // A reset host has the same keys, a started one may be new to the files.
    fleet.refresh_ssh_files().await?;
    Ok(Answer::Text(text))
}

/// Waits until the services are up and every host that is on answers, telling each step.
async fn ready(lab: &Lab, progress: &mpsc::UnboundedSender<String>) -> Result<String> {
    let mut stage = lab.stage.clone();
    loop {
        let now = stage.borrow_and_update().clone();
        match now {
            // Nobody listening is no reason to stop.
            Stage::Starting(what) => drop(progress.send(what.to_owned())),
            Stage::Up(_) => break,
        }
        stage.changed().await.context("the supervisor ends")?;
    }
    let mut told = None;
    let deadline = Instant::now() + Duration::from_mins(3);
    loop {
        let (up, all) = lab.fleet.progress().await?;
        if up == all {
            break;
        }
        if told != Some(up) {
            drop(progress.send(format!("booting: {up} of {all} hosts answer on SSH")));
            told = Some(up);
        }
        anyhow::ensure!(Instant::now() < deadline, "only {up} of {all} hosts answer on SSH");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.fleet.refresh_ssh_files().await?;
    let hosts = lab.fleet.progress().await?.1;
    Ok(format!("lab '{}' is up: {hosts} hosts in {}", lab.paths.name, lab.record.subnet))
}

async fn status(lab: &Lab) -> Status {
    let gateway = net::gateway(lab.record.subnet);
    let endpoints = Endpoints::on(gateway);
    let stage = lab.stage.borrow().clone();
    let (state, up_seconds) = match stage {
        Stage::Starting(_) => ("starting", None),
        Stage::Up(None) => ("starting", None),
        Stage::Up(seconds) => ("up", seconds),
    };
    Status {
        name: lab.paths.name.clone(),
        state: state.to_owned(),
        file: lab.record.file.clone(),
        region: lab.region.clone(),
        subnet: lab.record.subnet,
        gateway,
        namespace: lab.paths.namespace(),
        aws_endpoint: format!("http://{}", endpoints.aws),
        mirror: format!("http://{}", endpoints.mirror),
        ssh_config: lab.paths.ssh_config().display().to_string(),
        known_hosts: lab.paths.known_hosts().display().to_string(),
        keys: lab.keys.iter().map(|key| (key.clone(), lab.paths.key(key).display().to_string())).collect(),
        jump_host: lab.jump_host.clone(),
        path: lab.record.prepared.path_folders().iter().map(|path| path.display().to_string()).collect(),
        up_seconds,
        services_memory: lab.cgroups.memory_of(&lab.paths.name, GROUP),
        partitions: lab.fleet.partitions().await,
        hosts: lab.fleet.statuses().await,
    }
}
