//! The roles that come with the program: read, checked, and what they make of variables.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rollcall_engine::{
    diag::{FileId, Sources, Span},
    node::{Kind, Node},
    playbook::{
        Loaded, Loader,
        model::{Action, Item, Task},
    },
    project::Project,
    roles::{Embedded, EmbeddedRoles as _},
    template::{self, TemplateKind, TemplateSource},
    vars::{Layer, Scope, Var, Vars},
};
use serde_json::{Value, json};

mod docker;
mod nomad;

fn load(playbook: &str) -> Loaded {
    let sources = Sources::default();
    let project = Project::without_file(Path::new("tests/fixtures"));
    let loader = Loader { sources: &sources, project: &project, embedded_roles: &Embedded, extra: &Vars::new() };
    match loader.load(&[PathBuf::from(playbook)]) {
        Ok(loaded) => {
            let warnings: String = loaded.warnings.iter().map(|d| sources.render(d)).collect();
            assert_eq!(warnings, "");
            loaded
        }
        Err(wrong) => panic!("{}", wrong.0.iter().map(|d| sources.render(d)).collect::<String>()),
    }
}

/// The text of an embedded role's file.
fn file(role: &str, path: &str) -> String {
    let files = Embedded.get(role).unwrap();
    let (_, bytes, _) = files.into_iter().find(|(p, ..)| p == Path::new(path)).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn server(n: u32) -> Value {
    json!({"name": format!("consul-server-{n}"), "address": format!("10.77.1.1{n}"), "id": format!("i-{n}"), "zone": "us-west-2a"})
}

/// What a host of a cluster of three servers sees; `more` on top.
fn scope(loaded: &Loaded, role: &str, host: &str, more: Value) -> Scope {
    let number = host.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(9);
    let servers: Vec<Value> = (1..=3).map(server).collect();
    let (consul, nomad) = if role == "nomad" { (Vec::new(), servers) } else { (servers, Vec::new()) };
    let cluster = json!({
        "name": "kraken", "consul_servers": consul, "nomad_servers": nomad,
        "self": {"name": host, "address": format!("10.77.1.1{number}"), "id": null, "zone": null},
    });
    let interface = |address: &str| json!({"up": true, "mac": null, "ipv4": [{"address": address, "prefix": 24, "cidr": "10.77.1.0/24"}], "ipv6": []});
    let facts = json!({
        "os": {"family": "debian", "id": "debian"}, "deb_arch": "amd64", "virtualization": "systemd-nspawn",
        "addresses": {"ipv4": [format!("10.77.1.1{number}"), "192.168.7.1"], "ipv6": [],
            "by_interface": {"lo": interface("127.0.0.1"), "host0": interface(&format!("10.77.1.1{number}")), "eth1": interface("192.168.7.1")}},
    });
    let data = |name: &str, value: Value, layer| (name.to_owned(), Var::data(value, layer));
    let mut scope = Scope::new();
    let used: Vec<_> =
        loaded.bundle.roles.iter().filter(|r| r.name == role || role != "base" && r.name == "base").collect();
    assert!(!used.is_empty());
    for role in &used {
        scope = scope.with(Arc::clone(&role.defaults));
    }
    for role in &used {
        scope = scope.with(Arc::clone(&role.vars));
    }
    scope = scope.with(Vars::from_iter([
        data("cluster", cluster, Layer::Magic),
        data("inventory_hostname", json!(host), Layer::Magic),
        data("facts", facts, Layer::Facts),
        data("ansible_check_mode", json!(false), Layer::Magic),
    ]));
    let more = more.as_object().unwrap().iter().map(|(k, v)| data(k, v.clone(), Layer::Extra));
    scope.with(more.collect::<Vars>())
}

fn rendered(scope: &Scope, role: &str, name: &str) -> String {
    let text = file(role, &format!("templates/{name}"));
    let source = TemplateSource { name, file: FileId::NONE, text: &text };
    template::render_template(TemplateKind::Tera, &source, scope, &|_| None).unwrap().text
}

fn configuration(loaded: &Loaded, host: &str, more: Value) -> Value {
    let text = rendered(&scope(loaded, "consul", host, more), "consul", "consul.json.tera");
    assert!(text.ends_with("}\n"), "{text:?}");
    serde_json::from_str(&text).unwrap()
}

fn tasks<'a>(items: &'a [Item], out: &mut Vec<&'a Task>) {
    for item in items {
        match item {
            Item::Task(task) => out.push(task),
            Item::Block(block) => {
                for part in [&block.block, &block.rescue, &block.always] {
                    tasks(part, out);
                }
            }
        }
    }
}

