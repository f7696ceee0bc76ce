use serde_json::json;

use super::*;
use crate::{
    host::overlay::Overlay,
    modules::{
        fake::{Fake, plan},
        http::tests::Server,
    },
};

const SECRET: &str = "bbbbbbbb-1111-2222-3333-444444444444";

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// The token of the secret, which may do everything.
fn known() -> String {
    let management = json!({"ID": "00000000-0000-0000-0000-000000000001", "Name": "global-management"});
    answer("200 OK", &json!({"AccessorID": "a", "SecretID": SECRET, "Policies": [management]}).to_string())
}

#[test]
fn a_server_that_has_not_heard_of_the_token_is_waited_for() {
    let server = Server::new([known(), answer("403 Forbidden", "ACL not found")].iter());
    let args = json!({"secret": SECRET, "version": "1.22.2", "url": server.url("")});
    assert!(matches!(plan(&Fake::new(), "consul_acl_bootstrap", args).unwrap(), Plan::Change(_)));
    let asked: Vec<bool> = server.requests().iter().map(|request| request.contains("?stale")).collect();
    assert_eq!(asked, [false, true]);
}

#[test]
fn old_servers_are_refused_by_name_before_anything_is_asked() {
    for (version, refused) in [("1.14.11", true), ("1.8.7", true), ("1.15.0", false), ("1.22.2+ent", false)] {
        // The cluster knows the token, and so does this server.
        let server = Server::new([known(), known()].iter());
        let args = json!({"secret": SECRET, "version": version, "url": server.url("")});
        match plan(&Fake::new(), "consul_acl_bootstrap", args) {
            Err(failure) if refused => {
                assert!(failure.message.starts_with(&format!("Consul {version} cannot be bootstrapped")), "{failure}");
                assert!(server.requests().is_empty());
            }
            Ok(Plan::Unchanged(outcome)) if !refused => {
                assert_eq!(outcome.data.get("accessor_id"), Some(&json!("a")));
                assert!(!outcome.changed);
            }
            other => panic!("{version}: {other:?}"),
        }
    }
    let wrong = plan(&Fake::new(), "consul_acl_bootstrap", json!({"secret": SECRET, "version": "latest"}));
    assert!(wrong.unwrap_err().message.contains("expected a version like 1.22.2, found 'latest'"));
}

#[test]
fn a_secret_that_consul_would_not_take_is_refused() {
    let wrong = plan(&Fake::new(), "consul_acl_bootstrap", json!({"secret": "hunter2", "version": "1.22.2"}));
    let failure = wrong.unwrap_err();
    assert_eq!(failure.message, "the secret is no UUID");
    let none = plan(&Fake::new(), "consul_acl_bootstrap", json!({"version": "1.22.2"})).unwrap_err();
    assert_eq!(none.message, "argument 'secret' or 'secret_from' is missing");
}

#[test]
fn a_check_says_what_it_can_know() {
    let unknown = answer("403 Forbidden", "token does not exist: ACL not found");
    let fresh = answer(
        "403 Forbidden",
        "ACL system must be bootstrapped before making any requests that require authorization: ACL not found",
    );
    let fake = Fake::new();
    let checked = |answers: Vec<String>| {
        let server = Server::new(answers.iter());
        let args = json!({"secret": SECRET, "version": "1.22.2", "url": server.url("")});
        plan(&Overlay::new(&fake), "consul_acl_bootstrap", args).unwrap()
    };
    assert!(matches!(checked(vec![unknown.clone(), fresh]), Plan::Change(_)));
    let known = answer("403 Forbidden", "ACL not found");
    for answers in [vec![unknown, known], vec![answer("401 Unauthorized", "ACL support disabled")], Vec::new()] {
        assert!(matches!(checked(answers), Plan::Unchanged(outcome) if outcome.unknown));
    }
}
