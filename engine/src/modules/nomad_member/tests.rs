use serde_json::{Value, json};

use crate::modules::{
    fake::{Fake, go},
    http::tests::{Server, answer},
};

fn members(status: &str) -> String {
    let one =
        |name: &str, status: &str| json!({"Name": format!("{name}.eu"), "Status": status, "Tags": {"region": "eu"}});
    answer("200 OK", &json!({"Members": [one("s-1", "alive"), one("s-3", status)]}).to_string())
}

fn nodes(of: &[(&str, &str, &str)]) -> String {
    let all: Vec<Value> =
        of.iter().map(|(id, name, status)| json!({"ID": id, "Name": name, "Status": status})).collect();
    answer("200 OK", &json!(all).to_string())
}

fn voters(of: &[(&str, &str)]) -> String {
    let all: Vec<Value> = of
        .iter()
        .map(|(id, node)| json!({"ID": id, "Node": node, "Address": "x", "Leader": false, "Voter": true}))
        .collect();
    answer("200 OK", &json!({"Servers": all}).to_string())
}

fn args(server: &Server, name: &str) -> Value {
    json!({"name": name, "url": server.url(""), "token": "management", "wait": 5})
}

fn calls(server: &Server) -> Vec<String> {
    server.requests().iter().map(|text| text.split(" HTTP").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_client_is_purged_unless_it_is_ready() {
    let done = answer("200 OK", "{}");
    let all = nodes(&[("1", "web-3", "ready"), ("2", "web-3", "down"), ("3", "web-30", "down")]);
    let server = Server::new([&members("alive"), &all]);
    let failure = go(&mut Fake::new(), "nomad_member", args(&server, "web-3")).unwrap_err();
    assert!(failure.message.contains("'web-3' is alive: it is a client that is ready"), "{failure}");
    // The one that is ready stays; the one before it under its name goes.
    let server = Server::new([&members("alive"), &all, &done]);
    let mut forced = args(&server, "web-3");
    forced["force"] = true.into();
    let outcome = go(&mut Fake::new(), "nomad_member", forced).unwrap();
    assert!(outcome.changed && outcome.data["was"] == "client ready, client down", "{outcome:?}");
    assert_eq!(calls(&server)[2..], ["PUT /v1/node/2/purge"]);

    let server = Server::new([&members("alive"), &nodes(&[])]);
    let outcome = go(&mut Fake::new(), "nomad_member", args(&server, "web-3")).unwrap();
    assert!(!outcome.changed && outcome.data["was"] == "none", "{outcome:?}");
    // Somebody purged it meanwhile.
    let one = nodes(&[("2", "web-3", "down")]);
    let server = Server::new([&members("alive"), &one, &answer("404 Not Found", "node not found"), &nodes(&[])]);
    assert!(go(&mut Fake::new(), "nomad_member", args(&server, "web-3")).unwrap().changed);
    let server = Server::new([&members("alive"), &one, &answer("403 Forbidden", "Permission denied"), &one, &one]);
    assert!(go(&mut Fake::new(), "nomad_member", args(&server, "web-3")).is_err());
}

#[test]
fn a_server_that_is_dead_leaves_and_votes_no_more() {
    let done = answer("200 OK", "{}");
    let (three, two) = (voters(&[("a", "s-1.eu"), ("c", "s-3.eu")]), voters(&[("a", "s-1.eu"), ("c", "(unknown)")]));
    let server = Server::new([&members("alive"), &three, &nodes(&[])]);
    let failure = go(&mut Fake::new(), "nomad_member", args(&server, "s-3")).unwrap_err();
    assert!(failure.message.contains("a server that answers"), "{failure}");

    let one = voters(&[("a", "s-1.eu")]);
    let answers =
        [&members("failed"), &three, &nodes(&[]), &members("failed"), &done, &two, &done, &members("left"), &one];
    let server = Server::new(answers);
    let outcome = go(&mut Fake::new(), "nomad_member", args(&server, "s-3")).unwrap();
    assert!(outcome.changed && outcome.data["was"] == "server failed", "{outcome:?}");
    let calls = calls(&server);
    assert_eq!(calls[4], "PUT /v1/agent/force-leave?node=s-3.eu&prune=true");
    assert_eq!(calls[6], "DELETE /v1/operator/raft/peer?id=c");
    // It left by itself, and has no vote.
    let server = Server::new([&members("left"), &one, &nodes(&[])]);
    assert!(!go(&mut Fake::new(), "nomad_member", args(&server, "s-3")).unwrap().changed);
}
