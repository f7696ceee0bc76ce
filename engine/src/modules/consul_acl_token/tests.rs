use serde_json::json;

use super::*;
use crate::{
    host::overlay::Overlay,
    modules::{
        fake::{Fake, go, plan},
        http::tests::Server,
    },
};

const SECRET: &str = "bbbbbbbb-1111-2222-3333-444444444444";

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn stored(secret: &str, description: &str) -> String {
    let accessor = accessor("test", "dns").to_string();
    let body = json!({"AccessorID": accessor, "SecretID": secret, "Description": description,
        "Policies": [{"ID": "x", "Name": "names"}], "Local": false});
    answer("200 OK", &body.to_string())
}

fn missing() -> String {
    answer("403 Forbidden", "token does not exist: ACL not found")
}

fn args(server: &Server) -> Value {
    json!({"purpose": "dns", "cluster": "test", "secret": SECRET, "policies": ["names"], "token": "mmm",
        "url": server.url(""), "wait": 0})
}

#[test]
fn an_accessor_follows_from_cluster_and_purpose() {
    let one = accessor("kraken", "agent web-1");
    assert_eq!(one, accessor("kraken", "agent web-1"));
    assert_eq!((one.get_version_num(), one.get_variant()), (5, uuid::Variant::RFC4122));
    // Another number would be another token in every cluster that exists.
    assert_eq!(one.to_string(), PINNED);
    assert_ne!(one, accessor("kraken", "agent web-2"));
    assert_ne!(one, accessor("krakena", "gent web-1"));
}
const PINNED: &str = "6117cd74-a1d5-5f68-acc8-4d9264bfc0c7";

