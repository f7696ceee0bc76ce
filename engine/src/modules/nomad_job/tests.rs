use serde_json::{Value, json};

use crate::{
    host::overlay::Overlay,
    modules::{
        Failure, Outcome, Plan,
        fake::{Fake, go, plan},
        http::tests::{Server, answer},
    },
};

const TEXT: &str = "job \"shop\" {\n  group \"web\" {}\n}\n";

fn ok(body: &Value) -> String {
    answer("200 OK", &body.to_string())
}

fn parsed() -> String {
    ok(&json!({"ID": "shop", "Name": "shop", "Type": null, "Namespace": null}))
}

fn planned(kind: &str, index: u64) -> String {
    ok(&json!({"JobModifyIndex": index, "Warnings": "", "FailedTGAllocs": null,
        "Annotations": {"DesiredTGUpdates": {"web": {"Place": 1, "DestructiveUpdate": 1}}},
        "Diff": {"Type": kind, "ID": "shop", "Fields": null, "Objects": null, "TaskGroups": [
            {"Type": kind, "Name": "web", "Fields": [{"Type": "Edited", "Name": "Count", "Old": "1", "New": "2", "Annotations": ["forces create"]},
                {"Type": "None", "Name": "Kept", "Old": "x", "New": "x"}], "Objects": null,
             "Tasks": [{"Type": "Added", "Name": "run", "Fields": [{"Type": "Added", "Name": "Driver", "Old": "", "New": "exec"}],
                "Objects": [{"Type": "Added", "Name": "Template", "Fields": [{"Type": "Added", "Name": "Data", "Old": "", "New": "a\nb"}]}]}]},
            {"Type": "None", "Name": "idle", "Fields": [{"Type": "None", "Name": "Count", "Old": "1", "New": "1"}]}]}}))
}

fn registered() -> String {
    ok(&json!({"EvalID": "e1", "JobModifyIndex": 12}))
}

fn evaluated(failed: &Value) -> String {
    ok(&json!({"Status": "complete", "DeploymentID": "d1-and-more", "FailedTGAllocs": failed}))
}

fn deployment(status: &str, description: &str, index: u64) -> String {
    ok(&json!({"ID": "d1-and-more", "Status": status, "StatusDescription": description, "JobSpecModifyIndex": index,
        "TaskGroups": {"web": {"DesiredTotal": 2, "HealthyAllocs": 1, "UnhealthyAllocs": 1}}}))
}

fn ill() -> String {
    ok(
        &json!([{"ID": "0123456789", "NodeName": "client-1", "JobVersion": 1, "DesiredStatus": "run", "ClientStatus": "failed",
        "TaskStates": {"run": {"Events": [{"Type": "Received", "DisplayMessage": "Task received by client"},
            {"Type": "Driver Failure", "DisplayMessage": "no such program"}]}}}]),
    )
}

