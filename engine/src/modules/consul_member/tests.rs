use serde_json::json;

use crate::modules::{
    fake::{Fake, go},
    http::tests::Server,
};

fn answer(status: u8) -> String {
    let body = json!([{"Name": "web-3", "Status": status}, {"Name": "server-1", "Status": 1}]).to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

const DONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

#[test]
fn only_who_is_not_alive_is_taken_away() {
    let server = Server::new([&answer(1), &answer(1)]);
    let mut args = json!({"name": "web-3", "url": server.url(""), "token": "management", "wait": 0});
    let failure = go(&mut Fake::new(), "consul_member", args.clone()).unwrap_err();
    assert!(failure.message.contains("'web-3' is alive"), "{failure}");
    args["force"] = true.into();
    assert!(!go(&mut Fake::new(), "consul_member", args).unwrap().changed);

    let server = Server::new([&*answer(4), DONE, &*answer(3)]);
    let args = json!({"name": "web-3", "url": server.url(""), "token": "management", "wait": 0});
    let gone = go(&mut Fake::new(), "consul_member", args).unwrap();
    assert!(gone.changed && gone.data["was"] == "failed");
    assert!(server.requests()[1].starts_with("PUT /v1/agent/force-leave/web-3?prune "), "{:?}", server.requests());

    let server = Server::new([&answer(3), &answer(1)]);
    for name in ["web-3", "web-4"] {
        let args = json!({"name": name, "url": server.url(""), "token": "management", "wait": 0});
        assert!(!go(&mut Fake::new(), "consul_member", args).unwrap().changed, "{name}");
    }
}