/// The first assertion that does not hold: its task's name and what it says.
fn refused(loaded: &Loaded, host: &str, more: Value) -> Option<(String, String)> {
    refused_by(loaded, "consul", host, more)
}

fn refused_by(loaded: &Loaded, role: &str, host: &str, more: Value) -> Option<(String, String)> {
    let scope = scope(loaded, role, host, more);
    let mut all = Vec::new();
    tasks(&loaded.bundle.plays[0].tasks, &mut all);
    for task in all {
        let Action::Module { name, args } = &task.action else { continue };
        if name != "assert" || task.when.iter().any(|when| !holds(&when.text, when.span, &scope)) {
            continue;
        }
        // Without words of its own it is what a role's argument_specs ask for, with variables that only its import sets.
        let Some(message) = args.get("fail_msg") else { continue };
        let that: Vec<&Node> = match &args.get("that").unwrap().kind {
            Kind::List(items) => items.iter().collect(),
            _ => vec![args.get("that").unwrap()],
        };
        if !that.iter().all(|node| holds(node.as_str().unwrap(), node.span, &scope)) {
            let said = template::render(message, &scope).unwrap();
            return Some((task.name.as_ref().unwrap().as_str().unwrap().to_owned(), said.as_str().unwrap().to_owned()));
        }
    }
    None
}

fn holds(text: &str, span: Span, scope: &Scope) -> bool {
    template::condition(text, span, scope).unwrap_or_else(|e| panic!("{text}: {e:?}"))
}

#[test]
fn the_playbook_is_right() {
    let loaded = load("consul.yaml");
    let mut all = Vec::new();
    tasks(&loaded.bundle.plays[0].tasks, &mut all);
    let named: Vec<&str> = all.iter().filter_map(|t| t.name.as_ref()?.as_str()).collect();
    for name in ["Kernel settings", "Fetch the release", "Configuration", "Consul runs"] {
        assert_eq!(named.iter().filter(|n| **n == name).count(), 1, "{name}: {named:?}");
    }
    assert!(loaded.roles_used.iter().all(|r| r.embedded));
    let names: Vec<&str> =
        loaded.bundle.plays[0].handlers.iter().filter_map(|h| h.task.name.as_ref()?.as_str()).collect();
    assert!(names.contains(&"restart consul server") && names.contains(&"restart consul client"), "{names:?}");
}

#[test]
fn roles_never_look_at_other_hosts() {
    for role in Embedded.names() {
        for (path, bytes, _) in Embedded.get(&role).unwrap() {
            let text = String::from_utf8(bytes).unwrap();
            for word in ["hostvars", "groups[", "groups.", "ansible_play_hosts"] {
                assert!(!text.contains(word), "{role}/{}: {word}", path.display());
            }
        }
    }
}

#[test]
fn a_server_is_configured() {
    let loaded = load("consul.yaml");
    let text = rendered(&scope(&loaded, "consul", "consul-server-2", json!({})), "consul", "consul.json.tera");
    let again = rendered(&scope(&loaded, "consul", "consul-server-2", json!({})), "consul", "consul.json.tera");
    assert_eq!(text, again);
    let config: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "autopilot": {"cleanup_dead_servers": true, "min_quorum": 3},
        "bind_addr": "10.77.1.12",
        "bootstrap_expect": 3,
        "client_addr": "127.0.0.1",
        "data_dir": "/var/lib/consul",
        "datacenter": "kraken",
        "disable_remote_exec": true,
        "disable_update_check": true,
        "domain": "consul",
        "enable_script_checks": false,
        "leave_on_terminate": false,
        "log_level": "info",
        "node_name": "consul-server-2",
        "performance": {"raft_multiplier": 1},
        "ports": {"dns": 8600, "grpc": 8502, "grpc_tls": -1, "http": 8500, "https": -1},
        "retry_interval": "3s",
        "retry_join": ["10.77.1.11", "10.77.1.12", "10.77.1.13"],
        "server": true,
        "skip_leave_on_interrupt": true,
        "telemetry": {"disable_hostname": true, "prometheus_retention_time": "60s"},
        "ui_config": {"enabled": true},
    });
    assert_eq!(config, expected);
    // Sorted, so that the file differs only where its meaning does.
    let keys: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("    \"")?.split('"').next()).collect();
    assert!(keys.len() == 21 && keys.is_sorted(), "{keys:?}");
}

