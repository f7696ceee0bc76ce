//! What the manual tells of a cluster whose first token is lost, or that has lost everything, done on real servers as it is told,
//! for Consul and for Nomad: ACLs are reset, a replaced server joins, one that is left of three goes on alone, servers without data do
//! not begin a formed cluster anew, an empty one that runs all the same is told, a stranger's too, and all that was comes back from a
//! snapshot.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Lab, Project, Said, until};
use serde_json::Value;

const SERVERS: usize = 3;

/// What differs between the products.
struct Product {
    name: &'static str,
    api: &'static str,
    header: &'static str,
    data: &'static str,
    raft: &'static str,
    /// How Raft calls a server, and where it is spoken.
    node_id: &'static str,
    port: u16,
    reset: &'static str,
    /// What makes the API take notice of the file that resets ACLs.
    word: Option<&'static str>,
    snapshot: &'static str,
    /// Writes something down that a cluster has to keep, and reads it.
    write: &'static str,
    read: &'static str,
}

const CONSUL: Product = Product {
    name: "consul",
    api: "http://127.0.0.1:8500/v1",
    header: "X-Consul-Token",
    data: "/var/lib/consul",
    raft: "/var/lib/consul/raft",
    node_id: "/var/lib/consul/node-id",
    port: 8300,
    reset: "/var/lib/consul/acl-bootstrap-reset",
    word: None,
    snapshot: "snapshot",
    write: "--request PUT --data treasure",
    read: "kv/kept",
};
const NOMAD: Product = Product {
    name: "nomad",
    api: "http://127.0.0.1:4646/v1",
    header: "X-Nomad-Token",
    data: "/var/lib/nomad",
    raft: "/var/lib/nomad/server/raft",
    node_id: "/var/lib/nomad/server/node-id",
    port: 4647,
    reset: "/var/lib/nomad/server/acl-bootstrap-reset",
    word: Some("nomad_acl_reset=true"),
    snapshot: "operator/snapshot",
    // Encrypted by the servers: their keys have to come back, too.
    write: r#"--request PUT --data '{"Path": "kept", "Items": {"what": "treasure"}}'"#,
    read: "var/kept",
};

/// Three servers with ACLs, and their project.
struct Cluster {
    product: &'static Product,
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn plan(product: &'static Product) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(SERVERS, "");
        let (name, status) = (product.name, lab.status());
        let vars = format!(
            "{name}_mirror: {}\n{name}_bind_cidr: {}\nbase_time_sync: chrony\n{name}_acl: true\n",
            status.mirror, status.subnet
        );
        let inventory = hosts.inventory(&[(&format!("{name}_servers"), SERVERS)]);
        let project =
            Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("group_vars/all.yaml", &vars);
        project.add_settings("cluster: test\n");
        project.write("servers.yaml", &format!("- hosts: {name}_servers\n  become: true\n  roles: [{name}]\n"));
        Self { product, hosts, project }
    }

    fn run(&self, more: &[&str]) -> Said {
        self.project.controller(["run", "servers.yaml", "--json"].into_iter().chain(more.iter().copied()))
    }

    #[track_caller]
    fn is_silent(&self) {
        let again = self.run(&[]).ok();
        assert_eq!((again.counted("changed"), again.counted("failed")), (0, 0), "{}", again.report());
    }

    /// A name below the product's.
    fn named(&self, name: &str) -> String {
        format!("{}/{name}", self.product.name)
    }

    #[track_caller]
    fn management(&self) -> String {
        self.project.controller(["secret", "get", &self.named("management")]).ok().text().to_owned()
    }

    #[track_caller]
    fn delete(&self, name: &str) {
        self.project.controller(["secret", "delete", &self.named(name), "--force"]).ok();
    }

    /// A program as root on all servers.
    #[track_caller]
    fn exec(&self, words: &[&str]) {
        let group = format!("{}_servers", self.product.name);
        self.project.controller(["exec", &group, "-b", "--"].into_iter().chain(words.iter().copied())).ok();
    }

    fn request(&self, host: usize, token: &str, more: &str, path: &str) -> Said {
        let Product { api, header, .. } = self.product;
        let token = if token.is_empty() { String::new() } else { format!("--header '{header}: {token}'") };
        self.hosts.root(host, &format!("curl --silent --show-error --fail-with-body {token} {more} {api}/{path}"))
    }

    /// Within a minute a server gives what is to be kept: a cluster that is just coming back elects first.
    #[track_caller]
    fn has_it(&self, host: usize, token: &str) {
        let more = "--retry 60 --retry-delay 1 --retry-all-errors --output /run/kept";
        self.request(host, token, more, self.product.read).ok();
        let kept = self.hosts.read(host, "/run/kept");
        // Consul's answer has it in base64.
        assert!(kept.contains("treasure") || kept.contains("dHJlYXN1cmU="), "{kept}");
    }

