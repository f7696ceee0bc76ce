//! Bringing a lab up and taking it down, whatever state it is in.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cgroup::Cgroups;
use crate::failure::Failure;
use crate::paths::{self, LabPaths};
use crate::record::Record;
use crate::serve::Prepared;
use crate::socket::{self, Request};
use crate::{base, cloud, net, output, run, serve, spec, supervisor};

/// The lab that comes up when no file is named.
const SMALL: &str = include_str!("../small.yaml");

/// How long the supervisor may take until it can be talked to.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Where one of the lab's programs is; made if it is not there yet.
pub(crate) fn program(name: &str) -> Result<std::path::PathBuf> {
    let owner = paths::owner()?;
    let cache = paths::cache_dir(&owner)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    runtime.block_on(serve::program(&cache, &owner, name, &|line| output::note(line)))
}

/// Makes everything that `up` needs and that is made once, and the further programs and Debian packages that are named. Needs the network when
/// something is missing.
pub(crate) fn prepare(further: &[String], packages: &[String]) -> Result<(std::path::PathBuf, Prepared)> {
    run::check_prerequisites()?;
    let owner = paths::owner()?;
    let cache = paths::cache_dir(&owner)?;
    // Side by side: the image waits for the network, the programs for the compiler.
    std::thread::scope(|scope| {
        let image = scope.spawn(|| base::prepare(&owner));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let prepared = runtime.context("cannot start the runtime")?.block_on(serve::prepare(
            &cache,
            &owner,
            further,
            packages,
            &|line| output::note(line),
        ));
        let image = image.join().map_err(|_| anyhow::anyhow!("the making of the image broke off"))?;
        Ok((image?, prepared?))
    })
}

/// What systemd needs at most: a dozen inotify instances a host, and the kernel's default is 128 for all of root's.
const INOTIFY_INSTANCES: u32 = 8192;

/// Hosts share root's inotify instances with everything else on this machine: with too few of them systemd does not come
/// up. The limit is raised, never lowered.
fn raise_inotify_limit() {
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let now: u32 = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u32::MAX);
    if now < INOTIFY_INSTANCES && std::fs::write(path, INOTIFY_INSTANCES.to_string()).is_err() {
        output::note(format!("{path} is {now} and cannot be raised: hosts may fail with 'Too many open files'"));
    }
}

