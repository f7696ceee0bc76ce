//! The roles base and consul on real hosts, with the real Consul: a cluster forms, a second run changes nothing, what is wrong is
//! refused before it does harm, and a change to all servers goes through them one by one under a writer.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Lab, Project, Running, Said, until};
use serde_json::Value;

const SERVERS: usize = 3;

/// Three servers and a client, and the project that makes a cluster of them.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn plan() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(SERVERS + 1, "");
        let inventory = hosts.inventory(&[("consul_servers", SERVERS), ("consul_clients", 1)]);
        let project =
            Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("group_vars/all.yaml", "{}\n");
        let cluster = Self { hosts, project };
        cluster.configure("");
        cluster
    }

    fn run<'a>(&self, more: impl IntoIterator<Item = &'a str>) -> Said {
        self.project.controller(["run", "consul.yaml", "--json"].into_iter().chain(more))
    }

    /// The variables of all hosts. In a container nobody keeps the clock unless told to; the lab's hosts have a chrony that
    /// never sets it.
    fn configure(&self, more: &str) {
        let status = self.hosts.lab.status();
        let given = format!(
            "consul_mirror: {}\nconsul_datacenter: test\nconsul_bind_cidr: {}\nbase_time_sync: chrony\n",
            status.mirror, status.subnet
        );
        self.project.write("group_vars/all.yaml", &format!("{given}{more}"));
    }

    /// Root's shell on the client, from which the cluster is looked at.
    #[track_caller]
    fn client(&self, line: &str) -> Said {
        self.hosts.root(SERVERS, line)
    }

    fn background(&self, script: &str) -> Running {
        let mut command = self.hosts.lab.command(["exec", "--direct", self.hosts.name(SERVERS), "--", script]);
        Running::start(&mut command)
    }

    /// Journals begin anew: what is counted from here on is of here on.
    fn journals_begin(&self) {
        for host in 0..=SERVERS {
            self.hosts
                .root(
                    host,
                    "journalctl --quiet --rotate --vacuum-time=1us && sleep 1 && journalctl --quiet --vacuum-time=1us",
                )
                .ok();
        }
    }

    /// Lines of the unit's journal on a host, with the seconds since 1970 in front.
    fn journal(&self, host: usize, pattern: &str) -> Vec<(f64, String)> {
        let said = self
            .hosts
            .root(host, &format!("journalctl --unit consul --output short-unix --quiet | grep '{pattern}' || true"))
            .ok();
        let line = |line: &str| {
            let (time, rest) = line.split_once(' ').expect("a time stands in front");
            (time.parse().expect("it is a number"), rest.to_owned())
        };
        said.out.lines().map(line).collect()
    }

    fn elections(&self) -> usize {
        (0..SERVERS).map(|server| self.journal(server, "election won").len()).sum()
    }
}

impl Cluster {
    /// A writer's lines `number code …`: no more failures than elections, and what was acknowledged is there under the prefix.
    #[track_caller]
    fn writes_held(&self, file: &str, prefix: &str, elections: usize) {
        let writes = self.client(&format!("cat {file}")).ok().out;
        let acknowledged = |line: &&str| line.split(' ').nth(1) == Some("200");
        let failed: Vec<&str> = writes.lines().filter(|line| !acknowledged(line)).collect();
        assert!(writes.lines().count() > 100, "{writes}");
        assert!(
            failed.len() <= elections,
            "{file}: {} failed writes, {elections} elections:\n{}",
            failed.len(),
            failed.join("\n")
        );
        let done = writes.lines().filter(acknowledged).count();
        let kept = self.client(&format!("curl --silent 'http://127.0.0.1:8500/v1/kv/{prefix}/?keys'")).ok().json();
        assert!(kept.as_array().is_some_and(|keys| keys.len() >= done), "{done} acknowledged, {kept}");
    }
}

