//! `service`: units of systemd, started, stopped, enabled.

use std::{path::Path, thread, time::Duration};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    steps::{run, text},
};
use crate::{
    args, choice,
    host::{Command, Effect, FileKind, Ran, Read, Unit, Write},
};

choice!(
    /// What the unit does.
    State { Started = "started", Stopped = "stopped", Restarted = "restarted", Reloaded = "reloaded" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The unit; without a suffix `.service` is meant. Not needed for `daemon_reload` alone.
        name ["service", "unit"]: Option<String>;
        /// `started` and `stopped` do nothing where it is so; `restarted` always restarts; `reloaded` reloads, or starts. A unit
        /// is started also where systemd would refuse it, because it was started too often (`StartLimitBurst`).
        state []: Option<State>;
        /// Whether it starts with the machine.
        enabled []: Option<bool>;
        /// Whether it is masked, so that nothing can start it.
        masked []: Option<bool>;
        /// Read unit files again first. Done by itself where systemd says that the unit's file has changed.
        daemon_reload ["daemon-reload"]: bool = false;
        /// How long a unit that has just been started must stay active, in seconds.
        settle []: Duration = SETTLE;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "service",
    aliases: &["systemd", "systemd_service"],
    summary: "Starts, stops, restarts, enables and masks units of systemd",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[
        ("name", "The unit, with its suffix."),
        ("state", "`started` or `stopped`, where the call asked for one."),
        ("enabled", "Whether it starts at boot, where the call asked for it."),
        ("active", "systemd's `ActiveState` after a change."),
        ("sub", "systemd's `SubState` after a change."),
        ("main_pid", "Its main process after a change."),
        ("status", "Of a failure: what `systemctl status` says."),
        ("journal", "Of a failure: the last lines of its journal."),
    ]],
    example: "- name: Consul runs\n  service:\n    name: consul\n    state: started\n    enabled: true\n",
    plan,
};

/// How long a unit that has just been started must stay active, unless the task says otherwise.
const SETTLE: Duration = Duration::from_millis(500);

/// Suffixes of units.
const SUFFIXES: &[&str] =
    &["service", "socket", "timer", "path", "mount", "automount", "target", "slice", "scope", "swap", "device"];

/// Where unit files are.
const FOLDERS: &[&str] = &[
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let Some(name) = &args.name else {
        if !args.daemon_reload || args.state.is_some() || args.enabled.is_some() || args.masked.is_some() {
            return Err(Failure::new("argument 'name' is missing").hint("only `daemon_reload` works without it"));
        }
        let call = Call { name: String::new(), actions: vec![Action::DaemonReload], ..Call::default() };
        return Ok(Plan::Change(Box::new(call)));
    };
    let name = unit_name(name)?;
    let unit = cx.host.unit(&name)?;
    plan_unit(&name, &unit, &args, cx.host)
}

/// The plan that restarts a unit.
pub(super) fn restarting(name: &str, host: &dyn Read) -> Result<Plan, Failure> {
    let name = unit_name(name)?;
    let args = Args {
        name: None,
        state: Some(State::Restarted),
        enabled: None,
        masked: None,
        daemon_reload: false,
        settle: SETTLE,
    };
    plan_unit(&name, &host.unit(&name)?, &args, host)
}

/// The name with its suffix.
pub(super) fn unit_name(name: &str) -> Result<String, Failure> {
    let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if name.is_empty() || name.len() > 255 || name.starts_with('-') || !name.chars().all(good) {
        return Err(Failure::new(format!("'{}' is no name for a unit", name.escape_debug()))
            .hint("letters, digits and :-_.\\@"));
    }
    match name.rsplit_once('.') {
        Some((_, suffix)) if SUFFIXES.contains(&suffix) => Ok(name.to_owned()),
        _ => Ok(format!("{name}.service")),
    }
}

/// What is done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Unmask,
    Mask,
    DaemonReload,
    Enable,
    Disable,
    Start,
    Stop,
    Restart,
    Reload,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Unmask => "unmask",
            Self::Mask => "mask",
            Self::DaemonReload => "daemon-reload",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }

    /// The unit afterwards.
    fn after(self, mut unit: Unit) -> Unit {
        match self {
            Self::Unmask => unit.enabled = "disabled".into(),
            Self::Mask => unit.enabled = "masked".into(),
            Self::DaemonReload => unit.needs_reload = false,
            Self::Enable => unit.enabled = "enabled".into(),
            Self::Disable => unit.enabled = "disabled".into(),
            Self::Start | Self::Restart | Self::Reload => {
                unit.active = "active".into();
                unit.sub = "running".into();
            }
            Self::Stop => {
                unit.active = "inactive".into();
                unit.sub = "dead".into();
                unit.main_pid = 0;
            }
        }
        unit
    }
}

