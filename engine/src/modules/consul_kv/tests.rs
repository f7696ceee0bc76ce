use serde_json::{Value, json};

use crate::modules::{
    fake::{Fake, go, plan},
    http::tests::Server,
};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn entry(value: &str, index: u64) -> String {
    use base64::Engine as _;
    let value = base64::engine::general_purpose::STANDARD.encode(value);
    answer("200 OK", &json!([{"Key": "a/b", "Flags": 0, "Value": value, "ModifyIndex": index}]).to_string())
}

fn args(server: &Server, more: Value) -> Value {
    let mut args = json!({"key": "a/b", "value": "new", "url": server.url(""), "wait": 0});
    for (name, value) in more.as_object().unwrap() {
        args[name] = value.clone();
    }
    args
}

#[test]
fn a_write_never_takes_away_what_it_has_not_seen() {
    let lost = answer("200 OK", "false");
    let (old, other, new) = (entry("old", 3), entry("other", 4), entry("new", 5));
    let done = answer("200 OK", "true");
    // Seen in the plan, read again, beaten by somebody, read again, written, read back.
    let server = Server::new([&old, &old, &lost, &other, &done, &new]);
    let outcome = go(&mut Fake::new(), "consul_kv", args(&server, json!({}))).unwrap();
    assert!(outcome.changed && outcome.data["index"] == 5, "{outcome:?}");
    let requests = server.requests();
    assert!(requests[2].starts_with("PUT /v1/kv/a/b?cas=3&flags=0 "), "{}", requests[2]);
    assert!(requests[4].starts_with("PUT /v1/kv/a/b?cas=4&flags=0 "), "{}", requests[4]);
}

#[test]
fn what_is_there_stays_where_that_was_asked_for() {
    let old = entry("old", 3);
    let server = Server::new([&old]);
    assert!(!go(&mut Fake::new(), "consul_kv", args(&server, json!({"create_only": true}))).unwrap().changed);
    let server = Server::new([&answer("404 Not Found", "")]);
    let absent = json!({"key": "a/b", "state": "absent", "url": server.url(""), "wait": 0});
    assert!(!go(&mut Fake::new(), "consul_kv", absent).unwrap().changed);
}

#[test]
fn wrong_arguments_are_told() {
    for (args, why) in [
        (json!({"key": "/a", "value": "x"}), "is no key"),
        (json!({"key": "a"}), "argument 'value' is missing"),
        (json!({"key": "a", "value": "x", "state": "absent"}), "has no value"),
        (json!({"key": "a", "value": "x", "value_from": "b"}), "exclude each other"),
    ] {
        assert!(plan(&Fake::new(), "consul_kv", args).unwrap_err().message.contains(why));
    }
}
