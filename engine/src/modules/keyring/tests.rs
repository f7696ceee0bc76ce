use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::modules::{
    fake::{Fake, call},
    http::tests::Server,
};
use crate::secrets::{
    Name,
    grants::{GrantError, Grants, Issued, SignRequest},
};

const NEW: &str = "bmV3IGtleSBuZXcga2V5IG5ldyBrZXkgbmV3IGtleSE=";
const OLD: &str = "b2xkIGtleSBvbGQga2V5IG9sZCBrZXkgb2xkIGtleSE=";

#[derive(Debug)]
struct Key(&'static str);

impl Grants for Key {
    fn secret(&self, _: &Name) -> Result<Secret, GrantError> {
        Ok(Secret::new(self.0))
    }
    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

fn ring(wan: bool, nodes: usize, keys: &[(&str, usize)], primary: &[(&str, usize)]) -> Ring {
    let map = |list: &[(&str, usize)]| list.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect();
    Ring { wan, keys: map(keys), primary_keys: Some(map(primary)), members: nodes }
}

#[test]
fn a_step_is_done_when_every_member_of_every_ring_says_so() {
    let key = Secret::new(NEW);
    let wan = ring(true, 3, &[(OLD, 3), (NEW, 3)], &[(NEW, 3)]);
    let part = ring(false, 4, &[(OLD, 4), (NEW, 3)], &[(OLD, 4)]);
    let told = missing(&[wan.clone(), part], &key, Step::Installed).unwrap();
    assert_eq!(told, "3 of 4 members of the ring have the key");
    let all = ring(false, 4, &[(OLD, 4), (NEW, 4)], &[(OLD, 1), (NEW, 3)]);
    assert_eq!(missing(&[wan.clone(), all.clone()], &key, Step::Installed), None);
    assert!(missing(&[wan.clone(), all], &key, Step::Primary).unwrap().contains("3 of 4"));
    let used = ring(false, 4, &[(OLD, 1), (NEW, 4)], &[(NEW, 4)]);
    assert_eq!(missing(&[wan.clone(), used.clone()], &key, Step::Primary), None);
    assert!(missing(&[used], &key, Step::Only).unwrap().contains("still has 2 keys"));
    assert_eq!(missing(&[ring(false, 4, &[(NEW, 4)], &[(NEW, 4)])], &key, Step::Only), None);
    // Who does not tell is asked to use it, each time.
    let untold = Ring { primary_keys: None, ..ring(false, 3, &[(NEW, 3)], &[]) };
    assert!(missing(std::slice::from_ref(&untold), &key, Step::Primary).is_some());
    assert_eq!(missing(&[untold], &key, Step::Only), None);
    // The other key alone is not it.
    assert!(missing(&[ring(false, 4, &[(OLD, 4)], &[(OLD, 4)])], &key, Step::Only).is_some());
    assert!(!format!("{wan:?}").contains(OLD));
}

fn answer(body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn planned(server: &Server, key: &'static str, members: &[&str]) -> Result<Plan, Failure> {
    let (host, grants) = (Fake::new(), Arc::new(Key(key)) as Arc<dyn Grants>);
    let facts = json!({});
    let cx = Cx { host: &host, facts: &facts, secrets: &grants };
    let args = json!({"key_from": "consul/gossip-next", "state": "installed", "members": members, "url": server.url(""), "wait": 0});
    (crate::modules::consul_keyring::DEFINITION.plan)(&call("consul_keyring", args), &cx)
}

#[test]
fn whoever_is_away_stops_it() {
    let members = answer(&json!([{"Name": "a", "Status": 1}, {"Name": "b", "Status": 4}, {"Name": "c", "Status": 3}]));
    let server = Server::new([&members]);
    let failure = planned(&server, NEW, &["a", "c", "d"]).unwrap_err();
    assert_eq!(failure.message, "not every member is there: b (failed), c (no member), d (no member)");
    assert_eq!(server.requests().len(), 1, "nothing was written");
    let failure = planned(&server, "hunter2hunter2", &[]).unwrap_err();
    assert!(failure.message.contains("no gossip key") && !failure.message.contains("hunter2"), "{failure}");
}

#[test]
fn a_key_is_installed_and_proven() {
    let members = answer(&json!([{"Name": "a", "Status": 1}]));
    let ring = |keys: serde_json::Value| {
        answer(&json!([{"WAN": false, "Keys": keys, "PrimaryKeys": {OLD: 1}, "NumNodes": 1}]))
    };
    let (before, after) = (ring(json!({OLD: 1})), ring(json!({OLD: 1, NEW: 1})));
    let server = Server::new([&members, &before, &answer(&json!("")), &after]);
    let Plan::Change(change) = planned(&server, NEW, &["a"]).unwrap() else { panic!("it is to be installed") };
    assert!(!format!("{:?}", change.diffs()).contains(NEW));
    assert_eq!(change.apply(&mut Fake::new()).unwrap().data["members"], 1);
    let requests = server.requests();
    assert!(requests[2].starts_with("POST /v1/operator/keyring ") && requests[2].contains(NEW), "{requests:?}");
    let server = Server::new([&members, &after]);
    assert!(matches!(planned(&server, NEW, &["a"]), Ok(Plan::Unchanged(outcome)) if !outcome.changed));
}