fn plan_unit(name: &str, unit: &Unit, args: &Args, host: &dyn Read) -> Result<Plan, Failure> {
    let is_masked = unit.enabled.starts_with("masked");
    if !unit.exists && !is_masked && args.masked != Some(true) {
        if args.state == Some(State::Stopped) && args.enabled != Some(true) {
            return Ok(Plan::Unchanged(Outcome::unchanged().msg(format!("{name} does not exist")).with("name", name)));
        }
        // What was not simulated (a package, a command) may bring the unit along.
        if host.is_uncertain() {
            return Ok(Plan::Change(Box::new(Call { name: name.to_owned(), absent: true, ..Call::default() })));
        }
        return Err(unknown_unit(name, host));
    }
    if args.masked == Some(true) && !is_masked {
        let own = Path::new(FOLDERS[0]).join(name);
        let meta = host.meta(&own).map_err(|e| Failure::io("look at", &own, &e))?;
        if meta.is_some_and(|meta| meta.kind == FileKind::File) {
            return Err(Failure::new(format!("{name} cannot be masked: its file {} stands in the way", own.display()))
                .hint("remove it with systemd_unit and `state: absent`"));
        }
    }
    let mut actions = Vec::new();
    let mut warnings = Vec::new();
    match args.masked {
        Some(false) if is_masked => actions.push(Action::Unmask),
        Some(true) if !is_masked => actions.push(Action::Mask),
        _ => {}
    }
    let masked_after = args.masked.unwrap_or(is_masked);
    let starts = matches!(args.state, Some(State::Started | State::Restarted | State::Reloaded));
    let active = ["active", "activating", "reloading"].contains(&unit.active.as_str());
    if masked_after && starts && !(args.state == Some(State::Started) && active) {
        return Err(Failure::new(format!("{name} is masked and cannot be started")).hint("give `masked: false`"));
    }
    match (args.enabled, unit.enabled.as_str()) {
        (Some(_), "masked" | "masked-runtime") if masked_after => {}
        (Some(true), "enabled" | "alias") | (Some(false), "disabled" | "") => {}
        (Some(true), "static" | "indirect" | "generated" | "transient") if unit.exists => {
            warnings.push(format!("{name} is {}: it has no [Install] section and cannot be enabled", unit.enabled));
        }
        (Some(false), "static" | "indirect" | "generated" | "transient") => {}
        (Some(true), _) => actions.push(Action::Enable),
        (Some(false), "masked" | "masked-runtime") => {}
        (Some(false), _) => actions.push(Action::Disable),
        (None, _) => {}
    }
    match args.state {
        Some(State::Started) if !active => actions.push(Action::Start),
        Some(State::Stopped) if active => actions.push(Action::Stop),
        Some(State::Restarted) => actions.push(Action::Restart),
        Some(State::Reloaded) => actions.push(if active { Action::Reload } else { Action::Start }),
        _ => {}
    }
    let changed = !actions.is_empty();
    // systemd would go on with the old file, and only warn.
    if args.daemon_reload || (unit.needs_reload && changed) {
        let at = usize::from(actions.first() == Some(&Action::Unmask));
        actions.insert(at, Action::DaemonReload);
    }
    let outcome = Outcome { changed, warnings, ..Outcome::default() }.with("name", name);
    let outcome = match args.state {
        Some(State::Stopped) => outcome.with("state", "stopped"),
        Some(_) => outcome.with("state", "started"),
        None => outcome,
    };
    let outcome = match args.enabled {
        Some(enabled) => outcome.with("enabled", enabled),
        None => outcome,
    };
    if actions.is_empty() {
        return Ok(Plan::Unchanged(outcome));
    }
    let call = Call {
        name: name.to_owned(),
        before: Some(unit.clone()),
        actions,
        outcome,
        settle: args.settle,
        absent: false,
    };
    Ok(Plan::Change(Box::new(call)))
}

