use super::*;
use crate::modules::{FromArg as _, http::tests::Server};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn client(server: &Server, token: Option<&str>) -> Nomad {
    let url = Web::from_arg(&Value::from(server.url(""))).unwrap();
    Nomad::new(&url, Trust::System, token.map(Secret::new)).unwrap()
}

const TOKEN: &str = "aaaaaaaa-1111-2222-3333-444444444444";

#[test]
fn answers_are_told_apart_by_their_text() {
    for (status, text, expected) in [
        (400, "ACL bootstrap already done (reset index: 8)", Kind::Bootstrapped),
        (500, "ACL bootstrap already done", Kind::Bootstrapped),
        (400, "Invalid bootstrap reset index (specified 7, reset index: 8)", Kind::ResetFile),
        (500, "Invalid reset index for ACL bootstrap", Kind::ResetFile),
        (400, "ACL support disabled", Kind::AclOff),
        (500, "No cluster leader", Kind::NoLeader),
        (500, "rpc error: EOF", Kind::Lost),
        (502, "", Kind::Lost),
        (403, "Permission denied", Kind::Denied),
        (500, "rpc error: Permission denied", Kind::Denied),
        (404, "ACL token not found", Kind::NotFound),
        (403, "ACL token not found", Kind::UnknownToken),
        (400, "Cannot delete nonexistent tokens: aaaaaaaa-1111-2222-3333-444444444444", Kind::NotFound),
        (400, "policy 0 invalid: 1 error occurred:\n\t* failed to parse rules", Kind::Refused),
        (409, "", Kind::InUse),
        (429, "", Kind::Busy),
    ] {
        assert_eq!(super::kind(status, text), expected, "{text}");
    }
}

