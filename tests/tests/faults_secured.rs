//! A secured cluster, of Consul and of Nomad, that is made while something is wrong: the store of its secrets does not answer, clocks are off
//! by an hour, a disk is full, two controllers come at once. A run says what is in the way, nothing is done by halves, and the
//! next one finishes.

use std::time::{Duration, Instant};

use rollcall_tests::servers::lab_program;
use rollcall_tests::{Borrowed, Lab, Project, Running, Said, until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(5);

/// What differs between the products.
#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    /// How the agent of a host is asked: the address, and who signed its certificate.
    api: &'static str,
    header: &'static str,
    /// Part of how a token looks that may do everything.
    management: &'static str,
    /// Where its Vault listens, on loopback of the lab's network: both may run at the same time, and each takes the next port as well.
    vault: &'static str,
    /// Who is in the cluster, as a server tells it.
    alive: fn(&Cluster) -> usize,
}

const CONSUL: Product = Product {
    name: "consul",
    api: "http://127.0.0.1:8500/v1",
    header: "X-Consul-Token",
    management: "global-management",
    vault: "127.0.0.1:18200",
    alive: |cluster| {
        let members = cluster.ask("agent/members");
        members.as_array().into_iter().flatten().filter(|member| member["Status"] == 1).count()
    },
};

const NOMAD: Product = Product {
    name: "nomad",
    api: "--cacert /etc/nomad.d/tls/ca.pem https://127.0.0.1:4646/v1",
    header: "X-Nomad-Token",
    management: "\"management\"",
    vault: "127.0.0.1:18210",
    alive: |cluster| {
        let (members, nodes) = (cluster.ask("agent/members"), cluster.ask("nodes"));
        let servers = members["Members"].as_array().into_iter().flatten().filter(|member| member["Status"] == "alive");
        servers.count() + nodes.as_array().into_iter().flatten().filter(|node| node["Status"] == "ready").count()
    },
};

/// Servers and one client, which is the last.
struct Cluster {
    product: Product,
    hosts: Borrowed,
    project: Project,
    servers: usize,
}

impl Cluster {
    fn plan(product: Product, servers: usize, more: &[&str]) -> Self {
        let name = product.name;
        let lab = Lab::shared();
        let hosts = lab.borrow(servers + 1, "");
        let inventory = hosts.inventory(&[(&format!("{name}_servers"), servers), (&format!("{name}_clients"), 1)]);
        let status = lab.status();
        let mut vars =
            format!("{name}_mirror: {}\n{name}_bind_cidr: {}\nbase_time_sync: chrony\n", status.mirror, status.subnet);
        for given in ["tls: true", "encrypt: true", "acl: true"].iter().chain(more) {
            vars.push_str(&format!("{name}_{given}\n"));
        }
        let project =
            Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("group_vars/all.yaml", &vars);
        project.add_settings("cluster: test\n");
        Self { product, hosts, project, servers }
    }

    fn playbook(&self) -> String {
        format!("{}.yaml", self.product.name)
    }

    fn run(&self) -> Said {
        self.project.controller(["run", &self.playbook(), "--json"])
    }

    fn start(&self) -> Running {
        self.project.start(["run", &self.playbook(), "--json"])
    }

    #[track_caller]
    fn is_silent(&self) {
        let again = self.run().ok();
        assert_eq!((again.counted("changed"), again.counted("failed")), (0, 0), "{}", again.report());
    }