    #[track_caller]
    fn lose(&self, servers: std::ops::Range<usize>) {
        let Product { name, data, .. } = self.product;
        for server in servers {
            self.hosts.root(server, &format!("systemctl stop {name}; rm -rf {data}/*")).ok();
        }
    }

    /// All servers vote.
    #[track_caller]
    fn is_whole(&self) {
        let begun = Instant::now();
        loop {
            let peers = self.request(0, "", "", "status/peers");
            let count = serde_json::from_str::<Value>(&peers.out).ok().and_then(|peers| Some(peers.as_array()?.len()));
            if count == Some(SERVERS) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_mins(2), "{}", peers.report());
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

#[test]
fn consul_is_recovered_as_the_manual_tells() {
    recovered(&CONSUL);
}

#[test]
fn nomad_is_recovered_as_the_manual_tells() {
    recovered(&NOMAD);
}

fn recovered(product: &'static Product) {
    let cluster = Cluster::plan(product);
    cluster.run(&[]).ok();
    cluster.is_silent();
    cluster.request(0, &cluster.management(), product.write, product.read).ok();

    what_servers_do_for_each_other_is_kept(&cluster);
    one_server_is_replaced(&cluster);
    one_server_is_left(&cluster);
    acls_are_reset(&cluster);

    let management = cluster.management();
    let made = ["token", "create", "ann", "--product", product.name, "--policy", "rollcall-operator-read"];
    let operator = cluster.project.controller(made).ok().text().to_owned();
    cluster.request(0, &management, "--output /root/kept.snap", product.snapshot).ok();

    all_is_lost(&cluster);
    an_empty_cluster_runs_all_the_same(&cluster);

    // Anew, on purpose, and what was comes back.
    cluster.lose(0..SERVERS);
    cluster.delete("formed");
    cluster.run(&[]).ok();
    assert_eq!(cluster.management(), management);
    cluster.request(1, &management, "", product.read).ends(22);
    cluster.request(0, &management, "--request PUT --data-binary @/root/kept.snap", product.snapshot).ok();
    for server in 0..SERVERS {
        cluster.has_it(server, &management);
    }
    cluster.request(1, &operator, "", "acl/token/self").ok();
    cluster.run(&[]).ok();
    cluster.is_silent();
}

/// The products read it from their configuration only when the cluster is formed.
fn what_servers_do_for_each_other_is_kept(cluster: &Cluster) {
    let management = cluster.management();
    let settings = || cluster.request(0, &management, "", "operator/autopilot/configuration").ok().json();
    assert_eq!(settings()["MinQuorum"], SERVERS, "the cluster was formed with it");
    let by_hand = r#"--request PUT --data '{"CleanupDeadServers": true, "LastContactThreshold": "200ms", "MaxTrailingLogs": 250,
        "MinQuorum": 1, "ServerStabilizationTime": "12s"}'"#;
    cluster.request(0, &management, by_hand, "operator/autopilot/configuration").ok();
    let checked = cluster.run(&["--check", "--diff"]).ok().says("min_quorum: 1").says("min_quorum: 3");
    assert_eq!((checked.counted("failed"), settings()["MinQuorum"].as_u64()), (0, Some(1)), "{}", checked.report());
    let run = cluster.run(&[]).ok();
    assert!(run.counted("changed") >= 1, "{}", run.report());
    // Of that one the role has no word.
    let now = settings();
    assert_eq!((&now["MinQuorum"], &now["ServerStabilizationTime"]), (&SERVERS.into(), &"12s".into()), "{now}");
    cluster.is_silent();
}

/// `--limit` to a server that is new: the others live, and have what it lacks.
fn one_server_is_replaced(cluster: &Cluster) {
    cluster.lose(1..2);
    cluster.run(&["--limit", cluster.hosts.name(1)]).ok();
    cluster.is_whole();
    cluster.has_it(1, &cluster.management());
    cluster.is_silent();
}

/// Most are lost: the one that is left is told so, and new ones join it.
fn one_server_is_left(cluster: &Cluster) {
    let Product { name, raft, node_id, port, .. } = cluster.product;
    cluster.lose(1..SERVERS);
    let left = cluster.hosts.host(0);
    let (management, read) = (cluster.management(), cluster.product.read);
    until(Duration::from_mins(1), "a leader that has lost its majority", || {
        cluster.request(0, &management, "", read).code != 0
    });

    let on_it = |words: &[&str]| {
        cluster.project.controller(["exec", &left.name, "-b", "--"].into_iter().chain(words.iter().copied())).ok();
    };
    on_it(&["systemctl", "stop", name]);
    let peers = r#"printf '[{"id": "%s", "address": "%s"}]' "$(cat NODE-ID)" "$0" > RAFT/peers.json"#;
    on_it(&["sh", "-c", &peers.replace("NODE-ID", node_id).replace("RAFT", raft), &format!("{}:{port}", left.address)]);
    on_it(&["systemctl", "start", name]);
    cluster.run(&[]).ok();
    cluster.is_whole();
    for server in 0..SERVERS {
        cluster.has_it(server, &management);
    }
    cluster.is_silent();
}

/// The store has lost the management token, and there is no other one.
fn acls_are_reset(cluster: &Cluster) {
    let product = cluster.product;
    let before = cluster.management();
    cluster.delete("management");
    let refused = cluster.run(&[]).ends(8).says("someone else bootstrapped this cluster");
    let number = refused.out.split("reset index: ").nth(1).expect("it tells the number");
    let number: String = number.chars().take_while(char::is_ascii_digit).collect();
    // Written down before it is used: a run that fails changes nothing of it.
    let escrowed = cluster.management();
    assert_ne!(escrowed, before);

    // A number that was right once is told.
    let write = |number: &str| cluster.exec(&["sh", "-c", &format!("echo {number} > {}", product.reset)]);
    write("1");
    cluster.run(&[]).ends(4).says("a file that resets ACLs, with a wrong number");
    write(&number);
    let word = product.word.map_or_else(Vec::new, |word| vec!["-e", word]);
    if product.word.is_some() {
        let lost = cluster.run(&[]).ends(4).says("what answers now has never been bootstrapped");
        lost.says("run again with `-e nomad_acl_reset=true`");
    }
    let reset = cluster.run(&word).ok();
    assert!(reset.counted("changed") > 0, "{}", reset.report());
    cluster.exec(&["rm", "-f", product.reset]);
    assert_eq!(cluster.management(), escrowed, "it is the one that was written down");
    for (server, token) in [(0, &escrowed), (1, &escrowed), (2, &escrowed), (0, &before)] {
        cluster.request(server, token, "", "acl/tokens").ok();
    }
    cluster.is_silent();
    // As the manual says: what was before stays valid, until it is taken away.
    let own = cluster.request(0, &before, "", "acl/token/self").ok().json();
    let accessor = own["AccessorID"].as_str().expect("it has one");
    cluster.request(0, &escrowed, "--request DELETE", &format!("acl/token/{accessor}")).ok();
}

/// Three servers, none of which has anything: the run stops before it touches one.
fn all_is_lost(cluster: &Cluster) {
    let Product { name, raft, .. } = cluster.product;
    cluster.lose(0..SERVERS);
    let lost = cluster.run(&[]).ends(4).says("this cluster was formed before, this server has none of its data");
    let lost = lost.says(&format!("controller secret delete {name}/formed")).says("no other one answers");
    assert_eq!(lost.counted("changed"), 0, "{}", lost.report());
    for server in 0..SERVERS {
        cluster.hosts.root(server, &format!("systemctl is-active {name}")).ends(3);
        cluster.hosts.root(server, &format!("test ! -e {raft}")).ok();
    }
    let checked = cluster.run(&["--check"]).ok().says("no other one answers");
    assert!(checked.counted("may_change") >= SERVERS as u64, "{}", checked.report());
}

/// Somebody starts them by hand. There it stands, and takes its bootstrap from whoever asks first: both are told.
fn an_empty_cluster_runs_all_the_same(cluster: &Cluster) {
    let name = cluster.product.name;
    for server in 0..SERVERS {
        cluster.hosts.root(server, &format!("systemctl start {name}")).ok();
    }
    let lost = cluster.run(&[]).ends(4).says("what answers now has never been bootstrapped");
    lost.says(&format!("{name} on these servers, and empty their data folders"));
    let stranger = cluster.request(1, "", "--request PUT", "acl/bootstrap").ok().json();
    let theirs = stranger["SecretID"].as_str().expect("a token was made").to_owned();
    let refused = cluster.run(&[]).ends(8).says("someone else bootstrapped this cluster");
    refused.says("Nothing was reset").says(&format!("docs/role-{name}.md")).never_says(&theirs);
    let tokens = cluster.request(1, &theirs, "", "acl/tokens").ok().json();
    // Consul has one of its own for requests without.
    let made = tokens.as_array().into_iter().flatten().filter(|token| token["AccessorID"] != ANONYMOUS).count();
    assert_eq!(made, 1, "{tokens}");
}

const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
