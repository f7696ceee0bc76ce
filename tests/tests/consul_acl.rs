//! Consul's ACLs on real servers: bootstrapped once whoever tries, a stranger's bootstrap found and left alone, policies and tokens as
//! they should be, lost answers and a paused leader.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use rollcall_tests::{Borrowed, Lab, Project, Said, counted, number};
use serde_json::Value;

const SERVERS: usize = 3;
/// The bootstrap's secret, which all who may bootstrap are given.
const SECRET: &str = "3a5c1d7e-8f20-4b6a-9c3d-5e7f10a2b4c6";

/// Servers of a cluster with ACLs, and the project that drives them.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

/// A relay that takes a server's answers to the bootstrap away, so many of them, after the request went through:
/// its arguments are ADDRESS PORT SERVER COUNT.
const RELAY: &str = r"
import socket, sys, threading
listen, to, cuts = (sys.argv[1], int(sys.argv[2])), (sys.argv[3], 8500), [int(sys.argv[4])]
server = socket.create_server(listen)
print('ready', flush=True)
def carry(one):
    other = socket.create_connection(to)
    first = one.recv(65536)
    other.sendall(first)
    if b'/v1/acl/bootstrap' in first and cuts[0] > 0:
        cuts[0] -= 1
        if first.endswith(b'\r\n\r\n'):
            other.sendall(one.recv(65536))
        other.recv(1)
        print('cut', flush=True)
        one.close()
        other.close()
        return
    def back():
        while data := other.recv(65536):
            one.sendall(data)
        one.close()
    threading.Thread(target=back, daemon=True).start()
    while data := one.recv(65536):
        other.sendall(data)
while True:
    one, _ = server.accept()
    threading.Thread(target=carry, args=(one,), daemon=True).start()
";

impl Cluster {
    /// Three servers that run with ACLs, and nobody has bootstrapped them.
    fn with_acls(more: &str) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(SERVERS, "");
        let mut inventory = "all:\n  children:\n    consul_servers:\n      hosts:\n".to_owned();
        for (index, host) in hosts.hosts().enumerate() {
            inventory.push_str(&format!("        {}: {{ansible_host: {}, part: {index}}}\n", host.name, host.address));
        }
        let status = lab.status();
        let vars = format!(
            "consul_mirror: {}\nconsul_datacenter: test\nconsul_bind_cidr: {}\nbase_time_sync: chrony\n\
             consul_config: {{acl: {{enabled: true, default_policy: deny, enable_token_persistence: true}}}}\n\
             the_secret: {SECRET}\nurl: http://127.0.0.1:8500\n{more}",
            status.mirror, status.subnet
        );
        let bootstrap = "- hosts: consul_servers\n  become: true\n  tasks:\n    - name: bootstrap\n      consul_acl_bootstrap:\n        \
                         secret: \"{{ the_secret }}\"\n        version: 1.22.2\n        servers: 3\n        url: \"{{ url }}\"\n      register: done\n    \
                         - name: the token works here\n      uri:\n        url: http://127.0.0.1:8500/v1/acl/policies?stale\n        \
                         headers: {X-Consul-Token: \"{{ the_secret }}\"}\n";
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &inventory)
            .file("group_vars/all.yaml", &vars)
            .file("bootstrap.yaml", bootstrap);
        let project = project.file("servers.yaml", "- hosts: consul_servers\n  become: true\n  roles: [consul]\n");
        let cluster = Self { hosts, project };
        cluster.run("servers.yaml", &[]).ok();
        cluster
    }

    fn run(&self, playbook: &str, more: &[&str]) -> Said {
        self.project.controller(["run", playbook, "--json"].into_iter().chain(more.iter().copied()))
    }

    /// A request on a server with the bootstrap's token; the body of the answer.
    #[track_caller]
    fn get(&self, server: usize, path: &str) -> Value {
        let line =
            format!("curl --silent --fail --header 'X-Consul-Token: {SECRET}' 'http://127.0.0.1:8500/v1/{path}'");
        self.hosts.root(server, &line).ok().json()
    }

    /// How many management tokens there are: one, if the bootstrap happened once.
    #[track_caller]
    fn management_tokens(&self) -> usize {
        let tokens = self.get(0, "acl/tokens");
        let all = tokens.as_array().expect("it is a list").iter();
        all.filter(|t| t["Policies"].to_string().contains("global-management")).count()
    }

    /// The server that leads.
    #[track_caller]
    fn leader(&self) -> usize {
        let said = self.hosts.root(0, "curl --silent --fail http://127.0.0.1:8500/v1/status/leader").ok();
        let index = (0..SERVERS).find(|server| said.out.contains(&format!("\"{}:", self.hosts.host(*server).address)));
        index.unwrap_or_else(|| panic!("nobody leads\n{}", said.report()))
    }
}

