//! `ssh:` of `rollcall.yaml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_engine::diag::{Diagnostic, Diagnostics};
use rollcall_engine::node::{Fields, Kind, Node};

use super::algorithms::Algorithms;
use super::config_parse::expand_home;
use super::settings::{HostKeyPolicy, Settings};

impl Settings {
    /// Overlays what the mapping under `ssh:` says. Paths are relative to `base`, the folder of
    /// `rollcall.yaml`; `~` is the user's home. What is wrong goes to `out`, with its place, and
    /// leaves the setting as it was.
    pub fn overlay(&mut self, node: &Node, base: &Path, out: &mut Diagnostics) {
        let mut fields = match Fields::new("ssh section", node) {
            Ok(fields) => fields,
            Err(error) => return out.push(error),
        };
        let home = self.home.clone();
        let path = move |text: &str| base.join(expand_home(text, &home));
        let paths = |node: &Node| -> Result<Vec<PathBuf>, Diagnostic> {
            node.one_or_many().into_iter().map(|item| item.string().map(&path)).collect()
        };
        let mut keep = |result: Result<(), Diagnostic>| {
            if let Err(error) = result {
                out.push(error);
            }
        };
        if let Some(node) = fields.take("host_keys") {
            keep(policy(node).map(|policy| self.accept = policy));
        }
        if let Some(node) = fields.take("known_hosts") {
            keep(paths(node).map(|paths| self.known_hosts = paths));
        }
        if let Some(node) = fields.take("identity_files") {
            keep(paths(node).map(|paths| self.identity_files = paths));
        }
        if let Some(node) = fields.take("config") {
            keep(node.string().map(|text| self.ssh_config = Some(path(text))));
        }
        if let Some(node) = fields.take("kex") {
            keep(kex(node).map(|names| self.kex = Some(names)));
        }
        for (name, slot) in [
            ("connect_timeout", &mut self.connect_timeout),
            ("keepalive", &mut self.keepalive),
            ("console_wait", &mut self.console_wait),
        ] {
            if let Some(node) = fields.take(name) {
                // Connecting within no time at all cannot be meant; the others may be switched off.
                keep(seconds(node, name != "connect_timeout").map(|time| *slot = time));
            }
        }
        fields.finish(out);
    }
}

fn policy(node: &Node) -> Result<HostKeyPolicy, Diagnostic> {
    match node.string()? {
        "strict" => Ok(HostKeyPolicy::Strict),
        "accept-new" => Ok(HostKeyPolicy::AcceptNew),
        other => Err(Diagnostic::error(node.span, format!("host_keys: '{other}' is not known"))
            .nearest(other, ["strict", "accept-new"])
            .hint("strict or accept-new; there is no way to switch the check off")),
    }
}

fn kex(node: &Node) -> Result<Vec<String>, Diagnostic> {
    let names: Vec<String> =
        node.one_or_many().into_iter().map(|item| item.string().map(str::to_owned)).collect::<Result<_, _>>()?;
    Algorithms::new(Some(&names)).map_err(|what| Diagnostic::error(node.span, what))?;
    Ok(names)
}

fn seconds(node: &Node, zero: bool) -> Result<Duration, Diagnostic> {
    let time = match node.kind {
        Kind::Int(n) => u64::try_from(n).ok().map(Duration::from_secs),
        Kind::Float(f) => Duration::try_from_secs_f64(f).ok(),
        _ => None,
    };
    time.filter(|time| zero || !time.is_zero())
        .ok_or_else(|| node.expected(if zero { "seconds" } else { "seconds, more than 0" }))
}

#[cfg(test)]
mod tests {
    use rollcall_engine::diag::Sources;

    use super::*;

    fn overlaid(text: &str) -> (Settings, Vec<String>) {
        let sources = Sources::default();
        let file = sources.add("rollcall.yaml", text);
        let node = rollcall_engine::yaml::parse(&sources, file).expect("good YAML");
        let mut settings = Settings::for_user("/home/me", "/state", "me");
        let mut out = Diagnostics::default();
        settings.overlay(&node, Path::new("/project"), &mut out);
        (settings, out.0.iter().map(|diagnostic| sources.render(diagnostic)).collect())
    }

    #[test]
    fn everything_that_can_be_said() {
        let (settings, errors) = overlaid(
            "host_keys: accept-new\nknown_hosts: [hosts, ~/kh]\nidentity_files: ~/.ssh/fleet\nconfig: ssh.conf\n\
             kex: mlkem768x25519-sha256\nconnect_timeout: 2.5\nkeepalive: 0\nconsole_wait: 60\n",
        );
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(settings.accept, HostKeyPolicy::AcceptNew);
        assert_eq!(settings.known_hosts, ["/project/hosts", "/home/me/kh"].map(PathBuf::from));
        assert_eq!(settings.identity_files, ["/home/me/.ssh/fleet"].map(PathBuf::from));
        assert_eq!(settings.ssh_config, Some("/project/ssh.conf".into()));
        assert_eq!(settings.kex, Some(vec!["mlkem768x25519-sha256".to_owned()]));
        assert_eq!(settings.connect_timeout, Duration::from_millis(2500));
        assert_eq!((settings.keepalive.as_secs(), settings.console_wait.as_secs()), (0, 60));
    }

    /// The first block of `docs/ssh.md` claims to show the defaults.
    #[test]
    fn the_manual_shows_the_defaults() {
        let manual = include_str!("../../../docs/ssh.md");
        let block = manual.split("```yaml\nssh:\n").nth(1).and_then(|rest| rest.split("```").next());
        let (shown, errors) = overlaid(block.expect("a block of settings"));
        assert!(errors.is_empty(), "{errors:?}");
        let defaults = Settings { kex: shown.kex.clone(), ..Settings::for_user("/home/me", "/state", "me") };
        assert_eq!(format!("{shown:?}"), format!("{defaults:?}"));
        assert_eq!(shown.connect_timeout, defaults.connect_timeout);
        assert_eq!((shown.keepalive, shown.console_wait), (defaults.keepalive, defaults.console_wait));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, part) in [
            ("host_keys: acceptnew\n", "accept-new"),
            ("host_keys: false\n", "expected a string, found a boolean"),
            ("kex: [curve25519-sha265]\n", "did you mean curve25519-sha256?"),
            ("kex: []\n", "ssh.kex is empty"),
            ("connect_timeout: 0\n", "seconds, more than 0"),
            ("keepalive: -1\n", "expected seconds"),
            ("keepalive: soon\n", "expected seconds, found a string"),
            ("known_hosts: {a: b}\n", "expected a string"),
            ("know_hosts: x\n", "known_hosts"),
            ("- a\n", "mapping"),
        ] {
            let (_, errors) = overlaid(text);
            assert_eq!(errors.len(), 1, "{text}: {errors:?}");
            assert!(errors[0].contains(part) && errors[0].contains("rollcall.yaml:1"), "{text}: {}", errors[0]);
        }
    }
}
