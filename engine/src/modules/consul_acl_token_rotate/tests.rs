use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};

use super::*;
use crate::{
    modules::{
        fake::{Fake, call},
        http::tests::Server,
    },
    secrets::{
        Name,
        grants::{GrantError, Grants, Issued, SignRequest},
    },
};

const OLD: &str = "aaaaaaaa-1111-2222-3333-444444444444";
const NEW: &str = "bbbbbbbb-1111-2222-3333-444444444444";
const FIRST: &str = "6117cd74-a1d5-5f68-acc8-4d9264bfc0c6";
const SECOND: &str = "6117cd74-a1d5-5f68-acc8-4d9264bfc0c7";

#[derive(Debug)]
struct Store(HashMap<&'static str, &'static str>);

impl Grants for Store {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        self.0.get(name.as_str()).map(|value| Secret::new(*value)).ok_or_else(|| GrantError::refused("no"))
    }
    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

fn planned(server: &Server, step: &str, now: &'static str) -> Result<Plan, Failure> {
    let store = HashMap::from([("consul/token/dns", now), ("consul/token-next/dns", NEW)]);
    let (host, grants) = (Fake::new(), Arc::new(Store(store)) as Arc<dyn Grants>);
    let facts = json!({});
    let cx = Cx { host: &host, facts: &facts, secrets: &grants };
    let args = json!({"step": step, "from": "consul/token/dns", "to": "consul/token-next/dns", "purpose": "dns",
        "token": "management", "url": server.url(""), "wait": 0});
    plan(&call("consul_acl_token_rotate", args), &cx)
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn token(accessor: &str, secret: &str) -> String {
    let body: Value = json!({"AccessorID": accessor, "SecretID": secret, "Description": "Made by Rollcall: dns",
        "Policies": [{"ID": "x", "Name": "names"}], "Local": false});
    answer("200 OK", &body.to_string())
}

fn missing() -> String {
    answer("403 Forbidden", "token does not exist: ACL not found")
}

fn changed(plan: Plan) -> crate::modules::Outcome {
    match plan {
        Plan::Change(change) => {
            let shown = format!("{:?}", change.diffs());
            assert!(!shown.contains(OLD) && !shown.contains(NEW), "{shown}");
            change.apply(&mut Fake::new()).unwrap()
        }
        Plan::Unchanged(outcome) => outcome,
    }
}

#[test]
fn the_new_token_stands_beside_the_old_one_with_its_rights() {
    let (old, new, done) = (token(FIRST, OLD), token(SECOND, NEW), answer("200 OK", "{}"));
    let server = Server::new([&old, &missing(), &missing(), &done, &new]);
    let made = changed(planned(&server, "make", OLD).unwrap());
    assert!(made.changed && made.data["accessor_id"] == SECOND);
    let put = &server.requests()[3];
    for part in ["PUT /v1/acl/token ", SECOND, NEW, "Made by Rollcall: dns", r#"{"Name":"names"}"#] {
        assert!(put.contains(part), "{part}: {put}");
    }
    // Again: it is there. And when the store names it, there is nothing to make.
    let server = Server::new([&old, &new]);
    assert!(!changed(planned(&server, "make", OLD).unwrap()).changed);
    let server = Server::new([&new]);
    assert!(!changed(planned(&server, "make", NEW).unwrap()).changed);
    // What a rotation left that was given up goes first.
    let left = token(SECOND, "cccccccc-1111-2222-3333-444444444444");
    let server = Server::new([&old, &left, &left, &done, &missing(), &done, &new]);
    assert!(changed(planned(&server, "make", OLD).unwrap()).changed);
    assert!(server.requests()[3].starts_with("DELETE "), "{:?}", server.requests());
}

#[test]
fn the_old_token_goes_only_when_the_store_names_the_new_one_and_the_cluster_knows_it() {
    let failure = planned(&Server::new([""; 0]), "retire", OLD).unwrap_err();
    assert!(failure.message.contains("does not have the value of"), "{failure}");
    let failure = planned(&Server::new([&answer("403 Forbidden", "ACL not found")]), "retire", NEW).unwrap_err();
    assert!(failure.message.contains("nothing is removed"), "{failure}");
    let failure = planned(&Server::new([&answer("403 Forbidden", "ACL not found")]), "make", OLD).unwrap_err();
    assert!(failure.message.contains("does not know the token of 'consul/token/dns'"), "{failure}");

    let (old, new, done) = (token(FIRST, OLD), token(SECOND, NEW), answer("200 OK", "true"));
    let server = Server::new([&new, &old, &old, &done, &missing()]);
    assert!(changed(planned(&server, "retire", NEW).unwrap()).changed);
    assert!(server.requests()[3].starts_with(&format!("DELETE /v1/acl/token/{FIRST} ")), "{:?}", server.requests());
    let server = Server::new([&new, &missing()]);
    assert!(!changed(planned(&server, "retire", NEW).unwrap()).changed);
}

#[test]
fn accessors_take_turns() {
    assert_eq!(other(FIRST).as_deref(), Some(SECOND));
    assert_eq!(other(SECOND).as_deref(), Some(FIRST));
    assert_eq!(other("nonsense"), None);
}