#[test]
fn it_is_made_with_both_ids_and_found_again() {
    // Missing, and the one that asks is known; then made, and read back.
    let me = answer("200 OK", r#"{"AccessorID":"me","SecretID":"mmm"}"#);
    let there = stored(SECRET, "Made by Rollcall: dns");
    let none = missing();
    let server = Server::new([&none, &none, &me, &none, &none, &me, &there, &there, &there]);
    let made = go(&mut Fake::new(), "consul_acl_token", args(&server)).unwrap();
    assert!(made.changed, "{made:?}");
    let accessor = accessor("test", "dns").to_string();
    assert_eq!(made.data.get("accessor_id"), Some(&json!(accessor)));
    let put = &server.requests()[6];
    assert!(put.starts_with("PUT /v1/acl/token HTTP"), "{put}");
    for part in [&accessor, SECRET, "Made by Rollcall: dns", r#""Policies":[{"Name":"names"}]"#] {
        assert!(put.contains(part), "{part}: {put}");
    }
    let again = go(&mut Fake::new(), "consul_acl_token", args(&server)).unwrap();
    assert!(!again.changed);
}

#[test]
fn another_secret_is_a_new_token_if_it_is_ours() {
    let (old, new) = ("cccccccc-1111-2222-3333-444444444444", stored(SECRET, "Made by Rollcall: dns"));
    let theirs = stored(old, "by hand");
    let server = Server::new([&theirs, &missing()]);
    let failure = go(&mut Fake::new(), "consul_acl_token", args(&server)).unwrap_err();
    assert!(failure.message.contains("was not made by Rollcall"), "{failure}");

    let ours = stored(old, "Made by Rollcall: dns");
    let me = answer("200 OK", r#"{"AccessorID":"me","SecretID":"mmm"}"#);
    let done = answer("200 OK", "true");
    let server = Server::new([&ours, &missing(), &ours, &missing(), &done, &missing(), &missing(), &me, &done, &new]);
    let Plan::Change(change) = plan(&Fake::new(), "consul_acl_token", args(&server)).unwrap() else { panic!() };
    let shown = format!("{:?} {change:?}", change.diffs());
    assert!(shown.contains("made anew") && !shown.contains(SECRET) && !shown.contains(old), "{shown}");
    assert!(change.apply(&mut Fake::new()).unwrap().changed);
    let methods: Vec<String> = server.requests().iter().map(|r| r.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(methods, ["GET", "GET", "GET", "GET", "DELETE", "GET", "GET", "GET", "PUT", "GET"]);
}

#[test]
fn a_token_that_took_the_place_of_another_is_found_and_kept() {
    // The store names the second; whatever stands in the first's place is a rotation's business.
    let first = accessor("test", "dns").to_string();
    let second = other(&first).unwrap();
    let at_second = stored(SECRET, "Made by Rollcall: dns").replace(&first, &second);
    let old = stored("cccccccc-1111-2222-3333-444444444444", "Made by Rollcall: dns");
    for before in [missing(), old] {
        let server = Server::new([&before, &at_second]);
        let found = go(&mut Fake::new(), "consul_acl_token", args(&server)).unwrap();
        assert!(!found.changed && found.data["accessor_id"] == second, "{found:?}");
    }
    // Removed are both.
    let (there, gone, me) = (
        stored(SECRET, "Made by Rollcall: dns"),
        missing(),
        answer("200 OK", r#"{"AccessorID":"me","SecretID":"mmm"}"#),
    );
    let done = answer("200 OK", "true");
    let server =
        Server::new([&there, &at_second, &there, &at_second, &done, &gone, &at_second, &done, &gone, &gone, &me]);
    let mut args = args(&server);
    args["state"] = "absent".into();
    assert!(go(&mut Fake::new(), "consul_acl_token", args).unwrap().changed);
    let deleted: Vec<String> = server.requests().into_iter().filter(|r| r.starts_with("DELETE")).collect();
    assert!(deleted.len() == 2 && deleted[0].contains(&first) && deleted[1].contains(&second), "{deleted:?}");
}

#[test]
fn a_token_of_another_machine_is_left_alone() {
    let stored = |machine: &str| stored(SECRET, &format!("Made by Rollcall: dns{machine}"));
    for (machine, told) in [(" (i-1)", Some("made for the instance i-1, and this is i-2")), (" (i-2)", None)] {
        let server = Server::new([&stored(machine)]);
        let mut args = args(&server);
        args["instance"] = "i-2".into();
        let found = go(&mut Fake::new(), "consul_acl_token", args);
        match told {
            Some(told) => assert!(found.unwrap_err().message.contains(told)),
            None => assert!(!found.unwrap().changed),
        }
    }
    // One of before such notes gets it; and without an inventory that knows, it keeps it.
    let (none, with) = (stored(""), stored(" (i-2)"));
    let server = Server::new([&none, &none, &answer("200 OK", "{}"), &with]);
    let mut given = args(&server);
    given["instance"] = "i-2".into();
    assert!(go(&mut Fake::new(), "consul_acl_token", given).unwrap().changed);
    assert!(server.requests()[2].contains("Made by Rollcall: dns (i-2)"), "{:?}", server.requests());
}

#[test]
fn a_lifetime_is_given_when_it_is_made() {
    let (none, me) = (missing(), answer("200 OK", r#"{"AccessorID":"me","SecretID":"mmm"}"#));
    let there = stored(SECRET, "Made by Rollcall: dns");
    let server = Server::new([&none, &none, &me, &none, &none, &me, &there, &there]);
    let mut args = args(&server);
    args["ttl"] = 28800.into();
    assert!(go(&mut Fake::new(), "consul_acl_token", args.clone()).unwrap().changed);
    assert!(server.requests()[6].contains(r#""ExpirationTTL":"28800s""#), "{:?}", server.requests());
    for wrong in [59, 86401] {
        args["ttl"] = wrong.into();
        let failure = plan(&Fake::new(), "consul_acl_token", args.clone()).unwrap_err();
        assert!(failure.message.contains("60 to 86400 seconds"), "{failure}");
    }
}

#[test]
fn a_management_token_that_is_not_known_does_not_mean_that_nothing_is_there() {
    let server = Server::new([&missing(), &missing(), &missing()]);
    let failure = go(&mut Fake::new(), "consul_acl_token", args(&server)).unwrap_err();
    assert!(failure.hint.as_deref().unwrap().contains("does not know the token that was sent"), "{failure:?}");
    // A check may come before the cluster.
    let server = Server::new([&missing(), &missing(), &missing()]);
    let fake = Fake::new();
    let overlay = Overlay::new(&fake);
    let Plan::Unchanged(outcome) = plan(&overlay, "consul_acl_token", args(&server)).unwrap() else { panic!() };
    assert!(outcome.unknown);
}

#[test]
fn wrong_arguments_are_told() {
    for (args, why) in [
        (json!({"secret": SECRET}), "argument 'purpose' is missing"),
        (json!({"purpose": "x"}), "argument 'secret' or 'secret_from' is missing"),
        (json!({"purpose": "x", "secret": "short"}), "no UUID"),
        (json!({"purpose": "x", "accessor_id": SECRET, "secret": SECRET}), "exclude each other"),
        (json!({"purpose": "x", "secret_from": "consul/token/dns"}), "there is nobody to ask"),
    ] {
        let failure = plan(&Fake::new(), "consul_acl_token", args).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
        assert!(!failure.message.contains("short"));
    }
}

#[test]
fn the_anonymous_token_has_the_rights_that_are_wanted_and_stays_itself() {
    const ACCESSOR: &str = "00000000-0000-0000-0000-000000000002";
    let with = |rights: &Value| {
        let mut body =
            json!({"AccessorID": ACCESSOR, "SecretID": "anonymous", "Description": "Anonymous Token", "Local": false});
        body.as_object_mut().unwrap().extend(rights.as_object().unwrap().clone());
        answer("200 OK", &body.to_string())
    };
    let (open, closed) = (with(&json!({"Policies": [{"ID": "x", "Name": "open"}]})), with(&json!({})));
    let args = |server: &Server, more: &Value| {
        let mut args = json!({"accessor_id": ACCESSOR, "token": "mmm", "url": server.url(""), "wait": 0});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        args
    };
    let server = Server::new([&open, &open, &closed, &closed, &closed]);
    assert!(go(&mut Fake::new(), "consul_acl_token", args(&server, &json!({}))).unwrap().changed);
    let put = &server.requests()[2];
    assert!(put.starts_with(&format!("PUT /v1/acl/token/{ACCESSOR} HTTP")), "{put}");
    assert!(put.contains(r#""Description":"Anonymous Token""#) && put.contains(r#""Policies":[]"#), "{put}");
    assert!(!put.contains("SecretID"), "{put}");
    assert!(!go(&mut Fake::new(), "consul_acl_token", args(&server, &json!({}))).unwrap().changed);

    for (more, why) in [
        (json!({"state": "absent"}), "cannot be removed"),
        (json!({"secret": SECRET}), "takes no 'secret'"),
        (json!({"ttl": 60}), "takes no 'ttl'"),
    ] {
        let failure = go(&mut Fake::new(), "consul_acl_token", args(&server, &more)).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
    }
}
