use serde_json::{Value, json};

use crate::modules::{
    Plan,
    fake::{Fake, go, plan},
    http::tests::{Server, answer},
};

fn rule(id: &str, description: &str, bind_name: &str) -> Value {
    json!({"ID": id, "Description": description, "AuthMethod": "nomad", "Selector": "a in value", "BindType": "role",
        "BindName": bind_name, "CreateIndex": 4})
}

fn args(server: &Server, bind_name: &str) -> Value {
    json!({"name": "tasks", "auth_method": "nomad", "selector": "a in value", "bind_type": "role", "bind_name": bind_name,
        "url": server.url("")})
}

#[test]
fn a_rule_is_found_by_what_its_description_says() {
    let list = json!([rule("1", "by hand", "tasks"), rule("2", "Made by Rollcall: tasks", "tasks")]);
    let list = answer("200 OK", &list.to_string());
    let server = Server::new([&list]);
    let same = plan(&Fake::new(), "consul_acl_binding_rule", args(&server, "tasks")).unwrap();
    assert!(matches!(same, Plan::Unchanged(outcome) if outcome.data["id"] == "2"));
    assert!(server.requests()[0].starts_with("GET /v1/acl/binding-rules?authmethod=nomad "));
    let server = Server::new([&list]);
    let other = plan(&Fake::new(), "consul_acl_binding_rule", args(&server, "others")).unwrap();
    let Plan::Change(change) = other else { panic!("its name counts") };
    assert!(change.diffs()[0].after.ends_with("gives role others\n"), "{:?}", change.diffs());
}

#[test]
fn of_two_that_were_made_at_once_one_is_left() {
    let both = json!([rule("9", "Made by Rollcall: tasks", "old"), rule("3", "Made by Rollcall: tasks", "tasks")]);
    let both = answer("200 OK", &both.to_string());
    let one = answer("200 OK", &json!([rule("3", "Made by Rollcall: tasks", "tasks")]).to_string());
    let done = answer("200 OK", "{}");
    let server = Server::new([&both, &both, &done, &both, &done, &one]);
    let outcome = go(&mut Fake::new(), "consul_acl_binding_rule", args(&server, "tasks")).unwrap();
    assert!(outcome.changed);
    let calls: Vec<String> =
        server.requests().iter().map(|text| text.split(" HTTP").next().unwrap_or_default().to_owned()).collect();
    assert!(calls[2].starts_with("PUT /v1/acl/binding-rule/3"), "{calls:?}");
    assert_eq!(calls[4], "DELETE /v1/acl/binding-rule/9");
}

#[test]
fn a_rule_needs_what_it_gives() {
    for (args, message) in [
        (json!({"name": "a", "auth_method": "nomad", "bind_name": "x"}), "argument 'bind_type' is missing"),
        (json!({"name": "a", "auth_method": "nomad", "bind_type": "rolle", "bind_name": "x"}), "did you mean 'role'?"),
        (json!({"name": "a", "auth_method": "no/mad", "state": "absent"}), "no name for an auth method"),
    ] {
        let failure = plan(&Fake::new(), "consul_acl_binding_rule", args).unwrap_err();
        assert!(failure.message.contains(message), "{failure}");
    }
}
