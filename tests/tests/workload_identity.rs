//! Nomad beside a Consul that asks for tokens, both with certificates and ACLs, on real hosts: agents have tokens of their own, and jobs
//! read and register in Consul by proving who they are.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rollcall_tests::{Borrowed, Lab, Project, Said};
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
    keys_are_found_without_a_server(&cluster);
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
    let before = cluster.hosts.root(CLIENT, "systemctl show --property MainPID nomad").ok().out;
    let mended = cluster.run("nomad.yaml", &[]).ok();
    assert!(mended.counted("changed") >= 2, "{}", mended.report());
    assert_eq!(cluster.hosts.root(CLIENT, "systemctl show --property MainPID nomad").ok().out, before);
    let rules = cluster.consul(management, "acl/binding-rules?authmethod=nomad-workloads");
    assert_eq!(rules.as_array().map(Vec::len), Some(2), "servers that made it at the same moment left one: {rules}");
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
        let fetch = "curl --silent --fail --cacert /etc/consul.d/tls/ca.pem https://nomad.service.consul:4646/.well-known/jwks.json";
        let keys = cluster.hosts.root(server, fetch).ok().json();
        assert!(keys["keys"].as_array().is_some_and(|keys| !keys.is_empty()), "{keys}");
    }
}
