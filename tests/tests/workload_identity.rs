//! Nomad beside a Consul that asks for tokens, both with certificates and ACLs, on real hosts: agents have tokens of their own, and jobs
//! read and register in Consul by proving who they are.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rollcall_tests::{Borrowed, Lab, Project, Said, kill_after, say};
use serde_json::{Value, json};

/// Each of them is a server of both; the last host is a client of both.
const SERVERS: usize = 3;
const CLIENT: usize = SERVERS;

/// A job that shows what its task may do in Consul, and answers requests. `IDENTITY` is where it asks for one.
const JOB: &str = r#"
job "greeter" {
  update {
    min_healthy_time  = "1s"
    healthy_deadline  = "40s"
    progress_deadline = "50s"
  }
  group "one" {
    network {
      port "http" {}
    }
    service {
      name = "greeter"
      port = "http"
      check {
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "1s"
      }
    }
    task "greet" {
      driver = "exec"
      IDENTITY
      template {
        data        = "{{ key \"shop/greeting\" }}"
        destination = "local/greeting"
      }
      config {
        command = "/bin/sh"
        args    = ["local/run"]
      }
      template {
        destination = "local/run"
        data        = <<EOT
ask() { curl --silent --output /dev/null --write-out '%%{http_code} ' --header "X-Consul-Token: $CONSUL_TOKEN" "$@"; }
ask http://127.0.0.1:8500/v1/kv/shop/greeting > local/may
ask --request PUT --data mine http://127.0.0.1:8500/v1/kv/shop/greeting >> local/may
ask --request PUT --data '{"Name": "consul-impostor"}' http://127.0.0.1:8500/v1/agent/service/register >> local/may
ask http://127.0.0.1:8500/v1/acl/tokens >> local/may
exec perl -MIO::Socket::INET -e '
  my $s = IO::Socket::INET->new(LocalPort => $ENV{NOMAD_PORT_http}, Listen => 5, ReuseAddr => 1) or die;
  while (my $c = $s->accept) { <$c>; print $c "HTTP/1.0 200 OK\r\n\r\nhello\n"; close $c }'
EOT
      }
      resources {
        cpu    = 50
        memory = 48
      }
    }
  }
}
"#;

const RUN: &str = r#"
- hosts: consul_servers[0]
  become: true
  tasks:
    - consul_kv: {key: shop/greeting, value: hello, token_secret: consul/management}
- hosts: nomad_servers[0]
  become: true
  vars: {asks: nomad/management, timeout: 90}
  tasks:
    - nomad_job:
        src: greeter.nomad.hcl
        url: "https://127.0.0.1:4646"
        ca_file: /etc/nomad.d/tls/ca.pem
        token_secret: "{{ asks }}"
        timeout: "{{ timeout }}"
"#;

struct Cluster {
    hosts: Borrowed,
    project: Project,
}

impl Cluster {
    fn new() -> Self {
        let lab = Lab::shared();
        let hosts = lab.borrow(SERVERS + 1, "");
        let servers =
            (0..SERVERS).fold(String::new(), |text, server| text + "        " + hosts.name(server) + ": {}\n");
        let inventory = format!(
            "{}    nomad_servers:\n      hosts:\n{servers}    nomad_clients:\n      hosts:\n        {}: {{}}\n",
            hosts.inventory(&[("consul_servers", SERVERS), ("consul_clients", 1)]),
            hosts.name(CLIENT)
        );
        let status = lab.status();
        let vars = format!(
            "consul_mirror: {0}\nnomad_mirror: {0}\nconsul_bind_cidr: {1}\nnomad_bind_cidr: {1}\nbase_time_sync: chrony\n\
             consul_tls: true\nconsul_encrypt: true\nconsul_acl: true\n\
             nomad_tls: true\nnomad_encrypt: true\nnomad_acl: true\nnomad_consul: true\n\
             nomad_cni_mirror: {0}/cni-plugins\nnomad_plugins: {{docker: {{config: {{infra_image: \"pause:v0.1\", gc: {{image: false}}}}}}}}\n",
            status.mirror, status.subnet
        );
        let project = Project::new(&lab, hosts.hosts())
            .file("inventory.yaml", &inventory)
            .file("group_vars/all.yaml", &vars)
            .file("run.yaml", RUN)
            .file("files/greeter.nomad.hcl", &JOB.replace("IDENTITY", "consul {}"));
        project.add_settings("cluster: test\n");
        let cluster = Self { hosts, project };
        cluster.run("site.yaml", &[]).ok();
        cluster
    }