#[test]
fn a_cluster_forms_and_a_second_run_changes_nothing() {
    let cluster = Cluster::plan();
    // What a check says of fresh hosts, it says without touching them.
    let checked = cluster.run(["--check", "--diff", "--limit", "consul_servers"]).ok();
    assert!(checked.counted("changed") > 0 && checked.counted("failed") == 0, "{}", checked.report());
    for server in 0..SERVERS {
        cluster.hosts.root(server, "ls -d /opt/consul /etc/consul.d /etc/sysctl.d/60-rollcall.conf; id consul").ends(1);
    }
    let first = cluster.run(["--limit", "consul_servers"]).ok();
    assert!(first.counted("changed") >= checked.counted("changed"), "{}\n{}", checked.report(), first.report());
    cluster.run([]).ok();

    let members = cluster.client("consul members").ok().out;
    assert_eq!(
        members.lines().filter(|line| line.contains(" alive ") && line.contains(" server ")).count(),
        SERVERS,
        "{members}"
    );
    assert_eq!(
        members.lines().filter(|line| line.contains(" alive ") && line.contains(" client ")).count(),
        1,
        "{members}"
    );
    // Consul takes a new server for stable after ten seconds.
    until(Duration::from_mins(1), "three healthy voters", || {
        let health = cluster.client("curl --silent http://127.0.0.1:8500/v1/operator/autopilot/health").ok().json();
        (&health["Healthy"], &health["FailureTolerance"]) == (&Value::from(true), &Value::from(1))
    });
    cluster.client("resolvectl query consul.service.consul").ok().says(&cluster.hosts.host(0).address);
    let modes =
        "stat --format '%n %a %U:%G' /etc/consul.d /etc/consul.d/consul.json /var/lib/consul /opt/consul/*/consul";
    assert_eq!(
        cluster.client(modes).ok().out,
        "/etc/consul.d 750 root:consul\n/etc/consul.d/consul.json 640 root:consul\n/var/lib/consul 750 consul:consul\n\
         /opt/consul/1.22.2/consul 755 root:root\n"
    );
    cluster.client("readlink /usr/local/bin/consul").ok().says("/opt/consul/1.22.2/consul");
    cluster.client("systemctl is-enabled consul; systemctl is-system-running").ok().says("enabled").says("running");
    cluster.client("systemctl is-active chrony").ok();
    assert_eq!(cluster.client("cat /proc/sys/net/core/somaxconn").ok().text(), "4096");
    // A first start is one start.
    for server in 0..SERVERS {
        assert_eq!(cluster.journal(server, "Started consul").len(), 1);
    }

    let started = cluster.client("systemctl show --property ActiveEnterTimestamp consul").ok().out;
    for more in [&[][..], &["--check"]] {
        let again = cluster.run(more.iter().copied()).ok();
        for what in ["changed", "failed", "may_change"] {
            assert_eq!(again.counted(what), 0, "{what}: {}", again.report());
        }
    }
    assert_eq!(cluster.client("systemctl show --property ActiveEnterTimestamp consul").ok().out, started);

    a_server_that_does_not_come_up_is_put_back_and_the_others_are_left_alone(&cluster);
    releases_change_one_by_one_and_one_that_does_not_start_is_taken_back(&cluster);
}