#[test]
fn of_all_that_bootstrap_at_once_one_does_and_all_have_its_token() {
    let cluster = Cluster::with_acls("consul_client_addr: 0.0.0.0\n");
    // A check says what it would do, and does not.
    let checked = cluster.run("bootstrap.yaml", &["--check", "--diff"]);
    assert_eq!(checked.counted("changed"), SERVERS as u64, "{}", checked.report());
    let first = cluster.run("bootstrap.yaml", &["--diff"]).ok().never_says(SECRET);
    assert_eq!(first.counted("changed"), 1, "{}", first.report());
    assert_eq!(cluster.management_tokens(), 1);
    for more in [&[][..], &["--check"]] {
        let again = cluster.run("bootstrap.yaml", more).ok();
        assert_eq!(again.counted("changed") + again.counted("may_change"), 0, "{}", again.report());
    }
    cluster
        .run("bootstrap.yaml", &["-e", "the_secret=hunter2"])
        .ends(4)
        .says("the secret is no UUID")
        .never_says("hunter2\" is");

    policies_and_tokens(&cluster);
    new_tokens_work_on_every_server(&cluster);
    agents_keep_their_tokens(&cluster);
    who_proves_who_he_is_gets_a_token(&cluster);
}

const THINGS: &str = r#"
- hosts: consul_servers
  become: true
  vars:
    reads: read
    state: present
    made: 51f3b5a0-7f0e-4f6e-8c0e-8d5a3c1b2e4f
  tasks:
    - consul_acl_policy:
        name: catalog
        description: who looks
        rules: |
          node_prefix "" { policy = "{{ reads }}" }
          service_prefix "" { policy = "{{ reads }}" }
        token: "{{ the_secret }}"
        state: "{{ state }}"
    - consul_acl_role:
        name: shop
        policies: [catalog]
        service_identities: [shop, {name: basket, datacenters: [test]}]
        token: "{{ the_secret }}"
        state: "{{ state }}"
    - consul_acl_token:
        purpose: shop
        cluster: test
        secret: "{{ made }}"
        policies: [catalog]
        roles: [shop]
        templated_policies: [builtin/dns]
        token: "{{ the_secret }}"
        servers: ["http://127.0.0.1:8500"]
        state: "{{ state }}"
    - consul_kv:
        key: shop/rights
        value: "{{ reads }}"
        token: "{{ the_secret }}"
        state: "{{ state }}"
      when: state == 'present'
"#;

