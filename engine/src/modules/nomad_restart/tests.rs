use serde_json::json;

use super::*;
use crate::{
    cluster::nomad::Nomad,
    modules::{
        FromArg as _,
        http::{Trust, tests::Server},
    },
};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn stepped(answers: &[String]) -> (Result<Option<String>, String>, Vec<String>) {
    let server = Server::new(answers.iter());
    let url = Web::from_arg(&json!(server.url(""))).unwrap();
    let nomad = Nomad::new(&url, Trust::System, None).unwrap();
    let left = step_down(&nomad, Duration::from_millis(500));
    (left, server.requests().iter().map(|r| r.lines().next().unwrap_or_default().to_owned()).collect())
}

#[test]
fn only_a_leader_steps_down() {
    let leader = |at: &str| answer("200 OK", &format!("\"10.0.0.{at}:4647\""));
    let agent = |leads: &str| answer("200 OK", &json!({"stats": {"nomad": {"leader": leads}}}).to_string());
    let (left, asked) = stepped(&[leader("2"), agent("false")]);
    assert_eq!((left, asked.len()), (Ok(None), 2));
    let peer = |id: &str, leads: bool, votes: bool| json!({"ID": id, "Node": format!("{id}.global"), "Address": "x", "Leader": leads, "Voter": votes, "RaftProtocol": "3"});
    let raft = json!({"Index": 1, "Servers": [peer("a", true, true), peer("b", false, false), peer("c", false, true)]});
    let raft = answer("200 OK", &raft.to_string());
    let (left, asked) = stepped(&[
        leader("1"),
        agent("true"),
        raft.clone(),
        answer("200 OK", "{}"),
        leader("1"),
        answer("500 x", "No cluster leader"),
        leader("3"),
    ]);
    assert_eq!(left, Ok(Some("c.global".into())));
    assert_eq!(asked[3], "PUT /v1/operator/raft/transfer-leadership?id=c HTTP/1.1");
    // One alone has nobody; and who may not says so.
    let alone = answer("200 OK", &json!({"Servers": [peer("a", true, true)]}).to_string());
    assert_eq!(stepped(&[leader("1"), agent("true"), alone]).0, Ok(None));
    let (left, _) = stepped(&[leader("1"), answer("403 Forbidden", "Permission denied")]);
    assert!(left.unwrap_err().contains("Permission denied"));
}