#[test]
fn a_client_is_configured() {
    let config = configuration(&load("consul.yaml"), "nomad-client-5", json!({"consul_bootstrap_expect": "3"}));
    assert_eq!(config["server"], json!(false));
    assert_eq!(config["bind_addr"], json!("10.77.1.15"));
    assert_eq!(config["retry_join"], json!(["10.77.1.11", "10.77.1.12", "10.77.1.13"]));
    for key in ["bootstrap_expect", "autopilot", "performance", "ui_config"] {
        assert!(config.get(key).is_none(), "{key}");
    }
}

#[test]
fn every_key_of_the_product_can_be_given() {
    let more = json!({"consul_config": {
        "log_level": "debug", "ports": {"http": 8501}, "limits": {"http_max_conns_per_client": 500},
        "telemetry": {"prometheus_retention_time": null}, "leave_on_terminate": true,
    }});
    let config = configuration(&load("consul.yaml"), "consul-server-1", more);
    assert_eq!(config["log_level"], json!("debug"));
    assert_eq!(config["ports"], json!({"dns": 8600, "grpc": 8502, "grpc_tls": -1, "http": 8501, "https": -1}));
    assert_eq!(config["limits"], json!({"http_max_conns_per_client": 500}));
    assert_eq!(config["telemetry"], json!({"disable_hostname": true, "prometheus_retention_time": null}));
    assert_eq!(config["leave_on_terminate"], json!(true));
}

#[test]
fn keys_follow_the_version() {
    let loaded = load("consul.yaml");
    let ports =
        |version: &str| configuration(&loaded, "consul-server-1", json!({"consul_version": version}))["ports"].clone();
    for version in ["1.22.2", "1.21.5", "1.14.0"] {
        assert_eq!(
            ports(version),
            json!({"dns": 8600, "grpc": 8502, "grpc_tls": -1, "http": 8500, "https": -1}),
            "{version}"
        );
    }
    assert_eq!(ports("1.13.9"), json!({"dns": 8600, "grpc": 8502, "http": 8500, "https": -1}));
}

#[test]
fn the_address_is_found_by_interface_and_by_network() {
    let loaded = load("consul.yaml");
    let bind = |more: Value| configuration(&loaded, "consul-server-1", more)["bind_addr"].clone();
    assert_eq!(bind(json!({"consul_bind_interface": "eth1"})), json!("192.168.7.1"));
    assert_eq!(bind(json!({"consul_bind_cidr": "192.168.0.0/16"})), json!("192.168.7.1"));
    assert_eq!(bind(json!({})), json!("10.77.1.11"));
}

#[test]
fn the_agent_is_asked_where_it_listens() {
    let loaded = load("consul.yaml");
    let url = |more: Value| {
        let scope = scope(&loaded, "consul", "consul-server-1", more);
        template::eval("consul_gate_url", Span::NONE, &scope).unwrap()
    };
    assert_eq!(url(json!({})), json!("http://127.0.0.1:8500"));
    assert_eq!(url(json!({"consul_client_addr": "0.0.0.0"})), json!("http://127.0.0.1:8500"));
    assert_eq!(
        url(json!({"consul_client_addr": "10.77.1.11 127.0.0.1", "consul_config": {"ports": {"http": 80}}})),
        json!("http://127.0.0.1:80")
    );
    assert_eq!(url(json!({"consul_config": {"client_addr": "10.77.1.11"}})), json!("http://10.77.1.11:8500"));
}