fn policies_and_tokens(cluster: &Cluster) {
    let made = "51f3b5a0-7f0e-4f6e-8c0e-8d5a3c1b2e4f";
    cluster.project.write("things.yaml", THINGS);
    let checked = cluster.run("things.yaml", &["--check"]).ok();
    assert_eq!(checked.counted("changed"), 4 * SERVERS as u64, "{}", checked.report());
    // All servers make all of it at once: what one made, the others find.
    let first = cluster.run("things.yaml", &["--diff"]).ok().never_says(SECRET).never_says(made);
    assert!(first.counted("changed") >= 4, "{}", first.report());
    for (path, count) in [("acl/policies", "catalog"), ("acl/roles", "shop"), ("acl/tokens", "Made by Rollcall: shop")]
    {
        let list = cluster.get(0, path);
        let found = list.as_array().expect("it is a list").iter().filter(|thing| thing.to_string().contains(count));
        assert!(found.count() >= 1, "{path}: {list}");
    }
    for server in 0..SERVERS {
        let works =
            format!("curl --silent --fail --header 'X-Consul-Token: {made}' http://127.0.0.1:8500/v1/catalog/nodes");
        assert!(cluster.hosts.root(server, &works).ok().out.contains(cluster.hosts.name(0)));
    }
    let again = cluster.run("things.yaml", &[]).ok();
    assert_eq!(again.counted("changed"), 0, "{}", again.report());
    // A text that differs is written, and shown.
    let changed = cluster.run("things.yaml", &["--diff", "-e", "reads=write"]).ok().says(r#"policy = \"write\""#);
    assert!(changed.counted("changed") >= 2, "{}", changed.report());
    let policy = cluster.get(1, "acl/policy/name/catalog");
    assert!(policy["Rules"].to_string().contains("write") && policy["Description"] == "Made by Rollcall: who looks");
    assert_eq!(cluster.run("things.yaml", &["-e", "reads=write"]).ok().counted("changed"), 0);
    // Somebody took the policy away, with the token: both come back.
    let id = policy["ID"].as_str().expect("it has an id").to_owned();
    let header = format!("--silent --fail --header 'X-Consul-Token: {SECRET}'");
    cluster.hosts.root(0, &format!("curl {header} --request DELETE http://127.0.0.1:8500/v1/acl/policy/{id}")).ok();
    assert!(cluster.run("things.yaml", &["-e", "reads=write"]).ok().counted("changed") >= 2);
    assert_eq!(cluster.run("things.yaml", &["-e", "reads=write"]).ok().counted("changed"), 0);
    // Another secret is a token made anew: the old one is worth nothing.
    let other = "6e2c0b1d-4a5f-4c3e-9b8a-7d6e5f4c3b2a";
    let moved = cluster.run("things.yaml", &["--diff", "-e", "reads=write", "-e", &format!("made={other}")]);
    moved.ok().says("made anew").never_says(other).never_says(made);
    let old = format!("curl --silent --header 'X-Consul-Token: {made}' http://127.0.0.1:8500/v1/catalog/nodes");
    cluster.hosts.root(0, &old).ok().says("ACL not found");
    // What is ours goes; what is not, stays.
    let gone = cluster.run("things.yaml", &["-e", "state=absent"]).ok();
    assert!(gone.counted("changed") >= 3, "{}", gone.report());
    let put = format!(
        "curl {header} --request PUT --data '{{\"Name\": \"catalog\", \"Rules\": \"\"}}' http://127.0.0.1:8500/v1/acl/policy"
    );
    cluster.hosts.root(0, &put).ok();
    cluster.run("things.yaml", &["-e", "state=absent"]).ends(4).says("policy 'catalog' was not made by Rollcall");
    // What Consul will not take is told in its words.
    cluster.run("things.yaml", &["-e", "reads=reed"]).ends(4).says("nvalid node_prefix policy");
}

/// Made on one server, and asked for on all of them as soon as the task has ended, by what each knows itself.
const NEW: &str = r#"
- consul_acl_token:
    purpose: "new {{ part }} {{ item }}"
    secret: "0{{ part }}000000-0000-4000-8000-000000{{ item }}"
    servers: "{{ all_servers }}"
    token: "{{ the_secret }}"
- command:
    argv: "{{ ['curl', '--silent', '--header', 'X-Consul-Token: 0' ~ part ~ '000000-0000-4000-8000-000000' ~ item,
      '--write-out', ' %{http_code}\n'] + asked }}"
  register: said
  changed_when: false
