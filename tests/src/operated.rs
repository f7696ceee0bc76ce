//! A secured Consul cluster on borrowed hosts, which the verbs that work on running clusters are tried on.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Borrowed, Lab, Project, Said, counted, number};

/// How long an agent on a host may go on after its controller was killed.
const LOCKED: Duration = Duration::from_mins(2);
const API: &str = "http://127.0.0.1:8500/v1";

/// Three servers and a client with ACLs and gossip encryption, and their project, whose store is a file.
#[derive(Debug)]
pub struct Operated {
    /// The servers first.
    pub hosts: Borrowed,
    /// In it the controller runs.
    pub project: Project,
}

/// Runs a verb of the controller. While an agent of a killed controller still has a host, it is said again.
#[track_caller]
pub fn say(project: &Project, words: &[&str]) -> Said {
    let until = Instant::now() + LOCKED;
    loop {
        let said = project.controller(words.iter().copied());
        if said.code != 7 || Instant::now() > until {
            return said;
        }
    }
}

/// Starts a verb, and kills it this long after it has said so many lines; those lines. It may come to its end first. While an agent of
/// a killed controller still has a host, it is started again.
#[track_caller]
pub fn kill_after(project: &Project, words: &[&str], lines: usize, delay: Duration) -> Vec<String> {
    let until = Instant::now() + LOCKED;
    loop {
        let mut command = project.command(words.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the controller can be started");
        // It stays open: who cannot say what it does ends before it is killed.
        let mut out = BufReader::new(child.stdout.take().expect("it has an output"));
        let said: Vec<String> = out.by_ref().lines().take(lines).map_while(Result::ok).collect();
        if said.len() == lines {
            std::thread::sleep(delay);
        }
        let _ = child.kill();
        let ended = child.wait().expect("it was started here");
        if ended.code() != Some(7) || Instant::now() > until {
            return said;
        }
    }
}

/// After how many lines a verb is killed, and how long after: where `ROLLCALL_TEST_KILLS` is set, after each of so many, otherwise after
/// these few. The delays take turns: they lead from where a step begins into its midst.
pub fn kills(lines: usize, few: &[usize], delays: [u64; 3]) -> Vec<(usize, Duration)> {
    let all = number("ROLLCALL_TEST_KILLS", 0) > 0;
    let chosen = if all { (0..lines).collect() } else { few.to_vec() };
    chosen.into_iter().zip(delays.into_iter().cycle().map(Duration::from_millis)).collect()
}

/// Tells that a verb held which was killed so often.
pub fn killed(what: &str, times: usize) {
    let times = times as u64;
    counted(&format!("{what} killed (-9) after one of its steps, ended by the same command"), times, times);
}

impl Operated {
    /// How many servers there are; the client comes after them.
    pub const SERVERS: usize = 3;

    /// Brings it up.
    #[track_caller]
    pub fn new() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(Self::SERVERS + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", Self::SERVERS), ("consul_clients", 1)]);
        let status = lab.status();
        let vars = format!(
            "consul_mirror: {}\nconsul_bind_cidr: {}\nbase_time_sync: chrony\nconsul_acl: true\nconsul_encrypt: true\n",
            status.mirror, status.subnet
        );
        let project =
            Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("group_vars/all.yaml", &vars);
        let settings = project.settings();
        project.write("rollcall.yaml", &format!("cluster: test\n{settings}"));
        let cluster = Self { hosts, project };
        cluster.run(&[]).ok();
        cluster
    }

    /// A run of role consul.
    #[track_caller]
    pub fn run(&self, more: &[&str]) -> Said {
        self.project.controller(["run", "consul.yaml", "--json"].into_iter().chain(more.iter().copied()))
    }

    /// A verb of the controller, see [`say`].
    #[track_caller]
    pub fn say(&self, words: &[&str]) -> Said {
        say(&self.project, words)
    }

    /// Starts a verb, and kills it, see [`kill_after`].
    #[track_caller]
    pub fn kill_after(&self, words: &[&str], lines: usize, delay: Duration) -> Vec<String> {
        kill_after(&self.project, words, lines, delay)
    }

    /// The next run of the role changes nothing.
    #[track_caller]
    pub fn is_silent(&self) {
        let again = self.run(&[]).ok();
        for what in ["changed", "failed", "may_change"] {
            assert_eq!(again.counted(what), 0, "{what}: {}", again.report());
        }
    }

    /// A secret of the store; `None`: it has none of that name.
    #[track_caller]
    pub fn secret(&self, name: &str) -> Option<String> {
        let said = self.project.controller(["secret", "get", name]);
        (said.code == 0).then_some(said.out)
    }

    /// Names of secrets that begin so.
    #[track_caller]
    pub fn secrets(&self, prefix: &str) -> Vec<String> {
        self.project.controller(["secret", "list", prefix]).ok().out.lines().map(str::to_owned).collect()
    }

    /// What Consul's agent on a host answers with a token.
    #[track_caller]
    pub fn request(&self, host: usize, token: &str, more: &str) -> Said {
        let line = format!("curl --silent --show-error --fail --header 'X-Consul-Token: {token}' {API}/{more}");
        self.hosts.root(host, &line)
    }

    /// A list that Consul tells a server to whom everything is allowed.
    #[track_caller]
    pub fn list(&self, path: &str) -> Vec<Value> {
        let management = self.secret("consul/management").expect("it was made with the cluster");
        let list = self.request(0, &management, path).ok().json();
        list.as_array().unwrap_or_else(|| panic!("{path}: {list}")).clone()
    }

    /// The tokens that an agent uses, as it wrote them down.
    #[track_caller]
    pub fn agent_tokens(&self, host: usize) -> Value {
        serde_json::from_str(&self.hosts.read(host, "/var/lib/consul/acl-tokens.json")).expect("it is JSON")
    }

    /// Since when Consul runs on each host: the same text, the same process.
    #[track_caller]
    pub fn running_since(&self) -> Vec<String> {
        let line = "systemctl show --property ExecMainStartTimestampMonotonic --value consul";
        (0..=Self::SERVERS).map(|host| self.hosts.root(host, line).ok().out).collect()
    }
}

impl Default for Operated {
    fn default() -> Self {
        Self::new()
    }
}
