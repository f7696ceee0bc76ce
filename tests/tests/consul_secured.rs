//! The role consul with ACLs on real hosts, secrets in the project's store: one run from bare hosts to agents that have their
//! tokens, nothing to do in the next, a running cluster led over under writers, what is put back when somebody takes it away or the
//! store is lost, and a server that nobody asked for.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Lab, Project, Running, Said, until};
use serde_json::{Value, json};

const SERVERS: usize = 3;
const CLIENT: usize = SERVERS;

/// Servers, three of them if nothing else is said, and a client, and their project.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn plan(more: &str) -> Self {
        Self::of(SERVERS, more)
    }

    fn of(servers: usize, more: &str) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(servers + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", servers), ("consul_clients", 1)]);
        let project = Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory);
        let settings = project.settings();
        // Where the secrets are: in a file beside the project, encrypted to a key that is made with the first of them.
        project.write("rollcall.yaml", &format!("cluster: test\n{settings}"));
        let cluster = Self { hosts, project };
        cluster.configure(more);
        cluster
    }

    fn configure(&self, more: &str) {
        let status = self.hosts.lab.status();
        let given =
            format!("consul_mirror: {}\nconsul_bind_cidr: {}\nbase_time_sync: chrony\n", status.mirror, status.subnet);
        self.project.write("group_vars/all.yaml", &format!("{given}{more}"));
    }

    fn run(&self, more: &[&str]) -> Said {
        self.project.controller(["run", "consul.yaml", "--json"].into_iter().chain(more.iter().copied()))
    }

    /// Nothing changes, and nobody waits for anything.
    #[track_caller]
    fn is_silent(&self) {
        for more in [&[][..], &["--check"]] {
            let again = self.run(more).ok();
            for what in ["changed", "failed", "may_change"] {
                assert_eq!(again.counted(what), 0, "{what}: {}", again.report());
            }
        }
    }

    /// The management token's secret, fetched as a server may, from a place that is gone with the next boot.
    #[track_caller]
    fn management(&self) -> String {
        let play = "- hosts: consul_servers[0]\n  become: true\n  tasks:\n    - copy: {content: \"{{ secret('consul/management') }}\", dest: \
                    /run/management, mode: '0600'}\n";
        self.project.write("management.yaml", play);
        self.project.controller(["run", "management.yaml"]).ok();
        self.hosts.read(0, "/run/management").trim().to_owned()
    }

    /// Since when Consul runs on each host: the same text, the same process.
    #[track_caller]
    fn running_since(&self) -> Vec<String> {
        let line = "systemctl show --property ExecMainStartTimestampMonotonic --value consul";
        (0..=SERVERS).map(|host| self.hosts.root(host, line).ok().out).collect()
    }

    /// A request to an agent with a token.
    #[track_caller]
    fn request(&self, host: usize, token: &str, more: &str) -> Said {
        let line = format!("curl --silent --show-error --fail --header 'X-Consul-Token: {token}' {more}");
        self.hosts.root(host, &line)
    }
}

const API: &str = "http://127.0.0.1:8500/v1";
/// The accessor of the token of requests that show none.
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";

