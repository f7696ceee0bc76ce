//! apt-get as the module calls it, on a fake host.

use std::{path::Path, time::SystemTime};

use serde_json::json;

use super::*;
use crate::modules::fake::{Fake, converges, go, plan};

const CALL: &str =
    "apt-get -q -y -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold";

/// A host whose index is fresh.
fn fresh() -> Fake {
    let mut fake = Fake::new().file("/var/lib/apt/lists/x_Packages", "").file("/etc/apt/sources.list", "");
    fake.times.insert("/var/lib/apt/lists".into(), SystemTime::UNIX_EPOCH + Duration::from_hours(250));
    fake
}

fn simulates(fake: Fake, words: &str, said: &str) -> Fake {
    fake.answers(&format!("{CALL} -s {words}"), 0, said, "")
}

#[test]
fn all_are_installed_by_one_call_with_what_they_need() {
    let said =
        "NOTE: simulation\nInst libonig5 (6.9 Debian:12 [amd64])\nInst jq (1.6 Debian:12 [amd64])\nConf jq (1.6)\n";
    let mut fake = simulates(fresh(), "install", said);
    fake.packages.insert("curl".into(), "7.88".into());
    let outcome = converges(&mut fake, "package", json!({"name": ["jq", "curl"]}));
    assert_eq!(fake.ran, [format!("{CALL} install jq")]);
    assert_eq!(outcome.data["packages"], json!({"libonig5": "6.9", "jq": "1.6"}));
    assert!(fake.packages.contains_key("libonig5"));
}

#[test]
fn options_reach_apt() {
    let mut fake = simulates(fresh(), "-o APT::Install-Recommends=false -t backports", "Inst jq (1.7 x [amd64])\n");
    converges(&mut fake, "apt", json!({"name": "jq", "install_recommends": false, "default_release": "backports"}));
    assert!(fake.ran[0].ends_with("-o APT::Install-Recommends=false -t backports install jq"));
}

#[test]
fn versions_count_with_patterns() {
    let mut fake = simulates(fresh(), "install jq=1.7*", "Inst jq [1.6] (1.7.1 x [amd64])\n");
    fake.packages.insert("jq".into(), "1.6".into());
    assert!(!go(&mut fake, "package", json!({"name": "jq=1.6"})).unwrap().changed);
    assert!(!go(&mut fake, "package", json!({"name": "jq"})).unwrap().changed);
    converges(&mut fake, "package", json!({"name": "jq=1.7*"}));
    assert_eq!(fake.packages["jq"], "1.7.1");
}

#[test]
fn latest_asks_apt() {
    let mut fake = simulates(fresh(), "install", "0 upgraded\n");
    fake.packages.insert("jq".into(), "1.6".into());
    assert!(!go(&mut fake, "package", json!({"name": "jq", "state": "latest"})).unwrap().changed);
    let mut fake = simulates(fresh(), "install", "Inst jq [1.6] (1.7 x [amd64])\n");
    fake.packages.insert("jq".into(), "1.6".into());
    assert!(go(&mut fake, "package", json!({"name": "jq", "state": "latest"})).unwrap().changed);
}

#[test]
fn packages_go_with_what_depends_on_them() {
    let mut fake = simulates(fresh(), "purge", "Purg jq-tools [2]\nPurg jq [1.6]\n");
    fake.packages.insert("jq".into(), "1.6".into());
    fake.packages.insert("jq-tools".into(), "2".into());
    converges(&mut fake, "package", json!({"name": "jq", "state": "absent", "purge": true}));
    assert_eq!(fake.ran, [format!("{CALL} purge jq")]);
    assert!(fake.packages.is_empty());
}

#[test]
fn the_index_is_refreshed_when_it_is_old() {
    let simulated = || simulates(fresh(), "install", "Inst jq (1.6 x [amd64])\n");
    let updates = |fake: &Fake| fake.ran.iter().filter(|line| line.ends_with(" update")).count();
    let mut fake = simulated();
    go(&mut fake, "package", json!({"name": "jq", "cache_valid_time": 3_600_000})).unwrap();
    assert_eq!(updates(&fake), 0);
    let mut fake = simulated();
    assert_eq!(
        go(&mut fake, "package", json!({"name": "jq", "cache_valid_time": 60})).unwrap().data["cache_updated"],
        true
    );
    assert_eq!(updates(&fake), 1);
    let mut fake = simulated().file("/etc/apt/sources.list.d/new.sources", "");
    fake.times.insert("/etc/apt/sources.list.d/new.sources".into(), fake.now());
    go(&mut fake, "package", json!({"name": "jq"})).unwrap();
    assert_eq!(updates(&fake), 1, "a source is newer than the index");
    let mut fake = simulated();
    converges_update(&mut fake);
    assert_eq!(updates(&fake), 1);
}

