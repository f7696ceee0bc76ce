use std::{io::Write, sync::Arc};

use rollcall_engine::{
    diag::Sources,
    protocol::{Status, TaskResult},
};

use super::{Look, diff, style::Style};
use crate::run::events::{Counts, RunEvent, Sink};

/// Lines for people. What did not change is shown from `-v` on; results from `-vv`.
pub(crate) struct Plain<W> {
    out: W,
    style: Style,
    look: Look,
    sources: Arc<Sources>,
    check: bool,
}

impl<W> std::fmt::Debug for Plain<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").finish_non_exhaustive()
    }
}

impl<W: Write> Plain<W> {
    pub(crate) fn new(out: W, style: Style, look: Look, sources: Arc<Sources>) -> Self {
        Self { out, style, look, sources, check: false }
    }

    fn line(&mut self, text: &str) {
        // A reader that is gone does not end the run.
        let _ = writeln!(self.out, "{text}");
    }

    fn result(&mut self, host: &str, result: &TaskResult) {
        let quiet_kind = matches!(result.status, Status::Ok | Status::Skipped) && !is_debug(result);
        if quiet_kind && self.look.verbose == 0 && result.warnings.is_empty() {
            return;
        }
        let mut line = format!("{} {host} | {}", self.word(result), title(result));
        if let Some(item) = &result.item {
            line.push_str(&format!(" ({item})"));
        }
        if let Some(to) = &result.delegated_to {
            line.push_str(&format!(" -> {to}"));
        }
        let told = matches!(result.status, Status::MayChange) || is_debug(result) || self.look.verbose > 0;
        if told && let Some(msg) = result.msg.as_deref().filter(|m| !m.is_empty()) {
            line.push_str(&format!(": {msg}"));
        }
        self.line(&line);
        if result.status == Status::Failed {
            self.failure(result);
        }
        for warning in &result.warnings {
            let text = self.style.changed(&format!("    warning: {warning}"));
            self.line(&text);
        }
        for one in result.diffs.iter().filter(|_| self.look.diff) {
            let text = diff::render(one, self.style);
            let _ = write!(self.out, "{text}");
        }
        if self.look.verbose > 1 && !result.result.is_null() {
            let text = serde_json::to_string_pretty(&result.result).unwrap_or_default();
            self.line(&self.style.dim(&text));
        }
    }

    fn failure(&mut self, result: &TaskResult) {
        for line in result.msg.as_deref().unwrap_or("failed").lines() {
            let text = self.style.bad(&format!("    {line}"));
            self.line(&text);
        }
        for name in ["stderr", "stdout"] {
            let said = result.result.get(name).and_then(|v| v.as_str()).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            for line in &lines[lines.len().saturating_sub(20)..] {
                self.line(&format!("    {name}: {line}"));
            }
        }
        if let Some(place) = self.sources.place(result.span) {
            self.line(&format!("    --> {place}"));
        }
        if let Some(hint) = &result.hint {
            self.line(&format!("    hint: {hint}"));
        }
    }

    fn word(&self, result: &TaskResult) -> String {
        let (word, paint): (&str, fn(Style, &str) -> String) = match result.status {
            Status::Ok => ("ok       ", Style::good),
            Status::Changed if self.check => ("would do ", Style::changed),
            Status::Changed => ("changed  ", Style::changed),
            Status::MayChange => ("may do   ", Style::changed),
            Status::Skipped => ("skipped  ", Style::dim),
            Status::Failed if result.ignored => ("ignored  ", Style::changed),
            Status::Failed if result.rescued => ("rescued  ", Style::changed),
            Status::Failed => ("FAILED   ", Style::bad),
        };
        paint(self.style, word)
    }

    fn recap(&mut self, hosts: &indexmap::IndexMap<String, Counts>, millis: u64, remark: Option<&str>) {
        if let Some(remark) = remark {
            self.line(&self.style.bold(remark));
        }
        self.line(
            &self.style.bold(&format!("RECAP ({:.1} s)", std::time::Duration::from_millis(millis).as_secs_f64())),
        );
        // Of a large fleet, a run under a limit has little to say: hosts that had nothing to do are counted only.
        let told = || hosts.iter().filter(|(_, counts)| **counts != Counts::default());
        let width = told().map(|(host, _)| host.len()).max().unwrap_or(0);
        for (host, c) in told() {
            let mut text = format!(
                "{host:width$} : ok={:<3} changed={:<3} failed={:<2} unreachable={}",
                c.ok, c.changed, c.failed, c.unreachable
            );
            for (name, n) in [
                ("may_change", c.may_change),
                ("skipped", c.skipped),
                ("rescued", c.rescued),
                ("ignored", c.ignored),
                ("restored", c.restored),
            ] {
                if n > 0 {
                    text.push_str(&format!(" {name}={n}"));
                }
            }
            let text = match c {
                c if c.failed > 0 || c.unreachable > 0 => self.style.bad(&text),
                c if c.changed > 0 || c.may_change > 0 => self.style.changed(&text),
                _ => self.style.good(&text),
            };
            self.line(&text);
        }
        let idle = hosts.len() - told().count();
        if idle > 0 {
            let more = if idle == hosts.len() { "" } else { " more" };
            let plural = if idle == 1 { "" } else { "s" };
            self.line(&self.style.dim(&format!("{idle}{more} host{plural} had no task")));
        }
    }
}