#[test]
fn a_change_to_all_servers_goes_one_by_one_under_a_writer() {
    let cluster = Cluster::plan();
    cluster.configure("consul_client_addr: 0.0.0.0\n");
    cluster.run([]).ok();

    // What Consul refuses does not get to its place, and nothing restarts.
    let before = cluster.hosts.read(0, "/etc/consul.d/consul.json");
    cluster.configure("consul_client_addr: 0.0.0.0\nconsul_config: {serverr: 1}\n");
    cluster.run([]).ends(4).says("invalid config key serverr");
    assert_eq!(cluster.hosts.read(0, "/etc/consul.d/consul.json"), before);
    cluster.project.write("files/more.hcl", "limits { http_max = 500 }\n");
    cluster.configure("consul_config_files: [more.hcl]\n");
    cluster.run([]).ends(4).says("invalid config key limits.http_max");
    cluster.hosts.root(0, "ls /etc/consul.d/override-more.hcl").ends(2);
    // What is known to be wrong before the run ends it before anything is touched.
    cluster
        .run(["-e", "consul_bind_cidr=172.16.0.0/12"])
        .ends(3)
        .says("the network 172.16.0.0/12 (consul_bind_cidr) gives 0 addresses");
    for server in 0..SERVERS {
        assert_eq!(cluster.journal(server, "Started consul").len(), 1);
    }

    // Ten writes a second to the servers: one that refuses the connection, or sends the writer elsewhere, has not got the write,
    // so that the next one is asked, as programs with several addresses do. Whatever a server was sent and did not confirm
    // counts as failed. Ten more to the client's own agent, which has to find a server by itself. And a look at the cluster
    // five times a second.
    cluster.client("mkdir -p /run/test").ok();
    let addresses: Vec<&str> = (0..SERVERS).map(|server| cluster.hosts.host(server).address.as_str()).collect();
    let writer = cluster.background(&format!(
        "set -- {}; n=0; while [ ! -e /run/test/stop ]; do n=$((n+1)); \
         while :; do code=$(curl --silent --max-time 20 --output /run/test/body --write-out '%{{http_code}}' --request PUT --data $n http://$1:8500/v1/kv/test/$n); \
         end=$?; [ $end = 7 ] || {{ [ $code = 429 ] && grep -q 'different server' /run/test/body; }} || break; \
         [ ! -e /run/test/stop ] || break; first=$1; shift; set -- \"$@\" $first; sleep 0.01; done; \
         echo \"$n $code $end $1 $(head -c 200 /run/test/body)\" >> /run/test/writes; sleep 0.1; done",
        addresses.join(" ")
    ));
    let behind = cluster.background(
        "n=0; while [ ! -e /run/test/stop ]; do n=$((n+1)); \
         code=$(curl --silent --max-time 20 --output /run/test/answer --write-out '%{http_code}' --request PUT --data $n http://127.0.0.1:8500/v1/kv/behind/$n); \
         echo \"$n $code $(head -c 200 /run/test/answer)\" >> /run/test/behind; sleep 0.1; done",
    );
    let observer = cluster.background(
        "while [ ! -e /run/test/stop ]; do now=$(date +%s.%N); \
         echo \"$now $(curl --silent --max-time 2 http://127.0.0.1:8500/v1/operator/autopilot/health)\" >> /run/test/health; sleep 0.2; done",
    );
    std::thread::sleep(Duration::from_secs(2));
    let elections = cluster.elections();
    cluster.project.write("files/more.hcl", "limits { http_max_conns_per_client = 500 }\n");
    let license = "/etc/consul.d/rollcall.hclic";
    cluster.configure("consul_client_addr: 0.0.0.0\nconsul_config_files: [more.hcl]\nconsul_license: the-licence\n");
    let changed = cluster.run(["--limit", "consul_servers"]).ok();
    let elections = cluster.elections() - elections;
    cluster.client("sleep 1; touch /run/test/stop").ok();
    writer.wait(Duration::from_mins(10)).ok();
    behind.wait(Duration::from_mins(10)).ok();
    observer.wait(Duration::from_mins(10)).ok();
    assert_eq!(
        changed.counted("changed"),
        4 * SERVERS as u64,
        "three files and the restart, each: {}",
        changed.report()
    );
    let own = cluster.hosts.root(0, "curl --silent --fail http://127.0.0.1:8500/v1/agent/self").ok().json();
    assert_eq!(own["DebugConfig"]["HTTPMaxConnsPerClient"], 500, "{own}");
    assert!(cluster.hosts.read(0, "/etc/consul.d/consul.json").contains(license));
    assert_eq!(cluster.hosts.root(0, &format!("stat --format '%a %U:%G' {license}")).ok().text(), "640 root:consul");

    // Each server once, in turn.
    let mut turns: Vec<(f64, f64)> = Vec::new();
    for server in 0..SERVERS {
        let (stops, starts) = (cluster.journal(server, "Stopping consul"), cluster.journal(server, "Started consul"));
        assert_eq!((stops.len(), starts.len()), (1, 2), "{stops:?} {starts:?}");
        turns.push((stops[0].0, starts[1].0));
    }
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    let whole: Vec<f64> = cluster
        .client("cat /run/test/health")
        .ok()
        .out
        .lines()
        .filter_map(|line| {
            let (time, answer) = line.split_once(' ')?;
            let health: Value = serde_json::from_str(answer).ok()?;
            let voters =
                health["Servers"].as_array()?.iter().filter(|s| s["Voter"] == true && s["Healthy"] == true).count();
            (voters == SERVERS && health["FailureTolerance"] == 1).then(|| time.parse().ok()).flatten()
        })
        .collect();
    for pair in turns.windows(2) {
        let ((_, up), (down, _)) = (pair[0], pair[1]);
        assert!(up < down, "two servers at once: {turns:?}");
        assert!(
            whole.iter().any(|time| up < *time && *time < down),
            "no three voters between two restarts: {turns:?} {whole:?}"
        );
    }

    cluster.writes_held("/run/test/writes", "test", elections);
    cluster.writes_held("/run/test/behind", "behind", elections);

    // A run of all of it has the client left, and then nothing.
    let rest = cluster.run([]).ok();
    assert_eq!(rest.counted("changed"), 4, "{}", rest.report());
    let again = cluster.run([]).ok();
    assert_eq!(again.counted("changed"), 0, "{}", again.report());

    ctrl_c_while_the_cluster_is_asked_keeps_what_runs_and_puts_the_rest_back(&cluster);
}

