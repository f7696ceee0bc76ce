//! Nomad beside a Consul that asks for tokens, both with certificates and ACLs, on real hosts: agents have tokens of their own, and jobs
//! read and register in Consul by proving who they are.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rollcall_engine::secrets::ownership::{Reader, TABLE};
use rollcall_tests::{Borrowed, Found, Lab, Project, Said, Wanted, encode, kill_after, killed, kills, say, until};
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

/// A new leader gives clients five minutes to come back, and on a busy machine the servers choose one again before they are over:
/// a client that is gone would stay a member for as long as that happens.
const SERVERS_VARS: &str = "nomad_config: {server: {failover_heartbeat_ttl: 40s}}\n";

struct Cluster {
    hosts: Borrowed,
    project: Project,
    /// What was told while it was made.
    first: Said,
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
            .file("group_vars/nomad_servers.yaml", SERVERS_VARS)
            .file("run.yaml", RUN)
            .file("files/greeter.nomad.hcl", &JOB.replace("IDENTITY", "consul {}"));
        project.add_settings("cluster: test\n");
        let first = project.controller(["run", "site.yaml", "--json", "--diff"]).ok();
        Self { hosts, project, first }
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
        let value = self.hosts.read(0, "/run/management").trim().to_owned();
        self.hosts.root(0, "rm /run/management").ok();
        value
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
    let mut wanted = Wanted::default();
    every_secret(&cluster, &mut wanted);
    let management = cluster.management();
    let of = |service: &str| cluster.consul(&management, &format!("health/service/{service}?passing"));
    // Nodes, of which a server has three instances: HTTP, RPC, gossip.
    let count = |service: &str| {
        let all = of(service);
        all.as_array().into_iter().flatten().map(|one| one["Node"]["Node"].to_string()).collect::<BTreeSet<_>>().len()
    };
    // Checks are made each ten seconds.
    until(Duration::from_mins(1), "not within a minute: all agents are healthy in Consul", || {
        (count("nomad"), count("nomad-client")) == (SERVERS, 1)
    });

    let first = cluster.run("run.yaml", &[]).ok();
    assert_eq!(first.counted("changed"), 2, "{}", first.report());
    // By its own identity it reads; it neither writes, nor registers what it is not, nor sees tokens.
    let dir = "cd /var/lib/nomad/alloc/*/greet/local";
    assert_eq!(
        cluster.hosts.root(CLIENT, &format!("{dir}; cat greeting; echo; cat may")).ok().text(),
        "hello\n200 403 403 403"
    );
    // Its copy of the host's folders has none of what is secret in them.
    let copied = "cd /var/lib/nomad/alloc/*/greet/etc && ls -d nomad.d consul.d ssh shadow ssl/private 2> /dev/null; :";
    assert_eq!(cluster.hosts.root(CLIENT, copied).ok().text(), "");
    cluster
        .hosts
        .root(
            CLIENT,
            "test -s /var/lib/nomad/alloc/*/greet/etc/passwd -a -e /var/lib/nomad/alloc/*/greet/etc/nsswitch.conf",
        )
        .ok();
    until(Duration::from_mins(1), "not within a minute: the job's service is healthy in Consul", || {
        count("greeter") == 1
    });
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
    secrets_are_found_nowhere_else(&cluster, wanted);
    a_client_that_is_gone_is_forgotten_by_both(&cluster);
    keys_are_found_without_a_server(&cluster);
    a_server_that_is_gone_is_forgotten_by_both(&cluster);
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
    rights_of_before(&make);
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
    let left = |what: &str| -> Vec<String> {
        let all = cluster.consul(management, &format!("acl/{what}"));
        let names = all.as_array().into_iter().flatten().filter_map(|it| it["Name"].as_str());
        names.filter(|name| !name.starts_with("rollcall-") && !name.contains("global-")).map(str::to_owned).collect()
    };
    for what in ["roles", "policies"] {
        let mut names = left(what);
        names.retain(|name| !name.starts_with("builtin/"));
        // Somebody may be about to use a policy that is newer than the one that is used.
        assert_eq!(names.iter().any(|name| name == "agents-to-be"), what == "policies");
        names.retain(|name| name != "agents-to-be");
        names.sort();
        assert_eq!(names, ["by-hand", "nomad-tasks-default", "other-nomad-shop"], "{what}");
    }
}

