//! The part of ssh_config(5) that we read: Host, HostName, User, Port, IdentityFile, ProxyJump,
//! UserKnownHostsFile, StrictHostKeyChecking, HostKeyAlias, Include. Others are ignored, and `-vvv`
//! says which.

use std::path::{Path, PathBuf};

pub use super::config_parse::ConfigError;
use super::config_parse::{Line, expand_home, read};
use super::jumps::{Hop, hops_from_proxy_command};
use super::settings::{HostKeyPolicy, Target, TargetSpec};

/// Jump hosts in front of jump hosts: more than this is a loop.
const MAX_HOPS: usize = 8;

/// A user's ssh configuration.
#[derive(Debug, Default)]
pub struct SshConfig {
    lines: Vec<Line>,
    home: PathBuf,
}

/// What the configuration says about one name. As in OpenSSH, the first value of each wins.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct HostConfig {
    pub(super) host_name: Option<String>,
    pub(super) user: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) identity_files: Vec<PathBuf>,
    pub(super) jumps: Option<Vec<Hop>>,
    pub(super) known_hosts: Option<Vec<PathBuf>>,
    pub(super) accept: Option<HostKeyPolicy>,
    pub(super) host_key_alias: Option<String>,
}

impl SshConfig {
    /// Reads the file and those that it includes; a file that is not there is empty.
    pub fn load(path: Option<&Path>, home: &Path) -> Result<Self, ConfigError> {
        let lines = match path {
            Some(path) => read(path, home)?,
            None => Vec::new(),
        };
        for line in &lines {
            if !KNOWN.contains(&line.keyword.as_str()) {
                tracing::debug!(target: "rollcall::ssh", "{}: ignored: {}", line.place, line.text);
            }
        }
        Ok(Self { lines, home: home.to_owned() })
    }

    pub(super) fn host(&self, name: &str) -> Result<HostConfig, ConfigError> {
        let mut host = HostConfig::default();
        for line in self.lines.iter().filter(|line| line.applies_to(name)) {
            self.apply(&mut host, line, name)?;
        }
        Ok(host)
    }

    /// The target of a host: what the inventory says, then this configuration, then the defaults.
    pub fn target(&self, spec: &TargetSpec, local_user: &str) -> Result<Target, ConfigError> {
        let alias = spec.host.as_deref().unwrap_or(&spec.name);
        let config = self.host(alias)?;
        let jumps = match &spec.jumps {
            Some(jumps) => jumps.clone(),
            None => config.jumps.clone().unwrap_or_default(),
        };
        Ok(Target {
            name: spec.name.clone(),
            host: config.host_name.clone().unwrap_or_else(|| alias.to_owned()),
            port: spec.port.or(config.port).unwrap_or(22),
            user: spec.user.clone().or(config.user).unwrap_or_else(|| local_user.to_owned()),
            identity_files: match &spec.identity_file {
                Some(file) => vec![expand_home(&file.to_string_lossy(), &self.home)],
                None => config.identity_files,
            },
            jumps: self.with_own_jumps(jumps, 0)?,
            instance_id: spec.instance_id.clone(),
            host_key_alias: config.host_key_alias,
            known_hosts: config.known_hosts,
            accept: config.accept,
        })
    }

    /// The target of one jump host. Its way is the list that it stands in, so it has no jumps.
    pub(super) fn hop_target(&self, hop: &Hop, local_user: &str) -> Result<Target, ConfigError> {
        self.target(
            &TargetSpec {
                name: hop.host.clone(),
                host: None,
                port: hop.port,
                user: hop.user.clone(),
                identity_file: hop.identity_file.clone(),
                jumps: Some(Vec::new()),
                instance_id: None,
            },
            local_user,
        )
    }

    /// Puts the jump hosts that the first one needs itself in front of it.
    fn with_own_jumps(&self, jumps: Vec<Hop>, depth: usize) -> Result<Vec<Hop>, ConfigError> {
        let Some(first) = jumps.first() else { return Ok(jumps) };
        if depth >= MAX_HOPS {
            return Err(ConfigError::Setting(format!(
                "the ProxyJump of {} leads in a circle; hint: add ProxyJump none to its Host block",
                first.host
            )));
        }
        match self.host(&first.host)?.jumps {
            Some(before) if !before.is_empty() => {
                let mut all = self.with_own_jumps(before, depth + 1)?;
                all.extend(jumps);
                Ok(all)
            }
            _ => Ok(jumps),
        }
    }

