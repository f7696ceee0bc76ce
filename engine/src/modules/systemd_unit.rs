//! `systemd_unit`: unit files and drop-ins of /etc/systemd/system, with the reload that makes them known.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{
    Change, Cx, Definition, Diff, Failure, FreeForm, Invocation, Needs, Outcome, Plan,
    service::{self, unit_name},
    steps::{self, Step, Steps, exists, file_diff, read_text, text},
};
use crate::{
    args, choice,
    host::{Attrs, Command, Effect, Ran, Read, Unit, Write},
};

choice!(
    /// Whether it is there.
    State { Present = "present", Absent = "absent" }
);

args! {
    /// Arguments.
    pub struct Args {
        /// The unit with its suffix (`consul.service`); without one `.service` is meant.
        name ["unit"]: String, required;
        /// The file's text.
        content []: Option<String>;
        /// The file as a mapping of sections (`Unit`, `Service`, `Install` …) to settings; a list is a setting that
        /// stands several times.
        sections []: Option<Map<String, Value>>;
        /// Write a drop-in of this name (`NAME.d/DROPIN.conf`) instead of the unit itself.
        dropin []: Option<String>;
        /// Whether the file is there; `absent` stops and disables the unit first (not with `dropin`).
        state []: State = State::Present;
        /// Whether the unit starts with the machine.
        enabled []: Option<bool>;
        /// Whether the unit runs now. A running unit is not restarted: let a handler do that.
        started []: Option<bool>;
    }
}

/// The module.
pub const DEFINITION: Definition = Definition {
    name: "systemd_unit",
    aliases: &[],
    summary: "Writes a unit file or drop-in, and makes systemd read it",
    args: ARGS,
    free_form: FreeForm::No,
    needs: Needs::Nothing,
    results: &[&[("name", "The unit."), ("path", "Its file.")]],
    example: "- name: Consul's unit\n  systemd_unit:\n    name: consul.service\n    sections:\n      Unit:\n        Description: Consul\n        After: network-online.target\n      Service:\n        Type: notify\n        User: consul\n        ExecStart: /usr/local/bin/consul agent -config-dir=/etc/consul.d\n        LimitNOFILE: 65536\n      Install:\n        WantedBy: multi-user.target\n    enabled: true\n",
    plan,
};

const FOLDER: &str = "/etc/systemd/system";

fn plan(inv: &Invocation, cx: &Cx<'_>) -> Result<Plan, Failure> {
    let args = Args::parse(&inv.args)?;
    let name = unit_name(&args.name)?;
    let path = match &args.dropin {
        Some(dropin) => Path::new(FOLDER).join(format!("{name}.d")).join(dropin_name(dropin)?),
        None => Path::new(FOLDER).join(&name),
    };
    let before = read_text(cx.host, &path)?;
    let unit = cx.host.unit(&name)?;
    match args.state {
        State::Absent => absent(inv, &args, &name, path, before, &unit),
        State::Present => present(inv, &args, &name, path, before, unit, cx.host),
    }
}

fn dropin_name(name: &str) -> Result<String, Failure> {
    let stem = name.strip_suffix(".conf").unwrap_or(name);
    if stem.is_empty() || stem.starts_with('.') || stem.contains(['/', '\0', '\n']) {
        return Err(Failure::new(format!("argument 'dropin': '{}' is no file name", name.escape_debug())));
    }
    Ok(format!("{stem}.conf"))
}