fn a_server_that_does_not_come_up_is_put_back_and_the_others_are_left_alone(cluster: &Cluster) {
    cluster.journals_begin();
    let config = |server: usize| cluster.hosts.read(server, "/etc/consul.d/consul.json");
    let before: Vec<String> = (0..SERVERS).map(config).collect();
    // Consul takes the port for right, and may not open it.
    cluster.configure("consul_config: {ports: {dns: 53}}\n");
    let failed = cluster.run(["--limit", "consul_servers"]).ends(4).says("bind: permission denied").says("no turn");
    let restarted: Vec<usize> =
        (0..SERVERS).filter(|server| !cluster.journal(*server, "Stopping consul").is_empty()).collect();
    assert_eq!(restarted.len(), 1, "{restarted:?}: {}", failed.report());
    // Those that had no turn go back to their files as well: a reboot must not start them with what has just failed. With
    // them go the names, which lead to the port.
    assert_eq!(failed.counted("restored"), 2 * SERVERS as u64, "{}", failed.report());
    for (server, before) in before.iter().enumerate() {
        assert_eq!(config(server), *before);
        cluster.hosts.root(server, "systemctl is-active consul && /usr/local/lib/rollcall/agent-* status").ok();
    }
    // With what is right there is nothing left to do.
    cluster.configure("");
    assert_eq!(cluster.run([]).ok().counted("changed"), 0);
    for server in 0..SERVERS {
        let tries = cluster.journal(server, "Starting consul").len();
        assert!(tries <= if restarted == [server] { 3 } else { 0 }, "{server}: {tries}");
    }
}

/// A mirror with the lab's own release of Consul and two more, which start that one's program: 1.22.98 runs, 1.22.99 does not.
struct Releases {
    _dir: tempfile::TempDir,
    _server: Running,
    url: String,
}

