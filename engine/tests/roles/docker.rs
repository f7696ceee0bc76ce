//! Role docker.

use super::*;

fn on(more: &[(&str, Value)]) -> Value {
    let before =
        json!({"live-restore": true, "log-driver": "json-file", "log-opts": {"max-size": "10m", "max-file": "3"}});
    let mut all = json!({"docker__before": before, "docker__containers": {"stdout": ""}});
    for (name, value) in more {
        all[*name] = value.clone();
    }
    all
}

fn configuration(more: &[(&str, Value)]) -> Value {
    let scope = scope(&load("docker.yaml"), "docker", "nomad-client-5", on(more));
    serde_json::from_str(&rendered(&scope, "docker", "daemon.json.tera")).unwrap()
}

/// What a change notifies.
fn notified(more: &[(&str, Value)]) -> String {
    let loaded = load("docker.yaml");
    let scope = scope(&loaded, "docker", "nomad-client-5", on(more));
    let text = Node::from_value(&json!("{{ docker__notify }}"), Span::NONE);
    template::render(&text, &scope).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn what_is_given_is_merged_into_what_the_role_knows() {
    let known =
        json!({"live-restore": true, "log-driver": "json-file", "log-opts": {"max-file": "3", "max-size": "10m"}});
    assert_eq!(configuration(&[]), known);
    let config = configuration(&[
        ("docker_bip", json!("172.20.0.1/16")),
        ("docker_log_max_files", json!(5)),
        ("docker_registry_mirrors", json!(["https://mirror.example"])),
        ("docker_address_pools", json!([{"base": "10.200.0.0/16", "size": 24}])),
        ("docker_config", json!({"log-opts": {"compress": "true"}, "debug": true, "log-driver": null})),
    ]);
    let expected = json!({
        "live-restore": true, "bip": "172.20.0.1/16", "debug": true, "registry-mirrors": ["https://mirror.example"],
        "log-opts": {"max-file": "5", "max-size": "10m", "compress": "true"},
        "default-address-pools": [{"base": "10.200.0.0/16", "size": 24}],
    });
    assert_eq!(config, expected);
}

#[test]
fn an_engine_is_restarted_only_for_what_it_cannot_take_up() {
    assert_eq!(notified(&[("docker_config", json!({"debug": true}))]), "reload docker");
    assert_eq!(notified(&[("docker_registry_mirrors", json!(["https://m.example"]))]), "reload docker");
    assert_eq!(notified(&[("docker_live_restore", json!(false))]), "reload docker");
    assert_eq!(notified(&[("docker_log_max_files", json!(9))]), "restart docker");
    assert_eq!(notified(&[("docker_config", json!({"debug": true, "mtu": 1400}))]), "restart docker");
    // A host whose engine knows nothing of us yet.
    assert_eq!(notified(&[("docker__before", json!({}))]), "reload and restart docker");
}

#[test]
fn what_would_end_containers_is_refused() {
    let loaded = load("docker.yaml");
    let refused =
        |more: &[(&str, Value)]| refused_by(&loaded, "docker", "nomad-client-5", on(more)).map(|(_, said)| said);
    let runs = ("docker__containers", json!({"stdout": "0123456789ab\nba9876543210\n"}));
    let bridge = ("docker_bip", json!("172.20.0.1/16"));
    let said = refused(&[bridge.clone(), runs.clone()]).unwrap();
    assert!(said.contains("a change of bip would end the 2 containers that run on this host: drain"), "{said}");
    assert_eq!(refused(std::slice::from_ref(&bridge)), None, "nothing runs");
    assert_eq!(refused(&[bridge, runs.clone(), ("docker_may_interrupt", json!(true))]), None);
    assert_eq!(refused(&[runs.clone(), ("docker_log_max_files", json!(9))]), None);
    // An engine that keeps containers alive only from now on is told so before it is restarted.
    assert_eq!(refused(&[runs.clone(), ("docker__before", json!({}))]), None);
    let said = refused(&[runs, ("docker_live_restore", json!(false)), ("docker_log_max_files", json!(9))]).unwrap();
    assert!(said.contains("without live-restore"), "{said}");
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    let loaded = load("docker.yaml");
    assert_eq!(refused_by(&loaded, "docker", "nomad-client-5", on(&[])), None);
    for (name, value, part) in [
        ("docker_packages", json!("docker.io"), "are lists"),
        ("docker_packages", json!([]), "at least one"),
        ("docker_config", json!([]), "docker_config is a mapping"),
        ("docker_bip", json!("172.20.0.0"), "docker_bip is '172.20.0.0'"),
        ("docker_log_max_size", json!(10), "expected a size with k, m or g"),
        ("docker_log_max_files", json!(0), "docker_log_max_files '0'"),
        ("docker_config", json!({"live-restore": false}), "use docker_live_restore"),
    ] {
        let refused = refused_by(&loaded, "docker", "nomad-client-5", on(&[(name, value)]));
        let (task, said) = refused.unwrap_or_else(|| panic!("not refused: {name}"));
        assert!(said.contains(part), "{task}: {said}");
    }
}
