use serde_json::json;

use crate::modules::{
    Plan,
    fake::{Fake, plan},
    http::tests::Server,
};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn order_means_nothing_and_every_right_counts() {
    let stored = json!({"ID": "i", "Name": "shop", "Description": "Made by Rollcall: it sells",
        "Policies": [{"ID": "1", "Name": "b"}, {"ID": "2", "Name": "a"}],
        "ServiceIdentities": [{"ServiceName": "shop", "Datacenters": null}], "NodeIdentities": null});
    let args = |server: &Server, policies: &[&str], services: &[&str]| {
        json!({"name": "shop", "description": "it sells", "policies": policies, "service_identities": services,
            "url": server.url("")})
    };
    let stored = answer("200 OK", &stored.to_string());
    let server = Server::new([&stored]);
    let same = plan(&Fake::new(), "consul_acl_role", args(&server, &["a", "b"], &["shop"])).unwrap();
    assert!(matches!(same, Plan::Unchanged(outcome) if !outcome.changed && outcome.data["id"] == "i"));
    for (policies, services, line) in
        [(&["a"][..], &["shop"][..], "policy a\nservice shop\n"), (&["a", "b"], &[], "policy b\n")]
    {
        let server = Server::new([&stored]);
        let Plan::Change(change) = plan(&Fake::new(), "consul_acl_role", args(&server, policies, services)).unwrap()
        else {
            panic!("something is missing")
        };
        assert!(change.diffs()[0].after.ends_with(line), "{:?}", change.diffs());
    }
    let theirs = answer("200 OK", &json!({"ID": "i", "Name": "shop", "Description": "by hand"}).to_string());
    let server = Server::new([&theirs]);
    let absent = json!({"name": "shop", "state": "absent", "url": server.url("")});
    let failure = plan(&Fake::new(), "consul_acl_role", absent).unwrap_err();
    assert!(failure.message.contains("was not made by Rollcall"), "{failure}");
}
