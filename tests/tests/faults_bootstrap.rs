//! The bootstrap of ACLs, Consul's and Nomad's, under fire: rounds in which six callers race over three fresh servers, alone or while
//! agents, the controller or a server are killed, or a server is paused. Each ends with one bootstrap, and one token that all callers
//! have. Nomad's servers also race for the token whose secret Nomad chooses: one stays, and it is the one that is kept.
//!
//! There are two rounds for each of `ROLLCALL_TEST_KILLS` beside the first ones (`make test-faults`: 200), `ROLLCALL_TEST_SEED`
//! repeats those of a run that failed; the seed is printed.

use std::time::Duration;

use rollcall_tests::{Borrowed, Lab, Project, Random, counted, number, say, seed};
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
    /// One server's agent is killed, and started again by systemd.
    Server,
    /// One server's agent, which may be the leader, sleeps for some seconds.
    Pause,
}

const FAULTS: [Fault; 5] = [Fault::Nothing, Fault::Agents, Fault::Controller, Fault::Server, Fault::Pause];

fn uuid(random: &mut Random) -> String {
    let (a, b) = (random.next(), random.next());
    format!("{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}", a >> 32, a & 0xffff, (a >> 16) & 0xfff, b & 0xfff, b >> 16)
}

/// What differs between the products.
#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    port: u16,
    header: &'static str,
    /// Part of how a token looks that may do everything.
    management: &'static str,
    vars: &'static str,
    bootstrap: &'static str,
}

const CONSUL: Product = Product {
    name: "consul",
    port: 8500,
    header: "X-Consul-Token",
    management: "global-management",
    vars: "consul_client_addr: 0.0.0.0\nconsul_drain: 0\nconsul_config: {acl: {enabled: true, default_policy: deny}}\n",
    bootstrap: r#"
- hosts: all
  become: true
  tasks:
    - name: bootstrap
      consul_acl_bootstrap: {secret: "{{ the_secret }}", version: 1.22.2, servers: 3, url: "{{ url }}"}
    - name: the token works where it was asked for
      uri: {url: "{{ url }}/v1/acl/policies?stale", headers: {X-Consul-Token: "{{ the_secret }}"}}
"#,
};

const NOMAD: Product = Product {
    name: "nomad",
    port: 4646,
    header: "X-Nomad-Token",
    management: "\"management\"",
    vars: "nomad_http_addr: 0.0.0.0\nnomad_config: {acl: {enabled: true}}\n",
    bootstrap: r#"
- hosts: all
  become: true
  tasks:
    - name: bootstrap
      nomad_acl_bootstrap: {secret: "{{ the_secret }}", version: 1.11.2, servers: 3, url: "{{ url }}"}
    - name: the token works where it was asked for
      uri: {url: "{{ url }}/v1/acl/tokens", headers: {X-Nomad-Token: "{{ the_secret }}"}}
    - name: a token that Nomad makes
      nomad_acl_token: {purpose: raced, secret_from: nomad/token/server, policies: [some], token: "{{ the_secret }}", url: "{{ url }}"}
      when: "'nomad_servers' in group_names"
    - name: what is kept is known
      uri: {url: "{{ url }}/v1/acl/token/self", headers: {X-Nomad-Token: "{{ secret('nomad/token/server') }}"}}
      when: "'nomad_servers' in group_names"
"#,
};