- assert: {that: ["said.stdout_lines | select('search', ' 200$') | list | length == asked | length"]}
"#;

fn new_tokens_work_on_every_server(cluster: &Cluster) {
    let each = number("ROLLCALL_TEST_KILLS", 6) * 5 / SERVERS as u64 + 1;
    let urls: Vec<String> = cluster.hosts.hosts().map(|host| format!("http://{}:8500", host.address)).collect();
    let asked: Vec<String> = urls.iter().map(|url| format!("{url}/v1/acl/token/self?stale")).collect();
    let playbook = format!(
        "- hosts: consul_servers\n  become: true\n  vars:\n    all_servers: {urls:?}\n    asked: {asked:?}\n  tasks:\n    \
         - include_tasks: new.yaml\n      loop: {:?}\n",
        (100_000..100_000 + each).collect::<Vec<_>>()
    );
    cluster.project.write("new.yaml", NEW);
    cluster.project.write("tokens.yaml", &playbook);
    let made = cluster.run("tokens.yaml", &[]).ok();
    let all = each * SERVERS as u64;
    assert_eq!(made.counted("changed"), all, "{}", made.report());
    counted("new tokens, used on all three servers at once", all, all);
}

const AGENTS: &str = r#"
- hosts: consul_servers
  become: true
  vars:
    mine: "0{{ part }}f3b5a0-7f0e-4f6e-8c0e-8d5a3c1b2e{{ number }}"
    number: 10
  tasks:
    - consul_acl_policy:
        name: "node-{{ inventory_hostname }}"
        rules:
          agent: {"{{ inventory_hostname }}": {policy: write}}
          node: {"{{ inventory_hostname }}": {policy: write}}
          service_prefix: {"": {policy: read}}
        token: "{{ the_secret }}"
    - consul_acl_token:
        purpose: "agent {{ inventory_hostname }}"
        secret: "{{ mine }}"
        policies: ["node-{{ inventory_hostname }}"]
        token: "{{ the_secret }}"
    - consul_agent_token: {name: agent, secret: "{{ mine }}"}
"#;

fn agents_keep_their_tokens(cluster: &Cluster) {
    cluster.project.write("agents.yaml", AGENTS);
    let first = cluster.run("agents.yaml", &["--diff"]).ok().never_says("f3b5a0-7f0e");
    assert_eq!(first.counts("changed"), [3, 3, 3], "{}", first.report());
    // The catalog has addresses of nodes that told them themselves, with a token that lets them.
    let kept = |server: usize| cluster.hosts.read(server, "/var/lib/consul/acl-tokens.json");
    assert!(kept(0).contains("f3b5a0-7f0e-4f6e-8c0e-8d5a3c1b2e10"));
    cluster.hosts.root(0, "systemctl restart consul").ok();
    let again = cluster.run("agents.yaml", &[]).ok();
    assert_eq!(again.counted("changed"), 0, "{}", again.report());
    let refused = "journalctl --unit consul --since '-5s' | grep --count 'Permission denied' || true";
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(cluster.hosts.root(0, refused).ok().text(), "0");
    // A file that somebody broke is drift, and mended; another token reaches the running agent.
    cluster.hosts.root(1, "echo '{' > /var/lib/consul/acl-tokens.json").ok();
    let mended = cluster.run("agents.yaml", &[]).ok();
    assert_eq!(mended.counted("changed"), 1, "{}", mended.report());
    let turned = cluster.run("agents.yaml", &["-e", "number=20"]).ok();
    assert_eq!(turned.counts("changed"), [2, 2, 2], "{}", turned.report());
    assert!(kept(2).contains("8d5a3c1b2e20") && !kept(2).contains("8d5a3c1b2e10"));
}

