//! The bootstrap of Consul's ACLs, killed at each system call by which the agent or the controller touches what lies outside of it:
//! its disk, its sockets, its pipes. After each kill a run that nobody disturbs ends with one management token, the one in the store.
//!
//! `make test-faults` (`ROLLCALL_TEST_KILLS` is set) goes through all calls; otherwise it is each at which the agent begins to talk to
//! Consul, and a few of the others that are picked by `ROLLCALL_TEST_SEED`.

use rollcall_tests::{Borrowed, Lab, Project, Random, counted, number, say, seed};
use serde_json::Value;

/// Calls that are counted together: strace counts each by itself, in each thread.
const CALLS: [&str; 6] = [
    "connect",
    "sendto,sendmsg",
    "write,writev",
    "openat",
    "fsync,fdatasync",
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,flock,ftruncate",
];
/// How many points are picked on either side when not all are asked for.
const SAMPLE: u64 = 3;
/// How many are tried for that.
const MOST_TRIES: u64 = 20;

#[derive(Clone, Copy, Debug)]
enum Who {
    Agent,
    Controller,
}

const BOOTSTRAP: &str = r#"
- hosts: consul_servers
  become: true
  tasks:
    - name: bootstrap
      consul_acl_bootstrap:
        {secret_from: consul/management, mark: consul/formed, version: 1.22.2, servers: 1, url: "http://127.0.0.1:8500"}
"#;

/// Stands before the real one: what sudo starts is killed at the call that /etc/kill-at names.
const SUDO: &str = r#"#!/bin/sh
[ -s /etc/kill-at ] || exec /usr/bin/sudo "$@"
shift 2
exec /usr/bin/sudo -n strace -f -qq -o /run/trace -e "trace=$(cut -d: -f1 /etc/kill-at)" -e "inject=$(cat /etc/kill-at)" -- "$@"
"#;

struct Ground {
    hosts: Borrowed,
    project: Project,
}

impl Ground {
    fn new() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(1, "");
        let status = lab.status();
        let vars = format!(
            "consul_mirror: {}\nconsul_datacenter: test\nbase_time_sync: chrony\n\
             consul_config: {{acl: {{enabled: true, default_policy: deny}}}}\n",
            status.mirror
        );
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &hosts.inventory(&[("consul_servers", 1)]))
            .file("group_vars/all.yaml", &vars)
            .file("servers.yaml", "- hosts: consul_servers\n  become: true\n  roles: [consul]\n")
            .file("bootstrap.yaml", BOOTSTRAP);
        project.add_settings("  keepalive: 1\n  connect_timeout: 20\ncluster: test\n");
        project.controller(["run", "servers.yaml"]).ok();
        let wrapper = format!(
            "cat > /usr/local/bin/sudo << 'EOT'\n{SUDO}EOT\nchmod 0755 /usr/local/bin/sudo; touch /etc/kill-at"
        );
        hosts.root(0, &wrapper).ok();
        Self { hosts, project }
    }

    /// A server that knows nothing, and a store that holds nothing.
    fn begin(&self) {
        let line = "systemctl kill --signal KILL consul; systemctl stop consul; rm -rf /var/lib/consul/*; systemctl start consul";
        self.hosts.root(0, line).ok();
        self.project.shell("find ~ -name '*.age*' -delete; rm -rf ~/.local/state/rollcall/stores").ok();
    }

    /// A run that is killed at a call. False: it came to its end before.
    fn killed(&self, who: Who, calls: &str, when: u64) -> bool {
        let inject = format!("{calls}:signal=KILL:when={when}");
        match who {
            Who::Agent => {
                self.hosts.root(0, &format!("echo '{inject}' > /etc/kill-at; rm -f /run/trace")).ok();
                let said = self.project.controller(["run", "bootstrap.yaml"]);
                let killed =
                    self.hosts.root(0, "> /etc/kill-at; grep --quiet 'killed by SIGKILL' /run/trace").code == 0;
                assert!(killed || said.code == 0, "{inject}: {}", said.report());
                killed
            }
            Who::Controller => {
                let controller = rollcall_tests::program("controller");
                let line = format!(
                    "rm -f ../trace; strace -f -qq -o ../trace -e trace={calls} -e inject={inject} '{}' run bootstrap.yaml > ../said 2>&1; \
                     grep --quiet 'killed by SIGKILL' ../trace",
                    controller.display()
                );
                self.project.shell(&line).code == 0
            }
        }
    }

    /// A run that nobody disturbs repairs what is there: one management token, which is the store's.
    fn is_repaired(&self) -> Result<(), String> {
        let said = say(&self.project, &["run", "bootstrap.yaml", "--json"]);
        if said.code != 0 {
            return Err(said.report());
        }
        let token = self.project.controller(["secret", "get", "consul/management"]);
        let ask = format!(
            "curl --silent --fail --header 'X-Consul-Token: {}' http://127.0.0.1:8500/v1/acl/tokens",
            token.text()
        );
        let answer = self.hosts.root(0, &ask);
        let tokens: Value = serde_json::from_str(&answer.out).map_err(|_| answer.report())?;
        let all = tokens.as_array().into_iter().flatten();
        match all.filter(|token| token["Policies"].to_string().contains("global-management")).count() {
            1 => Ok(()),
            many => Err(format!("{many} management tokens: {tokens}")),
        }
    }

    fn point(&self, who: Who, calls: &str, when: u64, failed: &mut Vec<String>) -> bool {
        self.begin();
        let killed = self.killed(who, calls, when);
        if let Err(why) = self.is_repaired() {
            failed.push(format!("{who:?} at {calls} number {when}: {why}"));
        }
        killed
    }
}

#[test]
fn seeded_kills_at_system_calls_of_a_bootstrap_are_repaired_by_running_again() {
    let ground = Ground::new();
    let all = number("ROLLCALL_TEST_KILLS", 0) > 0;
    let mut random = Random::new(seed());
    for who in [Who::Agent, Who::Controller] {
        let mut failed = Vec::new();
        let mut kills = 0;
        if all {
            for calls in CALLS {
                let mut when = 1;
                while ground.point(who, calls, when, &mut failed) {
                    kills += 1;
                    // Far from its start a program does the same again and again.
                    when += 1 + when / 16;
                }
            }
        } else {
            // Each step of the bootstrap is a request.
            let mut steps = 0;
            while matches!(who, Who::Agent) && ground.point(who, CALLS[0], steps + 1, &mut failed) {
                steps += 1;
            }
            // Some calls are made once or twice only, or by the other program alone.
            for _ in 0..MOST_TRIES {
                let calls = CALLS[usize::try_from(random.below(CALLS.len() as u64)).expect("it is small")];
                let when = 1 + random.below(6);
                kills += u64::from(ground.point(who, calls, when, &mut failed));
                if kills == SAMPLE {
                    break;
                }
            }
            assert_eq!(kills, SAMPLE, "the calls are not met");
            kills += steps;
        }
        counted(
            &format!("{who:?} killed (-9) at a system call of the bootstrap"),
            kills.saturating_sub(failed.len() as u64),
            kills,
        );
        assert!(kills > 0, "nothing was killed");
        assert!(failed.is_empty(), "{} of {kills}\n\n{}", failed.len(), failed.join("\n\n"));
    }
}