    /// What the first server answers to whom everything is allowed.
    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let Product { name, api, header, .. } = self.product;
        let token = self.project.controller(["secret", "get", &format!("{name}/management")]).ok();
        self.hosts
            .root(0, &format!("curl --silent --fail --header '{header}: {}' {api}/{path}", token.text()))
            .ok()
            .json()
    }

    /// How many management tokens there are; `None` while nobody has bootstrapped, or nobody answers.
    #[track_caller]
    fn management_tokens(&self) -> Option<usize> {
        let Product { api, header, management, .. } = self.product;
        let unknown = format!("{header}: 7dfb6ba6-0ee9-4d91-8a3a-9a4f1d7a3c11");
        let said = self.hosts.root(0, &format!("curl --silent --header '{unknown}' {api}/acl/policies"));
        if said.out.contains("must be bootstrapped") || said.code != 0 {
            return None;
        }
        let tokens = self.ask("acl/tokens");
        let all = tokens.as_array().into_iter().flatten();
        Some(all.filter(|token| token.to_string().contains(management)).count())
    }

    /// All members know each other.
    #[track_caller]
    fn is_whole(&self) {
        assert_eq!(self.management_tokens(), Some(1));
        let until = Instant::now() + Duration::from_secs(20);
        // A client of Nomad is ready a moment after it is registered.
        while (self.product.alive)(self) != self.servers + 1 {
            assert!(Instant::now() < until, "{} of {} are there", (self.product.alive)(self), self.servers + 1);
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// A Vault in the lab's network, as its developers start it: in memory, with a key that opens it.
struct Vault<'a> {
    project: &'a Project,
    _server: Running,
    /// Its address.
    listen: &'static str,
    key: String,
}

impl<'a> Vault<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let (project, lab, listen) = (&cluster.project, &cluster.hosts.lab, cluster.product.vault);
        project.write("vault-token", "the-first-token");
        project.shell("chmod 600 vault-token").ok();
        project.add_settings(&format!(
            "store: {{type: vault, address: 'http://{listen}', token_file: vault-token, patience: 4}}\n"
        ));
        let log = project.path().join("vault.log");
        let line = format!(
            "exec '{}' server -dev -dev-no-store-token -dev-listen-address={listen} -dev-root-token-id=the-first-token > '{}' 2>&1",
            lab_program("vault").display(),
            log.display()
        );
        let server = Running::start(&mut lab.command(["shell", "--", "bash", "-c", &line]));
        let until = Instant::now() + Duration::from_mins(1);
        let key = loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let key = said.lines().find_map(|line| line.strip_prefix("Unseal Key: ").map(str::to_owned));
            if let Some(key) = key.filter(|_| said.contains("Root Token:")) {
                break key;
            }
            assert!(Instant::now() < until, "Vault does not start: {said}");
            std::thread::sleep(Duration::from_millis(100));
        };
        Self { project, _server: server, listen, key }
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &str) -> Said {
        let (token, listen) = ("X-Vault-Token: the-first-token", self.listen);
        self.project.shell(&format!(
            "curl --silent --fail --header '{token}' -X {method} -d '{body}' http://{listen}/v1/{path}"
        ))
    }

    fn seal(&self) {
        self.call("PUT", "sys/seal", "").ok();
    }

    /// Closes it as soon as it holds a secret: by one shell, since the next secret comes within a fraction of a second.
    #[track_caller]
    fn seal_when_it_has(&self, name: &str) {
        let (call, api) = (
            "curl --silent --fail --output /dev/null --header 'X-Vault-Token: the-first-token'",
            format!("http://{}/v1", self.listen),
        );
        let line = format!(
            "for turn in $(seq 10000); do\n  if {call} {api}/secret/data/rollcall/test/{name}; then\n    \
             exec {call} -X PUT {api}/sys/seal\n  fi\n  sleep 0.01\ndone\nexit 1"
        );
        self.project.shell(&line).ok();
    }

    fn unseal(&self) {
        self.call("PUT", "sys/unseal", &format!("{{\"key\": \"{}\"}}", self.key)).ok();
        until(Duration::from_secs(30), "Vault stays closed", || self.call("GET", "sys/health", "").code == 0);
    }
}

fn a_store_is_closed(product: Product) {
    let cluster = Cluster::plan(product, 1, &["acl_wait: 20"]);
    let vault = Vault::start(&cluster);
    let name = product.name;

    vault.seal();
    let before = cluster.run();
    assert_ne!(before.code, 0, "{}", before.report());
    before.says("sealed");
    assert_eq!(cluster.management_tokens(), None, "nothing is bootstrapped whose token nobody keeps");

    // It closes as soon as it holds the token.
    vault.unseal();
    let run = cluster.start();
    vault.seal_when_it_has(&format!("{name}/management"));
    let during = run.wait(LIMIT);
    assert_ne!(during.code, 0, "what comes after it cannot be kept: {}", during.report());
    during.says("sealed");
    vault.unseal();
    cluster.run().ok();
    cluster.is_whole();
    cluster.is_silent();

    let pid = || cluster.hosts.root(0, &format!("systemctl show --property MainPID --value {name}")).ok().out;
    let running = pid();
    vault.seal();
    let after = cluster.run();
    assert_ne!(after.code, 0, "{}", after.report());
    after.says("sealed");
    assert_eq!(pid(), running);
    vault.unseal();
    cluster.is_whole();
    cluster.is_silent();
}

