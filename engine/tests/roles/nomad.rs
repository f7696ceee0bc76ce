//! Role nomad.

use super::*;

fn configuration(host: &str, more: Value) -> Value {
    let text = rendered(&scope(&load("nomad.yaml"), "nomad", host, more), "nomad", "nomad.json.tera");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_server_is_configured() {
    let config = configuration("consul-server-2", json!({"nomad_bind_cidr": "10.77.1.0/24"}));
    let expected = json!({
        "addresses": {"http": "127.0.0.1"},
        "advertise": {"http": "10.77.1.12", "rpc": "10.77.1.12", "serf": "10.77.1.12"},
        "autopilot": {"cleanup_dead_servers": true, "min_quorum": 3},
        "bind_addr": "10.77.1.12",
        "consul": {"auto_advertise": false, "client_auto_join": false, "server_auto_join": false},
        "data_dir": "/var/lib/nomad",
        "datacenter": "kraken",
        "disable_update_check": true,
        "leave_on_interrupt": false,
        "leave_on_terminate": false,
        "log_level": "INFO",
        "name": "consul-server-2",
        "ports": {"http": 4646, "rpc": 4647, "serf": 4648},
        "region": "global",
        "server": {
            "bootstrap_expect": 3, "enabled": true, "raft_multiplier": 1,
            "server_join": {"retry_interval": "3s", "retry_join": ["10.77.1.11", "10.77.1.12", "10.77.1.13"], "retry_max": 0},
        },
        "telemetry": {
            "disable_hostname": true, "prometheus_metrics": true, "publish_allocation_metrics": true, "publish_node_metrics": true,
        },
        "ui": {"enabled": true},
    });
    assert_eq!(config, expected);
}

#[test]
fn a_client_is_configured() {
    let more = json!({
        "nomad_node_class": "edge", "nomad_meta": {"rack": "r1"}, "nomad_consul": true,
        "nomad_host_volumes": {"data": {"path": "/srv", "read_only": false}}, "nomad_reserved": {"memory": 256},
        "nomad_plugins": {"raw_exec": {"config": {"enabled": true}}},
    });
    let config = configuration("nomad-client-5", more);
    let client = &config["client"];
    assert_eq!(
        (&client["enabled"], &client["node_class"], &client["node_pool"]),
        (&true.into(), &"edge".into(), &"default".into())
    );
    assert_eq!((&client["meta"]["rack"], &client["reserved"]["memory"]), (&"r1".into(), &256.into()));
    assert_eq!(client["host_volume"]["data"]["path"], json!("/srv"));
    assert_eq!(client["server_join"]["retry_join"], json!(["10.77.1.11", "10.77.1.12", "10.77.1.13"]));
    assert_eq!(config["plugin"]["raw_exec"]["config"]["enabled"], json!(true));
    assert_eq!(config["consul"], json!({"address": "127.0.0.1:8500"}));
    // What is given is merged into what the role knows of docker.
    assert_eq!(config["plugin"]["docker"]["config"]["allow_privileged"], json!(false));
    let gc =
        configuration("nomad-client-5", json!({"nomad_plugins": {"docker": {"config": {"gc": {"image": false}}}}}));
    let wanted = json!({"allow_privileged": false, "volumes": {"enabled": false}, "gc": {"image": false}});
    assert_eq!(gc["plugin"]["docker"]["config"], wanted);
    for key in ["server", "autopilot", "ui"] {
        assert!(config.get(key).is_none(), "{key}");
    }
    // A small cluster's hosts may be both.
    let both = configuration("consul-server-1", json!({"nomad_client": true}));
    assert_eq!((&both["server"]["enabled"], &both["client"]["enabled"]), (&true.into(), &true.into()));
}

#[test]
fn cni_plugins_are_named_where_there_are_some() {
    let path = |host: &str, more: Value| configuration(host, more)["client"]["cni_path"].clone();
    let docker = |exists: bool| json!({"stat": {"exists": exists}});
    assert_eq!(path("nomad-client-5", json!({"nomad__docker": docker(true)})), "/opt/cni/1.9.1");
    assert_eq!(path("nomad-client-5", json!({"nomad__docker": docker(false)})), Value::Null);
    assert_eq!(path("nomad-client-5", json!({"nomad_cni": true, "nomad_cni_version": "1.8.0"})), "/opt/cni/1.8.0");
    assert_eq!(path("nomad-client-5", json!({"nomad_cni": false, "nomad__docker": docker(true)})), Value::Null);
    assert_eq!(path("consul-server-1", json!({"nomad_cni": true})), Value::Null);
}

#[test]
fn a_secured_agent_is_configured() {
    let all = json!({"nomad_bind_cidr": "10.77.1.0/24", "nomad_tls": true, "nomad_acl": true, "nomad_encrypt": true});
    let config = configuration("consul-server-2", all.clone());
    let tls = json!({
        "http": true, "rpc": true, "verify_server_hostname": true, "verify_https_client": false,
        "ca_file": "/etc/nomad.d/tls/ca.pem", "cert_file": "/etc/nomad.d/tls/cert.pem", "key_file": "/etc/nomad.d/tls/key.pem",
    });
    assert_eq!((&config["tls"], &config["acl"]), (&tls, &json!({"enabled": true})));
    // With both others may ask; with one of them only this host does.
    assert_eq!(config["addresses"], json!({"http": "127.0.0.1 10.77.1.12"}));
    assert!(config["server"].get("encrypt").is_none(), "the key is in a file of its own");
    for one in [json!({"nomad_tls": true}), json!({"nomad_acl": true}), json!({})] {
        let config = configuration("consul-server-2", one.clone());
        assert_eq!(config["addresses"], json!({"http": "127.0.0.1"}), "{one}");
        assert_eq!(
            (config.get("tls").is_some(), config.get("acl").is_some()),
            (one.get("nomad_tls").is_some(), one.get("nomad_acl").is_some())
        );
    }
    // Whom the gate asks, and with what.
    let loaded = load("nomad.yaml");
    let asked = |host: &str, name: &str, more: &Value| {
        template::eval(name, Span::NONE, &scope(&loaded, "nomad", host, more.clone())).unwrap()
    };
    assert_eq!(asked("consul-server-2", "nomad_gate_url", &all), json!("https://127.0.0.1:4646"));
    assert_eq!(asked("consul-server-2", "nomad_gate_ca", &all), json!("/etc/nomad.d/tls/ca.pem"));
    assert_eq!(asked("consul-server-2", "nomad_gate_tokens", &all), json!(["nomad/token/server", "nomad/management"]));
    assert_eq!(asked("nomad-client-5", "nomad_gate_tokens", &all), json!([]), "a client may read none of them");
    assert_eq!(asked("consul-server-2", "nomad_gate_ca", &json!({})), Value::Null);
}

#[test]
fn a_key_that_is_taken_away_is_not_there() {
    let more = json!({"nomad_config": {"telemetry": null, "limits": {"http_max_conns_per_client": 500}, "ports": {"http": 80}}});
    let config = configuration("consul-server-1", more);
    assert!(config.get("telemetry").is_none());
    assert_eq!(config["limits"], json!({"http_max_conns_per_client": 500}));
    assert_eq!(config["ports"], json!({"http": 80, "rpc": 4647, "serf": 4648}));
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    let loaded = load("nomad.yaml");
    let refused =
        |host: &str, more: Value| refused_by(&loaded, "nomad", host, more).unwrap_or_else(|| panic!("not refused"));
    assert_eq!(refused_by(&loaded, "nomad", "consul-server-1", json!({})), None);
    assert_eq!(refused_by(&loaded, "nomad", "nomad-client-5", json!({})), None);
    for (host, more, part) in [
        ("consul-server-1", json!({"nomad_version": "v1.11.2"}), "nomad_version is 'v1.11.2'"),
        ("consul-server-1", json!({"nomad_version": "1.7.7"}), "1.8.0 or newer"),
        ("consul-server-1", json!({"nomad_datacenter": "Big One"}), "'Big One' is no name for a datacenter"),
        ("consul-server-1", json!({"nomad_server": false}), "nomad_server is False for consul-server-1"),
        ("nomad-client-5", json!({"nomad_client": false}), "neither a server of Nomad nor a client"),
        ("consul-server-1", json!({"nomad_bootstrap_expect": 2}), "the same odd number"),
        (
            "consul-server-1",
            json!({"nomad_bind_interface": "eth1", "nomad_bind_cidr": "10.0.0.0/8"}),
            "exclude each other",
        ),
        (
            "consul-server-1",
            json!({"nomad_bind_interface": "eth9"}),
            "the interface eth9 (nomad_bind_interface) gives 0 addresses",
        ),
        (
            "consul-server-1",
            json!({"nomad_config": {"region": "x", "bind_addr": "y"}}),
            "nomad_config sets region, bind_addr",
        ),
        ("nomad-client-5", json!({"nomad_meta": []}), "are mappings"),
        ("nomad-client-5", json!({"nomad_cni": "yes"}), "nomad_cni is true, false or auto"),
        ("nomad-client-5", json!({"nomad_cni_version": "v1.9.1"}), "a release such as \"1.9.1\""),
        ("nomad-client-5", json!({"nomad_cni_checksum": "abc"}), "64 hexadecimal digits"),
        ("nomad-client-5", json!({"nomad_tls": "accept"}), "are true or false"),
        ("consul-server-1", json!({"nomad_certificate_days": 0}), "a number from 1 to 3650"),
        (
            "consul-server-1",
            json!({"nomad_encrypt": true, "nomad_config": {"server": {"encrypt": "x"}}}),
            "take the key out of nomad_config",
        ),
        (
            "consul-server-1",
            json!({"nomad_tls": true, "nomad_config": {"tls": {"rpc": true}}}),
            "leave it to nomad_tls",
        ),
        ("consul-server-1", json!({"nomad_acl": true, "nomad_config": {"acl": {"enabled": false}}}), "leave it to"),
    ] {
        let (task, said) = refused(host, more);
        assert!(said.contains(part), "{task}: {said}");
    }
}

#[test]
fn a_cluster_that_runs_is_not_changed_host_by_host() {
    let loaded = load("nomad.yaml");
    for (host, running, settings, refuse) in [
        ("consul-server-1", "", json!({"nomad_tls": true, "nomad_encrypt": true}), false),
        ("consul-server-1", "runs", json!({}), false),
        ("consul-server-1", "runs", json!({"nomad_acl": true}), false),
        ("consul-server-1", "runs", json!({"nomad_tls": true}), true),
        ("nomad-client-5", "runs", json!({"nomad_tls": true}), true),
        ("nomad-client-5", "runs tls", json!({"nomad_tls": true, "nomad_encrypt": true}), false),
        ("nomad-client-5", "runs tls", json!({}), true),
        ("consul-server-1", "runs tls", json!({"nomad_config": {"tls": {"rpc": true}}}), false),
        ("consul-server-1", "runs", json!({"nomad_encrypt": true}), true),
        ("nomad-client-5", "runs", json!({"nomad_encrypt": true}), false),
        ("consul-server-1", "runs keyring", json!({"nomad_encrypt": true}), false),
        ("consul-server-1", "runs tls keyring", json!({"nomad_encrypt": true, "nomad_tls": true}), false),
    ] {
        let mut more = settings.clone();
        more["nomad__running"] = json!({"stdout": running});
        let said = refused_by(&loaded, "nomad", host, more);
        assert_eq!(said.is_some(), refuse, "{host} {running} {settings}: {said:?}");
        if let Some((_, message)) = said {
            assert!(message.contains("systemctl stop nomad") && message.contains("all"), "{message}");
        }
    }
}

#[test]
fn handlers_take_turns() {
    let loaded = load("nomad.yaml");
    let handlers = &loaded.bundle.plays[0].handlers;
    let named = |name: &str| {
        handlers
            .iter()
            .find(|h| h.task.name.as_ref().and_then(|n| n.as_str()) == Some(name))
            .unwrap_or_else(|| panic!("{name}"))
    };
    assert!(named("restart nomad server").gate.is_some() && named("restart nomad server").serial.is_some());
    assert!(named("restart nomad client").gate.is_none() && named("restart nomad client").serial.is_some());
    let first = named("restart nomad client").after.as_ref().expect("servers go first");
    let scope = scope(&loaded, "nomad", "nomad-edge-1", json!({}));
    let names = json!(["consul-server-1", "consul-server-2", "consul-server-3"]);
    assert_eq!(template::render(first, &scope).unwrap(), names);
}

/// Beside a Consul with ACLs.
fn with_consul(more: &Value) -> Value {
    let servers = json!([{"name": "consul-server-1", "address": "10.77.1.11", "id": null, "zone": null}]);
    let mut all = json!({"nomad_consul": true, "consul_acl": true, "nomad_tls": true, "nomad_acl": true});
    all["cluster"] = json!({"name": "kraken", "consul_servers": servers, "nomad_servers": servers,
        "self": {"name": "x", "address": "10.77.1.11", "id": null, "zone": null}});
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

#[test]
fn jobs_prove_who_they_are_to_a_consul_with_acls() {
    let names = json!({"service_auth_method": "nomad-workloads", "task_auth_method": "nomad-workloads", "address": "127.0.0.1:8500"});
    let client = configuration("nomad-client-1", with_consul(&json!({})));
    assert_eq!(client["consul"], names);
    let server = configuration("consul-server-1", with_consul(&json!({"nomad_workload_audience": "shop"})));
    let identity = json!({"aud": ["shop"], "ttl": "1h"});
    assert_eq!((&server["consul"]["service_identity"], &server["consul"]["task_identity"]), (&identity, &identity));
    assert!(server["consul"].get("token").is_none(), "it is in a file of its own");
    let old = with_consul(&json!({"nomad_workload_identity": false, "nomad_version": "1.9.7"}));
    assert_eq!(configuration("consul-server-1", old)["consul"], json!({"address": "127.0.0.1:8500"}));

    let loaded = load("nomad.yaml");
    let asked = |host: &str, name: &str, more: Value| {
        template::eval(name, Span::NONE, &scope(&loaded, "nomad", host, with_consul(&more))).unwrap()
    };
    let url = json!("https://nomad.service.consul:4646/.well-known/jwks.json");
    assert_eq!(asked("consul-server-1", "nomad_jwks_url", json!({})), url);
    let other = json!({"nomad_consul_domain": "corp", "nomad_tls": false, "nomad_config": {"ports": {"http": 80}}});
    let url = json!("http://nomad.service.corp:80/.well-known/jwks.json");
    assert_eq!(asked("consul-server-1", "nomad_jwks_url", other), url);
    // Only an agent that runs jobs registers what is not its own; none may touch tokens.
    let rules = |host: &str| asked(host, "nomad__consul_rules", json!({})).as_str().unwrap().to_owned();
    let (server, client) = (rules("consul-server-1"), rules("nomad-client-1"));
    assert!(
        server.contains("service \"nomad\" { policy = \"write\" }")
            && !server.contains("service_prefix \"\" { policy = \"write\" }")
    );
    assert!(client.contains("service_prefix \"\" { policy = \"write\" }") && !client.contains("service \"nomad\""));
    assert!(!(server + &client).contains("acl"));
    assert_eq!(asked("consul-server-1", "nomad_consul_issuer", json!({})), json!("consul-server-1"));
    assert_eq!(
        asked("nomad-client-9", "nomad_consul_token_secret", json!({})),
        json!("consul/token/nomad/nomad-client-9")
    );
}

#[test]
fn what_cannot_work_with_consul_is_refused() {
    let loaded = load("nomad.yaml");
    let nobody = json!({"name": "kraken", "consul_servers": [], "nomad_servers": [{"name": "consul-server-1", "address": "10.77.1.11"}],
        "self": {"name": "x", "address": "10.77.1.11", "id": null, "zone": null}});
    for (more, part) in [
        (json!({}), None),
        (json!({"nomad_consul": false, "cluster": nobody}), None),
        (json!({"cluster": nobody}), Some("no host in the group consul_servers")),
        (json!({"nomad_config": {"consul": {"token": "x"}}}), Some("nomad_config sets consul.token")),
        (json!({"nomad_workload_identity": false}), Some("no other way to a Consul with ACLs")),
        (json!({"nomad_workload_identity": false, "nomad_version": "1.9.7"}), None),
        (json!({"nomad_acl": false}), Some("listens on loopback only")),
        (json!({"nomad_acl": false, "nomad_jwks_url": "https://10.0.0.1/keys"}), None),
        (json!({"nomad_workload_rules": []}), Some("maps namespaces to texts")),
    ] {
        let said = refused_by(&loaded, "nomad", "consul-server-1", with_consul(&more)).map(|(_, said)| said);
        match part {
            None => assert_eq!(said, None, "{more}"),
            Some(part) => assert!(said.as_ref().is_some_and(|said| said.contains(part)), "{more}: {said:?}"),
        }
    }
}