const LOGINS: &str = r#"
- hosts: consul_servers
  become: true
  vars: {state: present, gives: tasks, audience: consul.io, wait: 60}
  tasks:
    - consul_acl_auth_method:
        name: jobs
        description: jobs prove who they are
        jwks_url: "http://{{ keys }}/jwks.json"
        bound_audiences: ["{{ audience }}"]
        supported_algs: [RS256]
        claim_mappings: {nomad_service: nomad_service}
        config: {BoundIssuer: nomad}
        token: "{{ the_secret }}"
        wait: "{{ wait | int }}"
        state: "{{ state }}"
    - consul_acl_binding_rule:
        name: tasks
        auth_method: jobs
        selector: '"nomad_service" not in value'
        bind_type: role
        bind_name: "{{ gives }}"
        token: "{{ the_secret }}"
        state: "{{ state }}"
"#;

/// Serves an empty set of keys: its arguments are ADDRESS PORT.
const KEYS: &str = r#"
import http.server, sys
class Keys(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"keys": []}')
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Keys).serve_forever()
"#;

fn who_proves_who_he_is_gets_a_token(cluster: &Cluster) {
    let gateway = cluster.hosts.lab.status().gateway;
    cluster.project.write("logins.yaml", LOGINS);
    let keys = format!("keys={gateway}:8571");
    // Consul itself fetches the keys: with nobody there it refuses, and the time to wait is short.
    let nobody = cluster.run("logins.yaml", &["-e", &keys, "-e", "wait=2"]).ends(4);
    nobody.says("error checking JWKSURL").says("it must be reachable from them").never_says(SECRET);
    let run = cluster.project.start(["run", "logins.yaml", "--json", "-e", &keys]);
    std::thread::sleep(Duration::from_secs(4));
    let mut server = cluster.hosts.lab.command(["shell", "--", "python3", "-c", KEYS, &gateway, "8571"]);
    let server = Ends(server.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the keys can be served"));
    let first = run.wait(Duration::from_mins(3)).ok();
    assert!(first.counted("changed") >= 2, "{}", first.report());
    // Three servers made it at once: one rule stands.
    let rules = || cluster.get(0, "acl/binding-rules?authmethod=jobs");
    assert_eq!(rules().as_array().map(Vec::len), Some(1), "{}", rules());
    assert_eq!(rules()[0]["BindName"], "tasks");
    for more in [&[][..], &["--check"]] {
        let again = cluster.run("logins.yaml", &[&["-e", &keys], more].concat()).ok();
        assert_eq!(again.counted("changed") + again.counted("may_change"), 0, "{}", again.report());
    }
    let other = ["--diff", "-e", &keys, "-e", "gives=others", "-e", "audience=shop"];
    cluster.run("logins.yaml", &other).ok().says("gives role others").says(r#"BoundAudiences: [\"shop\"]"#);
    assert_eq!(rules()[0]["BindName"], "others");
    let method = cluster.get(1, "acl/auth-method/jobs");
    assert_eq!(method["Config"]["BoundAudiences"], serde_json::json!(["shop"]), "{method}");
    // What Consul does not take is told in its words.
    cluster.run("logins.yaml", &["-e", &keys, "-e", "gives=no${value.name"]).ends(4).says("nvalid");
    let gone = cluster.run("logins.yaml", &["-e", &keys, "-e", "state=absent"]).ok();
    assert!(gone.counted("changed") >= 1, "{}", gone.report());
    assert_eq!(rules().as_array().map(Vec::len), Some(0), "{}", rules());
    drop(server);
}

/// A process that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_strangers_bootstrap_is_told_by_its_own_exit_code_and_nothing_is_reset() {
    let cluster = Cluster::with_acls("");
    let theirs =
        cluster.hosts.root(1, "curl --silent --fail --request PUT http://127.0.0.1:8500/v1/acl/bootstrap").ok().json();
    let their_secret = theirs["SecretID"].as_str().expect("it has a secret").to_owned();
    let refused = cluster.run("bootstrap.yaml", &[]).ends(8);
    let refused = refused.says("someone else bootstrapped this cluster").says("Nothing was reset").never_says(SECRET);
    assert_eq!(refused.counts("failed"), [1, 1, 1], "{}", refused.report());
    assert_eq!(refused.counted("changed"), 0);
    for server in 0..SERVERS {
        cluster.hosts.root(server, "test ! -e /var/lib/consul/acl-bootstrap-reset").ok();
        let works = format!(
            "curl --silent --fail --header 'X-Consul-Token: {their_secret}' http://127.0.0.1:8500/v1/acl/token/self"
        );
        cluster.hosts.root(server, &works).ok();
    }
    // It was us after all: the token's secret is what all have now.
    let ours = cluster.run("bootstrap.yaml", &["-e", &format!("the_secret={their_secret}")]).ok();
    assert_eq!(ours.counted("changed"), 0, "{}", ours.report());
}

/// A relay in front of a server; ended when dropped.
struct Relay {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Relay {
    fn start(cluster: &Cluster, server: usize, cuts: usize) -> Self {
        let (lab, port) = (&cluster.hosts.lab, (8551 + server).to_string());
        let (gateway, cuts) = (lab.status().gateway, cuts.to_string());
        let mut command = lab.command(["shell", "--", "python3", "-c", RELAY, &gateway, &port]);
        command.args([&cluster.hosts.host(server).address, &cuts]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the relay can be started");
        let said = BufReader::new(child.stdout.take().expect("it has an output"));
        let mut relay = Self { child, said };
        assert_eq!(relay.line(), "ready\n");
        relay
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it can be read");
        line
    }

    /// Ends it; how many answers it took away.
    fn end(mut self) -> usize {
        let _ = self.child.kill();
        std::iter::repeat_with(|| self.line()).take_while(|line| line == "cut\n").count()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_lost_answer_and_a_paused_leader_lose_no_token() {
    let cluster = Cluster::with_acls("");
    // The leader sleeps in the middle of it, and goes on when everybody has given that call up.
    let leader = cluster.leader();
    cluster.hosts.root(leader, "kill -STOP $(systemctl show --property MainPID --value consul)").ok();
    let others: Vec<&str> = (0..SERVERS).filter(|s| *s != leader).map(|s| cluster.hosts.name(s)).collect();
    let run = cluster.project.start(["run", "bootstrap.yaml", "--json", "--limit", &others.join(",")]);
    std::thread::sleep(Duration::from_secs(20));
    cluster.hosts.root(leader, "kill -CONT $(systemctl show --property MainPID --value consul)").ok();
    let paused = run.wait(Duration::from_mins(5)).ok();
    assert_eq!(paused.counted("changed"), 1, "{}", paused.report());
    assert_eq!(cluster.management_tokens(), 1);
    assert_eq!(cluster.run("bootstrap.yaml", &[]).ok().counted("changed"), 0);
}

#[test]
fn answers_that_are_cut_off_are_settled_by_asking() {
    let cluster = Cluster::with_acls("consul_client_addr: 0.0.0.0\n");
    let relays: Vec<Relay> = (0..SERVERS).map(|server| Relay::start(&cluster, server, 2)).collect();
    let gateway = cluster.hosts.lab.status().gateway;
    let url = format!(r#"{{"url": "http://{gateway}:855{{{{ 1 + part | int }}}}"}}"#);
    let cut = cluster.run("bootstrap.yaml", &["-e", &url]).ok();
    assert!(cut.counted("changed") >= 1, "{}", cut.report());
    assert!(relays.into_iter().map(Relay::end).sum::<usize>() >= 1, "no answer was taken away: {}", cut.report());
    assert_eq!(cluster.management_tokens(), 1);
    assert_eq!(cluster.run("bootstrap.yaml", &[]).ok().counted("changed"), 0);
}