    fn apply(&self, host: &mut HostConfig, line: &Line, name: &str) -> Result<(), ConfigError> {
        let value = line.words[0].as_str();
        match line.keyword.as_str() {
            "hostname" => set(&mut host.host_name, || Ok(value.replace("%h", name)))?,
            "user" => set(&mut host.user, || Ok(value.to_owned()))?,
            "port" => set(&mut host.port, || {
                let port = value.parse().ok().filter(|port| *port != 0);
                port.ok_or_else(|| line.error(format!("{value:?} is no port"), "a number from 1 to 65535"))
            })?,
            "identityfile" => {
                if let Some(path) = self.path(value, host, name, line)? {
                    host.identity_files.push(path);
                }
            }
            "proxyjump" => set(&mut host.jumps, || {
                Hop::parse_list(value).map_err(|what| line.error(what, "several are separated by commas"))
            })?,
            "proxycommand" => set(&mut host.jumps, || {
                let hops = hops_from_proxy_command(value);
                hops.map_err(|what| line.error(what, "ProxyJump does the same without a program"))
            })?,
            "userknownhostsfile" => set(&mut host.known_hosts, || {
                let none = value.eq_ignore_ascii_case("none");
                let files = if none { &[][..] } else { &line.words[..] };
                Ok(files.iter().map(|file| expand_home(file, &self.home)).collect())
            })?,
            "stricthostkeychecking" => set(&mut host.accept, || policy(line, value))?,
            "hostkeyalias" => set(&mut host.host_key_alias, || Ok(value.to_owned()))?,
            _ => {}
        }
        Ok(())
    }

    /// A key file's path; `None` for `none`.
    fn path(&self, text: &str, host: &HostConfig, name: &str, line: &Line) -> Result<Option<PathBuf>, ConfigError> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(None);
        }
        let mut out = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('%') => out.push('%'),
                Some('d') => out += &self.home.to_string_lossy(),
                Some('h') => out += host.host_name.as_deref().unwrap_or(name),
                Some('n') => out += name,
                Some('r') if host.user.is_some() => out += host.user.as_deref().unwrap_or_default(),
                other => {
                    let token = other.map(String::from).unwrap_or_default();
                    return Err(line.error(
                        format!("%{token} is not taken here"),
                        "%d (home), %h (host), %n (name as given), %% and, behind a User line, %r are",
                    ));
                }
            }
        }
        Ok(Some(expand_home(&out, &self.home)))
    }
}

const KNOWN: &[&str] = &[
    "hostname",
    "user",
    "port",
    "identityfile",
    "proxyjump",
    "proxycommand",
    "userknownhostsfile",
    "stricthostkeychecking",
    "hostkeyalias",
];

fn set<T>(slot: &mut Option<T>, value: impl FnOnce() -> Result<T, ConfigError>) -> Result<(), ConfigError> {
    if slot.is_none() {
        *slot = Some(value()?);
    }
    Ok(())
}

