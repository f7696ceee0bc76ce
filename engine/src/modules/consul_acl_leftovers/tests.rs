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
    assert_eq!(outcome.data["in_use"], json!(["auth method busy"]));
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

fn role(name: &str, description: &str) -> Value {
    json!({"ID": format!("id-{name}"), "Name": name, "Description": description, "Policies": [{"ID": "x", "Name": name}]})
}

fn policy(name: &str, description: &str) -> Value {
    json!({"ID": format!("id-{name}"), "Name": name, "Description": description})
}

fn rule(method: &str, bind_type: &str, bind_name: &str) -> Value {
    json!({"ID": method, "Description": "x", "AuthMethod": method, "BindType": bind_type, "BindName": bind_name})
}

fn paths(server: &Server, method: &str) -> Vec<String> {
    let of = |text: &String| Some(text.strip_prefix(method)?.trim().split(" HTTP").next()?.to_owned());
    server.requests().iter().filter_map(of).collect()
}

#[test]
fn roles_that_are_no_longer_wanted_go_with_their_policies() {
    let of = |namespace: &str| format!("Made by Rollcall: tasks of Nomad's namespace {namespace}");
    // One that is wanted, one of a namespace that was dropped, two of a name of before of which tasks still have one, one of another
    // Nomad, and one by hand.
    let names = [
        ("tasks-default", of("default")),
        ("tasks-shop", of("shop")),
        ("old-default", of("default")),
        ("old-shop", of("shop")),
        ("theirs-shop", of("shop")),
        ("tasks-hand", "by hand".to_owned()),
    ];
    let roles: Vec<Value> = names.iter().map(|(name, description)| role(name, description)).collect();
    let policies: Vec<Value> = names.iter().map(|(name, description)| policy(name, description)).collect();
    let rules = [
        rule("jobs", "role", "tasks-${value.nomad_namespace}"),
        rule("others", "role", "theirs-${value.nomad_namespace}"),
    ];
    let tokens = json!([
        {"AccessorID": "1", "Roles": [{"ID": "x", "Name": "tasks-shop"}]},
        {"AccessorID": "2", "Roles": [{"ID": "x", "Name": "old-default"}]},
        {"AccessorID": "3", "Policies": [{"ID": "x", "Name": "tasks-default"}]}
    ]);
    let done = answer("200 OK", "true");
    let server = Server::new([
        &ok(&json!([])),
        &ok(&json!([{"Name": "jobs"}])),
        &ok(&json!(policies)),
        &ok(&json!(roles)),
        &ok(&json!(rules)),
        &ok(&tokens),
        &done,
        &done,
        &done,
        &done,
    ]);
    let mut args = args(&server);
    args["roles_of"] = json!("tasks of Nomad's namespace");
    args["roles"] = json!(["tasks-default"]);
    let outcome = go(&mut Fake::new(), "consul_acl_leftovers", args).unwrap();
    assert_eq!(
        outcome.data["removed"],
        json!(["role tasks-shop", "role old-shop", "policy old-shop", "policy tasks-shop"])
    );
    assert_eq!(outcome.data["in_use"], json!(["role old-default"]));
    let deleted = ["role/id-tasks-shop", "role/id-old-shop", "policy/id-old-shop", "policy/id-tasks-shop"];
    assert_eq!(paths(&server, "DELETE"), deleted.map(|path| format!("/v1/acl/{path}")));
}

#[test]
fn a_policy_under_its_old_name_goes_when_nothing_uses_it() {
    let node = |name: &str| format!("Made by Rollcall: the agent of {name}");
    let mut policies = json!([
        policy("old-a", &node("a")),
        policy("new-a", &node("a")),
        policy("old-b", &node("b")),
        policy("new-b", &node("b")),
        policy("old-c", &node("c")),
        policy("new-c", &node("c")),
        // One alone waits for its token, and two that nobody uses yet: who knows which.
        policy("only", &node("d")),
        policy("one", &node("e")),
        policy("two", &node("e")),
        policy("hand", "the agent of a"),
        // Its token gets the new one in this moment.
        policy("old-f", &node("f")),
        policy("new-f", &node("f")),
    ]);
    for (made, policy) in policies.as_array_mut().unwrap().iter_mut().enumerate() {
        policy["CreateIndex"] = made.into();
    }
    let has = |name: &str| json!({"AccessorID": name, "Policies": [{"ID": "x", "Name": name}]});
    let tokens = json!([has("new-a"), has("new-b"), has("new-c"), has("old-f")]);
    // A role and a rule of somebody have two of them.
    let server = Server::new([
        &ok(&policies),
        &ok(&json!([rule("jobs", "policy", "old-${value.x}b")])),
        &ok(&json!([role("old-c", "by hand")])),
        &ok(&tokens),
        &answer("200 OK", "true"),
    ]);
    let args = json!({"renamed": ["the agent of"], "url": server.url("")});
    let outcome = go(&mut Fake::new(), "consul_acl_leftovers", args).unwrap();
    assert_eq!(outcome.data["removed"], json!(["policy old-a"]));
    assert_eq!(paths(&server, "DELETE"), ["/v1/acl/policy/id-old-a"]);

    // Where there is nothing, one question is enough.
    let server = Server::new([&ok(&json!([policy("new-a", &node("a")), policy("new-b", &node("b"))]))]);
    let args = json!({"renamed": ["the agent of"], "url": server.url("")});
    assert!(!go(&mut Fake::new(), "consul_acl_leftovers", args).unwrap().changed);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn arguments_that_belong_together_are_asked_for() {
    for (args, missing) in [
        (json!({}), "'description'"),
        (json!({"description": "x"}), "'jwks_url'"),
        (json!({"jwks_url": KEYS}), "'description'"),
        (json!({"auth_method": "jobs", "renamed": ["x"]}), "'description'"),
        (json!({"roles": ["x"], "renamed": ["x"]}), "'roles_of'"),
    ] {
        let failure = plan(&Fake::new(), "consul_acl_leftovers", args).unwrap_err();
        assert!(failure.message.contains(&format!("argument {missing} is missing")), "{failure}");
    }
}