#[test]
fn a_denial_says_whether_the_token_is_known() {
    let denied = answer("403 Forbidden", "Permission denied");
    let known = answer("200 OK", r#"{"AccessorID":"a","Type":"client","Policies":["p"],"Roles":null}"#);
    let server = Server::new([&denied, &denied, &denied, &known, &denied]);
    let nomad = client(&server, Some(TOKEN));
    assert_eq!(nomad.policy("p").unwrap_err().kind, Kind::UnknownToken);
    assert_eq!(nomad.policy("p").unwrap_err().kind, Kind::Denied);
    // Its own token anybody may read.
    assert_eq!(nomad.own_token().unwrap_err().kind, Kind::UnknownToken);
    let requests = server.requests();
    assert!(requests[1].starts_with("GET /v1/acl/token/self ") && requests.len() == 5, "{requests:?}");
    assert!(requests.iter().all(|r| r.contains(&format!("x-nomad-token: {TOKEN}"))), "{requests:?}");
}

#[test]
fn acls_that_are_off_are_so_here_or_elsewhere() {
    let off = answer("400 Bad Request", "ACL support disabled");
    let plain = answer("200 OK", r#"{"config": {"ACL": {"Enabled": false}}}"#);
    let denied = answer("403 Forbidden", "Permission denied");
    let server = Server::new([&off, &plain, &off, &denied]);
    let nomad = client(&server, Some(TOKEN));
    assert_eq!(nomad.own_token().unwrap_err().kind, Kind::AclOff);
    assert_eq!(nomad.own_token().unwrap_err().kind, Kind::AclOffElsewhere);
    assert!(!server.requests()[1].contains("x-nomad-token"), "without ACLs nobody is denied, whatever token is sent");
}

#[test]
fn whether_it_is_bootstrapped_is_asked_without_doing_it() {
    let done = answer("400 Bad Request", "ACL bootstrap already done (reset index: 8)");
    let fresh = answer("400 Bad Request", "invalid acl token");
    let file = answer("400 Bad Request", "Invalid bootstrap reset index (specified 7, reset index: 8)");
    let server = Server::new([&done, &file, &fresh, &answer("200 OK", "{}")]);
    let nomad = client(&server, None);
    assert!(nomad.is_bootstrapped().unwrap() && nomad.is_bootstrapped().unwrap());
    assert!(!nomad.is_bootstrapped().unwrap());
    assert_eq!(nomad.is_bootstrapped().unwrap_err().kind, Kind::Refused);
    assert!(uuid::Uuid::parse_str(PROBE).is_err(), "a UUID would be taken");
}

#[test]
fn a_secret_is_a_header_and_in_no_error() {
    let made = Secret::new("bbbbbbbb-1111-2222-3333-444444444444");
    let refusal = answer("500 Internal Server Error", &format!("cannot use {} as {TOKEN}", made.expose()));
    let server = Server::new([&refusal, &refusal]);
    let nomad = client(&server, Some(TOKEN));
    let body = json!({ "Items": { "key": made.expose() } });
    for error in [
        nomad.bootstrap(&made).unwrap_err(),
        nomad.send_hidden::<Value>(&["var", "a/b"], &[("cas", "0")], &body, &[&made]).unwrap_err(),
    ] {
        let shown = format!("{error} {error:?} {nomad:?}");
        assert!(error.said.contains("cannot use … as …"), "{shown}");
        assert!(!shown.contains("aaaaaaaa") && !shown.contains("bbbbbbbb"), "{shown}");
    }
    assert!(server.requests()[1].starts_with("PUT /v1/var/a%2Fb?cas=0 "), "{:?}", server.requests());
}

#[test]
fn tokens_are_read_as_nomad_writes_them() {
    let body = r#"{"ExpirationTTL":"10m0s","AccessorID":"4ed9bf8d","SecretID":"7b8964d8-c4dc-5227-2b51-f58d19f1ea69","Name":"t","Type":"client","Policies":["p"],"Roles":[{"ID":"x","Name":"r"}],"Global":true,"Hash":"h","CreateTime":"2026-11-21T23:34:12Z","ExpirationTime":"2026-11-21T23:44:12Z","CreateIndex":11,"ModifyIndex":11}"#;
    let list = r#"[{"AccessorID":"a","CreateIndex":8,"ExpirationTime":null,"Global":true,"Name":"Bootstrap Token","Policies":null,"Roles":null,"Type":"management"}]"#;
    let anonymous = r#"{"AccessorID":"anonymous","SecretID":"","Type":"client","Policies":["anonymous"],"Roles":null}"#;
    let server = Server::new([&answer("200 OK", body), &answer("200 OK", list), &answer("200 OK", anonymous)]);
    let nomad = client(&server, None);
    let wanted = Token {
        name: "t".into(),
        policies: ["p".to_owned()].into(),
        roles: ["r".to_owned()].into(),
        global: true,
        ttl: Some(600),
        ..Token::default()
    };
    let made = nomad.create_token(&wanted).unwrap();
    assert_eq!(made.secret, Some(Secret::new("7b8964d8-c4dc-5227-2b51-f58d19f1ea69")));
    assert_eq!((made.name.as_str(), &made.policies, &made.roles), ("t", &wanted.policies, &wanted.roles));
    assert_eq!(made.expires.as_deref(), Some("2026-11-21T23:44:12Z"));
    let sent = server.requests()[0].split_once("\r\n\r\n").unwrap().1.to_owned();
    let sent: Value = serde_json::from_str(&sent).unwrap();
    let expected = json!({"Name": "t", "Type": "client", "Policies": ["p"], "Roles": [{"Name": "r"}], "Global": true, "ExpirationTTL": "600s"});
    assert_eq!(sent, expected);
    let all = nomad.tokens().unwrap();
    assert!(all[0].management && all[0].secret.is_none());
    assert!(nomad.own_token().unwrap().is_anonymous());
}

#[test]
fn a_namespace_is_said_with_each_call() {
    let server = Server::new([&answer("200 OK", "[]"), &answer("404 Not Found", "job not found")]);
    let nomad = client(&server, None).within("shop");
    assert_eq!(nomad.get::<Value>(&["jobs"], &[("prefix", "w")]).unwrap(), json!([]));
    assert_eq!(nomad.found::<Value>(&["job", "web/1"], &[]).unwrap(), None);
    let requests = server.requests();
    assert!(requests[0].starts_with("GET /v1/jobs?prefix=w&namespace=shop "), "{}", requests[0]);
    assert!(requests[1].starts_with("GET /v1/job/web%2F1?namespace=shop "), "{}", requests[1]);
}
