//! The role nomad on real hosts, with the real Nomad: a cluster forms and runs a job, a second run changes nothing, what is wrong is
//! refused before it does harm, and a change goes through the servers one by one, and past the job without its noticing.

use std::time::Duration;

use rollcall_tests::{Borrowed, Lab, Project, Said};
use serde_json::Value;

const SERVERS: usize = 3;
const CLIENT: usize = SERVERS;

/// A task that tells each second that it is alive.
const JOB: &str = r#"
job "beats" {
  datacenters = ["*"]
  group "one" {
    task "heart" {
      driver = "exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "while :; do date +%s >> local/beats; sleep 1; done"]
      }
      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
"#;

/// Three servers and a client, and the project that makes a cluster of them.
struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn plan() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(SERVERS + 1, "");
        let inventory = hosts.inventory(&[("nomad_servers", CLIENT), ("nomad_clients", 1)]);
        let project =
            Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("group_vars/all.yaml", "{}\n");
        let cluster = Self { hosts, project };
        cluster.configure("");
        cluster
    }

    fn run<'a>(&self, more: impl IntoIterator<Item = &'a str>) -> Said {
        self.project.controller(["run", "nomad.yaml", "--json"].into_iter().chain(more))
    }

    fn configure(&self, more: &str) {
        let status = self.hosts.lab.status();
        let given = format!(
            "nomad_mirror: {}\nnomad_datacenter: test\nnomad_bind_cidr: {}\nbase_time_sync: chrony\n\
             nomad_meta: {{rack: r1}}\n",
            status.mirror, status.subnet
        );
        self.project.write("group_vars/all.yaml", &format!("{given}{more}"));
    }

    #[track_caller]
    fn get(&self, host: usize, path: &str) -> Value {
        self.hosts.root(host, &format!("curl --silent --fail http://127.0.0.1:4646{path}")).ok().json()
    }

    /// What Nomad says of its servers, which it looks at every two seconds.
    #[track_caller]
    fn health(&self) -> Value {
        let line = "curl --silent --fail --retry 10 --retry-delay 1 --retry-all-errors http://127.0.0.1:4646/v1/operator/autopilot/health";
        self.hosts.root(0, line).ok().json()
    }

    /// The nodes, as soon as there is one that is ready: a client registers a moment after it has found servers.
    #[track_caller]
    fn nodes(&self) -> Value {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let nodes = self.get(0, "/v1/nodes");
            if nodes[0]["Status"] == "ready" || std::time::Instant::now() > until {
                return nodes;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    /// Seconds since 1970 of a pattern in the unit's journal.
    #[track_caller]
    fn journal(&self, host: usize, pattern: &str) -> Vec<f64> {
        let line = format!("journalctl --unit nomad --output short-unix --quiet | grep '{pattern}' || true");
        let said = self.hosts.root(host, &line).ok();
        let time =
            |line: &str| line.split(' ').next().and_then(|word| word.parse().ok()).expect("a time stands in front");
        said.out.lines().map(time).collect()
    }

    /// The job's only allocation.
    #[track_caller]
    fn allocation(&self) -> Value {
        let all = self.get(0, "/v1/job/beats/allocations");
        assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
        all[0].clone()
    }

    #[track_caller]
    fn beats(&self) -> Vec<u64> {
        let said = self.hosts.root(CLIENT, "cat /var/lib/nomad/alloc/*/heart/local/beats").ok();
        said.out.lines().map(|line| line.parse().expect("it is a number")).collect()
    }
}

#[test]
fn a_cluster_of_nomad_forms_and_runs_a_job_through_a_change() {
    let cluster = Cluster::plan();
    let checked = cluster.run(["--check", "--diff"]).ok();
    assert!(checked.counted("changed") > 0 && checked.counted("failed") == 0, "{}", checked.report());
    for host in 0..=CLIENT {
        cluster.hosts.root(host, "ls -d /opt/nomad /etc/nomad.d; id nomad").ends(1);
    }
    cluster.run([]).ok();

    let health = cluster.health();
    assert_eq!((&health["Healthy"], &health["FailureTolerance"]), (&Value::from(true), &Value::from(1)), "{health}");
    let nodes = cluster.nodes();
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "servers run nothing: {nodes}");
    assert_eq!((&nodes[0]["Status"], &nodes[0]["Name"]), (&"ready".into(), &cluster.hosts.name(CLIENT).into()));
    let node = cluster.get(0, &format!("/v1/node/{}", nodes[0]["ID"].as_str().expect("it has an id")));
    assert_eq!(node["Meta"]["rack"], "r1", "{node}");
    let modes = "stat --format '%n %a %U:%G' /etc/nomad.d /etc/nomad.d/nomad.json /var/lib/nomad";
    assert_eq!(
        cluster.hosts.root(0, modes).ok().out,
        "/etc/nomad.d 750 root:nomad\n/etc/nomad.d/nomad.json 640 root:nomad\n/var/lib/nomad 750 nomad:nomad\n"
    );
    assert_eq!(
        cluster.hosts.root(CLIENT, modes).ok().out,
        "/etc/nomad.d 750 root:root\n/etc/nomad.d/nomad.json 640 root:root\n/var/lib/nomad 750 root:root\n"
    );
    // Whoever reaches the API may do everything: only this host does.
    let address = &cluster.hosts.host(0).address;
    cluster.hosts.root(CLIENT, &format!("curl --silent --max-time 3 http://{address}:4646/v1/status/leader")).ends(7);
    for more in [&[][..], &["--check"]] {
        let again = cluster.run(more.iter().copied()).ok();
        for what in ["changed", "failed", "may_change"] {
            assert_eq!(again.counted(what), 0, "{what}: {}", again.report());
        }
    }
    for host in 0..=CLIENT {
        assert_eq!(cluster.journal(host, "Started nomad").len(), 1, "a first start is one start");
    }

    cluster.hosts.root(CLIENT, &format!("nomad job run - <<'JOB'\n{JOB}\nJOB")).ok();
    let before = cluster.allocation();
    assert_eq!(before["ClientStatus"], "running", "{before}");

    // A change that everybody gets.
    cluster.configure("nomad_log_level: WARN\n");
    let changed = cluster.run([]).ok();
    assert_eq!(changed.counted("changed"), 2 * (SERVERS as u64 + 1), "{}", changed.report());
    let mut turns: Vec<(f64, f64)> = (0..SERVERS)
        .map(|server| {
            let (stops, starts) = (cluster.journal(server, "Stopping nomad"), cluster.journal(server, "Started nomad"));
            assert_eq!((stops.len(), starts.len()), (1, 2), "{stops:?} {starts:?}");
            (stops[0], starts[1])
        })
        .collect();
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    for pair in turns.windows(2) {
        let ((_, up), (down, _)) = (pair[0], pair[1]);
        // The gate wants to see the cluster whole for five seconds.
        assert!(up + 5.0 <= down, "no whole cluster between two restarts: {turns:?}");
    }
    assert_eq!(cluster.journal(CLIENT, "Started nomad").len(), 2, "{}", changed.report());
    // The task has noticed nothing.
    let after = cluster.allocation();
    assert_eq!((&after["ID"], &after["ClientStatus"]), (&before["ID"], &"running".into()), "{after}");
    let last = *cluster.beats().last().expect("it beats");
    std::thread::sleep(Duration::from_secs(3));
    let beats = cluster.beats();
    assert!(*beats.last().expect("it beats") > last, "{beats:?}");
    assert!(beats.windows(2).all(|pair| pair[1] - pair[0] <= 3), "it stood still: {beats:?}");
    let tasks = after["TaskStates"]["heart"]["Restarts"].clone();
    assert_eq!(tasks, 0, "{after}");
}