fn policy(line: &Line, value: &str) -> Result<HostKeyPolicy, ConfigError> {
    match value.to_ascii_lowercase().as_str() {
        // Nobody can be asked in the middle of a run on forty hosts.
        "yes" | "true" | "ask" => Ok(HostKeyPolicy::Strict),
        "accept-new" => Ok(HostKeyPolicy::AcceptNew),
        "no" | "off" | "false" => {
            tracing::warn!(
                target: "rollcall::ssh",
                "{}: taken as accept-new: a changed host key is refused always", line.place
            );
            Ok(HostKeyPolicy::AcceptNew)
        }
        _ => Err(line.error(format!("{value:?} is not known"), "yes, accept-new or ask")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn config(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<SshConfig, ConfigError>) {
        let home = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(home.path().join(".ssh/config.d")).expect("made");
        for (name, text) in files {
            fs::write(home.path().join(".ssh").join(name), text).expect("written");
        }
        let config = SshConfig::load(Some(&home.path().join(".ssh/config")), home.path());
        (home, config)
    }

    fn target(text: &str, host: &str) -> Result<Target, ConfigError> {
        let (_home, config) = config(&[("config", text)]);
        config?.target(&TargetSpec { name: host.into(), ..TargetSpec::default() }, "me")
    }

    #[test]
    fn the_first_value_wins_and_patterns_select() {
        let text = "User early\nHost web* !web9\n  User=late\n  Port 2222\n  HostName %h.example.org\n\
                    Host *\n  Port 22\n  Compression yes\n";
        let web = target(text, "web1").expect("a target");
        assert_eq!((web.user.as_str(), web.port, web.host.as_str()), ("early", 2222, "web1.example.org"));
        let other = target(text, "web9").expect("a target");
        assert_eq!((other.port, other.host.as_str()), (22, "web9"));
    }

    #[test]
    fn the_inventory_wins_over_the_configuration() {
        let (_home, config) = config(&[("config", "Host 10.*\n User cfg\n Port 1\n ProxyJump b\n IdentityFile ~/k\n")]);
        let spec = TargetSpec {
            name: "web1".into(),
            host: Some("10.0.0.1".into()),
            port: Some(2),
            user: Some("inv".into()),
            identity_file: Some("~/mine".into()),
            jumps: Some(vec![]),
            instance_id: Some("i-1".into()),
        };
        let config = config.expect("a configuration");
        let target = config.target(&spec, "me").expect("a target");
        assert_eq!((target.user.as_str(), target.port), ("inv", 2));
        assert!(target.jumps.is_empty());
        assert_eq!(target.identity_files, vec![config.home.join("mine")]);
        let bare = TargetSpec { host: Some("10.0.0.1".into()), ..TargetSpec::default() };
        let target = config.target(&bare, "me").expect("a target");
        assert_eq!((target.user.as_str(), target.jumps.len()), ("cfg", 1));
    }

    #[test]
    fn includes_with_globs_and_under_conditions() {
        let (_home, config) = config(&[
            ("config", "Host web*\n  Include config.d/*.conf\nHost *\n  User fallback\n"),
            ("config.d/10.conf", "User ten\nHost web2\n  User two\n"),
            ("config.d/05.conf", "Host web2\n  Port 5\n"),
            ("config.d/.hidden.conf", "Port 99\n"),
        ]);
        let config = config.expect("a configuration");
        assert_eq!(config.host("web1").expect("host").user.as_deref(), Some("ten"));
        assert_eq!(config.host("web2").expect("host").port, Some(5));
        assert_eq!(config.host("db").expect("host").user.as_deref(), Some("fallback"));
    }

    #[test]
    fn jumps_of_jumps_and_circles() {
        let text = "Host t\n ProxyJump b\nHost b\n ProxyJump a\nHost a\n User root\n";
        let target = target(text, "t").expect("a target");
        let names: Vec<_> = target.jumps.iter().map(|hop| hop.host.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let error = self::target("Host *\n ProxyJump b\n", "t").expect_err("a circle");
        assert!(error.to_string().contains("ProxyJump none"), "{error}");
    }

    #[test]
    fn match_blocks_are_left_out_and_match_all_counts() {
        let text = "Match exec \"true\"\n User no\nMatch all\n User yes\n";
        assert_eq!(target(text, "t").expect("a target").user, "yes");
    }

    #[test]
    fn quotes_comments_and_equal_signs() {
        let text =
            "IdentityFile = \"~/my keys/id\" # mine\n#User x\nUserKnownHostsFile /a \"/b c\"\nHostKeyAlias alias\n";
        let target = target(text, "t").expect("a target");
        assert!(target.identity_files[0].ends_with("my keys/id"));
        assert_eq!(target.known_hosts, Some(vec!["/a".into(), "/b c".into()]));
        assert_eq!(target.host_key_alias.as_deref(), Some("alias"));
    }

    #[test]
    fn host_key_policies() {
        for (word, policy) in [
            ("yes", HostKeyPolicy::Strict),
            ("ask", HostKeyPolicy::Strict),
            ("accept-new", HostKeyPolicy::AcceptNew),
            ("no", HostKeyPolicy::AcceptNew),
        ] {
            let target = target(&format!("StrictHostKeyChecking {word}"), "t").expect("a target");
            assert_eq!(target.accept, Some(policy), "{word}");
        }
    }

    #[test]
    fn errors_name_file_line_and_way_out() {
        for (text, line, part) in [
            ("\nPort abc\n", 2, "\"abc\" is no port"),
            ("Host *\n  IdentityFile \"x\n", 2, "a quote is not closed"),
            ("User\n", 1, "user has no value"),
            ("StrictHostKeyChecking maybe\n", 1, "yes, accept-new or ask"),
            ("ProxyCommand nc %h %p\n", 1, "ProxyJump=[user@]bastion[:port]"),
            ("IdentityFile ~/%C\n", 1, "%C is not taken here"),
            ("ProxyJump a,,b\n", 1, "is no jump host"),
            ("Include config\n", 1, "includes itself"),
        ] {
            let text = target(text, "t").expect_err(text).to_string();
            assert!(text.contains(&format!("config:{line}: ")), "{text}");
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_proxy_command_that_is_a_jump_is_one() {
        let target = target("ProxyCommand ssh -q -W %h:%p me@b\n", "t").expect_err("b jumps through itself");
        assert!(target.to_string().contains("circle"));
        let target = self::target("Host t\nProxyCommand ssh -q -W %h:%p me@b\n", "t").expect("a target");
        assert_eq!(target.jumps[0].to_string(), "me@b");
    }
}
