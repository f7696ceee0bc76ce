use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::{
    modules::{
        fake::{Fake, call},
        http::tests::Server,
    },
    secrets::grants::{Issued, SignRequest},
};

const OLD: &str = "aaaaaaaa-1111-2222-3333-444444444444";
const NEW: &str = "bbbbbbbb-1111-2222-3333-444444444444";

/// What the names have: the one that is rotated, and its next value.
#[derive(Debug)]
struct Store(&'static str, Mutex<Option<Secret>>);

impl Grants for Store {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        match name.as_str() {
            "nomad/token/server" => Ok(Secret::new(self.0)),
            _ => self.1.lock().unwrap().clone().ok_or_else(|| GrantError::NotYet("nobody has made it".into())),
        }
    }
    fn keep(&self, _: &Name, value: &Secret, _: Option<&Secret>) -> Result<Secret, GrantError> {
        Ok(self.1.lock().unwrap().insert(value.clone()).clone())
    }
    fn sign(&self, _: &SignRequest) -> Result<Issued, GrantError> {
        Err(GrantError::refused("no"))
    }
}

fn planned(server: &Server, step: &str, now: &'static str, next: Option<&str>) -> Result<Plan, Failure> {
    let store = Store(now, Mutex::new(next.map(Secret::new)));
    let (host, grants) = (Fake::new(), Arc::new(store) as Arc<dyn Grants>);
    let facts = json!({});
    let cx = Cx { host: &host, facts: &facts, secrets: &grants };
    let args = json!({"step": step, "from": "nomad/token/server", "to": "nomad/token-next/server", "token": "management",
        "url": server.url(""), "wait": 0});
    plan(&call("nomad_acl_token_rotate", args), &cx)
}

fn answer(body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn token(accessor: &str, secret: &str, name: &str) -> serde_json::Value {
    json!({"AccessorID": accessor, "SecretID": secret, "Name": name, "Type": "client", "Policies": ["looks"], "Global": false})
}

#[test]
fn the_new_token_says_whose_place_it_takes_and_loses_that_name_with_the_old_one() {
    let old = answer(&token("one", OLD, "Made by Rollcall: servers"));
    let new = token("two", NEW, "Made by Rollcall: servers, in place of one");
    let left = json!([
        token("lost", "", "Made by Rollcall: servers, in place of one"),
        token("x", "", "Made by Rollcall: servers")
    ]);
    let server = Server::new([&old, &answer(&left), &answer(&json!({})), &answer(&new), &answer(&new)]);
    let Plan::Change(change) = planned(&server, "make", OLD, None).unwrap() else { panic!("it is to be made") };
    let shown = format!("{:?}", change.diffs());
    assert!(!shown.contains(OLD) && shown.contains("in place of one"), "{shown}");
    assert_eq!(change.apply(&mut Fake::new()).unwrap().data["accessor_id"], "two");
    let requests = server.requests();
    assert!(requests[2].starts_with("DELETE /v1/acl/token/lost "), "{requests:?}");
    assert!(requests[3].contains(r#""Policies":["looks"]"#) && !requests[3].contains("AccessorID"), "{requests:?}");

    // Kept: nothing is to be made, before and after the store names it.
    let server = Server::new([&old, &answer(&new)]);
    assert!(matches!(planned(&server, "make", OLD, Some(NEW)), Ok(Plan::Unchanged(_))));
    let server = Server::new([&answer(&new), &answer(&new)]);
    assert!(matches!(planned(&server, "make", NEW, Some(NEW)), Ok(Plan::Unchanged(_))));
    let server = Server::new([&old, &answer(&new)]);
    let failure = planned(&server, "retire", OLD, Some(NEW)).unwrap_err();
    assert!(failure.message.contains("does not have the value of"), "{failure}");

    let server = Server::new([&answer(&new), &answer(&new), &answer(&json!({})), &answer(&new)]);
    let Plan::Change(change) = planned(&server, "retire", NEW, Some(NEW)).unwrap() else { panic!("it is to go") };
    change.apply(&mut Fake::new()).unwrap();
    let requests = server.requests();
    assert!(requests[2].starts_with("DELETE /v1/acl/token/one "), "{requests:?}");
    assert!(requests[3].contains(r#""Name":"Made by Rollcall: servers""#), "{requests:?}");
    let done = answer(&token("two", NEW, "Made by Rollcall: servers"));
    let server = Server::new([&done, &done]);
    assert!(matches!(planned(&server, "retire", NEW, Some(NEW)), Ok(Plan::Unchanged(_))));
}