#[test]
fn one_run_leads_from_bare_hosts_to_a_secured_cluster() {
    let cluster = Cluster::plan("consul_acl: true\nconsul_encrypt: true\n");
    // A check of bare hosts makes no secret.
    let checked = cluster.run(&["--check", "--diff"]).ok();
    assert!(checked.counted("may_change") > 0, "{}", checked.report());
    let stores = format!("find '{}' -name '*.age'", cluster.project.home().display());
    assert_eq!(cluster.project.shell(&stores).ok().text(), "");

    let first = cluster.run(&["--diff"]).ok();
    let management = cluster.management();
    assert_eq!(management.len(), 36);
    assert!(!first.out.contains(&management) && !first.err.contains(&management), "the management token was told");
    cluster.is_silent();

    // Without a token nobody learns anything; agents know names, and their own nodes, by theirs.
    cluster.hosts.root(CLIENT, &format!("curl --silent {API}/agent/self")).ok().says("Permission denied");
    cluster.hosts.root(CLIENT, "resolvectl query consul.service.consul").ok().says(&cluster.hosts.host(0).address);
    let nodes = cluster.request(0, &management, &format!("{API}/catalog/nodes")).ok().json();
    assert_eq!(nodes.as_array().map(Vec::len), Some(SERVERS + 1), "{nodes}");
    // A node's token is good for its own node, and no client has more.
    let tokens: Value =
        serde_json::from_str(&cluster.hosts.read(CLIENT, "/var/lib/consul/acl-tokens.json")).expect("JSON");
    let own = tokens["agent"].as_str().expect("it has one").to_owned();
    cluster.request(CLIENT, &own, &format!("{API}/agent/self")).ok();
    cluster.request(CLIENT, &own, &format!("{API}/acl/tokens")).ends(22);
    cluster.request(CLIENT, &own, &format!("{API}/operator/autopilot/health")).ends(22);
    cluster.hosts.root(CLIENT, "test $(stat --format %a /var/lib/consul/acl-tokens.json) = 600").ok();
    let search = |what: &str| {
        let line = format!(
            "grep --recursive --files-with-matches --binary-files=text '{what}' /etc /run /var/lib /var/log /tmp /root /home || true"
        );
        cluster.hosts.root(CLIENT, &line).ok().out
    };
    assert_eq!(search(&management), "");
    assert_eq!(search(&own), "/var/lib/consul/acl-tokens.json\n", "the control, which must be found");

    whoever_takes_something_away(&cluster, &management);
    a_client_needs_some_server_and_not_the_first(&cluster, &management);
    a_store_is_lost_for_good(&cluster, &management);
    servers_restart_one_by_one(&cluster, "consul_acl: true\nconsul_encrypt: true\n");
}

/// The store's file is gone, without a backup; what the cluster knows is enough.
fn a_store_is_lost_for_good(cluster: &Cluster, management: &str) {
    let made = ["token", "create", "keeper", "--product", "consul", "--management"];
    let keeper = cluster.project.controller(made).ok().text().to_owned();
    let (running, accessors) = (cluster.running_since(), accessors(cluster, &keeper));
    let store = "store=$(find ~ -name '*.age'); test -n \"$store\"";
    cluster.project.shell(&format!("{store} && rm \"$store\" ~/.config/rollcall/identity.txt")).ok();
    // It is not taken for a new one, beside which secrets would be made that the cluster does not know.
    cluster.run(&[]).ends(3).says("it is gone").says("to begin anew with new secrets, remove");
    cluster.project.shell("rm ~/.local/state/rollcall/stores/*.json").ok();
    let keys = cluster.request(0, &keeper, &format!("{API}/operator/keyring")).ok().json();
    let gossip = keys[0]["Keys"].as_object().and_then(|keys| keys.keys().next()).expect("it has a key").clone();
    for (name, value) in [("consul/gossip", gossip.as_str()), ("consul/management", &keeper)] {
        cluster.project.write("value", value);
        cluster.project.shell(&format!("'{}' secret put {name} --force < value", controller())).ok();
    }
    let mended = cluster.run(&[]).ok().never_says(&keeper).never_says(&gossip);
    assert!(mended.counted("changed") > 0, "{}", mended.report());
    assert_eq!(cluster.running_since(), running, "nothing restarts");
    // Each node's token has another secret under the same accessor, the mark is there, and nothing was bootstrapped again.
    assert_eq!(self::accessors(cluster, &keeper), accessors);
    cluster.project.controller(["secret", "get", "consul/formed"]).ok();
    cluster.request(0, management, &format!("{API}/acl/token/self")).ok();
    cluster.is_silent();
    let members = cluster.request(0, &keeper, &format!("{API}/agent/members")).ok().json();
    let alive = members.as_array().into_iter().flatten().filter(|member| member["Status"] == 1).count();
    assert_eq!(alive, SERVERS + 1, "{members}");
}

/// The accessors of all tokens.
#[track_caller]
fn accessors(cluster: &Cluster, management: &str) -> Vec<String> {
    let tokens = cluster.request(0, management, &format!("{API}/acl/tokens")).ok().json();
    let all = tokens.as_array().into_iter().flatten();
    let mut accessors: Vec<String> = all.map(|token| token["AccessorID"].to_string()).collect();
    accessors.sort();
    accessors
}

fn controller() -> String {
    rollcall_tests::program("controller").display().to_string()
}