    fn run(&self, playbook: &str, more: &[&str]) -> Said {
        self.project.controller(["run", playbook, "--json"].into_iter().chain(more.iter().copied()))
    }

    /// A secret of the store.
    #[track_caller]
    fn secret(&self, name: &str) -> Option<String> {
        let said = self.project.controller(["secret", "get", name]);
        (said.code == 0).then_some(said.out)
    }

    /// Consul's management token, as a server may have it, from a place that is gone with the next boot.
    #[track_caller]
    fn management(&self) -> String {
        let play = "- hosts: consul_servers[0]\n  become: true\n  tasks:\n    - copy: {content: \"{{ secret('consul/management') }}\", dest: \
                    /run/management, mode: '0600'}\n";
        self.project.write("management.yaml", play);
        self.project.controller(["run", "management.yaml"]).ok();
        self.hosts.read(0, "/run/management").trim().to_owned()
    }

    /// Something of Consul's, asked on a server.
    #[track_caller]
    fn consul(&self, token: &str, path: &str) -> Value {
        let line = format!("curl --silent --fail --header 'X-Consul-Token: {token}' 'http://127.0.0.1:8500/v1/{path}'");
        self.hosts.root(0, &line).ok().json()
    }
}

#[test]
fn jobs_prove_to_consul_who_they_are() {
    let cluster = Cluster::new();
    for more in [&[][..], &["--check"]] {
        let again = cluster.run("site.yaml", more).ok();
        for what in ["changed", "failed", "may_change"] {
            assert_eq!(again.counted(what), 0, "{what}: {}", again.report());
        }
    }
    let management = cluster.management();
    let of = |service: &str| cluster.consul(&management, &format!("health/service/{service}?passing"));
    // Nodes, of which a server has three instances: HTTP, RPC, gossip.
    let count = |service: &str| {
        let all = of(service);
        all.as_array().into_iter().flatten().map(|one| one["Node"]["Node"].to_string()).collect::<BTreeSet<_>>().len()
    };
    // Checks are made each ten seconds.
    until("all agents are healthy in Consul", || (count("nomad"), count("nomad-client")) == (SERVERS, 1));

    let first = cluster.run("run.yaml", &[]).ok();
    assert_eq!(first.counted("changed"), 2, "{}", first.report());
    // By its own identity it reads; it neither writes, nor registers what it is not, nor sees tokens.
    let dir = "cd /var/lib/nomad/alloc/*/greet/local";
    assert_eq!(
        cluster.hosts.root(CLIENT, &format!("{dir}; cat greeting; echo; cat may")).ok().text(),
        "hello\n200 403 403 403"
    );
    until("the job's service is healthy in Consul", || count("greeter") == 1);
    let known = cluster.consul(&management, "acl/tokens");
    let logged_in: Vec<&Value> =
        known.as_array().into_iter().flatten().filter(|token| token["AuthMethod"] == "nomad-workloads").collect();
    assert_eq!(logged_in.len(), 2, "one for the service, one for the task: {known}");
    assert!(logged_in.iter().any(|token| token["ServiceIdentities"][0]["ServiceName"] == "greeter"), "{known}");
    assert!(logged_in.iter().any(|token| token["Roles"][0]["Name"] == "nomad-tasks-default"), "{known}");

    // A token that is not for jobs is refused, with what it would need.
    cluster.project.write("files/greeter.nomad.hcl", &JOB.replace("IDENTITY", ""));
    cluster.run("run.yaml", &["-e", "asks=nomad/token/server"]).ends(4).says("needs 'submit-job'");
    // A job that proves nothing, as they were before there were identities, gets nothing.
    let blind = cluster.run("run.yaml", &["-e", "timeout=12"]).ends(4);
    blind.says("Missing: kv.block(shop/greeting)");

    // The sample workloads prove themselves: through Consul's names, and by what they answer.
    let samples = cluster.run("workloads.yaml", &[]).ok().says("Each answer is another allocation's");
    assert_eq!(cluster.run("workloads.yaml", &[]).ok().counted("changed"), 0, "{}", samples.report());
    assert_eq!(count("web-service") + count("final-app"), 2, "{}", of("web-service"));

    tokens_are_of_the_agents_alone(&cluster, &management);
    agents_tokens_are_rotated(&cluster, &management);
    keys_are_found_without_a_server(&cluster);
    who_is_gone_is_forgotten_by_both(&cluster);
}

