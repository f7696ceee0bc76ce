//! A secured Consul cluster that is made while something is wrong: the store of its secrets does not answer, clocks are off by an
//! hour, a disk is full, two controllers come at once. A run says what is in the way, nothing is done by halves, and the
//! next one finishes.

use std::time::{Duration, Instant};

use rollcall_tests::servers::lab_program;
use rollcall_tests::{Borrowed, Lab, Project, Running, Said};
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(5);
const API: &str = "http://127.0.0.1:8500/v1";

/// Servers and one client, which is the last.
struct Cluster {
    hosts: Borrowed,
    project: Project,
    servers: usize,
}

impl Cluster {
    fn plan(servers: usize, more: &str) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(servers + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", servers), ("consul_clients", 1)]);
        let status = lab.status();
        let vars = format!(
            "consul_mirror: {}\nconsul_bind_cidr: {}\nbase_time_sync: chrony\nconsul_tls: true\nconsul_encrypt: true\nconsul_acl: true\n{more}",
            status.mirror, status.subnet
        );
        let project =
            Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("group_vars/all.yaml", &vars);
        project.add_settings("cluster: test\n");
        Self { hosts, project, servers }
    }

    fn run(&self) -> Said {
        self.project.controller(["run", "consul.yaml", "--json"])
    }

    #[track_caller]
    fn is_silent(&self) {
        let again = self.run().ok();
        assert_eq!((again.counted("changed"), again.counted("failed")), (0, 0), "{}", again.report());
    }

    /// How many management tokens there are; `None` while nobody has bootstrapped.
    #[track_caller]
    fn management_tokens(&self) -> Option<usize> {
        let unknown = "X-Consul-Token: 7dfb6ba6-0ee9-4d91-8a3a-9a4f1d7a3c11";
        let said = self.hosts.root(0, &format!("curl --silent --header '{unknown}' {API}/acl/policies"));
        if said.out.contains("must be bootstrapped") || said.code != 0 {
            return None;
        }
        let token = self.project.controller(["secret", "get", "consul/management"]).ok();
        let ask = format!("curl --silent --fail --header 'X-Consul-Token: {}' {API}/acl/tokens", token.text());
        let tokens: Value = self.hosts.root(0, &ask).ok().json();
        let all = tokens.as_array().into_iter().flatten();
        Some(all.filter(|token| token["Policies"].to_string().contains("global-management")).count())
    }

    /// All members know each other.
    #[track_caller]
    fn is_whole(&self) {
        assert_eq!(self.management_tokens(), Some(1));
        let token = self.project.controller(["secret", "get", "consul/management"]).ok();
        let ask = format!("curl --silent --fail --header 'X-Consul-Token: {}' {API}/agent/members", token.text());
        let members = self.hosts.root(0, &ask).ok().json();
        let alive = members.as_array().into_iter().flatten().filter(|member| member["Status"] == 1).count();
        assert_eq!(alive, self.servers + 1, "{members}");
    }
}

/// A Vault in the lab's network, as its developers start it: in memory, with a key that opens it.
struct Vault<'a> {
    project: &'a Project,
    _server: Running,
    key: String,
}

const VAULT: &str = "http://127.0.0.1:18200";

