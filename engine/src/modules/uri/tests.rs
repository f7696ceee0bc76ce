//! Requests to a server on the loopback, and bad input.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::modules::{
    fake::{Fake, go, plan},
    http::tests::Server,
};

const JSON: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Index: 7\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{\"a\": 1}\n";

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn an_answer_has_its_results() {
    let server = Server::new([JSON]);
    let args = json!({"url": server.url("/v1/x"), "return_content": true, "headers": {"X-Token": 7}});
    let outcome = go(&mut Fake::new(), "uri", args).unwrap();
    assert_eq!((&outcome.data["status"], &outcome.data["json"]), (&json!(200), &json!({"a": 1})));
    assert_eq!((&outcome.data["content"], &outcome.data["x_index"]), (&json!("{\"a\": 1}\n"), &json!("7")));
    assert!(!outcome.changed && outcome.data["url"].as_str().unwrap().ends_with("/v1/x"));
    assert!(server.requests()[0].contains("x-token: 7"));
}

#[test]
fn bodies_are_written_as_asked() {
    let (ok, fine) = (answer("200 OK", ""), answer("201 Created", "x"));
    let server = Server::new([&ok, &fine, &ok]);
    let url = server.url("/");
    let call = |args: Value| {
        let mut all = json!({"url": url, "method": "PUT"});
        all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        go(&mut Fake::new(), "uri", all)
    };
    call(json!({"body": {"n": 1}, "body_format": "json", "url_username": "u", "url_password": "p"})).unwrap();
    call(json!({"body": {"a": "1 2&", "b": [1, 2]}, "body_format": "form", "status_code": [200, 201]})).unwrap();
    call(json!({"body": "text", "method": "post"})).unwrap();
    let requests = server.requests();
    assert!(requests[0].ends_with("\r\n\r\n{\"n\":1}") && requests[0].contains("content-type: application/json"));
    assert!(requests[0].contains("authorization: Basic dTpw"));
    assert!(requests[1].ends_with("\r\n\r\na=1+2%26&b=1&b=2"), "{}", requests[1]);
    assert!(requests[2].starts_with("POST / ") && requests[2].ends_with("\r\n\r\ntext"));
}

#[test]
fn another_status_is_a_failure_with_what_was_said() {
    let refused = answer("403 Forbidden", "ACL not found");
    let server = Server::new([&refused]);
    let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/x")})).unwrap_err();
    assert!(failure.message.ends_with("/x: status 403 Forbidden, expected 200: ACL not found"), "{failure}");
    assert_eq!((&failure.data["status"], &failure.data["content"]), (&json!(403), &json!("ACL not found")));
}

#[test]
fn nobody_there_is_a_clear_failure_and_unknown_in_check_mode() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let args = json!({"url": format!("http://user:secret@127.0.0.1:{port}/")});
    let mut fake = Fake::new();
    let failure = go(&mut fake, "uri", args.clone()).unwrap_err();
    assert!(failure.message.contains("refused") && !failure.message.contains("secret"), "{failure}");
    assert_eq!(failure.data["status"], -1);
    let mut overlay = crate::host::overlay::Overlay::new(&fake);
    assert!(go(&mut overlay, "uri", args).unwrap().unknown);
}

#[test]
fn slow_and_cut_answers_are_failures() {
    let server = Server::new(["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"]);
    let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/")})).unwrap_err();
    assert!(failure.message.contains("ended before"), "{failure}");
    let server = Server::new(["SLEEP"]);
    let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/"), "timeout": 0.1})).unwrap_err();
    assert!(failure.message.contains("no answer within 0.1 s"), "{failure}");
}

#[test]
fn redirects_are_followed_for_reading_only() {
    let redirect = "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let ok = answer("200 OK", "there");
    let server = Server::new([redirect, &ok, redirect]);
    let outcome = go(&mut Fake::new(), "uri", json!({"url": server.url("/"), "return_content": true})).unwrap();
    assert_eq!(outcome.data["content"], "there");
    let failure = go(&mut Fake::new(), "uri", json!({"url": server.url("/"), "method": "POST"})).unwrap_err();
    assert!(failure.message.contains("302"));
}