fn prepared(product: Product) -> (Borrowed, Project) {
    let Product { name, port, vars, bootstrap, .. } = product;
    let lab = Lab::shared();
    let hosts = lab.borrow(CALLERS, "");
    let mut inventory = format!("all:\n  children:\n    {name}_servers:\n      hosts:\n");
    for (index, host) in hosts.hosts().enumerate() {
        if index == SERVERS {
            inventory.push_str("    callers:\n      hosts:\n");
        }
        let server = &hosts.host(index % SERVERS).address;
        inventory.push_str(&format!(
            "        {}: {{ansible_host: {}, url: \"http://{server}:{port}\"}}\n",
            host.name, host.address
        ));
    }
    let status = lab.status();
    let vars = format!(
        "{name}_mirror: {}\n{name}_datacenter: test\n{name}_bind_cidr: {}\nbase_time_sync: chrony\n{vars}",
        status.mirror, status.subnet
    );
    let servers = format!("- hosts: {name}_servers\n  become: true\n  roles: [{name}]\n");
    let project = Project::new(&lab, hosts.hosts())
        .file("inventory.yaml", &inventory)
        .file("group_vars/all.yaml", &vars)
        .file("servers.yaml", &servers)
        .file("bootstrap.yaml", bootstrap);
    project.add_settings("  keepalive: 1\n  connect_timeout: 20\ncluster: test\n");
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
fn round(
    product: Product,
    (hosts, project): (&Borrowed, &Project),
    fault: Fault,
    random: &mut Random,
) -> Result<(), String> {
    let Product { name, port, .. } = product;
    let wipe = format!("systemctl kill --signal KILL {name}; systemctl stop {name}; rm -rf /var/lib/{name}/*");
    at_once(hosts, 0..SERVERS, &wipe);
    at_once(hosts, 0..SERVERS, &format!("systemctl start {name}"));
    let secret = uuid(random);
    let given = format!("the_secret={secret}");
    let run = project.start(["run", "bootstrap.yaml", "--json", "-e", &given]);
    std::thread::sleep(Duration::from_millis(random.below(6000)));
    let server = usize::try_from(random.below(SERVERS as u64)).expect("it is small");
    match fault {
        Fault::Nothing => {}
        Fault::Agents => at_once(hosts, 0..CALLERS, "pkill --signal KILL '^agent-'"),
        Fault::Controller => run.signal("KILL"),
        Fault::Server => {
            drop(hosts.root(server, &format!("kill -KILL $(systemctl show --property MainPID --value {name})")));
        }
        Fault::Pause => {
            let seconds = 2 + random.below(10);
            let line = format!(
                "pid=$(systemctl show --property MainPID --value {name}); kill -STOP $pid; sleep {seconds}; kill -CONT $pid"
            );
            drop(hosts.root(server, &line));
        }
    }
    let first = run.wait(LIMIT);
    let changed = first.try_counts("changed").map_or(0, |counts| counts.iter().sum::<u64>());
    // Of those who race for Nomad's token some may have removed another's that came too late.
    let fits = if product.name == "nomad" { (2..=4).contains(&changed) } else { changed == 1 };
    if fault == Fault::Nothing && (first.code != 0 || !fits) {
        return Err(format!("one of all callers bootstraps\n{}", first.report()));
    }
    let second = say(project, &["run", "bootstrap.yaml", "--json", "-e", &given]);
    if second.code != 0 {
        return Err(format!("the second run failed\n{}\nafter\n{}", second.report(), first.report()));
    }
    let look =
        format!("curl --silent --fail --header '{}: {secret}' http://127.0.0.1:{port}/v1/acl/tokens", product.header);
    for server in 0..SERVERS {
        let tokens: Value = hosts.root(server, &look).ok().json();
        let count =
            |part: &str| tokens.as_array().into_iter().flatten().filter(|t| t.to_string().contains(part)).count();
        let (management, raced) = (count(product.management), count("Made by Rollcall: raced"));
        if management != 1 || raced != usize::from(product.name == "nomad") {
            return Err(format!("{management} management tokens, {raced} that were raced for: {tokens}"));
        }
    }
    Ok(())
}

fn seeded(product: Product) {
    let rounds = 2 * number("ROLLCALL_TEST_KILLS", 0) + FAULTS.len() as u64;
    let seed = seed();
    let (hosts, project) = prepared(product);
    let mut random = Random::new(seed);
    let mut failed = Vec::new();
    for number in 0..rounds {
        let fault = FAULTS[usize::try_from(number).expect("it is small") % FAULTS.len()];
        if let Err(why) = round(product, (&hosts, &project), fault, &mut random) {
            failed.push(format!("round {number}, {fault:?}: {why}"));
        }
    }
    counted(
        &format!(
            "rounds of 6 racing bootstraps of {} over 3 servers, with faults: one token, which all have",
            product.name
        ),
        rounds - failed.len() as u64,
        rounds,
    );
    assert!(failed.is_empty(), "seed {seed}: {} of {rounds} rounds\n\n{}", failed.len(), failed.join("\n\n"));
}

#[test]
fn seeded_kills_of_a_racing_bootstrap_leave_one_token_that_all_have() {
    seeded(CONSUL);
}

#[test]
fn seeded_kills_of_nomads_racing_bootstrap_leave_one_token_that_all_have() {
    seeded(NOMAD);
}
