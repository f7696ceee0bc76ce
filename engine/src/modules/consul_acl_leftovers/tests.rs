use serde_json::{Value, json};

use crate::modules::{
    Plan,
    fake::{Fake, go, plan},
    http::tests::{Server, answer},
};

const KEYS: &str = "https://nomad.service.consul:4646/.well-known/jwks.json";

fn ok(body: &Value) -> String {
    answer("200 OK", &body.to_string())
}

fn method(name: &str, description: &str, keys: &str) -> String {
    ok(&json!({"Name": name, "Type": "jwt", "Description": description, "Config": {"JWKSURL": keys}}))
}

fn args(server: &Server) -> Value {
    json!({"auth_method": "jobs", "rules": ["services", "tasks"], "description": "Nomad's jobs", "jwks_url": KEYS,
        "url": server.url("")})
}

#[test]
fn only_what_is_ours_and_of_the_same_keys_goes() {
    let rule = |id: &str, description: &str| json!({"ID": id, "Description": description, "AuthMethod": "jobs"});
    let rules = ok(&json!([
        rule("1", "Made by Rollcall: services"),
        rule("2", "Made by Rollcall: mesh"),
        rule("3", "by hand"),
        rule("4", "Made by Rollcall: tasks")
    ]));
    let list = ok(&json!([{"Name": "jobs"}, {"Name": "old"}, {"Name": "busy"}, {"Name": "theirs"}, {"Name": "other"}]));
    let ours = "Made by Rollcall: Nomad's jobs";
    let server = Server::new([
        &rules,
        &list,
        &method("old", ours, KEYS),
        &ok(&json!([])),
        &method("busy", ours, KEYS),
        &ok(&json!([{"AccessorID": "x", "Description": "token created via login"}])),
        &method("theirs", "by hand", KEYS),
        &method("other", ours, "https://elsewhere/jwks.json"),
        &answer("200 OK", "true"),
        &answer("200 OK", "true"),
    ]);
    let outcome = go(&mut Fake::new(), "consul_acl_leftovers", args(&server)).unwrap();
    assert!(outcome.changed);
    assert_eq!(outcome.data["removed"], json!(["binding rule jobs/mesh", "auth method old"]));
    assert_eq!(outcome.data["in_use"], json!(["busy"]));
    let calls: Vec<String> =
        server.requests().iter().map(|text| text.split(" HTTP").next().unwrap_or_default().to_owned()).collect();
    assert_eq!(calls[3], "GET /v1/acl/tokens?authmethod=old");
    assert_eq!(calls[8..], ["DELETE /v1/acl/binding-rule/2", "DELETE /v1/acl/auth-method/old"]);
}

#[test]
fn where_nothing_is_left_over_nothing_changes() {
    let server = Server::new([&ok(&json!([])), &ok(&json!([{"Name": "jobs"}]))]);
    let same = plan(&Fake::new(), "consul_acl_leftovers", args(&server)).unwrap();
    assert!(matches!(same, Plan::Unchanged(outcome) if outcome.data["removed"] == json!([])));
    let wrong = json!({"auth_method": "a/b", "description": "x", "jwks_url": KEYS});
    let failure = plan(&Fake::new(), "consul_acl_leftovers", wrong).unwrap_err();
    assert!(failure.message.contains("no name for an auth method"), "{failure}");
}