/// Takes the client's token away, on a server.
fn delete_clients_token(cluster: &Cluster, management: &str, server: usize) {
    let tokens = cluster.request(server, management, &format!("{API}/acl/tokens")).ok().json();
    let description = format!("Made by Rollcall: agent {}", cluster.hosts.name(CLIENT));
    let mut all = tokens.as_array().into_iter().flatten();
    let token = all.find(|token| token["Description"] == description.as_str()).expect("the client has a token");
    let accessor = token["AccessorID"].as_str().expect("with an accessor");
    cluster.request(server, management, &format!("--request DELETE {API}/acl/token/{accessor}")).ok();
}

fn a_client_needs_some_server_and_not_the_first(cluster: &Cluster, management: &str) {
    cluster.hosts.root(0, "systemctl stop consul").ok();
    until(Duration::from_mins(1), "nobody leads", || {
        cluster.hosts.root(CLIENT, &format!("curl --silent {API}/status/leader")).out.contains(":8300")
    });
    delete_clients_token(cluster, management, 1);
    let mended = cluster.run(&["--limit", cluster.hosts.name(CLIENT)]).ok();
    assert_eq!(mended.counted("changed"), 1, "{}", mended.report());
    cluster.hosts.root(0, "systemctl start consul").ok();
    let health = format!("{API}/operator/autopilot/health");
    until(Duration::from_mins(1), "the server does not come back", || {
        cluster.request(1, management, &health).out.contains("\"FailureTolerance\":1")
    });
    cluster.is_silent();
}

fn whoever_takes_something_away(cluster: &Cluster, management: &str) {
    // The client's token and its policy; then what its agent wrote down.
    delete_clients_token(cluster, management, 0);
    let name = cluster.hosts.name(CLIENT);
    let policies = cluster.request(0, management, &format!("{API}/acl/policies")).ok().json();
    let policy = policies.as_array().into_iter().flatten().find(|p| p["Name"] == format!("rollcall-node-{name}"));
    let policy = policy.expect("the client has a policy")["ID"].as_str().expect("with an id").to_owned();
    cluster.request(0, management, &format!("--request DELETE {API}/acl/policy/{policy}")).ok();
    let mended = cluster.run(&["--limit", name]).ok();
    assert_eq!(mended.counted("changed"), 2, "{}", mended.report());
    cluster.hosts.root(CLIENT, "echo '{}' > /var/lib/consul/acl-tokens.json").ok();
    // The agent writes down all that it has as soon as it is given one.
    let given = cluster.run(&["--limit", name]).ok();
    assert_eq!(given.counted("changed"), 1, "{}", given.report());
    whoever_opens_it_to_all(cluster, management);
    cluster.is_silent();
}

/// Requests without a token get rights, in each way that Consul knows.
fn whoever_opens_it_to_all(cluster: &Cluster, management: &str) {
    let put = |path: &str, body: &Value| {
        cluster.request(0, management, &format!("--request PUT --data '{body}' {API}/acl/{path}")).ok().json()
    };
    put("policy", &json!({"Name": "open", "Rules": "key_prefix \"\" { policy = \"write\" }"}));
    let role = put("role", &json!({"Name": "open", "Policies": [{"Name": "open"}]}));
    let body = json!({"Description": "Anonymous Token", "Policies": [{"Name": "open"}], "Roles": [{"ID": role["ID"]}],
        "ServiceIdentities": [{"ServiceName": "web"}], "NodeIdentities": [{"NodeName": "n", "Datacenter": "test"}],
        "TemplatedPolicies": [{"TemplateName": "builtin/dns"}]});
    put(&format!("token/{ANONYMOUS}"), &body);
    let write =
        |host: usize| cluster.hosts.root(host, &format!("curl --silent --fail --request PUT --data x {API}/kv/open"));
    write(1).ok();
    let rights = || {
        let token = cluster.request(0, management, &format!("{API}/acl/token/{ANONYMOUS}")).ok().json();
        assert_eq!((&token["Description"], &token["SecretID"]), (&json!("Anonymous Token"), &json!("anonymous")));
        ["Policies", "Roles", "ServiceIdentities", "NodeIdentities", "TemplatedPolicies"]
            .map(|key| token[key].as_array().map_or(0, Vec::len))
    };
    assert_eq!(rights(), [1; 5]);
    let policies = |prefix: &str| {
        let all = cluster.request(0, management, &format!("{API}/acl/policies")).ok().json();
        let names = all.as_array().into_iter().flatten().filter_map(|policy| policy["Name"].as_str());
        names.filter(|name| name.starts_with(prefix)).count()
    };
    // They get those that the role's variable says. The same run gives the policies of servers other names.
    let other = "consul_acl_anonymous_rules: 'service_prefix \"\" { policy = \"read\" }'\n\
                 consul_acl_node_policy: \"{{ 'other' if consul_server else 'rollcall-node' }}-{{ consul_node_name | lower }}\"\n";
    cluster.project.write("other.yaml", other);
    assert_eq!((policies("rollcall-node-"), policies("other-")), (SERVERS + 1, 0));
    let told = cluster.run(&["-e", "@other.yaml"]).ok();
    assert_eq!(rights(), [1, 0, 0, 0, 0], "{}", told.report());
    assert_eq!((policies("rollcall-node-"), policies("other-")), (1, SERVERS), "{}", told.report());
    // Rights may be remembered for half a minute.
    for server in 0..SERVERS {
        until(Duration::from_secs(35), "who has no token still writes", || write(server).code == 22);
    }
    // And none again, as they are called.
    cluster.run(&[]).ok();
    assert_eq!((rights(), policies("rollcall-anonymous")), ([0; 5], 0));
    assert_eq!((policies("rollcall-node-"), policies("other-")), (SERVERS + 1, 0));
}

