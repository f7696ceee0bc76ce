//! The role consul with ACLs on real hosts, secrets in the project's store: one run from bare hosts to agents that have their
//! tokens, nothing to do in the next, a running cluster led over, and what is put back when somebody takes it away.

use rollcall_tests::{Borrowed, Lab, Project, Said};
use serde_json::Value;

const SERVERS: usize = 3;
const CLIENT: usize = SERVERS;

/// Three servers and a client, and their project.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn plan(more: &str) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(SERVERS + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", SERVERS), ("consul_clients", 1)]);
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

    /// A request to an agent with a token.
    #[track_caller]
    fn request(&self, host: usize, token: &str, more: &str) -> Said {
        let line = format!("curl --silent --show-error --fail --header 'X-Consul-Token: {token}' {more}");
        self.hosts.root(host, &line)
    }
}

const API: &str = "http://127.0.0.1:8500/v1";

#[test]
fn one_run_leads_from_bare_hosts_to_a_secured_cluster() {
    let cluster = Cluster::plan("consul_acl: true\n");
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
    servers_restart_one_by_one(&cluster, "consul_acl: true\n");
}

fn whoever_takes_something_away(cluster: &Cluster, management: &str) {
    // The client's token and its policy; then what its agent wrote down.
    let tokens = cluster.request(0, management, &format!("{API}/acl/tokens")).ok().json();
    let name = cluster.hosts.name(CLIENT);
    let of_client = tokens
        .as_array()
        .into_iter()
        .flatten()
        .find(|token| token["Description"] == format!("Made by Rollcall: agent {name}"));
    let accessor =
        of_client.expect("the client has a token")["AccessorID"].as_str().expect("with an accessor").to_owned();
    cluster.request(0, management, &format!("--request DELETE {API}/acl/token/{accessor}")).ok();
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
    cluster.is_silent();
}

fn servers_restart_one_by_one(cluster: &Cluster, given: &str) {
    cluster.configure(&format!("{given}consul_config: {{limits: {{http_max_conns_per_client: 500}}}}\n"));
    cluster.run(&[]).ok();
    for server in 0..SERVERS {
        let stops = "journalctl --unit consul --quiet | grep --count 'Stopping consul' || true";
        assert_eq!(cluster.hosts.root(server, stops).ok().text(), "1");
        // Before a server stops, it asks with its token whether it leads.
        cluster
            .hosts
            .root(server, "journalctl --unit consul --quiet | grep 'Permission denied: anonymous token'")
            .ends(1);
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
}

#[test]
fn a_running_cluster_is_led_over() {
    let cluster = Cluster::plan("");
    cluster.run(&[]).ok();
    cluster.hosts.root(CLIENT, &format!("curl --silent --fail --request PUT --data kept {API}/kv/kept")).ok();
    cluster.configure("consul_acl: true\n");
    cluster.run(&[]).ok();
    cluster.is_silent();
    let management = cluster.management();
    assert_eq!(cluster.request(CLIENT, &management, &format!("'{API}/kv/kept?raw'")).ok().out, "kept");
    cluster.hosts.root(CLIENT, &format!("curl --silent {API}/kv/kept?raw")).ok().says("Permission denied");
}