/// Roles and policies as a run made them that was told otherwise: for a namespace that has left the map, under a name of before, for
/// agents; another Nomad's, which a rule of its own method gives; and one that somebody made.
fn rights_of_before(make: &impl Fn(&str, &Value)) {
    let of = |namespace: &str| format!("Made by Rollcall: tasks of Nomad's namespace {namespace}");
    for (name, description) in [
        ("nomad-tasks-shop", of("shop")),
        ("jobs-default", of("default")),
        ("other-nomad-shop", of("shop")),
        ("by-hand", "tasks".to_owned()),
    ] {
        make("policy", &json!({"Name": name, "Description": description}));
        make("role", &json!({"Name": name, "Description": description, "Policies": [{"Name": name}]}));
    }
    make("policy", &json!({"Name": "agents-to-be", "Description": "Made by Rollcall: Nomad's clients"}));
    make(
        "binding-rule",
        &json!({"Description": "by hand", "AuthMethod": "theirs", "BindType": "role",
            "BindName": "other-nomad-${value.nomad_namespace}", "Selector": ""}),
    );
}

/// Allocations that run, and since when their tasks do.
fn running(cluster: &Cluster) -> Vec<String> {
    let all = nomad(cluster, "allocations?namespace=*");
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
        // Of which it is told where the last of them was rotated: a host that was locked at first is waited for by saying it again.
        ended.clone().says("rotated: consul/token/nomad/").never_says(&own(host));
        assert_eq!(kept(host).as_deref(), Some(own(host).as_str()));
        assert_ne!(own(host), *old);
        ask(&own(host)).ok();
        ask(old).ends(22);
        // The one that runs has read it.
        let newer = "test \"$(date -d \"$(systemctl show --property ExecMainStartTimestamp --value nomad)\" +%s)\" -ge \"$(stat --format %Y /etc/nomad.d/consul.json)\"";
        cluster.hosts.root(host, newer).ok();
    }
    let nothing_is_left = || {
        assert_eq!(tokens(), SERVERS + 1);
        cluster.project.controller(["secret", "list", "consul/"]).ok().never_says("-next");
    };
    nothing_is_left();
    // Three lines for all of them, and one for each.
    let steps = 3 + SERVERS + 1;
    let each = kills(steps, &[], [0, 6000, 1500]);
    for &(line, delay) in &each {
        kill_after(&cluster.project, &ROTATE, line, delay);
        (0..=CLIENT).for_each(|host| drop(ask(&own(host)).ok()));
        let ended = say(&cluster.project, &ROTATE).ok();
        (0..=CLIENT).for_each(|host| assert_eq!(kept(host), Some(own(host)), "{}", ended.report()));
        (0..=CLIENT).for_each(|host| drop(ask(&own(host)).ok()));
        nothing_is_left();
    }
    killed("`rotate tokens` of Nomad's agents in Consul", 1 + each.len());
    assert_eq!(running(cluster), allocations, "tasks go on while their agent restarts");
    until(Duration::from_mins(1), "not within a minute: all agents are healthy in Consul", || {
        (names("nomad"), names("nomad-client")) == (SERVERS, 1)
    });
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

/// All that the store has now. A mark and a certificate are no secrets.
#[track_caller]
fn every_secret(cluster: &Cluster, wanted: &mut Wanted) {
    let names = cluster.project.controller(["secret", "list"]).ok().out;
    for name in names.lines().filter(|name| !name.ends_with("/formed") && *name != "ca/certificate") {
        wanted.add(name, &cluster.secret(name).expect("it is listed"));
    }
}