fn servers_restart_one_by_one(cluster: &Cluster, given: &str) {
    let stops = |server| {
        let line = "journalctl --unit consul --quiet | grep --count 'Stopping consul' || true";
        cluster.hosts.root(server, line).ok().text().parse::<usize>().expect("it is a number")
    };
    let before: Vec<usize> = (0..SERVERS).map(stops).collect();
    cluster.configure(&format!("{given}consul_config: {{limits: {{http_max_conns_per_client: 500}}}}\n"));
    cluster.run(&[]).ok();
    for (server, before) in before.into_iter().enumerate() {
        assert_eq!(stops(server), before + 1);
        // Before a server stops, it asks with its token whether it leads. What the tests themselves were refused does not count.
        let refused = "journalctl --unit consul --quiet | grep 'Permission denied: anonymous token' | grep --invert-match /v1/kv/open";
        cluster.hosts.root(server, refused).ends(1);
    }
    cluster.is_silent();
}

/// All of it at once: certificates, gossip, tokens.
#[test]
fn certificates_gossip_and_tokens_go_together() {
    // As the example says it.
    let example = rollcall_tests::root().join("examples/consul-secured/group_vars/all.yaml");
    let settings = std::fs::read_to_string(&example).expect("the example is there");
    let cluster = Cluster::plan(&settings);
    cluster.run(&["--check"]).ok();
    cluster.run(&[]).ok();
    cluster.is_silent();
    let management = cluster.management();
    // The API by HTTPS: the server shows its certificate, the caller its token.
    let address = &cluster.hosts.host(0).address;
    let https = |path: &str| format!("--cacert /etc/consul.d/tls/ca.pem https://{address}:8501/v1/{path}");
    let nodes = cluster.request(CLIENT, &management, &https("catalog/nodes")).ok().json();
    assert_eq!(nodes.as_array().map(Vec::len), Some(SERVERS + 1), "{nodes}");
    cluster.hosts.root(CLIENT, &format!("curl --silent --max-time 5 http://{address}:8500/v1/status/leader")).ends(7);
    servers_restart_one_by_one(&cluster, &settings);
    cluster.hosts.root(CLIENT, &format!("curl --silent --fail {}", https("agent/self"))).ends(22);
    no_client_becomes_a_server(&cluster, &management);
}