/// Waits for something that comes about by itself.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !holds() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn tokens_are_of_the_agents_alone(cluster: &Cluster, management: &str) {
    let modes = "stat --format '%a %U:%G' /etc/nomad.d/consul.json";
    assert_eq!(cluster.hosts.root(0, modes).ok().text(), "640 root:nomad");
    assert_eq!(cluster.hosts.root(CLIENT, modes).ok().text(), "640 root:root");
    let own = |host: usize| {
        let file: Value = serde_json::from_str(&cluster.hosts.read(host, "/etc/nomad.d/consul.json")).expect("JSON");
        file["consul"]["token"].as_str().expect("it has one").to_owned()
    };
    assert_ne!(own(0), own(CLIENT));
    let ask = |token: &str, more: &str| {
        let line = format!("curl --silent --fail --header 'X-Consul-Token: {token}' http://127.0.0.1:8500/v1/{more}");
        cluster.hosts.root(CLIENT, &line)
    };
    ask(&own(CLIENT), "agent/self").ok();
    ask(&own(CLIENT), "kv/shop/greeting").ends(22);
    ask(&own(0), "acl/tokens").ends(22);
    // Somebody took a token and a rule away: both come back, and the agent goes on with the token that it has.
    let name = cluster.hosts.name(CLIENT);
    let tokens = cluster.consul(management, "acl/tokens");
    let mine =
        tokens.as_array().into_iter().flatten().find(|t| t["Description"] == format!("Made by Rollcall: nomad {name}"));
    let accessor = mine.expect("the client has a token")["AccessorID"].as_str().expect("with an accessor").to_owned();
    let rules = cluster.consul(management, "acl/binding-rules?authmethod=nomad-workloads");
    assert_eq!(rules.as_array().map(Vec::len), Some(2), "{rules}");
    let rule = rules[0]["ID"].as_str().expect("with an id").to_owned();
    let header = format!("--silent --fail --header 'X-Consul-Token: {management}' --request DELETE");
    for path in [format!("token/{accessor}"), format!("binding-rule/{rule}")] {
        cluster.hosts.root(0, &format!("curl {header} http://127.0.0.1:8500/v1/acl/{path}")).ok();
    }
    // What is ours, and wanted no more, goes: a rule, and the method of another name, unless tokens are left of it. Others' stay.
    let make = |what: &str, body: &Value| {
        let header = format!("--silent --fail --header 'X-Consul-Token: {management}' --request PUT --data @-");
        cluster.hosts.root(0, &format!("curl {header} http://127.0.0.1:8500/v1/acl/{what} << 'END'\n{body}\nEND")).ok();
    };
    let extra = |description: &str| {
        json!({"Description": description, "AuthMethod": "nomad-workloads", "BindType": "service", "BindName": "x",
            "Selector": "value.nomad_service == \"x\""})
    };
    make("binding-rule", &extra("Made by Rollcall: mesh"));
    make("binding-rule", &extra("by hand"));
    let mut method = cluster.consul(management, "acl/auth-method/nomad-workloads");
    for (name, description) in [("before", method["Description"].clone()), ("theirs", json!("by hand"))] {
        method["Name"] = json!(name);
        method["Description"] = description;
        make("auth-method", &method);
    }
    let before = cluster.hosts.root(CLIENT, "systemctl show --property MainPID nomad").ok().out;
    let mended = cluster.run("nomad.yaml", &[]).ok();
    assert!(mended.counted("changed") >= 2, "{}", mended.report());
    assert_eq!(cluster.hosts.root(CLIENT, "systemctl show --property MainPID nomad").ok().out, before);
    let rules = cluster.consul(management, "acl/binding-rules?authmethod=nomad-workloads");
    assert_eq!(rules.as_array().map(Vec::len), Some(3), "servers that made it at the same moment left one: {rules}");
    let mut said: Vec<&str> =
        rules.as_array().into_iter().flatten().filter_map(|rule| rule["Description"].as_str()).collect();
    said.sort_unstable();
    assert_eq!(said, ["Made by Rollcall: services", "Made by Rollcall: tasks", "by hand"]);
    let methods = cluster.consul(management, "acl/auth-methods");
    let names: Vec<&str> = methods.as_array().into_iter().flatten().filter_map(|m| m["Name"].as_str()).collect();
    assert_eq!(names, ["nomad-workloads", "theirs"], "{methods}");
}