fn present(
    inv: &Invocation,
    args: &Args,
    name: &str,
    path: PathBuf,
    before: Option<String>,
    unit: Unit,
    host: &dyn Read,
) -> Result<Plan, Failure> {
    let content = match (&args.content, &args.sections) {
        (Some(content), None) => from_text(content)?,
        (None, Some(sections)) => from_sections(sections)?,
        (Some(_), Some(_)) => {
            return Err(Failure::new("'content' and 'sections' exclude each other").hint("give one of them"));
        }
        (None, None) => return Err(Failure::new("argument 'content' or 'sections' is missing")),
    };
    let mode = host.meta(&path).map_err(|e| Failure::io("look at", &path, &e))?.map(|meta| meta.mode);
    let differs = before.as_ref() != Some(&content) || mode != Some(0o644);
    let mut after = Unit { exists: true, needs_reload: false, ..unit.clone() };
    let outcome = Outcome::unchanged().with("name", name).with("path", path.to_string_lossy().into_owned());
    let mut steps = Steps::new(Outcome { changed: true, ..outcome.clone() });
    if differs {
        let was = before.as_deref().unwrap_or_default();
        steps.diffs.push(file_diff(inv, &path, was, &content));
        if args.dropin.is_some()
            && let Some(folder) = path.parent()
        {
            steps = steps.step(Step::Mkdir(folder.to_owned(), Attrs { mode: Some(0o755), ..Attrs::default() }));
        }
        let attrs = Attrs { mode: Some(0o644), owner: Some("root".into()), group: Some("root".into()) };
        steps = steps.step(Step::Write(path.clone(), content.clone().into_bytes(), attrs));
        if unit.enabled.is_empty() {
            after.enabled = if content.lines().any(|l| l.trim() == "[Install]") { "disabled" } else { "static" }.into();
        }
    }
    // A file that was written by a run that ended before the reload is made known by this one.
    if differs || unit.needs_reload {
        let effect = Effect::Unit(name.to_owned(), after.clone());
        steps = steps.step(Step::Run(Command::new(["systemctl", "daemon-reload"]), vec![effect]));
    }
    let start = args.started == Some(true) && !is_running(&after);
    steps = switch(steps, args, name, &mut after);
    if start {
        steps.diffs.push(unit_diff(name, &unit.active, "active"));
    }
    if steps.list.is_empty() && !start {
        return Ok(Plan::Unchanged(Outcome { warnings: steps.outcome.warnings, ..outcome }));
    }
    let verify = (differs && args.dropin.is_none()).then_some(path);
    Ok(Plan::Change(Box::new(Written { steps, verify, start: start.then(|| (name.to_owned(), after)) })))
}

fn is_running(unit: &Unit) -> bool {
    ["active", "activating", "reloading"].contains(&unit.active.as_str())
}

/// Enables, disables, stops; `unit` is what it is then.
fn switch(mut steps: Steps, args: &Args, name: &str, unit: &mut Unit) -> Steps {
    let act = |steps: Steps, verb: &str, after: &Unit| {
        steps.step(Step::Run(
            Command::new(["systemctl", verb, "--", name]),
            vec![Effect::Unit(name.to_owned(), after.clone())],
        ))
    };
    let switchable = !["static", "indirect", "generated", "transient", "alias"].contains(&unit.enabled.as_str());
    let enabled = unit.enabled == "enabled";
    match args.enabled {
        Some(true) if !enabled && switchable => {
            unit.enabled = "enabled".into();
            steps = act(steps, "enable", unit);
            steps.diffs.push(unit_diff(name, "disabled", "enabled"));
        }
        Some(true) if !switchable => {
            steps.outcome.warnings.push(format!("{name} has no [Install] section and cannot be enabled"));
        }
        Some(false) if enabled => {
            unit.enabled = "disabled".into();
            steps = act(steps, "disable", unit);
            steps.diffs.push(unit_diff(name, "enabled", "disabled"));
        }
        _ => {}
    }
    if args.started == Some(false) && is_running(unit) {
        steps.diffs.push(unit_diff(name, &unit.active, "inactive"));
        unit.active = "inactive".into();
        steps = act(steps, "stop", unit);
    }
    steps
}

fn unit_diff(name: &str, before: &str, after: &str) -> Diff {
    Diff { what: format!("unit {name}"), before: format!("{before}\n"), after: format!("{after}\n"), hidden: false }
}