#[test]
fn what_nomad_refuses_does_not_get_to_its_place() {
    let cluster = Cluster::plan();
    // What can be known before is told before anything is touched.
    cluster.configure("nomad_config: {region: here}\n");
    cluster.run([]).ends(3).says("nomad_config sets region").says("nomad_region");
    cluster
        .run(["-e", "nomad_bind_cidr=172.16.0.0/12"])
        .ends(3)
        .says("the network 172.16.0.0/12 (nomad_bind_cidr) gives 0 addresses");
    cluster.configure("nomad_version: 1.11\n");
    cluster.run([]).ends(3).says("nomad_version is '1.11'");
    for host in 0..=CLIENT {
        cluster.hosts.root(host, "ls -d /opt/nomad").ends(2);
    }
    cluster.configure("nomad_config: {serverr: {enabled: true}}\n");
    cluster.run([]).ends(4).says("unexpected keys serverr");
    for host in 0..=CLIENT {
        cluster.hosts.root(host, "ls /etc/nomad.d/nomad.json /etc/systemd/system/nomad.service").ends(2);
    }
    // A key that is taken away is Nomad's own again.
    cluster.configure("nomad_config: {telemetry: null, log_level: WARN}\n");
    cluster.run(["--limit", "nomad_servers"]).ok();
    let config: Value = cluster.hosts.root(0, "cat /etc/nomad.d/nomad.json").ok().json();
    assert_eq!((config.get("telemetry"), &config["log_level"]), (None, &"WARN".into()), "{config}");
    files_of_ones_own(&cluster);
}

/// Files in Nomad's own language and the licence: checked, shown, read after the role's file, and gone with their variables.
fn files_of_ones_own(cluster: &Cluster) {
    let one = ["--limit", cluster.hosts.name(0)];
    let there = "cd /etc/nomad.d; stat --format '%n %a %U:%G' override-* rollcall.hclic 2> /dev/null; true";
    cluster.configure("nomad_config_files: [more.txt]\n");
    cluster.run(one).ends(3).says("nomad_config_files is a list of .json and .hcl files");
    cluster.configure("nomad_config_files: [more.hcl]\n");
    cluster.run(one).ends(4).says("more.hcl");
    cluster.project.write("files/more.hcl", "server { nope = 321 }\n");
    cluster.run(one).ends(4).says("unexpected keys nope");
    assert_eq!(cluster.hosts.root(0, there).ok().out, "");

    cluster.project.write("files/more.hcl", "limits { http_max_conns_per_client = 321 }\n");
    cluster.configure("nomad_config_files: [more.hcl]\nnomad_license: the-licence\n");
    let shown = cluster.project.controller(["run", "nomad.yaml", "--check", "--diff", one[0], one[1]]).ok();
    shown.says("limits { http_max_conns_per_client = 321 }");
    cluster.run(one).ok();
    assert_eq!(
        cluster.hosts.root(0, there).ok().out,
        "override-more.hcl 640 root:nomad\nrollcall.hclic 640 root:nomad\n"
    );
    let own = &cluster.get(0, "/v1/agent/self")["config"];
    assert_eq!(own["Limits"]["HTTPMaxConnsPerClient"], 321, "{own}");
    assert_eq!(own["Server"]["LicensePath"], "/etc/nomad.d/rollcall.hclic", "{own}");
    assert_eq!(cluster.run(one).ok().counted("changed"), 0);

    cluster.configure("");
    cluster.run(one).ok();
    assert_eq!(cluster.hosts.root(0, there).ok().out, "");
    assert_eq!(cluster.get(0, "/v1/agent/self")["config"]["Limits"]["HTTPMaxConnsPerClient"], 100);
}