impl Releases {
    fn serve(cluster: &Cluster) -> Self {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let gateway = cluster.hosts.lab.status().gateway;
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let port = rollcall_tests::servers::free_address().port();
        let script = format!(
            r#"set -eu
            cd '{dir}'
            release() {{
                mkdir -p "consul/$1"
                cd "consul/$1"
                cat > consul
                python3 -m zipfile -c "consul_$1_linux_{architecture}.zip" consul
                sha256sum *.zip > "consul_$1_SHA256SUMS"
                cd ../..
            }}
            said='case "$1" in version) echo "Consul vVERSION"; exit;;'
            end='esac; exec /opt/consul/1.22.2/consul "$@"'
            printf '#!/bin/sh\n%s %s\n' "$said" "$end" | sed s/VERSION/1.22.98/ | release 1.22.98
            refuse='agent) echo "this release does not start"; exit 1;;'
            printf '#!/bin/sh\n%s %s %s\n' "$said" "$refuse" "$end" | sed s/VERSION/1.22.99/ | release 1.22.99
            exec setpriv --pdeathsig TERM python3 -m http.server --bind {gateway} {port}"#,
            dir = dir.path().display()
        );
        let server = Running::start(&mut cluster.hosts.lab.command(["shell", "--", "sh", "-c", &script]));
        let url = format!("http://{gateway}:{port}");
        let ask = format!("curl --fail --silent --output /dev/null {url}/consul/1.22.99/consul_1.22.99_SHA256SUMS");
        until(Duration::from_mins(1), "a mirror that answers", || cluster.client(&ask).code == 0);
        Self { _dir: dir, _server: server, url }
    }
}

fn releases_change_one_by_one_and_one_that_does_not_start_is_taken_back(cluster: &Cluster) {
    let releases = Releases::serve(cluster);
    let mirror = format!("consul_mirror={}", releases.url);
    let change = |version: &str, more: &[&str]| {
        cluster.configure(&format!("consul_version: {version}\n"));
        cluster.run(["-e", &mirror].into_iter().chain(more.iter().copied()))
    };
    let runs = |host: usize| {
        let line = "systemctl is-active --quiet consul && readlink /usr/local/bin/consul";
        cluster.hosts.root(host, line).ok().text().to_owned()
    };
    let begun = |host: usize| cluster.journal(host, "Started consul").iter().map(|line| line.0).collect::<Vec<_>>();
    cluster.journals_begin();

    // The client waits for the servers.
    let upgraded = change("1.22.98", &[]).ok();
    let new = "/opt/consul/1.22.98/consul";
    assert_eq!((0..=SERVERS).map(runs).collect::<Vec<_>>(), [new; 4]);
    assert_eq!((0..=SERVERS).map(|host| begun(host).len()).collect::<Vec<_>>(), [1; 4]);
    let stopped = cluster.journal(SERVERS, "Stopping consul")[0].0;
    assert!((0..SERVERS).all(|server| begun(server)[0] < stopped), "{}", upgraded.report());
    assert_eq!(change("1.22.98", &[]).ok().counted("changed"), 0);

    let failed = change("1.22.99", &[]).ends(4).says("this release does not start").says("whose handlers come first");
    assert_eq!((0..=SERVERS).map(runs).collect::<Vec<_>>(), [new; 4], "{}", failed.report());
    let untouched = (0..=SERVERS).filter(|host| begun(*host).len() == 1).count();
    assert_eq!(untouched, SERVERS, "{}", failed.report());
    assert_eq!(change("1.22.98", &[]).ok().counted("changed"), 0);
}

