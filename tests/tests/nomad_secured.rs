//! The role nomad with certificates, gossip encrypted and ACLs on real hosts, secrets in the project's store: one run from bare
//! hosts to a secured cluster, nothing to do in the next, what is put back when somebody takes it away, changes that go through it
//! one by one, and a running cluster that is not led over by halves.

use std::time::{Duration, Instant};

use rollcall_engine::pki::Holder;
use rollcall_engine::secrets::grants::Product;
use rollcall_tests::{Aged, Borrowed, Lab, Project, Said, until};
use serde_json::Value;

const SERVERS: usize = 3;
const CLIENT: usize = SERVERS;
const ALL: usize = SERVERS + 1;

/// A job that the cluster has to keep.
const JOB: &str = r#"
job "kept" {
  datacenters = ["*"]
  group "one" {
    task "sleeps" {
      driver = "exec"
      config {
        command = "/bin/sleep"
        args    = ["100000"]
      }
      resources {
        cpu    = 50
        memory = 16
      }
    }
  }
}
"#;

/// Three servers and a client, and their project.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn plan(more: &str) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(ALL, "");
        let inventory = hosts.inventory(&[("nomad_servers", SERVERS), ("nomad_clients", 1)]);
        let project = Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory);
        project.add_settings("cluster: test\n");
        let cluster = Self { hosts, project };
        cluster.configure(more);
        cluster
    }

    fn configure(&self, more: &str) {
        let status = self.hosts.lab.status();
        let given =
            format!("nomad_mirror: {}\nnomad_bind_cidr: {}\nbase_time_sync: chrony\n", status.mirror, status.subnet);
        self.project.write("group_vars/all.yaml", &format!("{given}{more}"));
    }

    fn run(&self, more: &[&str]) -> Said {
        self.project.controller(["run", "nomad.yaml", "--json"].into_iter().chain(more.iter().copied()))
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

    /// A secret, fetched as a server may, from a place that is gone with the next boot.
    #[track_caller]
    fn secret(&self, name: &str) -> String {
        let play = format!(
            "- hosts: nomad_servers[0]\n  become: true\n  tasks:\n    - copy: {{content: \"{{{{ secret('{name}') }}}}\", dest: /run/secret, \
             mode: '0600'}}\n"
        );
        self.project.write("secret.yaml", &play);
        self.project.controller(["run", "secret.yaml"]).ok();
        let value = self.hosts.read(0, "/run/secret").trim().to_owned();
        self.hosts.root(0, "rm /run/secret").ok();
        value
    }

    /// A request to an agent, over HTTPS, with a token or (an empty one) without.
    fn request(&self, host: usize, token: &str, more: &str) -> Said {
        let token = if token.is_empty() { String::new() } else { format!("--header 'X-Nomad-Token: {token}'") };
        let ca = "--cacert /etc/nomad.d/tls/ca.pem";
        self.hosts.root(host, &format!("curl --silent --show-error --fail-with-body {ca} {token} {more}"))
    }

    /// What Nomad says of its servers when they are well: on a machine that is short of breath they may elect once more
    /// after all is done.
    #[track_caller]
    fn health(&self, host: usize, token: &str) -> Value {
        let options = "--retry 20 --retry-delay 1 --retry-all-errors --output /run/health";
        let ask = format!("{options} {API}/operator/autopilot/health && cat /run/health");
        self.request(host, token, &ask).ok().json()
    }

    /// Each server's name in Nomad, and who leads by all of them.
    #[track_caller]
    fn leader(&self, token: &str) -> String {
        let raft = self.request(0, token, &format!("{API}/operator/raft/configuration")).ok().json();
        let servers = raft["Servers"].as_array().into_iter().flatten();
        let leaders: Vec<&Value> = servers.filter(|server| server["Leader"] == true).collect();
        assert_eq!(leaders.len(), 1, "{raft}");
        leaders[0]["Node"].as_str().expect("it has a name").trim_end_matches(".global").to_owned()
    }

    /// All servers are healthy, and the client is ready, within a minute.
    #[track_caller]
    fn is_whole(&self, token: &str) {
        let begun = Instant::now();
        loop {
            let health = self.request(0, token, &format!("{API}/operator/autopilot/health")).text().to_owned();
            let nodes = self.request(0, token, &format!("{API}/nodes")).text().to_owned();
            if health.contains("\"FailureTolerance\":1") && nodes.contains("\"Status\":\"ready\"") {
                break;
            }
            assert!(begun.elapsed().as_secs() < 60, "{health} {nodes}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    #[track_caller]
    fn all(&self, line: &str) -> Vec<String> {
        (0..ALL).map(|host| self.hosts.root(host, line).ok().text().to_owned()).collect()
    }
}

const API: &str = "https://127.0.0.1:4646/v1";
const PROCESS: &str = "systemctl show --property MainPID --property ActiveEnterTimestamp nomad";

#[test]
fn one_run_leads_from_bare_hosts_to_a_secured_cluster() {
    // As the example says it.
    let example = rollcall_tests::root().join("examples/nomad-secured/group_vars/all.yaml");
    let settings = std::fs::read_to_string(&example).expect("the example is there");
    let cluster = Cluster::plan(&settings);
    // A check of bare hosts makes no secret.
    let checked = cluster.run(&["--check", "--diff"]).ok();
    assert!(checked.counted("changed") > 0, "{}", checked.report());
    let stores = format!("find '{}' -name '*.age'", cluster.project.home().display());
    assert_eq!(cluster.project.shell(&stores).ok().text(), "");

    let first = cluster.run(&["--diff"]).ok();
    let (management, own) = (cluster.secret("nomad/management"), cluster.secret("nomad/token/server"));
    for secret in [&management, &own] {
        assert_eq!(secret.len(), 36);
        assert!(!first.out.contains(secret.as_str()) && !first.err.contains(secret.as_str()), "a token was told");
    }
    cluster.is_silent();

    nobody_learns_anything_without(&cluster, &management, &own);
    whoever_takes_something_away(&cluster, &management, &own);
    a_token_that_was_made_and_not_kept_goes(&cluster, &management);
    a_change_goes_through_one_by_one(&cluster, &settings, &management);
    what_ends_soon_is_renewed(&cluster, &management);
    no_client_becomes_a_server(&cluster, &management);
}

fn nobody_learns_anything_without(cluster: &Cluster, management: &str, own: &str) {
    // The client was not too early: it is there at once.
    let nodes = cluster.request(0, management, &format!("{API}/nodes")).ok().json();
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
    for path in ["nodes", "jobs", "agent/self", "operator/autopilot/health", "acl/tokens"] {
        cluster.request(CLIENT, "", &format!("{API}/{path}")).ends(22).says("Permission denied");
    }
    // The servers' own token is good for how they are, and no more.
    let health = cluster.health(1, own);
    assert_eq!((&health["Healthy"], &health["FailureTolerance"]), (&Value::from(true), &Value::from(1)), "{health}");
    for path in ["acl/tokens", "jobs?namespace=default"] {
        let said = cluster.request(1, own, &format!("'{API}/{path}'"));
        assert!(said.code == 22 || said.text() == "[]", "{}", said.report());
    }
    // HTTPS only, by the cluster's authority only, also from another host.
    let address = cluster.hosts.host(0).address.clone();
    let there = format!("https://{address}:4646/v1/nodes");
    cluster.request(CLIENT, management, &there).ok();
    cluster.hosts.root(CLIENT, &format!("curl --silent --fail http://{address}:4646/v1/status/leader")).ends(22);
    cluster.hosts.root(CLIENT, &format!("curl --silent https://{address}:4646/v1/status/leader")).ends(60);
    // RPC asks for a certificate, and a client's is no server's.
    let rpc = |more: &str| {
        format!(
            "(printf '\\004'; sleep 3) | timeout 10 openssl s_client -connect {address}:4646 -CAfile \
             /etc/nomad.d/tls/ca.pem -verify_return_error {more} 2>&1"
        )
    };
    cluster.hosts.root(CLIENT, &rpc("-verify_hostname server.global.nomad")).ok();
    cluster.hosts.root(CLIENT, &rpc("-verify_hostname nomad.service.consul")).ok();
    let names = cluster.all("openssl x509 -in /etc/nomad.d/tls/cert.pem -noout -ext subjectAltName");
    assert!(names[0].contains("server.global.nomad") && names[0].contains("nomad.service.consul"), "{names:?}");
    assert!(names[CLIENT].contains("client.global.nomad") && !names[CLIENT].contains("server."), "{names:?}");
    // Without a certificate nobody gets to speak RPC; in the clear neither.
    let plain = format!("exec 3<> /dev/tcp/{address}/4647; printf '\\001' >&3; timeout 5 cat <&3");
    cluster.hosts.root(CLIENT, &format!("bash -c \"{plain}\"")).ok();
    let told = "journalctl --unit nomad | grep 'non-TLS connection attempted'";
    until(Duration::from_secs(20), "a line in Nomad's journal", || cluster.hosts.root(0, told).code == 0);
    cluster.hosts.root(0, "test -s /var/lib/nomad/server/serf.keyring").ok();

    // Where the tokens are: in no file of any host; and the search finds what is there.
    let search = |host: usize, what: &str| {
        let line = format!(
            "grep --recursive --files-with-matches --binary-files=text --exclude-dir=raft -e '{what}' /etc /run /var/lib /var/log /tmp /root \
             /home /opt || true"
        );
        cluster.hosts.root(host, &line).ok().out
    };
    let gossip = cluster.secret("nomad/gossip");
    for host in [0, CLIENT] {
        for secret in [management, own] {
            assert_eq!(search(host, secret), "", "{host}");
        }
    }
    assert_eq!(search(CLIENT, &gossip), "");
    let found = search(0, &gossip);
    assert!(found.contains("/etc/nomad.d/gossip.json") && found.lines().count() == 2, "the control: {found}");
}

fn whoever_takes_something_away(cluster: &Cluster, management: &str, own: &str) {
    let accessor = |token: &str| {
        let it = cluster.request(0, token, &format!("{API}/acl/token/self")).ok().json();
        it["AccessorID"].as_str().expect("it has one").to_owned()
    };
    let before = accessor(own);
    cluster.request(0, management, &format!("--request DELETE {API}/acl/token/{before}")).ok();
    cluster.request(0, management, &format!("--request DELETE {API}/acl/policy/rollcall-server")).ok();
    let open = r#"--request PUT --data '{"Name": "anonymous", "Rules": "node { policy = \"write\" }"}'"#;
    cluster.request(0, management, &format!("{open} {API}/acl/policy/anonymous")).ok();
    // Beside it one that somebody made and did not come to keep.
    let orphan = r#"--request PUT --data '{"Name": "Made by Rollcall: how servers are", "Type": "management"}'"#;
    cluster.request(0, management, &format!("{orphan} {API}/acl/token")).ok();
    let mended = cluster.run(&[]).ok();
    assert!(mended.counted("changed") >= 3, "{}", mended.report());
    cluster.request(0, "", &format!("{API}/nodes")).ends(22);
    let new = cluster.secret("nomad/token/server");
    assert_ne!(new, own, "Nomad chooses");
    assert_eq!(servers_tokens(cluster, management), [accessor(&new)]);
    cluster.is_silent();
}

/// Accessors of the tokens with which servers are asked how they are: Nomad's own list.
fn servers_tokens(cluster: &Cluster, management: &str) -> Vec<String> {
    let tokens = cluster.request(0, management, &format!("{API}/acl/tokens")).ok().json();
    let all = tokens.as_array().into_iter().flatten();
    all.filter(|token| token["Name"] == "Made by Rollcall: how servers are")
        .map(|token| token["AccessorID"].as_str().expect("it has one").to_owned())
        .collect()
}

/// The agent that asked for it dies (-9) after Nomad's answer and before the store, which somebody else holds, has taken it.
fn a_token_that_was_made_and_not_kept_goes(cluster: &Cluster, management: &str) {
    let project = &cluster.project;
    let before = servers_tokens(cluster, management);
    project.controller(["secret", "delete", "nomad/token/server", "--force"]).ok();
    let locks = project.shell(&format!("find '{}' -name '*.age.lock'", project.home().display())).ok();
    let holder = project.hold(locks.text());
    // One server alone: the others would go on, or take back what they made when they hear of its end.
    let running = project.start(["run", "nomad.yaml", "--json", "--limit", cluster.hosts.name(0)]);
    until(Duration::from_secs(100), "Nomad is not asked", || servers_tokens(cluster, management).len() != before.len());
    cluster.hosts.root(0, "pkill --signal KILL '^agent-'");
    let said = running.wait(Duration::from_mins(2));
    assert_ne!(said.code, 0, "{}", said.report());
    let left = servers_tokens(cluster, management);
    assert_eq!(left.len(), before.len() + 1, "nobody took it away: {before:?}, {left:?}\n{}", said.report());
    drop(holder);
    cluster.run(&[]).ok();
    let kept = cluster.secret("nomad/token/server");
    let own = cluster.request(0, &kept, &format!("{API}/acl/token/self")).ok().json();
    assert_eq!(servers_tokens(cluster, management), [own["AccessorID"].as_str().expect("it has one")]);
    cluster.is_silent();
}

fn a_change_goes_through_one_by_one(cluster: &Cluster, settings: &str, management: &str) {
    cluster.hosts.root(CLIENT, &format!("cat > /run/job.hcl <<'JOB'\n{JOB}\nJOB")).ok();
    let run = format!(
        "NOMAD_ADDR=https://127.0.0.1:4646 NOMAD_CACERT=/etc/nomad.d/tls/ca.pem NOMAD_TOKEN={management} nomad job run /run/job.hcl"
    );
    cluster.hosts.root(CLIENT, &run).ok();
    let leader = cluster.leader(management);
    cluster.configure(&format!("{settings}nomad_log_level: WARN\n"));
    let changed = cluster.run(&[]).ok();
    // Who led had another one chosen, before it stopped.
    let lines: Vec<Value> = changed.out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let handed: Vec<&Value> = lines
        .iter()
        .filter(|event| event["host"] == leader.as_str() && event.to_string().contains("\"leader\":\""))
        .collect();
    assert!(!handed.is_empty(), "{leader} led, and nobody was chosen: {}", changed.report());
    assert!(!changed.out.contains("was not to be learned"), "{}", changed.report());
    for server in 0..SERVERS {
        let stops = "journalctl --unit nomad --quiet | grep --count 'Stopping nomad' || true";
        assert_eq!(cluster.hosts.root(server, stops).ok().text(), "1");
    }
    let health = cluster.health(0, management);
    assert_eq!(health["FailureTolerance"], 1, "{health}");
    let jobs = cluster.request(CLIENT, management, &format!("{API}/job/kept/allocations")).ok().json();
    assert_eq!((jobs[0]["ClientStatus"].as_str(), jobs.as_array().map(Vec::len)), (Some("running"), Some(1)), "{jobs}");
    cluster.is_silent();
}

/// All agents have a certificate with little life left; then one that has ended, by which none of them talks to another.
fn what_ends_soon_is_renewed(cluster: &Cluster, management: &str) {
    let served = "openssl s_client -connect 127.0.0.1:4646 < /dev/null 2> /dev/null | openssl x509 -noout -serial";
    let task = "pgrep --oldest --full '/bin/sleep 100000'";
    let (before, kept) = (cluster.all(PROCESS), cluster.hosts.root(CLIENT, task).ok().out);
    for (sign, why) in
        [(Aged::ends_soon as fn(&Project, &Holder<'_>) -> Aged, "it ends on"), (Aged::ended, "it ended on")]
    {
        for host in 0..ALL {
            let server = host < SERVERS;
            let holder = Holder {
                product: Product::Nomad,
                server,
                client: !server,
                place: "global",
                domain: if server { "consul" } else { "" },
                node: cluster.hosts.name(host),
                address: &cluster.hosts.host(host).address,
            };
            let aged = sign(&cluster.project, &holder).install("/etc/nomad.d/tls");
            cluster.hosts.root(host, &format!("{aged}systemctl reload nomad")).ok();
        }
        let old = cluster.all("openssl x509 -in /etc/nomad.d/tls/cert.pem -noout -serial");
        until(Duration::from_secs(20), "agents that use it", || cluster.all(served) == old);
        let renewed = cluster.run(&[]).ok().says(why);
        // The certificate and the reload, on each. While nobody leads, what is to be done there waits.
        assert_eq!(renewed.counted("changed"), 2 * ALL as u64, "{}", renewed.report());
        until(Duration::from_secs(20), "new certificates on every host", || {
            old.iter().zip(&cluster.all(served)).all(|(old, new)| old != new)
        });
        let new = cluster.all(served);
        assert_eq!(new, cluster.all("openssl x509 -in /etc/nomad.d/tls/cert.pem -noout -serial"));
        cluster.all("openssl x509 -in /etc/nomad.d/tls/cert.pem -noout -checkend 20000000");
        cluster.is_whole(management);
        assert_eq!(cluster.all(PROCESS), before, "nothing restarts");
        assert_eq!(cluster.hosts.root(CLIENT, task).ok().out, kept, "and no task ends");
    }
    cluster.is_silent();
}

/// A client's host, with its certificate and the servers' gossip key, says that it is a server.
fn no_client_becomes_a_server(cluster: &Cluster, management: &str) {
    cluster.hosts.root(CLIENT, "systemctl stop nomad").ok();
    let config: Value =
        serde_json::from_str(&cluster.hosts.read(CLIENT, "/etc/nomad.d/nomad.json")).expect("it is JSON");
    let gossip: Value = serde_json::from_str(&cluster.hosts.read(0, "/etc/nomad.d/gossip.json")).expect("it is JSON");
    let start = |tls: &str, unit: &str| {
        let mut config = config.clone();
        let map = config.as_object_mut().expect("it is a mapping");
        let join = map["client"]["server_join"].clone();
        map.retain(|key, _| !["client", "plugin"].contains(&key.as_str()));
        config["server"] =
            serde_json::json!({"enabled": true, "server_join": join, "encrypt": gossip["server"]["encrypt"]});
        config["name"] = "rogue".into();
        config["data_dir"] = "/run/rogue/data".into();
        for (key, file) in [("ca_file", "ca.pem"), ("cert_file", "cert.pem"), ("key_file", "key.pem")] {
            config["tls"][key] = format!("{tls}/{file}").into();
        }
        // Whatever it asks of others, it asks nothing of them.
        config["tls"]["verify_server_hostname"] = false.into();
        let line = format!(
            "mkdir -p /run/rogue; cat > /run/rogue/nomad.json <<'EOT'\n{config}\nEOT\n\
             systemd-run --quiet --collect --unit {unit} nomad agent -config /run/rogue/nomad.json"
        );
        cluster.hosts.root(CLIENT, &line).ok();
    };
    let address = cluster.hosts.host(CLIENT).address.clone();
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
    // What it knows of the cluster, asked itself.
    let knows = || cluster.request(CLIENT, management, &format!("'{API}/jobs?stale'")).text().contains("\"kept\"");
    start("/etc/nomad.d/tls", "rogue");
    let refused =
        "journalctl --unit nomad --quiet | grep --count 'x509: certificate is valid for .*, not server.global.nomad'";
    let until = Instant::now() + Duration::from_mins(1);
    while (0..SERVERS).all(|server| cluster.hosts.root(server, refused).code != 0) {
        let journal = cluster.hosts.root(CLIENT, "journalctl --unit rogue --quiet | tail -20");
        assert!(Instant::now() < until, "nobody refuses it: {}", journal.report());
        std::thread::sleep(Duration::from_millis(500));
    }
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(voters(), (SERVERS, false), "it has no voice");
    assert!(!knows(), "it has none of the data");
    cluster.request(1, management, &format!("{API}/jobs")).ok().says("\"kept\"");
    cluster.hosts.root(CLIENT, "systemctl stop rogue; rm -rf /run/rogue/data").ok();

    // With a server's certificate, the same agent is taken for one at once: it is the certificate that kept it out.
    let files = ["ca.pem", "cert.pem", "key.pem"];
    cluster.hosts.hand_over((0, "/etc/nomad.d/tls"), (CLIENT, "/run/rogue/tls"), &files);
    start("/run/rogue/tls", "control");
    let until = Instant::now() + Duration::from_mins(2);
    while voters() != (SERVERS + 1, true) || !knows() {
        let journal = cluster.hosts.root(CLIENT, "journalctl --unit control --quiet | tail -20");
        assert!(Instant::now() < until, "the control does not get in: {}", journal.report());
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_running_cluster_is_not_led_over_by_halves() {
    let cluster = Cluster::plan("");
    cluster.run(&[]).ok();
    cluster.hosts.root(CLIENT, &format!("nomad job run - <<'JOB'\n{JOB}\nJOB")).ok();
    let before = cluster.all(PROCESS);
    for (settings, why) in [
        ("nomad_tls: true\n", "Nomad runs here without TLS, and nomad_tls is True"),
        ("nomad_encrypt: true\n", "a member of a cluster without gossip encryption"),
    ] {
        cluster.configure(settings);
        // Also where some of the hosts could.
        cluster.hosts.root(1, "systemctl stop nomad").ok();
        cluster.run(&[]).ends(4).says(why).says("systemctl stop nomad");
        cluster.all("test ! -e /etc/nomad.d/tls && test ! -e /etc/nomad.d/gossip.json");
        cluster.hosts.root(1, "systemctl start nomad").ok();
    }
    assert_eq!(cluster.all(PROCESS)[0], before[0]);
    // ACLs alone are turned on while it runs.
    cluster.configure("nomad_acl: true\n");
    cluster.run(&[]).ok();
    cluster.is_silent();
    // All at once, as it is told: what the cluster knew, it knows.
    cluster.configure("nomad_tls: true\nnomad_encrypt: true\nnomad_acl: true\n");
    cluster.project.controller(["exec", "nomad_servers:nomad_clients", "-b", "--", "systemctl", "stop", "nomad"]).ok();
    cluster.run(&[]).ok();
    cluster.is_silent();
    let management = cluster.secret("nomad/management");
    let jobs = cluster.request(CLIENT, &management, &format!("{API}/job/kept/allocations")).ok().json();
    assert_eq!((jobs[0]["ClientStatus"].as_str(), jobs.as_array().map(Vec::len)), (Some("running"), Some(1)), "{jobs}");
    // Its authority is lost, with its key: another one is not taken over by agents that talk by it.
    for name in ["ca/key", "ca/certificate"] {
        cluster.project.controller(["secret", "delete", name, "--force"]).ok();
    }
    let authority = cluster.all("cat /etc/nomad.d/tls/ca.pem");
    cluster.run(&[]).ends(4).says("is in use, and is of another authority");
    cluster.project.controller(["exec", "nomad_servers:nomad_clients", "-b", "--", "systemctl", "stop", "nomad"]).ok();
    cluster.run(&[]).ok();
    cluster.is_silent();
    assert_ne!(cluster.all("cat /etc/nomad.d/tls/ca.pem"), authority);
    cluster.is_whole(&management);
    let jobs = cluster.request(CLIENT, &management, &format!("{API}/job/kept/allocations")).ok().json();
    assert_eq!((jobs[0]["ClientStatus"].as_str(), jobs.as_array().map(Vec::len)), (Some("running"), Some(1)), "{jobs}");
    // And not back by halves either.
    cluster.configure("nomad_encrypt: true\nnomad_acl: true\n");
    cluster.run(&[]).ends(4).says("Nomad runs here with TLS, and nomad_tls is False");
}
