use serde_json::json;

use super::*;
use crate::{
    host::overlay::Overlay,
    modules::fake::{Fake, go, plan},
    secrets::{Secret, redact},
};

const NONE: &str = "Error: No such container: web";

fn call() -> Value {
    json!({
        "name": "web", "image": "web:v1", "ports": ["8080:80"], "env": {"COLOUR": "red", "N": 1}, "memory": "64m", "cpus": 0.5,
        "volumes": ["/srv:/srv:ro"],
    })
}

fn image() -> Value {
    json!({"Id": "sha256:11", "Config": {"Env": ["PATH=/bin"], "Cmd": ["/start"], "User": "7", "Labels": {"a": "b"}}})
}

/// A container as the engine tells it when it was made from [`call`].
fn container() -> Value {
    json!({
        "Id": "c1", "Image": "sha256:11",
        "State": {"Status": "running", "ExitCode": 0},
        "Config": {"Image": "web:v1", "Cmd": ["/start"], "User": "7", "Env": ["PATH=/bin", "N=1", "COLOUR=red"],
            "Labels": {"a": "b", MANAGED_LABEL: "true"}},
        "HostConfig": {"Memory": 67_108_864, "NanoCpus": 500_000_000, "Binds": ["/srv:/srv:ro"],
            "RestartPolicy": {"Name": "unless-stopped"}, "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}},
        "NetworkSettings": {"Networks": {"bridge": {}}},
    })
}

fn with_image(fake: Fake) -> Fake {
    fake.answers("docker image inspect", 0, &json!([image()]).to_string(), "")
}

fn runs(container: &Value) -> Fake {
    with_image(Fake::new()).answers("docker container inspect web.rollcall-new", 1, "[]", NONE).answers(
        "docker container inspect web",
        0,
        &json!([container]).to_string(),
        "",
    )
}

#[test]
fn a_container_is_made_started_and_left_alone() {
    let mut fake = with_image(Fake::new())
        .answers("docker container inspect web.rollcall-new", 1, "[]", NONE)
        .answers_once("docker container inspect web", 1, "[]", NONE)
        .answers("docker container inspect web", 0, &json!([container()]).to_string(), "");
    let outcome = go(&mut fake, "docker_container", call()).unwrap();
    assert_eq!((&outcome.data["id"], &outcome.data["status"]), (&json!("c1"), &json!("running")));
    assert_eq!(
        fake.ran,
        [
            "docker create --name web.rollcall-new --label=rollcall.managed=true --restart=unless-stopped --publish=8080:80/tcp \
             --volume=/srv:/srv:ro --memory=67108864 --cpus=0.500000000 --env-file=/dev/stdin web:v1",
            "docker rename web.rollcall-new web",
            "docker start web",
        ]
    );
    assert_eq!(fake.stdin, ["COLOUR=red\nN=1\n"], "variables come by standard input");
    assert!(!go(&mut fake, "docker_container", call()).unwrap().changed);
}

#[test]
fn each_difference_makes_it_anew_and_is_told() {
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut args = call();
        edit(&mut args);
        match plan(&runs(&container()), "docker_container", args).unwrap() {
            Plan::Unchanged(_) => None,
            Plan::Change(change) => Some((change.diffs()[0].clone(), format!("{change:?}"))),
        }
    };
    assert!(change(&|_| ()).is_none());
    let edits: [(&str, Value, &str); 9] = [
        ("ports", json!(["127.0.0.1:8080:80", "53:53/udp"]), "port: 127.0.0.1:8080:80/tcp"),
        ("env", json!({"COLOUR": "blue"}), "env: COLOUR=blue"),
        ("memory", json!("32m"), "memory: 33554432 bytes"),
        ("cpus", json!("2"), "cpus: 2.000"),
        ("command", json!("/start --now 'a b'"), "command: /start --now 'a b'"),
        ("user", json!("0"), "user: 0"),
        ("restart", json!("no"), "restart: no"),
        ("networks", json!(["shop"]), "networks: shop"),
        ("labels", json!({"team": "shop"}), "label: team=shop"),
    ];
    for (name, value, line) in edits {
        let (diff, calls) = change(&|args| args[name] = value.clone()).unwrap_or_else(|| panic!("{name}: no change"));
        assert!(diff.after.lines().any(|l| l == line) && !diff.before.contains(line), "{name}: {diff:?}");
        let order = ["docker create", "docker stop", "docker rm --force web", "docker rename", "docker start"];
        let places: Vec<_> = order.iter().map(|words| calls.find(words)).collect();
        assert!(places.is_sorted() && places[0].is_some(), "{name}: {calls}");
    }
    // Another image under the same name.
    let mut old = container();
    old["Image"] = json!("sha256:00");
    let Plan::Change(change) = plan(&runs(&old), "docker_container", call()).unwrap() else { panic!("no change") };
    assert!(change.diffs()[0].before.starts_with("image: web:v1 sha256:00\n"), "{:?}", change.diffs());
}

