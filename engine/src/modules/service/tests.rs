//! systemctl as the module calls it, on a fake host.

use serde_json::json;

use crate::modules::fake::{Fake, converges, go, plan};

const UP: &str = "Type=simple\nActiveState=active\nSubState=running\nResult=success\nNRestarts=0\n";

#[test]
fn a_service_is_started_and_enabled_once() {
    let mut fake = Fake::new().unit_is("consul.service", "inactive", "disabled").answers("systemctl show", 0, UP, "");
    let args = json!({"name": "consul", "state": "started", "enabled": true, "settle": 0});
    let outcome = converges(&mut fake, "service", args);
    assert_eq!(
        fake.ran,
        [
            "systemctl enable -- consul.service",
            "systemctl reset-failed -- consul.service",
            "systemctl start -- consul.service"
        ]
    );
    assert_eq!((&outcome.data["state"], &outcome.data["enabled"]), (&json!("started"), &json!(true)));
    converges(&mut fake, "service", json!({"name": "consul.service", "state": "stopped", "enabled": false}));
}

#[test]
fn a_restart_is_always_a_change_and_reads_a_changed_file() {
    let mut fake = Fake::new().unit_is("a.service", "active", "enabled").answers("systemctl show", 0, UP, "");
    fake.units.get_mut("a.service").unwrap().needs_reload = true;
    let args = json!({"name": "a", "state": "restarted", "settle": 0.001});
    assert!(go(&mut fake, "service", args.clone()).unwrap().changed);
    // systemd does not refuse it for having been started too often.
    let restart = ["systemctl reset-failed -- a.service", "systemctl restart -- a.service"];
    assert_eq!((fake.ran[0].as_str(), &fake.ran[1..]), ("systemctl daemon-reload", &restart.map(String::from)[..]));
    assert!(go(&mut fake, "service", args).unwrap().changed);
    assert_eq!(fake.ran[3..], restart);
}

#[test]
fn daemon_reload_alone_is_no_change() {
    let mut fake = Fake::new();
    assert!(!go(&mut fake, "service", json!({"daemon_reload": true})).unwrap().changed);
    assert_eq!(fake.ran, ["systemctl daemon-reload"]);
    assert!(plan(&fake, "service", json!({"state": "started"})).is_err());
}

#[test]
fn a_service_that_dies_is_a_failure_with_its_journal() {
    let failed = "Type=simple\nActiveState=failed\nSubState=failed\nResult=exit-code\nNRestarts=0\n";
    let mut fake = Fake::new()
        .unit_is("a.service", "inactive", "enabled")
        .answers_once("systemctl show", 0, UP, "")
        .answers("systemctl show", 0, failed, "")
        .answers("systemctl status", 3, "x a.service\n   Active: failed\n", "")
        .answers("journalctl", 0, "a[7]: no such file: /etc/a.json\n", "");
    let args = json!({"name": "a", "state": "started", "settle": 0.001});
    let failure = go(&mut fake, "service", args).unwrap_err();
    assert!(failure.message.starts_with("a.service did not stay up after the start: failed (exit-code)"));
    assert!(failure.message.contains("no such file: /etc/a.json"));
    assert!(failure.changed && failure.data["status"].as_str().unwrap().contains("Active: failed"));
}

#[test]
fn one_that_restarts_by_itself_did_not_stay_up() {
    let again = UP.replace("NRestarts=0", "NRestarts=1");
    let mut fake = Fake::new()
        .unit_is("a.service", "inactive", "enabled")
        .answers_once("systemctl show", 0, UP, "")
        .answers("systemctl show", 0, &again, "");
    let args = json!({"name": "a", "state": "started", "settle": 0.001});
    assert!(go(&mut fake, "service", args).unwrap_err().message.contains("did not stay up"));
}

#[test]
fn one_that_cannot_be_started_says_why() {
    let mut fake = Fake::new()
        .unit_is("a.service", "inactive", "enabled")
        .answers("systemctl restart", 1, "", "Job for a.service failed\n")
        .answers("journalctl", 0, "bind: address in use\n", "");
    let failure = go(&mut fake, "service", json!({"name": "a", "state": "restarted"})).unwrap_err();
    assert!(failure.message.starts_with("a.service could not be restarted"), "{failure}");
    assert!(failure.message.contains("address in use"));
    assert_eq!(failure.data["stderr"], "Job for a.service failed\n");
    let said = "Failed to reload a.service: Job type reload is not applicable for unit a.service.\n";
    let mut fake = Fake::new().unit_is("a.service", "active", "enabled").answers("systemctl reload", 1, "", said);
    let failure = go(&mut fake, "service", json!({"name": "a", "state": "reloaded"})).unwrap_err();
    assert!(failure.message.contains("could not be reloaded: Failed to reload a.service: Job type"), "{failure}");
}

#[test]
fn a_oneshot_may_be_done() {
    let done = "Type=oneshot\nActiveState=inactive\nSubState=dead\nResult=success\nNRestarts=0\n";
    let mut fake = Fake::new().unit_is("a.service", "inactive", "static").answers("systemctl show", 0, done, "");
    assert!(go(&mut fake, "service", json!({"name": "a", "state": "started"})).unwrap().changed);
}

#[test]
fn unknown_units_have_a_nearest_name() {
    let fake = Fake::new().unit_is("consul.service", "inactive", "disabled");
    let error = |args| plan(&fake, "service", args).unwrap_err();
    let failure = error(json!({"name": "cosnul", "state": "started"}));
    assert_eq!(failure.message, "unit cosnul.service does not exist");
    assert_eq!(failure.hint.unwrap(), "did you mean 'consul'?");
    assert!(error(json!({"name": "a b"})).message.contains("is no name for a unit"));
    assert!(error(json!({"name": "consul", "state": "runing"})).message.contains("expected one of"));
    assert!(error(json!({"name": "consul", "scope": "user"})).hint.unwrap().contains("only the system"));
    assert!(!go(&mut Fake::new(), "service", json!({"name": "x", "state": "stopped"})).unwrap().changed);
}

#[test]
fn masked_and_static_units() {
    let mut fake = Fake::new().unit_is("a.service", "inactive", "masked").unit_is("b.service", "inactive", "static");
    let failure = plan(&fake, "service", json!({"name": "a", "state": "started"})).unwrap_err();
    assert_eq!(failure.hint.unwrap(), "give `masked: false`");
    converges(&mut fake, "service", json!({"name": "a", "masked": false, "enabled": true}));
    converges(&mut fake, "service", json!({"name": "a", "masked": true}));
    let own = Fake::new().unit_is("c.service", "inactive", "disabled").file("/etc/systemd/system/c.service", "");
    let failure = plan(&own, "service", json!({"name": "c", "masked": true})).unwrap_err();
    assert!(failure.message.contains("stands in the way") && failure.hint.unwrap().contains("systemd_unit"));
    let outcome = go(&mut fake, "service", json!({"name": "b", "enabled": true})).unwrap();
    assert!(!outcome.changed && outcome.warnings[0].contains("[Install]"));
}

#[test]
fn check_does_not_know_units_of_things_it_did_not_do() {
    let fake = Fake::new();
    let mut overlay = crate::host::overlay::Overlay::new(&fake);
    let args = json!({"name": "x", "state": "started"});
    assert!(go(&mut overlay, "service", args.clone()).is_err());
    go(&mut overlay, "command", json!({"cmd": "install-x"})).unwrap();
    assert!(go(&mut overlay, "service", args).unwrap().unknown);
}