fn unknown_unit(name: &str, host: &dyn Read) -> Failure {
    let mut names: Vec<String> = FOLDERS
        .iter()
        .filter_map(|folder| host.list(Path::new(folder)).ok())
        .flatten()
        .map(|file| file.to_string_lossy().into_owned())
        .filter(|file| file.rsplit_once('.').is_some_and(|(_, suffix)| SUFFIXES.contains(&suffix)))
        .collect();
    names.sort();
    names.dedup();
    let failure = Failure::new(format!("unit {name} does not exist"));
    // Compared without the suffix, which would make short names alike.
    let stem = |name: &str| name.rsplit_once('.').map_or(name.to_owned(), |(stem, _)| stem.to_owned());
    let stems: Vec<String> = names.iter().map(|name| stem(name)).collect();
    match crate::diag::nearest(&stem(name), stems.iter().map(String::as_str)) {
        Some(near) => failure.hint(format!("did you mean '{near}'?")),
        None => failure.hint("install its package first, or make it with systemd_unit"),
    }
}

#[derive(Debug, Default)]
struct Call {
    name: String,
    before: Option<Unit>,
    actions: Vec<Action>,
    outcome: Outcome,
    settle: Duration,
    /// The unit is not there, but may be when the run is a real one.
    absent: bool,
}

impl Change for Call {
    fn diffs(&self) -> Vec<Diff> {
        let Some(before) = &self.before else { return Vec::new() };
        let after = self.actions.iter().fold(before.clone(), |unit, action| action.after(unit));
        let show = |unit: &Unit, doing: &str| format!("{}{doing}\n{}\n", unit.active, unit.enabled);
        let doing = match self.actions.last() {
            Some(Action::Restart) => " (restarted)",
            Some(Action::Reload) => " (reloaded)",
            _ => "",
        };
        let (before, after) = (show(before, ""), show(&after, doing));
        if before == after {
            return Vec::new();
        }
        vec![Diff { what: format!("unit {}", self.name), before, after, hidden: false }]
    }

    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        if self.absent {
            return Ok(Outcome::unknown(format!("{} does not exist yet", self.name)).with("name", self.name));
        }
        let mut unit = self.before.unwrap_or(Unit {
            exists: false,
            active: String::new(),
            enabled: String::new(),
            sub: String::new(),
            main_pid: 0,
            needs_reload: false,
        });
        let mut outcome = self.outcome;
        let mut done = false;
        for action in self.actions {
            unit = action.after(unit);
            let ran = act(host, action, &self.name, &unit).map_err(|failure| Failure { changed: done, ..failure })?;
            outcome.unknown |= ran == Ran::Unknown;
            done |= action != Action::DaemonReload;
            let starts = matches!(action, Action::Start | Action::Restart | Action::Reload);
            if starts && matches!(ran, Ran::Done(_)) {
                stays_up(host.as_read(), &self.name, self.settle, action)?;
            }
        }
        if !self.name.is_empty() && !host.is_overlay() {
            let unit = host.unit(&self.name)?;
            outcome = outcome.with("active", unit.active).with("sub", unit.sub).with("main_pid", unit.main_pid);
        }
        Ok(outcome)
    }
}

/// Starts a unit, and sees that it stays up.
pub(super) fn start(host: &mut dyn Write, name: &str, before: &Unit) -> Result<Ran, Failure> {
    let ran = act(host, Action::Start, name, &Action::Start.after(before.clone()))?;
    if matches!(ran, Ran::Done(_)) {
        stays_up(host.as_read(), name, SETTLE, Action::Start)?;
    }
    Ok(ran)
}

fn act(host: &mut dyn Write, action: Action, name: &str, after: &Unit) -> Result<Ran, Failure> {
    if action == Action::DaemonReload {
        let mut effects = vec![Effect::Other];
        if !name.is_empty() {
            effects.push(Effect::Unit(name.to_owned(), after.clone()));
        }
        return run(host, &Command::new(["systemctl", "daemon-reload"]), &effects);
    }
    if matches!(action, Action::Start | Action::Restart) {
        // systemd refuses to start a unit too often (`StartLimitBurst`), which ends loops of crashes. It would also leave one down
        // whose old file is put back after such a loop, or whose configuration changes a few times in a minute: nothing
        // that it says of the unit tells the one from the other. It may not know the unit yet, which is no reason to fail.
        let forget = Command::new(["systemctl", "reset-failed", "--", name]);
        host.run(&forget, &[Effect::Other])?;
    }
    let command = Command::new(["systemctl", action.verb(), "--", name]);
    run(host, &command, &[Effect::Unit(name.to_owned(), after.clone())]).map_err(|failure| {
        if matches!(action, Action::Start | Action::Restart | Action::Reload) {
            let said = failure.data.get("stderr").and_then(|s| s.as_str()).unwrap_or_default().to_owned();
            // systemctl's own words, unless they only send the reader on to the journal.
            let why = said.lines().next().filter(|line| !line.starts_with("Job for ")).map(|line| format!(": {line}"));
            let what = format!("{name} could not be {}ed{}", action.verb(), why.unwrap_or_default());
            let mut dead = died(host.as_read(), name, &what);
            dead.data.insert("stderr".into(), said.into());
            dead
        } else {
            failure
        }
    })
}

