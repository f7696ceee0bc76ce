use serde_json::json;

use crate::modules::{
    Plan,
    fake::{Fake, plan},
    http::tests::{Server, answer},
};

const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

#[test]
fn the_settings_are_compared_and_the_certificate_comes_from_its_file() {
    let stored = json!({"Name": "nomad", "Type": "jwt", "Description": "Made by Rollcall: jobs", "TokenLocality": "local",
        "MaxTokenTTL": "10m0s", "Config": {"JWKSURL": "https://nomad:4646/keys", "JWKSCACert": AUTHORITY, "BoundAudiences": ["consul.io"],
        "ClaimMappings": {"nomad_service": "nomad_service"}, "ClockSkewLeeway": "30s"}});
    let stored = answer("200 OK", &stored.to_string());
    let fake = || Fake::new().file("/etc/ca.pem", AUTHORITY);
    let call = |more: &[(&str, serde_json::Value)]| {
        let server = Server::new([&stored]);
        let mut args = json!({"name": "nomad", "description": "jobs", "jwks_url": "https://nomad:4646/keys", "jwks_ca_file": "/etc/ca.pem",
            "bound_audiences": "consul.io", "claim_mappings": {"nomad_service": "nomad_service"}, "max_token_ttl": 600,
            "config": {"ClockSkewLeeway": "30s"}, "url": server.url("")});
        for (name, value) in more {
            args[*name] = value.clone();
        }
        plan(&fake(), "consul_acl_auth_method", args)
    };
    assert!(matches!(call(&[]), Ok(Plan::Unchanged(outcome)) if outcome.data["id"] == "nomad"));
    for (name, value, line) in [
        ("bound_audiences", json!(["consul.io", "x"]), "BoundAudiences: [\"consul.io\",\"x\"]\n"),
        ("max_token_ttl", json!(60), "tokens count for 60 s\n"),
        ("token_locality", json!("global"), "tokens are known in all datacenters\n"),
        ("jwks_url", json!("https://other/keys"), "JWKSURL: https://other/keys\n"),
    ] {
        let Ok(Plan::Change(change)) = call(&[(name, value)]) else { panic!("{name} does not count") };
        assert!(change.diffs()[0].after.contains(line), "{:?}", change.diffs());
    }
}

#[test]
fn what_cannot_be_is_told_before_anybody_is_asked() {
    for (args, message) in [
        (json!({"name": "a/b"}), "'a/b' is no name for an auth method"),
        (json!({"name": "a", "jwks_ca": "x", "jwks_ca_file": "/x"}), "exclude each other"),
        (json!({"name": "a", "jwks_ca": "x"}), "no certificate in PEM"),
        (json!({"name": "a", "jwks_ca_file": "/none"}), "there is no file /none"),
        (
            json!({"name": "a", "bound_audiences": "x", "config": {"BoundAudiences": ["y"]}}),
            "'config' sets BoundAudiences",
        ),
        (json!({"name": "a", "jwks_url": "nomad"}), "argument 'jwks_url'"),
    ] {
        let failure = plan(&Fake::new(), "consul_acl_auth_method", args).unwrap_err();
        assert!(failure.message.contains(message), "{failure}");
    }
}

#[test]
fn only_ours_is_removed() {
    let theirs = answer("200 OK", &json!({"Name": "sso", "Type": "oidc", "Config": {}}).to_string());
    let server = Server::new([&theirs]);
    let args = json!({"name": "sso", "state": "absent", "url": server.url("")});
    let failure = plan(&Fake::new(), "consul_acl_auth_method", args).unwrap_err();
    assert!(failure.message.contains("auth method 'sso' was not made by Rollcall"), "{failure}");
    let server = Server::new([&answer("404 Not Found", "auth method not found")]);
    let args = json!({"name": "gone", "state": "absent", "url": server.url("")});
    assert!(matches!(plan(&Fake::new(), "consul_acl_auth_method", args), Ok(Plan::Unchanged(_))));
}