fn absent(
    inv: &Invocation,
    args: &Args,
    name: &str,
    path: PathBuf,
    before: Option<String>,
    unit: &Unit,
) -> Result<Plan, Failure> {
    if args.content.is_some() || args.sections.is_some() || args.enabled == Some(true) || args.started == Some(true) {
        return Err(Failure::new("state 'absent' takes no content, and nothing to enable or start"));
    }
    let outcome = Outcome::unchanged().with("name", name).with("path", path.to_string_lossy().into_owned());
    let Some(before) = before else { return Ok(Plan::Unchanged(outcome)) };
    let mut steps = Steps::new(Outcome { changed: true, ..outcome });
    steps.diffs.push(file_diff(inv, &path, &before, ""));
    let mut after = unit.clone();
    let act = |steps: Steps, argv: &[&str], after: &Unit| {
        steps.step(Step::Run(Command::new(argv.iter().copied()), vec![Effect::Unit(name.to_owned(), after.clone())]))
    };
    if args.dropin.is_none() {
        if is_running(unit) {
            after.active = "inactive".into();
            steps = act(steps, &["systemctl", "stop", "--", name], &after);
        }
        if unit.enabled.starts_with("enabled") {
            after.enabled = "disabled".into();
            steps = act(steps, &["systemctl", "disable", "--", name], &after);
        }
        // A unit of a package under the same name comes to light again; check cannot know, and says that it is gone.
        after = Unit { exists: false, enabled: String::new(), ..after };
    }
    after.needs_reload = false;
    steps = steps.step(Step::Remove(path));
    steps = act(steps, &["systemctl", "daemon-reload"], &after);
    Ok(steps.into_plan())
}

/// Text as given, with a line break at its end; it must look like a unit file.
fn from_text(content: &str) -> Result<String, Failure> {
    let bad = |line: usize, what: &str| Err(Failure::new(format!("argument 'content': line {line}: {what}")));
    let mut section = false;
    let mut continued = false;
    for (index, line) in content.lines().enumerate() {
        let trimmed = line.trim();
        if line.contains('\0') {
            return bad(index + 1, "holds a NUL byte");
        }
        let comment = trimmed.is_empty() || trimmed.starts_with(['#', ';']);
        if !continued && !comment {
            if trimmed.starts_with('[') {
                if !trimmed.ends_with(']') {
                    return bad(index + 1, "expected a section like [Service]");
                }
                section = true;
            } else if !section {
                return bad(index + 1, "expected a section like [Service] first");
            } else if !trimmed.contains('=') {
                return bad(index + 1, "expected NAME=VALUE");
            }
        }
        continued = if comment { continued } else { trimmed.ends_with('\\') };
    }
    if !section {
        return Err(Failure::new("argument 'content': expected a unit file with sections, found none"));
    }
    Ok(if content.ends_with('\n') { content.to_owned() } else { format!("{content}\n") })
}

fn from_sections(sections: &Map<String, Value>) -> Result<String, Failure> {
    let bad = |place: &str, what: &str| Failure::new(format!("argument 'sections': {place}: {what}"));
    if sections.is_empty() {
        return Err(Failure::new("argument 'sections': expected at least one section, found none"));
    }
    let mut out = String::new();
    for (section, settings) in sections {
        let title = title(section);
        let Some(settings) = settings.as_object() else {
            return Err(bad(section, "expected a mapping of settings"));
        };
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("[{title}]\n"));
        for (name, value) in settings {
            let place = format!("{section}.{name}");
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                return Err(bad(&place.escape_debug().to_string(), "is no name for a setting"));
            }
            let one = [value.clone()];
            let values = value.as_array().map_or(&one[..], Vec::as_slice);
            for value in values {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    Value::Bool(true) => "yes".into(),
                    Value::Bool(false) => "no".into(),
                    Value::Null => continue,
                    _ => return Err(bad(&place, "expected text, a number, a boolean or a list of these")),
                };
                if text.contains(['\n', '\0']) {
                    return Err(bad(&place, "holds a line break or NUL byte")
                        .hint("give a list for a setting that stands several times"));
                }
                out.push_str(&format!("{name}={text}\n"));
            }
        }
    }
    Ok(out)
}