/// Fails, with the unit's status and journal, unless the unit that was started is up and stays up for a while.
fn stays_up(host: &dyn Read, name: &str, settle: Duration, action: Action) -> Result<(), Failure> {
    let first = Shown::ask(host, name)?;
    // A notify service has said itself that it is up; a oneshot is done.
    let watched = ["simple", "exec", "idle", "forking"].contains(&first.kind.as_str());
    let died = |shown: &Shown| {
        let what = format!("{name} did not stay up after the {}: {} ({})", action.verb(), shown.active, shown.result);
        Err(died(host, name, &what))
    };
    if !first.is_up() {
        return died(&first);
    }
    if watched && !settle.is_zero() {
        thread::sleep(settle);
        let second = Shown::ask(host, name)?;
        if !second.is_up() || second.restarts != first.restarts {
            return died(&second);
        }
    }
    Ok(())
}

/// How often systemd is asked again that gave no answer.
const ASKED_AGAIN: u32 = 10;

/// What `systemctl show` says.
struct Shown {
    kind: String,
    active: String,
    sub: String,
    result: String,
    restarts: String,
}

impl Shown {
    fn ask(host: &dyn Read, name: &str) -> Result<Self, Failure> {
        let command =
            Command::new(["systemctl", "show", "-p", "Type,ActiveState,SubState,Result,NRestarts", "--", name]);
        let mut asked = host.query(&command)?;
        // systemd that is busy, with a reload or with a machine under load, says nothing about the unit: that is not "down".
        for _ in 0..ASKED_AGAIN {
            if asked.code == 0 && !asked.stdout.is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(500));
            asked = host.query(&command)?;
        }
        if asked.code != 0 || asked.stdout.is_empty() {
            let why = text(&asked.stderr);
            let why = why.lines().next().unwrap_or("no answer");
            return Err(Failure {
                changed: true,
                ..Failure::new(format!("systemd does not tell how {name} is: {why}"))
            }
            .hint("see systemctl status, and run again"));
        }
        let output = text(&asked.stdout);
        let get = |key: &str| {
            output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        Ok(Self {
            kind: get("Type"),
            active: get("ActiveState"),
            sub: get("SubState"),
            result: get("Result"),
            restarts: get("NRestarts"),
        })
    }

    fn is_up(&self) -> bool {
        match self.active.as_str() {
            "active" | "reloading" => true,
            "activating" => !self.sub.starts_with("auto-restart"),
            "inactive" => self.kind == "oneshot" && self.result == "success",
            _ => false,
        }
    }
}

/// Lines of the journal that stand in a failure.
const JOURNAL_LINES: &str = "20";

fn died(host: &dyn Read, name: &str, what: &str) -> Failure {
    // Best effort: the failure itself matters more than why its explanation could not be had.
    let ask = |argv: &[&str]| {
        let mut command = Command::new(argv.iter().copied());
        command.timeout = Some(Duration::from_secs(10));
        host.query(&command).map(|output| text(&output.stdout).trim_end().to_owned()).unwrap_or_default()
    };
    let status = ask(&["systemctl", "status", "--no-pager", "--full", "--lines=0", "--", name]);
    let journal = ask(&["journalctl", "--no-pager", "--quiet", "-o", "short-iso", "-n", JOURNAL_LINES, "-u", name]);
    let message = if journal.is_empty() { what.to_owned() } else { format!("{what}; its journal:\n{journal}") };
    let failure = Failure { changed: true, ..Failure::new(message) };
    failure.with("name", name).with("status", status).with("journal", journal)
}

#[cfg(test)]
mod tests;
