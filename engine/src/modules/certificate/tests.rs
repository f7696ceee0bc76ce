use std::{fs, os::unix::fs::PermissionsExt as _, time::SystemTime};

use serde_json::json;

use super::*;
use crate::{
    host::real::Real,
    modules::fake,
    pki::{
        Authority,
        issuer::{Host, Issuer},
        tests::Memory,
    },
    secrets::{Secret, ownership::Reader},
};

/// Who answers a host in these tests: the real issuer over a store in memory.
#[derive(Debug)]
struct Office {
    issuer: Issuer,
    groups: Vec<String>,
    checks: bool,
}

impl Office {
    fn answering(group: &str) -> Arc<dyn Grants> {
        Self::over(Arc::new(Memory::default()), group, false)
    }

    fn over(store: Arc<Memory>, group: &str, checks: bool) -> Arc<dyn Grants> {
        let issuer = Issuer::new(store, "kraken");
        Arc::new(Self { issuer, groups: vec![group.into()], checks })
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }
}

impl Grants for Office {
    fn secret(&self, name: &Name) -> Result<Secret, GrantError> {
        assert_eq!(name.as_str(), CERTIFICATE);
        Self::wait(self.issuer.certificate(!self.checks, SystemTime::now(), &|_| {}))
    }

    fn sign(&self, request: &SignRequest) -> Result<crate::secrets::grants::Issued, GrantError> {
        assert!(!self.checks, "a check signs nothing");
        let host = Host { reader: Reader { host: "web-1", groups: &self.groups }, address: "10.0.0.7" };
        Self::wait(self.issuer.sign(host, request, SystemTime::now(), &|_| {}))
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args(&self, more: Value) -> Value {
        let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
        let ours = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap().name;
        let mut args = json!({
            "path": self.at("tls"), "product": "consul", "datacenter": "dc1", "node": "web-1", "address": "10.0.0.7",
            "owner": me, "group": ours,
        });
        for (name, value) in more.as_object().unwrap() {
            args[name] = value.clone();
        }
        args
    }

    /// Names in the folder, the link's target first.
    fn folders(&self) -> Vec<String> {
        let target = fs::read_link(self.at("tls")).unwrap().display().to_string();
        let mut names = vec![target.clone()];
        let all = fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.extend(all.filter(|n| *n != target && n != "tls"));
        names
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.at("tls").join(name)).unwrap()
    }
}

fn plan_on(host: &dyn Read, args: Value, secrets: &Arc<dyn Grants>) -> Result<Plan, Failure> {
    plan(&fake::call("certificate", args), &Cx { host, facts: &json!({}), secrets })
}

fn go(args: Value, secrets: &Arc<dyn Grants>) -> Result<(Outcome, Vec<Diff>), Failure> {
    let mut real = Real::new();
    let (outcome, diffs) = match plan_on(&real, args, secrets)? {
        Plan::Unchanged(outcome) => (outcome, Vec::new()),
        Plan::Change(change) => {
            let diffs = change.diffs();
            (change.apply(&mut real)?, diffs)
        }
    };
    assert!(DEFINITION.untold(&outcome.data).is_empty(), "{:?}", DEFINITION.untold(&outcome.data));
    Ok((outcome, diffs))
}

#[test]
fn a_pair_is_made_once_and_a_second_run_is_silent() {
    let (place, office) = (Place::new(), Office::answering("consul_clients"));
    let (outcome, diffs) = go(place.args(json!({})), &office).unwrap();
    assert!(outcome.changed && outcome.warnings.is_empty(), "{outcome:?}");
    assert_eq!((&outcome.data["renewed"], &outcome.data["reason"]), (&json!(true), &json!("there is none yet")));
    let leaf = Leaf::read(&place.text(CERT)).unwrap();
    assert!(leaf.fits(&place.text(KEY)).unwrap());
    assert!(leaf.is_signed_by(&Certificate::read(&place.text(CA)).unwrap()));
    assert_eq!(outcome.data["fingerprint"], leaf.fingerprint);
    for (name, mode) in [(KEY, 0o640), (CERT, 0o644), (CA, 0o644), ("", 0o750)] {
        assert_eq!(fs::metadata(place.at("tls").join(name)).unwrap().permissions().mode() & 0o7777, mode, "{name}");
    }
    // The key is nowhere but in its file.
    let said = format!("{outcome:?} {diffs:?}");
    for line in place.text(KEY).lines() {
        assert!(!said.contains(line));
    }
    for _ in 0..2 {
        let (again, diffs) = go(place.args(json!({})), &office).unwrap();
        assert!(!again.changed && diffs.is_empty());
        assert_eq!(
            (&again.data["renewed"], &again.data["fingerprint"]),
            (&json!(false), &leaf.fingerprint.clone().into())
        );
    }
    assert_eq!(place.folders().len(), 1);
}