/// A client's host, with its certificate and, which no client lacks, the gossip key, says that it is a server.
fn no_client_becomes_a_server(cluster: &Cluster, management: &str) {
    cluster.request(0, management, &format!("--request PUT --data secret {API}/kv/secret")).ok();
    cluster.hosts.root(CLIENT, "systemctl stop consul").ok();
    let text = cluster.hosts.read(CLIENT, "/etc/consul.d/consul.json");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    let address = cluster.hosts.host(CLIENT).address.clone();
    for (key, value) in [
        ("server", Value::from(true)),
        ("node_name", "rogue".into()),
        ("data_dir", "/run/rogue/data".into()),
        ("addresses", json!({"http": "127.0.0.1", "https": "127.0.0.1", "grpc": "127.0.0.1"})),
    ] {
        config[key] = value;
    }
    cluster.hosts.root(CLIENT, "mkdir -p /run/rogue/conf && cp /etc/consul.d/gossip.json /run/rogue/conf").ok();
    // Whatever it asks of others, it asks nothing of them.
    config["tls"]["internal_rpc"]["verify_server_hostname"] = false.into();
    let start = |tls: &str, unit: &str| {
        let mut config = config.clone();
        for (key, file) in [("ca_file", "ca.pem"), ("cert_file", "cert.pem"), ("key_file", "key.pem")] {
            config["tls"]["internal_rpc"][key] = format!("{tls}/{file}").into();
        }
        let line = format!(
            "cat > /run/rogue/conf/consul.json <<'EOT'\n{config}\nEOT\n\
             systemd-run --quiet --collect --unit {unit} consul agent -config-dir /run/rogue/conf"
        );
        cluster.hosts.root(CLIENT, &line).ok();
    };
    let rogue = |path: &str| cluster.hosts.root(CLIENT, &format!("curl --silent --fail '{API}/{path}'"));
    let voters = || {
        let raft = cluster.request(0, management, &format!("{API}/operator/raft/configuration")).ok().json();
        let all: Vec<String> = raft["Servers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|server| server["Voter"] == true)
            .map(|server| server["Address"].to_string())
            .collect();
        (all.len(), all.iter().any(|server| server.contains(&format!("{address}:"))))
    };
    let stored = format!("'{API}/kv/secret?stale&raw' --header 'X-Consul-Token: {management}'");
    let data = || cluster.hosts.root(CLIENT, &format!("curl --silent {stored}")).out == "secret";
    start("/etc/consul.d/tls", "rogue");
    // The servers see it, for it has the gossip key, and refuse to talk to it as to one of them.
    let refused = format!(
        "journalctl --unit consul --quiet | grep '{address}:8300' | grep --count 'x509: certificate is valid for'"
    );
    until(Duration::from_mins(1), "nobody refuses it", || {
        (0..SERVERS).any(|server| cluster.hosts.root(server, &refused).code == 0)
    });
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(voters(), (SERVERS, false), "it has no voice");
    assert_eq!(rogue("status/leader").text(), "\"\"", "it follows nobody");
    assert!(!data(), "it has none of the data");
    cluster.request(1, management, &format!("'{API}/kv/secret?raw'")).ok().says("secret");
    cluster.hosts.root(CLIENT, "systemctl stop rogue; rm -rf /run/rogue/data").ok();

    // With a server's certificate, the same agent is taken for one at once: it is the certificate that kept it out.
    let files = ["ca.pem", "cert.pem", "key.pem"];
    cluster.hosts.hand_over((0, "/etc/consul.d/tls"), (CLIENT, "/run/rogue/tls"), &files);
    start("/run/rogue/tls", "control");
    let until = Instant::now() + Duration::from_mins(2);
    while voters() != (SERVERS + 1, true) || !data() {
        let journal = cluster.hosts.root(CLIENT, "journalctl --unit control --quiet | tail -20");
        assert!(Instant::now() < until, "the control does not get in: {}", journal.report());
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_running_cluster_is_led_over() {
    const ALONE: usize = 1;
    let cluster = Cluster::of(ALONE, "");
    cluster.run(&[]).ok();
    cluster.hosts.root(ALONE, &format!("curl --silent --fail --request PUT --data kept {API}/kv/kept")).ok();
    cluster.configure("consul_acl: true\n");
    cluster.run(&[]).ok();
    cluster.is_silent();
    let management = cluster.management();
    assert_eq!(cluster.request(ALONE, &management, &format!("'{API}/kv/kept?raw'")).ok().out, "kept");
    cluster.hosts.root(ALONE, &format!("curl --silent {API}/kv/kept?raw")).ok().says("Permission denied");
}

/// Programs that write on the client, ten times a second each: one to the servers, one to the agent beside it. Who refuses a
/// connection, or sends the writer elsewhere, has not got the write, and the next one is asked.
struct Writers<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    running: Vec<Running>,
    elections: usize,
}

impl<'a> Writers<'a> {
    #[track_caller]
    fn start(cluster: &'a Cluster, name: &'static str, token: &str) -> Self {
        let servers: Vec<&str> = (0..SERVERS).map(|server| cluster.hosts.host(server).address.as_str()).collect();
        let writer = |kind: &str, addresses: &str| {
            let script = format!(
                "mkdir -p /run/{name}; cd /run/{name}; set -- {addresses}; n=0; while [ ! -e stop ]; do n=$((n+1)); \
                 while :; do code=$(curl --silent --max-time 20 --output {kind}.body --write-out '%{{http_code}}' --header 'X-Consul-Token: {token}' \
                 --request PUT --data $n http://$1:8500/v1/kv/{name}/{kind}/$n); end=$?; \
                 [ $end = 7 ] || {{ [ $code = 429 ] && grep -q 'different server' {kind}.body; }} || break; \
                 [ ! -e stop ] || break; first=$1; shift; set -- \"$@\" $first; sleep 0.01; done; \
                 echo \"$n $code $end $1 $(head -c 200 {kind}.body)\" >> {kind}; sleep 0.1; done"
            );
            Running::start(&mut cluster.hosts.lab.command([
                "exec",
                "--direct",
                cluster.hosts.name(CLIENT),
                "--",
                &script,
            ]))
        };
        let running = vec![writer("servers", &servers.join(" ")), writer("agent", "127.0.0.1")];
        std::thread::sleep(Duration::from_secs(1));
        Self { cluster, name, running, elections: elections(cluster) }
    }

    /// None was refused for want of a right, no more failed than there were elections, and what was acknowledged is there.
    #[track_caller]
    fn end(self, token: &str) {
        let Self { cluster, name, running, elections } = self;
        let elections = self::elections(cluster) - elections;
        cluster.hosts.root(CLIENT, &format!("sleep 1; touch /run/{name}/stop")).ok();
        for writer in running {
            writer.wait(Duration::from_mins(10)).ok();
        }
        for (kind, spared) in [("servers", 0), ("agent", 1)] {
            let writes = cluster.hosts.read(CLIENT, &format!("/run/{name}/{kind}"));
            let (done, failed): (Vec<&str>, Vec<&str>) =
                writes.lines().partition(|line| line.split(' ').nth(1) == Some("200"));
            assert!(done.len() > 50, "{writes}");
            assert!(!failed.iter().any(|line| line.contains(" 403 ")), "{name}, {kind}:\n{}", failed.join("\n"));
            assert!(
                failed.len() <= elections + spared,
                "{name}, {kind}: {elections} elections:\n{}",
                failed.join("\n")
            );
            let keys = cluster.request(CLIENT, token, &format!("'{API}/kv/{name}/{kind}/?keys'")).ok().json();
            let keys: Vec<&str> = keys.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for line in done {
                let key = format!("{name}/{kind}/{}", line.split(' ').next().unwrap_or_default());
                assert!(keys.contains(&key.as_str()), "{key} was acknowledged, and is lost");
            }
        }
    }
}

fn elections(cluster: &Cluster) -> usize {
    let count = |server| {
        let line = "journalctl --unit consul --quiet | grep --count 'election won' || true";
        cluster.hosts.root(server, line).ok().text().parse::<usize>().expect("it is a number")
    };
    (0..SERVERS).map(count).sum()
}

#[test]
fn a_running_cluster_is_led_over_in_two_steps_and_its_writers_lose_nothing() {
    let open = "consul_client_addr: 0.0.0.0\n";
    let cluster = Cluster::plan(open);
    cluster.run(&[]).ok();

    let writers = Writers::start(&cluster, "first", "");
    cluster.configure(&format!("{open}consul_acl: true\nconsul_acl_default_policy: allow\n"));
    cluster.run(&[]).ok();
    writers.end("");
    cluster.is_silent();
    // Nobody needs a token yet, and everybody can have one; but not one that Consul does not know.
    let unknown = "7dfb6ba6-0ee9-4d91-8a3a-9a4f1d7a3c11";
    cluster.request(CLIENT, unknown, &format!("--request PUT --data x {API}/kv/first/x")).ends(22);
    let made = ["token", "create", "writer", "--product", "consul", "--policy", "rollcall-operator"];
    let token = cluster.project.controller(made).ok().text().to_owned();

    let writers = Writers::start(&cluster, "second", &token);
    cluster.configure(&format!("{open}consul_acl: true\n"));
    cluster.run(&[]).ok();
    writers.end(&token);
    cluster.is_silent();
    for host in 0..=CLIENT {
        let write = format!("curl --silent --request PUT --data x '{API}/kv/third'");
        cluster.hosts.root(host, &write).ok().says("Permission denied");
    }
}