#[test]
fn a_gate_that_does_not_open_leaves_every_server_as_it_was() {
    let cluster = Cluster::plan();
    cluster.project.add_settings("  keepalive: 2\n  connect_timeout: 20\n");
    cluster.run([]).ok();
    let config = |server: usize| cluster.hosts.read(server, "/etc/consul.d/consul.json");
    let before: Vec<String> = (0..SERVERS).map(config).collect();
    let lost = SERVERS - 1;
    cluster.hosts.lab.lab(["kill", cluster.hosts.name(lost)]).ok();
    let change = "consul_config: {limits: {http_max_conns_per_client: 500}}\ngate_timeout: 6\n";
    cluster.configure(change);
    let failed = cluster.run(["--limit", "consul_servers"]).ends(6).says("gate refused before the handler");
    assert_eq!(failed.counted("restored"), lost as u64, "{}", failed.report());
    for (server, before) in before.iter().enumerate().take(lost) {
        assert_eq!(config(server), *before, "{}", failed.report());
        assert!(cluster.journal(server, "Stopping consul").is_empty(), "nobody may restart: {}", failed.report());
        cluster.hosts.root(server, "/usr/local/lib/rollcall/agent-* status").ok().says("owed      nothing");
    }
    // As the message says: ungated, on the one that is meant.
    failed.says("`-e rollcall_gate=false` runs the handler ungated");
    cluster.run(["--limit", cluster.hosts.name(0), "-e", "rollcall_gate=false"]).ok();
    assert!(config(0).contains("500"));
    // When the cluster is whole again, the next run finds the change and makes it, once on each.
    cluster.hosts.lab.lab(["start", cluster.hosts.name(lost)]).ok();
    cluster.configure(&change.replace("gate_timeout: 6", "gate_timeout: 120"));
    cluster.run(["--limit", "consul_servers"]).ok();
    for server in 0..SERVERS {
        assert!(config(server).contains("500"), "{server}");
        assert_eq!(cluster.journal(server, "Stopping consul").len(), 1, "{server}");
    }
    assert_eq!(cluster.run(["--limit", "consul_servers"]).ok().counted("changed"), 0);

    a_server_that_falls_ill_during_a_restart_stops_the_roll_out(&cluster);
}

impl Cluster {
    /// Starts a run that changes all servers, and waits until one of them stops for its restart.
    #[track_caller]
    fn until_one_restarts(&self) -> (Running, usize) {
        let run = self.project.start(["run", "consul.yaml", "--json", "--limit", "consul_servers"]);
        let until = Instant::now() + Duration::from_mins(2);
        loop {
            for server in 0..SERVERS {
                if !self.journal(server, "Stopping consul").is_empty() {
                    return (run, server);
                }
            }
            assert!(Instant::now() < until, "no server restarted");
        }
    }

    /// What a server's agent says is owed.
    #[track_caller]
    fn owed(&self, server: usize) -> Said {
        self.hosts.root(server, "/usr/local/lib/rollcall/agent-* status")
    }
}

fn a_server_that_falls_ill_during_a_restart_stops_the_roll_out(cluster: &Cluster) {
    cluster.journals_begin();
    let config = |server: usize| cluster.hosts.read(server, "/etc/consul.d/consul.json");
    let before: Vec<String> = (0..SERVERS).map(config).collect();
    let change = "consul_config: {limits: {http_max_conns_per_client: 600}}\ngate_timeout: 12\n";
    cluster.configure(change);
    let (run, first) = cluster.until_one_restarts();
    let (lost, last) = ((first + 1) % SERVERS, (first + 2) % SERVERS);
    cluster.hosts.lab.lab(["kill", cluster.hosts.name(lost)]).ok();
    let failed = run.wait(Duration::from_mins(2));
    assert!([5, 6].contains(&failed.code), "{}", failed.report());
    // The one that has restarted runs with its new files, and keeps them. What the cluster says to it is still to be asked.
    assert!(config(first).contains("600"), "{}", failed.report());
    cluster.owed(first).says("owed      restart consul server");
    cluster.hosts.root(first, "systemctl is-active consul").ok();
    // The one that waited goes back, and was not restarted.
    assert_eq!(config(last), before[last], "{}", failed.report());
    assert!(cluster.journal(last, "Stopping consul").is_empty(), "{}", failed.report());
    cluster.owed(last).says("owed      nothing");
    // When the cluster is whole again the next run ends what was begun.
    cluster.hosts.lab.lab(["start", cluster.hosts.name(lost)]).ok();
    cluster.configure(&change.replace("gate_timeout: 12", "gate_timeout: 120"));
    cluster.run(["--limit", "consul_servers"]).ok();
    for server in 0..SERVERS {
        assert!(config(server).contains("600"), "{server}");
        cluster.owed(server).says("owed      nothing");
    }
    assert_eq!(cluster.journal(last, "Stopping consul").len(), 1);
    assert_eq!(cluster.run(["--limit", "consul_servers"]).ok().counted("changed"), 0);
}