#[test]
fn a_check_says_what_the_run_does_and_makes_nothing() {
    let (place, store) = (Place::new(), Arc::new(Memory::default()));
    let checking = Office::over(Arc::clone(&store), "consul_clients", true);
    let base = Real::new();
    let mut overlay = Overlay::new(&base);
    let Plan::Change(change) = plan_on(&overlay, place.args(json!({})), &checking).unwrap() else { panic!() };
    let diffs = change.diffs();
    let checked = change.apply(&mut overlay).unwrap();
    assert!(checked.changed && !checked.unknown && checked.data["not_after"].is_null());
    // A later task of the same check sees the files, and this one has nothing left to do.
    assert!(overlay.meta_follow(&place.at("tls/key.pem")).unwrap().is_some());
    let Plan::Unchanged(_) = plan_on(&overlay, place.args(json!({})), &checking).unwrap() else { panic!() };
    assert!(store.values.lock().unwrap().is_empty() && fs::read_dir(place.0.path()).unwrap().count() == 0);
    let office = Office::over(store, "consul_clients", false);
    let (done, told) = go(place.args(json!({})), &office).unwrap();
    assert!(done.changed);
    assert_eq!(told, diffs);
}

#[test]
fn each_reason_brings_a_new_pair_and_the_one_before_stays() {
    let (place, store) = (Place::new(), Arc::new(Memory::default()));
    let office = Office::over(Arc::clone(&store), "consul_clients", false);
    go(place.args(json!({"lifetime": 60})), &office).unwrap();
    let first = place.folders()[0].clone();
    let renewed = |args: Value, office: &Arc<dyn Grants>, part: &str| {
        let (outcome, _) = go(place.args(args), office).unwrap();
        let reason = outcome.data["reason"].as_str().unwrap().to_owned();
        assert!(outcome.changed && reason.contains(part), "{part}: {reason}");
        assert!(Leaf::read(&place.text(CERT)).unwrap().fits(&place.text(KEY)).unwrap());
    };
    // A life of a minute, of which less is left than is asked for.
    renewed(json!({"renew_before": 3600}), &office, "it ends on");
    assert_eq!(place.folders().len(), 2);
    assert!(place.folders().contains(&first), "what a failed handler goes back to");
    // The host's own files.
    fs::write(place.at("tls/key.pem"), &*request::make().unwrap().key).unwrap();
    renewed(json!({}), &office, "another certificate");
    assert!(place.folders().len() == 2 && !place.folders().contains(&first));
    fs::write(place.at("tls/cert.pem"), "junk").unwrap();
    renewed(json!({}), &office, "no block");
    fs::remove_file(place.at("tls/key.pem")).unwrap();
    renewed(json!({}), &office, "cannot read");
    fs::remove_dir_all(place.0.path().join(&place.folders()[0])).unwrap();
    renewed(json!({}), &office, "cannot read");
    // Names that it should have.
    renewed(json!({"domain": "corp"}), &office, "it lacks client.dc1.corp");
    renewed(json!({}), &office, "it lacks client.dc1.consul");
    // The authority.
    let other = Authority::make("other", SystemTime::now()).unwrap();
    Office::wait(crate::pki::issuer::import(&*store, &other, true, SystemTime::now(), &|_| {})).unwrap();
    let office = Office::over(store, "consul_clients", false);
    let (before, failure) = (place.folders(), go(place.args(json!({"authority": "keep"})), &office).unwrap_err());
    assert!(failure.message.contains("has 'CN=other certificate authority'"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("controller ca show") && place.folders() == before);
    let (old, left) = (place.text(CA), go(place.args(json!({"authority": "leave"})), &office).unwrap().0);
    assert!(!left.changed && left.warnings[0].contains("stays until"), "{:?}", left.warnings);
    assert!(place.folders() == before && place.text(CA) == old, "it goes with the authority that signed it");
    renewed(json!({}), &office, "authority has not signed");
    assert!(!go(place.args(json!({"authority": "keep"})), &office).unwrap().0.changed);
    assert_eq!(place.text(CA), other.certificate().pem);
}

#[test]
fn owners_modes_and_the_authoritys_file_are_kept_without_a_new_pair() {
    let (place, office) = (Place::new(), Office::answering("consul_clients"));
    go(place.args(json!({})), &office).unwrap();
    let cert = place.text(CERT);
    fs::set_permissions(place.at("tls/key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(place.at("tls/ca.pem"), "junk").unwrap();
    let (outcome, diffs) = go(place.args(json!({"mode": "0600"})), &office).unwrap();
    assert!(outcome.changed && outcome.data["renewed"] == json!(false) && diffs.len() == 2, "{diffs:?}");
    assert_eq!(place.text(CERT), cert);
    assert_eq!(fs::metadata(place.at("tls/key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    Certificate::read(&place.text(CA)).unwrap();
}

#[test]
fn killed_anywhere_the_pair_that_stands_there_fits() {
    let (place, office) = (Place::new(), Office::answering("consul_clients"));
    go(place.args(json!({})), &office).unwrap();
    let step = |left: usize| {
        let Plan::Change(change) = plan_on(&Real::new(), place.args(json!({"domain": "corp"})), &office).unwrap()
        else {
            return true;
        };
        let mut host = Dying { real: Real::new(), left };
        let died = change.apply(&mut host).is_err();
        let leaf = Leaf::read(&place.text(CERT)).unwrap();
        assert!(leaf.fits(&place.text(KEY)).unwrap(), "after {left} writes");
        assert!(leaf.is_signed_by(&Certificate::read(&place.text(CA)).unwrap()), "after {left} writes");
        !died
    };
    let mut survived = 0;
    for left in 0..20 {
        if step(left) {
            survived = left;
            break;
        }
    }
    assert!(survived >= 5, "folder, three files and the link are five writes: {survived}");
    // What the killed runs left is gone with the one that came to its end, but for the pair of before.
    assert_eq!(place.folders().len(), 2, "{:?}", place.folders());
    let (again, _) = go(place.args(json!({"domain": "corp"})), &office).unwrap();
    assert!(!again.changed);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_made() {
    let (place, office) = (Place::new(), Office::answering("consul_clients"));
    let fails = |args: Value, part: &str| {
        let failure = go(place.args(args), &office).unwrap_err();
        assert!(failure.message.contains(part), "{part}: {failure:?}");
        failure
    };
    fails(json!({"mode": "0644"}), "argument 'mode'");
    fails(json!({"mode": "u=rw"}), "argument 'mode'");
    fails(json!({"region": "eu"}), "argument 'region' goes with another product");
    fails(json!({"product": "nomad"}), "argument 'datacenter' goes with another product");
    fails(json!({"product": "nomad", "datacenter": null}), "argument 'region' is missing");
    fails(json!({"datacenter": "a.b"}), "the datacenter 'a.b'");
    fails(json!({"lifetime": 59}), "argument 'lifetime'");
    fails(json!({"lifetime": 100, "renew_before": 100}), "it would be renewed always");
    fails(json!({"server": true, "client": true}), "both true");
    fails(json!({"client": false}), "both false");
    fails(json!({"path": place.at("none/tls")}), "none does not exist");
    fails(json!({"group": "no-such-group-x"}), "does not exist");
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 0);
    // A host that says that it is more than it is: nothing is put in place.
    let failure = fails(json!({"server": true}), "it lacks server.dc1.consul");
    assert!(failure.hint.unwrap().contains("the issuer goes by the inventory"));
    fs::create_dir(place.at("tls")).unwrap();
    fails(json!({}), "is no link of this module");
    let nobody = crate::secrets::grants::nobody();
    fs::remove_dir(place.at("tls")).unwrap();
    assert!(go(place.args(json!({})), nobody).unwrap_err().message.contains("there is nobody to ask"));
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 0);
}

/// A machine that dies after so many writes.
struct Dying {
    real: Real,
    left: usize,
}

impl Dying {
    fn live(&mut self) -> Result<(), Failure> {
        if self.left == 0 {
            return Err(Failure::new("killed"));
        }
        self.left -= 1;
        Ok(())
    }
}

impl Read for Dying {
    fn meta(&self, path: &Path) -> std::io::Result<Option<crate::host::Meta>> {
        self.real.meta(path)
    }
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        self.real.read(path)
    }
    fn read_link(&self, path: &Path) -> std::io::Result<PathBuf> {
        self.real.read_link(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
        self.real.list(path)
    }
    fn users(&self) -> std::io::Result<Vec<crate::host::User>> {
        self.real.users()
    }
    fn groups(&self) -> std::io::Result<Vec<crate::host::Group>> {
        self.real.groups()
    }
    fn unit(&self, name: &str) -> Result<crate::host::Unit, Failure> {
        self.real.unit(name)
    }
    fn package(&self, name: &str) -> Result<Option<String>, Failure> {
        self.real.package(name)
    }
    fn hostname(&self) -> std::io::Result<String> {
        self.real.hostname()
    }
    fn query(&self, command: &crate::host::Command) -> Result<crate::host::Output, Failure> {
        self.real.query(command)
    }
    fn now(&self) -> SystemTime {
        self.real.now()
    }
    fn is_overlay(&self) -> bool {
        false
    }
}

impl Write for Dying {
    fn as_read(&self) -> &dyn Read {
        self
    }
    fn write(&mut self, path: &Path, content: &[u8], attrs: &Attrs, validate: Option<&str>) -> Result<(), Failure> {
        self.live()?;
        self.real.write(path, content, attrs, validate)
    }
    fn mkdir(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        self.live()?;
        self.real.mkdir(path, attrs)
    }
    fn set_attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        self.live()?;
        self.real.set_attrs(path, attrs)
    }
    fn symlink(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        self.live()?;
        self.real.symlink(target, path)
    }
    fn hard_link(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        self.live()?;
        self.real.hard_link(target, path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.live()?;
        self.real.rename(from, to)
    }
    fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        self.live()?;
        self.real.remove(path)
    }
    fn touch(&mut self, path: &Path) -> Result<(), Failure> {
        self.live()?;
        self.real.touch(path)
    }
    fn run(
        &mut self,
        command: &crate::host::Command,
        effects: &[crate::host::Effect],
    ) -> Result<crate::host::Ran, Failure> {
        self.live()?;
        self.real.run(command, effects)
    }
}
