use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    host::overlay::Overlay,
    modules::{
        fake::{Fake, call, go, plan},
        http::tests::Server,
    },
    secrets::{
        Name, Secret,
        grants::{GrantError, Grants, Issued, SignRequest},
    },
};

const SECRET: &str = "bbbbbbbb-1111-2222-3333-444444444444";

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn token(kind: &str) -> String {
    token_of("a", kind)
}

fn token_of(accessor: &str, kind: &str) -> String {
    answer("200 OK", &json!({"AccessorID": accessor, "SecretID": SECRET, "Type": kind, "Policies": null}).to_string())
}

fn args(server: &Server) -> Value {
    json!({"secret": SECRET, "version": "1.11.2", "url": server.url(""), "timeout": 1})
}

#[test]
fn old_servers_are_refused_by_name_before_anything_is_asked() {
    let server = Server::new([token("management"), token("management")].iter());
    let mut old = args(&server);
    old["version"] = json!("1.3.1");
    let failure = plan(&Fake::new(), "nomad_acl_bootstrap", old).unwrap_err();
    assert!(failure.message.starts_with("Nomad 1.3.1 cannot be bootstrapped safely"), "{failure}");
    assert_eq!(failure.hint.unwrap(), "upgrade the servers to 1.3.2 or newer before ACLs are turned on");
    assert!(server.requests().is_empty());
    let done = plan(&Fake::new(), "nomad_acl_bootstrap", args(&server)).unwrap();
    assert!(matches!(done, Plan::Unchanged(outcome) if !outcome.changed && outcome.data["accessor_id"] == "a"));
}

#[test]
fn it_is_called_once_and_its_token_asked() {
    let denied = answer("403 Forbidden", "Permission denied");
    let (leader, peers) = (answer("200 OK", "\"10.0.0.1:4647\""), answer("200 OK", r#"["10.0.0.1:4647"]"#));
    let gate = [leader.clone(), peers.clone(), leader, peers];
    let answers = [vec![denied.clone()], gate.to_vec(), vec![denied], vec![token("management"); 4]].concat();
    let server = Server::new(answers.iter());
    let outcome = go(&mut Fake::new(), "nomad_acl_bootstrap", args(&server)).unwrap();
    assert!(outcome.changed && outcome.msg.as_deref() == Some("bootstrapped"), "{outcome:?}");
    let calls: Vec<String> = server
        .requests()
        .iter()
        .filter(|r| r.starts_with("PUT"))
        .map(|r| r.split("\r\n\r\n").nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(calls, [json!({"BootstrapSecret": SECRET}).to_string()]);
}

/// A store in which it stands that the cluster was formed.
#[derive(Debug)]
struct Formed;

impl Grants for Formed {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        assert_eq!(name.as_str(), "nomad/formed");
        Ok(Secret::new("2026-01-01T00:00:00Z"))
    }
    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

#[test]
fn a_reset_looks_like_a_loss_and_is_told_apart_by_word() {
    let denied = answer("403 Forbidden", "Permission denied");
    let (leader, peers) = (answer("200 OK", "\"10.0.0.1:4647\""), answer("200 OK", r#"["10.0.0.1:4647"]"#));
    let gate = [leader.clone(), peers.clone(), leader, peers];
    let begin = [vec![denied.clone()], gate.to_vec(), vec![denied]].concat();
    let grants: Arc<dyn Grants> = Arc::new(Formed);
    let done = |answers: Vec<String>, reset: bool| {
        let server = Server::new(answers.iter());
        let mut args = args(&server);
        args["mark"] = json!("nomad/formed");
        args["reset"] = json!(reset);
        let mut host = Fake::new();
        let cx = Cx { host: &host, facts: &Value::Null, secrets: &grants };
        let Plan::Change(change) = super::plan(&call("nomad_acl_bootstrap", args), &cx).unwrap() else {
            panic!("it is not done")
        };
        change.apply(&mut host)
    };
    let fresh = answer("400 Bad Request", "invalid acl token");
    let lost = done([begin.clone(), vec![fresh]].concat(), false).unwrap_err();
    assert_eq!(lost.data["total_loss"], true);
    assert!(lost.hint.unwrap().contains("-e nomad_acl_reset=true"));
    assert!(done([begin, vec![token("management"); 4]].concat(), true).unwrap().changed);
}

#[test]
fn a_check_says_what_it_can_know() {
    let denied = answer("403 Forbidden", "Permission denied");
    let fake = Fake::new();
    let checked = |answers: Vec<String>| {
        let server = Server::new(answers.iter());
        plan(&Overlay::new(&fake), "nomad_acl_bootstrap", args(&server)).unwrap()
    };
    assert!(matches!(checked(vec![denied.clone(), answer("400 Bad Request", "invalid acl token")]), Plan::Change(_)));
    let done = answer("400 Bad Request", "ACL bootstrap already done (reset index: 8)");
    for answers in [vec![denied, done], Vec::new()] {
        assert!(matches!(checked(answers), Plan::Unchanged(outcome) if outcome.unknown));
    }
}

#[test]
fn a_weak_token_and_no_acls_are_told() {
    let failed = |answers: Vec<String>| {
        let server = Server::new(answers.iter());
        go(&mut Fake::new(), "nomad_acl_bootstrap", args(&server)).unwrap_err()
    };
    assert!(failed(vec![token("client")]).message.contains("may not do everything (a)"));
    let off = token_of("acls-disabled", "client");
    let plain = answer("200 OK", r#"{"config": {"ACL": {"Enabled": false}}}"#);
    let (leader, peers) = (answer("200 OK", "\"10.0.0.1:4647\""), answer("200 OK", r#"["10.0.0.1:4647"]"#));
    let gate = vec![leader.clone(), peers.clone(), leader, peers];
    let failure = failed([vec![off.clone(), plain.clone()], gate, vec![off, plain]].concat());
    assert!(failure.message.starts_with("ACLs are off"), "{failure}");
}
