//! Docker on real hosts: role docker and its changes past containers that run, the modules docker_image and docker_container,
//! Nomad's bridge networking, and the sample workloads without a Consul.

use std::time::{Duration, Instant};

use rollcall_tests::{Borrowed, Lab, Project, Said};
use serde_json::{Value, json};

/// A container with a secret and an image from files.
const SITE: &str = r#"
- hosts: all
  become: true
  tasks:
    - import_role: {name: workloads, tasks_from: images}
    - docker_container:
        name: greeter
        image: final-app:v0.1
        ports: ["8080:8080"]
        memory: 32m
        cpus: "0.5"
        env:
          TEXT: "{{ text | default('hello from a container') }}"
          TOKEN: "{{ secret('app/greeter') }}"
"#;
const SECRET: &str = "planted-4711-greeter";

/// No registry can be reached.
const OFFLINE: &str = "nomad_plugins: {docker: {config: {infra_image: \"pause:v0.1\", gc: {image: false}}}}\n";

struct Hosts {
    hosts: Borrowed,
    project: Project,
}

impl Hosts {
    fn borrow(count: usize, servers: usize) -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(count, "");
        let groups = [("nomad_servers", servers), ("nomad_clients", count - servers)];
        let inventory = hosts.inventory(if servers == 0 { &groups[1..] } else { &groups });
        let project = Project::new(&lab, hosts.hosts()).file("inventory.yaml", &inventory).file("site.yaml", SITE);
        project.add_settings("cluster: test\nstore: {type: file, grants: {app/*: nomad_clients}}\n");
        let hosts = Self { hosts, project };
        hosts.configure("");
        hosts
    }

    fn configure(&self, more: &str) {
        let status = self.hosts.lab.status();
        let given = format!(
            "nomad_mirror: {0}\nnomad_cni_mirror: {0}/cni-plugins\nnomad_datacenter: test\nnomad_bind_cidr: {1}\n\
             base_time_sync: chrony\n",
            status.mirror, status.subnet
        );
        self.project.write("group_vars/all.yaml", &format!("{given}{more}"));
    }

    fn run<'a>(&self, playbook: &'a str, more: impl IntoIterator<Item = &'a str>) -> Said {
        self.project.controller(["run", playbook, "--json"].into_iter().chain(more))
    }

    #[track_caller]
    fn silent(&self, playbook: &str) {
        let again = self.run(playbook, []).ok();
        for what in ["changed", "failed", "may_change"] {
            assert_eq!(again.counted(what), 0, "{what}: {}", again.report());
        }
    }

    #[track_caller]
    fn root(&self, host: usize, line: &str) -> String {
        self.hosts.root(host, line).ok().text().to_owned()
    }

    /// Process ids of the engine and of the container.
    #[track_caller]
    fn pids(&self) -> (String, String) {
        let engine = self.root(0, "systemctl show --property MainPID --value docker");
        (engine, self.root(0, "docker inspect --format '{{.State.Pid}}' greeter"))
    }

    #[track_caller]
    fn get(&self, host: usize, path: &str) -> Value {
        self.hosts.root(host, &format!("curl --silent --fail http://127.0.0.1:4646{path}")).ok().json()
    }
}