#[test]
fn tls_is_turned_on_step_by_step() {
    let loaded = load("consul.yaml");
    let config = |more: Value| configuration(&loaded, "consul-server-1", more);
    assert_eq!((&config(json!({}))["tls"], &config(json!({}))["addresses"]), (&Value::Null, &Value::Null));
    for (mode, incoming, outgoing) in [
        (json!("accept"), false, false),
        (json!("use"), false, true),
        (json!("true"), true, true),
        (json!(true), true, true),
    ] {
        let config = config(json!({"consul_tls": mode, "consul_client_addr": "0.0.0.0"}));
        let files = |more: Value| {
            let mut files = json!({
                "ca_file": "/etc/consul.d/tls/ca.pem", "cert_file": "/etc/consul.d/tls/cert.pem",
                "key_file": "/etc/consul.d/tls/key.pem",
            });
            files.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            files
        };
        let rpc = json!({"verify_incoming": incoming, "verify_outgoing": outgoing, "verify_server_hostname": outgoing});
        let https = files(json!({"verify_incoming": false}));
        assert_eq!(config["tls"], json!({"internal_rpc": files(rpc), "https": https}), "{mode}");
        assert_eq!(config["addresses"], json!({"grpc": "127.0.0.1", "http": "127.0.0.1", "https": "127.0.0.1"}));
        assert_eq!(config["ports"], json!({"dns": 8600, "grpc": 8502, "grpc_tls": -1, "http": 8500, "https": 8501}));
    }
    let open = config(json!({"consul_tls": true, "consul_acl": true, "consul_https_port": "443"}));
    assert_eq!((&open["addresses"]["https"], &open["ports"]["https"]), (&json!("127.0.0.1 10.77.1.11"), &json!(443)));
    // The gate's address is plain HTTP on loopback, whatever else listens where.
    let scope =
        scope(&loaded, "consul", "consul-server-1", json!({"consul_tls": true, "consul_client_addr": "10.77.1.11"}));
    assert_eq!(template::eval("consul_gate_url", Span::NONE, &scope).unwrap(), json!("http://127.0.0.1:8500"));
    // Each word is at most a step away from the next.
    for (running, tls, refuse) in [
        ("", "true", false),
        ("false", "true", true),
        ("false", "use", true),
        ("false", "accept", false),
        ("accept", "use", false),
        ("accept", "true", true),
        ("use", "true", false),
        ("true", "true", false),
        ("true", "false", true),
        ("accept", "false", false),
    ] {
        let more = json!({"consul_tls": tls, "consul__tls_running": {"stdout": running}});
        let said = refused(&loaded, "consul-server-1", more);
        assert_eq!(said.is_some(), refuse, "{running} {tls}: {said:?}");
        if let Some((name, message)) = said {
            assert_eq!(name, "A cluster that runs changes TLS step by step");
            assert!(message.contains("false, accept, use, true"), "{message}");
        }
    }
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    let loaded = load("consul.yaml");
    assert_eq!(refused(&loaded, "consul-server-1", json!({})), None);
    assert_eq!(refused(&loaded, "nomad-client-5", json!({})), None);
    let cluster = |servers: Value, name: Option<&str>| json!({"cluster": {"name": name, "self": server(1), "consul_servers": servers, "nomad_servers": []}});
    let cases = [
        (
            json!({"consul_bind_interface": "eth7"}),
            "The address to bind to is found",
            "eth7 (consul_bind_interface) gives 0 addresses on this host, expected one. Its interfaces: lo, host0, eth1",
        ),
        (
            json!({"consul_bind_cidr": "172.16.0.0/12"}),
            "The address to bind to is found",
            "the network 172.16.0.0/12 (consul_bind_cidr) gives 0",
        ),
        (json!({"consul_bind_cidr": "0.0.0.0/0"}), "The address to bind to is found", "gives 2 addresses"),
        (
            json!({"consul_bind_cidr": "10.0.0.0/8", "consul_bind_interface": "lo"}),
            "One way to find the address is given",
            "exclude each other",
        ),
        (
            json!({"consul_bootstrap_expect": 2}),
            "The number of servers can hold a quorum",
            "consul_bootstrap_expect is 2 and there are 3 servers",
        ),
        (
            json!({"consul_bootstrap_expect": 5}),
            "The number of servers can hold a quorum",
            "consul_bootstrap_expect is 5",
        ),
        (
            cluster(json!([server(1), server(2)]), Some("kraken")),
            "The number of servers can hold a quorum",
            "there are 2 servers",
        ),
        (cluster(json!([]), Some("kraken")), "The cluster has servers", "consul_servers"),
        (
            cluster(json!([{"name": "consul-server-1", "address": null}]), Some("kraken")),
            "Addresses of the servers are known",
            "no address is known of consul-server-1",
        ),
        (cluster(json!([server(1)]), None), "The cluster has a name", "give the cluster a name"),
        (json!({"consul_datacenter": "Zürich 1"}), "The cluster has a name", "'Zürich 1' is no name for a datacenter"),
        (
            json!({"consul_version": "v1.22.2"}),
            "The version is one that this role knows",
            "consul_version is 'v1.22.2'",
        ),
        (json!({"consul_version": "1.9.0"}), "The version is one that this role knows", "1.12.0 or newer"),
        (json!({"consul_version": 1.22}), "The version is one that this role knows", "in quotes"),
        (
            json!({"consul_server": false}),
            "Servers are those of the cluster's list",
            "for consul-server-1, and the group consul_servers has consul-server-1, consul-server-2, consul-server-3",
        ),
        (
            json!({"consul_config": {"bootstrap_expect": 5, "server": true}}),
            "Keys that the role sets come from its variables",
            "use consul_server, consul_bootstrap_expect",
        ),
        (json!({"consul_resolved": "sometimes"}), "The rest is one of the known words", "auto, true or false"),
        (json!({"consul_tls": "verify"}), "TLS is one of the known words", "(found 'verify')"),
        (json!({"consul_certificate_days": 0}), "TLS is one of the known words", "(found '0')"),
        (
            json!({"consul_tls": true, "consul_version": "1.13.9"}),
            "The version has what TLS needs",
            "consul_version is 1.13.9",
        ),
        (json!({"base_time_sync": "ntp"}), "What is asked for makes sense", "base_time_sync must be"),
    ];
    for (more, task, said) in cases {
        let shown = more.to_string();
        let (name, message) =
            refused(&loaded, "consul-server-1", more).unwrap_or_else(|| panic!("{shown} was not refused"));
        assert!(name == task && message.contains(said), "{shown}: {name}: {message}");
    }
}