fn converges_update(fake: &mut Fake) {
    let args = json!({"update_cache": true, "cache_valid_time": 60});
    assert!(go(fake, "package", args.clone()).unwrap().changed);
    assert!(!go(fake, "package", args).unwrap().changed);
    assert!(fake.times.contains_key(Path::new("/var/lib/apt/lists")));
}

#[test]
fn a_lock_is_waited_for_and_its_holder_named() {
    let said = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 77 (unattended-upgr)\nE: Unable to acquire\n";
    let simulated = || simulates(fresh(), "install", "Inst jq (1.6 x [amd64])\n");
    let mut fake = simulated().answers_once(&format!("{CALL} install"), 100, "", said);
    assert!(go(&mut fake, "package", json!({"name": "jq", "lock_timeout": 5})).unwrap().changed);
    assert_eq!(fake.ran.len(), 2);
    let mut fake = simulated().answers(&format!("{CALL} install"), 100, "", said);
    let failure = go(&mut fake, "package", json!({"name": "jq", "lock_timeout": 0})).unwrap_err();
    assert_eq!(
        failure.message,
        "the lock /var/lib/dpkg/lock-frontend is still held by process 77 (unattended-upgr) after 0 s"
    );
}

#[test]
fn an_interrupted_installation_is_repaired() {
    let said = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.\n";
    let mut fake = simulates(fresh(), "install", "Inst jq (1.6 x [amd64])\n").answers_once(
        &format!("{CALL} install"),
        100,
        "",
        said,
    );
    assert!(go(&mut fake, "package", json!({"name": "jq"})).unwrap().changed);
    assert_eq!(fake.ran[1], "dpkg --force-confdef --force-confold --configure -a");
}

#[test]
fn nothing_done_is_no_change() {
    let said = "0 upgraded, 0 newly installed, 0 to remove and 3 not upgraded.\n";
    let mut fake = simulates(fresh(), "install", "Inst awk (1 x)\n").answers(&format!("{CALL} install"), 0, said, "");
    assert!(!go(&mut fake, "package", json!({"name": "awk"})).unwrap().changed);
    assert_eq!(did_something("1 upgraded, 0 newly installed, 0 to remove and 0 not upgraded."), Some(true));
}

#[test]
fn a_file_is_installed_unless_its_version_is_there() {
    let mut fake = fresh().answers("dpkg-deb -f", 0, "Package: x\nVersion: 2\n", "");
    converges(&mut fake, "package", json!({"deb": "/srv/x.deb"}));
    assert_eq!(fake.ran, [format!("{CALL} install /srv/x.deb")]);
}

#[test]
fn bad_input_is_refused() {
    let fake = fresh()
        .answers(&format!("{CALL} -s install jqq"), 100, "", "E: Unable to locate package jqq\n")
        .answers("apt-cache pkgnames", 0, "jq\nbash\n", "");
    let error = |args| plan(&fake, "package", args).unwrap_err();
    let failure = error(json!({"name": "jqq"}));
    assert_eq!(
        (failure.message.as_str(), failure.hint.as_deref()),
        ("no package 'jqq' is known to apt", Some("did you mean 'jq'?"))
    );
    assert!(error(json!({})).message.contains("missing"));
    let mut essential =
        fresh().answers(&format!("{CALL} -s remove sed"), 100, "", "E: Essential packages were removed\n");
    essential.packages.insert("sed".into(), "4.9".into());
    let failure = plan(&essential, "package", json!({"name": "sed", "state": "absent"})).unwrap_err();
    assert!(failure.message.contains("Essential packages"));
    assert!(error(json!({"name": "-o=x"})).message.contains("is no name for a package"));
    assert!(error(json!({"name": "a b"})).hint.unwrap().contains("a list"));
    assert!(error(json!({"name": "/x.deb"})).hint.unwrap().contains("`deb`"));
    assert!(error(json!({"name": "x", "upgrade": "dist"})).hint.unwrap().contains("dist-upgrade"));
    let facts = json!({"os": {"family": "redhat"}});
    let inv = crate::modules::fake::call("package", json!({"name": "x"}));
    let failure =
        (DEFINITION.plan)(&inv, &Cx { host: &fake, facts: &facts, secrets: crate::secrets::grants::nobody() })
            .unwrap_err();
    assert!(failure.message.contains("apt only"));
}