#[test]
fn containers_outlive_every_change_of_their_engine() {
    let hosts = Hosts::borrow(1, 0);
    // Before there is an engine, its modules say so.
    hosts.project.write(
        "image.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - docker_image: {name: a, load: /etc/hostname}\n",
    );
    hosts.run("image.yaml", []).ends(4).says("there is no 'manifest.json' in it").says("docker save");
    hosts
        .project
        .write("image.yaml", "- hosts: all\n  become: true\n  tasks:\n    - docker_image: {name: a, state: absent}\n");
    hosts.run("image.yaml", []).ends(4).says("docker is not installed on this host").says("role docker installs it");

    hosts.run("docker.yaml", ["--check", "--diff"]).ok();
    hosts.hosts.root(0, "ls -d /etc/docker /usr/bin/docker").ends(2);
    hosts.run("docker.yaml", []).ok();
    hosts.silent("docker.yaml");
    let config: Value = hosts.hosts.root(0, "cat /etc/docker/daemon.json").ok().json();
    assert_eq!(
        config,
        json!({"live-restore": true, "log-driver": "json-file", "log-opts": {"max-file": "3", "max-size": "10m"}})
    );

    // An image from files, and a container of it that is given a secret.
    let put =
        format!("printf %s {SECRET} | {} secret put app/greeter", rollcall_tests::program("controller").display());
    hosts.project.shell(&put).ok();
    let made = hosts.run("site.yaml", ["--diff"]).ok().never_says(SECRET);
    assert!(made.counted("changed") > 0, "{}", made.report());
    let said =
        || hosts.root(0, "curl --silent --fail --retry 20 --retry-all-errors --retry-delay 1 http://127.0.0.1:8080/");
    assert_eq!(said(), "hello from a container");
    assert!(hosts.root(0, "docker exec greeter /bin/busybox env").contains(SECRET));
    // In the engine's own files, which only root reads, and nowhere else.
    let found = hosts.root(
        0,
        &format!("grep -rlF {SECRET} /etc /tmp /var/log /var/lib /run/log /opt /home /root 2>/dev/null || true"),
    );
    assert!(found.contains("/var/lib/docker/containers/"), "the search finds nothing: {found}");
    let known = ["/var/lib/docker/containers/", "/var/lib/containerd/"];
    assert!(found.lines().all(|file| known.iter().any(|folder| file.starts_with(folder))), "{found}");
    for file in found.lines() {
        let line = format!("setpriv --reuid 65534 --regid 65534 --clear-groups cat {file}");
        hosts.hosts.root(0, &line).ends(1).never_says(SECRET);
    }
    assert_eq!(hosts.root(0, &format!("journalctl --quiet | grep -cF {SECRET} || true")), "0");
    hosts.silent("site.yaml");

    // What the engine takes up as it runs: same engine, same container.
    let first = hosts.pids();
    hosts.configure("docker_registry_mirrors: [\"https://mirror.example\"]\n");
    hosts.run("docker.yaml", []).ok();
    assert_eq!(hosts.pids(), first);
    assert!(hosts.root(0, "docker info 2>/dev/null").contains("https://mirror.example"));
    // What it does not: another engine, same container, which goes on answering.
    hosts.configure("docker_log_max_files: 2\n");
    hosts.run("docker.yaml", []).ok();
    let second = hosts.pids();
    assert!(second.0 != first.0 && second.1 == first.1, "{first:?} {second:?}");
    assert_eq!(said(), "hello from a container");
    hosts.silent("docker.yaml");
    hosts.silent("site.yaml");

    // What would end it, and what the engine would not start with, changes nothing.
    let file = hosts.hosts.read(0, "/etc/docker/daemon.json");
    let refused = |more: &str, words: &[&str], code: i32| {
        hosts.configure(&format!("docker_log_max_files: 2\n{more}"));
        let mut said = hosts.run("docker.yaml", []).ends(code);
        for word in words {
            said = said.says(word);
        }
        assert_eq!(hosts.hosts.read(0, "/etc/docker/daemon.json"), file);
        assert_eq!(hosts.pids(), second);
    };
    refused(
        "docker_bip: 172.30.0.1/16\n",
        &["a change of bip would end the 1 containers that run on this host: drain it first", "docker_may_interrupt"],
        4,
    );
    refused("docker_live_restore: false\ndocker_config: {mtu: 1400}\n", &["without live-restore"], 4);
    refused("docker_bip: nonsense\n", &["docker_bip is 'nonsense'"], 3);
    refused("docker_config: {live-restore: false}\n", &["docker_config sets live-restore", "docker_live_restore"], 3);
    refused("docker_config: {log-levl: debug}\n", &["log-levl"], 4);
    refused("docker_config: {hosts: [\"tcp://0.0.0.0:2375\"]}\n", &["specified both as a flag"], 4);
    hosts.hosts.lab.lab(["fault", hosts.hosts.name(0), "read-only"]).ok();
    refused("docker_config: {mtu: 1400}\n", &["Read-only file system"], 4);
    // The part of the disk that holds containers is no exception.
    hosts.hosts.root(0, "touch /var/lib/docker/probe").ends(1).says("Read-only file system");
    hosts.hosts.lab.lab(["fault", hosts.hosts.name(0), "clear"]).ok();
    hosts.root(0, "touch /var/lib/docker/probe && rm /var/lib/docker/probe");
    assert_eq!(said(), "hello from a container");

    // Another text is another container; one that is stopped is started; an engine that is down is told.
    hosts.configure("docker_log_max_files: 2\ntext: hello again\n");
    hosts.run("site.yaml", []).ok();
    assert_eq!(said(), "hello again");
    hosts.root(0, "docker stop --time 2 greeter");
    assert_eq!(hosts.run("site.yaml", []).ok().counted("changed"), 1);
    assert_eq!(said(), "hello again");
    // A change among the sources of an image builds it, and what runs from it is made anew.
    let before = hosts.root(0, "docker image inspect --format '{{.Id}}' final-app:v0.1");
    hosts.root(0, "echo '# another' >> /opt/rollcall/workloads/final-app/Dockerfile; echo fine > /opt/rollcall/workloads/final-app/www/more");
    assert!(hosts.run("site.yaml", []).ok().counted("changed") >= 2, "sources, image and container");
    assert_ne!(hosts.root(0, "docker image inspect --format '{{.Id}}' final-app:v0.1"), before);
    assert_eq!(
        hosts.root(0, "docker images --quiet --filter dangling=true"),
        "",
        "the image that had the name is gone"
    );
    // Saved, removed and loaded it is the same.
    hosts.root(0, "docker save --output /srv/web.tar web-service:v0.1 && docker image rm web-service:v0.1");
    hosts.project.write(
        "load.yaml",
        "- hosts: all\n  become: true\n  tasks:\n    - docker_image: {name: \"web-service:v0.1\", load: /srv/web.tar}\n",
    );
    assert_eq!(hosts.run("load.yaml", []).ok().counted("changed"), 1);
    hosts.silent("load.yaml");
    hosts.root(0, "systemctl stop docker.service docker.socket");
    hosts
        .run("load.yaml", [])
        .ends(4)
        .says("the Docker engine of this host does not answer")
        .says("systemctl status docker");
}