fn call(server: &Server, more: &Value) -> Value {
    let mut args = json!({"content": TEXT, "url": server.url(""), "wait": 0, "timeout": 0});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

fn run(server: &Server, more: &Value) -> Result<Outcome, Failure> {
    go(&mut Fake::new(), "nomad_job", call(server, more))
}

fn calls(server: &Server) -> Vec<String> {
    server.requests().iter().map(|text| text.split(" HTTP").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn nomads_plan_is_what_is_shown() {
    let server = Server::new([parsed(), planned("Edited", 7)].iter());
    let Plan::Change(change) = plan(&Fake::new(), "nomad_job", call(&server, &json!({}))).unwrap() else {
        panic!("the plan has a difference")
    };
    let diff = &change.diffs()[0];
    assert_eq!(diff.what, "nomad job shop in default");
    assert_eq!(diff.before, "group web\n  Count: 1\n  Kept: x\n");
    let after = "group web\n  Count: 2  # forces create\n  Kept: x\n  task run\n    Driver: exec\n    Template\n      Data:\n        a\n        b\n";
    assert_eq!(diff.after, after);
    let checked = change.apply(&mut Overlay::new(&Fake::new())).unwrap();
    assert_eq!(checked.msg.as_deref(), Some("web: 1 to place, 1 to replace"));
    assert_eq!(calls(&server), ["POST /v1/jobs/parse", "POST /v1/job/shop/plan?namespace=default"]);
}

#[test]
fn what_was_planned_is_registered_and_waited_for() {
    let answers =
        [parsed(), planned("Edited", 7), registered(), evaluated(&Value::Null), deployment("successful", "", 12)];
    let server = Server::new(answers.iter());
    let outcome = run(&server, &json!({"namespace": "shop"})).unwrap();
    assert!(outcome.changed);
    assert_eq!((&outcome.data["index"], &outcome.data["deployment"]), (&json!(12), &json!("d1-and-more")));
    let body: Value = serde_json::from_str(server.requests()[2].split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&body["EnforceIndex"], &body["JobModifyIndex"]), (&json!(true), &json!(7)));
    assert_eq!((&body["Job"]["Namespace"], &body["Submission"]["Source"]), (&json!("shop"), &json!(TEXT)));
    assert_eq!(
        calls(&server)[2..],
        [
            "POST /v1/jobs?namespace=shop",
            "GET /v1/evaluation/e1?namespace=shop",
            "GET /v1/deployment/d1-and-more?namespace=shop"
        ]
    );
    // Nothing to do; the last deployment went well.
    let answers = [parsed(), planned("None", 12), deployment("successful", "", 12), deployment("successful", "", 12)];
    let server = Server::new(answers.iter());
    assert!(!run(&server, &json!({})).unwrap().changed);
}

#[test]
fn a_deployment_that_fails_tells_why() {
    let failed = json!({"web": {"NodesEvaluated": 2, "ConstraintFiltered": {"missing drivers": 2}, "DimensionExhausted": {"memory": 1}, "CoalescedFailures": 1}});
    let broken = || deployment("failed", "Failed due to unhealthy allocations", 12);
    let server =
        Server::new([parsed(), planned("Edited", 7), registered(), evaluated(&failed), broken(), ill()].iter());
    let failure = run(&server, &json!({})).unwrap_err();
    assert!(failure.changed);
    for part in [
        "job 'shop': its deployment has failed: Failed due to unhealthy allocations",
        "group 'web' cannot be placed: 2 clients cannot: missing drivers, 1 is without enough memory (and 1 more like it)",
        "allocation 01234567 on client-1, failed: task 'run': Driver Failure: no such program",
    ] {
        assert!(failure.message.contains(part), "{failure}");
    }
    // So it is in the next run, which has nothing to register.
    let server = Server::new([parsed(), planned("None", 12), broken(), broken(), ill()].iter());
    let again = run(&server, &json!({})).unwrap_err();
    assert!(!again.changed && again.message.contains("no such program"), "{again}");
    // One that takes too long.
    let slow = || deployment("running", "Deployment is running", 12);
    let answers = [parsed(), planned("Edited", 7), registered(), evaluated(&Value::Null), slow(), ill()];
    let late = run(&Server::new(answers.iter()), &json!({})).unwrap_err();
    assert!(late.message.contains("after 0 s its deployment is not done: web: 1 of 2 healthy, 1 unhealthy"), "{late}");
}

#[test]
fn whoever_changed_it_meanwhile_is_not_overwritten() {
    let conflict = || {
        answer(
            "500 Internal Server Error",
            "Enforcing job modify index 7: job exists with conflicting job modify index: 9",
        )
    };
    let server = Server::new([parsed(), planned("Edited", 7), conflict(), planned("Edited", 9)].iter());
    let failure = run(&server, &json!({})).unwrap_err();
    assert!(failure.message.contains("conflicting job modify index: 9") && failure.hint.unwrap().contains("run again"));
    // Another host did the same.
    let same = deployment("successful", "", 9);
    let server =
        Server::new([parsed(), planned("Edited", 7), conflict(), planned("None", 9), same.clone(), same].iter());
    assert!(!run(&server, &json!({})).unwrap().changed);
}

#[test]
fn a_wrong_text_is_told_by_its_line() {
    let said = answer(
        "400 Bad Request",
        "Failed to parse job: input.hcl:2,9-12: Missing name for group; All group blocks must have 1 labels (name). unexpected EOF",
    );
    let server = Server::new([&said]);
    let failure = run(&server, &json!({})).unwrap_err();
    assert!(failure.message.starts_with("content:2,9-12: Missing name for group"), "{failure}");
    assert!(failure.message.ends_with("\n  2 |   group \"web\" {}"), "{failure}");
    let none = Server::new(Vec::<String>::new().iter());
    for (more, message) in [
        (json!({"content": "{\"ID\": \"a\",\n  \"Type\" 1}"}), "content:2:10: no JSON: expected `:`"),
        (json!({"content": "{\"Job\": {}}"}), "the job has neither ID nor Name"),
        (json!({"content": "{\"ID\": \"a\", \"Namespace\": \"b\"}", "namespace": "c"}), "the job is of namespace 'b'"),
        (json!({"content": "{\"ID\": \"a\"}", "variables": {"x": 1}}), "'variables' are for texts in HCL"),
        (json!({"content": "{\"ID\": \"a\"}", "until": "complete"}), "only batch jobs come to an end"),
        (json!({"content": " "}), "there is no job in it"),
        (json!({"content": null}), "one of 'src' and 'content' is needed"),
        (json!({"content": null, "state": "absent"}), "argument 'id' is missing"),
        (json!({"id": "x"}), "the job's text has its id"),
        (json!({"namespace": "a b"}), "no name for a namespace"),
        (json!({"until": "health"}), "did you mean 'healthy'?"),
    ] {
        let failure = run(&none, &more).unwrap_err();
        assert!(failure.message.contains(message), "{failure}");
    }
}

#[test]
fn values_of_variables_are_no_expressions() {
    let server = Server::new([parsed(), planned("Edited", 7)].iter());
    let more = json!({"variables": {"count": 2, "word": "a ${b} %{c} \"d\"", "list": ["x"]}});
    assert!(plan(&Fake::new(), "nomad_job", call(&server, &more)).is_ok());
    let body: Value = serde_json::from_str(server.requests()[0].split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["Variables"], "count = 2\nword = \"a $${b} %%{c} \\\"d\\\"\"\nlist = [\"x\"]\n");
}

#[test]
fn jobs_without_a_deployment_end_sensibly() {
    let evaluation = ok(&json!({"Status": "complete", "DeploymentID": "", "FailedTGAllocs": null}));
    let none = answer("200 OK", "null");
    let job = |kind: &str, periodic: Value| {
        ok(&json!({"Type": kind, "Version": 1, "Periodic": periodic, "ParameterizedJob": null}))
    };
    let allocation = |status: &str, version: u64| {
        ok(
            &json!([{"ID": "0123456789", "NodeName": "n", "JobVersion": version, "DesiredStatus": "run", "ClientStatus": status}]),
        )
    };
    let begin = || vec![parsed(), planned("Added", 0), registered(), evaluation.clone(), none.clone()];
    let with = |more: Vec<String>| Server::new(begin().into_iter().chain(more).collect::<Vec<_>>().iter());
    // One that runs when its time comes.
    assert!(run(&with(vec![job("batch", json!({"Enabled": true}))]), &json!({})).is_ok());
    assert!(run(&with(vec![job("system", Value::Null), allocation("running", 1)]), &json!({})).is_ok());
    assert!(run(&with(vec![job("batch", Value::Null), allocation("complete", 1)]), &json!({})).is_ok());
    let failed = run(&with(vec![job("batch", Value::Null), allocation("failed", 1)]), &json!({})).unwrap_err();
    assert!(failed.message.contains("job 'shop' has failed\n  allocation 01234567 on n, failed"), "{failed}");
    let waits = run(&with(vec![job("system", Value::Null), allocation("pending", 1)]), &json!({})).unwrap_err();
    assert!(waits.message.contains("after 0 s 0 of 1 allocations run"), "{waits}");
}

#[test]
fn a_job_is_stopped_once() {
    let found = |stop: bool| ok(&json!({"Type": "service", "Status": "running", "Stop": stop, "JobModifyIndex": 4}));
    let gone = ok(&json!([{"ID": "0123456789", "JobVersion": 1, "DesiredStatus": "stop", "ClientStatus": "complete"}]));
    let args = json!({"content": null, "id": "a/b", "namespace": "shop", "state": "absent"});
    let server = Server::new([found(false), found(false), answer("200 OK", "{}"), found(true), gone].iter());
    assert!(run(&server, &args).unwrap().changed);
    assert_eq!(calls(&server)[2], "DELETE /v1/job/a%2Fb?purge=false&namespace=shop");
    assert!(!run(&Server::new([&found(true)]), &args).unwrap().changed);
    assert!(!run(&Server::new([&answer("404 Not Found", "job not found")]), &args).unwrap().changed);
}
