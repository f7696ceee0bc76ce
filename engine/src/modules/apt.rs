//! Running apt-get: locks waited for, interrupted installations repaired, errors read.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Cx, Failure,
    steps::{ended, text},
};
use crate::host::{Command, Effect, FileKind, Output, Ran, Read, Write};

/// Where apt keeps its index; its time says when it was refreshed.
const LISTS: &str = "/var/lib/apt/lists";

/// Pause between two looks at a lock that another program holds.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// How apt-get is called.
#[derive(Clone, Debug, Default)]
pub(super) struct Apt {
    /// The task's environment.
    pub(super) environment: Vec<(String, String)>,
    /// How long a lock is waited for.
    pub(super) lock_timeout: Duration,
}

/// Refuses other families than Debian's.
pub(super) fn check_family(cx: &Cx<'_>) -> Result<(), Failure> {
    match cx.facts["os"]["family"].as_str() {
        Some("debian") | None => Ok(()),
        Some(other) => Err(Failure::new(format!(
            "this release handles packages by apt only, and this host is of the family {other}"
        ))
        .hint("use the command module, with `creates`, until then")),
    }
}

impl Apt {
    pub(super) fn command(&self, words: &[String]) -> Command {
        let fixed = [
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("DEBIAN_PRIORITY", "critical"),
            ("APT_LISTCHANGES_FRONTEND", "none"),
            // It would restart services on its own, in the middle of a run.
            ("NEEDRESTART_SUSPEND", "1"),
        ];
        let mut env: Vec<(String, String)> = fixed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        env.extend(self.environment.iter().cloned());
        // Without a terminal dpkg draws no progress into the output.
        let options = ["Dpkg::Use-Pty=0", "Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold"];
        let argv = ["apt-get", "-q", "-y"].into_iter().chain(options.into_iter().flat_map(|option| ["-o", option]));
        Command { env, ..Command::new(argv.map(str::to_owned).chain(words.iter().cloned())) }
    }

    /// Runs apt-get. Waits for locks, and repairs what an interrupted run left.
    pub(super) fn run(&self, host: &mut dyn Write, words: &[String], effects: &[Effect]) -> Result<Ran, Failure> {
        let command = self.command(words);
        let deadline = Instant::now() + self.lock_timeout;
        let mut repaired = false;
        loop {
            let output = match host.run(&command, effects)? {
                Ran::Done(output) if output.code != 0 => output,
                other => return Ok(other),
            };
            let said = text(&output.stderr);
            if let Some(lock) = said.lines().find(|line| is_lock(line)) {
                if Instant::now() < deadline {
                    thread::sleep(LOCK_PAUSE.min(deadline.saturating_duration_since(Instant::now())));
                    continue;
                }
                return Err(with_output(Failure::new(held(lock, self.lock_timeout)), &output)
                    .hint("raise `lock_timeout`, or see what that program is doing"));
            }
            let interrupted = said.contains("dpkg was interrupted");
            let broken = said.contains("--fix-broken install") || said.contains("-f install");
            if repaired || !(interrupted || broken) {
                return Err(explain(words, &output));
            }
            repaired = true;
            self.repair(host, interrupted)?;
        }
    }

    fn repair(&self, host: &mut dyn Write, interrupted: bool) -> Result<(), Failure> {
        let command = if interrupted {
            let apt = self.command(&[]);
            Command {
                env: apt.env,
                ..Command::new(["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"])
            }
        } else {
            self.command(&["--fix-broken".to_owned(), "install".to_owned()])
        };
        super::steps::run(host, &command, &[Effect::Other]).map(|_| ())
    }

    /// Refreshes the index.
    pub(super) fn update(&self, host: &mut dyn Write) -> Result<Ran, Failure> {
        // Without this mode an index that could not be fetched is only a warning.
        let words = ["-o", "Acquire::Retries=3", "-o", "APT::Update::Error-Mode=any", "update"];
        let ran = self.run(host, &words.map(str::to_owned), &[Effect::Other])?;
        if matches!(ran, Ran::Done(_)) && host.meta(Path::new(LISTS)).ok().flatten().is_some() {
            // apt leaves the time as it is where nothing new came; then the next run would refresh again.
            host.touch(Path::new(LISTS))?;
        }
        Ok(ran)
    }
}

fn is_lock(line: &str) -> bool {
    line.starts_with("E: ") && (line.contains("Could not get lock") || line.contains("is another process using it"))
}

/// `the lock /var/lib/dpkg/lock-frontend is still held by process 77 (apt-get) after 60 s`.
fn held(line: &str, waited: Duration) -> String {
    let path = line.split_whitespace().find(|word| word.starts_with('/')).unwrap_or("of dpkg").trim_end_matches('.');
    let by = line.split_once("held by ").map_or("another program", |(_, by)| by.trim_end_matches('.'));
    format!("the lock {path} is still held by {by} after {} s", waited.as_secs())
}

fn with_output(failure: Failure, output: &Output) -> Failure {
    failure.with("rc", output.code).with("stdout", text(&output.stdout)).with("stderr", text(&output.stderr))
}

/// The failure of apt-get, in its own words.
fn explain(words: &[String], output: &Output) -> Failure {
    let said = text(&output.stderr);
    let mut errors: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    errors.dedup();
    let verb = words.iter().find(|w| ["update", "install", "remove", "purge"].contains(&w.as_str()));
    let verb = verb.map_or("apt-get", String::as_str);
    let reason = if errors.is_empty() { ended(output.code) } else { errors.join("; ") };
    let failure = Failure { changed: verb != "update", ..Failure::new(format!("apt-get {verb}: {reason}")) };
    let failure = with_output(failure, output);
    if said.contains("--allow-downgrades") {
        failure.hint("give `allow_downgrade: true`")
    } else if said.contains("--allow-change-held-packages") {
        failure.hint("give `allow_change_held_packages: true`, or release the package with apt-mark unhold")
    } else if said.contains("NO_PUBKEY") || said.contains("is not signed") {
        failure.hint("the repository's key is missing: give `signed_by`")
    } else {
        failure
    }
}

/// When the index was refreshed; `None` where there is none.
fn index_time(host: &dyn Read) -> Option<SystemTime> {
    let lists = Path::new(LISTS);
    let has_index = host.list(lists).ok()?.iter().any(|name| {
        let name = name.to_string_lossy();
        name.contains("_Packages") || name.ends_with("Release")
    });
    let stamp = host.meta(Path::new("/var/lib/apt/periodic/update-success-stamp")).ok().flatten();
    let folder = host.meta(lists).ok().flatten().filter(|meta| meta.kind == FileKind::Directory);
    [stamp, folder].into_iter().flatten().map(|meta| meta.modified).max().filter(|_| has_index)
}

/// True if the index is older than this; with `None` only if a source is newer than it, or there is none.
pub(super) fn is_stale(host: &dyn Read, valid: Option<Duration>) -> bool {
    let Some(index) = index_time(host) else { return true };
    let folder = Path::new("/etc/apt/sources.list.d");
    let files = host.list(folder).unwrap_or_default().into_iter().map(|name| folder.join(name));
    let is_source = |path: &Path| path.extension().is_some_and(|e| e == "sources" || e == "list");
    let newest = std::iter::once("/etc/apt/sources.list".into())
        .chain(files.filter(|path| is_source(path)))
        .filter_map(|path: std::path::PathBuf| host.meta(&path).ok().flatten())
        .map(|meta| meta.modified)
        .max();
    newest.is_some_and(|time| time > index)
        || valid.is_some_and(|valid| host.now().duration_since(index).unwrap_or_default() >= valid)
}