#[test]
fn workloads_from_files_run_in_nomad_on_bridges() {
    let hosts = Hosts::borrow(3, 1);
    let vars = format!("{OFFLINE}workloads_provider: nomad\nworkloads_final_network: bridge\n");
    hosts.configure(&vars);
    hosts.run("docker.yaml", []).ok();
    hosts.run("nomad.yaml", []).ok();
    hosts.run("workloads.yaml", []).ok();
    for playbook in ["docker.yaml", "nomad.yaml", "workloads.yaml"] {
        hosts.silent(playbook);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let nodes = loop {
        let nodes = hosts.get(0, "/v1/nodes");
        let ready = nodes.as_array().into_iter().flatten().filter(|node| node["Status"] == "ready").count();
        if ready == 2 {
            break nodes;
        }
        assert!(Instant::now() < deadline, "{nodes:#}");
        std::thread::sleep(Duration::from_millis(500));
    };
    for node in nodes.as_array().expect("it is a list") {
        let node = hosts.get(0, &format!("/v1/node/{}", node["ID"].as_str().expect("it has an id")));
        assert_eq!(node["Attributes"]["plugins.cni.version.bridge"], "v1.9.1", "{}", node["Attributes"]);
        assert_eq!(node["Drivers"]["docker"]["Healthy"], true, "{}", node["Drivers"]["docker"]);
        let modes: Vec<&Value> =
            node["NodeResources"]["Networks"].as_array().into_iter().flatten().map(|n| &n["Mode"]).collect();
        assert!(modes.contains(&&Value::from("bridge")), "no bridge networking: {modes:?}");
    }

    let services = |name: &str, count: usize| -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let allocations = hosts.get(0, &format!("/v1/job/{name}/allocations"));
            let all = allocations.as_array().cloned().unwrap_or_default();
            assert_eq!(all.len(), count, "{name}: none was replaced: {allocations:#}");
            assert!(all.iter().all(|one| one["DeploymentStatus"]["Healthy"] == true), "{name}: {allocations:#}");
            // A client may tell the registration a moment after the health.
            let registered = hosts.get(0, &format!("/v1/service/{name}")).as_array().cloned().unwrap_or_default();
            if registered.len() == count {
                return registered;
            }
            assert!(Instant::now() < deadline, "{name}: {registered:?}: {allocations:#}");
            std::thread::sleep(Duration::from_millis(500));
        }
    };
    let ask = |service: &Value| {
        let url = format!("http://{}:{}/", service["Address"].as_str().expect("it has one"), service["Port"]);
        hosts.root(0, &format!("curl --silent --fail --max-time 5 {url}"))
    };
    let web = services("web-service", 2);
    let places: std::collections::BTreeSet<&str> = web.iter().filter_map(|one| one["NodeID"].as_str()).collect();
    assert_eq!((web.len(), places.len()), (2, 2), "one on each host: {web:?}");
    for service in &web {
        let answer: Value = serde_json::from_str(&ask(service)).expect("it answers JSON");
        assert_eq!(answer, json!({"alloc_id": service["AllocID"], "status": "ok"}));
    }
    let app = services("final-app", 1);
    assert_eq!(ask(&app[0]), "The Nomad cluster, Docker and the service's registration are all working.");

    // A job that asks for more than its own is refused by the client.
    let privileged = r#"
