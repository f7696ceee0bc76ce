//! What an overlay shows of changes that were only recorded.

use super::{
    super::{Ran, Write as _, real::Real},
    *,
};

#[test]
fn planned_changes_are_seen_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/old"), "old").unwrap();
    let real = Real::new();
    let mut overlay = Overlay::new(&real);
    overlay.mkdir(&at("new"), &Attrs { mode: Some(0o750), ..Attrs::default() }).unwrap();
    overlay.write(&at("new/f"), b"text", &Attrs::default(), Some("check %s")).unwrap();
    overlay.symlink(Path::new("new"), &at("l")).unwrap();
    assert_eq!(overlay.read(&at("l/f")).unwrap(), b"text");
    assert_eq!(overlay.meta(&at("l")).unwrap().unwrap().kind, FileKind::Symlink);
    assert_eq!(overlay.meta_follow(&at("l")).unwrap().unwrap().mode, 0o750);
    overlay.write(&at("l/g"), b"", &Attrs::default(), None).unwrap();
    assert_eq!(overlay.list(&at("new")).unwrap(), ["f", "g"]);
    assert_eq!(overlay.list(folder.path()).unwrap(), ["d", "l", "new"]);
    overlay.set_attrs(&at("d/old"), &Attrs { mode: Some(0o600), ..Attrs::default() }).unwrap();
    assert_eq!(
        (overlay.meta(&at("d/old")).unwrap().unwrap().mode, overlay.read(&at("d/old")).unwrap()),
        (0o600, b"old".to_vec())
    );
    overlay.rename(&at("d"), &at("e")).unwrap();
    assert_eq!(overlay.read(&at("e/old")).unwrap(), b"old");
    assert_eq!(overlay.meta(&at("d/old")).unwrap(), None);
    overlay.mkdir(&at("d"), &Attrs::default()).unwrap();
    assert!(overlay.list(&at("d")).unwrap().is_empty(), "a folder made anew does not show what was removed");
    overlay.remove(&at("e")).unwrap();
    assert_eq!(overlay.list(folder.path()).unwrap(), ["d", "l", "new"]);
    overlay.hard_link(&at("new/f"), &at("h")).unwrap();
    assert_eq!(
        overlay.meta(&at("h")).unwrap().unwrap().identity,
        overlay.meta(&at("new/f")).unwrap().unwrap().identity
    );
    assert_eq!(real.list(folder.path()).unwrap(), ["d"]);
    assert_eq!(real.list(&at("d")).unwrap(), ["old"]);
}

#[test]
fn errors_are_those_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("f"), "").unwrap();
    let mut real = Real::new();
    let both = |path: PathBuf, attrs: &Attrs, validate: Option<&str>, real: &mut Real| {
        let planned = Overlay::new(real).write(&path, b"", attrs, validate).unwrap_err();
        assert_eq!(planned, real.write(&path, b"", attrs, validate).unwrap_err());
    };
    let plain = Attrs::default();
    both(at("d"), &plain, None, &mut real);
    both(at("no/x"), &plain, None, &mut real);
    both(at("f/x"), &plain, None, &mut real);
    both(at("x\0"), &plain, None, &mut real);
    both(at("f"), &Attrs { owner: Some("rooot".into()), ..Attrs::default() }, None, &mut real);
    let planned = Overlay::new(&real).mkdir(&at("d"), &plain).unwrap_err();
    assert_eq!(planned, real.mkdir(&at("d"), &plain).unwrap_err());
}

#[test]
fn effects_are_taken_and_unknown_commands_make_uncertain() {
    let real = Real::new();
    let mut overlay = Overlay::new(&real);
    let user = User {
        name: "planned".into(),
        uid: None,
        gid: None,
        gecos: String::new(),
        home: "/".into(),
        shell: "/bin/false".into(),
    };
    let command = Command::new(["useradd", "planned"]);
    let effects = [Effect::User(user), Effect::Hostname("n1".into()), Effect::Other];
    assert_eq!(overlay.run(&command, &effects).unwrap(), Ran::Planned);
    assert!(overlay.users().unwrap().iter().any(|u| u.name == "planned"));
    assert_eq!(overlay.hostname().unwrap(), "n1");
    assert!(!overlay.is_uncertain());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    overlay.write(&path, b"", &Attrs { owner: Some("planned".into()), ..Attrs::default() }, None).unwrap();
    assert_eq!(overlay.meta(&path).unwrap().unwrap().owner, "planned");
    overlay.set_attrs(&path, &Attrs { owner: Some("0".into()), ..Attrs::default() }).unwrap();
    assert_eq!(overlay.meta(&path).unwrap().unwrap().owner, "root");
    assert_eq!(overlay.run(&command, &[]).unwrap(), Ran::Unknown);
    assert!(overlay.is_uncertain());
}

#[test]
fn a_planned_unit_exists() {
    let real = Real::new();
    let mut overlay = Overlay::new(&real);
    for folder in ["/etc", "/etc/systemd", "/etc/systemd/system"] {
        if overlay.meta(Path::new(folder)).unwrap().is_none() {
            overlay.mkdir(Path::new(folder), &Attrs::default()).unwrap();
        }
    }
    overlay
        .write(Path::new("/etc/systemd/system/planned-here@.service"), b"[Service]\n", &Attrs::default(), None)
        .unwrap();
    let unit = overlay.unit("planned-here@1.service").unwrap();
    assert_eq!((unit.exists, unit.active.as_str()), (true, "inactive"));
    let stopped = Unit { active: "active".into(), ..unit };
    overlay.run(&Command::default(), &[Effect::Unit("a.service".into(), stopped.clone())]).unwrap();
    assert_eq!(overlay.unit("a.service").unwrap(), stopped);
}
