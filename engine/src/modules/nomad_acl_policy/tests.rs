use serde_json::json;

use super::*;
use crate::{
    host::overlay::Overlay,
    modules::{
        fake::{Fake, go, plan},
        http::tests::Server,
    },
};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn stored(description: &str, rules: &str) -> String {
    answer("200 OK", &json!({"Name": "nodes", "Description": description, "Rules": rules, "JobACL": null}).to_string())
}

fn missing() -> String {
    answer("404 Not Found", "ACL policy not found")
}

const RULES: &str = "node { policy = \"read\" }\n";

fn args(server: &Server) -> Value {
    json!({"name": "nodes", "rules": RULES, "description": "for looking", "token": "mmm", "url": server.url(""), "wait": 0})
}

#[test]
fn a_policy_is_made_changed_and_left_alone() {
    let ours = "Made by Rollcall: for looking";
    let server =
        Server::new([missing(), missing(), answer("200 OK", ""), stored(ours, RULES), stored(ours, RULES)].iter());
    let outcome = go(&mut Fake::new(), "nomad_acl_policy", args(&server)).unwrap();
    assert!(outcome.changed, "{outcome:?}");
    let requests = server.requests();
    assert!(requests[2].starts_with("PUT /v1/acl/policy/nodes "), "{}", requests[2]);
    assert!(requests[2].contains("Made by Rollcall: for looking") && requests[2].contains("x-nomad-token: mmm"));
    assert!(!go(&mut Fake::new(), "nomad_acl_policy", args(&server)).unwrap().changed);

    // Somebody changed the rules: a check says so and writes nothing.
    let server = Server::new([stored(ours, "node { policy = \"write\" }")].iter());
    let fake = Fake::new();
    let planned = plan(&Overlay::new(&fake), "nomad_acl_policy", args(&server)).unwrap();
    let Plan::Change(change) = planned else { panic!("it differs") };
    assert!(change.diffs()[0].before.contains("write") && change.diffs()[0].what == "nomad policy nodes");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn what_others_made_is_not_removed() {
    let server = Server::new([stored("an operator's", RULES)].iter());
    let mut absent = args(&server);
    absent["state"] = json!("absent");
    let failure = go(&mut Fake::new(), "nomad_acl_policy", absent).unwrap_err();
    assert_eq!(failure.message, "policy 'nodes' was not made by Rollcall: it is left as it is");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn bad_arguments_are_told_before_anything_is_asked() {
    for (args, why) in [
        (json!({"name": "a b", "rules": RULES}), "'a b' is no name of a policy"),
        (json!({"name": "", "rules": RULES}), "'' is no name of a policy"),
        (json!({"name": "a"}), "argument 'rules' is missing"),
        (
            json!({"name": "a", "rules": "nod { policy = \"read\" }"}),
            "rules cannot be about 'nod' (did you mean 'node'?)",
        ),
        (json!({"name": "a", "rules": {"namespaces": {}}}), "did you mean 'namespace'?"),
        (json!({"name": "a", "rules": "node {"}), "a '{' is not closed"),
    ] {
        let failure = go(&mut Fake::new(), "nomad_acl_policy", args.clone()).unwrap_err();
        assert!(failure.message.contains(why), "{args}: {failure}");
    }
}
