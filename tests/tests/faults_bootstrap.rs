//! The bootstrap of Consul's ACLs under fire: rounds in which six callers race over three fresh servers, alone or while agents, the
//! controller or a server are killed, or a server is paused. Each ends with one bootstrap, and one token that all callers have.
//!
//! `ROLLCALL_TEST_KILLS` says how many rounds there are beside the first ones (`make test-faults`: 100), `ROLLCALL_TEST_SEED`
//! repeats those of a run that failed; the seed is printed.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Lab, Project, Random, counted, number, seed};
use serde_json::Value;

const SERVERS: usize = 3;
const CALLERS: usize = 6;
const LIMIT: Duration = Duration::from_mins(6);

/// What happens while all call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// The agents of all callers are killed.
    Agents,
    Controller,
    /// One server's Consul is killed, and started again by systemd.
    Consul,
    /// One server's Consul, which may be the leader, sleeps for some seconds.
    Pause,
}

const FAULTS: [Fault; 5] = [Fault::Nothing, Fault::Agents, Fault::Controller, Fault::Consul, Fault::Pause];

fn uuid(random: &mut Random) -> String {
    let (a, b) = (random.next(), random.next());
    format!("{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}", a >> 32, a & 0xffff, (a >> 16) & 0xfff, b & 0xfff, b >> 16)
}

const BOOTSTRAP: &str = r#"
- hosts: all
  become: true
  tasks:
    - name: bootstrap
      consul_acl_bootstrap: {secret: "{{ the_secret }}", version: 1.22.2, servers: 3, url: "{{ url }}"}
    - name: the token works where it was asked for
      uri: {url: "{{ url }}/v1/acl/policies?stale", headers: {X-Consul-Token: "{{ the_secret }}"}}
"#;

fn prepared() -> (Borrowed, Project) {
    let lab = Lab::shared();
    let hosts = lab.borrow(CALLERS, "");
    let mut inventory = "all:\n  children:\n    consul_servers:\n      hosts:\n".to_owned();
    for (index, host) in hosts.hosts().enumerate() {
        if index == SERVERS {
            inventory.push_str("    callers:\n      hosts:\n");
        }
        let server = &hosts.host(index % SERVERS).address;
        inventory.push_str(&format!(
            "        {}: {{ansible_host: {}, url: \"http://{server}:8500\"}}\n",
            host.name, host.address
        ));
    }
    let status = lab.status();
    let vars = format!(
        "consul_mirror: {}\nconsul_datacenter: test\nconsul_bind_cidr: {}\nbase_time_sync: chrony\nconsul_client_addr: 0.0.0.0\n\
         consul_drain: 0\nconsul_config: {{acl: {{enabled: true, default_policy: deny}}}}\n",
        status.mirror, status.subnet
    );
    let project = Project::new(&lab, hosts.hosts())
        .file("inventory.yaml", &inventory)
        .file("group_vars/all.yaml", &vars)
        .file("servers.yaml", "- hosts: consul_servers\n  become: true\n  roles: [consul]\n")
        .file("bootstrap.yaml", BOOTSTRAP);
    project.add_settings("  keepalive: 1\n  connect_timeout: 20\n");
    project.controller(["run", "servers.yaml"]).ok();
    (hosts, project)
}

fn at_once(hosts: &Borrowed, which: impl Iterator<Item = usize>, line: &str) {
    std::thread::scope(|scope| {
        for host in which {
            scope.spawn(move || hosts.root(host, line));
        }
    });
}

/// A round: servers that know nothing, all callers at once, the fault, and a run that nobody disturbs.
fn round(hosts: &Borrowed, project: &Project, fault: Fault, random: &mut Random) -> Result<(), String> {
    at_once(hosts, 0..SERVERS, "systemctl kill --signal KILL consul; systemctl stop consul; rm -rf /var/lib/consul/*");
    at_once(hosts, 0..SERVERS, "systemctl start consul");
    let secret = uuid(random);
    let given = format!("the_secret={secret}");
    let run = project.start(["run", "bootstrap.yaml", "--json", "-e", &given]);
    std::thread::sleep(Duration::from_millis(random.below(6000)));
    let server = usize::try_from(random.below(SERVERS as u64)).expect("it is small");
    match fault {
        Fault::Nothing => {}
        Fault::Agents => at_once(hosts, 0..CALLERS, "pkill --signal KILL --full '/usr/local/lib/rollcall/[a]gent-'"),
        Fault::Controller => run.signal("KILL"),
        Fault::Consul => drop(hosts.root(server, "kill -KILL $(systemctl show --property MainPID --value consul)")),
        Fault::Pause => {
            let seconds = 2 + random.below(10);
            let line = format!(
                "pid=$(systemctl show --property MainPID --value consul); kill -STOP $pid; sleep {seconds}; kill -CONT $pid"
            );
            drop(hosts.root(server, &line));
        }
    }
    let first = run.wait(LIMIT);
    if fault == Fault::Nothing
        && (first.code != 0 || first.try_counts("changed").map(|counts| counts.iter().sum::<u64>()) != Some(1))
    {
        return Err(format!("one of all callers bootstraps\n{}", first.report()));
    }
    // The agent of a killed controller finishes its task in flight before it lets go of the host.
    let until = Instant::now() + Duration::from_mins(2);
    let second = loop {
        let said = project.controller(["run", "bootstrap.yaml", "--json", "-e", &given]);
        if said.code != 7 || Instant::now() > until {
            break said;
        }
    };
    if second.code != 0 {
        return Err(format!("the second run failed\n{}\nafter\n{}", second.report(), first.report()));
    }
    let look = format!("curl --silent --fail --header 'X-Consul-Token: {secret}' http://127.0.0.1:8500/v1/acl/tokens");
    for server in 0..SERVERS {
        let tokens: Value = hosts.root(server, &look).ok().json();
        let all = tokens.as_array().into_iter().flatten();
        let management = all.filter(|token| token["Policies"].to_string().contains("global-management")).count();
        if management != 1 {
            return Err(format!("{management} management tokens: {tokens}"));
        }
    }
    Ok(())
}

#[test]
fn seeded_kills_of_a_racing_bootstrap_leave_one_token_that_all_have() {
    let rounds = number("ROLLCALL_TEST_KILLS", 0) + FAULTS.len() as u64;
    let seed = seed();
    let (hosts, project) = prepared();
    let mut random = Random::new(seed);
    let mut failed = Vec::new();
    for number in 0..rounds {
        let fault = FAULTS[usize::try_from(number).expect("it is small") % FAULTS.len()];
        if let Err(why) = round(&hosts, &project, fault, &mut random) {
            failed.push(format!("round {number}, {fault:?}: {why}"));
        }
    }
    counted(
        "rounds of 6 racing bootstraps over 3 servers, with faults: one token, which all have",
        rounds - failed.len() as u64,
        rounds,
    );
    assert!(failed.is_empty(), "seed {seed}: {} of {rounds} rounds\n\n{}", failed.len(), failed.join("\n\n"));
}