#[test]
fn the_image_of_the_last_one_goes_with_it_unless_it_has_a_name() {
    let mut old = container();
    old["Image"] = json!("sha256:00");
    let ran = |tags: Value| {
        let nameless = json!([{"Id": "sha256:00", "RepoTags": tags, "Config": {}}]).to_string();
        let mut fake = with_image(Fake::new().answers("docker image inspect sha256:00", 0, &nameless, ""))
            .answers("docker container inspect web.rollcall-new", 1, "[]", NONE)
            .answers_once("docker container inspect web", 0, &json!([old]).to_string(), "")
            .answers("docker container inspect web", 0, &json!([container()]).to_string(), "");
        assert!(go(&mut fake, "docker_container", call()).unwrap().changed);
        fake.ran.last().cloned().unwrap()
    };
    assert_eq!(ran(json!([])), "docker image rm sha256:00");
    assert_eq!(ran(json!(["web:v0"])), "docker start web");
}

#[test]
fn a_container_that_cannot_be_made_leaves_the_old_one() {
    let mut fake =
        runs(&container()).answers("docker create", 125, "", "Error response from daemon: no such network: shop");
    let mut args = call();
    args["networks"] = json!(["shop"]);
    let error = go(&mut fake, "docker_container", args).unwrap_err();
    assert!(error.message.starts_with("docker create ended with code 125: Error"), "{error}");
    assert_eq!((fake.ran.len(), error.changed), (1, false), "{:?}", fake.ran);
}

#[test]
fn a_stopped_one_is_started_and_a_running_one_stopped() {
    let mut stopped = container();
    stopped["State"]["Status"] = json!("exited");
    let mut fake = with_image(Fake::new())
        .answers_once("docker container inspect web", 0, &json!([stopped]).to_string(), "")
        .answers("docker container inspect web", 0, &json!([container()]).to_string(), "");
    go(&mut fake, "docker_container", call()).unwrap();
    assert_eq!(fake.ran, ["docker start web"]);
    let mut args = call();
    args["state"] = json!("stopped");
    args["stop_timeout"] = json!(3);
    go(&mut fake, "docker_container", args).unwrap();
    assert_eq!(fake.ran[1..], ["docker stop --time 3 web"]);
    let gone = json!({"name": "web", "state": "absent"});
    go(&mut fake, "docker_container", gone.clone()).unwrap();
    assert_eq!(fake.ran[2..], ["docker stop --time 10 web", "docker rm --force web"]);
    let fake = Fake::new().answers("docker container inspect", 1, "[]", NONE);
    assert!(matches!(plan(&fake, "docker_container", gone).unwrap(), Plan::Unchanged(_)));
}

#[test]
fn one_that_does_not_stay_up_is_told_with_its_last_words() {
    let mut ended = container();
    ended["State"] = json!({"Status": "restarting", "ExitCode": 3});
    let mut fake = with_image(Fake::new())
        .answers("docker container inspect web.rollcall-new", 1, "[]", NONE)
        .answers_once("docker container inspect web", 1, "[]", NONE)
        .answers("docker container inspect web", 0, &json!([ended]).to_string(), "")
        .answers("docker logs", 0, "cannot bind\n", "");
    let error = go(&mut fake, "docker_container", call()).unwrap_err();
    assert_eq!(error.message, "the container web does not stay up: it ended with code 3: cannot bind");
    assert!(error.changed);
}