fn is_debug(result: &TaskResult) -> bool {
    result.module == "debug" && result.status == Status::Ok
}

/// `role : task`, or the task alone.
fn in_role(role: Option<&str>, name: &str) -> String {
    role.map_or_else(|| name.to_owned(), |role| format!("{role} : {name}"))
}

fn title(result: &TaskResult) -> String {
    let name = in_role(result.role.as_deref(), &result.name);
    if result.handler { format!("{name} (handler)") } else { name }
}

impl<W: Write + Send> Sink for Plain<W> {
    fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::RunStart { check, .. } => self.check = *check,
            RunEvent::HostReady { host, pushed, owed, .. } => {
                if *pushed && self.look.verbose > 0 {
                    self.line(&format!("{} {host} | the agent was put there", self.style.good("ok       ")));
                }
                if !owed.is_empty() {
                    self.line(&format!(
                        "{} {host} | owed by an earlier run: {}",
                        self.style.changed("owed     "),
                        owed.join(", ")
                    ));
                }
            }
            RunEvent::HostUnreachable { host, reason, locked } => {
                let word = if *locked { "LOCKED   " } else { "UNREACH. " };
                let mut lines = reason.lines();
                let first = lines.next().unwrap_or_default();
                self.line(&format!("{} {host} | {first}", self.style.bad(word)));
                for line in lines {
                    self.line(&format!("    {line}"));
                }
            }
            RunEvent::Problem { hosts, diagnostic } => {
                let text = self.sources.render(diagnostic);
                let _ = write!(self.out, "{text}");
                self.line(&format!("  on {}", few(hosts)));
            }
            RunEvent::PlayStart { play, hosts } if !self.look.quiet => {
                let text = format!("PLAY {play} ({} host{})", hosts.len(), if hosts.len() == 1 { "" } else { "s" });
                self.line(&self.style.bold(&text));
            }
            RunEvent::BatchStart { batch, of, hosts } if !self.look.quiet => {
                self.line(&self.style.bold(&format!("BATCH {batch} of {of}: {}", few(hosts))));
            }
            RunEvent::Item { host, result } => self.result(host, result),
            // The items told it already.
            RunEvent::Task { host, result } => {
                let looped = result.result.get("results").is_some() && result.status != Status::Failed;
                if !looped || self.look.verbose > 2 {
                    self.result(host, result);
                }
            }
            RunEvent::Retry { host, name, left, msg } if self.look.verbose > 0 => {
                self.line(&format!("{} {host} | {name}: {msg} ({left} attempts left)", self.style.dim("retrying ")));
            }
            RunEvent::Waiting { host, what } if self.look.verbose > 0 => {
                self.line(&format!("{} {host} | {what}", self.style.dim("waiting  ")));
            }
            RunEvent::Restored { host, name, role, files, why, owed } => {
                let word = self.style.changed("restored ");
                let title = in_role(role.as_deref(), name);
                let left = if *owed { "; it stays owed" } else { "" };
                self.line(&format!("{word} {host} | {title}: {} ({why}{left})", files.join(", ")));
            }
            RunEvent::Owed { host, name, role, why } => {
                let word = self.style.changed("owed     ");
                self.line(&format!("{word} {host} | {}: {why}", in_role(role.as_deref(), name)));
            }
            RunEvent::Notice { text } => self.line(&self.style.bold(text)),
            RunEvent::Recap { hosts, millis, remark, .. } => self.recap(hosts, *millis, remark.as_deref()),
            _ => {}
        }
        let _ = self.out.flush();
    }
}

/// Names of hosts, a few of them.
pub(crate) fn few(hosts: &[String]) -> String {
    match hosts {
        [] => "no host".into(),
        hosts if hosts.len() <= 6 => hosts.join(", "),
        hosts => format!("{} and {} more", hosts[..5].join(", "), hosts.len() - 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recap(hosts: &[(&str, Counts)]) -> String {
        let mut plain = Plain::new(Vec::new(), Style::plain(), Look::default(), Arc::default());
        plain.recap(&hosts.iter().map(|(host, counts)| ((*host).to_owned(), *counts)).collect(), 1500, None);
        String::from_utf8(plain.out).unwrap()
    }

    #[test]
    fn the_recap_counts_hosts_that_had_no_task() {
        let idle = Counts::default();
        let done = Counts { ok: 12, changed: 3, ..idle };
        let lost = Counts { unreachable: 1, ..idle };
        let hosts = [("consul-1", done), ("jump", idle), ("nomad-10", idle), ("c2", lost)];
        assert_eq!(
            recap(&hosts),
            "RECAP (1.5 s)\nconsul-1 : ok=12  changed=3   failed=0  unreachable=0\n\
             c2       : ok=0   changed=0   failed=0  unreachable=1\n2 more hosts had no task\n"
        );
        assert_eq!(recap(&hosts[1..2]), "RECAP (1.5 s)\n1 host had no task\n");
        assert!(recap(&hosts[..2]).ends_with("\n1 more host had no task\n"));
        assert!(!recap(&hosts[..1]).contains("no task"));
    }
}