#[test]
fn a_store_that_is_closed_before_during_and_after_a_bootstrap_costs_time_only() {
    a_store_is_closed(CONSUL);
}

#[test]
fn a_store_that_is_closed_before_during_and_after_nomads_bootstrap_costs_time_only() {
    a_store_is_closed(NOMAD);
}

/// Where the package for false clocks puts its library.
const CLOCK: &str = "/usr/lib/*/faketime/libfaketimeMT.so.1";

fn clocks_are_off(product: Product) {
    // Between who signs and who uses the certificates there are two.
    let (controllers, agents) = ("+1h", "-1h");
    let cluster = Cluster::plan(product, 1, &[]);
    // What sudo starts there, the agent, lives in another time.
    let wrapper = format!(
        "apt-get install --yes libfaketime > /dev/null\ncat > /usr/local/bin/sudo << 'EOT'\n#!/bin/sh\nshift 2\n\
         exec /usr/bin/sudo -n env LD_PRELOAD=$(ls {CLOCK}) FAKETIME={agents} \"$@\"\nEOT\nchmod 0755 /usr/local/bin/sudo"
    );
    for host in 0..2 {
        cluster.hosts.root(host, &wrapper).ok();
    }
    let controller = rollcall_tests::program("controller");
    let line = format!(
        "LD_PRELOAD=$(ls {CLOCK}) FAKETIME={controllers} '{}' run {}",
        controller.display(),
        cluster.playbook()
    );
    cluster.project.shell(&line).ok();
    let certificate = format!("/etc/{}.d/tls/cert.pem", product.name);
    let seen = cluster.hosts.root(1, &format!("openssl x509 -in {certificate} -noout -startdate")).ok();
    let clock = cluster.project.shell("date --utc +%s").ok().text().parse::<i64>().expect("a number");
    let begins = seen.text().trim_start_matches("notBefore=").to_owned();
    let begins = cluster.project.shell(&format!("date --utc --date '{begins}' +%s")).ok();
    let ago = clock - begins.text().parse::<i64>().expect("a number");
    // An hour before the clock of who signs: the clock was off, and was not off too far.
    assert!((-60..=900).contains(&ago), "the certificate counts since {ago} s");
    for host in 0..2 {
        cluster.hosts.root(host, "rm /usr/local/bin/sudo").ok();
    }
    cluster.is_whole();
    cluster.is_silent();
}

#[test]
fn clocks_that_are_off_by_an_hour_make_the_same_cluster() {
    clocks_are_off(CONSUL);
}

#[test]
fn clocks_that_are_off_by_an_hour_make_the_same_cluster_of_nomad() {
    clocks_are_off(NOMAD);
}

fn a_disk_is_full(product: Product) {
    let cluster = Cluster::plan(product, 3, &[]);
    let full = cluster.hosts.name(1).to_owned();
    cluster.hosts.lab.lab(["fault", &full, "disk-full"]).ok();
    // The others wait for it in vain.
    let wait = format!("{}_wait=20", product.name);
    let said = cluster.project.controller(["run", &cluster.playbook(), "--json", "-e", &wait]);
    assert_ne!(said.code, 0, "{}", said.report());
    said.says("No space left on device");
    cluster.hosts.lab.lab(["fault", &full, "clear"]).ok();
    cluster.run().ok();
    cluster.is_whole();
    cluster.is_silent();
}

#[test]
fn a_server_whose_disk_is_full_is_told_and_joins_when_it_has_room() {
    a_disk_is_full(CONSUL);
}

#[test]
fn a_server_of_nomad_whose_disk_is_full_is_told_and_joins_when_it_has_room() {
    a_disk_is_full(NOMAD);
}

fn two_controllers_come(product: Product) {
    let cluster = Cluster::plan(product, 3, &[]);
    let runs: Vec<Running> = (0..2).map(|_| cluster.start()).collect();
    let ended: Vec<Said> = runs.into_iter().map(|run| run.wait(LIMIT)).collect();
    // One may be told that the other has the hosts.
    assert!(ended.iter().all(|said| [0, 2, 7].contains(&said.code)), "{}\n{}", ended[0].report(), ended[1].report());
    cluster.run().ok();
    cluster.is_whole();
    cluster.is_silent();
}

#[test]
fn two_controllers_at_once_make_one_cluster() {
    two_controllers_come(CONSUL);
}

#[test]
fn two_controllers_at_once_make_one_cluster_of_nomad() {
    two_controllers_come(NOMAD);
}
