use serde_json::json;

use super::*;
use crate::modules::{
    fake::{Fake, go, plan},
    http::tests::Server,
};

const SECRET: &str = "bbbbbbbb-1111-2222-3333-444444444444";

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn host(file: &str) -> Fake {
    Fake::new().file("/data/acl-tokens.json", file)
}

fn args(server: &Server) -> Value {
    json!({"name": "agent", "secret": SECRET, "data_dir": "/data", "url": server.url(""), "wait": 0})
}

#[test]
fn what_the_agent_wrote_down_is_compared_and_proven() {
    let known = answer("200 OK", &format!(r#"{{"AccessorID":"acc","SecretID":"{SECRET}"}}"#));
    let server = Server::new([&known]);
    let same = format!(r#"{{"agent":"{SECRET}","dns":"x"}}"#);
    let outcome = go(&mut host(&same), "consul_agent_token", args(&server)).unwrap();
    assert!(!outcome.changed && outcome.data["accessor_id"] == "acc");
    // Another one, none, and a file that cannot be read are all drift.
    for (file, before) in [(r#"{"agent":"old"}"#, "another token\n"), ("{}", ""), ("{broken", "")] {
        let server = Server::new([&known]);
        let Plan::Change(change) = plan(&host(file), "consul_agent_token", args(&server)).unwrap() else { panic!() };
        assert_eq!((change.diffs()[0].before.as_str(), change.diffs()[0].after.as_str()), (before, "acc\n"));
        assert!(!format!("{change:?}{:?}", change.diffs()).contains(SECRET));
    }
}

#[test]
fn an_agent_that_does_not_keep_it_is_told() {
    let known = answer("200 OK", &format!(r#"{{"AccessorID":"acc","SecretID":"{SECRET}"}}"#));
    let server = Server::new([&known, &answer("200 OK", "")]);
    let failure = go(&mut Fake::new(), "consul_agent_token", args(&server)).unwrap_err();
    assert!(failure.message.contains("did not write it to /data/acl-tokens.json") && failure.changed, "{failure:?}");
    assert!(failure.hint.unwrap().contains("enable_token_persistence"));
    let put = &server.requests()[1];
    assert!(
        put.starts_with("PUT /v1/agent/token/agent ") && put.contains(&format!("x-consul-token: {SECRET}")),
        "{put}"
    );
}

#[test]
fn a_token_that_nobody_knows_is_not_handed_over() {
    let server = Server::new([&answer("403 Forbidden", "token does not exist: ACL not found")]);
    let failure = go(&mut host("{}"), "consul_agent_token", args(&server)).unwrap_err();
    assert!(failure.message.starts_with("the cluster does not know the token"), "{failure}");
    assert_eq!(server.requests().len(), 1);
    let denied = answer("403 Forbidden", "Permission denied: token lacks permission 'agent:write' on \"s1\"");
    let known = answer("200 OK", &format!(r#"{{"AccessorID":"acc","SecretID":"{SECRET}"}}"#));
    let server = Server::new([&known, &denied]);
    let failure = go(&mut host("{}"), "consul_agent_token", args(&server)).unwrap_err();
    assert!(failure.hint.unwrap().contains("policy = \"write\""), "{}", failure.message);
}
