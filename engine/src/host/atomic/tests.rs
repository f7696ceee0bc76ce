//! Files that are put in place, and what is left when that fails.

use super::*;

fn put_text(path: &Path, text: &str, ids: &Ids, validate: Option<&str>) -> Result<(), Failure> {
    put(path, ids, validate, &mut |out| out.write_all(text.as_bytes()).map_err(|e| explain("write", path, &e)))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_are_made_and_replaced_with_their_attributes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.conf");
    put_text(&path, "one", &Ids { mode: Some(0o640), ..Ids::default() }, None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    put_text(&path, "two", &Ids::default(), None).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640, "the mode is kept");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    put_text(&link, "three", &Ids::default(), None).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_file());
    assert_ne!(fs::metadata(&link).unwrap().mode() & 0o7777, 0o777);
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(names(folder.path()), ["a.conf", "link"]);
}

#[test]
fn a_failing_validation_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    put_text(&path, "old", &Ids::default(), None).unwrap();
    let failure = put_text(&path, "new", &Ids::default(), Some("/bin/sh -c 'echo bad $0 >&2; exit 4' %s")).unwrap_err();
    assert!(failure.message.contains("(rc 4)"), "{failure}");
    assert!(failure.message.contains(&format!("bad {}", path.display())), "the file's own name is shown: {failure}");
    assert_eq!(failure.data["rc"], 4);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(names(folder.path()), ["a.json"]);
    // The validator sees content, mode and the final name.
    let script =
        "/bin/sh -c 'test \"$(cat $0)\" = new && test \"$(stat -c %a $0)\" = 600 && test ${0##*/} = a.json' %s";
    put_text(&path, "new", &Ids { mode: Some(0o600), ..Ids::default() }, Some(script)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(names(folder.path()), ["a.json"]);
    assert!(put_text(&path, "x", &Ids::default(), Some("true")).unwrap_err().message.contains("lacks %s"));
}

#[test]
fn places_that_cannot_be_written_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| put_text(&folder.path().join(name), "x", &Ids::default(), None).unwrap_err();
    assert!(at("no/such").message.contains("no does not exist"));
    assert!(at("no/such").hint.unwrap().contains("state: directory"));
    fs::create_dir(folder.path().join("d")).unwrap();
    assert!(at("d").message.contains("a folder is there"));
    fs::write(folder.path().join("f"), "").unwrap();
    assert!(at("f/x").message.contains("is not a folder"));
    assert!(at("a\0b").message.contains("NUL byte"));
    assert!(at(&"n".repeat(300)).hint.unwrap().contains("255"));
    assert!(put_text(Path::new("/"), "x", &Ids::default(), None).unwrap_err().message.contains("no name"));
    assert!(put_text(Path::new("rel"), "x", &Ids::default(), None).unwrap_err().message.contains("not absolute"));
}

#[test]
fn a_failing_writer_leaves_nothing_and_dead_leftovers_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let full = io::Error::from_raw_os_error(libc::ENOSPC);
    let failure = put(&path, &Ids::default(), None, &mut |out| {
        out.write_all(b"half").map_err(|e| explain("write", &path, &e))?;
        Err(explain("write", &path, &full))
    })
    .unwrap_err();
    assert!(failure.hint.unwrap().contains("disk is full"));
    assert!(names(folder.path()).is_empty());
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    fs::write(folder.path().join(format!(".rollcall-{}-0-0-a.tmp", dead.id())), "half").unwrap();
    fs::create_dir(folder.path().join(format!(".rollcall-{}-0-1-a.tmp", dead.id()))).unwrap();
    // The number of a living process, but not its time: what stands there is from before the machine's restart.
    let me = std::process::id();
    fs::write(folder.path().join(format!(".rollcall-{me}-1-0-a.tmp")), "half").unwrap();
    let living = format!(".rollcall-{me}-{}-999-a.tmp", began(me).unwrap());
    fs::write(folder.path().join(&living), "of a living process").unwrap();
    put_text(&path, "x", &Ids::default(), None).unwrap();
    assert_eq!(names(folder.path()), [living.as_str(), "a"]);
}

#[test]
fn links_and_folders_are_put_in_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&a, "x").unwrap();
    link(&b, |t| std::os::unix::fs::symlink("a", t)).unwrap();
    link(&b, |t| fs::hard_link(&a, t)).unwrap();
    link(&b, |t| fs::hard_link(&a, t)).unwrap();
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    let d = folder.path().join("d");
    mkdir(&d, &Ids { mode: Some(0o2750), ..Ids::default() }).unwrap();
    assert_eq!(fs::metadata(&d).unwrap().mode() & 0o7777, 0o2750);
    assert!(mkdir(&d, &Ids::default()).unwrap_err().message.contains("something is there"));
    assert!(link(&d, |t| std::os::unix::fs::symlink("a", t)).unwrap_err().message.contains("a folder is there"));
    remove(&d).unwrap();
    remove(&d).unwrap();
    assert_eq!(names(folder.path()), ["a", "b"]);
}

/// Run by itself with the variable set, it writes until it is killed.
#[test]
fn a_killed_writer_leaves_the_old_or_the_new_file_whole() {
    const WRITER: &str = "ROLLCALL_TEST_WRITER";
    const SIZE: usize = 400_000;
    if let Some(path) = std::env::var_os(WRITER) {
        for letter in ["a", "b"].into_iter().cycle() {
            let ids = Ids { mode: Some(if letter == "a" { 0o600 } else { 0o640 }), ..Ids::default() };
            put_text(Path::new(&path), &letter.repeat(SIZE), &ids, None).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let mut leftovers = 0;
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "host::atomic::tests::a_killed_writer_leaves_the_old_or_the_new_file_whole",
                "--test-threads=1",
            ])
            .env(WRITER, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !path.exists() {
            assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself");
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_micros(20_000 + round * 777));
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        let whole = text == "a".repeat(SIZE) && mode == 0o600 || text == "b".repeat(SIZE) && mode == 0o640;
        assert!(whole, "{} bytes of {:?}, mode {mode:o}", text.len(), text.chars().next());
        leftovers += names(folder.path()).len() - 1;
        put_text(&path, "c", &Ids::default(), None).unwrap();
        assert_eq!(names(folder.path()), ["f"], "the next write removes what was left");
        fs::remove_file(&path).unwrap();
    }
    assert!(leftovers > 0, "no kill hit a write: the test shows nothing");
}