/// `service` → `Service`: section names begin with a capital.
fn title(section: &str) -> String {
    let mut chars = section.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// The steps, and systemd's opinion of the new file as warnings.
#[derive(Debug)]
struct Written {
    steps: Steps,
    verify: Option<PathBuf>,
    /// Start this unit at the end.
    start: Option<(String, Unit)>,
}

impl Change for Written {
    fn diffs(&self) -> Vec<Diff> {
        self.steps.diffs()
    }
    fn paths(&self) -> Vec<PathBuf> {
        self.steps.paths()
    }
    fn apply(self: Box<Self>, host: &mut dyn Write) -> Result<Outcome, Failure> {
        let mut outcome = self.steps.outcome;
        outcome.unknown |= steps::apply(&self.steps.list, host)?;
        if let Some((name, unit)) = self.start {
            outcome.unknown |= service::start(host, &name, &unit)? == Ran::Unknown;
        }
        if let Some(path) = self.verify.filter(|_| !host.is_overlay()) {
            outcome.warnings.extend(opinion(host.as_read(), &path)?);
        }
        Ok(outcome)
    }
}

/// What `systemd-analyze verify` says of this file; nothing where the program is not installed.
fn opinion(host: &dyn Read, path: &Path) -> Result<Vec<String>, Failure> {
    if !exists(host, Path::new("/usr/bin/systemd-analyze"))? {
        return Ok(Vec::new());
    }
    let mut command = Command::new(["systemd-analyze", "verify", "--man=no", &path.to_string_lossy()]);
    command.timeout = Some(std::time::Duration::from_secs(10));
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // Only an opinion: that it cannot be had is none.
    let Ok(output) = host.query(&command) else { return Ok(Vec::new()) };
    // It also speaks of units that this one pulls in.
    Ok(text(&output.stderr)
        .lines()
        .filter(|line| line.contains(&name))
        .map(|line| format!("systemd: {line}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::modules::fake::{Fake, converges, go, plan};

    fn up() -> Fake {
        Fake::new().answers("systemctl show", 0, "Type=notify\nActiveState=active\n", "")
    }

    fn unit() -> Value {
        json!({"name": "consul", "enabled": true, "started": true, "sections": {
            "unit": {"Description": "Consul"},
            "Service": {"ExecStart": "/bin/consul agent", "LimitNOFILE": 65536, "NoNewPrivileges": true,
                "Environment": ["A=1", "B=2"]},
            "install": {"WantedBy": "multi-user.target"}}})
    }

    #[test]
    fn a_unit_is_written_made_known_enabled_and_started() {
        let mut fake = up();
        let outcome = converges(&mut fake, "systemd_unit", unit());
        assert_eq!(outcome.data["path"], "/etc/systemd/system/consul.service");
        assert_eq!(
            String::from_utf8_lossy(&fake.files[Path::new("/etc/systemd/system/consul.service")]),
            "[Unit]\nDescription=Consul\n\n[Service]\nExecStart=/bin/consul agent\nLimitNOFILE=65536\n\
             NoNewPrivileges=yes\nEnvironment=A=1\nEnvironment=B=2\n\n[Install]\nWantedBy=multi-user.target\n"
        );
        assert_eq!(fake.attrs[Path::new("/etc/systemd/system/consul.service")].mode, Some(0o644));
        assert_eq!(
            fake.ran,
            [
                "systemctl daemon-reload",
                "systemctl enable -- consul.service",
                "systemctl reset-failed -- consul.service",
                "systemctl start -- consul.service"
            ]
        );
        converges(&mut fake, "systemd_unit", json!({"name": "consul", "state": "absent"}));
        assert_eq!(
            fake.ran[4..],
            ["systemctl stop -- consul.service", "systemctl disable -- consul.service", "systemctl daemon-reload"]
        );
    }

    #[test]
    fn a_reload_that_an_interrupted_run_owes_is_made_up() {
        let mut fake = up();
        go(&mut fake, "systemd_unit", unit()).unwrap();
        fake.units.get_mut("consul.service").unwrap().needs_reload = true;
        converges(&mut fake, "systemd_unit", unit());
        assert_eq!(fake.ran.last().unwrap(), "systemctl daemon-reload");
    }

    #[test]
    fn drop_ins_stand_beside_the_unit() {
        let mut fake = Fake::new().unit_is("ssh.service", "active", "enabled");
        let args = json!({"name": "ssh", "dropin": "limits", "content": "[Service]\nLimitNOFILE=9\n"});
        converges(&mut fake, "systemd_unit", args);
        assert!(fake.files.contains_key(Path::new("/etc/systemd/system/ssh.service.d/limits.conf")));
        let gone = json!({"name": "ssh", "dropin": "limits.conf", "state": "absent"});
        converges(&mut fake, "systemd_unit", gone);
        assert!(fake.ran.iter().all(|line| line == "systemctl daemon-reload"));
    }

    #[test]
    fn a_service_of_check_mode_sees_the_planned_unit() {
        let fake = Fake::new();
        let mut overlay = crate::host::overlay::Overlay::new(&fake);
        let args = json!({"name": "a", "content": "[Service]\nExecStart=/bin/a\n"});
        go(&mut overlay, "systemd_unit", args).unwrap();
        assert!(go(&mut overlay, "service", json!({"name": "a", "state": "started"})).unwrap().changed);
    }

    #[test]
    fn systemds_opinion_is_a_warning() {
        let mut fake = Fake::new().file("/usr/bin/systemd-analyze", "").answers(
            "systemd-analyze verify",
            1,
            "",
            "/etc/systemd/system/a.service:2: Unknown key name 'Exec'\nother\n",
        );
        let outcome = go(&mut fake, "systemd_unit", json!({"name": "a", "content": "[Service]\nExec=x"})).unwrap();
        assert_eq!(outcome.warnings, ["systemd: /etc/systemd/system/a.service:2: Unknown key name 'Exec'"]);
    }

    #[test]
    fn bad_input_is_refused() {
        let fake = Fake::new();
        let error = |args| plan(&fake, "systemd_unit", args).unwrap_err().message;
        assert!(error(json!({"name": "a"})).contains("missing"));
        assert!(error(json!({"name": "a", "content": "x=1"})).contains("line 1: expected a section"));
        assert!(
            error(json!({"name": "a", "content": "[Service]\nExecStart\n"})).contains("line 2: expected NAME=VALUE")
        );
        assert!(error(json!({"name": "a", "content": "[Service\n"})).contains("line 1"));
        assert!(error(json!({"name": "a", "content": ""})).contains("found none"));
        assert!(error(json!({"name": "a", "sections": {"Service": 1}})).contains("Service: expected a mapping"));
        assert!(
            error(json!({"name": "a", "sections": {"Service": {"ExecStart": "a\nUser=root"}}})).contains("line break")
        );
        assert!(error(json!({"name": "a", "sections": {"Service": {"a b": "c"}}})).contains("is no name"));
        assert!(error(json!({"name": "../a", "content": "[Service]\n"})).contains("is no name for a unit"));
        assert!(error(json!({"name": "a", "dropin": "../x", "content": "[Service]\n"})).contains("is no file name"));
        assert!(error(json!({"name": "a", "state": "absent", "enabled": true})).contains("'absent'"));
        let continued = json!({"name": "a", "content": "[Service]\nExecStart=/bin/a \\\n  --flag\n"});
        assert!(plan(&fake, "systemd_unit", continued).is_ok());
    }
}