/// Allocations that run, and since when their tasks do.
fn running(cluster: &Cluster) -> Vec<String> {
    let token = cluster.secret("nomad/management").expect("it is there");
    let line = format!(
        "curl --silent --fail --cacert /etc/nomad.d/tls/ca.pem --header 'X-Nomad-Token: {token}' 'https://127.0.0.1:4646/v1/allocations?namespace=*'"
    );
    let all = cluster.hosts.root(0, &line).ok().json();
    let runs = all.as_array().into_iter().flatten().filter(|alloc| alloc["ClientStatus"] == "running");
    let mut told: Vec<String> = runs
        .flat_map(|alloc| {
            let tasks = alloc["TaskStates"].as_object().cloned().unwrap_or_default();
            tasks.into_iter().map(|(name, state)| format!("{} {name} {}", alloc["ID"], state["StartedAt"]))
        })
        .collect();
    told.sort();
    told
}

/// The tokens with which Nomad's agents talk to Consul: rotated with a kill in the middle, and lost.
fn agents_tokens_are_rotated(cluster: &Cluster, management: &str) {
    const ROTATE: [&str; 4] = ["rotate", "tokens", "--only", "consul/token/nomad/*"];
    let own = |host: usize| {
        let file: Value = serde_json::from_str(&cluster.hosts.read(host, "/etc/nomad.d/consul.json")).expect("JSON");
        file["consul"]["token"].as_str().expect("it has one").to_owned()
    };
    let ask = |token: &str| {
        let line =
            format!("curl --silent --fail --header 'X-Consul-Token: {token}' http://127.0.0.1:8500/v1/agent/self");
        cluster.hosts.root(0, &line)
    };
    let kept = |host: usize| cluster.secret(&format!("consul/token/nomad/{}", cluster.hosts.name(host)));
    let tokens = || {
        let all = cluster.consul(management, "acl/tokens");
        let of =
            |token: &&Value| token["Description"].as_str().is_some_and(|d| d.starts_with("Made by Rollcall: nomad "));
        all.as_array().into_iter().flatten().filter(of).count()
    };
    let names = |service: &str| {
        let all = cluster.consul(management, &format!("health/service/{service}?passing"));
        all.as_array().into_iter().flatten().map(|one| one["Node"]["Node"].to_string()).collect::<BTreeSet<_>>().len()
    };
    let before: Vec<String> = (0..=CLIENT).map(own).collect();
    let allocations = running(cluster);
    assert!(allocations.len() >= 2, "{allocations:?}");
    // When the first of them restart: every agent has a token that counts, be it the old one or the next.
    let said = kill_after(&cluster.project, &ROTATE, 1, Duration::from_secs(6));
    assert_eq!(said.len(), 1, "{said:?}");
    (0..=CLIENT).for_each(|host| drop(ask(&own(host)).ok()));
    let ended = say(&cluster.project, &ROTATE).ok();
    for (host, old) in before.iter().enumerate() {
        ended
            .clone()
            .says(&format!("rotated: consul/token/nomad/{}\n", cluster.hosts.name(host)))
            .never_says(&own(host));
        assert_eq!(kept(host).as_deref(), Some(own(host).as_str()));
        assert_ne!(own(host), *old);
        ask(&own(host)).ok();
        ask(old).ends(22);
        // The one that runs has read it.
        let newer = "test \"$(date -d \"$(systemctl show --property ExecMainStartTimestamp --value nomad)\" +%s)\" -ge \"$(stat --format %Y /etc/nomad.d/consul.json)\"";
        cluster.hosts.root(host, newer).ok();
    }
    assert_eq!(tokens(), SERVERS + 1);
    cluster.project.controller(["secret", "list", "consul/"]).ok().never_says("-next");
    assert_eq!(running(cluster), allocations, "tasks go on while their agent restarts");
    until("all agents are healthy in Consul", || (names("nomad"), names("nomad-client")) == (SERVERS, 1));
    let again = cluster.run("nomad.yaml", &[]).ok();
    assert_eq!(again.counted("changed"), 0, "{}", again.report());

    // The store has lost one: the next run makes another, and restarts that agent.
    let lost = own(CLIENT);
    cluster
        .project
        .controller(["secret", "delete", &format!("consul/token/nomad/{}", cluster.hosts.name(CLIENT)), "--force"])
        .ok();
    cluster.run("nomad.yaml", &[]).ok().never_says(&lost);
    assert_ne!(own(CLIENT), lost);
    assert_eq!(kept(CLIENT).as_deref(), Some(own(CLIENT).as_str()));
    ask(&own(CLIENT)).ok();
    ask(&lost).ends(22);
    assert_eq!((tokens(), running(cluster)), (SERVERS + 1, allocations));
}