#[test]
fn a_container_of_somebody_else_is_left_alone() {
    let mut other = container();
    other["Config"]["Labels"] = json!({});
    let error = plan(&runs(&other), "docker_container", call()).unwrap_err();
    assert!(error.message.contains("was not made by docker_container"), "{error}");
    let mut args = call();
    args["force"] = json!(true);
    assert!(matches!(plan(&runs(&other), "docker_container", args).unwrap(), Plan::Change(_)), "it is marked as ours");
}

#[test]
fn what_a_killed_run_left_is_removed_first() {
    let mut fake = with_image(Fake::new())
        .answers("docker container inspect web.rollcall-new", 0, &json!([container()]).to_string(), "")
        .answers_once("docker container inspect web", 1, "[]", NONE)
        .answers("docker container inspect web", 0, &json!([container()]).to_string(), "");
    go(&mut fake, "docker_container", call()).unwrap();
    assert_eq!(fake.ran[0], "docker rm --force web.rollcall-new");
}

#[test]
fn secrets_are_on_no_command_line_and_in_no_difference() {
    redact::register(&Secret::new("planted-secret-77"));
    let mut args = call();
    args["env"]["TOKEN"] = json!("planted-secret-77");
    let fake = runs(&container());
    let invocation =
        crate::modules::Invocation { secret: true, ..crate::modules::fake::call("docker_container", args.clone()) };
    let facts = json!({});
    let cx = Cx { host: &fake, facts: &facts, secrets: crate::secrets::grants::nobody() };
    let Plan::Change(change) = (DEFINITION.plan)(&invocation, &cx).unwrap() else { panic!("no change") };
    assert!(change.diffs()[0].hidden && !format!("{:?} {change:?}", change.diffs()).contains("planted"));
    args["env"] = json!({});
    for (name, value) in [("command", json!("run planted-secret-77")), ("labels", json!({"t": "planted-secret-77"}))] {
        let mut args = args.clone();
        args[name] = value;
        let error = plan(&fake, "docker_container", args).unwrap_err();
        assert!(error.message.starts_with(&format!("argument '{name}' holds a secret")), "{error}");
    }
}

#[test]
fn a_check_without_an_engine_may_change() {
    let fake = Fake::new();
    assert!(go(&mut Overlay::new(&fake), "docker_container", call()).unwrap().unknown);
    let error = plan(&fake, "docker_container", call()).unwrap_err();
    assert_eq!(error.message, "docker is not installed on this host");
}

#[test]
fn bad_input_is_refused() {
    let error = |name: &str, value: Value| {
        let mut args = call();
        args[name] = value;
        let fake = with_image(Fake::new()).answers("docker container inspect", 1, "[]", NONE);
        plan(&fake, "docker_container", args).unwrap_err().message
    };
    assert!(error("name", json!("w")).contains("no name for a container"));
    assert!(error("image", json!("a b")).starts_with("argument 'image'"));
    assert!(error("image", Value::Null).contains("'image' is missing"));
    for port in ["80:80:80:80", "a:80", "0:80", "80-90:80", "80/icmp", "1.2.3:80:80", ""] {
        assert!(error("ports", json!([port])).contains("is no published port"), "{port}");
    }
    for volume in ["/a", "a b:/c", "/a:c", "/a:/b:ro:x", "./a:/b"] {
        assert!(error("volumes", json!([volume])).contains("is no volume"), "{volume}");
    }
    for memory in ["1", "1x", "-64m", "99999999999g"] {
        assert!(error("memory", json!(memory)).contains("no size of memory"), "{memory}");
    }
    for cpus in ["none", "-1", "0.001", "1.5.2", ".5", "5000", "1e3"] {
        assert!(error("cpus", json!(cpus)).contains("no number of processors"), "{cpus}");
    }
    assert!(error("env", json!({"A": "one\ntwo"})).contains("is no line"));
    assert!(error("env", json!({"A=B": "x"})).contains("is no name"));
    assert!(error("env", json!({"A": [1]})).contains("is no text"));
    assert!(error("networks", json!(["host"])).contains("publishes no ports"));
    assert!(error("networks", json!(["none", "shop"])).contains("stand alone"));
    assert!(error("command", json!("a 'b")).contains("argument 'command'"));
    assert!(error("restart", json!("sometimes")).contains("expected one of"));
}