#[test]
fn the_tasks_proxies_are_taken_where_they_are_meant() {
    let (by_proxy, direct) = (answer("200 OK", "by proxy"), answer("200 OK", "direct"));
    let (proxy, server) = (Server::new([&by_proxy]), Server::new([&direct, &direct]));
    let get = |url: &str, use_proxy: bool, except: &str| {
        let args = json!({"url": url, "return_content": true, "use_proxy": use_proxy});
        let mut call = crate::modules::fake::call("uri", args);
        call.environment = vec![("http_proxy".into(), proxy.url("")), ("NO_PROXY".into(), except.into())];
        match super::plan(
            &call,
            &Cx { host: &Fake::new(), facts: &json!({}), secrets: crate::secrets::grants::nobody() },
        )
        .unwrap()
        {
            Plan::Unchanged(outcome) => outcome.data["content"].clone(),
            Plan::Change(change) => panic!("{change:?}"),
        }
    };
    assert_eq!(get("http://release.example/x", true, "127.0.0.1"), "by proxy");
    assert!(proxy.requests()[0].starts_with("GET http://release.example/x "), "{:?}", proxy.requests());
    assert_eq!(get(&server.url("/"), true, "127.0.0.1"), "direct");
    assert_eq!(get(&server.url("/"), false, ""), "direct");
}

#[test]
fn an_answer_is_written_once() {
    let server = Server::new([JSON, JSON, JSON, JSON]);
    let mut fake = Fake::new();
    fake.folders.insert("/srv".into());
    let args = json!({"url": server.url("/"), "dest": "/srv/x.json", "mode": "0600"});
    let outcome = crate::modules::fake::converges(&mut fake, "uri", args.clone());
    assert_eq!(outcome.data["path"], "/srv/x.json");
    assert_eq!(fake.files[Path::new("/srv/x.json")], b"{\"a\": 1}\n");
    let args = json!({"url": "http://127.0.0.1:1/", "creates": "/srv/x.json"});
    assert!(go(&mut fake, "uri", args).unwrap().msg.unwrap().contains("exists"));
}

#[test]
fn check_mode_sends_nothing_that_changes() {
    let server = Server::new([""; 0]);
    let fake = Fake::new();
    let mut overlay = crate::host::overlay::Overlay::new(&fake);
    assert!(go(&mut overlay, "uri", json!({"url": server.url("/"), "method": "DELETE"})).unwrap().unknown);
    assert!(server.requests().is_empty());
}

#[test]
fn bad_input_is_refused() {
    let fake = Fake::new().file("/etc/hosts", "");
    let error = |args| plan(&fake, "uri", args).unwrap_err();
    assert!(error(json!({"url": "consul:8500"})).message.contains("http://"));
    assert!(error(json!({"url": "/v1"})).message.contains("argument 'url'"));
    let url = "http://127.0.0.1:1/";
    assert!(error(json!({"url": url, "method": "G T"})).message.contains("is no method"));
    assert!(error(json!({"url": url, "headers": {"a b": 1}})).message.contains("is no name for a header"));
    assert!(error(json!({"url": url, "headers": {"a": "x\ny"}})).message.contains("cannot have"));
    assert!(error(json!({"url": url, "status_code": 7})).message.contains("HTTP status"));
    assert!(error(json!({"url": url, "body": {"a": 1}})).hint.unwrap().contains("body_format"));
    assert!(error(json!({"url": url, "ca_path": "/etc/hosts"})).message.contains("no certificate"));
    assert!(error(json!({"url": url, "client_key": "/k"})).message.contains("client_cert"));
    assert!(error(json!({"url": url, "url_password": "p"})).message.contains("needs 'url_username'"));
    assert!(error(json!({"url": url, "src": "x"})).hint.unwrap().contains("lookup"));
}