#[test]
fn names_go_to_consul() {
    let loaded = load("consul.yaml");
    let text = rendered(
        &scope(&loaded, "consul", "consul-server-1", json!({"consul_config": {"domain": "lan."}})),
        "consul",
        "resolved.conf.tera",
    );
    assert_eq!(
        text,
        "# Managed by Rollcall (role consul). Local changes are lost.\n[Resolve]\nDNS=127.0.0.1:8600\nDomains=~lan\n# Consul does not sign its answers.\nDNSSEC=false\n"
    );
}

#[test]
fn base_writes_its_files() {
    let loaded = load("consul.yaml");
    let more = json!({
        "base_sysctl": {"vm.swappiness": 10}, "base_sysctl_extra": {"kernel.pid_max": 99999, "vm.swappiness": 1},
        "base_limits": [{"domain": "*", "type": "soft", "item": "nofile", "value": 5}, {"domain": "root", "type": "-", "item": "core", "value": 0}],
        "base_journal_keep_free": null,
        "base_logrotate": [{"paths": ["/var/log/a.log", "/var/log/b/*.log"], "options": ["copytruncate"]}, {"paths": ["/c"], "rotate": 2, "size": "1M"}],
    });
    let scope = scope(&loaded, "base", "nomad-client-5", more);
    let body = |name: &str| rendered(&scope, "base", name).split_once('\n').unwrap().1.to_owned();
    assert_eq!(body("sysctl.conf.tera"), "vm.swappiness = 1\nkernel.pid_max = 99999\n");
    assert_eq!(body("limits.conf.tera"), "* soft nofile 5\nroot - core 0\n");
    assert_eq!(
        body("journald.conf.tera"),
        "[Journal]\nSystemMaxUse=1G\nSystemMaxFileSize=128M\nMaxRetentionSec=30day\nRateLimitIntervalSec=30s\nRateLimitBurst=20000\n"
    );
    let one = "    daily\n    maxsize 50M\n    rotate 7\n    missingok\n    notifempty\n    compress\n    delaycompress\n    copytruncate\n}\n";
    let two = "/c {\n    daily\n    maxsize 1M\n    rotate 2\n    missingok\n    notifempty\n    compress\n    delaycompress\n}\n";
    assert_eq!(body("logrotate.tera"), format!("/var/log/a.log /var/log/b/*.log {{\n{one}{two}"));
}