fn ctrl_c_while_the_cluster_is_asked_keeps_what_runs_and_puts_the_rest_back(cluster: &Cluster) {
    cluster.journals_begin();
    let config = |server: usize| cluster.hosts.read(server, "/etc/consul.d/consul.json");
    let before: Vec<String> = (0..SERVERS).map(config).collect();
    cluster.configure("consul_client_addr: 0.0.0.0\nconsul_config: {limits: {http_max_conns_per_client: 600}}\n");
    let (run, first) = cluster.until_one_restarts();
    // It is back in a second or two; the gate wants to see the cluster whole for five.
    let back = "for i in $(seq 200); do journalctl --unit consul --quiet | grep --quiet 'Started consul' && exit 0; sleep 0.05; done; exit 1";
    cluster.hosts.root(first, back).ok();
    run.signal("INT");
    let said = run.wait(Duration::from_mins(2)).ends(130);
    assert!(config(first).contains("600"), "{}", said.report());
    cluster.owed(first).says("owed      restart consul server");
    for other in (0..SERVERS).filter(|server| *server != first) {
        assert_eq!(config(other), before[other], "{}", said.report());
        assert!(cluster.journal(other, "Stopping consul").is_empty(), "{}", said.report());
        cluster.owed(other).says("owed      nothing");
    }
    cluster.run(["--limit", "consul_servers"]).ok();
    for server in 0..SERVERS {
        assert!(config(server).contains("600"), "{server}");
        cluster.owed(server).says("owed      nothing");
    }
}

/// Two clusters of one server each. Without keys of their own the one takes the other in, and what one of them knew is lost.
#[test]
fn two_clusters_whose_networks_meet_stay_two() {
    let hosts = Lab::shared().borrow(4, "");
    let status = hosts.lab.status();
    for (host, cluster) in ["first", "second", "open", "open too"].into_iter().enumerate() {
        let vars = format!(
            "consul_mirror: {}\nconsul_datacenter: test\nconsul_bind_cidr: {}\nbase_time_sync: chrony\nconsul_encrypt: {}\n",
            status.mirror,
            status.subnet,
            host < 2
        );
        let project = Project::new(&hosts.lab, [])
            .file(
                "inventory.yaml",
                &format!(
                    "all:\n  children:\n    consul_servers:\n      hosts:\n        {}: {{ansible_host: {}}}\n",
                    hosts.name(host),
                    hosts.host(host).address
                ),
            )
            .file("group_vars/all.yaml", &vars)
            .file("servers.yaml", "- hosts: consul_servers\n  become: true\n  roles: [consul]\n");
        project.add_settings(&format!("cluster: {}\n", cluster.replace(' ', "-")));
        project.controller(["run", "servers.yaml"]).ok();
        hosts.root(host, &format!("consul kv put whose '{cluster}'")).ok();
    }
    let members = |host: usize| hosts.root(host, "consul members | tail --lines +2").ok().out.lines().count();
    let join = |host: usize, other: usize| hosts.root(host, &format!("consul join {}", hosts.host(other).address));

    join(0, 1).ends(1);
    join(1, 0).ends(1);
    // The control: these do meet.
    join(2, 3).ok();
    let end = Instant::now() + Duration::from_secs(30);
    while (members(2), members(3)) != (2, 2) {
        assert!(Instant::now() < end, "clusters without keys do not meet: {} {}", members(2), members(3));
        std::thread::sleep(Duration::from_millis(500));
    }
    for (host, cluster) in ["first", "second"].into_iter().enumerate() {
        assert_eq!(members(host), 1);
        assert_eq!(hosts.root(host, "consul kv get whose").ok().text(), cluster);
    }
}