/// A client, and a server of both products whose Nomad is down already.
fn who_is_gone_is_forgotten_by_both(cluster: &Cluster) {
    let (client, server) = (cluster.hosts.name(CLIENT).to_owned(), cluster.hosts.name(2).to_owned());
    let management = cluster.management();
    cluster.project.controller(["forget", &client]).ends(4).says("is alive: it is a client that is ready");
    assert!(cluster.secret(&format!("consul/token/nomad/{client}")).is_some());
    for host in [2, CLIENT] {
        cluster.hosts.root(host, "systemctl kill --signal KILL nomad consul; systemctl stop nomad consul").ok();
    }
    for (name, was) in [(&client, "client down in nomad"), (&server, "server failed in nomad")] {
        let end = Instant::now() + Duration::from_mins(2);
        let said = loop {
            let said = cluster.project.controller(["forget", name]);
            // Until the others have missed it, it is alive.
            if said.code == 0 || Instant::now() > end {
                break said.ok();
            }
            std::thread::sleep(Duration::from_secs(1));
        };
        said.says("is forgotten").says(was);
        for kind in ["agent", "nomad"] {
            assert_eq!(cluster.secret(&format!("consul/token/{kind}/{name}")), None);
        }
        cluster.project.controller(["forget", name]).ok().says("no member in consul, no member in nomad; 0 secrets");
    }
    let token = cluster.secret("nomad/management").expect("it is there");
    let nomad = |path: &str| {
        let line = format!(
            "curl --silent --fail --cacert /etc/nomad.d/tls/ca.pem --header 'X-Nomad-Token: {token}' https://127.0.0.1:4646/v1/{path}"
        );
        cluster.hosts.root(0, &line).ok().json()
    };
    assert_eq!(nomad("nodes"), json!([]));
    let voters = nomad("operator/raft/configuration");
    assert_eq!(voters["Servers"].as_array().map(Vec::len), Some(2), "{voters}");
    let members = nomad("agent/members").to_string();
    assert!(!members.contains(&server), "{members}");
    let left = cluster.consul(&management, "acl/tokens").to_string();
    assert!(!left.contains(&format!("nomad {client}")) && !left.contains(&format!("nomad {server}")), "{left}");
}

fn keys_are_found_without_a_server(cluster: &Cluster) {
    let method = json!("https://nomad.service.consul:4646/.well-known/jwks.json");
    let management = cluster.management();
    assert_eq!(cluster.consul(&management, "acl/auth-method/nomad-workloads")["Config"]["JWKSURL"], method);
    cluster.hosts.root(2, "systemctl stop nomad").ok();
    // Consul drops the server from the name as soon as its check fails.
    let address = &cluster.hosts.host(2).address;
    let named = || cluster.hosts.root(0, "resolvectl query nomad.service.consul").ok().out.contains(address);
    until("the name no longer leads to a server that is down", || !named());
    for server in 0..SERVERS {
        // It may have been the one that led: until another one does, the keys are not told.
        let fetch = "curl --silent --fail --retry 20 --retry-delay 1 --retry-all-errors --cacert /etc/consul.d/tls/ca.pem https://nomad.service.consul:4646/.well-known/jwks.json";
        let keys = cluster.hosts.root(server, fetch).ok().json();
        assert!(keys["keys"].as_array().is_some_and(|keys| !keys.is_empty()), "{keys}");
    }
}