/// Every secret of the cluster, of before its rotation and of now, on all of every host, on the controller, and in what was told.
fn secrets_are_found_nowhere_else(cluster: &Cluster, mut wanted: Wanted) {
    let own = |product: &str| {
        let words = ["token", "create", "deploy", "--product", product, "--management", "--store", "-vvv"];
        say(&cluster.project, &words).ok()
    };
    let mut told = vec![cluster.first.clone(), own("consul"), own("nomad")];
    every_secret(cluster, &mut wanted);
    for rule in TABLE {
        let (before, after) = rule.pattern.split_once('*').unwrap_or((rule.pattern, ""));
        let is_kept =
            !rule.pattern.contains("-next") && !rule.pattern.ends_with("/formed") && rule.pattern != "ca/certificate";
        let fits = |name: &str| name.starts_with(before) && name.ends_with(after);
        assert_eq!(wanted.names().any(fits), is_kept, "{} is looked for", rule.pattern);
    }
    // Something is written again, with all that can be told about it.
    for look in [&["-vvv", "--diff"][..], &["-vvv", "--diff", "--json"]] {
        cluster.hosts.root(0, "sed -i 's/[A-Z]/x/' /etc/consul.d/gossip.json /etc/nomad.d/gossip.json").ok();
        told.push(cluster.project.controller(["run", "site.yaml"].into_iter().chain(look.iter().copied())).ok());
    }
    for said in &told {
        assert_eq!(wanted.in_text("stdout", &said.out), [], "{}", said.shown);
        assert_eq!(wanted.in_text("stderr", &said.err), [], "{}", said.shown);
    }
    let shown = cluster.project.controller(["secret", "get", "nomad/gossip"]).ok();
    assert_eq!(wanted.in_text("stdout", &shown.out).len(), 1, "the control: what is told is found");

    let control = format!("planted-{}-in-every-place", std::process::id());
    wanted.add("control", &control);
    cluster.project.write("planted", &format!("x{}", encode(&control)));
    let here = wanted.on_controller(&cluster.project);
    let file = cluster.project.path().join("planted").display().to_string();
    assert_eq!(here.iter().map(|found| &found.place).collect::<Vec<_>>(), [&file], "{here:?}");
    std::thread::scope(|scope| {
        for host in 0..=CLIENT {
            let (wanted, control) = (&wanted, &control);
            scope.spawn(move || only_where_they_belong(cluster, host, wanted, control));
        }
    });
}

fn only_where_they_belong(cluster: &Cluster, host: usize, wanted: &Wanted, control: &str) {
    let plant = format!(
        "systemd-run --quiet --setenv=PLANTED={control} --unit planted sh -c 'sleep 300; :' {control}\n         echo '{control}' | tee /var/tmp/planted /run/planted > /dev/null; chmod 604 /var/tmp/planted\n         printf 'a\\0b\\377{control}\\0' > /opt/planted; echo '{}' > /root/planted\n         systemd-cat echo {control}; journalctl --sync",
        encode(control)
    );
    cluster.hosts.root(host, &plant).ok();
    let found = wanted.on_host(&cluster.hosts, host);
    let end = "systemctl stop planted; rm /var/tmp/planted /run/planted /opt/planted /root/planted";
    cluster.hosts.root(host, end).ok();
    let (controls, found): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|found| found.name == "control");
    let is_found = |place: &str| controls.iter().find(|found| found.place.ends_with(place));
    for place in ["/run/planted", "/opt/planted", "/root/planted", "/environ", "/cmdline", "journal"] {
        assert!(is_found(place).is_some(), "the control: {place}: {controls:?}");
    }
    let open = is_found("/var/tmp/planted").expect("the control");
    assert!(open.is_open && open.mode == 0o604, "{open:?}");

    let name = cluster.hosts.name(host);
    let kind = if host < SERVERS { "servers" } else { "clients" };
    let groups = [format!("consul_{kind}"), format!("nomad_{kind}")];
    let reader = Reader { host: name, groups: &groups };
    let astray: Vec<&Found> = found.iter().filter(|found| !found.belongs(reader)).collect();
    assert!(astray.is_empty(), "on {name}: {astray:#?}");
    // What must be there is found where it is.
    let mut there = vec!["/etc/consul.d/gossip.json", "/var/lib/consul/acl-tokens.json", "/etc/nomad.d/consul.json"];
    if host < SERVERS {
        there.extend(["/etc/nomad.d/gossip.json", "/var/lib/consul/raft/", "/var/lib/nomad/server/raft/"]);
    }
    for place in there {
        assert!(found.iter().any(|found| found.place.starts_with(place)), "on {name}: {place}: {found:?}");
    }
}