/// `lab up`: returns when every host answers.
pub(crate) fn up(file: Option<&Path>, name: Option<&str>) -> Result<()> {
    let (spec, text) = match file {
        Some(file) => spec::load(file)?,
        None => (spec::parse("the built-in lab", SMALL)?, SMALL.to_owned()),
    };
    if let Some(name) = name {
        spec::check_lab_name(name).map_err(anyhow::Error::msg)?;
    }
    run::check_prerequisites()?;
    let paths = LabPaths::new(name.unwrap_or(&spec.name));
    let cgroups = Cgroups::find()?;
    if is_up(&paths, &cgroups, &text)? {
        output::note(format!("lab '{}' is up already", paths.name));
        return join(&paths, &cgroups);
    }
    raise_inotify_limit();
    let (base, prepared) = prepare(&spec.programs, &spec.packages)?;
    let file = file.map_or_else(|| "the built-in lab".to_owned(), |file| file.display().to_string());
    let mut child = {
        let _lock = paths::lock()?;
        // Another `up` may have been faster while this one prepared.
        if is_up(&paths, &cgroups, &text)? {
            return join(&paths, &cgroups);
        }
        // What a crash left of a lab of this name, and what a half-made `up` leaves.
        clean(&paths, &cgroups)?;
        let started = start(&paths, &cgroups, (file, text, base, prepared));
        match started {
            Ok(child) => child,
            Err(error) => {
                clean(&paths, &cgroups)?;
                return Err(error);
            }
        }
    };
    output::note(format!("starting lab '{}'", paths.name));
    wait_for_socket(&paths, &mut child).and_then(|()| socket::ask_and_tell(&paths, &Request::Ready)).map_err(
        |error| {
            // A lab whose supervisor lives is left for a look at what is wrong; of a dead one nothing is. One that is
            // about to end may answer first.
            let deadline = Instant::now() + Duration::from_secs(1);
            while cgroups.is_alive(&paths.name) {
                if Instant::now() > deadline {
                    return error;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let error =
                last_error(&std::fs::read_to_string(paths.log()).unwrap_or_default()).map_or(error, anyhow::Error::msg);
            let _ = paths::lock().and_then(|_lock| clean(&paths, &cgroups));
            error
        },
    )?;
    advise(&paths)
}

/// Whether a lab of this name runs. An error when it runs from another file.
fn is_up(paths: &LabPaths, cgroups: &Cgroups, text: &str) -> Result<bool> {
    if !cgroups.is_alive(&paths.name) {
        return Ok(false);
    }
    match Record::read(paths) {
        Some(record) if record.text == text => Ok(true),
        Some(record) => {
            let message = format!("a lab '{}' is up already, made from something else ({})", paths.name, record.file);
            Err(Failure::new(message, format!("lab down --name {0}, or give this one another --name", paths.name))
                .into())
        }
        None => Ok(false),
    }
}

/// Takes subnet, folder and namespace, and starts the supervisor in namespaces of its own.
fn start(
    paths: &LabPaths,
    cgroups: &Cgroups,
    (file, text, base, prepared): (String, String, std::path::PathBuf, Prepared),
) -> Result<Child> {
    let taken: BTreeSet<_> =
        paths::labs()?.iter().filter_map(|lab| Record::read(&LabPaths::new(lab))).map(|record| record.subnet).collect();
    let subnet =
        net::free_subnet(&taken).ok_or_else(|| Failure::new("all 254 subnets of labs are taken", "lab down --all"))?;
    let record = Record::new(&paths.name, subnet, paths::owner()?, file, text, base, prepared);
    let spec = record.spec()?;
    let keys: Vec<&str> = spec.keys.iter().map(|key| key.name.as_str()).collect();
    cloud::seed::plan(subnet, &spec.region, &keys, &spec.instances)?;
    let dir = paths.dir();
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    record.write(paths)?;
    net::create_namespace(paths)?;
    let groups: Vec<String> =
        cgroups.make(&paths.name, supervisor::GROUP)?.iter().map(|path| path.display().to_string()).collect();
    let log = std::fs::File::create(paths.log()).with_context(|| format!("cannot write {}", paths.log().display()))?;
    let errors = log.try_clone().with_context(|| format!("cannot write {}", paths.log().display()))?;
    // The shell joins the lab's groups and becomes the next program, and so does each one after it.
    let script =
        "for group in $GROUPS_TO_JOIN; do echo 0 > \"$group\" || exit 1; done; unset GROUPS_TO_JOIN; exec \"$@\"";
    std::process::Command::new("/bin/sh")
        .args(["-c", script, "sh", "setsid", "nsenter"])
        .arg(format!("--net={}", paths.namespace_file().display()))
        .args(["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child=KILL"])
        .arg(std::env::current_exe().context("cannot find this program")?)
        .args(["init", &paths.name])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8")
        .env("GROUPS_TO_JOIN", groups.join(" "))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .context("cannot start the lab's supervisor")
}

/// Waits for a lab that another `up` has started.
fn join(paths: &LabPaths, cgroups: &Cgroups) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while socket::connect(paths).is_err() && cgroups.is_alive(&paths.name) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    socket::ask_and_tell(paths, &Request::Ready)
}

fn wait_for_socket(paths: &LabPaths, child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while socket::connect(paths).is_err() {
        let ended = child.try_wait().context("cannot watch the lab's supervisor")?;
        if ended.is_some() || Instant::now() > deadline {
            let said = std::fs::read_to_string(paths.log()).unwrap_or_default();
            anyhow::bail!("the lab's supervisor does not start: {}", run::last_lines(&said, 3));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Why a supervisor ended: the last error that its log tells, with its causes.
fn last_error(log: &str) -> Option<String> {
    let (_, text) = log.rsplit_once("\nerror: ").or_else(|| log.strip_prefix("error: ").map(|text| ("", text)))?;
    Some(text.trim_end().to_owned())
}

/// What to do next, for a person.
fn advise(paths: &LabPaths) -> Result<()> {
    let status = socket::status(paths)?;
    let host = status.hosts.first().map_or("HOST", |host| &host.name);
    output::note(format!("  lab shell --name {0}      a shell in its network, with its AWS settings", paths.name));
    output::note(format!("  lab ssh --name {0} {host}", paths.name));
    output::note(format!("  lab down --name {0}", paths.name));
    Ok(())
}

/// `lab down`: nothing of the lab is left. Nothing to do is fine.
pub(crate) fn down(name: &str) -> Result<()> {
    run::require_root("taking a lab down")?;
    let paths = LabPaths::new(name);
    let lock = paths::lock()?;
    let was_there = paths.dir().exists() || paths.namespace_file().exists();
    clean(&paths, &Cgroups::find()?)?;
    paths::remove_run_dir(&lock)?;
    output::note(if was_there { format!("lab '{name}' is down") } else { format!("no lab '{name}' is up") });
    Ok(())
}

/// Removes every trace. Each step is fine when there is nothing to remove, so that it works after any crash.
fn clean(paths: &LabPaths, cgroups: &Cgroups) -> Result<()> {
    // First the processes: their mounts and cables go with them.
    cgroups.end(&paths.name, None)?;
    net::delete_namespace(paths)?;
    paths::remove_dir(&paths.dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_why_a_supervisor_ended() {
        let log = "2026 INFO booting\n2026 ERROR error: of a host\nerror: cannot launch\n  because: no such zone\n";
        assert_eq!(last_error(log).as_deref(), Some("cannot launch\n  because: no such zone"));
        assert_eq!(last_error("error: at once\n").as_deref(), Some("at once"));
        assert_eq!(last_error("2026 INFO booting\n"), None);
        assert_eq!(last_error(""), None);
    }
}