job "greedy" {
  type = "batch"
  group "one" {
    reschedule { attempts = 0 }
    restart { attempts = 0 }
    task "all" {
      driver = "docker"
      config {
        image      = "final-app:v0.1"
        privileged = true
      }
      resources { memory = 32 }
    }
  }
}"#;
    hosts
        .hosts
        .root(0, &format!("cat > /tmp/greedy.hcl <<'JOB'\n{privileged}\nJOB\nnomad job run -detach /tmp/greedy.hcl"))
        .ok();
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let all = hosts.get(0, "/v1/job/greedy/allocations").to_string();
        if all.contains("privileged mode is disabled") {
            break;
        }
        assert!(Instant::now() < deadline, "it was not refused: {all}");
        std::thread::sleep(Duration::from_millis(500));
    }
    // Tasks go on while the engine below them restarts.
    let pids =
        |host: usize| hosts.root(host, "docker ps --quiet | xargs docker inspect --format '{{.State.Pid}}' | sort");
    let started = |host: usize| hosts.root(host, "systemctl show --property MainPID docker nomad");
    let before = [pids(1), pids(2)];
    let engines = [started(1), started(2)];
    hosts.configure(&format!("{vars}docker_log_max_files: 2\n"));
    hosts.run("docker.yaml", []).ok();
    assert!(started(1) != engines[0] && started(2) != engines[1], "nothing was restarted");
    // Nomad has found its tasks again when its agent is ready.
    hosts.run("nomad.yaml", []).ok();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!([pids(1), pids(2)], before);
    for (name, count) in [("web-service", 2), ("final-app", 1)] {
        let all = hosts.get(0, &format!("/v1/job/{name}/allocations"));
        let all = all.as_array().expect("it is a list");
        assert!(all.len() == count && all.iter().all(|one| one["ClientStatus"] == "running"), "{all:#?}");
        let restarts: u64 = all.iter().filter_map(|one| one["TaskStates"][name]["Restarts"].as_u64()).sum();
        assert_eq!(restarts, 0, "{all:#?}");
    }
}