/// A client of both products.
fn a_client_that_is_gone_is_forgotten_by_both(cluster: &Cluster) {
    let client = cluster.hosts.name(CLIENT);
    cluster.project.controller(["forget", client]).ends(4).says("is alive: it is a client that is ready");
    is_forgotten(cluster, CLIENT, "client down in nomad");
    assert_eq!(nomad(cluster, "nodes"), json!([]));
}

/// A server of both products whose Nomad is down already.
fn a_server_that_is_gone_is_forgotten_by_both(cluster: &Cluster) {
    let server = cluster.hosts.name(2);
    is_forgotten(cluster, 2, "server failed in nomad");
    let voters = nomad(cluster, "operator/raft/configuration");
    assert_eq!(voters["Servers"].as_array().map(Vec::len), Some(2), "{voters}");
    let members = nomad(cluster, "agent/members").to_string();
    assert!(!members.contains(server), "{members}");
}

fn is_forgotten(cluster: &Cluster, host: usize, was: &str) {
    let name = cluster.hosts.name(host);
    let management = cluster.management();
    assert!(cluster.secret(&format!("consul/token/nomad/{name}")).is_some());
    cluster.hosts.root(host, "systemctl kill --signal KILL nomad consul; systemctl stop nomad consul").ok();
    // Half a minute, and another one for each leader that Nomad's servers choose meanwhile.
    let end = Instant::now() + Duration::from_mins(5);
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
    let left = cluster.consul(&management, "acl/tokens").to_string();
    assert!(!left.contains(&format!("nomad {name}")), "{left}");
}

/// What Nomad's API on the first server answers to its management token.
fn nomad(cluster: &Cluster, path: &str) -> Value {
    let token = cluster.secret("nomad/management").expect("it is there");
    let line = format!(
        "curl --silent --fail --cacert /etc/nomad.d/tls/ca.pem --header 'X-Nomad-Token: {token}' 'https://127.0.0.1:4646/v1/{path}'"
    );
    cluster.hosts.root(0, &line).ok().json()
}

fn keys_are_found_without_a_server(cluster: &Cluster) {
    let method = json!("https://nomad.service.consul:4646/.well-known/jwks.json");
    let management = cluster.management();
    assert_eq!(cluster.consul(&management, "acl/auth-method/nomad-workloads")["Config"]["JWKSURL"], method);
    cluster.hosts.root(2, "systemctl stop nomad").ok();
    // Consul drops the server from the name as soon as its check fails.
    let address = &cluster.hosts.host(2).address;
    let named = || cluster.hosts.root(0, "resolvectl query nomad.service.consul").ok().out.contains(address);
    until(Duration::from_mins(1), "not within a minute: the name no longer leads to a server that is down", || {
        !named()
    });
    for server in 0..SERVERS {
        // It may have been the one that led: until another one does, the keys are not told.
        let fetch = "curl --silent --fail --retry 20 --retry-delay 1 --retry-all-errors --cacert /etc/consul.d/tls/ca.pem https://nomad.service.consul:4646/.well-known/jwks.json";
        let keys = cluster.hosts.root(server, fetch).ok().json();
        assert!(keys["keys"].as_array().is_some_and(|keys| !keys.is_empty()), "{keys}");
    }
}