impl<'a> Vault<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let (project, lab) = (&cluster.project, &cluster.hosts.lab);
        project.write("vault-token", "the-first-token");
        project.shell("chmod 600 vault-token").ok();
        project.add_settings(&format!(
            "store: {{type: vault, address: '{VAULT}', token_file: vault-token, patience: 4}}\n"
        ));
        let log = project.path().join("vault.log");
        let line = format!(
            "exec '{}' server -dev -dev-no-store-token -dev-listen-address=127.0.0.1:18200 -dev-root-token-id=the-first-token > '{}' 2>&1",
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
        Self { project, _server: server, key }
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &str) -> Said {
        let token = "X-Vault-Token: the-first-token";
        self.project
            .shell(&format!("curl --silent --fail --header '{token}' -X {method} -d '{body}' {VAULT}/v1/{path}"))
    }

    fn seal(&self) {
        self.call("PUT", "sys/seal", "").ok();
    }

    fn unseal(&self) {
        self.call("PUT", "sys/unseal", &format!("{{\"key\": \"{}\"}}", self.key)).ok();
        let until = Instant::now() + Duration::from_secs(30);
        while self.call("GET", "sys/health", "").code != 0 {
            assert!(Instant::now() < until, "Vault stays closed");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_store_that_is_closed_before_during_and_after_a_bootstrap_costs_time_only() {
    let cluster = Cluster::plan(1, "consul_acl_wait: 20\n");
    let vault = Vault::start(&cluster);

    vault.seal();
    let before = cluster.run();
    assert_ne!(before.code, 0, "{}", before.report());
    before.says("sealed");
    assert_eq!(cluster.management_tokens(), None, "nothing is bootstrapped whose token nobody keeps");

    // It closes as soon as it holds the token.
    vault.unseal();
    let run = cluster.project.start(["run", "consul.yaml", "--json"]);
    let until = Instant::now() + LIMIT;
    while vault.call("GET", "secret/data/rollcall/test/consul/management", "").code != 0 {
        assert!(Instant::now() < until, "no token was kept");
        std::thread::sleep(Duration::from_millis(20));
    }
    vault.seal();
    let during = run.wait(LIMIT);
    assert_ne!(during.code, 0, "the tokens of nodes cannot be kept: {}", during.report());
    during.says("sealed");
    vault.unseal();
    cluster.run().ok();
    cluster.is_whole();
    cluster.is_silent();

    let pid = || cluster.hosts.root(0, "systemctl show --property MainPID --value consul").ok().out;
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

/// Where the package for false clocks puts its library.
const CLOCK: &str = "/usr/lib/*/faketime/libfaketimeMT.so.1";

#[test]
fn clocks_that_are_off_by_an_hour_make_the_same_cluster() {
    // Between who signs and who uses the certificates there are two.
    let (controllers, agents) = ("+1h", "-1h");
    let cluster = Cluster::plan(1, "");
    // What sudo starts there, the agent, lives in another time.
    let wrapper = format!(
        "apt-get install --yes libfaketime > /dev/null\ncat > /usr/local/bin/sudo << 'EOT'\n#!/bin/sh\nshift 2\n\
         exec /usr/bin/sudo -n env LD_PRELOAD=$(ls {CLOCK}) FAKETIME={agents} \"$@\"\nEOT\nchmod 0755 /usr/local/bin/sudo"
    );
    for host in 0..2 {
        cluster.hosts.root(host, &wrapper).ok();
    }
    let controller = rollcall_tests::program("controller");
    let line = format!("LD_PRELOAD=$(ls {CLOCK}) FAKETIME={controllers} '{}' run consul.yaml", controller.display());
    cluster.project.shell(&line).ok();
    let seen = cluster.hosts.root(1, "openssl x509 -in /etc/consul.d/tls/cert.pem -noout -startdate").ok();
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
fn a_server_whose_disk_is_full_is_told_and_joins_when_it_has_room() {
    let cluster = Cluster::plan(3, "");
    let full = cluster.hosts.name(1).to_owned();
    cluster.hosts.lab.lab(["fault", &full, "disk-full"]).ok();
    let said = cluster.run();
    assert_ne!(said.code, 0, "{}", said.report());
    said.says("No space left on device");
    cluster.hosts.lab.lab(["fault", &full, "clear"]).ok();
    cluster.run().ok();
    cluster.is_whole();
    cluster.is_silent();
}

#[test]
fn two_controllers_at_once_make_one_cluster() {
    let cluster = Cluster::plan(3, "");
    let runs: Vec<Running> = (0..2).map(|_| cluster.project.start(["run", "consul.yaml"])).collect();
    let ended: Vec<Said> = runs.into_iter().map(|run| run.wait(LIMIT)).collect();
    // One may be told that the other has the hosts.
    assert!(ended.iter().all(|said| [0, 2, 7].contains(&said.code)), "{}\n{}", ended[0].report(), ended[1].report());
    cluster.run().ok();
    cluster.is_whole();
    cluster.is_silent();
}
