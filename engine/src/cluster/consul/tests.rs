use super::*;
use crate::modules::{FromArg as _, http::tests::Server};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn client(server: &Server, token: Option<&str>) -> Consul {
    let url = Web::from_arg(&Value::from(server.url(""))).unwrap();
    Consul::new(&url, Trust::System, token.map(Secret::new)).unwrap()
}

#[test]
fn answers_are_told_apart_by_their_text() {
    for (status, text, expected) in [
        (403, "Permission denied: ACL bootstrap no longer allowed (reset index: 21)", Kind::Bootstrapped),
        (403, "Permission denied: rpc error making call: ACL bootstrap no longer allowed", Kind::Bootstrapped),
        (
            403,
            "ACL system must be bootstrapped before making any requests that require authorization: ACL not found",
            Kind::NotBootstrapped,
        ),
        (500, "Invalid bootstrap reset index (specified 7, reset index: 6)", Kind::ResetFile),
        (401, "ACL support disabled", Kind::AclOff),
        (500, "rpc error making call: ACL support disabled", Kind::AclOffElsewhere),
        (500, "No cluster leader", Kind::NoLeader),
        (500, "The ACL system is currently in legacy mode.", Kind::NoLeader),
        (500, "rpc error making call: EOF", Kind::Lost),
        (502, "", Kind::Lost),
        (403, "ACL not found", Kind::UnknownToken),
        (403, "rpc error making call: ACL not found", Kind::UnknownToken),
        (403, "token does not exist: ACL not found", Kind::NotFound),
        (404, "Requested policy does not exist: ACL not found", Kind::NotFound),
        (404, "", Kind::NotFound),
        (403, "Permission denied: token with AccessorID 'x' lacks permission 'acl:read'", Kind::Denied),
        (500, "Invalid Token: SecretID is already in use", Kind::InUse),
        (500, "Invalid Policy: A Policy with Name \"p\" already exists", Kind::InUse),
        (500, "Provided token cannot be used because a token with that secret already exists.", Kind::InUse),
        (
            429,
            "rate limit exceeded for operation that can only be performed by the leader, try again later",
            Kind::Busy,
        ),
        (500, "No such ACL policy with name \"nope\"", Kind::Refused),
    ] {
        assert_eq!(super::kind(status, text), expected, "{text}");
    }
}

#[test]
fn a_secret_is_a_header_and_in_no_error() {
    let (token, made) = ("aaaaaaaa-1111-2222-3333-444444444444", "bbbbbbbb-1111-2222-3333-444444444444");
    let refusal = answer("500 Internal Server Error", &format!("cannot use {made} as {token}"));
    let server = Server::new([&refusal, &refusal, &refusal]);
    let consul = client(&server, Some(token));
    let made = Secret::new(made);
    for error in [
        consul.bootstrap(&made).unwrap_err(),
        consul.give_agent("agent", &made).unwrap_err(),
        consul.write_kv("a/b", made.expose().as_bytes(), 0, 0).unwrap_err(),
    ] {
        let shown = format!("{error} {error:?} {consul:?}");
        assert!(error.said.contains("cannot use … as …"), "{shown}");
        assert!(!shown.contains("aaaaaaaa") && !shown.contains("bbbbbbbb"), "{shown}");
    }
    let requests = server.requests();
    assert!(requests[0].starts_with("PUT /v1/acl/bootstrap HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(requests.iter().all(|r| r.contains("x-consul-token: aaaaaaaa-1111")), "{requests:?}");
    assert!(requests[1].starts_with("PUT /v1/agent/token/agent "), "{}", requests[1]);
    assert!(requests[2].starts_with("PUT /v1/kv/a/b?cas=0&flags=0 "), "{}", requests[2]);
}

#[test]
fn a_request_is_never_sent_twice_and_a_cut_answer_is_lost() {
    let server = Server::new(["", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"AccessorID\""]);
    let consul = client(&server, None);
    let secret = Secret::new("bbbbbbbb-1111-2222-3333-444444444444");
    assert_eq!(consul.bootstrap(&secret).unwrap_err().kind, Kind::Lost);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(consul.bootstrap(&secret).unwrap_err().kind, Kind::Lost);
    assert_eq!(server.requests().len(), 2);
    // Nobody listens: nothing was sent.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = Web::from_arg(&Value::from(format!("http://{nobody}"))).unwrap();
    let error = Consul::new(&url, Trust::System, None).unwrap().leader().unwrap_err();
    assert_eq!(error.kind, Kind::Unreachable);
}

#[test]
fn tokens_are_read_as_consul_writes_them() {
    let body = r#"{"AccessorID":"a","SecretID":"s","Description":"d","Policies":[{"ID":"00000000-0000-0000-0000-000000000001","Name":"global-management"}],"Roles":null,"NodeIdentities":[{"NodeName":"n","Datacenter":"dc"}],"TemplatedPolicies":[{"TemplateID":"x","TemplateName":"builtin/dns"}],"Local":false,"CreateTime":"2026-11-21T20:16:35Z","Hash":"h","CreateIndex":24,"ModifyIndex":24}"#;
    let missing = answer("403 Forbidden", "token does not exist: ACL not found");
    let hidden = answer("200 OK", r#"{"AccessorID":"a","SecretID":"<hidden>","Policies":null}"#);
    let server = Server::new([&answer("200 OK", body), &missing, &missing, &hidden]);
    let consul = client(&server, Some("t"));
    let token = consul.acl_token("a").unwrap().unwrap();
    assert!(token.management && token.secret == Some(Secret::new("s")));
    assert_eq!(token.rights.lines(), "policy global-management\nnode n in dc\nbuiltin/dns\n");
    assert_eq!(consul.acl_token("b").unwrap(), None);
    // The same words about the token that asks mean that it is not known.
    assert_eq!(consul.own_token(true).unwrap_err().kind, Kind::UnknownToken);
    assert_eq!(consul.acl_token("a").unwrap().unwrap().secret, None);
    assert!(server.requests()[2].starts_with("GET /v1/acl/token/self?stale "));
}
